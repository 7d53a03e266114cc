"""Cast every float32 there is, and compare with numpy, torch and arithmetic.

There are 2^32 bit patterns, so the claim "bit-equal to IEEE 754 rounding" can be checked
rather than sampled.  What runs here is `ckptaudit.numerics.Caster`, as in a conversion.
Three judges: ``numpy.astype`` (float16 only), ``torch.Tensor.to`` (left out, and said so,
where torch is not installed), and for the counts the positions of the thresholds in the
float32 number line, which need no cast at all.

    python scripts/fp16_exhaustive.py [--target TYPE] [--quick]

Exit status: 0 everything agrees, 1 something does not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import struct
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from ckptaudit.dtypes import DTYPES
from ckptaudit.numerics import Caster

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Bits = NDArray[np.unsignedinteger]
    Judge = Callable[[NDArray[np.float32]], Bits]

BLOCK = 1 << 22  # elements
PATTERNS = 1 << 32
INFINITY = 0x7F800000  # bits of float32 infinity; patterns above it, up to the sign, are NaN
# Per target: the values where the outcome changes (all of them float32 numbers), and the bits of
# the last that is no NaN.  To even goes: flushed_to to zero, normal_from to the smallest normal
# number, overflow_from to infinity; float8_e4m3fn has none, and 464 goes to 448, the even side.
THRESHOLDS = {
    "float16": (2.0**-25, 2.0**-14 - 2.0**-25, 65520.0, 0x7C00),
    "bfloat16": (2.0**-134, 2.0**-126 - 2.0**-134, 2.0**128 - 2.0**119, 0x7F80),
    "float8_e4m3fn": (2.0**-10, 2.0**-6 - 2.0**-10, 464.0 + 2.0**-15, 0x7E),
    "float8_e5m2": (2.0**-17, 2.0**-14 - 2.0**-17, 61440.0, 0x7C),
}


def bits(value: float) -> int:
    """The position of a float32 *value* >= 0 among the float32 numbers, counted from zero."""
    (position,) = struct.unpack("<I", struct.pack("<f", value))
    return int(position)


def expected_counts(target: str) -> dict[str, int]:
    """How many of all 2^32 float32 patterns meet each fate: positive ones, twice."""
    flushed_to, normal_from, overflow_from, _ = THRESHOLDS[target]
    return {
        "numel": PATTERNS,
        "zeros": 2,
        "nan": 2 * ((1 << 31) - INFINITY - 1),
        "inf": 2,
        "overflowed": 2 * (INFINITY - bits(overflow_from)),
        "flushed": 2 * bits(flushed_to),
        "subnormal": 2 * (bits(normal_from) - bits(flushed_to) - 1),
    }


def numpy_float16(x: NDArray[np.float32]) -> Bits:
    """What numpy makes of *x*, as bits."""
    with np.errstate(all="ignore"):
        return x.astype(np.float16).view(np.uint16)


def judges(target: str) -> dict[str, Judge]:
    """Those who can be asked here what the cast of an array to *target* is."""
    found: dict[str, Judge] = {}
    if target == "float16":
        found["numpy"] = numpy_float16
    if importlib.util.find_spec("torch"):
        import torch  # noqa: PLC0415 - optional, and it takes a second

        kind = getattr(torch, target)
        unsigned = getattr(torch, f"uint{8 * kind.itemsize}")

        def by_torch(x: NDArray[np.float32]) -> Bits:
            cast: Bits = torch.from_numpy(x).to(kind).view(unsigned).numpy()
            if target == "float8_e4m3fn":
                # torch made NaN of what is too large until pull request 178817 of 2026, and makes
                # the largest number of it since; ours is NaN, which counts as overflowed.
                too_large = np.abs(x) >= np.float32(THRESHOLDS[target][2])
                cast = np.where(too_large, cast | 0x7F, cast)
            return cast

        found["torch"] = by_torch
    return found


def wrong(ours: Bits, theirs: Bits, nan: NDArray[np.bool_], last: int) -> int:
    """Elements that differ: in any bit where the source is a number, in NaN-ness where not."""
    numbers = np.count_nonzero((ours != theirs) & ~nan)
    unsigned = (1 << (8 * ours.itemsize - 1)) - 1
    still_nan = ((ours & unsigned) > last) & ((theirs & unsigned) > last)
    return int(numbers + np.count_nonzero(nan & ~still_nan))


def run(target: str, *, quick: bool) -> bool:
    """Cast and compare; print what was found; whether all agrees."""
    types = {dtype.name: dtype for dtype in DTYPES}
    asked = judges(target)
    differing = dict.fromkeys(asked, 0)
    caster = Caster(types["float32"], types[target])
    result = np.empty(BLOCK, f"u{types[target].itemsize}")
    starts = range(0, PATTERNS, BLOCK * 61 if quick else BLOCK)
    began = time.monotonic()
    casting = 0.0
    for done, start in enumerate(starts):
        x = np.arange(start, start + BLOCK, dtype=np.uint32).view(np.float32)
        before = time.perf_counter()
        caster.cast(x.data, result.data)
        casting += time.perf_counter() - before
        nan = np.isnan(x)
        for name, judge in asked.items():
            differing[name] += wrong(result, judge(x), nan, THRESHOLDS[target][3])
        if done % 64 == 0:
            print(f"{done / len(starts):4.0%}  differing: {differing}", file=sys.stderr)
    elements = len(starts) * BLOCK

    print(f"float32 to {target}: {elements:,} of {PATTERNS:,} patterns")
    print(f"{time.monotonic() - began:.0f} s in all, {casting:.0f} s of it casting and measuring")
    print(versions())
    for name in ("numpy", "torch"):
        verdict = f"{differing[name]:,} elements differ" if name in asked else "not asked"
        print(f"{name:12s}{verdict}")
    good = not any(differing.values())
    if not quick:
        for name, expected in expected_counts(target).items():
            found = getattr(caster.stats, name)
            good &= found == expected
            print(
                f"{name:12s}{found:>14,}{expected:>14,}  {'ok' if found == expected else 'WRONG'}"
            )
        print(f"max_abs_error {caster.stats.max_abs_error!r}")
    print("all agrees" if good else "SOMETHING DIFFERS")
    return good


def versions() -> str:
    """What took part, with version and processor."""
    parts = [f"Python {platform.python_version()}", platform.machine()]
    for name in ("numpy", "numkong", "torch"):
        absent = importlib.util.find_spec(name) is None
        parts.append(f"{name} {'absent' if absent else importlib.metadata.version(name)}")
    return ", ".join(parts)


def main() -> int:
    """Read the arguments, run, and turn the outcome into an exit status."""
    parser = argparse.ArgumentParser(description="Cast every float32 and compare.")
    parser.add_argument("--target", choices=sorted(THRESHOLDS), default="float16")
    parser.add_argument("--quick", action="store_true", help="every 61st block of 2^22 only")
    options = parser.parse_args()
    return 0 if run(options.target, quick=options.quick) else 1


if __name__ == "__main__":
    sys.exit(main())
