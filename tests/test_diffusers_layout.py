"""The diffusers layout: the folder, its settings, and which tensor of it is which of the source.

Models here are narrow ones of the real families: every layer is there, and is thin.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import pytest
from narrow import checkpoint, moved, read
from oracle import converted, torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ckptaudit import Ema, Layout, Options, Precision, convert, inspect, scan, verify
from ckptaudit.errors import OutputExists, OutputFailed, SourceUnreadable, Unsupported
from ckptaudit.layouts import Component

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptaudit.layouts import Family

    Tensors = dict[str, torch.Tensor]

KEEP = Options(layout=Layout.DIFFUSERS, precision=Precision.KEEP)


SINGLE_FILES = [
    *(
        "sd1",
        "sd1-inpainting",
        "sd2",
        "sd2-depth",
        "sd2-upscaler",
        "sd2-unclip-l",
        "sd2-unclip-h",
        "sd2-sgm",
    ),
    *("sdxl", "sdxl-refiner", "ssd-1b", "segmind-vega", "ldm-text2img"),
]


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

    assert result.prediction == inspect(tmp_path / "a.ckpt", with_hash=False).prediction
    assert result.prediction == prediction
    assert any(f"{prediction} is a guess" in line and key in line for line in result.evidence)
    assert any("is a guess" in note for note in result.notes)
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


@pytest.mark.parametrize(
    ("marks", "prediction"),
    [
        (("v_pred", "ztsnr"), "v_prediction"),
        (("edm_vpred.sigma_max", "edm_vpred.sigma_min"), "v_prediction"),
        (("edm_mean", "edm_std"), "epsilon"),
    ],
    ids=["zero-snr", "edm-v", "edm"],
)
@pytest.mark.parametrize("thin_family", ["sdxl"], indirect=True)
def test_noise_that_the_scheduler_does_not_have_is_told(
    thin_family: Family, tmp_path: Path, marks: tuple[str, str], prediction: str
) -> None:
    """The scheduler is that of SDXL, whatever a trainer's marks say of noise."""
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    whole = convert(tmp_path / "a.ckpt", tmp_path / "whole", KEEP)
    torch.save({**tensors, **{mark: torch.ones(4) for mark in marks}}, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    told = [note for note in result.notes if note not in whole.notes]
    assert len(told) == 1
    assert marks[1] in told[0]
    assert "scheduler=..." in told[0]
    assert result.prediction == prediction
    assert set(marks) <= {drop.source for drop in result.dropped}
    one_file = convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", ORIGINAL)
    assert set(marks) <= {entry.name for entry in one_file.tensors}
    assert not any("scheduler" in note for note in one_file.notes)


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

    convert(tmp_path / "a.ckpt", tmp_path / "out", replace(KEEP, ema=Ema.USE))

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

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", Options(layout=Layout.DIFFUSERS))

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


@pytest.mark.parametrize(
    ("thin_family", "named", "factor", "is_guess"),
    [
        ("vae", "", 0.18215, True),
        ("vae-sdxl", "vae-sdxl", 0.13025, False),
        ("vae-f4", "", 0.08333, False),
    ],
    indirect=["thin_family"],
)
def test_an_autoencoder_alone_says_what_its_latents_are_multiplied_with(
    thin_family: Family, tmp_path: Path, named: str, factor: float, *, is_guess: bool
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", replace(KEEP, family=named))

    assert result.family == thin_family.name
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["scaling_factor"] == factor
    assert any("scaling factor of latents is a guess" in note for note in result.notes) is is_guess


ORIGINAL = Options(precision=Precision.KEEP)


@pytest.mark.parametrize("thin_family", SINGLE_FILES, indirect=True)
def test_there_and_back_loses_nothing_but_what_was_listed(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    there = convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    back = convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)

    assert (back.family, back.variant) == (there.family, "diffusers")
    listed = {drop.source for drop in there.dropped}
    expected = {key: tensor for key, tensor in tensors.items() if key not in listed}
    found = load_file(tmp_path / "b.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all(found[key].dtype == expected[key].dtype for key in expected)
    assert not back.dropped
    assert verify(tmp_path / "out", tmp_path / "b.safetensors").equal


@pytest.mark.parametrize(
    "thin_family", ["ldm-class", "alt-diffusion", "controlnet-sd1-full"], indirect=True
)
def test_what_diffusers_has_no_pipeline_for_is_refused_in_a_line(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")

    with pytest.raises(Unsupported, match=r"of which no diffusers folder is made") as caught:
        convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    assert thin_family.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("thin_family", ["sd2-unclip-h"], indirect=True)
def test_an_image_encoder_without_its_wrapper_is_known(thin_family: Family, tmp_path: Path) -> None:
    """Newer versions of transformers have none."""
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    def newer(held: Tensors) -> None:
        for name in list(held):
            held[name.removeprefix("vision_model.")] = held.pop(name)

    change(tmp_path / "out/image_encoder/model.safetensors", newer)

    back = convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)

    assert not back.dropped


@pytest.mark.parametrize("thin_family", ["sd2-unclip-l"], indirect=True)
def test_where_a_file_has_what_makes_embeddings_alike_the_folder_has_it_too(
    thin_family: Family, tmp_path: Path
) -> None:
    """Few files have it; it is no weight, and is never cast."""
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    named = {"mean": "noise_augmentor.data_mean", "std": "noise_augmentor.data_std"}
    tensors |= {key: torch.rand(1, 768) for key in named.values()}
    torch.save(tensors, tmp_path / "a.ckpt")

    there = convert(tmp_path / "a.ckpt", tmp_path / "out", Options(layout=Layout.DIFFUSERS))
    convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)

    found = read(tmp_path / "out", "image_normalizer")
    assert found.keys() == named.keys()
    assert all(torch.equal(found[name], tensors[key]) for name, key in named.items())
    config = json.loads((tmp_path / "out/image_normalizer/config.json").read_text())
    assert config["embedding_dim"] == 768
    assert not {drop.source for drop in there.dropped} & set(named.values())
    assert set(named.values()) < load_file(tmp_path / "b.safetensors").keys()


@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_of_a_matrix_in_three_parts_none_is_written_where_one_is_missing(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    at = "text_model.encoder.layers.0.self_attn"
    change(tmp_path / "out/text_encoder/model.safetensors", lambda t: t.pop(f"{at}.k_proj.weight"))

    back = convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)

    whole = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    assert whole not in load_file(tmp_path / "b.safetensors")
    assert {drop.source: drop.reason for drop in back.dropped} == {
        f"text_encoder/{at}.{part}_proj.weight": f"is a part of {whole}, whose other parts are "
        "not there"
        for part in "qv"
    }


@pytest.mark.parametrize("rows", [-64, 64], ids=["too-few", "too-many"])
@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_of_a_matrix_that_is_not_three_parts_all_or_nothing_is_written(
    thin_family: Family, tmp_path: Path, rows: int
) -> None:
    """A row of which no part is made would be lost, and parts of what is dropped invented."""
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    whole = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    height, width = tensors[whole].shape
    tensors[whole] = torch.randn(height + rows, width)
    torch.save(tensors, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    assert whole not in {entry.source for entry in result.tensors}
    (drop,) = [drop for drop in result.dropped if drop.source == whole]
    assert "is not of a shape from which" in drop.reason


@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_parts_of_one_matrix_in_two_types_meet_in_the_wider(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    name = "text_model.encoder.layers.0.self_attn.k_proj.weight"
    file = tmp_path / "out/text_encoder/model.safetensors"
    change(file, lambda tensors: tensors.update({name: tensors[name].half()}))

    convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)

    whole = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    assert load_file(tmp_path / "b.safetensors")[whole].dtype == torch.float32


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_names_of_old_and_of_new_libraries_are_known(thin_family: Family, tmp_path: Path) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    def older(held: Tensors) -> None:
        for name in list(held):
            old = name.replace(".to_q.", ".query.").replace(".to_out.0.", ".proj_attn.")
            held[old] = held.pop(name)

    def newer(held: Tensors) -> None:
        for name in list(held):
            held[name.removeprefix("text_model.")] = held.pop(name)

    change(tmp_path / "out/vae/diffusion_pytorch_model.safetensors", older)
    change(tmp_path / "out/text_encoder/model.safetensors", newer)

    back = convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)

    assert back.family == "sd1"
    schedule = 12
    assert len(load_file(tmp_path / "b.safetensors")) == len(tensors) - schedule


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_what_else_is_in_a_folder_is_listed_and_not_written(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    (tmp_path / "out/safety_checker").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "out/safety_checker/model.safetensors")

    back = convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)

    assert [drop.source for drop in back.dropped] == ["safety_checker/w"]
    assert "no place in the original layout" in back.dropped[0].reason


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.EACCES, "check its permissions"), (errno.EIO, "cannot be read")],
    ids=["forbidden", "broken-disk"],
)
def test_a_folder_that_cannot_be_listed_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def fails(folder: Path) -> NoReturn:
        raise OSError(code, os.strerror(code), folder)

    (tmp_path / "out").mkdir()
    # Root may list anything, so the operating system is not asked.
    monkeypatch.setattr("pathlib.Path.iterdir", fails)

    with pytest.raises(SourceUnreadable, match=said):
        convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)


