"""A diffusers folder as a container: its files are one model, and each is judged as a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from catalogue.wrappings import safetensors_and_pickle
from forge import CALLS_SYSTEM, floats, safetensors_entry, safetensors_file
from oracle import torch

from ckptaudit.containers.folder import open_folder
from ckptaudit.errors import CkptauditError, LimitExceeded, SourceUnreadable
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

    storages = {view.key: view.storage.key for view in found.views}
    assert storages["unet/tied"] == storages["unet/w1"]
    assert storages["unet/w2"] != storages["unet/w1"]
    assert found.leftovers == ()


def test_no_metadata_of_a_piece_take_the_place_of_anothers(tmp_path: Path) -> None:
    for number, text in ((1, "mine"), (2, "yours")):
        data = one_tensor(f"w{number}", format="pt", note=text)
        put(tmp_path, f"unet/model-{number}-of-2.safetensors", data)

    with open_folder(tmp_path) as container:
        leftovers = find_state_dict(container).leftovers

    assert [each.what for each in leftovers] == ["'mine'", "'yours'"]
    assert len({each.path for each in leftovers}) == 2


def keys_in(folder: Path) -> set[str]:
    with open_folder(folder) as container:
        return {view.key for view in find_state_dict(container).views}


@pytest.mark.parametrize(
    "home",
    ["unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", "controlnet_1"],
)
@pytest.mark.parametrize("told_by", ["its settings", "the index"])
def test_a_part_that_must_have_weights_and_has_none_is_told(
    tmp_path: Path, home: str, told_by: str
) -> None:
    """What is left would be converted as a model of no known family, and nobody would see why."""
    put(tmp_path, "other/model.safetensors", one_tensor())
    if told_by == "its settings":
        put(tmp_path, f"{home}/config.json", b"{}")
    else:
        index = {"_class_name": "A", home: ["diffusers", "B"]}
        put(tmp_path, "model_index.json", json.dumps(index).encode())

    with pytest.raises(SourceUnreadable, match=f"has no weights of the {home} that are read"):
        open_folder(tmp_path)
    put(tmp_path, f"{home}/diffusion_pytorch_model.safetensors", one_tensor())
    assert keys_in(tmp_path) == {"other/w", f"{home}/w"}


def test_what_has_settings_only_is_not_missed(tmp_path: Path) -> None:
    parts = ["scheduler", "tokenizer", "feature_extractor", "safety_checker"]
    index: dict[str, object] = {part: ["transformers", "A"] for part in parts}
    index |= {"vae": [None, None], "requires_safety_checker": True, "_class_name": "B"}
    put(tmp_path, "model_index.json", json.dumps(index).encode())
    put(tmp_path, "scheduler/scheduler_config.json", b"{}")
    put(tmp_path, "tokenizer/config.json", b"{}")
    put(tmp_path, "unet/model.safetensors", one_tensor())

    assert keys_in(tmp_path) == {"unet/w"}
    put(tmp_path, "safety_checker/config.json", b"{}")
    with pytest.raises(SourceUnreadable, match="has no weights of the safety_checker"):
        open_folder(tmp_path)


def test_settings_alone_are_no_model(tmp_path: Path) -> None:
    put(tmp_path, "config.json", b"{}")

    with pytest.raises(SourceUnreadable, match="has no weights that are read"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "index",
    [b"", b"{", b"[1]", b"[" * 99_999, b"\xff", b'{"a": 1' + b" " * 1_000_000 + b"}"],
    ids=["empty", "cut-short", "a-list", "too-deep", "no-text", "too-long"],
)
def test_an_index_that_is_none_is_one_error(tmp_path: Path, index: bytes) -> None:
    put(tmp_path, "unet/model.safetensors", one_tensor())
    put(tmp_path, "model_index.json", index)

    with pytest.raises(CkptauditError, match=r"model_index\.json: "):
        open_folder(tmp_path)


def save(folder: Path, file: str, tensors: object, **options: bool) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    torch.save(tensors, folder / file, **options)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "names",
    [
        ("diffusion_pytorch_model.bin",),
        ("pytorch_model.bin",),
        ("pytorch_model.fp16.bin",),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
        ("pytorch_model.fp16-1-of-2.bin", "pytorch_model.fp16-2-of-2.bin"),
        ("pytorch_model-1-of-2.fp16.bin", "pytorch_model-2-of-2.fp16.bin"),
    ],
    ids=", ".join,
)
def test_pickled_weights_are_parts_of_the_folder(
    tmp_path: Path, names: tuple[str, ...], *, is_zip: bool
) -> None:
    """Each element is where the files laid end to end have it."""
    put(tmp_path, "a/model.safetensors", one_tensor())
    expected = {}
    for number, name in enumerate(names):
        tensor = torch.arange(6.0).reshape(2, 3) + number
        expected[f"unet/w{number}"] = expected[f"unet/turned{number}"] = tensor
        held = {f"w{number}": tensor, f"turned{number}": tensor.clone().t().contiguous().t()}
        save(tmp_path, f"unet/{name}", {"state_dict": held}, _use_new_zipfile_serialization=is_zip)

    with open_folder(tmp_path) as container:
        found = {view.key: view for view in find_state_dict(container).views}
        assert found.keys() == {"a/w", *expected}
        for key, tensor in expected.items():
            view = found[key]
            start = view.storage.offset + view.offset * view.dtype.itemsize
            data = container.bytes_of(view.storage).read_at(start, view.nbytes)
            read = torch.frombuffer(bytearray(data), dtype=torch.float32)
            assert torch.equal(read.as_strided((2, 3), view.stride), tensor)


def test_of_a_part_in_both_formats_the_safetensors_are_read_and_the_other_named(
    tmp_path: Path,
) -> None:
    put(tmp_path, "unet/diffusion_pytorch_model.safetensors", one_tensor())
    put(tmp_path, "unet/diffusion_pytorch_model.fp16.safetensors", one_tensor())
    save(tmp_path, "unet/diffusion_pytorch_model.bin", {"v": torch.ones(2)})

    with open_folder(tmp_path) as container:
        assert {view.key for view in find_state_dict(container).views} == {"unet/w"}
        (note,) = container.notes

    assert note.endswith("were not read: unet/diffusion_pytorch_model.bin and 1 other")


def test_a_variant_is_read_where_there_is_nothing_else_whatever_its_format(tmp_path: Path) -> None:
    """As diffusers itself would: who names no variant gets none while there is another."""
    put(tmp_path, "unet/diffusion_pytorch_model.fp16.safetensors", one_tensor())
    assert keys_in(tmp_path) == {"unet/w"}
    save(tmp_path, "unet/diffusion_pytorch_model.bin", {"v": torch.ones(2)})

    assert keys_in(tmp_path) == {"unet/v"}


def test_a_pickle_in_a_folder_is_judged_and_named(tmp_path: Path) -> None:
    put(tmp_path, "unet/model.safetensors", one_tensor())
    put(tmp_path, "vae/diffusion_pytorch_model.bin", CALLS_SYSTEM)

    judgement = judged(tmp_path)

    assert judgement.verdict is Severity.MALICIOUS
    (call,) = [each for each in judgement.findings if "posix.system('true')" in each.message]
    assert call.record == "vae/diffusion_pytorch_model.bin!pickle"


def test_what_of_a_pickle_is_no_tensor_is_a_leftover_of_its_file(tmp_path: Path) -> None:
    save(tmp_path, "unet/diffusion_pytorch_model.bin", {"w": torch.ones(2), "step": 3})

    with open_folder(tmp_path) as container:
        (left,) = find_state_dict(container).leftovers

    assert left.path.startswith("unet/diffusion_pytorch_model.bin: ")
