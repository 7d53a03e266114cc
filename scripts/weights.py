"""Plausible values for a synthetic checkpoint: made fast, from a seed, in small blocks.

Drawing a normal deviate for each of a billion elements would take most of a minute, so
`Pool` draws eight million once, and each block of a tensor is a slice of them, at a place
that depends on seed, key and block, times the tensor's own standard deviation.  No two
tensors are alike, and nothing finer than that is claimed: the same eight million deviates
come round again and again.

The same seed gives the same values with the same numpy; numpy may change its stream
between versions (NEP 19).

Knows:      numpy; what magnitudes trained weights have; the noise schedule of Stable Diffusion.
Is told:    a key, a shape, and what is to be planted where.
Never asks: how values are stored (`torchfile`), or which tensors there are (`make_checkpoint`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

__all__ = [
    "PLANTS",
    "Counts",
    "Plant",
    "Pool",
    "Rows",
    "Spread",
    "Weights",
    "fixed",
    "schedule",
    "spread",
]

Plant: TypeAlias = tuple[int, float]

BLOCK = 1 << 18  # elements; 1 MiB of float32 stays in cache
_DRAWN = 1 << 23  # elements

# What can be planted, and the values used in turn.  To even: 65520 rounds to infinity in
# float16, 2^-25 to zero, and what lies between 2^-25 and 2^-14 - 2^-25 to a subnormal number.
# IEEE 754-2019, 3.6 (binary16) and 4.3.1.
PLANTS: Mapping[str, tuple[float, ...]] = {
    "overflow": (65520.0, -65520.0, 1e5, -3e38),
    "nan": (math.nan,),
    "inf": (math.inf, -math.inf),
    "subnormal": (5e-5, -1e-6, 2.0**-24),
    "flush": (2.0**-25, -1e-9, 1e-40),
}
# How much louder, or quieter, a row is that stands out.
LOUDER, QUIETER = 4.0, 0.02
_OVERFLOWS_AT, _FLUSHED_TO, _NORMAL_FROM = 65520.0, 2.0**-25, 2.0**-14 - 2.0**-25


class Pool:
    """Deviates of mean 0 and variance 1, drawn once for a seed.

    Args:
        seed: What they depend on.
        freedom: Degrees of freedom of the t distribution they are drawn from, above 2; None is
            the normal one.
    """

    def __init__(self, seed: int, freedom: float | None = None) -> None:
        self.seed = seed
        # Below 0.1 GB/s and so the reason for this class; PCG64 is numpy's default.
        generator = np.random.Generator(np.random.PCG64(seed))
        self._deviates = generator.standard_normal(_DRAWN + BLOCK, dtype=np.float32)
        if freedom is not None:
            # A normal deviate over the root of a mean square of others has variance f / (f - 2).
            squares = generator.standard_gamma(freedom / 2, _DRAWN + BLOCK, dtype=np.float32)
            squares *= np.float32(2 / (freedom - 2))
            self._deviates /= np.sqrt(squares, out=squares)

    def number(self, *words: object) -> int:
        """A 64-bit number that depends on the seed and *words*, and on nothing else."""
        text = "\0".join(map(str, (self.seed, *words))).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    def draw(self, name: str, block: int, count: int) -> NDArray[np.float32]:
        """Deviates for block number *block* of *name*: float32, ``(count,)``, not to be written to.

        Args:
            name: Whose deviates.
            block: Which of its blocks.
            count: Elements, at most `BLOCK`.
        """
        start = self.number(name, block) % _DRAWN
        return self._deviates[start : start + count]


@dataclass(frozen=True, slots=True)
class Rows:
    """How unequal the rows of a tensor are: what one output channel, or one word, is made of.

    Attributes:
        length: Elements of a row.
        apart: Standard deviation of the logarithm of their scales.
        loud: Share of rows that are `LOUDER` times as large.
        quiet: Share of rows that are `QUIETER` times as large.
    """

    length: int
    apart: float
    loud: float
    quiet: float

    def scales(self, generator: np.random.Generator, count: int) -> NDArray[np.float32]:
        """The scales of *count* rows, of mean square 1."""
        scales = np.exp(self.apart * generator.standard_normal(count))
        fate = generator.random(count)
        scales[fate < self.loud] *= LOUDER
        scales[fate > 1 - self.quiet] *= QUIETER
        scales /= np.sqrt(np.mean(np.square(scales)))
        return scales.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of a tensor's values; and how its rows differ, if they do."""

    mean: float
    std: float
    rows: Rows | None = None


def spread(key: str, shape: tuple[int, ...]) -> Spread:
    """About what a trained tensor of this name and shape has.

    >>> spread("out.0.weight", (320,)), spread("out.0.bias", (320,))
    (Spread(mean=1.0, std=0.1, rows=None), Spread(mean=0.0, std=0.02, rows=None))
    >>> spread("out.2.weight", (4, 320, 3, 3)).std  # 1 / sqrt(2880)
    0.018633899812498248
    """
    if len(shape) > 1:
        return Spread(0.0, min(max(math.prod(shape[1:]) ** -0.5, 0.01), 0.1))
    # A vector called a weight scales a normalised activation, and starts out as ones.
    return Spread(1.0, 0.1) if key.endswith((".weight", ".running_var")) else Spread(0.0, 0.02)


