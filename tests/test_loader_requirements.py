"""What loaders require of a file, as far as its bytes show it, law by law.

Found by running diffusers, transformers, ComfyUI, a fork of the WebUI, stable-diffusion.cpp,
sd-scripts and InvokeAI on files that were right and on files that were not.  Models here are
narrow ones of the real families: every layer is there, and is thin.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from narrow import checkpoint
from oracle import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from ckptaudit import Ema, Layout, Options, convert
from ckptaudit.layouts import Component

if TYPE_CHECKING:
    from pathlib import Path

    from ckptaudit.layouts import Family

    Tensors = dict[str, torch.Tensor]

HALF = Options()
SPLIT = Options(split=True)
DIFFUSERS = Options(layout=Layout.DIFFUSERS)
FAMILIES = ["sd1", "sd2", "sdxl", "vae"]
PIPELINES = ["sd1", "sd1-inpainting", "sd2", "sdxl", "sdxl-refiner", "sdxl-inpainting"]
OUTPUTS = pytest.mark.parametrize(
    "options", [HALF, SPLIT, DIFFUSERS], ids=["one file", "split", "diffusers"]
)


def files_of(source: Path, options: Options) -> dict[str, Path]:
    """Convert *source*; the weights that came of it, by their names."""
    output = source.with_name("out" if options.makes_folder else "out.safetensors")
    convert(source, output, options)
    if not options.makes_folder:
        return {output.name: output}
    return {str(p.relative_to(output)): p for p in sorted(output.rglob("*.safetensors"))}


def with_junk(family: Family, path: Path) -> Tensors:
    """A file of *family* as they go around: averages, copies, counters, halves."""
    tensors = checkpoint(family, path)
    for entry in family.inventory(ema=True):
        if entry.component is Component.EMA and entry.of is not None:
            tensors[entry.key] = tensors[entry.of]
        elif entry.component is Component.SCHEDULE:
            tensors[entry.key] = tensors[entry.key].half()
    tensors["model_ema.num_updates"] = torch.tensor(7, dtype=torch.int32)
    tensors["junk.num_batches_tracked"] = torch.tensor(7)
    tensors["lora_te_text_model.alpha"] = torch.ones(3)
    for key in [key for key in tensors if "position_ids" in key]:
        tensors["text_model.encoder." + key] = tensors[key]
    torch.save({"state_dict": tensors}, path)
    return tensors


@pytest.mark.parametrize("thin_family", FAMILIES, indirect=True)
@pytest.mark.parametrize("ema", [Ema.USE, Ema.KEEP])
def test_every_name_that_loaders_demand_is_written_whatever_is_equal_to_it(
    thin_family: Family, tmp_path: Path, ema: Ema
) -> None:
    """1: a name left out is a missing tensor for every loader but one."""
    blank = {key: torch.zeros_like(t) for key, t in with_junk(thin_family, tmp_path / "a").items()}
    torch.save({"state_dict": blank}, tmp_path / "a.ckpt")

    (file,) = files_of(tmp_path / "a.ckpt", replace(HALF, ema=ema)).values()

    demanded = {entry.key: entry.shape for entry in thin_family.inventory() if entry.demanded}
    found = load_file(file)
    assert demanded.keys() <= found.keys()
    assert all(tuple(found[name].shape) == shape for name, shape in demanded.items())


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_names_are_canonical_however_the_source_spells_them(
    thin_family: Family, tmp_path: Path
) -> None:
    """2: without ``text_model.`` diffusers and stable-diffusion.cpp find no text encoder."""
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    spelled = {key.replace(".text_model.", "."): tensor for key, tensor in tensors.items()}
    assert spelled.keys() != tensors.keys()
    torch.save({"state_dict": spelled}, tmp_path / "a.ckpt")

    (file,) = files_of(tmp_path / "a.ckpt", HALF).values()

    assert load_file(file).keys() == tensors.keys()


@pytest.mark.parametrize("thin_family", ["sd1", "sd2", "sdxl", "vae"], indirect=True)
@OUTPUTS
def test_an_autoencoder_in_a_file_of_its_own_has_bare_names(
    thin_family: Family, tmp_path: Path, options: Options
) -> None:
    """3: with ``first_stage_model.`` in front three loaders refuse it."""
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    if thin_family.name == "vae":
        tensors = {f"first_stage_model.{key}": tensor for key, tensor in tensors.items()}
        torch.save(tensors, tmp_path / "a.ckpt")

    files = files_of(tmp_path / "a.ckpt", options)

    alone = [
        file
        for name, file in files.items()
        if thin_family.name == "vae" or "vae." in name or name.startswith("vae/")
    ]
    for file in alone:
        heads = {name.split(".")[0] for name in load_file(file)}
        assert heads == {"encoder", "decoder", "quant_conv", "post_quant_conv"}
    whole = thin_family.name != "vae" and not options.makes_folder
    assert bool(alone) is not whole


@pytest.mark.parametrize(
    ("thin_family", "signs"),
    [
        ("sd1", {"text_encoder": "text_model.encoder.layers.1.mlp.fc1.weight"}),
        ("sd2", {"text_encoder": "transformer.resblocks.0.ln_1.weight"}),
        (
            "sdxl",
            {
                "text_encoder": "text_model.encoder.layers.1.mlp.fc1.weight",
                "text_encoder_2": "transformer.resblocks.0.ln_1.weight",
            },
        ),
    ],
    ids=["sd1", "sd2", "sdxl"],
    indirect=["thin_family"],
)
def test_other_parts_in_files_of_their_own_have_the_names_that_loaders_look_for(
    thin_family: Family, tmp_path: Path, signs: dict[str, str]
) -> None:
    """ComfyUI logs a line and leaves a text encoder empty whose names are not bare.

    diffusers finds no UNet without its place in front; newer versions of ComfyUI take it off.
    """
    checkpoint(thin_family, tmp_path / "a.ckpt")

    files = files_of(tmp_path / "a.ckpt", SPLIT)

    for part, sign in signs.items():
        assert sign in load_file(files[f"out.{part}.safetensors"])
    schedule = {e.key for e in thin_family.inventory() if e.component is Component.SCHEDULE}
    unet = load_file(files["out.unet.safetensors"]).keys() - schedule
    assert unet
    assert all(name.startswith("model.diffusion_model.") for name in unet)


@pytest.mark.parametrize("thin_family", FAMILIES, indirect=True)
@OUTPUTS
def test_no_buffer_is_of_a_type_that_stops_a_loader_or_spoils_an_image(
    thin_family: Family, tmp_path: Path, options: Options
) -> None:
    """5, 6, 8: position_ids int64, schedules fp32, or neither; no other int64."""
    with_junk(thin_family, tmp_path / "a.ckpt")
    schedule = {e.key for e in thin_family.inventory() if e.component is Component.SCHEDULE}

    for file in files_of(tmp_path / "a.ckpt", options).values():
        for name, tensor in load_file(file).items():
            is_ids = name.endswith("position_ids")
            assert (tensor.dtype == torch.int64) <= is_ids, name
            assert not is_ids or tensor.dtype == torch.int64, name
            assert name not in schedule or tensor.dtype == torch.float32, name


@pytest.mark.parametrize("thin_family", FAMILIES, indirect=True)
@OUTPUTS
def test_data_lie_in_the_order_of_the_official_writer(
    thin_family: Family, tmp_path: Path, options: Options
) -> None:
    """10: sd-scripts finds blocks by where they lie and stops at any other order."""
    with_junk(thin_family, tmp_path / "a.ckpt")

    for file in files_of(tmp_path / "a.ckpt", options).values():
        ours, official = spans(file.read_bytes()), spans(save(load_file(file)))
        assert list(ours.values()) == sorted(ours.values())
        assert ours == official


def spans(data: bytes) -> dict[str, list[int]]:
    """By name, in the order of the header, where in the data each tensor lies."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return {n: each["data_offsets"] for n, each in header.items() if n != "__metadata__"}


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
@OUTPUTS
def test_metadata_are_text_and_say_whose_the_file_is(
    thin_family: Family, tmp_path: Path, options: Options
) -> None:
    """11: older transformers open nothing that does not say ``pt``."""
    checkpoint(thin_family, tmp_path / "a.ckpt")

    for file in files_of(tmp_path / "a.ckpt", options).values():
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        assert metadata["format"] == "pt"
        assert all(isinstance(text, str) for text in metadata.values())


