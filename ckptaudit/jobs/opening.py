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
from threading import Event, Thread
from typing import TYPE_CHECKING

from ckptaudit.containers import Container, Kind, open_container
from ckptaudit.source import FileSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Limits

__all__ = ["Opened", "hash_of", "notes_on", "opened"]

_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that a job works on.

    Attributes:
        container: What is in it.
        sha256: Waits for the hash of the whole file and returns it; None if not wanted.
    """

    container: Container
    sha256: Callable[[], str | None]

    def finish(self) -> str | None:
        """Wait for the hash and make sure that the file is still the one that was opened.

        Raises:
            SourceChanged: It is not.
        """
        digest = self.sha256()
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
    try:
        with _hashing(source, wanted=with_hash) as sha256:
            yield Opened(open_container(source, limits), sha256)
    finally:
        source.close()


def notes_on(container: Container) -> tuple[str, ...]:
    """What is worth telling about the file that speaks neither for nor against it."""
    is_named = container.source.name.lower().endswith(".safetensors")
    if container.kind is Kind.SAFETENSORS and not is_named:
        return ("is a safetensors file under another name; it was read as what it is",)
    if container.kind is not Kind.SAFETENSORS and is_named:
        return (f"is named .safetensors but is a {container.kind.value} checkpoint",)
    return ()


def hash_of(
    read_into: Callable[[int, memoryview], None], size: int, stop: Event | None = None
) -> str:
    """SHA-256, in hexadecimal, of *size* bytes that *read_into* gives; "" if *stop* was set."""
    hasher = hashlib.sha256()
    # Whole pages, so that a file may be read past the page cache.
    buffer = memoryview(mmap(-1, _BLOCK_BYTES))
    for at in range(0, size, _BLOCK_BYTES):
        if stop is not None and stop.is_set():
            return ""
        block = buffer[: min(_BLOCK_BYTES, size - at)]
        read_into(at, block)
        hasher.update(block)
    return hasher.hexdigest()


@contextmanager
def _hashing(source: ByteSource, *, wanted: bool) -> Iterator[Callable[[], str | None]]:
    """Hash all of *source* on a thread of its own while the block runs.

    The thread reads for itself: hashing is the slowest part of a conversion, and the
    cast must not wait for it.
    """
    if not wanted:
        yield lambda: None
        return
    stop = Event()
    digests: list[str] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            digests.append(hash_of(source.read_into, source.size, stop))
        except BaseException as err:  # noqa: BLE001 - whatever it is, the waiting side raises it
            errors.append(err)

    thread = Thread(target=work, name="ckptaudit-hash")

    def result() -> str:
        thread.join()
        if errors:
            raise errors[0]
        return digests[0]

    thread.start()
    try:
        yield result
    finally:
        stop.set()
        thread.join()
