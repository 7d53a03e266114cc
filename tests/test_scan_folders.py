"""A scan of a diffusers folder looks at each file in it, and says of each what it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from catalogue.case import BENIGN, STORED
from commands import assert_one_clear_line, audit
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from forge import CALLS_SYSTEM, floats, pickled, safetensors_entry, safetensors_file, torch_zip
from sarif_pydantic import Sarif

from ckptaudit import scan_file_path

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = Path(__file__).parents[1] / "docs" / "report.schema.json"
HARMLESS = safetensors_file({"w": safetensors_entry([2], 0, 8)}, floats(1, 2))
HARMFUL = torch_zip(pickled(CALLS_SYSTEM))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two parts, one of them pickled, with what such folders have beside those."""
    monkeypatch.chdir(tmp_path)
    for file, data in {
        "model_index.json": b'{"unet": ["diffusers", "A"]}',
        "README.md": b"# A model",
        "tokenizer/merges.txt": b"#version: 0.2\ni n\nt h\n",
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": HARMLESS,
        "vae/diffusion_pytorch_model.bin": torch_zip(BENIGN, STORED),
    }.items():
        path = tmp_path / "model" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "model"


def scanned(*args: object) -> Any:
    (seen,) = audit("scan", *args, "-f", "json").files
    return seen


def test_a_folder_of_harmless_files_is_clean_and_read_completely(folder: Path) -> None:
    done = audit("scan", folder)

    assert done.status == 0, done
    first, *rest = done.out.splitlines()
    assert first == f"{folder}: clean, coverage complete"
    assert "  note: of no format that is read: README.md and 3 others" in rest
    converted = audit("inspect", folder, "-f", "json").files[0]
    assert scanned(folder)["sha256"] == converted["sha256"], "one folder, one name"


@pytest.mark.parametrize(
    "file",
    [
        "vae/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.bin",
        "old.ckpt",
        "tokenizer/vocab.json",
        "unet/diffusion_pytorch_model.safetensors",
    ],
    ids=["a-part", "another-format", "a-variant", "another-model", "another-name", "a-false-name"],
)
def test_whatever_file_does_something_the_folder_does_and_it_is_named(
    folder: Path, file: str
) -> None:
    """Loaders differ in which of several files they prefer."""
    (folder / file).write_bytes(HARMFUL)

    done = audit("scan", folder, "-f", "json")

    assert done.status == 1
    (seen,) = done.files
    assert seen["verdict"] == "malicious"
    (call,) = [each for each in seen["findings"] if "posix.system('true')" in each["message"]]
    assert call["record"] == f"{file}!archive/data.pkl"
    assert scan_file_path(folder).infected_files == 1


def becomes_link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def becomes_program(path: Path) -> None:
    path.with_name("pipeline.py").write_text("import os")


def becomes_archive(path: Path) -> None:
    path.write_bytes(b"Rar!\x1a\x07\x01\x00" + bytes(40))


