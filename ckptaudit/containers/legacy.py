"""The stream that torch 0.1.10 to 1.5 wrote: five pickles, then the storages.

Knows:      torch/serialization.py, _legacy_save and _legacy_load.
Is told:    a source whose first pickle is torch's magic number, and that pickle's trace.
Never asks: what the object pickle means.

Layout: pickles of the magic number, the protocol version, the writer's system
(a dict), the object, and the list of storage keys; then for each key in that
order its number of elements as int64 and its elements, all little-endian.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ckptaudit.containers.container import (
    Container,
    Gap,
    Kind,
    Mishap,
    Record,
    Role,
    Storage,
    Use,
)
from ckptaudit.containers.ledger import Ledger
from ckptaudit.containers.persistent import StorageRef, key_of, references
from ckptaudit.errors import MalformedInput
from ckptaudit.vm import Budget, Dict, Node, Trace, trace_pickle
from ckptaudit.wording import counted, left

if TYPE_CHECKING:
    from ckptaudit.source import ByteSource

__all__ = ["MAGIC", "PROTOCOL_VERSION", "begins_with_magic", "open_legacy"]

# torch/serialization.py, MAGIC_NUMBER and PROTOCOL_VERSION.
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

# PROTO, LONG1, STOP: how torch writes the magic number.
_MAGIC_OPCODES = 3
_NAMES = ("magic", "protocol", "system", "object", "keys")
_OBJECT, _KEYS = _NAMES.index("object"), _NAMES.index("keys")


def open_legacy(source: ByteSource, first: Trace, budget: Budget) -> Container:
    """Read the legacy stream in *source*; a broken one gives what could be read, and a gap.

    The caller has seen the magic number; a stream whose first pickle *computes* it is
    read all the same, and `policy` sees the call.
    """
    return _Reading(source, first, budget).container()


class _Reading:
    """One stream on its way to a `Container`."""

    def __init__(self, source: ByteSource, first: Trace, budget: Budget) -> None:
        self.source = source
        self.first = first
        self.budget = budget
        self.at = 0
        self.traces: list[Trace] = []
        self.records: list[Record] = []
        self.ledger = Ledger(source, budget)
        self.mishaps = self.ledger.mishaps
        self.gaps = self.ledger.gaps
        self.storages: dict[str, Storage] = {}

    def container(self) -> Container:
        if self.read_pickles():
            self.check_schedule()
            try:
                self.read_storages()
            except MalformedInput as err:
                self.gaps.append(Gap.left_by(err, self.at))
                self.ledger.leave(self.at, self.source.size, "")
        self.ledger.settle("bytes-after-storages", "after the last storage")
        return Container(
            source=self.source,
            kind=Kind.LEGACY,
            records=(*self.records, *self.ledger.records),
            traces=(*self.traces, *self.ledger.traces),
            main=_OBJECT if len(self.traces) > _OBJECT else None,
            storages=self.storages,
            mishaps=tuple(self.mishaps),
            gaps=tuple(self.gaps),
            regions=tuple(self.ledger.regions),
        )

    def odd(self, code: str, message: str, name: str) -> None:
        """Say what is wrong with the pickle called *name*."""
        record = self.records[_NAMES.index(name)]
        self.mishaps.append(Mishap(code, message, name, record.offset, record.nbytes))

    def read_pickles(self) -> bool:
        """Run the five pickles; False if one of them could not be read to its end."""
        for name in _NAMES:
            trace = (
                trace_pickle(
                    self.source, self.at, self.source.size, record=name, budget=self.budget
                )
                if self.traces
                else replace(self.first, record=name)
            )
            self.traces.append(trace)
            self.records.append(Record(name, self.at, trace.end, "stored", Role.PICKLE))
            self.ledger.claim(self.at, self.at + trace.end, Use.PICKLE)
            self.at += trace.end
            if trace.error is not None:
                self.ledger.leave(self.at, self.source.size, name)
                return False
        return True

    def check_schedule(self) -> None:
        magic, version, system = (trace.root for trace in self.traces[:_OBJECT])
        if magic != MAGIC or self.traces[0].opcodes > _MAGIC_OPCODES:
            self.odd("legacy-magic", "the magic number is not written as one literal", "magic")
        if version != PROTOCOL_VERSION:
            self.odd("legacy-protocol", f"is not {PROTOCOL_VERSION}", "protocol")
        if not isinstance(system, Dict):
            self.odd("legacy-system", "is not a dict", "system")
        elif _get(system, "little_endian") is False:
            # torch ignores the flag and reads little-endian whatever it says.
            self.odd("legacy-byteorder", "claims to be big-endian; torch reads it little", "system")

    def read_storages(self) -> None:
        wanted = references(self.traces[_OBJECT].events)
        keys = self.keys()
        self.budget.pay_records(len(keys), "keys")
        for key in keys:
            refs = wanted.get(key)
            if refs is None:
                raise MalformedInput(
                    f"lists storage {key!r}, which no tensor refers to, so its size is unknown",
                    where="keys",
                )
            self.read_storage(key, refs)
        for key in wanted:
            if key not in self.storages:
                message = "is referred to but not listed"
                self.mishaps.append(Mishap("storage-missing", message, key, None))

    def keys(self) -> list[str]:
        root = self.traces[_KEYS].root
        if not isinstance(root, list):
            raise MalformedInput("is not a list of storage keys", where="keys")
        keys = [key for key in map(key_of, root) if key is not None]
        if len(set(keys)) < len(root):
            raise MalformedInput("is not a list of different storage keys", where="keys")
        return keys

    def read_storage(self, key: str, refs: list[StorageRef]) -> None:
        ref = refs[0]
        numel = int.from_bytes(self.source.read_at(self.at, 8), "little", signed=True)
        if any((other.dtype, other.numel) != (ref.dtype, ref.numel) for other in refs):
            raise MalformedInput(
                "is referred to as two different storages", where=f"storage {key}", offset=self.at
            )
        if numel != ref.numel:
            raise MalformedInput(
                f"has {counted(numel, 'element')} where the pickle says {ref.numel}",
                where=f"storage {key}",
                offset=self.at,
            )
        start = self.at + 8
        nbytes = numel * ref.dtype.itemsize
        if start + nbytes > self.source.size:
            raise MalformedInput(
                f"needs {counted(nbytes, 'byte')} where {left(self.source.size - start)}; "
                "the file is truncated: fetch it again",
                where=f"storage {key}",
                offset=start,
            )
        name = f"storage {key}"
        self.storages[key] = Storage(
            key, ref.dtype, numel, start, nbytes, ref.location, name, ref.typed
        )
        self.records.append(Record(name, start, nbytes, "stored", Role.STORAGE))
        self.ledger.claim(self.at, start, Use.STRUCTURE)
        self.ledger.claim(start, start + nbytes, Use.STORAGE)
        self.at = start + nbytes


def _get(pairs: Dict, key: str) -> Node:
    """The last value under *key*, as a dict would have it; None if there is none."""
    found: Node = None
    for name, value in pairs.pairs:
        if isinstance(name, str) and name == key:
            found = value
    return found


def begins_with_magic(first: Trace) -> bool:
    """Whether a stream whose first pickle is *first* is one that torch would take as legacy."""
    return first.error is None and first.root == MAGIC
