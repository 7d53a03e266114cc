"""Hashes that the field knows a file by, and content hashes that follow a part anywhere."""

from __future__ import annotations

import json
import random
import sys
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from commands import audit
from narrow import checkpoint, narrow
from oracle import torch
from safetensors.torch import save_file
from test_package import loaded_by

from ckptaudit import Ema, Layout, Options, Precision, convert, inspect
from ckptaudit.jobs import measuring
from ckptaudit.jobs.identity import Known
from ckptaudit.layouts import FAMILIES, Component

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptaudit.layouts import Family

    Tensors = dict[str, torch.Tensor]

KEEP = Options(precision=Precision.KEEP)
DIFFUSERS = Options(precision=Precision.KEEP, layout=Layout.DIFFUSERS)
VAE = "first_stage_model."


def contents(path: Path) -> dict[str, str]:
    """By component, what an inspection says it holds."""
    identity = inspect(path).identity
    assert identity is not None
    return {each.component.value: each.sha256 for each in identity.contents}


# Files


@pytest.mark.parametrize("size", [10, 0x100000, 0x100000 + 77, 0x110000 + 5])
def test_hashes_of_a_file_are_those_that_others_compute(tmp_path: Path, size: int) -> None:
    numel = size // 4 + 1
    save_file({"w": torch.arange(numel).float()}, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")

    result = inspect(tmp_path / "a.safetensors")

    assert result.identity is not None
    assert result.sha256 == sha256(data).hexdigest()
    assert result.identity.autov2 == sha256(data).hexdigest()[:10]
    assert result.identity.legacy == sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert result.identity.data_sha256 == sha256(data[start:]).hexdigest()


def test_a_large_file_has_the_same_hashes_from_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"w": torch.arange(3 << 20).float()}, tmp_path / "a.safetensors")
    alone = inspect(tmp_path / "a.safetensors")
    monkeypatch.setattr("ckptaudit.jobs.hashing._LEAST_FORK_BYTES", 1)

    assert inspect(tmp_path / "a.safetensors") == alone


