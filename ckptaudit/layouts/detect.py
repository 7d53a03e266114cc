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
from ckptaudit.layouts.diffusers import absent_from_folder, folder_files, weights_file
from ckptaudit.layouts.families import FAMILIES
from ckptaudit.layouts.family import Component
from ckptaudit.layouts.folder import FolderMatch, may_be_of
from ckptaudit.layouts.match import ComponentCount, Match, Placement, Spec, has_strangers, signs_met

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ckptaudit.layouts.diffusers import Settings
    from ckptaudit.layouts.family import Family, Undecided

__all__ = ["UNKNOWN", "Detection", "count", "detect", "place"]

UNKNOWN = "unknown"
# What the tensors of a diffusers folder are called, where another layout has its spellings.
IN_FOLDER = "diffusers"
_BARE_ALONE = {Component.VAE, Component.TEXT_ENCODER, Component.TEXT_ENCODER_2}


@dataclass(frozen=True, slots=True)
class Detection:
    """What a state dict was taken for.

    Attributes:
        family: A name in `FAMILIES`, the name of a kind of adapter, or ``unknown``.
        variant: Name of the spelling in which some keys stand, or None if all are canonical.
        evidence: Sentences for people, each naming what it rests on: why it is this
            family, or why it is none.
        prediction: What the model predicts, ``epsilon`` or ``v_prediction``; None where it is
            no denoiser, or where keys do not show it.
    """

    family: str
    variant: str | None
    evidence: tuple[str, ...]
    prediction: str | None = None

    @property
    def has_inventory(self) -> bool:
        """Whether it is known which tensors such a file has, and which its loaders demand."""
        return self.family in FAMILIES

    @property
    def known(self) -> Family | None:
        """The family, if it is one whose inventory is known."""
        return FAMILIES.get(self.family)

    @property
    def has_diffusers_layout(self) -> bool:
        """Whether a folder that diffusers opens can be made of it."""
        return self.has_inventory and FAMILIES[self.family].has_diffusers_layout

    @property
    def undecided(self) -> Undecided | None:
        """The weight that hints at what the model predicts, where keys do not show it."""
        if self.prediction is not None or not self.has_inventory:
            return None
        return FAMILIES[self.family].undecided

    @property
    def guess(self) -> str:
        """What the settings of a folder say though keys do not show it; "" is nothing."""
        return FAMILIES[self.family].guess if self.has_inventory else ""

    @property
    def vae_overflows(self) -> bool:
        """Whether the VAE gives infinities and black images when it runs in fp16."""
        return self.has_inventory and FAMILIES[self.family].vae_overflows

    def name_alone(self, component: Component, name: str) -> str:
        """What loaders call the tensor *name* in a file that has this *component* only.

        Those of autoencoders and text encoders want bare names, those of any other part its
        place before them.
        """
        if component not in _BARE_ALONE or not self.has_inventory:
            return name
        prefixes = [p.prefix for p in FAMILIES[self.family].parts if p.component is component]
        return name.removeprefix(prefixes[0]) if prefixes else name

    def home_of(self, name: str) -> tuple[Component, str] | None:
        """Which component the canonical *name* lies in, and what its architecture calls it.

        That is the name without the component's place in a file, the same in every layout and
        in every family that has the architecture; None where no part of the family lies there.
        """
        parts = FAMILIES[self.family].parts if self.has_inventory else ()
        around = [part for part in parts if name.startswith(part.prefix)]
        if not around:
            return None
        nearest = max(around, key=lambda part: len(part.prefix))
        return nearest.component, name.removeprefix(nearest.prefix)

    def weights_file(self, component: Component) -> str:
        """Where in the folder that diffusers opens the weights of *component* lie."""
        return weights_file(FAMILIES[self.family], component)

    def absent_from_folder(self, weights: Iterable[str]) -> tuple[Component, ...]:
        """What that folder lacks if these are the files of its weights; see `diffusers`."""
        return absent_from_folder(FAMILIES[self.family], weights)

    @property
    def named_in_folder(self) -> tuple[str, ...]:
        """Components that the index of that folder names and of which a checkpoint has nothing."""
        pipeline = FAMILIES[self.family].pipeline
        return () if pipeline is None else tuple(each.name for each in pipeline.named)

    def marks_of_noise(self, keys: Iterable[str]) -> list[str]:
        """Which of *keys* say that the noise is another than that of the folder's scheduler."""
        return sorted(key for key in keys if key.startswith(FAMILIES[self.family].marks_of_noise))

    def folder_files(self, weights: Iterable[str], prediction: str) -> dict[str, Settings]:
        """What stands beside the files of *weights* in that folder; see `diffusers`."""
        return folder_files(FAMILIES[self.family], weights, prediction)