def becomes_noise(path: Path) -> None:
    path.with_name("tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40))


def becomes_half(path: Path) -> None:
    path.write_bytes(HARMFUL[: len(HARMFUL) // 2])


@pytest.mark.parametrize(
    "happens",
    [
        os.mkfifo,
        becomes_link_to_nowhere,
        becomes_program,
        becomes_archive,
        becomes_half,
        becomes_noise,
    ],
)
@pytest.mark.parametrize("file", ["unet/thing.bin", "thing"], ids=["weights", "something"])
def test_what_cannot_be_looked_at_is_a_gap_and_the_folder_not_clean(
    folder: Path, happens: Callable[[Path], None], file: str
) -> None:
    happens(folder / file)

    done = audit("scan", folder, "-f", "json")

    (seen,) = done.files
    assert done.status == 2
    assert seen["verdict"] != "clean"
    assert seen["coverage"]["gaps"]


def test_a_damaged_part_hides_no_other(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(HARMLESS[:-1])
    (folder / "vae/diffusion_pytorch_model.bin").write_bytes(HARMFUL)

    done = audit("scan", folder, "-f", "json")

    assert done.status == 1
    gaps = done.files[0]["coverage"]["gaps"]
    assert "unet/diffusion_pytorch_model.safetensors" in {gap["record"] for gap in gaps}
    assert audit("convert", folder, "-o", folder.parent / "b.safetensors").status == 2


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "model_index.json"])
def test_what_is_missing_or_cannot_be_read_hides_no_other(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).symlink_to("nowhere")
    (folder / "vae/diffusion_pytorch_model.bin").write_bytes(HARMFUL)
    assert audit("scan", folder).status == 1
    (folder / file).unlink()
    if file != "model_index.json":
        done = audit("scan", folder, "-f", "json")
        assert done.status == 1
        (gap,) = [gap for gap in done.files[0]["coverage"]["gaps"] if not gap["record"]]
        assert "has no weights of the unet" in gap["reason"]

    (folder / "vae/diffusion_pytorch_model.bin").write_bytes(torch_zip(BENIGN, STORED))

    assert audit("scan", folder).status == (0 if file == "model_index.json" else 2)


def test_of_a_folder_of_no_weights_what_else_is_there_is_judged(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "vae/diffusion_pytorch_model.bin").unlink()
    (folder / "old.ckpt").write_bytes(HARMFUL)

    assert audit("scan", folder).status == 1


@pytest.mark.parametrize("file", ["unet/old/model.ckpt", ".cache/a/b/c/thing"])
def test_a_folder_is_looked_into_however_deep_it_lies(folder: Path, file: str) -> None:
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_bytes(HARMFUL)

    done = audit("scan", folder, "-f", "json")

    assert done.status == 1
    assert f"{file}!archive/data.pkl" in {each["record"] for each in done.files[0]["findings"]}


@pytest.mark.parametrize(
    ("link", "to"), [("unet/x", "/"), ("x", ".."), ("x", "."), ("unet/old/x", "../..")]
)
def test_what_only_a_link_to_a_folder_leads_to_is_a_gap(folder: Path, link: str, to: str) -> None:
    """It may lead to all there is, or back."""
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(to)

    done = audit("scan", folder, "-f", "json")

    assert done.status == 2
    assert any("behind a link" in gap["reason"] for gap in done.files[0]["coverage"]["gaps"])


@pytest.mark.parametrize(
    "piece",
    ["../../evil.bin", "../../gone.bin", "/nowhere/evil.bin", "../side/../../evil.bin"],
    ids=["outside", "outside-and-not-here", "absolute", "by-a-detour"],
)
def test_an_index_that_sends_a_loader_out_of_the_folder_is_a_gap(folder: Path, piece: str) -> None:
    (folder.parent / "evil.bin").write_bytes(HARMFUL)
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": piece}}))

    done = audit("scan", folder, "-f", "json")

    assert done.status == 2
    (gap,) = done.files[0]["coverage"]["gaps"]
    assert gap["record"] == "unet/diffusion_pytorch_model.safetensors.index.json"
    assert f"not in the folder: {piece}" in gap["reason"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"weight_map": {"v": "diffusion_pytorch_model.safetensors", "w": "gone.bin"}}),
        json.dumps({"weight_map": {"w": "../vae/diffusion_pytorch_model.bin"}}),
        json.dumps({"weight_map": {"w": 3, "v": "\0", "u": "\ud800"}}),
        json.dumps({"weight_map": []}),
        "[" * 99_999,
        "{",
    ],
    ids=["in-it", "beside", "strange-names", "no-map", "deep", "half"],
)
def test_any_other_index_of_weights_says_nothing_of_them(folder: Path, text: str) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(text)

    assert audit("scan", folder).status == 0


def test_what_is_permitted_in_a_folder_holds_until_a_byte_of_it_differs(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(HARMFUL)
    before = scanned(folder)["sha256"]

    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(HARMFUL + b"\0")

    assert scanned(folder)["sha256"] != before


@pytest.mark.parametrize("is_harmful", [False, True], ids=["harmless", "harmful"])
def test_every_format_is_valid_for_a_folder(folder: Path, *, is_harmful: bool) -> None:
    if is_harmful:
        (folder / "vae/diffusion_pytorch_model.bin").write_bytes(HARMFUL)
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))

    done = audit("scan", f"{folder}/", "-f", "sarif", "--sbom", "bom.json")

    Sarif.model_validate_json(done.out)
    (run,) = json.loads(done.out)["runs"]
    assert run["artifacts"][0]["roles"] == ["analysisTarget", "directory"]
    assert run["artifacts"][0]["location"]["uri"] == "model"
    named = {artifact["location"]["uri"] for artifact in run["artifacts"]}
    assert ("vae/diffusion_pytorch_model.bin" in named) is is_harmful
    bom = Path("bom.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom) is None
    assert json.loads(bom)["components"][0]["name"] == "model"
    (line,) = audit("scan", folder, "-f", "jsonl").out.splitlines()
    validator.validate(json.loads(line))
    assert "vae/diffusion_pytorch_model.bin" in audit("scan", folder, "-f", "md").out or (
        not is_harmful
    )


def test_a_baseline_knows_a_folder(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.bin").write_bytes(HARMFUL)
    assert audit("scan", folder, "--json", "base.json").status == 1

    assert audit("scan", folder, "--baseline", "base.json").status == 0


def test_a_folder_of_no_diffusers_model_is_told_as_before(folder: Path) -> None:
    assert_one_clear_line(audit("scan", folder / "tokenizer"), "is a directory", "/*.ckpt")
