"""The diffusers layout: the folder, its settings, and which tensor of it is which of the source.

Models here are narrow ones of the real families: every layer is there, and is thin.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from oracle import converted, torch
from safetensors.torch import load_file

from ckptaudit import Options, convert
from ckptaudit.errors import OutputExists, OutputFailed, Unsupported
from ckptaudit.layouts import FAMILIES, Component
from ckptaudit.layouts.autoencoder import Vae
from ckptaudit.layouts.clip import ClipText, OpenClipText
from ckptaudit.layouts.unet import UNet

if TYPE_CHECKING:
    from pathlib import Path

    from ckptaudit.layouts import Family
    from ckptaudit.layouts.grammar import Architecture

KEEP = Options(layout="diffusers", precision="keep")  # type: ignore[arg-type] # as a user writes it


def narrow(family: Family) -> Family:
    """*family* with thin layers, recognised by its signs in their new shapes."""
    parts = tuple(replace(part, architecture=thin(part.architecture)) for part in family.parts)
    made = replace(family, parts=parts)
    shapes = {entry.key: entry.shape for entry in made.inventory()}
    return replace(made, signs=tuple(replace(s, shape=shapes[s.key]) for s in family.signs))


def thin(architecture: Architecture) -> Architecture:
    match architecture:
        case UNet(depths=depths):
            few = tuple(min(depth, 1) for depth in depths)
            return replace(architecture, channels=32, depths=few, middle_depth=1, context=64)
        case Vae():
            return replace(architecture, channels=32)
        case ClipText():
            return replace(architecture, width=64, layers=2, vocabulary=99)
        case OpenClipText(projects=projects):
            used = 2 if projects else 1
            return replace(architecture, width=64, layers=2, used_layers=used, vocabulary=99)
        case _:
            return architecture


@pytest.fixture
def thin_family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Family:
    """The family named, narrow; it takes the place of the real one."""
    made = narrow(FAMILIES[request.param])
    # The package has a function of the module's name.
    module = sys.modules["ckptaudit.layouts.detect"]
    monkeypatch.setattr(module, "FAMILIES", {**FAMILIES, made.name: made})
    return made


def checkpoint(family: Family, path: Path) -> dict[str, torch.Tensor]:
    """A complete file of *family*, of random weights."""
    torch.manual_seed(0)
    tensors = {
        entry.key: torch.arange(entry.shape[-1])[None]
        if entry.dtype == "int64"
        else torch.randn(entry.shape)
        for entry in family.inventory()
    }
    torch.save({"state_dict": tensors}, path)
    return tensors


def moved(family: Family, tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """By component and name, what the inventory says becomes of *tensors*, done by torch."""
    made: dict[str, dict[str, torch.Tensor]] = {}
    for entry in family.inventory():
        for there in entry.diffusers:
            tensor = tensors[entry.key]
            if there.op == "squeeze":
                tensor = tensor[:, :, 0, 0]
            elif there.op == "transpose":
                tensor = tensor.T
            elif there.rows is not None:
                tensor = tensor[slice(*there.rows)]
            made.setdefault(there.component.value, {})[there.key] = tensor
    return made


def read(folder: Path, component: str) -> dict[str, torch.Tensor]:
    name = "model" if component.startswith("text_") else "diffusion_pytorch_model"
    return load_file(folder / component / f"{name}.safetensors")


SINGLE_FILES = ["sd1", "sd1-inpainting", "sd2", "sdxl", "sdxl-refiner", "sd2-sgm"]


@pytest.mark.parametrize("thin_family", SINGLE_FILES, indirect=True)
def test_every_tensor_arrives_bit_for_bit_in_its_file(thin_family: Family, tmp_path: Path) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    expected = moved(thin_family, tensors)
    for component, of in expected.items():
        found = read(tmp_path / "out", component)
        assert found.keys() == of.keys()
        assert all(torch.equal(found[name], of[name]) for name in of)
    assert {entry.source for entry in result.tensors} | {
        drop.source for drop in result.dropped
    } == set(tensors)
    assert {drop.reason for drop in result.dropped} == {"has no place in the diffusers layout"}
    nowhere = {entry.key for entry in thin_family.inventory() if not entry.diffusers}
    assert {drop.source for drop in result.dropped} == nowhere


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_the_folder_is_complete_and_says_what_is_in_it(thin_family: Family, tmp_path: Path) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    files = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert files == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert sorted(output.path for output in result.outputs) == [
        str(tmp_path / "out" / file) for file in files
    ]
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert {p.name for p in tmp_path.iterdir()} == {"a.ckpt", "out"}


@pytest.mark.parametrize(
    ("spread", "prediction", "size"), [(0.2, "v_prediction", 96), (0.01, "epsilon", 64)]
)
@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_what_keys_do_not_show_is_guessed_from_a_weight_and_said_to_be_a_guess(
    thin_family: Family, tmp_path: Path, spread: float, prediction: str, size: int
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    key = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    tensors[key] = torch.randn(32) * spread
    torch.save(tensors, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    assert result.prediction == prediction
    assert any(f"{prediction} is a guess" in line and key in line for line in result.evidence)
    scheduler = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == prediction
    unet = json.loads((tmp_path / "out/unet/config.json").read_text())
    assert unet["sample_size"] == size


@pytest.mark.parametrize("thin_family", ["sd2-v"], indirect=True)
def test_a_family_that_the_user_names_settles_it(thin_family: Family, tmp_path: Path) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    options = replace(KEEP, family="sd2-v")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", options)

    assert (result.family, result.prediction) == ("sd2-v", "v_prediction")
    assert not any("guess" in line for line in result.evidence)


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_what_the_layout_has_no_place_for_is_listed(thin_family: Family, tmp_path: Path) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    tensors["extra.weight"] = torch.ones(3)
    torch.save(tensors, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    assert "extra.weight" in {drop.source for drop in result.dropped}


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_averaged_weights_go_where_the_weights_would_have_gone(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    copies = {
        entry.key: (entry.of, torch.randn(entry.shape))
        for entry in thin_family.inventory(ema=True)
        if entry.component is Component.EMA and entry.of is not None
    }
    tensors |= {key: tensor for key, (_, tensor) in copies.items()}
    torch.save(tensors, tmp_path / "a.ckpt")

    convert(tmp_path / "a.ckpt", tmp_path / "out", replace(KEEP, ema="use"))  # type: ignore[arg-type] # as a user writes it

    averaged = dict(copies.values())
    expected = moved(thin_family, tensors | averaged)["unet"]
    found = read(tmp_path / "out", "unet")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_rows_of_one_matrix_are_cast_or_kept_each_for_itself(
    thin_family: Family, tmp_path: Path
) -> None:
    """Only the keys overflow: the queries and values are fp16 all the same."""
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    key = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    tensors[key][64, 0] = 1e6
    torch.save(tensors, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", Options(layout="diffusers"))  # type: ignore[arg-type] # as a user writes it

    found = read(tmp_path / "out", "text_encoder")
    at = "text_model.encoder.layers.0.self_attn"
    assert [found[f"{at}.{part}_proj.weight"].dtype for part in "qkv"] == [
        torch.float16,
        torch.float32,
        torch.float16,
    ]
    assert torch.equal(found[f"{at}.k_proj.weight"], tensors[key][64:128])
    assert [finding.rule for finding in result.findings] == ["CKA301"]


@pytest.mark.parametrize("thin_family", ["vae"], indirect=True)
def test_an_autoencoder_alone_has_the_folder_for_itself(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")

    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["_class_name"] == "AutoencoderKL"


def test_a_file_of_no_such_family_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.ckpt")

    with pytest.raises(Unsupported, match="is of family unknown"):
        convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("thin_family", ["vae"], indirect=True)
def test_a_folder_that_exists_is_replaced_file_by_file_and_only_on_request(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("precious")
    (tmp_path / "out" / "config.json").write_text("old")

    with pytest.raises(OutputExists, match="out: exists"):
        convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    assert (tmp_path / "out/config.json").read_text() == "old"
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP, overwrite=True)

    assert (tmp_path / "out/notes.txt").read_text() == "precious"
    assert (tmp_path / "out/config.json").read_text() != "old"
    assert converted(tmp_path / "out/diffusion_pytorch_model.safetensors")
    assert {p.name for p in tmp_path.iterdir()} == {"a.ckpt", "out"}


@pytest.mark.parametrize("thin_family", ["vae"], indirect=True)
def test_a_file_is_no_folder_to_write_to(thin_family: Family, tmp_path: Path) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    (tmp_path / "out").write_text("a file")

    with pytest.raises(OutputFailed, match="is no folder"):
        convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP, overwrite=True)


def test_names_of_the_source_and_of_diffusers_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="keep_names"):
        replace(KEEP, keep_names=True)
