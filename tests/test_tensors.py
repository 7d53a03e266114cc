"""Views lie inside their storages; blocks cover them once and read what numpy would."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptaudit.containers import Container, Kind, Storage
from ckptaudit.dtypes import DTYPES, DType, by_name
from ckptaudit.errors import LimitExceeded, MalformedInput
from ckptaudit.jobs.stream import read_block
from ckptaudit.source import BufferSource
from ckptaudit.tensors import TensorView, blocks
from ckptaudit.tensors.blocks import blocks_in_order, blocks_of, rows_of

RAMP = 4096


def dtype(name: str) -> DType:
    found = by_name(name)
    assert found is not None
    return found


def storage(numel: int, name: str = "int32", *, typed: bool = True, at: int = 0) -> Storage:
    kind = dtype(name)
    return Storage("0", kind, numel, at, numel * kind.itemsize, "cpu", "r", typed)


def view(
    numel: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0
) -> TensorView:
    return TensorView("k", storage(numel), dtype("int32"), shape, stride, offset)


def read(shown: TensorView, data: bytes, byteorder: str = "little") -> bytes:
    """The bytes of *shown*, read block by block out of *data* into their runs."""
    size = shown.dtype.itemsize
    container = Container(BufferSource(data), Kind.ZIP, (), (), byteorder=byteorder)
    out = bytearray(shown.nbytes)
    filled = np.zeros(shown.numel, dtype=int)
    buffer = memoryview(bytearray(blocks.BLOCK_BYTES))
    for block in blocks_of(shown):
        assert block.numel * size <= blocks.BLOCK_BYTES
        elements = read_block(container, shown, block, buffer)
        at = 0
        for first, last in block.runs:
            out[first * size : last * size] = elements[at : at + (last - first) * size]
            filled[first:last] += 1
            at += (last - first) * size
        assert at == len(elements)
    assert (filled == 1).all()
    return bytes(out)


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, stride and offset that fit into `RAMP` elements; expanded, permuted, overlapping."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    kind = draw(st.sampled_from(["packed", "permuted", "any"]))
    if kind == "any":
        stride = tuple(draw(st.integers(0, 40)) for _ in shape)
    else:
        order = (
            draw(st.permutations(range(len(shape)))) if kind == "permuted" else [*range(len(shape))]
        )
        steps = {
            axis: prod(shape[other] for other in order[at + 1 :]) for at, axis in enumerate(order)
        }
        stride = tuple(steps[axis] for axis in range(len(shape)))
    return shape, stride, draw(st.integers(0, 50))


@pytest.fixture(params=[(4 << 20, 8 << 20), (64, 256), (16, 16), (16, 1024)], ids=str)
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that tensors of a few elements have to be cut."""
    block, tile = request.param
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block)
    monkeypatch.setattr(blocks, "SLAB_BYTES", block)
    monkeypatch.setattr(blocks, "_ROWS_BYTES", tile)
    monkeypatch.setattr(blocks, "_NEAR_BYTES", 8)
    monkeypatch.setattr(blocks, "_LEAST_RUN_BYTES", 8)


@pytest.mark.usefixtures("small_blocks")
@given(windows())
def test_reading_equals_as_strided(window: tuple[tuple[int, ...], tuple[int, ...], int]) -> None:
    shape, stride, offset = window
    ramp = np.arange(RAMP, dtype="<i4")
    steps = [4 * step for step in stride]
    expected = np.lib.stride_tricks.as_strided(ramp[offset:], shape, steps)

    assert read(view(RAMP, shape, stride, offset), ramp.tobytes()) == expected.tobytes()


