"""What keys mean: the families we know, and what a state dict is, has and lacks.

A family is a grammar: a few numbers that generate the inventory of a complete
checkpoint, each tensor with its key, shape, component and place in the diffusers
layout.  Everything else here is a lookup in that inventory.

To add a family, describe its parts in a file of its own as ``sd1.py`` does, and
name it in `FAMILIES` in ``detect.py``.  A part built in a way that `grammar` has no
words for is one more description class there.

Knows:      model families; it is the only room that does.
Is told:    keys, shapes and dtypes.
Never asks: for a tensor's values, a file, or what is to become of a tensor (`plan`).
"""

from __future__ import annotations

from ckptaudit.layouts.detect import (
    FAMILIES,
    UNKNOWN,
    ComponentCount,
    Detection,
    Placement,
    Spec,
    count,
    detect,
    place,
)
from ckptaudit.layouts.family import Component, Destination, Entry, Family
from ckptaudit.layouts.grammar import Op

__all__ = [
    "FAMILIES",
    "UNKNOWN",
    "Component",
    "ComponentCount",
    "Destination",
    "Detection",
    "Entry",
    "Family",
    "Op",
    "Placement",
    "Spec",
    "count",
    "detect",
    "place",
]
