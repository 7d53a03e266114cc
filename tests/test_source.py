"""Reading at offsets: what a file may do to us meanwhile, and windows that must not show."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptaudit.errors import MalformedInput, SourceChanged, SourceUnreadable
from ckptaudit.source import BufferSource, Cursor, FileSource, SplicedSource
from ckptaudit.wording import left

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = bytes(range(256)) * 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.ckpt"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def source(path: Path) -> Iterator[FileSource]:
    source = FileSource(path)
    yield source
    source.close()


# Ranges of several sources


class Hinted(BufferSource):
    """Takes down which of its bytes will be needed."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.hints: list[bytes] = []

    def will_need(self, offset: int, length: int) -> None:
        """See `ByteSource.will_need`."""
        self.hints.append(self.read_at(offset, length))


@given(
    ranges=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4),
    data=st.data(),
)
def test_a_hint_names_the_bytes_that_reading_would_give(
    ranges: list[tuple[int, int]], data: st.DataObject
) -> None:
    sources = [Hinted(bytes(range(100 * number, 100 * number + 50))) for number in (0, 1)] * 2
    starts = [min(start, 50 - length) for start, length in ranges]
    parts = [
        (source, start, length)
        for source, start, (_, length) in zip(sources, starts, ranges, strict=False)
    ]
    spliced = SplicedSource("both", *parts)
    offset = data.draw(st.integers(0, spliced.size))
    length = data.draw(st.integers(0, spliced.size - offset))

    spliced.will_need(offset, length)

    hints = [hint for source in dict.fromkeys(sources) for hint in source.hints]
    assert sorted(b"".join(hints)) == sorted(spliced.read_at(offset, length))


# Files


def test_a_file_reads_as_its_bytes(source: FileSource) -> None:
    assert source.size == len(DATA)
    assert source.read_at(0, source.size) == DATA
    assert source.read_at(300, 7) == DATA[300:307]
    assert source.read_at(source.size, 0) == b""


def test_a_file_fills_exactly_the_buffer_it_is_given(source: FileSource) -> None:
    buffer = bytearray(12)

    source.read_into(5, memoryview(buffer)[1:11])

    assert bytes(buffer) == b"\0" + DATA[5:15] + b"\0"


def test_short_reads_of_the_system_are_continued(
    source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 3), at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:3]], at))

    assert source.read_at(100, 50) == DATA[100:150]


def test_a_missing_file_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match=r"none\.ckpt: no such file"):
        FileSource(tmp_path / "none.ckpt")


def test_a_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match=r"is a directory; name a file in it$"):
        FileSource(tmp_path)


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    with pytest.raises(SourceUnreadable, match="is not a regular file"):
        FileSource(pipe)


def test_a_file_that_may_not_be_read_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By way of the system call: root, who runs many a test, may read everything."""

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(SourceUnreadable, match="check its permissions"):
        FileSource(path)


def test_a_path_with_a_nul_is_an_error_of_ours() -> None:
    with pytest.raises(SourceUnreadable):
        FileSource("a\0b")


def test_a_disk_that_fails_is_an_error_of_ours(
    source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    monkeypatch.setattr(os, "preadv", fail)

    with pytest.raises(SourceUnreadable, match=os.strerror(errno.EIO)):
        source.read_at(0, 1)
    with pytest.raises(SourceUnreadable, match=os.strerror(errno.EIO)):
        source.read_into(0, memoryview(bytearray(1)))


def test_a_file_cut_short_while_it_is_read_is_an_error(source: FileSource, path: Path) -> None:
    os.truncate(path, 100)

    assert source.read_at(0, 100) == DATA[:100]
    with pytest.raises(SourceChanged, match="cut short at byte 100"):
        source.read_at(90, 20)


def test_an_unchanged_file_passes_as_unchanged(source: FileSource) -> None:
    source.read_at(0, source.size)

    source.check_unchanged()


def test_a_file_written_to_is_noticed(source: FileSource, path: Path) -> None:
    path.write_bytes(DATA + b"more")

    with pytest.raises(SourceChanged, match="changed while it was read"):
        source.check_unchanged()


def test_setting_the_time_back_does_not_hide_a_change(source: FileSource, path: Path) -> None:
    before = path.stat()
    # The clock of the file system ticks in milliseconds.
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        path.write_bytes(DATA[::-1])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(SourceChanged):
        source.check_unchanged()


@pytest.mark.parametrize(
    ("offset", "length"), [(len(DATA) - 1, 2), (-1, 1), (0, -1), (1 << 70, 1), (0, 1 << 70)]
)
def test_a_range_outside_is_refused_before_anything_is_allocated(
    source: FileSource, offset: int, length: int
) -> None:
    for refusing in (source, BufferSource(DATA)):
        with pytest.raises(MalformedInput):
            refusing.read_at(offset, length)


# Cursors


class NarrowCursor(Cursor):
    """A cursor whose windows end in the middle of everything."""

    WINDOW = 5
    FIRST_WINDOW = 3


@given(st.binary(max_size=60), st.integers(0, 9), st.lists(st.integers(0, 12)))
def test_taking_across_windows_equals_slicing(data: bytes, start: int, lengths: list[int]) -> None:
    start = min(start, len(data))
    cursor = NarrowCursor(BufferSource(data), start, len(data), "here")
    rest = data[start:]

    for length in lengths:
        if length > len(rest):
            with pytest.raises(MalformedInput, match=left(len(rest))):
                cursor.take(length)
        else:
            assert cursor.take(length) == rest[:length]
            rest = rest[length:]
        assert cursor.remaining == len(rest)
        assert cursor.position == len(data) - start - len(rest)


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=8))
def test_taking_lines_across_windows_equals_splitting(lines: list[bytes]) -> None:
    data = b"".join(line + b"\n" for line in lines) + b"tail"
    cursor = NarrowCursor(BufferSource(data), 0, len(data), "here")

    assert [cursor.take_line(100) for _ in lines] == lines
    with pytest.raises(MalformedInput, match="no end of line within 4 bytes"):
        cursor.take_line(100)


def test_a_line_longer_than_the_limit_is_refused() -> None:
    cursor = NarrowCursor(BufferSource(b"x" * 1000 + b"\n"), 0, 1001, "here")

    with pytest.raises(MalformedInput, match="no end of line"):
        cursor.take_line(500)


def test_a_cursor_never_reads_past_its_stop() -> None:
    cursor = Cursor(BufferSource(b"inside\noutside\n"), 0, 6, "here")

    with pytest.raises(MalformedInput, match="here @ byte 0: no end of line"):
        cursor.take_line(100)
    assert cursor.take(6) == b"inside"
    with pytest.raises(MalformedInput, match="needs 1 byte where 0 are left"):
        cursor.take(1)
