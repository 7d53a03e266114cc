"""How files begin that are compressed as a whole.

Knows:      how gzip, bzip2, xz, zlib and lzma begin, and how each puts streams behind each other.
Is told:    a source.
Never asks: what comes out (`compressed`, which few files need).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptaudit.source import ByteSource

__all__ = ["LONGEST_HEAD", "Packing", "is_compressed", "may_be_compressed", "packings_of"]

# Bytes by which each of them is known.
LONGEST_HEAD = 16
# RFC 1952, 2.3.1: the upper three flags are reserved.
_GZIP_RESERVED = 0xE0
# RFC 1950, 2.2: 8 is deflate, its window has up to 2^15 bytes; a preset dictionary is nowhere.
_ZLIB_DEFLATE = 8
_ZLIB_MOST_WINDOW = 7
_ZLIB_DICTIONARY = 0x20
# lzma/7zC.txt: lc + 9 * (lp + 5 * pb), so less than 9 * 5 * 5.
_LZMA_PROPERTIES = 225
_LZMA_LEAST_DICTIONARY = 1 << 12
_LZMA_MOST_DICTIONARY = 0xFFFFFFFF


class Packing(NamedTuple):
    """One way to compress a file.

    Attributes:
        name: What it is called.
        begins: Whether a stream may begin so.
        is_sure: Whether nothing else begins so; else it is known by coming to its end.
        repeats: Whether several streams behind each other are one file.
        padding: Zeros between them come in multiples of so many; 0 if there may be none.
    """

    name: str
    begins: Callable[[bytes], bool]
    is_sure: bool = True
    repeats: bool = True
    padding: int = 0


def _begins_gzip(head: bytes) -> bool:
    return head.startswith(b"\x1f\x8b\x08") and (len(head) < 4 or not head[3] & _GZIP_RESERVED)  # noqa: PLR2004 - the flags, if they are there


def _begins_bzip2(head: bytes) -> bool:
    # The block size, then the digits of pi before a block or those of its root at the end.
    marks = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
    return head[:3] == b"BZh" and head[3:4] in b"123456789" and head[4:10] in marks


def _begins_xz(head: bytes) -> bool:
    return head.startswith(b"\xfd7zXZ\0")


def _begins_zlib(head: bytes) -> bool:
    if len(head) < 2:  # noqa: PLR2004 - the header
        return False
    method, flags = head[0], head[1]
    return (
        method & 15 == _ZLIB_DEFLATE
        and method >> 4 <= _ZLIB_MOST_WINDOW
        and not flags & _ZLIB_DICTIONARY
        and (method << 8 | flags) % 31 == 0
    )


def _begins_lzma(head: bytes) -> bool:
    """Properties, the size of the dictionary, which every writer rounds, and a size or none."""
    dictionary = int.from_bytes(head[1:5], "little")
    least_bit = dictionary & -dictionary
    return (
        len(head) > 13  # noqa: PLR2004 - the header, and at least one byte
        and head[0] < _LZMA_PROPERTIES
        and dictionary >= _LZMA_LEAST_DICTIONARY
        and (dictionary in (least_bit, 3 * least_bit) or dictionary == _LZMA_MOST_DICTIONARY)
        and (head[5:13] == b"\xff" * 8 or head[10:13] == bytes(3))
    )


_PACKINGS = (
    Packing("gzip", _begins_gzip, padding=1),
    Packing("bzip2", _begins_bzip2),
    Packing("xz", _begins_xz, padding=4),
    Packing("zlib", _begins_zlib, is_sure=False, repeats=False),
    Packing("lzma", _begins_lzma, is_sure=False, repeats=False),
)


def is_compressed(source: ByteSource) -> bool:
    """Whether *source* begins with the signature of a compressed file."""
    return any(packing.is_sure for packing in packings_of(source))


def may_be_compressed(source: ByteSource) -> bool:
    """Whether *source* begins as a compressed file might that has no signature."""
    return bool(packings_of(source))


def packings_of(source: ByteSource) -> list[Packing]:
    """The ways in which *source* may be compressed, by how it begins."""
    head = source.read_at(0, min(LONGEST_HEAD, source.size))
    return [packing for packing in _PACKINGS if packing.begins(head)]
