"""Stable unCLIP: Stable Diffusion 2.1 that is also given the embedding of an image.

Knows:      the numbers of the architecture and the places of its parts.
Is told:    nothing.
Never asks: what a given file holds (`detect`).

The numbers are those of Stability-AI/stablediffusion, configs/stable-diffusion,
v2-1-stable-unclip-l-inference.yaml and v2-1-stable-unclip-h-inference.yaml.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ckptaudit.layouts.clip import EmbeddingStatistics
from ckptaudit.layouts.families.encoders import IMAGE_H, IMAGE_L
from ckptaudit.layouts.families.schedule import AUGMENTATION, SCHEDULE
from ckptaudit.layouts.families.sd2 import SD2_UNET, TEXT
from ckptaudit.layouts.families.vae import KL_F8
from ckptaudit.layouts.family import (
    TOKENIZER,
    Component,
    Family,
    Foreign,
    Named,
    Part,
    Pipeline,
    Scheduler,
    Sign,
)

if TYPE_CHECKING:
    from ckptaudit.layouts.clip import ClipImage

__all__ = ["UNCLIP_H", "UNCLIP_L"]

_U = "model.diffusion_model."
# A cosine has no first and last; this is what diffusers has where nobody asks for others.
_UNUSED = (0.0001, 0.02)


def _unclip(name: str, title: str, image: ClipImage) -> Family:
    # The embedding of an image, and how much noise was added to it, as a vector just as wide.
    vector = 2 * image.text
    unet = replace(SD2_UNET, vector=vector, vector_name="class_embedding")
    return Family(
        name=name,
        title=title,
        parts=(
            Part(Component.SCHEDULE, "", SCHEDULE),
            Part(Component.UNET, _U, unet),
            Part(Component.VAE, "first_stage_model.", KL_F8),
            TEXT,
            Part(Component.IMAGE_ENCODER, "embedder.model.", image),
            Part(Component.SCHEDULE, "noise_augmentor.", AUGMENTATION),
        ),
        signs=(
            Sign(
                f"{_U}label_emb.0.0.weight",
                (1280, vector),
                f"it takes an image embedding {image.text} wide and as much about its noise",
            ),
            Sign(
                f"{_U}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
                (320, 1024),
                "it attends to text embeddings 1024 wide, those of OpenCLIP ViT-H/14",
            ),
        ),
        rare=(
            Part(
                Component.IMAGE_NORMALIZER,
                "noise_augmentor.",
                EmbeddingStatistics(image.text),
            ),
        ),
        foreign=(Foreign("conditioner.", "text encoders laid out as in SDXL"),),
        pipeline=Pipeline(
            "StableUnCLIPImg2ImgPipeline",
            named=(
                TOKENIZER,
                Named("feature_extractor", "transformers", "CLIPImageProcessor"),
                # Its numbers are in the code, or in a file beside the checkpoint.
                Named("image_normalizer", "stable_diffusion", "StableUnCLIPImageNormalizer"),
            ),
            left_out=(),
            further=(
                Scheduler("image_noising_scheduler", _UNUSED, "squaredcos_cap_v2", clips=True),
            ),
            flags=(),
        ),
        prediction="v_prediction",
        size=768,
    )


UNCLIP_L = _unclip("sd2-unclip-l", "Stable unCLIP with CLIP ViT-L/14", IMAGE_L)
UNCLIP_H = _unclip("sd2-unclip-h", "Stable unCLIP with OpenCLIP ViT-H/14", IMAGE_H)