@pytest.mark.parametrize("thin_family", PIPELINES, indirect=True)
def test_a_diffusers_folder_has_all_that_its_index_names(
    thin_family: Family, tmp_path: Path
) -> None:
    """12: weights and a config for each model; the tokenizers' files are for the user to bring."""
    with_junk(thin_family, tmp_path / "a.ckpt")

    weights = files_of(tmp_path / "a.ckpt", DIFFUSERS)

    index = json.loads((tmp_path / "out/model_index.json").read_text())
    named = {name: each for name, each in index.items() if isinstance(each, list)}
    homes = {name.split("/")[0] for name in weights}
    assert homes == {part.component.value for part in thin_family.parts} - {"schedule"}
    for name, (library, kind) in named.items():
        if library is None:
            assert kind is None
        elif name == "scheduler":
            config = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
            assert config["_class_name"] == kind
        elif not name.startswith("tokenizer"):
            assert (tmp_path / "out" / name / "config.json").is_file()
            file = "model" if library == "transformers" else "diffusion_pytorch_model"
            assert f"{name}/{file}.safetensors" in weights
    assert homes <= named.keys()
    assert bool(named.get("safety_checker")) is thin_family.name.startswith(("sd1", "sd2"))


@pytest.mark.parametrize("thin_family", PIPELINES, indirect=True)
def test_a_diffusers_folder_lacks_no_tensor_that_its_models_have(
    thin_family: Family, tmp_path: Path
) -> None:
    """4, 12: complete or nothing."""
    with_junk(thin_family, tmp_path / "a.ckpt")

    weights = files_of(tmp_path / "a.ckpt", DIFFUSERS)

    found = {(name.split("/")[0], key) for name, file in weights.items() for key in load_file(file)}
    assert found == {
        (there.component.value, there.key)
        for entry in thin_family.inventory()
        for there in entry.diffusers
    }


