"""The files of a folder held against those that a conversion makes.

Knows:      how files of a conversion are known, and which others a loader might take for its own.
Is told:    the folder, a plan, and the settings that go with it.
Never asks: what is in a file of weights (`fileproof`), or what diffusers calls them (`layouts`).
"""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from ckptaudit.containers import Kind
from ckptaudit.errors import CkptauditError, SourceUnreadable, Unsupported
from ckptaudit.jobs.opening import File, opened
from ckptaudit.jobs.receipt import receipt_in
from ckptaudit.layouts import FAMILIES, settings_of
from ckptaudit.plan import Layout
from ckptaudit.source import FileSource, path_text
from ckptaudit.vm import escape
from ckptaudit.wording import counted, first_and_others

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ckptaudit.plan import ConversionPlan, Options

__all__ = ["FolderFiles", "claim_at", "files_against", "files_in", "own_files"]

_SUFFIX = ".safetensors"
# What loaders take for weights, or run.
_TAKEN_FOR_WEIGHTS = (
    *(_SUFFIX, ".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".onnx", ".py"),
    ".index.json",
)
# Settings take a few kilobytes.
_MOST_SETTINGS_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """What a folder holds of a conversion.

    Attributes:
        weights: By file of the plan, where in the folder it is; those that are there.
        settings: The settings that are there.
        missing: Which files of weights are not there.
        problems: Which settings are missing or differ, and what lies there besides, where a
            loader might take it.
        notes: What else lies there.
    """

    weights: Mapping[str, str]
    settings: tuple[File, ...]
    missing: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def files_in(folder: Path) -> tuple[str, ...]:
    """Every file in *folder*, however deep, by its path in it, sorted.

    A link to a folder is one of them, and not gone into: it may lead anywhere, or back.

    Raises:
        SourceUnreadable: A folder cannot be listed.
    """
    found: list[str] = []
    # Not os.walk, which before Python 3.12 goes down by recursion.
    waiting = [folder]
    try:
        while waiting:
            for child in waiting.pop().iterdir():
                if child.is_dir() and not child.is_symlink():
                    waiting.append(child)
                else:
                    found.append(os.path.relpath(child, folder))
    except OSError as err:
        raise SourceUnreadable(
            f"{path_text(folder)}: cannot be read ({err.strerror}); check its permissions"
        ) from err
    return tuple(sorted(found))


def files_against(
    folder: Path,
    plan: ConversionPlan,
    texts: Mapping[str, bytes],
    options: Options,
    *,
    with_hash: bool,
) -> FolderFiles:
    """Hold what lies in *folder* against what *plan* and *texts* would put there.

    Args:
        folder: The folder.
        plan: Which files of weights there should be.
        texts: The settings, by path in the folder.
        options: How the folder was made.
        with_hash: Compute the SHA-256 of settings.
    """
    there = files_in(folder)
    expected = _places(folder, there, plan, options)
    weights = {file: place for file, place in expected.items() if place in there}
    missing = [place for place in expected.values() if place not in there]
    settings, wrong = _compared(folder, texts, there, with_hash=with_hash)
    extra = [file for file in there if file not in {*weights.values(), *texts}]
    confusing = [file for file in extra if _may_be_taken(folder, file, expected, options)]
    others = [file for file in extra if file not in confusing]
    wrong += (f"{_shown(file)}: is none of the files that are written" for file in confusing)
    notes = [f"not compared, for no conversion writes it: {_some(others)}"] if others else []
    return FolderFiles(
        weights,
        settings,
        tuple(f"{_shown(file)}: is missing" for file in missing),
        tuple(wrong),
        tuple(notes),
    )


def claim_at(path: Path) -> Options | None:
    """How the file at *path* says that it was made; None if it does not say, or is none of ours.

    Raises:
        Unsupported: It names options that are not known here.
    """
    try:
        with opened(path, with_hash=False) as file:
            container = file.container
    except CkptauditError:
        # Whether anything is wrong with that is seen when the file is one that is expected.
        return None
    receipt = receipt_in(container.metadata) if container.kind is Kind.SAFETENSORS else None
    return None if receipt is None else receipt.options


def own_files(folder: Path, name: str) -> frozenset[str]:
    """The files of a conversion into *folder*, by their paths in it: what another may replace.

    Weights say themselves that we wrote them, and with which options; a name has to be one that
    they would have been given.  Settings are known by the weights that they belong to.

    Args:
        folder: The folder.
        name: What it is called, which the parts of a split model have in front of their names.
    """
    beside = _settings_by_weights()
    found = set()
    for file in files_in(folder):
        is_part = file.startswith(f"{name}.") and file.endswith(_SUFFIX) and "/" not in file
        if not is_part and file not in beside:
            continue
        options = _known_claim(folder / file)
        if options is None:
            continue
        if options.split and is_part:
            found.add(file)
        elif options.layout is Layout.DIFFUSERS and file in beside:
            found |= {file, *beside[file]}
    return frozenset(file for file in found if os.path.lexists(folder / file))


@cache
def _settings_by_weights() -> Mapping[str, frozenset[str]]:
    """Of any folder for diffusers: by file of weights, the settings that belong to it."""
    beside: dict[str, frozenset[str]] = {}
    for family in FAMILIES.values():
        if family.has_diffusers_layout:
            for file, settings in settings_of(family).items():
                beside[file] = beside.get(file, frozenset()) | settings
    return beside


def _known_claim(path: Path) -> Options | None:
    try:
        return claim_at(path)
    except Unsupported:
        # Another version's, with options of its own, which nobody here may take for ours.
        return None


def _places(
    folder: Path, there: tuple[str, ...], plan: ConversionPlan, options: Options
) -> dict[str, str]:
    """By file of *plan*, where in the folder it should be."""
    files = [output.file for output in plan.outputs]
    if not options.split:
        return {file: file for file in files}
    # Parts are named after the folder that they were written to, which may have been renamed.
    endings = {file: f".{file}{_SUFFIX}" for file in files}
    stems = {each.removesuffix(e) for e in endings.values() for each in there if each.endswith(e)}
    own = Path(os.path.realpath(folder)).name

    def fitting(stem: str) -> tuple[int, bool]:
        return sum(f"{stem}{ending}" in there for ending in endings.values()), stem == own

    stem = max(sorted(stems), key=fitting, default=own)
    return {file: f"{stem}{ending}" for file, ending in endings.items()}


def _compared(
    folder: Path, texts: Mapping[str, bytes], there: tuple[str, ...], *, with_hash: bool
) -> tuple[tuple[File, ...], list[str]]:
    """The settings that are there, and what is wrong with settings."""
    found, wrong = [], []
    for file, text in texts.items():
        if file not in there:
            wrong.append(f"{_shown(file)}: is missing")
            continue
        with closing(FileSource(folder / file)) as source:
            if source.size > _MOST_SETTINGS_BYTES:
                wrong.append(f"{_shown(file)}: has {counted(source.size, 'byte')}")
                continue
            data = source.read_at(0, source.size)
        digest = sha256(data).hexdigest() if with_hash else None
        found.append(File(source.name, len(data), digest))
        wrong += (f"{_shown(file)}: {what}" for what in _differences(data, text))
    return tuple(found), wrong


def _differences(data: bytes, text: bytes) -> Iterator[str]:
    """What *data* says otherwise than *text*, which is the JSON object that would be written."""
    if data == text:
        return
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        yield "is no JSON object"
        return
    wanted: dict[str, object] = json.loads(text)
    for name in sorted({*found, *wanted}):
        if name not in found:
            yield f"lacks {escape(name)}"
        elif name not in wanted:
            yield f"has {escape(name)}, which is not written"
        elif not _is_same(found[name], wanted[name]):
            yield f"{escape(name)} is not {json.dumps(wanted[name])}"


def _is_same(one: object, other: object) -> bool:
    """Whether two values of JSON are one: in Python 1 is 1.0 and True, also in lists.

    It goes no deeper than *other*, which is ours.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one == other


def _may_be_taken(folder: Path, file: str, expected: Mapping[str, str], options: Options) -> bool:
    """Whether a loader might take *file* for a part of the model."""
    home, _, name = file.rpartition("/")
    if options.split:
        stems = {place.removesuffix(f".{part}{_SUFFIX}") for part, place in expected.items()}
        return any(file.startswith(f"{stem}.") for stem in stems)
    # Whatever lies beside weights says how they are loaded.
    homes = {place.rpartition("/")[0] for place in expected.values()} - {""}
    is_beside = home in homes or name.lower().endswith(_TAKEN_FOR_WEIGHTS)
    return is_beside or _leads_to_weights(folder / file)


def _leads_to_weights(path: Path) -> bool:
    """Whether *path* is a link to a folder in which something may be taken for weights."""
    if not path.is_dir():
        return False
    try:
        return any(name.lower().endswith(_TAKEN_FOR_WEIGHTS) for name in os.listdir(path))  # noqa: PTH208 - names are wanted
    except OSError:
        # What cannot be known to be none.
        return True


def _shown(file: str) -> str:
    return escape(path_text(file))


def _some(files: Sequence[str]) -> str:
    """The first of *files*, and how many more there are."""
    return first_and_others(escape(path_text(files[0])), len(files))
