"""Tensors that are no windows on their storages, and storages that no tensor shows all of.

Knows:      which events make a tensor, and what a view must be.
Is told:    an open container.
Never asks: whether the tensor is part of the state dict, or what it means that it does not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.containers import Gap, Mishap
from ckptaudit.errors import LimitExceeded, MalformedInput
from ckptaudit.tensors.cover import Cover
from ckptaudit.tensors.rebuild import MOST_WRAPPERS, Tensor, Unreadable, window_of, wraps
from ckptaudit.vm import Build, Call, length_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.containers import Container
    from ckptaudit.vm import Trace

__all__ = ["misfits"]


# What looking at all tensors may cost, in dimensions: enough for 300,000 tensors of 8.  The
# tensor itself costs about as much as five.
_MOST_DIMENSIONS = 4_000_000
_OVERHEAD = 5


class _Spot(NamedTuple):
    """What makes a tensor.

    Attributes:
        what: What to call the tensor.
        trace: The pickle; None if the framing itself describes the tensor.
        event: The instruction of it.
        start: Where the pickle begins in the file; None where it is compressed.
    """

    what: str
    trace: Trace | None = None
    event: Call | Build | None = None
    start: int | None = None

    def mishap(self, code: str, message: str) -> Mishap:
        """What is wrong with the tensor."""
        record, offset, stream_offset, length = self._place()
        return Mishap(code, f"{self.what} {message}", record, offset, length, stream_offset)

    def gap(self, reason: str) -> Gap:
        """Why the tensor, or what comes after it, was not looked at."""
        record, offset, stream_offset, length = self._place()
        return Gap(reason, record, offset, stream_offset, length)

    def _place(self) -> tuple[str, int | None, int | None, int | None]:
        """Record, offset in the file, offset in the pickle, length."""
        if self.trace is None or self.event is None:
            return "", None, None, None
        at = self.event.offset
        offset = None if self.start is None else self.start + at
        return self.trace.record, offset, at, length_of(self.event)


def misfits(container: Container) -> Iterator[Mishap | Gap]:
    """Every tensor that torch is asked to make and that does not lie inside its storage.

    Then every storage that has bytes which no tensor shows.  A tensor whose storage is missing
    is left out: the framing has said so.  What is not looked at, because it would cost too
    much, is a gap; then nothing is said of what no tensor shows.
    """
    cover = Cover()
    for key, stored in container.tensors.items():
        window = (stored.storage, stored.dtype, stored.shape, stored.stride, stored.offset)
        yield from _misfit(Tensor(*window), container, cover, _Spot(f"tensor {key}"))
    if container.main is not None:
        yield from _in_pickle(container.traces[container.main], container, cover)
    yield from cover.left_over(container)


def _in_pickle(trace: Trace, container: Container, cover: Cover) -> Iterator[Mishap | Gap]:
    start = trace.start if trace.source is container.source else None
    left = _MOST_DIMENSIONS
    for event in trace.events:
        if not isinstance(event, (Call, Build)):
            continue
        spot = _Spot("a tensor", trace, event, start)
        try:
            tensor = window_of(event)
        except LimitExceeded as err:
            cover.give_up()
            yield spot.gap(f"a tensor {err.args[0]}")
            continue
        if tensor is None:
            continue
        left -= _OVERHEAD * (MOST_WRAPPERS if wraps(event) else 1)
        left -= len(tensor.shape) if isinstance(tensor, Tensor) else 0
        if left < 0:
            cover.give_up()
            yield spot.gap("makes more tensors than the limit allows")
            return
        yield from _misfit(tensor, container, cover, spot)


def _misfit(
    tensor: Tensor | Unreadable, container: Container, cover: Cover, spot: _Spot
) -> Iterator[Mishap | Gap]:
    """What is wrong with *tensor*, which *spot* makes."""
    if not isinstance(tensor, Tensor):
        cover.leave(tensor.storage)
        if tensor.is_broken:
            yield spot.mishap("tensor-outside", f"cannot be made: {tensor.reason}")
        return
    if tensor.storage not in container.storages:
        return
    try:
        cover.add(tensor.view("", container))
    except LimitExceeded as err:
        # Nothing is wrong with where it lies; but nobody who converts the file will see it.
        cover.leave(tensor.storage)
        yield spot.mishap("tensor-expanded", str(err.args[0]))
        yield spot.gap(f"{spot.what} {err.args[0]}")
    except MalformedInput as err:
        cover.leave(tensor.storage)
        yield spot.mishap("tensor-outside", f"cannot be made: {err.args[0]}")
