"""A conversion beside everything that people do today, for every kind of checkpoint.

Each is converted to float16 by us, by the usual recipes, and by pt-safe-loader, which keeps the
types; beside them the least that it could take.  Then it is loaded, as it was and as we
wrote it.  One source lies on the disk at a time.

A virtual machine may have given its free memory back to its host, and then pays four
seconds per GB to get it again.  So that nobody pays this for somebody else, as much
memory as a contestant may take is touched and freed before each run.

pt-safe-loader is looked for in an environment of its own:

    python -m venv PEERS && PEERS/bin/pip install pt-safe-loader==0.1.4

Who needs more memory than `MOST_MEMORY` allows gets none, and is said to fail: otherwise the
kernel would choose a process to end.

Knows:      the recipes that people use, and which of them opens what.
Is told:    which checkpoints, a folder, a number of rounds, and where that environment is.
Never asks: how contestants are timed (`contest`), how a checkpoint is made (`make_checkpoint`).
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from contest import ROOT, Contestant, filesystem, machine, spread, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["ALL", "SD1", "SD1_EMA", "Source", "bench_convert"]

# What a table says where there is nothing to say.
NOTHING = "-"
# Bytes of its own that a contestant may have.
MOST_MEMORY = 18 << 30

# The recipe of every conversion script: map, halve, save.  It says how long it took without its
# imports, too.
TORCH = """
import sys, time, torch
from safetensors.torch import save_file
start = time.perf_counter()
weights = torch.load(sys.argv[1], mmap=MMAP, weights_only=True)["state_dict"]
weights = {key: v.half() if v.is_floating_point() else v for key, v in weights.items()}
save_file(weights, sys.argv[2], {"format": "pt"})
print("without imports", time.perf_counter() - start)
"""
# What the conversion script beside safetensors does: load, make contiguous, save, load again and
# compare.  It keeps the types.
RECIPE = """
import sys, time, torch
from safetensors.torch import load_file, save_file
start = time.perf_counter()
weights = torch.load(sys.argv[1], map_location="cpu", weights_only=True)["state_dict"]
weights = {key: tensor.contiguous() for key, tensor in weights.items()}
save_file(weights, sys.argv[2], {"format": "pt"})
again = load_file(sys.argv[2])
assert all(torch.equal(tensor, again[key]) for key, tensor in weights.items())
print("without imports", time.perf_counter() - start)
"""
PEER = """
import sys, time
from pt_loader import PtCheckpoint
start = time.perf_counter()
most = {"max_archive_bytes": 1 << 40, "max_tensor_bytes": 1 << 40}
loaded = PtCheckpoint.load(sys.argv[1], state_dict_root_key="state_dict", **most)
loaded.export(format="safetensors", dir=sys.argv[2])
print("without imports", time.perf_counter() - start)
"""
# Loading, until every page of every tensor has been looked at.
LOAD_TORCH = """
import sys, time, torch
start = time.perf_counter()
weights = torch.load(sys.argv[1], mmap=MMAP, weights_only=True)["state_dict"]
looked = sum(float(v.flatten()[::1024].sum()) for v in weights.values())
print("without imports", time.perf_counter() - start)
"""
LOAD_SAFETENSORS = """
import sys, time, torch
from safetensors.torch import load_file
start = time.perf_counter()
weights = load_file(sys.argv[1])
looked = sum(float(v.flatten()[::1024].sum()) for v in weights.values())
print("without imports", time.perf_counter() - start)
"""
LIMIT = f"""
import resource
resource.setrlimit(resource.RLIMIT_DATA, ({MOST_MEMORY}, {MOST_MEMORY}))
"""
# Touch memory and give it back to the kernel.
TOUCH = """
import mmap, sys
size = int(sys.argv[1])
memory = mmap.mmap(-1, size)
for at in range(0, size, 4096):
    memory[at] = 1
"""
# The source read once, the output's bytes written once, as we write them: past the page cache
# where the file system lets us, whole pages at a time, synced at the end; one process, in turn.
COPY = """
import mmap, os, sys
source = os.open(sys.argv[1], os.O_RDONLY)
output = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT | os.O_TRUNC)
size = int(sys.argv[3])
os.ftruncate(output, size)
try:
    direct = os.open(sys.argv[2], os.O_RDWR | os.O_DIRECT)
except OSError:
    direct = output
block = memoryview(mmap.mmap(-1, 4 << 20))
at = 0
while count := os.preadv(source, [block], at):
    at += count
