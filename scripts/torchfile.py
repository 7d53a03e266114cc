"""Write the files that `torch.save` writes, from a description, streamed, without torch.

The bytes are those of torch 2.13: given the same names, values and serialization id, the zip
framing is equal byte for byte to what ``torch.save`` makes, beyond 4 GiB too
(``tests/test_make_checkpoint.py`` compares small ones).  CPython shares strings that are one
object in memory; here equal strings are one.  Nothing here imports `pickle`: a class is two
strings in a `Name`.

Knows:      pickle protocol 2 as CPython writes it; torch/serialization.py, `_save` and
            `_legacy_save`; caffe2/serialize/inline_container.cc and miniz.
Is told:    a tree of plain values, names and tensors, and where a storage's bytes come from.
Never asks: what a key means, or what is in a storage.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

from ckptaudit.dtypes import DType, by_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["Framing", "Name", "OrderedDict", "Storage", "Tensor", "Tree", "strides", "write_file"]

Framing: TypeAlias = Literal["zip", "legacy"]


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle is to ask for."""

    module: str
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A flat typed buffer; two tensors that hold the same `Storage` share memory.

    Attributes:
        dtype: torch's name of the element type, such as ``float32``.
        numel: Elements.
        blocks: Yields the bytes, little-endian, piece by piece.  A piece is used
            before the next one is asked for, so that its buffer may be used again.
        location: The device it claims to have been on.
    """

    dtype: str
    numel: int
    blocks: Callable[[], Iterable[memoryview]]
    location: str = "cpu"

    @property
    def type(self) -> DType:
        """The element type."""
        found = by_name(self.dtype)
        if found is None or not found.storages:
            raise ValueError(f"torch has no storage class for {self.dtype}")
        return found

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.numel * self.type.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage.

    Attributes:
        storage: What it looks into.
        shape: Elements per dimension.
        stride: Elements to step per dimension; None is row by row.
        offset: First element, counted from the start of the storage.
    """

    storage: Storage
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class OrderedDict:
    """A `collections.OrderedDict`, with the ``_metadata`` that `state_dict` hangs on it."""

    items: Mapping[str, Tree]
    metadata: Mapping[str, Tree] | None = None


