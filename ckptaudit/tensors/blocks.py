"""How to read a view in bounded memory: as blocks, each gathered from rows of its storage.

Knows:      strides, and how much may be held at once.
Is told:    a `TensorView`.
Never asks: for the bytes themselves.

A contiguous view is cut into ranges.  Any other is cut into boxes: along its widest
stride, so that what is read lies together, for as long as what is written still lies
together in runs worth a system call each.  The elements of a box lie in rows that repeat
at equal distances; each row is read as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.tensors.view import TensorView

__all__ = [
    "BLOCK_BYTES",
    "SLAB_BYTES",
    "Block",
    "Rows",
    "blocks_in_order",
    "blocks_of",
    "rows_of",
]

# The most a block holds, in bytes of its elements.
BLOCK_BYTES = 4 << 20
# The most a block of `blocks_in_order` holds: of a turned matrix every one reads nearly all of it.
SLAB_BYTES = 32 << 20
# The most that is read before elements are picked out of it.
_ROWS_BYTES = 8 << 20
# Bytes that are read as quickly as none: one more system call costs as much as copying them.
_NEAR_BYTES = 16 << 10
# A line of the cache.  Rows that are a power of two apart in memory would share few of them, and
# to turn such a box took eight times as long.
_LINE_BYTES = 64
# The shortest run of the output, in bytes of the source, that a cut may leave.
_LEAST_RUN_BYTES = 4 << 10


@dataclass(frozen=True, slots=True)
class Block:
    """Some elements of a view, in the row-major order of a box inside it.

    Attributes:
        low: The box's first index per dimension; dimensions of size 1 are left out.
        shape: Elements of the box per dimension, the same left out.
        start: First byte in the storage if the elements lie there one behind the other, else
            None: then `rows_of` says where they are.
        runs: Half-open element ranges of the output that the box fills, in its order.
    """

    low: tuple[int, ...]
    shape: tuple[int, ...]
    start: int | None
    runs: tuple[tuple[int, int], ...]

    @property
    def numel(self) -> int:
        """Elements of the block."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Rows:
    """Some elements of a block, which lie in rows of equal length that repeat evenly.

    Laid in memory one each *pitch*, the rows hold the elements at *stride*.

    Attributes:
        start: First byte of the first row, counted from the start of the storage.
        nbytes: Bytes of each row, with what lies between its elements.
        pitch: Bytes in memory from the start of a row to that of the next.
        repeats: How often rows repeat and at what distance in bytes; the outermost first.
        shape: Elements per dimension.
        stride: Bytes to step per dimension in the rows as they are laid.
        place: Where in the block's box the elements go.
    """

    start: int
    nbytes: int
    pitch: int
    repeats: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    place: tuple[slice, ...]

    @property
    def count(self) -> int:
        """Rows in all."""
        return prod(times for times, _ in self.repeats)

    def starts(self) -> Iterator[int]:
        """Yield the first byte of each row, in the order in which they are laid."""
        steps = (range(0, times * step, step) for times, step in self.repeats)
        return (self.start + sum(offsets) for offsets in product(*steps))


def blocks_of(view: TensorView) -> Iterator[Block]:
    """Cut *view* into blocks, which together fill its output once.

    Blocks of a contiguous view come in the order of the output, each but the last of
    `BLOCK_BYTES`.
    """
    if not view.numel:
        return
    if view.is_contiguous:
        yield from _ranges(view)
    else:
        grid = _grid(view)
        yield from _boxes(grid, (0,) * len(grid.shape), grid.shape)


def blocks_in_order(view: TensorView) -> Iterator[Block]:
    """Cut *view* into blocks that come in the order of the output, each one run of it.

    Of a contiguous view they are those of `blocks_of`, of any other up to `SLAB_BYTES` each, and
    more may have to be read for them.
    """
    if view.is_contiguous:
        yield from blocks_of(view)
        return
    grid = _grid(view)
    yield from _slabs(grid, (0,) * len(grid.shape), grid.shape)


def rows_of(view: TensorView, block: Block) -> Iterator[Rows]:
    """What to read for *block*, a box of *view* whose elements lie apart."""
    yield from _rows(_grid(view), block.low, block.low, block.shape)


def _grid(view: TensorView) -> TensorView:
    """*view* without its axes of size 1, along which nobody steps.

    A tensor may have hundreds of them, and NumPy takes 64 axes at most; of larger ones no
    file has as many, since each doubles the tensor.
    """
    if 1 not in view.shape:
        return view
    axes = [axis for axis, size in enumerate(view.shape) if size != 1]
    shape = tuple(view.shape[axis] for axis in axes)
    return replace(view, shape=shape, stride=tuple(view.stride[axis] for axis in axes))


