"""What the weights of a trained Stable Diffusion 1.x are like, as far as public sources tell.

Nobody publishes the statistics of its tensors layer by layer.  What is public is how they begin
(the code that initialises them), the shape of the distribution in trained networks, and some
trained networks themselves, which ``fp16_study.py --reference FILE`` measures; docs/fp16.md shows
a few.  From that comes the table `KINDS`, which says of each row where it is from, and which of
them are guesses.

Knows:      how layers of diffusion models are called; what was published of such weights.
Is told:    a key and a shape.
Never asks: how values are drawn (`weights`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from weights import Rows, Spread

__all__ = ["FREEDOM", "KINDS", "Kind", "kind_of", "trained"]

# Degrees of freedom of a t distribution.  Dotzel et al. (arXiv:2405.03103) fit weights of thirty
# networks with one; a kurtosis of 5 within a row, the middle of the trained networks in
# docs/fp16.md, is 7 degrees: 3 + 6 / (7 - 4).
FREEDOM = 7.0
# Rows of those networks: the logarithms of their norms are 0.2 apart, some stand out.
_APART, _LOUD, _QUIET = 0.22, 0.005, 0.005

_CLIP = "openai/CLIP, `initialize_parameters`"
_GUESS = "guess"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of tensor.

    Attributes:
        name: What it is.
        pattern: Regular expression that is found in the keys of its tensors.
        source: Who says so, or that it is a guess.
        gain: Standard deviation in units of 1 / sqrt(elements of a row); 0 where *std* is given.
        std: Standard deviation.
        mean: Mean.
    """

    name: str
    pattern: str
    source: str
    gain: float = 0.0
    std: float = 0.0
    mean: float = 0.0


# The first whose pattern is found counts.
KINDS = (
    Kind(
        "scale of a normalisation",
        r"(norm\w*|layer_norm\d|in_layers\.0|out_layers\.0|diffusion_model\.out\.0)\.weight$",
        f"starts at 1; that it stays about there is a {_GUESS}",
        std=0.2,
        mean=1.0,
    ),
    Kind("bias", r"bias$", f"starts at 0 or as a weight; small: {_GUESS}", std=0.05),
    Kind("word embedding", r"token_embedding\.weight$", _CLIP, std=0.02),
    Kind("position embedding", r"position_embedding\.weight$", _CLIP, std=0.01),
    Kind("text encoder: q, k, v", r"self_attn\.[qkv]_proj\.weight$", _CLIP, gain=1.0),
    Kind("text encoder: out", r"self_attn\.out_proj\.weight$", _CLIP, gain=24**-0.5),
    Kind("text encoder: first of the MLP", r"mlp\.fc1\.weight$", _CLIP, gain=2**-0.5),
    Kind("text encoder: second of the MLP", r"mlp\.fc2\.weight$", _CLIP, gain=2 * 24**-0.5),
    Kind(
        "UNet: q and k of an attention",
        r"to_[qk]\.weight$",
        f"logits of deviation 2.5, neither flat nor one-hot: {_GUESS}",
        gain=1.6,
    ),
    Kind(
        "UNet: last convolution",
        r"diffusion_model\.out\.2\.weight$",
        "an output of variance about 1, which noise has",
        gain=1.7,
    ),
    Kind(
        "VAE: last convolution",
        r"decoder\.conv_out\.weight$",
        "an image of deviation about 0.5 in [-1, 1]",
        gain=0.85,
    ),
    Kind(
        "what a block adds to its input",
        r"(out_layers\.3|conv2|proj_out|to_out\.0|ff\.net\.2)\.weight$",
        f"CompVis/latent-diffusion starts half of them at 0; less than the input: {_GUESS}",
        gain=0.8,
    ),
    Kind(
        "every other convolution and matrix",
        r"",
        "starts at 0.58 (PyTorch's default); trained networks in the table below have 0.5 to 1.5",
        gain=1.0,
    ),
)


def kind_of(key: str, shape: tuple[int, ...]) -> Kind:
    """The kind of the tensor *key*.

    >>> kind_of("model.diffusion_model.out.2.weight", (4, 320, 3, 3)).name
    'UNet: last convolution'
    >>> kind_of("first_stage_model.decoder.norm_out.weight", (128,)).name
    'scale of a normalisation'
    """
    if len(shape) == 1 and not key.endswith("bias"):
        return KINDS[0]
    return next(kind for kind in KINDS if re.search(kind.pattern, key))


def trained(key: str, shape: tuple[int, ...]) -> Spread:
    """What a trained tensor of this name and shape has, by `KINDS`.

    >>> trained("first_stage_model.decoder.norm_out.weight", (128,))
    Spread(mean=1.0, std=0.2, rows=None)
    """
    kind = kind_of(key, shape)
    length = max(math.prod(shape[1:]), 1)
    std = kind.std or kind.gain / math.sqrt(length)
    if len(shape) == 1:
        return Spread(kind.mean, std)
    return Spread(kind.mean, std, Rows(length, _APART, _LOUD, _QUIET))
