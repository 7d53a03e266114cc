"""Measure what fp16 does to a model: the numbers, tables and plots of docs/fp16.md.

    pip install --group dev --group study
    python scripts/fp16_study.py --write docs/fp16.md
    python scripts/fp16_study.py --model v1-5-pruned.ckpt      a file of your own (sd1)
    python scripts/fp16_study.py --quick                       thin layers, to see that it runs

Everything is converted by `ckptaudit.convert`, and what that reports is held against what torch
finds in the files.  Without ``--model`` weights are made up, at scales like those of a trained
Stable Diffusion 1.5 (`trained`).  It takes a quarter of an hour, 16 GB of disk and 10 GB of
memory; on a GPU where there is one.

``--reference FILE...`` measures trained networks for the table that the scales are chosen by;
they are loaded by torch with ``weights_only=True``, so name only files that you trust.

In the page that ``--write`` names, what lies between ``<!-- study: NAME -->`` and
``<!-- /study -->`` is replaced where NAME was measured; plots are put beside it.

Exit status: 0 all is as the page says, 1 something is not.

Knows:      the order of the study, and what it has to show.
Is told:    a checkpoint, or none.
Never asks: how a part is measured (`study_files`, `study_unet`, `study_vae`, `study_weights`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
# Every setting comes from the folders that we wrote.
os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers  # noqa: E402 - it reads the environment
import study_files  # noqa: E402 - the same
import study_unet  # noqa: E402 - the same
import study_vae  # noqa: E402 - the same
import study_weights  # noqa: E402 - the same
from make_checkpoint import Options as Made  # noqa: E402 - the path is set above
from make_checkpoint import write_checkpoint  # noqa: E402 - the same
from study_half import convolution  # noqa: E402 - the same
from study_page import Extent, Findings, filled, sections  # noqa: E402 - the same
from study_plots import draw  # noqa: E402 - the same

from ckptaudit import (  # noqa: E402 - the same
    Action,
    CkptauditError,
    Layout,
    Options,
    Precision,
    convert,
)
from ckptaudit.layouts import FAMILIES  # noqa: E402 - the same

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

TYPES = ("fp32", "fp16", "bf16")
OURS = "synthetic-sd15.ckpt"


QUICK = Extent(
    rounds=1, latents=16, timesteps=(741, 21), sampled=8, steps=3, decoded=8, growths=(1, 32),
    channels=32,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what *arguments* ask for, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a checkpoint of family sd1 in float32")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--reference", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--write", type=Path, metavar="PAGE.md")
    parser.add_argument("--dir", type=Path, help="where to make a folder to work in")
    chosen = parser.parse_args(arguments)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    if chosen.quick:
        thin()
    if chosen.model and (objection := objection_to(chosen.model)):
        parser.error(objection)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="fp16-study-", dir=chosen.dir))
    try:
        found = measure(folder, QUICK if chosen.quick else Extent(), chosen.model)
        parts = sections(found, time.monotonic() - began, quick=chosen.quick)
        if chosen.reference:
            ours = folder / OURS
            files = [*chosen.reference, ours if ours.exists() else write_sd1(ours)]
            parts["reference"] = "\n".join(study_weights.reference_table(files))
    finally:
        shutil.rmtree(folder)
    print("\n\n".join(f"## {name}\n\n{text}" for name, text in parts.items()))
    if chosen.write:
        draw(chosen.write.parent, found.histograms, found.forward, found.sampled, found.vae)
        page = chosen.write.read_text(encoding="utf-8")
        chosen.write.write_text(filled(page, parts), encoding="utf-8")
    wrong = disagreements(found)
    for sentence in wrong:
        print(f"NOT SO: {sentence}", file=sys.stderr)
    return int(bool(wrong))


def thin() -> None:
    """Take thin layers for the families studied, for a run that only shows that all works."""
    from narrow import narrow  # noqa: PLC0415 - it needs what tests need

    # The package has a function of the module's name.
    module = sys.modules["ckptaudit.layouts.detect"]
    made = {name: narrow(FAMILIES[name]) for name in ("sd1", "vae-sdxl")}
    for names in (vars(module), globals()):
        names["FAMILIES"] = {**FAMILIES, **made}


def objection_to(model: Path) -> str:
    """Why *model* is not what the study is about, or ""; ckptaudit looks at it before torch."""
    try:
        plan = convert(model, model.with_suffix(".never.safetensors"), dry_run=True)
    except CkptauditError as err:
        return str(err)
    if plan.family == "sd1" and any(t.source_dtype == "float32" for t in plan.tensors):
        return ""
    return f"{model}: it is no Stable Diffusion 1.x with weights in float32"


def say(what: str) -> None:
    """Tell whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def write_sd1(path: Path) -> Path:
    """Write a checkpoint of Stable Diffusion 1.5 with weights like trained ones to *path*."""
    write_checkpoint(path, FAMILIES["sd1"].inventory(), Made(values="trained"))
    return path


