"""The cast's laws: nearest, once, counted exactly, and the same however it is cut.

Two oracles that share no code with numkong: torch, for what the bits of an element mean and
for whole tables of casts; and `nearest` below, rounding in float64 arithmetic.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptaudit.dtypes import DTYPES, DType, Kind
from ckptaudit.numerics import PIECE, Caster, TensorStats

if TYPE_CHECKING:
    from numpy.typing import NDArray

TYPES = {dtype.name: dtype for dtype in DTYPES}
FLOATS = [dtype for dtype in DTYPES if dtype.is_float]
TARGETS = [TYPES["float16"], TYPES["bfloat16"], TYPES["float32"]]
# One eight-bit format stands for all here; each of its patterns is tried further down.
SOURCES = [TYPES[name] for name in ("float64", "float32", "float16", "bfloat16", "float8_e5m2")]
PAIRS = [(source, target) for source in SOURCES for target in TARGETS if source != target]

# Bits of precision, least normal exponent.
FORMATS = {"float16": (11, -14), "bfloat16": (8, -126), "float32": (24, -126)}

SPECIAL = [
    *(0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 1 / 3),
    *(65504.0, 65519.99609375, 65519.999999999993, 65520.0, -65520.0, 1e6, 3.4028234663852886e38),
    *(
        2.0**-14,
        2.0**-14 - 2.0**-25,
        2.0**-24,
        2.0**-25,
        2.0**-25 + 2.0**-48,
        3 * 2.0**-25,
        -(2.0**-26),
    ),
    *(
        1 + 2.0**-11,
        1 + 3 * 2.0**-11,
        1 + 2.0**-11 + 2.0**-23,
        1 + 2.0**-11 + 2.0**-40,
        1 + 2.0**-8,
    ),
    *(
        2.0**128 - 2.0**119,
        2.0**128 - 2.0**103,
        2.0**128,
        2.0**-126,
        2.0**-134,
        2.0**-149,
        2.0**-150,
    ),
    *(1e300, -1e-300, 5e-324),
]

NOTHING = TensorStats(
    numel=0, min=None, max=None, mean=None, std=None, zeros=0, nan=0, inf=0,
    overflowed=0, flushed=0, subnormal=0, max_abs_error=None, sqnr_db=None,
)  # fmt: skip


@dataclass(frozen=True)
class Cast:
    """Source values as float64, what came out as float64 and as bytes, and the statistics."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    bytes: bytes
    stats: TensorStats


def values(data: bytes | bytearray, dtype: DType) -> NDArray[np.float64]:
    """What torch says the elements are."""
    if not data:
        return np.empty(0)
    flat = torch.from_numpy(np.array(bytearray(data), np.uint8)).view(getattr(torch, dtype.name))
    wide: NDArray[np.float64] = flat.double().numpy()
    return wide


def stored(numbers: list[float], dtype: DType) -> bytes:
    """*numbers* as torch stores them in *dtype*."""
    flat = torch.tensor(numbers, dtype=torch.float64).to(getattr(torch, dtype.name))
    data: bytes = flat.view(torch.uint8).numpy().tobytes()
    return data


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


def nearest(x: NDArray[np.float64], target: DType) -> NDArray[np.float64]:
    """Each of *x* rounded to nearest even in *target*, by arithmetic that is exact in float64."""
    precision, emin = FORMATS[target.name]
    finite = np.where(np.isfinite(x), x, 0.0)
    exponent = np.maximum(np.frexp(finite)[1] - 1, emin)
    unit = exponent - (precision - 1)
    # Clipped so that scaling a float64 subnormal up cannot overflow; it is zero all the same.
    rounded = np.ldexp(np.rint(np.ldexp(finite, np.clip(-unit, -1023, 1023))), unit)
    largest = (2.0 - 2.0 ** (1 - precision)) * 2.0 ** (1 - emin)
    rounded = np.where(np.abs(rounded) > largest, np.copysign(np.inf, rounded), rounded)
    return np.where(np.isfinite(x), rounded, x)


def elements(source: DType) -> st.SearchStrategy[bytes]:
    """Bytes of up to 60 elements: thresholds, plain weights, and any bits at all."""
    size = source.itemsize
    known = stored([*SPECIAL, *np.random.default_rng(1).normal(0, 0.02, 30).tolist()], source)
    element = st.one_of(
        st.sampled_from([known[at : at + size] for at in range(0, len(known), size)]),
        st.binary(min_size=size, max_size=size),
    )
    return st.lists(element, max_size=60).map(b"".join)


ELEMENTS = {source.name: elements(source) for source in FLOATS}


