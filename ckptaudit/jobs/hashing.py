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
    from collections.abc import Callable
    from concurrent.futures import Future

    from ckptaudit.source import ByteSource

__all__ = ["Hashing", "hash_of"]

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
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._given_up = Event()
        self._digest: str | None = None
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
        if self._digest is None and self._fork is not None:
            for message in listen([self._fork]):
                digest = message.get("sha256")
                self._digest = digest if isinstance(digest, str) else None
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        if self._digest is None:
            raise JobDied("the hash of the file was given up before it was done; run again")
        return self._digest

    def stop(self) -> None:
        """Give up; nobody reads the source any more when this returns."""
        self._given_up.set()
        if self._fork is not None:
            self._fork.end()
        if self._thread is not None:
            self._thread.join()

    def _tell(self, say: Say) -> None:
        say({"sha256": hash_of(self._source.read_into, self._source.size)})

    def _work(self) -> None:
        try:
            self._digest = hash_of(self._source.read_into, self._source.size, self._given_up)
        except BaseException as err:  # noqa: BLE001 - whatever it is, the waiting side raises it
            self._error = err


def hash_of(
    read_into: Callable[[int, memoryview], None], size: int, given_up: Event | None = None
) -> str | None:
    """SHA-256 of *size* bytes; the next blocks are read while one is hashed.

    Args:
        read_into: Fills a buffer from an offset on.
        size: Bytes in all.
        given_up: Ends it early once set.

    Returns:
        The hash in hexadecimal, or None if *given_up* was set.

    Raises:
        BaseException: Whatever *read_into* raises.
    """
    hasher = hashlib.sha256()
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
                return None
            if not under_way:
                return hasher.hexdigest()
            buffer, reading = under_way.popleft()
            hasher.update(reading.result())
            free.append(buffer)
