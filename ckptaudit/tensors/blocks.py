"""How to read a view in bounded memory: as blocks of elements that lie together.

Knows:      strides, and how much may be held at once.
Is told:    a `TensorView`.
Never asks: for the bytes themselves.

A contiguous view is cut into ranges.  Any other is cut into tiles along its widest
stride until the elements of a tile lie close enough together to be read at once;
where the elements of a tile go in the output is a list of runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.tensors.view import TensorView

__all__ = ["BLOCK_BYTES", "Block", "blocks_of"]

# The most a block holds, in bytes of its elements.
BLOCK_BYTES = 4 << 20
# The most that is read at once to gather the elements of a tile.
_TILE_BYTES = 8 << 20
# The most ranges of the output that one block fills.
_MOST_RUNS = 1 << 16


@dataclass(frozen=True, slots=True)
class Block:
    """Some elements of a view, in the row-major order of a box inside it.

    Attributes:
        start: First byte to read, counted from the start of the storage.
        nbytes: Bytes to read.
        shape: Elements of the box per dimension.
        stride: Bytes to step per dimension inside what was read; None if the elements lie
            one behind the other.
        runs: Half-open element ranges of the output that the box fills, in its order.
    """

    start: int
    nbytes: int
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    runs: tuple[tuple[int, int], ...]

    @property
    def numel(self) -> int:
        """Elements of the block."""
        return prod(self.shape)


def blocks_of(view: TensorView) -> Iterator[Block]:
    """Cut *view* into blocks, which together fill its output once.

    Blocks of a contiguous view come in the order of the output, each but the last of
    `BLOCK_BYTES`.  Those of any other view come in the order of the source.
    """
    if not view.numel:
        return
    if view.is_contiguous:
        yield from _ranges(view)
    else:
        yield from _tiles(view, (0,) * len(view.shape), view.shape)


def _ranges(view: TensorView) -> Iterator[Block]:
    size = view.dtype.itemsize
    step = BLOCK_BYTES // size
    for first in range(0, view.numel, step):
        count = min(step, view.numel - first)
        start = (view.offset + first) * size
        yield Block(start, count * size, (count,), None, ((first, first + count),))


def _tiles(view: TensorView, low: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[Block]:
    """Cut the box of *shape* at *low*, largest stride first, until each tile is small."""
    size = view.dtype.itemsize
    span = 1 + sum((n - 1) * step for n, step in zip(shape, view.stride, strict=True))
    is_near = span * size <= _TILE_BYTES
    if is_near and prod(shape) * size <= BLOCK_BYTES and _count_runs(view, shape) <= _MOST_RUNS:
        first = view.offset + sum(at * step for at, step in zip(low, view.stride, strict=True))
        yield Block(
            start=first * size,
            nbytes=span * size,
            shape=shape,
            stride=tuple(step * size for step in view.stride),
            runs=tuple(_runs(view.shape, low, shape)),
        )
        return
    axes = [axis for axis in range(len(shape)) if shape[axis] > 1]
    # Cut along the first axis a box leaves the runs of the output whole.
    axis = axes[0] if is_near else max(axes, key=lambda at: (view.stride[at], shape[at]))
    half = shape[axis] // 2
    for at, count in ((low[axis], half), (low[axis] + half, shape[axis] - half)):
        yield from _tiles(
            view,
            (*low[:axis], at, *low[axis + 1 :]),
            (*shape[:axis], count, *shape[axis + 1 :]),
        )


def _outer(whole: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """How many leading axes a box of *shape* in *whole* has whose elements lie apart."""
    full = len(whole)
    # From this axis on the box spans the whole view, so that its elements lie together.
    while full and shape[full - 1] == whole[full - 1]:
        full -= 1
    return max(0, full - 1)


def _count_runs(view: TensorView, shape: tuple[int, ...]) -> int:
    return prod(shape[: _outer(view.shape, shape)])


def _runs(
    whole: tuple[int, ...], low: tuple[int, ...], shape: tuple[int, ...]
) -> Iterator[tuple[int, int]]:
    """The ranges of row-major positions in *whole* that the box of *shape* at *low* covers."""
    strides = [prod(whole[axis + 1 :]) for axis in range(len(whole))]
    outer = _outer(whole, shape)
    length = prod(shape[outer:])
    base = sum(at * step for at, step in zip(low, strides, strict=True))
    for index in product(*(range(count) for count in shape[:outer])):
        start = base + sum(at * step for at, step in zip(index, strides[:outer], strict=True))
        yield start, start + length
