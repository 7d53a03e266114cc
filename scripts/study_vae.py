"""An autoencoder whose every weight fits in float16, and whose decoder does not run in it.

A decoder adds up what its blocks put out in a stream that nothing normalises; each block
normalises what it reads of it.  So the stream can be made larger without any change to the image:
multiply what writes to it.  `louder` does so by a power of two at each of the three
upsamplers and by what has come together in all blocks behind them.  Every such weight then has
the same digits as before and another exponent, and so has the same relative error in float16:
statistics of weights cannot tell the two apart.

That is the finetuning of madebyollin/sdxl-vae-fp16-fix backwards; its model card says that SDXL's
decoder gives NaN in float16 because its activations are too large, and that the fix scales down
weights and biases.

Knows:      the autoencoder's keys, in both layouts; diffusers' implementation of it.
Is told:    a checkpoint that has one.
Never asks: what a UNet is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from contest import table
from study_half import DEVICE, error, rounded
from study_weights import Cost, costs

from ckptaudit import Action, Layout, Options, Precision, convert

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GROWTHS", "Decoder", "Vae", "decoded_table", "layers_table", "study", "weights_table"]

GROWTHS = (1, 2, 4, 8, 16, 32)
_PREFIX = "first_stage_model."
_FAMILY = "vae-sdxl"
_LEVELS = 4
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGEST_HALF = 65504.0


def scale_of(key: str, growth: int) -> int:
    """By what the decoder's tensor *key* is multiplied, where every upsampler grows by *growth*.

    Levels count down: data pass ``up.3`` first, and its upsampler leads to ``up.2``.

    >>> [scale_of(f"decoder.up.{n}.block.1.conv2.weight", 4) for n in (3, 2, 1, 0)]
    [1, 4, 16, 64]
    >>> scale_of("decoder.up.3.upsample.conv.weight", 4), scale_of("decoder.norm_out.weight", 4)
    (4, 1)
    """
    found = re.match(r"decoder\.up\.(\d)\.(?:block\.\d\.(\w+)|upsample\.conv)\.(weight|bias)$", key)
    if not found:
        return 1
    level, layer, kind = int(found.group(1)), found.group(2), found.group(3)
    behind = growth ** (_LEVELS - 1 - level)
    if layer is None:
        return growth if kind == "weight" else behind * growth
    # What passes the stream on unnormalised need not be larger; what is added to it has to be.
    if layer == "nin_shortcut":
        return 1 if kind == "weight" else behind
    return behind if layer == "conv2" else 1


def louder(source: Path, path: Path, growth: int) -> None:
    """Write the autoencoder of *source* alone to *path*, its decoder's stream made larger."""
    held = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    held = held.get("state_dict", held)
    made = {
        (name := key.removeprefix(_PREFIX)): tensor.float() * scale_of(name, growth)
        for key, tensor in held.items()
        if key.startswith(_PREFIX)
    }
    torch.save({"state_dict": made}, path)


@dataclass
class Decoder:
    """One decoder, and what it gave.

    Attributes:
        growth: What its upsamplers grow by.
        default: Types of the tensors that `convert` writes by default, and how many.
        cost: What a cast of all of it to float16 costs, where it is asked for.
        largest: By layer in the order they are run in, the largest output in float32.
        relative: By type, the relative L2 error of the image against float32.
        finite: By type, the share of the image that is finite.
        black: By type, the share of the image's pixels that are black once it is made of bytes.
        first: By type, the first layer that puts out what is not finite; "" if none does.
    """

    growth: int
    default: dict[str, int]
    cost: Cost
    largest: dict[str, float] = field(default_factory=dict)
    relative: dict[str, float] = field(default_factory=dict)
    finite: dict[str, float] = field(default_factory=dict)
    black: dict[str, float] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)


@dataclass
class Vae:
    """What was found.

    Attributes:
        size: Height and width of the latents.
        decoders: By growth.
        moved: Relative L2 distance of the loudest decoder's image to the first one's, in float32.
    """

    size: int
    decoders: dict[int, Decoder] = field(default_factory=dict)
    moved: float = 0.0

    @property
    def overflowing(self) -> Decoder | None:
        """The quietest decoder that has no finite image in float16."""
        return next((d for d in self.decoders.values() if d.finite["fp16"] < 1), None)


def study(source: Path, folder: Path, size: int, growths: tuple[int, ...] = GROWTHS) -> Vae:
    """Decode one latent of *size* by *size* by decoders of all *growths*, in every type."""
    result = Vae(size)
    latent = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(3))
    quietest = None
    for growth in growths:
        path = folder / f"vae-{growth}.ckpt"
        louder(source, path, growth)
        decoder, image = _judged(path, growth, latent)
        result.decoders[growth] = decoder
        quietest = image if quietest is None else quietest
        result.moved = error(image, quietest).relative
        path.unlink()
    return result


