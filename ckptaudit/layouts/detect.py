"""Which family a state dict is of, what each of its tensors is, and what it lacks.

Detection looks for reasons to say no.  A state dict is of a family when each of the
family's signs is there in its shape, most of the UNet is there, most of what lies
where the family keeps its parts is the family's, and nothing foreign is there.
Anything less is ``unknown``, which costs little: an unknown file is still converted
whole, only without renaming.  What a recognised file lacks is `count`'s to say.

Knows:      which families to try, and what to say where none fits.
Is told:    keys, shapes and dtypes, in any order; the families, in `FAMILIES`.
Never asks: for a tensor's values, or what is to become of a tensor (`plan`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.layouts.adapters import recognise
from ckptaudit.layouts.families import FAMILIES
from ckptaudit.layouts.family import Component
from ckptaudit.layouts.match import ComponentCount, Match, Placement, Spec, signs_met

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptaudit.layouts.family import Family

__all__ = ["UNKNOWN", "Detection", "count", "detect", "place"]

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Detection:
    """What a state dict was taken for.

    Attributes:
        family: A name in `FAMILIES`, the name of a kind of adapter, or ``unknown``.
        variant: Name of the spelling in which some keys stand, or None if all are canonical.
        evidence: Sentences for people, each naming what it rests on: why it is this
            family, or why it is none.
    """

    family: str
    variant: str | None
    evidence: tuple[str, ...]

    @property
    def has_inventory(self) -> bool:
        """Whether it is known which tensors such a file has, and which its loaders demand."""
        return self.family in FAMILIES


def detect(tensors: Mapping[str, Spec], family: str | None = None) -> Detection:
    """Name the family of *tensors*, or say why they are of none.

    Args:
        tensors: The state dict.
        family: Take it for this one, in `FAMILIES`, whatever speaks against it.
    """
    if family is not None:
        return _as_told(FAMILIES[family], tensors)
    met = {each.name: signs_met(each, tensors) for each in FAMILIES.values()}
    for each in FAMILIES.values():
        if met[each.name] == len(each.signs):
            match = Match.between(each, tensors)
            if not any(match.objections()):
                return Detection(each.name, match.variant(), tuple(match.evidence()))
    known = recognise(tensors)
    if known is not None:
        return Detection(known[0], None, (known[1],))
    return Detection(UNKNOWN, None, _objections(met, tensors))


def place(detection: Detection, tensors: Mapping[str, Spec]) -> tuple[Placement, ...]:
    """Say of each tensor what it is: one placement per key, in order; no name twice."""
    family = FAMILIES.get(detection.family)
    if family is None:
        return tuple(Placement(key, Component.OTHER, key) for key in tensors)
    match = Match.between(family, tensors)
    return tuple(match.place(key) for key in tensors)


def count(detection: Detection, tensors: Mapping[str, Spec]) -> tuple[ComponentCount, ...]:
    """Compare *tensors* with what their family demands, component by component.

    The rows come in the order of `Component`.  Components of which nothing is there
    and nothing demanded are left out, such as the EMA copies of a pruned file.  Of
    an unknown family nothing is known to be expected or unexpected.
    """
    family = FAMILIES.get(detection.family)
    if family is None:
        return (ComponentCount(Component.OTHER, len(tensors), 0),) if tensors else ()
    match = Match.between(family, tensors)
    placements = [match.place(key) for key in tensors]
    rows = (match.count(component, placements) for component in Component)
    return tuple(row for row in rows if row.present or row.expected or row.unexpected)


def _as_told(family: Family, tensors: Mapping[str, Spec]) -> Detection:
    match = Match.between(family, tensors)
    against = (f"against it: {objection}" for objection in match.objections())
    told = f"it was to be taken for {family.title}"
    return Detection(family.name, match.variant(), (told, *match.evidence(), *against))


def _objections(met: Mapping[str, int], tensors: Mapping[str, Spec]) -> tuple[str, ...]:
    """Why *tensors* are not of the family that comes nearest, by the signs *met*."""

    def nearness(name: str) -> float:
        # A stranger weighs as much as half of the signs: it may be all that is wrong.
        strangers = tuple(each.prefix for each in FAMILIES[name].foreign)
        strange = any(key.startswith(strangers) for key in tensors)
        return met[name] / len(FAMILIES[name].signs) - strange / 2

    near = [name for name in FAMILIES if met[name]]
    if not near:
        return ("no tensor is there by which a family we know is told",)
    return tuple(Match.between(FAMILIES[max(near, key=nearness)], tensors).objections())
