"""`inspect`: what is in this file?

Knows:      how state dict, layouts and policy meet.
Is told:    a path.
Never asks: for weights, but for the one vector of Stable Diffusion 2 that hints at what the
            model predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ckptaudit.jobs.health import damaged_ids, health_of
from ckptaudit.jobs.opening import File, Folders, notes_on, opened
from ckptaudit.jobs.planning import meaning_of, prediction_of
from ckptaudit.jobs.small import std_of
from ckptaudit.policy import judge
from ckptaudit.tensors import find_state_dict, misfits

if TYPE_CHECKING:
    from os import PathLike

    from ckptaudit.containers import Kind
    from ckptaudit.layouts import Component, ComponentCount
    from ckptaudit.policy import Coverage, Finding, Severity
    from ckptaudit.tensors import Leftover

__all__ = ["InspectedTensor", "Inspection", "inspect"]


@dataclass(frozen=True, slots=True)
class InspectedTensor:
    """One tensor of the state dict.

    Attributes:
        key: Its key, verbatim.
        component: What part of the model it is.
        dtype: torch's name of its element type.
        shape: Elements per dimension.
        nbytes: Bytes of its elements, each counted once per name.
    """

    key: str
    component: Component
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Inspection(File):
    """What is in a file.

    Attributes:
        container: Its framing.
        verdict: What a scan thinks of it.
        coverage: Whether all of it was read.
        state_dict: Where in the pickle the weights were found; "" is the root.
        family: Name of the model family, or ``unknown``.
        variant: Which variant of it, or None.
        evidence: What the family was recognised by.
        prediction: What the denoiser predicts, ``epsilon`` or ``v_prediction``; None where there
            is none.
        components: What is there, missing and unexpected, component by component.
        tensors: In the file's order.
        leftovers: What else the file holds.
        findings: What ails the model, as far as keys, shapes and types show.
        notes: What is worth knowing besides.
    """

    container: Kind
    verdict: Severity
    coverage: Coverage
    state_dict: str
    family: str
    variant: str | None
    evidence: tuple[str, ...]
    prediction: str | None
    components: tuple[ComponentCount, ...]
    tensors: tuple[InspectedTensor, ...]
    leftovers: tuple[Leftover, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def inspect(path: str | PathLike[str], *, with_hash: bool = True) -> Inspection:
    """Say what is in the file; weights are read for its hash, and one vector of them for SD 2.

    Args:
        path: The file, or the folder of a diffusers model.
        with_hash: Read the whole file once for its SHA-256.

    Raises:
        CkptauditError: There is no answer.
    """
    with opened(path, with_hash=with_hash, folders=Folders.MODEL) as file:
        container = file.container
        judgement = judge(container, misfits)
        state_dict = find_state_dict(container)
        meaning = meaning_of(state_dict)
        std = partial(std_of, container)
        prediction, hints = prediction_of(meaning, state_dict, std)
        return Inspection(
            path=container.source.name,
            size=container.source.size,
            sha256=file.finish(),
            container=container.kind,
            verdict=judgement.verdict,
            coverage=judgement.coverage,
            state_dict=state_dict.path,
            family=meaning.detection.family,
            variant=meaning.detection.variant,
            evidence=(*meaning.detection.evidence, *hints),
            prediction=prediction,
            components=meaning.components,
            tensors=tuple(
                InspectedTensor(
                    view.key, placement.component, view.dtype.name, view.shape, view.nbytes
                )
                for view, placement in zip(state_dict.views, meaning.placements, strict=True)
            ),
            leftovers=state_dict.leftovers,
            findings=tuple(health_of(state_dict, meaning, damaged_ids(container, state_dict))),
            notes=notes_on(container),
        )