def detect(tensors: Mapping[str, Spec], family: str | None = None) -> Detection:
    """Name the family of *tensors*, or say why they are of none.

    Args:
        tensors: The state dict.
        family: Take it for this one, in `FAMILIES`, whatever speaks against it.
    """
    if family is not None:
        told = FAMILIES[family]
        return _of_folder(tensors, [told]) or _as_told(told, tensors)
    # What has fewer parts comes first: of a part alone, the whole would only lack more.
    in_order = sorted(FAMILIES.values(), key=lambda each: len(each.models))
    detectable = [each for each in in_order if not each.is_named_only]
    # Parts of a pipeline are told by the folders they are in.
    if any("/" in key for key in tensors):
        pipelines = [each for each in detectable if each.pipeline is not None]
        if (found := _of_folder(tensors, pipelines)) is not None:
            return found
    met = {each.name: signs_met(each, tensors) for each in FAMILIES.values()}
    for each in detectable:
        if met[each.name] == len(each.signs) and not has_strangers(each, tensors):
            match = Match.between(each, tensors)
            if not any(match.objections()):
                return _detection(match, tuple(match.evidence()))
    known = recognise(tensors)
    if known is not None:
        return Detection(known[0], None, (known[1],))
    alone = [each for each in detectable if each.pipeline is None]
    return _of_folder(tensors, alone) or Detection(UNKNOWN, None, _objections(met, tensors))


def place(detection: Detection, tensors: Mapping[str, Spec]) -> tuple[Placement, ...]:
    """Say of each tensor what it is: one placement per key, in order; no name twice."""
    family = FAMILIES.get(detection.family)
    if family is None:
        return tuple(Placement(key, Component.OTHER, key) for key in tensors)
    if detection.variant == IN_FOLDER:
        return tuple(FolderMatch.between(family, tensors).placements())
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
    placements = place(detection, tensors)
    match: Match | FolderMatch = (
        FolderMatch.between(family, tensors)
        if detection.variant == IN_FOLDER
        else Match.between(family, tensors)
    )
    rows = (match.count(component, placements) for component in Component)
    return tuple(row for row in rows if row.present or row.expected or row.unexpected)


def _of_folder(tensors: Mapping[str, Spec], families: Iterable[Family]) -> Detection | None:
    """Which of *families* has a diffusers folder that *tensors* are of; None if none has."""
    fitting = [
        match
        for family in families
        if family.has_diffusers_layout and may_be_of(family, tensors)
        for match in (FolderMatch.between(family, tensors),)
        if match.holders and not any(match.objections())
    ]
    if not fitting:
        return None
    best = max(fitting, key=FolderMatch.agreement)
    prediction = None if best.family.undecided is not None else best.family.prediction
    is_denoiser = best.family.core is Component.UNET
    return Detection(
        best.family.name, IN_FOLDER, tuple(best.evidence()), prediction if is_denoiser else None
    )


def _as_told(family: Family, tensors: Mapping[str, Spec]) -> Detection:
    match = Match.between(family, tensors)
    against = (f"against it: {objection}" for objection in match.objections())
    told = f"it was to be taken for {family.title}"
    return _detection(match, (told, *match.evidence(), *against))


def _detection(match: Match, evidence: tuple[str, ...]) -> Detection:
    family = match.family
    marks = [key for key in match.tensors if key.startswith(family.marks_of_v)]
    if family.core is not Component.UNET:
        prediction = None
    elif marks:
        prediction = "v_prediction"
        evidence = (*evidence, f"{min(marks)} is there: a trainer's mark of v-prediction")
    else:
        prediction = None if family.undecided is not None else family.prediction
    return Detection(family.name, match.variant(), evidence, prediction)


def _objections(met: Mapping[str, int], tensors: Mapping[str, Spec]) -> tuple[str, ...]:
    """Why *tensors* are not of the family that comes nearest, by the signs *met*."""

    def nearness(name: str) -> float:
        # A stranger weighs as much as half of the signs: it may be all that is wrong.  A family
        # with fewer signs than that beside a stranger is not near: it has nothing to do with it.
        strange = has_strangers(FAMILIES[name], tensors)
        return met[name] / len(FAMILIES[name].signs) - strange / 2

    near = [name for name in FAMILIES if met[name] and nearness(name) >= 0]
    if not near:
        return ("no tensor is there by which a family we know is told",)
    return tuple(Match.between(FAMILIES[max(near, key=nearness)], tensors).objections())
