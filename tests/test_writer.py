"""Safetensors files as the official library has them, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
from commands import names_in
from hypothesis import given
from hypothesis import strategies as st

from ckptaudit.dtypes import DTYPES
from ckptaudit.errors import OutputExists, OutputFailed
from ckptaudit.plan import OutputTensor
from ckptaudit.source import path_text
from ckptaudit.writer import Draft, check_destination, header_of, write_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STORABLE = [dtype for dtype in DTYPES if dtype.safetensors]


def publish(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    with Draft(path, len(data)) as draft:
        draft.write_at(0, data)
        draft.publish(overwrite=overwrite)


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.sampled_from(STORABLE),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        unique_by=lambda slot: slot[0],
        max_size=6,
    ),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text("aé\n"), max_size=3),
)
def test_the_official_library_reads_what_the_header_says(
    wanted: list[tuple[str, Any, list[int]]], metadata: dict[str, str]
) -> None:
    """Any name, any type, any shape; the data begin at a multiple of 8."""
    slots = []
    end = 0
    for name, dtype, shape in wanted:
        if name == "__metadata__":
            continue
        nbytes = dtype.itemsize
        for size in shape:
            nbytes *= size
        slots.append(OutputTensor(name, dtype, tuple(shape), end, nbytes))
        end += nbytes

    header = header_of(slots, metadata)

    assert len(header) % 8 == 0
    data = bytes(range(256)) * (end // 256 + 1)
    read: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(header + data[:end])
    found = dict(read)
    assert found.keys() == {slot.name for slot in slots}
    for slot in slots:
        entry = found[slot.name]
        assert (entry["dtype"], entry["shape"]) == (slot.dtype.safetensors, list(slot.shape))
        assert bytes(entry["data"]) == data[slot.offset : slot.offset + slot.nbytes]


def test_a_draft_has_no_final_name_before_it_is_published(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    with Draft(path, 4) as draft:
        draft.write_at(2, b"cd")
        draft.write_at(0, b"ab")
        assert not path.exists()
        draft.publish(overwrite=False)

    assert path.read_bytes() == b"abcd"
    assert names_in(tmp_path) == {"out.bin"}


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_draft_that_is_given_up_leaves_nothing(
    tmp_path: Path, fault: type[BaseException]
) -> None:
    def give_up() -> None:
        with Draft(tmp_path / "out.bin", 10) as draft:
            draft.write_at(0, b"half")
            raise fault

    with pytest.raises(fault):
        give_up()

    assert names_in(tmp_path) == set()


def test_what_was_written_reads_back(tmp_path: Path) -> None:
    with Draft(tmp_path / "out.bin", 6) as draft:
        draft.write_at(0, memoryview(b"abcdef"))
        buffer = bytearray(3)
        draft.read_into(2, memoryview(buffer))
        assert buffer == b"cde"
        with pytest.raises(OutputFailed, match="shorter than what was written"):
            draft.read_into(5, memoryview(buffer))


def test_a_file_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    with Draft(path, 4) as draft:
        draft.write_at(0, b"ours")
        path.write_bytes(b"theirs")
        with pytest.raises(OutputExists, match="by someone else"):
            draft.publish(overwrite=False)

    assert path.read_bytes() == b"theirs"
    assert names_in(tmp_path) == {"out.bin"}


def test_overwriting_is_all_at_once(tmp_path: Path) -> None:
    """Whoever has the old file open keeps reading the old file."""
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with path.open("rb") as old:
        publish(path, b"new and longer", overwrite=True)

        assert old.read() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert names_in(tmp_path) == {"out.bin"}


def test_without_hard_links_a_file_is_renamed_and_still_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT and some network file systems have none."""

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)

    publish(tmp_path / "out.bin", b"data")
    with pytest.raises(OutputExists):
        publish(tmp_path / "out.bin", b"more")

    assert (tmp_path / "out.bin").read_bytes() == b"data"
    assert names_in(tmp_path) == {"out.bin"}


