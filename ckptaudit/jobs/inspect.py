"""`inspect`: what is in this file?

Knows:      how state dict and layouts meet.
Is told:    a path.
Never asks: whether the file can be trusted; it reads nothing but directory and pickles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.jobs.opening import gaps_of, notes_on, opened
from ckptaudit.layouts import ComponentCount, Detection, Placement, Spec, count, detect, place
from ckptaudit.tensors import Leftover, find_state_dict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from ckptaudit.containers import Kind
    from ckptaudit.layouts import Component
    from ckptaudit.tensors import StateDict

__all__ = ["InspectedTensor", "Inspection", "Meaning", "inspect", "meaning_of"]


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
class Inspection:
    """What is in a file.

    Attributes:
        path: The file, as it was named.
        sha256: Of the whole file, in hexadecimal; None if it was not wanted.
        size: Bytes.
        container: Its framing.
        state_dict: Where in the pickle the weights were found; "" is the root.
        family: Name of the model family, or ``unknown``.
        variant: Which variant of it, or None.
        evidence: What the family was recognised by.
        components: What is there, missing and unexpected, component by component.
        tensors: In the file's order.
        leftovers: What else the file holds.
        gaps: What was not read, and why.
        notes: What is worth knowing besides.
    """

    path: str
    sha256: str | None
    size: int
    container: Kind
    state_dict: str
    family: str
    variant: str | None
    evidence: tuple[str, ...]
    components: tuple[ComponentCount, ...]
    tensors: tuple[InspectedTensor, ...]
    leftovers: tuple[Leftover, ...]
    gaps: tuple[str, ...]
    notes: tuple[str, ...]


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


def inspect(path: str | PathLike[str], *, with_hash: bool = True) -> Inspection:
    """Say what is in the file; no weight is read, but for its hash.

    Args:
        path: The file.
        with_hash: Read the whole file once for its SHA-256.

    Raises:
        CkptauditError: There is no answer.
    """
    with opened(path, with_hash=with_hash) as file:
        file.start_hashing()
        container = file.container
        state_dict = find_state_dict(container)
        meaning = meaning_of(state_dict)
        return Inspection(
            path=container.source.name,
            sha256=file.finish(),
            size=container.source.size,
            container=container.kind,
            state_dict=state_dict.path,
            family=meaning.detection.family,
            variant=meaning.detection.variant,
            evidence=meaning.detection.evidence,
            components=meaning.components,
            tensors=tuple(
                InspectedTensor(
                    view.key, placement.component, view.dtype.name, view.shape, view.nbytes
                )
                for view, placement in zip(state_dict.views, meaning.placements, strict=True)
            ),
            leftovers=state_dict.leftovers,
            gaps=gaps_of(container),
            notes=notes_on(container),
        )
