"""What a conversion will write, decided before a byte of weights is read.

Knows:      which tensors are cast, stored once, renamed or left out, and why.
Is told:    a state dict, what its keys mean, and the user's options.
Never asks: for the weights; where a decision needs them (is this copy equal?
            does that tensor overflow?) it is told the answer.

`make_plan` is pure: the same arguments give the same plan, byte for byte.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckptaudit.dtypes import DType, named
from ckptaudit.layouts import Component
from ckptaudit.plan.arranging import arrange, described
from ckptaudit.plan.choosing import CANDIDATES
from ckptaudit.plan.duplicates import Candidate, bytes_of, copies, deduplicate
from ckptaudit.plan.options import Action, Dedupe, Ema, Layout, Options, Precision
from ckptaudit.plan.values import ConversionPlan, Drop

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from ckptaudit.layouts import Detection, Placement
    from ckptaudit.plan.choosing import Choice
    from ckptaudit.tensors import StateDict, TensorView

__all__ = ["comparable_groups", "make_plan"]

_TARGETS = {
    # The first that may be chosen, unless another is.
    Precision.AUTO: CANDIDATES[0],
    Precision.FP16: named("float16"),
    Precision.BF16: named("bfloat16"),
    Precision.FP32: named("float32"),
    Precision.FP8_E4M3FN: named("float8_e4m3fn"),
    Precision.FP8_E5M2: named("float8_e5m2"),
}
_RESERVED_NAME = "__metadata__"
# Types we can cast from; float8 weights stay as they are.
_CASTABLE = {"float64", "float32", "float16", "bfloat16"}
_HALVES = {"float16", "bfloat16"}


@dataclass(slots=True)
class _Draft:
    candidates: list[Candidate] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)


def make_plan(
    state_dict: StateDict,
    detection: Detection,
    placements: Iterable[Placement],
    options: Options,
    *,
    unfit: Mapping[tuple[str, str], str] | None = None,
    chosen: Mapping[tuple[str, str], Choice] | None = None,
    digests: Mapping[str, bytes] | None = None,
    damage: Mapping[str, str] | None = None,
    barred: Mapping[str, str] | None = None,
) -> ConversionPlan:
    """Decide what becomes of each tensor.

    Args:
        state_dict: The tensors of the file.
        detection: The family they belong to.
        placements: What each key means; one for each view, in the same order.
        options: What the user asked for.
        unfit: By file and name of the output, why a tensor stays in its own dtype (it would
            overflow).
        chosen: By file and name of the output, the type of a tensor that is left open by
            ``Precision.AUTO``; see `undecided`.
        digests: By source key, a hash of the tensor's elements, for keys that
            `comparable_groups` named.  Tensors of one hash, dtype and shape are equal.
        damage: By source key, what is wrong with tensors that loaders make better themselves.
        barred: By source key, why a tensor is not written, whatever it is.
    """
    draft = _sort_out(state_dict, detection, list(placements), options, barred or {})
    views = {view.key: view for view in state_dict.views}
    for candidate in draft.candidates:
        candidate.harm = _harm(candidate, detection, options, damage or {})
    aliases = deduplicate(draft.candidates, detection, options, digests or {})
    left_out = {alias.source for alias in aliases}
    written = []
    for candidate in draft.candidates:
        if candidate.view.key in left_out:
            continue
        if candidate.harm is None:
            written.append(candidate)
        else:
            what = described(candidate.view)
            draft.drops.append(Drop(candidate.view.key, what, candidate.harm))
    # Only now: the aliases of a tensor that does not fit are its equals and do not fit either; and
    # what is chosen for one would be chosen for the other.
    types = {output: choice.dtype for output, choice in (chosen or {}).items()}
    arranged = arrange(written, detection, options, unfit or {}, types)
    names = {(job.file, job.name) for job in arranged.jobs}
    kept = []
    for alias in sorted(aliases, key=lambda alias: (alias.name, alias.file)):
        if (alias.file, alias.of) in names:
            kept.append(alias)
            continue
        reason = f"is equal to {alias.of}, which is left out"
        draft.drops.append(Drop(alias.source, described(views[alias.source]), reason))
    outside = [
        Drop(leftover.path, leftover.what, leftover.reason)
        for leftover in state_dict.leftovers
        if leftover.is_tensor
    ]
    order = {view.key: number for number, view in enumerate(state_dict.views)}
    drops = sorted((*draft.drops, *arranged.drops), key=lambda drop: order[drop.source])
    return ConversionPlan(
        outputs=arranged.outputs,
        jobs=arranged.jobs,
        aliases=tuple(kept),
        drops=(*drops, *outside),
        leftovers=tuple(left for left in state_dict.leftovers if not left.is_tensor),
    )


def comparable_groups(
    state_dict: StateDict,
    detection: Detection,
    placements: Iterable[Placement],
    options: Options,
    barred: Mapping[str, str] | None = None,
) -> tuple[tuple[TensorView, ...], ...]:
    """Groups of tensors that could be stored once if their elements are equal.

    Only tensors of one dtype and shape that do not share their bytes already are worth
    comparing; `make_plan` wants to know the hash of each.
    """
    if options.layout is Layout.DIFFUSERS:
        return ()
    draft = _sort_out(state_dict, detection, list(placements), options, barred or {})
    groups: dict[tuple[object, ...], list[Candidate]] = defaultdict(list)
    if options.dedupe is Dedupe.ALL:
        for candidate in draft.candidates:
            view = candidate.view
            if view.numel:
                groups[view.dtype, view.shape, candidate.target].append(candidate)
    elif options.dedupe is Dedupe.SAFE and detection.has_inventory:
        for candidate, kept in copies(draft.candidates):
            group = groups[kept.name,]
            group.append(candidate)
            if kept not in group:
                group.append(kept)
    return tuple(
        tuple(candidate.view for candidate in group)
        for group in groups.values()
        if len({bytes_of(candidate.view) for candidate in group}) > 1
    )


def _sort_out(
    state_dict: StateDict,
    detection: Detection,
    placements: list[Placement],
    options: Options,
    barred: Mapping[str, str],
) -> _Draft:
    """Which tensors may be written, under which name and in which type."""
    draft = _Draft()
    pairs = list(zip(state_dict.views, placements, strict=True))
    components = {placement.name: placement.component for placement in placements}
    parts = {placement.key: _part(placement, components) for placement in placements}
    bars = {
        view.key: barred.get(view.key) or _bar(view, placement, parts[view.key], options)
        for view, placement in pairs
    }
    writable = [(view, placement) for view, placement in pairs if bars[view.key] is None]
    replaced = _replaced_by_ema(writable) if options.ema is Ema.USE else {}
    replaces = {copy: weight for weight, copy in replaced.items()}
    meant = {placement.key: placement for placement in placements}
    for view, placement in pairs:
        reason = bars[view.key] or _left_for_ema(
            view, placement, options, replaced=replaced, replaces=replaces
        )
        if reason is not None:
            draft.drops.append(Drop(view.key, described(view), reason))
            continue
        # An averaged copy that takes a weight's place takes its name as well.
        stands_for = meant[replaces.get(view.key, view.key)]
        draft.candidates.append(
            Candidate(
                view,
                placement,
                stands_for.name,
                _name(stands_for, detection, options),
                "identity" if options.keep_names else placement.op,
                _home(stands_for.component, options),
                _target(view, placement, parts[view.key], detection, options),
                demanded=stands_for.demanded,
                diffusers=stands_for.diffusers,
            )
        )
    return draft


def _part(placement: Placement, components: Mapping[str, Component]) -> Component:
    """What part of the model *placement* belongs to; a copy, to that of its weight."""
    if placement.component is not Component.EMA:
        return placement.component
    return components.get(placement.of or "", Component.EMA)


def _home(component: Component, options: Options) -> str:
    """Which of several files of the original layout *component* goes to; "" if there is one."""
    if not options.split:
        return ""
    # What the denoiser is scheduled by goes with it.
    home: str = (Component.UNET if component is Component.SCHEDULE else component).value
    return home


def _name(placement: Placement, detection: Detection, options: Options) -> str:
    if options.keep_names:
        return placement.key
    if options.split:
        return detection.name_alone(placement.component, placement.name)
    return placement.name


def _bar(view: TensorView, placement: Placement, part: Component, options: Options) -> str | None:
    """Why *view* cannot be written, or is not wanted, whatever else is in the file."""
    if view.dtype.safetensors is None:
        return f"safetensors has no type for {view.dtype.name}"
    if not placement.has_place and options.layout is Layout.ORIGINAL and not options.keep_names:
        return "is no part of the model, so it has no place in the original layout"
    if placement.name == _RESERVED_NAME:
        return "safetensors reserves this name for its metadata"
    if _action(part, options) is Action.DROP:
        return f"component {part.value} is dropped on request"
    if placement.component is Component.SCHEDULE and options.unet is Action.DROP:
        return "schedules the unet, which is dropped on request"
    return None


def _harm(
    candidate: Candidate, detection: Detection, options: Options, damage: Mapping[str, str]
) -> str | None:
    """Why loaders of a known family do better without a tensor, which they do not need."""
    view, placement = candidate.view, candidate.placement
    writes_all = options.precision is Precision.KEEP or options.dedupe is Dedupe.NONE
    is_verbatim = writes_all or options.keep_names
    if is_verbatim or not detection.has_inventory or candidate.demanded:
        return None
    if view.key in damage:
        return f"{damage[view.key]}; loaders make a better one themselves"
    if placement.component is Component.SCHEDULE and view.dtype.name in _HALVES:
        return f"is a schedule in {view.dtype.name}; loaders make a better one themselves"
    is_extra = placement.component is Component.OTHER and options.other is not Action.COPY
    if is_extra and view.dtype.name == "int64":
        # stable-diffusion.cpp, convert: any int64 tensor but position_ids.
        return "is an int64 tensor that no loader asks for, and one of them stops at it"
    return None


def _replaced_by_ema(writable: list[tuple[TensorView, Placement]]) -> dict[str, str]:
    """By the key of a weight, the key of the averaged copy that takes its place."""
    weights = {
        placement.name: view
        for view, placement in writable
        if placement.component not in (Component.EMA, Component.OTHER)
    }
    replaced: dict[str, str] = {}
    # Of two copies of one weight the same one is taken whatever their order.
    for view, placement in sorted(writable, key=lambda pair: pair[0].key):
        weight = weights.get(placement.of or "") if placement.component is Component.EMA else None
        if weight is not None and weight.shape == view.shape:
            replaced.setdefault(weight.key, view.key)
    return replaced


def _left_for_ema(
    view: TensorView,
    placement: Placement,
    options: Options,
    *,
    replaced: Container[str],
    replaces: Container[str],
) -> str | None:
    """Why *view* makes room for an averaged copy, or is one that is not wanted."""
    if view.key in replaced:
        return "is replaced by its averaged copy"
    if placement.component is Component.EMA and view.key not in replaces:
        if options.ema is Ema.DROP:
            return "is an averaged (EMA) copy, which is not wanted"
        if options.ema is Ema.USE:
            return "is EMA bookkeeping, or an averaged copy for which no weight makes room"
    return None


def _action(component: Component, options: Options) -> Action:
    match component:
        case Component.UNET:
            return options.unet
        case Component.VAE:
            return options.vae
        case Component.TEXT_ENCODER | Component.TEXT_ENCODER_2:
            return options.text_encoder
        case Component.OTHER | Component.IMAGE_ENCODER | Component.DEPTH_ESTIMATOR:
            return options.other
        case Component.IMAGE_NORMALIZER:
            return Action.COPY
        case Component.EMA | Component.CONTROLNET:
            return options.unet
        case Component.SCHEDULE:
            return Action.COPY


def _target(
    view: TensorView,
    placement: Placement,
    part: Component,
    detection: Detection,
    options: Options,
) -> DType:
    """The type *view* is written in: only weights are cast, and only where asked."""
    action = _action(part, options)
    if action is Action.AUTO:
        is_spared = detection.vae_overflows and options.spares_fragile_vae
        action = Action.COPY if is_spared else Action.CONVERT
    is_bookkeeping = placement.component is Component.EMA and placement.of is None
    is_weight = placement.component is not Component.SCHEDULE and not is_bookkeeping
    if (
        not is_weight
        or options.precision is Precision.KEEP
        or action is Action.COPY
        or view.dtype.name not in _CASTABLE
    ):
        return view.dtype
    return _TARGETS[options.precision]
