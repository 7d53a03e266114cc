"""Reasons for distrust: each with an id that never changes, a severity and a sentence.

Knows:      what can be wrong with a checkpoint, and how bad it is.
Is told:    nothing.
Never asks: how any of it is detected (`judge`), or how it is shown (`report`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptaudit.containers import Gap

__all__ = ["RULES", "Coverage", "Finding", "Rule", "Severity"]


class Severity(str, Enum):
    """How much distrust; the verdict on a file is the worst of its findings.

    >>> max([Severity.REVIEW, Severity.MALICIOUS, Severity.CLEAN]).value
    'malicious'
    """

    CLEAN = "clean"
    REVIEW = "review"
    SUSPICIOUS = "suspicious"
    MALICIOUS = "malicious"

    @property
    def rank(self) -> int:
        """Place on the ladder, 0 for clean."""
        return tuple(Severity).index(self)

    def __lt__(self, other: object) -> bool:
        return isinstance(other, Severity) and self.rank < other.rank

    def __le__(self, other: object) -> bool:
        return isinstance(other, Severity) and self.rank <= other.rank

    def __gt__(self, other: object) -> bool:
        return isinstance(other, Severity) and self.rank > other.rank

    def __ge__(self, other: object) -> bool:
        return isinstance(other, Severity) and self.rank >= other.rank


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of finding.

    Attributes:
        id: Stable; ``CKA1..`` is about what a pickle would do, ``CKA2..`` about the framing,
            ``CKA3..`` about the weights.
        severity: How bad it is.
        title: What is wrong, for a list of rules.
    """

    id: str
    severity: Severity
    title: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason for distrust.

    Attributes:
        rule: Id of the rule; stable.
        severity: How bad it is.
        message: What was found; printable ASCII, not stable.
        record: The record it stands in, or "" for the file as a whole.
        offset: Byte offset in the file, or None where the record is compressed.
        stream_offset: Byte offset in the record's own, uncompressed bytes, or None.
    """

    rule: str
    severity: Severity
    message: str
    record: str
    offset: int | None
    stream_offset: int | None = None


@dataclass(frozen=True, slots=True)
class Coverage:
    """Whether all of the file was read and understood.

    Attributes:
        complete: True if nothing was left out.
        gaps: What was not read, and why, in printable ASCII; the first few hundred, and then
            how many more there were.
    """

    complete: bool
    gaps: tuple[Gap, ...]


_ALL = (
    Rule("CKA101", Severity.MALICIOUS, "names something that can run code or reach the system"),
    Rule("CKA102", Severity.SUSPICIOUS, "names something that is not on the allowlist"),
    Rule("CKA103", Severity.SUSPICIOUS, "calls something that no checkpoint calls"),
    Rule("CKA104", Severity.MALICIOUS, "names something computed while unpickling"),
    Rule("CKA105", Severity.MALICIOUS, "names an attribute of an attribute, or a hidden one"),
    Rule("CKA106", Severity.SUSPICIOUS, "has a persistent id that is not a storage"),
    Rule("CKA107", Severity.SUSPICIOUS, "sets the state of something that has none"),
    Rule("CKA108", Severity.REVIEW, "holds objects of a class, not only tensors"),
    Rule("CKA109", Severity.REVIEW, "has opcodes that no pickler writes"),
    Rule("CKA110", Severity.SUSPICIOUS, "holds a pickle that the loader reads as something else"),
    Rule(
        "CKA111",
        Severity.REVIEW,
        "holds a tensor whose indices or inner sizes loaders do not check",
    ),
    Rule("CKA112", Severity.REVIEW, "costs its reader far more than its bytes"),
    Rule("CKA201", Severity.SUSPICIOUS, "looks different to different zip readers"),
    Rule("CKA202", Severity.SUSPICIOUS, "has bytes that belong to nothing"),
    Rule("CKA203", Severity.REVIEW, "has records that torch does not write or refer to"),
    Rule("CKA204", Severity.SUSPICIOUS, "has a storage that is missing or of the wrong size"),
    Rule("CKA205", Severity.REVIEW, "contains TorchScript code"),
    Rule("CKA206", Severity.SUSPICIOUS, "breaks the schedule of its own format"),
    Rule("CKA207", Severity.SUSPICIOUS, "has a tensor that does not lie inside its storage"),
    Rule("CKA208", Severity.REVIEW, "was not read completely"),
    Rule("CKA301", Severity.REVIEW, "has weights that do not fit the type asked for"),
    Rule("CKA302", Severity.REVIEW, "has NaN or infinite values"),
)
RULES = {rule.id: rule for rule in _ALL}
