"""Allowlist, rules and judgement: whether a file can be trusted."""

from __future__ import annotations

from ckptaudit.policy.allowlist import allowed
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
]
