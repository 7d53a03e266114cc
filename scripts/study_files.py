"""How large the files are, how long they take to load, and how much memory their weights hold.

Each load is a process of its own, timed inside without imports, in rounds of one load each, in
turn.  The files were read before, so that they lie in the page cache.  A file that is mapped
is not read until its numbers are wanted; so a load is timed twice, until the call returns and
until every page has been touched.

Knows:      how checkpoints are loaded.
Is told:    a checkpoint, and what it was converted to.
Never asks: what is in them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from contest import Contestant, spread, table

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Load", "loads", "loads_table", "memory_table", "sizes_table"]

_CHILD = """
import json, sys, time
from pathlib import Path
import torch
from safetensors.torch import load_file

def held():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return found["Pss"], found.get("Pss_Anon", 0)

path = sys.argv[1]
before = held()
start = time.perf_counter()
weights = LOAD
loaded = time.perf_counter() - start
weights = weights.get("state_dict", weights)
tensors = [each for each in weights.values() if isinstance(each, torch.Tensor)]
for tensor in tensors:
    tensor.reshape(-1).view(torch.uint8)[::4096].sum()
touched = time.perf_counter() - start
after = held()
storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
computed = sum(t.numel() * t.element_size() for t in tensors)
print(json.dumps({
    "loaded": loaded,
    "touched": touched,
    "pss": (after[0] - before[0]) * 1024,
    "anonymous": (after[1] - before[1]) * 1024,
    "storages": sum(storages.values()),
    "computed": computed,
}))
"""
_TORCH = "torch.load(path, weights_only=True, map_location='cpu')"
_MAPPED = "torch.load(path, weights_only=True, map_location='cpu', mmap=True)"
_SAFE = "load_file(path)"


@dataclass
class Load:
    """One way to load the weights, and how it went each time.

    Attributes:
        name: What the tables call it.
        loaded: Seconds until the call returned.
        touched: Seconds until every page had been touched.
        pss: Bytes the process held more than before it.
        anonymous: How much of that is no page of a file.
        storages: Bytes of the storages torch says it has.
        computed: Elements times their size.
    """

    name: str
    loaded: list[float] = field(default_factory=list)
    touched: list[float] = field(default_factory=list)
    pss: list[float] = field(default_factory=list)
    anonymous: list[float] = field(default_factory=list)
    storages: float = 0.0
    computed: float = 0.0

    def add(self, said: dict[str, float]) -> None:
        """Note one run."""
        for name in ("loaded", "touched", "pss", "anonymous"):
            getattr(self, name).append(said[name])
        self.storages, self.computed = said["storages"], said["computed"]


def loads(source: Path, single: dict[str, Path], rounds: int) -> list[Load]:
    """Load *source*, and *single* by type, in turn, *rounds* times after a warm-up."""
    ways = [
        ("`.ckpt`, `torch.load`", _TORCH, source),
        ("`.ckpt`, `torch.load(mmap=True)`", _MAPPED, source),
        *(
            (f"{kind} `.safetensors`, `load_file`", _SAFE, single[kind])
            for kind in ("fp32", "fp16", "bf16")
        ),
    ]
    found = [(Load(name), _contestant(name, how, path)) for name, how, path in ways]
    for number in range(rounds + 1):
        for load, contestant in found:
            said: dict[str, float] = json.loads(contestant.run())
            if number:
                load.add(said)
    return [load for load, _ in found]


def _contestant(name: str, how: str, path: Path) -> Contestant:
    return Contestant(
        name, [sys.executable, "-W", "ignore", "-c", _CHILD.replace("LOAD", how), str(path)]
    )


def sizes_table(source: Path, single: dict[str, Path]) -> list[str]:
    """What the files take on the disk."""
    whole = source.stat().st_size
    rows = [(f"`{source.suffix}`, as it came", f"{whole / 1e9:.3f}", "1")]
    for kind, path in single.items():
        size = path.stat().st_size
        rows.append((f"{kind} `.safetensors`", f"{size / 1e9:.3f}", f"{size / whole:.3f}"))
    return table(("file", "GB", "of the source"), rows)


def loads_table(found: list[Load]) -> list[str]:
    """How long each load took, and against the first in the same round."""
    first = found[0].touched
    rows = []
    for load in found:
        ratio = [one / other for one, other in zip(load.touched, first, strict=True)]
        rows.append((load.name, spread(load.loaded, 3), spread(load.touched, 3), spread(ratio)))
    head = (
        "load",
        "s until it returns",
        "s until every page is touched",
        "the latter / the first row's",
    )
    return table(head, rows)


def memory_table(found: list[Load]) -> list[str]:
    """What a process that holds the weights takes, measured and computed."""
    rows = [
        (
            load.name,
            f"{load.computed / 1e6:.0f}",
            f"{load.storages / 1e6:.0f}",
            f"{median(load.pss) / 1e6:.0f}",
            f"{median(load.anonymous) / 1e6:.0f}",
        )
        for load in found
    ]
    head = (
        "load",
        "elements x size, MB",
        "torch's storages, MB",
        "process grew by, MB",
        "of it no page of the file, MB",
    )
    return table(head, rows)
