"""Cast a tensor block by block, and say exactly what was lost.

Knows:      how each statistic is measured, and what it costs.
Is told:    two element types, then blocks of elements and room for the results.
Never asks: what an element's bits mean or how it is rounded (`floats`), which tensor
            it is, where the bytes come from or go to, or whether a loss is
            acceptable; `plan` and `jobs` decide that.

Work proceeds in pieces of `PIECE` elements, so that the dozen passes over a piece meet
it in the cache.

Nearly every piece of a real checkpoint is plain: finite going in and finite coming
out.  Its sum of squares and its extremes prove that, and they are wanted anyway.
Only a piece that fails the proof is looked at element by element.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import numkong
import numpy as np

from ckptaudit.dtypes import DType, Kind
from ckptaudit.floats import (
    BINADES,
    FORMATS,
    TARGETS,
    as_bits,
    clamp,
    count_binades,
    decode,
    encode,
    keep_nan,
    magnitudes,
)
from ckptaudit.stats import Tally, TensorStats, joined

if TYPE_CHECKING:
    from ckptaudit.floats import Stored, Wide

__all__ = ["PIECE", "Caster", "TensorStats", "joined"]

# Half of it is a sixth slower, for each of a dozen calls costs a microsecond; twice of it is a
# tenth faster for twice the scratch.  docs/fp16-exhaustive.md has the measurements.
PIECE = 65_536


class _Scratch(threading.local):
    """Room for one piece, per thread: 1,131 tensors must not cost 1,131 allocations.

    float64 rooms are used as float32 for every source but float64; pages that are never
    touched are never given.

    Attributes:
        source: The piece as wide numbers, as long as it is being worked on.
        work: What one function needs until it returns.
        mask: The same, for a choice of elements.
    """

    def __init__(self) -> None:
        self.source = np.empty(PIECE, np.float64)
        self.work = np.empty(PIECE, np.float64)
        self.mask = np.empty(PIECE, np.bool_)


_scratch = _Scratch()


class Caster:
    """Casts one tensor, given as a stream of blocks, and measures it.

    Any float type can be cast to float32, float16, bfloat16, float8_e4m3fn or float8_e5m2;
    every type can be copied (source and target the same).  A NaN stays a NaN: it keeps its sign
    and the leading bits of its payload and becomes quiet.  Infinities stay, but in float8_e4m3fn,
    which has none: there they become NaN of their sign, clamped or not, for no finite number is
    what they were.  Copied elements keep every bit.

    All counts, ``min``, ``max`` and ``max_abs_error`` depend on the elements alone.  The
    sums behind ``mean``, ``std`` and ``sqnr_db`` are taken piece by piece: on one machine
    they agree to the bit however a tensor is cut, if every block but the last is a multiple
    of `PIECE` elements.

    One Caster belongs to one thread at a time; different ones may run at once.

    Args:
        source: Element type of the blocks.
        target: Element type of the results.
        clamp: Write the largest finite number for what would overflow; it is counted all
            the same.
        histogram: Count the elements by their size as well, which takes longer.

    Raises:
        ValueError: There is no such cast.

    >>> from ckptaudit.dtypes import named
    >>> caster = Caster(named("float32"), named("float16"))
    >>> out = bytearray(6)
    >>> caster.cast(memoryview(np.array([1, 7e4, 1e-9], "<f4")), memoryview(out))
    >>> np.frombuffer(out, "<f2").tolist(), caster.stats.overflowed, caster.stats.flushed
    ([1.0, inf, 0.0], 1, 1)
    """

    __slots__ = ("_binades", "_clamp", "_copies", "_limit", "_source", "_tally", "_target")

    def __init__(
        self, source: DType, target: DType, *, clamp: bool = False, histogram: bool = False
    ) -> None:
        if source != target and not (source.is_float and target.name in TARGETS):
            raise ValueError(f"no cast from {source.name} to {target.name}")
        self._source = source
        self._target = target
        self._copies = source == target
        self._clamp = clamp
        self._limit = math.inf if self._copies else FORMATS[target.name].overflows_beyond
        self._tally = Tally()
        has_order = source.kind in (Kind.FLOAT, Kind.INTEGER, Kind.BOOL)
        self._binades = np.zeros(len(BINADES), np.int64) if histogram and has_order else None

    def cast(self, block: memoryview, out: memoryview) -> None:
        """Cast the elements of *block* into *out*, and add them to `stats`.

        Args:
            block: Contiguous, any whole number of little-endian elements, at any address.
            out: Contiguous, writable, exactly as many elements of the target type.  If
                source and target are the same type it may be *block* itself, which is then
                measured and left alone; otherwise the two must not overlap.

        Raises:
            ValueError: *block* is no whole number of elements, or *out* is of another length.
        """
        count, rest = divmod(block.nbytes, self._source.itemsize)
        if rest:
            raise ValueError(f"{block.nbytes} bytes are no whole number of {self._source.name}")
        if out.nbytes != count * self._target.itemsize:
            raise ValueError(
                f"{count} elements of {self._target.name} do not fit {out.nbytes} bytes"
            )
        self._tally.numel += count
        if not count:
            return
        if self._copies and out is not block:
            np.copyto(np.frombuffer(out, np.uint8), np.frombuffer(block, np.uint8))
        stored = np.frombuffer(block, self._source.numpy)
        result = np.frombuffer(out, self._target.numpy)
        for start in range(0, count, PIECE):
            piece = slice(start, start + PIECE)
            if self._source.is_float:
                self._cast_floats(stored[piece], result[piece])
            elif self._source.kind in (Kind.INTEGER, Kind.BOOL):
                self._count_integers(stored[piece])

    @property
    def stats(self) -> TensorStats:
        """The statistics of all blocks so far."""
        if self._binades is None:
            return self._tally.stats(None)
        held = np.flatnonzero(self._binades).tolist()
        return self._tally.stats(tuple((BINADES[at], int(self._binades[at])) for at in held))

    def _cast_floats(self, stored: Stored, out: Stored) -> None:
        x = decode(stored, self._source, _scratch.source)
        if self._binades is not None:
            count_binades(x, self._binades, _scratch.work)
        if not self._copies:
            encode(x, out, self._target)
        total, squares = numkong.moments(x)
        # A NaN or an infinity makes the sum of squares one too; no sum of float32 squares is
        # infinite otherwise, and a float64 sum that is only takes the long way round.
        if math.isfinite(squares):
            low, high = _extremes(x)
            if -self._limit < low and high < self._limit:
                self._add_values(x, total, squares, low, high)
                self._add_losses(x, out, squares)
                self._count_small(x, out)
                return
        self._cast_rough(x, out)

    def _cast_rough(self, x: Wide, out: Stored) -> None:
        """Finish a piece that has NaN, infinity or overflow in it; *out* holds its cast."""
        tally = self._tally
        nan = np.isnan(x)
        finite = np.isfinite(x)
        nans = int(np.count_nonzero(nan))
        tally.nan += nans
        tally.inf += x.size - nans - int(np.count_nonzero(finite))
        kept, error_type = finite, x.dtype.type
        if not self._copies:
            # Before all else, for `encode` may have left a number where a NaN was.
            keep_nan(x, nan, out, self._target)
            over = finite & ~np.isfinite(decode(out, self._target, _scratch.work))
            overflowed = int(np.count_nonzero(over))
            tally.overflowed += overflowed
            if overflowed and self._clamp:
                clamp(out, over)
                error_type = np.float64  # their errors need not fit into x's own precision
            elif overflowed:
                kept = finite & ~over

        values = x[finite]
        if values.size:
            self._add_values(values, *numkong.moments(values), *_extremes(values))
        compared = x[kept].astype(error_type, copy=False)
        if compared.size:
            self._add_losses(compared, out[kept], numkong.moments(compared)[1])
        self._count_small(x, out)

    def _count_integers(self, stored: Stored) -> None:
        """A bool counts as its byte, so that a maximum above 1 betrays a forged one."""
        integers = stored.view(np.uint8) if self._source.kind is Kind.BOOL else stored
        values = integers.astype(np.float64)
        # Conversion is monotonic, so the extremes of the doubles are those of the integers.
        total, squares = numkong.moments(values)
        self._add_values(values, total, squares, *_extremes(values))
        self._tally.signal += squares
        self._tally.zeros += values.size - int(np.count_nonzero(values))
        self._tally.is_compared = True
        if self._binades is not None:
            count_binades(_of_same_binades(integers), self._binades, _scratch.work)

    def _add_values(self, x: Wide, total: float, squares: float, low: float, high: float) -> None:
        """Add finite *x*, at least one of them, to the statistics of the source."""
        spread = _spread(x, total, squares, low, high)
        self._tally.add_values(x.size, total, spread, low, high)

    def _add_losses(self, x: Wide, out: Stored, squares: float) -> None:
        """Add the error of *out*, finite like *x*; *squares* is the sum of x*x.

        The subtraction below is exact in x's own precision.  Zero is a value of the target,
        so the nearest one is no farther from x than zero: |x - out| <= |x|.  And out is zero
        or a multiple of x's unit in the last place, because the target is no finer than x
        there; so x - out is one as well, and no larger than x: it fits.  (Elements that were
        clamped are the exception; their *x* is float64, and what it cannot hold is lost.)
        """
        tally = self._tally
        tally.is_compared = True
        tally.signal += squares
        if self._copies:
            return
        back = decode(out, self._target, _scratch.work)
        # In place where it can be: it takes a third less cache.
        error = _scratch.work.view(x.dtype)[: x.size]
        np.subtract(x, back, out=error)
        tally.noise += numkong.moments(error)[1]
        low, high = _extremes(error)
        tally.error = max(tally.error, -low, high)

    def _count_small(self, x: Wide, out: Stored) -> None:
        """Count zeros in x and out, and subnormals in out."""
        tally = self._tally
        target = FORMATS[self._target.name]
        if self._copies:
            # Of a copy the wide form is at hand, and there every format counts alike.
            smallest = as_bits(np.array(target.smallest_normal, x.dtype))
            zeros, subnormal = _count_below(x, int(smallest))
            tally.zeros += zeros
        else:
            zeros, subnormal = _count_below(out, target.smallest_normal_bits)
            # A zero stays a zero, so there is none to look for in x if none came out.
            before = x.size - int(np.count_nonzero(magnitudes(x, _scratch.work))) if zeros else 0
            tally.zeros += before
            tally.flushed += zeros - before
        tally.subnormal += subnormal


def _extremes(x: Wide) -> tuple[float, float]:
    """The smallest and largest of *x*, which is finite and not empty.

    numpy's two passes take two thirds of the time of numkong's one, `minmax`, which has no
    answer besides where every element is the largest finite float32.
    """
    return float(np.minimum.reduce(x)), float(np.maximum.reduce(x))


def _spread(x: Wide, total: float, squares: float, low: float, high: float) -> float:
    """The sum of squared deviations of *x* from its mean.

    ``squares - total^2 / n`` is off by about 1e-13 of ``squares`` (measured: numkong adds
    float32 products in double), and is kept if it is at least a thousandth of that: weights
    always are.  Otherwise, where the mean is over thirty times the deviation, such as in the
    scales of a normalisation layer, the deviations themselves are squared.
    """
    if low == high:
        return 0.0
    spread = squares - total * (total / x.size)
    if spread >= squares / 1024 or not math.isfinite(spread):
        return spread
    shifted = _scratch.work[: x.size]
    np.subtract(x, total / x.size, out=shifted, dtype=np.float64)
    rest, squares = numkong.moments(shifted)
    return max(squares - rest * (rest / x.size), 0.0)


def _count_below(x: Stored | Wide, smallest: int) -> tuple[int, int]:
    """How many of *x* are zero, and how many others have smaller bits than *smallest*."""
    sizes = magnitudes(x, _scratch.work)
    # Few pieces hold a zero, and to find the least takes a third of the time of counting.
    zeros = 0 if np.minimum.reduce(sizes) else x.size - int(np.count_nonzero(sizes))
    below = _scratch.mask[: x.size]
    np.less(sizes, 2 * smallest, out=below)
    return zeros, int(np.count_nonzero(below)) - zeros


def _of_same_binades(integers: Stored) -> Wide:
    """A double for each of *integers* that is as large as the same power of two.

    Rounded to the nearest, 2^63 - 1 would be as large as the next.
    """
    if integers.dtype.itemsize < 8:  # noqa: PLR2004 - bytes of an integer that a double may not hold
        return integers.astype(np.float64)
    sizes = np.abs(integers).view(np.uint64)
    # Of one of more than 53 bits the last eleven can go: 53 are left, or more that are zero.
    sizes = np.where(sizes >> 53, sizes & ~np.uint64(0x7FF), sizes)
    return sizes.astype(np.float64)
