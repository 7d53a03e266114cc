"""What ails a model: what keys, shapes and types show, and what is counted in its weights.

Knows:      the damage that tools are known to do, and how each shows.
Is told:    an open container, its state dict and what its keys mean; what was counted, by whoever
            has read the weights.
Never asks: for weights, but for the few numbers that count positions.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ckptaudit.jobs.small import numbers_of
from ckptaudit.layouts import Component
from ckptaudit.policy import RULES, Finding
from ckptaudit.vm import escape
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from ckptaudit.containers import Container
    from ckptaudit.jobs.planning import Meaning
    from ckptaudit.layouts import ComponentCount, Placement
    from ckptaudit.stats import TensorStats
    from ckptaudit.tensors import StateDict, TensorView

__all__ = ["averaged_alike", "counted_ailments", "damaged_ids", "health_of"]

_IDS = "embeddings.position_ids"
# What other tools leave among the weights of a model, by prefix.
_JUNK = {
    "embedding_manager.": "a textual inversion's training",
    "lora_te_": "a LoRA that was not merged",
    "lora_unet_": "a LoRA that was not merged",
    "control_model.": "a ControlNet",
}
# lllyasviel/ControlNet, cldm/cldm.py: what is made with `zero_module`.
_BEGINS_AT_ZERO = ("zero_convs.", "middle_block_out.", "input_hint_block.14.")
_MOST_NAMED = 3


def damaged_ids(container: Container, state_dict: StateDict) -> dict[str, str]:
    """By key, what is wrong with tensors that count positions and do not count 0, 1, 2..."""
    damage = {}
    for view in state_dict.views:
        if view.key.endswith(_IDS) and (wrong := _wrong_with(container, view)):
            damage[view.key] = wrong
    return damage


def _wrong_with(container: Container, view: TensorView) -> str:
    if view.dtype.name != "int64":
        return f"is {view.dtype.name} where int64 counts positions"
    for place, position in enumerate(numbers_of(container, view) or ()):
        if place != position:
            return f"has {position} in place of {place}"
    return ""


def health_of(state_dict: StateDict, meaning: Meaning, damage: Mapping[str, str]) -> list[Finding]:
    """Every ailment that shows, for people who have to decide whether to use a model.

    Args:
        state_dict: The tensors.
        meaning: What their keys mean.
        damage: What `damaged_ids` found.
    """
    found = [_finding("CKA303", f"{escape(key)} {what}", key) for key, what in damage.items()]
    if meaning.detection.has_inventory:
        found += _junk(meaning)
        for part in meaning.components:
            found += _incomplete(part, meaning)
        found += _copies(meaning)
        found += _fragile(state_dict, meaning)
    return found


def counted_ailments(
    meaning: Meaning,
    stats: Iterable[tuple[str, TensorStats]],
    without_infinity: Collection[str] = (),
) -> list[Finding]:
    """What shows in numbers: weights that are none, and weights that are all zero.

    Args:
        meaning: What the keys mean.
        stats: What tensors hold, each with its key; of one that was read in parts, each part.
        without_infinity: Keys of those that become float8_e4m3fn, which has none.
    """
    odd: dict[str, Counter[str]] = {}
    # By key, elements that are not zero, where there are elements.
    others: Counter[str] = Counter()
    for key, held in stats:
        if held.numel:
            others[key] += held.numel - held.zeros
        if held.nan + held.inf:
            odd.setdefault(key, Counter()).update(nan=held.nan, inf=held.inf)
    found = []
    for key, of in odd.items():
        what = f"holds {of['nan']} NaN and {counted(of['inf'], 'infinite value')}"
        becomes = "; in float8_e4m3fn all are NaN" if key in without_infinity and of["inf"] else ""
        found.append(_finding("CKA302", f"{what}{becomes}", key))
    weights: dict[Component, list[str]] = {}
    for placement in meaning.placements:
        if placement.key in others and _lets_through(placement):
            weights.setdefault(placement.component, []).append(placement.key)
    for component, keys in weights.items():
        zero = [key for key in keys if not others[key]]
        if zero:
            some = f"{len(zero)} of {counted(len(keys), 'weight')} of the {component.value}"
            are = "is" if len(zero) == 1 else "are"
            found.append(
                _finding("CKA310", f"{some} {are} zero throughout: {_some(zero)}", zero[0])
            )
    return found


def averaged_alike(equal: Sequence[str], compared: int) -> list[Finding]:
    """What it says that averages are equal to their weights.

    Args:
        equal: Keys of those that are, biases left out: some begin at zero and stay there.
        compared: How many there are that have a weight, likewise.
    """
    if not equal:
        return []
    of = f"{len(equal)} of {counted(compared, 'average')}"
    are = "is equal to its weight" if len(equal) == 1 else "are equal to their weights"
    what = "nothing was averaged" if len(equal) == compared else "so much was not trained"
    return [_finding("CKA311", f"{of} {are}, {what}: {_some(list(equal))}", equal[0])]


def _lets_through(placement: Placement) -> bool:
    """Whether nothing gets past the tensor if it is zero throughout."""
    weight = placement.of if placement.component is Component.EMA else placement.name
    if weight is None or weight.endswith("bias"):
        return False
    is_asked_for = placement.demanded or placement.component is Component.EMA
    return is_asked_for and not any(name in weight for name in _BEGINS_AT_ZERO)


def _incomplete(part: ComponentCount, meaning: Meaning) -> Iterator[Finding]:
    name = part.component.value
    if part.is_absent:
        what = f"the {name} is not there: none of its {counted(part.expected, 'tensor')}"
        yield _finding("CKA304", what, part.missing[0])
    elif part.missing:
        of = f"{len(part.missing)} of {counted(part.expected, 'tensor')} of the {name}"
        yield _finding("CKA304", f"{of} are missing: {_some(part.missing)}", part.missing[0])
    if part.misshapen:
        what = f"{counted(len(part.misshapen), 'tensor')} of the {name} in a wrong shape"
        yield _finding("CKA305", f"{what}: {_some(part.misshapen)}", part.misshapen[0])
    if part.component is Component.EMA:
        averaged = {p.of for p in meaning.placements if p.component is Component.EMA and p.of}
        weights = {p.name for p in meaning.placements if p.component is Component.UNET}
        without = sorted(weights - averaged)
        if averaged & weights and without:
            what = f"{len(without)} of {counted(len(weights), 'weight')} have no averaged copy"
            yield _finding("CKA307", f"{what}: {_some(without)}", without[0])


def _junk(meaning: Meaning) -> Iterator[Finding]:
    strays = [p.key for p in meaning.placements if p.component is Component.OTHER]
    found = Counter(prefix for key in strays for prefix in _JUNK if key.startswith(prefix))
    for prefix, times in found.items():
        what = f"{counted(times, 'tensor')} under {prefix}, left by {_JUNK[prefix]}"
        yield _finding("CKA306", what, prefix)


def _copies(meaning: Meaning) -> Iterator[Finding]:
    strays = [p.key for p in meaning.placements if p.component is Component.OTHER and p.of]
    if strays:
        what = f"{counted(len(strays), 'key')} spell a name a second time: {_some(strays)}"
        yield _finding("CKA308", what, strays[0])


def _fragile(state_dict: StateDict, meaning: Meaning) -> Iterator[Finding]:
    if not meaning.detection.vae_overflows:
        return
    halves = [
        view.key
        for view, placement in zip(state_dict.views, meaning.placements, strict=True)
        if placement.component is Component.VAE and view.dtype.name == "float16"
    ]
    if halves:
        what = f"{counted(len(halves), 'tensor')} of the VAE in float16, in which it overflows"
        yield _finding("CKA309", what, halves[0])


def _some(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(escape(name) for name in names[:_MOST_NAMED])
    return f"{shown} and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else shown


def _finding(rule_id: str, message: str, record: str) -> Finding:
    rule = RULES[rule_id]
    return Finding(rule.id, rule.severity, message, escape(record), None)
