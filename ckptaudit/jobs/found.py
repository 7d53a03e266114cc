"""What a conversion has found in weights on its way: findings about what it wrote.

Knows:      what a cast can cost, and what equal names say of averaged copies.
Is told:    a plan that was carried out, and the statistics of its tensors.
Never asks: how weights were read; what ails any model `health` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptaudit.jobs.health import averaged_alike, counted_ailments
from ckptaudit.layouts import Component
from ckptaudit.policy import RULES, Finding
from ckptaudit.vm import escape
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ckptaudit.jobs.planning import Meaning
    from ckptaudit.jobs.stream import JobId
    from ckptaudit.plan import ConversionPlan
    from ckptaudit.stats import TensorStats

__all__ = ["found_by"]


def found_by(
    plan: ConversionPlan,
    meaning: Meaning,
    stats: Mapping[JobId, TensorStats],
    misfits: Mapping[JobId, str],
) -> list[Finding]:
    """What the weights of *plan* turned out to be; nothing where none were read.

    Args:
        plan: What was written.
        meaning: What the tensors are that it was made of.
        stats: By job, what its tensor holds and what the cast cost.
        misfits: By job, why its tensor was not cast.
    """
    held = ((job.source, stats[job.id]) for job in plan.jobs if job.id in stats)
    without_infinity = {job.source for job in plan.jobs if job.target.name == "float8_e4m3fn"}
    return [
        *_losses(plan, stats, misfits),
        *counted_ailments(meaning, held, without_infinity),
        *averaged_alike(*_averages_alike(plan, meaning)),
    ]


def _losses(
    plan: ConversionPlan, stats: Mapping[JobId, TensorStats], misfits: Mapping[JobId, str]
) -> Iterator[Finding]:
    for job in plan.jobs:
        overflowed = stats[job.id].overflowed if job.id in stats else 0
        if job.id in misfits:
            yield _overflow(job.source, f"{misfits[job.id]}; it stays {job.target.name}")
        elif overflowed:
            weights = counted(overflowed, "weight")
            yield _overflow(job.source, f"{weights} clamped to the range of {job.target.name}")


def _averages_alike(plan: ConversionPlan, meaning: Meaning) -> tuple[list[str], int]:
    """Keys of averaged copies known to be their weights; how many there are, biases left out.

    That is known where both are wanted and equal ones are stored once.
    """
    holders = {placement.name: placement.key for placement in meaning.placements}
    weights = {
        placement.key: placement.of
        for placement in meaning.placements
        if placement.component is Component.EMA and placement.of in holders
        if not placement.of.endswith("bias")
    }
    stored_as = {alias.source: alias.of for alias in plan.aliases}
    equal = [
        key for key, weight in weights.items() if stored_as.get(key) in {weight, holders[weight]}
    ]
    left_out = {drop.source for drop in plan.drops}
    return equal, len(weights.keys() - left_out)


def _overflow(key: str, message: str) -> Finding:
    rule = RULES["CKA301"]
    return Finding(rule.id, rule.severity, message, escape(key), None)
