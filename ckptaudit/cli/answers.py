"""What the commands share: answers to stdout, notes to stderr, one exit status for many files.

Knows:      streams, and which of several answers decides.
Is told:    results and how each is rendered.
Never asks: what a result says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

import click

from ckptaudit.cli.outputs import show, stream_stdout, write_side_file, write_stdout
from ckptaudit.errors import CkptauditError, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ckptaudit.cli.outputs import Outputs
    from ckptaudit.report import Failure, Run

__all__ = ["BAD", "GOOD", "NONE", "Answers", "bug_text", "fail_on_option", "paths_argument"]

GOOD, BAD, NONE = 0, 1, 2

Result = TypeVar("Result")

paths_argument = click.argument(
    "paths", nargs=-1, required=True, metavar="PATHS...", type=click.Path(readable=False)
)
fail_on_option = click.option(
    "--fail-on",
    type=click.Choice(("review", "suspicious", "malicious")),
    default="suspicious",
    show_default=True,
    help="Lowest severity that makes the exit status 1.",
)


@dataclass(slots=True)
class Answers(Generic[Result]):
    """The answers of one command, file by file.

    Attributes:
        status: The exit status that an answer alone would have.
        render: Renders all of them, in the format named.
        advice: By kind of error, the option that helps; the first that fits is given.
        answers: The answers so far; of a file without one, why.
    """

    status: Callable[[Result], int]
    render: Callable[[str, Run[Result]], str]
    advice: Mapping[type[CkptauditError], str] = field(default_factory=dict)
    answers: list[Result | Failure] = field(default_factory=list)
    _statuses: set[int] = field(default_factory=lambda: {0})

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
        # Of a hundred files one may meet a bug, of any kind: the other answers are still owed.
        except Exception as err:  # noqa: BLE001 - not hidden: told in full, and exit status 2
            self._fail(path, bug_text(err), NONE)
            return None
        self._statuses.add(self.status(result))
        self.answers.append(result)
        return result

    def deliver(self, outputs: Outputs) -> int:
        """Write the answers and return the exit status: 1 outranks 2 outranks 0."""
        if not write_stdout(self.render(outputs.format_, self._run()), outputs.format_):
            self._statuses.add(NONE)
        return self.finish(outputs)

    @property
    def results(self) -> list[Result] | None:
        """The answers, if there is one for every file."""
        run = self._run()
        return None if run.failures else run.results

    def stream(self, pieces: Iterable[str], format_: str) -> None:
        """Write an answer to standard output while it is made, in place of `deliver`."""
        if not stream_stdout(pieces, format_):
            self._statuses.add(NONE)

    def finish(self, outputs: Outputs) -> int:
        """Write the side files and return the exit status, where the answer is written already."""
        for format_, path in outputs.side_files.items():
            if not write_side_file(path, self.render(format_, self._run()), format_):
                self._statuses.add(NONE)
        return self._worst()

    def _run(self) -> Run[Result]:
        from ckptaudit.report import Run

        return Run(tuple(self.answers), self._worst())

    def _worst(self) -> int:
        return BAD if BAD in self._statuses else max(self._statuses)

    def _fail(self, path: str, why: str, status: int) -> None:
        from ckptaudit.report import Failure
        from ckptaudit.source import path_text

        line = path_text(" ".join(why.splitlines()))
        # An error inside a file names the record it stands in.
        if path_text(path) not in line:
            line = f"{path_text(path)}: {line}"
        self.answers.append(Failure(path_text(path), line))
        show(f"ckptaudit: {line}")
        self._statuses.add(status)


def bug_text(err: BaseException) -> str:
    """What to say of an exception that is not one of ours; where it arose, if that is wanted."""
    if os.environ.get("CKPTAUDIT_DEBUG"):
        import traceback

        for line in "".join(traceback.format_exception(err)).splitlines():
            show(line)
    return (
        f"internal error: {type(err).__name__}: {err}; this is a bug, please report it "
        "(CKPTAUDIT_DEBUG=1 shows where)"
    )