# None, bool, int, float, str, Name, Tensor, OrderedDict, or a tuple, list or dict of these.
Tree: TypeAlias = object


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor stored row by row, in elements, as torch gives them.

    >>> strides((320, 4, 3, 3)), strides(()), strides((2, 0, 3))
    ((36, 9, 3, 1), (), (3, 3, 1))
    """
    # A dimension without elements counts as one: c10/core/TensorImpl.h, empty_tensor_restride.
    steps = itertools.accumulate((max(size, 1) for size in shape[:0:-1]), int.__mul__, initial=1)
    return tuple(steps)[::-1] if shape else ()


def write_file(
    path: Path, root: Tree, *, framing: Framing = "zip", serialization_id: str | None = None
) -> int:
    """Write *root* to *path* as `torch.save` would; an existing file is overwritten.

    Args:
        path: The file; its stem becomes the root folder of a zip.
        root: What to save.
        framing: The zip of torch >= 1.6, or the stream of torch 0.1.10 to 1.5.
        serialization_id: Forty digits, or None to make them from names and checksums.

    Returns:
        The file's size in bytes.

    Raises:
        ValueError: A storage's blocks do not add up to its size; no file is left then.
        TypeError: There is something in *root* that cannot be written; likewise.
    """
    try:
        with path.open("wb") as file:
            if framing == "zip":
                _write_zip(file, path.stem, root, serialization_id)
            else:
                _write_legacy(file, root)
            return file.tell()
    except BaseException:
        # Half of a file looks like a damaged one, and may be large.
        path.unlink(missing_ok=True)
        raise


# The opcodes used, by the names of CPython's Lib/pickle.py.
_PROTO_2, _STOP, _MARK = b"\x80\x02", b".", b"("
_TUPLES = (b")", b"\x85", b"\x86", b"\x87")
# Items handed to one SETITEMS or APPENDS; Lib/pickle.py, _Pickler._BATCHSIZE.
_BATCH = 1000

_ORDERED_DICT = Name("collections", "OrderedDict")
_REBUILD = Name("torch._utils", "_rebuild_tensor_v2")


@dataclass(frozen=True, slots=True, eq=False)
class _Anew:
    """A string to be written out although it may have been before."""

    text: str


@dataclass(slots=True, eq=False)
class _Pickle:
    """One pickle in the making.

    Attributes:
        legacy: Whether persistent ids are those of the legacy stream.
        storages: The storages met, in order of first use, and what they are called.
    """

    legacy: bool = False
    storages: dict[Storage, str] = field(default_factory=dict)
    _out: bytearray = field(default_factory=lambda: bytearray(_PROTO_2))
    _memo: dict[str | Name, int] = field(default_factory=dict)
    _memoized: int = 0

    def dump(self, root: Tree) -> bytes:
        """The finished pickle of *root*."""
        self._save(root)
        return bytes(self._out + _STOP)

    def _save(self, node: Tree) -> None:
        if isinstance(node, (str, Name)):
            self._save_shared(node)
        elif isinstance(node, _Anew):
            self._save_new(node.text)
        elif isinstance(node, Tensor):
            self._save_tensor(node)
        elif isinstance(node, Storage):
            self._save_storage(node)
        elif isinstance(node, OrderedDict):
            self._save_ordered(node)
        elif isinstance(node, tuple):
            self._save_tuple(node)
        elif isinstance(node, list):
            self._out += b"]"
            self._put()
            self._save_batches([(item,) for item in node], b"a", b"e")
        elif isinstance(node, dict):
            self._out += b"}"
            self._put()
            self._save_batches(list(node.items()), b"s", b"u")
        else:
            self._out += _plain(node)

    def _save_shared(self, node: str | Name) -> None:
        """Save a string or a class; the second time a reference to the first."""
        known = self._memo.get(node)
        if known is None:
            self._memo[node] = self._memoized
            self._save_new(node)
        else:
            self._out += _numbered(b"hj", known)

    def _save_new(self, node: str | Name) -> None:
        if isinstance(node, Name):
            self._out += f"c{node.module}\n{node.name}\n".encode()
        else:
            text = node.encode()
            self._out += struct.pack("<cI", b"X", len(text)) + text
        self._put()

    def _save_tensor(self, tensor: Tensor) -> None:
        stride = strides(tensor.shape) if tensor.stride is None else tensor.stride
        requires_grad, hooks = False, OrderedDict({})
        self._save(_REBUILD)
        view = (tensor.storage, tensor.offset, tensor.shape, stride, requires_grad, hooks)
        self._save_tuple(view)
        self._reduce()

    def _save_storage(self, storage: Storage) -> None:
        number = len(self.storages)
        key = self.storages.setdefault(storage, _address(number) if self.legacy else str(number))
        kind = Name("torch", storage.type.storages[0])
        if self.legacy:
            # The key is a new string each time, so that CPython's memo never has it; the last
            # field would describe a view, and newer versions leave it empty.
            self._save_tuple(("storage", kind, _Anew(key), storage.location, storage.numel, None))
        else:
            self._save_tuple(("storage", kind, key, storage.location, storage.numel))
        self._out += b"Q"

    def _save_ordered(self, node: OrderedDict) -> None:
        self._save(_ORDERED_DICT)
        self._save_tuple(())
        self._reduce()
        self._save_batches(list(node.items.items()), b"s", b"u")
        if node.metadata is not None:
            self._save({"_metadata": OrderedDict(node.metadata)})
            self._out += b"b"

    def _save_tuple(self, items: tuple[Tree, ...]) -> None:
        short = len(items) < len(_TUPLES)
        self._out += b"" if short else _MARK
        for item in items:
            self._save(item)
        self._out += _TUPLES[len(items)] if short else b"t"
        if items:
            self._put()

    def _save_batches(self, groups: Sequence[tuple[Tree, ...]], one: bytes, many: bytes) -> None:
        for start in range(0, len(groups), _BATCH):
            batch = groups[start : start + _BATCH]
            self._out += _MARK if len(batch) > 1 else b""
            for group in batch:
                for node in group:
                    self._save(node)
            self._out += many if len(batch) > 1 else one

    def _reduce(self) -> None:
        self._out += b"R"
        self._put()

    def _put(self) -> None:
        self._out += _numbered(b"qr", self._memoized)
        self._memoized += 1


def _numbered(opcodes: bytes, number: int) -> bytes:
    """The first of two opcodes if *number* fits a byte, else the second; and *number*."""
    wide = number >= 1 << 8
    return struct.pack("<cI" if wide else "<cB", opcodes[wide : wide + 1], number)


def _plain(value: Tree) -> bytes:
    """The opcode for a value that is never shared."""
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return struct.pack(">cd", b"G", value)
    raise TypeError(f"no opcode is written for {type(value).__name__}")


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return struct.pack("<cB", b"K", value)
    if 0 <= value < 1 << 16:
        return struct.pack("<cH", b"M", value)
    if -(1 << 31) <= value < 1 << 31:
        return struct.pack("<ci", b"J", value)
    length = value.bit_length() // 8 + 1
    return struct.pack("<cB", b"\x8a", length) + value.to_bytes(length, "little", signed=True)


# torch/serialization.py, MAGIC_NUMBER, PROTOCOL_VERSION and `_legacy_save`.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_SYSTEM: Tree = {
    "protocol_version": _PROTOCOL,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def _address(number: int) -> str:
    """A stand-in for a storage's address; like addresses, not in order of use.

    Knuth's multiplier is odd, so no two numbers below 2^32 have the same address.
    """
    return str(0x5570_0000_0000 + (number * 2654435761 % (1 << 32)) * 64)


def _write_legacy(file: BinaryIO, root: Tree) -> None:
    main = _Pickle(legacy=True)
    pickled = main.dump(root)
    by_key = {key: storage for storage, key in main.storages.items()}
    keys = sorted(by_key)
    heads = [_Pickle().dump(head) for head in (_MAGIC, _PROTOCOL, _SYSTEM)]
    file.writelines([*heads, pickled, _Pickle().dump(keys)])
    for key in keys:
        file.write(struct.pack("<q", by_key[key].numel))
        file.writelines(_exactly(by_key[key]))


def _exactly(storage: Storage) -> Iterator[memoryview]:
    """The storage's blocks, as long as they are as many bytes as it should have."""
    left = storage.nbytes
    for block in storage.blocks():
        left -= block.nbytes
        if left < 0:
            break
        yield block
    if left:
        raise ValueError(f"a storage of {storage.nbytes} bytes was given {storage.nbytes - left}")


