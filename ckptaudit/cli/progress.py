"""A progress bar on a terminal, and nothing anywhere else.

Knows:      rich, and when a bar is out of place.
Is told:    bytes done, and bytes in all.
Never asks: what they are.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["progress_bar"]

_SECONDS_BETWEEN_LOOKS = 0.1


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr while the block runs, if stderr is a terminal.

    Yields:
        A function to be told bytes done, and bytes in all.
    """
    # Started without a stderr, Python has none.
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if not is_terminal or os.environ.get("CI") or os.environ.get("TERM") == "dumb":
        yield lambda _done, _total: None
        return
    # rich costs 40 ms to import: only a terminal pays for it.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from ckptaudit.report import printable

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # No refreshing thread: a process with threads cannot be forked.
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task(printable(what), total=None)
        drawn = 0.0

        def advance(done: int, total: int) -> None:
            nonlocal drawn
            bar.update(task, completed=done, total=total)
            if time.monotonic() - drawn > _SECONDS_BETWEEN_LOOKS:
                drawn = time.monotonic()
                bar.refresh()

        yield advance
