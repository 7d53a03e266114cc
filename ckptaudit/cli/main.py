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

import io
import signal
import sys
from typing import NoReturn

import click

from ckptaudit import __version__
from ckptaudit.cli.answers import bug_text
from ckptaudit.cli.convert import convert
from ckptaudit.cli.explain import explain
from ckptaudit.cli.inspect import inspect
from ckptaudit.cli.outputs import show
from ckptaudit.cli.rules import rules
from ckptaudit.cli.scan import scan
from ckptaudit.cli.verify import verify

__all__ = ["main", "run"]

_NO_ANSWER = 2
_INTERRUPTED = 130
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
main.add_command(rules)
main.add_command(explain)


def run() -> NoReturn:
    """The entry point of the console script."""
    sys.exit(_status())


def _interrupt(_number: int, _frame: object) -> NoReturn:
    """Have everything cleaned up, once: a second Ctrl-C would cut the cleaning short."""
    for sent in _ENDING:
        signal.signal(sent, signal.SIG_IGN)
    raise KeyboardInterrupt


def _status() -> int:
    """Run the command line; click alone would turn a bug, and an interrupt, into 1."""
    # SIGTERM is what `timeout`, Slurm and container engines send, SIGHUP a terminal that is
    # closed: they must leave as little as Ctrl-C does.
    for sent in _ENDING:
        # What a shell or nohup has ignored stays ignored.
        if signal.getsignal(sent) is not signal.SIG_IGN:
            signal.signal(sent, _interrupt)
    try:
        # Without standalone mode click returns what ctx.exit was given, and raises the rest.
        status = main.main(prog_name="ckptaudit", standalone_mode=False)
    except click.ClickException as err:
        usage = io.StringIO()
        err.show(usage)
        for line in usage.getvalue().splitlines():
            show(line)
        return _NO_ANSWER
    except (click.Abort, KeyboardInterrupt):
        show("ckptaudit: interrupted")
        return _INTERRUPTED
    except SystemExit:
        # click makes one, of status 1, where nobody reads --help or --version to its end;
        # answers look after themselves.
        return 0
    except BaseException as err:  # noqa: BLE001 - a bug has a status of its own
        show(f"ckptaudit: {bug_text(err)}")
        return _NO_ANSWER
    return status if isinstance(status, int) else 0
