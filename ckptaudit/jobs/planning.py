"""From a state dict to a plan: what its keys mean, and which tensors are equal.

Knows:      how state dict, layouts and plan meet.
Is told:    a state dict, the user's options, and how to hash a tensor.
Never asks: what is done with the plan.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ckptaudit.errors import Unsupported
from ckptaudit.layouts import (
    FAMILIES,
    ComponentCount,
    Detection,
    Placement,
    Spec,
    count,
    detect,
    place,
)
from ckptaudit.plan import Layout, comparable_groups, make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptaudit.jobs.basis import Basis
    from ckptaudit.plan import Choice, ConversionPlan, Options
    from ckptaudit.tensors import StateDict, TensorView

__all__ = [
    "Meaning",
    "Planner",
    "check_layout",
    "meaning_of",
    "planner",
    "prediction_of",
    "texts_of",
]


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


class Planner(Protocol):
    """Makes the plan, told what only the weights tell."""

    def __call__(
        self,
        unfit: Mapping[tuple[str, str], str],
        chosen: Mapping[tuple[str, str], Choice] | None = None,
    ) -> ConversionPlan:
        """See `make_plan` for both."""


def meaning_of(state_dict: StateDict, family: str = "") -> Meaning:
    """Ask the layouts what *state_dict* is.

    Args:
        state_dict: The tensors of the file.
        family: What it is to be taken for; "" is whatever it is found to be.

    Raises:
        Unsupported: There is no such family.
    """
    if family and family not in FAMILIES:
        raise Unsupported(f"{family!a}: no such family; known are {', '.join(FAMILIES)}")
    specs: Mapping[str, Spec] = {
        view.key: Spec(view.shape, view.dtype.name) for view in state_dict.views
    }
    detection = detect(specs, family or None)
    return Meaning(detection, place(detection, specs), count(detection, specs))


def check_layout(found: Detection, options: Options, name: str) -> None:
    """Refuse what a family must be known for, where it is not.

    Raises:
        Unsupported: The file called *name* cannot be split, or no folder for diffusers is made
            of it, and *options* ask for that.
    """
    if options.split and not found.has_inventory:
        raise Unsupported(
            f"{name}: is of family {found.family}, whose parts are not known, so it cannot be "
            "split; --family names another"
        )
    if options.layout is Layout.DIFFUSERS and not found.has_diffusers_layout:
        raise Unsupported(
            f"{name}: is of family {found.family}, of which no diffusers folder is made; "
            "--family names another"
        )


def texts_of(
    found: Detection, prediction: str | None, plan: ConversionPlan, options: Options
) -> dict[str, bytes]:
    """The JSON files of the folder that *plan* makes, by path in it."""
    if options.layout is not Layout.DIFFUSERS:
        return {}
    weights = [output.file for output in plan.outputs]
    return {
        file: json.dumps(settings, indent=2).encode() + b"\n"
        for file, settings in found.folder_files(weights, prediction or "epsilon").items()
    }


def prediction_of(
    meaning: Meaning, state_dict: StateDict, std_of: Callable[[TensorView], float | None]
) -> tuple[str | None, tuple[str, ...]]:
    """What the denoiser predicts, and what that rests on where it is a guess.

    Args:
        meaning: What the keys of the file mean.
        state_dict: The tensors of the file.
        std_of: Reads a tensor and gives the standard deviation of its elements.

    Returns:
        ``epsilon``, ``v_prediction``, or None where there is no denoiser.
    """
    hint = meaning.detection.undecided
    if hint is None:
        return meaning.detection.prediction, ()
    pairs = zip(state_dict.views, meaning.placements, strict=True)
    view = next((view for view, placement in pairs if placement.name == hint.key), None)
    std = None if view is None else std_of(view)
    if std is None:
        told = f"{hint.key} is not there, which would hint at what the model predicts"
        return "epsilon", (f"{told}: epsilon is a guess",)
    prediction = "v_prediction" if std > hint.threshold else "epsilon"
    side = "above" if std > hint.threshold else "not above"
    measured = f"the standard deviation of {hint.key} is {std:.3g}, {side} {hint.threshold:g}"
    return prediction, (f"{prediction} is a guess: {measured} ({hint.says})",)


def planner(basis: Basis, options: Options, digest_of: Callable[[TensorView], bytes]) -> Planner:
    """Everything `make_plan` wants but what only the weights tell, which it is given last.

    Args:
        basis: The tensors, and what they are.
        options: What the user asked for.
        digest_of: Reads a tensor and hashes it; asked here, once for each tensor that may be
            stored once if it is equal to another.
    """
    state_dict, meaning, barred = basis.state_dict, basis.meaning, basis.barred
    groups = comparable_groups(state_dict, meaning.detection, meaning.placements, options, barred)
    views = {view.key: view for group in groups for view in group}
    digests = {key: digest_of(view) for key, view in views.items()}

    def plan(
        unfit: Mapping[tuple[str, str], str],
        chosen: Mapping[tuple[str, str], Choice] | None = None,
    ) -> ConversionPlan:
        return make_plan(
            state_dict,
            meaning.detection,
            meaning.placements,
            options,
            unfit=unfit,
            chosen=chosen,
            digests=digests,
            damage=basis.damage,
            barred=barred,
        )

    return plan
