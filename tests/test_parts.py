"""Tensors that are made of parts, or are parts, and files that are: nothing is lost in between.

Models here are narrow ones of the real families: every layer is there, and is thin.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from narrow import checkpoint
from oracle import torch
from safetensors.torch import load_file, save_file

from ckptaudit import Action, Dedupe, Ema, Layout, Options, Precision, convert, verify
from ckptaudit.layouts import Component

if TYPE_CHECKING:
    from pathlib import Path

    from ckptaudit.layouts import Family

    Tensors = dict[str, torch.Tensor]

DIFFUSERS = Options(layout=Layout.DIFFUSERS, precision=Precision.KEEP)
ORIGINAL = Options(precision=Precision.KEEP)
SPLIT = replace(ORIGINAL, split=True)
WHOLE = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
PART = "text_model.encoder.layers.0.self_attn.{}_proj.weight"


def averages(family: Family) -> Tensors:
    return {
        entry.key: torch.randn(entry.shape)
        for entry in family.inventory(ema=True)
        if entry.component is Component.EMA and entry.of is not None
    }


def put(folder: Path, **parts: torch.Tensor) -> None:
    """Replace the queries, keys or values of the first layer of a text encoder."""
    file = folder / "text_encoder/model.safetensors"
    save_file(load_file(file) | {PART.format(k): t for k, t in parts.items()}, file)


@pytest.mark.parametrize("rows", [0, 64, 100, 191, 193, 256])
@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_a_matrix_is_cut_into_all_of_its_rows_or_not_at_all(
    thin_family: Family, tmp_path: Path, rows: int
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt") | {WHOLE: torch.randn(rows, 64)}
    torch.save(tensors, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", DIFFUSERS)

    assert WHOLE not in {entry.source for entry in result.tensors}
    (drop,) = (drop for drop in result.dropped if drop.source == WHOLE)
    assert "not of a shape" in drop.reason


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool", "complex64", "float64"])
@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_parts_of_types_that_have_none_in_common_are_listed_and_not_joined(
    thin_family: Family, tmp_path: Path, dtype: str
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", DIFFUSERS)
    put(tmp_path / "out", k=torch.ones(64, 64).to(getattr(torch, dtype)))

    result = convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)

    assert WHOLE not in load_file(tmp_path / "b.safetensors")
    assert {drop.source: "of types that have none in common" in drop.reason
            for drop in result.dropped} == {
        f"text_encoder/{PART.format(part)}": True for part in "qkv"
    }  # fmt: skip


@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_equal_parts_of_one_tensor_are_no_copies_of_each_other(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", DIFFUSERS)
    put(tmp_path / "out", **{part: torch.zeros(64, 64) for part in "qkv"})

    result = convert(
        tmp_path / "out", tmp_path / "b.safetensors", replace(ORIGINAL, dedupe=Dedupe.ALL)
    )

    assert torch.equal(load_file(tmp_path / "b.safetensors")[WHOLE], torch.zeros(192, 64))
    assert not result.dropped


@pytest.mark.parametrize("thin_family", ["sdxl"], indirect=True)
def test_what_is_transposed_on_the_way_is_no_copy_of_what_is_not(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", DIFFUSERS)
    file = tmp_path / "out/text_encoder_2/model.safetensors"
    tensors = load_file(file)
    other = "text_model.encoder.layers.0.self_attn.out_proj.weight"
    tensors["text_projection.weight"] = tensors[other].clone()
    save_file(tensors, file)

    result = convert(
        tmp_path / "out", tmp_path / "b.safetensors", replace(ORIGINAL, dedupe=Dedupe.ALL)
    )

    names = {alias.name for alias in result.aliases}
    assert not {name for name in names if "text_projection" in name or "out_proj" in name}
    found = load_file(tmp_path / "b.safetensors")
    name = "conditioner.embedders.1.model.text_projection"
    assert torch.equal(found[name], tensors[other].T)


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_nothing_is_stored_under_the_name_of_what_is_left_out(
    thin_family: Family, tmp_path: Path
) -> None:
    counts = torch.arange(7)
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt") | {"x.a": counts, "x.b": counts}
    ids = next(key for key in tensors if key.endswith("position_ids"))
    tensors["a.first"] = tensors[ids]
    torch.save(tensors, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")

    assert [(alias.name, alias.of) for alias in result.aliases] == [("a.first", ids)]
    assert {drop.source for drop in result.dropped} == {"x.a", "x.b"}
    assert verify(tmp_path / "a.ckpt", tmp_path / "b.safetensors").equal


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_an_averaged_copy_goes_to_the_file_of_the_weight_it_replaces(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    copies = averages(thin_family)
    torch.save(tensors | copies, tmp_path / "a.ckpt")

    convert(tmp_path / "a.ckpt", tmp_path / "out", replace(SPLIT, ema=Ema.USE))

    parts = ["text_encoder", "unet", "vae"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"out.{part}.safetensors" for part in parts
    ]
    key = "model.diffusion_model.out.2.weight"
    found = load_file(tmp_path / "out/out.unet.safetensors")[key]
    assert torch.equal(found, copies["model_ema.diffusion_modelout2weight"])


@pytest.mark.parametrize("thin_family", ["vae"], indirect=True)
def test_an_averaged_copy_is_treated_as_the_part_it_is_a_copy_of(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt") | averages(thin_family)
    torch.save(tensors, tmp_path / "a.ckpt")

    options = Options(vae=Action.COPY, ema=Ema.USE)
    convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", options)

    found = load_file(tmp_path / "b.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


@pytest.mark.parametrize("dedupe", [Dedupe.SAFE, Dedupe.ALL])
@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_each_file_of_a_split_model_is_whole_for_itself(
    thin_family: Family, tmp_path: Path, dedupe: Dedupe
) -> None:
    """Equal tensors are stored once in each, and each says so of its own names."""
    tensors = {
        key: torch.zeros_like(tensor)
        for key, tensor in checkpoint(thin_family, tmp_path / "a.ckpt").items()
    }
    again = "state_dict.first_stage_model.encoder.conv_in.weight"
    tensors[again] = tensors["first_stage_model.encoder.conv_in.weight"]
    torch.save(tensors, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", replace(SPLIT, dedupe=dedupe))

    written = {(entry.file, entry.name) for entry in result.tensors}
    assert all((alias.file, alias.of) in written for alias in result.aliases)
    there = {entry.source for entry in result.tensors} | {a.source for a in result.aliases}
    assert there == set(tensors)
    for path in (tmp_path / "out").iterdir():
        assert load_file(path)
        assert verify(tmp_path / "a.ckpt", path).equal


@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_a_joined_tensor_of_which_one_part_does_not_fit_is_proven(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", DIFFUSERS)
    put(tmp_path / "out", k=torch.full((64, 64), 1e6), v=torch.ones(64, 64).half())

    result = convert(tmp_path / "out", tmp_path / "b.safetensors")

    found = load_file(tmp_path / "b.safetensors")
    assert found[WHOLE].dtype == torch.float32
    assert len([finding for finding in result.findings if finding.rule == "CKA301"]) == 1
    assert verify(tmp_path / "out", tmp_path / "b.safetensors").equal
    found[WHOLE] = found[WHOLE].clone()
    found[WHOLE][130, 3] += 1
    rewritten(tmp_path / "b.safetensors", found)
    assert not verify(tmp_path / "out", tmp_path / "b.safetensors").equal


@pytest.mark.parametrize("options", [SPLIT, DIFFUSERS], ids=["split", "diffusers"])
@pytest.mark.parametrize("thin_family", ["sdxl"], indirect=True)
def test_each_file_of_a_folder_is_proven_for_itself(
    thin_family: Family, tmp_path: Path, options: Options
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", options)
    files = sorted((tmp_path / "out").rglob("*.safetensors"))

    assert len(files) == 4
    for file in files:
        proven = verify(tmp_path / "a.ckpt", file)
        assert proven.equal, (file, proven.problems)
        assert any("3 other files" in note for note in proven.notes)
        tensors = load_file(file)
        name = next(name for name, tensor in tensors.items() if tensor.numel() > 1)
        tensors[name] = tensors[name] + 1
        rewritten(file, tensors)
        assert not verify(tmp_path / "a.ckpt", file).equal
        del tensors[name]
        rewritten(file, tensors)
        assert not verify(tmp_path / "a.ckpt", file).equal


def rewritten(file: Path, tensors: Tensors) -> None:
    """Write *tensors* to *file*, which goes on to say that it was made as before."""
    from safetensors import safe_open  # noqa: PLC0415 - here only

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, file, metadata)


@pytest.mark.parametrize("options", [SPLIT, DIFFUSERS], ids=["split", "diffusers"])
@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_a_folder_is_what_a_dry_run_says_and_the_same_a_second_time(
    thin_family: Family, tmp_path: Path, options: Options
) -> None:
    torch.save(checkpoint(thin_family, tmp_path / "a") | averages(thin_family), tmp_path / "a.ckpt")

    dry = convert(tmp_path / "a.ckpt", tmp_path / "out", options, dry_run=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.ckpt"}
    done = convert(tmp_path / "a.ckpt", tmp_path / "out", options)
    first = contents(tmp_path / "out")
    again = convert(tmp_path / "a.ckpt", tmp_path / "out", options, overwrite=True)

    assert [replace(entry, stats=None) for entry in done.tensors] == list(dry.tensors)
    assert (done.aliases, done.dropped) == (dry.aliases, dry.dropped)
    assert [(o.path, o.size) for o in done.outputs] == [(o.path, o.size) for o in dry.outputs]
    assert {o.size for o in done.outputs} == {len(data) for data in first.values()}
    assert contents(tmp_path / "out") == first
    assert again == done


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
