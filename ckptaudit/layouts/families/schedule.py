"""The noise schedules that checkpoints carry as buffers, though any loader can compute them.

Knows:      their names and their length.
Is told:    nothing.
Never asks: which family carries which.

ldm/models/diffusion/ddpm.py, ldm/modules/diffusionmodules/upscaling.py and, for the
sigmas, sgm/modules/diffusionmodules/denoiser.py register them.
"""

from __future__ import annotations

from ckptaudit.layouts.grammar import Buffers

__all__ = ["AUGMENTATION", "SCHEDULE", "SIGMAS"]

_STEPS = 1000
_FORWARD = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)

SCHEDULE = Buffers(
    names=(
        *_FORWARD,
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    ),
    length=_STEPS,
)
# The noise added to an image that the model is given beside its text.
AUGMENTATION = Buffers(names=_FORWARD, length=_STEPS)
SIGMAS = Buffers(names=("sigmas",), length=_STEPS)
