"""Results as text for a person at a terminal.

Knows:      what a person wants to know first.
Is told:    results from `jobs`.
Never asks: whether there is a terminal; the text is the same without one, and every
            string out of a file is escaped.
"""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING

from ckptaudit.policy import Severity
from ckptaudit.report import facts, figures
from ckptaudit.report.escaping import printable, without_commands
from ckptaudit.report.facts import size_text
from ckptaudit.vm import escape
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

    from ckptaudit.jobs.account import Conversion, VaeSource
    from ckptaudit.jobs.inspect import Inspection
    from ckptaudit.jobs.scan import ScanResult
    from ckptaudit.jobs.sizes import Sizes
    from ckptaudit.jobs.verify import TensorProof, Verification
    from ckptaudit.layouts import ComponentCount
    from ckptaudit.policy import Coverage, Finding, Permitted

__all__ = ["conversion_text", "inspection_text", "scan_text", "verification_text"]


def scan_text(result: ScanResult, expires: date) -> str:
    """The verdict, why, and what was not read.

    Args:
        result: The answer.
        expires: When a permission would expire that is given now.
    """
    coverage = "complete" if result.coverage.complete else "incomplete"
    return _lines(
        f"{printable(result.path)}: {result.verdict.value}, coverage {coverage}",
        f"{result.container.value}, {size_text(result.size)}{_hash(result.sha256)}",
        *_notes(result.notes),
        *_findings(result.findings),
        *_permitted(result.permitted),
        *_not_read(result.coverage),
        *_to_permit(result.to_permit, expires),
    )


def inspection_text(result: Inspection) -> str:
    """What the file is, part by part, and what else is in it."""
    family = result.family + (f" ({result.variant})" if result.variant else "")
    weights = sum(tensor.nbytes for tensor in result.tensors)
    tensors = counted(len(result.tensors), "tensor")
    distrusted = result.verdict > Severity.CLEAN
    return _lines(
        f"{printable(result.path)}: {family}, {tensors}, {size_text(weights)}",
        f"{result.container.value}, {size_text(result.size)}{_hash(result.sha256)}",
        *([f"{result.verdict.value}: `ckptaudit scan` says why"] if distrusted else []),
        f"state dict: {escape(result.state_dict) or facts.root_of(result.container)}",
        *_notes(result.notes),
        *(f"because {evidence}" for evidence in result.evidence),
        *_components(result.components, result.sizes),
        *(figures.hashes(result.identity) if result.identity is not None else ()),
        *figures.twins(result.twins),
        *(f"{dtype}: {size}" for dtype, size in facts.sizes_by_dtype(result.tensors)),
        *figures.memory(result.sizes),
        *figures.measures(result.stats),
        *(f"risk: {risk}" for risk in figures.risks(result.risks)),
        *facts.leftovers(result.leftovers),
        *_findings(result.findings),
        *_not_read(result.coverage),
    )


def conversion_text(result: Conversion) -> str:
    """What was written, what it cost, and what was left out."""
    verb = "became" if result.written else "would become"
    before = size_text(result.source.size)
    after = size_text(sum(output.size for output in result.outputs))
    return _lines(
        f"{printable(result.source.path)}: {result.family}, {before} {verb} {after}",
        *(
            f"{printable(output.path)}: {facts.tensors_in(result, output)}{_hash(output.sha256)}"
            for output in result.outputs
        ),
        *_vae_source(result.vae_source),
        *_notes(result.notes),
        *_components(result.components, result.sizes),
        *figures.modelspec(result),
        *figures.saved(result.sizes),
        *figures.memory(result.sizes),
        *facts.losses(result.tensors),
        *facts.choices(result.tensors),
        *facts.stored_once(result),
        *facts.drops(result.dropped),
        *_findings(result.findings),
        *_permitted(result.permitted),
        *_not_read(result.source.coverage),
    )


def verification_text(result: Verification) -> str:
    """Whether the converted file is what its source gives."""
    proven = sum(proof.equal for proof in result.tensors)
    verdict = "proven" if result.equal else "NOT what its source gives"
    of = f"{proven} of {counted(len(result.tensors), 'tensor')}"
    files = f" in {counted(len(result.files), 'file')}" if len(result.files) > 1 else ""
    vae = "" if result.vae_source is None else f" with the VAE of {result.vae_source.path}"
    return _lines(
        f"{printable(result.converted.path)}: {verdict}",
        f"exactly what {printable(result.source.path)} gives{printable(vae)}: {of}{files}",
        *_asked_for(result),
        *_notes(result.notes),
        *_not_read(result.coverage),
        *facts.first_of(result.problems),
        *facts.first_of(map(_disproof, filter(lambda proof: not proof.equal, result.tensors))),
    )


def _disproof(proof: TensorProof) -> str:
    where = f"{escape(proof.file)}: " if proof.file else ""
    return f"{where}{escape(proof.name)}: {proof.problem}"


def _lines(first: str, *rest: str) -> str:
    """A line for the file, and under it what is to be said of it."""
    return without_commands("\n".join([first, *(f"  {line}" for line in rest)]) + "\n")


def _hash(sha256: str | None) -> str:
    return f", sha256 {sha256}" if sha256 else ""


def _notes(notes: Iterable[str]) -> list[str]:
    return [f"note: {note}" for note in notes]


def _not_read(coverage: Coverage) -> list[str]:
    return facts.first_of(f"not read: {gap}" for gap in coverage.gaps)


def _vae_source(source: VaeSource | None) -> list[str]:
    """What is to be said of the file that the VAE is from."""
    if source is None:
        return []
    name = printable(source.path)
    told = [
        *_findings(source.findings),
        *_permitted(source.permitted),
        *_not_read(source.coverage),
    ]
    return [
        f"with the VAE of {name}: {source.container.value}, {source.family}{_hash(source.sha256)}",
        *(f"{name}: {line}" for line in told),
    ]


def _findings(findings: Iterable[Finding]) -> list[str]:
    return facts.first_of(
        f"{finding.severity.value} {finding.rule}{facts.known(finding)}: {facts.said_of(finding)}"
        for finding in facts.worst_first(findings)
    )


def _permitted(found: Iterable[Permitted]) -> list[str]:
    return [f"permitted {told}" for told in facts.permitted(found)]


def _to_permit(lines: Iterable[str], expires: date) -> list[str]:
    told = facts.to_permit(lines, expires)
    return [facts.HOW_TO_PERMIT, *(f"  {line}" for line in told)] if told else []


def _components(components: Iterable[ComponentCount], sizes: Sizes) -> list[str]:
    lines = []
    for part in components:
        of = f"/{part.expected}" if part.expected else ""
        size = figures.size_of_part(sizes, part.component)
        count = f"{part.component.value}: {part.present}{of}{f', {size}' if size else ''}"
        lines.append("; ".join([count, *facts.wrong_with(part)]))
    return lines


def _asked_for(result: Verification) -> list[str]:
    """How the converted file was to be made, which decides what it must hold."""
    if result.options is None:
        return []
    chosen = [
        f"--{field.name.replace('_', '-')} {value.value}"
        for field in fields(result.options)
        if isinstance(value := getattr(result.options, field.name), Enum)
        and value is not field.default
    ]
    chosen += ["--keep-names"] if result.options.keep_names else []
    chosen += ["--split"] if result.options.split else []
    chosen += ["--modelspec"] if result.options.modelspec is not None else []
    chosen += [f"--family {result.options.family}"] if result.options.family else []
    return [
        f"made with {' '.join(chosen) or 'the default options'}",
        *facts.drops(result.dropped),
    ]
