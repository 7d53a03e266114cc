"""The group of commands, and the wrapper that keeps exit statuses honest.

Knows:      click, and what its exit statuses get wrong.
Is told:    the command line.
Never asks: anything about bytes, pickles or tensors.

Exit status, for every command:
    0    the answer is good (clean and complete, converted, equal)
    1    the answer is bad (a finding, a loss, a difference)
    2    there is no answer (bad usage, unreadable or partly read input, a bug)
    130  interrupted
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from ckptaudit import __version__
from ckptaudit.cli.convert import convert
from ckptaudit.cli.inspect import inspect
from ckptaudit.cli.scan import scan
from ckptaudit.cli.verify import verify

__all__ = ["main", "run"]

_NO_ANSWER = 2
_INTERRUPTED = 130


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 good answer, 1 bad answer, 2 no answer, 130 interrupted.",
)
@click.version_option(__version__, prog_name="ckptaudit")
def main() -> None:
    """Read, audit and convert legacy PyTorch checkpoints without executing them."""


main.add_command(scan)
main.add_command(inspect)
main.add_command(convert)
main.add_command(verify)


def run() -> NoReturn:
    """The entry point of the console script."""
    sys.exit(_status())


def _status() -> int:
    """Run the command line; click alone would turn a bug, and an interrupt, into 1."""
    try:
        # Without standalone mode click returns what ctx.exit was given, and raises the rest.
        status = main.main(standalone_mode=False, auto_envvar_prefix="CKPTAUDIT")
    except click.ClickException as err:
        err.show()
        return _NO_ANSWER
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return _INTERRUPTED
    except BaseException as err:
        if isinstance(err, SystemExit):
            raise
        click.echo(f"ckptaudit: internal error: {type(err).__name__}: {err}", err=True)
        if os.environ.get("CKPTAUDIT_DEBUG"):
            import traceback

            traceback.print_exc()
        else:
            click.echo("  this is a bug; CKPTAUDIT_DEBUG=1 shows where: please report it", err=True)
        return _NO_ANSWER
    return status if isinstance(status, int) else 0
