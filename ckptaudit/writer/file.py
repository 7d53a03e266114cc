"""Safetensors files, streamed: header first, data in any order, a final name only when whole.

Knows:      the safetensors format, and how a file comes into being without being seen half done.
Is told:    names, types, shapes and offsets, then bytes for offsets.
Never asks: where the bytes come from.

Layout: 8 bytes little-endian header length; a JSON object, padded with spaces to a
multiple of 8; the data.  The official writer wants all tensors in memory, makes
files nobody else may read and does not sync; this one does none of these.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from typing import TYPE_CHECKING, Protocol

import safetensors

from ckptaudit.errors import OutputExists, OutputFailed
from ckptaudit.source import path_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from ckptaudit.dtypes import DType

__all__ = [
    "PAGE",
    "Draft",
    "Slot",
    "check_destination",
    "check_place",
    "check_spares",
    "header_of",
    "output_errors",
    "sync_folder",
    "write_text",
]

_ALIGNMENT = 8
# What safetensors' own reader takes, and every other with it; safetensors/src/tensor.rs.
_MOST_HEADER = 100_000_000
# What O_DIRECT wants offsets, lengths and addresses to be multiples of, at the most.
PAGE = 4096
# Below this a write is not worth three system calls.
_LEAST_DIRECT = 64 << 10


class Slot(Protocol):
    """What the writer is told of one tensor; a plan's `OutputTensor` is one."""

    @property
    def name(self) -> str:
        """Its name in the header."""

    @property
    def dtype(self) -> DType:
        """Type of its elements; one that safetensors has a code for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per dimension."""

    @property
    def offset(self) -> int:
        """First byte, counted from the start of the data."""

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""


