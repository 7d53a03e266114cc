"""Persistent ids: how a torch pickle points at the storages beside it.

Knows:      the tuples that torch.save hands to ``persistent_id``.
Is told:    a `PersistentId` as the pickle machine found it.
Never asks: where the storage's bytes are; each framing knows that itself.

Source: torch/serialization.py, _legacy_save and _save (persistent_id), 0.1.10 to 2.13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.dtypes import DType, by_storage, named
from ckptaudit.vm import Global, Node, PersistentId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptaudit.vm import Event

__all__ = ["StorageRef", "key_of", "module_of", "references", "storage_of", "storage_type"]

_TYPED_MODULES = ("torch", "torch.cuda")
_UNTYPED = {
    ("torch.storage", "UntypedStorage"),
    ("torch.storage", "_UntypedStorage"),
    ("torch", "UntypedStorage"),
    ("torch.cuda", "UntypedStorage"),
}
# Of the tuples, without and with a view.
_LENGTHS = (5, 6)
# No real file has more dimensions or elements; beyond it sizes stop being file offsets.
_MOST_ELEMENTS = 1 << 62
_MOST_KEY = 1 << 64


class StorageRef(NamedTuple):
    """What a persistent id says about a storage.

    Attributes:
        key: Key of the storage that is stored (the root, where this is a view of it).
        dtype: Element type; uint8 for an untyped storage.
        typed: False for an untyped storage, on which a tensor brings its own dtype.
        location: Device tag, as written.
        numel: Elements of the stored storage (bytes, if untyped).
        view_offset: First element of the view in the stored storage; 0 without one.
        view_numel: Elements of the view; *numel* without one.
    """

    key: str
    dtype: DType
    typed: bool
    location: str
    numel: int
    view_offset: int
    view_numel: int


def storage_type(node: Node) -> tuple[DType, bool] | None:
    """Element type of the storage class *node* names, and whether it is a typed one."""
    if not isinstance(node, Global):
        return None
    if (node.module, node.name) in _UNTYPED:
        return named("uint8"), False
    dtype = by_storage(node.name) if node.module in _TYPED_MODULES else None
    return None if dtype is None else (dtype, True)


def key_of(node: Node) -> str | None:
    """The key that *node* is, as text; None if it is none.

    Python 2 and the tar framing wrote keys as numbers, the addresses of the storages.
    """
    if isinstance(node, str):
        return node
    # str() refuses integers of more than 4300 digits, and no address has as many.
    # Compared and not computed with: one integer of a megabyte may stand in every id.
    if isinstance(node, int) and not isinstance(node, bool) and -_MOST_KEY < node < _MOST_KEY:
        return str(node)
    return None


def storage_of(pid: PersistentId) -> StorageRef | None:
    """The storage that *pid* refers to, or None if it is anything else.

    Nothing is accepted loosely: a tuple with one element of the wrong type is not a
    storage, and `policy` says so.

    The forms are ``('storage', type, key, location, numel)`` (zip) and the same with
    ``None`` or ``(view_key, offset, numel)`` behind it (legacy stream).
    """
    # Taken apart by hand: every tensor is asked for its storage three times, and patterns of
    # classes take twice as long.
    parts = pid.pid
    if not isinstance(parts, tuple) or len(parts) not in _LENGTHS or parts[0] != "storage":
        return None
    _, cls, number_or_text, location, numel, *views = parts
    kind = storage_type(cls)
    key = key_of(number_or_text)
    if kind is None or key is None or not isinstance(location, str):
        return None
    if type(numel) is not int or not 0 <= numel < _MOST_ELEMENTS:
        return None
    view = views[0] if views else None
    offset, length = 0, numel
    if view is not None:
        match view:
            case (_, int(offset), int(length)) if (
                0 <= offset <= numel and 0 <= length <= numel - offset
            ):
                pass
            case _:
                return None
    return StorageRef(key, kind[0], kind[1], location, numel, offset, length)


def module_of(pid: PersistentId) -> Global | None:
    """The class that ``('module', class, source_file, source)`` names, or None.

    An old torch stored the class's source code beside it, to warn when it had changed.
    """
    match pid.pid:
        case ("module", Global() as cls, str() | None, str() | None):
            return cls
        case _:
            return None


def references(events: Iterable[Event]) -> dict[str, list[StorageRef]]:
    """Every storage that a pickle refers to, by key, in order of first mention."""
    found: dict[str, list[StorageRef]] = {}
    for event in events:
        if isinstance(event, PersistentId):
            ref = storage_of(event)
            if ref is not None:
                found.setdefault(ref.key, []).append(ref)
    return found
