"""A scan beside those of other scanners, and pickles that are made to cost much.

The others are commands of an environment of their own, made once:

    python -m venv PEERS && PEERS/bin/pip install picklescan==1.0.5 modelscan==0.8.8

Knows:      the command lines of picklescan and modelscan, and how they end.
Is told:    a checkpoint, a folder for more files, and where that environment is.
Never asks: how contestants are timed (`contest`), what heavy pickles hold (`heavy`).
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from contest import Contestant, filesystem, machine, ratios, spread, table
from heavy import HEAVY

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["bench_heavy", "bench_scan"]

# Statuses of an answer, good or bad, and of one that is not complete.
ANSWERS = (0, 1, 2)
# Seconds after which a scanner is not waited for.
PATIENCE = 60
# Of smaller files a first run, which may have to compile the scanner, would tell less.
LEAST_COLD_BYTES = 1 << 20


def bench_scan(source: Path, rounds: int, peers: Path | None) -> str:
    """Scan *source* in *rounds* counted rounds after a warm-up, and describe them in Markdown."""
    plain = Contestant("`ckptaudit scan --no-hash`", [*ours(), "--no-hash", str(source)])
    hashed = Contestant("`ckptaudit scan`", [*ours(), str(source)])
    others = [Contestant(f"`{name} -p`", [*run, str(source)]) for name, run in scanners(peers)]
    floors = [
        Contestant("`python -c pass`", [sys.executable, "-c", "pass"]),
        Contestant('`python -c "import click"`', [sys.executable, "-c", "import click"]),
    ]
    contestants = [plain, *others, hashed, *floors]
    for number in range(rounds + 1):
        for contestant in contestants:
            contestant.run(counted=number > 0)
    for contestant in contestants:
        contestant.weigh()
    size = f"Source {source.stat().st_size / 1e9:.2f} GB on {filesystem(source.parent)}"
    lines = [
        f"{size}, {rounds} rounds.  {machine()}, {versions(peers)}.",
        "",
        *table(
            ("contestant", "seconds, median (min to max)", "peak memory, MB"),
            [(each.name, spread(each.seconds, 3), f"{each.peak_mb:.0f}") for each in contestants],
        ),
        "",
        *ratios([(f"no hash / {other.name}", plain.seconds, other.seconds) for other in others]),
    ]
    return "\n".join(lines) + "\n"


def bench_heavy(folder: Path, rounds: int, peers: Path | None) -> str:
    """Scan each of the heavy pickles *rounds* times, and describe what it took in Markdown."""
    rows = []
    for name, make in HEAVY.items():
        # Scanners that go by the name know this one for a pickle.
        file = folder / "heavy.pkl"
        file.write_bytes(make())
        contestants = [
            Contestant("ckptaudit, no hash", [*ours(), "--no-hash", str(file)], ANSWERS),
            *(Contestant(peer, [*run, str(file)], ANSWERS) for peer, run in scanners(peers)),
        ]
        size = file.stat().st_size
        warm_up = size < LEAST_COLD_BYTES
        shown = f"{name}, {size / 1e6:.1f} MB"
        rows += [(shown, each.name, *cost(each, rounds, warm_up=warm_up)) for each in contestants]
        file.unlink()
    head = ("pickle", "contestant", "seconds, median (min to max)", "peak memory, MB", "status")
    lines = [f"{rounds} rounds.  {machine()}, {versions(peers)}.", "", *table(head, rows)]
    return "\n".join(lines) + "\n"


def cost(contestant: Contestant, rounds: int, *, warm_up: bool) -> tuple[str, str, str]:
    """Seconds, memory and exit status of a contestant, if it comes to an end."""
    try:
        for number in range(rounds + warm_up):
            contestant.run(counted=number >= warm_up, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return f"more than {PATIENCE}", "", ""
    contestant.weigh()
    return spread(contestant.seconds), f"{contestant.peak_mb:.0f}", f"{contestant.status}"


def ours() -> list[str]:
    """Our command line, of this repository."""
    return [sys.executable, "-m", "ckptaudit", "scan"]


def scanners(peers: Path | None) -> list[tuple[str, list[str]]]:
    """By name, the command lines of the other scanners that are there."""
    folder = peers.absolute() / "bin" if peers else None
    return [
        (name, [str(folder / name), "-p"])
        for name in ("picklescan", "modelscan")
        if folder and (folder / name).exists()
    ]


def versions(peers: Path | None) -> str:
    """Which other scanners take part, and which do not."""
    there = {name: run[0] for name, run in scanners(peers)}
    found = []
    for name in ("picklescan", "modelscan"):
        if name in there and peers:
            ask = f"from importlib.metadata import version; print(version({name!r}))"
            python = peers.absolute() / "bin/python"
            done = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True)
            found.append(f"{name} {done.stdout.strip()}")
        else:
            found.append(f"{name} is not there and was left out")
    return ", ".join(found)
