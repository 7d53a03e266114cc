"""A diffusers folder: the files that make up one model, read as one source.

Knows:      what is opened of a folder, and what becomes of a file in it that cannot be.
Is told:    the folder's path.
Never asks: which of its files hold weights (`weightfiles`), how open files are read as one
            (`joined`), or what a key means.

The files are laid end to end in the order of their paths; that is what offsets, and a hash of
the whole, are counted in.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckptaudit.containers.container import Container, Gap, Nested
from ckptaudit.containers.dispatch import open_one_of, opener_of
from ckptaudit.containers.joined import end_to_end
from ckptaudit.containers.weightfiles import files_below, strays, weight_files
from ckptaudit.errors import MalformedInput, SourceUnreadable, Unsupported
from ckptaudit.source import FileSource, SplicedSource, path_text, unreadable
from ckptaudit.vm import escape
from ckptaudit.wording import first_and_others

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ckptaudit.containers.inside import Inside
    from ckptaudit.containers.weightfiles import WeightFiles
    from ckptaudit.errors import CkptauditError
    from ckptaudit.vm import Limits

__all__ = ["open_all_of_folder", "open_folder"]

# diffusers runs one that a pipeline names, if it is told that it may.
_PROGRAM = ".py"
_BARRED = "is a folder behind a link, which is not looked into"


class _Folder(SplicedSource):
    """The files of a folder, laid end to end, and open as long as it is."""

    def __init__(self, name: str, sources: list[FileSource]) -> None:
        super().__init__(name, *((source, 0, source.size) for source in sources))
        self._sources = sources

    def close(self) -> None:
        for source in self._sources:
            source.close()


def open_folder(path: str | os.PathLike[str], limits: Limits | None = None) -> Container:
    """Open the model in the folder *path*; who gets it closes it.

    Raises:
        SourceUnreadable: A file cannot be read, or weights are missing.
        MalformedInput: A file breaks the rules of its format.
        Unsupported: A file is none that is read.
    """
    folder = Path(path)
    name = path_text(os.fspath(path))
    files = _files_of(folder, name)
    if files.missing:
        raise SourceUnreadable(f"{name}: {files.missing[0]}")
    with _open_sources() as sources:
        sources.extend(FileSource(folder / file) for file in files.chosen)
        inside = opener_of(sum(source.size for source in sources), limits)
        parts: list[Nested] = []
        base = 0
        for file, source in zip(files.chosen, sources, strict=True):
            parts.append(Nested(path_text(file), base, open_one_of(source, inside)))
            base += source.size
        notes = []
        if files.unread:
            notes.append(f"more weights lie there and were not read: {_some(files.unread)}")
        return end_to_end(_Folder(name, sources), tuple(parts), tuple(notes))


def open_all_of_folder(path: str | os.PathLike[str], limits: Limits | None = None) -> Container:
    """Open every file in the folder *path*, however deep; who gets it closes it.

    That is for whoever asks whether the folder can be trusted: a loader may prefer what is not
    read for the model, and an index of weights may name any file.  What cannot be opened, or is
    missing, is a gap.

    Raises:
        SourceUnreadable: It is no folder of a model, or cannot be read.
    """
    folder = Path(path)
    name = path_text(os.fspath(path))
    files = _files_of(folder, name)
    below = [files_below(folder, inner) for inner in files.folders]
    deeper = [file for found, _ in below for file in found]
    every = (*files.chosen, *files.unread, *files.others, *deeper)
    with _open_sources() as sources:
        inside = opener_of(sum(_size_of(folder / file) for file in every), limits)
        looking = _Looking(folder, inside, sources)
        for file in files.chosen:
            looking.open_part(file)
        for file in files.unread:
            looking.look_at(file, is_weights=True)
        for file in (*files.others, *deeper):
            looking.look_at(file)
        for _, barred in below:
            looking.gaps += (Gap(_BARRED, path_text(inner), None) for inner in barred)
        looking.gaps += (Gap(what, path_text(file), None) for file, what in strays(folder, every))
        notes = []
        if looking.others:
            notes.append(f"of no format that is read: {_some(looking.others)}")
        return replace(
            end_to_end(_Folder(name, sources), tuple(looking.parts), tuple(notes)),
            nested=(*looking.parts, *looking.nested),
            gaps=(*looking.gaps, *(Gap(what, "", None) for what in files.missing)),
        )


def _files_of(folder: Path, name: str) -> WeightFiles:
    try:
        return weight_files(folder)
    except OSError as err:
        raise unreadable(name, err) from err


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        # Whoever opens it says what is wrong.
        return 0


@contextmanager
def _open_sources() -> Iterator[list[FileSource]]:
    """A list of sources that are closed if the block ends with an error."""
    sources: list[FileSource] = []
    try:
        yield sources
    except BaseException:
        for source in sources:
            source.close()
        raise


class _Looking:
    """All that lies in a folder, looked at file by file.

    Args:
        folder: The folder.
        inside: Opens what is a file that is read.
        sources: The files that are open; those that are something, or should be, join them.

    Attributes:
        parts: The files of the model that could be opened.
        nested: Other files that are read.
        gaps: What could not be opened.
        others: What is in no format that is read, nor called as if it were.
    """

    def __init__(self, folder: Path, inside: Inside, sources: list[FileSource]) -> None:
        self.parts: list[Nested] = []
        self.nested: list[Nested] = []
        self.gaps: list[Gap] = []
        self.others: list[str] = []
        self._folder = folder
        self._inside = inside
        self._sources = sources

    def open_part(self, file: str) -> None:
        """Open *file*, which is one of the model's."""
        name = path_text(file)
        offset = sum(each.size for each in self._sources)
        if (source := self._source_of(file)) is None:
            return
        try:
            self.parts.append(Nested(name, offset, open_one_of(source, self._inside)))
        except (MalformedInput, Unsupported) as err:
            self.gaps.append(Gap(_reason(err, source.name), name, offset))

    def look_at(self, file: str, *, is_weights: bool = False) -> None:
        """Open *file* if it is one that is read, whatever it is called.

        Args:
            file: Its path in the folder.
            is_weights: Whether it must be one: some loader has its own name for weights.
        """
        name = path_text(file)
        if name.endswith(_PROGRAM):
            self.gaps.append(Gap("is a program, which is not looked at", name, None))
            return
        offset = sum(each.size for each in self._sources)
        if (source := self._source_of(file)) is None:
            return
        found = self._inside.look(source, 0, source.size, name, offset) if source.size else None
        if isinstance(found, Nested):
            self.nested.append(found)
        elif found is not None:
            self.gaps.append(found)
        elif is_weights and source.size:
            self.gaps.append(Gap("is in no format that is read", name, offset))
        else:
            self._sources.remove(source)
            source.close()
            self.others.append(name)

    def _source_of(self, file: str) -> FileSource | None:
        """Open *file* for reading; None, and a gap, if that cannot be."""
        path = self._folder / file
        try:
            source = FileSource(path)
        except SourceUnreadable as err:
            self.gaps.append(Gap(_reason(err, path_text(path)), path_text(file), None))
            return None
        self._sources.append(source)
        return source


def _reason(err: CkptauditError, name: str) -> str:
    return str(err.args[0]).removeprefix(f"{name}: ")


def _some(files: Sequence[str]) -> str:
    """The first of *files*, and how many more there are."""
    return first_and_others(escape(path_text(files[0])), len(files))
