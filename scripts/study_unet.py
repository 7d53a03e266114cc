"""How far a UNet's output moves when its weights, or all its arithmetic, have sixteen bits.

Five ways: float32; weights stored as float16 or bfloat16 and computed with in float32; and
everything in float16 or bfloat16.  The first two say what a conversion costs, the others what
running in half costs on top.  Inputs are the same for all.

Knows:      diffusers' UNet and its DDIM scheduler.
Is told:    folders with the UNet at each type.
Never asks: what the weights are like.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from contest import spread, table
from study_half import DEVICE, Error, error, memory_mb, rounded

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "WAYS",
    "Forward",
    "Held",
    "Trajectory",
    "Way",
    "blocks_table",
    "forward",
    "forward_table",
    "latency_table",
    "memory_table",
    "trajectory",
    "typical",
]

TIMESTEPS = (981, 741, 501, 261, 21)
STEPS = 20
BLOCKS_AT = 501
_TRAINED_STEPS = 1000
_OUTLIER = 30.0


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run the model: the file it is from, and the type it computes in."""

    name: str
    stored: str
    dtype: Any


WAYS = (
    Way("fp32", "fp32", torch.float32),
    Way("fp16 stored, fp32 computed", "fp16", torch.float32),
    Way("bf16 stored, fp32 computed", "bf16", torch.float32),
    Way("fp16", "fp16", torch.float16),
    Way("bf16", "bf16", torch.bfloat16),
)
# Those that are held at once, so that their passes can take turns.
_TIMED = ("fp32", "fp16", "bf16")


@dataclass
class Held:
    """What a model's weights hold, in MB: by arithmetic, as torch has it, as the process grew."""

    computed: float
    storages: float
    process: float


@dataclass
class Forward:
    """What passes through the model gave.

    Attributes:
        size: Height and width of the latents.
        errors: By way and timestep, against float32.
        seconds: By way held at once, of each pass.
        held: By way held at once, its memory.
        blocks: By block, deviation and largest magnitude of what it puts out in float32, and the
            relative L2 error of it by way.
        output: Deviation of the output in float32.
    """

    size: int
    errors: dict[str, dict[int, Error]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    blocks: dict[str, tuple[float, float, dict[str, float]]] = field(default_factory=dict)
    output: float = 0.0


def load(folders: dict[str, Path], way: Way) -> tuple[Any, Held]:
    """The UNet run *way*, and what it took."""
    before = memory_mb()
    model: Any = diffusers.UNet2DConditionModel.from_pretrained(
        folders[way.stored] / "unet", torch_dtype=way.dtype
    )
    model = rounded(model.to(DEVICE).eval())
    parameters = list(model.parameters())
    for parameter in parameters:
        # What is mapped takes no memory until it is read.
        parameter.detach().reshape(-1).view(torch.uint8)[:: mmap.PAGESIZE].sum()
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parameters}
    computed = sum(p.numel() * p.element_size() for p in parameters)
    held = Held(computed / 1e6, sum(storages.values()) / 1e6, memory_mb() - before)
    return model, held


