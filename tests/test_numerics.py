"""The laws of casting with statistics: counted exactly, and the same however it is cut."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import (
    ELEMENTS,
    FLOATS,
    PAIRS,
    PER_TYPE,
    SPECIAL,
    TARGETS,
    TYPES,
    ids,
    nearest,
    patterns,
    same,
    stored,
    values,
)

from ckptaudit import floats
from ckptaudit.dtypes import DTYPES, DType, Kind
from ckptaudit.numerics import PIECE, Caster, TensorStats

if TYPE_CHECKING:
    from numpy.typing import NDArray

COPIES = [(dtype, dtype) for dtype in FLOATS]

NOTHING = TensorStats(
    numel=0, min=None, max=None, mean=None, std=None, zeros=0, nan=0, inf=0,
    overflowed=0, flushed=0, subnormal=0, max_abs_error=None, sqnr_db=None,
    finite=0, signal=0.0, noise=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Cast:
    """Source values as float64, what came out as float64 and as bytes, and the statistics."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    bytes: bytes
    stats: TensorStats


def cast(data: bytes, source: DType, target: DType, *, clamp: bool = False) -> Cast:
    caster = Caster(source, target, clamp=clamp)
    out = bytearray(len(data) // source.itemsize * target.itemsize)
    caster.cast(memoryview(data), memoryview(out))
    return Cast(values(data, source), values(out, target), bytes(out), caster.stats)


def statistics_of(array: NDArray[np.generic], source: str, target: str) -> TensorStats:
    caster = Caster(TYPES[source], TYPES[target])
    out = bytearray(array.size * TYPES[target].itemsize)
    caster.cast(memoryview(array.tobytes()), memoryview(out))
    return caster.stats


@pytest.mark.parametrize("clamp", [False, True], ids=["plain", "clamped"])
@pytest.mark.parametrize("pair", [*PAIRS, *COPIES], ids=ids)
@PER_TYPE
@given(data=st.data())
def test_every_count_is_exact(
    pair: tuple[DType, DType],
    clamp: bool,  # noqa: FBT001
    data: st.DataObject,
) -> None:
    """Nothing is estimated, on whatever path a piece took."""
    source, target = pair
    done = cast(data.draw(ELEMENTS[source.name]), source, target, clamp=clamp)
    x, stats = done.x, done.stats
    rounded = x if source == target else nearest(x, target)
    over = np.isfinite(x) & ~np.isfinite(rounded)
    smallest = torch.finfo(getattr(torch, target.name)).smallest_normal

    assert stats.numel == x.size
    assert stats.zeros == np.count_nonzero(x == 0)
    assert stats.nan == np.count_nonzero(np.isnan(x))
    assert stats.inf == np.count_nonzero(np.isinf(x))
    assert stats.overflowed == np.count_nonzero(over)
    assert stats.flushed == np.count_nonzero((x != 0) & (done.y == 0))
    assert stats.subnormal == np.count_nonzero((done.y != 0) & (np.abs(done.y) < smallest))


@pytest.mark.parametrize("pair", [*PAIRS, *COPIES], ids=ids)
@PER_TYPE
@given(data=st.data())
def test_statistics_agree_with_exact_arithmetic(
    pair: tuple[DType, DType], data: st.DataObject
) -> None:
    """Of fractions: extremes are equal, and sums are as near as `TensorStats` states."""
    done = cast(data.draw(ELEMENTS[pair[0].name]), *pair)
    stats = done.stats
    x = [float(v) for v in done.x if math.isfinite(v)]
    kept = np.isfinite(done.x) & np.isfinite(done.y)
    if not x:
        assert (stats.min, stats.max, stats.mean, stats.std) == (None, None, None, None)
        return

    assert (stats.min, stats.max) == (min(x), max(x))
    if not all(v == 0 or 1e-140 < abs(v) < 1e140 for v in x):
        return
    exact = [Fraction(v) for v in x]
    mean = sum(exact) / len(x)
    std = math.sqrt(sum((v - mean) ** 2 for v in exact) / len(x))
    size = math.fsum(map(abs, x)) / len(x)
    assert stats.mean == pytest.approx(float(mean), rel=0, abs=1e-12 * size)
    assert stats.std == pytest.approx(std, rel=1e-8, abs=1e-140)

    error = (done.y[kept] - done.x[kept]).tolist()
    noise = math.fsum(e * e for e in error)
    assert stats.max_abs_error == (max(map(abs, error)) if error else None)
    if noise < 1e-290:
        assert noise or stats.sqnr_db is None
        return
    signal = math.fsum(v * v for v in done.x[kept].tolist())
    assert stats.sqnr_db is not None
    assert 10 ** (stats.sqnr_db / 10) == pytest.approx(signal / noise, rel=1e-8)


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
@PER_TYPE
@given(data=st.data())
def test_clamping_changes_nothing_but_what_overflowed(
    pair: tuple[DType, DType], data: st.DataObject
) -> None:
    source = data.draw(ELEMENTS[pair[0].name])
    plain, clamped = cast(source, *pair), cast(source, *pair, clamp=True)
    over = np.isfinite(plain.x) & ~np.isfinite(plain.y)
    largest = torch.finfo(getattr(torch, pair[1].name)).max

    assert same(clamped.y[~over], plain.y[~over])
    assert same(clamped.y[over], np.copysign(largest, plain.x[over]))
    assert clamped.stats.overflowed == plain.stats.overflowed == np.count_nonzero(over)
    if over.any():
        assert clamped.stats.max_abs_error == pytest.approx(
            np.abs(plain.x[over]).max() - largest, rel=1e-15
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@PER_TYPE
@given(data=st.data())
def test_a_copy_keeps_every_bit(dtype: DType, data: st.DataObject) -> None:
    """Whatever the bits mean, NaN payloads and quantised elements included."""
    source = data.draw(st.binary(max_size=40)) * dtype.itemsize
    caster = Caster(dtype, dtype)
    out = bytearray(len(source))

    caster.cast(memoryview(source), memoryview(out))

    stats = caster.stats
    assert out == source
    assert stats.numel == len(source) // dtype.itemsize
    assert (stats.overflowed, stats.flushed, stats.sqnr_db) == (0, 0, None)
    if dtype.kind in (Kind.COMPLEX, Kind.QUANTISED):
        assert stats == replace(NOTHING, numel=stats.numel)


@pytest.mark.parametrize("clamp", [False, True], ids=["plain", "clamped"])
def test_a_block_may_be_its_own_copy(clamp: bool) -> None:  # noqa: FBT001
    """So that a tensor that keeps its type is measured where it lies, even read-only."""
    block = memoryview(np.array([1.0, 9.0, math.inf], "<f4").tobytes())
    caster = Caster(TYPES["float32"], TYPES["float32"], clamp=clamp)

    caster.cast(block, block)

    assert (caster.stats.max, caster.stats.inf) == (9.0, 1)
    assert caster.stats.max_abs_error == 0.0


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.kind is Kind.INTEGER], ids=ids)
@PER_TYPE
@given(data=st.data())
def test_integers_are_measured_and_never_changed(dtype: DType, data: st.DataObject) -> None:
    limits = np.iinfo(dtype.numpy)
    numbers = data.draw(st.lists(st.integers(int(limits.min), int(limits.max)), min_size=1))
    source = np.array(numbers, dtype.numpy)
    caster = Caster(dtype, dtype)
    out = bytearray(source.nbytes)

    caster.cast(source.data, memoryview(out))

    assert out == source.tobytes()
    stats = caster.stats
    assert (stats.min, stats.max) == (float(min(numbers)), float(max(numbers)))
    assert stats.zeros == numbers.count(0)
    assert stats.mean == pytest.approx(
        sum(numbers) / len(numbers), rel=0, abs=1e-12 * sum(map(abs, numbers)) / len(numbers)
    )
    assert (stats.nan, stats.overflowed, stats.max_abs_error) == (0, 0, 0.0)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if not d.is_float], ids=ids)
