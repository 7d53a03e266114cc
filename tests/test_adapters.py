"""Files that go with a model: recognised by what their keys look like, and never renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import torch

from ckptaudit import convert, inspect
from ckptaudit.layouts import FAMILIES, UNKNOWN, Component, Spec, count, detect, place

REAL = Path(__file__).parents[2] / "shared" / "realfiles"


def specs(**shapes: tuple[int, ...]) -> dict[str, Spec]:
    """Tensors by key, a double underscore standing for a dot."""
    return {key.replace("__", "."): Spec(shape, "float32") for key, shape in shapes.items()}


def lora_of(layers: int) -> dict[str, Spec]:
    made = {}
    for layer in range(layers):
        name = f"lora_unet_down_blocks_{layer}_attentions_0_proj_in"
        made[f"{name}.lora_down.weight"] = Spec((8, 320), "float16")
        made[f"{name}.lora_up.weight"] = Spec((320, 8), "float16")
        made[f"{name}.alpha"] = Spec((), "float16")
    return made


def rrdb() -> dict[str, Spec]:
    made = specs(conv_first__weight=(64, 3, 3, 3), conv_first__bias=(64,))
    for block in range(2):
        for number in range(1, 6):
            name = f"body.{block}.rdb1.conv{number}"
            made[f"{name}.weight"] = Spec((32, 64, 3, 3), "float32")
            made[f"{name}.bias"] = Spec((32,), "float32")
    return made


FILES: dict[str, tuple[dict[str, Spec], str, str]] = {
    "inversion": (
        {"string_to_param.*": Spec((8, 768), "float32")},
        "textual-inversion",
        "768 wide, those of CLIP ViT-L/14",
    ),
    "inversion-with-tensors-for-tokens": (
        {
            "string_to_token.*": Spec((), "int64"),
            "string_to_param._parameters.*": Spec((1, 768), "float32"),
        },
        "textual-inversion",
        "string_to_param._parameters.* is an embedding of tokens 768 wide",
    ),
    "inversion-of-old": (
        {"string_to_param._parameters.*": Spec((1, 1024), "float32")},
        "textual-inversion",
        "Stable Diffusion 2.x",
    ),
    "inversion-of-sdxl": (
        specs(clip_g=(4, 1280), clip_l=(4, 768)),
        "textual-inversion",
        "both encoders of SDXL",
    ),
    "inversion-of-diffusers": ({"<cat-toy>": Spec((768,), "float32")}, "textual-inversion", "768"),
    "inversion-of-the-webui": (specs(emb_params=(8, 768)), "textual-inversion", "768 wide"),
    "aesthetic": (specs(tensor=(1, 768)), "aesthetic-embedding", "bare tensor, [1, 768]"),
    "hypernetwork": (
        {
            f"{width}.{which}.linear.{layer}.{name}": Spec((width,), "float32")
            for width in (320, 768)
            for which in (0, 1)
            for layer in (0, 1)
            for name in ("weight", "bias")
        },
        "hypernetwork",
        "320, 768",
    ),
    "hypernetwork-of-old": (
        {f"768.{which}.linear1.weight": Spec((1536, 768), "float32") for which in (0, 1)},
        "hypernetwork",
        "768",
    ),
    "lora": (lora_of(3), "lora", "it has the low-rank factors of 3 layers, in 6 tensors"),
    "lora-of-diffusers": (
        {
            f"unet.mid_block.attentions.0.to_q_lora.{way}.weight": Spec(shape, "float32")
            for way, shape in (("down", (4, 320)), ("up", (320, 4)))
        },
        "lora",
        "of 1 layer,",
    ),
    "lora-of-peft": (
        {
            f"unet.mid_block.attentions.0.to_q.lora_{way}.weight": Spec(shape, "float32")
            for way, shape in (("A", (4, 320)), ("B", (320, 4)))
        },
        "lora",
        "of 1 layer,",
    ),
    "lora-as-a-list": (
        {str(n): Spec((320, 4) if n % 2 == 0 else (4, 768), "float32") for n in range(8)},
        "lora",
        "4 pairs",
    ),
    "lora-by-hadamard-products": (
        {
            f"lora_unet_mid_block_attentions_0_proj_in.hada_{way}": Spec((320, 8), "float16")
            for way in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
        },
        "lora",
        "of 1 layer,",
    ),
    "lora-by-rotations": (
        {
            f"lora_unet_{layer}.{name}": Spec(shape, "float16")
            for layer in ("mid_block_to_q", "mid_block_to_k")
            for name, shape in (("oft_blocks", (4, 80, 80)), ("alpha", ()))
        },
        "lora",
        "what changes 2 layers: oft_blocks",
    ),
    "lora-by-scales": (
        {
            "lora_te_layers_0_k_proj.weight": Spec((768,), "float16"),
            "lora_te_layers_0_k_proj.on_input": Spec((), "bool"),
        },
        "lora",
        "what changes 1 layer: on_input",
    ),
    "lora-generalised": (
        {
            f"lora_unet_mid_block_to_q.{name}.weight": Spec((8, 320), "float16")
            for name in ("a1", "a2", "b1", "b2")
        },
        "lora",
        "what changes 1 layer: a1.weight, a2.weight, b1.weight, b2.weight",
    ),
    "vae-approx": (
        specs(
            **{f"conv{n}__weight": (8, 4, 7, 7) for n in range(1, 9)},
            **{f"conv{n}__bias": (8,) for n in range(1, 9)},
        ),
        "vae-approx",
        "from 4 channels to 8",
    ),
    "taesd": (
        {
            "1.weight": Spec((64, 4, 3, 3), "float16"),
            "1.bias": Spec((64,), "float16"),
            **{
                f"{block}.conv.{number}.{name}": Spec((64,), "float16")
                for block in (3, 4, 5)
                for number in (0, 2, 4)
                for name in ("weight", "bias")
            },
        },
        "taesd",
        "64 channels wide",
    ),
    "esrgan": (rrdb(), "upscaler", "residual dense blocks"),
    "esrgan-of-old": (
        {
            f"model.1.sub.{block}.RDB{rdb}.conv{number}.0.weight": Spec((32, 64, 3, 3), "float32")
            for block in range(2)
            for rdb in (1, 2, 3)
            for number in range(1, 6)
        },
        "upscaler",
        "30 of its 30 tensors",
    ),
    "esrgan-compact": (
        {
            **{f"body.{n}.weight": Spec((64, 64, 3, 3), "float32") for n in range(0, 9, 2)},
            **{f"body.{n}.bias": Spec((64,), "float32") for n in range(0, 9, 2)},
            **{f"body.{n}.weight": Spec((64,), "float32") for n in range(1, 9, 2)},
        },
        "upscaler",
        "4 activations",
    ),
    "swinir": (
        {
            "conv_first.weight": Spec((180, 3, 3, 3), "float32"),
            **{
                f"layers.0.residual_group.blocks.{n}.attn.qkv.weight": Spec((540, 180), "float32")
                for n in range(6)
            },
        },
        "upscaler",
        "6 of its 7 tensors are of residual groups",
    ),
    "sd3": (
        specs(model__diffusion_model__joint_blocks__0__x_block__attn__qkv__weight=(4608, 1536)),
        "sd3",
        "side by side",
    ),
    "flux": (specs(double_blocks__0__img_attn__qkv__weight=(9216, 3072)), "flux", "stream"),
    "cascade": (specs(clip_txt_pooled_mapper__weight=(8192, 1280)), "cascade", "Stable Cascade"),
    "cascade-second-stage": (
        specs(effnet_mapper__0__weight=(1280, 16, 1, 1), clip_mapper__weight=(5120, 1280)),
        "cascade",
        "the second stage",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_its_kind_is_recognised_and_keeps_its_keys(name: str) -> None:
    tensors, kind, evidence = FILES[name]

    found = detect(tensors)

    assert found.family == kind
    assert evidence in found.evidence[0]
    assert not found.has_inventory
    assert [placement.name for placement in place(found, tensors)] == list(tensors)
    assert [row.component for row in count(found, tensors)] == [Component.OTHER]


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        specs(a=(768,)),
        specs(weight=(768, 768), bias=(768,)),
        specs(tensor=(2, 768)),
        specs(clip_g=(4, 1280), clip_l=(4, 1024)),
        {"<a>": Spec((768,), "float32"), "b": Spec((768,), "float32")},
        {"<a>": Spec((512,), "float32")},
        {"string_to_param.*": Spec((768, 3, 3, 3), "float32")},
        {"string_to_token.*": Spec((), "int64")},
        {
            "string_to_token.*": Spec((768,), "int64"),
            "string_to_param.*": Spec((1, 768), "float32"),
        },
        {str(n): Spec((768,), "float32") for n in range(2)},
        {str(n): Spec((10, 10), "float32") for n in range(8)},
        specs(conv1__weight=(8, 4, 7, 7), conv1__bias=(8,)),
        {"0.weight": Spec((64, 3, 3, 3), "float32")},
        {f"body.{n}.{of}": Spec((64,), "float32") for n in range(9) for of in ("weight", "bias")},
        {"lora_unet_x.oft_blocks": Spec((4, 80, 80), "float16"), "y.z": Spec((), "float16")},
        {"lora_unet_x.weight": Spec((4, 80), "float16")},
        {"alpha": Spec((1,), "float32"), "beta": Spec((1,), "float32")},
    ],
    ids=lambda tensors: ",".join(tensors)[:40] or "nothing",
)
def test_what_only_resembles_one_is_unknown(tensors: dict[str, Spec]) -> None:
    assert detect(tensors).family == UNKNOWN


@pytest.mark.parametrize("family", FAMILIES)
def test_no_model_is_taken_for_an_adapter_where_its_signs_are_gone(family: str) -> None:
    entries = FAMILIES[family].inventory()
    signs = {sign.key for sign in FAMILIES[family].signs}

    found = detect({e.key: Spec(e.shape, e.dtype) for e in entries if e.key not in signs})

    assert found.family == UNKNOWN or found.has_inventory


@given(st.dictionaries(st.text("abc.<>*01", max_size=9), st.just(Spec((5,), "float32"))))
def test_any_keys_are_recognised_or_not_without_an_error(tensors: dict[str, Spec]) -> None:
    assert detect(tensors).evidence


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/realfiles is not here")
@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("ti_bad-artist.pt", "textual-inversion"),
        ("ti_bad_prompt_version2.pt", "textual-inversion"),
        ("ti_eyeliner2.pt", "textual-inversion"),
        ("aesthetic_aivazovsky.pt", "aesthetic-embedding"),
        ("aesthetic_laion_7plus.pt", "aesthetic-embedding"),
        ("aesthetic_sac_8plus.pt", "aesthetic-embedding"),
        ("a1111_vae_approx_model.pt", "vae-approx"),
        ("taesd_taef2_decoder.pth", "taesd"),
        ("a1111_karlo_ViT-L-14_stats.th", UNKNOWN),
        ("retinaface_final.pth", UNKNOWN),
        ("kair_dncnn_25.pth", UNKNOWN),
        ("lpips_v0.1_vgg.pth", UNKNOWN),
        ("vdsr_model_epoch_50.pth", UNKNOWN),
    ],
)
def test_real_files_are_told_apart(file: str, kind: str) -> None:
    assert inspect(REAL / file, with_hash=False).family == kind


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def network(width: int) -> dict[str, torch.Tensor]:
    """One of the two of a hypernetwork, for keys or for values."""
    return {
        f"linear.{layer}.{name}": randn(width, *(width,) * (name == "weight"))
        for layer in (0, 1)
        for name in ("weight", "bias")
    }


PICKLED: dict[str, tuple[Any, str]] = {
    "inversion": (
        {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": randn(8, 768)},
            "name": "x",
            "step": 100,
            "sd_checkpoint": "0123abcd",
            "sd_checkpoint_name": "model",
        },
        "textual-inversion",
    ),
    "inversion-of-old": (
        {
            "string_to_token": {"*": torch.tensor(265)},
            "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(randn(1, 768))}),
        },
        "textual-inversion",
    ),
    "inversion-of-sdxl": ({"clip_g": randn(4, 1280), "clip_l": randn(4, 768)}, "textual-inversion"),
    "inversion-of-diffusers": ({"<cat-toy>": randn(768)}, "textual-inversion"),
    "aesthetic": (randn(1, 768), "aesthetic-embedding"),
    "hypernetwork": (
        {
            **{width: (network(width), network(width)) for width in (320, 768)},
            "layer_structure": [1, 2, 1],
            "activation_func": "linear",
            "is_layer_norm": False,
            "optional_info": None,
            "name": "x",
            "step": 100,
        },
        "hypernetwork",
    ),
    "lora-as-a-list": (
        [randn(*shape) for _ in range(4) for shape in ((320, 4), (4, 768))],
        "lora",
    ),
    "esrgan": (
        {"params_ema": {key: randn(*spec.shape) for key, spec in rrdb().items()}},
        "upscaler",
    ),
}


@pytest.mark.parametrize("name", PICKLED)
def test_a_pickled_file_of_its_kind_is_recognised_and_converted_whole(
    name: str, tmp_path: Path
) -> None:
    """As the programs save it: numbers for keys, wrappers, text between the tensors."""
    content, kind = PICKLED[name]
    torch.save(content, tmp_path / "a.pt")

    result = convert(tmp_path / "a.pt", tmp_path / "a.safetensors")

    assert result.family == kind
    assert not result.dropped
    assert not result.aliases
    assert all(entry.name == entry.source for entry in result.tensors)
