"""Every byte of a file belongs to something, or a gap speaks of it."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from catalogue.benign import FILES
from forge import (
    BINPERSID,
    Raw,
    TarStorage,
    TarTensor,
    ZipEntry,
    extra_field,
    floats,
    legacy_stream,
    pax_header,
    pickled,
    safetensors_entry,
    safetensors_file,
    state_dict,
    storage_id,
    tar_archive,
    tar_members,
    tensor,
    torch_entries,
    torchscript_zip,
    value,
    zip_archive,
)
from hypothesis import given
from hypothesis import strategies as st

from ckptaudit.containers import Container, Kind, Use, open_container
from ckptaudit.errors import CkptauditError
from ckptaudit.source import BufferSource, FileSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REAL = Path(__file__).parents[2] / "shared" / "realfiles"

PICKLE = state_dict({"a": 3, "b": 2})
STORAGES = {"0": floats(1, 2, 3), "1": floats(4, 5)}
ENTRIES = torch_entries(PICKLE, STORAGES)
TAR = tar_archive(
    tar_members(
        pickled(value({"w": Raw(value(7) + BINPERSID)})),
        [TarStorage(5, floats(1, 2, 3, 4, 5, 6))],
        [TarTensor(7, 5, (2, 3), (3, 1))],
        [(9, 5, 2, 3)],
    )
)
HONEST: dict[str, bytes] = {
    "zip": zip_archive(ENTRIES),
    "zip-of-32-bits": zip_archive(ENTRIES, zip64=False),
    "zip-deflated": zip_archive([replace(entry, method=8) for entry in ENTRIES]),
    "torchscript": torchscript_zip(pickled(value({}))),
    "legacy": legacy_stream(
        state_dict({"a": 3, "b": 2}, legacy=True),
        [("0", 3, floats(1, 2, 3)), ("1", 2, floats(4, 5))],
    ),
    "tar": TAR,
    "tar-with-times": pax_header(mtime="1486000000.25") + TAR,
    "safetensors": safetensors_file(
        {"a": safetensors_entry([2], 0, 8), "b": safetensors_entry([1], 8, 12)}, floats(1, 2, 3)
    ),
    "pickle": pickled(value({"a": [1, 2.5, "x"]})),
}


def opened(data: bytes) -> Container:
    return open_container(BufferSource(data))


def uncovered(container: Container) -> Iterator[tuple[int, int]]:
    """Each longest range of bytes that is in no region."""
    at = 0
    for start, stop, _ in container.regions:
        if start > at:
            yield at, start
        at = max(at, stop)
    if at < container.source.size:
        yield at, container.source.size


def assert_tiled(container: Container) -> None:
    starts = [region.start for region in container.regions]
    stops = [region.stop for region in container.regions]
    assert starts == [0, *stops[:-1]]
    assert stops[-1] == container.source.size
    assert all(start < stop for start, stop in zip(starts, stops, strict=True))


def bytes_of(container: Container) -> Mapping[Use, int]:
    found: Counter[Use] = Counter()
    for start, stop, use in container.regions:
        found[use] += stop - start
    return found


# Of an honest file there is nothing left over


@pytest.mark.parametrize("data", HONEST.values(), ids=HONEST)
def test_the_regions_of_an_honest_file_cover_it_once(data: bytes) -> None:
    container = opened(data)

    assert (container.mishaps, container.gaps) == ((), ())
    assert_tiled(container)


@pytest.mark.parametrize("data", [pytest.param(item.file, id=item.kind) for item in FILES])
def test_the_regions_of_what_honest_programs_write_cover_it_once(data: bytes) -> None:
    """Of whatever they read to the end, and whatever they think of it."""
    container = opened(data)

    if not container.gaps and all(trace.error is None for trace in container.traces):
        assert_tiled(container)


OBJECTS: dict[str, object] = {
    "nothing": None,
    "weights": {"w": torch.arange(24.0).reshape(4, 6), "half": torch.ones(3).half()},
    "empty": {"w": torch.zeros(0)},
    "module": torch.nn.Linear(2, 3).state_dict(),
}


@pytest.mark.parametrize("save_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("obj", OBJECTS.values(), ids=OBJECTS)
def test_the_regions_of_what_torch_saves_cover_it_once(obj: object, *, save_zip: bool) -> None:
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=save_zip)

    assert_tiled(opened(buffer.getvalue()))


def test_what_torch_saves_without_checksums_has_no_wrong_one() -> None:
    buffer = io.BytesIO()
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        torch.save(OBJECTS["weights"], buffer)
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)

    container = opened(buffer.getvalue())

    assert container.mishaps == ()
    assert_tiled(container)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.name)
        for path in sorted(REAL.glob("*"))
        if path.suffix not in (".md", ".json")
    ],
)
def test_the_regions_of_a_real_file_cover_it_once(path: Path) -> None:
    """All but one, whose pickle is broken."""
    source = FileSource(path)
    with open_container(source) as container:
        broken = [trace for trace in container.traces if trace.error is not None]
        if not broken:
            assert container.gaps == ()
            assert_tiled(container)
        else:
            assert path.name == "picklescan_bad_pytorch.pt"


MAX32 = 0xFFFFFFFF


def write_large_zip(path: Path, numel: int) -> None:
    """A checkpoint of one storage of more than 4 GiB, most of it a hole, as miniz writes it.

    Where a field of 32 bits is too narrow it is all ones in the directory, and a zip64 field
    has the number; in the local header the packed size is not known yet and zero.
    """
    pickle = pickled(value({"w": Raw(tensor(storage_id("0", numel), (numel,)))}))
    contents = {"data.pkl": pickle, "data/0": None, "version": b"3\n"}
    directory = b""
    with path.open("wb") as file:
        for name, data in contents.items():
            size = 4 * numel if data is None else len(data)
            crc = 0 if data is None else zlib.crc32(data)
            header = file.tell()
            sizes = (size, 0) if size >= MAX32 else ()
            at = (header,) if header >= MAX32 else ()
            wide = struct.pack(f"<{len(sizes + at)}Q", *sizes, *at)
            extra = extra_field(b"\1\0", wide) if wide else b""
            raw = f"archive/{name}".encode()
            padding = -(header + 30 + len(raw) + len(extra) + 4) % 64
            extra += extra_field(b"FB", b"Z" * padding)
            numbers = (b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(raw), len(extra))
            file.write(struct.pack("<4s5H3I2H", *numbers) + raw + extra)
            file.write(data or b"")
            file.seek(size - len(data or b""), io.SEEK_CUR)
            layout = "<4sI2Q" if wide else "<4s3I"
            file.write(struct.pack(layout, b"PK\7\10", crc, size, size))
            known = struct.pack(f"<{len(sizes + at)}Q", *([size] * len(sizes)), *at)
            central = extra_field(b"\1\0", known) if known else b""
            narrow = (crc, min(size, MAX32), min(size, MAX32), len(raw), len(central))
            fields = (0, 0, 0x808, 0, 0, 0, *narrow, 0, 0, 0, 0, min(header, MAX32))
            directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + raw + central
        start = file.tell()
        places = (len(contents), len(contents), len(directory), start)
        file.write(directory)
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 798, 45, 0, 0, *places))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, start + len(directory), 1))
        count = len(contents)
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), MAX32, 0))


def test_the_regions_of_a_zip_of_more_than_4_gigabytes_cover_it_once(tmp_path: Path) -> None:
    path = tmp_path / "large.ckpt"
    write_large_zip(path, 1 << 30)

    with open_container(FileSource(path)) as container:
        assert container.source.size > MAX32
        assert (container.mishaps, container.gaps) == ((), ())
        assert_tiled(container)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("archive/data/0").file_size == 1 << 32


# A region says what its bytes are there for


@pytest.mark.parametrize("name", ["zip", "legacy", "tar", "safetensors"])
def test_storage_regions_are_where_the_storages_are(name: str) -> None:
    container = opened(HONEST[name])
    # In a tar, a storage may be a view of another.
    places = {(s.offset, s.offset + s.nbytes) for s in container.storages.values()}

    stored = {(r.start, r.stop) for r in container.regions if r.use is Use.STORAGE}

    assert stored <= places
    assert all(any(a <= start and stop <= b for a, b in stored) for start, stop in places)


@pytest.mark.parametrize("name", ["zip", "legacy", "tar", "pickle"])
def test_pickle_regions_are_where_the_pickles_are(name: str) -> None:
    container = opened(HONEST[name])
    starts = {record.name: record.offset for record in container.records}

    assert {(r.start, r.stop) for r in container.regions if r.use is Use.PICKLE} == {
        (starts[trace.record], starts[trace.record] + trace.end) for trace in container.traces
    }


def test_what_torch_writes_beside_pickle_and_storages_is_a_record() -> None:
    small = [b"little", b"3\n", b"0" * 40]

    assert bytes_of(opened(HONEST["zip"]))[Use.RECORD] == sum(map(len, small))


# Of any other file a gap speaks of what is left over


LEFT_OVER = {
    "zip-gap",
    "zip-comment",
    "tar-gap",
    "tar-member",
    "tar-duplicate",
    "bytes-after-pickle",
    "bytes-after-storages",
}


def assert_told(container: Container) -> None:
    """Whatever is in no region is told, and nothing that is told as left over is in one."""
    size = container.source.size
    assert all(0 <= start < stop <= size for start, stop, _ in container.regions)
    assert all(a <= b for a, b in pairwise(container.regions))
    starts = {record.name: record.offset for record in container.records}
    ends = {
        starts[trace.record] + trace.end
        for trace in container.traces
        if trace.error is not None and trace.record in starts
    }
    broken = {trace.record for trace in container.traces if trace.error is not None}
    broken |= {gap.record for gap in container.gaps if gap.record}
    # What cannot be inflated is left from where it begins.
    named = {record.offset for record in container.records if record.name in broken}
    told = {gap.offset for gap in container.gaps} | ends | named
    assert {start for start, _ in uncovered(container)} <= told

    codes = {mishap.code for mishap in container.mishaps}
    if "zip-overlap" not in codes and "safetensors-cover" not in codes:
        for mishap in container.mishaps:
            if mishap.code in LEFT_OVER and mishap.offset is not None:
                assert mishap.offset not in {start for start, _, _ in container.regions}


mutations = st.one_of(
    st.tuples(st.just("overwrite"), st.integers(0, 1 << 14), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("insert"), st.integers(0, 1 << 14), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("delete"), st.integers(0, 1 << 14), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("repeat"), st.integers(0, 1 << 14), st.binary(min_size=1, max_size=600)),
    st.tuples(st.just("append"), st.just(0), st.binary(min_size=1, max_size=40)),
)


def mutated(data: bytes, kind: str, at: int, piece: bytes) -> bytes:
    at %= len(data)
    match kind:
        case "overwrite":
            return (data[:at] + piece + data[at + len(piece) :])[: len(data)]
        case "insert":
            return data[:at] + piece + data[at:]
        case "delete":
            return data[:at] + data[at + len(piece) :]
        case "repeat":
            return data[:at] + data[max(0, at - len(piece)) : at] + data[at:]
        case _:
            return data + piece


@pytest.mark.parametrize("name", HONEST)
@given(st.lists(mutations, min_size=1, max_size=3))
def test_whatever_is_done_to_a_file_no_byte_of_it_is_passed_over(
    name: str, changes: list[tuple[str, int, bytes]]
) -> None:
    data = HONEST[name]
    for kind, at, piece in changes:
        data = mutated(data, kind, at, piece) or data

    with suppress(CkptauditError):
        assert_told(opened(data))


@pytest.mark.parametrize("name", HONEST)
@given(st.binary(min_size=1, max_size=40))
def test_nothing_can_be_added_to_the_end_of_a_file_in_silence(name: str, tail: bytes) -> None:
    if name.startswith("tar") and not any(tail):
        # Zeros end an archive, however many there are.
        return
    if name.startswith("zip") or name == "torchscript":
        # An end record of its own would make it another archive.
        tail = tail.replace(b"PK", b"pk")

    container = opened(HONEST[name] + tail)

    # Behind a bare pickle there may be another one, which is told as that.
    assert container.gaps or container.kind is Kind.PICKLE
    assert container.mishaps
    assert_told(container)


texts = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=8)


@given(
    records=st.dictionaries(
        texts.filter(lambda text: "/" not in text and "\\" not in text and ".." not in text),
        st.binary(max_size=20),
        max_size=4,
    ),
    method=st.sampled_from([0, 8]),
    zip64=st.booleans(),
)
def test_the_records_of_any_zip_cover_it_once(
    records: dict[str, bytes], method: int, *, zip64: bool
) -> None:
    """Strange records are read and told as such; no byte of them is left over."""
    more = [ZipEntry(f"archive/extra/{name}", data, method) for name, data in records.items()]

    container = opened(zip_archive([*ENTRIES, *more], zip64=zip64))

    if not any(trace.error or trace.record != "archive/data.pkl" for trace in container.traces):
        assert_tiled(container)


@given(st.lists(st.integers(0, 5), max_size=4))
def test_the_tensors_of_any_safetensors_file_cover_it_once(sizes: list[int]) -> None:
    header = {}
    end = 0
    for number, size in enumerate(sizes):
        header[f"t{number}"] = safetensors_entry([size], end, end + 4 * size)
        end += 4 * size
    container = opened(safetensors_file(header, bytes(end)))

    assert container.kind is Kind.SAFETENSORS
    assert_tiled(container)


@given(sizes=st.lists(st.integers(0, 5), max_size=4), tar=st.booleans())
def test_the_storages_of_any_older_file_cover_it_once(sizes: list[int], *, tar: bool) -> None:
    stored = [(str(key), size, bytes(4 * size)) for key, size in enumerate(sizes)]
    data = (
        tar_archive(tar_members(pickled(value({})), [TarStorage(k, d) for k, _, d in stored]))
        if tar
        else legacy_stream(state_dict({key: size for key, size, _ in stored}, legacy=True), stored)
    )

    container = opened(data)

    assert container.kind is (Kind.TAR if tar else Kind.LEGACY)
    assert_tiled(container)
