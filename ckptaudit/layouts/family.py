"""A model family: which architectures a checkpoint of it holds, and under which names.

Knows:      how the parts of a checkpoint are named and what each part is for.
Is told:    a family's parts as data, by one file per kind of model (`families`).
Never asks: what a given file holds (`detect`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.layouts.grammar import Architecture, Op

__all__ = [
    "EMA_PREFIX",
    "TOKENIZER",
    "Component",
    "Destination",
    "Entry",
    "Family",
    "Foreign",
    "Named",
    "Part",
    "Pipeline",
    "Region",
    "Scheduler",
    "Sign",
    "Undecided",
    "Variant",
]

EMA_PREFIX = "model_ema."


class Component(str, Enum):
    """What part of a model a tensor belongs to.

    The value of a component that diffusers has too is the name of its folder in most pipelines.
    """

    UNET = "unet"
    VAE = "vae"
    TEXT_ENCODER = "text_encoder"
    TEXT_ENCODER_2 = "text_encoder_2"
    IMAGE_ENCODER = "image_encoder"
    IMAGE_NORMALIZER = "image_normalizer"
    DEPTH_ESTIMATOR = "depth_estimator"
    CONTROLNET = "controlnet"
    EMA = "ema"
    SCHEDULE = "schedule"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a tensor goes in the diffusers layout.

    Attributes:
        component: Whose folder it goes to.
        key: Its name in that folder's file.
        op: What is done to it on the way.
        rows: Half-open range of rows taken when *op* is ``rows``, else None.
    """

    component: Component
    key: str
    op: Op = "identity"
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a family's inventory.

    Attributes:
        key: Name in the original layout, as files of the family spell it.
        shape: Elements per dimension.
        dtype: torch's name; the architecture's default, files may hold another.
        component: What part of the model it belongs to.
        diffusers: Where it goes in the diffusers layout; empty if it has no place there.
        demanded: Whether loaders stop, or go wrong, without it.
        of: For an EMA copy, the key of the weight it is a copy of.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    component: Component
    diffusers: tuple[Destination, ...] = ()
    demanded: bool = True
    of: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One architecture at its place in a checkpoint.

    Attributes:
        component: What part of the model it is.
        prefix: What stands before the architecture's own names; may be empty.
        architecture: What lies there.
    """

    component: Component
    prefix: str
    architecture: Architecture

    @property
    def home(self) -> str:
        """The first name of the prefix, under which nothing but this part should lie."""
        return self.prefix[: self.prefix.find(".") + 1]

    def entries(self) -> Iterator[Entry]:
        """Yield the part's tensors in the original implementation's order."""
        for tensor in self.architecture.tensors():
            there = (Destination(self.component, to.key, to.op, to.rows) for to in tensor.there)
            yield Entry(
                self.prefix + tensor.key,
                tensor.shape,
                tensor.dtype,
                self.component,
                tuple(there),
                tensor.demanded,
            )


@dataclass(frozen=True, slots=True)
class Region:
    """A prefix under which tensors lie whose names and shapes we do not know one by one.

    Attributes:
        prefix: The prefix.
        component: What part of the model they are.
    """

    prefix: str
    component: Component


@dataclass(frozen=True, slots=True)
class Variant:
    """Another spelling of some of a family's keys.

    Attributes:
        name: What the spelling is called.
        canonical: Prefix of the keys concerned, as the family's loaders look for it; may be
            empty, which concerns all.
        spelled: What the variant has in its place.
    """

    name: str
    canonical: str
    spelled: str

    def spell(self, key: str) -> str:
        """*key* as this variant spells it."""
        if not key.startswith(self.canonical):
            return key
        return self.spelled + key[len(self.canonical) :]


@dataclass(frozen=True, slots=True)
class Sign:
    """A tensor that tells the family from its relatives by its shape.

    Attributes:
        key: The tensor, by its canonical name.
        shape: Elements per dimension, as in the inventory; it stands here as well so that a
            file can be held against the signs of all families before any inventory is made.
        says: What that shape says, to follow "key is shape: ".
    """

    key: str
    shape: tuple[int, ...]
    says: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """A prefix that no file of the family has.

    Attributes:
        prefix: The prefix.
        says: What a file that has it is, to follow "prefix is there: ".
    """

    prefix: str
    says: str


@dataclass(frozen=True, slots=True)
class Named:
    """A component that a pipeline needs and of which a checkpoint has nothing.

    Attributes:
        name: Its folder.
        library: Where diffusers looks for its class.
        kind: Its class.
    """

    name: str
    library: str
    kind: str


TOKENIZER = Named("tokenizer", "transformers", "CLIPTokenizer")


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A schedule of noise that is not the denoiser's.

    Attributes:
        name: Its folder.
        betas: First and last of the noise that a step adds.
        curve: How the noise goes from the one to the other.
        clips: Whether samples are kept between -1 and 1.
    """

    name: str
    betas: tuple[float, float]
    curve: str
    clips: bool


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What diffusers makes of a family's components.

    Attributes:
        name: Class of the pipeline.
        scheduler: Class of the scheduler.
        named: What it needs besides, of which a checkpoint has nothing.
        left_out: Components that it can do without, which a checkpoint does not have or which
            are not converted.
        betas: First and last of the noise that a step adds.
        further: Schedules of noise besides the denoiser's.
        folders: Components that have another folder than most pipelines give them.
        flags: Further settings, by name.
    """

    name: str
    scheduler: str = "DDIMScheduler"
    named: tuple[Named, ...] = (TOKENIZER,)
    left_out: tuple[str, ...] = ("safety_checker", "feature_extractor")
    betas: tuple[float, float] = (0.00085, 0.012)
    further: tuple[Scheduler, ...] = ()
    folders: tuple[tuple[Component, str], ...] = ()
    flags: tuple[tuple[str, bool | int], ...] = (("requires_safety_checker", False),)

    def folder(self, component: Component) -> str:
        """The folder that *component* has."""
        return dict(self.folders).get(component, component.value)


@dataclass(frozen=True, slots=True)
class Undecided:
    """A property that keys do not show, and the weight that hints at it.

    Attributes:
        key: A vector of weights.
        threshold: If their standard deviation is above it, the model predicts v.
        says: Who found that.
    """

    key: str
    threshold: float
    says: str


@dataclass(frozen=True, slots=True)
class Family:
    """All that is known of one model family.

    Attributes:
        name: Short name, such as ``sd1``.
        title: Name for people, such as "Stable Diffusion 1.x".
        parts: What a checkpoint consists of, in the order of the original files.
        signs: What tells it from its relatives.
        core: The component without most of which a file is not of the family.
        foreign: What it never has.
        variants: Other spellings in use, the likeliest first.
        regions: What it may have besides, under a prefix each.
        rare: Parts that some trainers write and others do not; no complete file needs them.
        pipeline: What diffusers makes of it; None where it has no folder of several components.
        prediction: What the denoiser predicts, ``epsilon`` or ``v_prediction``.
        undecided: How to guess what it predicts where files of the family differ.
        marks_of_v: Prefixes of what trainers leave in files that predict v, whatever *prediction*.
        marks_of_noise: Prefixes of what trainers leave in files whose noise is another than that of
            the scheduler in a folder.
        guess: What a folder's settings say though keys do not show it, in a sentence for people; ""
            where they say no such thing, or `undecided` tells.
        size: Side of the images it was trained on, in pixels; where it predicts v, of a family
            whose files differ, it is half as large again.
        shrinks: That side, in units of the latent's.
        scaling: What latents are multiplied with.
        vae_overflows: Whether the VAE gives infinities and black images when it runs in fp16.
        is_named_only: Whether a file is taken for it only where the user says so: its keys are
            those of another family.
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    signs: tuple[Sign, ...]
    core: Component = Component.UNET
    foreign: tuple[Foreign, ...] = ()
    variants: tuple[Variant, ...] = ()
    regions: tuple[Region, ...] = ()
    rare: tuple[Part, ...] = ()
    pipeline: Pipeline | None = None
    prediction: str = "epsilon"
    undecided: Undecided | None = None
    marks_of_v: tuple[str, ...] = ()
    marks_of_noise: tuple[str, ...] = ()
    guess: str = ""
    size: int = 512
    shrinks: int = 8
    scaling: float = 0.18215
    vae_overflows: bool = False
    is_named_only: bool = False

    @property
    def has_diffusers_layout(self) -> bool:
        """Whether a folder that diffusers opens can be made of it."""
        return self.pipeline is not None or len(self.models) == 1

    @property
    def models(self) -> tuple[Part, ...]:
        """Its parts but the schedules, which no component of diffusers holds."""
        return tuple(part for part in self.parts if part.component is not Component.SCHEDULE)

    @property
    def strangers(self) -> tuple[tuple[str, Foreign], ...]:
        """Every spelling of a prefix that no file of the family has, with what it says."""
        spell = [variant.spell for variant in self.variants]
        return tuple(
            (prefix, foreign)
            for foreign in self.foreign
            for prefix in dict.fromkeys(
                (foreign.prefix, *(spelled(foreign.prefix) for spelled in spell))
            )
        )

    def home(self, component: Component) -> str:
        """The folder of *component* in that of the whole, with a slash; "" if it has that."""
        return "" if self.pipeline is None else f"{self.pipeline.folder(component)}/"

    def image_size(self, prediction: str) -> int:
        """Side of the images that a model which predicts so was trained on, in pixels."""
        larger = self.undecided is not None and prediction == "v_prediction"
        return self.size * 3 // 2 if larger else self.size

    def inventory(self, *, ema: bool = False, variant: str | None = None) -> tuple[Entry, ...]:
        """Every tensor of a complete checkpoint, in the order of the original files.

        Args:
            ema: Whether to include the moving averages that training keeps of the core.
            variant: Name of the spelling to use, or None for the canonical one.

        Raises:
            ValueError: The family has no such variant.
        """
        entries: list[Entry] = []
        for part in self.parts:
            own = tuple(part.entries())
            entries += own
            if ema and part.component is self.core:
                entries += _ema(own)
        if variant is None:
            return tuple(entries)
        spell = self._variant(variant).spell
        return tuple(replace(entry, key=spell(entry.key)) for entry in entries)

    def rarities(self) -> Iterator[Entry]:
        """Yield what only some trainers write."""
        for part in self.rare:
            yield from part.entries()

    def further_copies(self) -> Iterator[Entry]:
        """Yield moving averages that only some trainers keep: those of the text encoders.

        Some average the encoder by itself, others with its place in the model before each name.
        """
        for part in self.parts:
            if part.component in (Component.TEXT_ENCODER, Component.TEXT_ENCODER_2):
                for entry in part.entries():
                    yield _copy(entry, entry.key)
                    yield _copy(entry, entry.key.removeprefix(part.prefix))

    def _variant(self, name: str) -> Variant:
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise ValueError(f"{self.title} has no variant {name!r}")


def _ema(weights: tuple[Entry, ...]) -> Iterator[Entry]:
    """Yield the moving averages of *weights* as LDM names them: ``ldm/modules/ema.py``.

    The name of a copy is the weight's without its leading ``model.`` and without
    any dot.  That loses where the dots were, so it is only ever read by looking it
    up among names made here.
    """
    yield Entry(f"{EMA_PREFIX}decay", (), "float32", Component.EMA, demanded=False)
    yield Entry(f"{EMA_PREFIX}num_updates", (), "int32", Component.EMA, demanded=False)
    for weight in weights:
        yield _copy(weight, weight.key.removeprefix("model."))


def _copy(weight: Entry, name: str) -> Entry:
    return replace(
        weight,
        key=EMA_PREFIX + name.replace(".", ""),
        component=Component.EMA,
        diffusers=(),
        demanded=False,
        of=weight.key,
    )
