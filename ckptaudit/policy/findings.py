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

from ckptaudit.policy.rules import RULES, Finding, Severity
from ckptaudit.vm import escape

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Findings", "shown"]

_MOST_OF_ONE_RULE = 200
_MOST_MESSAGE = 500
_MOST_NAME = 200


class Findings:
    """What was found so far."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._times: Counter[str] = Counter()

    def add(
        self,
        rule_id: str,
        describe: Callable[[], str],
        record: str = "",
        offset: int | None = None,
        stream_offset: int | None = None,
    ) -> None:
        """Add a finding.

        Args:
            rule_id: The rule.
            describe: Writes its message, in printable ASCII; called only if it is kept.
            record: Name of the record, as the file spells it.
            offset: See `Finding`.
            stream_offset: See `Finding`.
        """
        self._times[rule_id] += 1
        if self._times[rule_id] > _MOST_OF_ONE_RULE:
            return
        message = describe()
        if len(message) > _MOST_MESSAGE:
            message = f"{message[:_MOST_MESSAGE]}..."
        severity = RULES[rule_id].severity
        self._kept.append(Finding(rule_id, severity, message, shown(record), offset, stream_offset))

    @property
    def verdict(self) -> Severity:
        """The worst of them; clean without any."""
        return max((RULES[rule_id].severity for rule_id in self._times), default=Severity.CLEAN)

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
        return (*self._kept, *more)


def shown(name: str) -> str:
    """*name*, which a file may make as long and as strange as it likes, for a report."""
    return escape(name) if len(name) <= _MOST_NAME else f"{escape(name[:_MOST_NAME])}..."
