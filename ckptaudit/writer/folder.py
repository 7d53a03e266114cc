"""Folders that appear whole or not at all.

Knows:      how a folder comes into being without being seen half done.
Is told:    what it is to be called, and which files go into it.
Never asks: what is in them.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path

from ckptaudit.errors import OutputExists, OutputFailed
from ckptaudit.writer.file import check_place, output_errors, path_text, sync_folder

__all__ = ["DraftFolder", "check_folder"]


def check_folder(path: Path, *, overwrite: bool) -> None:
    """Refuse early a folder that would be refused at the end.

    Raises:
        OutputExists: There is something already, and it may not be overwritten.
        OutputFailed: What is there is no folder, or where it goes is none.
    """
    name = path_text(path)
    if path.name in {"", ".."}:
        raise OutputFailed(f"{name}: has no name of its own; name the folder to be written")
    with output_errors(path):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise OutputFailed(f"{name}: is no folder, and a folder is to be written")
        check_place(path, overwrite=overwrite)


class DraftFolder:
    """A folder on its way: it has no final name until `publish`.

    It exists inside a ``with`` block only; leaving that without `publish` removes every
    trace of it.

    Args:
        path: The final name.

    Raises:
        OutputFailed: The folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".ckptaudit-{secrets.token_hex(8)}.part")

    def __enter__(self) -> DraftFolder:  # noqa: PYI034 - typing.Self is Python 3.11's
        self.begin()
        return self

    def begin(self) -> None:
        """Make the folder; whoever calls this by itself sees to it that `discard` is called."""
        try:
            with output_errors(self.path):
                self._temporary.mkdir()
        except BaseException:
            # An interrupt too, wherever it strikes: nobody else would remove the folder.
            self.discard()
            raise

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Remove the folder unless it was published."""
        shutil.rmtree(self._temporary, ignore_errors=True)

    def place(self, file: str) -> Path:
        """Where *file*, a path in the folder, is to be written for now."""
        place = self._temporary / file
        with output_errors(self.path / file):
            place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def publish(self, *, overwrite: bool) -> None:
        """Give the folder its final name, all at once, or its files theirs in one that is there.

        Raises:
            OutputExists: Somebody has made one of that name meanwhile.
            OutputFailed: The operating system would not.
        """
        with output_errors(self.path):
            if overwrite and self.path.exists():
                self._replace_files()
                return
            for folder, _, _ in os.walk(self._temporary):
                sync_folder(Path(folder))
            try:
                # Onto a folder that is not empty no folder is ever renamed.
                self._temporary.rename(self.path)
            except OSError as err:
                if err.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                    raise
                raise OutputExists(
                    f"{path_text(self.path)}: was made by someone else meanwhile; choose another "
                    "name"
                ) from err
            sync_folder(self.path.parent)

    def _replace_files(self) -> None:
        """Put each file in the place of its like; what else the folder holds stays.

        Those at the top come last: loaders begin with them.  Nothing is put anywhere unless all
        can be.
        """
        files = [path for path in self._temporary.rglob("*") if path.is_file()]
        files.sort(key=lambda path: (-len(path.parts), path))
        places = [self.path / file.relative_to(self._temporary) for file in files]
        for place in places:
            self._check_free(place)
        for file, place in zip(files, places, strict=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
            sync_folder(place.parent)

    def _check_free(self, place: Path) -> None:
        """Refuse what stands in the way of a file, or would lead it out of the folder."""
        if place.is_dir() and not place.is_symlink():
            raise OutputFailed(f"{path_text(place)}: is a directory where a file is to be written")
        for folder in place.parents:
            if folder == self.path:
                return
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise OutputFailed(
                    f"{path_text(folder)}: is a link or a file where a folder is to be written; "
                    "move it away, or write elsewhere"
                )
