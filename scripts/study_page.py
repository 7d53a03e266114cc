"""What was measured, as the parts of docs/fp16.md that are not written by hand.

Knows:      how the page says each thing, and how a part of it is marked.
Is told:    everything that was measured.
Never asks: how.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import study_files
import study_unet
import study_vae
import study_weights
import torch
from contest import machine, table
from study_half import DEVICE

if TYPE_CHECKING:
    from study_files import Load
    from study_unet import Forward, Trajectory
    from study_vae import Vae
    from study_weights import Cost, Judgement

    from ckptaudit import Conversion

__all__ = ["Extent", "Findings", "filled", "sections"]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is done.

    Attributes:
        rounds: Counted rounds of loading.
        latents: Height and width of the latents of single passes.
        timesteps: When they are made.
        sampled: The same of the sampling run.
        steps: Its steps.
        decoded: The same of what is decoded.
        growths: Of the decoders.
        channels: Of the one convolution that torch does in float16.
    """

    rounds: int = 5
    latents: int = 64
    timesteps: tuple[int, ...] = study_unet.TIMESTEPS
    sampled: int = 32
    steps: int = study_unet.STEPS
    decoded: int = 32
    growths: tuple[int, ...] = study_vae.GROWTHS
    channels: int = 640


@dataclass
class Findings:
    """Everything that was measured.

    Attributes:
        extent: How much was done.
        sizes: The table of what the files take.
        conversions: By type.
        judgements: By type, what torch found of the report.
        histograms: By component, how many weights have which exponent.
        loads: Of each file.
        forward: Single passes of the UNet.
        sampled: The sampling run.
        vae: The decoders.
        kernel: The one convolution.
    """

    extent: Extent
    sizes: list[str]
    conversions: dict[str, Conversion]
    judgements: dict[str, Judgement]
    histograms: dict[str, dict[int, int]]
    loads: list[Load]
    forward: Forward
    sampled: Trajectory
    vae: Vae
    kernel: dict[str, float]

    @property
    def costs(self) -> dict[str, dict[str, Cost]]:
        """By type and component."""
        return {
            kind: study_weights.costs(self.conversions[kind], dtype)
            for kind, dtype in (("fp16", "float16"), ("bf16", "bfloat16"))
        }


def sections(found: Findings, took: float, *, quick: bool) -> dict[str, str]:
    """The parts of the page, by name; they took *took* seconds to measure."""
    forward, vae = found.forward, found.vae
    moved = f"{vae.moved:.1e} (relative L2)"
    parts = {
        "short": [_short(found)],
        "machine": [_machine(took, quick=quick)],
        "kinds": study_weights.kinds_table(),
        "sizes": found.sizes,
        "loads": study_files.loads_table(found.loads),
        "memory": [
            *study_files.memory_table(found.loads),
            "",
            *study_unet.memory_table(forward),
        ],
        "costs": [*study_weights.costs_table(found.costs), "", _agreement(found)],
        "blocks": [_passes(found), "", *study_unet.blocks_table(forward)],
        "forward": study_unet.forward_table(forward),
        "sampling": _sampling(found),
        "latency": [*study_unet.latency_table(forward), "", _kernel(found)],
        "vae-weights": study_vae.weights_table(vae),
        "vae-images": [
            *study_vae.decoded_table(vae),
            "",
            f"In float32 the loudest decoder's image is {moved} from the first one's.",
        ],
    }
    if vae.overflowing:
        loud = vae.overflowing
        head = f"Growth {loud.growth}, the first that has no finite image in float16:"
        parts["vae-layers"] = [head, "", *study_vae.layers_table(loud)]
    return {name: "\n".join(lines) for name, lines in parts.items()}


def _machine(took: float, *, quick: bool) -> str:
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU"
    libraries = ("torch", "diffusers", "safetensors", "numpy", "numkong")
    when = f"{time.strftime('%Y-%m-%d')}, {took / 60:.0f} minutes, load {os.getloadavg()[2]:.1f}"
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    said = f"{when}.  {machine()}, {where};\n{versions}."
    return f"{said}  Thin layers: it shows that the script runs, no more." if quick else said


