"""The rules themselves: a list of them, and all there is to say about one.

Knows:      how a rule is told to a person.
Is told:    rules.
Never asks: what any of them found.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from ckptaudit.report.document import SCHEMA_VERSION, Tool, json_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ckptaudit.policy import Rule

__all__ = ["cwe_url", "rule_text", "rules_json", "rules_text"]

_COLUMNS = 80


def rules_text(rules: Iterable[Rule]) -> str:
    """A line for each rule."""
    return "".join(f"{rule.id}  {rule.severity.value:<10}  {rule.title}\n" for rule in rules)


def rule_text(rule: Rule) -> str:
    """Everything about one rule."""
    lines = [
        f"{rule.id} ({rule.severity.value}): {rule.title}",
        "",
        *textwrap.wrap(rule.why, _COLUMNS, break_long_words=False, break_on_hyphens=False),
        "",
        f"weakness: {rule.cwe}, {cwe_url(rule)}",
        *textwrap.wrap(
            f"learnt from: {'; '.join(rule.learnt_from)}",
            _COLUMNS,
            break_long_words=False,
            break_on_hyphens=False,
        ),
    ]
    return "\n".join(lines) + "\n"


def rules_json(rules: Sequence[Rule]) -> str:
    """The rules as a JSON document, in the order given."""
    return json_text({"schema_version": SCHEMA_VERSION, "tool": Tool(), "rules": rules})


def cwe_url(rule: Rule) -> str:
    """Where the weakness behind *rule* is defined."""
    return f"https://cwe.mitre.org/data/definitions/{rule.cwe.removeprefix('CWE-')}.html"