def test_a_directory_named_with_a_slash_is_told_without_two(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for verb in (scan, inspect):
        with pytest.raises(SourceUnreadable, match=r"out/\*\.ckpt"):
            verb(f"{tmp_path}/out/")


def test_a_folder_of_something_else_is_named_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceUnreadable, match="not of a diffusers model"):
        convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_of_several_precisions_one_is_read_and_of_pieces_all(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    unet = tmp_path / "out/unet/diffusion_pytorch_model.safetensors"
    whole = load_file(unet)
    save_file({k: t.half() for k, t in whole.items()}, unet.with_suffix(".fp16.safetensors"))
    names = sorted(whole)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        piece = unet.with_name(f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
        save_file({name: whole[name] for name in part}, piece)
    unet.unlink()

    convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)

    key = "model.diffusion_model.out.2.weight"
    assert torch.equal(load_file(tmp_path / "b.safetensors")[key], tensors[key])


def change(file: Path, how: Callable[[Tensors], object]) -> None:
    """Write the tensors in *file* again, changed."""
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file)


def test_a_file_of_no_such_family_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.ckpt")

    with pytest.raises(Unsupported, match="is of family unknown"):
        convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("thin_family", ["vae"], indirect=True)
def test_a_folder_that_exists_is_replaced_on_request_only_and_what_is_the_users_stays(
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


@pytest.mark.parametrize("thin_family", ["sd1", "sdxl"], indirect=True)
def test_a_split_file_is_all_of_the_source_in_a_file_for_each_part(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    tensors["extra.weight"] = torch.ones(3)
    torch.save(tensors, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", replace(ORIGINAL, split=True))

    parts = {p.name: load_file(p) for p in sorted((tmp_path / "out").iterdir())}
    encoders = ["text_encoder", *(["text_encoder_2"] if thin_family.name == "sdxl" else [])]
    assert list(parts) == [
        f"out.{part}.safetensors" for part in ("other", *encoders, "unet", "vae")
    ]
    # Autoencoders and text encoders alone have bare names, or their loaders refuse them.
    homes = tuple(p.prefix for p in thin_family.models if p.component is not Component.UNET)
    bare = {
        key.removeprefix(next((home for home in homes if key.startswith(home)), "")): tensor
        for key, tensor in tensors.items()
    }
    together = {key: tensor for part in parts.values() for key, tensor in part.items()}
    assert together.keys() == bare.keys()
    assert all(torch.equal(together[key], bare[key]) for key in bare)
    assert "encoder.conv_in.weight" in parts["out.vae.safetensors"]
    assert not result.dropped


@pytest.mark.parametrize(
    "options", [KEEP, replace(ORIGINAL, split=True)], ids=["diffusers", "split"]
)
@pytest.mark.parametrize("thin_family", ["sd1", "sdxl"], indirect=True)
def test_each_of_several_files_is_proven_by_itself(
    thin_family: Family, options: Options, tmp_path: Path
) -> None:
    """Both text encoders of SDXL have tensors of the same names, in their own files."""
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", options)
    files = sorted((tmp_path / "out").rglob("*.safetensors"))

    proofs = [verify(tmp_path / "a.ckpt", file) for file in files]

    assert len(files) == (4 if thin_family.name == "sdxl" else 3)
    assert all(proof.equal and proof.tensors for proof in proofs)
    for file in files:
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert not verify(tmp_path / "a.ckpt", file).equal


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_one_of_several_files_that_lacks_a_tensor_is_not_proven(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    path = tmp_path / "out/vae/diffusion_pytorch_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["decoder.conv_in.weight"]
    save_file(tensors, path, metadata)

    done = verify(tmp_path / "a.ckpt", path)

    (missing,) = [proof for proof in done.tensors if not proof.equal]
    assert (missing.name, missing.problem) == ("decoder.conv_in.weight", "is missing")


def test_a_file_whose_parts_are_not_known_is_not_split(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.ckpt")

    with pytest.raises(Unsupported, match="cannot be split"):
        convert(tmp_path / "a.ckpt", tmp_path / "out", replace(ORIGINAL, split=True))


def test_names_of_the_source_and_of_diffusers_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="keep_names"):
        replace(KEEP, keep_names=True)
    with pytest.raises(ValueError, match="split"):
        replace(KEEP, split=True)
