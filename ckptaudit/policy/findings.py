"""The findings of one file: enough of each rule to act on, and how many more there were.

A hostile pickle of a kilobyte can give a million reasons for distrust.  A sentence for
each would cost more than all the reading, so it is written only for those that are kept;
and it is rule by rule that they are kept, so that a flood of one cannot wash away another.

Knows:      how many findings a reader can use.
Is told:    that a rule applies, where, and how to say it.
Never asks: why it applies.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.policy.rules import RULES, Finding, Severity
from ckptaudit.vm import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ckptaudit.containers import Place
    from ckptaudit.vm import Event, Trace

__all__ = ["Findings", "Subject", "record_text", "shown"]

_MOST_OF_ONE_RULE = 200
_MOST_MESSAGE = 500
_MOST_NAME = 200
_DIGEST_DIGITS = 8


class Subject(NamedTuple):
    """What a finding, or a gap, is about; of which a report gets the text and the numbers.

    Attributes:
        place: The file, or the file inside it.
        record: Name of the record, as that file spells it; "" for the file as a whole.
        offset: See `Finding`.
        stream_offset: See `Finding`.
        length: See `Finding`.
        trace: The pickle that *stream_offset* is in, or None.
        event: What its instruction there asks for, or None if it is about something else.
    """

    place: Place
    record: str
    offset: int | None = None
    stream_offset: int | None = None
    length: int | None = None
    trace: Trace | None = None
    event: Event | None = None


class Findings:
    """What was found so far."""

    def __init__(self) -> None:
        self._kept: list[tuple[Finding, Subject]] = []
        self._times: Counter[str] = Counter()

    def add(self, rule_id: str, describe: Callable[[], str], subject: Subject) -> None:
        """Add a finding.

        Args:
            rule_id: The rule.
            describe: Writes its message, in printable ASCII; called only if it is kept.
            subject: What it is about.
        """
        self._times[rule_id] += 1
        if self._times[rule_id] > _MOST_OF_ONE_RULE:
            return
        message = describe()
        if len(message) > _MOST_MESSAGE:
            message = f"{message[:_MOST_MESSAGE]}..."
        record = record_text(subject.place.path(subject.record))
        _, _, offset, stream_offset, length, _, _ = subject
        severity = RULES[rule_id].severity
        finding = Finding(rule_id, severity, message, record, offset, stream_offset, length)
        self._kept.append((finding, subject))

    @property
    def verdict(self) -> Severity:
        """The worst of them; clean without any."""
        return max((RULES[rule_id].severity for rule_id in self._times), default=Severity.CLEAN)

    @property
    def subjects(self) -> tuple[tuple[Finding, Subject], ...]:
        """Those that were kept, each with what it is about."""
        return tuple(self._kept)

    def all(self) -> tuple[Finding, ...]:
        """Those that were kept, as they were added; then for each rule how many more there were."""
        more = [
            Finding(
                rule_id,
                RULES[rule_id].severity,
                f"{times - _MOST_OF_ONE_RULE} more: {RULES[rule_id].title}",
                "",
                None,
            )
            for rule_id, times in self._times.items()
            if times > _MOST_OF_ONE_RULE
        ]
        return (*(finding for finding, _ in self._kept), *more)


def shown(name: str) -> str:
    """*name*, which a file may make as long and as strange as it likes, for a report."""
    return escape(name) if len(name) <= _MOST_NAME else f"{escape(name[:_MOST_NAME])}..."


def record_text(path: Iterable[str]) -> str:
    r"""What to call the record that *path* leads to; no two are called the same.

    The names around it come first, each followed by ``!``; where that mark is part of a name it
    is escaped as ``\x21``.  Of a long name the end is replaced by a digest of all of it.
    """
    return "!".join(map(_part_text, path))


def _part_text(name: str) -> str:
    text = escape(name[:_MOST_NAME]).replace("!", "\\x21")
    if len(name) <= _MOST_NAME:
        return text
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text}...{digest[:_DIGEST_DIGITS]}"