def measure(folder: Path, extent: Extent, model: Path | None) -> Findings:
    """Do all of it, in *folder*."""
    say("source")
    source = model or write_sd1(folder / OURS)
    single, conversions, judgements = {}, {}, {}
    for kind in TYPES:
        say(f"convert to {kind}")
        single[kind] = folder / f"model-{kind}.safetensors"
        options = Options(precision=Precision(kind), vae=Action.CONVERT)
        conversions[kind] = convert(source, single[kind], options)
    for kind in ("fp16", "bf16"):
        say(f"compare {kind} with what was reported")
        judgements[kind] = study_weights.judge(conversions[kind], single["fp32"], single[kind])
    histograms = study_weights.histograms(conversions["fp32"], single["fp32"])
    say("load")
    loads = study_files.loads(source, single, extent.rounds)
    sizes = study_files.sizes_table(source, single)
    for path in single.values():
        path.unlink()
    folders = {kind: unet_folder(source, folder, kind) for kind in TYPES}
    say("UNet, one pass at a time")
    forward = study_unet.forward(folders, extent.latents, extent.timesteps)
    say("UNet, sampling")
    prediction = conversions["fp32"].prediction if model else None
    sampled = study_unet.trajectory(
        folders, extent.sampled, prediction or "v_prediction", extent.steps
    )
    for path in folders.values():
        shutil.rmtree(path)
    say("VAE")
    vae = study_vae.study(source, folder, extent.decoded, extent.growths)
    say("one convolution")
    kernel = convolution(extent.channels, 16)
    return Findings(
        extent, sizes, conversions, judgements, histograms, loads, forward, sampled, vae, kernel
    )


def unet_folder(source: Path, folder: Path, kind: str) -> Path:
    """The UNet of *source* alone, converted to *kind*, as diffusers opens it."""
    say(f"UNet to {kind}")
    out = folder / f"unet-{kind}"
    options = Options(
        precision=Precision(kind),
        layout=Layout.DIFFUSERS,
        vae=Action.DROP,
        text_encoder=Action.DROP,
        other=Action.DROP,
    )
    convert(source, out, options)
    return out


def disagreements(found: Findings) -> list[str]:
    """What the page says and is not so; empty if all is."""
    wrong = []
    for kind, judgement in found.judgements.items():
        if judgement.differing or not judgement.tensors:
            wrong.append(f"the report on {kind} is what torch finds: {judgement.differing[:3]}")
    if any(each.finite < 1 for errors in found.forward.errors.values() for each in errors.values()):
        wrong.append("every output of the UNet is finite")
    decoders = list(found.vae.decoders.values())
    first, loud = decoders[0], found.vae.overflowing
    if first.finite["fp16"] < 1 or loud is None:
        wrong.append("float16 decodes at first, and no longer when the stream is louder")
    if any(each.cost.overflowed for each in decoders):
        wrong.append("every weight of every decoder fits float16")
    if any(each.finite["bf16"] < 1 for each in decoders):
        wrong.append("bfloat16 decodes every time")
    if any(set(each.default) != {"float32"} for each in decoders):
        wrong.append("an autoencoder of SDXL stays in float32 by default")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
