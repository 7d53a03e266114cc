"""Stable Diffusion 2.x: base and v-prediction, and what takes an image as well.

Knows:      the numbers of the architecture and the places of its parts.
Is told:    nothing.
Never asks: what a given file holds (`detect`).

The numbers are those of Stability-AI/stablediffusion, configs/stable-diffusion (v2-inference.yaml,
v2-inpainting-inference.yaml, v2-midas-inference.yaml, x4-upscaling.yaml), and, for files laid
out as SDXL's are, of Stability-AI/generative-models, configs/inference/sd_2_1.yaml.
"""

from __future__ import annotations

from dataclasses import replace

from ckptaudit.layouts.families.encoders import OPENCLIP_H
from ckptaudit.layouts.families.schedule import AUGMENTATION, SCHEDULE, SIGMAS
from ckptaudit.layouts.families.sd1 import SD1_UNET
from ckptaudit.layouts.families.vae import KL_F4, KL_F8, SCALING_F4
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
    Undecided,
)
from ckptaudit.layouts.midas import DptHybrid

__all__ = [
    "SD2",
    "SD2_BASE",
    "SD2_DEPTH",
    "SD2_INPAINTING",
    "SD2_SGM",
    "SD2_UNET",
    "SD2_UPSCALER",
    "SD2_V",
    "TEXT",
]

_U = "model.diffusion_model."
# SD 1's, with a wider text, linear layers for convolutions, and a head for each 64 channels.
SD2_UNET = replace(SD1_UNET, context=1024, linear_projection=True, heads=0)
TEXT = Part(Component.TEXT_ENCODER, "cond_stage_model.model.", OPENCLIP_H)
_CONTROL = Foreign("control_model.", "a ControlNet together with the model it was trained in")
_CONDITIONER = Foreign("conditioner.", "text encoders laid out as in SDXL")
_LABEL = Foreign(f"{_U}label_emb.", "a UNet that also takes a label or an image")
_DEPTH = Foreign("depth_model.", "a network that estimates depth")


# Of the upscaler: the same for the latent and for the small image.
_NOISE = (0.0001, 0.02)
_V_OR_NOT = Undecided(
    f"{_U}output_blocks.11.1.transformer_blocks.0.norm1.bias",
    0.09,
    "ComfyUI tells v-prediction by it",
)


def _signs(in_channels: int, says: str) -> tuple[Sign, ...]:
    return (
        Sign(f"{_U}input_blocks.0.0.weight", (320, in_channels, 3, 3), says),
        Sign(
            f"{_U}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
            (320, 1024),
            "it attends to text embeddings 1024 wide, those of OpenCLIP ViT-H/14",
        ),
        Sign(
            f"{_U}input_blocks.1.1.proj_in.weight",
            (320, 320),
            "its transformers are entered by a linear layer",
        ),
    )


def _sd2(
    name: str,
    title: str,
    in_channels: int,
    says: str,
    *,
    pipeline: Pipeline,
    foreign: tuple[Foreign, ...] = (_DEPTH,),
    besides: tuple[Part, ...] = (),
    undecided: Undecided | None = None,
) -> Family:
    return Family(
        name=name,
        title=title,
        parts=(
            Part(Component.SCHEDULE, "", SCHEDULE),
            Part(Component.UNET, _U, replace(SD2_UNET, in_channels=in_channels)),
            Part(Component.VAE, "first_stage_model.", KL_F8),
            TEXT,
            *besides,
        ),
        signs=_signs(in_channels, says),
        foreign=(_CONTROL, _CONDITIONER, _LABEL, *foreign),
        pipeline=pipeline,
        undecided=undecided,
    )