def _judged(path: Path, growth: int, latent: Any) -> tuple[Decoder, Any]:
    """Convert the autoencoder at *path* and decode; also returns its image in float32."""
    by_default = convert(path, path.with_suffix(".default.safetensors"), Options(family=_FAMILY))
    default: dict[str, int] = {}
    for entry in by_default.tensors:
        default[entry.dtype] = default.get(entry.dtype, 0) + 1
    decoder = Decoder(growth, default, Cost())
    expected = None
    for kind, dtype in _DTYPES.items():
        out = path.with_suffix(f".{kind}")
        options = Options(
            family=_FAMILY, layout=Layout.DIFFUSERS, vae=Action.CONVERT, precision=Precision(kind)
        )
        conversion = convert(path, out, options)
        if kind == "fp16":
            decoder.cost = costs(conversion, "float16")["vae"]
        home = next(found.parent for found in out.rglob("config.json"))
        model: Any = diffusers.AutoencoderKL.from_pretrained(home, torch_dtype=dtype)
        model = rounded(model.to(DEVICE).eval())
        image = _decoded(model, latent, decoder, kind)
        expected = image if expected is None else expected
        decoder.relative[kind] = error(image, expected).relative
        decoder.finite[kind] = error(image, expected).finite
        pixels = diffusers.image_processor.VaeImageProcessor().postprocess(image)[0]
        black = sum(pixel == (0, 0, 0) for pixel in pixels.getdata())
        decoder.black[kind] = black / (pixels.width * pixels.height)
        for written in sorted(out.rglob("*"), reverse=True):
            written.unlink() if written.is_file() else written.rmdir()
    path.with_suffix(".default.safetensors").unlink()
    return decoder, expected


@torch.inference_mode()
def _decoded(model: Any, latent: Any, decoder: Decoder, kind: str) -> Any:
    """The image of *latent*; what each layer puts out is noted in *decoder*."""
    decoder.first[kind] = ""

    def note(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if kind == "fp32":
                decoder.largest[name] = float(output.abs().max())
            if not decoder.first[kind] and not torch.isfinite(output).all():
                decoder.first[kind] = name

        return hook

    kinds = ("Conv2d", "GroupNorm", "Linear", "ResnetBlock2D", "Attention", "SiLU")
    for name, module in model.decoder.named_modules():
        if type(module).__name__ in kinds:
            module.register_forward_hook(note(name))
    return model.decode(latent.to(DEVICE, model.dtype)).sample.float().cpu()


def weights_table(found: Vae) -> list[str]:
    """What statistics of weights say of each decoder."""
    rows = [
        (
            f"{d.growth} ({d.growth**3:,})",
            f"{d.cost.largest:.3g}",
            str(d.cost.overflowed),
            str(d.cost.flushed),
            f"{d.cost.sqnr:.2f}",
            f"{max(d.largest.values()):.3g}",
            ", ".join(f"{count} {dtype}" for dtype, count in sorted(d.default.items())),
        )
        for d in found.decoders.values()
    ]
    head = (
        "growth a level (in all)", "largest weight", "overflow in fp16", "flushed in fp16",
        "SQNR of fp16, dB", "largest activation, fp32", "`convert` writes by default",
    )  # fmt: skip
    return table(head, rows)


def decoded_table(found: Vae) -> list[str]:
    """What each decoder gives."""
    rows = [
        (
            str(d.growth),
            kind,
            f"{d.relative[kind]:.2e}" if d.finite[kind] == 1 else "none",
            f"{1 - d.finite[kind]:.0%}",
            f"{d.black[kind]:.0%}",
            f"`{d.first[kind]}`" if d.first[kind] else "",
        )
        for d in found.decoders.values()
        for kind in ("fp16", "bf16")
    ]
    head = (
        "growth",
        "run in",
        "relative L2 error",
        "not finite",
        "black pixels",
        "first layer with infinity or NaN",
    )
    return table(head, rows)


def layers_table(decoder: Decoder) -> list[str]:
    """The layers of *decoder* whose output float16 cannot hold, and the one before them."""
    names = list(decoder.largest)
    over = [n for n in names if decoder.largest[n] > LARGEST_HALF]
    shown = [*names[max(names.index(over[0]) - 3, 0) : names.index(over[0])], *over] if over else []
    rows = [(f"`{name}`", f"{decoder.largest[name]:,.0f}") for name in shown]
    return table(("layer", "largest magnitude it puts out, fp32"), rows)
