"""What fp16 would do to a model, read from its statistics.

The limits are those by which ``--precision auto`` chooses (`plan`), so that a risk told here is
what a conversion would act on there; docs/numbers.md has the table and says why.

Knows:      which tensors a conversion casts, and when bfloat16 keeps more of one than float16.
Is told:    statistics of each tensor, and what it is.
Never asks: for weights, or for limits of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.dtypes import named
from ckptaudit.layouts import Component
from ckptaudit.plan import CANDIDATES, FALLBACK, objection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ckptaudit.jobs.measures import Measured
    from ckptaudit.layouts import Placement
    from ckptaudit.stats import TensorStats

__all__ = ["Risk", "risks_of"]

_HALF, _BRAIN = named("float16"), named("bfloat16")


@dataclass(frozen=True, slots=True)
class Risk:
    """A tensor that fp16 does harm to, or bf16 does better.

    Attributes:
        key: Its key, verbatim.
        component: What part of the model it is.
        against_float16: What speaks against float16; None if it is only that bfloat16 is better.
        against_bfloat16: What speaks against bfloat16, likewise.
        better_in_bfloat16: Whether less is lost in bfloat16: nothing overflows there, or its
            signal stands higher above its noise.
        chosen: The type that ``--precision auto`` gives it, taken by itself.
    """

    key: str
    component: Component
    against_float16: str | None
    against_bfloat16: str | None
    better_in_bfloat16: bool
    chosen: str


def risks_of(placements: Iterable[Placement], measured: Mapping[str, Measured]) -> Iterator[Risk]:
    """Every tensor at risk, in the order of the file; schedules and counters are never cast."""
    for placement in placements:
        is_counter = placement.component is Component.EMA and placement.of is None
        stats = measured[placement.key]
        half, brain = stats.float16, stats.bfloat16
        if placement.component is Component.SCHEDULE or is_counter or half is None or brain is None:
            continue
        against_half, against_brain = objection(half, _HALF), objection(brain, _BRAIN)
        better = _is_better(brain, half)
        if against_half is None and not better:
            continue
        against = {_HALF: against_half, _BRAIN: against_brain}
        chosen = next((each for each in CANDIDATES if against[each] is None), FALLBACK)
        yield Risk(
            placement.key, placement.component, against_half, against_brain, better, chosen.name
        )


def _is_better(brain: TensorStats, half: TensorStats) -> bool:
    """Whether bfloat16 keeps more of a tensor than float16 does.

    Where nothing overflows in either, a cast without noise is better than any with.
    """
    if brain.overflowed != half.overflowed:
        return brain.overflowed < half.overflowed
    if brain.noise is None or half.noise is None:
        return False
    return brain.noise < half.noise
