"""A whole conversion is proven in one answer: each file, none missing, none too many."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from commands import assert_one_clear_line, audit
from narrow import checkpoint
from oracle import torch
from safetensors.torch import load_file, save_file

from ckptaudit import Action, Layout, Options, Precision, convert, verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptaudit.jobs.verification import Verification
    from ckptaudit.layouts import Family

DIFFUSERS = Options(layout=Layout.DIFFUSERS)
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)


@pytest.fixture
def source(thin_family: Family, tmp_path: Path) -> Path:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    # One that does not fit, so that it is proven to have stayed as it is.
    tensors["first_stage_model.decoder.conv_in.bias"][0] = 1e6
    torch.save(tensors, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def problems(done: Verification) -> str:
    of_tensors = [f"{p.file}: {p.name}: {p.problem}" for p in done.tensors if p.problem]
    return "\n".join([*done.problems, *of_tensors])


@pytest.mark.parametrize(
    "options",
    [
        DIFFUSERS,
        Options(split=True),
        Options(split=True, precision=Precision.KEEP),
        Options(layout=Layout.DIFFUSERS, unet=Action.DROP),
    ],
    ids=["diffusers", "split", "split-as-it-is", "without-a-part"],
)
def test_what_we_wrote_is_proven_as_a_whole_under_any_name(source: Path, options: Options) -> None:
    out = source.with_name("out")
    written = convert(source, out, options)
    told: list[tuple[int, int]] = []

    done = verify(source, out, progress=lambda now, total: told.append((now, total)))

    assert done.equal, problems(done)
    assert not done.notes
    assert {(file.path, file.sha256) for file in done.files} == {
        (file.path, file.sha256) for file in written.outputs
    }
    assert len(done.tensors) == len(written.tensors)
    assert told[-1][0] == told[-1][1]
    assert [now for now, _ in told] == sorted(now for now, _ in told)
    out.rename(source.with_name("renamed"))
    assert verify(source, source.with_name("renamed"), with_hash=False).equal


def change(path: Path, **settings: object) -> None:
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | settings))


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def without_receipt(path: Path) -> None:
    save_file(load_file(path), path)


def from_another_conversion(path: Path) -> None:
    other = path.parents[2] / "other"
    source = path.parents[2] / "a.ckpt"
    convert(source, other, Options(layout=Layout.DIFFUSERS, precision=Precision.BF16))
    shutil.copy(other / VAE, path)


@pytest.mark.parametrize(
    ("happens", "file", "words"),
    [
        (lambda path: path.unlink(), UNET, f"{UNET}: is missing"),
        (flip, VAE, f"{VAE}: "),
        (without_receipt, VAE, "does not say that it was made as others here"),
        (from_another_conversion, VAE, "does not say that it was made as others here"),
        (lambda path: swap(path, path.parents[1] / VAE), UNET, "is missing"),
        (lambda path: path.unlink(), "unet/config.json", "unet/config.json: is missing"),
        (lambda path: path.unlink(), "model_index.json", "model_index.json: is missing"),
        (lambda path: change(path, sample_size=7), "unet/config.json", "sample_size is not 64"),
        (lambda path: change(path, center_input_sample=0), "unet/config.json", "is not false"),
        (
            lambda path: change(path, block_out_channels=[32.0, 64, 128, 128]),
            "unet/config.json",
            "block_out_channels is not [32, 64, 128, 128]",
        ),
        (
            lambda path: path.symlink_to(path.parents[1]),
            "text_encoder_2",
            "text_encoder_2: is none of",
        ),
        (lambda path: change(path, more=1), "vae/config.json", "has more, which is not written"),
        (lambda path: path.write_text("{}"), "vae/config.json", "lacks _class_name"),
        (lambda path: path.write_text("[]"), "vae/config.json", "is no JSON object"),
        (lambda path: path.write_text("[" * 99_999), "vae/config.json", "is no JSON object"),
        (lambda path: path.write_text(" " * 2_000_000), "vae/config.json", "has 2000000 bytes"),
        (lambda path: path.touch(), "unet/diffusion_pytorch_model.bin", "none of the files"),
        (lambda path: path.touch(), "unet/notes.txt", "none of the files"),
        (lambda path: path.touch(), "pipeline.py", "pipeline.py: is none of the files"),
        (lambda path: path.touch(), "old.safetensors", "old.safetensors: is none of the files"),
    ],
    ids=str,
)
def test_whatever_is_wrong_with_a_folder_is_one_bad_answer(
    source: Path, happens: Callable[[Path], object], file: str, words: str
) -> None:
    out = source.with_name("out")
    convert(source, out, DIFFUSERS)
    happens(out / file)

    done = audit("verify", source, out, "--no-hash")

    assert done.status == 1
    assert "NOT what its source gives" in done.out
    assert words in done.out


def test_settings_that_are_only_spelled_otherwise_say_the_same(source: Path) -> None:
    out = source.with_name("out")
    convert(source, out, DIFFUSERS)
    change(out / "unet/config.json")

    assert verify(source, out, with_hash=False).equal


def test_what_a_user_has_to_add_is_noted_and_no_difference(source: Path) -> None:
    out = source.with_name("out")
    convert(source, out, DIFFUSERS)
    (out / "tokenizer").mkdir()
    (out / "tokenizer/vocab.json").write_text("{}")
    (out / "tokenizer_2").symlink_to("tokenizer")
    (out / "README.md").touch()

    done = verify(source, out, with_hash=False)

    assert done.equal, problems(done)
    assert done.notes == ("not compared, for no conversion writes it: README.md and 2 others",)


def test_of_a_split_model_a_part_too_many_is_told_and_a_stranger_noted(source: Path) -> None:
    out = source.with_name("out")
    convert(source, out, Options(split=True))
    shutil.copy(out / "out.vae.safetensors", out / "other.safetensors")
    convert(source, out / "alone.safetensors")
    done = verify(source, out, with_hash=False)
    assert done.equal, problems(done)

    shutil.copy(out / "out.vae.safetensors", out / "out.ema.safetensors")

    assert "out.ema.safetensors: is none of" in problems(verify(source, out, with_hash=False))


def test_a_folder_by_another_tool_is_proven_by_its_weights(source: Path) -> None:
    out = source.with_name("out")
    convert(source, out, Options(layout=Layout.DIFFUSERS, precision=Precision.KEEP))
    for file in out.rglob("*.safetensors"):
        without_receipt(file)
    change(out / "unet/config.json", sample_size=7)

    done = verify(source, out, with_hash=False)

    assert done.equal, problems(done)
    assert any("was not written by ckptaudit" in note for note in done.notes)
    flip(out / UNET)
    assert not verify(source, out, with_hash=False).equal


def test_a_folder_of_files_made_each_by_itself_is_no_answer(source: Path) -> None:
    out = source.with_name("out")
    out.mkdir()
    convert(source, out / "a.safetensors")

    assert_one_clear_line(audit("verify", source, out), "name one of them")


def test_an_empty_folder_is_not_proven(source: Path) -> None:
    source.with_name("out").mkdir()

    assert audit("verify", source, source.with_name("out")).status == 1


def test_no_depth_of_folders_is_too_much(source: Path) -> None:
    out = source.with_name("out")
    deep = [out]
    out.mkdir()
    try:
        for _ in range(1_200):
            deep.append(deep[-1] / "d")
            deep[-1].mkdir()
        (deep[-1] / "a.bin").touch()

        done = verify(source, out, with_hash=False)

        assert not done.equal
    finally:
        # Before Python 3.13 shutil.rmtree, which pytest cleans up with, goes down by recursion.
        (deep[-1] / "a.bin").unlink()
        for folder in reversed(deep):
            folder.rmdir()
