"""Runs the command line as a user would, in this process or in one of its own."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from ckptaudit.cli import run

if TYPE_CHECKING:
    from pathlib import Path


# What a command hears for itself as long as it runs.
_SENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Run:
    """What a command left: its exit status and both streams."""

    status: int
    out: str
    err: str

    @property
    def files(self) -> Any:
        """The answers in the JSON document on stdout."""
        return json.loads(self.out)["files"]


def audit(*args: object) -> Run:
    """Run ``ckptaudit ARGS...`` in this process."""
    streams = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(stream, "utf-8", write_through=True) for stream in streams)
    arguments = ["ckptaudit", *map(str, args)]
    handlers = {each: signal.getsignal(each) for each in _SENT}
    try:
        with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", arguments):
            run()
    except SystemExit as exit_:
        status = exit_.code
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert isinstance(status, int)
    told, noted = (stream.getvalue().decode() for stream in streams)
    return Run(status, told, noted)


def audit_process(*args: object, **env: str) -> Run:
    """Run ``python -m ckptaudit ARGS...`` with *env* added to the environment."""
    done = subprocess.run(  # noqa: S603 - our own command
        command(*args), capture_output=True, check=False, env={**os.environ, **env}, timeout=60
    )
    return Run(done.returncode, done.stdout.decode(), done.stderr.decode())


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "ckptaudit", *map(str, args)]


def assert_one_clear_line(done: Run, *words: str) -> None:
    """What bad input gives: exit 2, nothing on stdout, one line on stderr that has *words*."""
    assert done.status == 2, done
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("ckptaudit: ")
    assert "internal error" not in line
    assert len(line) < 500
    for word in words:
        assert word in line


def names_in(folder: Path) -> set[str]:
    """What lies in *folder*, temporary files and all."""
    return {path.name for path in folder.iterdir()}
