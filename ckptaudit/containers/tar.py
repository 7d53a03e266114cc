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
    Use,
    check_rank,
)
from ckptaudit.containers.ledger import Ledger
from ckptaudit.containers.persistent import key_of, storage_type
from ckptaudit.containers.tarmembers import TarMember, list_members
from ckptaudit.errors import MalformedInput
from ckptaudit.vm import Budget, Node, Trace, trace_pickle
from ckptaudit.wording import counted, left

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptaudit.source import ByteSource

__all__ = ["open_tar"]

_MEMBERS = ("sys_info", "storages", "tensors", "pickle")


def open_tar(source: ByteSource, budget: Budget) -> Container:
    """Read the tar archive in *source*; a broken one gives what could be read, and a gap.

    Raises:
        MalformedInput: It has none of the members, and nothing else that could be loaded.
    """
    return _Reading(source, budget).container()


class _Member:
    """One member being read from front to back."""

    def __init__(self, member: TarMember) -> None:
        # Why it was not read to its end, and whether a gap says so already.
        self.error: MalformedInput | None = None
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
        self.ledger = Ledger(source, budget)
        self.mishaps = self.ledger.mishaps
        self.gaps = self.ledger.gaps
        self.storages: dict[str, Storage] = {}
        self.tensors: dict[str, StoredTensor] = {}

    def container(self) -> Container:
        listing = list_members(self.source, self.ledger)
        members = self.sort_out(listing)
        self.read(members, {"sys_info": self.pickled})
        self.read(members, {"storages": self.read_storages, "tensors": self.read_tensors})
        main = len(self.traces) if "pickle" in members else None
        self.read(members, {"pickle": self.pickled})
        for member in members.values():
            self.finish(member)
        self.ledger.settle("tar-gap", "outside of all members")
        if not members and not self.ledger.traces:
            why = f"; {self.gaps[0].reason}" if self.gaps and not listing else ""
            raise MalformedInput(
                f"is a tar archive without {' and '.join(_MEMBERS)}, so no torch checkpoint{why}",
                where=self.source.name,
            )
        return Container(
            source=self.source,
            kind=Kind.TAR,
            records=tuple(
                sorted([*self.records, *self.ledger.records], key=lambda record: record.offset)
            ),
            traces=(*self.traces, *self.ledger.traces),
            main=main,
            storages=self.storages,
            tensors=self.tensors,
            mishaps=tuple(self.mishaps),
            gaps=tuple(self.gaps),
            regions=tuple(self.ledger.regions),
        )

    def sort_out(self, listing: tuple[TarMember, ...]) -> dict[str, _Member]:
        """The members torch read, by name; of several of one name it took the last."""
        last = {member.name: member for member in listing}
        for member in listing:
            if member is not last[member.name]:
                self.unread("tar-duplicate", "stands there more than once", member)
            elif member.name not in _MEMBERS:
                self.unread("tar-member", "is not one torch wrote", member)
        for name in _MEMBERS:
            if name not in last:
                message = f"has no member {name}, without which torch refuses it"
                self.mishaps.append(Mishap("tar-missing", message, "", None))
                self.gaps.append(Gap(message, "", None))
        return {name: _Member(last[name]) for name in _MEMBERS if name in last}

    def unread(self, code: str, message: str, member: TarMember) -> None:
        self.ledger.disown(member.data, member.end, code, message, member.name)
        if not member.size:
            length = member.end - member.header
            self.mishaps.append(Mishap(code, message, member.name, member.header, length))
            self.gaps.append(Gap(message, member.name, member.header, length=length))

    def read(
        self, members: dict[str, _Member], readers: dict[str, Callable[[_Member], object]]
    ) -> None:
        """Read some members, each of which needs those before it."""
        for name, reader in readers.items():
            member = members.get(name)
            if member is None:
                return
            try:
                reader(member)
            except MalformedInput as err:
                member.error = err
                if all(trace.error is not err for trace in self.traces):
                    self.gaps.append(Gap.left_by(err, member.at))
                return

    def finish(self, member: _Member) -> None:
        """Tell what lies behind what was read of *member*."""
        if member.error is not None:
            self.ledger.leave(member.at, member.end, member.name)
        else:
            message = f"{counted(member.end - member.at, 'byte')} after what torch reads"
            code = "bytes-after-pickle"
            self.ledger.disown(member.at, member.end, code, message, member.name)

    def pickled(self, member: _Member) -> Node:
        """The value of the next pickle in *member*."""
        name = (
            f"{member.name}@{member.at - member.start}" if member.at > member.start else member.name
        )
        trace = trace_pickle(self.source, member.at, member.end, record=name, budget=self.budget)
        self.traces.append(trace)
        self.records.append(Record(name, member.at, trace.end, "stored", Role.PICKLE))
        self.ledger.claim(member.at, member.at + trace.end, Use.PICKLE)
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
        self.ledger.claim(member.at, member.at + length, Use.STRUCTURE)
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
                f"storage {key} needs {counted(nbytes, 'byte')} where "
                f"{left(member.end - member.at)}; the file is truncated: fetch it again",
                where=member.name,
                offset=member.at,
            )
        name = f"storage {key}"
        self.storages[key] = Storage(
            key, kind[0], numel, member.at, nbytes, location, name, kind[1]
        )
        self.records.append(Record(name, member.at, nbytes, "stored", Role.STORAGE))
        self.ledger.claim(member.at, member.at + nbytes, Use.STORAGE)
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
        if key in self.storages:
            # torch would forget the storage of that key, and nobody would see its bytes.
            raise MalformedInput(f"storage {key} comes twice", where=member.name)
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

    def rank(self, member: _Member) -> int:
        """An int32 and 4 bytes of padding, which torch skips without a look."""
        if member.at + 8 > member.end:
            raise MalformedInput(
                "is truncated; fetch the file again", where=member.name, offset=member.at
            )
        rank, padding = struct.unpack("<I4s", self.source.read_at(member.at, 8))
        self.ledger.claim(member.at, member.at + 4, Use.STRUCTURE)
        if any(padding):
            message = "has something in the padding behind a tensor's rank"
            self.ledger.disown(member.at + 4, member.at + 8, "tar-gap", message, member.name)
        else:
            self.ledger.claim(member.at + 4, member.at + 8, Use.PADDING)
        member.at += 8
        return int(rank)

    def read_tensor(self, member: _Member, key: str, storage: str) -> None:
        rank = self.rank(member)
        whole = self.storages.get(storage)
        if whole is None:
            raise MalformedInput(f"tensor {key} has no storage", where=member.name)
        check_rank(rank, f"tensor {key}")
        numbers = self.numbers(member, 2 * rank + 1)
        self.tensors[key] = StoredTensor(
            key, storage, whole.dtype, numbers[:rank], numbers[rank : 2 * rank], numbers[-1]
        )
