"""Weights from the source through a cast to a sink, in blocks, on overlapping threads.

Knows:      how reading, casting and writing overlap, and how much memory they share.
Is told:    an open container, the tensors to convert, and a sink for the results.
Never asks: what is written where; that is the plan's.

One thread reads ahead, one writes behind, and the calling one casts between them:
reading and writing release the interpreter, so that two cores are used.
Memory is a fixed ring of blocks on either side and does not grow with the file.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from mmap import mmap
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ckptaudit.numerics import Caster, TensorStats
from ckptaudit.tensors import BLOCK_BYTES, Block, blocks_of, pieces_of
from ckptaudit.writer import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from ckptaudit.containers import Container
    from ckptaudit.plan import TensorJob
    from ckptaudit.tensors import TensorView

__all__ = ["Nowhere", "Sink", "digest_of", "stream"]

# Blocks read ahead of the cast, and blocks cast but not yet written.
_AHEAD = 3
_BEHIND = 3
_WIDEST_INTEGER = 8


class Sink(Protocol):
    """Where converted blocks go."""

    def position(self, job: TensorJob, first: int) -> int:
        """Where in its file element *first* of *job* goes, in bytes.

        Asked before a block is cast, so that the block can lie in memory as it will lie in
        the file, page by page.
        """

    def take(self, job: TensorJob, first: int, data: memoryview) -> None:
        """Take *data*: elements of *job*'s output, from element *first* on.

        Called on one thread, not the caller's.
        """


class Nowhere:
    """A sink for those who want the statistics only."""

    def position(self, _job: TensorJob, _first: int) -> int:
        """See `Sink.position`."""
        return 0

    def take(self, _job: TensorJob, _first: int, _data: memoryview) -> None:
        """See `Sink.take`."""


def stream(
    container: Container,
    jobs: Sequence[TensorJob],
    sink: Sink,
    *,
    clamp: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Generator[tuple[TensorJob, TensorStats], None, None]:
    """Cast every job's tensor into *sink*, in the order of the source.

    Args:
        container: The open file.
        jobs: What to convert.
        sink: Takes the results; has taken all of them when the iterator ends.
        clamp: Write the largest finite value where a weight overflows.
        progress: Told after each block how many bytes of weights it was.

    Yields:
        Each job with the statistics of its tensor, as soon as it is cast.  Whoever stops
        early must close the generator: only then are its threads done with source and sink.

    Raises:
        CkptauditError: Whatever reading the source or the sink raises.
    """
    in_order = sorted(jobs, key=lambda job: _position(job.view))
    views = [job.view for job in in_order]
    with _ReadAhead(container, views) as reads, _WriteBehind(sink) as writes:
        for job in in_order:
            caster = Caster(job.view.dtype, job.target, clamp=clamp)
            for block in blocks_of(job.view):
                data = reads.next()
                out = writes.buffer(job, block)
                caster.cast(data, out)
                writes.put(job, block, out)
                progress(len(data))
            yield job, caster.stats


def _position(view: TensorView) -> tuple[int, str]:
    # Stored records are ordered by where they lie; a compressed one counts from its own start
    # and is kept together by its name.
    return view.storage.offset + view.offset * view.dtype.itemsize, view.storage.record


def _room(nbytes: int) -> memoryview:
    """Memory that begins with a page; the kernel gives pages when they are touched."""
    return memoryview(mmap(-1, nbytes))


class _ReadAhead:
    """The blocks of some views in order, read by a thread of their own."""

    def __init__(self, container: Container, views: Sequence[TensorView]) -> None:
        self._container = container
        self._todo = ((view, block) for view in views for block in blocks_of(view))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ckptaudit-read")
        self._pending: deque[Future[memoryview]] = deque()
        # While one block is cast, _AHEAD others are being read: none of them shares its buffer.
        self._ring = [_room(BLOCK_BYTES) for _ in range(_AHEAD + 1)]
        self._submitted = 0

    def __enter__(self) -> _ReadAhead:  # noqa: PYI034 - typing.Self is Python 3.11's
        for _ in range(_AHEAD):
            self._submit()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def next(self) -> memoryview:
        """The elements of the next block, one behind the other; valid until the next call."""
        self._submit()
        return self._pending.popleft().result()

    def _submit(self) -> None:
        for view, block in self._todo:
            buffer = self._ring[self._submitted % len(self._ring)]
            self._submitted += 1
            self._pending.append(
                self._pool.submit(read_block, self._container, view, block, buffer)
            )
            return


def read_block(
    container: Container, view: TensorView, block: Block, buffer: memoryview
) -> memoryview:
    """Read the elements of *block* into *buffer* as little-endian bytes; return what was filled."""
    source = container.bytes_of(view.storage)
    size = view.dtype.itemsize
    filled = buffer[: block.numel * size]
    if block.start is not None:
        source.read_into(view.storage.offset + block.start, filled)
    else:
        # Bits only: unsigned integers, or pairs of floats where elements take 16 bytes.
        bits = view.dtype.numpy if size > _WIDEST_INTEGER else f"<u{size}"
        box = np.frombuffer(filled, bits).reshape(block.shape)
        for piece in pieces_of(view, block):
            read = source.read_at(view.storage.offset + piece.start, piece.nbytes)
            elements = np.frombuffer(read, bits)
            box[piece.place] = np.lib.stride_tricks.as_strided(elements, piece.shape, piece.stride)
    if container.byteorder == "big":
        _swap(filled, view)
    return filled


def _swap(filled: memoryview, view: TensorView) -> None:
    # The two halves of a complex number are swapped each for itself.
    width = view.dtype.itemsize // (2 if view.dtype.name.startswith("complex") else 1)
    if width > 1:
        np.frombuffer(filled, f"u{width}").byteswap(inplace=True)


class _WriteBehind:
    """Converted blocks on their way to a sink, taken there by a thread of their own."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ckptaudit-write")
        self._pending: deque[Future[None]] = deque()
        self._ring = [_room(BLOCK_BYTES) for _ in range(_BEHIND + 1)]
        self._handed_out = 0

    def __enter__(self) -> _WriteBehind:  # noqa: PYI034 - typing.Self is Python 3.11's
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._pending and kind is None:
                self._pending.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def buffer(self, job: TensorJob, block: Block) -> memoryview:
        """Room for the next block; waits until the sink has taken what was there before."""
        if len(self._pending) > _BEHIND:
            self._pending.popleft().result()
        index = self._handed_out % len(self._ring)
        self._handed_out += 1
        nbytes = block.numel * job.target.itemsize
        phase = self._sink.position(job, block.runs[0][0]) % PAGE
        if len(self._ring[index]) < phase + nbytes:
            self._ring[index] = _room(nbytes + PAGE)
        return self._ring[index][phase : phase + nbytes]

    def put(self, job: TensorJob, block: Block, data: memoryview) -> None:
        """Hand over the buffer asked for last."""
        self._pending.append(self._pool.submit(self._take, job, block, data))

    def _take(self, job: TensorJob, block: Block, data: memoryview) -> None:
        size = job.target.itemsize
        at = 0
        for first, last in block.runs:
            nbytes = (last - first) * size
            self._sink.take(job, first, data[at : at + nbytes])
            at += nbytes


def digest_of(container: Container, view: TensorView) -> bytes:
    """A hash of the elements of *view*: two views of one hash, dtype and shape are equal.

    A strided view is hashed tile by tile, with where each tile belongs, so that it may
    differ in hash from a contiguous one of equal elements.
    """
    hasher = hashlib.sha256()
    buffer = _room(BLOCK_BYTES)
    for block in blocks_of(view):
        if block.start is None:
            hasher.update(repr(block.runs).encode())
        hasher.update(read_block(container, view, block, buffer))
    return hasher.digest()
