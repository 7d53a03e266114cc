"""How files begin, and what to say of those that are no checkpoints.

Knows:      the signatures of formats that are often found under a checkpoint's name.
Is told:    the first bytes of a file.
Never asks: what is behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptaudit.source import ByteSource

__all__ = ["ARCHIVED", "NUMPY", "SEVEN_ZIP", "head_of", "what_it_is"]

NUMPY = b"\x93NUMPY"
SEVEN_ZIP = b"7z\xbc\xaf\x27\x1c"

_LONGEST = 64
# What nothing of ours looks into; letter case and white space before it do not count.
_OTHERS = (
    (b"<!doctype html", "an HTML page; the download went wrong: fetch the file itself"),
    (b"<html", "an HTML page; the download went wrong: fetch the file itself"),
    (b"<?xml", "an XML document, often a server's error message; fetch the file again"),
    (b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull` to get the file itself"),
    (b'{"', "JSON text, not a checkpoint; often a server's error message: fetch the file again"),
    (b"\x89png\r\n", "a PNG image, not a checkpoint"),
    (b"\xff\xd8\xff", "a JPEG image, not a checkpoint"),
    (b"gguf", "a GGUF model; it holds no pickle and needs no conversion by us"),
    (b"\x89hdf\r\n", "an HDF5 file, not a torch checkpoint"),
    (b"pk\5\6", "an empty zip archive, not a checkpoint"),
)
# What may hold a checkpoint, but is not read without more than Python brings: what to say
# of it.  A zstandard decoder skips frames of the second kind.
ARCHIVED = {
    b"\x04\x22\x4d\x18": "lz4-compressed; uncompress it first",
    b"\x02\x21\x4c\x18": "lz4-compressed; uncompress it first",
    b"\x28\xb5\x2f\xfd": "zstandard-compressed; uncompress it first",
    b"\x50\x2a\x4d\x18": "zstandard-compressed; uncompress it first",
    b"Rar!\x1a\x07": "a RAR archive; unpack it first",
}


def head_of(source: ByteSource) -> bytes:
    """As many of the first bytes as any beginning here has."""
    return source.read_at(0, min(_LONGEST, source.size))


def what_it_is(head: bytes) -> str:
    """What a file that begins with *head* is, if that is no checkpoint; "" if we cannot tell."""
    text = head.lstrip().lower()
    return next((what for beginning, what in _OTHERS if text.startswith(beginning)), "")
