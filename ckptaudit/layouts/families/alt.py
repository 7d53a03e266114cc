"""AltDiffusion: Stable Diffusion with a text encoder for many languages.

Knows:      the numbers of the architecture and the places of its parts.
Is told:    nothing.
Never asks: what a given file holds (`detect`).

The numbers are those of the WebUI's configurations, alt-diffusion-inference.yaml and
alt-diffusion-m18-inference.yaml: the UNets of Stable Diffusion 1 and 2.
"""

from __future__ import annotations

from dataclasses import replace

from ckptaudit.layouts.families.sd1 import SD1
from ckptaudit.layouts.families.sd2 import SD2
from ckptaudit.layouts.family import Component, Family, Part, Sign
from ckptaudit.layouts.xlmr import XlmRoberta

__all__ = ["ALT_DIFFUSION", "ALT_DIFFUSION_M18"]


def _alt(name: str, title: str, base: Family, encoder: XlmRoberta) -> Family:
    text = Part(Component.TEXT_ENCODER, "cond_stage_model.", encoder)
    return replace(
        base,
        name=name,
        title=title,
        parts=tuple(text if p.component is Component.TEXT_ENCODER else p for p in base.parts),
        signs=(
            *base.signs,
            Sign(
                "cond_stage_model.roberta.embeddings.LayerNorm.weight",
                (encoder.width,),
                "its text encoder is XLM-RoBERTa",
            ),
        ),
        variants=(),
        # The one that diffusers had it has given up.
        pipeline=None,
        undecided=None,
    )


ALT_DIFFUSION = _alt(
    "alt-diffusion",
    "AltDiffusion (m9)",
    SD1,
    XlmRoberta(projected=768, takes_last=True),
)
ALT_DIFFUSION_M18 = _alt(
    "alt-diffusion-m18",
    "AltDiffusion m18",
    SD2,
    XlmRoberta(projected=1024, takes_last=False),
)
