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
from enum import Enum
from typing import TYPE_CHECKING

from ckptaudit.dtypes import DType, named
from ckptaudit.layouts import UNKNOWN, Component

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ckptaudit.layouts import Detection, Placement
    from ckptaudit.tensors import Leftover, StateDict, TensorView

__all__ = [
    "METADATA_PREFIX",
    "Action",
    "Alias",
    "ConversionPlan",
    "Dedupe",
    "Drop",
    "Ema",
    "OnOverflow",
    "Options",
    "Precision",
    "TensorJob",
    "comparable_groups",
    "make_plan",
]


class Precision(str, Enum):
    """What floating-point weights become."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"
    KEEP = "keep"


class OnOverflow(str, Enum):
    """What to do with a tensor that has finite weights the target cannot hold."""

    KEEP = "keep"
    ERROR = "error"
    CLAMP = "clamp"


class Ema(str, Enum):
    """What to do with the averaged copies of the weights."""

    DROP = "drop"
    USE = "use"
    KEEP = "keep"


class Dedupe(str, Enum):
    """Which tensors are stored once under one of several names."""

    SAFE = "safe"
    ALL = "all"
    NONE = "none"


class Action(str, Enum):
    """What to do with a component."""

    CONVERT = "convert"
    COPY = "copy"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for.

    Attributes:
        precision: What floating-point weights become.
        on_overflow: What happens where they do not fit.
        ema: What happens to averaged copies.
        dedupe: What is stored once.
        keep_names: Write source keys verbatim instead of canonical names.
        unet: What happens to the UNet.
        vae: What happens to the VAE.
        text_encoder: What happens to the text encoders.
        other: What happens to everything whose part in the model is not known.
    """

    precision: Precision = Precision.FP16
    on_overflow: OnOverflow = OnOverflow.KEEP
    ema: Ema = Ema.DROP
    dedupe: Dedupe = Dedupe.SAFE
    keep_names: bool = False
    unet: Action = Action.CONVERT
    vae: Action = Action.CONVERT
    text_encoder: Action = Action.CONVERT
    other: Action = Action.CONVERT


@dataclass(frozen=True, slots=True)
class TensorJob:
    """One tensor to be written.

    Attributes:
        name: What it is called in the output.
        source: Its key in the state dict.
        view: Where its elements are.
        component: What part of the model it is.
        target: Type it is written in.
        offset: First byte in the data section of the output.
    """

    name: str
    source: str
    view: TensorView
    component: Component
    target: DType
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the output."""
        return self.view.numel * self.target.itemsize


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that is not written because *of* has the same bytes.

    Attributes:
        name: The name left out.
        of: The name under which the bytes are written.
        source: The key left out.
    """

    name: str
    of: str
    source: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A tensor of the file that is not written.

    Attributes:
        source: Its key, or its path in the pickle where it is outside the state dict.
        what: Its type and shape.
        reason: Why it is left out.
    """

    source: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What will be written, and what will not.

    Attributes:
        jobs: In the order of the data in the output.
        aliases: Names stored under another, sorted.
        drops: Tensors left out: those of the state dict in its order, then the others.
        leftovers: Values of the file that are no tensors.
        nbytes: Bytes of the data section.
    """

    jobs: tuple[TensorJob, ...]
    aliases: tuple[Alias, ...]
    drops: tuple[Drop, ...]
    leftovers: tuple[Leftover, ...]
    nbytes: int


# safetensors/src/tensor.rs sorts by dtype, the widest first, then by name: this is its order.
# sd-scripts finds its blocks by the order of the data and fails on any other.
_ORDER = (
    "U64 I64 F64 C64 F32 U32 I32 BF16 F16 U16 I16 "
    "F8_E5M2FNUZ F8_E4M3FNUZ F8_E8M0 F8_E4M3 F8_E5M2 I8 U8 BOOL"
).split()
_RANK = {code: rank for rank, code in enumerate(_ORDER)}
_TARGETS = {
    Precision.FP16: named("float16"),
    Precision.BF16: named("bfloat16"),
    Precision.FP32: named("float32"),
}
_RESERVED_NAME = "__metadata__"
# Our own keys in ``__metadata__``; every other but "format" is an alias.
METADATA_PREFIX = "ckptaudit."
_FORMAT = "format"
# Types we can cast from; float8 weights stay as they are.
_CASTABLE = {"float64", "float32", "float16", "bfloat16"}


@dataclass(slots=True)
class _Candidate:
    """A tensor that may be written, with what its key means.

    Attributes:
        view: Where its elements are.
        placement: What it is.
        canonical: The name it would have if names were canonical.
        name: The name it has in the output.
        target: The type it has there, if all of it fits.
    """

    view: TensorView
    placement: Placement
    canonical: str
    name: str
    target: DType


@dataclass(slots=True)
class _Draft:
    candidates: list[_Candidate] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)


