"""Small files that go with a model and are none: recognised, named, and kept as they are.

Knows:      what the keys and shapes of each kind of file look like.
Is told:    keys, shapes and dtypes.
Never asks: for an inventory: their sizes are the user's choice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptaudit.layouts.match import Spec

__all__ = ["recognise"]

# Width of a token's embedding, and whose text encoder has it.
_WIDTHS = {
    768: "CLIP ViT-L/14: Stable Diffusion 1.x",
    1024: "OpenCLIP ViT-H/14: Stable Diffusion 2.x",
    1280: "OpenCLIP ViT-bigG/14: Stable Diffusion XL",
}
_MATRIX, _KERNEL = 2, 4
# A textual inversion rarely has more, and a state dict rarely fewer.
_MOST_EMBEDDINGS = 64
_TAESD_WIDTH = 64
# Attention has four layers to change: no list of factors is shorter.
_LEAST_LIST = 4
_FEW_LAYERS = 3


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of file.

    Attributes:
        name: Short name, used as a family's.
        tells: What shows that tensors are such a file's; "" if nothing does.
    """

    name: str
    tells: Callable[[Mapping[str, Spec]], str]


def recognise(tensors: Mapping[str, Spec]) -> tuple[str, str] | None:
    """The name of the kind of file, and what shows it; None if it is of no kind we know."""
    for kind in _KINDS:
        if tensors and (evidence := kind.tells(tensors)):
            return kind.name, evidence
    return None


def _textual_inversion(tensors: Mapping[str, Spec]) -> str:
    stored = re.compile(r"string_to_param\.(?:_parameters\.)?.+")
    # The code of those who had the idea saves the number of each token as a tensor, too.
    vectors = {
        key: spec
        for key, spec in tensors.items()
        if spec.shape or not key.startswith("string_to_token.")
    }
    if vectors and all(stored.fullmatch(key) for key in vectors):
        return _embeddings(vectors)
    if set(tensors) == {"clip_g", "clip_l"}:
        widths = {key: spec.shape[-1:] for key, spec in tensors.items()}
        if widths == {"clip_g": (1280,), "clip_l": (768,)}:
            return "clip_l and clip_g are embeddings of tokens for both encoders of SDXL"
    # So the WebUI calls the one tensor of an embedding in a safetensors file.
    if set(tensors) == {"emb_params"} or all(re.fullmatch(r"<[^<>]+>", key) for key in tensors):
        return _embeddings(tensors)
    return ""


def _embeddings(tensors: Mapping[str, Spec]) -> str:
    shapes = {spec.shape for spec in tensors.values()}
    widths = {shape[-1] for shape in shapes if 1 <= len(shape) <= _MATRIX}
    if len(tensors) > _MOST_EMBEDDINGS or len(widths) != 1 or not widths <= _WIDTHS.keys():
        return ""
    (width,) = widths
    key = min(tensors)
    return f"{key} is an embedding of tokens {width} wide, those of {_WIDTHS[width]}"


def _aesthetic(tensors: Mapping[str, Spec]) -> str:
    if set(tensors) != {"tensor"} or tensors["tensor"].shape not in {(768,), (1, 768)}:
        return ""
    shape = list(tensors["tensor"].shape)
    return f"the file is one bare tensor, {shape}: a mean of image embeddings of CLIP ViT-L/14"


def _hypernetwork(tensors: Mapping[str, Spec]) -> str:
    # By the width of what it changes, two networks: one for keys and one for values.
    named = re.compile(r"(?:320|640|768|1024|1280|2048)\.[01]\.linear\d?\.(?:\d+\.)?\w+")
    if not all(named.fullmatch(key) for key in tensors):
        return ""
    widths = sorted({int(key.split(".")[0]) for key in tensors})
    return f"its keys are numbers, the widths of what it changes: {', '.join(map(str, widths))}"


def _lora(tensors: Mapping[str, Spec]) -> str:
    pair = re.compile(
        r"(?P<layer>.+)\.(?:lora_(?:down|up|A|B|mid)|(?:\w+_)?lora\.(?:down|up))(?:\.\w+)?\.weight"
        r"|(?P<hada>.+)\.(?:hada|lokr)_\w+|(?P<other>.+)\.(?:alpha|diff|diff_b|dora_scale)"
    )
    found = [match for key in tensors if (match := pair.fullmatch(key))]
    factors = [match for match in found if match["layer"] or match["hada"]]
    if not factors or 2 * len(found) <= len(tensors):
        return ""
    layers = len({match["layer"] or match["hada"] for match in factors})
    tensors_told = counted(len(factors), "tensor")
    return f"it has the low-rank factors of {counted(layers, 'layer')}, in {tensors_told}"


def _lycoris(tensors: Mapping[str, Spec]) -> str:
    """Whether layers are changed by something else than low-rank factors, as LyCORIS can."""
    named = re.compile(
        r"(?P<layer>(?:lora|lycoris)_[^.]+)\."
        r"(?P<what>oft_blocks|oft_diag|[ab][12]\.weight|on_input|diff|diff_b|w_norm|b_norm)"
    )
    found = [match for key in tensors if (match := named.fullmatch(key))]
    layers = {match["layer"] for match in found}
    if not layers or not all(key.split(".")[0] in layers for key in tensors):
        return ""
    kinds = ", ".join(sorted({match["what"] for match in found}))
    return f"it has what changes {counted(len(layers), 'layer')}: {kinds}"


