"""Allowlist, rules and judgement: whether a file can be trusted.

`sentences` is imported by whoever explains a finding, so that nobody else waits for it.
"""

from __future__ import annotations

from ckptaudit.policy.allowlist import allowed
from ckptaudit.policy.findings import Subject, record_text, shown
from ckptaudit.policy.judge import judge
from ckptaudit.policy.judgement import GlobalUse, Judgement
from ckptaudit.policy.permissions import Permission, Permitted, Policy, dated, parse_policy
from ckptaudit.policy.rules import RULES, Coverage, Finding, Rule, Severity

__all__ = [
    "RULES",
    "Coverage",
    "Finding",
    "GlobalUse",
    "Judgement",
    "Permission",
    "Permitted",
    "Policy",
    "Rule",
    "Severity",
    "Subject",
    "allowed",
    "dated",
    "judge",
    "parse_policy",
    "record_text",
    "shown",
]
