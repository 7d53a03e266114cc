"""How long a command takes that has nothing to do, and what importing the package loads.

Knows:      what a start is made of: the interpreter, click, and our own modules.
Is told:    how many rounds.
Never asks: how contestants are timed (`contest`).
"""

from __future__ import annotations

import subprocess
import sys

from contest import ROOT, Contestant, machine, ratios, spread, table

__all__ = ["bench_start"]

# Of these `import ckptaudit` loads none.
HEAVY_MODULES = ("click", "msgspec", "numkong", "numpy", "rich", "safetensors", "torch")
LOADED = f"import ckptaudit, sys; print(*sorted({set(HEAVY_MODULES)!r} & sys.modules.keys()))"


def bench_start(rounds: int) -> str:
    """Start in *rounds* counted rounds after a warm-up, and describe them in Markdown."""
    python, command = [sys.executable, "-c"], [sys.executable, "-m", "ckptaudit"]
    bare = Contestant("`python -c pass`", [*python, "pass"])
    package = Contestant('`python -c "import ckptaudit"`', [*python, "import ckptaudit"])
    click = Contestant('`python -c "import click"`', [*python, "import click"])
    version = Contestant("`ckptaudit --version`", [*command, "--version"])
    usage = Contestant("`ckptaudit scan --help`", [*command, "scan", "--help"])
    contestants = [bare, package, click, version, usage]
    for number in range(rounds + 1):
        for contestant in contestants:
            contestant.run(counted=number > 0)
    loaded = subprocess.run(
        [*python, LOADED], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.split()
    lines = [
        f"{rounds} rounds.  {machine()}.",
        "",
        *table(
            ("command", "seconds, median (min to max)"),
            [(each.name, spread(each.seconds, 3)) for each in contestants],
        ),
        "",
        *ratios(
            [(f"--version / {each.name}", version.seconds, each.seconds) for each in (bare, click)]
        ),
        "",
        f"Of {', '.join(HEAVY_MODULES)}, `import ckptaudit` loads {', '.join(loaded) or 'none'}.",
    ]
    return "\n".join(lines) + "\n"
