"""Results as JSON: one document per run, its schema derived from the results' own types.

Knows:      the frame around results, and its version.
Is told:    results from `jobs`.
Never asks: for an encoder by hand: the dataclasses are the schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from ckptaudit import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCHEMA_VERSION", "Failure", "Tool", "to_json"]

SCHEMA_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Tool:
    """What made the report."""

    name: str = "ckptaudit"
    version: str = __version__


@dataclass(frozen=True, slots=True)
class Failure:
    """A file for which there is no answer.

    Attributes:
        path: The file, as it was named.
        error: Why, in one line.
    """

    path: str
    error: str


def to_json(results: Sequence[object], failures: Sequence[Failure] = ()) -> bytes:
    """The JSON document of a run, indented, ending with a newline.

    Two runs over the same files give the same bytes: sequences are in a documented
    order and nothing tells the time.

    Args:
        results: One answer per file, in the order they were named.
        failures: The files without one.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "tool": Tool(),
        "files": list(results),
        "errors": list(failures),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
