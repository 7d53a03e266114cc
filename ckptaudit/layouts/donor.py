"""A file whose autoencoder is to take the place of another's.

Knows:      which autoencoders can stand for each other, and what their tensors are called in a
            model of another family.
Is told:    keys, shapes and dtypes of the file; what the model was taken for.
Never asks: for a tensor's values, or what else becomes of the model (`plan`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptaudit.layouts.detect import Detection, count, detect, place
from ckptaudit.layouts.family import Component
from ckptaudit.layouts.match import ComponentCount, Placement
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ckptaudit.layouts.family import Part
    from ckptaudit.layouts.match import Spec

__all__ = ["Donor", "has_vae", "makes_room"]

# Where the autoencoder lies in a model of a family that we do not know, and how much of that is
# no part of the names that it has alone.  In a file it keeps them: there they are a spelling.
_HOMES = (("first_stage_model.", ""), ("vae/", "vae/"))


def has_vae(detection: Detection) -> bool:
    """Whether models of that family have an autoencoder that we know."""
    return _part(detection) is not None


def makes_room(
    model: Detection, placements: Iterable[Placement], rows: Iterable[ComponentCount]
) -> frozenset[str]:
    """Keys of all that is the autoencoder of *model*, a copy of it, or lies where it does.

    Args:
        model: What a file was taken for.
        placements: What each of its tensors is.
        rows: How complete its components are.
    """
    entries = model.known.inventory() if model.known is not None else ()
    names = {entry.key for entry in entries if entry.component is Component.VAE}
    strays = {key for row in rows if row.component is Component.VAE for key in row.unexpected}
    return frozenset(
        placement.key
        for placement in placements
        if placement.component is Component.VAE or placement.of in names or placement.key in strays
    )


@dataclass(frozen=True, slots=True)
class Donor:
    """What was found in a file of which the autoencoder is wanted.

    Attributes:
        detection: What the file, or what of it is an autoencoder, was taken for.
        placements: What each of its tensors is, one for each, in order.
        row: How complete the autoencoder is; None where there is nothing of one.
    """

    detection: Detection
    placements: tuple[Placement, ...]
    row: ComponentCount | None

    @classmethod
    def among(cls, tensors: Mapping[str, Spec]) -> Donor:
        """Look for an autoencoder among *tensors*: alone, in a model, or in a model's folder."""
        whole = cls._taken_for(detect(tensors), tensors)
        if whole.row is not None:
            return whole
        for home, prefix in _HOMES:
            keys = {key.removeprefix(prefix): key for key in tensors if key.startswith(home)}
            within = {name: tensors[key] for name, key in keys.items()}
            detection = detect(within)
            if has_vae(detection):
                found = cls._taken_for(detection, within)
                there = {keys[p.key]: replace(p, key=keys[p.key]) for p in found.placements}
                strays = {key: Placement(key, Component.OTHER, key) for key in tensors}
                return replace(found, placements=tuple((strays | there).values()))
        return whole

    @classmethod
    def _taken_for(cls, detection: Detection, tensors: Mapping[str, Spec]) -> Donor:
        rows = count(detection, tensors) if has_vae(detection) else ()
        row = next((row for row in rows if row.component is Component.VAE), None)
        return cls(detection, place(detection, tensors), row)

    def objections(self, model: Detection) -> Iterator[str]:
        """Yield each reason why this autoencoder is none for *model*, to follow its file's name.

        Args:
            model: What a file was taken for whose family has an autoencoder.
        """
        here, there = self.detection, model
        if self.row is None or here.known is None or there.known is None:
            evidence = "".join(f": {each}" for each in here.evidence[:1])
            yield f"is of family {here.family} and holds no VAE that we know{evidence}"
            return
        if not self.row.present:
            yield f"is of family {here.family} and holds no VAE"
            return
        own, wanted = here.known, there.known
        if _architecture(here) != _architecture(there):
            yield f"its VAE is that of {own.title}, built otherwise than that of {wanted.title}"
            return
        if missing := self.row.missing:
            of = counted(self.row.expected, "tensor")
            yield f"lacks {len(missing)} of the {of} of its VAE, such as {missing[0]}"
        if wrong := self.row.misshapen:
            what = counted(len(wrong), "tensor")
            yield f"has {what} of its VAE in a wrong shape, such as {wrong[0]}"
        if own.scaling != wanted.scaling and not (own.guess or wanted.guess):
            yield (
                f"its VAE is that of {own.title}, with a scaling factor of {own.scaling}; that of "
                f"{wanted.title} is {wanted.scaling}, and images would come out wrong"
            )

    def doubt(self, model: Detection) -> str:
        """What of the fit is taken on trust, to follow "the VAE"; "" is nothing."""
        own, wanted = self.detection.known, model.known
        if own is None or wanted is None or own == wanted or not own.guess:
            return ""
        return (
            f"is taken for one of {wanted.title}, with a scaling factor of {wanted.scaling}: "
            "alone, that of Stable Diffusion 1 and 2 and that of SDXL have the same keys"
        )

    def placed(self, model: Detection) -> Iterator[Placement | None]:
        """Yield of each tensor what it is in a model such as *model*; None if it has no part in it.

        Averaged copies of the autoencoder have: they may take the place of its weights.
        """
        here, there = _prefix(self.detection), _prefix(model)
        vae = {p.name for p in self.placements if p.component is Component.VAE}

        def moved(name: str) -> str:
            return there + name.removeprefix(here)

        for placement in self.placements:
            if placement.component is Component.VAE:
                yield replace(placement, name=moved(placement.name))
            elif placement.component is Component.EMA and placement.of in vae:
                yield replace(placement, of=moved(placement.of))
            else:
                yield None


def _part(detection: Detection) -> Part | None:
    parts = detection.known.parts if detection.known is not None else ()
    return next((part for part in parts if part.component is Component.VAE), None)


def _architecture(detection: Detection) -> object:
    part = _part(detection)
    return None if part is None else part.architecture


def _prefix(detection: Detection) -> str:
    part = _part(detection)
    return "" if part is None else part.prefix
