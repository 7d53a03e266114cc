"""Which family a state dict is of, what each of its tensors is, and what it lacks.

Detection looks for reasons to say no.  A state dict is of a family when each of the
family's signs is there in its shape, most of the UNet is there, most of what lies
where the family keeps its parts is the family's, and nothing foreign is there.
Anything less is ``unknown``, which costs little: an unknown file is still converted
whole, only without renaming.  What a recognised file lacks is `count`'s to say.

Knows:      how to compare an inventory with a state dict.
Is told:    keys, shapes and dtypes, in any order; the families, in `FAMILIES`.
Never asks: for a tensor's values, or what is to become of a tensor (`plan`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from ckptaudit.layouts.family import EMA_PREFIX, Component, Entry, Family, Variant
from ckptaudit.layouts.sd1 import SD1
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from ckptaudit.layouts.grammar import Op

__all__ = [
    "FAMILIES",
    "UNKNOWN",
    "ComponentCount",
    "Detection",
    "Placement",
    "Spec",
    "count",
    "detect",
    "place",
]

UNKNOWN = "unknown"

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in (SD1,)})

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
class Detection:
    """What a state dict was taken for.

    Attributes:
        family: A name in `FAMILIES`, or ``unknown``.
        variant: Name of the spelling in which some keys stand, or None if all are canonical.
        evidence: Sentences for people, each naming what it rests on: why it is this
            family, or why it is none.
    """

    family: str
    variant: str | None
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """What one tensor is.

    Attributes:
        key: Its key in the source, verbatim.
        component: What part of the model it belongs to.
        name: What loaders of the family look for; the key itself where they look for nothing.
        op: What turns the source tensor into the one called *name*.
        of: The name this tensor may be a second copy of.  For an EMA copy, its
            weight, which need not be there.  For a key that spells a name a second
            time or repeats it inside a nested state dict, that name, if another key
            has taken it.  Whether the contents are equal is for others to find out.
        demanded: Whether loaders stop, or go wrong, without *name*.
    """

    key: str
    component: Component
    name: str
    op: Op = "identity"
    of: str | None = None
    demanded: bool = False


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


def detect(tensors: Mapping[str, Spec]) -> Detection:
    """Name the family of *tensors*, or say why they are of none."""
    objections: list[str] = []
    for family in FAMILIES.values():
        match = _Match.between(family, tensors)
        against = tuple(match.objections())
        if not against:
            return Detection(family.name, match.variant(), tuple(match.evidence()))
        objections += against
    return Detection(UNKNOWN, None, tuple(objections))


def place(detection: Detection, tensors: Mapping[str, Spec]) -> tuple[Placement, ...]:
    """Say of each tensor what it is: one placement per key, in order; no name twice."""
    family = FAMILIES.get(detection.family)
    if family is None:
        return tuple(Placement(key, Component.OTHER, key) for key in tensors)
    match = _Match.between(family, tensors)
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
    match = _Match.between(family, tensors)
    strays = [key for key in tensors if match.place(key).component is Component.OTHER]
    rows = (match.count(component, strays) for component in Component)
    return tuple(row for row in rows if row.present or row.expected or row.unexpected)


@dataclass(frozen=True, slots=True)
class _Inventory:
    """A family's inventory, EMA copies included, made once and looked up by name.

    Attributes:
        entries: Entry of each canonical name.
        names: Canonical name of each spelling, the canonical spellings first.
    """

    entries: Mapping[str, Entry]
    names: Mapping[str, str]


@cache
def _inventory(name: str) -> _Inventory:
    family = FAMILIES[name]
    entries = {entry.key: entry for entry in family.inventory(ema=True)}
    names = {key: key for key in entries}
    for variant in family.variants:
        for key in entries:
            names.setdefault(variant.spell(key), key)
    return _Inventory(entries, names)


@dataclass(frozen=True, slots=True)
class _Match:
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
    def between(cls, family: Family, tensors: Mapping[str, Spec]) -> _Match:
        """Find who holds each name: its canonical spelling before any other."""
        inventory = _inventory(family.name)
        holders: dict[str, str] = {}
        for spelling, name in inventory.names.items():
            if spelling in tensors:
                holders.setdefault(name, spelling)
        return cls(family, tensors, inventory, holders)

    def objections(self) -> Iterator[str]:
        """Yield each reason why the tensors are not the family's."""
        title = self.family.title
        agreed, demanded = self._agreement(Component.UNET)
        if not agreed:
            example = self.family.signs[0].key
            yield f"no UNet tensor of {title} is there, such as {example}"
            return
        if 2 * agreed <= demanded:
            yield f"only {agreed} of the {demanded} UNet tensors of {title} are there"
        for sign in self.family.signs:
            shape, wanted = self._shape(sign.key), self.inventory.entries[sign.key].shape
            if shape is None:
                yield f"{sign.key} is not there, which tells {title} from its relatives"
            elif shape != wanted:
                yield f"{sign.key} is {list(shape)}, in {title} it is {list(wanted)}"
        for home in dict.fromkeys(part.home for part in self.family.parts if part.home):
            lying = [key for key in self.tensors if key.startswith(home)]
            known = sum(self._fits(key) for key in lying)
            if lying and 2 * known <= len(lying):
                yield f"of {counted(len(lying), 'tensor')} under {home} {title} has only {known}"
        for foreign in self.family.foreign:
            if any(key.startswith(foreign.prefix) for key in self.tensors):
                yield f"{foreign.prefix} is there: {foreign.says}"

    def evidence(self) -> Iterator[str]:
        """Yield what shows that the tensors are the family's."""
        for sign in self.family.signs:
            yield f"{sign.key} is {list(self.inventory.entries[sign.key].shape)}: {sign.says}"
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
            return Placement(key, entry.component, name, of=entry.of, demanded=entry.demanded)
        repeated = self.inventory.names.get(key.removeprefix(_NESTED))
        return Placement(
            key, Component.OTHER, key, of=repeated if repeated in self.holders else None
        )

    def count(self, component: Component, strays: Collection[str]) -> ComponentCount:
        """Compare one component with the inventory; *strays* are the keys placed in ``other``."""
        own = tuple(key for key in strays if self._owner(key) is component)
        if component is Component.OTHER:
            return ComponentCount(component, len(strays), 0, unexpected=own)
        entries = [e for e in self.inventory.entries.values() if e.component is component]
        present = [e.key for e in entries if e.key in self.holders]
        missing = [e.key for e in entries if e.key not in self.holders and e.demanded]
        return ComponentCount(
            component,
            present=len(present),
            expected=len(present) + len(missing),
            missing=tuple(missing),
            unexpected=own,
            misshapen=tuple(name for name in present if not self._fits(self.holders[name])),
        )

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of the tensor that has *name*, or None if there is none."""
        key = self.holders.get(name)
        return None if key is None else self.tensors[key].shape

    def _fits(self, key: str) -> bool:
        """Whether *key* is one of the family's, in any spelling, and in its shape."""
        name = self.inventory.names.get(key)
        return name is not None and self.tensors[key].shape == self.inventory.entries[name].shape

    def _agreement(self, component: Component) -> tuple[int, int]:
        """Count the tensors a component demands: those there in their shape, and all."""
        demanded = [
            entry
            for entry in self.inventory.entries.values()
            if entry.component is component and entry.demanded
        ]
        return sum(self._shape(entry.key) == entry.shape for entry in demanded), len(demanded)

    def _spelled(self, variant: Variant) -> list[str]:
        """List the names that stand in the spelling of *variant*, in the inventory's order."""
        holders = self.holders.items()
        return [name for name, key in holders if key != name and key == variant.spell(name)]

    def _owner(self, key: str) -> Component:
        """The component whose prefix *key* has, or ``other``."""
        if key.startswith(EMA_PREFIX):
            return Component.EMA
        for part in self.family.parts:
            if part.prefix and key.startswith(part.prefix):
                return part.component
        return Component.OTHER
