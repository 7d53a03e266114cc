"""Architectures that spell out their own tensors, in two layouts at once.

A description holds the few numbers that make an architecture (channels, levels,
context width).  Its `tensors` walks the network once and yields every tensor with
its name in the original (LDM) layout, its name in the diffusers layout and its
shape, in the order in which the original implementation registers them.

Knows:      how the networks are built and what each layout calls their parts.
Is told:    the numbers of one network.
Never asks: where a network sits in a file (`family`), or what a file holds (`detect`).

Not described yet, because no shipped family has it: the label embedding of SDXL and
unCLIP (one more field of `UNet`) and the OpenCLIP text encoder (one more class).

The truth this is tested against: the CompVis/stable-diffusion and transformers
implementations, instantiated, and diffusers' own conversion of their tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Architecture", "Buffers", "ClipText", "Op", "Tensor", "UNet", "Vae"]

Op: TypeAlias = Literal["identity", "squeeze", "rows", "transpose"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of an architecture, named relative to the architecture's own root.

    Attributes:
        key: Name in the original layout.
        diffusers: Name in the diffusers layout, or None where it has no place.
        shape: Elements per dimension in the original layout.
        dtype: torch's name; the architecture's default, files may hold another.
        op: What turns the original tensor into the diffusers one.
        demanded: Whether loaders stop, or go wrong, without it.
    """

    key: str
    diffusers: str | None
    shape: tuple[int, ...]
    dtype: str = "float32"
    op: Op = "identity"
    demanded: bool = True


class Architecture(Protocol):
    """What can spell out its own tensors."""

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        ...


@dataclass(frozen=True, slots=True)
class UNet:
    """The denoiser: a residual UNet with a transformer after each block of some levels.

    Attributes:
        in_channels: Channels of the latent, and of what is concatenated to it.
        out_channels: Channels predicted.
        channels: Width of the first level.
        multipliers: Width of each level, in units of *channels*.
        res_blocks: Residual blocks per level on the way down; one more on the way up.
        depths: Blocks in each transformer, per level; 0 is a level without attention.
        middle_depth: Blocks in the transformer of the middle.
        context: Width of the text embedding attended to.
        linear_projection: Whether a transformer is entered and left by a linear
            layer (2-d weight) instead of a 1x1 convolution (4-d weight).
    """

    in_channels: int
    out_channels: int
    channels: int
    multipliers: tuple[int, ...]
    res_blocks: int
    depths: tuple[int, ...]
    middle_depth: int
    context: int
    linear_projection: bool

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        yield from _layer("time_embed.0", "time_embedding.linear_1", self._time, self.channels)
        yield from _layer("time_embed.2", "time_embedding.linear_2", self._time, self._time)
        yield from _conv("input_blocks.0.0", "conv_in", self.in_channels, self.channels)
        yield from self._down()
        yield from self._middle()
        yield from self._up()
        yield from _layer("out.0", "conv_norm_out", self.channels)
        yield from _conv("out.2", "conv_out", self.channels, self.out_channels)

    @property
    def _time(self) -> int:
        return 4 * self.channels

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    def _skips(self) -> Iterator[int]:
        """Yield the width of what each input block hands across to the way up."""
        yield self.channels
        for level, width in enumerate(self._widths):
            last = level == len(self._widths) - 1
            yield from [width] * (self.res_blocks + (not last))

    def _down(self) -> Iterator[Tensor]:
        width, number = self.channels, 1
        for level, (wide, depth) in enumerate(zip(self._widths, self.depths, strict=True)):
            down = f"down_blocks.{level}"
            for block in range(self.res_blocks):
                at = f"input_blocks.{number}"
                yield from _at(f"{at}.0", f"{down}.resnets.{block}", self._resnet(width, wide))
                if depth:
                    attention = self._transformer(wide, depth)
                    yield from _at(f"{at}.1", f"{down}.attentions.{block}", attention)
                width, number = wide, number + 1
            if level < len(self._widths) - 1:
                other = f"{down}.downsamplers.0.conv"
                yield from _conv(f"input_blocks.{number}.0.op", other, width, width)
                number += 1

    def _middle(self) -> Iterator[Tensor]:
        width = self._widths[-1]
        yield from _at("middle_block.0", "mid_block.resnets.0", self._resnet(width, width))
        attention = self._transformer(width, self.middle_depth)
        yield from _at("middle_block.1", "mid_block.attentions.0", attention)
        yield from _at("middle_block.2", "mid_block.resnets.1", self._resnet(width, width))

    def _up(self) -> Iterator[Tensor]:
        width, number = self._widths[-1], 0
        skips = list(self._skips())
        for level in reversed(range(len(self._widths))):
            wide, depth = self._widths[level], self.depths[level]
            up = f"up_blocks.{len(self._widths) - 1 - level}"
            for block in range(self.res_blocks + 1):
                at = f"output_blocks.{number}"
                resnet = self._resnet(width + skips.pop(), wide)
                yield from _at(f"{at}.0", f"{up}.resnets.{block}", resnet)
                if depth:
                    attention = self._transformer(wide, depth)
                    yield from _at(f"{at}.1", f"{up}.attentions.{block}", attention)
                if level and block == self.res_blocks:
                    # It follows the transformer where there is one, so its number varies.
                    key = f"{at}.{2 if depth else 1}.conv"
                    yield from _conv(key, f"{up}.upsamplers.0.conv", wide, wide)
                width, number = wide, number + 1

    def _resnet(self, inward: int, outward: int) -> Iterator[Tensor]:
        yield from _layer("in_layers.0", "norm1", inward)
        yield from _conv("in_layers.2", "conv1", inward, outward)
        yield from _layer("emb_layers.1", "time_emb_proj", outward, self._time)
        yield from _layer("out_layers.0", "norm2", outward)
        yield from _conv("out_layers.3", "conv2", outward, outward)
        if inward != outward:
            yield from _conv("skip_connection", "conv_shortcut", inward, outward, size=1)

    def _transformer(self, width: int, depth: int) -> Iterator[Tensor]:
        """Yield a transformer's tensors; inside it both layouts use the same names."""
        kernel = () if self.linear_projection else (1, 1)
        yield from _same("norm", width)
        yield from _same("proj_in", width, width, *kernel)
        for block in range(depth):
            at = f"transformer_blocks.{block}"
            yield from _at(at, at, self._transformer_block(width))
        yield from _same("proj_out", width, width, *kernel)

    def _transformer_block(self, width: int) -> Iterator[Tensor]:
        inner = 4 * width
        yield from _at("attn1", "attn1", _attention(width, width))
        # The first layer is a GEGLU: half of its rows gate the other half.
        yield from _same("ff.net.0.proj", 2 * inner, width)
        yield from _same("ff.net.2", width, inner)
        yield from _at("attn2", "attn2", _attention(width, self.context))
        for norm in ("norm1", "norm2", "norm3"):
            yield from _same(norm, width)


