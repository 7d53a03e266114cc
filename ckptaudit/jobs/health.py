"""What ails a model, as far as keys, shapes, types and a few counted numbers show.

Knows:      the damage that tools are known to do, and how each shows.
Is told:    an open container, its state dict and what its keys mean.
Never asks: for weights: what only they show (NaN, a cast that overflows) `writing` finds on the
            way.
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
    from collections.abc import Iterator, Mapping

    from ckptaudit.containers import Container
    from ckptaudit.jobs.planning import Meaning
    from ckptaudit.layouts import ComponentCount
    from ckptaudit.tensors import StateDict, TensorView

__all__ = ["damaged_ids", "health_of"]

_IDS = "embeddings.position_ids"
# What other tools leave among the weights of a model, by prefix.
_JUNK = {
    "embedding_manager.": "a textual inversion's training",
    "lora_te_": "a LoRA that was not merged",
    "lora_unet_": "a LoRA that was not merged",
    "control_model.": "a ControlNet",
}
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