@pytest.mark.parametrize(
    ("blocks", "free", "fits"),
    [(100, 3, True), (100, 2, False), (0, 0, True)],
    ids=["just-enough", "a-byte-too-few", "a-file-system-that-does-not-say"],
)
def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, free: int, *, fits: bool
) -> None:
    here = os.statvfs(tmp_path)

    def counted(_fd: int) -> os.statvfs_result:
        # Size of a block twice, blocks in all, blocks free, blocks free for us; the rest as it is.
        return os.statvfs_result((512, 512, blocks, free, free, *here[5:]))

    monkeypatch.setattr(os, "fstatvfs", counted)

    if fits:
        with Draft(tmp_path / "long.bin", 1025) as draft:
            draft.publish(overwrite=False)
        assert (tmp_path / "long.bin").stat().st_size == 1025
    else:
        with pytest.raises(OutputFailed, match="no space left"), Draft(tmp_path / "out.bin", 1025):
            pass
        assert names_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "file system does not take"),
        (errno.EIO, "cannot be written"),
    ],
)
@pytest.mark.parametrize("call", ["ftruncate", "pwrite", "fsync"])
def test_a_disk_that_refuses_is_named_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, advice: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)

    with pytest.raises(OutputFailed, match=advice) as caught:
        publish(tmp_path / "out.bin", b"data")

    assert str(caught.value).startswith(str(tmp_path / "out.bin"))
    assert names_in(tmp_path) == set()


def test_an_interrupt_while_space_is_reserved_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "ftruncate", interrupt)

    with pytest.raises(KeyboardInterrupt), Draft(tmp_path / "out.bin", 10):
        pass

    assert names_in(tmp_path) == set()


def test_a_folder_that_cannot_be_synced_does_not_undo_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def files_only(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(fd)

    monkeypatch.setattr(os, "fsync", files_only)

    publish(tmp_path / "out.bin", b"data")

    assert (tmp_path / "out.bin").read_bytes() == b"data"


def test_files_are_as_readable_as_any_other_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        publish(tmp_path / "out.bin", b"data")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "out.bin").stat().st_mode) == 0o640


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.symlink_to("elsewhere")


def a_file(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize(
    ("make", "name", "overwrite", "words"),
    [
        (a_file, "out", False, "exists; choose another name"),
        (a_folder, "out", True, "is a directory"),
        (a_pipe, "out", True, "name a regular file"),
        (a_link, "out", True, "name a regular file"),
        (a_file, "out/below", True, "is no directory"),
        (a_folder, "out/missing/file", True, "is no directory; create it first"),
        (a_folder, "out/" + "n" * 300, True, "name is too long"),
    ],
    ids=["exists", "folder", "pipe", "link", "under-a-file", "no-folder", "long-name"],
)
def test_a_destination_that_cannot_be_is_refused_early(
    tmp_path: Path, make: Callable[[Path], None], name: str, words: str, *, overwrite: bool
) -> None:
    make(tmp_path / "out")

    with pytest.raises((OutputExists, OutputFailed), match=words):
        check_destination(tmp_path / name, overwrite=overwrite)
    with pytest.raises((OutputExists, OutputFailed), match=words):
        write_text(tmp_path / name, b"", overwrite=overwrite)

    assert names_in(tmp_path) == {"out"}


def test_a_header_the_official_library_refuses_is_never_published(tmp_path: Path) -> None:
    header = header_of([OutputTensor("a", DTYPES[1], (2,), 0, 8)], {})
    path = tmp_path / "out.safetensors"
    with Draft(path, len(header)) as draft:
        draft.write_at(0, header)
        with pytest.raises(OutputFailed, match="a bug in ckptaudit"):
            draft.check_opens()

    assert names_in(tmp_path) == set()


def test_a_file_larger_than_the_process_may_write_is_one_error(tmp_path: Path) -> None:
    """RLIMIT_FSIZE gives EFBIG in the midst of things, as a full disk gives ENOSPC."""
    script = """
import resource, signal, sys
from pathlib import Path
from ckptaudit.errors import OutputFailed
from ckptaudit.writer import Draft
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with Draft(Path(sys.argv[1]), 2000):
        pass
except OutputFailed as err:
    print(err)
"""
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", script, tmp_path / "out.bin"],
        capture_output=True,
        check=True,
        timeout=60,
    )

    assert b"does not take files of this size" in done.stdout
    assert names_in(tmp_path) == set()


def test_a_path_that_is_not_utf8_is_shown_and_stored_escaped() -> None:
    assert path_text(os.fsdecode(b"mod\xff.ckpt")) == r"mod\udcff.ckpt"
    assert path_text("modèle.ckpt") == "modèle.ckpt"
