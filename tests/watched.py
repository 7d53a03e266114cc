"""Answers about the checkpoints in a folder, and prints what Python saw being done for it.

    python watched.py FOLDER OUT

Run by tests in a process of its own, for an audit hook cannot be taken away.  Everything is done
twice, and only the second time is watched: what a job needs is imported by then, and whatever is
imported, executed or opened still, a file has asked for.

CPython's documentation has the list of these events, under "Audit events table".
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ckptaudit import convert, explain, inspect, scan, scan_file_path, verify
from ckptaudit.errors import CkptauditError

if TYPE_CHECKING:
    from collections.abc import Callable

# Reading a file takes none of these.
NEVER = (
    *("import", "exec", "compile", "code.", "function.__new__", "marshal.", "pickle."),
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile"),
    *("subprocess.", "pty.", "ctypes.", "socket.", "ssl.", "urllib.", "http.", "ftplib."),
    *("smtplib.", "webbrowser.", "sqlite3.", "tempfile.", "shutil.", "sys.addaudithook"),
)
CHANGES = (
    *("os.remove", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr"),
)
# Jobs that are given what another has written.
READS_OUTPUT = {"convert", "replace_vae", "verify"}


class Watch:
    """Python's audit hook, while a job is under way."""

    def __init__(self, out: Path) -> None:
        self.job: tuple[str, str] | None = None
        self.seen: list[list[str]] = []
        self.opened: Counter[str] = Counter()
        self._out = out

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        """Note *event*, if no answer needs it."""
        if self.job is None:
            return
        if event.startswith(NEVER):
            self._note(event, *args[:2])
        elif event == "open" and isinstance(args[0], str | bytes):
            self._open(os.fsdecode(args[0]), args[2])
        elif event in CHANGES:
            paths = [arg for arg in args if isinstance(arg, str | bytes | os.PathLike)]
            if not all(self._may_write(os.fsdecode(path)) for path in paths):
                self._note(event, *paths)

    def _open(self, path: str, flags: object) -> None:
        assert self.job is not None
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if path == self.job[1] and not writes:
            self.opened[" ".join(self.job)] += 1
        elif not (self._may_write(path) if writes else self._may_read(path)):
            self._note("open", path, flags)

    def _may_read(self, path: str) -> bool:
        """Whether it is a job that was given an output's path, and that lies there."""
        real = os.path.realpath(path)
        below = os.path.commonpath([real, self._out]) == str(self._out)
        return self.job is not None and self.job[0] in READS_OUTPUT and below

    def _may_write(self, path: str) -> bool:
        """Whether it is a conversion that does it, in the folder it was given."""
        return self.job is not None and self.job[0] == "convert" and self._may_read(path)

    def _note(self, event: str, *what: object) -> None:
        assert self.job is not None
        self.seen.append([*self.job, event, ascii(what)])


def main(folder: Path, out: Path) -> None:
    """Print, as JSON, what was done that no answer needs, and how often each source was opened."""
    output = out / "out.safetensors"
    verbs: dict[str, Callable[[Path], object]] = {
        "scan": scan,
        "scan_file_path": scan_file_path,
        "explain": explain,
        "inspect": inspect,
        "convert": lambda path: convert(path, output, allow_unsafe=True, overwrite=True),
        # It gets none: what else would be opened or done for it is what is watched.
        "replace_vae": lambda path: convert(
            output, out / "baked.safetensors", replace_vae=path, allow_unsafe=True
        ),
        # Where nothing could be made of a source, with what was made of another.
        "verify": lambda path: verify(path, output),
    }
    watch = Watch(out)
    sys.addaudithook(watch)
    for is_watched in (False, True):
        for source in sorted(folder.iterdir()):
            for verb, job in verbs.items():
                watch.job = (verb, str(source)) if is_watched else None
                with suppress(CkptauditError):
                    job(source)
                watch.job = None
    imported = [name for name in sys.modules if name.partition(".")[0] == "canary_module"]
    answer = {"seen": watch.seen, "opened": watch.opened, "imported": imported}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(os.path.realpath(sys.argv[2])))
