"""A diffusers folder: the files that make up one model, read as one source.

Knows:      how several open files become one.
Is told:    the folder's path.
Never asks: which of its files hold weights (`weightfiles`), or what a key means.

The files are laid end to end in the order of their paths; that is what offsets, and a hash of
the whole, are counted in.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckptaudit.containers.container import Container, Gap, Kind, Nested, Record
from ckptaudit.containers.dispatch import open_one_of, opener_of
from ckptaudit.containers.weightfiles import path_text, weight_files
from ckptaudit.errors import MalformedInput, SourceUnreadable, Unsupported
from ckptaudit.source import FileSource, SplicedSource, unreadable
from ckptaudit.vm import escape
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from ckptaudit.containers.inside import Inside
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Limits

__all__ = ["open_folder"]

# diffusers runs one that a pipeline names, if it is told that it may.
_PROGRAM = ".py"


class _Folder(SplicedSource):
    """The files of a folder, laid end to end, and open as long as it is."""

    def __init__(self, name: str, sources: list[FileSource]) -> None:
        super().__init__(name, *((source, 0, source.size) for source in sources))
        self._sources = sources

    def close(self) -> None:
        for source in self._sources:
            source.close()


def open_folder(
    path: str | os.PathLike[str], limits: Limits | None = None, *, with_all: bool = False
) -> Container:
    """Open the model in the folder *path*; who gets it closes it.

    Args:
        path: The folder.
        limits: The most that all of it may cost.
        with_all: Look at what lies beside the weights as well, and go on where a file cannot
            be opened, which is a gap: for whoever asks whether the folder can be trusted, and
            not for the model.  A loader may prefer what is not read here.

    Raises:
        SourceUnreadable: A file cannot be read, or weights are missing.
        MalformedInput: A file breaks the rules of its format.
        Unsupported: A file is none that is read.
    """
    folder = Path(path)
    name = path_text(os.fspath(path))
    try:
        files = weight_files(folder)
    except OSError as err:
        raise unreadable(name, err) from err
    sources: list[FileSource] = []
    try:
        sources += (FileSource(folder / file) for file in files.chosen)
        inside = opener_of(sum(source.size for source in sources), limits)
        gaps: list[Gap] | None = [] if with_all else None
        parts = _opened(files.chosen, sources, inside, gaps)
        if gaps is None:
            return _joined(_Folder(name, sources), parts, _on_the_unread(files.unread))
        beside = _Beside(folder, inside, sources)
        for file in (*files.unread, *files.others):
            beside.look_at(file)
        whole = _joined(_Folder(name, sources), parts, beside.notes(files.folders))
        nested = (*parts, *beside.nested)
        return replace(whole, nested=nested, gaps=(*gaps, *beside.gaps))
    except BaseException:
        for source in sources:
            source.close()
        raise


def _opened(
    files: tuple[str, ...], sources: list[FileSource], inside: Inside, gaps: list[Gap] | None
) -> tuple[Nested, ...]:
    """Open each of *files*; one that cannot be opened joins *gaps*, if they are wanted."""
    parts = []
    base = 0
    for file, source in zip(files, sources, strict=True):
        name = path_text(file)
        try:
            parts.append(Nested(name, base, open_one_of(source, inside)))
        except (MalformedInput, Unsupported) as err:
            if gaps is None:
                raise
            gaps.append(Gap(str(err.args[0]).removeprefix(f"{source.name}: "), name, base))
        base += source.size
    return tuple(parts)


class _Beside:
    """What lies in a folder beside the weights that are read.

    Args:
        folder: The folder.
        inside: Opens what is a file that is read.
        sources: The files that are open; those that are looked at and are something join them.
    """

    def __init__(self, folder: Path, inside: Inside, sources: list[FileSource]) -> None:
        self.nested: list[Nested] = []
        self.gaps: list[Gap] = []
        self._folder = folder
        self._inside = inside
        self._sources = sources
        # What is in no format that is read.
        self._others: list[str] = []

    def look_at(self, file: str) -> None:
        """Open *file* if it is one that is read, whatever it is called."""
        name = path_text(file)
        if name.endswith(_PROGRAM):
            self.gaps.append(Gap("is a program, which is not looked at", name, None))
            return
        try:
            source = FileSource(self._folder / file)
        except SourceUnreadable as err:
            reason = str(err.args[0]).removeprefix(f"{path_text(self._folder / file)}: ")
            self.gaps.append(Gap(reason, name, None))
            return
        offset = sum(each.size for each in self._sources)
        self._sources.append(source)
        found = self._inside.look(source, 0, source.size, name, offset) if source.size else None
        if isinstance(found, Nested):
            self.nested.append(found)
        elif found is not None:
            self.gaps.append(found)
        else:
            self._sources.remove(source)
            source.close()
            self._others.append(name)

    def notes(self, folders: tuple[str, ...]) -> tuple[str, ...]:
        """Say what nothing can be said of."""
        told = []
        if self._others:
            told.append(f"of no format that is read: {_some(self._others)}")
        if folders:
            told.append(f"not looked into: {_some(list(map(path_text, folders)))}")
        return tuple(told)


def _joined(source: _Folder, parts: tuple[Nested, ...], notes: tuple[str, ...]) -> Container:
    """One container of all *parts*; what there is to say of each is said of a file inside it.

    Records are those that are compressed: of the others every byte lies in *source*.
    """
    records: list[Record] = []
    inflated: dict[str, ByteSource] = {}
    for part in parts:
        unpacked = part.container.inflated
        inflated |= {part.record_name(name): data for name, data in unpacked.items()}
        records += (
            replace(record, name=part.record_name(record.name), offset=part.offset + record.offset)
            for record in part.container.records
            if record.name in unpacked and part.offset is not None
        )
    return Container(
        source=source,
        kind=Kind.FOLDER,
        records=tuple(records),
        traces=(),
        # Those that read tensors refuse parts that differ in it.
        byteorder=parts[0].container.byteorder if parts else "little",
        nested=parts,
        parts=parts,
        inflated=inflated,
        notes=notes,
    )


def _on_the_unread(files: tuple[str, ...]) -> tuple[str, ...]:
    """Say which files of weights lie there and were not read."""
    if not files:
        return ()
    return (f"more weights lie there and were not read: {_some(list(map(path_text, files)))}",)


def _some(names: list[str]) -> str:
    """The first of *names*, and how many more there are."""
    more = f" and {counted(len(names) - 1, 'other')}" if len(names) > 1 else ""
    return f"{escape(names[0])}{more}"
