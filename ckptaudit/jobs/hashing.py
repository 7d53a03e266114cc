"""The SHA-256 of a file, computed while something else is done with it.

Hashing is the slowest part of a conversion and of a scan.  It begins as soon as the file
is open, in a process of its own where there may be one, and reads for itself: nothing
else waits for it but the end of the job.

Knows:      how to keep a hash fed.
Is told:    a source, or how to read one.
Never asks: what the bytes are.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from threading import Event, Thread
from typing import TYPE_CHECKING

from ckptaudit.errors import JobDied
from ckptaudit.jobs.lanes import Fork, Say, can_fork, listen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from ckptaudit.source import ByteSource

__all__ = ["Hashing", "hash_of", "hashes_of"]

# Below this the hash is done before a process has begun.
_LEAST_FORK_BYTES = 64 << 20
_BLOCK_BYTES = 4 << 20
# Reads under way at once: a disk that is far away takes its time for each.
_READERS = 2
# One block is hashed while each reader fills another.
_BLOCKS = _READERS + 1


class Hashing:
    """The hash of a whole file on its way; it has begun when this is made.

    Args:
        source: What to hash; it must stay open until `result` or `stop` has returned.
        tail_start: Where the bytes begin that are hashed once more, by themselves; None if there
            are none.
    """

    def __init__(self, source: ByteSource, tail_start: int | None = None) -> None:
        self._source = source
        self._starts = (0,) if tail_start is None else (0, tail_start)
        self._given_up = Event()
        self._digests: tuple[str, ...] = ()
        self._error: BaseException | None = None
        self._fork: Fork | None = None
        self._thread: Thread | None = None
        if source.size >= _LEAST_FORK_BYTES and can_fork():
            # Where there is no room for a process, a thread does.
            with contextlib.suppress(OSError):
                self._fork = Fork(self._tell)
        if self._fork is None:
            self._thread = Thread(target=self._work, name="ckptaudit-hash")
            self._thread.start()

    @property
    def is_forked(self) -> bool:
        """Whether a process of its own does it."""
        return self._fork is not None

    def result(self) -> str:
        """Wait for the hash, in hexadecimal; raises whatever reading raised."""
        return self._results()[0]

    def tail_result(self) -> str | None:
        """Wait for the hash of the tail, likewise; None if there is none."""
        return self._results()[1] if len(self._starts) > 1 else None

    def _results(self) -> tuple[str, ...]:
        if not self._digests and self._fork is not None:
            for message in listen([self._fork]):
                digests = message.get("sha256")
                if isinstance(digests, list):
                    self._digests = tuple(map(str, digests))
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        if not self._digests:
            raise JobDied("the hash of the file was given up before it was done; run again")
        return self._digests

    def stop(self) -> None:
        """Give up; nobody reads the source any more when this returns."""
        self._given_up.set()
        if self._fork is not None:
            self._fork.end()
        if self._thread is not None:
            self._thread.join()

    def _tell(self, say: Say) -> None:
        say({"sha256": hashes_of(self._source.read_into, self._source.size, self._starts)})

    def _work(self) -> None:
        try:
            read_into, size = self._source.read_into, self._source.size
            self._digests = hashes_of(read_into, size, self._starts, self._given_up)
        except BaseException as err:  # noqa: BLE001 - whatever it is, the waiting side raises it
            self._error = err


def hash_of(read_into: Callable[[int, memoryview], None], size: int) -> str:
    """SHA-256 of *size* bytes, in hexadecimal; see `hashes_of`."""
    return hashes_of(read_into, size)[0]


def hashes_of(
    read_into: Callable[[int, memoryview], None],
    size: int,
    starts: Sequence[int] = (0,),
    given_up: Event | None = None,
) -> tuple[str, ...]:
    """SHA-256 of *size* bytes; the next blocks are read while one is hashed.

    Args:
        read_into: Fills a buffer from an offset on.
        size: Bytes in all.
        starts: From where on the bytes are hashed, for each hash that is wanted.
        given_up: Ends it early once set.

    Returns:
        The hashes in hexadecimal; none if *given_up* was set.

    Raises:
        BaseException: Whatever *read_into* raises.
    """
    hashers = [hashlib.sha256() for _ in starts]
    hashed = 0
    offsets = iter(range(0, size, _BLOCK_BYTES))

    def filled(buffer: memoryview, at: int) -> memoryview:
        block = buffer[: min(_BLOCK_BYTES, size - at)]
        read_into(at, block)
        return block

    with ThreadPoolExecutor(_READERS, thread_name_prefix="ckptaudit-hash-read") as readers:
        # Whole pages, so that a file may be read past the page cache.
        free = deque(memoryview(mmap(-1, _BLOCK_BYTES)) for _ in range(_BLOCKS))
        under_way: deque[tuple[memoryview, Future[memoryview]]] = deque()
        while True:
            while free and (at := next(offsets, None)) is not None:
                buffer = free.popleft()
                under_way.append((buffer, readers.submit(filled, buffer, at)))
            if given_up is not None and given_up.is_set():
                return ()
            if not under_way:
                return tuple(hasher.hexdigest() for hasher in hashers)
            buffer, reading = under_way.popleft()
            block = reading.result()
            for hasher, start in zip(hashers, starts, strict=True):
                hasher.update(block[max(0, start - hashed) :])
            hashed += len(block)
            free.append(buffer)
