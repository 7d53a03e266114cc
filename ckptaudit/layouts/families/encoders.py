"""The text and image encoders that more than one family has.

Knows:      their numbers.
Is told:    nothing.
Never asks: which family has which.

The numbers are those of openai/clip-vit-large-patch14 and of OpenCLIP's ViT-H-14 and
ViT-bigG-14.
"""

from __future__ import annotations

from ckptaudit.layouts.clip import ClipImage, ClipText, OpenClipText

__all__ = ["CLIP_L", "IMAGE_H", "IMAGE_L", "OPENCLIP_BIG_G", "OPENCLIP_H"]

_TOKENS = 49408
_PROMPT = 77
_PATCHES = 16 * 16

CLIP_L = ClipText(vocabulary=_TOKENS, positions=_PROMPT, width=768, layers=12)
# SD 2 takes what its last layer but one gives, so the last is in files and is never run.
OPENCLIP_H = OpenClipText(
    vocabulary=_TOKENS,
    positions=_PROMPT,
    width=1024,
    layers=24,
    used_layers=23,
    projects=False,
)
OPENCLIP_BIG_G = OpenClipText(
    vocabulary=_TOKENS,
    positions=_PROMPT,
    width=1280,
    layers=32,
    used_layers=32,
    projects=True,
)
# OpenAI's own model, which has its text half whole.
IMAGE_L = ClipImage(
    width=1024,
    layers=24,
    patch=14,
    patches=_PATCHES,
    text=768,
    vocabulary=_TOKENS,
    positions=_PROMPT,
    text_layers=12,
    activation="quick_gelu",
)
IMAGE_H = ClipImage(
    width=1280,
    layers=32,
    patch=14,
    patches=_PATCHES,
    text=1024,
    vocabulary=_TOKENS,
    positions=_PROMPT,
    text_layers=0,
    activation="gelu",
)
