"""The records, and the files inside the file, that findings and gaps name.

Knows:      where the bytes of a record are, compressed, carried or as they are.
Is told:    a judgement, and whether hashes are wanted.
Never asks: what was found in a part; there is one for each that is named, and for what is
            around it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.containers import Kind, Role
from ckptaudit.errors import MalformedInput
from ckptaudit.policy import record_text

if TYPE_CHECKING:
    from ckptaudit.containers import Container, Place, Record
    from ckptaudit.policy import Judgement, Subject
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Trace

__all__ = ["Part", "parts_of"]

# Parts are hashed for who wants to find one again in another file: pickles and small files.  A
# larger one, or more of them, would be read for that alone.
_MOST_BYTES_OF_ONE = 16 << 20
_MOST_BYTES = 64 << 20
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Part:
    r"""A record, or a file inside the file.

    Attributes:
        record: What findings and gaps call it.
        name: Its own name, as what is around it spells it; but what is no text, a lone half of
            a surrogate pair, is escaped as ``\ud800``.
        within: Which part it is in, counted from 0; None if that is the file itself.
        role: What it is for.
        container: Its framing, if it was opened as a file; else None.
        offset: Its first byte in what it is in; None where it does not lie there as it is,
            compressed, in the bytes of a pickle, or without its beginning.
        file_offset: The same in the outermost file.
        size: Bytes, uncompressed; None if nobody can tell.
        sha256: Of those bytes; None if no hash is wanted, if they cannot all be read, or if
            they are too many to be read for that.
    """

    record: str
    name: str
    within: int | None
    role: Role
    container: Kind | None
    offset: int | None
    file_offset: int | None
    size: int | None
    sha256: str | None


def parts_of(judgement: Judgement, *, with_hash: bool) -> tuple[Part, ...]:
    """Every part that *judgement* names, behind what it is in; in the order of first mention."""
    parts = _Parts(judgement.places, _MOST_BYTES if with_hash else 0)
    for subject in (*(subject for _, subject in judgement.subjects), *judgement.unread):
        parts.add(subject)
    return tuple(parts.found)


class _Bytes(NamedTuple):
    """Where the bytes of a part are."""

    source: ByteSource
    start: int
    size: int


class _Parts:
    """The parts that were named so far."""

    def __init__(self, places: tuple[Place, ...], most_bytes: int) -> None:
        self.found: list[Part] = []
        self._left = most_bytes
        # By place, name, offset, and the pickle that carries it, the number of the part.
        self._numbers: dict[tuple[int, str, int | None, int], int] = {}
        # By place, its records by name; made for those places that are asked for.
        self._records: dict[int, dict[str, list[Record]]] = {}
        # By place and name, the files in it.
        self._inside: defaultdict[tuple[int, str], list[Place]] = defaultdict(list)
        for place in places:
            if place.parent is not None:
                self._inside[id(place.parent), place.around[-1]].append(place)

    def add(self, subject: Subject) -> None:
        if not subject.record:
            self._number_of_file(subject.place)
            return
        at = subject.offset
        if subject.trace is not None:
            at = subject.place.start_of(subject.trace)
        start = subject.place.start
        relative = None if at is None or start is None else at - start
        self._number(subject.place, subject.record, relative, subject.trace)

    def _number_of_file(self, place: Place) -> int | None:
        """The number of the file at *place*; None for the outermost one."""
        if place.parent is None or place.nested is None:
            return None
        return self._number(place.parent, place.around[-1], place.nested.offset, None, place)

    def _number(
        self,
        place: Place,
        name: str,
        at: int | None,
        trace: Trace | None,
        file: Place | None = None,
    ) -> int:
        """The number of the part called *name*, which is added if this is the first time.

        Args:
            place: What it is in.
            name: Its name there.
            at: Where, if that is known: of a record of a zip, from its header to its data.
            trace: The pickle that it is, if that is known.
            file: The file that it is, if that is known.
        """
        record = self._record(place, name, at)
        by = id(file.carried.trace) if file is not None and file.carried is not None else 0
        key = id(place), name, at if record is None else record.offset, by
        if key not in self._numbers:
            file = file or self._file(place, name, record)
            trace = trace or _trace(place.container, name, record)
            part = self._part(place, name, record, trace, file)
            self._numbers[key] = len(self.found)
            self.found.append(part)
        return self._numbers[key]

    def _record(self, place: Place, name: str, at: int | None) -> Record | None:
        if id(place) not in self._records:
            by_name: defaultdict[str, list[Record]] = defaultdict(list)
            for record in place.container.records:
                by_name[record.name].append(record)
            self._records[id(place)] = by_name
        records = self._records[id(place)].get(name, [])
        behind = (record for record in records if at is None or record.offset >= at)
        return next(behind, records[0] if records else None)

    def _file(self, place: Place, name: str, record: Record | None) -> Place | None:
        files = self._inside[id(place), name]
        offset = record.offset if record is not None else None
        same = (file for file in files if file.nested and file.nested.offset in (None, offset))
        return next(same, None)

    def _part(
        self,
        place: Place,
        name: str,
        record: Record | None,
        trace: Trace | None,
        file: Place | None,
    ) -> Part:
        container = place.container
        carried = file.carried if file else None
        if carried is not None:
            at = place.start_of(carried.trace)
            within: int | None = self._number(place, carried.trace.record, at, carried.trace)
        else:
            within = self._number_of_file(place)
        octets = _bytes_of(container, name, record, trace, file)
        offset = octets.start if octets and octets.source is container.source else None
        if offset is None and file is not None and file.nested is not None:
            offset = file.nested.offset
            # What began before the file around it does not lie there as it is.
            offset = None if offset is None or offset < 0 else offset
        role = Role.PICKLE if record is None and trace is not None else Role.UNKNOWN
        path = file.around if file is not None else place.path(name)
        return Part(
            record=record_text(path),
            name=name.encode("utf-8", "backslashreplace").decode("utf-8"),
            within=within,
            role=record.role if record is not None else role,
            container=file.container.kind if file else None,
            offset=offset,
            file_offset=place.offset(offset),
            size=octets.size if octets else None,
            sha256=self._hash(octets) if octets else None,
        )

    def _hash(self, octets: _Bytes) -> str | None:
        source, start, size = octets
        if size > min(self._left, _MOST_BYTES_OF_ONE):
            return None
        import hashlib  # noqa: PLC0415 - most scans hash no part

        self._left -= size
        hasher = hashlib.sha256()
        try:
            for at in range(start, start + size, _CHUNK):
                hasher.update(source.read_at(at, min(_CHUNK, start + size - at)))
        except MalformedInput:
            # What is compressed may be damaged, or cost more than the budget has left.
            return None
        return hasher.hexdigest()


def _trace(container: Container, name: str, record: Record | None) -> Trace | None:
    """The pickle that is the whole of a record, or that was found where no record is."""
    same = (
        trace
        for trace in container.traces
        if trace.record == name
        and (record is None or trace.start in (0, record.offset) or record.method != "stored")
    )
    return next(same, None)


def _bytes_of(
    container: Container,
    name: str,
    record: Record | None,
    trace: Trace | None,
    file: Place | None,
) -> _Bytes | None:
    """Where the bytes of a part are; None if nobody can tell."""
    if record is not None and record.method == "stored":
        left = container.source.size - record.offset
        if left < 0:
            return None
        return _Bytes(container.source, record.offset, min(record.nbytes, left))
    if file is not None:
        return _Bytes(file.container.source, 0, file.container.source.size)
    if trace is not None and trace.source is not None:
        if record is None:
            return _Bytes(trace.source, trace.start, trace.end)
        return _Bytes(trace.source, 0, trace.source.size)
    inflated = container.inflated.get(name)
    return _Bytes(inflated, 0, inflated.size) if inflated is not None else None