def header_of(slots: Iterable[Slot], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file before its data.

    Args:
        slots: In the order of their offsets, without gap or overlap.
        metadata: Goes under ``__metadata__``, sorted by key.

    Raises:
        OutputFailed: It is longer than any safetensors library reads.
    """
    entries: dict[str, object] = {}
    if metadata:
        entries["__metadata__"] = dict(sorted(metadata.items()))
    for slot in slots:
        entries[slot.name] = {
            "dtype": slot.dtype.safetensors,
            "shape": list(slot.shape),
            "data_offsets": [slot.offset, slot.offset + slot.nbytes],
        }
    body = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    body += b" " * (-len(body) % _ALIGNMENT)
    if len(body) > _MOST_HEADER:
        raise OutputFailed(
            f"the names and shapes of its {len(entries)} entries take {len(body)} bytes; no "
            f"safetensors library opens a file where they take over {_MOST_HEADER}"
        )
    return len(body).to_bytes(8, "little") + body


def check_destination(path: Path, *, overwrite: bool) -> None:
    """Refuse early what would be refused at the end.

    Raises:
        OutputExists: There is a file already, and it may not be overwritten.
        OutputFailed: The folder is missing or not one, or *path* is no regular file.
    """
    name = path_text(path)
    with output_errors(path):
        if path.is_dir():
            raise OutputFailed(f"{name}: is a directory; name a file in it")
        if path.is_symlink() or (path.exists() and not path.is_file()):
            # Renaming over it would put a file where a device, a pipe or /dev/stdout was.
            raise OutputFailed(f"{name}: is a link or a device; name a regular file")
        check_place(path, overwrite=overwrite)


def check_place(path: Path, *, overwrite: bool) -> None:
    """Refuse a name that is taken and may not be, and one in no folder.

    Raises:
        OutputExists: There is something already, and it may not be overwritten.
        OutputFailed: It would lie in what is no folder.
    """
    if not overwrite and path.exists():
        raise OutputExists(f"{path_text(path)}: exists; choose another name")
    if not path.parent.is_dir():
        folder = path_text(path.parent)
        raise OutputFailed(f"{folder}: is no directory; create it first")


def check_spares(path: Path, sources: Iterable[Path]) -> None:
    """Refuse to write what is read.

    Raises:
        OutputFailed: *path* is one of *sources*, under whatever name.
    """
    with output_errors(path):
        if path.exists() and any(each.exists() and path.samefile(each) for each in sources):
            raise OutputFailed(
                f"{path_text(path)}: is the source itself, or a part of it, which is never "
                "written; name another output"
            )


class Draft:
    """A file on its way: it has no final name until `publish`.

    It exists inside a ``with`` block only; leaving that without `publish` removes every
    trace of it.

    Args:
        path: The final name.
        size: Bytes the file will have.
        shown: What errors call it, if that is not *path*.

    Raises:
        OutputFailed: The file cannot be made, or there is no space for it.
    """

    def __init__(self, path: Path, size: int, shown: Path | None = None) -> None:
        self.path = path
        self.size = size
        self._shown = path if shown is None else shown
        self._temporary = path.with_name(f".ckptaudit-{secrets.token_hex(8)}.part")
        self._fd = -1
        self._direct = -1

    def __enter__(self) -> Draft:  # noqa: PYI034 - typing.Self is Python 3.11's
        self.begin()
        return self

    def begin(self) -> None:
        """Make the file; whoever calls this by itself sees to it that `discard` is called."""
        try:
            with output_errors(self._shown):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                # 0o666 less the umask: what any other tool would give a new file.
                self._fd = os.open(self._temporary, flags, 0o666)
                _reserve(self._fd, self.size)
                self._direct = _open_direct(self._temporary)
        except BaseException:
            # An interrupt too, wherever it strikes: nobody else would remove the file.
            self.discard()
            raise

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write_at(self, offset: int, data: memoryview | bytes) -> None:
        """Put *data* at byte *offset* of the file.

        Whole pages go past the page cache if *data* lies in memory as it will in the file,
        its address and *offset* differing by a multiple of `PAGE`: the file is synced at
        the end all the same, and nobody's pages are pushed out for it.  What is left of a
        page at either end goes through the cache; no page is ever written both ways, for
        no two writes overlap.

        Raises:
            OutputFailed: The operating system would not take it.
        """
        view = memoryview(data)
        head = min(-offset % PAGE, len(view))
        body = (len(view) - head) // PAGE * PAGE if self._direct >= 0 else 0
        with output_errors(self._shown):
            if body < _LEAST_DIRECT or not self._write_direct(offset + head, view[head:][:body]):
                self._write(offset, view)
                return
            self._write(offset, view[:head])
            self._write(offset + head + body, view[head + body :])

    def _write(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], offset + done)

    def _write_direct(self, offset: int, view: memoryview) -> bool:
        """Write whole pages past the cache; False if they lie wrong in memory for that."""
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._direct, view[done:], offset + done)
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            return False
        return True

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from byte *offset* of what has been written.

        Raises:
            OutputFailed: The bytes are not there.
        """
        done = 0
        fd = self._direct if self._direct >= 0 and not len(buffer) % PAGE else self._fd
        with output_errors(self._shown):
            while done < len(buffer):
                try:
                    count = os.preadv(fd, [buffer[done:]], offset + done)
                except OSError as err:
                    if err.errno != errno.EINVAL or fd == self._fd:
                        raise
                    fd = self._fd
                    continue
                if count == 0:
                    raise OSError(errno.EIO, "the file is shorter than what was written")
                done += count

    def check_opens(self) -> None:
        """Have the official safetensors library open the file.

        Raises:
            OutputFailed: It does not; the file is not published.
        """
        try:
            with safetensors.safe_open(self._temporary, framework="np") as file:
                file.keys()
        except (safetensors.SafetensorError, OSError) as err:
            raise OutputFailed(
                f"{path_text(self._shown)}: the safetensors library does not open what was written "
                f"({err}); this is a bug in ckptaudit: please report it"
            ) from err

    def publish(self, *, overwrite: bool) -> None:
        """Sync the file to disk and give it its final name, all at once.

        Raises:
            OutputExists: Somebody has made a file of that name meanwhile.
            OutputFailed: The operating system would not.
        """
        with output_errors(self._shown):
            os.fsync(self._fd)
            if overwrite:
                self._temporary.replace(self.path)
            else:
                _rename_if_free(self._temporary, self.path)
            sync_folder(self.path.parent)

    def discard(self) -> None:
        """Close the file, and remove it unless it was published."""
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1
        # What could not be made, in a folder that is none, say, cannot be removed either.
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


def write_text(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a small file the same way: whole or not at all.

    Raises:
        OutputExists: There is a file of that name, and it may not be overwritten.
        OutputFailed: The operating system would not take it.
    """
    check_destination(path, overwrite=overwrite)
    with Draft(path, len(data)) as draft:
        draft.write_at(0, data)
        draft.publish(overwrite=overwrite)


def _reserve(fd: int, size: int) -> None:
    """Give the file its size, if there is room for it now.

    Blocks are not allocated beforehand: a memory file system would fill all of them on one
    core, and on disk it gained nothing.
    """
    known = os.fstatvfs(fd)
    # A file system that does not count its blocks says that it has none at all.
    if known.f_blocks and size > known.f_bavail * known.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(fd, size)


def _open_direct(path: Path) -> int:
    """A descriptor that writes past the page cache, or -1 where there is no such thing."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    except (OSError, AttributeError):
        # macOS has no O_DIRECT, and some file systems refuse it.
        return -1


def _rename_if_free(temporary: Path, path: Path) -> None:
    """Rename without replacing: a hard link fails where the name is taken, rename does not."""
    try:
        os.link(temporary, path)
        temporary.unlink()
    except FileExistsError as err:
        raise OutputExists(
            f"{path_text(path)}: was made by someone else meanwhile; choose another name"
        ) from err
    except OSError as err:
        if err.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
            raise
        # No hard links here (FAT, some network file systems).
        if path.exists():
            raise OutputExists(f"{path_text(path)}: exists; choose another name") from err
        temporary.rename(path)


def sync_folder(folder: Path) -> None:
    """Make the new name last, where that can be asked for: the file itself is whole already."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


_ADVICE = {
    errno.ENOSPC: "no space left on the device; free some, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space, or write elsewhere",
    errno.EACCES: "may not be written; check the folder's permissions, or write elsewhere",
    errno.EPERM: "may not be written; check the folder's permissions, or write elsewhere",
    errno.EROFS: "is on a read-only file system; write elsewhere",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "its folder is not one; write elsewhere",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EFBIG: "the file system does not take files of this size; write elsewhere",
}


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Say of *path* what the operating system says, with what to do.

    Raises:
        OutputFailed: It said anything.
    """
    try:
        yield
    except OSError as err:
        advice = _ADVICE.get(err.errno or 0, f"cannot be written ({err.strerror})")
        raise OutputFailed(f"{path_text(path)}: {advice}") from err
