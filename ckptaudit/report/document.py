"""Results as JSON: one document per run, its schema derived from the results' own types.

Knows:      the frame around results, and its version.
Is told:    results from `jobs`.
Never asks: for an encoder by hand: the dataclasses are the schema.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from ckptaudit import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCHEMA_VERSION", "Failure", "Tool", "to_json"]

SCHEMA_VERSION = "1"
# Outside ASCII; msgspec escapes the control characters inside it, all but DEL.
_DOUBTFUL = re.compile("[\x7f-\U0010ffff]")


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
    order and nothing tells the time.  What a terminal would obey, or not show, is
    escaped as JSON does it; letters of any script stay.

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
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    return (_DOUBTFUL.sub(_escaped, text) + "\n").encode()


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    if char.isprintable():
        return char
    halves = char.encode("utf-16-be")
    return "".join(f"\\u{halves[at : at + 2].hex()}" for at in range(0, len(halves), 2))