@dataclass(frozen=True, slots=True)
class Weights:
    """The values of one tensor, row by row.

    Attributes:
        pool: Where deviates come from.
        key: What they depend on, beside the seed.
        numel: Elements.
        spread: What they are scaled to; the deviation varies by a tenth between keys.
        drifted: None, or a name: the values then differ from those without it by a
            fiftieth of the deviation, as a moving average does from its weight.
        plants: Positions and values put in place of what was there; positions ascend.
    """

    pool: Pool
    key: str
    numel: int
    spread: Spread
    drifted: str | None = None
    plants: tuple[Plant, ...] = ()

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield the values, `BLOCK` at a time, in an array that is used again for the next."""
        buffer = np.empty(min(BLOCK, self.numel), np.float32)
        drift = np.empty_like(buffer) if self.drifted is not None else buffer
        jitter = self.pool.number(self.key, "std") / 2**64
        std = np.float32(self.spread.std * (0.95 + 0.1 * jitter))
        rows = self.spread.rows if self.numel else None
        scales = rows.scales(self.generator(), self.numel // rows.length) if rows else None
        plants = list(self.plants)
        for number, start in enumerate(range(0, self.numel, BLOCK)):
            count = min(BLOCK, self.numel - start)
            block = np.multiply(self.pool.draw(self.key, number, count), std, out=buffer[:count])
            if rows and scales is not None:
                first, last = start // rows.length, -(-(start + count) // rows.length)
                along = np.repeat(scales[first:last], rows.length)
                block *= along[start - first * rows.length :][:count]
            if self.spread.mean:
                block += np.float32(self.spread.mean)
            if self.drifted is not None:
                other = self.pool.draw(self.drifted, number, count)
                block += np.multiply(other, std / np.float32(50), out=drift[:count])
            while plants and plants[0][0] < start + count:
                position, value = plants.pop(0)
                block[position - start] = value
            yield block

    def generator(self) -> np.random.Generator:
        """What draws the few numbers of this tensor that need not come from the pool."""
        return np.random.default_rng(self.pool.number(self.key, "rows"))


@dataclass(slots=True)
class Counts:
    """What a cast of float32 to float16 meets in the values written, counted in elements.

    Attributes:
        numel: Elements.
        nan: Not a number.
        inf: Infinite.
        overflowed: Finite, and infinite in float16.
        flushed: Not zero, and zero in float16.
        subnormal: Subnormal in float16.
    """

    numel: int = 0
    nan: int = 0
    inf: int = 0
    overflowed: int = 0
    flushed: int = 0
    subnormal: int = 0
    _magnitude: NDArray[np.float32] = field(
        default_factory=lambda: np.empty(BLOCK, np.float32), repr=False
    )

    def add(self, block: NDArray[np.float32]) -> None:
        """Count the elements of *block*, at most `BLOCK` of them."""
        magnitude = np.abs(block, out=self._magnitude[: block.size])
        self.numel += block.size
        small = magnitude[magnitude < _NORMAL_FROM]
        if small.size:
            zeros, vanishing = (int(np.count_nonzero(small <= at)) for at in (0, _FLUSHED_TO))
            self.flushed += vanishing - zeros
            self.subnormal += small.size - vanishing
        # Not a number is not below anything.
        large = magnitude[~(magnitude < _OVERFLOWS_AT)]
        if large.size:
            nan, inf = (int(np.count_nonzero(test(large))) for test in (np.isnan, np.isinf))
            self.nan += nan
            self.inf += inf
            self.overflowed += large.size - nan - inf


def schedule(length: int) -> dict[str, NDArray[np.float32]]:
    """The buffers of Stable Diffusion's noise schedule, by name, each float32 ``(length,)``.

    CompVis/stable-diffusion, ldm/models/diffusion/ddpm.py, `register_schedule`, with the numbers
    of configs/stable-diffusion/v1-inference.yaml: computed in float64, then rounded.  ``sigmas``
    is what Stability-AI/generative-models keeps in its place.
    """
    betas = np.linspace(0.00085**0.5, 0.0120**0.5, length, dtype=np.float64) ** 2
    alphas = 1.0 - betas
    product = np.cumprod(alphas)
    previous = np.concatenate(([1.0], product))[:length]
    variance = betas * (1.0 - previous) / (1.0 - product)
    buffers = {
        "betas": betas,
        "alphas_cumprod": product,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": np.sqrt(product),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - product),
        "log_one_minus_alphas_cumprod": np.log(1.0 - product),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / product),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / product - 1.0),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (1.0 - product),
        "posterior_mean_coef2": (1.0 - previous) * np.sqrt(alphas) / (1.0 - product),
        "sigmas": np.sqrt((1.0 - product) / product),
    }
    return {name: values.astype(np.float32) for name, values in buffers.items()}


# Scalars that files of the family agree on: decay and number of steps of the moving average,
# the latent's scale (v1-inference.yaml), CLIP's temperature (ln 100, where it is clipped).
_SCALARS = {
    "decay": 0.9999,
    "num_updates": 470_000,
    "scale_factor": 0.18215,
    "logit_scale": math.log(100),
}


def fixed(key: str, shape: tuple[int, ...], dtype: str) -> NDArray[np.generic] | None:
    """The values of a tensor that is no weight, of this *shape*; None if it is one.

    Integers count up from zero, as position ids do.

    >>> fixed("text_model.embeddings.position_ids", (1, 4), "int64")
    array([[0, 1, 2, 3]])
    >>> fixed("model_ema.decay", (), "float32")
    array(0.9999, dtype=float32)
    """
    name = key.rpartition(".")[2]
    if name in _SCALARS and math.prod(shape) == 1:
        return np.full(shape, _SCALARS[name], np.dtype(dtype))
    if not dtype.startswith("float"):
        return np.arange(math.prod(shape), dtype=np.dtype(dtype)).reshape(shape)
    if len(shape) == 1 and shape[0] and name in _SCHEDULE:
        return schedule(shape[0])[name]
    return None


_SCHEDULE = frozenset(schedule(1))
