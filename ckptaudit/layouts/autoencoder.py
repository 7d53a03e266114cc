"""The autoencoder between images and latents.

Knows:      how it is built, as ldm/modules/diffusionmodules/model.py and ldm/models/autoencoder.py
            do, and what diffusers calls its parts.
Is told:    the numbers of one network.
Never asks: which family has which numbers (`families`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptaudit.layouts.grammar import Tensor, There, conv, layer, same, under

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Vae"]


@dataclass(frozen=True, slots=True)
class Vae:
    """The autoencoder: variational, or, with a codebook, vector-quantised.

    Attributes:
        image: Channels of an image.
        latent: Channels of a latent; the encoder gives a mean and a variance of each, or, with
            a codebook, the latent itself.
        channels: Width of the first level.
        multipliers: Width of each level, in units of *channels*; each level but
            the first halves height and width once more.
        res_blocks: Residual blocks per level of the encoder; one more in the decoder.
        codebook: Entries in the codebook that latents are taken from; 0 is none.
    """

    image: int
    latent: int
    channels: int
    multipliers: tuple[int, ...]
    res_blocks: int
    codebook: int = 0

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        encoded = self.latent if self.codebook else 2 * self.latent
        yield from under("encoder", "encoder", self._encoder(encoded))
        yield from under("decoder", "decoder", self._decoder())
        if self.codebook:
            yield from same("quantize.embedding", self.codebook, self.latent, bias=False)
        yield from conv("quant_conv", "quant_conv", encoded, encoded, size=1)
        yield from conv("post_quant_conv", "post_quant_conv", self.latent, self.latent, size=1)

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    def _encoder(self, encoded: int) -> Iterator[Tensor]:
        last = len(self._widths) - 1
        yield from conv("conv_in", "conv_in", self.image, self.channels)
        width = self.channels
        for level, wide in enumerate(self._widths):
            at, down = f"down.{level}", f"down_blocks.{level}"
            for block in range(self.res_blocks):
                resnet = _resnet(width, wide)
                yield from under(f"{at}.block.{block}", f"{down}.resnets.{block}", resnet)
                width = wide
            if level < last:
                other = f"{down}.downsamplers.0.conv"
                yield from conv(f"{at}.downsample.conv", other, wide, wide)
        yield from under("mid", "mid_block", _middle(width))
        yield from layer("norm_out", "conv_norm_out", width)
        yield from conv("conv_out", "conv_out", width, encoded)

    def _decoder(self) -> Iterator[Tensor]:
        last = len(self._widths) - 1
        yield from conv("conv_in", "conv_in", self.latent, self._widths[last])
        yield from under("mid", "mid_block", _middle(self._widths[last]))
        # Registered from the first level up, run from the last one down.
        for level, wide in enumerate(self._widths):
            at, up = f"up.{level}", f"up_blocks.{last - level}"
            width = self._widths[min(level + 1, last)]
            for block in range(self.res_blocks + 1):
                resnet = _resnet(width, wide)
                yield from under(f"{at}.block.{block}", f"{up}.resnets.{block}", resnet)
                width = wide
            if level:
                yield from conv(f"{at}.upsample.conv", f"{up}.upsamplers.0.conv", wide, wide)
        yield from layer("norm_out", "conv_norm_out", self._widths[0])
        yield from conv("conv_out", "conv_out", self._widths[0], self.image)


def _resnet(inward: int, outward: int) -> Iterator[Tensor]:
    yield from same("norm1", inward)
    yield from conv("conv1", "conv1", inward, outward)
    yield from same("norm2", outward)
    yield from conv("conv2", "conv2", outward, outward)
    if inward != outward:
        yield from conv("nin_shortcut", "conv_shortcut", inward, outward, size=1)


def _middle(width: int) -> Iterator[Tensor]:
    yield from under("block_1", "resnets.0", _resnet(width, width))
    yield from under("attn_1", "attentions.0", _attention(width))
    yield from under("block_2", "resnets.1", _resnet(width, width))


def _attention(width: int) -> Iterator[Tensor]:
    """Yield the attention over pixels: 1x1 convolutions here, linear layers in diffusers."""
    yield from layer("norm", "group_norm", width)
    for key, other in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        weight, bias = conv(key, other, width, width, size=1)
        yield replace(weight, there=(There(f"{other}.weight", "squeeze"),))
        yield bias
