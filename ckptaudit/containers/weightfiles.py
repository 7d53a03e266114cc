"""Which files of a diffusers folder hold the weights of the model, and which should.

Knows:      what diffusers and transformers call weights, alone, in pieces and in variants; and
            which parts of a pipeline have some.
Is told:    the folder.
Never asks: what is in a file of weights.

Names decide, because names are what loaders go by: of what lies in a folder they open no more,
but for what the index of weights in pieces names, which may be any file anywhere.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.errors import CkptauditError, SourceUnreadable, Unsupported
from ckptaudit.source import FileSource, path_text
from ckptaudit.vm import escape
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["WeightFiles", "files_below", "strays", "weight_files"]

_INDEX, _CONFIG = "model_index.json", "config.json"
_MOST_INDEX_BYTES = 1_000_000
# Names which piece has which tensor: of the largest models ten megabytes.
_PIECES = ".index.json"
_MOST_PIECES_BYTES = 50_000_000
# diffusers/utils/constants.py and transformers/utils: a variant such as ``fp16`` stands before
# the number of a piece, or, for some versions, behind it.
_WEIGHTS = re.compile(
    r"(?P<stem>(?:diffusion_pytorch_|pytorch_)?model)(?P<variant>\.\w+)?"
    r"(?:-(?P<number>\d+)-of-(?P<count>\d+))?(?P<behind>\.\w+)?(?P<ending>\.safetensors|\.bin)"
)
# transformers has a name for each format.
_NO_SUCH_NAMES = {("model", ".bin"), ("pytorch_model", ".safetensors")}
# What else weights are kept in; nothing of it is part of what diffusers would open.
_LIKE_WEIGHTS = (
    *(".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".pkl"),
    *(".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".gguf"),
)
# Parts of pipelines that have weights.  A safety checker is left out of many folders whose index
# names it; schedulers, tokenizers and feature extractors have settings only.
_HAS_WEIGHTS = re.compile(
    r"(?:unet|vae|vqvae|vqgan|movq|bert|transformer|prior|decoder|text_encoder|image_encoder"
    r"|controlnet|depth_estimator)(?:_\d+)?"
)
_HAS_WEIGHTS_IF_THERE = "safety_checker"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of a folder, by their paths in it.

    Attributes:
        chosen: Those that hold the weights of the model; folder by folder.
        unread: Others that hold weights, in another format or precision, or of another model.
        others: The rest of what lies in the folder and in the folders in it.
        folders: Folders in those, in which no part of a pipeline is.
        missing: What should be there and is not, a sentence for each.
    """

    chosen: tuple[str, ...]
    unread: tuple[str, ...]
    others: tuple[str, ...]
    folders: tuple[str, ...]
    missing: tuple[str, ...]


def weight_files(folder: Path) -> WeightFiles:
    """Tell the files in *folder*, and in the folders in it, apart.

    Of the weights of one part those are chosen that diffusers would open: those without a
    variant before any other, and safetensors before pickles.

    Raises:
        SourceUnreadable: It is no folder of a model, or cannot be read.
    """
    chosen: list[str] = []
    unread: list[str] = []
    others: list[str] = []
    folders: list[str] = []
    missing: list[str] = []
    configured = set()
    for home in (folder, *_folders(folder)):
        names = _names_in(home)
        place = "" if home == folder else f"{home.name}/"
        matches = _chosen(names)
        own = [match.group() for match in matches]
        missing += _missing_pieces(matches, place)
        chosen += (place + name for name in own)
        inner = {name for name in names if name not in own and (home / name).is_dir()}
        folders += (place + name for name in sorted(inner) if place)
        rest = [name for name in names if name not in own and name not in inner]
        unread += (place + name for name in rest if name.lower().endswith(_LIKE_WEIGHTS))
        others += (place + name for name in rest if not name.lower().endswith(_LIKE_WEIGHTS))
        if _CONFIG in names:
            configured.add(home.name if place else "")
    if not chosen and not configured and _INDEX not in others:
        name = path_text(folder)
        raise SourceUnreadable(
            f"{name}: is a directory, and not of a diffusers model; name the files in it, such as "
            f"{name.rstrip('/')}/*.ckpt"
        )
    missing += _missing_parts(folder, configured, {path.rpartition("/")[0] for path in chosen})
    kinds = (chosen, unread, others, folders, missing)
    return WeightFiles(*map(tuple, kinds))


def files_below(folder: Path, inner: str) -> tuple[list[str], list[str]]:
    """What lies below *inner*, a folder in one of those in *folder*.

    Links to folders are not gone into: one may lead to all there is, or back.

    Returns:
        Every file, however deep, and each folder that was not gone into; by their paths in
        *folder*.

    Raises:
        SourceUnreadable: A folder cannot be read.
    """
    files: list[str] = []
    barred: list[str] = []
    waiting = [inner]
    while waiting:
        place = waiting.pop()
        if (folder / place).is_symlink() or (folder / place).parent.is_symlink():
            barred.append(place)
            continue
        for name in _names_in(folder / place):
            path = f"{place}/{name}"
            (waiting if (folder / path).is_dir() else files).append(path)
    return sorted(files), sorted(barred)