def make_plan(
    state_dict: StateDict,
    detection: Detection,
    placements: Iterable[Placement],
    options: Options,
    *,
    unfit: Mapping[str, str] | None = None,
    digests: Mapping[str, bytes] | None = None,
) -> ConversionPlan:
    """Decide what becomes of each tensor.

    Args:
        state_dict: The tensors of the file.
        detection: The family they belong to.
        placements: What each key means; one for each view, in the same order.
        options: What the user asked for.
        unfit: By source key, why a tensor stays in its own dtype (it would overflow).
        digests: By source key, a hash of the tensor's elements, for keys that
            `comparable_groups` named.  Tensors of one hash, dtype and shape are equal.
    """
    draft = _sort_out(state_dict, list(placements), options)
    aliases = _deduplicate(draft.candidates, detection, options, digests or {})
    left_out = {alias.source for alias in aliases}
    written = [candidate for candidate in draft.candidates if candidate.view.key not in left_out]
    # Only now: the aliases of a tensor that does not fit are its equals and do not fit either.
    for candidate in written:
        if candidate.view.key in (unfit or ()):
            candidate.target = candidate.view.dtype
    written.sort(key=lambda candidate: (_rank(candidate.target), candidate.name.encode()))
    jobs = []
    offset = 0
    for candidate in written:
        job = TensorJob(
            name=candidate.name,
            source=candidate.view.key,
            view=candidate.view,
            component=candidate.placement.component,
            target=candidate.target,
            offset=offset,
        )
        jobs.append(job)
        offset += job.nbytes
    drops = draft.drops + [
        Drop(leftover.path, leftover.what, leftover.reason)
        for leftover in state_dict.leftovers
        if leftover.is_tensor
    ]
    return ConversionPlan(
        jobs=tuple(jobs),
        aliases=tuple(sorted(aliases, key=lambda alias: alias.name)),
        drops=tuple(drops),
        leftovers=tuple(left for left in state_dict.leftovers if not left.is_tensor),
        nbytes=offset,
    )


def comparable_groups(
    state_dict: StateDict,
    detection: Detection,
    placements: Iterable[Placement],
    options: Options,
) -> tuple[tuple[TensorView, ...], ...]:
    """Groups of tensors that could be stored once if their elements are equal.

    Only tensors of one dtype and shape that do not share their bytes already are worth
    comparing; `make_plan` wants to know the hash of each.
    """
    draft = _sort_out(state_dict, list(placements), options)
    groups: dict[tuple[object, ...], list[_Candidate]] = defaultdict(list)
    if options.dedupe is Dedupe.ALL:
        for candidate in draft.candidates:
            view = candidate.view
            if view.numel:
                groups[view.dtype, view.shape, candidate.target].append(candidate)
    elif options.dedupe is Dedupe.SAFE and detection.family != UNKNOWN:
        for candidate, kept in _copies(draft.candidates):
            group = groups[kept.name,]
            group.append(candidate)
            if kept not in group:
                group.append(kept)
    return tuple(
        tuple(candidate.view for candidate in group)
        for group in groups.values()
        if len({_bytes_of(candidate.view) for candidate in group}) > 1
    )


def _sort_out(
    state_dict: StateDict,
    placements: list[Placement],
    options: Options,
) -> _Draft:
    """Which tensors may be written, under which name and in which type."""
    draft = _Draft()
    replaced = _replaced_by_ema(state_dict, placements) if options.ema is Ema.USE else {}
    replaces = {copy: weight for weight, copy in replaced.items()}
    canonical = {placement.key: placement.name for placement in placements}
    for view, placement in zip(state_dict.views, placements, strict=True):
        reason = _reason_to_drop(view, placement, options, replaced)
        if reason is not None:
            what = f"{view.dtype.name} {list(view.shape)}"
            draft.drops.append(Drop(view.key, what, reason))
            continue
        # An averaged copy that takes a weight's place takes its name as well.
        key = replaces.get(view.key, view.key)
        name = key if options.keep_names else canonical[key]
        target = _target(view, placement, options)
        draft.candidates.append(_Candidate(view, placement, canonical[key], name, target))
    return draft


def _replaced_by_ema(state_dict: StateDict, placements: list[Placement]) -> dict[str, str]:
    """By the key of a weight, the key of the averaged copy that takes its place."""
    weights = {
        placement.name: view
        for view, placement in zip(state_dict.views, placements, strict=True)
        if placement.component not in (Component.EMA, Component.OTHER)
    }
    replaced = {}
    for view, placement in zip(state_dict.views, placements, strict=True):
        weight = weights.get(placement.of or "") if placement.component is Component.EMA else None
        if weight is not None and weight.shape == view.shape:
            replaced[weight.key] = view.key
    return replaced


