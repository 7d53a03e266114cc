"""Deflated records in a zip: read like stored ones, and no larger than promised."""

from __future__ import annotations

import zlib

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
