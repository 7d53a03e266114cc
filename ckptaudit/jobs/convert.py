"""`convert`: a checkpoint in, deduplicated safetensors and an account of every tensor out.

Knows:      what may be converted, where to, and what the account holds.
Is told:    a path, a destination and the user's options.
Never asks: how weights get from one file to the other (`writing`), how the answer is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckptaudit.errors import MalformedInput, OutputFailed, Refused
from ckptaudit.jobs.opening import File, opened
from ckptaudit.plan import Options
from ckptaudit.policy import Severity, judge
from ckptaudit.tensors import misfits
from ckptaudit.writer import check_destination, path_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from ckptaudit.containers import Container, Kind
    from ckptaudit.layouts import Component, ComponentCount
    from ckptaudit.numerics import TensorStats
    from ckptaudit.plan import Alias, Drop
    from ckptaudit.policy import Coverage, Finding, Judgement
    from ckptaudit.tensors import Leftover

__all__ = ["Conversion", "Source", "TensorEntry", "convert"]


@dataclass(frozen=True, slots=True)
class Source(File):
    """The file that was converted.

    Attributes:
        container: Its framing.
        state_dict: Where in the pickle the weights were found; "" is the root.
        verdict: What a scan thinks of it.
        coverage: Whether all of it was read.
    """

    container: Kind
    state_dict: str
    verdict: Severity
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor that was written, or would be.

    Attributes:
        name: What it is called in the output.
        file: Name of the output file it is in.
        source: Its key in the source.
        component: What part of the model it is.
        op: What was done to its shape.
        rows: Which rows of the source were taken, or None for all.
        source_dtype: torch's name of its type in the source.
        dtype: torch's name of its type in the output.
        shape: Elements per dimension, in the output.
        stats: What it holds and what the cast cost; None in a dry run.
    """

    name: str
    file: str
    source: str
    component: Component
    op: str
    rows: tuple[int, int] | None
    source_dtype: str
    dtype: str
    shape: tuple[int, ...]
    stats: TensorStats | None


@dataclass(frozen=True, slots=True)
class Conversion:
    """The account of a conversion: every tensor of the source is in it exactly once.

    Attributes:
        source: The file that was converted.
        written: False in a dry run: then it says what would be.
        family: Name of the model family, or ``unknown``.
        variant: Which variant of it, or None.
        evidence: What the family was recognised by.
        options: What was asked for.
        components: What is there, missing and unexpected, component by component.
        outputs: The files written, their hashes read back after writing; a dry run has none.
        tensors: In the order of the data in the output.
        aliases: Names stored under another.
        dropped: Tensors not written.
        leftovers: Values of the source that are no tensors.
        findings: What the scan found, and what became of weights that did not fit.
        notes: What is worth knowing besides.
    """

    source: Source
    written: bool
    family: str
    variant: str | None
    evidence: tuple[str, ...]
    options: Options
    components: tuple[ComponentCount, ...]
    outputs: tuple[File, ...]
    tensors: tuple[TensorEntry, ...]
    aliases: tuple[Alias, ...]
    dropped: tuple[Drop, ...]
    leftovers: tuple[Leftover, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def convert(
    path: str | PathLike[str],
    output: str | PathLike[str],
    options: Options | None = None,
    *,
    with_hash: bool = True,
    overwrite: bool = False,
    allow_unsafe: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Conversion:
    """Convert the checkpoint at *path* into the safetensors file *output*.

    Args:
        path: The checkpoint.
        output: The file to write; it appears under this name only when it is whole.
        options: What to do with weights, copies and names.
        with_hash: Compute the SHA-256 of source and output.
        overwrite: Replace *output* if it is there.
        allow_unsafe: Convert a file that a scan distrusts or could not read completely;
            nothing of it is executed all the same.
        dry_run: Write nothing; the result says what would be written.
        progress: Told bytes of weights done, and in all.

    Raises:
        Refused: The scan distrusts the file, or a weight overflows under ``--on-overflow error``.
        OutputExists, OutputFailed: The output cannot be written.
        CkptauditError: The source cannot be read completely, or changed meanwhile.
    """
    options = options or Options()
    target = Path(output)
    with opened(path, with_hash=with_hash and not dry_run) as file:
        # A dry run, too, is refused what the conversion would be.
        _check_target(target, path, overwrite=overwrite or dry_run)
        judgement = judge(file.container, misfits)
        if not allow_unsafe:
            _refuse_unsafe(file.container, judgement)
        # Only now, when the hash has begun: to load numpy takes a twentieth of a second.
        from ckptaudit.jobs.writing import write  # noqa: PLC0415

        return write(
            file,
            target,
            options,
            judgement,
            with_hash=with_hash,
            overwrite=overwrite,
            dry_run=dry_run,
            progress=progress,
        )


def _check_target(target: Path, source: str | PathLike[str], *, overwrite: bool) -> None:
    """Refuse a destination that cannot be written, or that is the source itself."""
    check_destination(target, overwrite=True)
    if target.exists() and target.samefile(source):
        raise OutputFailed(
            f"{path_text(target)}: is the source itself, which is never written; "
            "name another output with -o"
        )
    check_destination(target, overwrite=overwrite)


def _refuse_unsafe(container: Container, judgement: Judgement) -> None:
    name = container.source.name
    if judgement.verdict >= Severity.SUSPICIOUS:
        worst = max(judgement.findings, key=lambda finding: finding.severity.rank)
        raise Refused(
            f"{name}: is {judgement.verdict.value} ({worst.message}); "
            "`ckptaudit scan` says more, --allow-unsafe converts it all the same"
        )
    if not judgement.coverage.complete:
        raise MalformedInput(
            f"could not be read completely ({judgement.coverage.gaps[0]}); "
            "--allow-unsafe converts what could",
            where=name,
        )
