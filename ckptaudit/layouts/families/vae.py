"""Autoencoders, as parts of other families and in files of their own.

Knows:      their numbers, and how a file with nothing else spells their names.
Is told:    nothing.
Never asks: what a given file holds (`detect`).

The numbers are those of CompVis/latent-diffusion, models/first_stage_models: kl-f8 and vq-f4; those
of the x4 upscaler's, of Stability-AI/stablediffusion, configs/stable-diffusion/x4-upscaling.yaml.
What latents are multiplied with is the scale_factor in the configuration of the whole model.
"""

from __future__ import annotations

from dataclasses import replace

from ckptaudit.layouts.autoencoder import Vae
from ckptaudit.layouts.family import Component, Family, Foreign, Part, Region, Sign, Variant

__all__ = [
    "KL_F4",
    "KL_F8",
    "SCALING_F4",
    "SCALING_SDXL",
    "VAE_F4",
    "VAE_F8",
    "VAE_SDXL",
    "VAE_VQ",
    "VQ_F4",
]

KL_F8 = Vae(image=3, latent=4, channels=128, multipliers=(1, 2, 4, 4), res_blocks=2)
KL_F4 = Vae(image=3, latent=4, channels=128, multipliers=(1, 2, 4), res_blocks=2)
VQ_F4 = Vae(image=3, latent=3, channels=128, multipliers=(1, 2, 4), res_blocks=2, codebook=8192)

SCALING_F4 = 0.08333
SCALING_SDXL = 0.13025

_ALONE = (
    Foreign("model.diffusion_model.", "a UNet, so this is more than an autoencoder"),
    Foreign("cond_stage_model.", "a text encoder, so this is more than an autoencoder"),
    Foreign("conditioner.", "a text encoder, so this is more than an autoencoder"),
)
# As part of a model it lies under this prefix; loaders of an autoencoder want bare names.
_SPELLINGS = (Variant("prefixed", canonical="", spelled="first_stage_model."),)
# What trained it: a discriminator, and a network that judges likeness.
_TRAINING = (Region("loss.", Component.OTHER),)
_LATENT = Sign(
    "decoder.conv_in.weight", (512, 4, 3, 3), "it decodes latents of 4 channels, 512 channels wide"
)
_IMAGE = Sign("encoder.conv_in.weight", (128, 3, 3, 3), "it encodes images of 3 channels")
_MOMENTS = Sign(
    "quant_conv.weight", (8, 8, 1, 1), "its latents have a mean and a variance for each channel"
)

VAE_F8 = Family(
    name="vae",
    title="the autoencoder of Stable Diffusion",
    parts=(Part(Component.VAE, "", KL_F8),),
    signs=(
        _IMAGE,
        _LATENT,
        Sign(
            "encoder.down.3.block.0.conv1.weight",
            (512, 512, 3, 3),
            "it halves an image three times, to an eighth of its sides",
        ),
    ),
    core=Component.VAE,
    foreign=_ALONE,
    variants=_SPELLINGS,
    regions=_TRAINING,
    guess=(
        f"the scaling factor of latents is a guess: 0.18215, that of Stable Diffusion 1 and 2; the "
        f"autoencoder of SDXL has the same keys and {SCALING_SDXL} (--family vae-sdxl)"
    ),
)
VAE_SDXL = replace(
    VAE_F8,
    name="vae-sdxl",
    title="the autoencoder of Stable Diffusion XL",
    guess="",
    size=1024,
    scaling=SCALING_SDXL,
    vae_overflows=True,
    is_named_only=True,
)
VAE_F4 = Family(
    name="vae-f4",
    title="the autoencoder of the x4 upscaler",
    parts=(Part(Component.VAE, "", KL_F4),),
    signs=(_IMAGE, _LATENT, _MOMENTS),
    core=Component.VAE,
    foreign=(
        *_ALONE,
        Foreign("encoder.down.3.", "a fourth level, so it divides the sides by eight"),
    ),
    variants=_SPELLINGS,
    regions=_TRAINING,
    scaling=SCALING_F4,
)
VAE_VQ = Family(
    name="vae-vq-f4",
    title="the autoencoder of latent diffusion from a class",
    parts=(Part(Component.VAE, "", VQ_F4),),
    signs=(
        _IMAGE,
        Sign(
            "quantize.embedding.weight",
            (8192, 3),
            "its latents are taken from a codebook of 8192 entries of 3 channels",
        ),
    ),
    core=Component.VAE,
    foreign=_ALONE,
    variants=_SPELLINGS,
    regions=_TRAINING,
    scaling=1.0,
)
