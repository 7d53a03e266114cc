"""What a tensor held, and what its cast cost.

Knows:      which statistics there are, how far each is exact, and how those of parts are joined.
Is told:    counts, extremes and sums.
Never asks: for elements; `numerics` measures them.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Tally", "TensorStats", "joined"]


@dataclass(frozen=True, slots=True)
class TensorStats:
    """What a tensor held, and what its cast cost; unitless elements, counted exactly.

    The first eight, and ``finite`` and ``histogram``, describe the source.  ``min``, ``max``,
    ``mean`` and ``std`` are taken over its finite elements and are None where there are none, or
    where the type has no order (complex, quantised).  ``min`` and ``max`` are exact (the nearest
    double for 64-bit integers).  ``mean`` is good to 1e-12 of the mean of ``|x|``; ``std``, and
    the ratio behind ``sqnr_db``, to 1e-8 of itself.  Their sums are doubles: for a float64 source
    that holds while values, deviations and errors lie between 1e-140 and 1e140, and where a sum
    leaves the range of a double they are None.  ``finite``, ``signal`` and ``noise`` are what
    `joined` needs besides.

    Attributes:
        numel: Elements.
        min: Smallest finite element.
        max: Largest finite element.
        mean: Arithmetic mean.
        std: Population standard deviation (divisor n, not n - 1).
        zeros: Elements equal to zero, of either sign.
        nan: Elements that are not a number.
        inf: Infinite elements, of either sign; float8_e4m3fn has a NaN for each.
        overflowed: Finite in, too large for the target: infinite out, or NaN in float8_e4m3fn,
            or, if clamped, its largest finite number.
        flushed: Nonzero in, zero out.
        subnormal: Elements of the *result* that are nonzero and smaller than the target's
            smallest normal number.
        max_abs_error: Largest ``|out - in|`` over elements finite in and out (clamped
            ones included); None if there are none.
        sqnr_db: Signal to quantisation noise over the same elements, in decibels,
            ``10 log10(signal / noise)``; None if there is no noise or no signal.
        finite: Elements that ``min``, ``max``, ``mean`` and ``std`` are taken over.
        signal: Sum of ``in^2`` over the elements that ``max_abs_error`` is taken over; None if
            it leaves the range of a double.
        noise: Sum of ``(out - in)^2`` over the same, likewise.
        histogram: By size, how many nonzero ones of the finite elements of the source there
            are: pairs of e and the number of those with ``2**e <= |x| < 2**(e + 1)``, sorted,
            none of them 0.  None where it was not asked for, or the type has no order.
    """

    numel: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    zeros: int
    nan: int
    inf: int
    overflowed: int
    flushed: int
    subnormal: int
    max_abs_error: float | None
    sqnr_db: float | None
    finite: int
    signal: float | None
    noise: float | None
    histogram: tuple[tuple[int, int], ...] | None = None


@dataclass(slots=True)
class Tally:
    """Sums so far; pieces are added in the order of the tensor, each in double precision."""

    numel: int = 0
    finite: int = 0
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    spread: float = 0.0
    zeros: int = 0
    nan: int = 0
    inf: int = 0
    overflowed: int = 0
    flushed: int = 0
    subnormal: int = 0
    is_compared: bool = False
    error: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    def add_values(self, count: int, total: float, spread: float, low: float, high: float) -> None:
        """Add *count* finite elements, at least one.

        Two groups' squared deviations are joined by Chan, Golub and LeVeque, "Updating
        formulae and a pairwise algorithm for computing sample variances" (1979), eq. 2.1.

        Args:
            count: How many.
            total: Their sum.
            spread: The sum of their squared deviations from their own mean.
            low: The smallest.
            high: The largest.
        """
        if self.finite:
            apart = total / count - self.total / self.finite
            joint = self.finite + count
            spread += apart * apart * (self.finite * count / joint)
        self.finite += count
        self.total += total
        self.spread += spread
        # Which of two zeros is the smaller depends on their order; 0.0 stands for both.
        self.low = min(self.low, low + 0.0)
        self.high = max(self.high, high + 0.0)

    def add(self, part: TensorStats) -> None:
        """Add all that is known of *part* but its histogram."""
        if part.min is not None and part.max is not None:
            mean, std = _or_nan(part.mean), _or_nan(part.std)
            self.add_values(
                part.finite, mean * part.finite, std * std * part.finite, part.min, part.max
            )
        self.numel += part.numel
        self.zeros += part.zeros
        self.nan += part.nan
        self.inf += part.inf
        self.overflowed += part.overflowed
        self.flushed += part.flushed
        self.subnormal += part.subnormal
        if part.max_abs_error is not None:
            self.is_compared = True
            self.error = max(self.error, part.max_abs_error)
        self.signal += _or_nan(part.signal)
        self.noise += _or_nan(part.noise)

    def stats(self, histogram: tuple[tuple[int, int], ...] | None) -> TensorStats:
        """What the sums come to."""
        some = self.finite > 0
        return TensorStats(
            numel=self.numel,
            min=self.low if some else None,
            max=self.high if some else None,
            mean=_or_none(self.total / self.finite) if some else None,
            std=_or_none(self.spread / self.finite, math.sqrt) if some else None,
            zeros=self.zeros,
            nan=self.nan,
            inf=self.inf,
            overflowed=self.overflowed,
            flushed=self.flushed,
            subnormal=self.subnormal,
            max_abs_error=self.error if self.is_compared else None,
            sqnr_db=_decibels(self.signal, self.noise),
            finite=self.finite,
            signal=_or_none(self.signal),
            noise=_or_none(self.noise),
            histogram=histogram,
        )


def joined(parts: Iterable[TensorStats]) -> TensorStats:
    """The statistics of all *parts* together, as of one tensor that is cut into them.

    Counts and extremes are exact.  Sums are added in the order given, so that the same parts in
    the same order give the same to the bit; deviations are joined as those of pieces are.  There
    is a histogram if every part that has finite elements has one.
    """
    several = tuple(parts)
    if len(several) == 1:
        return several[0]
    tally = Tally()
    for part in several:
        tally.add(part)
    measured = [part.histogram for part in several if part.finite]
    wanted = [histogram for histogram in measured if histogram is not None]
    is_known = len(wanted) == len(measured) and any(part.histogram is not None for part in several)
    binades: Counter[int] = Counter()
    for histogram in wanted:
        binades.update(dict(histogram))
    return tally.stats(tuple(sorted(binades.items())) if is_known else None)


def _decibels(signal: float, noise: float) -> float | None:
    if signal == 0.0 or noise == 0.0:
        return None
    return _or_none(signal / noise, lambda ratio: 10.0 * math.log10(ratio))


def _or_nan(value: float | None) -> float:
    """*value*, or NaN for a sum that left the range of a double, which no sum gets it back to."""
    return math.nan if value is None else value


def _or_none(value: float, function: Callable[[float], float] = float) -> float | None:
    """*function* of *value*, or None where the sums behind it left the range of a double."""
    return function(value) if math.isfinite(value) else None
