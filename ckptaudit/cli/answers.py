"""What the commands share: answers to stdout, notes to stderr, one exit status for many files.

Knows:      streams, and which of several answers decides.
Is told:    results and how each is rendered.
Never asks: what a result says.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import click

from ckptaudit.errors import CkptauditError, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptaudit.report import Failure

__all__ = ["Answers", "paths_argument", "report_options", "show"]

BAD, NONE = 1, 2

Result = TypeVar("Result")
Decorated = TypeVar("Decorated", bound="Callable[..., object]")

paths_argument = click.argument(
    "paths", nargs=-1, required=True, metavar="PATHS...", type=click.Path()
)


def report_options(function: Decorated) -> Decorated:
    """Add what every command has: ``--format``, ``--json``, ``--no-hash``."""
    for option in (
        click.option("--no-hash", is_flag=True, help="Do not read the whole file for its SHA-256."),
        click.option(
            "--json",
            "json_path",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Write the JSON report to FILE as well.",
        ),
        click.option(
            "-f",
            "--format",
            "format_",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="What is written to standard output.",
        ),
    ):
        function = option(function)
    return function


@dataclass(slots=True)
class Answers(Generic[Result]):
    """The answers of one command, file by file.

    Attributes:
        is_good: Whether an answer is a good one.
        as_text: Renders an answer for a person.
        results: The answers so far.
        failures: The files without one.
    """

    is_good: Callable[[Result], bool]
    as_text: Callable[[Result], str]
    results: list[Result] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    _statuses: set[int] = field(default_factory=lambda: {0})

    def ask(self, path: str, job: Callable[[], Result]) -> Result | None:
        """Do *job* for the file *path*; an error becomes a line on stderr."""
        from ckptaudit.report import Failure

        try:
            result = job()
        except CkptauditError as err:
            line = " ".join(str(err).splitlines())
            self.failures.append(Failure(path, line))
            show(f"ckptaudit: {line}")
            self._statuses.add(BAD if isinstance(err, Refused) else NONE)
            return None
        self.results.append(result)
        return result

    def deliver(self, format_: str, json_path: Path | None) -> int:
        """Write the answers and return the exit status: 1 outranks 2 outranks 0."""
        from ckptaudit.report import to_json

        self._statuses |= {0 if self.is_good(result) else BAD for result in self.results}
        if format_ == "json":
            _to_stdout(to_json(self.results, self.failures).decode())
        else:
            _to_stdout("".join(self.as_text(result) for result in self.results))
        if json_path is not None:
            from ckptaudit.writer import write_text

            try:
                write_text(json_path, to_json(self.results, self.failures), overwrite=True)
            except CkptauditError as err:
                show(f"ckptaudit: {err}")
                self._statuses.add(NONE)
        return BAD if BAD in self._statuses else max(self._statuses)

    def without_answer(self) -> None:
        """Note that an answer, though given, does not cover the whole file."""
        self._statuses.add(NONE)


def show(line: str) -> None:
    """Write one line to stderr, whatever its encoding."""
    from ckptaudit.report import printable

    click.echo(printable(line), err=True)


def _to_stdout(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the answer has seen enough; the exit status is still the answer.
        # Python would try to flush again at exit, so the stream is pointed elsewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UnicodeEncodeError:
        sys.stdout.write(text.encode("ascii", "backslashreplace").decode("ascii"))
