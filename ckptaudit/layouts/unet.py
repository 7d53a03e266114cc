"""Denoisers: the UNet of latent diffusion, and the ControlNet that copies half of it.

Knows:      how they are built, as ldm/modules/diffusionmodules/openaimodel.py and
            ControlNet's cldm/cldm.py do, and what diffusers calls their parts.
Is told:    the numbers of one network.
Never asks: which family has which numbers (`families`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.layouts.grammar import Tensor, conv, layer, same, under

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ControlNet", "UNet"]


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
        context: Width of the text embedding attended to.
        linear_projection: Whether a transformer is entered and left by a linear
            layer (2-d weight) instead of a 1x1 convolution (4-d weight).
        middle_depth: Blocks in the transformer of the middle; 0 leaves out the
            transformer and the residual block behind it.
        up_depths: Blocks in each transformer on the way up, per level and there per
            residual block, where they are not those of *depths*.
        cross_only: Levels whose first attention, too, is to the text.
        vector: Width of the vector that is added to the time embedding; 0 is none.
        vector_name: What diffusers calls the layers that vector goes through.
        classes: Rows of a table whose row is added to the time embedding; 0 is none.
        heads: Attention heads on every level; 0 is one for each 64 channels.
    """

    in_channels: int
    out_channels: int
    channels: int
    multipliers: tuple[int, ...]
    res_blocks: int
    depths: tuple[int, ...]
    context: int
    linear_projection: bool
    middle_depth: int = 1
    up_depths: tuple[tuple[int, ...], ...] = ()
    cross_only: frozenset[int] = frozenset()
    vector: int = 0
    vector_name: str = "add_embedding"
    classes: int = 0
    heads: int = 0

    @property
    def depths_up(self) -> tuple[tuple[int, ...], ...]:
        """Blocks in each transformer on the way up, per level and there per residual block."""
        return self.up_depths or tuple((depth,) * (self.res_blocks + 1) for depth in self.depths)

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        yield from self.embeddings()
        yield from self.way_down()
        yield from self.middle()
        yield from self._way_up()
        yield from layer("out.0", "conv_norm_out", self.channels)
        yield from conv("out.2", "conv_out", self.channels, self.out_channels)

    def embeddings(self) -> Iterator[Tensor]:
        """Yield what makes a vector of the time, and of what else is to be added to it."""
        yield from layer("time_embed.0", "time_embedding.linear_1", self._time, self.channels)
        yield from layer("time_embed.2", "time_embedding.linear_2", self._time, self._time)
        if self.vector:
            name = self.vector_name
            yield from layer("label_emb.0.0", f"{name}.linear_1", self._time, self.vector)
            yield from layer("label_emb.0.2", f"{name}.linear_2", self._time, self._time)
        if self.classes:
            table = layer("label_emb", "class_embedding", self.classes, self._time, bias=False)
            yield from table

    def way_down(self) -> Iterator[Tensor]:
        """Yield the input blocks."""
        yield from conv("input_blocks.0.0", "conv_in", self.in_channels, self.channels)
        width, number = self.channels, 1
        for level, (wide, depth) in enumerate(zip(self._widths, self.depths, strict=True)):
            down = f"down_blocks.{level}"
            for block in range(self.res_blocks):
                at = f"input_blocks.{number}"
                yield from under(f"{at}.0", f"{down}.resnets.{block}", self._resnet(width, wide))
                if depth:
                    attention = self._transformer(wide, depth, level)
                    yield from under(f"{at}.1", f"{down}.attentions.{block}", attention)
                width, number = wide, number + 1
            if level < len(self._widths) - 1:
                other = f"{down}.downsamplers.0.conv"
                yield from conv(f"input_blocks.{number}.0.op", other, width, width)
                number += 1

    def middle(self) -> Iterator[Tensor]:
        """Yield the block between the ways down and up."""
        width = self._widths[-1]
        yield from under("middle_block.0", "mid_block.resnets.0", self._resnet(width, width))
        if self.middle_depth:
            attention = self._transformer(width, self.middle_depth)
            yield from under("middle_block.1", "mid_block.attentions.0", attention)
            yield from under("middle_block.2", "mid_block.resnets.1", self._resnet(width, width))

    def skips(self) -> Iterator[int]:
        """Yield the width of what each input block hands across to the way up."""
        yield self.channels
        for level, width in enumerate(self._widths):
            last = level == len(self._widths) - 1
            yield from [width] * (self.res_blocks + (not last))

    @property
    def _time(self) -> int:
        return 4 * self.channels

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    def _way_up(self) -> Iterator[Tensor]:
        width, number = self._widths[-1], 0
        skips = list(self.skips())
        for level in reversed(range(len(self._widths))):
            wide = self._widths[level]
            up = f"up_blocks.{len(self._widths) - 1 - level}"
            for block, depth in enumerate(self.depths_up[level]):
                at = f"output_blocks.{number}"
                resnet = self._resnet(width + skips.pop(), wide)
                yield from under(f"{at}.0", f"{up}.resnets.{block}", resnet)
                if depth:
                    attention = self._transformer(wide, depth, level)
                    yield from under(f"{at}.1", f"{up}.attentions.{block}", attention)
                if level and block == self.res_blocks:
                    # It follows the transformer where there is one, so its number varies.
                    key = f"{at}.{2 if depth else 1}.conv"
                    yield from conv(key, f"{up}.upsamplers.0.conv", wide, wide)
                width, number = wide, number + 1

    def _resnet(self, inward: int, outward: int) -> Iterator[Tensor]:
        yield from layer("in_layers.0", "norm1", inward)
        yield from conv("in_layers.2", "conv1", inward, outward)
        yield from layer("emb_layers.1", "time_emb_proj", outward, self._time)
        yield from layer("out_layers.0", "norm2", outward)
        yield from conv("out_layers.3", "conv2", outward, outward)
        if inward != outward:
            yield from conv("skip_connection", "conv_shortcut", inward, outward, size=1)

    def _transformer(self, width: int, depth: int, level: int | None = None) -> Iterator[Tensor]:
        """Yield a transformer's tensors; inside it both layouts use the same names."""
        kernel = () if self.linear_projection else (1, 1)
        first = self.context if level in self.cross_only else width
        yield from same("norm", width)
        yield from same("proj_in", width, width, *kernel)
        for block in range(depth):
            at = f"transformer_blocks.{block}"
            yield from under(at, at, self._transformer_block(width, first))
        yield from same("proj_out", width, width, *kernel)

    def _transformer_block(self, width: int, first: int) -> Iterator[Tensor]:
        inner = 4 * width
        yield from under("attn1", "attn1", _attention(width, first))
        # The first layer is a GEGLU: half of its rows gate the other half.
        yield from same("ff.net.0.proj", 2 * inner, width)
        yield from same("ff.net.2", width, inner)
        yield from under("attn2", "attn2", _attention(width, self.context))
        for norm in ("norm1", "norm2", "norm3"):
            yield from same(norm, width)


