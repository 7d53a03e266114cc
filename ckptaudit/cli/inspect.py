"""``ckptaudit inspect``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from ckptaudit.cli.answers import GOOD, NONE, Answers, paths_argument
from ckptaudit.cli.formats import inspection_as
from ckptaudit.cli.outputs import report_options
from ckptaudit.cli.progress import progress_bar

if TYPE_CHECKING:
    from ckptaudit.cli.outputs import Outputs
    from ckptaudit.jobs.inspect import Inspection


@click.command()
@paths_argument
@click.option(
    "--stats",
    is_flag=True,
    help="Measure all weights: what they are, and what fp16 and bf16 would make of them.",
)
@report_options("text", "json", "md", files=("json", "md"))
@click.pass_context
def inspect(
    ctx: click.Context,
    paths: tuple[str, ...],
    outputs: Outputs,
    no_hash: bool,
    stats: bool,
) -> None:
    """Say what is in PATHS: family, components, tensors, and what else.

    A path is a checkpoint, or the folder of a diffusers model.
    """
    from ckptaudit.jobs.identity import Known
    from ckptaudit.jobs.inspect import inspect as job

    def status(result: Inspection) -> int:
        return GOOD if result.coverage.complete else NONE

    answers = Answers(status, inspection_as)
    outputs.check()
    known = Known()

    def ask(path: str) -> Inspection:
        with progress_bar(path) as progress:
            return job(
                path, with_hash=not no_hash, with_stats=stats, known=known, progress=progress
            )

    for path in paths:
        answers.ask(path, partial(ask, path))
    ctx.exit(answers.deliver(outputs))
