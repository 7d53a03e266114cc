"""Put values into storages: row by row, or laid out otherwise as real files show it.

Knows:      the memory layouts of tensors that are not contiguous.
Is told:    values, and how they are to lie in memory.
Never asks: how a file is framed (`torchfile`), which tensor is laid out how (`make_checkpoint`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from torchfile import Storage, Tensor, strides
from weights import BLOCK, Counts, Weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Layout", "generated", "given"]

# Channels-last is what ``model.to(memory_format=torch.channels_last)`` leaves behind, columns are
# what slicing a fused projection does.
Layout: TypeAlias = Literal["transposed", "channels_last", "columns"]


def given(values: NDArray[np.generic], location: str = "cpu") -> Tensor:
    """A tensor of *values*."""
    flat = np.ascontiguousarray(values).reshape(-1)
    storage = Storage(values.dtype.name, values.size, lambda: [_octets(flat)], location)
    return Tensor(storage, values.shape)


def generated(
    weights: Weights, shape: tuple[int, ...], dtype: str, layout: Layout | None, counts: Counts
) -> Tensor:
    """A tensor of *weights*, counted into *counts* as they are written."""
    if layout is None:
        blocks = partial(_plain, weights, dtype, counts)
        return Tensor(Storage(dtype, weights.numel, blocks), shape)
    blocks = partial(_turned, weights, shape, dtype, layout, counts)
    if layout == "columns":
        columns = shape[1]
        storage = Storage(dtype, 2 * weights.numel, blocks)
        return Tensor(storage, shape, (2 * columns, 1), columns)
    order = _order(layout, len(shape))
    # Steps in the stored order, put where the dimensions are.
    steps = dict(zip(order, strides(tuple(shape[i] for i in order)), strict=True))
    stride = tuple(steps[i] for i in range(len(shape)))
    return Tensor(Storage(dtype, weights.numel, blocks), shape, stride)


def _order(layout: Layout, rank: int) -> tuple[int, ...]:
    """The dimensions, from the one that steps furthest in memory to the one that steps least."""
    rest = tuple(range(2, rank))
    return (0, *rest, 1) if layout == "channels_last" else (1, 0, *rest)


def _plain(weights: Weights, dtype: str, counts: Counts) -> Iterator[memoryview]:
    for block in weights.blocks():
        stored = block.astype(dtype, copy=False)
        counts.add(stored.astype(np.float32, copy=False))
        yield _octets(stored)


def _turned(
    weights: Weights, shape: tuple[int, ...], dtype: str, layout: Layout, counts: Counts
) -> Iterator[memoryview]:
    whole = np.concatenate([block.astype(dtype) for block in weights.blocks()])
    for start in range(0, whole.size, BLOCK):
        counts.add(whole[start : start + BLOCK].astype(np.float32, copy=False))
    rows = whole.reshape(shape)
    if layout == "columns":
        # The other half of the storage, which no tensor shows.
        stored = np.concatenate((np.flip(rows, 0), rows), axis=1)
    else:
        stored = rows.transpose(_order(layout, len(shape)))
    yield _octets(np.ascontiguousarray(stored).reshape(-1))


def _octets(values: NDArray[np.generic]) -> memoryview:
    return values.astype(values.dtype.newbyteorder("<"), copy=False).view(np.uint8).data
