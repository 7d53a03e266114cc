"""The diffusers layout: a folder for each component, with a description of what lies in it.

Knows:      the names, files and settings that diffusers and transformers look for.
Is told:    a family, and what its model predicts.
Never asks: what a file holds.

The settings are those of the models' own folders, of which an architecture's numbers tell
most; the rest are what diffusers has for each kind of model.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, TypeAlias

from ckptaudit.layouts.autoencoder import Vae
from ckptaudit.layouts.bert import BertText
from ckptaudit.layouts.clip import ClipImage, ClipText, EmbeddingStatistics, OpenClipText
from ckptaudit.layouts.family import Component
from ckptaudit.layouts.midas import DptHybrid
from ckptaudit.layouts.unet import ControlNet, UNet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptaudit.layouts.family import Family, Part, Pipeline, Scheduler

__all__ = ["Settings", "absent_from_folder", "folder_files", "settings_of", "weights_file"]

Settings: TypeAlias = "dict[str, object]"

# transformers' models have another name for their weights than diffusers' own.
_OF_TRANSFORMERS = {
    Component.TEXT_ENCODER,
    Component.TEXT_ENCODER_2,
    Component.IMAGE_ENCODER,
    Component.DEPTH_ESTIMATOR,
}
# The diffusers whose folders were the model for these.
_VERSION = "0.30.0"
_HEAD_WIDTH = 64
# What every UNet of latent diffusion, and every ControlNet, has in common.
_OF_UNETS: Settings = {
    "act_fn": "silu",
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
}
_TURNED_UP = "up_block_types"
_INDEX, _CONFIG, _SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
_STEPS = 1000


def weights_file(family: Family, component: Component) -> str:
    """Where in the folder that is made of *family* the weights of *component* lie.

    What is no pipeline has the folder for itself.
    """
    name = "model" if component in _OF_TRANSFORMERS else "diffusion_pytorch_model"
    return f"{family.home(component)}{name}.safetensors"


def absent_from_folder(family: Family, weights: Iterable[str]) -> tuple[Component, ...]:
    """Components of *family*'s pipeline that are in none of the files *weights*."""
    if family.pipeline is None:
        return ()
    there = set(weights)
    components = (part.component for part in family.models)
    return tuple(each for each in components if weights_file(family, each) not in there)


def settings_of(family: Family) -> dict[str, frozenset[str]]:
    """What may stand beside each file of weights of such a folder, by path in the folder.

    The settings of the pipeline belong to every one of them.
    """
    shared = set()
    if family.pipeline is not None:
        schedulers = ("scheduler", *(further.name for further in family.pipeline.further))
        shared = {_INDEX, *(f"{name}/{_SCHEDULER}" for name in schedulers)}
    components = [part.component for part in (*family.models, *family.rare)]
    return {
        weights_file(family, each): frozenset({f"{family.home(each)}{_CONFIG}", *shared})
        for each in components
    }


def folder_files(family: Family, weights: Iterable[str], prediction: str) -> dict[str, Settings]:
    """The JSON files that stand beside the weights, by path in the folder.

    Args:
        family: What the model is; one that has a diffusers layout.
        weights: The files of weights that are written.
        prediction: ``epsilon`` or ``v_prediction``.
    """
    there = set(weights)
    parts = (*family.models, *family.rare)
    written = [part for part in parts if weights_file(family, part.component) in there]
    if family.pipeline is None:
        return {_CONFIG: _config(written[0], family, prediction)} if written else {}
    pipeline = family.pipeline
    files: dict[str, Settings] = {
        f"{family.home(part.component)}{_CONFIG}": _config(part, family, prediction)
        for part in written
    }
    files[f"scheduler/{_SCHEDULER}"] = _scheduler(pipeline, prediction)
    for further in pipeline.further:
        files[f"{further.name}/{_SCHEDULER}"] = _further(further)
    files[_INDEX] = _index(pipeline, written)
    # As diffusers says of a component that a pipeline was saved without.
    for absent in absent_from_folder(family, there):
        files[_INDEX][pipeline.folder(absent)] = [None, None]
    return files


