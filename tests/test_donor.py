"""An autoencoder in another model: which fits where, and what its tensors are called there."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptaudit.layouts import FAMILIES, Component, Donor, Spec, detect, has_vae, place
from ckptaudit.layouts.folder import folder_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptaudit.layouts import Detection, Entry, Family

    Specs = Mapping[str, Spec]

WITH_VAE = [
    family
    for family in FAMILIES.values()
    if any(part.component is Component.VAE for part in family.parts)
]
ALONE = FAMILIES["vae"]
# One of each kind of autoencoder, alone and in a model.
GIVERS = ("sd1", "sdxl", "sd2-upscaler", "ldm-class", "vae", "vae-f4")


def vae_of(family: Family) -> dict[str, Entry]:
    entries = family.inventory()
    return {entry.key: entry for entry in entries if entry.component is Component.VAE}


def specs(family: Family) -> dict[str, Spec]:
    return {entry.key: Spec(entry.shape, entry.dtype) for entry in family.inventory()}


def in_folder(family: Family, home: str = "") -> dict[str, Spec]:
    """The autoencoder as diffusers has it."""
    found = {}
    for entry in vae_of(family).values():
        for there in entry.diffusers:
            shape = entry.shape[:2] if there.op == "squeeze" else entry.shape
            found[home + folder_key(ALONE, there)] = Spec(shape, entry.dtype)
    return found


@cache
def model(name: str) -> Detection:
    return detect(specs(FAMILIES[name]), name)


@cache
def donor_in(name: str) -> Donor:
    return Donor.among(specs(FAMILIES[name]))


def architecture(family: Family) -> object:
    return next(part.architecture for part in family.parts if part.component is Component.VAE)


def sides(donor: Donor, model: Detection, tensors: Specs) -> dict[str, str]:
    """By name in the model, the key in the donor."""
    pairs = zip(tensors, donor.placed(model), strict=True)
    return {placed.name: key for key, placed in pairs if placed is not None}


@pytest.mark.parametrize(
    ("giver", "taker"),
    list(product(map(FAMILIES.__getitem__, GIVERS), WITH_VAE)),
    ids=lambda family: family.name,
)
def test_an_autoencoder_fits_where_the_same_one_was_and_gets_its_names(
    giver: Family, taker: Family
) -> None:
    tensors, donor = specs(giver), donor_in(giver.name)

    objections = list(donor.objections(model(taker.name)))

    is_built_alike = architecture(giver) == architecture(taker)
    is_a_guess = bool(giver.guess or taker.guess)
    assert (not objections) == (
        is_built_alike and (is_a_guess or giver.scaling == taker.scaling)
    ), objections
    if not objections:
        named = sides(donor, model(taker.name), tensors)
        wanted = vae_of(taker)
        assert named.keys() == wanted.keys()
        assert {name: tensors[key].shape for name, key in named.items()} == {
            name: entry.shape for name, entry in wanted.items()
        }
        doubt = donor.doubt(model(taker.name))
        assert bool(doubt) == (bool(giver.guess) and giver != taker)


@pytest.mark.parametrize(
    "tensors",
    [
        in_folder(ALONE),
        {f"vae/{key}": spec for key, spec in in_folder(ALONE).items()},
        {f"vae/{key}": spec for key, spec in in_folder(ALONE).items()}
        | {"transformer/x": Spec((3,), "float32")},
        {f"first_stage_model.{key}": spec for key, spec in specs(ALONE).items()}
        | {"model.diffusion_model.joint_blocks.x": Spec((3,), "float32")},
    ],
    ids=["a file of diffusers", "a folder in a folder", "a strange folder", "a strange model"],
)
def test_it_is_found_by_itself_or_where_it_lies_in_a_model_that_nobody_knows(
    tensors: dict[str, Spec],
) -> None:
    donor = Donor.among(tensors)

    assert list(donor.objections(model("sd1"))) == []
    assert sides(donor, model("sd1"), tensors).keys() == vae_of(FAMILIES["sd1"]).keys()
    assert [p.key for p in donor.placements] == list(tensors)


@given(
    order=st.randoms(use_true_random=False),
    lost=st.sets(st.sampled_from(sorted(vae_of(ALONE))), max_size=3),
    bent=st.sets(st.sampled_from(sorted(vae_of(ALONE))), max_size=2),
    more=st.dictionaries(st.text(max_size=9), st.tuples(st.integers(0, 9)), max_size=5),
    home=st.sampled_from(["", "first_stage_model."]),
)
@settings(max_examples=200)
def test_it_is_complete_and_in_shape_or_it_is_none(
    order: object,
    lost: set[str],
    bent: set[str],
    more: dict[str, tuple[int, ...]],
    home: str,
) -> None:
    assert hasattr(order, "shuffle")
    tensors = {key: Spec(shape, "float32") for key, shape in more.items()}
    for key, spec in specs(ALONE).items():
        if key not in lost:
            tensors[home + key] = Spec((7, 7), "float32") if key in bent else spec
    keys = list(tensors)
    order.shuffle(keys)
    shuffled = {key: tensors[key] for key in keys}

    donor = Donor.among(shuffled)

    assert (not list(donor.objections(model("sd1")))) == (not lost | bent)
    assert donor.detection == Donor.among(tensors).detection


@pytest.mark.parametrize("name", FAMILIES)
def test_only_a_family_with_an_autoencoder_has_room_for_one(name: str) -> None:
    assert has_vae(model(name)) == (FAMILIES[name] in WITH_VAE)


def test_what_a_folder_of_a_known_family_is_named_makes_no_difference() -> None:
    """A model in a folder gets the names of the original layout, as one in a file does."""
    there = {
        folder_key(FAMILIES["sd1"], place): Spec(
            entry.shape[:2] if place.op == "squeeze" else entry.shape, entry.dtype
        )
        for entry in FAMILIES["sd1"].inventory()
        for place in entry.diffusers
    }
    donor, taken = Donor.among(specs(ALONE)), detect(there)

    assert taken.variant == "diffusers"
    assert sides(donor, taken, specs(ALONE)).keys() == {
        placement.name for placement in place(taken, there)
        if placement.component is Component.VAE
    }  # fmt: skip
