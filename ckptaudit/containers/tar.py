"""The tar framing of torch before 0.1.10: storages, tensors and the object in three members.

Knows:      torch/serialization.py, legacy_load inside _legacy_load.
Is told:    a source that begins with a tar header.
Never asks: what the object pickle means.  Nothing is ever extracted.

Layout of the members, all numbers little-endian:

``storages``  pickle of n; n times a pickle of (key, location, storage type), the
              element count as int64, the elements; then a pickle of the views
              (key of the view, key of its root, offset, count).
``tensors``   pickle of n; n times a pickle of (key, storage key, tensor type), the
              rank as int32, 4 bytes of padding, rank int64 sizes, rank int64
              strides, the offset as int64.
``pickle``    the object; a persistent id is the key of a tensor or storage.
``sys_info``  pickle of a dict.
"""

from __future__ import annotations

import io
import struct
import tarfile
from typing import TYPE_CHECKING

from ckptaudit.containers.container import (
    Container,
    Gap,
    Kind,
    Mishap,
    Record,
    Role,
    Storage,
    StoredTensor,
)
from ckptaudit.containers.persistent import storage_type
from ckptaudit.errors import MalformedInput
from ckptaudit.vm import Limits, Node, Trace, trace_pickle

if TYPE_CHECKING:
    from ckptaudit.source import ByteSource

__all__ = ["looks_like_tar", "open_tar"]

_BLOCK = 512
_MEMBERS = ("sys_info", "storages", "tensors", "pickle")
_MOST_ITEMS = 1_000_000
# torch/_tensor.py: no tensor has more dimensions.
_MOST_DIMENSIONS = 64


