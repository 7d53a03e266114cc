"""What is cast, copied and left out, part by part, in every layout.

Models here are narrow ones of the real families: every layer is there, and is thin.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from commands import assert_one_clear_line, audit, names_in
from narrow import checkpoint
from oracle import torch

from ckptaudit import Action, Layout, Options, convert
from ckptaudit.layouts import Component

if TYPE_CHECKING:
    from pathlib import Path

    from ckptaudit import Conversion
    from ckptaudit.layouts import Family

PARTS = ("unet", "vae", "text_encoder", "other")
ACTIONS = (Action.CONVERT, Action.COPY, Action.DROP)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def written(result: Conversion) -> dict[str, set[str]]:
    """By part of the model, the types in which it was written."""
    found: dict[str, set[str]] = {}
    for entry in result.tensors:
        part = "text_encoder" if entry.component.value.startswith("text") else entry.component.value
        if entry.source_dtype == "float32":
            found.setdefault(part, set()).add(entry.dtype)
    return found


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("layout", ["original", "split", "diffusers"])
@pytest.mark.parametrize("thin_family", ["sdxl"], indirect=True)
def test_each_part_is_cast_copied_or_left_out_for_itself(
    thin_family: Family, tmp_path: Path, layout: str, turn: int
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt") | {"junk": torch.ones(3)}
    torch.save(tensors, tmp_path / "a.ckpt")
    actions = {part: ACTIONS[(turn + number) % 3] for number, part in enumerate(PARTS)}
    options = Options(
        unet=actions["unet"],
        vae=actions["vae"],
        text_encoder=actions["text_encoder"],
        other=actions["other"],
        split=layout == "split",
        layout=Layout.DIFFUSERS if layout == "diffusers" else Layout.ORIGINAL,
    )
    name = "out" if options.makes_folder else "out.safetensors"

    result = convert(tmp_path / "a.ckpt", tmp_path / name, options)

    has_place = {"unet", "vae", "text_encoder", *(["other"] if layout != "diffusers" else [])}
    types = {Action.CONVERT: {"float16"}, Action.COPY: {"float32"}}
    wanted = {part: types[act] for part, act in actions.items() if act in types}
    found = written(result)
    found.pop("schedule", None)
    assert found == {part: types for part, types in wanted.items() if part in has_place}
    everything = [entry.source for entry in result.tensors]
    everything += [drop.source for drop in result.dropped]
    assert set(everything) == set(tensors)
    for drop in result.dropped:
        assert "on request" in drop.reason or "no place in the diffusers layout" in drop.reason


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("thin_family", ["sdxl"], indirect=True)
def test_a_folder_says_what_it_was_made_without(
    thin_family: Family, tmp_path: Path, part: str
) -> None:
    """As diffusers does of a pipeline without it, so that it can be brought along."""
    checkpoint(thin_family, tmp_path / "a.ckpt")
    output = tmp_path / "out"

    done = audit("convert", tmp_path / "a.ckpt", "--layout=diffusers", "-o", output,
                 f"--{part.replace('_', '-')}=drop", "-f", "json")  # fmt: skip

    assert done.status == 0, done
    index = json.loads((output / "model_index.json").read_text(encoding="utf-8"))
    absent = [part, "text_encoder_2"] if part == "text_encoder" else [part]
    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
        assert (index[component] == [None, None]) == (component in absent)
        assert (output / component).exists() == (component not in absent)
    notes = [note for note in done.files[0]["notes"] if note.startswith("the folder has no")]
    assert [note.split()[4] for note in notes] == [f"{component}:" for component in absent]


@pytest.mark.parametrize("thin_family", ["sdxl"], indirect=True)
def test_a_folder_says_what_no_checkpoint_has(thin_family: Family, tmp_path: Path) -> None:
    """A folder without them opens in transformers, with a tokenizer that knows no word."""
    checkpoint(thin_family, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", Options(layout=Layout.DIFFUSERS))

    (note,) = (note for note in result.notes if note.startswith("no checkpoint has"))
    assert "tokenizer=..., tokenizer_2=..." in note


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_a_whole_folder_lacks_nothing(thin_family: Family, tmp_path: Path) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "out", Options(layout=Layout.DIFFUSERS))

    assert not [note for note in result.notes if "the folder has no" in note]


@pytest.mark.parametrize("thin_family", ["sd1", "sdxl"], indirect=True)
def test_what_schedules_the_unet_goes_with_it(thin_family: Family, tmp_path: Path) -> None:
    """A file that is called the UNet's and has a schedule only is worse than none."""
    checkpoint(thin_family, tmp_path / "a.ckpt")

    convert(tmp_path / "a.ckpt", tmp_path / "all", Options(split=True))
    convert(tmp_path / "a.ckpt", tmp_path / "out", Options(split=True, unet=Action.DROP))
    result = convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", Options(unet=Action.DROP))

    without = {name.replace("all.", "out.") for name in names_in(tmp_path / "all")}
    assert names_in(tmp_path / "out") == without - {"out.unet.safetensors"}
    assert Component.SCHEDULE not in {entry.component for entry in result.tensors}


@pytest.mark.parametrize("layout", ["--split", "--layout=diffusers"])
@pytest.mark.parametrize("thin_family", ["vae"], indirect=True)
def test_a_folder_of_which_nothing_is_left_is_not_made(
    thin_family: Family, tmp_path: Path, layout: str
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")

    done = audit("convert", tmp_path / "a.ckpt", layout, "--vae=drop", "-o", tmp_path / "out")

    assert_one_clear_line(done, "a.ckpt", "no tensor of it is left")
    assert names_in(tmp_path) == {"a.ckpt"}


@pytest.mark.parametrize("thin_family", ["vae"], indirect=True)
def test_a_file_of_which_nothing_is_left_says_so(thin_family: Family, tmp_path: Path) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", Options(vae=Action.DROP))

    assert "every tensor is left out: there is none in the output" in result.notes