@dataclass(frozen=True, slots=True)
class Vae:
    """The autoencoder between images and latents.

    Attributes:
        image: Channels of an image.
        latent: Channels of a latent; the encoder gives a mean and a variance of each.
        channels: Width of the first level.
        multipliers: Width of each level, in units of *channels*; each level but
            the first halves height and width once more.
        res_blocks: Residual blocks per level of the encoder; one more in the decoder.
    """

    image: int
    latent: int
    channels: int
    multipliers: tuple[int, ...]
    res_blocks: int

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        moments = 2 * self.latent
        yield from _at("encoder", "encoder", self._encoder(moments))
        yield from _at("decoder", "decoder", self._decoder())
        yield from _conv("quant_conv", "quant_conv", moments, moments, size=1)
        yield from _conv("post_quant_conv", "post_quant_conv", self.latent, self.latent, size=1)

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    def _encoder(self, moments: int) -> Iterator[Tensor]:
        last = len(self._widths) - 1
        yield from _conv("conv_in", "conv_in", self.image, self.channels)
        width = self.channels
        for level, wide in enumerate(self._widths):
            at, down = f"down.{level}", f"down_blocks.{level}"
            for block in range(self.res_blocks):
                resnet = _vae_resnet(width, wide)
                yield from _at(f"{at}.block.{block}", f"{down}.resnets.{block}", resnet)
                width = wide
            if level < last:
                other = f"{down}.downsamplers.0.conv"
                yield from _conv(f"{at}.downsample.conv", other, wide, wide)
        yield from _at("mid", "mid_block", _vae_middle(width))
        yield from _layer("norm_out", "conv_norm_out", width)
        yield from _conv("conv_out", "conv_out", width, moments)

    def _decoder(self) -> Iterator[Tensor]:
        last = len(self._widths) - 1
        yield from _conv("conv_in", "conv_in", self.latent, self._widths[last])
        yield from _at("mid", "mid_block", _vae_middle(self._widths[last]))
        # Registered from the first level up, run from the last one down.
        for level, wide in enumerate(self._widths):
            at, up = f"up.{level}", f"up_blocks.{last - level}"
            width = self._widths[min(level + 1, last)]
            for block in range(self.res_blocks + 1):
                resnet = _vae_resnet(width, wide)
                yield from _at(f"{at}.block.{block}", f"{up}.resnets.{block}", resnet)
                width = wide
            if level:
                yield from _conv(f"{at}.upsample.conv", f"{up}.upsamplers.0.conv", wide, wide)
        yield from _layer("norm_out", "conv_norm_out", self._widths[0])
        yield from _conv("conv_out", "conv_out", self._widths[0], self.image)


