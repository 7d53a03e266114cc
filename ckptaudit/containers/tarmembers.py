"""The members of a tar archive, listed without extracting or trusting anything.

Python's tarfile, which torch used, recurses on chains of extended headers, loops on
negative sizes and takes a damaged header for the end.  Here every block is a plain file,
a pax header for one, or the end; anything else is a fault, and unless it is one without
data, such as a link, listing stops there.

Knows:      POSIX.1-2017 pax, "ustar Interchange Format"; Lib/tarfile.py for what it writes.
Is told:    a source that begins with a tar header.
Never asks: what the members are for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.containers.container import Gap, Mishap, Use
from ckptaudit.containers.tarheader import BLOCK, CHECKSUM, checksum_fits, number
from ckptaudit.wording import counted, left

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.containers.ledger import Ledger
    from ckptaudit.source import ByteSource

__all__ = ["TarMember", "list_members"]

_TYPE = 156
_PLAIN = (0, ord("0"))
_PAX = ord("x")
# Links, devices, directories and pipes: whatever size they state, no data follow.
_WITHOUT_DATA = b"123456"
# tarfile writes a few dozen bytes into a pax header: a time with a fraction, a long path.
_MOST_PAX_BYTES = 4096
_MOST_MEMBERS = 1000
_PAX_LINE = re.compile(rb"([1-9][0-9]{0,3}) ([^=\n]+)=")
# What of an extended header is for us, and what tarfile writes for a time or an odd owner.
_PAX_VALUES = {
    "path": re.compile(r"[^\0-\x1f\x7f]*"),
    "size": re.compile(r"[0-9]{1,19}"),
    "mtime": re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,20})?"),
    "atime": re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,20})?"),
    "ctime": re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,20})?"),
}

# A number is written in octal digits; tarfile ends it with a NUL, others with spaces too.
_OCTAL = re.compile(rb"[ ]*[0-7]*[ \0]*")
# A larger one is binary, big-endian, the first bit of the field set.  No real owner, size or
# time fills all of it.
_NUMBER = re.compile(rb"[ ]*[0-7]*[ \0]*|\x80[\0]*.{,5}", re.DOTALL)
_NAME = re.compile(rb"[^\0-\x1f\x7f]*\0*")
_ZEROS = re.compile(rb"\0*")
# The fields of a header, in order, and what stands in each; the padding at the end as well.
_FIELDS = {
    "name": (0, 100, _NAME),
    "mode": (100, 108, _OCTAL),
    "uid": (108, 116, _NUMBER),
    "gid": (116, 124, _NUMBER),
    "size": (124, 136, _NUMBER),
    "mtime": (136, 148, _NUMBER),
    "checksum": (*CHECKSUM, _OCTAL),
    "link": (157, 257, _ZEROS),
    "magic": (257, 265, re.compile(rb"ustar\x0000|ustar  \0|\0{8}")),
    "owner": (265, 297, _NAME),
    "group": (297, 329, _NAME),
    "device": (329, 345, re.compile(rb"[0 \0]*")),
    "prefix": (345, 500, _NAME),
    "padding": (500, 512, _ZEROS),
}
_SLICES = {name: slice(start, stop) for name, (start, stop, _) in _FIELDS.items()}


@dataclass(frozen=True, slots=True)
class TarMember:
    """A plain file in the archive.

    Attributes:
        name: As its header, or the pax header before it, says.
        header: Offset of its first header in the file.
        data: Offset of its first byte.
        size: Bytes.
    """

    name: str
    header: int
    data: int
    size: int

    @property
    def end(self) -> int:
        """Offset just past its last byte."""
        return self.data + self.size


class _Fault(Exception):
    """The block at hand cannot be followed."""


def list_members(source: ByteSource, ledger: Ledger) -> tuple[TarMember, ...]:
    """Follow the headers of the archive in *source* to its end or the first fault.

    The ledger is told of the headers, of the zeros between the members, and of what is
    neither.
    """
    members: list[TarMember] = []
    at = 0
    while at + BLOCK <= source.size and len(members) < _MOST_MEMBERS:
        block = source.read_at(at, BLOCK)
        if not any(block):
            ledger.claim_zeros(at, source.size)
            return tuple(members)
        try:
            if checksum_fits(block) and _is_without_data(block):
                # It is not followed: a loader that did would read another file.
                message = "has a member that is no plain file"
                ledger.disown(at, at + BLOCK, "tar-gap", message, _name(block))
                at += BLOCK
                continue
            member = _read_member(source, at, ledger)
        except _Fault as err:
            ledger.disown(at, source.size, "tar-gap", str(err))
            return tuple(members)
        members.append(member)
        at = member.end + -member.size % BLOCK
        ledger.claim_zeros(member.end, min(at, source.size))
    if len(members) < _MOST_MEMBERS:
        message = "ends without the empty block that ends an archive"
        end = min(at, source.size)
        ledger.mishaps.append(Mishap("tar-gap", message, "", end))
        ledger.gaps.append(Gap(message, "", end))
    return tuple(members)


def _read_member(source: ByteSource, header: int, ledger: Ledger) -> TarMember:
    """The member whose first header is at *header*; only a whole one is told to the ledger."""
    at = header
    block = _read_header(source, at)
    pax: dict[str, tuple[str, int, int]] = {}
    heads = [(at, block)]
    extended = range(at, at)
    if block[_TYPE] == _PAX:
        length = _size(block)
        if not 0 < length <= min(_MOST_PAX_BYTES, source.size - at - BLOCK):
            raise _Fault("has an extended header of a strange length")
        extended = range(at + BLOCK, at + BLOCK + length)
        pax = _read_pax(source.read_at(extended.start, length))
        at = extended.stop + -length % BLOCK
        block = _read_header(source, at)
        heads.append((at, block))
    if block[_TYPE] not in _PLAIN or _is_without_data(block):
        raise _Fault("has a member that is no plain file")
    size = _decimal(pax["size"][0]) if "size" in pax else _size(block)
    data = at + BLOCK
    if size > source.size - data:
        raise _Fault(
            f"has a member of {counted(size, 'byte')} where {left(source.size - data)}; "
            "the file is truncated: fetch it again"
        )
    name = pax["path"][0].rstrip("/") if "path" in pax else _name(block)
    member = TarMember(name, header, data, size)
    for start, head in heads:
        _account(ledger, start, start + BLOCK, _strange_fields(head), member.name)
    _account(ledger, extended.start, extended.stop, _strange_records(pax), member.name)
    if extended:
        ledger.claim_zeros(extended.stop, at)
    return member


def _account(
    ledger: Ledger, start: int, stop: int, strange: Iterator[tuple[int, int, str]], name: str
) -> None:
    """Claim the header in ``[start, stop)``, and none of its *strange* parts."""
    at = start
    for first, last, what in strange:
        ledger.claim(at, start + first, Use.STRUCTURE)
        at = start + last
        message = f"has something in the {what} of its header that no writer puts there"
        ledger.disown(start + first, at, "tar-gap", message, name)
    ledger.claim(at, stop, Use.STRUCTURE)


def _strange_fields(block: bytes) -> Iterator[tuple[int, int, str]]:
    for name, (start, stop, form) in _FIELDS.items():
        if not form.fullmatch(block, start, stop):
            yield start, stop, name


def _strange_records(pax: dict[str, tuple[str, int, int]]) -> Iterator[tuple[int, int, str]]:
    for key, (text, start, stop) in pax.items():
        form = _PAX_VALUES.get(key)
        if form is None or not form.fullmatch(text):
            yield start, stop, "extension"


def _read_header(source: ByteSource, at: int) -> bytes:
    block = source.read_at(at, BLOCK) if at + BLOCK <= source.size else b""
    if not checksum_fits(block):
        raise _Fault("has a damaged header")
    return block


def _is_without_data(block: bytes) -> bool:
    """Whether the header in *block* is followed by the next one, whatever size it states.

    Before there was a type for directories they were plain files whose name ends in a slash.
    """
    name = block[_SLICES["name"]].split(b"\0", 1)[0]
    return block[_TYPE] in _WITHOUT_DATA or (block[_TYPE] == 0 and name.endswith(b"/"))


def _size(block: bytes) -> int:
    size = number(block[_SLICES["size"]])
    if size is None or size < 0:
        raise _Fault("has a member whose size is no number")
    return size


def _decimal(text: str) -> int:
    if not _PAX_VALUES["size"].fullmatch(text):
        raise _Fault("has a member whose size is no number")
    return int(text)


def _name(block: bytes) -> str:
    parts = [block[_SLICES["name"]]]
    prefix = block[_SLICES["prefix"]]
    if prefix[:1] != b"\0":
        parts.insert(0, prefix)
    return "/".join(part.split(b"\0", 1)[0].decode("utf-8", "replace") for part in parts)


def _read_pax(data: bytes) -> dict[str, tuple[str, int, int]]:
    """Records ``length key=value newline``, the length counting all of itself.

    Returns:
        For each key its value, and where in *data* the record begins and ends.
    """
    found: dict[str, tuple[str, int, int]] = {}
    at = 0
    while at < len(data):
        match = _PAX_LINE.match(data, at)
        end = at + int(match.group(1)) if match else 0
        if not match or not match.end() < end <= len(data) or data[end - 1] != ord("\n"):
            raise _Fault("has a damaged extended header")
        key = match.group(2).decode("utf-8", "replace")
        if key.startswith("GNU.") or key == "hdrcharset" or key in found:
            raise _Fault(f"has an extended header with {key!r}, which torch never wrote")
        found[key] = data[match.end() : end - 1].decode("utf-8", "replace"), at, end
        at = end
    return found
