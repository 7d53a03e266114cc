"""``ckptaudit scan``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from ckptaudit.cli.answers import BAD, GOOD, NONE, Answers, paths_argument
from ckptaudit.cli.formats import scan_as
from ckptaudit.cli.outputs import report_options

if TYPE_CHECKING:
    from ckptaudit.cli.outputs import Outputs
    from ckptaudit.containers import Container
    from ckptaudit.jobs.scan import ScanResult
    from ckptaudit.jobs.weights import Weights

_SEVERITIES = ("review", "suspicious", "malicious")


@click.command()
@paths_argument
@report_options("text", "json", "jsonl", "sarif", "md", files=("json", "sarif", "md", "sbom"))
@click.option(
    "--fail-on",
    type=click.Choice(_SEVERITIES),
    default="suspicious",
    show_default=True,
    help="Lowest severity that makes the exit status 1.",
)
@click.pass_context
def scan(
    ctx: click.Context,
    paths: tuple[str, ...],
    outputs: Outputs,
    no_hash: bool,
    fail_on: str,
) -> None:
    """Say whether PATHS can be trusted: verdict, findings, coverage.

    Nothing of a file is executed or imported.  A file is clean only if every name it
    asks for is known to be harmless and all of it was read.
    """
    from ckptaudit.jobs.scan import scan as job
    from ckptaudit.policy import Severity

    threshold = Severity(fail_on)

    def status(result: ScanResult) -> int:
        if result.verdict >= threshold:
            return BAD
        return GOOD if result.coverage.complete else NONE

    # By path; only a bill of materials tells them, and nobody else waits for them.
    weights: dict[str, Weights | None] = {}

    def weigh(container: Container) -> None:
        if "sbom" in outputs.side_files:
            from ckptaudit.jobs.weights import weights_of

            weights[container.source.name] = weights_of(container)

    answers = Answers(status, partial(scan_as, weights=weights))
    outputs.check()
    for path in paths:
        answers.ask(path, partial(job, path, with_hash=not no_hash, look=weigh))
    ctx.exit(answers.deliver(outputs))