for at in range(0, size, len(block)):
    count = min(len(block), size - at)
    os.pwrite(output if count % 4096 else direct, block[:count], at)
os.fsync(output)
"""


class Source(NamedTuple):
    """A checkpoint to be made; see `make_checkpoint`."""

    family: str
    framing: str
    dtype: str
    has_ema: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return " ".join((*self[:3], *(["with EMA"] if self.has_ema else [])))

    def make(self, path: Path) -> None:
        """Write it to *path*."""
        script = [sys.executable, str(ROOT / "scripts/make_checkpoint.py"), self.family, str(path)]
        how = ["--dtype", self.dtype, "--framing", self.framing]
        ema = ["--ema"] if self.has_ema else []
        subprocess.run([*script, *how, *ema], check=True, stdout=subprocess.DEVNULL)


SD1 = Source("sd1", "zip", "fp32")
SD1_EMA = Source("sd1", "zip", "fp32", has_ema=True)
# 0.33, 4.27 and 13.9 GB, and half of each.
ALL = tuple(
    Source(family, framing, dtype)
    for family in ("vae", "sd1", "sdxl")
    for dtype in ("fp32", "fp16")
    for framing in ("zip", "legacy")
)


@dataclass
class Row:
    """What became of one source.

    Attributes:
        source: Which it is.
        nbytes: Its size.
        written: That of our output.
        contestants: Everyone by name; None who cannot open such a file.
        failures: By name, how one failed.
    """

    source: Source
    nbytes: int
    written: int
    contestants: dict[str, Contestant | None]
    failures: dict[str, str]

    def seconds(self, name: str) -> str:
        """What a table says of *name*'s time."""
        return self._cell(name, lambda contestant: spread(contestant.seconds))

    def inner(self, name: str) -> str:
        """The same of its time without imports."""
        return self._cell(name, lambda contestant: spread(contestant.inner))

    def memory(self, name: str) -> str:
        """The same of its memory."""
        return self._cell(name, lambda contestant: f"{contestant.peak_mb:.0f}")

    def ratio(self, pair: str) -> str:
        """The same of two names with a slash between them: the one's time by the other's."""
        first, second = (self.contestants[name] for name in pair.split(" / "))
        if first is None or second is None or {first.name, second.name} & self.failures.keys():
            return NOTHING
        pairs = zip(first.seconds, second.seconds, strict=True)
        return spread([one / other for one, other in pairs])

    def _cell(self, name: str, told: Callable[[Contestant], str]) -> str:
        contestant = self.contestants[name]
        if contestant is None:
            return NOTHING
        return self.failures.get(name) or told(contestant)


PLAIN, HASHED = "ours, no hash", "ours, both hashes"
MAPPED, READ = "torch mmap + half", "torch + half"
RECIPE_NAME, PEER_NAME = "safetensors' recipe", "pt-safe-loader"
OPENSSL, COPY_NAME = "openssl dgst -sha256", "copy limit"
CONVERT = (PLAIN, HASHED, MAPPED, READ, RECIPE_NAME, PEER_NAME, OPENSSL, COPY_NAME)
LOAD_MAPPED, LOAD_READ, LOAD_OURS = "`.ckpt`, mmap", "`.ckpt`", "`.safetensors` in fp16"
LOAD = (LOAD_MAPPED, LOAD_READ, LOAD_OURS)
BARS = ((PLAIN, MAPPED), (PLAIN, READ), (PLAIN, COPY_NAME), (HASHED, MAPPED), (HASHED, OPENSSL))


def bench_convert(sources: Sequence[Source], folder: Path, rounds: int, peers: Path | None) -> str:
    """Convert and load each of *sources* by every means, and describe it in Markdown.

    Args:
        sources: What is made, one after the other.
        folder: Where the files go; empty.
        rounds: Counted rounds, after a warm-up; memory is taken in one more.
        peers: An environment with pt-safe-loader, or None.
    """
    rows = [measured(source, folder, rounds, peers) for source in sources]
    names = ("torch", "safetensors", "numkong", "numpy")
    software = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [
        f"On {filesystem(folder)}, {rounds} rounds.  {machine()}, {software}.",
        "",
        "Seconds, median (min to max); safetensors' recipe and pt-safe-loader keep the types:",
        "",
        *grid(rows, CONVERT, Row.seconds),
        "",
        "Peak memory of all processes, MB:",
        "",
        *grid(rows, CONVERT[:-2], Row.memory),
        "",
        "Round by round, median (min to max):",
        "",
        *grid(rows, [f"{one} / {other}" for one, other in BARS], Row.ratio),
        "",
        "Loading, seconds without imports, until each page was looked at:",
        "",
        *grid(rows, LOAD, Row.inner),
    ]
    return "\n".join(lines) + "\n"