@pytest.mark.usefixtures("small_blocks")
@given(windows())
def test_blocks_in_order_are_the_elements_one_after_the_other(
    window: tuple[tuple[int, ...], tuple[int, ...], int],
) -> None:
    shape, stride, offset = window
    ramp = np.arange(RAMP, dtype="<i4")
    shown = view(RAMP, shape, stride, offset)
    container = Container(BufferSource(ramp.tobytes()), Kind.ZIP, (), ())
    buffer = memoryview(bytearray(blocks.SLAB_BYTES))
    expected = np.lib.stride_tricks.as_strided(ramp[offset:], shape, [4 * step for step in stride])

    elements, at = b"", 0
    for block in blocks_in_order(shown):
        assert block.runs == ((at, at + block.numel),)
        elements += read_block(container, shown, block, buffer)
        at += block.numel

    assert elements == expected.tobytes()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "name", ["float64", "bfloat16", "uint8", "complex64", "complex128", "float8_e5m2"]
)
@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("stride", [(5, 1), (1, 4), (0, 3)], ids=["rows", "columns", "expanded"])
def test_every_width_and_byte_order_is_read(
    name: str, byteorder: str, stride: tuple[int, int]
) -> None:
    kind = np.dtype(dtype(name).numpy)
    values = np.frombuffer(np.arange(64 * kind.itemsize, dtype="u1").tobytes(), kind)
    stored = values if byteorder == "little" else values.byteswap()
    shown = TensorView("k", storage(64, name), dtype(name), (4, 5), stride, 2)
    steps = [kind.itemsize * step for step in stride]
    expected = np.lib.stride_tricks.as_strided(values[2:], (4, 5), steps)

    assert read(shown, stored.tobytes(), byteorder) == expected.tobytes()


@pytest.mark.usefixtures("small_blocks")
def test_a_storage_need_not_begin_at_the_beginning() -> None:
    ramp = np.arange(20, dtype="<i4")
    placed = storage(20, at=3)
    shown = TensorView("k", placed, dtype("int32"), (3, 4), (1, 5), 1)
    expected = np.lib.stride_tricks.as_strided(ramp[1:], (3, 4), (4, 20))

    assert read(shown, b"xyz" + ramp.tobytes()) == expected.tobytes()


@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        ((1 << 19, 8), (1, 1 << 19)),
        ((8, 1 << 19), (1, 8)),
        ((2048, 2048), (1, 2048)),
        ((16_384, 16_384), (1, 16_384)),
        ((16, 64, 64, 64), (64, 65536, 1024, 1)),
    ],
    ids=["tall", "wide", "square", "large", "channels-last"],
)
def test_a_turned_view_is_read_and_written_in_long_pieces(
    shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    """A system call for each element would take hours; reading all for each block, too."""
    turned = view(prod(shape), shape, stride)

    for block in islice(blocks_of(turned), 20):
        assert all(last - first >= 1 << 9 for first, last in block.runs)
        read = list(rows_of(turned, block))
        assert len(read) <= 4
        assert all(rows.nbytes >= 1 << 12 for rows in read)
        assert sum(rows.count * rows.nbytes for rows in read) <= 4 * 4 * block.numel


def test_elements_near_each_other_are_read_with_what_lies_between() -> None:
    """Every hundredth of five million: each by itself would be a system call for four bytes."""
    thin = view(5_000_000, (50_000,), (100,))

    read = [rows for block in blocks_of(thin) for rows in rows_of(thin, block)]

    assert sum(rows.count for rows in read) <= 4
    assert all(rows.count * rows.nbytes <= 8 << 20 for rows in read)


def test_elements_far_apart_are_not_read_with_all_that_lies_between() -> None:
    """One column of a wide matrix: 40 MB lie between its first and its last element."""
    column = view(10_000_000, (1000, 1), (10_000, 1))

    (block,) = blocks_of(column)

    (rows,) = rows_of(column, block)
    assert (rows.count, rows.nbytes) == (1000, 4)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=4),
    st.integers(0, 12),
    st.integers(0, 40),
)
def test_a_view_is_accepted_iff_it_lies_inside_its_storage(
    axes: list[tuple[int, int]], offset: int, numel: int
) -> None:
    shape = tuple(size for size, _ in axes)
    stride = tuple(step for _, step in axes)
    indices = np.ndindex(*shape)
    touched = [offset + sum(i * step for i, step in zip(at, stride, strict=True)) for at in indices]

    accepted = False
    with suppress(MalformedInput):
        accepted = view(numel, shape, stride, offset).numel == len(touched)

    assert accepted == all(at < numel for at in touched)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=4), st.integers(0, 12))
