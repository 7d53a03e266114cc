"""A diffusers folder as a container: its files are one model, and each is judged as a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from catalogue.wrappings import safetensors_and_pickle
from forge import CALLS_SYSTEM, floats, safetensors_entry, safetensors_file

from ckptaudit.containers.folder import open_folder
from ckptaudit.errors import LimitExceeded, SourceUnreadable
from ckptaudit.policy import Judgement, Severity, judge
from ckptaudit.tensors import find_state_dict, misfits
from ckptaudit.vm import Limits

if TYPE_CHECKING:
    from pathlib import Path

HOMES = ("text_encoder", "unet", "vae")


def one_tensor(name: str = "w", **metadata: str) -> bytes:
    header: dict[str, object] = {name: safetensors_entry([2], 0, 8)}
    return safetensors_file({**header, "__metadata__": metadata}, floats(1, 2))


def put(folder: Path, file: str, data: bytes) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(data)


def judged(folder: Path, limits: Limits | None = None) -> Judgement:
    with open_folder(folder, limits) as container:
        return judge(container, misfits)


def test_a_folder_of_honest_files_is_clean(tmp_path: Path) -> None:
    for home in HOMES:
        put(tmp_path, f"{home}/model.safetensors", one_tensor())

    judgement = judged(tmp_path)

    assert (judgement.verdict, judgement.coverage.complete) == (Severity.CLEAN, True)


@pytest.mark.parametrize("limits", [Limits(records=2), Limits(nodes=10), Limits(opcodes=12)])
def test_what_one_file_of_a_folder_may_cost_three_may_not_cost_thrice(
    tmp_path: Path, limits: Limits
) -> None:
    put(tmp_path, "unet/model.safetensors", one_tensor())
    assert judged(tmp_path, limits).coverage.complete
    for home in HOMES:
        put(tmp_path, f"{home}/model.safetensors", one_tensor())

    with pytest.raises(LimitExceeded):
        judged(tmp_path, limits)


@pytest.mark.parametrize("count", [99_999_999_999, 10**200])
def test_a_piece_of_any_number_of_pieces_is_told_at_once(tmp_path: Path, count: int) -> None:
    """A name is not believed: to list the pieces that there should be would take all memory."""
    put(tmp_path, f"model-1-of-{count}.safetensors", one_tensor())

    with pytest.raises(SourceUnreadable, match=f"holds 1 of the {count} pieces"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "pieces",
    [("1-of-2", "3-of-2"), ("0-of-2", "1-of-2"), ("1-of-1", "2-of-3"), ("0-of-1",), ("1-of-0",)],
    ids=", ".join,
)
def test_pieces_are_whole_only_if_each_number_is_there(
    tmp_path: Path, pieces: tuple[str, ...]
) -> None:
    for piece in pieces:
        put(tmp_path, f"model-{piece}.safetensors", one_tensor(piece))

    with pytest.raises(SourceUnreadable, match="pieces of its weights"):
        open_folder(tmp_path)


def test_a_file_of_a_folder_is_judged_as_it_is_alone(tmp_path: Path) -> None:
    """What it asks for is told, and where that stands in the files laid end to end."""
    before = one_tensor()
    put(tmp_path, "unet/model.safetensors", before)
    put(tmp_path, "vae/model.safetensors", safetensors_and_pickle(CALLS_SYSTEM))

    judgement = judged(tmp_path)

    assert judgement.verdict is Severity.MALICIOUS
    (call,) = [each for each in judgement.findings if "posix.system('true')" in each.message]
    assert "vae/model.safetensors" in (call.record or "")
    assert (call.offset or 0) > len(before)
    assert "posix.system" in {f"{use.module}.{use.name}" for use in judgement.globals}


def test_a_name_may_stand_for_a_tensor_in_another_piece(tmp_path: Path) -> None:
    for number in (1, 2):
        data = one_tensor(f"w{number}", tied="w1")
        put(tmp_path, f"unet/model-{number}-of-2.safetensors", data)

    with open_folder(tmp_path) as container:
        found = find_state_dict(container)

    assert {view.key: view.storage.key for view in found.views}["unet/tied"] == "unet/w1"
    assert found.leftovers == ()


def test_no_metadata_of_a_piece_take_the_place_of_anothers(tmp_path: Path) -> None:
    for number, text in ((1, "mine"), (2, "yours")):
        data = one_tensor(f"w{number}", format="pt", note=text)
        put(tmp_path, f"unet/model-{number}-of-2.safetensors", data)

    with open_folder(tmp_path) as container:
        leftovers = find_state_dict(container).leftovers

    assert [each.what for each in leftovers] == ["'mine'", "'yours'"]
    assert len({each.path for each in leftovers}) == 2
