"""Deflated records in a zip: read like stored ones, and no larger than promised."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest
from forge import (
    floats,
    state_dict,
    torch_entries,
    with_entry,
    zip_archive,
)

from ckptaudit.containers import Container, open_container
from ckptaudit.errors import LimitExceeded, MalformedInput
from ckptaudit.source import BufferSource

PICKLE = state_dict({"a": 3, "b": 2})
STORAGES = {"0": floats(1, 2, 3), "1": floats(4, 5)}
ENTRIES = torch_entries(PICKLE, STORAGES)
PLAIN = zip_archive(ENTRIES)


def opened(data: bytes) -> Container:
    return open_container(BufferSource(data))


def deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def lying(name: str, **lies: object) -> bytes:
    return zip_archive(with_entry(ENTRIES, name, **lies))


def test_deflated_storages_read_in_any_order() -> None:
    numbers = floats(*range(10_000))
    pickle = state_dict({"a": 10_000})
    container = opened(
        zip_archive(with_entry(torch_entries(pickle, {"0": numbers}), "data/0", method=8))
    )
    storage = container.storages["0"]
    source = container.bytes_of(storage)

    assert source.read_at(30_000, 100) == numbers[30_000:30_100]
    assert source.read_at(4, 8) == numbers[4:12]
    assert source.read_at(0, storage.nbytes) == numbers


@pytest.mark.parametrize(("offset", "length"), [(0, 13), (12, 1), (-1, 1), (0, -1), (0, 1 << 60)])
def test_a_range_outside_a_deflated_record_is_refused(offset: int, length: int) -> None:
    container = opened(lying("data/0", method=8))
    source = container.bytes_of(container.storages["0"])

    with pytest.raises(MalformedInput, match="the record ends at byte 12"):
        source.read_at(offset, length)


def test_a_deflated_storage_that_goes_on_is_refused_where_it_is_read() -> None:
    data = lying("data/0", method=8, packed=deflated(floats(1, 2, 3, 4)))
    container = opened(data)
    source = container.bytes_of(container.storages["0"])

    with pytest.raises(MalformedInput, match="does not inflate to the 12 bytes promised"):
        source.read_at(0, 12)


def test_reading_a_deflated_record_backwards_forever_is_refused() -> None:
    pickle = state_dict({"a": 100_000})
    entries = torch_entries(pickle, {"0": bytes(400_000)})
    container = opened(zip_archive(with_entry(entries, "data/0", method=8)))
    source = container.bytes_of(container.storages["0"])

    def read_to_and_fro() -> None:
        for _ in range(1000):
            source.read_at(399_000, 10)
            source.read_at(0, 10)

    with pytest.raises(LimitExceeded, match="inflated too often"):
        read_to_and_fro()


def test_a_bomb_is_refused_before_it_is_inflated() -> None:
    container = opened(lying("data.pkl", method=8, packed=b"\0", size=1 << 31))

    with pytest.raises(LimitExceeded, match="more than deflate can"):
        _ = container.object_trace


class Counting(BufferSource):
    """Counts the bytes read from one range."""

    def __init__(self, data: bytes, watched: range) -> None:
        super().__init__(data)
        self.watched = watched
        self.read = 0

    def read_at(self, offset: int, length: int) -> bytes:
        """See `ByteSource.read_at`."""
        inside = range(max(offset, self.watched.start), min(offset + length, self.watched.stop))
        self.read += len(inside)
        return super().read_at(offset, length)


def test_a_compressed_storage_is_inflated_once_to_see_where_it_ends() -> None:
    numbers = floats(*range(100_000))
    entries = torch_entries(state_dict({"a": 100_000}), {"0": numbers})
    data = zip_archive(with_entry(entries, "data/0", method=8))
    (record,) = (r for r in opened(data).records if r.name == "archive/data/0")
    # Before these a few are read with the header, and behind them the end record is looked for.
    watched = range(record.offset + 64, len(data) - (1 << 16) - 22)
    assert len(watched) > record.nbytes // 3
    source = Counting(data, watched)

    container = open_container(source)

    assert (container.mishaps, container.gaps) == ((), ())
    assert source.read == len(watched)


def test_a_storage_that_inflates_a_thousandfold_is_told_and_inflated() -> None:
    size = 32 << 20
    entries = torch_entries(state_dict({"a": size // 4}), {"0": bytes(size)})

    container = opened(zip_archive(with_entry(entries, "data/0", method=8)))

    assert {mishap.code for mishap in container.mishaps} == {"zip-ratio"}
    assert container.gaps == ()


def test_storages_that_claim_to_inflate_to_too_much_are_not_inflated() -> None:
    """Each of them is 1000 times as large as its bytes; where they end is not known."""
    size = 600 << 20
    packed = bytes(size // 1000)
    names = [str(key) for key in range(3)]
    entries = [
        replace(entry, method=8, packed=packed, size=size) if "/data/" in entry.name else entry
        for entry in torch_entries(
            state_dict(dict.fromkeys(names, size // 4)), dict.fromkeys(names, b"")
        )
    ]

    container = opened(zip_archive(entries))

    gaps = [gap.record for gap in container.gaps if "times the file" in gap.reason]
    assert gaps == ["archive/data/1", "archive/data/2"]


@pytest.mark.parametrize("name", ["data.pkl", "data/0", "version"])
def test_the_checksum_of_what_is_compressed_is_compared(name: str) -> None:
    container = opened(lying(name, method=8, crc=1))

    (mishap,) = container.mishaps
    assert (mishap.code, mishap.record) == ("zip-crc", f"archive/{name}")
