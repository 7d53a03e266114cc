"""What a cast ought to give: two oracles that share no code with ours, and values to ask about.

torch knows what the bits of an element mean, and whole tables of casts; `nearest` rounds by
arithmetic that is exact in float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from ckptaudit.dtypes import DTYPES, DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ELEMENTS",
    "FLOATS",
    "PAIRS",
    "PER_TYPE",
    "SPECIAL",
    "TARGETS",
    "TYPES",
    "cast_by_torch",
    "ids",
    "nearest",
    "patterns",
    "same",
    "stored",
    "values",
]

TYPES = {dtype.name: dtype for dtype in DTYPES}
FLOATS = [dtype for dtype in DTYPES if dtype.is_float]
TARGETS = [
    TYPES[name] for name in ("float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2")
]
# One eight-bit format stands for all here; each pattern of the others is tried elsewhere.
SOURCES = [TYPES[name] for name in ("float64", "float32", "float16", "bfloat16", "float8_e5m2")]
PAIRS = [(source, target) for source in SOURCES for target in TARGETS if source != target]

# Bits of precision, least normal exponent, largest number.
LIMITS = {
    "float16": (11, -14, 65504.0),
    "bfloat16": (8, -126, 2.0**128 - 2.0**120),
    "float32": (24, -126, 2.0**128 - 2.0**104),
    "float8_e4m3fn": (4, -6, 448.0),
    "float8_e5m2": (3, -14, 57344.0),
}

# For each type or pair of types: over all of them a law is tried hundreds of times all the same.
PER_TYPE = settings(max_examples=25)

SPECIAL = [
    *(0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 1 / 3),
    *(65504.0, 65519.99609375, 65519.999999999993, 65520.0, -65520.0, 1e6, 3.4028234663852886e38),
    *(2.0**-14, 2.0**-14 - 2.0**-25, 2.0**-24, 2.0**-25, 2.0**-25 + 2.0**-48),
    *(3 * 2.0**-25, -(2.0**-26), 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-11 + 2.0**-23),
    *(1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-8, 2.0**128 - 2.0**119, 2.0**128 - 2.0**103),
    *(448.0, 464.0, -464.0, 464.0 + 2.0**-20, 464.0 + 2.0**-44, -480.0, 57344.0, 61440.0),
    *(61440.0 - 2.0**-8, 61440.0 - 2.0**-37, 2.0**-9, 2.0**-10, 2.0**-10 + 2.0**-33, -(2.0**-10)),
    *(2.0**-6 - 2.0**-10, 2.0**-16, 2.0**-17, 2.0**-17 + 2.0**-60, 1 + 2.0**-4, 1 + 3 * 2.0**-4),
    *(1 + 2.0**-4 + 2.0**-23, 1 + 2.0**-4 - 2.0**-50, 1.125, 1.125 + 2.0**-45, 1.375 - 2.0**-24),
    *(2.0**128, 2.0**-126, 2.0**-134, 2.0**-149, 2.0**-150, 1e300, -1e-300, 5e-324),
]


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


def cast_by_torch(data: bytes | bytearray, source: DType, target: DType) -> NDArray[np.float64]:
    """What torch makes of the elements; of what float8_e4m3fn cannot hold, NaN.

    torch made NaN of that until pull request 178817 of 2026, and 448 since.
    """
    flat = torch.frombuffer(bytearray(data), dtype=getattr(torch, source.name))
    made: NDArray[np.float64] = flat.to(getattr(torch, target.name)).double().numpy()
    if target.name == "float8_e4m3fn":
        x = flat.double().numpy()
        return np.where(np.abs(x) > 464, np.copysign(np.nan, x), made)
    return made


def patterns(dtype: DType, most: int = 1 << 16) -> bytes:
    """Elements evenly spread over all that *dtype* can have: every one, unless that is too many."""
    existing = 1 << 8 * dtype.itemsize
    count = min(existing, most)
    return (np.arange(count, dtype=f"<u{dtype.itemsize}") * (existing // count)).tobytes()


def nearest(x: NDArray[np.float64], target: DType) -> NDArray[np.float64]:
    """Each of *x* rounded to nearest even in *target*, by arithmetic that is exact in float64."""
    precision, emin, largest = LIMITS[target.name]
    # Where a format has no infinity, what it cannot hold becomes NaN.
    beyond = math.nan if target.name == "float8_e4m3fn" else math.inf
    finite = np.where(np.isfinite(x), x, 0.0)
    exponent = np.maximum(np.frexp(finite)[1] - 1, emin)
    unit = exponent - (precision - 1)
    # Clipped so that scaling a float64 subnormal up cannot overflow; it is zero all the same.
    with np.errstate(over="ignore"):
        rounded = np.ldexp(np.rint(np.ldexp(finite, np.clip(-unit, -1023, 1023))), unit)
    too_large = (np.abs(rounded) > largest) | np.isinf(x)
    rounded = np.where(too_large, np.copysign(beyond, x), rounded)
    return np.where(np.isnan(x), x, rounded)


def same(a: NDArray[np.floating], b: NDArray[np.floating]) -> bool:
    """Equal as values, zeros with their sign, NaN equal to NaN."""
    return bool(np.all((np.isnan(a) & np.isnan(b)) | ((a == b) & (np.signbit(a) == np.signbit(b)))))


def elements(source: DType) -> st.SearchStrategy[bytes]:
    """Bytes of up to 60 elements: thresholds, plain weights, and any bits at all.

    Each kind may be missing, so that both ways through a piece, the quick one and the long
    one, are taken often.
    """
    size = source.itemsize

    def some_of(numbers: list[float]) -> st.SearchStrategy[bytes]:
        known = stored(numbers, source)
        each = [known[at : at + size] for at in range(0, len(known), size)]
        return st.lists(st.sampled_from(each), max_size=20).map(b"".join)

    weights = some_of(np.random.default_rng(1).normal(0, 0.02, 30).tolist())
    any_bits = st.integers(0, 20).flatmap(lambda n: st.binary(min_size=n * size, max_size=n * size))
    return st.tuples(weights, some_of(SPECIAL), any_bits).map(b"".join)


ELEMENTS = {source.name: elements(source) for source in FLOATS}


def ids(pair: object) -> str:
    """The id of a parametrised case: an element type, or one and what it is cast to."""
    if isinstance(pair, DType):
        return pair.name
    return "-to-".join(dtype.name for dtype in pair) if isinstance(pair, tuple) else str(pair)
