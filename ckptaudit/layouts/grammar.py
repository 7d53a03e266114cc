"""The words in which an architecture spells out its own tensors, in two layouts at once.

A description holds the few numbers that make an architecture (channels, levels,
context width).  Its `tensors` walks the network once and yields every tensor with
its key in the original (LDM) layout, its places in the diffusers layout and its
shape, in the order in which the original implementation registers them.

Knows:      what a tensor is called in two layouts, and what takes it from one to the other.
Is told:    names and sizes of layers, by the architectures (`unet`, `autoencoder`, `clip`, `bert`,
            `midas`, `xlmr`).
Never asks: how a network is built, where it sits in a file (`family`), or what a file
            holds (`detect`).

The truth this is tested against: the CompVis/stable-diffusion, OpenCLIP and transformers
implementations, instantiated, and diffusers' own conversion of their tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Architecture", "Buffers", "Op", "Tensor", "There", "conv", "layer", "same", "under"]

# The last two are the ways back: ``unsqueeze`` of ``squeeze``, ``join`` of ``rows``.
Op: TypeAlias = Literal["identity", "squeeze", "rows", "transpose", "unsqueeze", "join"]


@dataclass(frozen=True, slots=True)
class There:
    """One place in the diffusers layout, and what is done to a tensor on the way to it.

    Attributes:
        key: Name, relative to the architecture's root.
        op: ``squeeze`` drops the two kernel dimensions of a 1x1 convolution, ``rows`` takes a
            range of rows, ``transpose`` swaps both dimensions of a matrix.
        rows: The half-open range of rows taken when *op* is ``rows``, else None.
    """

    key: str
    op: Op = "identity"
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of an architecture, named relative to the architecture's own root.

    Attributes:
        key: Name in the original layout.
        shape: Elements per dimension in the original layout.
        there: Its places in the diffusers layout; empty where it has none.
        dtype: torch's name; the architecture's default, files may hold another.
        demanded: Whether loaders stop, or go wrong, without it.
    """

    key: str
    shape: tuple[int, ...]
    there: tuple[There, ...] = ()
    dtype: str = "float32"
    demanded: bool = True


class Architecture(Protocol):
    """What can spell out its own tensors."""

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        ...


@dataclass(frozen=True, slots=True)
class Buffers:
    """Vectors of one length that a loader takes from the file or else computes itself.

    Attributes:
        names: Name of each vector.
        length: Elements in each vector.
    """

    names: tuple[str, ...]
    length: int

    def tensors(self) -> Iterator[Tensor]:
        """Yield every vector once, in the order given."""
        for name in self.names:
            yield Tensor(name, (self.length,), demanded=False)


def layer(key: str, other: str, *shape: int, bias: bool = True) -> Iterator[Tensor]:
    """Yield a weight of this *shape*, and a bias as long as the weight's first dimension."""
    yield Tensor(f"{key}.weight", shape, (There(f"{other}.weight"),))
    if bias:
        yield Tensor(f"{key}.bias", shape[:1], (There(f"{other}.bias"),))


def same(key: str, *shape: int, bias: bool = True) -> Iterator[Tensor]:
    """Yield a layer that both layouts call *key*."""
    yield from layer(key, key, *shape, bias=bias)


def conv(key: str, other: str, inward: int, outward: int, *, size: int = 3) -> Iterator[Tensor]:
    """Yield a convolution from *inward* to *outward* channels, *size* pixels square."""
    yield from layer(key, other, outward, inward, size, size)


def under(key: str, other: str, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield *tensors* one level down: under *key*, and under *other* in diffusers."""
    for tensor in tensors:
        there = tuple(replace(place, key=f"{other}.{place.key}") for place in tensor.there)
        yield replace(tensor, key=f"{key}.{tensor.key}", there=there)
