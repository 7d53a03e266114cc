"""A zip archive's directory: its entries, and every contradiction among them.

torch's reader (miniz) and Python's zipfile disagree about duplicate names, letter
case, prepended and appended archives.  A file on which they could disagree gets a
mishap for it; what torch itself always writes (data descriptors, zip64 records,
zero sizes in local headers, ``FB`` padding) gets none.

Knows:      APPNOTE.TXT 6.3.10 (PKWARE).
Is told:    a source that begins with a local file header.
Never asks: what the entries are for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.containers.container import Mishap
from ckptaudit.errors import LimitExceeded, MalformedInput

if TYPE_CHECKING:
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Budget

__all__ = ["SIGNATURE", "Directory", "Entry"]

SIGNATURE = b"PK\3\4"

# Local file header: signature, version needed, flags, method, time, date, crc,
# compressed size, size, name length, extra length.
_LOCAL = struct.Struct("<4s5H3I2H")
# Central directory header: signature, version made by, version needed, flags, method,
# time, date, crc, compressed size, size, name length, extra length, comment length,
# disk, internal attributes, external attributes, local header offset.
_CENTRAL = struct.Struct("<4s6H3I5H2I")
# End of central directory: signature, disk, directory's disk, entries on this disk,
# entries, directory size, directory offset, comment length.
_END = struct.Struct("<4s4H2IH")
# Zip64 end of central directory: signature, size of what follows, version made by,
# version needed, disk, directory's disk, entries on this disk, entries, directory
# size, directory offset.
_END64 = struct.Struct("<4sQ2H2I4Q")
# Zip64 end of central directory locator: signature, disk, offset, disks.
_LOCATOR = struct.Struct("<4sIQI")

_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_HAS_DESCRIPTOR = 0x0008
# The directory is read into memory; an entry takes some 100 bytes.
_MOST_DIRECTORY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in the archive, by its central directory header.

    Attributes:
        name: The name as text, undecodable bytes replaced.
        method: 0 stored, 8 deflated.
        header: Offset of the local header.
        data: Offset of the first byte of data.
        packed: Bytes of data in the archive.
        size: Bytes of data when uncompressed.
        end: Offset just past the data and its descriptor.
        encrypted: Whether the directory says so.  An old torch did not look.
        fault: Why the data cannot be found, or "".  torch looks only at entries it is asked
            for, so one broken entry does not keep it from loading the others.
    """

    name: str
    method: int
    header: int
    data: int
    packed: int
    size: int
    end: int
    encrypted: bool
    fault: str


