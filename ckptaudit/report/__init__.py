"""Results in, text out: for people and for programs."""

from __future__ import annotations

from ckptaudit.report.document import SCHEMA_VERSION, Failure, Tool, to_json
from ckptaudit.report.text import (
    conversion_text,
    inspection_text,
    printable,
    scan_text,
    size_text,
    verification_text,
)

__all__ = [
    "SCHEMA_VERSION",
    "Failure",
    "Tool",
    "conversion_text",
    "inspection_text",
    "printable",
    "scan_text",
    "size_text",
    "to_json",
    "verification_text",
]