@pytest.mark.parametrize(
    ("thin_family", "names"),
    [
        ("sd2", ["text_projection", "logit_scale", "transformer.resblocks.23.ln_1.weight"]),
        ("sdxl", ["conditioner.embedders.1.model.logit_scale"]),
    ],
    indirect=["thin_family"],
)
def test_what_only_the_original_layout_has_stays_in_it(
    thin_family: Family, tmp_path: Path, names: list[str]
) -> None:
    """13: and a scalar stays one."""
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")

    (file,) = files_of(tmp_path / "a.ckpt", HALF).values()

    found = load_file(file)
    for name in names:
        key = next(key for key in tensors if key.endswith(name))
        assert found[key].shape == tensors[key].shape
        assert not name.endswith("logit_scale") or found[key].shape == ()


@pytest.mark.parametrize("thin_family", ["sdxl"], indirect=True)
def test_a_part_keeps_the_name_of_the_whole(thin_family: Family, tmp_path: Path) -> None:
    """14: InvokeAI tells by an ``xl`` in the name whose an autoencoder is."""
    checkpoint(thin_family, tmp_path / "dream-xl.ckpt")

    convert(tmp_path / "dream-xl.ckpt", tmp_path / "dream-xl", SPLIT)

    assert (tmp_path / "dream-xl/dream-xl.vae.safetensors").is_file()
