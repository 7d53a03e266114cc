"""One open file for one job: its container, and its hash computed on the way.

Knows:      in which order a file is opened, hashed, checked and closed.
Is told:    a path.
Never asks: what the job is.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import mmap
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING

from ckptaudit.containers import Container, Kind, open_container
from ckptaudit.source import FileSource
from ckptaudit.vm import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Limits

__all__ = ["Opened", "gaps_of", "hash_of", "notes_on", "opened"]

_BLOCK_BYTES = 4 << 20


class Hashing:
    """The SHA-256 of a whole file, computed on a thread of its own.

    The thread reads for itself: hashing is the slowest part of a conversion, and the
    cast must not wait for it.
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._stop = Event()
        self._digest = ""
        self._error: BaseException | None = None
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._thread is None:
            self._thread = Thread(target=self._work, name="ckptaudit-hash")
            self._thread.start()

    def result(self) -> str:
        """Wait for the hash; raises whatever reading raised."""
        self.start()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._digest

    def stop(self) -> None:
        """Give up; the thread has ended when this returns."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            self._digest = hash_of(self._source.read_into, self._source.size, self._stop)
        except BaseException as err:  # noqa: BLE001 - whatever it is, the waiting side raises it
            self._error = err


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that a job works on.

    Attributes:
        container: What is in it.
        hashing: Its hash on the way, or None if that is not wanted.
    """

    container: Container
    hashing: Hashing | None

    def start_hashing(self) -> None:
        """Begin to hash, if that is wanted: a job that forks does so first."""
        if self.hashing is not None:
            self.hashing.start()

    def digest(self) -> str | None:
        """Wait for the hash; None if it is not wanted."""
        return self.hashing.result() if self.hashing is not None else None

    def finish(self) -> str | None:
        """Wait for the hash and make sure that the file is still the one that was opened.

        Raises:
            SourceChanged: It is not.
        """
        digest = self.digest()
        self.container.source.check_unchanged()
        return digest


@contextmanager
def opened(
    path: str | PathLike[str], *, with_hash: bool, limits: Limits | None = None
) -> Iterator[Opened]:
    """Open *path* for one job and close it after.

    Raises:
        CkptauditError: It cannot be read, or is no checkpoint.
    """
    source = FileSource(path)
    hashing = Hashing(source) if with_hash else None
    try:
        yield Opened(open_container(source, limits), hashing)
    finally:
        if hashing is not None:
            hashing.stop()
        source.close()


def notes_on(container: Container) -> tuple[str, ...]:
    """What is worth telling about the file that speaks neither for nor against it."""
    is_named = container.source.name.lower().endswith(".safetensors")
    if container.kind is Kind.SAFETENSORS and not is_named:
        return ("is a safetensors file under another name; it was read as what it is",)
    if container.kind is not Kind.SAFETENSORS and is_named:
        return (f"is named .safetensors but is a {container.kind.value} checkpoint",)
    return ()


def gaps_of(container: Container) -> tuple[str, ...]:
    """What of the file was not read, and why; printable text."""
    broken = [str(trace.error) for trace in container.traces if trace.error is not None]
    gaps = [f"{gap.record}: {gap.reason}" if gap.record else gap.reason for gap in container.gaps]
    return tuple(escape(gap) for gap in (*broken, *gaps))


def hash_of(
    read_into: Callable[[int, memoryview], None], size: int, stop: Event | None = None
) -> str:
    """SHA-256 of *size* bytes, read by a thread while the ones before them are hashed.

    Args:
        read_into: Fills a buffer from an offset on.
        size: Bytes in all.
        stop: Ends it early once set.

    Returns:
        The hash in hexadecimal; of part of the bytes only if *stop* was set.

    Raises:
        BaseException: Whatever *read_into* raises.
    """
    hasher = hashlib.sha256()
    free: SimpleQueue[memoryview | None] = SimpleQueue()
    filled: SimpleQueue[memoryview | BaseException] = SimpleQueue()
    for _ in range(2):
        # Whole pages, so that a file may be read past the page cache.
        free.put(memoryview(mmap(-1, _BLOCK_BYTES)))

    def read() -> None:
        try:
            for at in range(0, size, _BLOCK_BYTES):
                buffer = free.get()
                if buffer is None:
                    return
                block = buffer[: min(_BLOCK_BYTES, size - at)]
                read_into(at, block)
                filled.put(block)
        except BaseException as err:  # noqa: BLE001 - the other thread raises it
            filled.put(err)

    reader = Thread(target=read, name="ckptaudit-hash-read")
    reader.start()
    try:
        for _ in range(0, size, _BLOCK_BYTES):
            if stop is not None and stop.is_set():
                break
            block = filled.get()
            if isinstance(block, BaseException):
                raise block
            hasher.update(block)
            free.put(block)
    finally:
        free.put(None)
        reader.join()
    return hasher.hexdigest()
