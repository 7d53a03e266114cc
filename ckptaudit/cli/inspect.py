"""``ckptaudit inspect``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from ckptaudit.cli.answers import GOOD, NONE, Answers, paths_argument, report_options

if TYPE_CHECKING:
    from pathlib import Path

    from ckptaudit.jobs.inspect import Inspection


@click.command()
@paths_argument
@report_options
@click.pass_context
def inspect(
    ctx: click.Context,
    paths: tuple[str, ...],
    format_: str,
    json_path: Path | None,
    no_hash: bool,
) -> None:
    """Say what is in PATHS: family, components, tensors, and what else."""
    from ckptaudit import report
    from ckptaudit.jobs.inspect import inspect as job

    def status(result: Inspection) -> int:
        return GOOD if result.coverage.complete else NONE

    answers = Answers(status, report.inspection_text)
    answers.check_json(json_path)
    for path in paths:
        answers.ask(path, partial(job, path, with_hash=not no_hash))
    ctx.exit(answers.deliver(format_, json_path))
