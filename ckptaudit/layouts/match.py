"""A state dict held against a family: what speaks for it and against it, what each key is.

Knows:      how to compare an inventory with a state dict.
Is told:    a family; keys, shapes and dtypes, in any order.
Never asks: which of several families it is (`detect`), for a tensor's values, or what is to
            become of a tensor (`plan`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ckptaudit.layouts.family import EMA_PREFIX, Component, Entry, Family, Variant
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from ckptaudit.layouts.family import Destination
    from ckptaudit.layouts.grammar import Op

__all__ = ["ComponentCount", "Match", "Placement", "Spec", "has_strangers", "signs_met"]

# A whole state dict nested in another under this name, as NovelAI's files have it.
_NESTED = "state_dict."


@dataclass(frozen=True, slots=True)
class Spec:
    """What a layout may look at of a tensor: never its values.

    Attributes:
        shape: Elements per dimension.
        dtype: torch's name, such as ``float16``.
    """

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Placement:
    """What one tensor is.

    Attributes:
        key: Its key in the source, verbatim.
        component: What part of the model it belongs to.
        name: What loaders of the family look for; the key itself where they look for nothing.
        op: What turns the source tensor into the one called *name*, or into rows of it.
        rows: Where *op* is ``join``, the half-open range of rows of *name* that the source tensor
            is, and how many rows *name* has in all; else None.
        of: The name this tensor may be a second copy of.  For an EMA copy, its
            weight, which need not be there.  For a key that spells a name a second
            time or repeats it inside a nested state dict, that name, if another key
            has taken it.  Whether the contents are equal is for others to find out.
        demanded: Whether loaders stop, or go wrong, without *name*.
        diffusers: Where it goes in the diffusers layout; empty if it has no place there.
        has_place: Whether it may stand in a file of the original layout; what a folder has
            besides the model may not.
    """

    key: str
    component: Component
    name: str
    op: Op = "identity"
    rows: tuple[int, int, int] | None = None
    of: str | None = None
    demanded: bool = False
    diffusers: tuple[Destination, ...] = ()
    has_place: bool = True


@dataclass(frozen=True, slots=True)
class ComponentCount:
    """How complete one component is.

    ``present + len(missing) == expected``, except that nothing is expected of ``other``.

    Attributes:
        component: The component.
        present: Tensors that belong to it.
        expected: Tensors it demands, and those it can do without that are there.
        missing: Names it demands that are not there.
        unexpected: Keys placed in ``other``, verbatim: those that have this
            component's prefix, or, for ``other`` itself, no component's.
        misshapen: Names that are there, and counted as present, in a wrong shape.
    """

    component: Component
    present: int
    expected: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    @property
    def is_absent(self) -> bool:
        """Whether nothing of it is there, though the family demands it."""
        return bool(self.missing) and not self.present


def signs_met(family: Family, tensors: Mapping[str, Spec]) -> int:
    """Count the signs of *family* that are there in their shape, in any spelling.

    This needs no inventory, so that a file can be held against many families.
    """
    return sum(_sign_shape(family, sign.key, tensors) == sign.shape for sign in family.signs)


def has_strangers(family: Family, tensors: Collection[str]) -> bool:
    """Whether anything is there that no file of *family* has; it needs no inventory either."""
    prefixes = tuple(prefix for prefix, _ in family.strangers)
    return any(key.startswith(prefixes) for key in tensors)


def _sign_shape(family: Family, name: str, tensors: Mapping[str, Spec]) -> tuple[int, ...] | None:
    for key in (name, *(variant.spell(name) for variant in family.variants)):
        if key in tensors:
            return tensors[key].shape
    return None


@dataclass(frozen=True, slots=True)
class _Inventory:
    """A family's inventory, made once and looked up by name.

    Attributes:
        entries: Entry of each canonical name.
        names: Canonical name of each spelling, the canonical spellings first.
    """

    entries: Mapping[str, Entry]
    names: Mapping[str, str]


@cache
def _inventory(family: Family, *, ema: bool) -> _Inventory:
    entries = {entry.key: entry for entry in family.inventory(ema=ema)}
    names = {key: key for key in entries}
    besides = (*family.rarities(), *(family.further_copies() if ema else ()))
    for entry in besides:
        entries.setdefault(entry.key, entry)
        names.setdefault(entry.key, entry.key)
    for variant in family.variants:
        for key in entries:
            names.setdefault(variant.spell(key), key)
    return _Inventory(entries, names)


@dataclass(frozen=True, slots=True)
class Match:
    """A state dict held against a family.

    Attributes:
        family: The family.
        tensors: The state dict.
        inventory: The family's inventory.
        holders: For each name that is there, the one key that has it.
    """

    family: Family
    tensors: Mapping[str, Spec]
    inventory: _Inventory
    holders: Mapping[str, str]

    @classmethod
    def between(cls, family: Family, tensors: Mapping[str, Spec]) -> Match:
        """Find who holds each name: its canonical spelling before any other."""
        inventory = _inventory(family, ema=any(key.startswith(EMA_PREFIX) for key in tensors))
        holders: dict[str, str] = {}
        for spelling, name in inventory.names.items():
            if spelling in tensors:
                holders.setdefault(name, spelling)
        return cls(family, tensors, inventory, holders)

    def objections(self) -> Iterator[str]:
        """Yield each reason why the tensors are not the family's."""
        title, core = self.family.title, self.family.core.value
        agreed, demanded = self._agreement(self.family.core)
        if not agreed:
            example = self.family.signs[0].key
            yield f"no {core} tensor of {title} is there, such as {example}"
            return
        if 2 * agreed <= demanded:
            yield f"only {agreed} of the {demanded} {core} tensors of {title} are there"
        for sign in self.family.signs:
            shape = _sign_shape(self.family, sign.key, self.tensors)
            if shape is None:
                yield f"{sign.key} is not there, which tells {title} from its relatives"
            elif shape != sign.shape:
                yield f"{sign.key} is {list(shape)}, in {title} it is {list(sign.shape)}"
        for home in dict.fromkeys(part.home for part in self.family.parts if part.home):
            lying = [key for key in self.tensors if key.startswith(home)]
            known = sum(self._fits(key) for key in lying)
            if lying and 2 * known <= len(lying):
                yield f"of {counted(len(lying), 'tensor')} under {home} {title} has only {known}"
        for prefix, foreign in self.family.strangers:
            if any(key.startswith(prefix) for key in self.tensors):
                yield f"{prefix} is there: {foreign.says}"

    def evidence(self) -> Iterator[str]:
        """Yield what shows that the tensors are the family's."""
        for sign in self.family.signs:
            if _sign_shape(self.family, sign.key, self.tensors) == sign.shape:
                yield f"{sign.key} is {list(sign.shape)}: {sign.says}"
        for component in Component:
            agreed, demanded = self._agreement(component)
            if demanded:
                of = f"{demanded} {component.value} tensors of {self.family.title}"
                yield f"{agreed} of the {of} are there in their shape"
        for variant in self.family.variants:
            if names := self._spelled(variant):
                key = self.holders[names[0]]
                keys = counted(len(names), "key")
                yield f"{key} stands for {names[0]}: {keys} in {variant.name} spelling"

    def variant(self) -> str | None:
        """Name the first variant in whose spelling a name stands."""
        return next((v.name for v in self.family.variants if self._spelled(v)), None)

    def place(self, key: str) -> Placement:
        """Say what *key* is."""
        name = self.inventory.names.get(key)
        if name is not None and self.holders[name] == key:
            entry = self.inventory.entries[name]
            return Placement(
                key,
                entry.component,
                name,
                of=entry.of,
                demanded=entry.demanded,
                diffusers=entry.diffusers,
            )
        repeated = self.inventory.names.get(key.removeprefix(_NESTED))
        if repeated in self.holders:
            return Placement(key, Component.OTHER, key, of=repeated)
        return Placement(key, self._region(key) or Component.OTHER, key)

    def count(self, component: Component, placements: Collection[Placement]) -> ComponentCount:
        """Compare one component with the inventory, given where `place` puts each key."""
        strays = [
            placement.key
            for placement in placements
            if placement.component is Component.OTHER and self._region(placement.key) is None
        ]
        own = tuple(key for key in strays if self._owner(key) is component)
        entries = [e for e in self.inventory.entries.values() if e.component is component]
        present = [e.key for e in entries if e.key in self.holders]
        missing = [e.key for e in entries if e.key not in self.holders and e.demanded]
        here = sum(placement.component is component for placement in placements)
        return ComponentCount(
            component,
            present=here,
            expected=0 if component is Component.OTHER else here + len(missing),
            missing=tuple(missing),
            unexpected=own,
            misshapen=tuple(name for name in present if not self._fits(self.holders[name])),
        )

    def _fits(self, key: str) -> bool:
        """Whether *key* is one of the family's, in any spelling, and in its shape."""
        name = self.inventory.names.get(key)
        return name is not None and self.tensors[key].shape == self.inventory.entries[name].shape

    def _agreement(self, component: Component) -> tuple[int, int]:
        """Count the tensors a component demands: those there in their shape, and all."""
        demanded = [
            entry.key
            for entry in self.inventory.entries.values()
            if entry.component is component and entry.demanded
        ]
        there = (self.holders[name] for name in demanded if name in self.holders)
        return sum(self._fits(key) for key in there), len(demanded)

    def _spelled(self, variant: Variant) -> list[str]:
        """List the names that stand in the spelling of *variant*, in the inventory's order."""
        holders = self.holders.items()
        return [name for name, key in holders if key != name and key == variant.spell(name)]

    def _region(self, key: str) -> Component | None:
        """The component of the region that *key* lies in, if it lies in one."""
        for region in self.family.regions:
            if key.startswith(region.prefix):
                return region.component
        return None

    def _owner(self, key: str) -> Component:
        """The component whose prefix *key* has, or ``other``."""
        if key.startswith(EMA_PREFIX):
            return Component.EMA
        for part in self.family.parts:
            if part.prefix and key.startswith(part.prefix):
                return part.component
        return Component.OTHER
