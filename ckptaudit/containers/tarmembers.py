"""The members of a tar archive, listed without extracting or trusting anything.

Python's tarfile, which torch used, recurses on chains of extended headers, loops on
negative sizes and takes a damaged header for the end.  Here every block is a plain file,
a pax header for one, or the end; anything else is a fault, and listing stops there.

Knows:      POSIX.1-2017 pax, "ustar Interchange Format"; Lib/tarfile.py for what it writes.
Is told:    a source that begins with a tar header.
Never asks: what the members are for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptaudit.source import ByteSource

__all__ = ["TarListing", "TarMember", "has_tar_header", "list_members"]

_BLOCK = 512
# name 0-100, mode, uid, gid, size 124-136, mtime, checksum 148-156, type 156, link name,
# magic 257, version, owner, group, device, prefix 345-500.
_NAME, _SIZE, _CHECKSUM, _PREFIX = slice(0, 100), slice(124, 136), slice(148, 156), slice(345, 500)
_MAGIC = slice(257, 262)
_TYPE = 156
_PLAIN = (0, ord("0"))
_PAX = ord("x")
# tarfile writes a few dozen bytes into a pax header: a time with a fraction.
_MOST_PAX_BYTES = 4096
_MOST_MEMBERS = 1000
_CHUNK = 1 << 18
_PAX_LINE = re.compile(rb"([1-9][0-9]{0,3}) ([^=\n]+)=")


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


@dataclass(frozen=True, slots=True)
class TarListing:
    """What an archive holds, as far as it can be followed.

    Attributes:
        members: In file order.
        faults: What is no plain file, no padding and no end, with its offset.
    """

    members: tuple[TarMember, ...]
    faults: tuple[tuple[str, int], ...]


class _Fault(Exception):
    """The block at hand cannot be followed."""


def has_tar_header(source: ByteSource) -> bool:
    """Whether *source* begins with a tar header whose checksum is right."""
    return source.size >= _BLOCK and _checksum_fits(source.read_at(0, _BLOCK))


def list_members(source: ByteSource) -> TarListing:
    """Follow the headers of the archive in *source* to its end or the first fault."""
    members: list[TarMember] = []
    faults: list[tuple[str, int]] = []
    at = 0
    try:
        while (member := _next_member(source, at)) and len(members) < _MOST_MEMBERS:
            members.append(member)
            at = member.end + -member.size % _BLOCK
            faults += _only_zeros(source, member.end, min(at, source.size))
    except _Fault as err:
        faults.append((str(err), at))
    else:
        faults += _only_zeros(source, at, source.size)
    return TarListing(tuple(members), tuple(faults))


def _next_member(source: ByteSource, at: int) -> TarMember | None:
    """The member whose header is at *at*, or None where an empty block ends the archive."""
    if at + _BLOCK > source.size:
        raise _Fault("ends without the empty block that ends an archive")
    return _read_member(source, at) if any(source.read_at(at, _BLOCK)) else None


def _read_member(source: ByteSource, header: int) -> TarMember:
    at = header
    block = _read_header(source, at)
    pax: dict[str, str] = {}
    if block[_TYPE] == _PAX:
        length = _size(block)
        if not 0 < length <= min(_MOST_PAX_BYTES, source.size - at - _BLOCK):
            raise _Fault("has an extended header of a strange length")
        pax = _read_pax(source.read_at(at + _BLOCK, length))
        at += _BLOCK + length + -length % _BLOCK
        block = _read_header(source, at)
    if block[_TYPE] not in _PLAIN:
        raise _Fault("has a member that is no plain file")
    size = _decimal(pax["size"]) if "size" in pax else _size(block)
    data = at + _BLOCK
    if size > source.size - data:
        raise _Fault(
            f"has a member of {size} bytes where {source.size - data} are left; "
            "the file is truncated: fetch it again"
        )
    return TarMember(pax.get("path", _name(block)), header, data, size)


def _read_header(source: ByteSource, at: int) -> bytes:
    block = source.read_at(at, _BLOCK) if at + _BLOCK <= source.size else b""
    if not _checksum_fits(block):
        raise _Fault("has a damaged header")
    return block


def _checksum_fits(block: bytes) -> bool:
    stated = _octal(block[_CHECKSUM])
    # The checksum is taken with its own eight bytes as spaces; some old tars summed signed bytes.
    rest = block[: _CHECKSUM.start] + block[_CHECKSUM.stop :]
    unsigned = sum(rest) + 8 * ord(" ")
    return stated in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest))  # noqa: PLR2004


def _octal(field: bytes) -> int | None:
    # As lax as tarfile.nti, or a header that it takes would not be one to us.
    try:
        return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        return None


def _size(block: bytes) -> int:
    field = block[_SIZE]
    # Sizes from 8 GiB on: the first bit set, then a big-endian number.
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)  # noqa: PLR2004
    if size is None or size < 0:
        raise _Fault("has a member whose size is no number")
    return size


def _decimal(text: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text):
        raise _Fault("has a member whose size is no number")
    return int(text)


def _name(block: bytes) -> str:
    parts = [block[_NAME]]
    if block[_MAGIC] == b"ustar" and block[_PREFIX.start]:
        parts.insert(0, block[_PREFIX])
    return "/".join(part.split(b"\0", 1)[0].decode("utf-8", "replace") for part in parts)


def _read_pax(data: bytes) -> dict[str, str]:
    """Records ``length key=value newline``, the length counting all of itself."""
    found = {}
    while data:
        match = _PAX_LINE.match(data)
        length = int(match.group(1)) if match else 0
        if not match or not match.end() < length <= len(data) or data[length - 1] != ord("\n"):
            raise _Fault("has a damaged extended header")
        key = match.group(2).decode("utf-8", "replace")
        if key.startswith("GNU.") or key == "hdrcharset" or key in found:
            raise _Fault(f"has an extended header with {key!r}, which torch never wrote")
        found[key] = data[match.end() : length - 1].decode("utf-8", "replace")
        data = data[length:]
    return found


def _only_zeros(source: ByteSource, start: int, stop: int) -> list[tuple[str, int]]:
    """A fault for the first byte in ``[start, stop)`` that is not zero."""
    for at in range(start, stop, _CHUNK):
        piece = source.read_at(at, min(_CHUNK, stop - at))
        rest = piece.lstrip(b"\0")
        if rest:
            return [("has bytes that belong to no member", at + len(piece) - len(rest))]
    return []
