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

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.containers.container import Mishap, Use
from ckptaudit.errors import LimitExceeded, MalformedInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptaudit.containers.ledger import Ledger
    from ckptaudit.containers.zipend import DirectoryPlace
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
_MAX16, _MAX32, _MAX64 = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
# Data descriptor: an optional signature, crc, compressed size, size; what the sizes are cut to.
_DESCRIPTOR_MARK = b"PK\7\10"
_NARROW_SIZES = struct.Struct("<3I"), _MAX32
_WIDE_SIZES = struct.Struct("<I2Q"), _MAX64
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_HAS_DESCRIPTOR = 0x0008
# How well it was compressed, descriptor, UTF-8: what writers of checkpoints and packers set.
# For each of the other bits there is a reader that refuses the entry.
_KNOWN_FLAGS = 0x0006 | _HAS_DESCRIPTOR | 0x0800
# zipfile.py, MAX_EXTRACT_VERSION: it refuses what needs more.
_NEWEST_VERSION = 63
# As MS-DOS had it.  Of such an entry miniz says that it was read, and leaves the memory as it was
# (mz_zip_reader_extract_to_mem_no_alloc).
_FOLDER = 0x10
# Extra fields: zip64; Info-ZIP's Unicode path (APPNOTE 4.6.9), which newer readers take for
# the name; and the one that torch fills up with 'Z' to align the data
# (caffe2/serialize/inline_container.cc, getPadding).
_WIDE, _PATH, _ALIGNMENT = 0x0001, 0x7075, int.from_bytes(b"FB", "little")
_PADDING = b"Z" * _MAX16
_USUAL_EXTRA = 4 + 63
# The directory is read into memory; an entry takes some 100 bytes.
_MOST_DIRECTORY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, eq=False)
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
        crc: Checksum of the uncompressed data, as stated.
        encrypted: Whether the directory says so.  An old torch did not look.
        fault: Why the data cannot be found, or "".  torch looks only at entries it is asked
            for, so one broken entry does not keep it from loading the others.
        is_cut: Whether the file ends before the data do.
    """

    name: str
    method: int
    header: int
    data: int
    packed: int
    size: int
    end: int
    crc: int
    encrypted: bool = False
    fault: str = ""
    is_cut: bool = False

    @property
    def length(self) -> int | None:
        """Bytes from its local header to the end of its data; None if nobody can tell."""
        return None if self.fault else self.data + self.packed - self.header


class Directory:
    """Everything the archive says about its entries.

    Attributes:
        entries: In the order of the central directory.

    Args:
        source: The archive.
        place: Where its directory is.
        ledger: Told which bytes are headers and names, and what is odd in them.
        budget: Pays for the entries.

    Raises:
        MalformedInput: The directory cannot be read; the archive is truncated or damaged.
        LimitExceeded: It is larger than that of any checkpoint.
    """

    def __init__(
        self, source: ByteSource, place: DirectoryPlace, ledger: Ledger, budget: Budget
    ) -> None:
        self.source = source
        self.ledger = ledger
        count, size, self.start = place
        if count * _CENTRAL.size > size:
            # Nobody pays for what cannot be there: another reader may see fewer.
            raise self._broken("the directory has fewer entries than it claims", self.start)
        budget.pay_records(count, source.name)
        if size > _MOST_DIRECTORY_BYTES:
            raise LimitExceeded(
                f"has a directory of {size} bytes, more than the limit allows", where=source.name
            )
        self.entries = self._read_entries(count, source.read_at(self.start, size))
        self._check_names()
        self._check_overlap()

    def _odd(self, code: str, message: str, record: str, offset: int) -> None:
        self.ledger.mishaps.append(Mishap(code, message, record, offset))

    def _broken(self, message: str, offset: int) -> MalformedInput:
        return MalformedInput(message, where=self.source.name, offset=offset)

    def _read_entries(self, count: int, directory: bytes) -> tuple[Entry, ...]:
        entries = []
        at = 0
        # Claimed in one piece, but for what is disowned in between.
        self.claimed = self.start
        for _ in range(count):
            if at + _CENTRAL.size > len(directory) or directory[at : at + 4] != b"PK\1\2":
                raise self._broken(
                    "the directory has fewer entries than it claims", self.start + at
                )
            entry, at = self._read_entry(directory, at)
            entries.append(entry)
        self.ledger.claim(self.claimed, self.start + at, Use.STRUCTURE)
        return tuple(entries)

    def _read_entry(self, directory: bytes, at: int) -> tuple[Entry, int]:
        # The named fields are flags, method, crc, packed, size, name length, extra length,
        # comment length, local header offset.
        fields: tuple[int, ...] = _CENTRAL.unpack_from(directory, at)
        flags, method, crc, packed, size = fields[3], fields[4], fields[7], fields[8], fields[9]
        name_length, extra_length, comment_length, header = *fields[10:13], fields[16]
        name_at = at + _CENTRAL.size
        extra_at = name_at + name_length
        comment_at = extra_at + extra_length
        end = comment_at + comment_length
        if end > len(directory):
            # torch refuses it; zipfile takes as much of it as there is.
            message = "a directory entry reaches past the directory"
            self._odd("zip-header", message, "", self.start + at)
            end = len(directory)
            extra_at, comment_at = min(extra_at, end), min(comment_at, end)
        raw_name = directory[name_at:extra_at]
        name = raw_name.decode("utf-8", "replace")
        if comment_at > extra_at:
            extra = directory[extra_at:comment_at]
            wide = 8 * (packed, size, header).count(_MAX32)
            packed, size, header = _widen(extra, packed, size, header)
            strange = _strange_fields(extra, (_WIDE,), lambda body: len(body) == wide)
            self.claimed = self._disown_fields(name, strange, self.claimed, self.start + extra_at)
        if end > comment_at:
            where = self.start + comment_at
            self.ledger.claim(self.claimed, where, Use.STRUCTURE)
            self.claimed = self.start + end
            message = "a comment, which torch never writes"
            self.ledger.disown(where, self.claimed, "zip-comment", message, name)
        self._check_header(name, fields, self.start + at)
        if method == 0 and packed != size:
            self._odd("zip-size-mismatch", "stored, but with two different sizes", name, header)
        wanted = (packed, size, header)
        data = self._data_offset(name, raw_name, fields, wanted)
        if data is None:
            fault = "has no local header"
            self._odd("zip-header", fault, name, header)
            return Entry(name, method, header, header, packed, size, header, crc, fault=fault), end
        entry_end = data + packed
        # torch reads as many bytes of a stored entry as its real size says.
        is_cut = data + max(packed, 0 if method else size) > self.source.size
        if is_cut:
            message = "has data that reach past the end of the file"
            self._odd("zip-header", message, name, header)
        elif entry_end > self.start:
            self._odd("zip-overlap", "has data that reach into the directory", name, header)
        elif flags & _HAS_DESCRIPTOR:
            entry_end += self._descriptor_length(entry_end, crc, packed, size)
            self.ledger.claim(data + packed, entry_end, Use.STRUCTURE)
        encrypted = bool(flags & _ENCRYPTED)
        entry = Entry(
            name, method, header, data, packed, size, entry_end, crc, encrypted, is_cut=is_cut
        )
        return entry, end

    def _check_header(self, name: str, fields: tuple[int, ...], at: int) -> None:
        """Fields of the header at *at* by which one reader refuses what others read."""
        needed, flags = fields[2:4]
        packed, size = fields[8:10]
        disk, attributes = fields[13], fields[15]
        if flags & ~_KNOWN_FLAGS:
            self._odd("zip-flags", _flags(flags, "the directory"), name, at)
        if needed & 0xFF > _NEWEST_VERSION:
            self._odd("zip-flags", f"needs version {needed & 0xFF} of a reader", name, at)
        if disk:
            self._odd("zip-disks", "lies on another disk", name, at)
        if (packed or size) and (attributes & _FOLDER or name.endswith("/")):
            self._odd("zip-header", "is a folder, and torch does not look at its data", name, at)

    def _data_offset(
        self, name: str, raw_name: bytes, central: tuple[int, ...], wanted: tuple[int, int, int]
    ) -> int | None:
        """Where the data begin, past the local header; None if there is no such.

        Args:
            name: The entry's name.
            raw_name: The bytes of it.
            central: The fields of its header in the directory.
            wanted: Its packed and real size and the offset of its local header, in full.
        """
        header = wanted[2]
        if header + _LOCAL.size > self.start:
            return None
        # In one go, with as much of an extra field as torch needs to align the data.
        guess = min(_LOCAL.size + len(raw_name) + _USUAL_EXTRA, self.start - header)
        head = self.source.read_at(header, guess)
        local = _LOCAL.unpack_from(head)
        name_length, extra_length = int(local[9]), int(local[10])
        extra_at = header + _LOCAL.size + name_length
        end = extra_at + extra_length
        if local[0] != SIGNATURE or end > self.start:
            return None
        if end - header > len(head):
            head = self.source.read_at(header, end - header)
        text = head[_LOCAL.size : end - header]
        if text[:name_length] != raw_name:
            self._odd(
                "zip-name-mismatch", "local header and directory differ in name", name, header
            )
        if local[3] != central[4]:
            self._odd(
                "zip-method-mismatch", "local header and directory differ in method", name, header
            )
        # Checksum and sizes; torch writes zeros, zip64 all ones.
        stated = local[6:9]
        if any(stated) and any(
            here not in (0, _MAX32, there)
            for here, there in zip(stated, central[7:10], strict=True)
        ):
            self._odd(
                "zip-size-mismatch", "local header and directory differ in size", name, header
            )
        if local[2] & ~central[3] & ~_KNOWN_FLAGS:
            self._odd("zip-flags", _flags(local[2], "the local header alone"), name, header)
        extra = text[name_length:]
        claimed = header
        if not _is_padding(extra):
            # Where the directory's fields are too narrow torch writes wide ones here too, some
            # of them zero as long as it does not know.
            known = {number.to_bytes(8, "little") for number in (0, *wanted)}
            strange = _strange_fields(
                extra, (_WIDE, _ALIGNMENT), lambda body: {*_eights(body)} <= known
            )
            claimed = self._disown_fields(name, strange, header, extra_at)
        self.ledger.claim(claimed, end, Use.STRUCTURE)
        return end

    def _disown_fields(
        self, name: str, strange: Iterator[tuple[int, int, int]], claimed: int, extra_at: int
    ) -> int:
        """Claim the header of entry *name* from *claimed* on, and none of its *strange* fields.

        Returns:
            The offset up to which that was said.
        """
        for start, stop, tag in strange:
            self.ledger.claim(claimed, extra_at + start, Use.STRUCTURE)
            claimed = extra_at + stop
            message = "an extra field that torch does not write"
            self.ledger.disown(extra_at + start, claimed, "zip-gap", message, name)
            if tag == _PATH:
                message = "has a second name, by which other readers call it"
                self._odd("zip-name-mismatch", message, name, extra_at + start)
        return claimed

    def _descriptor_length(self, at: int, crc: int, packed: int, size: int) -> int:
        """Bytes of the data descriptor at *at*: 16 or 24, 12 or 20 without signature, 0 if none."""
        tail = self.source.read_at(at, min(24, self.start - at))
        # A size that needs 64 bits cannot be told from its low half: try the wide form first.
        widths = (_WIDE_SIZES, _NARROW_SIZES)
        widths = widths if max(packed, size) >= _MAX32 else widths[::-1]
        for mark in (_DESCRIPTOR_MARK, b""):
            for numbers, mask in widths:
                form = mark + numbers.pack(crc, packed & mask, size & mask)
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
            if ".." in entry.name and ".." in re.split(r"[/\\]", entry.name):
                message = "a name that, as a path, leads somewhere else"
                self._odd("zip-name", message, entry.name, entry.header)

    def _check_overlap(self) -> None:
        """Entries must lie one behind the other."""
        at = 0
        for entry in sorted(self.entries, key=lambda entry: entry.header):
            if entry.header < at:
                self._odd("zip-overlap", "overlaps another entry", entry.name, entry.header)
            at = max(at, entry.end)


def _flags(flags: int, who: str) -> str:
    if flags & _ENCRYPTED:
        return f"{who} says it is encrypted"
    return f"{who} sets bits that some readers refuse: 0x{flags & ~_KNOWN_FLAGS:x}"


def _is_padding(extra: bytes) -> bool:
    """Whether *extra* is the one field by which torch aligns the data that follow."""
    body = len(extra) - 4
    return body >= 0 and extra == struct.pack("<2H", _ALIGNMENT, body) + _PADDING[:body]


def _eights(body: bytes) -> Iterator[bytes]:
    return (body[at : at + 8] for at in range(0, len(body), 8))


def _strange_fields(
    extra: bytes, tags: tuple[int, ...], is_wide: Callable[[bytes], bool]
) -> Iterator[tuple[int, int, int]]:
    """Where in *extra* each field lies that is not one of *tags* as torch fills it; and its tag.

    The rest behind the last whole field is one as well, of tag 0.
    """
    at = 0
    while at < len(extra):
        tag, length = struct.unpack_from("<2H", extra, at) if at + 4 <= len(extra) else (0, 0)
        body = extra[at + 4 : at + 4 + length]
        stop = at + 4 + length
        if stop > len(extra):
            tag, stop = 0, len(extra)
        is_known = tag in tags and (
            body == _PADDING[:length] if tag == _ALIGNMENT else is_wide(body)
        )
        if is_known:
            # The first one counts, and another would be as free as any.
            tags = tuple(other for other in tags if other != tag)
        else:
            yield at, stop, tag
        at = stop


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
            values = iter([int.from_bytes(part, "little") for part in _eights(body) if part[7:]])
            size = next(values, size) if size == _MAX32 else size
            packed = next(values, packed) if packed == _MAX32 else packed
            header = next(values, header) if header == _MAX32 else header
            break
    return packed, size, header
