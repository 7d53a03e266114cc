"""What the bits of a float element mean, and how a number is rounded into them.

Numbers go from one format to another as a *wide* array: float32, or float64 for a
float64 source, which holds every element exactly.  So each format is read once, into
wide numbers, and each target written once, from them.  Rounding is to nearest, ties to
even (IEEE 754-2019, 4.3.1), once.

Knows:      IEEE 754 and its narrow relatives, numpy, and where numkong departs from IEEE 754.
Is told:    elements as they lie in a file, their type, and room for the numbers.
Never asks: what a cast lost (`numerics` counts that), or whether that is acceptable.

All arrays have one dimension.  docs/fp16-exhaustive.md says how each claim about
numkong was found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numkong
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ckptaudit.dtypes import DType

__all__ = [
    "BINADES",
    "FORMATS",
    "TARGETS",
    "Format",
    "Stored",
    "Wide",
    "as_bits",
    "clamp",
    "count_binades",
    "decode",
    "encode",
    "keep_nan",
    "magnitudes",
]

# Elements as they lie in a file, at any address: the numpy dtype that `dtypes` gives them.
Stored: TypeAlias = "NDArray[np.generic]"
# Exact numbers, aligned: float64 for a float64 source, float32 for every other.
Wide: TypeAlias = "NDArray[np.floating]"


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format.

    Attributes:
        precision: Bits of the significand, the hidden one included.
        emin: Exponent of the smallest normal number, a power of two.
        largest: The largest finite number.
    """

    precision: int
    emin: int
    largest: float

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with all its bits of precision."""
        return math.ldexp(1.0, self.emin)

    @property
    def smallest_normal_bits(self) -> int:
        """Its bits, in a format that has subnormals: the fraction is zero, the exponent one."""
        return 1 << (self.precision - 1)

    @property
    def overflows_beyond(self) -> float:
        """Half a unit above the largest finite number: all beyond it overflows, all below fits.

        It is a tie itself.  Where the format goes on to infinity, that is on the even side:
        float16's 65520 overflows.  float8_e4m3fn has a NaN there, whose significand is odd: its
        464 becomes 448.
        """
        return self.largest + math.ldexp(0.5, math.frexp(self.largest)[1] - self.precision)


# By torch's names.  IEEE 754-2019 table 3.5 (binary16, 32, 64); bfloat16 is binary32 with 16
# bits cut off; the eight-bit ones are OCP "8-bit Floating Point Specification" 1.0,
# "Microscaling Formats" 1.0 (e8m0) and arXiv:2206.02915 (fnuz).
FORMATS = {
    "float64": Format(53, -1022, 1.7976931348623157e308),
    "float32": Format(24, -126, 3.4028234663852886e38),
    "float16": Format(11, -14, 65504.0),
    "bfloat16": Format(8, -126, 3.3895313892515355e38),
    "float8_e4m3fn": Format(4, -6, 448.0),
    "float8_e5m2": Format(3, -14, 57344.0),
    "float8_e4m3fnuz": Format(4, -7, 240.0),
    "float8_e5m2fnuz": Format(3, -15, 57344.0),
    "float8_e8m0fnu": Format(1, -127, 2.0**127),
}
# The formats that `encode` writes; all of them have subnormals, and all but float8_e4m3fn
# infinities.
TARGETS = frozenset({"float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"})

# Exponents of the powers of two that a double can be as large as; the first is that of its
# smallest subnormal number.
BINADES = range(-1074, 1024)

# Codes of the eight-bit formats, sign bit off and on, that are no finite numbers.  The fnuz
# ones have neither infinity nor negative zero; where that would be is their only NaN.
_SPECIAL_CODES = {
    "float8_e4m3fn": {0x7F: math.nan, 0xFF: math.nan},
    "float8_e5m2": {
        0x7C: math.inf,
        0xFC: -math.inf,
        **dict.fromkeys((0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF), math.nan),
    },
    "float8_e4m3fnuz": {0x80: math.nan},
    "float8_e5m2fnuz": {0x80: math.nan},
}


def decode(stored: Stored, dtype: DType, room: Wide) -> Wide:
    """What the elements *stored* are, exactly.

    Args:
        stored: n elements, contiguous.
        dtype: Their type, one of `FORMATS`.
        room: Written to where need be: float64, at least n, aligned.

    Returns:
        n numbers, float64 if *dtype* is float64 and else float32: *stored* itself where
        that is so already and aligned, and otherwise the head of *room*.

    Raises:
        KeyError: *dtype* is not one of `FORMATS`.
    """
    wide_type: type[np.floating] = np.float64 if dtype.name == "float64" else np.float32
    wide = room.view(wide_type)[: stored.size]
    if dtype.name in ("float64", "float32"):
        exact = stored.view(wide_type)
        if exact.flags.aligned:
            return exact
        np.copyto(wide, exact)
    elif dtype.name == "float16":
        # numkong refuses an array that is not aligned; a copy is.
        numkong.astype(stored if stored.flags.aligned else stored.copy(), "float32", out=wide)
    elif dtype.name == "bfloat16":
        bits = wide.view(np.uint32)
        np.copyto(bits, stored)
        np.left_shift(bits, 16, out=bits)
    else:
        # No code is out of range; asked to wrap around, numpy does not stop to look.
        np.take(_float8_values(dtype.name), stored.view(np.uint8), out=wide, mode="wrap")
    return wide


def encode(x: Wide, out: Stored, target: DType) -> None:
    """Round each of *x* to *target*, once.

    A number too large becomes infinity, and infinities stay; in float8_e4m3fn, which has
    none, both become NaN of their sign.  Where *x* has NaNs, call `keep_nan` afterwards: to
    look for them here would cost a pass over each piece, and the caller knows already.

    Args:
        x: n numbers.
        out: Room for n elements of *target*, at any address; must not overlap *x*.
        target: One of `TARGETS`.

    Raises:
        ValueError: *target* is not one of `TARGETS`.
    """
    if target.name not in TARGETS:
        raise ValueError(f"nothing is rounded to {target.name}")
    if target.name == "float32":
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out, x, casting="unsafe")
        return
    narrow = x if x.dtype == np.float32 else _round_to_odd(x)
    if target.name == "bfloat16":
        # numkong writes bfloat16 only to its own tensors.
        rounded = memoryview(numkong.astype(narrow, "bfloat16"))
        np.copyto(out, np.frombuffer(rounded, np.uint16))
    elif target.itemsize == 1:
        _encode_float8(narrow, out, target)
    elif out.flags.aligned:
        numkong.astype(narrow, "float16", out=out)
    else:
        np.copyto(out, numkong.astype(narrow, "float16"))


def keep_nan(x: Wide, nan: NDArray[np.bool_], out: Stored, target: DType) -> None:
    """Make *out*, as `encode` left it, NaN where *x* is.

    A NaN keeps its sign and the leading bits of its payload and becomes quiet, as the
    processor does it; float8_e4m3fn has no payloads and one NaN for each sign.  Only bfloat16
    needs help: numkong 7.8 rounds a payload there as if it were a number, so that 0x7f800001
    becomes infinity, and 0x7fffffff carries into the sign and becomes -0.0.

    Args:
        x: The n numbers that were encoded.
        nan: Which of them are NaN, n.
        out: Their n elements of *target*.
        target: One of `TARGETS`.
    """
    if target.name != "bfloat16":
        return
    with np.errstate(invalid="ignore"):
        bits = x[nan].astype(np.float32).view(np.uint32)
    out[nan] = (bits >> 16 | 0x0040).astype(np.uint16)


def clamp(out: Stored, over: NDArray[np.bool_]) -> None:
    """Replace what overflowed by the largest finite number of the same sign.

    Args:
        out: n elements of one of `TARGETS`, as `encode` left them.
        over: Which of them overflowed, n.
    """
    # Infinity's bits less one are the largest finite number's, of either sign; and so are those of
    # the NaN that stands in its place in float8_e4m3fn.
    as_bits(out)[over] -= 1


def magnitudes(x: Stored | Wide, room: Wide) -> NDArray[np.unsignedinteger]:
    """Unsigned integers in the order of the absolute values of *x*, zero for either zero.

    They are the bits shifted left by one, which drops the sign.  numpy compares and counts
    integers ten times as fast as float16.

    Args:
        x: n elements of one of `TARGETS`, or n wide numbers.
        room: Written to: float64, at least n, aligned.

    Returns:
        n integers as wide as the elements of *x*, at the head of *room*.
    """
    bits = as_bits(x)
    twice = room.view(bits.dtype)[: x.size]
    np.add(bits, bits, out=twice)  # twice as fast as a shift
    return twice


def count_binades(x: Wide, counts: NDArray[np.int64], room: Wide) -> None:
    """Count each of *x* to the largest power of two that is no larger than it, signs aside.

    NaN, infinities and zeros are counted nowhere; subnormal numbers where they belong.

    Args:
        x: n wide numbers.
        counts: Added to, one for each of `BINADES`.
        room: Written to: float64, at least n, aligned.
    """
    form = FORMATS[x.dtype.name]
    exponents = 2 << (8 * x.itemsize - 1 - form.precision)
    # In the order of the bits: sign, exponent, fraction; to the count of one sign the other's is
    # added.  The first exponent is that of zeros and subnormals, the last that of the rest.
    found = room.view(np.int64)[: x.size]
    np.right_shift(as_bits(x), form.precision - 1, out=found)
    of_sign = np.bincount(found, minlength=2 * exponents).reshape(2, exponents)
    by_exponent = of_sign[0] + of_sign[1]
    first = form.emin - BINADES.start
    counts[first : first + exponents - 2] += by_exponent[1:-1]
    if by_exponent[0]:
        tiny = x[(np.abs(x) < form.smallest_normal) & (x != 0)]
        np.add.at(counts, np.frexp(tiny)[1] - 1 - BINADES.start, 1)


def as_bits(x: Stored | Wide) -> NDArray[np.unsignedinteger]:
    """The elements of *x* as unsigned integers of the same width, in the same memory."""
    bits: NDArray[np.unsignedinteger] = x.view(f"u{x.itemsize}")
    return bits


def _round_to_odd(x: Wide) -> NDArray[np.float32]:
    """float64 to float32, cut off, with the last bit set if anything was.

    Rounding that to 11 bits or fewer gives what rounding *x* itself would have given; rounding
    twice to nearest would not.  Boldo and Melquiond, "Emulation of FMA and correctly rounded
    sums: proved algorithms using rounding to odd" (2008), theorem 2: it takes two bits more
    than the target has, and float32 has thirteen.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = x.astype(np.float32)
    back = narrow.astype(np.float64)
    bits = narrow.view(np.uint32)
    # Bits are sign and magnitude: one less is one step towards zero, from infinity too.
    bits -= np.abs(back) > np.abs(x)
    bits |= back != x
    return narrow


