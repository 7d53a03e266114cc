"""Reports are what their published schema says, for every verb and every kind of answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from commands import audit
from forge import CALLS_SYSTEM, pickled, torch_zip
from hypothesis import given
from hypothesis import strategies as st
from oracle import Made, torch, write_sd1

from ckptaudit.report import Failure, printable, to_json

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_published_schema_is_current() -> None:
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, ROOT / "scripts" / "make_schema.py", "--check"],
        capture_output=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, b"")


def test_the_published_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    made = Made(lightning=True, plants=("overflow:3", "nan:2"), aliases=("3",))
    write_sd1(folder / "sd1.ckpt", made, ema=True, variant="novelai")
    torch.save({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.complex128)}, folder / "odd.pt")
    (folder / "bad.pt").write_bytes(torch_zip(pickled(CALLS_SYSTEM)))
    (folder / "none.pt").write_bytes(b"<html>")
    return folder


def check(document: Any) -> None:
    for error in VALIDATOR.iter_errors(document):
        raise AssertionError(error.message)


@pytest.mark.parametrize("every", [[], ["--all"]], ids=["around-findings", "all"])
def test_explanations_follow_the_schema_however_much_they_list(
    every: list[str], files: Path
) -> None:
    for path in sorted(files.iterdir()):
        done = audit("explain", path, "--format", "json", *every)

        document = json.loads(done.out)
        check(document)
        assert len(document["files"]) + len(document["errors"]) == 1


def test_listing_all_changes_nothing_else_of_an_explanation(files: Path) -> None:
    whole, part = (
        json.loads(audit("explain", files / "bad.pt", "--format", "json", *every).out)
        for every in (["--all"], [])
    )

    pickles = [found for document in (whole, part) for found in document["files"][0]["pickles"]]
    listed, excerpt = (found.pop("instructions") for found in pickles)
    assert whole == part
    assert len(listed) == pickles[0]["opcodes"]
    assert [line for line in listed if line in excerpt] == excerpt


@pytest.mark.parametrize("verb", ["scan", "inspect", "convert"])
def test_real_reports_follow_the_schema(verb: str, files: Path, tmp_path: Path) -> None:
    options = ["-o", f"{tmp_path}/"] if verb == "convert" else []

    done = audit(verb, *sorted(files.iterdir()), "--format", "json", *options)

    document = json.loads(done.out)
    check(document)
    assert document["errors"]
    assert len(document["files"]) + len(document["errors"]) == 4
    for report in tmp_path.glob("*.report.json"):
        check(json.loads(report.read_bytes()))
    if verb == "convert":
        check(json.loads(audit(verb, files / "sd1.ckpt", "--dry-run", "--format", "json").out))
        check(
            json.loads(
                audit(
                    "verify", files / "sd1.ckpt", tmp_path / "odd.safetensors", "--format", "json"
                ).out
            )
        )


@pytest.mark.parametrize(
    "lie",
    [
        {"schema_version": "2"},
        {"files": [{"path": "x"}]},
        {"errors": [{"path": "x"}]},
        {"more": 1},
    ],
    ids=["version", "file", "error", "field"],
)
def test_what_is_no_report_does_not_follow_the_schema(lie: dict[str, Any]) -> None:
    document = json.loads(to_json([]))
    check(document)

    with pytest.raises(AssertionError):
        check(document | lie)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_says_what_was_said_without_a_character_a_terminal_would_obey(text: str) -> None:
    written = to_json([], [Failure(text, text)])

    assert json.loads(written)["errors"] == [{"path": text, "error": text}]
    assert all(char.isprintable() for char in written.decode().replace("\n", ""))


@given(st.text())
def test_printable_text_is_printable(text: str) -> None:
    assert printable(text).isprintable()
