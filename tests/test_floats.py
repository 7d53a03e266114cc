"""Decoding is exact, and encoding is to the nearest, once, for any bits at any address."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
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
    cast_by_torch,
    ids,
    nearest,
    patterns,
    same,
    stored,
    values,
)

from ckptaudit import floats
from ckptaudit.dtypes import DTYPES, DType

if TYPE_CHECKING:
    from numpy.typing import NDArray


def decoded(data: bytes | memoryview, dtype: DType) -> floats.Wide:
    elements = np.frombuffer(data, dtype.numpy)
    return floats.decode(elements, dtype, np.empty(elements.size))


def encoded(x: floats.Wide, target: DType) -> bytes:
    out = np.empty(x.size, target.numpy)
    floats.encode(x, out, target)
    floats.keep_nan(x, np.isnan(x), out, target)
    return out.tobytes()


def test_every_float_type_has_a_format() -> None:
    assert set(floats.FORMATS) == {dtype.name for dtype in FLOATS}
    assert {dtype.name for dtype in TARGETS} == floats.TARGETS


@pytest.mark.parametrize("dtype", FLOATS, ids=ids)
def test_a_format_agrees_with_torch(dtype: DType) -> None:
    theirs = torch.finfo(getattr(torch, dtype.name))
    ours = floats.FORMATS[dtype.name]

    assert ours.smallest_normal == theirs.smallest_normal
    assert ours.largest == theirs.max
    # torch gives this one the epsilon of another, though its 1.25 follows its 1.0.
    if dtype.name != "float8_e5m2fnuz":
        assert 2.0 ** (1 - ours.precision) == theirs.eps


@pytest.mark.parametrize("target", TARGETS, ids=ids)
def test_the_bits_of_the_smallest_normal_number_are_its_bits(target: DType) -> None:
    form = floats.FORMATS[target.name]

    bits = int.from_bytes(stored([form.smallest_normal], target), "little")

    assert form.smallest_normal_bits == bits


@pytest.mark.parametrize("target", TARGETS, ids=ids)
def test_overflow_begins_where_the_format_says(target: DType) -> None:
    form = floats.FORMATS[target.name]
    edge = form.overflows_beyond
    inside, outside = math.nextafter(edge, 0.0), math.nextafter(edge, math.inf)
    x = np.array([inside, -inside, outside, -outside])

    result = encoded(x, target)

    beyond = math.nan if target.name == "float8_e4m3fn" else math.inf
    expected = np.array([form.largest, -form.largest, beyond, -beyond])
    assert same(values(result, target), expected)
    tops = [element & 0x80 for element in result[target.itemsize - 1 :: target.itemsize]]
    assert tops == [0, 0x80, 0, 0x80]


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["positive", "negative"])
def test_a_tie_with_what_is_too_large_goes_to_the_even_side(sign: float) -> None:
    """That is infinity, but in the one format that has a number's code in its place."""
    for name, tie, becomes in (
        ("float16", 65520.0, math.inf),
        ("float8_e5m2", 61440.0, math.inf),
        ("float8_e4m3fn", 464.0, 448.0),
    ):
        result = encoded(np.array([sign * tie]), TYPES[name])
        assert values(result, TYPES[name]).tolist() == [sign * becomes]


@pytest.mark.parametrize("source", [d for d in FLOATS if d.itemsize < 4], ids=ids)
def test_every_pattern_of_a_narrow_type_is_what_torch_says(source: DType) -> None:
    data = patterns(source)

    assert same(decoded(data, source), values(data, source))


