"""What weights are, tensor by tensor and part by part, and what casts would make of them.

Knows:      which casts are tried, and how what is known of tensors is joined for their part.
Is told:    the statistics of each tensor, by whoever has read it (`measuring`).
Never asks: for weights, or whether a loss is acceptable (`risks`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.layouts import Component
from ckptaudit.stats import TensorStats, joined

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ckptaudit.layouts import Placement

__all__ = ["Measured", "PartMeasure", "by_part"]


@dataclass(frozen=True, slots=True)
class Measured:
    """What is held, and what it would be in a narrower type.

    Attributes:
        held: The statistics of it as it is.
        float16: Those of a cast to float16; None where it was not tried, or is no float.
        bfloat16: Those of a cast to bfloat16, likewise.
    """

    held: TensorStats
    float16: TensorStats | None = None
    bfloat16: TensorStats | None = None


@dataclass(frozen=True, slots=True)
class PartMeasure:
    """What a component holds: all of its tensors of floating-point numbers as if they were one.

    Attributes:
        component: The component.
        stats: What they hold, and what casts would make of them.
    """

    component: Component
    stats: Measured


def by_part(
    placements: Iterable[Placement], measured: Mapping[str, Measured]
) -> tuple[PartMeasure, ...]:
    """Join what is known of tensors, in the order of the file, for each component."""
    parts: dict[Component, list[Measured]] = defaultdict(list)
    for placement in placements:
        of = measured[placement.key]
        if of.float16 is not None:
            parts[placement.component].append(of)
    return tuple(
        PartMeasure(
            component,
            Measured(
                joined(of.held for of in parts[component]),
                joined(of.float16 for of in parts[component] if of.float16 is not None),
                joined(of.bfloat16 for of in parts[component] if of.bfloat16 is not None),
            ),
        )
        for component in Component
        if component in parts
    )
