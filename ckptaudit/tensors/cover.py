"""Which bytes of the storages no tensor shows: room for something that nobody looks at.

Knows:      which bytes a strided view touches, and where a storage stands for itself.
Is told:    views, one by one, and then the container they are in.
Never asks: what lies in the bytes that are left over.

Most storages are one tensor, from end to end; those cost a look each.  Of the others the
pieces are put together, exactly, up to a number of pieces.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.containers import Mishap, key_of, storage_of
from ckptaudit.tensors.rebuild import beside_storage
from ckptaudit.tensors.tree import held_in
from ckptaudit.vm import Call, PersistentId, brief
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ckptaudit.containers import Container, Storage
    from ckptaudit.tensors.view import TensorView
    from ckptaudit.vm import Node

__all__ = ["Cover"]

# Pieces that all views of a file may fall into: a column of a matrix is one for each row.
_MOST_PIECES = 500_000


class _Part(NamedTuple):
    """Bytes of a record, as half-open ranges of one length, that are not left over.

    Attributes:
        starts: First bytes, counted like a storage's offset.
        nbytes: Bytes of each.
    """

    starts: tuple[int, ...]
    nbytes: int


class Cover:
    """What the tensors of a container show of its storages."""

    def __init__(self) -> None:
        self._given_up = False
        # Keys of storages of which one tensor shows everything, or that something worse is
        # said of already.
        self._done: set[str] = set()
        # By record, because in a tar one storage may be a part of another.
        self._views: defaultdict[str, list[TensorView]] = defaultdict(list)

    def add(self, view: TensorView) -> None:
        """Take note of a tensor that lies inside its storage."""
        storage = view.storage
        if view.offset == 0 and view.numel * view.dtype.itemsize == storage.nbytes:
            run, outer = view.runs
            if not outer and run == view.numel:
                self._done.add(storage.key)
                return
        if view.numel:
            self._views[storage.record].append(view)

    def give_up(self) -> None:
        """Say nothing of any storage: not all tensors could be looked at."""
        self._given_up = True

    def leave(self, key: str) -> None:
        """Say nothing of the storage *key*: something worse has been said."""
        self._done.add(key)

    def left_over(self, container: Container) -> Iterator[Mishap]:
        """Each record that has bytes of a storage which no tensor shows."""
        # By record, the largest storage that is not done with.
        partly: dict[str, Storage] = {}
        for key, storage in container.storages.items():
            if storage.nbytes and key not in self._done:
                other = partly.setdefault(storage.record, storage)
                if storage.nbytes > other.nbytes:
                    partly[storage.record] = storage
        if self._given_up or not partly:
            return
        parts = self._parts(container, partly)
        for record, storage in partly.items():
            known = parts[record]
            name = brief(storage.key)
            if known is None:
                what = f"which bytes of storage {name} tensors show was not worked out: there are"
                whole = range(storage.offset, storage.offset + storage.nbytes)
                yield _mishap(container, storage, whole, f"{what} too many pieces")
                continue
            first, total = _missing(storage, known)
            if first:
                every = counted(storage.nbytes, "byte")
                what = f"no tensor shows {total} of the {every} of storage {name}"
                yield _mishap(container, storage, first, what)

    def _parts(self, container: Container, records: Iterable[str]) -> dict[str, list[_Part] | None]:
        """By record, what is shown of it; None where that is in too many pieces."""
        parts: dict[str, list[_Part] | None] = {record: [] for record in records}
        whole = [container.storages[key] for key in self._done if key in container.storages]
        for storage in (*whole, *_by_themselves(container)):
            known = parts.get(storage.record)
            if known is not None:
                known.append(_Part((storage.offset,), storage.nbytes))
        left = _MOST_PIECES
        for record, known in parts.items():
            views = self._views.get(record, [])
            left -= sum(view.pieces for view in views)
            if left < 0 or known is None:
                parts[record] = None
            else:
                known.extend(map(_part_of, views))
        return parts


def _part_of(view: TensorView) -> _Part:
    size = view.dtype.itemsize
    run, outer = view.runs
    starts: tuple[int, ...] = (view.offset,)
    for count, step in outer:
        starts = tuple(start + step * index for index in range(count) for start in starts)
    at = view.storage.offset
    return _Part(tuple(at + start * size for start in starts), run * size)


def _missing(storage: Storage, parts: list[_Part]) -> tuple[range, int]:
    """The first bytes of *storage* that are in none of *parts*, and how many there are in all."""
    pieces = sorted((start, start + part.nbytes) for part in parts for start in part.starts)
    at, stop = storage.offset, storage.offset + storage.nbytes
    first = range(stop, stop)
    total = 0
    for begin, end in (*pieces, (stop, stop)):
        begin_here = min(begin, stop)
        if begin_here > at:
            first = first or range(at, begin_here)
            total += begin_here - at
        at = max(at, end)
    return first, total


def _mishap(container: Container, storage: Storage, where: range, message: str) -> Mishap:
    is_stored = storage.record not in container.inflated
    at = where.start if is_stored else None
    return Mishap("storage-uncovered", message, storage.record, at, len(where))


def _by_themselves(container: Container) -> Iterator[Storage]:
    """The storages, or parts of them, that are values of the object: whoever loads it has them."""
    if container.main is None:
        return
    seen: set[int] = set()
    stack: list[Node] = [container.traces[container.main].root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, PersistentId):
            yield from _named_by(node, container)
        stack += beside_storage(node) if isinstance(node, Call) else held_in(node)


def _named_by(pid: PersistentId, container: Container) -> Iterator[Storage]:
    ref = storage_of(pid)
    # In a tar, the persistent id is the key.
    storage = container.storages.get(ref.key if ref else key_of(pid.pid) or "")
    if storage is None:
        return
    if ref is None:
        yield storage
    else:
        size = storage.dtype.itemsize
        start = storage.offset + ref.view_offset * size
        yield replace(storage, offset=start, nbytes=ref.view_numel * size)
