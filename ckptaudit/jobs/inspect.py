"""`inspect`: what is in this file?

Knows:      how state dict, layouts and policy meet.
Is told:    a path.
Never asks: for a weight; it reads nothing but directory and pickles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.jobs.opening import File, notes_on, opened
from ckptaudit.jobs.planning import meaning_of
from ckptaudit.policy import judge
from ckptaudit.tensors import find_state_dict, misfits

if TYPE_CHECKING:
    from os import PathLike

    from ckptaudit.containers import Kind
    from ckptaudit.layouts import Component, ComponentCount
    from ckptaudit.policy import Coverage, Severity
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
            is none, or where only a weight would tell and none was read.
        components: What is there, missing and unexpected, component by component.
        tensors: In the file's order.
        leftovers: What else the file holds.
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
    notes: tuple[str, ...]


def inspect(path: str | PathLike[str], *, with_hash: bool = True) -> Inspection:
    """Say what is in the file; no weight is read, but for its hash.

    Args:
        path: The file, or the folder of a diffusers model.
        with_hash: Read the whole file once for its SHA-256.

    Raises:
        CkptauditError: There is no answer.
    """
    with opened(path, with_hash=with_hash, takes_folders=True) as file:
        container = file.container
        judgement = judge(container, misfits)
        state_dict = find_state_dict(container)
        meaning = meaning_of(state_dict)
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
            evidence=meaning.detection.evidence,
            prediction=meaning.detection.prediction,
            components=meaning.components,
            tensors=tuple(
                InspectedTensor(
                    view.key, placement.component, view.dtype.name, view.shape, view.nbytes
                )
                for view, placement in zip(state_dict.views, meaning.placements, strict=True)
            ),
            leftovers=state_dict.leftovers,
            notes=notes_on(container),
        )
