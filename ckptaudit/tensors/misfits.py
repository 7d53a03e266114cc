"""Tensors that are no windows on their storages, wherever in a pickle they are made.

Knows:      which calls make a tensor, and what a view must be.
Is told:    an open container.
Never asks: whether the tensor is part of the state dict, or what it means that it does not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptaudit.containers import Gap, Mishap
from ckptaudit.errors import LimitExceeded, MalformedInput
from ckptaudit.tensors.rebuild import Tensor, Unreadable, made_by, rebuild
from ckptaudit.vm import Call

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

    One whose storage is missing is left out: the framing has said so.  What is not looked
    at, because it would cost too much, is a gap.
    """
    yield from _framed(container)
    if container.main is not None:
        yield from _pickled(container, container.traces[container.main])


def _framed(container: Container) -> Iterator[Mishap | Gap]:
    """Those that the framing itself describes."""
    for key, stored in container.tensors.items():
        window = (stored.storage, stored.dtype, stored.shape, stored.stride, stored.offset)
        try:
            fault = _fault(Tensor(*window), container)
        except LimitExceeded as err:
            yield Gap(f"tensor {key} {err.args[0]}", "", None)
            continue
        if fault:
            yield Mishap("tensor-outside", f"tensor {key} cannot be made: {fault}", "", None)


def _pickled(container: Container, trace: Trace) -> Iterator[Mishap | Gap]:
    """Those that a pickle makes."""
    starts = [r.offset for r in container.records if r.name == trace.record]
    stored_at = {r.offset for r in container.records if r.method == "stored"}
    start = starts[0] if len(starts) == 1 and starts[0] in stored_at else None
    left = _MOST_DIMENSIONS
    for event in trace.events:
        if not isinstance(event, Call) or not made_by(event):
            continue
        at = None if start is None else start + event.offset
        left -= _OVERHEAD
        try:
            tensor = rebuild(event, container)
        except LimitExceeded as err:
            yield Gap(f"a tensor {err.args[0]}", trace.record, at)
            continue
        left -= len(tensor.shape) if isinstance(tensor, Tensor) else 0
        if left < 0:
            yield Gap("makes more tensors than the limit allows", trace.record, at)
            return
        try:
            fault = _fault(tensor, container)
        except LimitExceeded as err:
            yield Gap(f"a tensor {err.args[0]}", trace.record, at)
            continue
        if fault:
            yield Mishap("tensor-outside", f"a tensor cannot be made: {fault}", trace.record, at)


def _fault(tensor: Tensor | Unreadable | None, container: Container) -> str:
    if not isinstance(tensor, Tensor):
        return tensor.reason if tensor is not None and tensor.is_broken else ""
    if tensor.storage not in container.storages:
        return ""
    try:
        tensor.view("", container)
    except LimitExceeded:
        # It is large, but it lies inside: nothing is wrong with it, and it is not read.
        raise
    except MalformedInput as err:
        return str(err.args[0])
    return ""