@dataclass(frozen=True, slots=True)
class ClipText:
    """The CLIP text encoder as transformers writes it; both layouts use its names.

    Attributes:
        vocabulary: Tokens.
        positions: Longest prompt, in tokens.
        width: Width of the embedding.
        layers: Transformer layers.
    """

    vocabulary: int
    positions: int
    width: int
    layers: int

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        yield from _at("text_model", "text_model", self._text_model())

    def _text_model(self) -> Iterator[Tensor]:
        # Counts 0, 1, 2…: every loader can make it, and newer transformers do not save it.
        ids = "embeddings.position_ids"
        yield Tensor(ids, ids, (1, self.positions), dtype="int64", demanded=False)
        for table, rows in (("token", self.vocabulary), ("position", self.positions)):
            weight = f"embeddings.{table}_embedding.weight"
            yield Tensor(weight, weight, (rows, self.width))
        for layer in range(self.layers):
            at = f"encoder.layers.{layer}"
            yield from _at(at, at, self._layer())
        yield from _same("final_layer_norm", self.width)

    def _layer(self) -> Iterator[Tensor]:
        width, inner = self.width, 4 * self.width
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _same(f"self_attn.{projection}", width, width)
        yield from _same("layer_norm1", width)
        yield from _same("mlp.fc1", inner, width)
        yield from _same("mlp.fc2", width, inner)
        yield from _same("layer_norm2", width)


@dataclass(frozen=True, slots=True)
class Buffers:
    """Vectors of one length that a loader takes from the file or else computes itself.

    Attributes:
        names: Name of each vector.
        length: Elements in each vector.
    """

    names: tuple[str, ...]
    length: int

    def tensors(self) -> Iterator[Tensor]:
        """Yield every vector once, in the order given."""
        for name in self.names:
            yield Tensor(name, None, (self.length,), demanded=False)


def _layer(key: str, other: str, *shape: int, bias: bool = True) -> Iterator[Tensor]:
    """Yield a weight of this *shape*, and a bias as long as the weight's first dimension."""
    yield Tensor(f"{key}.weight", f"{other}.weight", shape)
    if bias:
        yield Tensor(f"{key}.bias", f"{other}.bias", shape[:1])


def _same(key: str, *shape: int, bias: bool = True) -> Iterator[Tensor]:
    """Yield a layer that both layouts call *key*."""
    yield from _layer(key, key, *shape, bias=bias)


def _conv(key: str, other: str, inward: int, outward: int, *, size: int = 3) -> Iterator[Tensor]:
    """Yield a convolution from *inward* to *outward* channels, *size* pixels square."""
    yield from _layer(key, other, outward, inward, size, size)


def _at(key: str, other: str, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield *tensors* one level down: under *key*, and under *other* in diffusers."""
    for tensor in tensors:
        yield replace(tensor, key=f"{key}.{tensor.key}", diffusers=f"{other}.{tensor.diffusers}")


def _attention(width: int, context: int) -> Iterator[Tensor]:
    yield from _same("to_q", width, width, bias=False)
    yield from _same("to_k", width, context, bias=False)
    yield from _same("to_v", width, context, bias=False)
    yield from _same("to_out.0", width, width)


def _vae_resnet(inward: int, outward: int) -> Iterator[Tensor]:
    yield from _same("norm1", inward)
    yield from _conv("conv1", "conv1", inward, outward)
    yield from _same("norm2", outward)
    yield from _conv("conv2", "conv2", outward, outward)
    if inward != outward:
        yield from _conv("nin_shortcut", "conv_shortcut", inward, outward, size=1)


def _vae_middle(width: int) -> Iterator[Tensor]:
    yield from _at("block_1", "resnets.0", _vae_resnet(width, width))
    yield from _at("attn_1", "attentions.0", _vae_attention(width))
    yield from _at("block_2", "resnets.1", _vae_resnet(width, width))


def _vae_attention(width: int) -> Iterator[Tensor]:
    """Yield the attention over pixels: 1x1 convolutions here, linear layers in diffusers."""
    yield from _layer("norm", "group_norm", width)
    for key, other in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        weight, bias = _conv(key, other, width, width, size=1)
        yield replace(weight, op="squeeze")
        yield bias
