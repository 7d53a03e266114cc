"""Tensors in the order in which they lie in the file, shared out over processes.

Knows:      where in a file a tensor begins, and from how many bytes on a second process pays.
Is told:    an open container, and whatever is to be done, with the tensor that each is about.
Never asks: what is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ckptaudit.containers import Container
    from ckptaudit.tensors import TensorView

__all__ = ["in_order", "shares"]

Work = TypeVar("Work")

# Below this a second process costs more than it saves.
_LEAST_LANE_BYTES = 64 << 20


def in_order(
    container: Container, works: Iterable[Work], view_of: Callable[[Work], TensorView]
) -> list[Work]:
    """*works* by where their tensors begin in the file; those of a compressed record together."""
    homes = {record.name: record.offset for record in container.records}

    def position(work: Work) -> tuple[int, int]:
        view = view_of(work)
        storage, first = view.storage, view.offset * view.dtype.itemsize
        if storage.record in container.inflated:
            return homes[storage.record], storage.offset + first
        return storage.offset + first, 0

    return sorted(works, key=position)


def shares(
    works: Sequence[Work], nbytes_of: Callable[[Work], int], most: int
) -> list[Sequence[Work]]:
    """Cut *works* into at most *most* ranges of about as many bytes each, at least one."""
    total = sum(map(nbytes_of, works))
    count = max(1, min(most, total // _LEAST_LANE_BYTES))
    cut: list[list[Work]] = [[]]
    done = 0
    for work in works:
        if done >= total * len(cut) // count and len(cut) < count:
            cut.append([])
        cut[-1].append(work)
        done += nbytes_of(work)
    return list(cut)