def _short(found: Findings) -> str:
    """The answers in a few sentences."""
    cost = found.costs["fp16"].values()
    numel = sum(each.numel for each in cost)
    flushed = sum(each.flushed for each in cost)
    overflowed = sum(each.overflowed for each in cost)
    subnormal = sum(each.subnormal for each in cost) / numel
    typical = {
        name: f"{study_unet.typical(found.forward, name):.1e}" for name in found.forward.errors
    }
    last = {name: f"{each.relative:.1e}" for name, each in found.sampled.last.items()}
    stored, held = (f"{kind} stored, fp32 computed" for kind in ("fp16", "bf16"))
    text = f"""\
* Of {numel:,} weights {overflowed:,} overflow fp16, {flushed:,} become zero and {subnormal:.2%}
  lose bits to being subnormal.
* Weights stored in fp16 move one pass of the UNet by {typical[stored]} (relative L2, median over
  timesteps), in bf16 by {typical[held]}; with everything computed in that type as well it is
  {typical["fp16"]} and {typical["bf16"]}.
* After {found.extent.steps} DDIM steps the latent is {last["fp16"]} from that of fp32 where all is
  fp16, and {last["bf16"]} where all is bf16."""
    loud = found.vae.overflowing
    if loud is None:
        return text
    largest, reached = f"{loud.cost.largest:,.0f}", f"{max(loud.largest.values()):,.0f}"
    return f"""{text}
* A decoder whose largest weight is {largest}, so that {loud.cost.overflowed} of its weights
  overflow fp16, reaches activations of {reached}: in fp16 it gives no image
  ({loud.black["fp16"]:.0%} of it is black), in bf16 the one that it always gave."""


def _agreement(found: Findings) -> str:
    """Whether the reports are right, in a sentence."""
    said = [
        f"{kind}: {judged.tensors - len(judged.differing)} of {judged.tensors} tensors"
        for kind, judged in found.judgements.items()
    ]
    return f"The report on a tensor is what torch finds in the files ({'; '.join(said)})."


def _passes(found: Findings) -> str:
    size, deviation = found.forward.size, found.forward.output
    return (
        f"Latents {size} x {size}; the output has a standard deviation of {deviation:.2f}.  Block "
        f"by block at timestep {study_unet.BLOCKS_AT}:"
    )


def _sampling(found: Findings) -> list[str]:
    """The sampling run, in words and a table."""
    sampled, steps = found.sampled, found.extent.steps
    middle = steps // 2
    rows = [
        (
            name,
            *(f"{errors[at - 1]:.1e}" for at in (1, middle, steps)),
            f"{sampled.last[name].cosine:.1e}",
        )
        for name, errors in sampled.errors.items()
        if name != "fp32"
    ]
    head = ("run as", "after step 1", f"{middle}", f"{steps}", "1 - cosine of the last")
    said = (
        f"Latents {sampled.size} x {sampled.size}, no guidance, prediction `{sampled.prediction}`; "
        f"the last latent of fp32 has a standard deviation of {sampled.deviation:.2f}."
    )
    return [said, "", *table(head, rows)]


def _kernel(found: Findings) -> str:
    """What is to be known of the fp16 row."""
    if DEVICE == "cuda":
        return "All on the GPU, by torch's own kernels."
    kernel = found.kernel
    torchs, ours = (kernel[name] / kernel["float32"] for name in ("float16", "ours"))
    return (
        f"In the fp16 row products are done as described above.  A convolution of torch's own in "
        f"float16 (3 x 3, {found.extent.channels} channels, 16 x 16) takes {torchs:.0f} times as "
        f"long as in float32 here, ours {ours:.1f} times; their results differ by "
        f"{kernel['apart']:.0e} (relative L2)."
    )


def filled(page: str, parts: dict[str, str]) -> str:
    r"""*page* with each of *parts* between its marks.

    Raises:
        ValueError: The page has no place for one of them, or several.

    >>> filled("<!-- study: a -->\nold\n<!-- /study -->", {"a": "new"})
    '<!-- study: a -->\n\nnew\n\n<!-- /study -->'
    """
    for name, text in parts.items():
        head, opened, rest = page.partition(f"<!-- study: {name} -->\n")
        _, closed, tail = rest.partition("<!-- /study -->")
        if not opened or not closed or opened in tail:
            raise ValueError(f"there is not one place for {name!r} in the page")
        page = f"{head}{opened}\n{text}\n\n{closed}{tail}"
    return page
