"""Bytes of a storage that no tensor shows are found, exactly, and nothing else is."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import pytest
from forge import (
    BINPERSID,
    BUILD,
    MARK,
    NONE,
    POP,
    REDUCE,
    TUPLE,
    TUPLE2,
    Raw,
    TarStorage,
    TarTensor,
    ZipEntry,
    binget,
    binput,
    call,
    floats,
    global_,
    legacy_stream,
    made,
    pickled,
    storage_id,
    tar_archive,
    tar_members,
    tensor,
    torch_entries,
    torch_zip,
    value,
    zip_archive,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptaudit.containers import Gap, Mishap, open_container
from ckptaudit.source import BufferSource
from ckptaudit.tensors import cover, misfits

if TYPE_CHECKING:
    from collections.abc import Mapping

SIZE = 64
FOUR = {"0": floats(1, 2, 3, 4)}
PID = storage_id("0", 4)
FIRST_TWO = tensor(PID, (2,))
NO_HOOKS = Raw(call("collections", "OrderedDict"))


def found(data: bytes) -> list[Mishap | Gap]:
    return list(misfits(open_container(BufferSource(data))))


def found_in(*parts: bytes, storages: Mapping[str, bytes] | None = None) -> list[Mishap | Gap]:
    return found(torch_zip(pickled(*parts), FOUR if storages is None else storages))


def codes(faults: list[Mishap | Gap]) -> list[str]:
    return ["gap" if isinstance(fault, Gap) else fault.code for fault in faults]


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, stride and offset of a view that fits into `SIZE` elements."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    stride = tuple(draw(st.integers(0, 20)) for _ in shape)
    span = sum(max(size - 1, 0) * step for size, step in zip(shape, stride, strict=True))
    if span >= SIZE:
        shape, stride, span = shape[:1], (1,) * len(shape[:1]), prod(shape[:1])
    return shape, stride, draw(st.integers(0, SIZE - 1 - span))


@given(st.lists(windows(), max_size=6), st.integers(0, SIZE))
def test_what_no_view_touches_is_left_over_to_the_byte(
    views: list[tuple[tuple[int, ...], tuple[int, ...], int]], dense: int
) -> None:
    """Numpy is the oracle: stride a ramp of indices and look at which ones appear."""
    ramp = np.arange(SIZE)
    views = [*views, ((dense,), (1,), 0)]
    touched: set[int] = set()
    for shape, stride, offset in views:
        steps = [ramp.itemsize * step for step in stride]
        seen = np.lib.stride_tricks.as_strided(ramp[offset:], shape, steps)
        touched |= set(seen.ravel().tolist())
    missing = sorted(set(range(SIZE)) - touched)
    opcodes = [Raw(tensor(storage_id("0", SIZE), *view)) for view in views]
    data = torch_zip(pickled(value(opcodes)), {"0": floats(*range(SIZE))})

    faults = found(data)

    assert codes(faults) == (["storage-uncovered"] if missing else [])
    for fault in faults:
        assert isinstance(fault, Mishap)
        assert fault.offset == data.index(floats(0, 1)) + 4 * missing[0]
        assert f"{4 * len(missing)} of the {4 * SIZE} bytes of storage '0'" in fault.message


COVERED: dict[str, bytes] = {
    "one-tensor": tensor(PID, (4,)),
    "a-turned-one": tensor(PID, (2, 2), (1, 2)),
    "an-expanded-one": tensor(PID, (3, 4), (0, 1)),
    "overlapping-ones": tensor(PID, (3, 2), (1, 1)),
    "a-long-stride-of-one-element": tensor(PID, (1, 4), (1 << 40, 1)),
    "halves": value([Raw(FIRST_TWO), Raw(tensor(PID, (2,), offset=2))]),
    "columns": value([Raw(tensor(PID, (2,), (2,), offset)) for offset in (0, 1)]),
    "one-that-is-dropped": value([Raw(FIRST_TWO)]) + tensor(PID, (4,)) + POP,
    "one-in-a-dropped-state": (
        call("torch", "FloatTensor")
        + value((Raw(PID), 0, (4,), (1,)))
        + BUILD
        + value((Raw(PID), 0, (2,), (1,)))
        + BUILD
    ),
    "inside-another-rebuild": call(
        "torch.tensor",
        "_rebuild_from_type",
        Raw(global_("torch._utils", "_rebuild_tensor_v2")),
        Raw(global_("torch", "Tensor")),
        (Raw(PID), 0, (4,), (1,), 0, NO_HOOKS),
        {},
    ),
    "with-deferred-changes": call(
        "torch._utils", "_rebuild_tensor_v2", Raw(PID), 0, (4,), (1,), 0, NO_HOOKS, {"neg": True}
    ),
    "the-storage-itself": value({"w": Raw(FIRST_TWO), "s": Raw(PID)}),
    "the-storage-itself-alone": PID,
    "the-storage-as-an-argument": call("thing", "run", Raw(PID)),
    "the-storage-as-a-state": made("thing", "Thing", {"s": Raw(PID)}),
    "the-storage-shared-with-a-tensor": (
        PID + (binput(0) + POP) + value([Raw(tensor(binget(0), (2,))), Raw(binget(0))])
    ),
}


@pytest.mark.parametrize("opcodes", COVERED.values(), ids=COVERED)
def test_what_is_shown_in_whichever_way_is_not_left_over(opcodes: bytes) -> None:
    assert found_in(opcodes) == []


PARTLY: dict[str, bytes] = {
    "a-slice": FIRST_TWO,
    "a-column": tensor(PID, (2,), (2,)),
    "nothing-of-it": value([Raw(tensor(PID, (0,))), Raw(tensor(PID, (2, 0)))]),
    "a-storage-that-is-dropped": PID + POP + FIRST_TWO,
    "a-storage-that-only-a-dropped-list-has": value([Raw(PID)]) + POP + FIRST_TWO,
    "the-storage-of-a-tensor-is-no-value": PID + binput(0) + POP + tensor(binget(0), (2,)),
    "the-storage-of-a-state-is-no-value": (
        call("torch", "FloatTensor") + value((Raw(PID), 0, (2,), (1,))) + BUILD
    ),
    "the-storage-of-an-inner-rebuild-is-no-value": call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        Raw(global_("torch._utils", "_rebuild_tensor_v2")),
        Raw(global_("torch", "Tensor")),
        (Raw(PID), 0, (2,), (1,), 0, NO_HOOKS),
        {},
    ),
}


@pytest.mark.parametrize("opcodes", PARTLY.values(), ids=PARTLY)
def test_what_nobody_who_loads_the_file_sees_is_left_over(opcodes: bytes) -> None:
    assert codes(found_in(opcodes)) == ["storage-uncovered"]


def test_a_rest_that_is_no_whole_element_is_left_over() -> None:
    pid = storage_id("0", 18, module="torch.storage", storage="UntypedStorage")
    kind = Raw(global_("torch", "float32"))
    v3 = call("torch._utils", "_rebuild_tensor_v3", Raw(pid), 0, (4,), (1,), 0, NO_HOOKS, kind)

    (fault,) = found_in(v3, storages={"0": bytes(18)})

    assert isinstance(fault, Mishap)
    assert fault.message.startswith("no tensor shows 2 of the 18 bytes")


@pytest.mark.parametrize(
    ("storage", "shape", "stored", "outcome"),
    [
        ("QUInt4x2Storage", (3, 8), 12, []),
        ("QUInt4x2Storage", (5,), 3, []),
        ("QUInt2x4Storage", (4, 4), 4, []),
        ("QInt8Storage", (12,), 12, []),
        ("QUInt4x2Storage", (3, 8), 13, ["storage-uncovered"]),
        ("QInt8Storage", (12,), 13, ["storage-uncovered"]),
        ("QUInt4x2Storage", (3, 8), 11, ["tensor-outside"]),
        ("QUInt4x2Storage", (-1,), 11, ["tensor-outside"]),
        ("QInt8Storage", (12,), 11, ["tensor-outside"]),
    ],
)
def test_quantised_tensors_are_held_against_their_storage(
    storage: str, shape: tuple[int, ...], stored: int, outcome: list[str]
) -> None:
    """Torch 2.13 keeps 24 elements of quint4x2 in a storage that says it has 12."""
    stride = (shape[-1], 1)[-len(shape) :]
    opcodes = call(
        "torch._utils",
        "_rebuild_qtensor",
        Raw(storage_id("0", stored, storage=storage)),
        0,
        shape,
        stride,
        (Raw(global_("torch", "per_tensor_affine")), 1.0, 0),
        0,
        NO_HOOKS,
    )

    assert codes(found_in(opcodes, storages={"0": bytes(stored)})) == outcome


def test_views_of_a_legacy_storage_count_from_their_own_start() -> None:
    def stream(*starts: int) -> bytes:
        ids = [Raw(storage_id("0", 4, view=((str(start), start, 2),))) for start in starts]
        tensors = [Raw(tensor(pid.opcodes, (2,))) for pid in ids[1:]]
        return legacy_stream(pickled(value([*tensors, ids[0]])), [("0", 4, floats(1, 2, 3, 4))])

    assert found(stream(0, 2)) == []
    assert codes(found(stream(0, 1))) == ["storage-uncovered"]
    assert codes(found(stream(0))) == ["storage-uncovered"]


def test_a_storage_of_a_tar_may_be_a_part_of_another() -> None:
    def tar(tensors: list[TarTensor], keys: list[int]) -> bytes:
        storage = TarStorage(5, floats(1, 2, 3, 4))
        halves = [(8, 5, 0, 2), (9, 5, 2, 2)]
        ids = [Raw(value(key) + BINPERSID) for key in keys]
        return tar_archive(tar_members(pickled(value(ids)), [storage], tensors, halves))

    first, second = TarTensor(1, 8, (2,), (1,)), TarTensor(2, 9, (2,), (1,))

    assert found(tar([first, second], [1, 2])) == []
    assert found(tar([first], [1, 9])) == []
    assert codes(found(tar([first], [1]))) == ["storage-uncovered"]


def test_a_storage_with_a_worse_fault_has_no_second_one() -> None:
    assert codes(found_in(tensor(PID, (5,)))) == ["tensor-outside"]
    assert codes(found_in(tensor(PID, (2,), offset=-1))) == ["tensor-outside"]
    assert codes(found_in(tensor(PID, (1 << 40,), (0,)))) == ["tensor-expanded", "gap"]


@pytest.mark.parametrize("depth", [1, 7, 50_000])
def test_a_window_inside_many_rebuilds_is_found_outside(depth: int) -> None:
    """Torch never writes more than one; so deep that we do not follow, that is a fault itself."""
    rebuild = global_("torch._tensor", "_rebuild_from_type_v2")
    cls = global_("torch", "Tensor")
    window = global_("torch._utils", "_rebuild_tensor_v2")
    inner = value((Raw(PID), 0, (5,), (1,), 0, NO_HOOKS))
    arguments = (MARK + rebuild + cls) * (depth - 1) + MARK + window + cls + inner

    faults = found_in(rebuild, arguments, (value({}) + TUPLE) * depth, REDUCE)

    assert codes(faults) == ["tensor-outside"]


def test_where_not_all_tensors_were_looked_at_nothing_is_called_left_over() -> None:
    assert codes(found_in(value([Raw(tensor(PID, (1,) * 300)), Raw(FIRST_TWO)]))) == ["gap"]


def test_views_in_too_many_pieces_are_said_to_be_not_worked_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    column = tensor(storage_id("0", 40), (10,), (4,))
    matrix = {"0": floats(*range(40))}
    monkeypatch.setattr(cover, "_MOST_PIECES", 10)
    assert "120 of the 160 bytes" in str(found_in(column, storages=matrix))
    monkeypatch.setattr(cover, "_MOST_PIECES", 9)

    (fault,) = found_in(column, storages=matrix)

    assert isinstance(fault, Mishap)
    assert "was not worked out" in fault.message


def test_a_compressed_storage_has_no_place_in_the_file() -> None:
    entries = torch_entries(pickled(FIRST_TWO), FOUR)
    packed = [
        ZipEntry(entry.name, entry.data, method=8) if entry.name.endswith("data/0") else entry
        for entry in entries
    ]

    (fault,) = found(zip_archive(packed))

    assert isinstance(fault, Mishap)
    assert fault.offset is None


@pytest.mark.parametrize(
    "many",
    [
        (binget(0) + POP) * 50_000,
        (MARK + binget(0) * 100 + TUPLE + POP) * 500,
        (tensor(binget(0), (1,), offset=1) + POP) * 10_000,
    ],
    ids=["references", "lists", "tensors"],
)
def test_one_storage_of_many_references_is_worked_out_once(many: bytes) -> None:
    assert codes(found_in(PID + binput(0) + POP, many, NONE, FIRST_TWO, TUPLE2)) == [
        "storage-uncovered"
    ]
