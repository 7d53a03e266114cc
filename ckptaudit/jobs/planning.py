"""From a state dict to a plan: what its keys mean, and which tensors are equal.

Knows:      how state dict, layouts and plan meet.
Is told:    a state dict, the user's options, and how to hash a tensor.
Never asks: what is done with the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.layouts import ComponentCount, Detection, Placement, Spec, count, detect, place
from ckptaudit.plan import comparable_groups, make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptaudit.plan import ConversionPlan, Options
    from ckptaudit.tensors import StateDict, TensorView

__all__ = ["Meaning", "meaning_of", "planner"]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the keys of a state dict mean.

    Attributes:
        detection: The family.
        placements: One for each view, in the same order.
        components: What is there and what is not.
    """

    detection: Detection
    placements: tuple[Placement, ...]
    components: tuple[ComponentCount, ...]


def meaning_of(state_dict: StateDict) -> Meaning:
    """Ask the layouts what *state_dict* is."""
    specs: Mapping[str, Spec] = {
        view.key: Spec(view.shape, view.dtype.name) for view in state_dict.views
    }
    detection = detect(specs)
    return Meaning(detection, place(detection, specs), count(detection, specs))


def planner(
    state_dict: StateDict,
    meaning: Meaning,
    options: Options,
    digest_of: Callable[[TensorView], bytes],
) -> Callable[[Mapping[tuple[str, str], str]], ConversionPlan]:
    """Everything `make_plan` wants but the tensors that do not fit, which it is given last.

    Args:
        state_dict: The tensors of the file.
        meaning: What its keys mean.
        options: What the user asked for.
        digest_of: Reads a tensor and hashes it; asked here, once for each tensor that may be
            stored once if it is equal to another.
    """
    groups = comparable_groups(state_dict, meaning.detection, meaning.placements, options)
    views = {view.key: view for group in groups for view in group}
    digests = {key: digest_of(view) for key, view in views.items()}

    def plan(unfit: Mapping[tuple[str, str], str]) -> ConversionPlan:
        return make_plan(
            state_dict,
            meaning.detection,
            meaning.placements,
            options,
            unfit=unfit,
            digests=digests,
        )

    return plan
