"""Legacy streams, tar checkpoints and safetensors files."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forge.opcodes import Raw, global_, long1, pickled, utf8, value

MAGIC = 0x1950A86A20F9469CFC6C


def legacy_stream(
    obj: bytes,
    storages: Sequence[tuple[str, int, bytes]] = (),
    *,
    magic: bytes | None = None,
    version: int = 1001,
    system: bytes | None = None,
    keys: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """What torch 0.1.10 to 1.5 wrote.

    Args:
        obj: The object's pickle.
        storages: For each its key, its number of elements, its bytes.
        magic: The first pickle, if not the one torch writes.
        version: The protocol version.
        system: The pickle in which the writer describes itself, if not the one torch writes.
        keys: The pickle of the keys, if not that of the keys in *storages*.
        tail: Bytes after the last storage.
    """
    sizes = {"short": 2, "int": 4, "long": 4}
    described = {"protocol_version": version, "little_endian": True, "type_sizes": sizes}
    return b"".join(
        [
            pickled(long1(MAGIC)) if magic is None else magic,
            pickled(value(version)),
            pickled(value(described)) if system is None else system,
            obj,
            pickled(value([key for key, _, _ in storages])) if keys is None else keys,
            *(struct.pack("<q", numel) + data for _, numel, data in storages),
            tail,
        ]
    )


# Tar


@dataclass(frozen=True)
class TarStorage:
    """A float storage in an old tar checkpoint."""

    key: object
    data: bytes
    storage: str = "FloatStorage"
    numel: int | None = None


@dataclass(frozen=True)
class TarTensor:
    """A tensor in an old tar checkpoint."""

    key: object
    storage: object
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0


def tar_members(
    obj: bytes,
    storages: Sequence[TarStorage] = (),
    tensors: Sequence[TarTensor] = (),
    views: Sequence[tuple[object, ...]] = (),
) -> dict[str, bytes]:
    """The four members of a checkpoint of torch before 0.1.10; layout: containers/tar.py."""
    stored = pickled(value(len(storages)))
    for storage in storages:
        numel = len(storage.data) // 4 if storage.numel is None else storage.numel
        cls = Raw(global_("torch", storage.storage))
        stored += pickled(value((storage.key, "cpu", cls)))
        stored += struct.pack("<q", numel) + storage.data
    stored += pickled(value(list(views)))
    described = pickled(value(len(tensors)))
    for item in tensors:
        rank = len(item.shape)
        cls = Raw(global_("torch", "FloatTensor"))
        described += pickled(value((item.key, item.storage, cls)))
        numbers = (*item.shape, *item.stride, item.offset)
        described += struct.pack(f"<i4x{len(numbers)}q", rank, *numbers)
    system = pickled(value({"protocol_version": 1000, "little_endian": True}))
    return {"sys_info": system, "pickle": obj, "tensors": described, "storages": stored}


def tar_archive(members: Mapping[str, bytes] | Sequence[tuple[str, bytes]], end: int = 2) -> bytes:
    """A ustar archive; *end* is how many empty blocks end it."""
    pairs = members.items() if isinstance(members, Mapping) else members
    return b"".join(tar_member(name, data) for name, data in pairs) + bytes(512 * end)


def tar_member(
    name: str,
    data: bytes,
    *,
    typeflag: bytes = b"0",
    size: bytes = b"",
    link: str = "",
    binary: bool = False,
) -> bytes:
    """Header, data, padding.

    Args:
        name: The member's name.
        data: Its bytes.
        typeflag: What kind of member it is.
        size: The size field as it stands there, if it lies.
        link: Name of the member that a link leads to.
        binary: Whether the checksum is a binary number, which tarfile reads as well.
    """
    fields = [
        utf8(name).ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        (size or b"%011o\0" % len(data)).ljust(12, b"\0"),
        b"%011o\0" % 0,
        b" " * 8,
        typeflag,
        utf8(link).ljust(100, b"\0"),
        b"ustar\x0000",
    ]
    header = b"".join(fields).ljust(512, b"\0")
    total = sum(header)
    checksum = b"\x80" + total.to_bytes(7, "big") if binary else b"%06o\0 " % total
    header = header[:148] + checksum + header[156:]
    return header + data + bytes(-len(data) % 512)


def pax_header(**records: str) -> bytes:
    """An extended header for the member behind it, such as tarfile writes for odd times."""
    data = b""
    for key, text in records.items():
        rest = f" {key}={text}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        data += str(length).encode() + rest
    return tar_member("././@PaxHeader", data, typeflag=b"x")


# Safetensors


def safetensors_file(header: Mapping[str, object] | bytes, data: bytes = b"") -> bytes:
    """Header length, header (JSON, or bytes as they are), data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors_entry(
    shape: Sequence[object], begin: object, end: object, dtype: object = "F32"
) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
