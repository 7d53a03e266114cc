"""What weights a file holds, in a few numbers: for a bill of materials.

Knows:      how tensors of a state dict are counted.
Is told:    an open container.
Never asks: for a weight; nothing is read but what the container has read already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.errors import CkptauditError
from ckptaudit.layouts import Spec, detect, place
from ckptaudit.tensors import find_state_dict

if TYPE_CHECKING:
    from ckptaudit.containers import Container
    from ckptaudit.layouts import Component
    from ckptaudit.tensors import TensorView

__all__ = ["Count", "Weights", "weights_of"]


@dataclass(frozen=True, slots=True)
class Count:
    """Some of the tensors of a file.

    Attributes:
        tensors: Their names.
        parameters: Their elements; those that several names show in the same order once.
    """

    tensors: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a file's state dict.

    Attributes:
        family: Name of the model family, or ``unknown``.
        variant: Which variant of it, or None.
        total: All of them.
        by_dtype: By torch's name of the element type.
        by_component: By the part of the model that they are.
    """

    family: str
    variant: str | None
    total: Count
    by_dtype: dict[str, Count]
    by_component: dict[Component, Count]


def weights_of(container: Container) -> Weights | None:
    """Count the tensors of *container*; None if it has no state dict that can be found."""
    try:
        views = find_state_dict(container).views
    except CkptauditError:
        # A file may be scanned and be no checkpoint, or one whose pickle breaks off.
        return None
    specs = {view.key: Spec(view.shape, view.dtype.name) for view in views}
    detection = detect(specs)
    everything = _Counting()
    dtypes: dict[str, _Counting] = {}
    components: dict[Component, _Counting] = {}
    for view, placement in zip(views, place(detection, specs), strict=True):
        everything.add(view)
        dtypes.setdefault(view.dtype.name, _Counting()).add(view)
        components.setdefault(placement.component, _Counting()).add(view)
    return Weights(
        family=detection.family,
        variant=detection.variant,
        total=everything.count,
        by_dtype={name: dtypes[name].count for name in sorted(dtypes)},
        by_component={
            component: components[component].count
            for component in sorted(components, key=lambda one: one.value)
        },
    )


class _Counting:
    """Tensors being counted."""

    def __init__(self) -> None:
        self._tensors = 0
        # The windows that were counted, each with its elements.
        self._windows: dict[tuple[object, ...], int] = {}

    def add(self, view: TensorView) -> None:
        self._tensors += 1
        window = view.storage.key, view.dtype.name, view.offset, view.shape, view.stride
        self._windows[window] = view.numel

    @property
    def count(self) -> Count:
        return Count(self._tensors, sum(self._windows.values()))
