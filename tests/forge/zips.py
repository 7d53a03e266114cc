"""Zip archives as torch writes them, unless they are told to lie."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from forge.opcodes import EMPTY_TUPLE, pickled, utf8

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class ZipEntry:
    """One file in an archive, as torch writes it unless a field says otherwise.

    Attributes:
        name: Its name in the central directory.
        data: Its bytes, uncompressed.
        method: 0 stored, 8 deflated.
        flags: General purpose bits in the central directory; 8 asks for a data descriptor.
        local_name: Its name in the local header, if that is another.
        local_flags: The bits in the local header, if those are others.
        local_method: The method in the local header, if that is another.
        local_sizes: Packed and real size in the local header; torch writes zeros.
        packed: The bytes that stand in the archive, if they are not those of *data*.
        size: The size that the central directory states, if it is not that of *data*.
        crc: The checksum that directory and descriptor state, if it is not that of *data*.
        header: Where the central directory says that the local header is, if it lies.
        extra: The local header's extra field, if it is not torch's padding.
        central_extra: The extra field in the central directory; torch writes none.
        comment: The entry's comment.
        needed: The version that the central directory says a reader needs.
        disk: The disk that the central directory says it lies on.
        attributes: Its external attributes; 16 is the folder of MS-DOS.
        before: Bytes between the entry before and this one.
        hidden: True to leave it out of the central directory.
    """

    name: str
    data: bytes = b""
    method: int = 0
    flags: int = 0x0808
    local_name: str | None = None
    local_flags: int | None = None
    local_method: int | None = None
    local_sizes: tuple[int, int] = (0, 0)
    packed: bytes | None = None
    size: int | None = None
    crc: int | None = None
    header: int | None = None
    extra: bytes | None = None
    central_extra: bytes = b""
    comment: bytes = b""
    needed: int = 0
    disk: int = 0
    attributes: int = 0
    before: bytes = b""
    hidden: bool = False


def zip_archive(
    entries: Sequence[ZipEntry],
    *,
    zip64: bool = True,
    comment: bytes = b"",
    start_at: int = 0,
    count: int | None = None,
    extension: bytes = b"",
) -> bytes:
    """An archive of *entries*; *start_at* is what offsets in it are counted from.

    Args:
        entries: Its files, in order.
        zip64: Whether to write the 64-bit end record, as torch always does.
        comment: The archive's comment.
        start_at: Offset of its first byte in the file it will stand in.
        count: Number of entries that the 32-bit end record states, if it lies.
        extension: What stands in the extensible data of the 64-bit end record.
    """
    body = b""
    directory = b""
    for entry in entries:
        body += entry.before
        header = start_at + len(body)
        local, central = _zip_entry(entry, header)
        body += local
        directory += b"" if entry.hidden else central
    real = sum(not entry.hidden for entry in entries)
    start = start_at + len(body)
    end = b""
    if zip64:
        # Signature, size of the rest, versions, disks, entries here and in all, directory.
        end += struct.pack(
            "<4sQ2H2I4Q",
            b"PK\6\6",
            44 + len(extension),
            *(45, 45, 0, 0),
            *(real, real, len(directory), start),
        )
        end += extension
        # Signature, disk, offset of the record above, disks.
        end += struct.pack("<4sIQI", b"PK\6\7", 0, start + len(directory), 1)
    stated = real if count is None else count
    end += struct.pack(
        "<4s4H2IH", b"PK\5\6", 0, 0, stated, stated, len(directory), start, len(comment)
    )
    return body + directory + end + comment


def _zip_entry(entry: ZipEntry, header: int) -> tuple[bytes, bytes]:
    """Local header, data and descriptor; central header."""
    name = utf8(entry.name)
    packed = deflated(entry.data) if entry.method == 8 else entry.data
    if entry.packed is not None:
        packed = entry.packed
    size = len(entry.data) if entry.size is None else entry.size
    crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
    local_name = name if entry.local_name is None else utf8(entry.local_name)
    # Extra field "FB": torch lets the data begin at a multiple of 64.
    padding = -(header + 30 + len(local_name) + 4) % 64
    extra = extra_field(b"FB", b"Z" * padding) if entry.extra is None else entry.extra
    local = struct.pack(
        "<4s5H3I2H",
        b"PK\3\4",
        0,
        entry.flags if entry.local_flags is None else entry.local_flags,
        entry.method if entry.local_method is None else entry.local_method,
        0,
        0,
        0,
        *entry.local_sizes,
        len(local_name),
        len(extra),
    )
    descriptor = struct.pack("<4s3I", b"PK\7\10", crc, len(packed), size)
    central = struct.pack(
        "<4s6H3I5H2I",
        b"PK\1\2",
        0,
        entry.needed,
        entry.flags,
        entry.method,
        0,
        0,
        crc,
        len(packed),
        size,
        len(name),
        len(entry.central_extra),
        len(entry.comment),
        entry.disk,
        0,
        entry.attributes,
        header if entry.header is None else entry.header,
    )
    return (
        local + local_name + extra + packed + (descriptor if entry.flags & 8 else b""),
        central + name + entry.central_extra + entry.comment,
    )


def extra_field(code: bytes, data: bytes) -> bytes:
    """One extra field: its two bytes of code, its length, its data."""
    return struct.pack("<2sH", code, len(data)) + data


def unicode_path(name: str, path: str) -> bytes:
    """Info-ZIP's extra field by which the entry *name* is called *path*: APPNOTE.TXT 4.6.9."""
    return extra_field(b"up", struct.pack("<BI", 1, zlib.crc32(utf8(name))) + utf8(path))


def deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def torch_entries(
    pickle: bytes, storages: Mapping[str, bytes], *, root: str = "archive", order: str = "little"
) -> list[ZipEntry]:
    """What torch.save puts into an archive, in its order."""
    return [
        ZipEntry(f"{root}/data.pkl", pickle),
        ZipEntry(f"{root}/byteorder", order.encode()),
        *(ZipEntry(f"{root}/data/{key}", data) for key, data in storages.items()),
        ZipEntry(f"{root}/version", b"3\n"),
        ZipEntry(f"{root}/.data/serialization_id", b"0" * 40),
    ]


def torch_zip(pickle: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    return zip_archive(torch_entries(pickle, storages or {}))


def torchscript_zip(pickle: bytes, *, constants: bytes = b"", code: bytes = b"") -> bytes:
    """What torch.jit.save writes: a data.pkl, constants and source code beside each other.

    Args:
        pickle: The pickle of the module.
        constants: The pickle of its constants, if not that of an empty tuple.
        code: Its source code, if not that of an empty class.
    """
    entries = [
        ZipEntry("archive/data.pkl", pickle),
        ZipEntry("archive/byteorder", b"little"),
        ZipEntry("archive/code/__torch__.py", code or b"class Net(Module):\n  pass\n"),
        ZipEntry("archive/constants.pkl", constants or pickled(EMPTY_TUPLE)),
        ZipEntry("archive/version", b"3\n"),
    ]
    return zip_archive(entries)


def python_zip(files: Mapping[str, bytes]) -> bytes:
    """What Python's zipfile writes: no descriptors, no 64-bit records, no padding."""
    entries = [
        ZipEntry(name, data, flags=0, local_sizes=(len(data),) * 2, extra=b"")
        for name, data in files.items()
    ]
    return zip_archive(entries, zip64=False)


def with_entry(entries: Sequence[ZipEntry], name: str, **lies: Any) -> list[ZipEntry]:
    """*entries*, but the one whose name ends in *name* with some fields changed."""
    changed = [replace(entry, **lies) if entry.name.endswith(name) else entry for entry in entries]
    if changed == list(entries):
        raise ValueError(f"there is no {name} to change")
    return changed
