"""UNets and text encoders in files of their own, as some programs keep them.

Knows:      how files with nothing else spell the names of a part.
Is told:    the models that the parts are of.
Never asks: what a given file holds (`detect`).

The spellings are those that ComfyUI's folders ``diffusion_models`` and ``text_encoders`` hold
(comfy/sd.py, comfy/model_detection.py).  A UNet gets the names that it has in a whole model,
because diffusers looks for no others in a single file, and ComfyUI takes both; a text encoder
gets bare names, because ComfyUI and transformers take no others.
"""

from __future__ import annotations

from dataclasses import replace

from ckptaudit.layouts.families.encoders import CLIP_L, OPENCLIP_BIG_G, OPENCLIP_H
from ckptaudit.layouts.families.ldm import LDM_CLASS, LDM_TEXT
from ckptaudit.layouts.families.sd1 import SD1, SD1_EDIT, SD1_INPAINTING
from ckptaudit.layouts.families.sd2 import SD2, SD2_DEPTH, SD2_INPAINTING, SD2_UPSCALER
from ckptaudit.layouts.families.sdxl import (
    SDXL,
    SDXL_EDIT,
    SDXL_INPAINTING,
    SDXL_REFINER,
    SSD_1B,
    VEGA,
)
from ckptaudit.layouts.families.unclip import UNCLIP_H, UNCLIP_L
from ckptaudit.layouts.family import Component, Family, Foreign, Part, Region, Sign, Variant

__all__ = ["TEXT_ENCODERS", "UNETS"]

_U = "model.diffusion_model."
_MORE = "so this is more than one part of a model"
_VAE = Foreign("first_stage_model.", f"an autoencoder, {_MORE}")
_HINT = f"{_U}input_hint_block."


def _unet(whole: Family) -> Family:
    """The UNet of *whole*, alone but for the schedule."""
    kept = Component.UNET, Component.SCHEDULE
    return replace(
        whole,
        name=f"unet-{whole.name}",
        title=f"the UNet of {whole.title}",
        parts=tuple(
            part for part in whole.parts if part.component in kept and part.prefix in {_U, ""}
        ),
        signs=tuple(sign for sign in whole.signs if sign.key.startswith(_U)),
        foreign=(
            *(each for each in whole.foreign if each.prefix.startswith(_U)),
            _VAE,
            Foreign("cond_stage_model.", f"a text encoder, {_MORE}"),
            Foreign("conditioner.", f"a text encoder, {_MORE}"),
            Foreign("control_model.", f"a ControlNet, {_MORE}"),
            Foreign(_HINT, "an image controls it, so this is a ControlNet"),
        ),
        variants=(Variant("bare", canonical=_U, spelled=""),),
        pipeline=None,
        vae_overflows=False,
    )


UNETS = tuple(
    _unet(whole)
    for whole in (
        *(SD1, SD1_INPAINTING, SD1_EDIT),
        *(SD2, SD2_INPAINTING, SD2_DEPTH, SD2_UPSCALER, UNCLIP_L, UNCLIP_H),
        *(SDXL, SDXL_INPAINTING, SDXL_EDIT, SDXL_REFINER, SSD_1B, VEGA),
        *(LDM_TEXT, LDM_CLASS),
    )
)

_ALONE = (
    Foreign(_U, f"a UNet, {_MORE}"),
    _VAE,
    Foreign("visual.", "the image half of CLIP, so this is more than a text encoder"),
    Foreign("vision_model.", "the image half of CLIP, so this is more than a text encoder"),
)
_TEXT_MODEL = "text_model."
CLIP_L_ALONE = Family(
    name="clip-l",
    title="the text encoder CLIP ViT-L/14",
    parts=(Part(Component.TEXT_ENCODER, "", CLIP_L),),
    signs=(
        Sign(
            f"{_TEXT_MODEL}embeddings.token_embedding.weight",
            (49408, 768),
            "it embeds the tokens of CLIP in 768 numbers, as CLIP ViT-L/14 does",
        ),
        Sign(
            f"{_TEXT_MODEL}encoder.layers.0.mlp.fc1.weight",
            (3072, 768),
            "its layers are as wide as those of CLIP ViT-L/14",
        ),
    ),
    core=Component.TEXT_ENCODER,
    foreign=_ALONE,
    # What SD 3 pools the text with, and ComfyUI saves beside any encoder.
    regions=(
        Region("text_projection", Component.TEXT_ENCODER),
        Region("logit_scale", Component.TEXT_ENCODER),
    ),
    variants=(
        # transformers 5.6 and later have no wrapper around the model.
        Variant("flat", canonical=_TEXT_MODEL, spelled=""),
        Variant("prefixed", canonical="", spelled="cond_stage_model.transformer."),
        Variant("novelai", canonical=_TEXT_MODEL, spelled="cond_stage_model.transformer."),
        Variant("sdxl", canonical="", spelled="conditioner.embedders.0.transformer."),
    ),
)


def _open_clip(name: str, title: str, part: Part, width: int, *prefixes: tuple[str, str]) -> Family:
    return Family(
        name=name,
        title=f"the text encoder {title}",
        parts=(part,),
        signs=(
            Sign(
                "token_embedding.weight",
                (49408, width),
                f"it embeds the tokens of CLIP in {width} numbers, as {title} does",
            ),
            Sign(
                "transformer.resblocks.0.attn.in_proj_weight",
                (3 * width, width),
                "query, key and value are one matrix, as OpenCLIP has them",
            ),
        ),
        core=part.component,
        foreign=_ALONE,
        variants=tuple(
            Variant(spelling, canonical="", spelled=prefix) for spelling, prefix in prefixes
        ),
    )


TEXT_ENCODERS = (
    CLIP_L_ALONE,
    _open_clip(
        "openclip-h",
        "OpenCLIP ViT-H/14",
        Part(Component.TEXT_ENCODER, "", OPENCLIP_H),
        1024,
        ("prefixed", "cond_stage_model.model."),
        ("sgm", "conditioner.embedders.0.model."),
    ),
    _open_clip(
        "openclip-bigg",
        "OpenCLIP ViT-bigG/14",
        Part(Component.TEXT_ENCODER_2, "", OPENCLIP_BIG_G),
        1280,
        ("sdxl", "conditioner.embedders.1.model."),
        ("refiner", "conditioner.embedders.0.model."),
    ),
)
