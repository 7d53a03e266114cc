"""`scan`: can this file be trusted, and was all of it read?

Knows:      how the reader, the tensors and the policy meet.
Is told:    a path.
Never asks: which of the tensors are the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.jobs.opening import File, notes_on, opened
from ckptaudit.jobs.parts import Part, parts_of
from ckptaudit.policy import Coverage, Finding, GlobalUse, Severity, judge
from ckptaudit.tensors import misfits

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from ckptaudit.containers import Container, Kind

__all__ = ["ScanResult", "scan"]


@dataclass(frozen=True, slots=True)
class ScanResult(File):
    """What a scan found.

    Attributes:
        container: Its framing.
        verdict: The worst severity among *findings*.
        coverage: Whether all of it was read.
        findings: Reasons for distrust.
        globals: Names its pickles ask for.
        notes: What is worth knowing besides.
        parts: What findings and gaps name, and what that is in.
    """

    container: Kind
    verdict: Severity
    coverage: Coverage
    findings: tuple[Finding, ...]
    globals: tuple[GlobalUse, ...]
    notes: tuple[str, ...]
    parts: tuple[Part, ...]


def scan(
    path: str | PathLike[str],
    *,
    with_hash: bool = True,
    look: Callable[[Container], None] = lambda _: None,
) -> ScanResult:
    """Read the file's directory and pickles and judge them; nothing is executed.

    Args:
        path: The file.
        with_hash: Read the whole file once for its SHA-256, and small parts that are named.
        look: Is shown the open file, for whoever wants to know more of it than a scan says.

    Raises:
        CkptauditError: There is no answer: the file cannot be read, is no checkpoint, or
            changed meanwhile.
    """
    with opened(path, with_hash=with_hash) as file:
        container = file.container
        judgement = judge(container, misfits)
        look(container)
        return ScanResult(
            path=container.source.name,
            size=container.source.size,
            sha256=file.finish(),
            container=container.kind,
            verdict=judgement.verdict,
            coverage=judgement.coverage,
            findings=judgement.findings,
            globals=judgement.globals,
            notes=notes_on(container),
            parts=parts_of(judgement, with_hash=with_hash),
        )
