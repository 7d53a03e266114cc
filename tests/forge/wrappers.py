"""What a checkpoint may be wrapped in: compression, NumPy's formats, archives of other kinds."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from typing import TYPE_CHECKING

from forge.zips import python_zip

if TYPE_CHECKING:
    from collections.abc import Mapping


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def bzipped(data: bytes) -> bytes:
    return bz2.compress(data)


def xzipped(data: bytes) -> bytes:
    return lzma.compress(data)


def zlibbed(data: bytes) -> bytes:
    """What joblib writes for ``compress=True``."""
    return zlib.compress(data)


def npy_file(description: str, shape: tuple[int, ...], data: bytes) -> bytes:
    """NumPy's format 1.0; behind the header of an array of objects (``|O``) stands a pickle."""
    header = f"{{'descr': {description!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    # Magic, version and length take ten bytes; the data begin at a multiple of 64.
    padding = -(10 + len(header) + 1) % 64
    text = header.encode() + b" " * padding + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def object_npy(pickle: bytes) -> bytes:
    """An array of one object, whose pickle is *pickle*."""
    return npy_file("|O", (1,), pickle)


def npz_file(arrays: Mapping[str, bytes]) -> bytes:
    """A zip of ``.npy`` files, as numpy.savez writes it."""
    return python_zip({f"{name}.npy": array for name, array in arrays.items()})


def seven_zip_stub() -> bytes:
    """The signature header of an empty 7z archive: magic, version, checksum, where the rest is."""
    rest = struct.pack("<QQI", 0, 0, 0)
    return b"7z\xbc\xaf\x27\x1c\x00\x04" + struct.pack("<I", zlib.crc32(rest)) + rest


def lz4_stub(data: bytes) -> bytes:
    """An LZ4 frame of one block that is not compressed; its header checksum is left at zero."""
    header = b"\x04\x22\x4d\x18" + b"\x60\x40" + b"\0"
    return header + struct.pack("<I", len(data) | 1 << 31) + data + bytes(4)