def test_a_pickle_has_no_data_section_and_a_folder_no_hash_of_a_file(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    (tmp_path / "folder" / "unet").mkdir(parents=True)
    save_file(
        {"w": torch.ones(2)},
        tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors",
    )

    pickled, folder = inspect(tmp_path / "a.pt"), inspect(tmp_path / "folder")

    assert pickled.identity is not None
    assert pickled.identity.autov2 is not None
    assert pickled.identity.data_sha256 is None
    assert folder.identity is not None
    assert (folder.identity.autov2, folder.identity.legacy) == (None, None)
    assert folder.identity.data_sha256 is None
    assert len(folder.identity.contents) == 1


# Contents


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> dict[str, Family]:
    """Several families with thin layers, each in the place of the real one."""
    made = {name: narrow(FAMILIES[name]) for name in ("sd1", "sd2", "sdxl", "vae")}
    module = sys.modules["ckptaudit.layouts.detect"]
    monkeypatch.setattr(module, "FAMILIES", {**FAMILIES, **made})
    return made


def autoencoder(tensors: Tensors, prefix: str = "") -> Tensors:
    return {prefix + key[len(VAE) :]: t for key, t in tensors.items() if key.startswith(VAE)}


def test_an_autoencoder_is_the_same_wherever_it_is(thin: dict[str, Family], tmp_path: Path) -> None:
    """In a checkpoint, alone in a file, in any spelling, order and container, in a folder."""
    tensors = checkpoint(thin["sd1"], tmp_path / "a.ckpt")
    save_file(autoencoder(tensors), tmp_path / "bare.safetensors")
    shuffled = [*autoencoder(tensors, VAE).items()]
    random.Random(0).shuffle(shuffled)  # noqa: S311 - any order will do
    torch.save(dict(shuffled), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    convert(tmp_path / "a.ckpt", tmp_path / "folder", DIFFUSERS)
    convert(tmp_path / "bare.safetensors", tmp_path / "alone", DIFFUSERS)

    whole = contents(tmp_path / "a.ckpt")

    assert set(whole) == {"unet", "vae", "text_encoder"}
    for name in ("bare.safetensors", "old.pt", "alone"):
        assert contents(tmp_path / name) == {"vae": whole["vae"]}
    assert contents(tmp_path / "folder") == whole


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_every_component_is_the_same_in_both_layouts(
    name: str, thin: dict[str, Family], tmp_path: Path
) -> None:
    """Whatever is cut, turned or left out on the way: layers that never run, numbered tokens."""
    checkpoint(thin[name], tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "folder", DIFFUSERS)
    convert(tmp_path / "folder", tmp_path / "back.safetensors", KEEP)

    before = contents(tmp_path / "a.ckpt")

    assert len(before) == (4 if name == "sdxl" else 3)
    assert contents(tmp_path / "folder") == before
    assert contents(tmp_path / "back.safetensors") == before


def test_a_content_hash_is_what_the_documentation_says(
    thin: dict[str, Family], tmp_path: Path
) -> None:
    tensors = checkpoint(thin["vae"], tmp_path / "a.ckpt")
    whole = sha256(b"ckptaudit content 1\n")
    for name, tensor in sorted(tensors.items()):
        shape = list(tensor.shape)
        while shape and shape[-1] == 1:
            del shape[-1]
        elements = sha256(tensor.numpy().tobytes()).hexdigest()
        line = json.dumps([name, "float32", shape, elements], separators=(",", ":"))
        whole.update(f"{line}\n".encode())

    assert contents(tmp_path / "a.ckpt") == {"vae": whole.hexdigest()}


def swap(tensors: Tensors) -> None:
    one, other = "encoder.norm_out.bias", "encoder.norm_out.weight"
    tensors[one], tensors[other] = tensors[other], tensors[one]


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors["quant_conv.bias"].add_(1e-6),
        lambda tensors: tensors["quant_conv.bias"].zero_().neg_(),
        lambda tensors: tensors.update({"quant_conv.bias": tensors["quant_conv.bias"].half()}),
        lambda tensors: tensors.update({key: t.half() for key, t in tensors.items()}),
        lambda tensors: tensors.update({"quant_conv.bias": tensors["quant_conv.bias"][None]}),
        lambda tensors: tensors.pop("quant_conv.bias"),
        swap,
    ],
    ids=["a-weight", "a-sign-of-zero", "a-type", "fp16", "a-shape", "one-less", "two-swapped"],
)
def test_whatever_is_not_the_same_has_another_hash(
    change: Callable[[Tensors], object], thin: dict[str, Family], tmp_path: Path
) -> None:
    tensors = checkpoint(thin["vae"], tmp_path / "a.ckpt")
    tensors["quant_conv.bias"].zero_()
    torch.save(tensors, tmp_path / "a.ckpt")
    change(tensors)
    torch.save(tensors, tmp_path / "b.ckpt")

    one, other = contents(tmp_path / "a.ckpt"), contents(tmp_path / "b.ckpt")

    assert one.keys() == other.keys() == {"vae"}
    assert one != other


def test_averaged_copies_that_became_the_weights_are_the_same(
    thin: dict[str, Family], tmp_path: Path
) -> None:
    """A pruned file has the UNet that the whole one has as averages."""
    tensors = checkpoint(thin["sd1"], tmp_path / "a.ckpt")
    for entry in thin["sd1"].inventory(ema=True):
        if entry.of is not None:
            tensors[entry.key] = tensors[entry.of] * 0.9
    torch.save(tensors, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", Options(Precision.KEEP, ema=Ema.USE))

    whole = inspect(tmp_path / "a.ckpt")

    assert whole.identity is not None
    (averages,) = (c for c in whole.identity.contents if c.component is Component.EMA)
    assert averages.of is Component.UNET
    assert contents(tmp_path / "b.safetensors")["unet"] == averages.sha256
    assert contents(tmp_path / "a.ckpt")["unet"] != averages.sha256


def test_a_file_of_no_known_family_has_one_content_over_its_keys(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(2, 3), "a\n": torch.arange(4)}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "a.safetensors", KEEP)

    assert contents(tmp_path / "a.pt") == contents(tmp_path / "a.safetensors")
    assert contents(tmp_path / "a.pt").keys() == {"other"}


