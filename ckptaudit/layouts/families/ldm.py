"""Latent diffusion before Stable Diffusion: from text through BERT's tokens, and from a class.

Knows:      the numbers of the architecture and the places of its parts.
Is told:    nothing.
Never asks: what a given file holds (`detect`).

The numbers are those of CompVis/latent-diffusion, configs/latent-diffusion:
txt2img-1p4B-eval.yaml and cin256-v2.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptaudit.layouts.bert import BertText
from ckptaudit.layouts.families.schedule import SCHEDULE
from ckptaudit.layouts.families.sd1 import SD1_UNET
from ckptaudit.layouts.families.vae import KL_F8, VQ_F4
from ckptaudit.layouts.family import Component, Family, Foreign, Named, Part, Pipeline, Sign
from ckptaudit.layouts.grammar import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LDM_CLASS", "LDM_TEXT"]

_U = "model.diffusion_model."
_BERT = BertText(vocabulary=30522, positions=77, width=1280, layers=32, heads=512)


@dataclass(frozen=True, slots=True)
class _Table:
    """An embedding for each class, one of them for no class at all."""

    classes: int
    width: int

    def tensors(self) -> Iterator[Tensor]:
        yield Tensor("embedding.weight", (self.classes, self.width))


LDM_TEXT = Family(
    name="ldm-text2img",
    title="latent diffusion from text (1.45B)",
    parts=(
        Part(Component.SCHEDULE, "", SCHEDULE),
        Part(Component.UNET, _U, replace(SD1_UNET, context=1280)),
        Part(Component.VAE, "first_stage_model.", KL_F8),
        Part(Component.TEXT_ENCODER, "cond_stage_model.transformer.", _BERT),
    ),
    signs=(
        Sign(
            f"{_U}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
            (320, 1280),
            "it attends to text embeddings 1280 wide, over BERT's tokens",
        ),
        Sign(
            f"{_U}input_blocks.1.1.proj_in.weight",
            (320, 320, 1, 1),
            "its transformers are entered by a 1x1 convolution",
        ),
    ),
    foreign=(Foreign("conditioner.", "text encoders laid out as in SDXL"),),
    pipeline=Pipeline(
        "LDMTextToImagePipeline",
        named=(Named("tokenizer", "transformers", "BertTokenizer"),),
        left_out=(),
        folders=((Component.TEXT_ENCODER, "bert"), (Component.VAE, "vqvae")),
        flags=(),
    ),
    size=256,
)
LDM_CLASS = Family(
    name="ldm-class",
    title="latent diffusion from an ImageNet class (256)",
    parts=(
        Part(Component.SCHEDULE, "", SCHEDULE),
        Part(
            Component.UNET,
            _U,
            replace(
                SD1_UNET,
                in_channels=3,
                out_channels=3,
                channels=192,
                multipliers=(1, 2, 3, 5),
                depths=(0, 1, 1, 1),
                context=512,
                heads=1,
            ),
        ),
        Part(Component.VAE, "first_stage_model.", VQ_F4),
        Part(Component.TEXT_ENCODER, "cond_stage_model.", _Table(1001, 512)),
    ),
    signs=(
        Sign(
            f"{_U}input_blocks.0.0.weight",
            (192, 3, 3, 3),
            "192 channels wide, over a latent of 3 channels",
        ),
        Sign(
            f"{_U}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
            (384, 512),
            "it attends to the embedding of a class, 512 wide",
        ),
    ),
    foreign=(Foreign("conditioner.", "text encoders laid out as in SDXL"),),
    size=256,
    shrinks=4,
)
