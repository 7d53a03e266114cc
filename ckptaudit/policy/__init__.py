"""Allowlist, rules and judgement: whether a file can be trusted."""

from __future__ import annotations

from ckptaudit.policy.allowlist import allowed
from ckptaudit.policy.findings import Subject, record_text, shown
from ckptaudit.policy.fingerprints import fingerprints
from ckptaudit.policy.judge import GlobalUse, Judgement, judge
from ckptaudit.policy.rules import RULES, Coverage, Finding, Rule, Severity
from ckptaudit.policy.sentences import Route, route_of, sentence

__all__ = [
    "RULES",
    "Coverage",
    "Finding",
    "GlobalUse",
    "Judgement",
    "Route",
    "Rule",
    "Severity",
    "Subject",
    "allowed",
    "fingerprints",
    "judge",
    "record_text",
    "route_of",
    "sentence",
    "shown",
]