def _encode_float8(x: Wide, out: Stored, target: DType) -> None:
    """Round float32 to eight bits: to odd first, into the eight bits of precision of bfloat16.

    There it is one of 65,536, and a table says the rest.  The target has four bits at most, and
    two more would do; see `_round_to_odd`.  numkong 7.8 has such casts too, but makes 448 of most
    NaN in the one format, and NaN of 1e5 in the other.
    """
    bits = x.view(np.uint32)
    # Bit 16 is set where any below it is, by the carry of an addition.
    odd = bits & 0xFFFF
    odd += 0xFFFF
    odd |= bits
    odd >>= 16
    codes = out.view(np.uint8)
    np.take(_float8_codes(target.name), odd.astype(np.uint16), out=codes, mode="wrap")


@cache
def _float8_codes(name: str) -> NDArray[np.uint8]:
    """The code in an eight-bit format that is nearest to each bfloat16, by its bits."""
    bits = np.arange(1 << 15, dtype=np.uint32)
    with np.errstate(invalid="ignore"):
        sizes = (bits << 16).view(np.float32).astype(np.float64)
    values, form = _float8_values(name).astype(np.float64), FORMATS[name]
    steps = values[: int(np.argmax(values == form.largest)) + 1]
    ties = np.append((steps[1:] + steps[:-1]) / 2, form.overflows_beyond)
    codes = np.searchsorted(ties, sizes)
    # A tie was counted to the lower side; if that is the odd one, it belongs to the other.
    is_tie = np.append(ties, np.nan)[codes] == sizes
    codes += is_tie & (codes % 2 == 1)
    # A NaN is quiet and keeps the head of its payload, as far as there is room for it.
    quiet = 0x7F if name == "float8_e4m3fn" else 0x7E
    codes = np.where(np.isnan(sizes), quiet | bits >> 5 & 3, codes)
    return np.concatenate((codes, codes | 0x80)).astype(np.uint8)


@cache
def _float8_values(name: str) -> NDArray[np.float32]:
    """All 256 values of an eight-bit format, by their code."""
    if name == "float8_e8m0fnu":  # an exponent and nothing else, not even a sign
        return np.array([*(math.ldexp(1.0, code - 127) for code in range(255)), math.nan], "f4")
    form, special = FORMATS[name], _SPECIAL_CODES[name]
    fraction_bits = form.precision - 1
    values = np.empty(256, np.float32)
    for code in range(128):
        exponent, fraction = divmod(code, 1 << fraction_bits)
        hidden = bool(exponent) << fraction_bits
        scale = max(exponent, 1) - 1 + form.emin - fraction_bits
        values[code] = math.ldexp(hidden + fraction, scale)
        values[code + 128] = -values[code]
    values[list(special)] = list(special.values())
    return values
