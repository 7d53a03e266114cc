"""MiDaS: the network that estimates the depth of an image, for models that are given a depth map.

Knows:      how its hybrid of ResNet and vision transformer is built, as MiDaS' dpt_depth.py,
            blocks.py and vit.py and timm's vit_base_resnet50_384 do, and what transformers calls
            its parts (convert_dpt_hybrid_to_pytorch.py).
Is told:    the numbers of one network.
Never asks: which family has it (`families`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptaudit.layouts.grammar import Tensor, There, conv, layer, under

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DptHybrid"]

_VIT = "pretrained.model"
# Of four stages the first two come from the ResNet, and have nothing to read out.
_READ_OUT = (3, 4)
_STAGES = 4


@dataclass(frozen=True, slots=True)
class DptHybrid:
    """A dense prediction transformer behind three stages of a ResNet.

    Attributes:
        stem: Width of the first convolution; a stage is 4, 8 and 16 times as wide.
        stages: Residual blocks of each stage.
        width: Width of the vision transformer.
        layers: Its layers.
        patches: Positions of an image in it; one position more is that of the class.
        features: Width of what the stages are fused into.
        classes: What timm's model told apart; nothing uses that layer.
    """

    stem: int = 64
    stages: tuple[int, ...] = (3, 4, 9)
    width: int = 768
    layers: int = 12
    patches: int = 24 * 24
    features: int = 256
    classes: int = 1000

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each stage of the ResNet."""
        return tuple(4 * self.stem << number for number in range(len(self.stages)))

    @property
    def reassembled(self) -> tuple[int, ...]:
        """Width of each of the four stages that are fused."""
        return (*self.widths[:2], self.width, self.width)

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        yield from under(_VIT, "dpt", self._transformer())
        # Timm's classifier, which transformers leaves out.
        for tensor in layer(f"{_VIT}.head", "", self.classes, self.width):
            yield replace(tensor, there=(), demanded=False)
        for stage in _READ_OUT:
            yield from self._read_out(stage)
        yield from under("scratch", "neck", self._fusion())
        at, head, half = "scratch.output_conv", "head.head", self.features // 2
        yield from conv(f"{at}.0", f"{head}.0", self.features, half)
        yield from conv(f"{at}.2", f"{head}.2", half, 32)
        yield from conv(f"{at}.4", f"{head}.4", 32, 1, size=1)

    def _transformer(self) -> Iterator[Tensor]:
        width = self.width
        yield Tensor("cls_token", (1, 1, width), (There("embeddings.cls_token"),))
        places = There("embeddings.position_embeddings")
        yield Tensor("pos_embed", (1, self.patches + 1, width), (places,))
        bit = "embeddings.backbone.bit"
        yield from under("patch_embed.backbone", bit, self._resnet())
        inward = self.widths[-1]
        yield from conv("patch_embed.proj", "embeddings.projection", inward, width, size=1)
        for number in range(self.layers):
            yield from under(f"blocks.{number}", f"encoder.layer.{number}", self._layer())
        yield from layer("norm", "layernorm", width)

    def _resnet(self) -> Iterator[Tensor]:
        yield from layer("stem.conv", "embedder.convolution", self.stem, 3, 7, 7, bias=False)
        yield from layer("stem.norm", "embedder.norm", self.stem)
        inward = self.stem
        for stage, (wide, blocks) in enumerate(zip(self.widths, self.stages, strict=True)):
            for number in range(blocks):
                block = _bottleneck(inward, wide)
                there = f"encoder.stages.{stage}.layers.{number}"
                yield from under(f"stages.{stage}.blocks.{number}", there, block)
                inward = wide

    def _layer(self) -> Iterator[Tensor]:
        width = self.width
        yield from layer("norm1", "layernorm_before", width)
        for name in ("weight", "bias"):
            shape = (3 * width, width) if name == "weight" else (3 * width,)
            parts = tuple(
                There(f"attention.attention.{part}.{name}", "rows", (at * width, (at + 1) * width))
                for at, part in enumerate(("query", "key", "value"))
            )
            yield Tensor(f"attn.qkv.{name}", shape, parts)
        yield from layer("attn.proj", "attention.output.dense", width, width)
        yield from layer("norm2", "layernorm_after", width)
        yield from layer("mlp.fc1", "intermediate.dense", 4 * width, width)
        yield from layer("mlp.fc2", "output.dense", width, 4 * width)

    def _read_out(self, stage: int) -> Iterator[Tensor]:
        """Yield what gives a stage of the transformer the shape of an image again."""
        at, there, number = f"pretrained.act_postprocess{stage}", "neck.reassemble_stage", stage - 1
        width = self.width
        readout = f"{there}.readout_projects.{number}.0"
        yield from layer(f"{at}.0.project.0", readout, width, 2 * width)
        layers = f"{there}.layers.{number}"
        yield from conv(f"{at}.3", f"{layers}.projection", width, width, size=1)
        if stage == _STAGES:
            yield from conv(f"{at}.4", f"{layers}.resize", width, width)

    def _fusion(self) -> Iterator[Tensor]:
        features = self.features
        for number, wide in enumerate(self.reassembled):
            name = f"layer{number + 1}_rn"
            yield from layer(name, f"convs.{number}", features, wide, 3, 3, bias=False)
        for stage in range(1, _STAGES + 1):
            # Fused from the last one on.
            there = f"fusion_stage.layers.{_STAGES - stage}"
            yield from under(f"refinenet{stage}", there, self._fused())

    def _fused(self) -> Iterator[Tensor]:
        features = self.features
        yield from conv("out_conv", "projection", features, features, size=1)
        for unit in ("1", "2"):
            at, there = f"resConfUnit{unit}", f"residual_layer{unit}"
            yield from conv(f"{at}.conv1", f"{there}.convolution1", features, features)
            yield from conv(f"{at}.conv2", f"{there}.convolution2", features, features)


def _bottleneck(inward: int, outward: int) -> Iterator[Tensor]:
    """Yield a residual block, narrow in the middle; the first of a stage changes the width."""
    narrow = outward // 4
    if inward != outward:
        yield from layer("downsample.conv", "downsample.conv", outward, inward, 1, 1, bias=False)
        yield from layer("downsample.norm", "downsample.norm", outward)
    sizes = ((narrow, inward, 1), (narrow, narrow, 3), (outward, narrow, 1))
    for number, (wide, source, size) in enumerate(sizes, 1):
        yield from layer(f"conv{number}", f"conv{number}", wide, source, size, size, bias=False)
        yield from layer(f"norm{number}", f"norm{number}", wide)
