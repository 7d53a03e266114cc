"""What the commands share: answers to stdout, notes to stderr, one exit status for many files.

Knows:      streams, and which of several answers decides.
Is told:    results and how each is rendered.
Never asks: what a result says.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import click

from ckptaudit.errors import CkptauditError, OutputFailed, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptaudit.report import Failure

__all__ = [
    "BAD",
    "GOOD",
    "NONE",
    "Answers",
    "bug_text",
    "check_is_report",
    "paths_argument",
    "report_options",
    "show",
]

GOOD, BAD, NONE = 0, 1, 2
# Bytes within which a report names its schema and us.
_LONGEST_REPORT_HEAD = 200

Result = TypeVar("Result")
Decorated = TypeVar("Decorated", bound="Callable[..., object]")

paths_argument = click.argument(
    "paths", nargs=-1, required=True, metavar="PATHS...", type=click.Path(readable=False)
)


def report_options(function: Decorated) -> Decorated:
    """Add what every command has: ``--format``, ``--json``, ``--no-hash``."""
    for option in (
        click.option(
            "--no-hash",
            is_flag=True,
            help="Compute no SHA-256, of a file or of what is made of it.",
        ),
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
        status: The exit status that an answer alone would have.
        as_text: Renders an answer for a person.
        advice: By kind of error, the option that helps; the first that fits is given.
        results: The answers so far.
        failures: The files without one.
    """

    status: Callable[[Result], int]
    as_text: Callable[[Result], str]
    advice: Mapping[type[CkptauditError], str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    _statuses: set[int] = field(default_factory=lambda: {0})

    def check_json(self, json_path: Path | None) -> None:
        """Refuse a side file that cannot be written before any work is done for it."""
        if json_path is not None:
            from ckptaudit.writer import check_destination

            try:
                check_destination(json_path, overwrite=True)
            except CkptauditError as err:
                raise click.BadParameter(str(err), param_hint="--json") from err

    def ask(self, path: str, job: Callable[[], Result]) -> Result | None:
        """Do *job* for the file *path*; an error becomes a line on stderr.

        A bug in one file does not take the answers about the others away.
        """
        try:
            result = job()
        except CkptauditError as err:
            tips = (tip for kind, tip in self.advice.items() if isinstance(err, kind))
            text = "; ".join((str(err), *islice(tips, 1)))
            self._fail(path, text, BAD if isinstance(err, Refused) else NONE)
            return None
        except Exception as err:  # noqa: BLE001 - it is told, and the status is that of no answer
            self._fail(path, bug_text(err), NONE)
            return None
        self.results.append(result)
        return result

    def deliver(self, format_: str, json_path: Path | None) -> int:
        """Write the answers and return the exit status: 1 outranks 2 outranks 0."""
        from ckptaudit.report import to_json

        self._statuses |= {self.status(result) for result in self.results}
        if format_ == "json":
            text = to_json(self.results, self.failures).decode()
        else:
            text = "".join(self.as_text(result) for result in self.results)
        try:
            _to_stdout(text, "utf-8" if format_ == "json" else None)
        except OSError as err:
            show(f"ckptaudit: the answer cannot be written to standard output ({err.strerror})")
            self._statuses.add(NONE)
        if json_path is not None:
            try:
                _write_json(json_path, to_json(self.results, self.failures))
            except CkptauditError as err:
                show(f"ckptaudit: {err}")
                self._statuses.add(NONE)
        return BAD if BAD in self._statuses else max(self._statuses)

    def _fail(self, path: str, why: str, status: int) -> None:
        from ckptaudit.report import Failure
        from ckptaudit.writer import path_text

        line = path_text(" ".join(why.splitlines()))
        # An error inside a file names the record it stands in.
        if path_text(path) not in line:
            line = f"{path_text(path)}: {line}"
        self.failures.append(Failure(path_text(path), line))
        show(f"ckptaudit: {line}")
        self._statuses.add(status)


def show(line: str) -> None:
    """Write one line to stderr, whatever its encoding, if anybody is there to read it."""
    from ckptaudit.report import printable

    with contextlib.suppress(OSError):
        click.echo(printable(line), err=True)


def bug_text(err: BaseException) -> str:
    """What to say of an exception that is not one of ours; where it arose, if that is wanted."""
    if os.environ.get("CKPTAUDIT_DEBUG"):
        import traceback

        traceback.print_exception(err)
    return (
        f"internal error: {type(err).__name__}: {err}; this is a bug, please report it "
        "(CKPTAUDIT_DEBUG=1 shows where)"
    )


def _to_stdout(text: str, encoding: str | None) -> None:
    """Write all of *text* to standard output, or as much as is read.

    Args:
        text: What to write.
        encoding: None for that of the terminal, which may not have every letter.

    Raises:
        OSError: It cannot be written, for another reason than that nobody reads it.
    """
    if sys.stdout is None:
        return
    data = text.encode(encoding or sys.stdout.encoding, "backslashreplace")
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as err:
        # Python would try to flush again at exit, so the stream is pointed elsewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # Whoever read the answer may have seen enough; the exit status is still the answer.
        if not isinstance(err, BrokenPipeError):
            raise


def check_is_report(path: Path) -> None:
    """Refuse to put a report in place of anything but a report.

    ``scan --json a.ckpt b.ckpt``, where --json was taken for a flag, must not cost a
    checkpoint.

    Raises:
        OutputFailed: There is another kind of file.
    """
    head = b""
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(_LONGEST_REPORT_HEAD)
    if head and not (b'"schema_version"' in head and b'"ckptaudit"' in head):
        raise OutputFailed(f"{path}: exists and is no JSON report; choose another name")


def _write_json(path: Path, data: bytes) -> None:
    from ckptaudit.writer import write_text

    check_is_report(path)
    write_text(path, data, overwrite=True)
