"""Stable Diffusion XL: base, refiner, what takes an image as well, and what is distilled from it.

Knows:      the numbers of the architecture, the places of its parts, the marks that trainers leave.
Is told:    nothing.
Never asks: what a given file holds (`detect`).

The numbers are those of Stability-AI/generative-models, configs/inference/sd_xl_base.yaml and
sd_xl_refiner.yaml, and of segmind/SSD-1B and segmind/Segmind-Vega, whose UNets lost blocks and most
of their transformers.
"""

from __future__ import annotations

from dataclasses import replace

from ckptaudit.layouts.families.encoders import CLIP_L, OPENCLIP_BIG_G
from ckptaudit.layouts.families.schedule import SIGMAS
from ckptaudit.layouts.families.vae import KL_F8, SCALING_SDXL
from ckptaudit.layouts.family import (
    TOKENIZER,
    Component,
    Family,
    Foreign,
    Part,
    Pipeline,
    Region,
    Sign,
)
from ckptaudit.layouts.unet import UNet

__all__ = ["SDXL", "SDXL_EDIT", "SDXL_INPAINTING", "SDXL_REFINER", "SDXL_UNET", "SSD_1B", "VEGA"]

_U = "model.diffusion_model."
# A pooled text embedding of 1280 numbers, and six numbers about the image, 256 wide each.
_VECTOR = 1280 + 6 * 256
SDXL_UNET = UNet(
    in_channels=4,
    out_channels=4,
    channels=320,
    multipliers=(1, 2, 4),
    res_blocks=2,
    depths=(0, 2, 10),
    context=2048,
    linear_projection=True,
    middle_depth=10,
    vector=_VECTOR,
)
_SIGMAS = Part(Component.SCHEDULE, "denoiser.", SIGMAS)
_VAE = Part(Component.VAE, "first_stage_model.", KL_F8)
# How trainers say, in a tensor of next to nothing, what their model predicts.
_MARKS = tuple(
    Region(prefix, Component.SCHEDULE)
    for prefix in ("v_pred", "ztsnr", "edm_vpred.", "edm_mean", "edm_std")
)
_TOKENIZER_2 = replace(TOKENIZER, name="tokenizer_2")
_MARKS_OF_V = ("v_pred", "edm_vpred.")
_MARKS_OF_NOISE = ("ztsnr", "edm_vpred.", "edm_mean", "edm_std")
_FOREIGN = (
    Foreign("control_model.", "a ControlNet together with the model it was trained in"),
    Foreign("cond_stage_model.", "a text encoder laid out as in Stable Diffusion 1 and 2"),
)
_CONTEXT = Sign(
    f"{_U}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
    (640, 2048),
    "it attends to two text embeddings side by side, 768 and 1280 wide",
)
_POOLED = Sign(
    f"{_U}label_emb.0.0.weight",
    (1280, _VECTOR),
    "it takes a pooled text embedding and six numbers about the image's size",
)


def _pipeline(name: str) -> Pipeline:
    return Pipeline(
        name,
        scheduler="EulerDiscreteScheduler",
        named=(TOKENIZER, _TOKENIZER_2),
        left_out=("image_encoder", "feature_extractor"),
        flags=(("force_zeros_for_empty_prompt", True),),
    )


_TEXT_TO_IMAGE = _pipeline("StableDiffusionXLPipeline")


def _sdxl(
    name: str,
    title: str,
    unet: UNet,
    *signs: Sign,
    foreign: tuple[Foreign, ...],
    pipeline: Pipeline,
) -> Family:
    return Family(
        name=name,
        title=title,
        parts=(
            Part(Component.UNET, _U, unet),
            _SIGMAS,
            Part(Component.TEXT_ENCODER, "conditioner.embedders.0.transformer.", CLIP_L),
            Part(Component.TEXT_ENCODER_2, "conditioner.embedders.1.model.", OPENCLIP_BIG_G),
            _VAE,
        ),
        signs=(*signs, _CONTEXT, _POOLED),
        foreign=(*_FOREIGN, *foreign),
        regions=_MARKS,
        marks_of_v=_MARKS_OF_V,
        marks_of_noise=_MARKS_OF_NOISE,
        pipeline=pipeline,
        size=1024,
        scaling=SCALING_SDXL,
        vae_overflows=True,
    )


def _whole(name: str, title: str, in_channels: int, says: str, pipeline: Pipeline) -> Family:
    return _sdxl(
        name,
        title,
        replace(SDXL_UNET, in_channels=in_channels),
        Sign(f"{_U}input_blocks.0.0.weight", (320, in_channels, 3, 3), says),
        Sign(
            f"{_U}middle_block.1.proj_in.weight",
            (1280, 1280),
            "there is a transformer in the middle",
        ),
        foreign=(),
        pipeline=pipeline,
    )