def looks_like_tar(source: ByteSource) -> bool:
    """Whether the first block of *source* is a tar header with a valid checksum."""
    if source.size < _BLOCK:
        return False
    try:
        tarfile.TarInfo.frombuf(source.read_at(0, _BLOCK), "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def open_tar(source: ByteSource, limits: Limits) -> Container:
    """Read the tar archive in *source*; a broken one gives what could be read, and a gap.

    Raises:
        MalformedInput: Its members cannot be listed, or one of the three is missing.
    """
    return _Reading(source, limits).container()


class _Member:
    """One member being read from front to back."""

    def __init__(self, info: tarfile.TarInfo) -> None:
        self.name = info.name
        self.start = info.offset_data
        self.at = info.offset_data
        self.end = info.offset_data + info.size


class _Reading:
    """One archive on its way to a `Container`."""

    def __init__(self, source: ByteSource, limits: Limits) -> None:
        self.source = source
        self.limits = limits
        self.traces: list[Trace] = []
        self.records: list[Record] = []
        self.mishaps: list[Mishap] = []
        self.gaps: list[Gap] = []
        self.storages: dict[str, Storage] = {}
        self.tensors: dict[str, StoredTensor] = {}

    def container(self) -> Container:
        members = self.members()
        main = None
        try:
            self.pickled(members["sys_info"])
            self.read_storages(members["storages"])
            self.read_tensors(members["tensors"])
        except MalformedInput as err:
            self.gaps.append(Gap(str(err), err.where, None))
        try:
            self.pickled(members["pickle"])
        except MalformedInput as err:
            self.gaps.append(Gap(str(err), err.where, None))
        main = len(self.traces) - 1
        for member in members.values():
            if member.at < member.end:
                message = f"{member.end - member.at} bytes after what torch reads"
                self.mishaps.append(Mishap("bytes-after-pickle", message, member.name, member.at))
        return Container(
            source=self.source,
            kind=Kind.TAR,
            records=tuple(sorted(self.records, key=lambda record: record.offset)),
            traces=tuple(self.traces),
            main=main,
            storages=self.storages,
            tensors=self.tensors,
            mishaps=tuple(self.mishaps),
            gaps=tuple(self.gaps),
        )

    def members(self) -> dict[str, _Member]:
        found: dict[str, _Member] = {}
        file = io.BufferedReader(_RawReader(self.source))
        try:
            with tarfile.open(fileobj=file, mode="r:", format=tarfile.PAX_FORMAT) as archive:
                for info in archive:
                    self.check_member(info, found)
                    found[info.name] = _Member(info)
        except tarfile.TarError as err:
            raise MalformedInput(
                f"is a damaged tar archive ({err}); fetch it again", where=self.source.name
            ) from err
        missing = [name for name in _MEMBERS if name not in found]
        if missing:
            raise MalformedInput(
                f"is a tar archive without {' and '.join(missing)}, so not a torch checkpoint",
                where=self.source.name,
            )
        return {name: found[name] for name in _MEMBERS}

    def check_member(self, info: tarfile.TarInfo, seen: dict[str, _Member]) -> None:
        where = info.name, info.offset
        if not info.isreg() or info.issparse():
            self.mishaps.append(Mishap("tar-member", "is not a plain file", *where))
        if info.name in seen:
            self.mishaps.append(Mishap("tar-duplicate", "stands there twice", *where))
        if info.name not in _MEMBERS:
            self.mishaps.append(Mishap("tar-member", "is not one torch wrote", *where))
            self.gaps.append(Gap("a member that torch does not read", *where))

    def pickled(self, member: _Member) -> Node:
        """The value of the next pickle in *member*."""
        name = (
            f"{member.name}@{member.at - member.start}" if member.at > member.start else member.name
        )
        trace = trace_pickle(self.source, member.at, member.end, record=name, limits=self.limits)
        self.traces.append(trace)
        self.records.append(Record(name, member.at, trace.end, "stored", Role.PICKLE))
        member.at += trace.end
        if trace.error is not None:
            raise trace.error
        return trace.root

    def count(self, member: _Member) -> int:
        number = self.pickled(member)
        if not isinstance(number, int) or not 0 <= number <= _MOST_ITEMS:
            raise MalformedInput("does not begin with a count", where=member.name)
        return number

    def numbers(self, member: _Member, count: int) -> tuple[int, ...]:
        length = 8 * count
        if member.at + length > member.end:
            raise MalformedInput(
                "is truncated; fetch the file again", where=member.name, offset=member.at
            )
        data = self.source.read_at(member.at, length)
        member.at += length
        return struct.unpack(f"<{count}q", data)

    def read_storages(self, member: _Member) -> None:
        for _ in range(self.count(member)):
            match self.pickled(member):
                case (int() | str() as key, str(location), cls):
                    self.read_storage(member, str(key), location, cls)
                case _:
                    raise MalformedInput("describes no storage", where=member.name)
        views = self.pickled(member)
        if not isinstance(views, list):
            raise MalformedInput("has no list of views", where=member.name)
        for view in views:
            self.add_view(member, view)

    def read_storage(self, member: _Member, key: str, location: str, cls: Node) -> None:
        kind = storage_type(cls)
        (numel,) = self.numbers(member, 1)
        if kind is None or key in self.storages:
            raise MalformedInput(f"storage {key} has no type or comes twice", where=member.name)
        nbytes = numel * kind[0].itemsize
        if not 0 <= nbytes <= member.end - member.at:
            raise MalformedInput(
                f"storage {key} needs {nbytes} bytes where {member.end - member.at} are left; "
                "the file is truncated: fetch it again",
                where=member.name,
                offset=member.at,
            )
        name = f"storage {key}"
        self.storages[key] = Storage(key, kind[0], numel, member.at, nbytes, location, name)
        self.records.append(Record(name, member.at, nbytes, "stored", Role.STORAGE))
        member.at += nbytes

    def add_view(self, member: _Member, view: Node) -> None:
        match view:
            case (int() | str() as key, int() | str() as root, int(offset), int(numel)):
                whole = self.storages.get(str(root))
            case _:
                whole = None
        if whole is None or not 0 <= offset <= offset + numel <= whole.numel:
            raise MalformedInput("has a view of no storage", where=member.name)
        size = whole.dtype.itemsize
        self.storages[str(key)] = Storage(
            str(key),
            whole.dtype,
            numel,
            whole.offset + offset * size,
            numel * size,
            whole.location,
            whole.record,
        )

    def read_tensors(self, member: _Member) -> None:
        for _ in range(self.count(member)):
            match self.pickled(member):
                case (int() | str() as key, int() | str() as storage, _):
                    self.read_tensor(member, str(key), str(storage))
                case _:
                    raise MalformedInput("describes no tensor", where=member.name)

    def read_tensor(self, member: _Member, key: str, storage: str) -> None:
        # The rank is an int32 and 4 bytes of padding, which torch skips without a look.
        rank = self.numbers(member, 1)[0] & 0xFFFFFFFF
        whole = self.storages.get(storage)
        if rank > _MOST_DIMENSIONS or whole is None:
            raise MalformedInput(f"tensor {key} has no storage or no rank", where=member.name)
        numbers = self.numbers(member, 2 * rank + 1)
        self.tensors[key] = StoredTensor(
            key, storage, whole.dtype, numbers[:rank], numbers[rank : 2 * rank], numbers[-1]
        )


class _RawReader(io.RawIOBase):
    """A `ByteSource` as the file object that `tarfile` wants."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # typeshed says Buffer
        count = max(0, min(len(buffer), self._source.size - self._at))
        self._source.read_into(self._at, memoryview(buffer).cast("B")[:count])
        self._at += count
        return count
