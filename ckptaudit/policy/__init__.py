"""Allowlist, rules and judgement: whether a file can be trusted.

`sentences` is imported by whoever explains a finding, so that nobody else waits for it.
"""

from __future__ import annotations

from ckptaudit.policy.allowlist import allowed
from ckptaudit.policy.findings import shown
from ckptaudit.policy.judge import GlobalUse, Judgement, judge
from ckptaudit.policy.rules import RULES, Coverage, Finding, Rule, Severity

__all__ = [
    "RULES",
    "Coverage",
    "Finding",
    "GlobalUse",
    "Judgement",
    "Rule",
    "Severity",
    "allowed",
    "judge",
    "shown",
]
