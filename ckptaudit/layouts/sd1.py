"""Stable Diffusion 1.x: 1.1 to 1.5 and everything fine-tuned from them.

Knows:      the numbers of the architecture, the places of its parts, the NovelAI spelling.
Is told:    nothing.
Never asks: what a given file holds (`detect`).

The numbers are those of CompVis/stable-diffusion, configs/stable-diffusion/v1-inference.yaml
(UNet, VAE, schedule) and openai/clip-vit-large-patch14 (text encoder).
"""

from __future__ import annotations

from ckptaudit.layouts.family import Component, Family, Foreign, Part, Sign, Variant
from ckptaudit.layouts.grammar import Buffers, ClipText, UNet, Vae

__all__ = ["SD1"]

_SCHEDULE = Buffers(
    names=(
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    ),
    length=1000,
)

_UNET = UNet(
    in_channels=4,
    out_channels=4,
    channels=320,
    multipliers=(1, 2, 4, 4),
    res_blocks=2,
    depths=(1, 1, 1, 0),
    middle_depth=1,
    context=768,
    linear_projection=False,
)

_VAE = Vae(image=3, latent=4, channels=128, multipliers=(1, 2, 4, 4), res_blocks=2)

_CLIP_L = ClipText(vocabulary=49408, positions=77, width=768, layers=12)

SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    parts=(
        Part(Component.SCHEDULE, "", _SCHEDULE),
        Part(Component.UNET, "model.diffusion_model.", _UNET),
        Part(Component.VAE, "first_stage_model.", _VAE),
        Part(Component.TEXT_ENCODER, "cond_stage_model.transformer.", _CLIP_L),
    ),
    signs=(
        Sign(
            "model.diffusion_model.input_blocks.0.0.weight",
            "320 channels wide, and nothing is concatenated to the 4-channel latent",
        ),
        Sign(
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
            "it attends to text embeddings 768 wide, those of CLIP ViT-L/14",
        ),
        Sign(
            "model.diffusion_model.input_blocks.1.1.proj_in.weight",
            "its transformers are entered by a 1x1 convolution",
        ),
    ),
    foreign=(
        Foreign("control_model.", "a ControlNet together with the model it was trained in"),
        Foreign("conditioner.", "text encoders laid out as in SDXL"),
        Foreign("model.diffusion_model.label_emb.", "a UNet that also takes a label or an image"),
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
)
