"""Results in, text out: for people and for programs.

`markdown`, `sarif` and `cyclonedx` are imported by whoever asks for these formats, so that
nobody else waits for them.
"""

from __future__ import annotations

from ckptaudit.report.document import (
    SCHEMA_VERSION,
    Failure,
    Run,
    Tool,
    json_text,
    to_json,
    to_jsonl,
)
from ckptaudit.report.escaping import code, one_line, printable
from ckptaudit.report.explanation import Listing, explanation_json, explanation_text
from ckptaudit.report.facts import size_text
from ckptaudit.report.rules import cwe_url, rule_text, rules_json, rules_text
from ckptaudit.report.text import (
    conversion_text,
    inspection_text,
    scan_text,
    verification_text,
)

__all__ = [
    "SCHEMA_VERSION",
    "Failure",
    "Listing",
    "Run",
    "Tool",
    "code",
    "conversion_text",
    "cwe_url",
    "explanation_json",
    "explanation_text",
    "inspection_text",
    "json_text",
    "one_line",
    "printable",
    "rule_text",
    "rules_json",
    "rules_text",
    "scan_text",
    "size_text",
    "to_json",
    "to_jsonl",
    "verification_text",
]
