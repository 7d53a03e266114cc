"""A diffusers folder held against a family: which tensor of the original layout each one is.

Knows:      how to go back from the diffusers layout.
Is told:    a family; the tensors of a folder, by component and name: ``unet/conv_in.weight``.
Never asks: which of several families it is (`detect`), or for a tensor's values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

from ckptaudit.layouts.family import Component
from ckptaudit.layouts.match import ComponentCount, Placement, Spec
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from ckptaudit.layouts.family import Destination, Entry, Family
    from ckptaudit.layouts.grammar import Op

__all__ = ["FolderMatch", "folder_key", "may_be_of"]

_BACK: Mapping[str, Op] = {
    "identity": "identity",
    "squeeze": "unsqueeze",
    "transpose": "transpose",
    "rows": "join",
}
# As many tensors as a file may lack some of, and few enough to be named at once.
_FIRST = 8
# How diffusers called the layers of an autoencoder's attention before 0.17.
_OF_OLD = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)


def folder_key(family: Family, there: Destination) -> str:
    """What a tensor is called in the folder of *family*: its place and its name."""
    return family.home(there.component) + there.key


def may_be_of(family: Family, tensors: Mapping[str, Spec]) -> bool:
    """Whether any of the first tensors of *family*'s core is among *tensors*.

    This makes no inventory, so that a file can be held against many families.
    """
    core = next(part for part in family.parts if part.component is family.core)
    places = (folder_key(family, to) for entry in core.entries() for to in entry.diffusers)
    first = tuple(islice(places, _FIRST))
    bare = (key.replace("text_model.", "") for key in first)
    return any(key in tensors for key in (*first, *bare))


@cache
def _places(family: Family) -> Mapping[str, tuple[Entry, Destination]]:
    """By key in the folder, which tensor of the original layout lies there."""
    return {
        folder_key(family, there): (entry, there)
        for entry in (*family.inventory(), *family.rarities())
        for there in entry.diffusers
    }


@dataclass(frozen=True, slots=True)
class FolderMatch:
    """The tensors of a folder held against a family.

    Attributes:
        family: The family; one that has a diffusers layout.
        tensors: The tensors.
        holders: For each key of the family's folder that is there, the key in this one.
    """

    family: Family
    tensors: Mapping[str, Spec]
    holders: Mapping[str, str]

    @classmethod
    def between(cls, family: Family, tensors: Mapping[str, Spec]) -> FolderMatch:
        """Find who holds each place: today's name before any other."""
        places = _places(family)
        holders = {key: key for key in tensors if key in places}
        for key in tensors:
            for spelling in _spellings(key):
                if spelling in places:
                    holders.setdefault(spelling, key)
        return cls(family, tensors, holders)

    def objections(self) -> Iterator[str]:
        """Yield each reason why the tensors are not the family's."""
        title, core = self.family.title, self.family.core
        agreed, demanded = self._agreement(core)
        if 2 * agreed <= demanded:
            yield f"only {agreed} of the {demanded} {core.value} tensors of {title} are there"
        signs = {sign.key: sign for sign in self.family.signs}
        for place, (entry, there) in _places(self.family).items():
            if entry.key in signs and not self._fits(place):
                shape = list(_shape(entry, there))
                yield f"{place} is not there in the shape {shape}, as in {title}"
        homes = {self.family.home(part.component) for part in self.family.models}
        taken = set(self.holders.values())
        for home in sorted(homes - {""}):
            lying = [key for key in self.tensors if key.startswith(home)]
            known = sum(key in taken for key in lying)
            if lying and 2 * known <= len(lying):
                yield f"of {counted(len(lying), 'tensor')} in {home} {title} has only {known}"

    def agreement(self) -> int:
        """Count the tensors that are there in their shape."""
        return sum(map(self._fits, self.holders))

    def evidence(self) -> Iterator[str]:
        """Yield what shows that the tensors are the family's."""
        for component in Component:
            agreed, demanded = self._agreement(component)
            if demanded:
                of = f"{demanded} {component.value} tensors of {self.family.title} in diffusers"
                yield f"{agreed} of the {of} are there in their shape"

    def placements(self) -> Iterator[Placement]:
        """Say what each tensor is, in order."""
        places = {key: _places(self.family)[place] for place, key in self.holders.items()}
        for key in self.tensors:
            if key not in places:
                yield Placement(key, Component.OTHER, key, has_place=False)
                continue
            entry, there = places[key]
            rows = None if there.rows is None else (*there.rows, entry.shape[0])
            here = replace(there, op="identity", rows=None)
            yield Placement(
                key,
                entry.component,
                entry.key,
                op=_BACK[there.op],
                rows=rows,
                demanded=entry.demanded,
                diffusers=(here,),
            )

    def count(self, component: Component, placements: Collection[Placement]) -> ComponentCount:
        """Compare one component with the family's folder, given what `placements` says."""
        here = sum(placement.component is component for placement in placements)
        if component is Component.OTHER:
            strays = tuple(p.key for p in placements if p.component is component)
            return ComponentCount(component, here, 0, unexpected=strays)
        places = _places(self.family).items()
        own = {key: entry for key, (entry, _) in places if entry.component is component}
        missing = tuple(k for k in own if k not in self.holders and own[k].demanded)
        return ComponentCount(
            component,
            present=here,
            expected=here + len(missing),
            missing=missing,
            misshapen=tuple(k for k in own if k in self.holders and not self._fits(k)),
        )

    def _agreement(self, component: Component) -> tuple[int, int]:
        places = _places(self.family).items()
        demanded = [k for k, (e, _) in places if e.component is component and e.demanded]
        return sum(k in self.holders and self._fits(k) for k in demanded), len(demanded)

    def _fits(self, place: str) -> bool:
        if place not in self.holders:
            return False
        return self.tensors[self.holders[place]].shape == _shape(*_places(self.family)[place])


def _shape(entry: Entry, there: Destination) -> tuple[int, ...]:
    """The shape that *entry*'s tensor has *there*."""
    match there.op:
        case "squeeze":
            return entry.shape[:2]
        case "transpose":
            return entry.shape[::-1]
        case "rows":
            start, stop = there.rows or (0, 0)
            return (stop - start, *entry.shape[1:])
        case _:
            return entry.shape


def _spellings(key: str) -> Iterator[str]:
    """What today's name of *key* may be, where it is an old one or one of transformers 5.6."""
    for old, new in _OF_OLD:
        if old in key:
            yield key.replace(old, new)
    home, slash, name = key.rpartition("/")
    if home.startswith("text_encoder") or not slash:
        yield f"{home}{slash}text_model.{name}"
    elif home == "image_encoder":
        yield f"{home}{slash}vision_model.{name}"
