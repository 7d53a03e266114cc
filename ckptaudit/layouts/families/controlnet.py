"""ControlNets: alone, and together with the model they were trained in.

Knows:      the places of their parts, and how a file with nothing else spells their names.
Is told:    nothing.
Never asks: what a given file holds (`detect`).

The numbers are those of lllyasviel/ControlNet, models/cldm_v15.yaml and cldm_v21.yaml.  Those for
SDXL were trained in diffusers, and copy its UNet in the same way.
"""

from __future__ import annotations

from dataclasses import replace

from ckptaudit.layouts.families.sd1 import SD1, SD1_UNET
from ckptaudit.layouts.families.sd2 import SD2, SD2_UNET
from ckptaudit.layouts.families.sdxl import SDXL, SDXL_UNET
from ckptaudit.layouts.family import Component, Family, Foreign, Part, Region, Sign, Variant
from ckptaudit.layouts.unet import ControlNet, UNet

__all__ = ["CONTROLNETS"]

_PREFIX = "control_model."


def _alone(base: Family, unet: UNet) -> Family:
    return Family(
        name=f"controlnet-{base.name}",
        title=f"a ControlNet for {base.title}",
        parts=(Part(Component.CONTROLNET, _PREFIX, ControlNet(unet)),),
        signs=_signs(unet),
        core=Component.CONTROLNET,
        foreign=(Foreign("model.diffusion_model.", "the model it was trained in as well"),),
        variants=(Variant("bare", canonical=_PREFIX, spelled=""),),
    )


def _together(base: Family, unet: UNet) -> Family:
    control = Part(Component.CONTROLNET, _PREFIX, ControlNet(unet))
    return replace(
        base,
        name=f"controlnet-{base.name}-full",
        title=f"a ControlNet with the {base.title} it was trained in",
        parts=(*base.parts, control),
        signs=(*base.signs, *_signs(unet)),
        foreign=tuple(each for each in base.foreign if each.prefix != _PREFIX),
        # A buffer of the training loss, in each step the same.
        regions=(Region("logvar", Component.SCHEDULE),),
        # Which pipeline it goes with is nowhere in a checkpoint.
        pipeline=None,
    )


def _signs(unet: UNet) -> tuple[Sign, ...]:
    # The first level with a transformer: two residual blocks and a convolution make one.
    level = next(level for level, depth in enumerate(unet.depths) if depth)
    width = unet.channels * unet.multipliers[level]
    block = 1 + level * (unet.res_blocks + 1)
    return (
        Sign(
            f"{_PREFIX}input_hint_block.0.weight",
            (16, 3, 3, 3),
            "an image of 3 channels controls it",
        ),
        Sign(
            f"{_PREFIX}input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight",
            (width, unet.context),
            f"it attends to text embeddings {unet.context} wide",
        ),
    )


CONTROLNETS = (
    _alone(SD1, SD1_UNET),
    _alone(SD2, SD2_UNET),
    _alone(SDXL, SDXL_UNET),
    _together(SD1, SD1_UNET),
    _together(SD2, SD2_UNET),
)
