#!/usr/bin/env python3
"""Time what docs/performance.md shows, a conversion, a scan, a start; and casts alone.

    scripts/bench.py                      convert SD 1.5 fp32, 4.27 GB, beside torch's recipe
    scripts/bench.py convert --ema        the same with EMA copies, 7.70 GB
    scripts/bench.py scan --peers PEERS   scan it beside picklescan and modelscan, if they are in
                                          the environment PEERS (bench_scan.py says how to make it)
    scripts/bench.py heavy --peers PEERS  scan pickles that are made to cost much
    scripts/bench.py start                --version and --help
    scripts/bench.py cast                 casts alone, for docs/fp16-exhaustive.md

    --rounds N                            counted rounds, after one warm-up
    --dir FOLDER                          on the file system of FOLDER (default: in memory, if the
                                          files fit)
    --write TABLE.md                      put the tables into a file, too

Converting needs torch and safetensors in the interpreter that runs it, and openssl.

Knows:      which parts there are, and where their files go.
Is told:    a part, and options.
Never asks: how anything is timed (`contest`) or what of (`bench_cast`,
            `bench_convert`, `bench_scan`, `bench_start`).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench_cast import bench_cast
from bench_convert import bench_convert
from bench_scan import bench_heavy, bench_scan
from bench_start import bench_start
from contest import ROOT, roomy

if TYPE_CHECKING:
    from collections.abc import Callable

# Source, output and what torch holds of both; the source alone; a few hundred MB.
CONVERT_ROOM, SCAN_ROOM, HEAVY_ROOM = 12 << 30, 6 << 30, 1 << 30
ROUNDS = {"convert": 5, "scan": 15, "heavy": 3, "start": 15, "cast": 240}


def main() -> None:
    """Run one part and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", default="convert", choices=list(ROUNDS))
    parser.add_argument("--ema", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    rounds: int = arguments.rounds or ROUNDS[arguments.part]
    peers: Path | None = arguments.peers

    def convert(folder: Path) -> str:
        return bench_convert(checkpoint(folder, ema=arguments.ema), rounds)

    def scan(folder: Path) -> str:
        return bench_scan(checkpoint(folder, ema=arguments.ema), rounds, peers)

    def heavy(folder: Path) -> str:
        return bench_heavy(folder, rounds, peers)

    match arguments.part:
        case "convert":
            text = in_folder(convert, arguments.dir or roomy(CONVERT_ROOM))
        case "scan":
            text = in_folder(scan, arguments.dir or roomy(SCAN_ROOM))
        case "heavy":
            text = in_folder(heavy, arguments.dir or roomy(HEAVY_ROOM))
        case "start":
            text = bench_start(rounds)
        case _:
            text = bench_cast(rounds)
    print(text)
    if arguments.write:
        arguments.write.write_text(text)


def in_folder(part: Callable[[Path], str], parent: Path | None) -> str:
    """What *part* says, given a folder of its own in *parent* that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ckptaudit-bench-", dir=parent))
    try:
        return part(folder)
    finally:
        shutil.rmtree(folder)


def checkpoint(folder: Path, *, ema: bool) -> Path:
    """A checkpoint of Stable Diffusion 1.5, made in *folder*."""
    made = folder / "model.ckpt"
    make = [sys.executable, str(ROOT / "scripts/make_checkpoint.py"), "sd1", str(made)]
    subprocess.run([*make, *(["--ema"] if ema else [])], check=True, stdout=subprocess.DEVNULL)
    return made


if __name__ == "__main__":
    main()
