"""Which framing a file has, the bare pickle among them, and what is no checkpoint at all."""

from __future__ import annotations

import gc
from contextlib import suppress

import pytest
from forge import (
    BINPERSID,
    CALLS_SYSTEM,
    NONE,
    Raw,
    TarStorage,
    TarTensor,
    floats,
    legacy_stream,
    pax_header,
    pickled,
    proto,
    safetensors_file,
    state_dict,
    tar_archive,
    tar_members,
    torch_zip,
    value,
)
from hypothesis import given
from hypothesis import strategies as st

from ckptaudit.containers import Container, Kind, open_container
from ckptaudit.errors import CkptauditError, MalformedInput, Unsupported
from ckptaudit.source import BufferSource
from ckptaudit.tensors import find_state_dict
from ckptaudit.vm import Call, PersistentId

EVIL = pickled(CALLS_SYSTEM)

OBJECT = state_dict({"a": 3, "b": 2}, legacy=True)
STORED = [("0", 3, floats(1, 2, 3)), ("1", 2, floats(4, 5))]
LEGACY = legacy_stream(OBJECT, STORED)

TAR_MEMBERS = tar_members(
    pickled(value({"w": Raw(value(7) + BINPERSID)})),
    [TarStorage(5, floats(1, 2, 3, 4, 5, 6))],
    [TarTensor(7, 5, (2, 3), (3, 1))],
    [(9, 5, 2, 3)],
)
TAR = tar_archive(TAR_MEMBERS)


def opened(data: bytes) -> Container:
    return open_container(BufferSource(data))


def is_whole(data: bytes) -> bool:
    """Whether *data* opens as something that was read to its end."""
    try:
        container = opened(data)
    except CkptauditError:
        return False
    return not container.gaps and all(trace.error is None for trace in container.traces)


def calls_in(container: Container) -> list[str]:
    events = [event for trace in container.traces for event in trace.events]
    return [str(event.func) for event in events if isinstance(event, Call)]


def storages_of(container: Container) -> dict[str, bytes]:
    return {
        key: container.bytes_of(storage).read_at(storage.offset, storage.nbytes)
        for key, storage in container.storages.items()
    }


# Bare pickles


def test_a_bare_pickle_is_a_container_of_one_pickle() -> None:
    container = opened(EVIL)

    assert container.kind is Kind.PICKLE
    assert [(record.offset, record.nbytes) for record in container.records] == [(0, len(EVIL))]
    assert (container.mishaps, container.gaps) == ((), ())
    assert container.object_trace.events


def test_pickles_behind_each_other_are_all_run() -> None:
    container = opened(pickled(NONE) + EVIL + pickled(NONE))

    assert calls_in(container) == ["posix.system"]
    assert {mishap.code for mishap in container.mishaps} == {"several-pickles"}
    assert [record.offset for record in container.records] == [0, 4, 4 + len(EVIL)]


def test_a_pickle_that_breaks_after_its_call_is_still_a_container() -> None:
    container = opened(EVIL[:-1] + b"\xff")

    assert calls_in(container) == ["posix.system"]
    with pytest.raises(MalformedInput, match="no opcode 0xff"):
        _ = container.object_trace


@pytest.mark.parametrize("tail", [b"\0", b"\xff" * 100, b"."])
def test_bytes_behind_a_pickle_are_a_gap(tail: bytes) -> None:
    container = opened(EVIL + tail)

    assert {mishap.code for mishap in container.mishaps} == {"bytes-after-pickle"}
    assert len(container.gaps) == 1


def test_pickles_without_end_are_not_all_run() -> None:
    container = opened(pickled(NONE) * 5000)

    # A thousand as pickles, and a thousand of what is left over.
    assert len(container.traces) == 2000
    assert container.gaps


def test_no_beginning_of_a_bare_pickle_passes_for_the_whole() -> None:
    assert not any(is_whole(EVIL[:length]) for length in range(len(EVIL)))


# What is something else


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"\n  <html><head>", "an HTML page"),
        (b"<?xml version='1.0'?><Error/>", "an XML document"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b'{"error": "not found"}', "JSON text"),
        (b"\xff\xd8\xff\xe0", "a JPEG image"),
        (b"GGUF\3\0\0\0" + bytes(20), "a GGUF model"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"PK\5\6" + bytes(18), "an empty zip archive"),
        (b"\xde\xad\xbe\xef" * 10, "is neither zip, tar, pickle nor safetensors"),
        (bytes(1000), "is neither zip, tar, pickle nor safetensors"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(data: bytes, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        opened(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8b\x08\0", "gzip-compressed"),
        (b"BZh91AY&SY", "bzip2-compressed"),
        (b"\xfd7zXZ\0", "xz-compressed"),
        (b"\x28\xb5\x2f\xfd", "zstandard-compressed"),
        (b"\x04\x22\x4d\x18", "lz4-compressed"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
        (b"Rar!\x1a\7\1\0", "a RAR archive"),
        (b"\x93NUMPY\1\0v\0{'descr'", "a NumPy array"),
    ],
)
def test_what_cannot_be_looked_into_is_a_gap_that_says_what_it_is(
    data: bytes, message: str
) -> None:
    container = opened(data)

    (gap,) = container.gaps
    assert message in gap.reason
    assert message in container.refusal
    with pytest.raises(Unsupported, match=message):
        find_state_dict(container)


def test_a_png_image_is_a_broken_pickle_with_a_persistent_id_and_is_called_what_it_is() -> None:
    """torch.load would run it as a pickle, so it is judged as one."""
    container = opened(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")

    assert [type(event) for event in container.traces[0].events] == [PersistentId]
    assert container.traces[0].error is not None
    assert [gap.reason for gap in container.gaps] == ["looks like a PNG image, not a checkpoint"]


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(MalformedInput, match="is empty; fetch it again"):
        opened(b"")


@pytest.mark.parametrize("data", [proto(2), proto(2) + b"}q\0X\xff", b"]q\0(K"])
def test_a_pickle_cut_short_before_it_said_anything_is_called_damaged(data: bytes) -> None:
    with pytest.raises(MalformedInput, match="truncated or damaged: fetch it again"):
        opened(data)


SMALL_FILES = [
    LEGACY,
    TAR,
    pax_header(mtime="1.5") + TAR,
    EVIL,
    torch_zip(state_dict({"a": 3}), {"0": floats(1, 2, 3)}),
    safetensors_file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
]
splices = st.lists(
    st.tuples(st.integers(0, 1 << 30), st.integers(0, 20), st.binary(max_size=12)),
    min_size=1,
    max_size=4,
)


@given(st.sampled_from(SMALL_FILES), splices)
def test_no_damage_makes_a_reader_raise_anything_but_our_errors(
    data: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    for at, length, patch in changes:
        place = at % (len(data) + 1)
        data = data[:place] + patch + data[place + length :]

    with suppress(CkptauditError):
        storages_of(opened(data))


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("data", [EVIL, LEGACY, EVIL[:5], b"", bytes(9)], ids=len)
def test_garbage_is_collected_afterwards_if_it_was_before(data: bytes, *, collects: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with suppress(CkptauditError):
            opened(data)
        assert gc.isenabled() is collects
    finally:
        (gc.enable if was else gc.disable)()
