"""How fast weights are cast and measured in one thread, and where the time of a piece goes.

Knows:      which casts there are, and the passes that `ckptaudit.numerics` makes over a piece.
Is told:    how many rounds.
Never asks: where weights come from and go to.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numkong
import numpy as np
from contest import machine, table

from ckptaudit.dtypes import named
from ckptaudit.floats import decode, encode, magnitudes
from ckptaudit.numerics import PIECE, Caster

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Weights = NDArray[np.float32]

__all__ = ["bench_cast"]

BLOCK = 1 << 20  # elements
CASTS = [
    ("float32", "float16"),
    ("float32", "bfloat16"),
    ("float32", "float32"),
    ("float16", "float16"),
    ("bfloat16", "float16"),
    ("float64", "float16"),
    ("float8_e4m3fn", "float16"),
    ("float32", "float8_e4m3fn"),
    ("float32", "float8_e5m2"),
]
SMALL = 320  # elements: a bias of Stable Diffusion


def bench_cast(rounds: int) -> str:
    """Cast a block of each kind *rounds* times, and describe the best times in Markdown."""
    random = np.random.default_rng(0)
    weights = random.normal(0, 0.02, BLOCK).astype(np.float32)
    one_nan = weights.copy()
    one_nan[::PIECE] = np.nan
    blocks = [(f"{source} → {target}", source, target, weights) for source, target in CASTS]
    blocks += [
        ("float32 → float16, one NaN in each piece", "float32", "float16", one_nan),
        ("float32 → float16, mean 40 deviations", "float32", "float16", weights + np.float32(0.8)),
    ]
    rows = []
    for name, source, target, values in blocks:
        held = stored(values, source)
        seconds = best(rounds, casting(held, source, target))
        rows.append((name, f"{held.nbytes / seconds / 1e9:.1f}"))
    held = stored(weights, "float32")
    seconds = best(rounds, casting(held, "float32", "float16", histogram=True))
    rows.append(("float32 → float16, with a histogram", f"{held.nbytes / seconds / 1e9:.1f}"))
    small = best(rounds * 10, casting(stored(weights[:SMALL], "float32"), "float32", "float16"))
    passes = [(name, best(rounds * 10, run) * 1e6) for name, run in piece(weights[:PIECE]).items()]
    lines = [
        f"{machine()}, numpy {np.__version__}; the best of {rounds} runs.",
        "",
        *table(("source → target", "GB/s of source"), rows),
        "",
        f"A tensor of {SMALL} elements, its `Caster` included: {small * 1e6:.0f} µs.",
        "",
        *table(("pass", "µs"), [(name, f"{micros:.1f}") for name, micros in passes]),
    ]
    return "\n".join(lines) + "\n"


def best(rounds: int, run: Callable[[], object]) -> float:
    """Seconds of the quickest of *rounds* runs."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def stored(values: Weights, dtype: str) -> memoryview:
    """*values* as a file holds them; as float8 they are just bytes, none of which is NaN."""
    if dtype == "float8_e4m3fn":
        return (np.arange(values.size) % 0x7F).astype(np.uint8).data
    if dtype in ("float32", "float64"):
        return values.astype(dtype).data.cast("B")
    out = bytearray(values.size * named(dtype).itemsize)
    Caster(named("float32"), named(dtype)).cast(values.data.cast("B"), memoryview(out))
    return memoryview(out)


def casting(
    block: memoryview, source: str, target: str, *, histogram: bool = False
) -> Callable[[], object]:
    """What casts *block* from *source* to *target*, taking every statistic."""
    out = memoryview(bytearray(block.nbytes // named(source).itemsize * named(target).itemsize))
    return lambda: Caster(named(source), named(target), histogram=histogram).cast(block, out)


def piece(x: Weights) -> dict[str, Callable[[], object]]:
    """The passes over one piece of float32 on its way to float16, each by itself."""
    target = named("float16")
    half, work = np.empty(x.size, np.float16), np.empty(x.size)
    encode(x, half, target)
    back = decode(half, target, np.empty(x.size)).copy()
    error = x - back
    bits = magnitudes(half, np.empty(x.size)).copy()
    smallest, below = 2 * 0x0400, np.empty(x.size, np.bool_)
    np.less(bits, smallest, out=below)
    return {
        "cast": lambda: encode(x, half, target),
        "sum and sum of squares of the source": lambda: numkong.moments(x),
        "extremes of the source": lambda: (np.minimum.reduce(x), np.maximum.reduce(x)),
        "cast back": lambda: decode(half, target, work),
        "subtract, in place": lambda: np.subtract(x, back, out=back),
        "sum of squares of the error": lambda: numkong.moments(error),
        "extremes of the error": lambda: (np.minimum.reduce(error), np.maximum.reduce(error)),
        "shift the sign out of the result": lambda: magnitudes(half, work),
        "look for a zero": lambda: np.minimum.reduce(bits),
        "compare with the smallest normal number": lambda: np.less(bits, smallest, out=below),
        "count the small": lambda: np.count_nonzero(below),
    }