def test_extent_covers_what_numpy_would_touch(axes: list[tuple[int, int]], offset: int) -> None:
    shape = tuple(size for size, _ in axes)
    stride = tuple(step for _, step in axes)
    extent = view(10_000, shape, stride, offset).extent
    ramp = np.arange(10_000)
    touched = np.lib.stride_tricks.as_strided(ramp[offset:], shape, [8 * step for step in stride])

    assert set(touched.ravel()) <= set(extent)
    assert extent.stop == (touched.max() + 1 if touched.size else offset)


@given(windows())
def test_contiguous_means_what_numpy_means(
    window: tuple[tuple[int, ...], tuple[int, ...], int],
) -> None:
    shape, stride, offset = window
    shown = view(RAMP, shape, stride, offset)
    steps = [8 * step for step in stride]
    strided = np.lib.stride_tricks.as_strided(np.arange(RAMP)[offset:], shape, steps)

    assert shown.is_contiguous == strided.flags.c_contiguous


@pytest.mark.usefixtures("small_blocks")
@given(windows(), st.lists(st.integers(0, 5), max_size=3), st.sampled_from([1, 30]))
def test_axes_of_size_1_change_nothing_that_is_read(
    window: tuple[tuple[int, ...], tuple[int, ...], int], places: list[int], times: int
) -> None:
    """Torch has tensors of as many dimensions as one likes; NumPy has 64."""
    shape, stride, offset = window
    data = np.arange(RAMP, dtype=np.int32).tobytes()
    many, steps = list(shape), list(stride)
    for place in places * times:
        many.insert(place, 1)
        steps.insert(place, 7)

    plain = view(RAMP, shape, stride, offset)
    wide = view(RAMP, tuple(many), tuple(steps), offset)

    assert read(wide, data) == read(plain, data)


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((2, 2), (1,), 0),
        ((-1,), (1,), 0),
        ((2,), (-1,), 1),
        ((2,), (1,), -1),
        ((1 << 62,), (0,), 0),
        ((0, 1 << 70), (1, 1), 0),
        ((0,), (1,), 1 << 62),
        ((1 << 40, 1 << 40), (1 << 40, 1), 0),
    ],
    ids=[
        "rank",
        "negative-size",
        "negative-stride",
        "negative-offset",
        "size-2^62",
        "size-2^70-of-nothing",
        "offset-2^62-of-nothing",
        "product-2^80",
    ],
)
def test_what_is_no_window_is_refused(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    with pytest.raises(MalformedInput):
        view(100, shape, stride, offset)


def test_an_expanded_view_may_not_fill_a_disk() -> None:
    assert view(1, (1 << 22,), (0,)).nbytes == 16 << 20
    with pytest.raises(LimitExceeded):
        view(1, (1 << 23,), (0,))


def test_a_typed_storage_is_of_one_type() -> None:
    with pytest.raises(MalformedInput, match="is float32 on a storage of int32"):
        TensorView("k", storage(4), dtype("float32"), (4,), (1,), 0)


@pytest.mark.parametrize("kind", DTYPES, ids=lambda kind: kind.name)
def test_an_untyped_storage_holds_as_many_elements_as_fit(kind: DType) -> None:
    untyped = storage(35, "uint8", typed=False)
    fits = 35 // kind.itemsize

    assert TensorView("k", untyped, kind, (fits,), (1,), 0).nbytes <= 35
    with pytest.raises(MalformedInput):
        TensorView("k", untyped, kind, (fits + 1,), (1,), 0)
