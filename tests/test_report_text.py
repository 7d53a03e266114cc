"""What a person reads: each answer says first what counts, and leaves nothing of it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from commands import audit
from forge import CALLS_SYSTEM, pickled, proto, torch_zip
from oracle import torch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A training checkpoint: weights, optimizer state, and what else a script keeps."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    path = tmp_path / "trained.pt"
    torch.save(
        {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "a.b": 1}, path
    )
    return path


def test_inspect_counts_what_lies_beside_the_weights_branch_by_branch(trained: Path) -> None:
    lines = audit("inspect", trained).out.splitlines()

    beside = [line.strip() for line in lines if "also holds" in line]
    # Two parameters, each with a step and two moments.
    assert "also holds optimizer: 6 tensors and 1 other value (is outside the state dict)" in beside
    assert "also holds ['a.b']: 1 (is outside the state dict)" in beside


@pytest.mark.parametrize("format_", ["text", "md"])
def test_a_file_without_a_pickle_is_not_said_to_have_one(
    tmp_path: Path, trained: Path, format_: str
) -> None:
    audit("convert", trained, "-o", tmp_path / "made.safetensors")

    done = audit("inspect", "-f", format_, tmp_path / "made.safetensors")

    assert "state dict: " in done.out
    assert "the whole file" in done.out
    assert "the root of the pickle" not in done.out


@pytest.mark.parametrize(("hostile", "said"), [(True, True), (False, False)])
def test_inspect_says_when_a_scan_would_have_something_to_say(
    tmp_path: Path, trained: Path, *, hostile: bool, said: bool
) -> None:
    path = trained
    if hostile:
        path = tmp_path / "bad.pt"
        path.write_bytes(torch_zip(pickled(CALLS_SYSTEM)))

    assert ("malicious: `ckptaudit scan` says why" in audit("inspect", path).out) is said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "made with the default options"),
        (["--precision", "keep", "--keep-names"], "made with --precision keep --keep-names"),
        (["--family", "vae"], "made with --family vae"),
        (["--other", "drop"], "2 not written, weight, ...: component other is dropped on request"),
    ],
    ids=["none", "some", "a-family", "a-dropped-part"],
)
def test_verify_says_which_options_it_followed(
    trained: Path, options: list[str], said: str
) -> None:
    output = trained.with_suffix(".safetensors")
    assert audit("convert", trained, *options).status == 0

    done = audit("verify", trained, output)

    assert done.status == 0
    assert said in done.out


def test_what_could_be_read_of_a_truncated_file_is_converted_on_request(tmp_path: Path) -> None:
    source, output = tmp_path / "cut.pt", tmp_path / "cut.safetensors"
    torch.save(
        {"first": torch.ones(4), "second": torch.ones(1000)},
        source,
        _use_new_zipfile_serialization=False,
    )
    source.write_bytes(source.read_bytes()[:-1])

    assert audit("convert", source).status == 2
    done = audit("convert", source, "--allow-unsafe")

    assert done.status == 0
    assert "cannot be read" in done.out
    assert "not read: " in done.out
    assert output.exists()


@pytest.mark.parametrize("format_", ["text", "md"])
def test_the_worst_is_shown_however_much_stands_before_it(tmp_path: Path, format_: str) -> None:
    path = tmp_path / "noisy.pt"
    path.write_bytes(torch_zip(pickled(proto(2) * 100, CALLS_SYSTEM)))

    lines = audit("scan", path, "-f", format_).out.splitlines()

    (at,) = (number for number, line in enumerate(lines) if "posix.system('true')" in line)
    assert "CKA109" in lines[at + 1]
    assert any(line.endswith("more; see --format json") for line in lines)
