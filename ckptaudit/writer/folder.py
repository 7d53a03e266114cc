"""Folders that appear whole or not at all, also where there is one already.

Knows:      how a folder comes into being, or takes the place of another, without being seen half
            done; and that what nobody wrote for it is nobody's to lose.
Is told:    what it is to be called, which files go into it, and which of those that are there
            may go.
Never asks: what is in them.

One folder takes the place of another in two renames: the old one goes aside, the new one in.
POSIX has no single call for it, and Linux's renameat2 none in Python.  Whoever is killed in
between leaves the old one under a name that follows from its own, so that the next one to write
there puts it back.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import secrets
import shutil
import stat
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ckptaudit.errors import OutputExists, OutputFailed
from ckptaudit.source import path_text
from ckptaudit.writer.file import check_place, output_errors, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    OwnFiles: TypeAlias = Callable[[Path, str], Collection[str]]

__all__ = ["DraftFolder", "check_folder", "settle_folder"]

# Where there are no hard links: FAT, some network file systems, files of somebody else.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
# Folders in each other that are taken along.  Until Python 3.12 os.walk and shutil.rmtree go into
# them by recursion, of which a thousand levels are an error.
_MOST_DEPTH = 500


def check_folder(path: Path, *, overwrite: bool) -> None:
    """Refuse early a folder that would be refused at the end.

    Raises:
        OutputExists: There is something already, and it may not be overwritten.
        OutputFailed: What is there is no folder, or one that cannot be exchanged, or where it
            goes is none.
    """
    name = path_text(path)
    if path.name in {"", ".."}:
        raise OutputFailed(f"{name}: has no name of its own; name the folder to be written")
    with output_errors(path):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise OutputFailed(f"{name}: is no folder, and a folder is to be written")
        check_place(path, overwrite=overwrite)
        if path.is_mount():
            raise OutputFailed(
                f"{name}: is a mount point, which cannot be exchanged; name a folder in it"
            )
        if path.is_dir() and any(path.iterdir()) and _is_stood_in(path):
            raise OutputFailed(
                f"{name}: cannot be exchanged for a new one, for the working directory is in it; "
                "go elsewhere, or name a folder in it"
            )


def settle_folder(path: Path, own_files: OwnFiles) -> None:
    """Put right what somebody who was killed left of a folder *path* that was to be replaced.

    Args:
        path: The folder.
        own_files: See `DraftFolder`.

    Raises:
        OutputFailed: The operating system would not, or there are files of the old folder that
            the one there now has others in the place of.
    """
    if path.name in {"", ".."}:
        return
    aside = _aside(path)
    with output_errors(path):
        if not aside.is_dir() or aside.is_symlink():
            return
        if not os.path.lexists(path):
            aside.rename(path)
            sync_folder(path.parent)
            return
        _clear(aside, path, own_files(aside, path.name))
        if aside.exists():
            raise OutputFailed(
                f"{path_text(aside)}: holds what a run that was cut short took out of "
                f"{path_text(path.name)}, where there are other files of those names now; move it "
                "away"
            )


class DraftFolder:
    """A folder on its way: it has no final name until `publish`.

    It exists inside a ``with`` block only; leaving that without `publish` removes every
    trace of it.

    Args:
        path: The final name.
        own_files: Of a folder that is there, and of its name, which files may go with it, by
            their paths in it; every other one is kept, unless one of the same path takes its place.

    Raises:
        OutputFailed: The folder cannot be made.
    """

    def __init__(self, path: Path, own_files: OwnFiles = lambda _folder, _name: ()) -> None:
        self.path = path
        self._own_files = own_files
        # What goes with the folder that is there, once it is being replaced.
        self._going: set[str] | None = None
        self._temporary = path.with_name(f".ckptaudit-{secrets.token_hex(8)}.part")
        self._aside = _aside(path)

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
        """Remove the folder unless it was published, and what is left of the one it replaced."""
        shutil.rmtree(self._temporary, ignore_errors=True)
        if self._going is None:
            return
        # An interrupt may have struck between the two renames, or before all was removed.
        with contextlib.suppress(OSError):
            if os.path.lexists(self.path):
                _clear(self._aside, self.path, self._going)
            else:
                self._aside.rename(self.path)

    def place(self, file: str) -> Path:
        """Where *file*, a path in the folder, is to be written for now."""
        place = self._temporary / file
        with output_errors(self.path / file):
            place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def publish(self, *, overwrite: bool) -> None:
        """Give the folder its final name, all at once, also where there is one that may go.

        Raises:
            OutputExists: Somebody has made one of that name meanwhile.
            OutputFailed: The operating system would not; or something stands in the way of a
                file.  What was there is there as before.
        """
        with output_errors(self.path):
            _sync(self._temporary)
            if overwrite and self.path.is_dir() and _is_stood_in(self.path):
                self._fill()
                return
            try:
                # Onto a folder that is not empty no folder is ever renamed.
                self._temporary.rename(self.path)
            except OSError as err:
                if err.errno not in _TAKEN:
                    raise
                if not overwrite or not self.path.is_dir() or self.path.is_symlink():
                    raise OutputExists(
                        f"{path_text(self.path)}: was made by someone else meanwhile; choose "
                        "another name"
                    ) from err
                self._exchange()
            sync_folder(self.path.parent)

    def _exchange(self) -> None:
        """Take the place of the folder that is there, with whatever in it is to be kept."""
        own = self._own_files(self.path, self.path.name)
        going = {*own, *_below(self._temporary)}
        self._take_over(own)
        _sync(self._temporary)
        self._going = going
        self.path.rename(self._aside)
        self._temporary.rename(self.path)
        sync_folder(self.path.parent)
        _clear(self._aside, self.path, going)

    def _take_over(self, own: Collection[str]) -> None:
        """Link what is to be kept into this folder, so that until the end it is in both.

        Nothing is linked unless all that is there leaves room for what is here.
        """
        found = list(_below(self.path))
        for file in found:
            self._check_room(file, own)
        # What nobody else could see in the old folder, nobody sees in this one at any moment.
        shutil.copymode(self.path, self._temporary)
        folders: list[Path] = []
        for file in found:
            there, place = self.path / file, self._temporary / file
            if file in own or os.path.lexists(place):
                continue
            is_folder = there.is_dir() and not there.is_symlink()
            for folder in (*reversed(Path(file).parents), *([Path(file)] if is_folder else [])):
                if not (self._temporary / folder).exists():
                    (self._temporary / folder).mkdir(mode=stat.S_IRWXU)
                    folders.append(folder)
            if not is_folder:
                _link(there, place)
        # From within: to put something into a folder changes its times.
        for folder in reversed(folders):
            shutil.copystat(self.path / folder, self._temporary / folder)

    def _check_room(self, file: str, own: Collection[str]) -> None:
        """Refuse *file*, of those there, if it is a folder where a file goes, or the reverse."""
        there, place = self.path / file, self._temporary / file
        if not os.path.lexists(place) or file in own:
            return
        is_folder = there.is_dir() and not there.is_symlink()
        if is_folder and not place.is_dir():
            raise OutputFailed(f"{path_text(there)}: is a directory where a file is to be written")
        if place.is_dir() and not is_folder:
            raise OutputFailed(
                f"{path_text(there)}: is a link or a file where a folder is to be written; "
                "move it away, or write elsewhere"
            )

    def _fill(self) -> None:
        """Put each file into the folder that is there and empty, and is not to be exchanged.

        Those at the top come last: loaders begin with them.
        """
        if any(self.path.iterdir()):
            raise OutputExists(
                f"{path_text(self.path)}: was filled by someone else meanwhile; choose another name"
            )
        moved: list[Path] = []
        try:
            for file in sorted(self._temporary.iterdir(), key=lambda each: not each.is_dir()):
                moved.append(self.path / file.name)
                file.rename(moved[-1])
        except BaseException:
            for place in filter(os.path.lexists, moved):
                place.rename(self._temporary / place.name)
            raise
        sync_folder(self.path)


def _aside(path: Path) -> Path:
    """Where the folder *path* is while another takes its place."""
    digest = sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".ckptaudit-{digest}.old")


def _is_stood_in(path: Path) -> bool:
    """Whether we, and so maybe a shell, would stand in what was removed."""
    here, real = os.path.realpath("."), os.path.realpath(path)
    return os.path.commonpath([here, real]) == real


def _below(folder: Path) -> Iterator[str]:
    """Whatever is in *folder*, by its path in it: of folders those without files.

    Raises:
        OutputFailed: It lies deeper than is taken along.
    """
    for home, folders, files in os.walk(folder):
        where = Path(home).relative_to(folder)
        if len(where.parts) > _MOST_DEPTH:
            top = path_text(folder / where.parts[0])
            raise OutputFailed(
                f"{top}: holds over {_MOST_DEPTH} folders in each other; move it away, or write "
                "elsewhere"
            )
        # A link to a folder is not gone into: it is a link.
        links = [name for name in folders if (Path(home) / name).is_symlink()]
        if not folders and not files and where.name:
            yield str(where)
        yield from (str(where / name) for name in (*links, *files))


def _link(there: Path, place: Path) -> None:
    """Make *there*, a file or a link, be at *place*, too."""
    try:
        os.link(there, place, follow_symlinks=False)
    except OSError as err:
        if err.errno not in _NO_LINKS:
            raise
        shutil.copy2(there, place, follow_symlinks=False)


def _clear(aside: Path, path: Path, going: Collection[str]) -> None:
    """Remove of the old folder *aside* what is *going*, and what is in the new one, *path*, too.

    What was put into it at the last moment, and is therefore not, goes there now; what can be
    nowhere else stays.  By files of weights it is known whose settings those beside them are:
    they go last.
    """
    files = sorted(_below(aside), key=lambda file: (not file.endswith(".json"), file))
    for file in files:
        there = aside / file
        if there.is_dir() and not there.is_symlink():
            continue
        place = path / file
        if file in going or _is_same(there, place):
            there.unlink()
        elif not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            there.rename(place)
    for home, _, _ in os.walk(aside, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(home)  # noqa: PTH106 - what os.walk gives


def _is_same(one: Path, other: Path) -> bool:
    """Whether both are one file, or a copy where there are no links, or links to one place."""
    if not os.path.lexists(other):
        return False
    if os.path.samestat(one.lstat(), other.lstat()):
        return True
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def _sync(folder: Path) -> None:
    for home, _, _ in os.walk(folder):
        sync_folder(Path(home))
