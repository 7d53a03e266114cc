"""`scan`: can this file be trusted, and was all of it read?

Knows:      how the reader, the tensors and the policy meet.
Is told:    a path.
Never asks: which of the tensors are the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.jobs.opening import File, Folders, notes_on, opened
from ckptaudit.jobs.parts import Part, parts_of
from ckptaudit.policy import Coverage, Finding, GlobalUse, Severity, judge
from ckptaudit.tensors import misfits

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from ckptaudit.containers import Container, Kind
    from ckptaudit.jobs.baseline import Baseline
    from ckptaudit.policy import Permitted, Policy

__all__ = ["ScanResult", "scan"]


@dataclass(frozen=True, slots=True)
class ScanResult(File):
    """What a scan found.

    Attributes:
        container: Its framing.
        verdict: The worst severity among *findings*.
        coverage: Whether all of it was read.
        findings: Reasons for distrust.
        permitted: Those that the policy permits; they have no part in the verdict.
        to_permit: Lines that the policy would need to permit the others, each with a
            justification and a date to be filled in.
        globals: Names its pickles ask for.
        notes: What is worth knowing besides.
        parts: What findings and gaps name, and what that is in.
    """

    container: Kind
    verdict: Severity
    coverage: Coverage
    findings: tuple[Finding, ...]
    permitted: tuple[Permitted, ...]
    to_permit: tuple[str, ...]
    globals: tuple[GlobalUse, ...]
    notes: tuple[str, ...]
    parts: tuple[Part, ...]


def scan(
    path: str | PathLike[str],
    *,
    with_hash: bool = True,
    look: Callable[[Container], None] = lambda _: None,
    policy: Policy | None = None,
    baseline: Baseline | None = None,
) -> ScanResult:
    """Read the file's directory and pickles and judge them; nothing is executed.

    Args:
        path: The file, or the folder of a diffusers model: then each file in it is looked at,
            whether a loader would take it for weights or not.
        with_hash: Read the whole file once for its SHA-256, and small parts that are named.
        look: Is shown the open file, for whoever wants to know more of it than a scan says.
        policy: What of the findings is permitted; what it permits in one file by its SHA-256
            needs *with_hash*.
        baseline: Which findings are known, of which it takes none away; needs *with_hash*.

    Raises:
        CkptauditError: There is no answer: the file cannot be read, is no checkpoint, or
            changed meanwhile.
    """
    with opened(path, with_hash=with_hash, folders=Folders.WHOLE) as file:
        container = file.container
        judgement = judge(container, misfits, policy)
        look(container)
        parts = parts_of(judgement, with_hash=with_hash)
        digest = file.finish()
        judgement = judgement.of_file(digest, policy)
        if baseline is not None:
            judgement = baseline.marked(judgement, digest)
        return ScanResult(
            path=container.source.name,
            size=container.source.size,
            sha256=digest,
            container=container.kind,
            verdict=judgement.verdict,
            coverage=judgement.coverage,
            findings=judgement.findings,
            permitted=judgement.permitted,
            to_permit=judgement.proposals(digest),
            globals=judgement.globals,
            notes=notes_on(container),
            parts=parts,
        )
