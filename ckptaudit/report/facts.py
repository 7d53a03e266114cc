"""What people are told about an answer, one sentence at a time, whatever the format.

Knows:      how results are summed up: sizes, losses, branches of a tree, reasons.
Is told:    parts of results from `jobs`.
Never asks: how a sentence is set: indented at a terminal, or as an item of a list.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from ckptaudit.containers import Kind
from ckptaudit.policy import dated
from ckptaudit.report.escaping import printable
from ckptaudit.vm import escape
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

    from ckptaudit.jobs.account import Conversion, TensorEntry
    from ckptaudit.jobs.inspect import InspectedTensor
    from ckptaudit.jobs.opening import File
    from ckptaudit.layouts import ComponentCount
    from ckptaudit.plan import Drop
    from ckptaudit.policy import Finding, Permitted
    from ckptaudit.tensors import Leftover

__all__ = [
    "HOW_TO_PERMIT",
    "choices",
    "drops",
    "first_of",
    "known",
    "leftovers",
    "losses",
    "permitted",
    "place_of",
    "root_of",
    "said_of",
    "size_text",
    "sizes_by_dtype",
    "stored_once",
    "tensors_in",
    "to_permit",
    "worst_first",
    "wrong_with",
]

_MOST_SENTENCES = 20
_MOST_LINES = 10
HOW_TO_PERMIT = "to permit what you have looked at, say why in a line and put it into a --policy:"
_FIRST_STEP = re.compile(r"\w+|\[(?:'(?:[^'\\]|\\.)*'|[^'\]]*)\]")


def root_of(container: Kind) -> str:
    """What is the state dict where the path to it is empty."""
    match container:
        case Kind.SAFETENSORS:
            return "the whole file"
        case Kind.FOLDER:
            return "the whole folder"
        case _:
            return "the root of the pickle"


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


def first_of(sentences: Iterable[str]) -> list[str]:
    """The first of *sentences*, and how many more there are; JSON has them all."""
    return _cut(list(sentences), _MOST_SENTENCES)


def _cut(sentences: list[str], most: int) -> list[str]:
    more = len(sentences) - most
    return [*sentences[:most], *([f"... and {more} more; see --format json"] if more > 0 else [])]


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """*findings* with the worst in front, where a cut list must have it; else in file order."""
    return sorted(findings, key=lambda finding: -finding.severity.rank)


def place_of(finding: Finding) -> list[str]:
    """Where a finding stands: record, byte in the record, byte in the file, as far as known."""
    place = [finding.record] if finding.record else []
    if finding.stream_offset is not None:
        place.append(f"byte {finding.stream_offset}")
    if finding.offset is not None:
        place.append(f"file offset {finding.offset}")
    return place


def known(finding: Finding) -> str:
    """A word behind the rule if the baseline has it."""
    return " (known)" if finding.known else ""


def said_of(finding: Finding) -> str:
    """What was found, and where, as far as that is known."""
    where = ", ".join(place_of(finding))
    return f"{where}: {finding.message}" if where else finding.message


def permitted(found: Iterable[Permitted]) -> list[str]:
    """What a policy permits, a sentence for each finding, the worst first."""
    return first_of(
        f"{each.finding.severity.value} {each.finding.rule}{known(each.finding)}: "
        f"{said_of(each.finding)} (until {each.expires}: {printable(each.justification)})"
        for each in sorted(found, key=lambda each: -each.finding.severity.rank)
    )


def to_permit(lines: Iterable[str], expires: date) -> list[str]:
    """Lines that a policy would need, up to a day; each a justification short of one."""
    return _cut([dated(line, expires) for line in lines], _MOST_LINES)


def wrong_with(part: ComponentCount) -> list[str]:
    """What a component lacks, or has too much of, with one example of each."""
    lists = {
        # Where all of them are missing no name tells more.
        "missing": () if part.is_absent else part.missing,
        "misshapen": part.misshapen,
        "unexpected": part.unexpected,
    }
    return [
        *(["is not there at all"] if part.is_absent else []),
        *(
            f"{len(names)} {what}: {escape(names[0])}{', ...' if len(names) > 1 else ''}"
            for what, names in lists.items()
            if names
        ),
    ]


def sizes_by_dtype(tensors: Iterable[InspectedTensor]) -> list[tuple[str, str]]:
    """Each element type, sorted by name, and the size of what is of that type."""
    sizes: dict[str, int] = defaultdict(int)
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.nbytes
    return [(dtype, size_text(nbytes)) for dtype, nbytes in sorted(sizes.items())]


def tensors_in(result: Conversion, output: File) -> str:
    """How many tensors are in *output*; one that was put together from parts is one."""
    names = {entry.name for entry in result.tensors if output.path.endswith(entry.file)}
    return counted(len(names), "tensor") if output.path.endswith(".safetensors") else "settings"


def stored_once(result: Conversion) -> list[str]:
    """Which names have become others, or stand for others."""
    renamed = sum(tensor.name != tensor.source for tensor in result.tensors)
    return [
        *([f"canonical names given to {counted(renamed, 'tensor')}"] if renamed else []),
        *first_of(
            f"{escape(alias.name)} is stored as {escape(alias.of)}" for alias in result.aliases
        ),
    ]


def losses(tensors: Iterable[TensorEntry]) -> list[str]:
    """What the casts cost, counted over all of *tensors*; nothing if nothing was cast yet."""
    known = [tensor.stats for tensor in tensors if tensor.stats is not None]
    if not known:
        return []
    totals = {
        "overflowed": sum(stats.overflowed for stats in known),
        "flushed to zero": sum(stats.flushed for stats in known),
        "subnormal": sum(stats.subnormal for stats in known),
        "NaN": sum(stats.nan for stats in known),
        "infinite": sum(stats.inf for stats in known),
    }
    numel = sum(stats.numel for stats in known)
    worst = max((stats.max_abs_error or 0.0 for stats in known), default=0.0)
    shown = ", ".join(f"{count} {what}" for what, count in totals.items())
    return [f"{counted(numel, 'value')} as written: {shown}; largest error {worst:.3g}"]


def choices(tensors: Iterable[TensorEntry]) -> list[str]:
    """Which tensors have another type than ``--precision auto`` prefers, and why."""
    return first_of(
        dict.fromkeys(
            f"{escape(tensor.name)} is {tensor.dtype}: {tensor.why}"
            for tensor in tensors
            if tensor.why is not None
        )
    )


def leftovers(held: Iterable[Leftover]) -> list[str]:
    """What else a file holds, a sentence for each branch of its tree."""
    branches: dict[tuple[str, str], list[Leftover]] = defaultdict(list)
    for left in held:
        # The first step of a path, which is an identifier or a subscript: `optimizer`, `['a.b']`.
        step = _FIRST_STEP.match(left.path)
        branches[step[0] if step else left.path, left.reason].append(left)
    sentences = []
    for (first, reason), branch in branches.items():
        if len(branch) == 1:
            what = f"{escape(branch[0].path) or 'its root'}: {branch[0].what}"
        else:
            tensors = sum(left.is_tensor for left in branch)
            counts = {"tensor": tensors, "other value": len(branch) - tensors}
            shown = " and ".join(counted(count, name) for name, count in counts.items() if count)
            what = f"{escape(first) or 'its root'}: {shown}"
        sentences.append(f"also holds {what} ({reason})")
    return first_of(sentences)


def drops(dropped: Iterable[Drop]) -> list[str]:
    """What was not written, a sentence for each reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for drop in dropped:
        reasons[drop.reason].append(drop.source)
    return first_of(
        f"{len(sources)} not written, {escape(sources[0])}"
        f"{', ...' if len(sources) > 1 else ''}: {reason}"
        for reason, sources in reasons.items()
    )