def _lora_list(tensors: Mapping[str, Spec]) -> str:
    """Whether a list holds pairs of factors, up and down, as the first LoRA files did."""
    keys = [str(number) for number in range(len(tensors))]
    shapes = [tensors[key].shape for key in keys if key in tensors]
    if len(shapes) < len(tensors) or len(shapes) < _LEAST_LIST or len(shapes) % 2:
        return ""
    pairs = list(zip(shapes[::2], shapes[1::2], strict=True))
    fits = all(
        len(up) == len(down) == _MATRIX and up[1] == down[0] < min(up[0], down[1])
        for up, down in pairs
    )
    told = counted(len(pairs), "pair")
    return f"it is a list of {told} of low-rank factors, up and down" if fits else ""


def _taesd(tensors: Mapping[str, Spec]) -> str:
    home = r"(?:(?:taesd_)?(?:encoder|decoder)\.(?:layers\.)?)?"
    named = re.compile(rf"{home}\d+\.(?:(?:conv|pool)\.\d+\.|skip\.)?\w+")
    blocks = sum(".conv." in key for key in tensors)
    if not all(named.fullmatch(key) for key in tensors) or 2 * blocks <= len(tensors):
        return ""
    kernels = (key for key in sorted(tensors) if len(tensors[key].shape) == _KERNEL)
    first = next((tensors[key] for key in kernels), None)
    if first is None or _TAESD_WIDTH not in first.shape[:2]:
        return ""
    of = f"{blocks} of its {counted(len(tensors), 'tensor')}"
    return f"{of} are numbered convolutions, {_TAESD_WIDTH} channels wide"


def _vae_approx(tensors: Mapping[str, Spec]) -> str:
    names = {f"conv{number}.{name}" for number in range(1, 9) for name in ("weight", "bias")}
    first = tensors.get("conv1.weight")
    if set(tensors) != names or first is None or len(first.shape) != _KERNEL:
        return ""
    return f"eight convolutions, the first from {first.shape[1]} channels to {first.shape[0]}"


def _upscaler(tensors: Mapping[str, Spec]) -> str:
    dense = re.compile(r".*\b(?:RDB|rdb)(\d)\.conv(\d)\.(?:0\.)?weight")
    found = sum(dense.fullmatch(key) is not None for key in tensors)
    if 4 * found <= len(tensors):
        return ""
    return f"weights of residual dense blocks: {found} of its {counted(len(tensors), 'tensor')}"


def _compact_upscaler(tensors: Mapping[str, Spec]) -> str:
    """Whether convolutions and activations take turns, as in Real-ESRGAN's compact models."""
    named = re.compile(r"body\.\d+\.(?:weight|bias)")
    # An activation has a weight for each channel, and no bias.
    activations = [
        key
        for key, spec in tensors.items()
        if key.endswith(".weight") and len(spec.shape) == 1 and f"{key[:-6]}bias" not in tensors
    ]
    if not all(named.fullmatch(key) for key in tensors) or len(activations) < _FEW_LAYERS:
        return ""
    return f"{counted(len(activations), 'activation')} between its convolutions, each with weights"


def _swin_upscaler(tensors: Mapping[str, Spec]) -> str:
    named = re.compile(r"layers\.\d+\.residual_group\.blocks\.\d+\.\S+")
    found = sum(named.fullmatch(key) is not None for key in tensors)
    if "conv_first.weight" not in tensors or 2 * found <= len(tensors):
        return ""
    of = f"{found} of its {counted(len(tensors), 'tensor')}"
    return f"{of} are of residual groups of window attention, behind a convolution"


def _part(prefix: str, says: str) -> Callable[[Mapping[str, Spec]], str]:
    """Tell a file by a part of its denoiser, which lies where one of LDM does or at the root."""
    prefixes = (f"model.diffusion_model.{prefix}", prefix)

    def tells(tensors: Mapping[str, Spec]) -> str:
        key = min((key for key in tensors if key.startswith(prefixes)), default=None)
        return "" if key is None else f"{key} is there: {says}"

    return tells


_KINDS = (
    _Kind("textual-inversion", _textual_inversion),
    _Kind("aesthetic-embedding", _aesthetic),
    _Kind("hypernetwork", _hypernetwork),
    _Kind("lora", _lora),
    _Kind("lora", _lycoris),
    _Kind("lora", _lora_list),
    _Kind("vae-approx", _vae_approx),
    _Kind("taesd", _taesd),
    _Kind("upscaler", _upscaler),
    _Kind("upscaler", _compact_upscaler),
    _Kind("upscaler", _swin_upscaler),
    _Kind("sd3", _part("joint_blocks.0.", "blocks that text and image go through side by side")),
    _Kind("flux", _part("double_blocks.0.img_attn.", "blocks with a stream each for two inputs")),
    _Kind("cascade", _part("clip_txt_pooled_mapper.", "the first stage of Stable Cascade")),
    _Kind("cascade", _part("effnet_mapper.", "the second stage of Stable Cascade")),
)
