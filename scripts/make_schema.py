"""Write docs/report.schema.json: what every JSON report holds, derived from the results' types.

    python scripts/make_schema.py            # write it
    python scripts/make_schema.py --check    # exit 1 if it is not current

Knows:      which results there are, and where their schema is published.
Is told:    whether to write or to compare.
Never asks: for a field by hand: the dataclasses are the schema.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from derived import keep

from ckptaudit import containers, layouts, numerics, plan, policy, tensors
from ckptaudit.jobs import contents, identity, measures, names, parts, risks, sizes
from ckptaudit.jobs.account import Conversion
from ckptaudit.jobs.explain import Explanation
from ckptaudit.jobs.inspect import Inspection
from ckptaudit.jobs.scan import ScanResult
from ckptaudit.jobs.verify import Verification
from ckptaudit.report import SCHEMA_VERSION, Failure, Tool

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCHEMA", "schema_text"]

SCHEMA = Path(__file__).parents[1] / "docs" / "report.schema.json"
_ANSWERS = (ScanResult, Explanation, Inspection, Conversion, Verification)
# The rooms whose types stand in answers.
_ROOMS = (
    *(containers, layouts, numerics, plan, policy, tensors),
    *(contents, identity, measures, names, parts, risks, sizes),
)


def schema_text() -> str:
    """The schema of a report, as JSON text."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """The schema of a report: a frame around answers to one of the verbs."""
    _name_types()
    references, definitions = msgspec.json.schema_components(
        [*_ANSWERS, Failure, Tool], ref_template="#/$defs/{name}"
    )
    *answers, failure, tool = references
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ckptaudit report",
        "description": "What one run of ckptaudit says; every file has an answer or an error.",
        "type": "object",
        "properties": {
            "schema_version": {"const": SCHEMA_VERSION},
            "tool": tool,
            "files": {
                "description": "The answers, in the order in which the files were named.",
                "type": "array",
                "items": {"oneOf": answers},
            },
            "errors": {"type": "array", "items": failure},
        },
        "required": ["schema_version", "tool", "files", "errors"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _name_types() -> None:
    """Give each module the types that it imports for type checkers alone: msgspec asks there."""
    types: dict[str, type] = {"date": date} | {
        name: value
        for room in _ROOMS
        for name in room.__all__
        if isinstance(value := getattr(room, name), type)
    }
    for name, module in list(sys.modules.items()):
        if name.startswith("ckptaudit."):
            vars(module).update(types | vars(module))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the schema, or compare it with the one that is there; return the exit status."""
    return keep(SCHEMA, schema_text, arguments)


if __name__ == "__main__":
    sys.exit(main())
