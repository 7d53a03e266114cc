"""What ails a model: each ailment is found for itself, and a sound model has none."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from narrow import checkpoint
from oracle import torch
from safetensors.torch import load_file

from ckptaudit import (
    Action,
    Ema,
    Layout,
    Options,
    Precision,
    convert,
    inspect,
    scan,
    verify,
)
from ckptaudit.layouts import Component

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptaudit.layouts import Family

    Tensors = dict[str, torch.Tensor]

IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
KEEP = Options(precision=Precision.KEEP)


def ailments(path: Path) -> dict[str, str]:
    """By rule, what an inspection finds."""
    return {finding.rule: finding.message for finding in inspect(path, with_hash=False).findings}


def change(family: Family, path: Path, how: Callable[[Tensors], object]) -> None:
    tensors = checkpoint(family, path)
    how(tensors)
    torch.save(tensors, path)


@pytest.mark.parametrize("thin_family", ["sd1", "sd2", "sdxl", "vae"], indirect=True)
def test_a_sound_model_has_no_ailment(thin_family: Family, tmp_path: Path) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")

    assert ailments(tmp_path / "a.ckpt") == {}


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (torch.arange(77).half()[None] - 0.01, "is float16 where int64"),
        (torch.arange(77).float()[None], "is float32 where int64"),
        (torch.tensor([*range(76), 75])[None], "has 75 in place of 76"),
        (torch.zeros(1, 77, dtype=torch.bool), "is bool where int64"),
    ],
    ids=["half", "float", "anything-v3", "bool"],
)
@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_positions_that_do_not_count_are_told_and_left_for_loaders_to_make(
    thin_family: Family, tmp_path: Path, ids: torch.Tensor, says: str
) -> None:
    change(thin_family, tmp_path / "a.ckpt", lambda tensors: tensors.update({IDS: ids}))

    assert says in ailments(tmp_path / "a.ckpt")["CKA303"]
    result = convert(tmp_path / "a.ckpt", tmp_path / "out.safetensors")
    assert IDS not in load_file(tmp_path / "out.safetensors")
    assert [says in drop.reason for drop in result.dropped if drop.source == IDS] == [True]
    assert "CKA303" in {finding.rule for finding in result.findings}
    assert verify(tmp_path / "a.ckpt", tmp_path / "out.safetensors").equal
    kept = tmp_path / "kept.safetensors"
    convert(tmp_path / "a.ckpt", kept, KEEP)
    assert torch.equal(load_file(kept)[IDS], ids)


@pytest.mark.parametrize(
    "ids",
    [torch.arange(77).half()[None] - 0.01, torch.tensor([*range(76), 75])[None]],
    ids=["before the cast", "after it"],
)
@pytest.mark.parametrize(
    ("thin_family", "prefix"),
    [
        ("sd1", "cond_stage_model.transformer.text_model."),
        ("sd1", "cond_stage_model.transformer."),
        ("sdxl", "conditioner.embedders.0.transformer.text_model."),
        ("clip-l", "text_model."),
    ],
    ids=["sd1", "novelai", "sdxl", "alone"],
    indirect=["thin_family"],
)
def test_positions_are_looked_at_under_every_prefix(
    thin_family: Family, tmp_path: Path, prefix: str, ids: torch.Tensor
) -> None:
    """As in AnythingV3: 76 became 75.99, and then 75."""
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    own = next(key for key in tensors if key.endswith("position_ids"))
    before = own.removesuffix("embeddings.position_ids")
    tensors = {
        prefix + key.removeprefix(before) if key.startswith(before) else key: tensor
        for key, tensor in tensors.items()
    }
    key = f"{prefix}embeddings.position_ids"
    assert key in tensors
    torch.save(tensors | {key: ids}, tmp_path / "a.ckpt")

    assert ailments(tmp_path / "a.ckpt").keys() == {"CKA303"}
    result = convert(tmp_path / "a.ckpt", tmp_path / "out.safetensors")
    assert [drop.source for drop in result.dropped] == [key]
    assert load_file(tmp_path / "out.safetensors").keys() == {
        entry.key for entry in thin_family.inventory() if not entry.key.endswith("position_ids")
    }


def test_positions_are_looked_at_in_files_of_no_known_family(tmp_path: Path) -> None:
    """There they are told, and stay: nobody knows whether a loader makes them."""
    key = "mine.text_model.embeddings.position_ids"
    torch.save({key: torch.zeros(1, 77)}, tmp_path / "a.ckpt")

    assert ailments(tmp_path / "a.ckpt").keys() == {"CKA303"}
    convert(tmp_path / "a.ckpt", tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors").keys() == {key}


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_what_is_missing_or_misshapen_is_named(thin_family: Family, tmp_path: Path) -> None:
    gone = "first_stage_model.quant_conv.weight"
    bent = "model.diffusion_model.out.2.weight"

    def damage(tensors: Tensors) -> None:
        del tensors[gone]
        tensors[bent] = torch.ones(4, 4)

    change(thin_family, tmp_path / "a.ckpt", damage)

    found = ailments(tmp_path / "a.ckpt")
    assert found.keys() == {"CKA304", "CKA305"}
    assert gone in found["CKA304"]
    assert bent in found["CKA305"]


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_junk_and_second_copies_are_told_apart(thin_family: Family, tmp_path: Path) -> None:
    def litter(tensors: Tensors) -> None:
        tensors["embedding_manager.embedder.w"] = torch.ones(2)
        key = "model.diffusion_model.out.0.bias"
        tensors[f"state_dict.{key}"] = tensors[key]
        tensors["lora_te_text_model.alpha"] = torch.ones(1)
        tensors["mine.own"] = torch.ones(1)

    change(thin_family, tmp_path / "a.ckpt", litter)

    findings = inspect(tmp_path / "a.ckpt", with_hash=False).findings
    assert [(f.rule, f.record) for f in findings] == [
        ("CKA306", "embedding_manager."),
        ("CKA306", "lora_te_"),
        ("CKA308", "state_dict.model.diffusion_model.out.0.bias"),
    ]


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_averages_of_a_part_are_told_and_none_or_all_are_not(
    thin_family: Family, tmp_path: Path
) -> None:
    copies = [e for e in thin_family.inventory(ema=True) if e.component is Component.EMA]
    averages = {e.key: torch.ones(e.shape) for e in copies}
    change(thin_family, tmp_path / "a.ckpt", lambda tensors: tensors.update(averages))
    assert ailments(tmp_path / "a.ckpt") == {}

    averages.pop("model_ema.diffusion_modelout0bias")
    change(thin_family, tmp_path / "a.ckpt", lambda tensors: tensors.update(averages))

    assert "1 of 686 weights have no averaged copy" in ailments(tmp_path / "a.ckpt")["CKA307"]


@pytest.mark.parametrize("thin_family", ["sdxl"], indirect=True)
def test_a_vae_that_cannot_run_in_its_type_is_told(thin_family: Family, tmp_path: Path) -> None:
    def halve(tensors: Tensors) -> None:
        for key in tensors:
            if key.startswith("first_stage_model."):
                tensors[key] = tensors[key].half()

    change(thin_family, tmp_path / "a.ckpt", halve)

    assert ailments(tmp_path / "a.ckpt").keys() == {"CKA309"}


@pytest.mark.parametrize("thin_family", ["sdxl"], indirect=True)
def test_a_vae_that_overflows_in_fp16_stays_as_it_is_with_a_note(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out.safetensors")
    cast = convert(
        tmp_path / "a.ckpt",
        tmp_path / "cast.safetensors",
        replace(Options(), vae=Action.CONVERT),
    )

    of_vae = {t.dtype for t in result.tensors if t.component is Component.VAE}
    assert of_vae == {"float32"}
    assert any("--vae convert casts it" in note for note in result.notes)
    assert {t.dtype for t in cast.tensors if t.component is Component.VAE} == {"float16"}
    assert not any("--vae" in note for note in cast.notes)


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_an_ailment_is_no_reason_for_distrust(thin_family: Family, tmp_path: Path) -> None:
    change(
        thin_family,
        tmp_path / "a.ckpt",
        lambda tensors: tensors.pop(IDS[:-12] + "token_embedding.weight"),
    )

    assert scan(tmp_path / "a.ckpt", with_hash=False).verdict == "clean"
    assert ailments(tmp_path / "a.ckpt").keys() == {"CKA304"}


def seen(path: Path) -> dict[str, str]:
    """By rule, what an inspection finds that has read the weights."""
    return {finding.rule: finding.message for finding in inspect(path).findings}


@pytest.mark.parametrize("thin_family", ["sd1", "sdxl", "vae", "controlnet-sd1"], indirect=True)
def test_a_sound_model_has_no_ailment_in_its_weights_either(
    thin_family: Family, tmp_path: Path
) -> None:
    """Biases are zero in many, and a ControlNet begins with layers that are."""
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    for key in tensors:
        if key.endswith("bias") or "zero_convs." in key or "middle_block_out." in key:
            tensors[key].zero_()
    torch.save(tensors, tmp_path / "a.ckpt")

    assert seen(tmp_path / "a.ckpt") == {}
    assert convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", KEEP).findings == ()


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_weights_that_are_none_and_weights_that_are_all_zero_are_told(
    thin_family: Family, tmp_path: Path
) -> None:
    empty = "model.diffusion_model.out.2.weight"
    odd = "first_stage_model.quant_conv.weight"

    def damage(tensors: Tensors) -> None:
        tensors[empty] = torch.zeros_like(tensors[empty])
        tensors[empty][0, 0] = -0.0
        tensors[odd][0, 0] = float("nan")
        tensors[odd][1, 0] = -float("inf")

    change(thin_family, tmp_path / "a.ckpt", damage)

    found = seen(tmp_path / "a.ckpt")
    converted = convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", KEEP).findings
    assert found.keys() == {"CKA302", "CKA310"}
    assert found["CKA302"] == "holds 1 NaN and 1 infinite value"
    assert "weights of the unet is zero throughout: " + empty in found["CKA310"]
    assert {finding.rule: finding.message for finding in converted} == found
    assert ailments(tmp_path / "a.ckpt") == {}


@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_a_matrix_is_zero_throughout_only_if_all_of_its_parts_are(
    thin_family: Family, tmp_path: Path
) -> None:
    """A folder of diffusers has a matrix of the original layout in three."""
    key = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    diffusers = replace(KEEP, layout=Layout.DIFFUSERS)

    def damage(tensors: Tensors) -> None:
        tensors[key][:64] = 0

    change(thin_family, tmp_path / "a.ckpt", damage)
    result = convert(tmp_path / "a.ckpt", tmp_path / "folder", diffusers)

    assert "CKA310" not in {finding.rule for finding in result.findings}
    assert "CKA310" not in seen(tmp_path / "a.ckpt")
    assert "q_proj.weight" in seen(tmp_path / "folder")["CKA310"]


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (1.0, [r"(\d+) of \1 averages are equal to their weights, nothing was averaged: "]),
        (0.5, [r"(\d+) of (?!\1 )\d+ averages are equal .*, so much was not trained: "]),
        (0.0, []),
    ],
    ids=["all", "some", "none"],
)
@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_averages_that_are_the_weights_are_told(
    thin_family: Family, tmp_path: Path, share: float, says: list[str]
) -> None:
    """Biases are not counted: those that began at zero may be there still."""
    weights = [entry for entry in thin_family.inventory(ema=True) if entry.of is not None]

    def average(tensors: Tensors) -> None:
        for number, entry in enumerate(weights):
            is_alike = number < share * len(weights) or entry.key.endswith("bias")
            tensors[entry.key] = tensors[entry.of or ""] * (1 if is_alike else 2)

    change(thin_family, tmp_path / "a.ckpt", average)
    kept = replace(KEEP, ema=Ema.KEEP)

    inspected = seen(tmp_path / "a.ckpt")
    converted = convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", kept).findings

    assert inspected.keys() == ({"CKA311"} if says else set())
    assert all(re.match(says[0], message) for message in inspected.values())
    assert {finding.rule: finding.message for finding in converted} == inspected
