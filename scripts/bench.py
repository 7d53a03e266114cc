#!/usr/bin/env python3
"""Time what docs/performance.md shows, a conversion, a scan, a start; and casts alone.

    scripts/bench.py                      convert and load SD 1.5 fp32, 4.27 GB, beside everyone
    scripts/bench.py convert --ema        the same with EMA copies, 7.70 GB
    scripts/bench.py convert --all        the same for 0.3, 4.3 and 13.9 GB, zip and legacy, fp32
                                          and fp16; --peers PEERS for pt-safe-loader
    scripts/bench.py convert --source "sdxl zip fp32"   one of these; may be given several times
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
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench_cast import bench_cast
from bench_convert import ALL, SD1, SD1_EMA, bench_convert
from bench_scan import bench_heavy, bench_scan
from bench_start import bench_start
from contest import roomy

if TYPE_CHECKING:
    from collections.abc import Callable

# Source, output and what torch holds of both; the source alone; a few hundred MB.  The largest
# source fits into no memory beside them.
CONVERT_ROOM, ALL_ROOM, SCAN_ROOM, HEAVY_ROOM = 12 << 30, 64 << 30, 6 << 30, 1 << 30
ROUNDS = {"convert": 5, "scan": 15, "heavy": 3, "start": 15, "cast": 240}


def main() -> None:
    """Run one part and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", default="convert", choices=list(ROUNDS))
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ema", action="store_true")
    which.add_argument("--all", action="store_true")
    named = {source.name: source for source in ALL}
    which.add_argument("--source", action="append", choices=named, default=[], metavar="SOURCE")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    rounds: int = arguments.rounds or ROUNDS[arguments.part]
    peers: Path | None = arguments.peers

    chosen = [named[name] for name in arguments.source]
    sources = ALL if arguments.all else chosen or [SD1_EMA if arguments.ema else SD1]

    def convert(folder: Path) -> str:
        return bench_convert(sources, folder, rounds, peers)

    def scan(folder: Path) -> str:
        made = folder / "model.ckpt"
        sources[0].make(made)
        return bench_scan(made, rounds, peers)

    def heavy(folder: Path) -> str:
        return bench_heavy(folder, rounds, peers)

    match arguments.part:
        case "convert":
            is_large = any(source.family == "sdxl" for source in sources)
            room = ALL_ROOM if is_large else CONVERT_ROOM
            text = in_folder(convert, arguments.dir or roomy(room))
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


if __name__ == "__main__":
    main()