def strays(folder: Path, files: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Say which of *files*, all that were looked at, send a loader to one that was not.

    Yields:
        The file, and what it does.
    """
    files = tuple(files)
    homes = {os.path.realpath((folder / file).parent) for file in files}
    for file in files:
        if not file.lower().endswith(_PIECES):
            continue
        named = _named_pieces(folder / file)
        if named is None:
            yield file, "has too many bytes to be an index of weights"
            continue
        for piece in named:
            path = os.path.normpath(os.path.join(os.path.dirname(file), piece))  # noqa: PTH118, PTH120 - as loaders do
            is_outside = os.path.isabs(path) or path.split("/")[0] == ".."  # noqa: PTH117 - of text
            there = f"{(folder / file).parent}/{piece}"
            is_unseen = os.path.lexists(there) and _home(there) not in homes
            if is_outside or is_unseen:
                yield file, f"names weights that are not in the folder: {escape(path_text(piece))}"
                break


def _home(path: str) -> str:
    return os.path.realpath(path.rpartition("/")[0])


def _named_pieces(index: Path) -> list[str] | None:
    """The files that *index* names, sorted; None if it is too large to be read."""
    try:
        with closing(FileSource(index)) as source:
            if source.size > _MOST_PIECES_BYTES:
                return None
            parts = json.loads(source.read_at(0, source.size))
    except (CkptauditError, ValueError, RecursionError):
        # No loader gets further; that it cannot be read is said where it is looked at.
        return []
    named = parts.get("weight_map") if isinstance(parts, dict) else None
    values = named.values() if isinstance(named, dict) else ()
    return sorted({value for value in values if isinstance(value, str)})


def _folders(folder: Path) -> list[Path]:
    """The folders in *folder*, sorted."""
    with _readable(folder):
        return sorted(child for child in folder.iterdir() if child.is_dir())


def _names_in(home: Path) -> list[str]:
    # Links to nowhere, too: to read them says what is wrong, and without them all is lost.
    with _readable(home):
        return sorted(child.name for child in home.iterdir())


def _chosen(names: list[str]) -> list[re.Match[str]]:
    """Those of *names*, all that lie in one folder, that are the weights of one part."""
    matches = [match for name in names if (match := _WEIGHTS.fullmatch(name))]
    found = [each for each in matches if (each["stem"], each["ending"]) not in _NO_SUCH_NAMES]
    wanted = min(map(_kind, found), default=None)
    return [match for match in found if _kind(match) == wanted]


def _kind(match: re.Match[str]) -> tuple[str, bool]:
    """Variant, and whether it is pickled: the first in order is what diffusers would open."""
    return match["variant"] or match["behind"] or "", match["ending"] == ".bin"


def _missing_pieces(matches: list[re.Match[str]], place: str) -> Iterator[str]:
    """Say so where a piece of weights is missing: what it holds would be lost in silence."""
    pieces = [match for match in matches if match["count"]]
    there = {(int(match["number"]), int(match["count"])) for match in pieces}
    counts = {count for _, count in there}
    # Counted and not listed: a name may speak of any number of pieces.
    are_pieces = all(1 <= number <= count for number, count in there)
    if not are_pieces or len(there) < sum(counts):
        where = f"{path_text(place)}: " if place else ""
        held = f"{len(there)} of the {max(counts)} pieces of its weights"
        yield f"{where}holds {held}; fetch the others"


def _missing_parts(folder: Path, configured: set[str], there: set[str]) -> Iterator[str]:
    """Say of which parts that must have weights there are none."""
    must: dict[str, str] = {}
    try:
        must = dict.fromkeys(_named_in(folder), f"{_INDEX} names it")
    except CkptauditError as err:
        yield str(err).removeprefix(f"{path_text(folder)}/")
    must |= {home: f"{home}/{_CONFIG} is there" for home in configured if _must_have(home)}
    for home, why in sorted(must.items()):
        if home not in there:
            yield (
                f"has no weights of the {escape(home)} that are read, .safetensors or .bin "
                f"({why}); fetch them"
            )
    if not there and not must:
        yield "has no weights that are read, .safetensors or .bin; fetch them"


def _must_have(home: str) -> bool:
    return home == _HAS_WEIGHTS_IF_THERE or _HAS_WEIGHTS.fullmatch(home) is not None


def _named_in(folder: Path) -> list[str]:
    """The parts that have weights, of those that the index of a pipeline names."""
    index = folder / _INDEX
    if not os.path.lexists(index):
        return []
    with closing(FileSource(index)) as source:
        if source.size > _MOST_INDEX_BYTES:
            size = counted(source.size, "byte")
            raise Unsupported(f"{source.name}: has {size}, too many to be an index of a pipeline")
        text = source.read_at(0, source.size)
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise Unsupported(f"{path_text(index)}: is no JSON; fetch it again") from err
    if not isinstance(parts, dict):
        raise Unsupported(f"{path_text(index)}: is no index of a pipeline; fetch it again")
    return [name for name, of in parts.items() if _HAS_WEIGHTS.fullmatch(name) and _is_part(of)]


def _is_part(made_by: object) -> bool:
    """Whether *made_by*, a library and a class, stands for a part; of none both are null."""
    return isinstance(made_by, list) and any(each is not None for each in made_by)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise SourceUnreadable(
            f"{path_text(folder)}: cannot be read ({err.strerror}); check its permissions"
        ) from err
