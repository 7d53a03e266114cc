"""Stable Diffusion 1.x: 1.1 to 1.5, what is fine-tuned from them, and what takes an image as well.

Knows:      the numbers of the architecture, the places of its parts, the NovelAI spelling.
Is told:    nothing.
Never asks: what a given file holds (`detect`).

The numbers are those of CompVis/stable-diffusion, configs/stable-diffusion/v1-inference.yaml;
of runwayml/stable-diffusion, v1-inpainting-inference.yaml; and of timothybrooks/instruct-pix2pix,
configs/generate.yaml.
"""

from __future__ import annotations

from dataclasses import replace

from ckptaudit.layouts.families.encoders import CLIP_L
from ckptaudit.layouts.families.schedule import SCHEDULE
from ckptaudit.layouts.families.vae import KL_F8
from ckptaudit.layouts.family import Component, Family, Foreign, Part, Pipeline, Sign, Variant
from ckptaudit.layouts.unet import UNet

__all__ = ["SD1", "SD1_EDIT", "SD1_INPAINTING", "SD1_UNET"]

_U = "model.diffusion_model."
SD1_UNET = UNet(
    in_channels=4,
    out_channels=4,
    channels=320,
    multipliers=(1, 2, 4, 4),
    res_blocks=2,
    depths=(1, 1, 1, 0),
    context=768,
    linear_projection=False,
    heads=8,
)


def _sd1(name: str, title: str, in_channels: int, says: str, pipeline: Pipeline) -> Family:
    return Family(
        name=name,
        title=title,
        parts=(
            Part(Component.SCHEDULE, "", SCHEDULE),
            Part(Component.UNET, _U, replace(SD1_UNET, in_channels=in_channels)),
            Part(Component.VAE, "first_stage_model.", KL_F8),
            Part(Component.TEXT_ENCODER, "cond_stage_model.transformer.", CLIP_L),
        ),
        signs=(
            Sign(f"{_U}input_blocks.0.0.weight", (320, in_channels, 3, 3), says),
            Sign(
                f"{_U}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
                (320, 768),
                "it attends to text embeddings 768 wide, those of CLIP ViT-L/14",
            ),
            Sign(
                f"{_U}input_blocks.1.1.proj_in.weight",
                (320, 320, 1, 1),
                "its transformers are entered by a 1x1 convolution",
            ),
        ),
        foreign=(
            Foreign("control_model.", "a ControlNet together with the model it was trained in"),
            Foreign("conditioner.", "text encoders laid out as in SDXL"),
            Foreign(f"{_U}label_emb.", "a UNet that also takes a label or an image"),
        ),
        variants=(
            # NovelAI files and their many descendants ("Anything"): a text model without
            # the wrapper that transformers puts around it today.
            Variant(
                "novelai",
                canonical="cond_stage_model.transformer.text_model.",
                spelled="cond_stage_model.transformer.",
            ),
        ),
        pipeline=pipeline,
    )


SD1 = _sd1(
    "sd1",
    "Stable Diffusion 1.x",
    4,
    "320 channels wide, and nothing is concatenated to the 4-channel latent",
    Pipeline("StableDiffusionPipeline"),
)
SD1_INPAINTING = _sd1(
    "sd1-inpainting",
    "Stable Diffusion 1.x inpainting",
    9,
    "a masked image and its mask are concatenated to the 4-channel latent",
    Pipeline("StableDiffusionInpaintPipeline"),
)
SD1_EDIT = _sd1(
    "sd1-instruct-pix2pix",
    "instruct-pix2pix",
    8,
    "the latent of the image to edit is concatenated to the 4-channel latent",
    Pipeline("StableDiffusionInstructPix2PixPipeline"),
)
