"""The probes of loaders see what they are there to see: one that cannot fail proves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from loader_answers import Answer, prefixed
from loaders import FILES, LOADERS, clean, least, names_in, places, suits
from oracle import torch
from safetensors.torch import save_file

from ckptaudit.layouts import FAMILIES

if TYPE_CHECKING:
    from pathlib import Path

    from loader_answers import Place

SQUARE = torch.arange(9.0).reshape(3, 3)
KERNEL = torch.arange(4.0).reshape(2, 2, 1, 1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    save_file({"p.square": SQUARE, "p.kernel": KERNEL}, path)
    return path


@pytest.mark.parametrize(
    ("state", "different"),
    [
        ({"square": SQUARE}, []),
        ({"square": SQUARE.double()}, []),
        ({"square": SQUARE.T.contiguous()}, ["square"]),
        ({"square": SQUARE + 1}, ["square"]),
        ({"square": SQUARE.reshape(9)}, ["square"]),
        ({"square": SQUARE * float("nan")}, ["square"]),
    ],
    ids=["same", "in a wider type", "turned", "other values", "other shape", "garbage"],
)
def test_a_tensor_is_equal_only_in_shape_place_and_value(
    file: Path, state: dict[str, torch.Tensor], different: list[str]
) -> None:
    answer = Answer()

    answer.compare(state, [file], prefixed("p."))

    assert (answer.tensors, answer.different, answer.computed) == (1, different, [])


@pytest.mark.parametrize(
    ("place", "tensor"),
    [
        (("p.square", "rows", (1, 3)), SQUARE[1:3]),
        (("p.square", "transpose", None), SQUARE.T),
        (("p.kernel", "squeeze", None), KERNEL[:, :, 0, 0]),
    ],
    ids=["rows", "transpose", "squeeze"],
)
def test_what_is_done_to_a_tensor_on_its_way_is_done_before_it_is_compared(
    file: Path, place: Place, tensor: torch.Tensor
) -> None:
    answer = Answer()

    answer.compare({"right": tensor, "wrong": tensor + 1}, [file], lambda _: place)

    assert (answer.tensors, answer.different) == (2, ["wrong"])


def test_names_that_the_file_does_not_have_are_no_tensors_of_it(file: Path) -> None:
    answer = Answer()

    answer.compare({"square": SQUARE, "other": SQUARE}, [file], prefixed("p."))

    assert (answer.tensors, answer.computed) == (1, ["other"])


def test_by_value_a_turned_matrix_is_found_out_too(file: Path) -> None:
    answer = Answer()

    answer.compare_values({"a": SQUARE, "b": KERNEL[:, :, 0, 0], "c": SQUARE.T}, [file])

    assert (answer.tensors, answer.different) == (3, ["c"])


def test_what_a_loader_writes_is_compared_in_its_own_type(file: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.safetensors"
    save_file({"p.square": SQUARE.half(), "p.kernel": KERNEL + 1, "new": KERNEL}, made)
    answer = Answer()

    answer.compare_arrays(made, file)

    assert (answer.tensors, answer.different, answer.computed) == (2, ["p.kernel"], ["new"])


@pytest.mark.parametrize("fault", ["error", "different", "missing"])
def test_an_answer_is_clean_only_without_a_fault(fault: str) -> None:
    good = {"error": "", "different": [], "missing": [], "unexpected": ["known and harmless"]}

    assert clean(good)
    assert not clean({**good, fault: "stopped" if fault == "error" else ["a"]})


def test_a_model_that_took_nothing_from_a_file_is_noticed() -> None:
    """By the number of its tensors, if it has names that are not looked for."""
    whole = next(each for each in FILES if each.name == "sd1")

    assert least(whole) == 1130


def test_each_tensor_of_a_part_is_looked_for_under_the_name_it_has_there(tmp_path: Path) -> None:
    family = FAMILIES["sd1"]
    bare = "text_model.final_layer_norm.weight"
    save_file({bare: SQUARE}, tmp_path / "text.safetensors")
    split = next(each for each in FILES if each.split)
    names = names_in([tmp_path / "text.safetensors"])

    assert names == {bare}
    assert places(split, names)["text_encoder"][bare] == (bare, "identity", None)
    whole = {entry.key for entry in family.inventory()}
    assert places(split, whole)["text_encoder"][bare][0] == f"cond_stage_model.transformer.{bare}"


def test_every_loader_is_given_a_file_that_it_must_find_wrong() -> None:
    """One that only says what a file is cannot; and every file is given to some loader."""
    wrong = [each for each in FILES if each.spoilt]

    opening = [each for each in LOADERS if each.opens]
    assert all(any(suits(loader, each) for each in wrong) for loader in opening)
    assert len(LOADERS) - len(opening) == 1
    assert all(any(suits(loader, each) for loader in LOADERS) for each in FILES)
    assert {each.family for each in FILES} <= FAMILIES.keys()
