"""What ``--precision auto`` makes of the weights: they are cast, measured, and thrown away.

Knows:      that what does not get the first type has to be read again for the second.
Is told:    an open container, and a plan in which types are open.
Never asks: what speaks against a type; the rule is the plan's.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptaudit.jobs.stream import Nowhere, stream
from ckptaudit.plan import CANDIDATES, FALLBACK, Choice, objection, undecided
from ckptaudit.stats import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptaudit.containers import Container
    from ckptaudit.dtypes import DType
    from ckptaudit.jobs.stream import JobId
    from ckptaudit.plan import ConversionPlan, TensorJob
    from ckptaudit.stats import TensorStats

__all__ = ["choose"]


def choose(
    container: Container,
    plan: ConversionPlan,
    *,
    beside: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[tuple[str, str], Choice]:
    """Choose the type of each tensor that *plan* leaves open, by file and name of the output.

    Args:
        container: The source, open.
        plan: What is to be written, made with nothing chosen.
        beside: Other processes of the job that keep a core busy each.
        progress: Told bytes of weights read, and how many it will be as far as is known.

    Raises:
        CkptauditError: The source cannot be read.
    """
    choices: dict[tuple[str, str], Choice] = {}
    total = done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    groups = [(jobs, "") for jobs in undecided(plan)]
    for candidate in CANDIDATES:
        total += sum(job.view.nbytes for jobs, _ in groups for job in jobs)
        measured = _measured(container, [jobs for jobs, _ in groups], candidate, beside, advance)
        refused = []
        for jobs, before in groups:
            against = objection(joined(measured[job.id] for job in jobs), candidate)
            if against is None:
                choices |= _chosen(jobs, candidate, before)
            else:
                refused.append((jobs, f"{before}; {against}" if before else against))
        groups = refused
    for jobs, before in groups:
        choices |= _chosen(jobs, FALLBACK, before)
    return choices


def _measured(
    container: Container,
    groups: list[list[TensorJob]],
    target: DType,
    beside: int,
    progress: Callable[[int], None],
) -> Mapping[JobId, TensorStats]:
    jobs = [replace(job, target=target) for group in groups for job in group]
    cast = stream(container, jobs, Nowhere(), beside=beside, progress=progress)
    with closing(cast):
        return {job.id: stats for job, stats in cast}


def _chosen(jobs: list[TensorJob], dtype: DType, why: str) -> dict[tuple[str, str], Choice]:
    return {(job.file, job.name): Choice(dtype, why or None) for job in jobs}
