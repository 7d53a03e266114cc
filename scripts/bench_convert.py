"""A conversion against what people do today, and against the least that it could take.

A virtual machine may have given its free memory back to its host, and then pays four
seconds per GB to get it again.  So that nobody pays this for somebody else, as much
memory as the hungriest contestant takes is touched and freed before each run.

Knows:      the recipe with torch, and what a conversion reads and writes.
Is told:    a checkpoint, alone in a folder.
Never asks: how contestants are timed (`contest`).
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from contest import Contestant, filesystem, machine, ratios, spread, table

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["bench_convert"]

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


def bench_convert(source: Path, rounds: int) -> str:
    """Convert *source* in *rounds* counted rounds after a warm-up, and describe them in Markdown.

    Memory is taken in a round of its own, which is not timed.
    """
    output = source.with_suffix(".safetensors")
    paths = [str(source), str(output)]
    convert = [sys.executable, "-m", "ckptaudit", "convert", str(source), "-o", str(output)]
    plain = Contestant("ckptaudit, no hash", [*convert, "--no-hash"])
    torch = Contestant("torch mmap + half + save_file", [sys.executable, "-c", TORCH, *paths])
    synced = Contestant("torch, and synced", [sys.executable, "-c", SYNCED, *paths])
    hashed = Contestant("ckptaudit, both hashes", convert)
    openssl = Contestant("openssl dgst -sha256", ["openssl", "dgst", "-sha256", str(source)])
    copy = Contestant("copy limit", [sys.executable, "-c", COPY, *paths])
    contestants = [plain, torch, synced, hashed, openssl, copy]
    written = 0
    for number in range(rounds + 2):
        for contestant in contestants:
            touched = str(source.stat().st_size)
            subprocess.run([sys.executable, "-c", TOUCH, touched], check=True)
            extra = [str(written)] if contestant is copy else []
            if number > rounds:
                contestant.weigh(*extra)
            else:
                contestant.run(*extra, counted=number > 0)
            if contestant is plain:
                written = output.stat().st_size
            for made in source.parent.iterdir():
                if made != source:
                    made.unlink()
    software = ", ".join(f"{name} {version(name)}" for name in ("torch", "numkong", "numpy"))
    sizes = f"Source {source.stat().st_size / 1e9:.2f} GB, output {written / 1e9:.2f} GB"
    lines = [
        f"{sizes}, on {filesystem(source.parent)}.  {machine()}, {software}.",
        "",
        *table(
            ("contestant", "seconds, median (min to max)", "peak memory of all processes, MB"),
            [(each.name, spread(each.seconds), f"{each.peak_mb:.0f}") for each in contestants],
        ),
        "",
        *ratios(
            [
                ("no hash / torch", plain.seconds, torch.seconds),
                ("no hash / torch without its imports", plain.seconds, torch.inner),
                ("no hash / torch, and synced", plain.seconds, synced.seconds),
                ("both hashes / torch", hashed.seconds, torch.seconds),
                ("both hashes / openssl of the source", hashed.seconds, openssl.seconds),
                ("no hash / copy limit", plain.seconds, copy.seconds),
            ]
        ),
    ]
    return "\n".join(lines) + "\n"