SD2 = _sd2(
    "sd2",
    "Stable Diffusion 2.x",
    4,
    "320 channels wide, and nothing is concatenated to the 4-channel latent",
    pipeline=Pipeline("StableDiffusionPipeline"),
    undecided=_V_OR_NOT,
)
# One of the two, where somebody knows which.
SD2_BASE = replace(
    SD2,
    name="sd2-base",
    title="Stable Diffusion 2.x base",
    undecided=None,
    is_named_only=True,
)
SD2_V = replace(
    SD2,
    name="sd2-v",
    title="Stable Diffusion 2.x that predicts v",
    undecided=None,
    prediction="v_prediction",
    size=768,
    is_named_only=True,
)
SD2_INPAINTING = _sd2(
    "sd2-inpainting",
    "Stable Diffusion 2.x inpainting",
    9,
    "a masked image and its mask are concatenated to the 4-channel latent",
    pipeline=Pipeline("StableDiffusionInpaintPipeline"),
)
SD2_DEPTH = _sd2(
    "sd2-depth",
    "Stable Diffusion 2.x depth-to-image",
    5,
    "a depth map is concatenated to the 4-channel latent",
    pipeline=Pipeline(
        "StableDiffusionDepth2ImgPipeline",
        named=(TOKENIZER, Named("feature_extractor", "transformers", "DPTImageProcessor")),
        left_out=("depth_estimator",),
        flags=(),
    ),
    foreign=(),
    besides=(Part(Component.DEPTH_ESTIMATOR, "depth_model.model.", DptHybrid()),),
)
SD2_UPSCALER = Family(
    name="sd2-upscaler",
    title="Stable Diffusion x4 upscaler",
    parts=(
        Part(Component.SCHEDULE, "", SCHEDULE),
        Part(
            Component.UNET,
            _U,
            replace(
                SD2_UNET,
                in_channels=7,
                channels=256,
                multipliers=(1, 2, 2, 4),
                depths=(0, 1, 1, 1),
                cross_only=frozenset({0, 1, 2}),
                classes=1000,
                heads=8,
            ),
        ),
        Part(Component.VAE, "first_stage_model.", KL_F4),
        TEXT,
        Part(Component.SCHEDULE, "low_scale_model.", AUGMENTATION),
    ),
    signs=(
        Sign(
            f"{_U}input_blocks.0.0.weight",
            (256, 7, 3, 3),
            "256 channels wide, and a small image is concatenated to the 4-channel latent",
        ),
        Sign(
            f"{_U}label_emb.weight",
            (1000, 1024),
            "it is told in one of 1000 steps how much noise is in the small image",
        ),
    ),
    foreign=(_CONTROL, _CONDITIONER),
    pipeline=Pipeline(
        "StableDiffusionUpscalePipeline",
        left_out=("safety_checker", "feature_extractor", "watermarker"),
        betas=_NOISE,
        # Up to which of its steps the small image may be made noisy.
        further=(Scheduler("low_res_scheduler", _NOISE, "scaled_linear", clips=True),),
        flags=(("max_noise_level", 350),),
    ),
    prediction="v_prediction",
    shrinks=4,
    scaling=SCALING_F4,
)
SD2_SGM = Family(
    name="sd2-sgm",
    title="Stable Diffusion 2.x laid out as SDXL is (SD-Turbo)",
    parts=(
        Part(Component.UNET, _U, SD2_UNET),
        Part(Component.SCHEDULE, "denoiser.", SIGMAS),
        Part(Component.TEXT_ENCODER, "conditioner.embedders.0.model.", OPENCLIP_H),
        Part(Component.VAE, "first_stage_model.", KL_F8),
    ),
    signs=(
        *_signs(4, "320 channels wide, and nothing is concatenated to the 4-channel latent"),
        Sign(
            "conditioner.embedders.0.model.ln_final.weight",
            (1024,),
            "its text encoder is OpenCLIP ViT-H/14, where SDXL keeps its own",
        ),
    ),
    foreign=(
        _CONTROL,
        _LABEL,
        Foreign("cond_stage_model.", "a text encoder laid out as in Stable Diffusion 1 and 2"),
    ),
    pipeline=Pipeline("StableDiffusionPipeline"),
    undecided=_V_OR_NOT,
)
