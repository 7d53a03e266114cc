"""Tensors that a file describes without a pickle, and those of several files that are one model.

Knows:      that names of tied weights stand in metadata, and that a file in a folder puts the
            folder before the names in it.
Is told:    an open safetensors file; or an open folder, and how to find the tensors of a file.
Never asks: what a key means.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from ckptaudit.containers import Kind, speaks_of_file
from ckptaudit.errors import Unsupported
from ckptaudit.tensors.rebuild import Tensor
from ckptaudit.tensors.view import Leftover, StateDict, TensorView
from ckptaudit.vm import brief, escape

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from ckptaudit.containers import Container, Nested, Storage

__all__ = ["of_folder", "of_safetensors"]

_SUFFIX = ".safetensors"
# What every file says, for whoever loads it.
_FORMAT = "format"


def of_safetensors(container: Container) -> StateDict:
    """The tensors of a safetensors file, and the names that its metadata say have their bytes."""
    return _with_metadata(tuple(_views(container)), container.metadata, container.storages)


def of_folder(container: Container, state_dict_of: Callable[[Container], StateDict]) -> StateDict:
    """The tensors of all files that make up a folder's model.

    Raises:
        Unsupported: Two files hold a tensor of one name or differ in byte order, or a file is
            not what it is called.
        CkptauditError: Whatever *state_dict_of* raises for a file.
    """
    views: dict[str, TensorView] = {}
    leftovers: list[Leftover] = []
    for part in container.parts:
        for here in _read(part, container, state_dict_of, leftovers):
            if here.key in views:
                raise Unsupported(
                    f"{container.source.name}: {escape(part.name)} holds {escape(here.key)}, as "
                    "another file beside it does; leave one of them in the folder"
                )
            views[here.key] = here
    metadata = dict(chain.from_iterable(_metadata_of(part, views) for part in container.parts))
    storages = {view.storage.key: view.storage for view in views.values()}
    held = _with_metadata(tuple(views.values()), metadata, storages)
    return replace(held, leftovers=(*held.leftovers, *leftovers))


def _read(
    part: Nested,
    folder: Container,
    state_dict_of: Callable[[Container], StateDict],
    leftovers: list[Leftover],
) -> Iterator[TensorView]:
    """The tensors of one file, as the folder has them; what else it holds joins *leftovers*."""
    if part.container.byteorder != folder.byteorder:
        raise Unsupported(
            f"{folder.source.name}: {escape(part.name)} is {part.container.byteorder}-endian, and "
            "another file is not; convert one alone to safetensors first, into the same folder"
        )
    if part.container.kind is Kind.SAFETENSORS:
        # Names in its metadata may stand for tensors of another file.
        yield from (_moved(view, part) for view in _views(part.container))
        return
    if part.name.endswith(_SUFFIX):
        raise Unsupported(f"{folder.source.name}: {escape(part.name)} is no safetensors file")
    found = state_dict_of(part.container)
    yield from (_moved(view, part) for view in found.views)
    leftovers += (replace(left, path=f"{part.name}: {left.path}") for left in found.leftovers)


def _views(container: Container) -> Iterator[TensorView]:
    for key, stored in container.tensors.items():
        tensor = Tensor(stored.storage, stored.dtype, stored.shape, stored.stride, stored.offset)
        yield tensor.view(key, container)


def _moved(view: TensorView, part: Nested) -> TensorView:
    """*view* of a file as one of the folder around it."""
    key = _home(part.name) + view.key
    return replace(view, key=key, storage=part.storage(view.storage))


def _metadata_of(part: Nested, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """What a file says of itself: which names stand for which of all *names*, and the rest.

    The tensor may be in another piece than the name that stands for it.
    """
    home = _home(part.name)
    for key, text in part.container.metadata.items():
        if key == _FORMAT:
            continue
        if home + text in names and not speaks_of_file(key):
            yield home + key, home + text
        else:
            yield f"{part.name}: {key}", text


def _home(file: str) -> str:
    """The folder that *file* is in, as the beginning of a name."""
    return file[: file.rfind("/") + 1]


def _with_metadata(
    views: tuple[TensorView, ...], metadata: Mapping[str, str], storages: Mapping[str, Storage]
) -> StateDict:
    """*views*, and those for which a name in *metadata* stands.

    Names of tied weights are left out of such a file and written into ``__metadata__``, each
    with the name that was kept; whatever else stands there is a leftover.
    """
    by_key = {view.key: view for view in views}
    aliases = {
        name: replace(by_key[kept], key=name)
        for name, kept in metadata.items()
        if kept in by_key and name not in by_key and not speaks_of_file(name)
    }
    leftovers = tuple(
        Leftover(f"__metadata__[{name!a}]", brief(text), "is metadata", is_tensor=False)
        for name, text in metadata.items()
        if name not in aliases and name != _FORMAT
    )
    return StateDict((*views, *aliases.values()), storages, "", leftovers)
