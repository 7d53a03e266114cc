"""Allowlist, rules and judgement: whether a file can be trusted."""

from __future__ import annotations

from ckptaudit.policy.allowlist import allowed
from ckptaudit.policy.findings import shown
from ckptaudit.policy.judge import judge
from ckptaudit.policy.judgement import GlobalUse, Judgement
from ckptaudit.policy.permissions import Permission, Permitted, Policy, dated, parse_policy
from ckptaudit.policy.rules import RULES, Coverage, Finding, Rule, Severity
from ckptaudit.policy.sentences import Route, route_of, sentence

__all__ = [
    "RULES",
    "Coverage",
    "Finding",
    "GlobalUse",
    "Judgement",
    "Permission",
    "Permitted",
    "Policy",
    "Route",
    "Rule",
    "Severity",
    "allowed",
    "dated",
    "judge",
    "parse_policy",
    "route_of",
    "sentence",
    "shown",
]
