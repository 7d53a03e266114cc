"""NumPy's ``.npy``: a header, then elements; if those are Python objects, a pickle of them.

Knows:      numpy/lib/format.py, versions 1 to 3.
Is told:    a source that begins with NumPy's magic, and what may be opened inside it.
Never asks: what the elements mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptaudit.containers.beginnings import NUMPY
from ckptaudit.containers.container import Container, Gap, Kind, Nested, Record, Role, Use
from ckptaudit.containers.ledger import Ledger
from ckptaudit.containers.npyheader import ArrayHeader, NotAHeader, parse_header
from ckptaudit.containers.trial import begins_like_a_pickle, may_act
from ckptaudit.errors import LimitExceeded, MalformedInput
from ckptaudit.vm import trace_pickle
from ckptaudit.wording import counted, left

if TYPE_CHECKING:
    from ckptaudit.containers.inside import Inside
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Trace

__all__ = ["open_npy"]

_REFUSAL = "is a NumPy array, not a torch checkpoint"
# Two bytes of version behind the magic.
_LENGTH_AT = len(NUMPY) + 2
# By version: bytes of the header's length, its encoding.
_VERSIONS = {1: (2, "latin-1"), 2: (4, "latin-1"), 3: (4, "utf-8")}
# NumPy itself takes no more than 10,000 unless it trusts the file.
_MOST_HEADER_BYTES = 1 << 20


def open_npy(source: ByteSource, inside: Inside) -> Container:
    """Read the array in *source*.  A header that cannot be read is a gap.

    What lies behind a header is run as a pickle unless its type is known to be plain.
    """
    return _Reading(source, inside).container()


class _Reading:
    """One array on its way to a `Container`."""

    def __init__(self, source: ByteSource, inside: Inside) -> None:
        self.source = source
        self.inside = inside
        self.ledger = Ledger(source, inside.budget)
        self.gaps = self.ledger.gaps
        self.records: list[Record] = []
        self.traces: list[Trace] = []
        self.nested: list[Nested] = []

    def container(self) -> Container:
        # A file may end within its version.
        data = min(_LENGTH_AT, self.source.size)
        header = None
        try:
            data, text = self.header()
            header = parse_header(text)
        except NotAHeader as err:
            self.gaps.append(Gap(f"{_REFUSAL}; its header {err}", "header", 0))
        except MalformedInput as err:
            self.gaps.append(Gap(f"{_REFUSAL}; its header {err.args[0]}", "header", 0))
        self.keep("header", 0, data, Role.METADATA, Use.STRUCTURE)
        if header is None:
            # Where the elements begin nobody knows, but a pickle there would still be one.
            self.ledger.leave(data, self.source.size, "data")
        elif header.itemsize is None:
            self.read_objects(data)
        else:
            self.skip_elements(data, header)
        self.ledger.settle("bytes-after-array", "after the array")
        return Container(
            source=self.source,
            kind=Kind.NUMPY,
            records=(*self.records, *self.ledger.records),
            traces=(*self.traces, *self.ledger.traces),
            mishaps=tuple(self.ledger.mishaps),
            gaps=tuple(self.gaps),
            nested=tuple(self.nested),
            regions=tuple(self.ledger.regions),
            refusal=_REFUSAL,
        )

    def keep(self, name: str, start: int, stop: int, role: Role, use: Use) -> None:
        self.records.append(Record(name, start, stop - start, "stored", role))
        self.ledger.claim(start, stop, use)

    def header(self) -> tuple[int, str]:
        """The offset of the first byte behind the header, and its text."""
        version = self.source.read_at(len(NUMPY), 2)
        if version[0] not in _VERSIONS or version[1]:
            raise NotAHeader(f"is of version {version[0]}.{version[1]}, which there is not")
        width, encoding = _VERSIONS[version[0]]
        length = int.from_bytes(self.source.read_at(_LENGTH_AT, width), "little")
        if length > _MOST_HEADER_BYTES:
            raise LimitExceeded("is longer than a megabyte", where=self.source.name)
        start = _LENGTH_AT + width
        try:
            return start + length, self.source.read_at(start, length).decode(encoding)
        except UnicodeDecodeError as err:
            raise NotAHeader(f"is not {encoding}") from err

    def read_objects(self, data: int) -> None:
        size = self.source.size
        trace = trace_pickle(self.source, data, size, record="data", budget=self.inside.budget)
        head = self.source.read_at(data, min(2, size - data))
        if not (trace.error is None or begins_like_a_pickle(head) or may_act(trace)):
            message = "has elements of a type that is not known to be plain, and no pickle of them"
            self.gaps.append(Gap(message, "data", data))
            self.ledger.leave(data, size, "data")
            return
        self.traces.append(trace)
        end = data + trace.end
        self.keep("data", data, end, Role.PICKLE, Use.PICKLE)
        if trace.error is None:
            self.look_behind(end)
        else:
            self.ledger.leave(end, size, "data")

    def skip_elements(self, data: int, header: ArrayHeader) -> None:
        nbytes = header.nbytes or 0
        rest = self.source.size - data
        self.keep("data", data, data + min(nbytes, rest), Role.STORAGE, Use.STORAGE)
        if nbytes > rest:
            message = f"needs {counted(nbytes, 'byte')} where {left(rest)}; fetch it again"
            self.gaps.append(Gap(message, "data", data))
        else:
            self.look_behind(data + nbytes)

    def look_behind(self, end: int) -> None:
        """Open the array that follows, if one does: numpy.save may be called again on a file."""
        size = self.source.size
        if self.source.read_at(end, min(len(NUMPY), size - end)) != NUMPY:
            return
        found = self.inside.look(self.source, end, size, "next", end)
        if isinstance(found, Nested):
            self.nested.append(found)
            self.ledger.claim(end, size, Use.RECORD)
        elif found is not None:
            self.gaps.append(found)
