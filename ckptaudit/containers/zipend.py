"""The end of a zip archive: the records by which readers find its directory.

Readers find them in different ways.  torch's (miniz) and Python's zipfile both take the
last 32-bit record; the 64-bit one torch takes from where its locator points, zipfile from
right before the locator.

Knows:      APPNOTE.TXT 6.3.10 (PKWARE), 4.3.14 to 4.3.16; zipfile.py, _EndRecData64.
Is told:    a source that begins with a local file header.
Never asks: what is in the directory.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.containers.container import Mishap, Use
from ckptaudit.errors import MalformedInput
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from ckptaudit.containers.ledger import Ledger
    from ckptaudit.source import ByteSource

__all__ = ["DirectoryPlace", "End", "find_end"]

# End of central directory: signature, disk, directory's disk, entries on this disk,
# entries, directory size, directory offset, comment length.
_END = struct.Struct("<4s4H2IH")
# Zip64 end of central directory: signature, size of what follows, version made by,
# version needed, disk, directory's disk, entries on this disk, entries, directory
# size, directory offset.
_END64 = struct.Struct("<4sQ2H2I4Q")
# Zip64 end of central directory locator: signature, disk, offset, disks.
_LOCATOR = struct.Struct("<4sIQI")
# The length field counts neither itself nor the signature.
_LENGTH64 = _END64.size - 12

_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF


class DirectoryPlace(NamedTuple):
    """Where a directory is: its entries, its bytes, the offset of its first byte."""

    entries: int
    size: int
    start: int


class End(NamedTuple):
    """What the end records say.

    Attributes:
        place: Where torch finds the directory.
        limit: Where the records that follow it begin.
        others: Offsets of what reads like another 32-bit end record.
    """

    place: DirectoryPlace
    limit: int
    others: tuple[int, ...]


def find_end(source: ByteSource, ledger: Ledger) -> End:
    """Find the directory of *source*; the ledger is told where the records are and what is odd.

    Raises:
        MalformedInput: There is no end record, or it leads nowhere.
    """
    at, others = _find_end_record(source, ledger)
    _, disk, first_disk, here, count, size, start, _ = _END.unpack(source.read_at(at, _END.size))
    wide, limit = _read_end64(source, ledger, at)
    place = DirectoryPlace(count, size, start)
    if wide is not None:
        for narrow, most, value in zip(place, (_MAX16, _MAX32, _MAX32), wide, strict=True):
            if narrow not in (most, value):
                _odd(
                    ledger,
                    "zip-end-mismatch",
                    "the 32-bit and the 64-bit end record contradict each other",
                    at,
                )
        place = wide
    if disk or first_disk or (wide is None and here != count):
        _odd(ledger, "zip-disks", "claims to be one of several disks", at)
    if place.start + place.size > source.size:
        raise MalformedInput(
            "the directory reaches past the end of the file", where=source.name, offset=at
        )
    if place.start + place.size > limit:
        _odd(ledger, "zip-overlap", "the directory reaches into its end record", limit)
    return End(place, limit, others)


def _odd(ledger: Ledger, code: str, message: str, offset: int) -> None:
    ledger.mishaps.append(Mishap(code, message, "", offset))


def _find_end_record(source: ByteSource, ledger: Ledger) -> tuple[int, tuple[int, ...]]:
    """Offset of the 32-bit record, the last one if possible whose comment ends the file.

    Also the offsets of all others.  Whether those are just bytes of a storage shows later.
    """
    length = min(source.size, _END.size + _MAX16)
    start = source.size - length
    tail = source.read_at(start, length)
    found = []
    at = tail.rfind(b"PK\5\6")
    while at >= 0:
        if at + _END.size <= length:
            found.append(at)
        at = tail.rfind(b"PK\5\6", 0, at)
    if not found:
        raise MalformedInput(
            "is a zip archive without an end record: truncated or damaged; fetch it again",
            where=source.name,
            offset=source.size,
        )
    ends = [at for at in found if at + _END.size + _comment_length(tail, at) == length]
    chosen = ends[0] if ends else found[0]
    after = start + chosen + _END.size
    ledger.claim(after - _END.size, after, Use.STRUCTURE)
    ledger.disown(
        after,
        min(after + _comment_length(tail, chosen), source.size),
        "zip-comment",
        "an archive comment, which torch never writes",
    )
    return start + chosen, tuple(start + at for at in found if at != chosen)


def _comment_length(tail: bytes, at: int) -> int:
    return int.from_bytes(tail[at + _END.size - 2 : at + _END.size], "little")


def _read_end64(source: ByteSource, ledger: Ledger, end: int) -> tuple[DirectoryPlace | None, int]:
    """The directory by the zip64 record of the end record at *end*; None if there is none.

    Torch does without it, too, if it is not where it should be.  Also where the first end
    record begins.  What zipfile makes of the record right before the locator, `pythonzip` knows.
    """
    locator = end - _LOCATOR.size
    if locator < _END64.size:
        return None, end
    signature, disk, at, disks = _LOCATOR.unpack(source.read_at(locator, _LOCATOR.size))
    if signature != b"PK\6\7":
        return None, end
    ledger.claim(locator, end, Use.STRUCTURE)
    before = locator - _END64.size
    is_there = at + _END64.size <= source.size
    # Where there is none torch refuses the file, and zipfile does not look.
    signature, length, _, _, here_disk, first_disk, here, *place = _END64.unpack(
        source.read_at(at, _END64.size) if is_there else bytes(_END64.size)
    )
    if signature != b"PK\6\6":
        _odd(
            ledger,
            "zip-end-mismatch",
            "the zip64 end record is not where its locator says",
            locator,
        )
        return None, locator
    ledger.claim(at, at + _END64.size, Use.STRUCTURE)
    if length != _LENGTH64 or before != at:
        _odd(
            ledger,
            "zip-end-mismatch",
            f"the zip64 end record of {counted(length, 'byte')} has not the {_LENGTH64} that "
            "readers expect",
            at,
        )
    if disk or disks != 1 or here_disk or first_disk or here != place[0]:
        _odd(ledger, "zip-disks", "claims to be one of several disks", at)
    return DirectoryPlace(*place), min(at, locator)
