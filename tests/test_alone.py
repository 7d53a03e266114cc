"""One part of a model in a file of its own, however its names are spelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest
from narrow import checkpoint
from oracle import torch
from safetensors.torch import load_file, save_file

from ckptaudit import Layout, Options, Precision, convert, inspect, verify
from ckptaudit.layouts import (
    FAMILIES,
    Component,
    ComponentCount,
    Family,
    Spec,
    count,
    detect,
    place,
)
from ckptaudit.report.facts import wrong_with

if TYPE_CHECKING:
    from pathlib import Path

ORIGINAL = Options(precision=Precision.KEEP)
DIFFUSERS = Options(precision=Precision.KEEP, layout=Layout.DIFFUSERS)
UNET = "model.diffusion_model."
ALONE = [name for name in FAMILIES if name.startswith(("unet-", "clip-", "openclip-"))]
SPELLED = [(name, variant.name) for name in ALONE for variant in FAMILIES[name].variants]
THIN = ["unet-sd1", "unet-sd2", "unet-sdxl", "clip-l", "openclip-h", "openclip-bigg"]


def tensors_of(name: str, variant: str | None = None) -> dict[str, Spec]:
    entries = FAMILIES[name].inventory(variant=variant)
    return {entry.key: Spec(entry.shape, entry.dtype) for entry in entries}


@pytest.mark.parametrize(("name", "variant"), SPELLED)
def test_a_part_alone_is_known_in_any_spelling_and_gets_its_canonical_names(
    name: str, variant: str
) -> None:
    tensors = tensors_of(name, variant)
    found = detect(tensors)

    assert (found.family, found.variant) == (name, variant)
    assert {p.name for p in place(found, tensors)} == set(tensors_of(name))
    rows = count(found, tensors)
    assert not any(row.missing + row.unexpected + row.misshapen for row in rows)


@pytest.mark.parametrize("name", [name for name in ALONE if name.startswith("unet-")])
def test_a_unet_alone_is_all_of_the_unet_of_its_model_under_the_same_names(name: str) -> None:
    whole = FAMILIES[name.removeprefix("unet-")].inventory()

    unet = [entry for entry in whole if entry.component is Component.UNET]

    own = FAMILIES[name].inventory()
    assert [entry for entry in own if entry.component is Component.UNET] == unet


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
@pytest.mark.parametrize("lost", ["vae", "text"])
def test_a_model_that_lacks_a_part_is_a_model_that_lacks_it(name: str, lost: str) -> None:
    tensors = {
        entry.key: Spec(entry.shape, entry.dtype)
        for entry in FAMILIES[name].inventory()
        if not entry.component.value.startswith(lost)
    }
    found = detect(tensors)

    absent = [row for row in count(found, tensors) if row.is_absent]
    assert found.family == name
    assert absent
    assert all(row.component.value.startswith(lost) for row in absent)
    assert all(len(row.missing) == row.expected for row in absent)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_a_unet_under_its_place_in_a_model_lacks_no_model(name: str) -> None:
    tensors = {k: spec for k, spec in tensors_of(name).items() if k.startswith(UNET)}
    found = detect(tensors)

    assert (found.family, found.variant) == (f"unet-{name}", None)
    assert not any(row.missing for row in count(found, tensors))


def test_a_controlnet_with_bare_names_is_no_unet() -> None:
    for name in ("controlnet-sd1", "controlnet-sd2", "controlnet-sdxl"):
        tensors = tensors_of(name, "bare")
        assert (detect(tensors).family, detect(tensors).variant) == (name, "bare")


def test_the_wrapper_of_openclip_may_be_there_as_a_whole_and_is_no_text_encoder_then() -> None:
    tensors = tensors_of("openclip-h") | {"visual.class_embedding": Spec((1280,), "float32")}

    found = detect(tensors)

    assert found.family == "unknown"
    assert any("visual. is there: the image half of CLIP" in line for line in found.evidence)


def test_what_pools_the_text_belongs_to_the_encoder() -> None:
    """ComfyUI saves both beside the encoder; SD 3 uses the projection."""
    tensors = tensors_of("clip-l")
    tensors |= {"text_projection.weight": Spec((768, 768), "float16")}
    tensors |= {"logit_scale": Spec((), "float32")}

    (row,) = count(detect(tensors), tensors)

    assert (row.component, row.present, row.unexpected) == (Component.TEXT_ENCODER, 199, ())


def test_of_a_file_of_no_family_no_inventory_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are fifty families, and most files are of none of them."""

    def fails(*_: object, **__: object) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(Family, "inventory", fails)

    assert detect({"layer1.0.conv1.weight": Spec((64, 64, 3, 3), "float32")}).family == "unknown"


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_a_part_that_is_wholly_absent_is_told_without_its_names(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    left = {k: t for k, t in tensors.items() if not k.startswith("first_stage_model.")}
    torch.save(left, tmp_path / "a.ckpt")

    (finding,) = inspect(tmp_path / "a.ckpt", with_hash=False).findings

    assert (finding.rule, finding.message) == (
        "CKA304",
        "the vae is not there: none of its 248 tensors",
    )


def test_of_an_absent_part_a_report_names_nothing_and_of_another_the_first() -> None:
    absent = ComponentCount(Component.VAE, 0, 2, missing=("a", "b"))
    damaged = ComponentCount(Component.VAE, 1, 3, missing=("a", "b"))

    assert wrong_with(absent) == ["is not there at all"]
    assert wrong_with(damaged) == ["2 missing: a, ..."]


@pytest.mark.parametrize("thin_family", THIN, indirect=True)
def test_a_part_alone_goes_to_a_folder_and_back(thin_family: Family, tmp_path: Path) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    variant = thin_family.variants[0]
    bare = {variant.spell(key): tensor.contiguous() for key, tensor in tensors.items()}
    save_file(bare, tmp_path / "bare.safetensors")

    there = convert(tmp_path / "bare.safetensors", tmp_path / "out", DIFFUSERS)
    back = convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)

    assert (there.family, there.variant) == (thin_family.name, variant.name)
    assert back.family == thin_family.name
    weights = "model" if "clip" in thin_family.name else "diffusion_pytorch_model"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        f"{weights}.safetensors",
    }
    listed = {drop.source for drop in there.dropped}
    found = load_file(tmp_path / "b.safetensors")
    expected = {key: t for key, t in tensors.items() if variant.spell(key) not in listed}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert verify(tmp_path / "out", tmp_path / "b.safetensors").equal


@pytest.mark.parametrize("thin_family", ["unet-sd1", "openclip-h"], indirect=True)
def test_a_pickled_file_out_of_a_folder_is_known_too(thin_family: Family, tmp_path: Path) -> None:
    """``diffusion_pytorch_model.bin`` and ``pytorch_model.bin``, each on its own."""
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", DIFFUSERS)
    (file,) = (tmp_path / "out").glob("*.safetensors")
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")

    back = convert(tmp_path / "pytorch_model.bin", tmp_path / "b.safetensors", ORIGINAL)

    assert (back.family, back.variant) == (thin_family.name, "diffusers")
    assert not back.dropped


@pytest.mark.parametrize("thin_family", ["unet-sd2"], indirect=True)
def test_what_a_unet_predicts_is_guessed_from_its_weight_however_that_is_called(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    key = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    tensors[key] = torch.randn(32) * 0.2
    bare = {name.removeprefix(UNET): tensor for name, tensor in tensors.items()}
    torch.save(bare, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", DIFFUSERS)

    assert result.prediction == "v_prediction"
    assert inspect(tmp_path / "out", with_hash=False).prediction == "v_prediction"
