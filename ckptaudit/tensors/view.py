"""Tensor descriptions: a strided window on a storage, checked before anyone reads.

Knows:      shape and stride arithmetic, in integers that cannot overflow.
Is told:    storages with their byte spans, from `containers`.
Never asks: what a key means (`layouts`), whether a global is safe (`policy`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

from ckptaudit.errors import LimitExceeded, MalformedInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptaudit.containers import Storage
    from ckptaudit.dtypes import DType

__all__ = ["Leftover", "StateDict", "TensorView"]

# An expanded view (stride 0) may stand for more elements than are stored, but not so many
# more that writing it out fills a disk.
_MOST_EXPANSION = 64
_EXPANSION_FLOOR_BYTES = 16 << 20
_BEYOND_ANY_FILE = 1 << 62


@dataclass(frozen=True, slots=True)
class TensorView:
    """A strided window onto one storage: what torch calls a tensor, minus the data.

    Several views may share a storage; that is how tied weights look on disk.

    Attributes:
        key: State-dict key, verbatim.
        storage: The storage it looks into.
        dtype: Type of its elements; the storage's own, unless that is untyped.
        shape: Elements per dimension; ``()`` is a scalar.
        stride: Elements (not bytes) to step per dimension; same length as shape.
        offset: First element of the view, counted in elements from storage start.

    Raises:
        MalformedInput: The view is not one, or does not lie inside its storage.
        LimitExceeded: It stands for many times what is stored.
    """

    key: str
    storage: Storage
    dtype: DType
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.stride):
            raise MalformedInput(
                f"rank {len(self.shape)} shape with rank {len(self.stride)} stride", where=self.key
            )
        numbers = (self.offset, *self.shape, *self.stride)
        if min(numbers) < 0:
            raise MalformedInput("negative shape, stride or offset", where=self.key)
        if max(numbers) >= _BEYOND_ANY_FILE:
            raise MalformedInput("shape, stride or offset beyond 2^62", where=self.key)
        if self.storage.typed and self.dtype is not self.storage.dtype:
            raise MalformedInput(
                f"is {self.dtype.name} on a storage of {self.storage.dtype.name}", where=self.key
            )
        numel = self.numel
        if not numel:
            return
        stored = self.storage.nbytes // self.dtype.itemsize
        stop = self.extent.stop
        if stop > stored:
            raise MalformedInput(f"reaches element {stop} of a storage of {stored}", where=self.key)
        nbytes = numel * self.dtype.itemsize
        if nbytes > max(self.storage.nbytes * _MOST_EXPANSION, _EXPANSION_FLOOR_BYTES):
            raise LimitExceeded(
                f"expands {self.storage.nbytes} stored bytes to {nbytes}", where=self.key
            )

    @property
    def numel(self) -> int:
        """Elements of the view."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the view when written out, in its own dtype."""
        return self.numel * self.dtype.itemsize

    @property
    def extent(self) -> range:
        """Storage elements the view can touch, as a half-open range; empty if numel is 0."""
        if 0 in self.shape:
            return range(self.offset, self.offset)
        last = self.offset
        for size, step in zip(self.shape, self.stride, strict=True):
            last += (size - 1) * step
        return range(self.offset, last + 1)

    @property
    def runs(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """The storage elements that a view which is not empty touches, each of them once or more.

        They are a run of elements without a gap, of so many, from the view's offset on; and
        for each (count, step), all that so far as often, each time so many elements further.
        """
        run = 1
        outer: list[tuple[int, int]] = []
        for step, size in sorted(zip(self.stride, self.shape, strict=True)):
            if step <= run:
                run += (size - 1) * step
            elif size > 1:
                outer.append((size, step))
        return run, tuple(outer)

    @property
    def pieces(self) -> int:
        """How many runs there are, some of which may be the same or touch."""
        return prod(count for count, _ in self.runs[1])

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie one behind the other in row-major order."""
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected and self.numel:
                return False
            expected *= size
        return True

    def narrowed(self, start: int, stop: int) -> TensorView:
        """The rows from *start* to *stop*, which it must have."""
        shape, stride = (stop - start, *self.shape[1:]), self.stride
        return replace(self, shape=shape, offset=self.offset + start * stride[0])

    def transposed(self) -> TensorView:
        """The same elements with the order of dimensions reversed."""
        return replace(self, shape=self.shape[::-1], stride=self.stride[::-1])

    def of_rank(self, rank: int) -> TensorView:
        """The same elements in *rank* dimensions: sizes of 1 are added or taken at the end."""
        more = (1,) * (rank - len(self.shape))
        return replace(self, shape=(*self.shape, *more)[:rank], stride=(*self.stride, *more)[:rank])


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something in the file that is not part of the state dict.

    Attributes:
        path: Where in the pickle it stands, as a Python expression: ``optimizer.state[0].step``.
        what: What it is, in short printable text.
        reason: Why it is no part of the state dict.
        is_tensor: Whether weights are left behind with it.
    """

    path: str
    what: str
    reason: str
    is_tensor: bool


@dataclass(frozen=True, slots=True)
class StateDict:
    """The named tensors of a checkpoint.

    Attributes:
        views: In the order of the file's own dict.
        storages: By key, every storage the framing located.
        path: Where in the pickle it was found, as a Python expression; "" is the root.
        leftovers: Every other tensor, and every other value, of the file.
    """

    views: tuple[TensorView, ...]
    storages: Mapping[str, Storage]
    path: str
    leftovers: tuple[Leftover, ...] = field(default=())
