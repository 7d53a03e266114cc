"""One block of a tar archive: whether it is a header.

Knows:      the checksum of a header, and how tarfile reads numbers.
Is told:    a source, or a block of it.
Never asks: what the header says (`tarmembers`, which few files need).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptaudit.source import ByteSource

__all__ = ["BLOCK", "CHECKSUM", "checksum_fits", "has_tar_header", "number"]

BLOCK = 512
# Where in a header its checksum stands.
CHECKSUM = (148, 156)


def has_tar_header(source: ByteSource) -> bool:
    """Whether *source* begins with a tar header whose checksum is right."""
    return source.size >= BLOCK and checksum_fits(source.read_at(0, BLOCK))


def checksum_fits(block: bytes) -> bool:
    """Whether *block* holds the sum of its other bytes."""
    start, stop = CHECKSUM
    stated = number(block[start:stop])
    # The checksum is taken with its own eight bytes as spaces; some old tars summed signed bytes.
    rest = block[:start] + block[stop:]
    unsigned = sum(rest) + 8 * ord(" ")
    return stated in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest))  # noqa: PLR2004 - what a signed byte has room for


def number(field: bytes) -> int | None:
    """A number as tarfile.nti reads it, as lax as that is; None if it is none.

    A header that tarfile takes and we do not would hide an archive.
    """
    if field[:1] in (b"\x80", b"\xff"):
        negative = 256 ** (len(field) - 1) if field[:1] == b"\xff" else 0
        return int.from_bytes(field[1:], "big") - negative
    try:
        # As text: of bytes, int() and strip() know fewer kinds of white space.
        return int(field.split(b"\0", 1)[0].decode("ascii").strip() or "0", 8)
    except ValueError:
        return None