def grid(rows: Sequence[Row], names: Sequence[str], cell: Callable[[Row, str], str]) -> list[str]:
    """A table with a line for each source and a column for each of *names*."""
    head = ("source", "read, GB", "written, GB", *names)
    lines = [
        (
            row.source.name,
            gigabytes(row.nbytes),
            gigabytes(row.written),
            *(cell(row, name) for name in names),
        )
        for row in rows
    ]
    return table(head, lines)


def gigabytes(nbytes: int) -> str:
    """*nbytes* for a table."""
    return f"{nbytes / 1e9:.2f}"


def measured(source: Source, folder: Path, rounds: int, peers: Path | None) -> Row:
    """Make *source*, let every contestant at it, and take it away again."""
    path = folder / "model.ckpt"
    output = path.with_suffix(".safetensors")
    source.make(path)
    row = Row(source, path.stat().st_size, 0, dict(contestants(source, path, peers)), {})
    print(f"{source.name}: {gigabytes(row.nbytes)} GB", file=sys.stderr, flush=True)
    for number in range(rounds + 2):
        for name in CONVERT:
            attempt(row, name, number, rounds)
            if name == PLAIN:
                row.written = output.stat().st_size
            clear(folder, path)
    ours = row.contestants[PLAIN]
    if ours is not None:
        ours.run(counted=False)
    for number in range(rounds + 1):
        for name in LOAD:
            attempt(row, name, number, rounds)
    clear(folder)
    return row


def attempt(row: Row, name: str, number: int, rounds: int) -> None:
    """Let *name* at the source once: to warm up, counted, or, at last, to be weighed."""
    contestant = row.contestants[name]
    if contestant is None or name in row.failures:
        return
    touched = min(row.nbytes, free_memory())
    subprocess.run([sys.executable, "-c", TOUCH, str(touched)], check=True)
    extra = [str(row.written)] if name == COPY_NAME else []
    try:
        if number > rounds:
            contestant.weigh(*extra)
        else:
            contestant.run(*extra, counted=number > 0)
    except subprocess.CalledProcessError as err:
        row.failures[name] = f"fails ({err.returncode})"


def contestants(
    source: Source, path: Path, peers: Path | None
) -> Iterator[tuple[str, Contestant | None]]:
    """Yield everyone by name, with None for who does not open what *source* is."""
    output = str(path.with_suffix(".safetensors"))
    ours = [sys.executable, "-m", "ckptaudit", "convert", str(path), "-o", output]
    yield PLAIN, Contestant(PLAIN, [*ours, "--no-hash"])
    yield HASHED, Contestant(HASHED, ours)
    for name, recipe, argument in (
        (MAPPED, TORCH.replace("MMAP", "True"), output),
        (READ, TORCH.replace("MMAP", "False"), output),
        (RECIPE_NAME, RECIPE, output),
        (LOAD_MAPPED, LOAD_TORCH.replace("MMAP", "True"), ""),
        (LOAD_READ, LOAD_TORCH.replace("MMAP", "False"), ""),
    ):
        # torch maps zips only; what it maps is no memory of its own, but would count as such.
        maps = "mmap=True" in recipe
        is_opened = source.framing == "zip" or not maps
        command = [sys.executable, "-c", recipe if maps else LIMIT + recipe, str(path), argument]
        yield name, Contestant(name, command) if is_opened else None
    load = [sys.executable, "-c", LOAD_SAFETENSORS, output]
    yield LOAD_OURS, Contestant(LOAD_OURS, load)
    peer = [str(peers / "bin/python") if peers else "", "-c", LIMIT + PEER, str(path)]
    yield PEER_NAME, Contestant(PEER_NAME, [*peer, str(path.parent)]) if peers else None
    yield OPENSSL, Contestant(OPENSSL, ["openssl", "dgst", "-sha256", str(path)])
    yield COPY_NAME, Contestant(COPY_NAME, [sys.executable, "-c", COPY, str(path), output])


def clear(folder: Path, *kept: Path) -> None:
    """Remove all files in *folder* but those *kept*."""
    for made in folder.iterdir():
        if made not in kept:
            made.unlink()


def free_memory() -> int:
    """Bytes that nothing uses, not even as a cache; less a tenth."""
    found = re.search(r"^MemFree: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found.group(1)) * 1024 * 9 // 10 if found else 0