def test_how_elements_lie_in_a_file_is_nothing_to_their_hash(tmp_path: Path) -> None:
    tensors = {
        "turned": torch.randn(300, 200).T,
        "last": torch.randn(2, 5, 7, 7).contiguous(memory_format=torch.channels_last),
        "part": torch.randn(10, 10)[2:7, ::3],
        "spread": torch.randn(3, 1).expand(3, 5),
        "none": torch.empty(0, 3),
        "one": torch.tensor(1.5),
        "large": torch.arange(3 << 20).reshape(3, -1).T,
    }
    torch.save(tensors, tmp_path / "a.pt")
    torch.save(
        {key: tensor.contiguous().clone() for key, tensor in tensors.items()}, tmp_path / "b.pt"
    )

    assert contents(tmp_path / "a.pt") == contents(tmp_path / "b.pt")


def test_many_processes_find_what_one_does(
    thin: dict[str, Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(thin["sdxl"], tmp_path / "a.ckpt")
    alone = inspect(tmp_path / "a.ckpt")
    monkeypatch.setattr("ckptaudit.jobs.hashing._LEAST_FORK_BYTES", 1)
    monkeypatch.setattr(measuring, "_LEAST_LANE_BYTES", 1000)
    monkeypatch.setattr(measuring, "lanes_at_hand", lambda _beside: 3)

    assert inspect(tmp_path / "a.ckpt") == alone


# Twins


def test_a_file_is_told_whose_parts_it_has_once_for_each(
    thin: dict[str, Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = checkpoint(thin["sd1"], tmp_path / "a.ckpt")
    save_file(autoencoder(tensors), tmp_path / "vae.safetensors")
    convert(tmp_path / "a.ckpt", tmp_path / "half.safetensors")
    changed = {k: t + (k.startswith("model.")) for k, t in tensors.items()}
    torch.save(changed, tmp_path / "b.ckpt")
    monkeypatch.chdir(tmp_path)

    done = audit("inspect", "a.ckpt", "vae.safetensors", "half.safetensors", "b.ckpt")
    page = audit("inspect", "a.ckpt", "vae.safetensors", "-f", "md")

    assert [line.strip() for line in done.out.splitlines() if "identical" in line] == [
        "vae identical to that of a.ckpt",
        "vae identical to that of a.ckpt",
        "text_encoder identical to that of a.ckpt",
    ]
    assert page.out.count("* `vae identical to that of a.ckpt`") == 1


def test_what_one_file_has_twice_is_no_twin_of_itself(
    thin: dict[str, Family], tmp_path: Path
) -> None:
    checkpoint(thin["vae"], tmp_path / "a.ckpt")
    known = Known()

    twins = [inspect(tmp_path / "a.ckpt", known=known).twins for _ in range(2)]

    assert [len(each) for each in twins] == [0, 1]


@pytest.mark.parametrize("options", [[], ["--no-hash"]], ids=["hashes", "no-hash"])
def test_without_hashes_nothing_is_hashed_and_no_numpy_loaded(
    tmp_path: Path, options: list[str]
) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    path = str(tmp_path / "a.pt")

    (told,) = audit("inspect", path, "-f", "json", *options).files

    assert (told["identity"] is None) is (told["sha256"] is None) is bool(options)
    assert bool(loaded_by("inspect", path, *options) & {"numpy", "numkong"}) is not bool(options)