@pytest.mark.parametrize("dtype", FLOATS, ids=ids)
def test_an_element_at_an_odd_address_is_the_same_element(dtype: DType) -> None:
    """A storage in an old checkpoint begins at any byte."""
    data = stored(SPECIAL, dtype)
    moved = np.frombuffer(memoryview(b"?" + data)[1:], dtype.numpy)

    wide = floats.decode(moved, dtype, np.empty(moved.size))

    assert same(wide, values(data, dtype))
    assert wide.flags.aligned


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_wide_elements_are_not_copied(name: str) -> None:
    elements = np.array([1.0, 2.0], TYPES[name].numpy)

    wide = floats.decode(elements, TYPES[name], np.empty(2))

    assert np.shares_memory(wide, elements)


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
@PER_TYPE
@given(data=st.data())
def test_every_element_is_the_nearest_of_the_target(
    pair: tuple[DType, DType], data: st.DataObject
) -> None:
    source, target = pair
    elements = data.draw(ELEMENTS[source.name])

    result = encoded(decoded(elements, source), target)

    assert same(values(result, target), nearest(values(elements, source), target))


def test_float64_is_rounded_once() -> None:
    """Through float32 the first of these would be a tie, and go to 1.0; see `_round_to_odd`."""
    x = np.array([1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-11, 65519.999999999993, 2.0**-25 + 2.0**-60])

    result = np.frombuffer(encoded(x, TYPES["float16"]), np.float16)

    assert result.tolist() == [1 + 2.0**-10, 1.0, 65504.0, 2.0**-24]


@pytest.mark.parametrize("target", TARGETS, ids=ids)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_address_of_the_result_does_not_matter(target: DType, kind: type[np.floating]) -> None:
    with np.errstate(over="ignore"):
        x = np.array([v for v in SPECIAL if not math.isnan(v)]).astype(kind)
    room = bytearray(1 + x.size * target.itemsize)

    floats.encode(x, np.frombuffer(memoryview(room)[1:], target.numpy), target)

    assert room[1:] == encoded(x, target)


@pytest.mark.parametrize("target", [kind for kind in TARGETS if kind.itemsize < 4], ids=ids)
def test_sampled_float32_patterns_are_rounded_as_torch_and_numpy_round_them(target: DType) -> None:
    """All of them: ``scripts/fp16_exhaustive.py``."""
    x = np.arange(0, 1 << 32, 8_191, dtype=np.uint32).view(np.float32)
    result = np.frombuffer(encoded(x, target), f"u{target.itemsize}")
    numbers = ~np.isnan(x)

    assert same(
        values(result.tobytes(), target), cast_by_torch(x.tobytes(), TYPES["float32"], target)
    )
    if target.name == "float16":
        with np.errstate(all="ignore"):
            numpy_says = x.astype(np.float16).view(np.uint16)
        assert np.array_equal(result[numbers], numpy_says[numbers])


