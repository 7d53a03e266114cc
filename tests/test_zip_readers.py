"""Zip archives as torch's own reader and Python's zipfile see them, and as we do.

torch's reader (`torch._C.PyTorchFileReader`, miniz inside) hands out records and unpickles
nothing.  Where it or zipfile opens an archive, whatever was done to it, the pickle that they
would hand to an unpickler is one that was run here; and an archive is clean only if all three
see the same records with the same bytes in them.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from forge import (
    ZipEntry,
    extra_field,
    floats,
    pickled,
    state_dict,
    torch_entries,
    torch_zip,
    unicode_path,
    value,
    zip_archive,
)
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from mutations import Mutation, mutated, mutations
from readers import BROKEN

from ckptaudit.containers import Container, open_container
from ckptaudit.errors import CkptauditError
from ckptaudit.policy import Severity, judge
from ckptaudit.source import BufferSource
from ckptaudit.tensors import misfits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PICKLE = state_dict({"w": 2})
PROTO = PICKLE[:1]
DATA = floats(1, 2)
PLAIN = torch_entries(PICKLE, {"0": DATA})
HIDDEN = torch_zip(pickled(value("hidden")))


@dataclass(frozen=True)
class Lie:
    """One field of one entry is not what torch would write."""

    entry: int
    field: str
    value: object


@dataclass(frozen=True)
class OneMore:
    """There is one entry more, in front of another."""

    entry: int
    name: str
    data: bytes


@dataclass(frozen=True)
class Moved:
    """One entry is the last one."""

    entry: int


@dataclass(frozen=True)
class Around:
    """Something about the archive as a whole: an argument of `zip_archive`, or bytes beside it."""

    field: str
    value: object


Mangle: TypeAlias = Lie | OneMore | Moved | Around


def mangled(mangles: Sequence[Mangle]) -> bytes:
    """An archive as torch writes it, but for the *mangles*."""
    entries = list(PLAIN)
    around: dict[str, Any] = {}
    for mangle in mangles:
        match mangle:
            case Around(field, value_):
                around[field] = value_
            case OneMore(at, name, data):
                entries.insert(at, ZipEntry(name, data))
            case Moved(at):
                entries.append(entries.pop(at))
            case Lie(at, field, value_):
                lie: dict[str, Any] = {field: value_}
                entries[at] = replace(entries[at], **lie)
    before, behind = around.pop("before", b""), around.pop("behind", b"")
    archive: bytes = before + zip_archive(entries, **around) + behind
    return archive


names = st.sampled_from(
    [
        *(entry.name for entry in PLAIN),
        "archive/DATA.PKL",
        "ARCHIVE/data.pkl",
        "archive/data.pkl/",
        "archive/./data.pkl",
        "archive\\data.pkl",
        "archive/data.pkl\0",
        "/archive/data.pkl",
        "../data.pkl",
        "other/data.pkl",
        "archive/archive/data.pkl",
        "data.pkl",
        "archive/data/1",
        "archive/\u0130.pkl",
        "archive/constants.pkl",
        "archive/x.pkl",
        "",
    ]
)
contents = st.integers(0, 9).map(lambda n: pickled(value(n))) | st.just(PICKLE)
tails = st.sampled_from([b"", b"\0", b"PK\5\6", b"\n" * 70, HIDDEN, HIDDEN[-22:]])
LIES: dict[str, st.SearchStrategy[object]] = {
    "name": names,
    "local_name": names,
    "data": contents,
    "method": st.sampled_from([0, 8, 12]),
    "local_method": st.sampled_from([0, 8, 99]),
    "flags": st.sampled_from([0, 1, 8, 0x0800, 0x0808, 0x20, 0x40]),
    "local_flags": st.sampled_from([0, 1, 8, 0x0808]),
    "local_sizes": st.tuples(*[st.sampled_from([0, 1, 147, (1 << 32) - 1])] * 2),
    "size": st.sampled_from([0, 1, 8, 146, 148, 1 << 20, (1 << 32) - 1]),
    "crc": st.sampled_from([0, 1]),
    "header": st.sampled_from([0, 1, 64, 240, 300, (1 << 32) - 1]),
    "extra": st.sampled_from(
        [b"", b"\n", extra_field(b"FB", b"x"), extra_field(b"\1\0", bytes(16))]
    ),
    "central_extra": st.sampled_from(
        [
            extra_field(b"\1\0", bytes(8)),
            extra_field(b"\1\0", (240).to_bytes(8, "little") * 3),
            unicode_path("archive/data.pkl", "archive/x"),
            b"\1",
        ]
    ),
    "comment": tails,
    "before": tails,
    "hidden": st.just(value=True),
    "packed": contents,
}
AROUND: dict[str, st.SearchStrategy[object]] = {
    "zip64": st.booleans(),
    "comment": tails,
    "start_at": st.sampled_from([1, 64, len(HIDDEN), 5000]),
    "count": st.sampled_from([0, 1, 4, 6]),
    "extension": tails,
    "before": st.sampled_from([b"\0", HIDDEN, PICKLE, b"PK\3\4"]),
    "behind": tails,
}
entry_numbers = st.integers(0, len(PLAIN) - 1)
mangles = st.lists(
    st.one_of(
        *(st.builds(Lie, entry_numbers, st.just(field), kind) for field, kind in LIES.items()),
        *[st.builds(OneMore, entry_numbers, names, contents)] * 3,
        st.builds(Moved, entry_numbers),
        *(st.builds(Around, st.just(field), kind) for field, kind in AROUND.items()),
    ),
    max_size=3,
)
damages = mutations(len(zip_archive(PLAIN)))


def seen_by_torch(data: bytes) -> dict[str, bytes] | None:
    """What torch reads under each name it lists, without the root; None if it refuses."""
    try:
        reader = torch._C.PyTorchFileReader(io.BytesIO(data))  # noqa: SLF001 - it has no other name
        return {name: reader.get_record(name) for name in reader.get_all_records()}
    except BROKEN:
        return None


def pickle_for_torch(data: bytes) -> bytes | None:
    """The bytes that torch.load would unpickle first; None if it refuses the archive."""
    if not data.startswith(b"PK\3\4"):
        # torch.load would not take it for an archive.
        return None
    try:
        reader = torch._C.PyTorchFileReader(io.BytesIO(data))  # noqa: SLF001 - the same
        pickle: bytes = reader.get_record("data.pkl")
    except BROKEN:
        return None
    return pickle


def seen_by_zipfile(data: bytes) -> dict[str, bytes | None] | None:
    """What zipfile reads under each name, None where it refuses that; or None for all of it."""
    read: dict[str, bytes | None] = {}
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except BROKEN:
        return None
    for info in archive.infolist():
        read[info.filename] = None
        with suppress(*BROKEN):
            read[info.filename] = archive.read(info)
    return read


def opened(data: bytes) -> Container | None:
    try:
        return open_container(BufferSource(data))
    except CkptauditError:
        return None


def pickles_run(container: Container) -> Iterator[bytes]:
    """Everything from the first byte of each pickle that was run to the last it may have."""
    for trace in container.traces:
        # Of what cannot be inflated nobody has run more than there is.
        with suppress(CkptauditError):
            if trace.source is not None:
                yield trace.source.read_at(trace.start, trace.stop - trace.start)
    for inner in container.nested:
        yield from pickles_run(inner.container)


def records_in(container: Container) -> dict[str, bytes]:
    """The bytes of each record, inflated."""
    records = {}
    for record in container.records:
        packed = container.source.read_at(record.offset, record.nbytes)
        stored = record.method == "stored"
        records[record.name] = packed if stored else zlib.decompress(packed, -zlib.MAX_WBITS)
    return records


def file_of(damage: list[Mangle] | list[Mutation]) -> bytes:
    """The archive with all of *damage* done to it: told to lie, or changed byte by byte."""
    lies_ = [one for one in damage if isinstance(one, Mangle)]
    bytes_ = [one for one in damage if not isinstance(one, Mangle)]
    return mutated(mangled(lies_), bytes_)


files = st.one_of(mangles, mangles, damages)


@settings(max_examples=500)
@example([Lie(0, "method", 8), Lie(0, "size", len(PICKLE) - 1)])
@example([Lie(0, "method", 8), Lie(0, "size", len(PICKLE) + 1)])
@given(files)
def test_the_pickle_that_torch_or_zipfile_reads_is_one_that_was_run(
    damage: list[Mangle] | list[Mutation],
) -> None:
    """Whatever else is wrong with the archive, and whether or not that has been told."""
    data = file_of(damage)
    theirs = [pickle_for_torch(data)]
    theirs += [
        content for name, content in (seen_by_zipfile(data) or {}).items() if name.endswith(".pkl")
    ]
    container = opened(data)

    ours = list(pickles_run(container)) if container else []

    for pickle in theirs:
        # A storage under the name of a pickle is no pickle.
        if pickle is not None and pickle.startswith(PROTO):
            assert container is not None
            assert any(run.startswith(pickle) for run in ours)


@settings(max_examples=500)
@given(files)
def test_a_clean_archive_is_the_same_to_torch_to_zipfile_and_here(
    damage: list[Mangle] | list[Mutation],
) -> None:
    data = file_of(damage)
    container = opened(data)
    if container is None or judge(container, misfits).verdict is not Severity.CLEAN:
        return
    event("clean")
    ours = records_in(container)
    root = container.records[0].name.split("/", 1)[0]

    by_torch = seen_by_torch(data) or {}
    by_zipfile = seen_by_zipfile(data) or {}

    assert {f"{root}/{name}": content for name, content in by_torch.items()} == ours
    assert by_zipfile.keys() == ours.keys()
    # zipfile refuses a wrong checksum, where torch compares none and a scan reads no storage.
    assert all(content in (None, ours[name]) for name, content in by_zipfile.items())
