"""Commands timed against each other in rounds, and the tables that come of it.

Every contestant is a process of its own, timed from outside, in rounds: one run of each per
round, in turn, so that a slow phase of the machine hits all of them.  What is compared is
the ratio within a round; tables give medians and extremes.

Knows:      processes, wall clocks, and what this machine is.
Is told:    commands.
Never asks: what they do.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from memory import peak_mb

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ROOT", "Contestant", "filesystem", "machine", "ratios", "roomy", "spread", "table"]

ROOT = Path(__file__).resolve().parent.parent
MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps its memory file system


@dataclass
class Contestant:
    """One way to do the work, and how each of its runs went.

    Attributes:
        name: What the tables call it.
        command: What is run, in the root of this repository.
        answers: Exit statuses of a run that did the work.
        seconds: Of each counted run.
        inner: The same without what a contestant says it did first (its imports).
        status: Of the last run.
        peak_mb: The most memory that all its processes held at once.
    """

    name: str
    command: list[str]
    answers: tuple[int, ...] = (0,)
    seconds: list[float] = field(default_factory=list)
    inner: list[float] = field(default_factory=list)
    status: int = 0
    peak_mb: float = 0.0

    def run(self, *extra: str, counted: bool = True, timeout: float | None = None) -> str:
        """Run the command, with *extra* arguments, and note its wall time; returns what it says.

        Raises:
            subprocess.CalledProcessError: It did not do the work.
            subprocess.TimeoutExpired: It took longer than *timeout* seconds.
        """
        start = time.perf_counter()
        done = subprocess.run(
            [*self.command, *extra],
            check=False,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
            timeout=timeout,
        )
        seconds = time.perf_counter() - start
        self.status = done.returncode
        if done.returncode not in self.answers:
            raise subprocess.CalledProcessError(done.returncode, self.command)
        if counted:
            self.seconds.append(seconds)
            inner = re.search(r"without imports ([\d.]+)", done.stdout)
            self.inner.append(float(inner.group(1)) if inner else seconds)
        return done.stdout

    def weigh(self, *extra: str) -> None:
        """Run the command once more, not timed, for its memory."""
        self.peak_mb = peak_mb(
            [*self.command, *extra], cwd=ROOT, env=environment(), answers=self.answers
        )


def environment() -> dict[str, str]:
    """That of this process; Python may keep what it compiled, as it does for whoever installs."""
    return {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def roomy(size: int) -> Path | None:
    """The memory file system, if there is room for *size* bytes."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > size:
        return MEMORY
    return None


def machine() -> str:
    """Processor and interpreter, in a few words."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    processor = model.group(1) if model else platform.processor()
    return f"{processor}, {os.cpu_count()} cores;\nPython {platform.python_version()}"


def filesystem(folder: Path) -> str:
    """What kind of file system *folder* is on."""
    stat = [shutil.which("stat") or "stat", "-f", "-c", "%T", str(folder)]
    return subprocess.run(stat, check=True, capture_output=True, text=True).stdout.strip()


def ratios(pairs: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> list[str]:
    """A table of named pairs of series, each divided round by round."""
    rows = [
        (what, spread([a / b for a, b in zip(one, other, strict=True)]))
        for what, one, other in pairs
    ]
    return table(("ratio, round by round", "median (min to max)"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    first, *rest = (f"| {' | '.join(row)} |" for row in (head, *rows))
    return [first, "|" + "---|" * len(head), *rest]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and extremes."""
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"
