"""``ckptaudit verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptaudit.cli.answers import BAD, GOOD, NONE, Answers
from ckptaudit.cli.formats import verification_as
from ckptaudit.cli.outputs import report_options
from ckptaudit.cli.progress import progress_bar

if TYPE_CHECKING:
    from ckptaudit.cli.outputs import Outputs
    from ckptaudit.jobs.verify import Verification


@click.command()
@click.argument("source", type=click.Path(readable=False))
@click.argument("converted", type=click.Path(readable=False))
@click.option(
    "--replace-vae",
    type=click.Path(readable=False),
    metavar="FILE",
    help="The file whose VAE took the place of that of SOURCE.",
)
@report_options("text", "json")
@click.pass_context
def verify(
    ctx: click.Context,
    source: str,
    converted: str,
    replace_vae: str | None,
    outputs: Outputs,
    no_hash: bool,
) -> None:
    """Prove each tensor of CONVERTED from SOURCE by a second conversion.

    SOURCE is a checkpoint, or the folder of a diffusers model; CONVERTED one file made
    from it, or the folder with all of them, settings included.  It may be the work of
    another tool; then only names and types are taken from it.
    """
    from ckptaudit.jobs.verify import verify as job

    def status(result: Verification) -> int:
        if not result.equal:
            return BAD
        return GOOD if result.coverage.complete else NONE

    answers = Answers(status, verification_as)
    outputs.check()
    with progress_bar("verifying") as progress:
        answers.ask(
            converted,
            lambda: job(
                source,
                converted,
                replace_vae=replace_vae,
                with_hash=not no_hash,
                progress=progress,
            ),
        )
    ctx.exit(answers.deliver(outputs))