class Directory:
    """Everything the archive says about itself.

    Attributes:
        entries: In the order of the central directory.
        mishaps: The contradictions found.

    Raises:
        MalformedInput: The directory cannot be read; the archive is truncated or damaged.
        LimitExceeded: It is larger than that of any checkpoint.
    """

    def __init__(self, source: ByteSource, budget: Budget) -> None:
        self.source = source
        self.budget = budget
        self.mishaps: list[Mishap] = []
        self.end = self._find_end()
        count, size, start = self._end_record()
        self.start = start
        self.size = size
        self.entries = self._read_entries(count)
        self._check_names()
        self._check_cover()

    def _odd(self, code: str, message: str, record: str = "", offset: int | None = None) -> None:
        self.mishaps.append(Mishap(code, message, record, offset))

    def _broken(self, message: str, offset: int) -> MalformedInput:
        return MalformedInput(message, where=self.source.name, offset=offset)

    def _find_end(self) -> int:
        """Offset of the end record: the last one, if possible one whose comment ends the file."""
        length = min(self.source.size, _END.size + _MAX16)
        start = self.source.size - length
        tail = self.source.read_at(start, length)
        found = []
        at = tail.rfind(b"PK\5\6")
        while at >= 0:
            if at + _END.size <= length:
                found.append(at)
            at = tail.rfind(b"PK\5\6", 0, at)
        ends = [at for at in found if at + _END.size + _comment_length(tail, at) == length]
        if not found:
            raise self._broken(
                "is a zip archive without an end record: truncated or damaged; fetch it again",
                self.source.size,
            )
        if len(found) > 1:
            self._odd(
                "zip-several-ends",
                f"{len(found)} end-of-directory records; readers disagree about which one counts",
                offset=start + found[-1],
            )
        at = ends[0] if ends else found[0]
        if _comment_length(tail, at):
            self._odd(
                "zip-comment", "an archive comment, which torch never writes", offset=start + at
            )
        if not ends:
            after = start + at + _END.size
            self._odd(
                "zip-gap", f"{self.source.size - after} bytes after the end record", offset=after
            )
        return start + at

    def _end_record(self) -> tuple[int, int, int]:
        """Entries, size and offset of the directory, zip64 record and all."""
        _, disk, first_disk, here, count, size, start, _ = _END.unpack(
            self.source.read_at(self.end, _END.size)
        )
        self.top = self.end
        wide = self._end64()
        if wide is not None:
            for narrow, limit, value in zip(
                (count, size, start), (_MAX16, _MAX32, _MAX32), wide, strict=True
            ):
                if narrow not in (limit, value):
                    self._odd(
                        "zip-end-mismatch",
                        "the 32-bit and the 64-bit end record contradict each other",
                        offset=self.end,
                    )
            count, size, start = wide
            here = count
        if disk or first_disk or here != count:
            self._odd("zip-disks", "claims to be one of several disks", offset=self.end)
        if start + size > self.source.size:
            raise self._broken("the directory reaches past the end of the file", self.end)
        if start + size > self.top:
            self._odd("zip-overlap", "the directory reaches into its end record", offset=self.top)
        elif start + size < self.top:
            self._odd(
                "zip-gap",
                f"{self.top - start - size} bytes between the directory and its end record",
                offset=start + size,
            )
        self.budget.pay_records(count, self.source.name)
        if size > _MOST_DIRECTORY_BYTES:
            raise LimitExceeded(
                f"has a directory of {size} bytes, more than the limit allows",
                where=self.source.name,
            )
        return count, size, start

    def _end64(self) -> tuple[int, int, int] | None:
        """What the zip64 end record says; None if there is none or, as for torch, if it is none."""
        locator_at = self.end - _LOCATOR.size
        if locator_at < _END64.size:
            return None
        signature, _, at, _ = _LOCATOR.unpack(self.source.read_at(locator_at, _LOCATOR.size))
        if signature != b"PK\6\7":
            return None
        if at + _END64.size > self.source.size:
            raise self._broken("the zip64 end record is not where its locator says", locator_at)
        signature, length, _, _, _, _, _, count, size, start = _END64.unpack(
            self.source.read_at(at, _END64.size)
        )
        if signature != b"PK\6\6":
            self._odd(
                "zip-end-mismatch",
                "the zip64 end record is not where its locator says",
                offset=locator_at,
            )
            self.top = locator_at
            return None
        # The length field does not count itself or the signature.
        if at + 12 + length != locator_at:
            self._odd("zip-gap", "bytes between the zip64 end record and its locator", offset=at)
        self.top = min(at, locator_at)
        return count, size, start

    def _read_entries(self, count: int) -> tuple[Entry, ...]:
        directory = self.source.read_at(self.start, self.size)
        entries = []
        at = 0
        for _ in range(count):
            if at + _CENTRAL.size > len(directory) or directory[at : at + 4] != b"PK\1\2":
                raise self._broken(
                    "the directory has fewer entries than it claims", self.start + at
                )
            entry, at = self._read_entry(directory, at)
            entries.append(entry)
        if at != len(directory):
            self._odd("zip-gap", "bytes inside the directory", offset=self.start + at)
        return tuple(entries)

    def _read_entry(self, directory: bytes, at: int) -> tuple[Entry, int]:
        # The named fields are flags, method, crc, packed, size, name length, extra length,
        # comment length, local header offset.
        fields: tuple[int, ...] = _CENTRAL.unpack_from(directory, at)
        flags, method, crc, packed, size = fields[3], fields[4], fields[7], fields[8], fields[9]
        name_length, extra_length, comment_length, header = *fields[10:13], fields[16]
        name_at = at + _CENTRAL.size
        extra_at = name_at + name_length
        end = extra_at + extra_length + comment_length
        if end > len(directory):
            raise self._broken("a directory entry reaches past the directory", self.start + at)
        raw_name = directory[name_at:extra_at]
        name = raw_name.decode("utf-8", "replace")
        packed, size, header = _widen(
            directory[extra_at : extra_at + extra_length], packed, size, header
        )
        if comment_length:
            self._odd("zip-comment", "a comment, which torch never writes", name, self.start + at)
        if flags & _ENCRYPTED:
            self._odd("zip-flags", "the directory says it is encrypted", name, self.start + at)
        if method == 0 and packed != size:
            self._odd("zip-size-mismatch", "stored, but with two different sizes", name, header)
        data = self._data_offset(name, raw_name, fields, header)
        fault = ""
        if data is None:
            fault, data, entry_end = "has no local header", header, header
            self._odd("zip-header", fault, name, header)
        else:
            entry_end = data + packed
            # torch reads as many bytes of a stored entry as its real size says.
            if data + max(packed, 0 if method else size) > self.source.size:
                fault = "has data that reach past the end of the file"
                self._odd("zip-header", fault, name, header)
            elif entry_end > self.start:
                self._odd("zip-overlap", "has data that reach into the directory", name, header)
            elif flags & _HAS_DESCRIPTOR:
                entry_end += self._descriptor_length(entry_end, crc, packed, size)
        encrypted = bool(flags & _ENCRYPTED)
        return Entry(name, method, header, data, packed, size, entry_end, encrypted, fault), end

    def _data_offset(
        self, name: str, raw_name: bytes, central: tuple[int, ...], header: int
    ) -> int | None:
        """Where the data begin, past the local header at *header*; None if there is no such."""
        if header + _LOCAL.size > self.start:
            return None
        local = _LOCAL.unpack(self.source.read_at(header, _LOCAL.size))
        name_length, extra_length = int(local[9]), int(local[10])
        name_at = header + _LOCAL.size
        end = name_at + name_length + extra_length
        if local[0] != SIGNATURE or end > self.start:
            return None
        if self.source.read_at(name_at, name_length) != raw_name:
            self._odd(
                "zip-name-mismatch", "local header and directory differ in name", name, header
            )
        if local[3] != central[4]:
            self._odd(
                "zip-method-mismatch", "local header and directory differ in method", name, header
            )
        # Checksum and sizes; torch writes zeros, zip64 all ones.
        if any(
            here not in (0, _MAX32, there)
            for here, there in zip(local[6:9], central[7:10], strict=True)
        ):
            self._odd(
                "zip-size-mismatch", "local header and directory differ in size", name, header
            )
        if local[2] & ~central[3] & _ENCRYPTED:
            self._odd("zip-flags", "the local header alone says encrypted", name, header)
        return end

    def _descriptor_length(self, at: int, crc: int, packed: int, size: int) -> int:
        """Bytes of the data descriptor at *at*: 16 or 24, 12 or 20 without signature, 0 if none."""
        tail = self.source.read_at(at, min(24, self.start - at))
        forms = (
            struct.pack("<4s3I", b"PK\7\10", crc, packed & _MAX32, size & _MAX32),
            struct.pack("<4sI2Q", b"PK\7\10", crc, packed, size),
            struct.pack("<3I", crc, packed & _MAX32, size & _MAX32),
            struct.pack("<I2Q", crc, packed, size),
        )
        # A size that needs 64 bits cannot be told from its low half: try the wide form first.
        wide_first = (forms[1], forms[0], forms[3], forms[2])
        for form in wide_first if max(packed, size) >= _MAX32 else forms:
            if tail.startswith(form):
                return len(form)
        return 0

    def _check_names(self) -> None:
        seen: dict[str, str] = {}
        for entry in self.entries:
            folded = entry.name.casefold()
            if folded in seen:
                self._odd(
                    "zip-duplicate",
                    "two entries of this name (letter case aside); readers pick different ones",
                    entry.name,
                    entry.header,
                )
            seen[folded] = entry.name
            if "\\" in entry.name or "\0" in entry.name or entry.name.startswith("/"):
                self._odd("zip-name", "a name torch would refuse", entry.name, entry.header)

    def _check_cover(self) -> None:
        """Entries must lie one behind the other from byte 0 to the directory."""
        at = 0
        for entry in sorted(self.entries, key=lambda entry: entry.header):
            if entry.header > at:
                self._odd(
                    "zip-gap", f"{entry.header - at} bytes that belong to no entry", offset=at
                )
            elif entry.header < at:
                self._odd("zip-overlap", "overlaps another entry", entry.name, entry.header)
            at = max(at, entry.end)
        if at < self.start:
            self._odd("zip-gap", f"{self.start - at} bytes that belong to no entry", offset=at)


def _comment_length(tail: bytes, at: int) -> int:
    return int.from_bytes(tail[at + _END.size - 2 : at + _END.size], "little")


def _widen(extra: bytes, packed: int, size: int, header: int) -> tuple[int, int, int]:
    """Replace 32-bit fields that say "see zip64" by those of extra field 0x0001.

    APPNOTE 4.5.3: size, compressed size, offset, in this order, and only those whose
    32-bit field is all ones.
    """
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if tag == 1:
            wide = [body[i : i + 8] for i in range(0, len(body) - 7, 8)]
            values = iter([int.from_bytes(part, "little") for part in wide])
            size = next(values, size) if size == _MAX32 else size
            packed = next(values, packed) if packed == _MAX32 else packed
            header = next(values, header) if header == _MAX32 else header
            break
    return packed, size, header