@pytest.mark.parametrize("target", TARGETS, ids=ids)
def test_only_floats_are_cast(dtype: DType, target: DType) -> None:
    with pytest.raises(ValueError, match=f"no cast from {dtype.name} to {target.name}"):
        Caster(dtype, target)


def test_a_forged_bool_shows() -> None:
    caster = Caster(TYPES["bool"], TYPES["bool"])
    block = memoryview(b"\x00\x01\x02")
    caster.cast(block, block)

    assert (caster.stats.max, caster.stats.zeros) == (2.0, 1)


@pytest.mark.parametrize(
    "pair", [(kind, target) for kind in FLOATS for target in TARGETS if kind != target], ids=ids
)
def test_a_cast_writes_what_floats_encodes(pair: tuple[DType, DType]) -> None:
    """To the bit, over several pieces, plain and rough ones; nearest is the law of `floats`."""
    source, target = pair
    data = patterns(source, 5 * PIECE + 77)
    elements = np.frombuffer(data, source.numpy)
    x = floats.decode(elements, source, np.empty(elements.size))
    expected = np.empty(elements.size, target.numpy)
    floats.encode(x, expected, target)
    floats.keep_nan(x, np.isnan(x), expected, target)

    assert cast(data, source, target).bytes == expected.tobytes()


