"""The findings of one file: enough of each rule to act on, and how many more there were.

A hostile pickle of a kilobyte can give a million reasons for distrust.  A sentence for
each would cost more than all the reading, so it is written only for those that are kept;
and it is rule by rule that they are kept, so that a flood of one cannot wash away another.

Knows:      how many findings a reader can use.
Is told:    that a rule applies, where, and how to say it.
Never asks: why it applies.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.policy.judgement import AskedPair
from ckptaudit.policy.permissions import Permitted, is_nameable
from ckptaudit.policy.rules import RULES, Finding, Severity
from ckptaudit.vm import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ckptaudit.containers import Place
    from ckptaudit.policy.permissions import Pair, Permission, Policy
    from ckptaudit.vm import Event, Trace

__all__ = ["Findings", "Subject", "record_text", "shown"]

_MOST_OF_ONE_RULE = 200
_MOST_MESSAGE = 500
_MOST_NAME = 200
_MOST_PAIRS = 1000
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
    """What was found so far.

    Args:
        policy: What of it is permitted; kept by itself, so that neither washes the other away.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self._names = policy.names if policy else {}
        self._left = _Kept()
        # By number of the entry that permits them.
        self._permitted: dict[int, tuple[Permission, _Kept]] = {}
        # By pair, the rules of findings that a permission for it would take away.
        self._pairs: dict[Pair, set[str]] = {}
        # Those with findings that only a permission for the file would take away.
        self._rules: dict[str, None] = {}

    def add(
        self,
        rule_id: str,
        describe: Callable[[], str],
        subject: Subject,
        pair: Pair | None = None,
    ) -> None:
        """Add a finding.

        Args:
            rule_id: The rule.
            describe: Writes its message, in printable ASCII; called only if it is kept.
            subject: What it is about.
            pair: The name whose permission would be one for this finding; None if none would.
        """
        permission = self._names.get(pair) if pair and self._names else None
        if permission is None:
            kept = self._left
            self._ask(rule_id, pair)
        else:
            _, kept = self._permitted.setdefault(permission.entry, (permission, _Kept()))
        kept.add(rule_id, describe, subject)

    def permits(self, pair: Pair) -> bool:
        """Whether the policy permits the name."""
        return pair in self._names

    def _ask(self, rule_id: str, pair: Pair | None) -> None:
        # Whoever permits what is malicious should permit it in one file and not in every other.
        if pair is None or RULES[rule_id].severity is Severity.MALICIOUS:
            self._rules[rule_id] = None
        elif pair in self._pairs:
            self._pairs[pair].add(rule_id)
        elif len(self._pairs) < _MOST_PAIRS and is_nameable(*pair):
            self._pairs[pair] = {rule_id}
        else:
            self._rules[rule_id] = None

    @property
    def verdict(self) -> Severity:
        """The worst of those that are not permitted; clean without any."""
        return self._left.worst

    def all(self) -> tuple[Finding, ...]:
        """Those that were kept, as they were added; then for each rule how many more there were."""
        return self._left.all()

    def permitted(self) -> tuple[Permitted, ...]:
        """Those that the policy permits, entry by entry; of each likewise."""
        return tuple(
            Permitted(finding, each.entry, each.justification, each.expires)
            for each, kept in self._permitted.values()
            for finding in kept.all()
        )

    @property
    def subjects(self) -> tuple[tuple[Finding, Subject], ...]:
        """Those that were kept, permitted or not, each with what it is about."""
        every = (self._left, *(kept for _, kept in self._permitted.values()))
        return tuple(pair for kept in every for pair in kept.pairs)

    def pairs(self) -> tuple[AskedPair, ...]:
        """See `Judgement.pairs`."""
        return tuple(AskedPair(*pair, frozenset(rules)) for pair, rules in self._pairs.items())

    def rules(self) -> tuple[str, ...]:
        """See `Judgement.rules`."""
        return tuple(self._rules)


class _Kept:
    """Findings, of which enough are kept and the rest counted.

    Attributes:
        pairs: Those that are kept, each with what it is about.
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[Finding, Subject]] = []
        self._times: Counter[str] = Counter()

    def add(self, rule_id: str, describe: Callable[[], str], subject: Subject) -> None:
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
        self.pairs.append((finding, subject))

    @property
    def worst(self) -> Severity:
        return max((RULES[rule_id].severity for rule_id in self._times), default=Severity.CLEAN)

    def all(self) -> tuple[Finding, ...]:
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
        return (*(finding for finding, _ in self.pairs), *more)


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
    import hashlib  # noqa: PLC0415 - no honest file has such a name

    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text}...{digest[:_DIGEST_DIGITS]}"