def _reason_to_drop(
    view: TensorView, placement: Placement, options: Options, replaced: Mapping[str, str]
) -> str | None:
    if view.dtype.safetensors is None:
        return f"safetensors has no type for {view.dtype.name}"
    if placement.name == _RESERVED_NAME:
        return "safetensors reserves this name for its metadata"
    if placement.component is Component.EMA and view.key not in replaced.values():
        if options.ema is Ema.DROP:
            return "is an averaged (EMA) copy; --ema use or keep writes it"
        if options.ema is Ema.USE:
            return "is EMA bookkeeping, or an averaged copy of no weight in this file"
    if view.key in replaced:
        return "is replaced by its averaged copy"
    if _action(placement.component, options) is Action.DROP:
        return f"component {placement.component.value} is dropped on request"
    return None


def _action(component: Component, options: Options) -> Action:
    match component:
        case Component.UNET:
            return options.unet
        case Component.VAE:
            return options.vae
        case Component.TEXT_ENCODER | Component.TEXT_ENCODER_2:
            return options.text_encoder
        case Component.OTHER:
            return options.other
        case Component.EMA:
            return options.unet
        case Component.SCHEDULE:
            return Action.COPY


def _target(view: TensorView, placement: Placement, options: Options) -> DType:
    """The type *view* is written in: only weights are cast, and only where asked."""
    is_weight = (
        placement.demanded
        or placement.component is Component.OTHER
        or (placement.component is Component.EMA and placement.of is not None)
    )
    if (
        not is_weight
        or options.precision is Precision.KEEP
        or _action(placement.component, options) is Action.COPY
        or view.dtype.name not in _CASTABLE
    ):
        return view.dtype
    return _TARGETS[options.precision]


def _deduplicate(
    candidates: list[_Candidate],
    detection: Detection,
    options: Options,
    digests: Mapping[str, bytes],
) -> list[Alias]:
    if options.dedupe is Dedupe.NONE:
        return []
    if options.dedupe is Dedupe.SAFE and detection.family != UNKNOWN:
        return _alias_copies(candidates, digests)
    return _alias_equals(candidates, digests)


def _alias_copies(candidates: list[_Candidate], digests: Mapping[str, bytes]) -> list[Alias]:
    """Alias what a family's loaders do not ask for to what they do, where both are equal."""
    stored_as: dict[str, str] = {}
    sources: dict[str, str] = {}
    for candidate, kept in _copies(candidates):
        if (
            _may_be_alias(candidate.name)
            and not candidate.placement.demanded
            and _equal(candidate.view, kept.view, digests)
        ):
            stored_as[candidate.name] = kept.name
            sources[candidate.name] = candidate.view.key
    aliases = []
    for name, source in sources.items():
        of = stored_as[name]
        # A second copy of an averaged copy, say, whose bytes stand under the weight's name.
        while of in stored_as:
            of = stored_as[of]
        aliases.append(Alias(name, of, source))
    return aliases


def _copies(candidates: list[_Candidate]) -> Iterator[tuple[_Candidate, _Candidate]]:
    """Each tensor that may be a second copy, with the one it may be a copy of."""
    by_canonical = {candidate.canonical: candidate for candidate in candidates}
    for candidate in candidates:
        kept = by_canonical.get(candidate.placement.of or "")
        if kept is not None and kept is not candidate and _alike(candidate, kept):
            yield candidate, kept


def _alias_equals(candidates: list[_Candidate], digests: Mapping[str, bytes]) -> list[Alias]:
    """Alias equal tensors to the first name among them, or the first that loaders demand."""
    kept: dict[tuple[object, ...], _Candidate] = {}
    aliases = []
    in_order = sorted(
        candidates, key=lambda each: (not each.placement.demanded, each.name.encode())
    )
    for candidate in in_order:
        view = candidate.view
        if not view.numel:
            continue
        digest = digests.get(view.key)
        content: object = _bytes_of(view) if digest is None else digest
        key = (view.dtype, view.shape, candidate.target, content)
        first = kept.setdefault(key, candidate)
        if first is not candidate and _may_be_alias(candidate.name):
            aliases.append(Alias(candidate.name, first.name, view.key))
    return aliases


def _may_be_alias(name: str) -> bool:
    """Whether *name* can stand in ``__metadata__`` without being taken for something else."""
    return name != _FORMAT and not name.startswith(METADATA_PREFIX)


def _alike(one: _Candidate, other: _Candidate) -> bool:
    return (one.view.dtype, one.view.shape, one.target) == (
        other.view.dtype,
        other.view.shape,
        other.target,
    )


def _equal(one: TensorView, other: TensorView, digests: Mapping[str, bytes]) -> bool:
    if _bytes_of(one) == _bytes_of(other):
        return True
    digest = digests.get(one.key)
    return digest is not None and digest == digests.get(other.key)


def _bytes_of(view: TensorView) -> tuple[object, ...]:
    """What two views share if and only if they read the same bytes in the same order."""
    storage = view.storage
    start = storage.offset + view.offset * view.dtype.itemsize
    # Strides of dimensions of size 1 are never stepped.
    stride = tuple(step for size, step in zip(view.shape, view.stride, strict=True) if size != 1)
    return storage.record, start, view.shape, stride


def _rank(dtype: DType) -> int:
    return _RANK[dtype.safetensors or ""]