@pytest.mark.parametrize("guest", [math.nan, math.inf, -math.inf, 65520.0, -7e4])
@pytest.mark.parametrize("target", ["float16", "float32"])
def test_one_odd_element_is_found_wherever_it_is(guest: float, target: str) -> None:
    """The quick way must be left for any lane and any tail of the vector loops."""
    for size in range(1, 70):
        for at in range(size):
            x = np.full(size, 0.5, np.float32)
            x[at] = guest
            stats = statistics_of(x, "float32", target)
            assert stats.nan == math.isnan(guest)
            assert stats.inf == math.isinf(guest)
            assert stats.overflowed == (math.isfinite(guest) and target == "float16")


def random_weights(size: int) -> NDArray[np.float32]:
    """As in a network, with something of everything sprinkled in, but not in every piece."""
    x = np.random.default_rng(7).normal(0, 0.02, size).astype(np.float32)
    x[::40_009] = 0
    x[size // 3 :: 30_011] *= np.float32(1e-7)
    x[:PIECE:30_000] = [np.nan, 1e6, -np.inf]
    return x


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[0].itemsize > 1], ids=ids)
def test_statistics_do_not_depend_on_where_blocks_end(pair: tuple[DType, DType]) -> None:
    """To the last bit, if blocks end where pieces do."""
    source, target = pair
    kind = getattr(torch, source.name)
    weights = torch.from_numpy(random_weights(5 * PIECE + 1_234)).to(kind)
    data = memoryview(weights.view(torch.uint8).numpy().tobytes())
    whole = Caster(source, target)
    expected = bytearray(weights.numel() * target.itemsize)
    whole.cast(data, memoryview(expected))

    for pieces in (1, 2, 3):
        caster, out = Caster(source, target), bytearray()
        step = pieces * PIECE * source.itemsize
        for start in range(0, len(data), step):
            block = data[start : start + step]
            room = bytearray(len(block) // source.itemsize * target.itemsize)
            caster.cast(block, memoryview(room))
            out += room
        assert out == expected
        assert caster.stats == whole.stats


def test_counts_do_not_depend_on_blocks_at_all() -> None:
    x = random_weights(2 * PIECE)
    whole = statistics_of(x, "float32", "float16")
    caster = Caster(TYPES["float32"], TYPES["float16"])
    for start in range(0, x.size, 10_007):
        block = x[start : start + 10_007]
        caster.cast(block.data, np.empty(block.size, np.float16).data)

    for name in (*("numel", "min", "max", "zeros", "nan", "inf"), *("overflowed", "flushed")):
        assert getattr(caster.stats, name) == getattr(whole, name)
    assert caster.stats.max_abs_error == whole.max_abs_error
    assert caster.stats.std == pytest.approx(whole.std, rel=1e-9)


def test_two_threads_do_not_share_their_scratch() -> None:
    def measure(scale: float) -> TensorStats:
        return statistics_of(scale * weights, "float64", "float16")

    weights = random_weights(40 * PIECE).astype(np.float64)
    scales = [1.0, 2.0, 3.0, 4.0]
    expected = [measure(scale) for scale in scales]

    with ThreadPoolExecutor(len(scales)) as pool:
        assert list(pool.map(measure, scales)) == expected


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_alignment_does_not_matter(pair: tuple[DType, DType]) -> None:
    """A storage in an old checkpoint begins at any byte."""
    source, target = pair
    data = stored(SPECIAL, source)
    aligned = cast(data, source, target)
    out = bytearray(1 + len(aligned.bytes))
    caster = Caster(source, target)

    caster.cast(memoryview(b"?" + data)[1:], memoryview(out)[1:])

    assert out[1:] == aligned.bytes
    assert caster.stats == aligned.stats


@pytest.mark.parametrize("offset", [0.0, 1.0, 30.0, 1e3, 1e6])
@pytest.mark.parametrize("spread", [1e-2, 1.0])
def test_deviation_survives_a_large_mean(offset: float, spread: float) -> None:
    """Sum of squares minus square of sum loses everything here; `_spread` notices."""
    x = np.random.default_rng(3).normal(offset, spread, 3 * PIECE + 5).astype(np.float32)
    wide = x.astype(np.float64)
    mean = math.fsum(wide) / x.size
    std = math.sqrt(math.fsum((wide - mean) ** 2) / x.size)

    stats = statistics_of(x, "float32", "float16")

    assert stats.mean == pytest.approx(mean, rel=1e-12)
    assert stats.std == pytest.approx(std, rel=1e-8)


def test_equal_elements_do_not_deviate() -> None:
    stats = statistics_of(np.full(3 * PIECE, 0.1, np.float32), "float32", "float16")

    assert stats.std == 0.0


def test_sums_beyond_a_double_are_withheld_not_infinite() -> None:
    stats = statistics_of(np.array([1e300, -1e300, 1e300]), "float64", "float64")

    assert (stats.min, stats.max) == (-1e300, 1e300)
    assert (stats.std, stats.sqnr_db) == (None, None)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_nothing_has_no_statistics(dtype: DType) -> None:
    """Asked for extremes of an empty buffer, numkong reads beyond it; so it is never asked."""
    caster = Caster(dtype, dtype)
    caster.cast(memoryview(b""), memoryview(bytearray()))

    assert caster.stats == NOTHING


@pytest.mark.parametrize("source", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["positive", "negative"])
@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_largest_finite_number_is_an_extreme_like_any_other(
    source: str, sign: float, size: int
) -> None:
    """There numkong's search begins, and finds nothing if nothing else is there."""
    largest = sign * torch.finfo(getattr(torch, source)).max
    done = cast(stored([largest] * size, TYPES[source]), TYPES[source], TYPES[source])

    assert (done.stats.min, done.stats.max) == (largest, largest)


def test_a_minimum_of_zero_has_no_sign() -> None:
    """Which zero is found first depends on the lanes of a vector; reports must not."""
    for zeros in ([0.0, -0.0], [-0.0, 0.0], [-0.0]):
        stats = statistics_of(np.array(zeros, np.float32), "float32", "float16")
        assert str((stats.min, stats.max)) == "(0.0, 0.0)"


def test_a_tensor_of_nan_has_no_extremes() -> None:
    stats = statistics_of(np.full(100, np.nan, np.float32), "float32", "float16")

    assert (stats.nan, stats.min, stats.mean, stats.max_abs_error) == (100, None, None, None)


@pytest.mark.parametrize(
    ("block", "out", "message"),
    [(b"12345", 2, "no whole number"), (b"1234", 3, "do not fit"), (b"", 2, "do not fit")],
    ids=["torn-element", "odd-room", "room-for-nothing"],
)
def test_sizes_must_agree(block: bytes, out: int, message: str) -> None:
    caster = Caster(TYPES["float32"], TYPES["float16"])

    with pytest.raises(ValueError, match=message):
        caster.cast(memoryview(block), memoryview(bytearray(out)))
    assert caster.stats.numel == 0
