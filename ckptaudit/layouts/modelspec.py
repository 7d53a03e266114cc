"""What the ModelSpec calls a family, and whose code its files are for.

Knows:      the ids that Stability-AI/ModelSpec lists, version 1.0.1.
Is told:    the name of a family.
Never asks: for an id of our own making: of a family that is not listed the user has to say it.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ModelSpecIds", "modelspec_ids"]


class ModelSpecIds(NamedTuple):
    """How the ModelSpec names a family.

    Attributes:
        architecture: Its id there.
        implementation: The code whose names the tensors have in the original layout.
    """

    architecture: str
    implementation: str


_COMPVIS = "https://github.com/CompVis/stable-diffusion"
_STABILITY = "https://github.com/Stability-AI/stablediffusion"
_SGM = "sgm"
_SD = "stable-diffusion"

# Not listed there: instruct-pix2pix for Stable Diffusion 1, the upscaler, SDXL inpainting, SSD-1B,
# latent diffusion before Stable Diffusion.  Without a prediction "sd2" could be either of two, and
# the autoencoder of Stable Diffusion 1 that of 2.
_IDS = {
    "sd1": ModelSpecIds(f"{_SD}-v1", _COMPVIS),
    "sd1-inpainting": ModelSpecIds(f"{_SD}-v1-inpainting", _COMPVIS),
    "sd2-base": ModelSpecIds(f"{_SD}-v2-512", _STABILITY),
    "sd2-v": ModelSpecIds(f"{_SD}-v2-768-v", _STABILITY),
    "sd2-inpainting": ModelSpecIds(f"{_SD}-v2-inpainting", _STABILITY),
    "sd2-depth": ModelSpecIds(f"{_SD}-v2-depth", _STABILITY),
    "sd2-unclip-l": ModelSpecIds(f"{_SD}-v2-unclip-l", _STABILITY),
    "sd2-unclip-h": ModelSpecIds(f"{_SD}-v2-unclip-h", _STABILITY),
    "sdxl": ModelSpecIds(f"{_SD}-xl-v1-base", _SGM),
    "sdxl-refiner": ModelSpecIds(f"{_SD}-xl-v1-refiner", _SGM),
    "sdxl-edit": ModelSpecIds(f"{_SD}-xl-v1-edit", _SGM),
    "vae-sdxl": ModelSpecIds(f"{_SD}-xl-v1-base/vae", _SGM),
    "controlnet-sd1": ModelSpecIds(
        f"{_SD}-v1/controlnet", "https://github.com/lllyasviel/ControlNet"
    ),
}


def modelspec_ids(family: str) -> ModelSpecIds | None:
    """What the ModelSpec calls *family*; None where it does not list it, or not by this alone."""
    return _IDS.get(family)