@pytest.mark.parametrize(
    ("target", "infinity", "kept_bits"),
    [("float16", 0x7C00, 10), ("bfloat16", 0x7F80, 7), ("float8_e5m2", 0x7C, 2)],
)
@pytest.mark.parametrize("sign", [0, 1], ids=["positive", "negative"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_nan_keeps_its_sign_and_the_head_of_its_payload_and_is_quiet(
    target: str, infinity: int, kept_bits: int, sign: int, kind: type[np.floating]
) -> None:
    """Alone, numkong's bfloat16 cast makes infinity of 0x7f800001 and -0.0 of 0x7fffffff."""
    payload = np.array([*range(1, 1 << 23, 4_093), (1 << 23) - 1], np.uint32)
    x = nans(payload, sign, kind)

    result = np.frombuffer(encoded(x, TYPES[target]), f"u{TYPES[target].itemsize}")

    negative = sign << (8 * TYPES[target].itemsize - 1)
    quiet = 1 << (kept_bits - 1)
    expected = negative | infinity | quiet | (payload >> (23 - kept_bits))
    assert np.array_equal(result, expected.astype(result.dtype))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_in_a_format_with_one_nan_only_its_sign_is_kept(kind: type[np.floating]) -> None:
    payload = np.array([*range(1, 1 << 23, 4_093), (1 << 23) - 1], np.uint32)

    for sign, code in ((0, 0x7F), (1, 0xFF)):
        result = encoded(nans(payload, sign, kind), TYPES["float8_e4m3fn"])
        assert set(result) == {code}


def nans(payload: NDArray[np.uint32], sign: int, kind: type[np.floating]) -> floats.Wide:
    single = (payload | 0x7F800000 | sign << 31).astype(np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        return single.astype(kind)


@pytest.mark.parametrize("target", TARGETS, ids=ids)
@pytest.mark.parametrize("source", [d for d in FLOATS if d.itemsize < 4], ids=ids)
def test_every_pattern_of_a_narrow_type_is_rounded_as_torch_rounds_it(
    source: DType, target: DType
) -> None:
    data = patterns(source)

    result = encoded(decoded(data, source), target)

    assert same(values(result, target), cast_by_torch(data, source, target))


@pytest.mark.parametrize("target", TARGETS, ids=ids)
def test_what_overflowed_is_clamped_to_the_largest_number_of_its_sign(target: DType) -> None:
    largest = torch.finfo(getattr(torch, target.name)).max
    x = np.array([1e300, -1e300, 1e300, 1.0])
    out = np.frombuffer(bytearray(encoded(x, target)), target.numpy)

    floats.clamp(out, np.array([True, True, False, False]))

    clamped = values(out.tobytes(), target)
    assert clamped[[0, 1, 3]].tolist() == [largest, -largest, 1.0]
    assert not math.isfinite(clamped[2])


@pytest.mark.parametrize("target", [d for d in TARGETS if d.itemsize == 1], ids=ids)
def test_the_eight_bit_numbers_and_what_lies_between_them_round_as_exact_fractions_do(
    target: DType,
) -> None:
    """Each number, each tie, and the nearest float32 and float64 on either side of them."""
    finite = values(bytes(range(0x80)), target)
    numbers = [Fraction(v) for v in finite[np.isfinite(finite)].tolist()]
    beyond = 2 * numbers[-1] - numbers[-2]
    near: list[Fraction] = []
    for low, high in pairwise([*numbers, beyond]):
        near += (low, (low + high) / 2)
    exact = [float(each) for each in near]
    for kind in (np.float32, np.float64):
        middle = np.array(exact, kind)
        below, above = (np.nextafter(middle, kind(side)) for side in (-np.inf, np.inf))
        x = np.concatenate((middle, below, above))
        x = np.concatenate((x, -x))

        result = values(encoded(x, target), target)

        expected = [nearest_of(numbers, beyond, v) for v in x.tolist()]
        if target.name == "float8_e4m3fn":
            expected = [v if math.isfinite(v) else math.nan for v in expected]
        assert same(result, np.array(expected))


def nearest_of(numbers: list[Fraction], beyond: Fraction, value: float) -> float:
    """The nearest of *numbers*, which alternate between even and odd, by exact distances."""
    steps = [*numbers, beyond]
    size = abs(Fraction(value))
    index = min(range(len(steps)), key=lambda at: (abs(steps[at] - size), at % 2))
    return math.copysign(math.inf if index == len(numbers) else float(steps[index]), value)


@pytest.mark.parametrize("target", TARGETS, ids=ids)
@PER_TYPE
@given(data=st.data())
def test_magnitudes_are_in_the_order_of_absolute_values(target: DType, data: st.DataObject) -> None:
    elements = data.draw(ELEMENTS[target.name])
    absolute = np.abs(values(elements, target))
    numbers = ~np.isnan(absolute)
    bits = np.frombuffer(elements, target.numpy)

    found = floats.magnitudes(bits, np.empty(bits.size))

    assert np.array_equal(found == 0, absolute == 0)
    assert ranks(found[numbers]) == ranks(absolute[numbers])


def ranks(numbers: NDArray[np.generic]) -> list[int]:
    ranked: list[int] = np.unique(numbers, return_inverse=True)[1].tolist()
    return ranked


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d not in TARGETS], ids=ids)
def test_nothing_else_is_written(dtype: DType) -> None:
    with pytest.raises(ValueError, match=f"nothing is rounded to {dtype.name}"):
        floats.encode(np.ones(1), np.empty(1, dtype.numpy), dtype)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if not d.is_float], ids=ids)
def test_nothing_else_is_read(dtype: DType) -> None:
    with pytest.raises(KeyError, match=dtype.name):
        floats.decode(np.empty(1, dtype.numpy), dtype, np.empty(1))
