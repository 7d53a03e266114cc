"""Tensors that are no windows on their storages, and storages that no tensor shows all of.

Knows:      which events make a tensor, and what a view must be.
Is told:    an open container.
Never asks: whether the tensor is part of the state dict, or what it means that it does not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptaudit.containers import Gap, Mishap
from ckptaudit.errors import LimitExceeded, MalformedInput
from ckptaudit.tensors.cover import Cover
from ckptaudit.tensors.rebuild import MOST_WRAPPERS, Tensor, Unreadable, window_of, wraps
from ckptaudit.vm import Build, Call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.containers import Container
    from ckptaudit.vm import Trace

__all__ = ["misfits"]


# What looking at all tensors may cost, in dimensions: enough for 300,000 tensors of 8.  The
# tensor itself costs about as much as five.
_MOST_DIMENSIONS = 4_000_000
_OVERHEAD = 5


def misfits(container: Container) -> Iterator[Mishap | Gap]:
    """Every tensor that torch is asked to make and that does not lie inside its storage.

    Then every storage that has bytes which no tensor shows.  A tensor whose storage is missing
    is left out: the framing has said so.  What is not looked at, because it would cost too
    much, is a gap; then nothing is said of what no tensor shows.
    """
    cover = Cover()
    for key, stored in container.tensors.items():
        window = (stored.storage, stored.dtype, stored.shape, stored.stride, stored.offset)
        yield from _misfit(Tensor(*window), container, cover, (f"tensor {key}", "", None))
    if container.main is not None:
        yield from _in_pickle(container.traces[container.main], container, cover)
    yield from cover.left_over(container)


def _start_of(trace: Trace, container: Container) -> int | None:
    """Where the pickle begins in the file; None where it is compressed or nobody knows."""
    records = [record for record in container.records if record.name == trace.record]
    return records[0].offset if [record.method for record in records] == ["stored"] else None


def _in_pickle(trace: Trace, container: Container, cover: Cover) -> Iterator[Mishap | Gap]:
    start = _start_of(trace, container)
    left = _MOST_DIMENSIONS
    for event in trace.events:
        if not isinstance(event, (Call, Build)):
            continue
        at = None if start is None else start + event.offset
        try:
            tensor = window_of(event)
        except LimitExceeded as err:
            cover.give_up()
            yield Gap(f"a tensor {err.args[0]}", trace.record, at)
            continue
        if tensor is None:
            continue
        left -= _OVERHEAD * (MOST_WRAPPERS if wraps(event) else 1)
        left -= len(tensor.shape) if isinstance(tensor, Tensor) else 0
        if left < 0:
            cover.give_up()
            yield Gap("makes more tensors than the limit allows", trace.record, at)
            return
        yield from _misfit(tensor, container, cover, ("a tensor", trace.record, at))


def _misfit(
    tensor: Tensor | Unreadable,
    container: Container,
    cover: Cover,
    place: tuple[str, str, int | None],
) -> Iterator[Mishap | Gap]:
    """What is wrong with *tensor*; *place* is what to call it, its record and its offset."""
    name, record, at = place
    if not isinstance(tensor, Tensor):
        cover.leave(tensor.storage)
        if tensor.is_broken:
            yield Mishap("tensor-outside", f"{name} cannot be made: {tensor.reason}", record, at)
        return
    if tensor.storage not in container.storages:
        return
    try:
        cover.add(tensor.view("", container))
    except LimitExceeded as err:
        # Nothing is wrong with where it lies; but nobody who converts the file will see it.
        cover.leave(tensor.storage)
        yield Mishap("tensor-expanded", f"{name} {err.args[0]}", record, at)
        yield Gap(f"{name} {err.args[0]}", record, at)
    except MalformedInput as err:
        cover.leave(tensor.storage)
        yield Mishap("tensor-outside", f"{name} cannot be made: {err.args[0]}", record, at)
