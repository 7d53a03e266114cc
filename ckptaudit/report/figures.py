"""What people are told of a model's hashes, sizes and weights, a sentence at a time.

Knows:      how numbers of a model are summed up.
Is told:    parts of results from `jobs`.
Never asks: how a sentence is set, as `facts` does not.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from ckptaudit.report.escaping import printable
from ckptaudit.report.facts import first_of, size_text
from ckptaudit.vm import escape
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptaudit.jobs.account import Conversion
    from ckptaudit.jobs.identity import Identity, Twin
    from ckptaudit.jobs.measures import PartMeasure
    from ckptaudit.jobs.risks import Risk
    from ckptaudit.jobs.sizes import Sizes, WeightMemory
    from ckptaudit.layouts import Component
    from ckptaudit.stats import TensorStats

__all__ = [
    "hashes",
    "loss_of",
    "measures",
    "memory",
    "modelspec",
    "number",
    "risks",
    "saved",
    "size_of_part",
    "twins",
]

_NOT_COUNTED = (
    "not counted: activations, which grow with the image, the driver's context, and what else is "
    "on the card"
)
# Of a card, below which nobody asks what is left of it.
_LEAST_SHARE = 0.01


def hashes(identity: Identity) -> list[str]:
    """The hashes of a file and of its parts, a sentence for each kind."""
    of_file = {
        "AutoV2": identity.autov2,
        "the WebUI's old hash": identity.legacy,
        "sha256 of its data (sshs_model_hash)": identity.data_sha256,
    }
    said = [f"{name} {digest}" for name, digest in of_file.items() if digest is not None]
    return [
        *([", ".join(said)] if said else []),
        *(
            f"content of the {content.component.value}"
            f"{f' of the {content.of.value}' if content.of else ''}: {content.sha256} "
            f"({counted(content.tensors, 'tensor')})"
            for content in identity.contents
        ),
    ]


def twins(found: Iterable[Twin]) -> list[str]:
    """Which components an earlier file has, a sentence for each."""
    return [
        f"{twin.component.value} identical to "
        f"{'that' if twin.component is twin.as_component else f'the {twin.as_component.value}'} "
        f"of {printable(twin.path)}"
        for twin in found
    ]


def size_of_part(sizes: Sizes, component: Component) -> str:
    """What a component takes, and what it becomes; "" where nothing of it is there."""
    for part in sizes.parts:
        if part.component is component:
            before = size_text(part.nbytes)
            after = None if part.written is None else size_text(part.written)
            return before if after in {None, before} else f"{before} became {after}"
    return ""


def saved(sizes: Sizes) -> list[str]:
    """Where the bytes of tensors went that are not written."""
    if sizes.saved is None:
        return []
    reasons = {
        "averaged copies left out": sizes.saved.ema,
        "names stored under another": sizes.saved.dedupe,
        "other tensors left out": sizes.saved.others,
        "narrower types": sizes.saved.cast,
    }
    said = [f"{size_text(nbytes)} by {what}" for what, nbytes in reasons.items() if nbytes > 0]
    more = {"for wider types": -sizes.saved.cast, "of another file": sizes.saved.added}
    said += [f"{size_text(nbytes)} more {why}" for why, nbytes in more.items() if nbytes > 0]
    return [f"saved: {', '.join(said)}"] if said else []


def memory(sizes: Sizes) -> list[str]:
    """What the weights take where the model runs, and what that leaves out."""
    precisions: dict[str, list[str]] = defaultdict(list)
    for each in sizes.memory:
        if each.nbytes:
            precisions[_on_cards(each)].append(each.precision)
    said = [f"weights in {' or '.join(those)}: {takes}" for takes, those in precisions.items()]
    if not any(use.share >= _LEAST_SHARE for each in sizes.memory for use in each.cards):
        return said
    return [*said, _NOT_COUNTED]


def _on_cards(taken: WeightMemory) -> str:
    """The size of weights and the share of each card, where that is more than nothing."""
    small = [f"{use.gigabytes}" for use in taken.cards if use.share > 1]
    shares = [
        f"{use.share:.0%} of {use.gigabytes} GB"
        for use in taken.cards
        if _LEAST_SHARE <= use.share <= 1
    ]
    return ", ".join(
        [
            size_text(taken.nbytes),
            *([f"more than cards of {'/'.join(small)} GB have"] if small else []),
            *([f"on a card {', '.join(shares)}"] if shares else []),
        ]
    )


def modelspec(result: Conversion) -> list[str]:
    """What the output says of itself by the ModelSpec; a thumbnail is not for people to read."""
    said = {key.partition(".")[2]: value for key, value in (result.modelspec or {}).items()}
    said.pop("thumbnail", None)
    version = said.pop("sai_model_spec", "")
    fields = ", ".join(f"{key} {printable(value)}" for key, value in said.items())
    return [f"ModelSpec {version}: {fields}"] if fields else []


def number(value: float | None) -> str:
    """A statistic to four digits; "" where there is none."""
    return "" if value is None else f"{value:.4g}"


def loss_of(stats: TensorStats) -> list[str]:
    """What a cast would cost: overflows, zeros, subnormals, largest error, signal to noise."""
    return [
        str(stats.overflowed),
        str(stats.flushed),
        str(stats.subnormal),
        number(stats.max_abs_error),
        "" if stats.sqnr_db is None else f"{stats.sqnr_db:.1f}",
    ]


def measures(parts: Iterable[PartMeasure]) -> list[str]:
    """What each component holds and what casts would make of it, a sentence for each."""
    sentences = []
    for part in parts:
        held, name = part.stats.held, part.component.value
        values = counted(held.numel, "value")
        span = f"from {number(held.min)} to {number(held.max)}, " if held.finite else ""
        moments = f"mean {number(held.mean)}, std {number(held.std)}, " if held.finite else ""
        sentences.append(f"{name} holds {values} {span}{moments}{held.zeros} of them zero")
        for target, cast in (("fp16", part.stats.float16), ("bf16", part.stats.bfloat16)):
            if cast is not None:
                over, flushed, subnormal, error, ratio = loss_of(cast)
                sentences.append(
                    f"{name} as {target}: {over} overflowed, {flushed} flushed to zero, "
                    f"{subnormal} subnormal"
                    + (f", largest error {error}" if error else "")
                    + (f", signal to noise {ratio} dB" if ratio else "")
                )
    return sentences


def risks(found: Iterable[Risk]) -> list[str]:
    """Which tensors fp16 does harm to, or bf16 does better, a sentence for each."""
    return first_of(
        f"{escape(risk.key)}: {'; '.join(_said_of(risk))} (auto: {risk.chosen})" for risk in found
    )


def _said_of(risk: Risk) -> list[str]:
    said = [against for against in (risk.against_float16, risk.against_bfloat16) if against]
    return [*said, "bfloat16 keeps more of it"] if risk.better_in_bfloat16 else said
