"""What an open file is, whatever its framing: records, pickles run, storages located.

Knows:      that a checkpoint is named byte ranges, some of them pickles, some storages.
Is told:    all of it, by the framing that read the file.
Never asks: which framing that was, what a tensor is called, whether a name is safe.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.errors import LimitExceeded, MalformedInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptaudit.containers.inside import Inside
    from ckptaudit.dtypes import DType
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Call, Trace

__all__ = [
    "MOST_DIMENSIONS",
    "Carried",
    "Container",
    "Gap",
    "Kind",
    "Mishap",
    "Nested",
    "Record",
    "Region",
    "Role",
    "Storage",
    "StoredTensor",
    "Use",
    "check_rank",
]

# torch has no limit: 2.13 saves and loads a tensor of 100,000 dimensions.  This one is ours,
# because one shape may be given to a million tensors.  Weights of known layers have up to five.
MOST_DIMENSIONS = 256


def check_rank(rank: int, where: str) -> None:
    """Refuse a tensor of more dimensions than we follow, before anything is done with them.

    Raises:
        LimitExceeded: It has more than `MOST_DIMENSIONS`.
    """
    if rank > MOST_DIMENSIONS:
        raise LimitExceeded(
            f"has {rank} dimensions, more than the {MOST_DIMENSIONS} we follow", where=where
        )


class Kind(str, Enum):
    """The framings we tell apart."""

    ZIP = "zip"
    TORCHSCRIPT = "torchscript"
    LEGACY = "legacy"
    TAR = "tar"
    PICKLE = "pickle"
    SAFETENSORS = "safetensors"
    # Several files that make up one model.
    FOLDER = "diffusers folder"
    # What is no checkpoint itself, but may hold one.
    COMPRESSED = "compressed"
    ARCHIVE = "archive"
    NUMPY = "numpy"


class Role(str, Enum):
    """What a record is for."""

    PICKLE = "pickle"
    STORAGE = "storage"
    METADATA = "metadata"
    UNKNOWN = "unknown"


class Use(str, Enum):
    """What bytes of a file are there for."""

    STRUCTURE = "structure"
    PADDING = "padding"
    PICKLE = "pickle"
    STORAGE = "storage"
    RECORD = "record"


class Region(NamedTuple):
    """Bytes ``[start, stop)`` of the file, and what they are there for."""

    start: int
    stop: int
    use: Use


@dataclass(frozen=True, slots=True)
class Record:
    """One named byte range of the file.

    Attributes:
        name: As the framing names it, such as ``archive/data/0``.
        offset: First byte of its data in the file.
        nbytes: Bytes it takes in the file.
        method: ``stored``, or how it is compressed.
        role: What it is for.
    """

    name: str
    offset: int
    nbytes: int
    method: str
    role: Role


@dataclass(frozen=True, slots=True)
class Storage:
    """A flat typed buffer and where its bytes lie.

    Attributes:
        key: What persistent ids call it.
        dtype: Type of its elements; uint8 for an untyped storage.
        numel: Elements.
        offset: First byte, counted in the record's uncompressed bytes where the
            record is compressed, else in the file.
        nbytes: Bytes, always ``numel * dtype.itemsize``.
        location: The device it was saved from, such as ``cuda:0``; never acted on.
        record: Name of the record that holds it.
        typed: False for an untyped storage, on which views bring their own dtype.
    """

    key: str
    dtype: DType
    numel: int
    offset: int
    nbytes: int
    location: str
    record: str
    typed: bool = True


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that the framing itself describes (tar, safetensors), before validation.

    Attributes:
        key: Its name, or the id by which a pickle refers to it.
        storage: Key of the storage it looks into.
        dtype: Type of its elements.
        shape: Elements per dimension.
        stride: Elements to step per dimension.
        offset: First element, counted in elements.
    """

    key: str
    storage: str
    dtype: DType
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Mishap:
    """A contradiction or leftover in the framing that its own writer never makes.

    Attributes:
        code: Stable short name, such as ``zip-gap``; `policy` turns it into a rule.
        message: What was seen.
        record: Name of the record concerned, or "" for the file as a whole.
        offset: Byte offset in the file, or None.
        length: Bytes that it is about, from there on; None if that is not known.
        stream_offset: If it is about an instruction of the pickle called *record*, bytes from
            the pickle's start to it.
    """

    code: str
    message: str
    record: str
    offset: int | None
    length: int | None = None
    stream_offset: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes that were recognised but not read; coverage is not complete.

    Attributes:
        reason: Why.
        record: Name of the record they are in, or "" for the file as a whole.
        offset: Byte offset in the file, or None where the record is compressed.
        stream_offset: Byte offset in the record's own, uncompressed bytes, or None.
        length: Bytes that were not read, from there on; None if that is not known.
    """

    reason: str
    record: str
    offset: int | None
    stream_offset: int | None = None
    length: int | None = None

    def __str__(self) -> str:
        if self.stream_offset is not None:
            return f"{self.record} @ byte {self.stream_offset}: {self.reason}"
        return f"{self.record}: {self.reason}" if self.record else self.reason

    @classmethod
    def left_by(cls, err: MalformedInput, offset: int | None) -> Gap:
        """What *err* kept from being read, beginning at byte *offset* of the file."""
        return cls(str(err.args[0]), err.where, offset, err.offset)


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """How a pickle brings a file along: as bytes that it hands to a call.

    Attributes:
        trace: The pickle.
        call: The call.
    """

    trace: Trace
    call: Call


@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """A file inside the file, opened as if it stood alone.

    Attributes:
        name: The record it is, or how it is packed, such as ``gzip``.
        offset: Where byte 0 of it is in the file around it, less than zero if its beginning is
            missing; None where it does not lie there as it is: compressed, or carried.
        container: What is in it.
        carried: How a pickle brings it along; None if it is a record.
    """

    name: str
    offset: int | None
    container: Container
    carried: Carried | None = None

    def record_name(self, record: str) -> str:
        """What a folder calls a *record* of this file in it."""
        return f"{self.name}/{record}"

    def storage(self, storage: Storage) -> Storage:
        """What a folder says of a *storage* of this file, so that its bytes are found there."""
        # In the bytes of a compressed record nothing moves.
        moved = 0 if storage.record in self.container.inflated else self.offset or 0
        return replace(
            storage,
            key=self.record_name(storage.key),
            record=self.record_name(storage.record),
            offset=storage.offset + moved,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Container:
    """An open file.  Use it as a context manager, or call `close`.

    Attributes:
        source: Where its bytes come from.
        kind: Its framing.
        records: Every named byte range, in file order.
        traces: Every pickle that was found, the one that holds the object before those that
            nothing refers to; offsets in them are relative to the record of the same name.
            Of records that share their bytes only the first has one.
        main: Index in *traces* of the pickle that holds the object, or None.
        storages: By key, every storage that could be located.
        tensors: By key, every tensor that the framing itself describes.
        byteorder: ``little`` or ``big``: how elements of storages are written.
        metadata: What the framing says of itself in words (safetensors' ``__metadata__``).
        mishaps: What is wrong with the framing.
        gaps: What was not read.
        inflated: By record name, the uncompressed bytes of compressed records.
        nested: Files inside the file, and other readings of its bytes.
        parts: Those of *nested* that together are the model, of a folder.
        regions: What each byte of the file is there for, in file order; those of an honest
            file cover it once and no more.  Where bytes belong to nothing, a gap begins, or
            a pickle of *traces* could not be read on.
        refusal: Why it is no checkpoint itself, and what to do; "" if it is one.
        notes: What is worth telling about how it was read.
        inside: Opens what else turns out to be a file inside it; None if it was not opened
            by `open_container`.
    """

    source: ByteSource
    kind: Kind
    records: tuple[Record, ...]
    traces: tuple[Trace, ...]
    main: int | None = None
    storages: Mapping[str, Storage] = field(default_factory=dict)
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)
    byteorder: str = "little"
    metadata: Mapping[str, str] = field(default_factory=dict)
    mishaps: tuple[Mishap, ...] = ()
    gaps: tuple[Gap, ...] = ()
    inflated: Mapping[str, ByteSource] = field(default_factory=dict)
    nested: tuple[Nested, ...] = ()
    parts: tuple[Nested, ...] = ()
    regions: tuple[Region, ...] = ()
    refusal: str = ""
    notes: tuple[str, ...] = ()
    inside: Inside | None = None

    def __enter__(self) -> Container:  # noqa: PYI034 - typing.Self is Python 3.11's
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the source."""
        self.source.close()

    @property
    def object_trace(self) -> Trace:
        """The pickle that holds the object.

        Raises:
            MalformedInput: There is none, or it could not be read to its end.
        """
        if self.main is None:
            raise MalformedInput("holds no pickle of an object", where=self.source.name)
        trace = self.traces[self.main]
        if trace.error is not None:
            raise trace.error
        return trace

    def bytes_of(self, storage: Storage) -> ByteSource:
        """Where to read *storage*: its bytes are at ``[offset, offset + nbytes)`` of this."""
        return self.inflated.get(storage.record, self.source)
