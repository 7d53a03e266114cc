"""Where bytes come from: one open file, read at offsets, never mapped.

A mapped file that is cut short under us kills the process with SIGBUS; a
`preadv` that comes back short is an error message.

Knows:      files, buffers, offsets.
Is told:    which bytes to read.
Never asks: what they mean.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Protocol

from ckptaudit.errors import MalformedInput, SourceChanged, SourceUnreadable
from ckptaudit.wording import counted, left

__all__ = [
    "BufferSource",
    "ByteSource",
    "Cursor",
    "FileSource",
    "SplicedSource",
    "path_text",
    "unreadable",
]

Identity = tuple[int, ...]


class ByteSource(Protocol):
    """Random access to a fixed number of bytes."""

    @property
    def name(self) -> str:
        """What to call it in a message; for a file its path as the user gave it."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer*, a writable view of bytes, from byte *offset* on.

        Raises:
            MalformedInput: The bytes asked for reach past the end.
            SourceChanged: The end is nearer than it was.
        """

    def read_at(self, offset: int, length: int) -> bytes:
        """Return *length* bytes from byte *offset* on; raises like `read_into`."""

    def will_need(self, offset: int, length: int) -> None:
        """Say that these bytes will be read soon; they need not be there."""

    def check_unchanged(self) -> None:
        """Raise `SourceChanged` if the bytes may differ from those read so far."""

    def close(self) -> None:
        """Give the underlying resource back."""


def _check_range(source: ByteSource, offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > source.size:
        raise MalformedInput(
            f"needs {counted(length, 'byte')}, but the file ends at byte {source.size}; "
            "it is truncated or damaged: fetch it again",
            where=source.name,
            offset=offset,
        )


def path_text(path: str | os.PathLike[str]) -> str:
    """*path* as text that any report can hold.

    A name that is not UTF-8 reaches Python as lone surrogates, which none can.
    """
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")


class FileSource:
    """A regular file, opened once; everything a job reads goes through this descriptor.

    Raises:
        SourceUnreadable: There is no such file, it is not a regular file, or it may not be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        given = os.fspath(path)
        self.name = path_text(given)
        try:
            # Without O_NONBLOCK opening a FIFO would wait for a writer.
            self._fd = os.open(given, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as err:
            raise unreadable(self.name, err) from err
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            if stat.S_ISDIR(status.st_mode):
                raise SourceUnreadable(f"{self.name}: is a directory; name a file in it")
            raise SourceUnreadable(f"{self.name}: is not a regular file; give the path of a file")
        self.size = status.st_size
        self.identity = _identity(status)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `ByteSource.read_into`."""
        _check_range(self, offset, len(buffer))
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as err:
                raise unreadable(self.name, err) from err
            if count == 0:
                raise SourceChanged(
                    f"{self.name}: was cut short at byte {offset + done} while it was read; "
                    "run again when nothing writes to it"
                )
            done += count

    def read_at(self, offset: int, length: int) -> bytes:
        """See `ByteSource.read_at`."""
        _check_range(self, offset, length)
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as err:
            raise unreadable(self.name, err) from err
        if len(data) == length:
            return data
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def will_need(self, offset: int, length: int) -> None:
        """See `ByteSource.will_need`."""
        # macOS has no posix_fadvise.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def check_unchanged(self) -> None:
        """See `ByteSource.check_unchanged`; compares inode, size, mtime and ctime."""
        if _identity(os.fstat(self._fd)) != self.identity:
            raise SourceChanged(
                f"{self.name}: changed while it was read; run again when nothing writes to it"
            )

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class BufferSource:
    """Bytes that are in memory already."""

    def __init__(self, data: bytes | bytearray, name: str = "<buffer>") -> None:
        self.name = name
        self.size = len(data)
        self._data = memoryview(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `ByteSource.read_into`."""
        _check_range(self, offset, len(buffer))
        buffer[:] = self._data[offset : offset + len(buffer)]

    def read_at(self, offset: int, length: int) -> bytes:
        """See `ByteSource.read_at`."""
        _check_range(self, offset, length)
        return bytes(self._data[offset : offset + length])

    def will_need(self, offset: int, length: int) -> None:
        """Do nothing: the bytes are there."""

    def check_unchanged(self) -> None:
        """Do nothing: nobody else holds the buffer."""

    def close(self) -> None:
        """Do nothing."""


class SplicedSource:
    """Ranges of other sources, one behind the other: a file inside a file, or parts of one.

    Args:
        name: What to call it.
        parts: Each a source, the first byte of the range in it, and the range's length.
    """

    def __init__(self, name: str, *parts: tuple[ByteSource, int, int]) -> None:
        for source, start, length in parts:
            _check_range(source, start, length)
        self.name = name
        self.size = sum(length for _, _, length in parts)
        self._parts = parts

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `ByteSource.read_into`."""
        _check_range(self, offset, len(buffer))
        for source, start, length in self._parts:
            wanted = min(length - offset, len(buffer))
            if wanted > 0:
                source.read_into(start + offset, buffer[:wanted])
                buffer = buffer[wanted:]
            offset = max(offset - length, 0)

    def read_at(self, offset: int, length: int) -> bytes:
        """See `ByteSource.read_at`."""
        _check_range(self, offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def will_need(self, offset: int, length: int) -> None:
        """See `ByteSource.will_need`."""
        for source, start, own in self._parts:
            wanted = min(own - offset, length)
            if wanted > 0:
                source.will_need(start + offset, wanted)
                length -= wanted
            offset = max(offset - own, 0)

    def check_unchanged(self) -> None:
        """See `ByteSource.check_unchanged`."""
        for source, _, _ in self._parts:
            source.check_unchanged()

    def close(self) -> None:
        """Do nothing: the sources belong to others."""


class Cursor:
    """Reads forward through ``[start, stop)`` of a source, a window at a time.

    Args:
        source: The bytes.
        start: First byte, counted from the start of the source.
        stop: First byte not to be read.
        where: What to call this range in an error.
    """

    WINDOW = 1 << 16
    # Many small ranges are read each by a cursor of its own: the window starts small.
    FIRST_WINDOW = 1 << 12

    __slots__ = ("_base", "_source", "_start", "_stop", "at", "where", "window")

    def __init__(self, source: ByteSource, start: int, stop: int, where: str) -> None:
        self.where = where
        # The bytes at hand and the index of the next one in them: a reader of
        # many small things may look here first and call `take` when they run out.
        self.window = b""
        self.at = 0
        self._source = source
        self._start = start
        self._stop = stop
        self._base = start

    @property
    def position(self) -> int:
        """Bytes read so far, counted from *start*."""
        return self._base + self.at - self._start

    @property
    def remaining(self) -> int:
        """Bytes left before *stop*."""
        return self._stop - self._base - self.at

    def take(self, length: int) -> bytes:
        """Return the next *length* bytes.

        Raises:
            MalformedInput: Fewer are left; nothing has been allocated for them.
        """
        at = self.at
        end = at + length
        if end > len(self.window):
            self._slide(length)
            at = 0
            end = length
        self.at = end
        return self.window[at:end]

    def take_line(self, limit: int) -> bytes:
        """Return the bytes before the next newline, and move past it.

        Raises:
            MalformedInput: There is no newline within *limit* bytes.
        """
        end = self.window.find(b"\n", self.at)
        wanted = self.FIRST_WINDOW
        while end < 0:
            bound = min(limit + 1, self.remaining)
            wanted = min(wanted, bound)
            self._slide(wanted)
            end = self.window.find(b"\n")
            if end < 0 and wanted == bound:
                raise MalformedInput(
                    f"no end of line within {counted(wanted, 'byte')}",
                    where=self.where,
                    offset=self.position,
                )
            wanted *= 4
        line = self.window[self.at : end]
        self.at = end + 1
        return line

    def _slide(self, length: int) -> None:
        """Make the window start at the cursor and hold at least *length* bytes."""
        if length > self.remaining:
            raise MalformedInput(
                f"needs {counted(length, 'byte')} where {left(self.remaining)}",
                where=self.where,
                offset=self.position,
            )
        self._base += self.at
        self.at = 0
        ahead = min(max(self.FIRST_WINDOW, self.position), self.WINDOW)
        wanted = min(max(length, ahead), self._stop - self._base)
        self.window = self._source.read_at(self._base, wanted)


def _identity(status: os.stat_result) -> Identity:
    # ctime as well: unlike mtime it cannot be set back by whoever may write the file.
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def unreadable(name: str, err: OSError | ValueError) -> SourceUnreadable:
    """What to raise where *err* keeps the path called *name* from being opened or read."""
    code = err.errno if isinstance(err, OSError) else None
    if code == errno.ENOENT:
        # A shell that finds no file for a pattern hands over the pattern.
        is_pattern = not {"*", "?", "["}.isdisjoint(name)
        why = "no such file, and none for it as a pattern" if is_pattern else "no such file"
        return SourceUnreadable(f"{name}: {why}; check the path")
    if code == errno.EACCES:
        return SourceUnreadable(f"{name}: may not be read; check its permissions")
    reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
    return SourceUnreadable(f"{name}: cannot be read ({reason})")