@dataclass(frozen=True, slots=True)
class ControlNet:
    """A trainable copy of the first half of a UNet, and of layers that lead in and out of it.

    Attributes:
        unet: The UNet it is a copy of.
        image: Channels of the image that controls.
        hints: Width of each level through which that image comes down to the latent's size.
    """

    unet: UNet
    image: int = 3
    hints: tuple[int, ...] = (16, 32, 96, 256)

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        yield from self.unet.embeddings()
        yield from self.unet.way_down()
        widths = list(self.unet.skips())
        for number, width in enumerate(widths):
            other = f"controlnet_down_blocks.{number}"
            yield from conv(f"zero_convs.{number}.0", other, width, width, size=1)
        yield from under("input_hint_block", "controlnet_cond_embedding", self._hint_block())
        yield from self.unet.middle()
        last = widths[-1]
        yield from conv("middle_block_out.0", "controlnet_mid_block", last, last, size=1)

    def _hint_block(self) -> Iterator[Tensor]:
        yield from conv("0", "conv_in", self.image, self.hints[0])
        number = 0
        for block, (inward, outward) in enumerate(zip(self.hints, self.hints[1:], strict=False)):
            # Every second module is an activation.
            yield from conv(f"{2 * number + 2}", f"blocks.{2 * block}", inward, inward)
            yield from conv(f"{2 * number + 4}", f"blocks.{2 * block + 1}", inward, outward)
            number += 2
        key = f"{2 * number + 2}"
        yield from conv(key, "conv_out", self.hints[-1], self.unet.channels)


def _attention(width: int, context: int) -> Iterator[Tensor]:
    yield from same("to_q", width, width, bias=False)
    yield from same("to_k", width, context, bias=False)
    yield from same("to_v", width, context, bias=False)
    yield from same("to_out.0", width, width)
