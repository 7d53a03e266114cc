"""What a component holds, whatever file it is in: the tensors that its content hash covers.

A content hash is of a component's tensors under the names that its architecture gives them, in
the shape and row-major order of the original layout, and of nothing else: not of the container,
the order of keys, the place of the component in a file, or another spelling of its keys.  So the
autoencoder of a checkpoint, the same alone in a file, and the same in a diffusers folder have
one hash.  docs/layouts.md says what it covers, and how to compute it without us.

Knows:      which of a file's tensors make up one of a component, and how hashes are put together.
Is told:    a state dict, what its keys mean, and the hash of each tensor's elements.
Never asks: for the elements (`measuring`), or whose content is the same (`identity`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from ckptaudit.layouts import Component

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ckptaudit.jobs.planning import Meaning
    from ckptaudit.layouts import Placement
    from ckptaudit.tensors import StateDict, TensorView

__all__ = ["Content", "Unit", "averages_alike", "contents_of", "units_of"]

# The first line of what is hashed, so that another way to do it gives another hash.
_HEAD = b"ckptaudit content 1\n"
_MATRIX = 2


@dataclass(frozen=True, slots=True)
class Content:
    """What a component holds.

    Attributes:
        component: The component.
        of: For averaged copies, the component that they are copies of; else None.
        tensors: How many tensors the hash covers.
        sha256: Hash of their names, types, shapes and elements, in hexadecimal.
    """

    component: Component
    of: Component | None
    tensors: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Unit:
    """One tensor of a component, which a file may have in several.

    Attributes:
        name: What its architecture calls it; of an averaged copy, the weight.
        canonical: What loaders of the family call it.
        component: What part of the model it is.
        of: For an averaged copy, the component and the canonical name of its weight; else None.
        counts: Whether the content hash of *component* covers it.
        views: Its elements, one after the other, in the order of the original layout.
    """

    name: str
    canonical: str
    component: Component
    of: tuple[Component, str] | None
    counts: bool
    views: tuple[TensorView, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per dimension, sizes of 1 at the end left out.

        An attention of an autoencoder is a convolution of one pixel in one layout and a matrix
        in the other, of the same elements.
        """
        shape = list(self.views[0].shape)
        if len(self.views) > 1:
            shape[0] = sum(view.shape[0] for view in self.views)
        while shape and shape[-1] == 1:
            shape.pop()
        return tuple(shape)

    def line(self, digest: bytes) -> bytes:
        """What stands for it in the hash of its component."""
        fields = [self.name, self.views[0].dtype.name, list(self.shape), digest.hex()]
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def units_of(state_dict: StateDict, meaning: Meaning) -> tuple[Unit, ...]:
    """The tensors of *state_dict* as the original layout has them; each view is in one of them."""
    covered = _covered(meaning.placements)
    parts: dict[str, list[tuple[Placement, TensorView]]] = defaultdict(list)
    units = []
    for view, placement in zip(state_dict.views, meaning.placements, strict=True):
        if placement.op == "join":
            parts[placement.name].append((placement, view))
        else:
            turned = placement.op == "transpose" and len(view.shape) == _MATRIX
            shown = view.transposed() if turned else view
            units.append(_unit(placement, meaning, (shown,), counts=placement.key in covered))
    for pieces in parts.values():
        pieces.sort(key=lambda piece: piece[0].rows or (0, 0, 0))
        counts = pieces[0][0].key in covered
        if _fit_together(pieces):
            views = tuple(view for _, view in pieces)
            units.append(_unit(pieces[0][0], meaning, views, counts=counts))
            continue
        for placement, view in pieces:
            start, stop, _ = placement.rows or (0, 0, 0)
            rows = f"[{start}:{stop}]"
            units.append(_unit(placement, meaning, (view,), counts=counts, rows=rows))
    return tuple(units)


def contents_of(units: Sequence[Unit], digests: Sequence[bytes]) -> tuple[Content, ...]:
    """The content of each component, in the order of `Component`.

    Args:
        units: The tensors.
        digests: SHA-256 of the elements of each, row by row, little-endian.
    """
    lines: dict[tuple[Component, Component | None], list[tuple[str, bytes]]] = defaultdict(list)
    for unit, digest in zip(units, digests, strict=True):
        if unit.counts:
            of = unit.of[0] if unit.of is not None else None
            lines[unit.component, of].append((unit.name, unit.line(digest)))
    order = list(Component)
    return tuple(
        Content(component, of, len(own), _hash(own))
        for (component, of), own in sorted(
            lines.items(),
            key=lambda item: (order.index(item[0][0]), order.index(item[0][1] or item[0][0])),
        )
    )


def averages_alike(units: Sequence[Unit], digests: Sequence[bytes]) -> tuple[list[str], int]:
    """Which averaged copies are equal to their weights.

    Returns:
        Their keys, biases left out, and how many there are that have a weight.
    """
    weights = {
        unit.canonical: (unit.views[0].dtype, unit.shape, digest)
        for unit, digest in zip(units, digests, strict=True)
        if unit.of is None
    }
    equal, compared = [], 0
    for unit, digest in zip(units, digests, strict=True):
        if unit.of is None or unit.of[1] not in weights or unit.of[1].endswith("bias"):
            continue
        compared += 1
        if weights[unit.of[1]] == (unit.views[0].dtype, unit.shape, digest):
            equal.append(unit.views[0].key)
    return equal, compared


def _hash(lines: Iterable[tuple[str, bytes]]) -> str:
    hasher = sha256(_HEAD)
    for _, line in sorted(lines):
        hasher.update(line)
    return hasher.hexdigest()


def _covered(placements: Iterable[Placement]) -> set[str]:
    """Keys of the tensors that content hashes cover: no more than either layout has.

    Of a component that no folder of diffusers has, all that loaders demand; of one of which it
    is not known what they demand, all.  Schedules are in none: loaders compute them.
    """
    by_component: dict[Component, list[Placement]] = defaultdict(list)
    for placement in placements:
        by_component[placement.component].append(placement)
    covered: set[str] = set()
    for component, own in by_component.items():
        if component is Component.SCHEDULE:
            continue
        if component is Component.EMA:
            covered |= {placement.key for placement in own if placement.of is not None}
            continue
        demanded = [placement for placement in own if placement.demanded]
        placed = [placement for placement in demanded if placement.diffusers]
        covered |= {placement.key for placement in placed or demanded or own}
    return covered


def _unit(
    placement: Placement,
    meaning: Meaning,
    views: tuple[TensorView, ...],
    *,
    counts: bool,
    rows: str = "",
) -> Unit:
    is_copy = placement.component is Component.EMA and placement.of is not None
    home = meaning.detection.home_of(placement.of or "" if is_copy else placement.name)
    of = None
    name = placement.name
    if home is not None and is_copy:
        of = home[0], placement.of or ""
        name = home[1]
    elif home is not None and home[0] is placement.component:
        name = home[1]
    return Unit(name + rows, placement.name, placement.component, of, counts, views)


def _fit_together(pieces: list[tuple[Placement, TensorView]]) -> bool:
    """Whether *pieces*, by their rows, are one tensor from its first row on."""
    row = 0
    for placement, view in pieces:
        start, stop, _ = placement.rows or (0, 0, 0)
        if start != row or not view.shape or view.shape[0] != stop - start:
            return False
        row = stop
    return len({(view.shape[1:], view.dtype) for _, view in pieces}) == 1
