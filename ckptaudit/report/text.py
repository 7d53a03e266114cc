"""Results as text for a person at a terminal.

Knows:      what a person wants to know first.
Is told:    results from `jobs`.
Never asks: whether there is a terminal; the text is the same without one, and every
            string out of a file is escaped.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING

from ckptaudit.policy import Severity
from ckptaudit.vm import escape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptaudit.jobs.account import Conversion, TensorEntry
    from ckptaudit.jobs.inspect import Inspection
    from ckptaudit.jobs.scan import ScanResult
    from ckptaudit.jobs.verify import Verification
    from ckptaudit.layouts import ComponentCount
    from ckptaudit.plan import Drop
    from ckptaudit.policy import Finding
    from ckptaudit.tensors import Leftover

__all__ = [
    "conversion_text",
    "inspection_text",
    "printable",
    "scan_text",
    "size_text",
    "verification_text",
]

_MOST_LINES = 20
_FIRST_STEP = re.compile(r"\w+|\[(?:'(?:[^'\\]|\\.)*'|[^'\]]*)\]")


def size_text(nbytes: int) -> str:
    """A size in decimal units, as file managers show it.

    >>> size_text(999), size_text(4_265_304_873)
    ('999 B', '4.27 GB')
    """
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":  # noqa: PLR2004 - decimal units
            break
        value /= 1000
    return f"{nbytes} B" if unit == "B" else f"{value:.2f} {unit}"


def scan_text(result: ScanResult) -> str:
    """The verdict, why, and what was not read."""
    coverage = "complete" if result.coverage.complete else "incomplete"
    lines = [
        f"{printable(result.path)}: {result.verdict.value}, coverage {coverage}",
        f"  {result.container.value}, {size_text(result.size)}{_hash(result.sha256)}",
        *(f"  note: {note}" for note in result.notes),
        *_findings(result.findings),
        *_some(f"  not read: {gap}" for gap in result.coverage.gaps),
    ]
    return "\n".join(lines) + "\n"


def inspection_text(result: Inspection) -> str:
    """What the file is, part by part, and what else is in it."""
    family = result.family + (f" ({result.variant})" if result.variant else "")
    weights = sum(tensor.nbytes for tensor in result.tensors)
    lines = [
        f"{printable(result.path)}: {family}, {len(result.tensors)} tensors, {size_text(weights)}",
        f"  {result.container.value}, {size_text(result.size)}{_hash(result.sha256)}",
        *_distrust(result.verdict),
        f"  state dict: {escape(result.state_dict) or 'the root of the pickle'}",
        *(f"  note: {note}" for note in result.notes),
        *(f"  because {evidence}" for evidence in result.evidence),
        *_components(result.components),
    ]
    by_dtype: dict[str, int] = defaultdict(int)
    for tensor in result.tensors:
        by_dtype[tensor.dtype] += tensor.nbytes
    lines += [f"  {dtype}: {size_text(nbytes)}" for dtype, nbytes in sorted(by_dtype.items())]
    lines += _leftovers(result.leftovers)
    lines += _some(f"  not read: {gap}" for gap in result.coverage.gaps)
    return "\n".join(lines) + "\n"


def conversion_text(result: Conversion) -> str:
    """What was written, what it cost, and what was left out."""
    verb = "became" if result.written else "would become"
    before = size_text(result.source.size)
    after = size_text(sum(output.size for output in result.outputs))
    lines = [
        f"{printable(result.source.path)}: {result.family}, {before} {verb} {after}",
        *(
            f"  {printable(output.path)}: {len(result.tensors)} tensors{_hash(output.sha256)}"
            for output in result.outputs
        ),
        *(f"  note: {note}" for note in result.notes),
        *_components(result.components),
        *_losses(result.tensors),
    ]
    renamed = sum(tensor.name != tensor.source for tensor in result.tensors)
    if renamed:
        lines.append(f"  {renamed} tensors got their canonical names")
    lines += _some(
        f"  {escape(alias.name)} is stored as {escape(alias.of)}" for alias in result.aliases
    )
    lines += _drops(result.dropped)
    lines += _findings(result.findings)
    lines += _some(f"  not read: {gap}" for gap in result.source.coverage.gaps)
    return "\n".join(lines) + "\n"


def verification_text(result: Verification) -> str:
    """Whether the converted file is what its source gives."""
    proven = sum(proof.equal for proof in result.tensors)
    verdict = "proven" if result.equal else "NOT what its source gives"
    of = f"{proven} of {len(result.tensors)}"
    lines = [
        f"{printable(result.converted.path)}: {verdict}",
        f"  {of} tensors are exactly what {printable(result.source.path)} gives",
        *_asked_for(result),
        *(f"  note: {note}" for note in result.notes),
        *_some(f"  not read: {gap}" for gap in result.coverage.gaps),
        *_some(f"  {problem}" for problem in result.problems),
        *_some(
            f"  {escape(proof.name)}: {proof.problem}"
            for proof in result.tensors
            if not proof.equal
        ),
    ]
    return "\n".join(lines) + "\n"


def printable(path: str) -> str:
    r"""*path* with what a terminal would obey, or not show, escaped; letters of any script stay.

    >>> printable("mod\u00e8le\x1b[2J.ckpt")
    'modèle\\x1b[2J.ckpt'
    """
    return "".join(char if char.isprintable() else escape(char) for char in path)


def _hash(sha256: str | None) -> str:
    return f", sha256 {sha256}" if sha256 else ""


def _findings(findings: Iterable[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        place = [finding.record] if finding.record else []
        if finding.stream_offset is not None:
            place.append(f"byte {finding.stream_offset}")
        if finding.offset is not None:
            place.append(f"file offset {finding.offset}")
        where = f"{', '.join(place)}: " if place else ""
        lines.append(f"  {finding.severity.value} {finding.rule}: {where}{finding.message}")
    return _some(lines)


def _components(components: Iterable[ComponentCount]) -> list[str]:
    lines = []
    for part in components:
        of = f"/{part.expected}" if part.expected else ""
        line = f"  {part.component.value}: {part.present}{of}"
        lists = {
            "missing": part.missing,
            "misshapen": part.misshapen,
            "unexpected": part.unexpected,
        }
        for what, names in lists.items():
            if names:
                more = ", ..." if len(names) > 1 else ""
                line += f"; {len(names)} {what}: {escape(names[0])}{more}"
        lines.append(line)
    return lines


def _losses(tensors: Iterable[TensorEntry]) -> list[str]:
    counted = [tensor.stats for tensor in tensors if tensor.stats is not None]
    if not counted:
        return []
    totals = {
        "overflowed": sum(stats.overflowed for stats in counted),
        "flushed to zero": sum(stats.flushed for stats in counted),
        "subnormal": sum(stats.subnormal for stats in counted),
        "NaN": sum(stats.nan for stats in counted),
        "infinite": sum(stats.inf for stats in counted),
    }
    numel = sum(stats.numel for stats in counted)
    worst = max((stats.max_abs_error or 0.0 for stats in counted), default=0.0)
    shown = ", ".join(f"{count} {what}" for what, count in totals.items())
    return [f"  {numel} values as written: {shown}; largest error {worst:.3g}"]


def _distrust(verdict: Severity) -> list[str]:
    if verdict is Severity.CLEAN:
        return []
    return [f"  {verdict.value}: `ckptaudit scan` says why"]


def _leftovers(leftovers: Iterable[Leftover]) -> list[str]:
    """What else a file holds, a line for each branch of its tree."""
    branches: dict[tuple[str, str], list[Leftover]] = defaultdict(list)
    for left in leftovers:
        # The first step of a path, which is an identifier or a subscript: `optimizer`, `['a.b']`.
        step = _FIRST_STEP.match(left.path)
        branches[step[0] if step else left.path, left.reason].append(left)
    lines = []
    for (first, reason), held in branches.items():
        if len(held) == 1:
            what = f"{escape(held[0].path) or 'its root'}: {held[0].what}"
        else:
            tensors = sum(left.is_tensor for left in held)
            counts = {"tensors": tensors, "other values": len(held) - tensors}
            shown = " and ".join(f"{count} {name}" for name, count in counts.items() if count)
            what = f"{escape(first) or 'its root'}: {shown}"
        lines.append(f"  also holds {what} ({reason})")
    return _some(lines)


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
    return [f"  made with {' '.join(chosen) or 'the default options'}", *_drops(result.dropped)]


def _drops(dropped: Iterable[Drop]) -> list[str]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for drop in dropped:
        reasons[drop.reason].append(drop.source)
    return _some(
        f"  {len(sources)} not written, {escape(sources[0])}"
        f"{', ...' if len(sources) > 1 else ''}: {reason}"
        for reason, sources in reasons.items()
    )


def _some(lines: Iterable[str]) -> list[str]:
    """The first lines, and how many more there are; JSON has them all."""
    every = list(lines)
    if len(every) <= _MOST_LINES:
        return every
    return [*every[:_MOST_LINES], f"  ... and {len(every) - _MOST_LINES} more; see --format json"]
