"""Have diffusers judge what we make of models at their full size.

The laws are those of ``tests/test_diffusers_oracle.py``, which CI holds with thin layers: our
folder has the tensors of diffusers' own conversion, `DiffusionPipeline.from_pretrained` opens it,
`from_single_file` opens our single file, and one pass through UNet and VAE gives the same numbers.

    pip install --group dev --group oracle
    python scripts/full_size.py [FAMILY ...] [--dir FOLDER]

Without families: those that DEFAULT names, one after the other.

Exit status: 0 all agree, 1 something does not.

Knows:      how a family is made at full size, and whom to ask.
Is told:    which families.
Never asks: what a layout is made of.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
# Every setting comes from the folder that we wrote.
os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers  # noqa: E402 - it reads the environment
import torch  # noqa: E402 - the same
from narrow import read  # noqa: E402 - the path is set above
from test_diffusers_oracle import (  # noqa: E402 - the same
    FETCHED,
    KEEP,
    ORIGINAL,
    brought,
    forward,
    own_conversion,
    same,
    text_prefix,
)

from ckptaudit import convert  # noqa: E402 - the same
from ckptaudit.layouts import FAMILIES  # noqa: E402 - the same

DEFAULT = ["sd1", "sd1-inpainting", "sd2", "sdxl"]
# What transformers computes itself, and diffusers leaves out of its own conversion.
COMPUTED = {"text_model.embeddings.position_ids"}
# Which kernel multiplies depends on where in memory a weight lies.
TOLERANCE = 1e-3
KINDS = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}


def main() -> int:
    """Judge each family; 1 if something differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", default=DEFAULT, metavar="FAMILY")
    parser.add_argument("--dir", type=Path, help="where to make a folder to work in")
    arguments = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    names = ("torch", "diffusers", "transformers")
    print(", ".join(f"{name} {version(name)}" for name in names), "\n")
    print("| family | tensors equal to diffusers' own | opened | largest difference | seconds |")
    print("|---|---|---|---|---|", flush=True)
    agreed = True
    for family in arguments.families:
        with tempfile.TemporaryDirectory(prefix="full-size-", dir=arguments.dir) as folder:
            start = time.monotonic()
            good, cells = judge(family, Path(folder))
        agreed &= good
        print(f"| `{family}` | {cells} | {time.monotonic() - start:.0f} |", flush=True)
    return int(not agreed)


def judge(family: str, folder: Path) -> tuple[bool, str]:
    """Whether diffusers agrees, and three cells of the table."""
    source, single, out = folder / "a.ckpt", folder / "a.safetensors", folder / "out"
    make = [sys.executable, str(ROOT / "scripts/make_checkpoint.py"), family, str(source)]
    subprocess.run([*make, "--dtype", "fp16"], check=True, stdout=subprocess.DEVNULL)
    convert(source, out, KEEP)
    convert(source, single, ORIGINAL)
    equal, total = conversion(family, source, out)
    opened, apart = opening(single, out)
    cells = f"{equal} of {total} | {', '.join(opened)} | {apart:.2g}"
    return equal == total and opened == list(KINDS) and apart <= TOLERANCE, cells


def conversion(family: str, source: Path, out: Path) -> tuple[int, int]:
    """How many tensors of the folder *out* are those of diffusers' own, and how many either has."""
    tensors = torch.load(source, mmap=True, weights_only=True)["state_dict"]
    equal = total = 0
    homes = {path.parent for path in out.glob("*/config.json")} - {out / name for name in FETCHED}
    for home in sorted(homes):
        prefix = text_prefix(FAMILIES[family], home.name)
        theirs = own_conversion(tensors, out, home.name, prefix)
        ours = read(out, home.name)
        names = (ours.keys() | theirs.keys()) - COMPUTED
        total += len(names)
        both = names & ours.keys() & theirs.keys()
        equal += sum(torch.equal(ours[name], theirs[name].contiguous()) for name in both)
    return equal, total


def opening(single: Path, out: Path) -> tuple[list[str], float]:
    """Which models diffusers opens alike from folder and file, and how far their numbers differ."""
    half = {"torch_dtype": torch.float16}
    index = diffusers.DiffusionPipeline.load_config(out)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(out, **brought(index), **half)
    held = {component: getattr(pipeline, component) for component in KINDS}
    del pipeline
    opened, apart = [], 0.0
    for component, kind in KINDS.items():
        from_folder: Any = held.pop(component)
        from_file: Any = kind.from_single_file(
            str(single), config=str(out), subfolder=component, **half
        )
        weights = from_folder.state_dict()
        if same(weights, read(out, component)) and same(weights, from_file.state_dict()):
            opened.append(component)
        del weights
        with torch.no_grad():
            # A processor computes in single precision; there is room for one model of it at a time.
            one = forward(from_folder.float(), component)
            del from_folder
            other = forward(from_file.float(), component)
        finite = torch.isfinite(one).all() and torch.isfinite(other).all()
        apart = max(apart, float((one - other).abs().max()) if finite else float("inf"))
    return opened, apart


if __name__ == "__main__":
    sys.exit(main())
