"""Which zip archive Python's zipfile sees in a file, where that is not the one torch sees.

torch opens a file as zip if it begins with one, and goes where the end record says.
zipfile opens whatever has an end record near its end, takes the last one, looks for the
directory just before it, and corrects every offset by what then does not fit.  So a pickle
may be a zip, and of two archives in one file each reader may see its own.

Knows:      Lib/zipfile.py (_EndRecData, _EndRecData64, _RealGetContents).
Is told:    a source.
Never asks: what is in the archive.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.containers.zipdirectory import SIGNATURE
from ckptaudit.errors import LimitExceeded, MalformedInput
from ckptaudit.source import BufferSource, SplicedSource

if TYPE_CHECKING:
    from ckptaudit.source import ByteSource

__all__ = ["PythonArchive", "find_archive"]

# Fields as in `zipdirectory`; here only some of them are looked at.
_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
# One more than there can be.
_MOST_COMMENT = 1 << 16
_MOST_DIRECTORY_BYTES = 64 << 20
# Zeros that stand for what is missing take no memory, but offsets behind them must be such as
# every reader of a report can hold.
_MOST_MISSING = 1 << 62


class PythonArchive(NamedTuple):
    """An archive as zipfile would find it.

    Attributes:
        source: The file.
        base: What zipfile adds to every offset in the archive: its first byte, if it was put
            behind something else; less than zero if something before it is missing.
        start: Offset of its directory in the file.
        size: Bytes of its directory.
        end: Offset just past its end record and as much of the comment as there is.
        is_torchs: Whether torch would see the same directory.
    """

    source: ByteSource
    base: int
    start: int
    size: int
    end: int
    is_torchs: bool

    def alone(self, name: str) -> SplicedSource:
        """The archive without what is around it, and with an end record no two readers differ on.

        Where its beginning is missing there are zeros instead: zipfile reads all entries but
        those that would be there.

        Raises:
            MalformedInput: It has no directory.
            LimitExceeded: Its directory is too large to read, or it begins too far before the file.
        """
        missing = max(-self.base, 0)
        if missing > _MOST_MISSING:
            raise LimitExceeded(
                f"begins {missing} bytes before the file, and of no archive so much is missing",
                where=name,
            )
        end = _end_record(self._count(name), self.size, self.start - self.base)
        first = max(self.base, 0)
        return SplicedSource(
            name,
            (_Zeros(missing), 0, missing),
            (self.source, first, self.start + self.size - first),
            (BufferSource(end), 0, len(end)),
        )

    def _count(self, name: str) -> int:
        """Entries in the directory: zipfile reads all there are, whatever number is stated."""
        if self.size > _MOST_DIRECTORY_BYTES:
            raise LimitExceeded(f"has a directory of {self.size} bytes", where=name)
        directory = self.source.read_at(self.start, self.size)
        at = count = 0
        while at < self.size:
            if at + _CENTRAL.size > self.size or directory[at : at + 4] != b"PK\1\2":
                raise MalformedInput("has a directory that cannot be read", where=name)
            fields: tuple[int, ...] = _CENTRAL.unpack_from(directory, at)
            # The lengths of name, extra field and comment.
            at += _CENTRAL.size + sum(fields[10:13])
            count += 1
        return count


class _Zeros:
    """So many zeros, and no memory for them; what is read of them lies in a range of a splice."""

    def __init__(self, size: int) -> None:
        self.name = "zeros"
        self.size = size

    def read_into(self, _offset: int, buffer: memoryview, /) -> None:
        """See `ByteSource.read_into`."""
        buffer[:] = bytes(len(buffer))

    def read_at(self, _offset: int, length: int, /) -> bytes:
        """See `ByteSource.read_at`."""
        return bytes(length)

    def will_need(self, offset: int, length: int) -> None:
        """Do nothing."""

    def check_unchanged(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def find_archive(source: ByteSource) -> PythonArchive | None:
    """The archive that zipfile finds in *source*, or None if it would find none."""
    length = min(source.size, _END.size + _MOST_COMMENT)
    tail_at = source.size - length
    tail = source.read_at(tail_at, length)
    last = _last_end(tail)
    if last is None:
        return None
    end = tail_at + last
    fields: tuple[int, ...] = _END.unpack_from(tail, last)
    comment = fields[7]
    size, stated = fields[5], fields[6]
    wide = _before(source, end)
    top = end
    if wide is not None:
        size, stated = wide
        top -= _LOCATOR.size + _END64.size
    start = top - size
    if not size or start < 0 or source.read_at(start, min(4, size)) != b"PK\1\2":
        return None
    is_only = tail.find(b"PK\5\6") == last
    reaches_end = last + _END.size + comment == length
    is_torchs = (
        source.read_at(0, min(4, source.size)) == SIGNATURE
        and (is_only or reaches_end)
        and _start_for_torch(source, end, fields[6]) == start
    )
    stop = min(end + _END.size + comment, source.size)
    return PythonArchive(source, start - stated, start, size, stop, is_torchs)


def _last_end(tail: bytes) -> int | None:
    """Where the end record is that zipfile takes, in the last bytes of a file; None without one.

    It looks for one without a comment first, in which the signature may stand again.
    """
    bare = len(tail) - _END.size
    if bare >= 0 and tail.startswith(b"PK\5\6", bare) and tail.endswith(b"\0\0"):
        return bare
    last = tail.rfind(b"PK\5\6")
    return last if 0 <= last <= bare else None


def _locator(source: ByteSource, end: int) -> int | None:
    """Where the locator before the end record says that the 64-bit one is; None without one."""
    at = end - _LOCATOR.size
    if at < 0:
        return None
    signature, disk, offset, disks = _LOCATOR.unpack(source.read_at(at, _LOCATOR.size))
    return int(offset) if signature == b"PK\6\7" and not disk and disks <= 1 else None


def _end64(source: ByteSource, at: int) -> tuple[int, int] | None:
    """Size and offset of the directory in the 64-bit end record at *at*; None without one."""
    if not 0 <= at <= source.size - _END64.size:
        return None
    fields = _END64.unpack(source.read_at(at, _END64.size))
    return (int(fields[8]), int(fields[9])) if fields[0] == b"PK\6\6" else None


def _before(source: ByteSource, end: int) -> tuple[int, int] | None:
    """What zipfile takes for the 64-bit end record: it goes by place, not by the locator."""
    if _locator(source, end) is None:
        return None
    return _end64(source, end - _LOCATOR.size - _END64.size)


def _start_for_torch(source: ByteSource, end: int, stated: int) -> int:
    """Where torch goes for the directory: exactly where it is told."""
    at = _locator(source, end)
    wide = None if at is None else _end64(source, at)
    return stated if wide is None else wide[1]


def _end_record(count: int, size: int, start: int) -> bytes:
    """An end record for 64 bits, its locator, and one for 32 bits that refers to it."""
    return (
        # Size of what follows, versions, disks, entries here and in all.
        _END64.pack(b"PK\6\6", _END64.size - 12, 45, 45, 0, 0, count, count, size, start)
        + _LOCATOR.pack(b"PK\6\7", 0, start + size, 1)
        + _END.pack(b"PK\5\6", 0, 0, _MAX16, _MAX16, _MAX32, _MAX32, 0)
    )
