"""``ckptaudit explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptaudit.cli.answers import BAD, GOOD, NONE, Answers, fail_on_option
from ckptaudit.cli.formats import explanation_as
from ckptaudit.cli.outputs import report_options
from ckptaudit.cli.policy import chosen_policy, note_unused, policy_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.cli.outputs import Outputs
    from ckptaudit.jobs.explain import Explaining, Explanation

# Bytes of a listing that are written at once.
_PIECE = 1 << 16


@click.command()
@click.argument("path", type=click.Path(readable=False))
@click.option("--record", metavar="NAME", help="Explain only the pickle of this name.")
@click.option("--all", "every", is_flag=True, help="List every instruction.")
@click.option(
    "--context",
    type=click.IntRange(0, 100),
    default=4,
    show_default=True,
    metavar="N",
    help="List N instructions before and after each finding.",
)
@report_options("text", "json")
@fail_on_option
@policy_option
@click.pass_context
def explain(
    ctx: click.Context,
    path: str,
    record: str | None,
    every: bool,
    context: int,
    outputs: Outputs,
    no_hash: bool,
    fail_on: str,
    policy_path: str | None,
) -> None:
    """Say what PATH would do: its names, its calls, its instructions.

    Findings and exit status are those of `scan`; to each finding there is a sentence that
    says what would have happened, when, where, and what torch makes of it.  With --all, too,
    a side file (--json) has only the instructions around the findings.
    """
    from ckptaudit.jobs.explain import explaining
    from ckptaudit.policy import Severity

    threshold = Severity(fail_on)

    def status(result: Explanation) -> int:
        if result.verdict >= threshold:
            return BAD
        return GOOD if result.coverage.complete else NONE

    answers = Answers(status, explanation_as)
    outputs.check()
    policy = chosen_policy(ctx, policy_path, no_hash=no_hash)
    began = False

    def work() -> Explanation:
        nonlocal began
        with explaining(
            path, record=record, context=context, with_hash=not no_hash, policy=policy
        ) as job:
            if every:
                began = True
                answers.stream(_pieces(job, outputs.format_), outputs.format_)
            return job.explanation

    answers.ask(path, work)
    note_unused(policy_path, policy, answers.results, no_hash=no_hash)
    # Of an answer that has begun nothing is written twice, though it may have broken off.
    ctx.exit(answers.finish(outputs) if began else answers.deliver(outputs))


def _pieces(job: Explaining, format_: str) -> Iterator[str]:
    """The whole answer, as it is made, in pieces worth a write."""
    from ckptaudit.report.explanation import explanation_json, explanation_text

    render = explanation_json if format_ == "json" else explanation_text
    piece: list[str] = []
    length = 0
    for part in render(job.explanation, job.listing):
        piece.append(part)
        length += len(part)
        if length >= _PIECE:
            yield "".join(piece)
            piece.clear()
            length = 0
    yield "".join(piece)
