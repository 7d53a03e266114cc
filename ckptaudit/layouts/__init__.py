"""What keys mean: the families we know, and what a state dict is, has and lacks.

A family is a grammar: a few numbers that generate the inventory of a complete
checkpoint, each tensor with its key, shape, component and place in the diffusers
layout.  Everything else here is a lookup in that inventory.

To add a family, describe its parts in ``families`` as ``sd1.py`` does, and name it in
`FAMILIES` there.  A part built in a way that no architecture has (`unet`, `autoencoder`,
`clip`, `bert`, `midas`, `xlmr`) is one more description class beside those.

Knows:      model families; it is the only room that does.
Is told:    keys, shapes and dtypes.
Never asks: for a tensor's values, a file, or what is to become of a tensor (`plan`).
"""

from __future__ import annotations

from ckptaudit.layouts.detect import UNKNOWN, Detection, count, detect, place
from ckptaudit.layouts.diffusers import settings_of
from ckptaudit.layouts.donor import Donor, has_vae, makes_room
from ckptaudit.layouts.families import FAMILIES
from ckptaudit.layouts.family import Component, Destination, Entry, Family
from ckptaudit.layouts.grammar import Op
from ckptaudit.layouts.match import ComponentCount, Placement, Spec
from ckptaudit.layouts.modelspec import ModelSpecIds, modelspec_ids

__all__ = [
    "FAMILIES",
    "UNKNOWN",
    "Component",
    "ComponentCount",
    "Destination",
    "Detection",
    "Donor",
    "Entry",
    "Family",
    "ModelSpecIds",
    "Op",
    "Placement",
    "Spec",
    "count",
    "detect",
    "has_vae",
    "makes_room",
    "modelspec_ids",
    "place",
    "settings_of",
]