def _config(part: Part, family: Family, prediction: str) -> Settings:
    size = family.image_size(prediction)
    match part.architecture:
        case UNet() as unet:
            return _unet(unet, size // family.shrinks)
        case ControlNet() as control:
            return _controlnet(control)
        case Vae() as vae:
            return _vae(vae, size, family.scaling)
        case ClipText() as clip:
            return _text(clip, "CLIPTextModel", clip.layers, clip.width, "quick_gelu")
        case OpenClipText() as clip:
            name = "CLIPTextModelWithProjection" if clip.projects else "CLIPTextModel"
            # SD 2's folders say 512, though nothing is projected.
            projection = clip.width if clip.projects else 512
            return _text(clip, name, clip.used_layers, projection, "gelu")
        case ClipImage() as clip:
            return _image(clip)
        case EmbeddingStatistics(width=width):
            name = "StableUnCLIPImageNormalizer"
            version = {"_diffusers_version": _VERSION}
            return {"_class_name": name, **version, "embedding_dim": width}
        case BertText() as bert:
            return _bert(bert)
        case DptHybrid() as dpt:
            return _depth(dpt)
        case _:
            raise KeyError(part.component)


def _index(pipeline: Pipeline, written: list[Part]) -> Settings:
    there = {pipeline.folder(part.component): _library(part) for part in written}
    # Their files are in no checkpoint: the user has to bring them.
    named = {each.name: [each.library, each.kind] for each in pipeline.named}
    nothing = {name: [None, None] for name in pipeline.left_out}
    schedulers = {each.name: ["diffusers", "DDPMScheduler"] for each in pipeline.further}
    schedulers["scheduler"] = ["diffusers", pipeline.scheduler]
    index: Settings = {"_class_name": pipeline.name, "_diffusers_version": _VERSION}
    return index | nothing | named | there | schedulers | dict(pipeline.flags)


def _library(part: Part) -> list[str]:
    match part.architecture:
        case UNet():
            return ["diffusers", "UNet2DConditionModel"]
        case OpenClipText(projects=True):
            return ["transformers", "CLIPTextModelWithProjection"]
        case ClipText() | OpenClipText():
            return ["transformers", "CLIPTextModel"]
        case ClipImage():
            return ["transformers", "CLIPVisionModelWithProjection"]
        case EmbeddingStatistics():
            return ["stable_diffusion", "StableUnCLIPImageNormalizer"]
        case DptHybrid():
            return ["transformers", "DPTForDepthEstimation"]
        case BertText():
            return ["latent_diffusion", "LDMBertModel"]
        case _:
            return ["diffusers", "AutoencoderKL"]


def _scheduler(pipeline: Pipeline, prediction: str) -> Settings:
    settings: Settings = {
        "_class_name": pipeline.scheduler,
        "_diffusers_version": _VERSION,
        "beta_start": pipeline.betas[0],
        "beta_end": pipeline.betas[1],
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": _STEPS,
        "prediction_type": prediction,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
    }
    if pipeline.scheduler == "DDIMScheduler":
        settings |= {"clip_sample": False, "set_alpha_to_one": False}
    return settings


def _further(scheduler: Scheduler) -> Settings:
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": _VERSION,
        "beta_start": scheduler.betas[0],
        "beta_end": scheduler.betas[1],
        "beta_schedule": scheduler.curve,
        "clip_sample": scheduler.clips,
        "num_train_timesteps": _STEPS,
        "prediction_type": "epsilon",
        "trained_betas": None,
        "variance_type": "fixed_small",
    }


def _unet(unet: UNet, sample_size: int) -> Settings:
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": _VERSION,
        **_OF_UNETS,
        "center_input_sample": False,
        "out_channels": unet.out_channels,
        "sample_size": sample_size,
        **_way_down(unet),
        _TURNED_UP: [
            "CrossAttnUpBlock2D" if any(depths) else "UpBlock2D"
            for depths in reversed(unet.depths_up)
        ],
        **_middle(unet),
        **({"reverse_transformer_layers_per_block": _reversed(unet)} if unet.up_depths else {}),
    }


def _reversed(unet: UNet) -> list[object]:
    turned = [list(depths) for depths in reversed(unet.depths_up)]
    return [depths if any(depths) else 1 for depths in turned]


def _middle(unet: UNet) -> Settings:
    if unet.middle_depth:
        return {"mid_block_type": "UNetMidBlock2DCrossAttn"}
    return {"mid_block_type": "UNetMidBlock2D"}


