"""What the parts of a model take: in the file, in what it becomes, and on a card.

Knows:      which parts are loaded to make an image, and how large cards are.
Is told:    tensors and what they are, and the plan of a conversion if there is one.
Never asks: for weights, or what else runs on the card.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.dtypes import named
from ckptaudit.layouts import Component

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from ckptaudit.jobs.basis import Basis
    from ckptaudit.jobs.planning import Meaning
    from ckptaudit.layouts import Placement
    from ckptaudit.plan import ConversionPlan
    from ckptaudit.tensors import StateDict, TensorView

    _Pair: TypeAlias = tuple[TensorView, Placement]

__all__ = ["CardUse", "PartSize", "Saved", "Sizes", "WeightMemory", "sizes_by", "sizes_of"]

_PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# What a card is sold as having, of 2**30 bytes each.
_CARDS = (4, 6, 8, 12)
_GIGABYTE = 1 << 30
# Averages are for training, loaders compute schedules, and nobody asks for what is `other`.
_NOT_LOADED = (Component.EMA, Component.SCHEDULE, Component.OTHER)


@dataclass(frozen=True, slots=True)
class PartSize:
    """What a component takes.

    Attributes:
        component: The component.
        tensors: Its tensors in the source.
        parameters: Their elements, each counted once per name.
        nbytes: Their bytes in the source, likewise.
        written: Bytes that are written of it; None where nothing is to be written.
    """

    component: Component
    tensors: int
    parameters: int
    nbytes: int
    written: int | None


@dataclass(frozen=True, slots=True)
class CardUse:
    """How much of a card weights take.

    Attributes:
        gigabytes: What the card is sold as having, of 2**30 bytes each.
        share: Weights by memory; above 1 they do not fit, and somewhat below nothing else does.
    """

    gigabytes: int
    share: float


@dataclass(frozen=True, slots=True)
class WeightMemory:
    """What the weights of a model take where it runs, and nothing else.

    Attributes:
        precision: What floating-point weights are loaded as: ``fp32``, ``fp16`` or ``bf16``.
        nbytes: Bytes of the weights; of a known family those of the parts that make an image,
            without averages, schedules and what is no part of the model.
        cards: How much of a card that is, by the size of the card.
    """

    precision: str
    nbytes: int
    cards: tuple[CardUse, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """Why fewer bytes of tensors are written than the source has.

    The difference is the sum of all, less *added*.

    Attributes:
        ema: Averaged copies that are left out, in bytes of the source.
        dedupe: Names that are stored under another, likewise.
        others: Tensors of the state dict that are left out for other reasons, likewise.
        cast: What is written takes so much less than where it is from; negative if it takes more.
        added: What is written of another file, in bytes of that.
    """

    ema: int
    dedupe: int
    others: int
    cast: int
    added: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the parts of a model take.

    Attributes:
        parts: In the order of `Component`.
        memory: The weights where the model runs.  Not counted: activations, which grow with the
            image; the context of the driver and its libraries; what else is on the card.
        saved: Where the bytes go that are not written; None where nothing is to be written.
    """

    parts: tuple[PartSize, ...]
    memory: tuple[WeightMemory, ...]
    saved: Saved | None


def sizes_of(state_dict: StateDict, meaning: Meaning) -> Sizes:
    """What the tensors of a file take."""
    own = list(zip(state_dict.views, meaning.placements, strict=True))
    return Sizes(_parts(own, None), _memories(own, meaning), None)


def sizes_by(plan: ConversionPlan, basis: Basis) -> Sizes:
    """What the tensors that *plan* was made of take, and what becomes of them."""
    pairs = list(zip(basis.state_dict.views, basis.meaning.placements, strict=True))
    own = [pair for pair in pairs if basis.whence(pair[0].key)[0] is None]
    taking_part = [pair for pair in pairs if pair[0].key not in basis.barred]
    memory = _memories(taking_part, basis.meaning)
    return Sizes(_parts(own, plan), memory, _saved(own, plan))


def _parts(own: Sequence[_Pair], plan: ConversionPlan | None) -> tuple[PartSize, ...]:
    written: dict[Component, int] = defaultdict(int)
    for job in plan.jobs if plan is not None else ():
        written[job.component] += job.nbytes
    parts = []
    for component in Component:
        views = [view for view, placement in own if placement.component is component]
        if views or component in written:
            after = written[component] if plan is not None else None
            parameters = sum(view.numel for view in views)
            nbytes = sum(view.nbytes for view in views)
            parts.append(PartSize(component, len(views), parameters, nbytes, after))
    return tuple(parts)


def _memories(pairs: Iterable[_Pair], meaning: Meaning) -> tuple[WeightMemory, ...]:
    is_known = meaning.detection.has_inventory
    loaded = [
        view for view, placement in pairs if not is_known or placement.component not in _NOT_LOADED
    ]
    return tuple(_memory(precision, loaded) for precision in _PRECISIONS)


def _memory(precision: str, loaded: Iterable[TensorView]) -> WeightMemory:
    width = named(_PRECISIONS[precision]).itemsize
    nbytes = sum(view.numel * width if view.dtype.is_float else view.nbytes for view in loaded)
    cards = tuple(CardUse(card, round(nbytes / (card * _GIGABYTE), 3)) for card in _CARDS)
    return WeightMemory(precision, nbytes, cards)


def _saved(own: Iterable[_Pair], plan: ConversionPlan) -> Saved:
    aliased = {alias.source for alias in plan.aliases}
    taken = {job.source: 0 for job in plan.jobs}
    for job in plan.jobs:
        taken[job.source] += job.view.nbytes
    ema = dedupe = others = kept = 0
    for view, placement in own:
        if view.key in taken:
            kept += view.nbytes
        elif view.key in aliased:
            dedupe += view.nbytes
        elif placement.component is Component.EMA:
            ema += view.nbytes
        else:
            others += view.nbytes
    added = sum(taken.values()) - kept
    return Saved(ema, dedupe, others, kept + added - sum(job.nbytes for job in plan.jobs), added)
