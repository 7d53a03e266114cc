"""ModelSpec metadata: what is known is written, what is demanded and unknown is asked for."""

from __future__ import annotations

from hashlib import sha256
from shutil import copy
from typing import TYPE_CHECKING

import pytest
from commands import assert_one_clear_line, audit, names_in
from narrow import checkpoint
from oracle import metadata_of, rewrite, torch
from safetensors.torch import load_file

from ckptaudit import Options, convert, inspect, verify
from ckptaudit.errors import Unsupported
from ckptaudit.layouts import FAMILIES, modelspec_ids

if TYPE_CHECKING:
    from pathlib import Path

    from ckptaudit.layouts import Family

SAID = (("author", "Jane Doe"), ("date", "2026-11-25"), ("description", "é\nb"))
WANTED = Options(modelspec=SAID)


def spec(path: Path) -> dict[str, str]:
    """What a file says by the ModelSpec, without the prefix."""
    metadata = metadata_of(path).items()
    return {key[10:]: value for key, value in metadata if key.startswith("modelspec.")}


def data_of(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


@pytest.mark.parametrize(
    ("thin_family", "architecture", "more"),
    [
        ("sd1", "stable-diffusion-v1", {"resolution": "512x512"}),
        ("sd1-inpainting", "stable-diffusion-v1-inpainting", {"resolution": "512x512"}),
        ("sd2-depth", "stable-diffusion-v2-depth", {"resolution": "512x512"}),
        ("sdxl", "stable-diffusion-xl-v1-base", {"resolution": "1024x1024"}),
        ("controlnet-sd1", "stable-diffusion-v1/controlnet", {}),
    ],
    indirect=["thin_family"],
)
def test_what_is_known_is_written_and_proven(
    thin_family: Family, tmp_path: Path, architecture: str, more: dict[str, str]
) -> None:
    checkpoint(thin_family, tmp_path / "my model.ckpt")
    out = tmp_path / "my model.safetensors"

    result = convert(tmp_path / "my model.ckpt", out, WANTED)

    ids = modelspec_ids(thin_family.name)
    assert ids is not None
    assert spec(out) == {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "implementation": ids.implementation,
        "title": "my model",
        **more,
        **dict(SAID),
        "hash_sha256": f"0x{sha256(data_of(out)).hexdigest()}",
    }
    assert result.modelspec == {f"modelspec.{key}": value for key, value in spec(out).items()}
    assert verify(tmp_path / "my model.ckpt", out).equal
    out.rename(tmp_path / "renamed.safetensors")
    assert verify(tmp_path / "my model.ckpt", tmp_path / "renamed.safetensors").equal


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_nobody_who_did_not_ask_gets_any(thin_family: Family, tmp_path: Path) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    out = tmp_path / "a.safetensors"

    plain = convert(tmp_path / "a.ckpt", out)

    assert spec(out) == {}
    assert plain.modelspec is None
    described = convert(tmp_path / "a.ckpt", out, Options(modelspec=()), overwrite=True)
    assert described.modelspec is not None
    unhashed = convert(
        tmp_path / "a.ckpt", out, Options(modelspec=()), overwrite=True, with_hash=False
    )
    assert unhashed.modelspec == {
        key: value for key, value in described.modelspec.items() if not key.endswith("sha256")
    }
    assert verify(tmp_path / "a.ckpt", out).equal
    planned = convert(tmp_path / "a.ckpt", out, Options(modelspec=()), overwrite=True, dry_run=True)
    assert planned.modelspec == unhashed.modelspec


@pytest.mark.parametrize("thin_family", ["sdxl"], indirect=True)
def test_that_it_predicts_v_is_said_where_a_mark_shows_it(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    torch.save(tensors | {"v_pred": torch.ones(())}, tmp_path / "a.ckpt")

    convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", WANTED)

    assert spec(tmp_path / "a.safetensors")["prediction_type"] == "v"


@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_a_guess_is_not_written_but_asked_for(thin_family: Family, tmp_path: Path) -> None:
    """Which of two architectures it is, one weight hints at and no key says."""
    checkpoint(thin_family, tmp_path / "a.ckpt")

    with pytest.raises(Unsupported, match="architecture and implementation and resolution must"):
        convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", WANTED)

    assert names_in(tmp_path) == {"a.ckpt"}
    done = audit("convert", tmp_path / "a.ckpt", "--modelspec")
    assert_one_clear_line(done, "--modelspec-field architecture=...", "--family sd2-base or sd2-v")


def test_of_an_unknown_file_all_that_is_demanded_must_be_said(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    said = ("architecture=mine/lora", "implementation=https://example.org", "title=A = B")
    options = [word for field in said for word in ("--modelspec-field", field)]

    assert audit("convert", tmp_path / "a.pt", *options[:2]).status == 2
    assert audit("convert", tmp_path / "a.pt", *options).status == 0

    assert spec(tmp_path / "a.safetensors") == {
        "sai_model_spec": "1.0.1",
        **dict(field.split("=", 1) for field in said),
        "hash_sha256": f"0x{sha256(data_of(tmp_path / 'a.safetensors')).hexdigest()}",
    }
    assert audit("verify", tmp_path / "a.pt", tmp_path / "a.safetensors").status == 0


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("titel=x", "'titel' is not one of architecture, "),
        ("hash_sha256=0x00", "'hash_sha256' is not one of"),
        ("author", "author says nothing"),
        ("author= ", "author says nothing"),
        ("date=yesterday", "is not a date such as 2026-11-25"),
        ("resolution=512", "is not a width and a height such as 512x512"),
        ("thumbnail=a.jpg", "is not an image such as data:image/"),
    ],
    ids=["a-slip", "ours", "no-value", "blank", "no-date", "one-side", "a-path"],
)
def test_what_the_specification_has_no_place_for_is_refused(
    tmp_path: Path, field: str, says: str
) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")

    done = audit("convert", tmp_path / "a.pt", "--modelspec-field", field)

    assert (done.status, done.out) == (2, "")
    assert says in done.err
    assert names_in(tmp_path) == {"a.pt"}
    with pytest.raises(ValueError, match=r"says nothing|is not "):
        Options(modelspec=((field.partition("=")[0], field.partition("=")[2]),))


@pytest.mark.parametrize(
    "option", [["--split"], ["--layout", "diffusers"]], ids=["split", "folder"]
)
def test_a_folder_is_not_described(tmp_path: Path, option: list[str]) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")

    done = audit("convert", tmp_path / "a.pt", "--modelspec", *option)

    assert (done.status, done.out) == (2, "")
    assert "--modelspec: describes one file" in done.err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base"}, "modelspec.architecture"),
        ({"modelspec.license": "mine"}, "modelspec.license"),
        ({"modelspec.hash_sha256": f"0x{'0' * 64}"}, "a SHA-256 of its data that they do not have"),
    ],
    ids=["another", "more", "hash"],
)
@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_a_file_that_says_something_else_is_not_proven(
    thin_family: Family, tmp_path: Path, change: dict[str, str], says: str
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    out = tmp_path / "a.safetensors"
    convert(tmp_path / "a.ckpt", out, WANTED)
    rewrite(out, load_file(out), metadata_of(out))
    assert verify(tmp_path / "a.ckpt", out).equal

    rewrite(out, load_file(out), metadata_of(out) | change)

    result = verify(tmp_path / "a.ckpt", out)
    assert not result.equal
    assert [says in problem for problem in result.problems] == [True]


def test_a_tensor_that_is_called_like_a_key_of_the_specification_is_no_alias(
    tmp_path: Path,
) -> None:
    shared = torch.ones(3)
    torch.save({"a": shared, "modelspec.title": shared}, tmp_path / "a.pt")

    convert(tmp_path / "a.pt", tmp_path / "a.safetensors")

    assert load_file(tmp_path / "a.safetensors").keys() == {"a", "modelspec.title"}
    assert verify(tmp_path / "a.pt", tmp_path / "a.safetensors").equal


def test_what_a_file_says_is_no_name_of_a_tensor_though_a_tensor_is_called_that(
    tmp_path: Path,
) -> None:
    said = (("architecture", "w"), ("implementation", "w"), ("title", "w"))
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "a.safetensors", Options(modelspec=said))
    folder = tmp_path / "folder" / "unet"
    folder.mkdir(parents=True)
    copy(tmp_path / "a.safetensors", folder / "diffusion_pytorch_model.safetensors")

    whole = inspect(tmp_path / "a.safetensors", with_hash=False)
    parts = inspect(tmp_path / "folder", with_hash=False)

    assert [tensor.key for tensor in whole.tensors] == ["w"]
    assert [tensor.key for tensor in parts.tensors] == ["unet/w"]
    assert len(whole.leftovers) == len(parts.leftovers) == 8


def test_every_architecture_named_is_of_a_family_there_is() -> None:
    named = {name: modelspec_ids(name) for name in FAMILIES}

    architectures = [ids.architecture for ids in named.values() if ids is not None]
    assert len(architectures) == len(set(architectures)) == 13
    assert named["sd2"] is None


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_people_are_told_what_the_file_says(thin_family: Family, tmp_path: Path) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    options = ["--modelspec-field", "title=\x1b[2J|x`", "--if-exists", "overwrite"]

    text = audit("convert", tmp_path / "a.ckpt", *options).out
    page = audit("convert", tmp_path / "a.ckpt", *options, "-f", "md").out
    proof = audit("verify", tmp_path / "a.ckpt", tmp_path / "a.safetensors").out

    for document in (text, page):
        assert "ModelSpec 1.0.1: architecture stable-diffusion-v1, implementation " in document
        assert "\x1b" not in document
    assert "made with --modelspec" in proof
