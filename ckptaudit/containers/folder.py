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

from ckptaudit.containers.container import Container, Kind, Nested, Record
from ckptaudit.containers.dispatch import open_containers
from ckptaudit.containers.weightfiles import path_text, weight_files
from ckptaudit.errors import Unsupported
from ckptaudit.source import FileSource, SplicedSource, unreadable
from ckptaudit.vm import escape
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Limits

__all__ = ["open_folder"]


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
    try:
        files = weight_files(folder)
    except OSError as err:
        raise unreadable(name, err) from err
    sources: list[FileSource] = []
    try:
        sources += (FileSource(folder / file) for file in files.chosen)
        parts = open_containers(sources, limits)
        names = map(path_text, files.chosen)
        whole = _joined(_Folder(name, sources), dict(zip(names, parts, strict=True)))
        return replace(whole, notes=_on_the_unread(files.unread))
    except BaseException:
        for source in sources:
            source.close()
        raise


def _joined(source: _Folder, parts: dict[str, Container]) -> Container:
    """One container of all *parts*; what there is to say of each is said of a file inside it.

    Records are those that are compressed: of the others every byte lies in *source*.
    """
    nested: list[Nested] = []
    records: list[Record] = []
    inflated: dict[str, ByteSource] = {}
    base = 0
    for file, part in parts.items():
        inner = Nested(file, base, part)
        inflated |= {inner.record_name(key): unpacked for key, unpacked in part.inflated.items()}
        records += (
            replace(record, name=inner.record_name(record.name), offset=base + record.offset)
            for record in part.records
            if record.name in part.inflated
        )
        nested.append(inner)
        base += part.source.size
    return Container(
        source=source,
        kind=Kind.FOLDER,
        records=tuple(records),
        traces=(),
        byteorder=_byteorder(source.name, parts),
        nested=tuple(nested),
        parts=tuple(nested),
        inflated=inflated,
    )


def _byteorder(name: str, parts: dict[str, Container]) -> str:
    orders = {part.byteorder: file for file, part in parts.items()}
    if len(orders) > 1:
        raise Unsupported(
            f"{name}: {escape(orders['big'])} is big-endian, and another file is not; convert it "
            "alone to safetensors first, into the same folder"
        )
    return min(orders)


def _on_the_unread(files: tuple[str, ...]) -> tuple[str, ...]:
    """Say which files of weights lie there and were not read."""
    if not files:
        return ()
    more = f" and {counted(len(files) - 1, 'other file')}" if len(files) > 1 else ""
    return (f"{escape(path_text(files[0]))}{more} lie there too and were not read",)
