"""Results in, text out: for people and for programs.

`markdown`, `sarif` and `cyclonedx`, `explanation` and `rules` are imported by whoever asks for
these formats and answers, so that nobody else waits for them.
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
from ckptaudit.report.facts import size_text
from ckptaudit.report.text import (
    conversion_text,
    inspection_text,
    scan_text,
    verification_text,
)

__all__ = [
    "SCHEMA_VERSION",
    "Failure",
    "Run",
    "Tool",
    "code",
    "conversion_text",
    "inspection_text",
    "json_text",
    "one_line",
    "printable",
    "scan_text",
    "size_text",
    "to_json",
    "to_jsonl",
    "verification_text",
]
