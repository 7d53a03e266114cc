"""``ckptaudit scan``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from ckptaudit.cli.answers import BAD, GOOD, NONE, Answers, fail_on_option, paths_argument
from ckptaudit.cli.formats import scan_as
from ckptaudit.cli.outputs import report_options
from ckptaudit.cli.policy import (
    baseline_option,
    chosen_baseline,
    chosen_policy,
    note_unused,
    policy_option,
)

if TYPE_CHECKING:
    from ckptaudit.cli.outputs import Outputs
    from ckptaudit.containers import Container
    from ckptaudit.jobs.scan import ScanResult
    from ckptaudit.jobs.weights import Weights


@click.command()
@paths_argument
@report_options("text", "json", "jsonl", "sarif", "md", files=("json", "sarif", "md", "sbom"))
@fail_on_option
@policy_option
@baseline_option
@click.pass_context
def scan(
    ctx: click.Context,
    paths: tuple[str, ...],
    outputs: Outputs,
    no_hash: bool,
    fail_on: str,
    policy_path: str | None,
    baseline_path: str | None,
) -> None:
    """Say whether PATHS can be trusted: verdict, findings, coverage.

    Nothing of a file is executed or imported.  A file is clean only if every name it
    asks for is known to be harmless and all of it was read.  A path is a checkpoint,
    or the folder of a diffusers model.
    """
    from ckptaudit.jobs.scan import scan as job
    from ckptaudit.policy import Severity

    threshold = Severity(fail_on)

    def status(result: ScanResult) -> int:
        # Whatever is not known: without a baseline that is all of them.
        if any(each.severity >= threshold for each in result.findings if not each.known):
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
    policy = chosen_policy(ctx, policy_path, no_hash=no_hash)
    baseline = chosen_baseline(ctx, baseline_path, no_hash=no_hash)
    ask = partial(job, with_hash=not no_hash, look=weigh, policy=policy, baseline=baseline)
    for path in paths:
        answers.ask(path, partial(ask, path))
    note_unused(policy_path, policy, answers.results, no_hash=no_hash)
    ctx.exit(answers.deliver(outputs))
