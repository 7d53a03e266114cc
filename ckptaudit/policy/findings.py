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
from typing import TYPE_CHECKING

from ckptaudit.policy.judgement import AskedPair
from ckptaudit.policy.permissions import Permitted, is_nameable
from ckptaudit.policy.rules import RULES, Finding, Severity
from ckptaudit.vm import escape

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptaudit.policy.permissions import Pair, Permission, Policy

__all__ = ["Findings", "shown"]

_MOST_OF_ONE_RULE = 200
_MOST_MESSAGE = 500
_MOST_NAME = 200
_MOST_PAIRS = 1000


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
        record: str = "",
        offset: int | None = None,
        *,
        stream_offset: int | None = None,
        pair: Pair | None = None,
    ) -> None:
        """Add a finding.

        Args:
            rule_id: The rule.
            describe: Writes its message, in printable ASCII; called only if it is kept.
            record: Name of the record, as the file spells it.
            offset: See `Finding`.
            stream_offset: See `Finding`.
            pair: The name whose permission would be one for this finding; None if none would.
        """
        permission = self._names.get(pair) if pair and self._names else None
        if permission is None:
            kept = self._left
            self._ask(rule_id, pair)
        else:
            _, kept = self._permitted.setdefault(permission.entry, (permission, _Kept()))
        kept.add(rule_id, describe, record, offset, stream_offset)

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

    def pairs(self) -> tuple[AskedPair, ...]:
        """See `Judgement.pairs`."""
        return tuple(AskedPair(*pair, frozenset(rules)) for pair, rules in self._pairs.items())

    def rules(self) -> tuple[str, ...]:
        """See `Judgement.rules`."""
        return tuple(self._rules)


class _Kept:
    """Findings, of which enough are kept and the rest counted."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._times: Counter[str] = Counter()

    def add(
        self,
        rule_id: str,
        describe: Callable[[], str],
        record: str,
        offset: int | None,
        stream_offset: int | None,
    ) -> None:
        self._times[rule_id] += 1
        if self._times[rule_id] > _MOST_OF_ONE_RULE:
            return
        message = describe()
        if len(message) > _MOST_MESSAGE:
            message = f"{message[:_MOST_MESSAGE]}..."
        severity = RULES[rule_id].severity
        self._kept.append(Finding(rule_id, severity, message, shown(record), offset, stream_offset))

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
        return (*self._kept, *more)


def shown(name: str) -> str:
    """*name*, which a file may make as long and as strange as it likes, for a report."""
    return escape(name) if len(name) <= _MOST_NAME else f"{escape(name[:_MOST_NAME])}..."
