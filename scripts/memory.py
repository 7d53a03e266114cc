"""How much memory a command takes, all of its processes together.

Knows:      what Linux tells of a process's memory.
Is told:    a command.
Never asks: what it does.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

__all__ = ["peak_mb"]


def peak_mb(
    command: Sequence[str],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    answers: Container[int] = (0,),
) -> float:
    """The most memory that *command* and the processes it makes held at once, in MB.

    What several processes share is counted once (proc(5), Pss in smaps_rollup).

    Raises:
        subprocess.CalledProcessError: It ended with another status than one of *answers*.
    """
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=cwd, env=env) as process:
        while process.poll() is None:
            peak = max(peak, sum(pss_kb(pid) for pid in (process.pid, *children(process.pid))))
            time.sleep(0.005)
    if process.returncode not in answers:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak * 1024 / 1e6


def children(pid: int) -> list[int]:
    """The processes that *pid* has made and not outlived."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def pss_kb(pid: int) -> int:
    """Memory of one process, its share of what it shares; 0 if it is gone."""
    try:
        found = re.search(
            r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE
        )
    except OSError:
        return 0
    return int(found.group(1)) if found else 0
