"""Results as JSON: one document per run, its schema derived from the results' own types.

Knows:      the frame around results, and its version.
Is told:    results from `jobs`.
Never asks: for an encoder by hand: the dataclasses are the schema.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ckptaudit import __version__
from ckptaudit.report.escaping import LOG_COMMAND

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "SCHEMA_VERSION",
    "Failure",
    "Run",
    "Tool",
    "json_line",
    "json_text",
    "to_json",
    "to_jsonl",
]

SCHEMA_VERSION = "1"
# Outside ASCII (msgspec escapes the control characters inside it, all but DEL), and what would
# be a command in the log of a build.  `##` stands in no JSON but inside a string.
_DOUBTFUL = re.compile(rf"[^\0-\x7e]|{LOG_COMMAND.pattern}")

Result = TypeVar("Result")


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


@dataclass(frozen=True, slots=True)
class Run(Generic[Result]):
    """What one run of a command came to: all that a format has to render.

    Attributes:
        answers: One for each file, in the order in which they were named.
        status: The exit status that these answers have.
    """

    answers: tuple[Result | Failure, ...]
    status: int

    @property
    def results(self) -> list[Result]:
        """The answers that are some, in their order."""
        return [answer for answer in self.answers if not isinstance(answer, Failure)]

    @property
    def failures(self) -> list[Failure]:
        """The files without an answer, in their order."""
        return [answer for answer in self.answers if isinstance(answer, Failure)]


def to_json(results: Sequence[object], failures: Sequence[Failure] = ()) -> bytes:
    """The JSON document of a run, indented, ending with a newline.

    Two runs over the same files give the same bytes: sequences are in a documented
    order and nothing tells the time.

    Args:
        results: One answer per file, in the order they were named.
        failures: The files without one.
    """
    return json_text(_document(results, failures)).encode()


def to_jsonl(answers: Sequence[object]) -> str:
    """A line for each answer, or file without one, in the order in which they were named.

    Each line is the JSON document of a run over that file alone, so that lines may be
    filtered, split and joined, and one schema describes both.
    """
    documents = (
        _document([], [answer]) if isinstance(answer, Failure) else _document([answer], [])
        for answer in answers
    )
    return "".join(f"{json_line(document)}\n" for document in documents)


def json_line(value: object) -> str:
    """*value* as JSON in one line, without its end; escaped as `json_text` does it."""
    import msgspec  # noqa: PLC0415 - whoever wants text waits for no encoder

    return _safe(msgspec.json.encode(value))


def json_text(value: object) -> str:
    """*value* as indented JSON, ending with a newline.

    What a terminal would obey, or not show, is escaped as JSON does it, and so is what
    would be a command to whoever runs the build; letters of any script stay.
    """
    import msgspec  # noqa: PLC0415 - as above

    return f"{_safe(msgspec.json.format(msgspec.json.encode(value), indent=2))}\n"


def _document(results: Sequence[object], failures: Sequence[Failure]) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": Tool(),
        "files": list(results),
        "errors": list(failures),
    }


def _safe(json: bytes) -> str:
    return _DOUBTFUL.sub(_escaped, json.decode())


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    if char.isprintable() and not char.isascii():
        return char
    halves = char.encode("utf-16-be")
    return "".join(f"\\u{halves[at : at + 2].hex()}" for at in range(0, len(halves), 2))
