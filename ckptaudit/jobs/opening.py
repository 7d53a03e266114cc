"""One open file for one job: its container, and its hash computed on the way.

Knows:      in which order a file is opened, hashed, checked and closed.
Is told:    a path.
Never asks: what the job is.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ckptaudit.containers import Container, Kind, data_start, open_container
from ckptaudit.source import FileSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from ckptaudit.jobs.hashing import Hashing
    from ckptaudit.policy import Judgement
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Limits

__all__ = ["File", "Folders", "Judged", "Opened", "notes_on", "opened"]


class Folders(Enum):
    """What a job does with the folder of a diffusers model."""

    REFUSED = "refused"
    # Files that hold the weights of the model are read as one.
    MODEL = "model"
    # So is everything that lies beside them.
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class File:
    """A file that an answer speaks of.

    Attributes:
        path: As it was named.
        size: Bytes.
        sha256: Of the whole file, in hexadecimal; None if it was not wanted.
    """

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that a job works on.

    Attributes:
        container: What is in it.
        hashing: Its hash on the way, or None if that is not wanted.
    """

    container: Container
    hashing: Hashing | None

    @property
    def cores_taken(self) -> int:
        """Processes that hash beside the job, each of which keeps a core busy."""
        return int(self.hashing is not None and self.hashing.is_forked)

    def digest(self) -> str | None:
        """Wait for the hash; None if it is not wanted."""
        return self.hashing.result() if self.hashing is not None else None

    def data_digest(self) -> str | None:
        """Wait for the hash of a safetensors file's data; None if it is not wanted, or is none."""
        return self.hashing.tail_result() if self.hashing is not None else None

    def finish(self) -> str | None:
        """Wait for the hash and make sure that the file is still the one that was opened.

        Raises:
            SourceChanged: It is not.
        """
        digest = self.digest()
        self.container.source.check_unchanged()
        return digest


@dataclass(frozen=True, slots=True)
class Judged:
    """A file that a job works on, and what a scan thinks of it.

    Attributes:
        file: The file.
        judgement: What a scan thinks of it.
    """

    file: Opened
    judgement: Judgement


@contextmanager
def opened(
    path: str | PathLike[str],
    *,
    with_hash: bool,
    limits: Limits | None = None,
    folders: Folders = Folders.REFUSED,
    with_data_hash: bool = False,
) -> Iterator[Opened]:
    """Open *path* for one job and close it after; its hash, if wanted, begins at once.

    Args:
        path: A file, or the folder of a diffusers model.
        with_hash: Whether its SHA-256 is wanted; of a folder that of its files laid end to end.
        limits: The most it may cost.
        folders: What the job does with a folder.
        with_data_hash: Whether, if it is a safetensors file, the hash of its data is wanted too.

    Raises:
        CkptauditError: It cannot be read, or is no checkpoint.
    """
    is_folder = folders is not Folders.REFUSED and os.path.isdir(path)  # noqa: PTH112 - a name that is too long is none
    folder = _folder(path, limits, folders) if is_folder else None
    source = FileSource(path) if folder is None else folder.source
    hashing = None
    try:
        tail_start = data_start(source) if with_data_hash and folder is None else None
        hashing = _hashing(source, tail_start) if with_hash else None
        container = open_container(source, limits) if folder is None else folder
        yield Opened(container, hashing)
    finally:
        if hashing is not None:
            hashing.stop()
        source.close()


def _folder(path: str | PathLike[str], limits: Limits | None, folders: Folders) -> Container:
    from ckptaudit.containers import folder  # noqa: PLC0415 - as hashing, below

    match folders:
        case Folders.WHOLE:
            return folder.open_all_of_folder(path, limits)
        case _:
            return folder.open_folder(path, limits)


def _hashing(source: ByteSource, tail_start: int | None) -> Hashing:
    # Threads, processes and hashlib take a tenth of a scan to load, and a scan may want no hash.
    from ckptaudit.jobs.hashing import Hashing  # noqa: PLC0415

    return Hashing(source, tail_start)


def notes_on(container: Container) -> tuple[str, ...]:
    """What is worth telling about the file that speaks neither for nor against it."""
    if container.kind is Kind.FOLDER:
        return container.notes
    is_named = container.source.name.lower().endswith(".safetensors")
    if container.kind is Kind.SAFETENSORS and not is_named:
        return ("is a safetensors file under another name; it was read as what it is",)
    if container.kind is not Kind.SAFETENSORS and is_named:
        return (f"is named .safetensors but is a {container.kind.value} checkpoint",)
    return ()
