"""The model families we know, one file per kind of model.

Knows:      the list of them.
Is told:    nothing.
Never asks: what a given file holds (`detect`).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from ckptaudit.layouts.families.alone import TEXT_ENCODERS, UNETS
from ckptaudit.layouts.families.alt import ALT_DIFFUSION, ALT_DIFFUSION_M18
from ckptaudit.layouts.families.controlnet import CONTROLNETS
from ckptaudit.layouts.families.ldm import LDM_CLASS, LDM_TEXT
from ckptaudit.layouts.families.sd1 import SD1, SD1_EDIT, SD1_INPAINTING
from ckptaudit.layouts.families.sd2 import (
    SD2,
    SD2_BASE,
    SD2_DEPTH,
    SD2_INPAINTING,
    SD2_SGM,
    SD2_UPSCALER,
    SD2_V,
)
from ckptaudit.layouts.families.sdxl import (
    SDXL,
    SDXL_EDIT,
    SDXL_INPAINTING,
    SDXL_REFINER,
    SSD_1B,
    VEGA,
)
from ckptaudit.layouts.families.unclip import UNCLIP_H, UNCLIP_L
from ckptaudit.layouts.families.vae import VAE_F4, VAE_F8, VAE_SDXL, VAE_VQ

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptaudit.layouts.family import Family

__all__ = ["FAMILIES"]

_ALL = (
    *(SD1, SD1_INPAINTING, SD1_EDIT),
    *(SD2, SD2_BASE, SD2_V, SD2_INPAINTING, SD2_DEPTH, SD2_UPSCALER, SD2_SGM, UNCLIP_L, UNCLIP_H),
    *(SDXL, SDXL_INPAINTING, SDXL_EDIT, SDXL_REFINER, SSD_1B, VEGA),
    *(LDM_TEXT, LDM_CLASS),
    *(ALT_DIFFUSION, ALT_DIFFUSION_M18),
    *(VAE_F8, VAE_SDXL, VAE_F4, VAE_VQ),
    *CONTROLNETS,
    *UNETS,
    *TEXT_ENCODERS,
)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ALL})
