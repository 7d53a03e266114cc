#!/usr/bin/env python3
"""Time a conversion against what people do today, in alternating pairs of one run.

    scripts/bench.py                      SD 1.5 fp32, 4.27 GB, in memory if there is room
    scripts/bench.py --ema                the same with EMA copies, 7.72 GB
    scripts/bench.py --dir FOLDER         on the file system of FOLDER
    scripts/bench.py --write TABLE.md     put the table into a file, too

Every contestant is a process of its own, timed from outside, in rounds: one run of
each per round, in turn, so that a slow phase of the machine hits all of them.  What
is compared is the ratio within a round; the table gives the median and the extremes.
Memory is taken in a run of its own, which is not timed: of the processes of a conversion
the sum of their proportional set sizes, looked at every few milliseconds.

A virtual machine may have given its free memory back to its host, and then pays four
seconds per GB to get it again.  So that nobody pays this for somebody else, as much
memory as the hungriest contestant takes is touched and freed before each run.

Needs torch and safetensors in the interpreter that runs it, and openssl.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from memory import peak_mb

ROOT = Path(__file__).resolve().parent.parent
MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps its memory file system

# The recipe of every conversion script: map, halve, save.  It says how long it took without its
# imports, too.
TORCH = """
import sys, time, torch
from safetensors.torch import save_file
start = time.perf_counter()
weights = torch.load(sys.argv[1], mmap=True, weights_only=True)["state_dict"]
weights = {key: v.half() if v.is_floating_point() else v for key, v in weights.items()}
save_file(weights, sys.argv[2], {"format": "pt"})
print("without imports", time.perf_counter() - start)
"""
# The same, and the output is on the disk when it is done, as ours is.
SYNCED = f"""
import os
{TORCH}
os.fsync(os.open(sys.argv[2], os.O_RDWR))
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


@dataclass
class Contestant:
    """One way to do the work, and how each of its runs went."""

    name: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)
    inner: list[float] = field(default_factory=list)
    peak_mb: float = 0.0


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ema", action="store_true", help="7.72 GB, with EMA copies")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one warm-up")
    parser.add_argument("--dir", type=Path, help="where the files go (default: memory, if it fits)")
    parser.add_argument("--write", type=Path, help="put the table into this file too")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ckptaudit-bench-", dir=arguments.dir or roomy()))
    try:
        text = bench(folder, ema=arguments.ema, rounds=arguments.rounds)
    finally:
        shutil.rmtree(folder)
    print(text)
    if arguments.write:
        arguments.write.write_text(text)


def roomy() -> Path | None:
    """The memory file system, if there is room for source, output and what torch holds of both."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 12 << 30:
        return MEMORY
    return None


def bench(folder: Path, *, ema: bool, rounds: int) -> str:
    """Make the source in *folder*, run everything, and describe the result in Markdown."""
    source, output = folder / "model.ckpt", folder / "model.safetensors"
    make = [sys.executable, str(ROOT / "scripts/make_checkpoint.py"), "sd1", str(source)]
    subprocess.run([*make, *(["--ema"] if ema else [])], check=True, stdout=subprocess.DEVNULL)
    convert = [sys.executable, "-m", "ckptaudit", "convert", str(source), "-o", str(output)]
    contestants = [
        Contestant("ckptaudit, no hash", [*convert, "--no-hash"]),
        Contestant("torch mmap + half + save_file", [sys.executable, "-c", TORCH, *paths(folder)]),
        Contestant("torch, and synced", [sys.executable, "-c", SYNCED, *paths(folder)]),
        Contestant("ckptaudit, both hashes", convert),
        Contestant("openssl dgst -sha256", ["openssl", "dgst", "-sha256", str(source)]),
        Contestant("copy limit", [sys.executable, "-c", COPY, *paths(folder)]),
    ]
    size = 0
    for number in range(rounds + 2):
        for contestant in contestants:
            subprocess.run([sys.executable, "-c", TOUCH, str(source.stat().st_size)], check=True)
            command = contestant.command + ([str(size)] if contestant.name == "copy limit" else [])
            if number > rounds:
                contestant.peak_mb = peak_mb(command, cwd=ROOT)
            else:
                run(contestant, command, counted=number > 0)
            if contestant is contestants[0]:
                size = output.stat().st_size
            for made in folder.iterdir():
                if made != source:
                    made.unlink()
    return describe(contestants, source.stat().st_size, size, folder)


def paths(folder: Path) -> list[str]:
    """Source and output as arguments."""
    return [str(folder / "model.ckpt"), str(folder / "model.safetensors")]


def run(contestant: Contestant, command: list[str], *, counted: bool) -> None:
    """Run *command* once; note its wall time."""
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    seconds = time.perf_counter() - start
    if counted:
        contestant.seconds.append(seconds)
        inner = re.search(r"without imports ([\d.]+)", done.stdout)
        contestant.inner.append(float(inner.group(1)) if inner else seconds)


def describe(contestants: list[Contestant], size: int, written: int, folder: Path) -> str:
    """The table, with the machine it was made on."""
    plain, torch, synced, hashed, openssl, copy = contestants
    stat = [shutil.which("stat") or "stat", "-f", "-c", "%T", str(folder)]
    filesystem = subprocess.run(stat, check=True, capture_output=True, text=True).stdout.strip()
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = f"{model.group(1) if model else platform.processor()}, {os.cpu_count()} cores"
    software = ", ".join(f"{name} {version(name)}" for name in ("torch", "numkong", "numpy"))
    lines = [
        f"Source {size / 1e9:.2f} GB, output {written / 1e9:.2f} GB, on {filesystem}.  {machine};",
        f"Python {platform.python_version()}, {software}.",
        "",
        "| contestant | seconds, median (min to max) | peak memory of all processes, MB |",
        "|---|---|---|",
        *(
            f"| {contestant.name} | {spread(contestant.seconds)} | {contestant.peak_mb:.0f} |"
            for contestant in contestants
        ),
        "",
        "| ratio, round by round | median (min to max) |",
        "|---|---|",
    ]
    for what, one, other in (
        ("no hash / torch", plain.seconds, torch.seconds),
        ("no hash / torch without its imports", plain.seconds, torch.inner),
        ("no hash / torch, and synced", plain.seconds, synced.seconds),
        ("both hashes / torch", hashed.seconds, torch.seconds),
        ("both hashes / openssl of the source", hashed.seconds, openssl.seconds),
        ("no hash / copy limit", plain.seconds, copy.seconds),
    ):
        ratios = [a / b for a, b in zip(one, other, strict=True)]
        lines.append(f"| {what} | {spread(ratios)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Median and extremes."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