def ids(pair: object) -> str:
    return "-to-".join(dtype.name for dtype in pair) if isinstance(pair, tuple) else str(pair)


def same(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Equal as values, zeros with their sign, NaN equal to NaN."""
    return bool(np.all((np.isnan(a) & np.isnan(b)) | ((a == b) & (np.signbit(a) == np.signbit(b)))))


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
@given(data=st.data())
def test_every_element_is_the_nearest_of_the_target(
    pair: tuple[DType, DType], data: st.DataObject
) -> None:
    done = cast(data.draw(ELEMENTS[pair[0].name]), *pair)

    assert same(done.y, nearest(done.x, pair[1]))


@pytest.mark.parametrize("clamp", [False, True], ids=["plain", "clamped"])
@pytest.mark.parametrize("pair", PAIRS, ids=ids)
@given(data=st.data())
def test_every_count_is_exact(
    pair: tuple[DType, DType],
    clamp: bool,  # noqa: FBT001
    data: st.DataObject,
) -> None:
    """Nothing is estimated, on whatever path a piece took."""
    done = cast(data.draw(ELEMENTS[pair[0].name]), *pair, clamp=clamp)
    x, rounded, stats = done.x, nearest(done.x, pair[1]), done.stats
    smallest = 2.0 ** FORMATS[pair[1].name][1]

    assert stats.numel == x.size
    assert stats.zeros == np.count_nonzero(x == 0)
    assert stats.nan == np.count_nonzero(np.isnan(x))
    assert stats.inf == np.count_nonzero(np.isinf(x))
    assert stats.overflowed == np.count_nonzero(np.isfinite(x) & np.isinf(rounded))
    assert stats.flushed == np.count_nonzero((x != 0) & (done.y == 0))
    assert stats.subnormal == np.count_nonzero((done.y != 0) & (np.abs(done.y) < smallest))


@pytest.mark.parametrize("pair", [*PAIRS, *((kind, kind) for kind in FLOATS)], ids=ids)
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
@given(data=st.data())
def test_clamping_changes_nothing_but_what_overflowed(
    pair: tuple[DType, DType], data: st.DataObject
) -> None:
    source = data.draw(ELEMENTS[pair[0].name])
    plain, clamped = cast(source, *pair), cast(source, *pair, clamp=True)
    over = np.isfinite(plain.x) & np.isinf(plain.y)
    precision, emin = FORMATS[pair[1].name]
    largest = (2.0 - 2.0 ** (1 - precision)) * 2.0 ** (1 - emin)

    assert same(clamped.y[~over], plain.y[~over])
    assert same(clamped.y[over], np.copysign(largest, plain.x[over]))
    assert clamped.stats.overflowed == plain.stats.overflowed == np.count_nonzero(over)
    if over.any():
        assert clamped.stats.max_abs_error == pytest.approx(
            np.abs(plain.x[over]).max() - largest, rel=1e-6
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@given(data=st.data())
def test_a_copy_keeps_every_bit(dtype: DType, data: st.DataObject) -> None:
    """Whatever the bits mean, NaN payloads and quantised elements included."""
    source = data.draw(st.binary(max_size=40)) * dtype.itemsize
    caster = Caster(dtype, dtype)
    out = bytearray(len(source))

    caster.cast(memoryview(source), memoryview(out))

    assert out == source
    assert caster.stats.numel == len(source) // dtype.itemsize
    if dtype.kind in (Kind.COMPLEX, Kind.QUANTISED):
        count = caster.stats.numel
        assert caster.stats == replace(NOTHING, numel=count)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
@given(data=st.data())
def test_a_copy_of_floats_is_counted_exactly_too(dtype: DType, data: st.DataObject) -> None:
    done = cast(data.draw(ELEMENTS[dtype.name]), dtype, dtype)
    kind = getattr(torch, dtype.name)
    smallest = torch.finfo(kind).smallest_normal

    assert done.stats.zeros == np.count_nonzero(done.x == 0)
    assert done.stats.nan == np.count_nonzero(np.isnan(done.x))
    assert done.stats.inf == np.count_nonzero(np.isinf(done.x))
    assert done.stats.subnormal == np.count_nonzero((done.x != 0) & (np.abs(done.x) < smallest))
    assert (done.stats.overflowed, done.stats.flushed, done.stats.sqnr_db) == (0, 0, None)


def test_a_block_may_be_its_own_copy() -> None:
    """So that a tensor that keeps its type is measured where it lies, even read-only."""
    block = memoryview(np.arange(10, dtype="<f4").tobytes())
    caster = Caster(TYPES["float32"], TYPES["float32"])

    caster.cast(block, block)

    assert caster.stats.max == 9.0
    assert caster.stats.max_abs_error == 0.0


@pytest.mark.parametrize(
    "dtype", [d for d in DTYPES if d.kind is Kind.INTEGER], ids=lambda dtype: dtype.name
)
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


@pytest.mark.parametrize(
    "dtype", [d for d in DTYPES if d.kind is Kind.INTEGER or d.kind is Kind.BOOL]
)
@pytest.mark.parametrize("target", TARGETS, ids=lambda dtype: dtype.name)
def test_there_is_no_cast_for_integers(dtype: DType, target: DType) -> None:
    with pytest.raises(ValueError, match=f"no cast from {dtype.name} to {target.name}"):
        Caster(dtype, target)


def test_a_forged_bool_shows() -> None:
    caster = Caster(TYPES["bool"], TYPES["bool"])
    block = memoryview(b"\x00\x01\x02")
    caster.cast(block, block)

    assert (caster.stats.max, caster.stats.zeros) == (2.0, 1)


@pytest.mark.parametrize("target", TARGETS, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(
    "source", [d for d in FLOATS if d.itemsize < 4], ids=lambda dtype: dtype.name
)
def test_every_pattern_of_a_narrow_type_is_cast_as_torch_casts_it(
    source: DType, target: DType
) -> None:
    patterns = np.arange(1 << 8 * source.itemsize, dtype=f"<u{source.itemsize}").tobytes()
    caster = Caster(source, target)
    out = bytearray(len(patterns) // source.itemsize * target.itemsize)

    caster.cast(memoryview(patterns), memoryview(out))

    flat = torch.frombuffer(bytearray(patterns), dtype=getattr(torch, source.name))
    theirs = flat.to(getattr(torch, target.name)).double().numpy()
    assert same(values(out, target), theirs)


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_sampled_float32_patterns_are_cast_as_torch_and_numpy_cast_them(target: str) -> None:
    """All of them: ``scripts/fp16_exhaustive.py``."""
    x = np.arange(0, 1 << 32, 8_191, dtype=np.uint32).view(np.float32)
    result = np.empty(x.size, np.uint16)
    Caster(TYPES["float32"], TYPES[target]).cast(x.data, result.data)
    numbers = ~np.isnan(x)

    theirs = torch.from_numpy(x).to(getattr(torch, target)).view(torch.uint16).numpy()
    assert np.array_equal(result[numbers], theirs[numbers])
    assert np.isnan(values(result.tobytes(), TYPES[target])[~numbers]).all()
    if target == "float16":
        with np.errstate(all="ignore"):
            numpy_says = x.astype(np.float16).view(np.uint16)
        assert np.array_equal(result[numbers], numpy_says[numbers])


def test_float64_is_rounded_once() -> None:
    """Through float32 the first of these would be a tie, and go to 1.0; see `_round_to_odd`."""
    x = np.array([1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-11, 65519.999999999993, 2.0**-25 + 2.0**-60])
    result = np.empty(x.size, np.float16)
    Caster(TYPES["float64"], TYPES["float16"]).cast(x.data, result.data)

    assert result.tolist() == [1 + 2.0**-10, 1.0, 65504.0, 2.0**-24]


@pytest.mark.parametrize(("target", "kept_bits"), [("float16", 10), ("bfloat16", 7)])
@pytest.mark.parametrize("sign", [0, 0x80000000], ids=["positive", "negative"])
def test_a_nan_keeps_its_sign_and_the_head_of_its_payload_and_is_quiet(
    target: str, kept_bits: int, sign: int
) -> None:
    """Alone, numkong's bfloat16 cast makes infinity of 0x7f800001 and -0.0 of 0x7fffffff."""
    payload = np.array([*range(1, 1 << 23, 4_093), (1 << 23) - 1], np.uint32)
    x = (payload | 0x7F800000 | sign).astype(np.uint32).view(np.float32)
    result = np.empty(x.size, np.uint16)
    caster = Caster(TYPES["float32"], TYPES[target])
    caster.cast(x.data, result.data)

    infinity = 0x7C00 if target == "float16" else 0x7F80
    quiet = 1 << (kept_bits - 1)
    expected = (sign >> 16) | infinity | quiet | (payload >> (23 - kept_bits))
    assert np.array_equal(result, expected.astype(np.uint16))
    assert caster.stats.nan == x.size


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
    x = random_weights(8 * PIECE)
    expected = statistics_of(x, "float32", "float16")
    found: list[TensorStats] = []
    threads = [
        threading.Thread(target=lambda: found.append(statistics_of(x, "float32", "float16")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [expected] * 4


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


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
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
