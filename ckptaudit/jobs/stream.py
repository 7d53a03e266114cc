"""Weights from the source through a cast to a sink, in pieces that stay in the cache.

Knows:      how reading, casting and writing overlap, and how much memory they take.
Is told:    an open container, the tensors to convert, and a sink for the results.
Never asks: what is written where; that is the plan's.

A piece is read right before it is cast, so that the cast finds it in the cache; the
kernel reads ahead.  What was cast is written by a thread of its own.  Where there are
cores, the tensors are shared out over as many processes (`lanes`).  Memory is a fixed
number of blocks for each and does not grow with the file.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from mmap import mmap
from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec
import numpy as np

from ckptaudit.jobs.lanes import Lane, Say, lanes_at_hand, run_lanes
from ckptaudit.numerics import PIECE, Caster, TensorStats
from ckptaudit.tensors.blocks import BLOCK_BYTES, Block, Rows, blocks_of, rows_of
from ckptaudit.writer import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from ckptaudit.containers import Container
    from ckptaudit.plan import TensorJob
    from ckptaudit.source import ByteSource
    from ckptaudit.tensors import TensorView

__all__ = ["JobId", "Nowhere", "Sink", "Tally", "digest_of", "read_block", "stream"]

JobId: TypeAlias = tuple[str, str, int]
# By `TensorJob.id`, as pairs: it has to go through JSON.
Tally: TypeAlias = tuple[tuple[JobId, int], ...]

# Blocks cast but not yet written.
_BEHIND = 3
_WIDEST_INTEGER = 8
# Below this a second process costs more than it saves.
_LEAST_LANE_BYTES = 64 << 20


class Sink(Protocol):
    """Where converted blocks go."""

    def position(self, job: TensorJob, first: int) -> int:
        """Where in its file element *first* of *job* goes, in bytes.

        Asked before a block is cast, so that the block can lie in memory as it will lie in
        the file, page by page.
        """

    def take(self, job: TensorJob, first: int, data: memoryview) -> None:
        """Take *data*: elements of *job*'s output, from element *first* on.

        Called on one thread, not the caller's; maybe in another process, which shares open
        files with this one but not what is remembered in memory.
        """

    def tally(self) -> Tally:
        """What is to be remembered of all that was taken in this process."""

    def recall(self, tally: Tally) -> None:
        """Remember what another process tallied."""


class Nowhere:
    """A sink for those who want the statistics only."""

    def position(self, _job: TensorJob, _first: int) -> int:
        """See `Sink.position`."""
        return 0

    def take(self, _job: TensorJob, _first: int, _data: memoryview) -> None:
        """See `Sink.take`."""

    def tally(self) -> Tally:
        """See `Sink.tally`."""
        return ()

    def recall(self, _tally: Tally) -> None:
        """See `Sink.recall`."""


def stream(
    container: Container,
    jobs: Sequence[TensorJob],
    sink: Sink,
    *,
    clamp: bool = False,
    beside: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Generator[tuple[TensorJob, TensorStats], None, None]:
    """Cast every job's tensor into *sink*.

    Args:
        container: The open file.
        jobs: What to convert.
        sink: Takes the results; has taken all of them when the iterator ends.
        clamp: Write the largest finite value where a weight overflows.
        beside: Other processes of the job that keep a core busy each.
        progress: Told after each block how many bytes of weights it was.

    Yields:
        Each job with the statistics of its tensor, in no order.  Whoever stops early must
        close the generator: only then are its threads and processes done with source and
        sink.

    Raises:
        CkptauditError: Whatever reading the source or the sink raises.
    """
    in_order = _in_order(container, jobs)
    shares = _shares(in_order, lanes_at_hand(beside))
    if len(shares) == 1:
        yield from _cast(container, in_order, sink, clamp=clamp, progress=progress)
        return

    def lane(share: Sequence[TensorJob]) -> Lane:
        def work(say: Say) -> None:
            cast = _cast(container, share, sink, clamp=clamp, progress=lambda n: say({"bytes": n}))
            for job, stats in cast:
                say({"job": numbers[job.id], "stats": stats})
            say({"tally": sink.tally()})

        return work

    numbers = {job.id: number for number, job in enumerate(in_order)}
    # Closed with this generator: nobody else would stop the lanes.
    with closing(run_lanes([lane(share) for share in shares])) as talk:
        for message in talk:
            match message:
                case {"bytes": int(nbytes)}:
                    progress(nbytes)
                case {"job": int(number), "stats": stats}:
                    yield in_order[number], msgspec.convert(stats, TensorStats)
                case {"tally": tally}:
                    sink.recall(msgspec.convert(tally, tuple[tuple[JobId, int], ...]))


def _in_order(container: Container, jobs: Sequence[TensorJob]) -> list[TensorJob]:
    """*jobs* by where their tensors begin in the file; those of a compressed record together."""
    homes = {record.name: record.offset for record in container.records}

    def position(job: TensorJob) -> tuple[int, int]:
        storage, first = job.view.storage, job.view.offset * job.view.dtype.itemsize
        if storage.record in container.inflated:
            return homes[storage.record], storage.offset + first
        return storage.offset + first, 0

    return sorted(jobs, key=position)


def _shares(jobs: Sequence[TensorJob], count: int) -> list[Sequence[TensorJob]]:
    """Cut *jobs* into at most *count* ranges of about as many bytes each."""
    total = sum(job.view.nbytes for job in jobs)
    count = max(1, min(count, total // _LEAST_LANE_BYTES))
    shares: list[list[TensorJob]] = [[]]
    done = 0
    for job in jobs:
        if done >= total * len(shares) // count and len(shares) < count:
            shares.append([])
        shares[-1].append(job)
        done += job.view.nbytes
    return list(shares)


def _cast(
    container: Container,
    jobs: Sequence[TensorJob],
    sink: Sink,
    *,
    clamp: bool,
    progress: Callable[[int], None],
) -> Iterator[tuple[TensorJob, TensorStats]]:
    """Do the work of `stream` in this process."""
    room = _room(BLOCK_BYTES)
    with _WriteBehind(sink) as writes:
        for job in jobs:
            caster = Caster(job.view.dtype, job.target, clamp=clamp)
            for block in blocks_of(job.view):
                out = writes.buffer(job, block)
                _cast_block(container, job, block, caster, room, out)
                writes.put(job, block, out)
                progress(block.numel * job.view.dtype.itemsize)
            yield job, caster.stats


def _cast_block(
    container: Container,
    job: TensorJob,
    block: Block,
    caster: Caster,
    room: memoryview,
    out: memoryview,
) -> None:
    """Read *block* and cast it into *out*, a piece at a time where its elements lie together."""
    view, size = job.view, job.view.dtype.itemsize
    if block.start is None:
        caster.cast(read_block(container, view, block, room), out)
        return
    source = container.bytes_of(view.storage)
    at = view.storage.offset + block.start
    if block.numel >= PIECE:
        # While this block is cast, the kernel may fetch the next; of small ones it does so unasked.
        source.will_need(at + block.numel * size, BLOCK_BYTES)
    for first in range(0, block.numel, PIECE):
        count = min(PIECE, block.numel - first)
        piece = room[: count * size]
        source.read_into(at + first * size, piece)
        if container.byteorder == "big":
            _swap(piece, view)
        width = job.target.itemsize
        caster.cast(piece, out[first * width : (first + count) * width])


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
        for rows in rows_of(view, block):
            elements = np.frombuffer(_read_rows(source, view.storage.offset, rows), bits)
            box[rows.place] = np.lib.stride_tricks.as_strided(elements, rows.shape, rows.stride)
    if container.byteorder == "big":
        _swap(filled, view)
    return filled


def _read_rows(source: ByteSource, base: int, rows: Rows) -> memoryview:
    """Read *rows* of a storage that begins at byte *base*, and lay them one each pitch."""
    laid = memoryview(bytearray(rows.count * rows.pitch))
    for number, start in enumerate(rows.starts()):
        at = number * rows.pitch
        source.read_into(base + start, laid[at : at + rows.nbytes])
    return laid


def _swap(filled: memoryview, view: TensorView) -> None:
    # The two halves of a complex number are swapped each for itself.
    width = view.dtype.itemsize // (2 if view.dtype.name.startswith("complex") else 1)
    if width > 1:
        np.frombuffer(filled, f"u{width}").byteswap(inplace=True)


def _room(nbytes: int) -> memoryview:
    """Memory that begins with a page; the kernel gives pages when they are touched."""
    return memoryview(mmap(-1, nbytes))


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