def _way_down(unet: UNet) -> Settings:
    widths = [unet.channels * multiplier for multiplier in unet.multipliers]
    heads: object = unet.heads or [max(1, width // _HEAD_WIDTH) for width in widths]
    depths = [max(1, depth) for depth in unet.depths]
    settings: Settings = {
        "attention_head_dim": heads,
        "block_out_channels": widths,
        "cross_attention_dim": unet.context,
        "down_block_types": [
            "CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in unet.depths
        ],
        "in_channels": unet.in_channels,
        "layers_per_block": unet.res_blocks,
        "transformer_layers_per_block": depths if max(depths) > 1 else 1,
        "use_linear_projection": unet.linear_projection,
        "class_embed_type": None,
        "num_class_embeds": unet.classes or None,
    }
    if unet.cross_only:
        settings["only_cross_attention"] = [
            level in unet.cross_only for level in range(len(widths))
        ]
    if unet.vector and unet.vector_name == "add_embedding":
        settings |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": unet.vector,
        }
    elif unet.vector:
        settings |= {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": unet.vector,
        }
    return settings


def _controlnet(control: ControlNet) -> Settings:
    return {
        "_class_name": "ControlNetModel",
        "_diffusers_version": _VERSION,
        **_OF_UNETS,
        "conditioning_channels": control.image,
        "conditioning_embedding_out_channels": list(control.hints),
        "controlnet_conditioning_channel_order": "rgb",
        **_way_down(control.unet),
    }


def _vae(vae: Vae, sample_size: int, scaling: float) -> Settings:
    levels = len(vae.multipliers)
    settings: Settings = {
        "_class_name": "VQModel" if vae.codebook else "AutoencoderKL",
        "_diffusers_version": _VERSION,
        "act_fn": "silu",
        "block_out_channels": [vae.channels * multiplier for multiplier in vae.multipliers],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": vae.image,
        "latent_channels": vae.latent,
        "layers_per_block": vae.res_blocks,
        "norm_num_groups": 32,
        "out_channels": vae.image,
        "sample_size": sample_size,
        "scaling_factor": scaling,
        _TURNED_UP: ["UpDecoderBlock2D"] * levels,
    }
    if vae.codebook:
        settings |= {"num_vq_embeddings": vae.codebook, "vq_embed_dim": vae.latent}
    return settings


def _text(
    clip: ClipText | OpenClipText, name: str, layers: int, projection: int, activation: str
) -> Settings:
    return {
        "architectures": [name],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": activation,
        "hidden_size": clip.width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4 * clip.width,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": clip.positions,
        "model_type": "clip_text_model",
        "num_attention_heads": clip.width // _HEAD_WIDTH,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": projection,
        "vocab_size": clip.vocabulary,
    }


def _image(clip: ClipImage) -> Settings:
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "attention_dropout": 0.0,
        "hidden_act": clip.activation,
        "hidden_size": clip.width,
        "image_size": clip.patch * isqrt(clip.patches),
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4 * clip.width,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": clip.heads,
        "num_channels": 3,
        "num_hidden_layers": clip.layers,
        "patch_size": clip.patch,
        "projection_dim": clip.text,
    }


def _bert(bert: BertText) -> Settings:
    return {
        "activation_function": "gelu",
        "architectures": ["LDMBertModel"],
        "attention_dropout": 0.0,
        "d_model": bert.width,
        "dropout": 0.1,
        "encoder_attention_heads": bert.heads // _HEAD_WIDTH,
        "encoder_ffn_dim": 4 * bert.width,
        "encoder_layers": bert.layers,
        "head_dim": _HEAD_WIDTH,
        "max_position_embeddings": bert.positions,
        "model_type": "ldmbert",
        "pad_token_id": 0,
        "scale_embedding": False,
        "vocab_size": bert.vocabulary,
    }


def _depth(dpt: DptHybrid) -> Settings:
    side = isqrt(dpt.patches)
    return {
        "architectures": ["DPTForDepthEstimation"],
        "backbone_config": {
            "depths": list(dpt.stages),
            "embedding_dynamic_padding": True,
            "embedding_size": dpt.stem,
            "global_padding": "same",
            "hidden_sizes": list(dpt.widths),
            "layer_type": "bottleneck",
            "model_type": "bit",
            "out_features": [f"stage{number}" for number in range(1, len(dpt.stages) + 1)],
        },
        "backbone_featmap_shape": [1, dpt.widths[-1], side, side],
        "backbone_out_indices": [2, 5, 8, 11],
        "fusion_hidden_size": dpt.features,
        "head_in_index": -1,
        "hidden_act": "gelu",
        "hidden_size": dpt.width,
        "image_size": 16 * side,
        "intermediate_size": 4 * dpt.width,
        "is_hybrid": True,
        "layer_norm_eps": 1e-12,
        "model_type": "dpt",
        "neck_hidden_sizes": list(dpt.reassembled),
        "neck_ignore_stages": [0, 1],
        "num_attention_heads": dpt.width // _HEAD_WIDTH,
        "num_hidden_layers": dpt.layers,
        "patch_size": 16,
        "qkv_bias": True,
        "readout_type": "project",
        "reassemble_factors": [1, 1, 1, 0.5],
        "use_batch_norm_in_fusion_residual": False,
    }
