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

import struct
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
    check_rank,
)
from ckptaudit.containers.persistent import key_of, storage_type
from ckptaudit.containers.tarmembers import TarMember, list_members
from ckptaudit.errors import MalformedInput
from ckptaudit.vm import Budget, Node, Trace, trace_pickle

if TYPE_CHECKING:
    from ckptaudit.source import ByteSource

__all__ = ["open_tar"]

_MEMBERS = ("sys_info", "storages", "tensors", "pickle")


def open_tar(source: ByteSource, budget: Budget) -> Container:
    """Read the tar archive in *source*; a broken one gives what could be read, and a gap.

    Raises:
        MalformedInput: Its members cannot be listed, or one of the three is missing.
    """
    return _Reading(source, budget).container()


class _Member:
    """One member being read from front to back."""

    def __init__(self, member: TarMember) -> None:
        self.name = member.name
        self.start = member.data
        self.at = member.data
        self.end = member.end


class _Reading:
    """One archive on its way to a `Container`."""

    def __init__(self, source: ByteSource, budget: Budget) -> None:
        self.source = source
        self.budget = budget
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
            self.gaps.append(Gap.left_by(err, None))
        try:
            self.pickled(members["pickle"])
        except MalformedInput as err:
            self.gaps.append(Gap.left_by(err, None))
        main = len(self.traces) - 1
        for member in members.values():
            if member.at < member.end:
                message = f"{member.end - member.at} bytes after what torch reads"
                self.mishaps.append(Mishap("bytes-after-pickle", message, member.name, member.at))
                self.gaps.append(Gap(message, member.name, member.at))
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
        listing = list_members(self.source)
        for fault, offset in listing.faults:
            self.mishaps.append(Mishap("tar-gap", fault, "", offset))
            self.gaps.append(Gap(fault, "", offset))
        found: dict[str, _Member] = {}
        for member in listing.members:
            # Of several members of one name torch read the last.
            if member.name in found:
                self.unread("tar-duplicate", "stands there more than once", member)
            elif member.name not in _MEMBERS:
                self.unread("tar-member", "is not one torch wrote", member)
            found[member.name] = _Member(member)
        missing = [name for name in _MEMBERS if name not in found]
        if missing:
            why = listing.faults[0][0] if listing.faults else "so not a torch checkpoint"
            raise MalformedInput(
                f"is a tar archive without {' and '.join(missing)}; {why}", where=self.source.name
            )
        return {name: found[name] for name in _MEMBERS}

    def unread(self, code: str, message: str, member: TarMember) -> None:
        self.mishaps.append(Mishap(code, message, member.name, member.header))
        self.gaps.append(Gap(message, member.name, member.header))

    def pickled(self, member: _Member) -> Node:
        """The value of the next pickle in *member*."""
        name = (
            f"{member.name}@{member.at - member.start}" if member.at > member.start else member.name
        )
        trace = trace_pickle(self.source, member.at, member.end, record=name, budget=self.budget)
        self.traces.append(trace)
        self.records.append(Record(name, member.at, trace.end, "stored", Role.PICKLE))
        member.at += trace.end
        if trace.error is not None:
            raise trace.error
        return trace.root

    def count(self, member: _Member) -> int:
        number = self.pickled(member)
        if not isinstance(number, int) or number < 0:
            raise MalformedInput("does not begin with a count", where=member.name)
        self.budget.pay_records(number, member.name)
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
                case (number, str(location), cls) if (key := key_of(number)) is not None:
                    self.read_storage(member, key, location, cls)
                case _:
                    raise MalformedInput("describes no storage", where=member.name)
        views = self.pickled(member)
        if not isinstance(views, list):
            raise MalformedInput("has no list of views", where=member.name)
        self.budget.pay_records(len(views), member.name)
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
        self.storages[key] = Storage(
            key, kind[0], numel, member.at, nbytes, location, name, kind[1]
        )
        self.records.append(Record(name, member.at, nbytes, "stored", Role.STORAGE))
        member.at += nbytes

    def add_view(self, member: _Member, view: Node) -> None:
        match view:
            case (number, root, int(offset), int(numel)):
                key = key_of(number)
                whole = self.storages.get(key_of(root) or "")
            case _:
                key = whole = None
        if whole is None or key is None or not 0 <= offset <= offset + numel <= whole.numel:
            raise MalformedInput("has a view of no storage", where=member.name)
        size = whole.dtype.itemsize
        self.storages[key] = Storage(
            key,
            whole.dtype,
            numel,
            whole.offset + offset * size,
            numel * size,
            whole.location,
            whole.record,
            whole.typed,
        )

    def read_tensors(self, member: _Member) -> None:
        for _ in range(self.count(member)):
            match self.pickled(member):
                case (number, storage, _) if (key := key_of(number)) is not None:
                    self.read_tensor(member, key, key_of(storage) or "")
                case _:
                    raise MalformedInput("describes no tensor", where=member.name)

    def read_tensor(self, member: _Member, key: str, storage: str) -> None:
        # The rank is an int32 and 4 bytes of padding, which torch skips without a look.
        rank = self.numbers(member, 1)[0] & 0xFFFFFFFF
        whole = self.storages.get(storage)
        if whole is None:
            raise MalformedInput(f"tensor {key} has no storage", where=member.name)
        check_rank(rank, f"tensor {key}")
        numbers = self.numbers(member, 2 * rank + 1)
        self.tensors[key] = StoredTensor(
            key, storage, whole.dtype, numbers[:rank], numbers[rank : 2 * rank], numbers[-1]
        )
