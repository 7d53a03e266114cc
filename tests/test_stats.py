"""Statistics are what numpy says in float64, for any type, target, shape and stride."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import bits
from rounding import ELEMENTS, FLOATS, LIMITS, PER_TYPE, TARGETS, TYPES, ids, nearest, values

from ckptaudit.dtypes import DTYPES, DType, Kind
from ckptaudit.jobs.opening import opened
from ckptaudit.jobs.stream import Nowhere, read_block, stream
from ckptaudit.layouts import Component
from ckptaudit.numerics import PIECE, Caster, TensorStats, joined
from ckptaudit.plan import TensorJob
from ckptaudit.tensors import TensorView, blocks, find_state_dict

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEASURED = [dtype for dtype in DTYPES if dtype.kind in (Kind.FLOAT, Kind.INTEGER, Kind.BOOL)]
# Values of which squares, and sums of them, are doubles of full precision.
MODERATE = (1e-140, 1e140)
NOTHING = TensorStats(
    numel=0, min=None, max=None, mean=None, std=None, zeros=0, nan=0, inf=0, overflowed=0,
    flushed=0, subnormal=0, max_abs_error=None, sqnr_db=None, finite=0, signal=0.0, noise=0.0,
)  # fmt: skip


def reference(
    x: NDArray[np.float64], source: DType, target: DType, *, clamp: bool = False
) -> TensorStats:
    """What numpy says of *x*, elements of *source*, and of *x* rounded to *target*."""
    y = x if source == target else nearest(x, target)
    finite = np.isfinite(x)
    over = finite & ~np.isfinite(y)
    smallest = torch.finfo(getattr(torch, target.name)).smallest_normal if source.is_float else 0
    if clamp and over.any():
        y = np.where(over, np.copysign(LIMITS[target.name][2], x), y)
    kept = finite & np.isfinite(y)
    v, error = x[finite], y[kept] - x[kept]
    with np.errstate(all="ignore"):
        signal, noise = float((x[kept] ** 2).sum()), float((error**2).sum())
        mean = float(v.mean()) if v.size else None
        std = float(v.std()) if v.size else None
    return TensorStats(
        numel=x.size,
        min=float(v.min()) if v.size else None,
        max=float(v.max()) if v.size else None,
        mean=mean,
        std=std,
        zeros=int((x == 0).sum()),
        nan=int(np.isnan(x).sum()),
        inf=int(np.isinf(x).sum()),
        overflowed=int(over.sum()),
        flushed=int(((x != 0) & (y == 0)).sum()),
        subnormal=int(((y != 0) & (np.abs(y) < smallest)).sum()),
        max_abs_error=float(np.abs(error).max()) if error.size else None,
        sqnr_db=10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None,
        finite=int(finite.sum()),
        signal=signal,
        noise=noise,
        histogram=histogram_of(v),
    )


def histogram_of(x: NDArray[np.float64]) -> tuple[tuple[int, int], ...]:
    """By `math.frexp`, one element at a time."""
    sizes = Counter(math.frexp(v)[1] - 1 for v in x.tolist() if v)
    return tuple(sorted(sizes.items()))


def check(ours: TensorStats, theirs: TensorStats, x: NDArray[np.float64]) -> None:
    """Counts, extremes and sizes are equal; sums are as near as `TensorStats` states."""
    assert without_sums(ours) == without_sums(theirs)
    # Only the error of what was clamped is rounded, to a double.
    clamped = 1e-15 if ours.overflowed else 0.0
    assert near(ours.max_abs_error, theirs.max_abs_error, relative=clamped)
    sizes = np.abs(x[np.isfinite(x) & (x != 0)])
    if not sizes.size or not MODERATE[0] < sizes.min() <= sizes.max() < MODERATE[1]:
        return
    assert near(ours.mean, theirs.mean, absolute=1e-12 * float(sizes.sum()) / ours.finite)
    # Where nothing but the last bits of large numbers differ, numpy itself is no nearer.
    assert near(ours.std, theirs.std, relative=1e-8, absolute=1e-15 * float(sizes.max()))
    assert near(ours.signal, theirs.signal, relative=1e-8)
    assert near(ours.noise, theirs.noise, relative=1e-8, absolute=1e-290)
    if theirs.noise and theirs.noise > 1e-290:
        assert near(ours.sqnr_db, theirs.sqnr_db, absolute=1e-7)


def without_sums(stats: TensorStats) -> TensorStats:
    return replace(
        stats, mean=None, std=None, signal=None, noise=None, sqnr_db=None, max_abs_error=None
    )


def near(
    ours: float | None, theirs: float | None, *, relative: float = 0.0, absolute: float = 0.0
) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return math.isclose(ours, theirs, rel_tol=relative, abs_tol=absolute)


def elements_of(dtype: DType) -> st.SearchStrategy[bytes]:
    if dtype.is_float:
        return ELEMENTS[dtype.name]
    if dtype.kind is Kind.BOOL:
        return st.lists(st.sampled_from([0, 1]), max_size=60).map(bytes)
    limits = np.iinfo(dtype.numpy)
    numbers = st.integers(int(limits.min), int(limits.max)) | st.sampled_from(
        [0, 1, int(limits.min), int(limits.max)]
    )
    return st.lists(numbers, max_size=60).map(lambda few: np.array(few, dtype.numpy).tobytes())


def wide(data: bytes, dtype: DType) -> NDArray[np.float64]:
    if dtype.is_float:
        return values(data, dtype)
    exact: NDArray[np.float64] = np.frombuffer(data, dtype.numpy).astype(np.float64)
    return exact


@st.composite
def strided(draw: st.DrawFn, dtype: DType) -> torch.Tensor:
    """A view on elements of *dtype* that torch can save, overlapping or with gaps."""
    data = draw(elements_of(dtype).filter(bool))
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(getattr(torch, dtype.name))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    offset = draw(st.integers(0, flat.numel() - 1))
    room = flat.numel() - 1 - offset
    stride = []
    for size in shape:
        step = draw(st.integers(0, room // (size - 1) if size > 1 else 3))
        room -= max(size - 1, 0) * step
        stride.append(step)
    return flat.as_strided(shape, stride, offset)


@pytest.mark.parametrize("block", [16, 4 << 20], ids=["tiny-blocks", "one-block"])
@pytest.mark.parametrize("dtype", MEASURED, ids=ids)
@PER_TYPE
@given(data=st.data(), clamp=st.booleans())
def test_statistics_of_any_view_are_those_of_numpy(
    dtype: DType, block: int, data: st.DataObject, *, clamp: bool
) -> None:
    """From the file: cut into blocks, gathered, cast to each target and measured."""
    tensor = data.draw(strided(dtype))
    _, _, elements = bits(tensor)
    x = wide(elements, dtype)
    targets = [dtype, *(target for target in TARGETS if dtype.is_float and target != dtype)]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        path = Path(folder) / "a.pt"
        torch.save({"a": tensor}, path)
        with opened(path, with_hash=False) as file:
            (view,) = find_state_dict(file.container).views
            jobs = [job_of(view, target) for target in targets]
            done = stream(file.container, jobs, Nowhere(), clamp=clamp)
            found = {job.target.name: stats for job, stats in done}

    for target in targets:
        theirs = reference(x, dtype, target, clamp=clamp)
        check(found[target.name], replace(theirs, histogram=None), x)


def job_of(view: TensorView, target: DType) -> TensorJob:
    return TensorJob(
        name=target.name,
        file="",
        source="a",
        view=view,
        component=Component.OTHER,
        op="identity",
        rows=None,
        target=target,
        offset=0,
    )


@pytest.mark.parametrize("turned", [False, True], ids=["in-order", "turned"])
def test_a_tensor_of_many_pieces_and_tiles_is_measured_as_numpy_measures_it(
    tmp_path: Path,
    turned: bool,  # noqa: FBT001
) -> None:
    """Twelve megabytes: three blocks, each of many pieces, some of them with specials."""
    weights = torch.from_numpy(np.random.default_rng(5).normal(0, 1e-3, (1500, 2100))).float()
    weights[::97, ::53] = torch.tensor(math.nan)
    weights[7, :400] = 1e6
    weights[9] *= 1e-5
    tensor = weights.t() if turned else weights
    torch.save({"a": tensor}, tmp_path / "a.pt")
    x = tensor.contiguous().view(-1).double().numpy()

    for target in TARGETS:
        caster = Caster(TYPES["float32"], target, histogram=True)
        with opened(tmp_path / "a.pt", with_hash=False) as file:
            (view,) = find_state_dict(file.container).views
            room = memoryview(bytearray(blocks.BLOCK_BYTES))
            several = list(blocks.blocks_of(view))
            for block in several:
                out = memoryview(bytearray(block.numel * target.itemsize))
                caster.cast(read_block(file.container, view, block, room), out)
        assert len(several) > 2
        check(caster.stats, reference(x, TYPES["float32"], target), x)


@pytest.mark.parametrize("dtype", MEASURED, ids=ids)
@PER_TYPE
@given(data=st.data())
def test_sizes_are_counted_exactly(dtype: DType, data: st.DataObject) -> None:
    """Subnormal numbers and the largest integers in the binade that they are in."""
    elements = data.draw(elements_of(dtype))
    numbers = wide(elements, dtype)
    exact = numbers[np.isfinite(numbers)].tolist()
    if dtype.kind is Kind.INTEGER:
        exact = np.frombuffer(elements, dtype.numpy).tolist()

    stats = measured(elements, dtype)

    expected = Counter(binade_of(Fraction(v)) for v in exact if v)
    assert stats.histogram == tuple(sorted(expected.items()))
    assert sum(count for _, count in stats.histogram or ()) == stats.finite - stats.zeros


def binade_of(value: Fraction) -> int:
    size = abs(value)
    # A first guess that is off by one at most.
    at = size.numerator.bit_length() - size.denominator.bit_length()
    return next(
        e for e in (at - 1, at, at + 1) if Fraction(2) ** e <= size < Fraction(2) ** (e + 1)
    )


def measured(elements: bytes, dtype: DType, step: int | None = None) -> TensorStats:
    caster = Caster(dtype, dtype, histogram=True)
    step = (step or len(elements) or 1) * dtype.itemsize
    for start in range(0, len(elements), step):
        block = memoryview(elements)[start : start + step]
        caster.cast(block, block)
    return caster.stats


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d.itemsize < 4], ids=ids)
def test_every_pattern_of_a_narrow_type_is_counted_to_its_size(dtype: DType) -> None:
    patterns = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}").tobytes()
    numbers = values(patterns, dtype)

    stats = measured(patterns, dtype)

    assert stats.histogram == histogram_of(numbers[np.isfinite(numbers)])


def test_sizes_are_counted_the_same_however_a_tensor_is_cut() -> None:
    x = np.random.default_rng(7).normal(0, 0.02, 2 * PIECE + 99).astype(np.float32)
    x[::9999] = 0
    x[5::9999] = np.nan
    x[7::9999] = 1e-42
    whole = measured(x.tobytes(), TYPES["float32"])

    assert measured(x.tobytes(), TYPES["float32"], step=1003).histogram == whole.histogram
    assert whole.histogram == histogram_of(x[np.isfinite(x)].astype(np.float64))


def test_sizes_are_counted_on_request_only_and_where_there_is_an_order() -> None:
    block = memoryview(np.ones(4, np.float32).tobytes())
    plain = Caster(TYPES["float32"], TYPES["float32"])
    plain.cast(block, block)

    assert plain.stats.histogram is None
    assert measured(bytes(block), TYPES["complex64"]).histogram is None
    assert measured(b"", TYPES["float32"]).histogram == ()
    assert measured(bytes(block), TYPES["float32"]).histogram == ((0, 4),)


@st.composite
def cut(draw: st.DrawFn, data: bytes, size: int) -> list[bytes]:
    count = len(data) // size
    edges = sorted(draw(st.lists(st.integers(0, count), max_size=4)))
    starts, stops = [0, *edges], [*edges, count]
    return [data[a * size : b * size] for a, b in zip(starts, stops, strict=True)]


@pytest.mark.parametrize("target", TARGETS, ids=ids)
@pytest.mark.parametrize("source", ["float64", "float32", "bfloat16", "float8_e8m0fnu"])
@PER_TYPE
@given(data=st.data())
def test_parts_come_to_what_the_whole_is(source: str, target: DType, data: st.DataObject) -> None:
    dtype = TYPES[source]
    elements = data.draw(ELEMENTS[source])
    parts = data.draw(cut(elements, dtype.itemsize))

    together = joined(statistics_of(part, dtype, target) for part in parts)

    x = values(elements, dtype)
    check(together, reference(x, dtype, target), x)
    assert joined(statistics_of(part, dtype, target) for part in parts) == together
    # Joined in two steps, as tensors to components and those to a model, it is no less right.
    halves = joined([together, joined(statistics_of(part, dtype, target) for part in parts)])
    check(halves, reference(np.tile(x, 2), dtype, target), x)


def statistics_of(elements: bytes, source: DType, target: DType) -> TensorStats:
    caster = Caster(source, target, histogram=True)
    out = bytearray(len(elements) // source.itemsize * target.itemsize)
    caster.cast(memoryview(elements), memoryview(out))
    return caster.stats


def test_of_one_part_or_none_there_is_nothing_to_join() -> None:
    odd = statistics_of(np.array([0.1, 0.2, 3e-9]).tobytes(), TYPES["float64"], TYPES["float16"])

    assert joined([odd]) == odd
    assert joined([]) == NOTHING
    assert joined([odd, NOTHING]).histogram == odd.histogram


def test_sums_that_one_part_does_not_know_the_whole_does_not_either() -> None:
    kind = TYPES["float64"]
    huge = statistics_of(np.array([1e300, -1e300]).tobytes(), kind, kind)
    plain = statistics_of(np.array([1.0, 2.0]).tobytes(), kind, kind)

    together = joined([plain, huge])

    assert (together.min, together.max, together.finite) == (-1e300, 1e300, 4)
    assert (together.std, together.signal, together.sqnr_db) == (None, None, None)
    assert together.max_abs_error == 0.0


def test_a_part_without_order_adds_its_count_alone_and_one_without_sizes_hides_them() -> None:
    plain = statistics_of(np.ones(3, "<f4").tobytes(), TYPES["float32"], TYPES["float16"])
    pairs = statistics_of(bytes(80), TYPES["complex64"], TYPES["complex64"])

    assert joined([plain, pairs]) == replace(plain, numel=13)
    assert joined([pairs, plain, pairs]).histogram == plain.histogram
    assert joined([plain, replace(plain, histogram=None)]).histogram is None
    assert joined([pairs, replace(plain, histogram=None)]).histogram is None