def _ranges(view: TensorView) -> Iterator[Block]:
    size = view.dtype.itemsize
    step = BLOCK_BYTES // size
    for first in range(0, view.numel, step):
        count = min(step, view.numel - first)
        start = (view.offset + first) * size
        yield Block((first,), (count,), start, ((first, first + count),))


def _boxes(view: TensorView, low: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[Block]:
    """Cut the box of *shape* at *low* until each part fits into a block."""
    if prod(shape) * view.dtype.itemsize <= BLOCK_BYTES:
        yield Block(low, shape, None, tuple(_runs(view.shape, low, shape)))
        return
    axis = _widest(view, shape)
    if _run_bytes(view, _half(shape, axis)) < _LEAST_RUN_BYTES:
        # Cut along its first axis, a box leaves the runs of the output as long as they are.
        axis = next(axis for axis, size in enumerate(shape) if size > 1)
    for part_low, part_shape in _halves(low, shape, axis):
        yield from _boxes(view, part_low, part_shape)


def _slabs(view: TensorView, low: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[Block]:
    """Cut the box of *shape* at *low* along its first axis until each part fits into a slab."""
    if prod(shape) * view.dtype.itemsize <= SLAB_BYTES:
        yield Block(low, shape, None, tuple(_runs(view.shape, low, shape)))
        return
    axis = next(axis for axis, size in enumerate(shape) if size > 1)
    for part_low, part_shape in _halves(low, shape, axis):
        yield from _slabs(view, part_low, part_shape)


def _rows(
    view: TensorView, origin: tuple[int, ...], low: tuple[int, ...], shape: tuple[int, ...]
) -> Iterator[Rows]:
    """Cut the box of *shape* at *low* until the rows of each part may be held at once."""
    size = view.dtype.itemsize
    inner, span = _row(view, shape)
    outer = sorted(set(range(len(shape))) - inner, key=lambda axis: -view.stride[axis])
    if span * size * prod(shape[axis] for axis in outer) > _ROWS_BYTES:
        for part_low, part_shape in _halves(low, shape, _widest(view, shape)):
            yield from _rows(view, origin, part_low, part_shape)
        return
    stride = [step * size for step in view.stride]
    repeats = tuple((shape[axis], stride[axis]) for axis in outer)
    pitch = span * size + (_LINE_BYTES if span * size > _LINE_BYTES else 0)
    apart = pitch
    for axis in reversed(outer):
        stride[axis] = apart
        apart *= shape[axis]
    first = view.offset + sum(at * step for at, step in zip(low, view.stride, strict=True))
    place = zip(low, origin, shape, strict=True)
    yield Rows(
        start=first * size,
        nbytes=span * size,
        pitch=pitch,
        repeats=repeats,
        shape=shape,
        stride=tuple(stride),
        place=tuple(slice(at - zero, at - zero + n) for at, zero, n in place),
    )


def _row(view: TensorView, shape: tuple[int, ...]) -> tuple[set[int], int]:
    """The axes along which elements of a box lie near each other, and the elements they span."""
    size = view.dtype.itemsize
    inner: set[int] = set()
    span = 1
    for axis in sorted(range(len(shape)), key=lambda axis: (shape[axis] > 1, view.stride[axis])):
        step = view.stride[axis]
        if shape[axis] > 1 and (step - span) * size > _NEAR_BYTES:
            break
        inner.add(axis)
        span += (shape[axis] - 1) * step
    return inner, span


def _widest(view: TensorView, shape: tuple[int, ...]) -> int:
    """The axis of *shape* along which elements lie farthest apart in the storage."""
    axes = (axis for axis in range(len(shape)) if shape[axis] > 1)
    return max(axes, key=lambda axis: (view.stride[axis], shape[axis]))


def _half(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])


def _halves(
    low: tuple[int, ...], shape: tuple[int, ...], axis: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    first = _half(shape, axis)
    yield low, first
    rest = (*shape[:axis], shape[axis] - first[axis], *shape[axis + 1 :])
    yield (*low[:axis], low[axis] + first[axis], *low[axis + 1 :]), rest


def _run_bytes(view: TensorView, shape: tuple[int, ...]) -> int:
    """How long the runs of the output are that a box of *shape* fills, in bytes of the source."""
    return prod(shape[_outer(view.shape, shape) :]) * view.dtype.itemsize


def _outer(whole: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """How many leading axes a box of *shape* in *whole* has whose elements lie apart."""
    full = len(whole)
    # From this axis on the box spans the whole view, so that its elements lie together.
    while full and shape[full - 1] == whole[full - 1]:
        full -= 1
    return max(0, full - 1)


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
