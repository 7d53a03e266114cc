"""Safetensors as input: whatever its header says is checked before it is believed."""

from __future__ import annotations

import json

import pytest
from forge import CALLS_SYSTEM, STOP, safetensors_entry, safetensors_file

from ckptaudit.containers import Container, Kind, open_container
from ckptaudit.errors import CkptauditError, MalformedInput
from ckptaudit.source import BufferSource
from ckptaudit.tensors import find_state_dict
from ckptaudit.vm import Call, Global

DATA = bytes(range(24))
HEADER = {
    "__metadata__": {"format": "pt"},
    "a": safetensors_entry([2, 2], 0, 16),
    "b": safetensors_entry([4], 16, 24, "F16"),
}
FILE = safetensors_file(HEADER, DATA)


def opened(data: bytes) -> Container:
    return open_container(BufferSource(data))


def test_a_safetensors_file_holds_what_its_header_says() -> None:
    container = opened(FILE)

    assert container.kind is Kind.SAFETENSORS
    assert (container.mishaps, container.gaps) == ((), ())
    assert container.tensors["a"].shape == (2, 2)
    assert container.tensors["a"].stride == (2, 1)
    assert container.storages["b"].dtype.name == "float16"
    assert sum(record.nbytes for record in container.records) == len(FILE)


@pytest.mark.parametrize(
    "header",
    [
        {"a": safetensors_entry([2, 2], 0, 16), "b": safetensors_entry([1], 20, 24)},
        {"a": safetensors_entry([2, 2], 0, 16), "b": safetensors_entry([4], 8, 24)},
        {"a": safetensors_entry([2, 2], 0, 16)},
        {},
    ],
    ids=["a gap", "an overlap", "bytes behind", "no tensors"],
)
def test_data_that_is_not_covered_once_is_a_mishap(header: dict[str, object]) -> None:
    container = opened(safetensors_file(header, DATA))

    assert {mishap.code for mishap in container.mishaps} == {"safetensors-cover"}


@pytest.mark.parametrize(
    "header",
    [
        {"a": safetensors_entry([2, 2], 0, 16), "b": safetensors_entry([1], 20, 24)},
        {"a": safetensors_entry([2, 2], 0, 16)},
    ],
)
def test_data_that_no_tensor_has_is_a_gap(header: dict[str, object]) -> None:
    (gap,) = opened(safetensors_file(header, DATA)).gaps

    assert gap.offset == len(safetensors_file(header)) + 16


BIG = 1 << 61
ENTRY = b'{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'


@pytest.mark.parametrize(
    "header",
    [
        b"{ ",
        b"{]",
        b'{"a":' * 100_000,
        b"{\xff}",
        b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}",
        b'{"a":{"dtype":"F32","dtype":"F16","shape":[4],"data_offsets":[0,16]}}',
        b'{"\\ud800":' + ENTRY + b"}",
        b'{"__metadata__":{"a":"\\udfff"}}',
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}',
        {"__metadata__": []},
        {"__metadata__": {"a": 1}},
        {"a": None},
        {"a": {}},
        {"a": safetensors_entry([4], 0, 16, "F31")},
        {"a": safetensors_entry([4], 0, 16, 32)},
        {"a": safetensors_entry([4.0], 0, 16)},
        {"a": safetensors_entry([True] * 4, 0, 4, "U8")},
        {"a": safetensors_entry([-2, -2], 0, 16)},
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [False, True]}},
        {"a": safetensors_entry([4], 0.0, 16)},
        {"a": safetensors_entry([4], -16, 0)},
        {"a": safetensors_entry([4], 16, 0)},
        {"a": safetensors_entry([4], 0, 12)},
        {"a": safetensors_entry([7], 0, 28)},
        {"a": safetensors_entry([BIG], 0, 4 * BIG)},
        {"a": safetensors_entry([10**4000] * 2, 0, 16)},
        {"a": safetensors_entry([BIG] * 64, 0, 16)},
        {"a": safetensors_entry([1] * 100_000, 0, 4)},
        {"a": safetensors_entry([1 << 31, 1 << 31, 4], 0, 16)},
    ],
)
def test_a_header_that_breaks_the_rules_is_refused(header: dict[str, object] | bytes) -> None:
    with pytest.raises(MalformedInput):
        opened(safetensors_file(header, DATA))


def test_a_tensor_called_as_the_format_is_has_one_name() -> None:
    """Metadata tell names that were left out, each with the one kept; the format is none."""
    header = {
        "__metadata__": {"format": "pt", "tied": "pt"},
        "pt": safetensors_entry([6], 0, 24),
    }

    found = find_state_dict(opened(safetensors_file(header, DATA)))

    assert [view.key for view in found.views] == ["pt", "tied"]


def test_a_safetensors_file_that_is_a_pickle_too_shows_what_the_pickle_asks_for() -> None:
    """The first byte of the length is UNICODE; its line ends where the data begin."""
    data = b"\n0" + CALLS_SYSTEM + STOP
    header = json.dumps({"a": safetensors_entry([len(data)], 0, len(data), "U8")}).encode()
    container = opened(safetensors_file(header.ljust(256 + ord("V")), data))

    assert container.kind is Kind.SAFETENSORS
    assert {mishap.code for mishap in container.mishaps} == {"extra-pickle"}
    assert [type(event) for event in container.traces[0].events] == [Global, Call]


def test_a_pickle_behind_a_broken_safetensors_header_is_a_pickle() -> None:
    data = safetensors_file(b"{".ljust(256 + ord("V")), b"\n0" + CALLS_SYSTEM + STOP)

    container = opened(data)

    assert container.kind is Kind.PICKLE
    assert [type(event) for event in container.traces[0].events] == [Global, Call]


def test_no_beginning_of_a_safetensors_file_passes_for_the_whole() -> None:
    for length in range(len(FILE)):
        with pytest.raises(CkptauditError):
            opened(FILE[:length])
