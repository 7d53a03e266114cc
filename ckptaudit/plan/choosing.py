"""Which type a tensor gets where the user leaves it to its weights (``--precision auto``).

The first of float16 and bfloat16 to which there is no objection, and else float32: a cast
may make no weight overflow, no more than one nonzero weight in a hundred zero, and no
noise of more than 50 dB below the signal.  docs/numbers.md says why these numbers.

Knows:      the rule, and which tensors have to be of one type.
Is told:    a plan, and what a cast to a type cost.
Never asks: for the weights; who has them measures them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.dtypes import DType, named
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from ckptaudit.plan.values import ConversionPlan, TensorJob
    from ckptaudit.stats import TensorStats

__all__ = ["CANDIDATES", "FALLBACK", "Choice", "objection", "undecided"]

# In this order; and what is left where there is an objection to each.
CANDIDATES = (named("float16"), named("bfloat16"))
FALLBACK = named("float32")
# Nonzero weights for each one that may become zero.
_LEAST_FOR_ONE_FLUSHED = 100
_LEAST_SQNR_DB = 50.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The type of a tensor, chosen by what its weights are.

    Attributes:
        dtype: The type.
        why: What speaks against those that come before it; None for the first.
    """

    dtype: DType
    why: str | None


def objection(stats: TensorStats, dtype: DType) -> str | None:
    """What speaks against *dtype*, a cast to which gave *stats*; None if nothing does."""
    nonzero = stats.finite - stats.zeros
    if stats.overflowed:
        weights = counted(stats.finite, "weight")
        return f"{dtype.name} cannot hold {stats.overflowed} of {weights}"
    if stats.flushed * _LEAST_FOR_ONE_FLUSHED > nonzero:
        weights = counted(nonzero, "nonzero weight")
        return f"in {dtype.name} {stats.flushed} of {weights} would be zero"
    if stats.sqnr_db is not None and stats.sqnr_db < _LEAST_SQNR_DB:
        return f"in {dtype.name} its noise would be only {stats.sqnr_db:.1f} dB below the signal"
    return None


def undecided(plan: ConversionPlan) -> list[list[TensorJob]]:
    """The jobs of *plan* whose type is left open, those together that get one type.

    One type have the parts that a tensor of the output is made of, and the tensors that one of
    the source is cut into, which could not be put together again otherwise.

    Args:
        plan: Made of ``Precision.AUTO`` with nothing chosen: what is open is to be cast to the
            first candidate.
    """
    together: dict[tuple[str, ...], list[TensorJob]] = defaultdict(list)
    for job in plan.jobs:
        is_cut = job.op == "rows"
        together[(job.file, "cut", job.source) if is_cut else (job.file, "", job.name)].append(job)
    return [
        jobs
        for jobs in together.values()
        if jobs[0].target is CANDIDATES[0] and any(job.view.dtype != job.target for job in jobs)
    ]