# Local file header: signature, version needed, flags, method, time, date, crc,
# compressed size, size, name length, extra length.
_LOCAL = struct.Struct("<4s5H3I2H")
# Central directory header: signature, version made by, version needed, flags, method,
# time, date, crc, compressed size, size, name length, extra length, comment length,
# disk, internal attributes, external attributes, local header offset.
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_MAX32 = 0xFFFFFFFF
# Bit 11, names are UTF-8; bit 3, checksum and sizes follow the data.
_UTF8, _SIZES_FOLLOW = 0x0800, 0x0008
_ALIGNMENT = 64


def _wide(*values: int) -> bytes:
    """The extra field of 64-bit values; APPNOTE.TXT 4.5.3.  Empty for none."""
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""


@dataclass(slots=True)
class _Zip:
    """An archive in the making, as torch's copy of miniz writes it."""

    file: BinaryIO
    root: str
    directory: bytearray = field(default_factory=bytearray)
    entries: int = 0
    digest: bytes = b""

    def add(self, name: str, size: int, blocks: Iterable[bytes | memoryview]) -> None:
        """Add a stored entry of *size* bytes."""
        path = f"{self.root}/{name}".encode()
        header = self.file.tell()
        # miniz does not know the packed size yet when it writes the local header: zero.
        sizes = (size, size) if size >= _MAX32 else ()
        at = (header,) if header >= _MAX32 else ()
        wide, local_wide = _wide(*sizes, *at), _wide(*sizes[:1], *(0 for _ in sizes[1:]), *at)
        # getPadding in inline_container.cc: data begin at a multiple of 64 bytes.
        start = header + _LOCAL.size + len(path) + len(wide) + 4
        padding = -start % _ALIGNMENT
        extra = local_wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        # An entry without data has no data descriptor either.
        flags = _UTF8 | (_SIZES_FOLLOW if size else 0)
        local = (b"PK\3\4", 0, flags, 0, 0, 0, 0, 0, 0, len(path), len(extra))
        self.file.write(_LOCAL.pack(*local) + path + extra)
        crc = 0
        for block in blocks:
            crc = zlib.crc32(block, crc)
            self.file.write(block)
        if size:
            layout = "<4sI2Q" if wide else "<4s3I"
            self.file.write(struct.pack(layout, b"PK\7\10", crc, size, size))
        packed = min(size, _MAX32)
        narrow = (crc, packed, packed, len(path), len(wide), 0, 0, 0, 0, min(header, _MAX32))
        self.directory += _CENTRAL.pack(b"PK\1\2", 0, 0, flags, 0, 0, 0, *narrow)
        self.directory += path + wide
        self.entries += 1
        self.digest = hashlib.sha256(self.digest + path + struct.pack("<I", crc)).digest()

    def add_text(self, name: str, text: str) -> None:
        """Add an entry that holds *text*."""
        self.add(name, len(text), [text.encode("ascii")])

    def close(self) -> None:
        """Write the directory and its three end records; zip64 whatever the size."""
        start, size, count = self.file.tell(), len(self.directory), self.entries
        end = start + size
        self.file.write(self.directory)
        # Size of what follows, version made by (Unix, 3.0), version needed (4.5), disks,
        # entries twice, directory size and offset.
        wide = (44, 0x031E, 45, 0, 0, count, count, size, start)
        self.file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", *wide))
        self.file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        most = min(count, 0xFFFF)
        narrow = (0, 0, most, most, min(size, _MAX32), min(start, _MAX32), 0)
        self.file.write(struct.pack("<4s4H2IH", b"PK\5\6", *narrow))


def _write_zip(file: BinaryIO, root_folder: str, root: Tree, serialization_id: str | None) -> None:
    main = _Pickle()
    pickled = main.dump(root)
    archive = _Zip(file, root_folder)
    archive.add("data.pkl", len(pickled), [pickled])
    archive.add_text(".format_version", "1")
    archive.add_text(".storage_alignment", str(_ALIGNMENT))
    archive.add_text("byteorder", "little")
    for storage, key in main.storages.items():
        archive.add(f"data/{key}", storage.nbytes, _exactly(storage))
    archive.add_text("version", "3\n")
    made = f"{int.from_bytes(archive.digest, 'little') % 10**40:040d}"
    archive.add_text(".data/serialization_id", serialization_id or made)
    archive.close()
