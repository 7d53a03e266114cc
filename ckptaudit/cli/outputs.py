"""Where an answer goes: one format to standard output, others into side files of the same run.

Knows:      streams, files, and what a report of ours begins with.
Is told:    which formats a command has, and rendered text.
Never asks: how anything is rendered, or what it says.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import click

from ckptaudit.errors import CkptauditError, OutputFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

__all__ = [
    "Outputs",
    "check_kind",
    "format_option",
    "report_options",
    "show",
    "stream_stdout",
    "write_side_file",
    "write_stdout",
]

Decorated = TypeVar("Decorated", bound="Callable[..., object]")


@dataclass(frozen=True, slots=True)
class _Kind:
    """A format that side files may have.

    Attributes:
        name: What a person calls it.
        marks: What stands near the beginning of every report of ours in this format.
    """

    name: str
    marks: tuple[bytes, ...]


# Bytes within which a report names its format and us.
_LONGEST_REPORT_HEAD = 400
_KINDS = {
    "json": _Kind("JSON report", (b'"schema_version"', b'"ckptaudit"')),
    "sarif": _Kind("SARIF report", (b'"$schema"', b"/sarif-schema-", b'"ckptaudit"')),
    "md": _Kind("Markdown report", (b"# ckptaudit ", b"\n\n| file |")),
    "sbom": _Kind("CycloneDX bill of materials", (b'"CycloneDX"', b'"ckptaudit"')),
}


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the command line asks for.

    Attributes:
        format_: What goes to standard output.
        side_files: By format, where else it goes.
    """

    format_: str
    side_files: dict[str, Path]

    def check(self) -> None:
        """Refuse what cannot be written before any work is done for it.

        Raises:
            click.BadParameter: A side file's place is taken, or is none.
        """
        if not self.side_files:
            return
        from ckptaudit.writer import check_destination

        taken: set[Path] = set()
        for format_, path in self.side_files.items():
            try:
                check_destination(path, overwrite=True)
                check_kind(path, format_)
            except CkptauditError as err:
                raise click.BadParameter(str(err), param_hint=f"--{format_}") from err
            if path.absolute() in taken:
                raise click.BadParameter(
                    f"{path}: is there for another report already; choose another name",
                    param_hint=f"--{format_}",
                )
            taken.add(path.absolute())


def format_option(*formats: str) -> Callable[[Decorated], Decorated]:
    """Add ``--format``, the first of *formats* being the default."""
    return click.option(
        "-f",
        "--format",
        "format_",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="What is written to standard output.",
    )


def report_options(
    *formats: str, files: tuple[str, ...] = ("json",)
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add ``--format``, an option for each side file, and ``--no-hash``.

    The command is called with ``outputs``, which is all of these but the last.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(*args: object, format_: str, **options: object) -> None:
            given = {file: options.pop(_parameter(file)) for file in files}
            function(*args, outputs=Outputs(format_, _side_files(given)), **options)

        decorated: Callable[..., None] = click.option(
            "--no-hash",
            is_flag=True,
            help="Compute no SHA-256, of a file or of what is made of it.",
        )(command)
        for file in reversed(files):
            decorated = click.option(
                f"--{file}",
                _parameter(file),
                type=click.Path(),
                metavar="FILE",
                help=f"Write the {_KINDS[file].name} to FILE as well.",
            )(decorated)
        return format_option(*formats)(decorated)

    return decorate


def _side_files(given: Mapping[str, object]) -> dict[str, Path]:
    """By format, those paths that are *given*."""
    names = {file: name for file, name in given.items() if isinstance(name, str)}
    if not names:
        # Few runs write a side file, and all would wait for pathlib: it takes 2 ms to load.
        return {}
    from pathlib import Path

    return {file: Path(name) for file, name in names.items()}


def _parameter(file: str) -> str:
    return f"{file}_path"


def show(line: str) -> None:
    """Write one line to stderr, whatever its encoding, if anybody is there to read it."""
    from ckptaudit.report import one_line

    with contextlib.suppress(OSError):
        click.echo(one_line(line), err=True)


def write_stdout(text: str, format_: str) -> bool:
    """Write all of *text* to standard output; see `stream_stdout`."""
    return stream_stdout([text], format_)


def stream_stdout(pieces: Iterable[str], format_: str) -> bool:
    """Write *pieces* to standard output as they are made, or as many as are read.

    Args:
        pieces: What to write.
        format_: Text for people is in the encoding of the terminal, which may not have every
            letter; everything else is UTF-8.

    Returns:
        False, after a line on stderr, if it cannot be written for another reason than that
        nobody reads it.
    """
    if sys.stdout is None:
        return True
    encoding = sys.stdout.encoding if format_ == "text" else "utf-8"
    for piece in pieces:
        data = piece.encode(encoding, "backslashreplace")
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError as err:
            # Python would try to flush again at exit, so the stream is pointed elsewhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            # Whoever read the answer may have seen enough; the exit status is still the answer.
            if isinstance(err, BrokenPipeError):
                return True
            show(f"ckptaudit: the answer cannot be written to standard output ({err.strerror})")
            return False
    return True


def write_side_file(path: Path, text: str, format_: str) -> bool:
    """Write a report to *path*, whole or not at all, and in place of nothing but such a report.

    Returns:
        False, after a line on stderr, if it cannot be written, or there is another kind of file.
    """
    from ckptaudit.writer import write_text

    try:
        check_kind(path, format_)
        write_text(path, text.encode("utf-8", "backslashreplace"), overwrite=True)
    except CkptauditError as err:
        show(f"ckptaudit: {err}")
        return False
    return True


def check_kind(path: Path, format_: str) -> None:
    """Refuse to write over what is no such report of ours.

    ``scan --json a.ckpt b.ckpt``, where --json was taken for a flag, must not cost a checkpoint.

    Raises:
        OutputFailed: There is another kind of file.
    """
    from ckptaudit.source import path_text

    head = b""
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(_LONGEST_REPORT_HEAD)
    kind = _KINDS[format_]
    if head and not all(mark in head for mark in kind.marks):
        raise OutputFailed(f"{path_text(path)}: exists and is no {kind.name}; choose another name")