def inputs(model: Any, size: int, seed: int = 0) -> tuple[Any, Any]:
    """A latent of pure noise, and a text: both of unit variance, its first word with outliers."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, model.config.in_channels, size, size, generator=generator)
    text = torch.randn(1, 77, model.config.cross_attention_dim, generator=generator)
    text[0, 0, :2] = torch.tensor([-_OUTLIER, _OUTLIER])
    return noise, text


@torch.inference_mode()
def run(model: Any, latent: Any, timestep: int, text: Any) -> Any:
    """What *model* predicts."""
    dtype = model.dtype
    moved = (latent.to(DEVICE, dtype), torch.tensor([timestep], device=DEVICE))
    return model(*moved, text.to(DEVICE, dtype)).sample


def forward(folders: dict[str, Path], size: int, timesteps: tuple[int, ...]) -> Forward:
    """Run every way at every timestep on latents of *size* by *size*."""
    result = Forward(size)
    models = {}
    for way in WAYS:
        if way.name in _TIMED:
            models[way.name], result.held[way.name] = load(folders, way)
    latent, text = inputs(models["fp32"], size)
    outputs = _in_turn(result, models, latent, text, timesteps)
    result.blocks = _blocks(models, latent, text)
    models.clear()
    for way in WAYS:
        if way.name not in _TIMED:
            model, _ = load(folders, way)
            outputs[way.name] = {at: run(model, latent, at, text) for at in timesteps}
            del model
    expected = outputs["fp32"]
    result.output = float(torch.stack(list(expected.values())).float().std())
    for way in WAYS:
        found = outputs[way.name]
        result.errors[way.name] = {at: error(found[at], expected[at]) for at in timesteps}
    return result


def _in_turn(
    result: Forward, models: dict[str, Any], latent: Any, text: Any, timesteps: tuple[int, ...]
) -> dict[str, dict[int, Any]]:
    """What each of *models* predicts at each timestep; how long it takes goes into *result*."""
    outputs: dict[str, dict[int, Any]] = {name: {} for name in models}
    for model in models.values():
        run(model, latent, timesteps[0], text)
    for timestep in timesteps:
        for name, model in models.items():
            start = time.perf_counter()
            outputs[name][timestep] = run(model, latent, timestep, text)
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            result.seconds.setdefault(name, []).append(time.perf_counter() - start)
    return outputs


def _blocks(models: dict[str, Any], latent: Any, text: Any) -> dict[str, Any]:
    """What each block puts out in float32, and how far the others are from it."""
    seen = {name: _watch(model, latent, text) for name, model in models.items()}
    return {
        block: (
            float(wide.float().std()),
            float(wide.float().abs().max()),
            {n: error(outs[block], wide).relative for n, outs in seen.items() if n != "fp32"},
        )
        for block, wide in seen["fp32"].items()
    }


def _watch(model: Any, latent: Any, text: Any) -> dict[str, Any]:
    named = [
        ("conv_in", model.conv_in),
        *((f"down {n}", block) for n, block in enumerate(model.down_blocks)),
        ("middle", model.mid_block),
        *((f"up {n}", block) for n, block in enumerate(model.up_blocks)),
        ("conv_out", model.conv_out),
    ]
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            seen[name] = (output[0] if isinstance(output, tuple) else output).detach().cpu()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in named]
    run(model, latent, BLOCKS_AT, text)
    for handle in handles:
        handle.remove()
    return seen


@dataclass
class Trajectory:
    """How a short sampling run drifts apart.

    Attributes:
        size: Height and width of the latents.
        prediction: What the model was taken to predict.
        errors: By way, the relative L2 error of the latent after each step.
        last: By way, the error of the last latent.
        deviation: Of the last latent in float32.
    """

    size: int
    prediction: str
    errors: dict[str, list[float]] = field(default_factory=dict)
    last: dict[str, Error] = field(default_factory=dict)
    deviation: float = 0.0


def trajectory(folders: dict[str, Path], size: int, prediction: str, steps: int) -> Trajectory:
    """Sample *steps* DDIM steps each way from one noise; latents have the type of the model."""
    result = Trajectory(size, prediction)
    expected: list[Any] = []
    for way in WAYS:
        model, _ = load(folders, way)
        latents = _sampled(model, way, size, prediction, steps)
        expected = expected or latents
        errors = [error(one, other) for one, other in zip(latents, expected, strict=True)]
        result.errors[way.name] = [each.relative for each in errors]
        result.last[way.name] = errors[-1]
        del model
    result.deviation = float(expected[-1].std())
    return result


def _sampled(model: Any, way: Way, size: int, prediction: str, steps: int) -> list[Any]:
    scheduler: Any = diffusers.DDIMScheduler(
        num_train_timesteps=_TRAINED_STEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
    scheduler.set_timesteps(steps)
    latent, text = inputs(model, size)
    latent = latent.to(DEVICE, way.dtype)
    found = []
    for timestep in scheduler.timesteps:
        predicted = run(model, latent, int(timestep), text)
        latent = scheduler.step(predicted, timestep, latent).prev_sample
        found.append(latent.float().cpu())
    return found


def forward_table(found: Forward) -> list[str]:
    """A row for each way and timestep."""
    rows = [
        (
            name,
            str(timestep),
            f"{each.largest:.2e}",
            f"{each.relative:.2e}",
            f"{each.cosine:.1e}",
            f"{1 - each.finite:.0%}",
        )
        for name, errors in found.errors.items()
        if name != "fp32"
        for timestep, each in errors.items()
    ]
    head = ("run as", "timestep", "largest error", "relative L2 error", "1 - cosine", "not finite")
    return table(head, rows)


def blocks_table(found: Forward) -> list[str]:
    """A row for each block."""
    rows = [
        (name, f"{deviation:.2f}", f"{most:.1f}", *(f"{errors[n]:.1e}" for n in ("fp16", "bf16")))
        for name, (deviation, most, errors) in found.blocks.items()
    ]
    head = ("output of", "std", "largest", "relative L2 error, fp16", "relative L2 error, bf16")
    return table(head, rows)


def latency_table(found: Forward) -> list[str]:
    """Seconds of a pass, and against float32 in the same round."""
    wide = found.seconds["fp32"]
    rows = [
        (name, spread(took, 3), spread([a / b for a, b in zip(took, wide, strict=True)]))
        for name, took in found.seconds.items()
    ]
    return table(("type", "seconds, median (min to max)", "/ fp32, round by round"), rows)


def memory_table(found: Forward) -> list[str]:
    """What the UNet's weights hold."""
    grew = "GPU memory allocated, MB" if DEVICE == "cuda" else "process grew by, MB"
    rows = [
        (name, f"{held.computed:.0f}", f"{held.storages:.0f}", f"{held.process:.0f}")
        for name, held in found.held.items()
    ]
    return table(("UNet in", "parameters x size, MB", "torch's storages, MB", grew), rows)


def typical(found: Forward, name: str) -> float:
    """The median relative error of a way over the timesteps."""
    return median(each.relative for each in found.errors[name].values())
