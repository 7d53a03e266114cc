"""A diffusers folder: safetensors files that make up one model, read as one source.

Knows:      which files of such a folder hold weights.
Is told:    its path.
Never asks: what a key means, or what else lies in the folder.

The files are laid end to end in the order of their paths; that is what offsets, and a hash of
the whole, are counted in.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckptaudit.containers.container import Container, Kind, Nested
from ckptaudit.containers.dispatch import open_containers
from ckptaudit.containers.safetensors import speaks_of_file
from ckptaudit.errors import SourceUnreadable, Unsupported
from ckptaudit.source import FileSource, SplicedSource, unreadable
from ckptaudit.vm import escape

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ckptaudit.vm import Limits

__all__ = ["open_folder"]

# diffusers/utils/constants.py and transformers/utils: what weights are called, alone or in
# pieces; a variant such as ``fp16`` stands before the ending.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?P<variant>\.\w+)?(?:-(?P<number>\d+)-of-(?P<count>\d+))?"
    r"(?P<behind>\.\w+)?\.safetensors"
)
_PICKLED = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model)(?:\.\w+)?(?:-\d+-of-\d+)?(?:\.\w+)?\.bin"
)


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
        SourceUnreadable: A file cannot be read, or none holds weights.
        Unsupported: Weights are in another format than safetensors.
        MalformedInput: A file breaks the rules of its format.
    """
    folder = Path(path)
    name = _text(os.fspath(path))
    try:
        files = _weights_in(folder, name)
    except OSError as err:
        raise unreadable(name, err) from err
    sources: list[FileSource] = []
    try:
        sources += (FileSource(folder / file) for file in files)
        parts = open_containers(sources, limits)
        return _joined(_Folder(name, sources), dict(zip(files, parts, strict=True)))
    except BaseException:
        for source in sources:
            source.close()
        raise


def _weights_in(folder: Path, name: str) -> list[str]:
    """The files that hold weights, by their paths in *folder*, sorted."""
    homes = [folder, *_folders(folder)]
    files = []
    for home in homes:
        # Links to nowhere, too: to read them says what is wrong, and without them all is lost.
        with _readable(home):
            names = sorted(child.name for child in home.iterdir())
        found = [match for each in names if (match := _WEIGHTS.fullmatch(each))]
        # Of a component in several precisions the first that stands for itself is taken.
        variants = {_variant(match) for match in found}
        wanted = "" if "" in variants else min(variants, default="")
        own = [match for match in found if _variant(match) == wanted]
        _check_pieces(own, home)
        chosen = [match.group() for match in own]
        pickled = [each for each in names if _PICKLED.fullmatch(each)]
        if pickled and not chosen:
            raise Unsupported(
                f"{name}: {_text((home / pickled[0]).relative_to(folder))} is pickled; convert it "
                "to safetensors first, into the same folder"
            )
        files += [str((home / each).relative_to(folder)) for each in chosen]
    if not files:
        raise SourceUnreadable(
            f"{name}: is a directory, and not of a diffusers model; name the files in it, such as "
            f"{name.rstrip('/')}/*.ckpt"
        )
    return files


def _folders(folder: Path) -> list[Path]:
    """The folders in *folder*, sorted."""
    with _readable(folder):
        return sorted(child for child in folder.iterdir() if child.is_dir())


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise SourceUnreadable(
            f"{_text(folder)}: cannot be read ({err.strerror}); check its permissions"
        ) from err


def _variant(match: re.Match[str]) -> str:
    return match["variant"] or match["behind"] or ""


def _check_pieces(matches: list[re.Match[str]], home: Path) -> None:
    """Refuse a model of which a piece is missing: what it holds would be lost in silence."""
    pieces = [match for match in matches if match["count"]]
    there = {(int(match["number"]), int(match["count"])) for match in pieces}
    counts = {count for _, count in there}
    # Counted and not listed: a name may speak of any number of pieces.
    are_pieces = all(1 <= number <= count for number, count in there)
    if not are_pieces or len(there) < sum(counts):
        raise SourceUnreadable(
            f"{_text(home)}: holds {len(there)} of the {max(counts)} pieces of its weights; fetch "
            "the others"
        )


def _text(path: Path | str) -> str:
    """*path* as text that any file can hold: a name that is not UTF-8 has lone surrogates."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")


def _joined(source: _Folder, parts: dict[str, Container]) -> Container:
    """One container of all *parts*, whose names begin with the folder they are in.

    What else there is to say of a part is said of it as of a file inside the folder.
    """
    storages, tensors, nested, base = {}, {}, [], 0
    for file, part in parts.items():
        at = _text(file)
        if part.kind is not Kind.SAFETENSORS:
            raise Unsupported(f"{source.name}: {escape(at)} is no safetensors file")
        home = _home(at)
        again = next((key for key in part.tensors if home + key in tensors), None)
        if again is not None:
            raise Unsupported(
                f"{source.name}: {escape(at)} holds {escape(again)}, as another file "
                "beside it does; leave one of them in the folder"
            )
        for key, storage in part.storages.items():
            storages[home + key] = replace(
                storage, key=home + key, record=home + key, offset=base + storage.offset
            )
        for key, tensor in part.tensors.items():
            tensors[home + key] = replace(tensor, key=home + key, storage=home + key)
        nested.append(Nested(at, base, part))
        base += part.source.size
    return Container(
        source=source,
        kind=Kind.FOLDER,
        records=(),
        traces=(),
        storages=storages,
        tensors=tensors,
        metadata=_metadata(parts, tensors),
        nested=tuple(nested),
    )


def _metadata(parts: dict[str, Container], tensors: Collection[str]) -> dict[str, str]:
    """What the files say of themselves: which names stand for which of *tensors*, and the rest.

    The tensor may be in another piece than the name that stands for it.
    """
    metadata = {}
    for file, part in parts.items():
        at = _text(file)
        home = _home(at)
        for key, text in part.metadata.items():
            if key == "format":
                continue
            if home + text in tensors and not speaks_of_file(key):
                metadata[home + key] = home + text
            else:
                metadata[f"{at}: {key}"] = text
    return metadata


def _home(file: str) -> str:
    """The folder that *file* is in, as the beginning of a name."""
    return file[: file.rfind("/") + 1]
