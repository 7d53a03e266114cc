"""Our diffusers folders against diffusers itself: the same tensors, and they open and run.

Nothing here is asked of the network: every setting comes from the folder that we wrote.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from narrow import checkpoint, read
from oracle import torch
from safetensors.torch import load_file

from ckptaudit import Action, Layout, Options, Precision, convert, scan, verify

# Both take more room than all else that tests need; `scripts/test` brings them in its last step.
diffusers: Any = pytest.importorskip("diffusers", reason="diffusers is not installed: no oracle")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
# Where the library is, its own conversion must be too: without it nothing would be compared.
own: Any = import_module("diffusers.loaders.single_file_utils")

if TYPE_CHECKING:
    from pathlib import Path

    from ckptaudit.layouts import Family

    Tensors = dict[str, torch.Tensor]

KEEP = Options(layout=Layout.DIFFUSERS, precision=Precision.KEEP)
ORIGINAL = Options(precision=Precision.KEEP)
OPENED = ["sd1", "sd1-inpainting", "sd1-instruct-pix2pix", "sd2", "sd2-inpainting", "sdxl"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def settings(folder: Path, component: str) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((folder / component / "config.json").read_text())
    return known


def own_conversion(tensors: Tensors, folder: Path, component: str, prefix: str) -> Tensors:
    """What diffusers' own functions make of *tensors*, told the settings that we wrote."""
    config = settings(folder, component)
    if component == "unet":
        made: Tensors = own.convert_ldm_unet_checkpoint(dict(tensors), config)
    elif component == "vae":
        made = own.convert_ldm_vae_checkpoint(dict(tensors), config)
    elif prefix.endswith("transformer."):
        made = own.convert_ldm_clip_checkpoint(dict(tensors), remove_prefix=prefix)
    else:
        text_config = transformers.CLIPTextConfig(**config)
        model = transformers.CLIPTextModelWithProjection(text_config)
        made = own.convert_open_clip_checkpoint(model, dict(tensors), prefix=prefix)
    return made


def text_prefix(family: Family, component: str) -> str:
    return next((p.prefix for p in family.parts if p.component.value == component), "")


@pytest.mark.parametrize("thin_family", OPENED, indirect=True)
def test_our_tensors_are_those_of_diffusers_own_conversion(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    for folder in (tmp_path / "out").iterdir():
        if (folder / "config.json").exists():
            component = folder.name
            theirs = own_conversion(
                tensors, tmp_path / "out", component, text_prefix(thin_family, component)
            )
            ours = read(tmp_path / "out", component)
            # transformers computes position_ids itself now, and diffusers leaves them out.
            names = ours.keys() - {"text_model.embeddings.position_ids"}
            assert names == theirs.keys() - {"text_model.embeddings.position_ids"}
            assert [n for n in names if not torch.equal(ours[n], theirs[n].contiguous())] == []


@pytest.mark.parametrize("thin_family", OPENED, indirect=True)
def test_diffusers_opens_our_folder_with_every_weight_in_its_place(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    brought = {name: None for name, of in index.items() if "CLIPTokenizer" in str(of)}

    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", **brought)

    assert type(pipeline).__name__ == index["_class_name"]
    for component in ("unet", "vae"):
        loaded = getattr(pipeline, component).state_dict()
        ours = read(tmp_path / "out", component)
        assert same(loaded, ours)


@pytest.mark.parametrize(
    "how",
    [{}, {"max_shard_size": "300KB"}, {"variant": "fp16"}],
    ids=["whole", "in-pieces", "a-variant"],
)
@pytest.mark.parametrize("thin_family", ["sd1", "sd2"], indirect=True)
def test_a_folder_that_diffusers_pickled_goes_back_to_the_same_file(
    thin_family: Family, tmp_path: Path, how: dict[str, str]
) -> None:
    """Legacy folders are `.bin` throughout; transformers writes none any more."""
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)
    for component, kind in (
        ("unet", diffusers.UNet2DConditionModel),
        ("vae", diffusers.AutoencoderKL),
    ):
        model = kind.from_pretrained(tmp_path / "out" / component)
        shutil.rmtree(tmp_path / "out" / component)
        model.save_pretrained(tmp_path / "out" / component, safe_serialization=False, **how)
    encoder = tmp_path / "out/text_encoder/model.safetensors"
    torch.save(load_file(encoder), encoder.with_name("pytorch_model.bin"))
    encoder.unlink()
    assert len(list((tmp_path / "out").rglob("*.bin"))) > 2 + ("max_shard_size" in how)
    assert not list((tmp_path / "out").rglob("*.safetensors"))

    back = convert(tmp_path / "out", tmp_path / "c.safetensors", ORIGINAL)

    assert not back.dropped
    assert same(load_file(tmp_path / "c.safetensors"), load_file(tmp_path / "b.safetensors"))
    assert verify(tmp_path / "out", tmp_path / "c.safetensors").equal
    assert scan(tmp_path / "out").verdict.value == "clean"


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("thin_family", ["sd1", "sdxl"], indirect=True)
def test_a_folder_without_a_part_opens_with_that_of_another(
    thin_family: Family, tmp_path: Path, part: str
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "whole", KEEP)
    without = replace(KEEP, unet=Action.DROP) if part == "unet" else replace(KEEP, vae=Action.DROP)
    convert(tmp_path / "a.ckpt", tmp_path / "out", without)
    kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    brought = {name: None for name, of in index.items() if "CLIPTokenizer" in str(of)}

    with pytest.raises(ValueError, match=part):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", **brought)
    brought[part] = kind.from_pretrained(tmp_path / "whole", subfolder=part)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", **brought)

    assert same(getattr(pipeline, part).state_dict(), read(tmp_path / "whole", part))


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("thin_family", OPENED, indirect=True)
def test_our_single_file_opens_in_diffusers_and_gives_the_same_numbers_as_our_folder(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    single = tmp_path / "a.safetensors"
    convert(tmp_path / "a.ckpt", single, ORIGINAL)

    for kind, component in (
        (diffusers.UNet2DConditionModel, "unet"),
        (diffusers.AutoencoderKL, "vae"),
    ):
        folder = tmp_path / "out" / component
        from_folder = kind.from_pretrained(folder)
        from_file = kind.from_single_file(
            str(single), config=str(tmp_path / "out"), subfolder=component
        )
        assert same(from_folder.state_dict(), from_file.state_dict())
        with torch.no_grad():
            one = forward(from_folder, component)
            other = forward(from_file, component)
        assert torch.isfinite(one).all()
        # Which kernel multiplies depends on where in memory a weight lies.
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def forward(model: Any, component: str) -> torch.Tensor:
    """One pass of *model* over the same random numbers each time."""
    torch.manual_seed(1)
    if component == "vae":
        return torch.as_tensor(model(torch.randn(1, 3, 32, 32)).sample)
    config = model.config
    added = {}
    if config.addition_embed_type == "text_time":
        times = 6
        pooled = config.projection_class_embeddings_input_dim - times * 256
        added = {"text_embeds": torch.randn(1, pooled), "time_ids": torch.ones(1, times)}
    return torch.as_tensor(
        model(
            torch.randn(1, config.in_channels, 16, 16),
            torch.tensor([7]),
            torch.randn(1, 77, config.cross_attention_dim),
            added_cond_kwargs=added,
        ).sample
    )