SDXL = _whole(
    "sdxl",
    "Stable Diffusion XL",
    4,
    "320 channels wide, and nothing is concatenated to the 4-channel latent",
    _TEXT_TO_IMAGE,
)
SDXL_INPAINTING = _whole(
    "sdxl-inpainting",
    "Stable Diffusion XL inpainting",
    9,
    "a masked image and its mask are concatenated to the 4-channel latent",
    _pipeline("StableDiffusionXLInpaintPipeline"),
)
SDXL_EDIT = _whole(
    "sdxl-edit",
    "Stable Diffusion XL edit (instruct-pix2pix)",
    8,
    "the latent of the image to edit is concatenated to the 4-channel latent",
    _pipeline("StableDiffusionXLInstructPix2PixPipeline"),
)
_BASE = Sign(
    f"{_U}input_blocks.0.0.weight",
    (320, 4, 3, 3),
    "320 channels wide, and nothing is concatenated to the 4-channel latent",
)
_NO_MIDDLE = Foreign(f"{_U}middle_block.1.", "a transformer in the middle")
SSD_1B = _sdxl(
    "ssd-1b",
    "SSD-1B, a distilled Stable Diffusion XL",
    replace(
        SDXL_UNET,
        depths=(0, 2, 4),
        middle_depth=0,
        up_depths=((0, 0, 0), (2, 1, 1), (4, 4, 10)),
    ),
    _BASE,
    Sign(
        f"{_U}output_blocks.0.1.transformer_blocks.3.norm1.weight",
        (1280,),
        "the first transformer on the way up has four blocks",
    ),
    foreign=(_NO_MIDDLE,),
    pipeline=_TEXT_TO_IMAGE,
)
VEGA = _sdxl(
    "segmind-vega",
    "Segmind-Vega, a distilled Stable Diffusion XL",
    replace(
        SDXL_UNET,
        depths=(0, 1, 2),
        middle_depth=0,
        up_depths=((0, 0, 0), (1, 1, 1), (2, 2, 2)),
    ),
    _BASE,
    Sign(
        f"{_U}output_blocks.0.1.transformer_blocks.1.norm1.weight",
        (1280,),
        "the first transformer on the way up has two blocks",
    ),
    foreign=(
        _NO_MIDDLE,
        Foreign(f"{_U}output_blocks.0.1.transformer_blocks.2.", "further blocks on the way up"),
    ),
    pipeline=_TEXT_TO_IMAGE,
)
SDXL_REFINER = Family(
    name="sdxl-refiner",
    title="Stable Diffusion XL refiner",
    parts=(
        Part(
            Component.UNET,
            _U,
            replace(
                SDXL_UNET,
                channels=384,
                multipliers=(1, 2, 4, 4),
                depths=(0, 4, 4, 0),
                context=1280,
                middle_depth=4,
                vector=1280 + 5 * 256,
            ),
        ),
        _SIGMAS,
        # diffusers keeps it in the folder of the second encoder, and has no first.
        Part(Component.TEXT_ENCODER_2, "conditioner.embedders.0.model.", OPENCLIP_BIG_G),
        _VAE,
    ),
    signs=(
        Sign(
            f"{_U}input_blocks.0.0.weight",
            (384, 4, 3, 3),
            "384 channels wide, and nothing is concatenated to the 4-channel latent",
        ),
        Sign(
            f"{_U}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
            (768, 1280),
            "it attends to one text embedding 1280 wide, that of OpenCLIP ViT-bigG/14",
        ),
        Sign(
            f"{_U}label_emb.0.0.weight",
            (1536, 1280 + 5 * 256),
            "it takes a pooled text embedding, four numbers about the image's size and a score",
        ),
    ),
    foreign=_FOREIGN,
    regions=_MARKS,
    marks_of_v=_MARKS_OF_V,
    marks_of_noise=_MARKS_OF_NOISE,
    pipeline=replace(
        _pipeline("StableDiffusionXLImg2ImgPipeline"),
        named=(_TOKENIZER_2,),
        left_out=("tokenizer", "text_encoder", "image_encoder", "feature_extractor"),
        flags=(("force_zeros_for_empty_prompt", False), ("requires_aesthetics_score", True)),
    ),
    size=1024,
    scaling=SCALING_SDXL,
    vae_overflows=True,
)
