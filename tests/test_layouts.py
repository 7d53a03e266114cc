"""What keys mean: the grammar against the architectures, and the laws of detection.

The ground truth was made by instantiating the original architectures and by running
diffusers' own conversion; ``shared/inventories`` beside the checkout holds it in full,
``tests/data/layouts.json`` its digests, so that a plain clone tests the same facts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptaudit.dtypes import by_name
from ckptaudit.layouts import (
    FAMILIES,
    UNKNOWN,
    Component,
    Detection,
    Entry,
    Spec,
    count,
    detect,
    place,
)
from ckptaudit.layouts.families.sd1 import SD1_UNET
from ckptaudit.layouts.families.sd2 import SD2_UNET
from ckptaudit.layouts.families.sdxl import SDXL_UNET

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from random import Random

    from ckptaudit.layouts.unet import UNet as UNetArchitecture

INVENTORIES = Path(__file__).parents[2] / "shared" / "inventories"
DIGESTS = json.loads((Path(__file__).parent / "data" / "layouts.json").read_text())

SD1 = FAMILIES["sd1"]
UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
BARE_TEXT = "cond_stage_model.transformer."
SIGNS = {sign.key for sign in SD1.signs}

needs_inventories = pytest.mark.skipif(
    not INVENTORIES.is_dir(), reason="the full inventories are not beside this checkout"
)


def specs(entries: Iterable[Entry]) -> dict[str, Spec]:
    """The state dict of a file that holds just these tensors."""
    return {entry.key: Spec(entry.shape, entry.dtype) for entry in entries}


def read(name: str) -> Any:
    return json.loads((INVENTORIES / f"{name}.json").read_text())


def load(name: str) -> dict[str, Spec]:
    """An inventory as the state dict it was made from."""
    return {k: Spec(tuple(v["shape"]), v["dtype"]) for k, v in read(name).items()}


def digest(lines: Iterable[str]) -> dict[str, Any]:
    """How ``tests/data/layouts.json`` keeps a list: its length, sha256 of its sorted lines."""
    text = sorted(f"{line}\n" for line in lines)
    return {"tensors": len(text), "sha256": hashlib.sha256("".join(text).encode()).hexdigest()}


def listing(tensors: Mapping[str, Spec]) -> list[str]:
    return [f"{key} {spec.dtype} {list(spec.shape)}" for key, spec in tensors.items()]


COMPLETE = specs(SD1.inventory())
WITH_EMA = specs(SD1.inventory(ema=True))
NOVELAI = specs(SD1.inventory(variant="novelai"))

INVENTORIES_OF_SD1 = {
    "ldm_sd15": COMPLETE,
    "ldm_sd15_with_ema": WITH_EMA,
    "ldm_sd15_nai_variant": NOVELAI,
}


@pytest.mark.parametrize("name", INVENTORIES_OF_SD1)
def test_the_grammar_generates_exactly_the_tensors_of_the_architecture(name: str) -> None:
    assert digest(listing(INVENTORIES_OF_SD1[name])) == DIGESTS[name]


@needs_inventories
@pytest.mark.parametrize("name", INVENTORIES_OF_SD1)
def test_the_inventory_is_in_the_order_of_the_original_files(name: str) -> None:
    assert list(INVENTORIES_OF_SD1[name].items()) == list(load(name).items())


@needs_inventories
def test_an_ema_copy_can_take_the_place_of_its_weight_in_diffusers() -> None:
    places = {entry.key: entry.diffusers for entry in SD1.inventory()}
    truth = read("map_ldm_sd15_with_ema_extract_ema")["components"]["unet"]

    found = {
        places[entry.of][0].key: entry.key
        for entry in SD1.inventory(ema=True)
        if entry.of is not None
    }

    assert found == {key: v["source"] for key, v in truth.items()}


@pytest.mark.parametrize(
    ("key", "shape", "destination"),
    [
        (
            "model.diffusion_model.input_blocks.4.0.skip_connection.weight",
            (640, 320, 1, 1),
            ("identity", "down_blocks.1.resnets.0.conv_shortcut.weight"),
        ),
        (
            "model.diffusion_model.output_blocks.2.1.conv.weight",
            (1280, 1280, 3, 3),
            ("identity", "up_blocks.0.upsamplers.0.conv.weight"),
        ),
        (
            "model.diffusion_model.output_blocks.5.2.conv.weight",
            (1280, 1280, 3, 3),
            ("identity", "up_blocks.1.upsamplers.0.conv.weight"),
        ),
        (
            "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight",
            (128, 256, 1, 1),
            ("identity", "decoder.up_blocks.3.resnets.0.conv_shortcut.weight"),
        ),
        (
            "first_stage_model.encoder.mid.attn_1.proj_out.weight",
            (512, 512, 1, 1),
            ("squeeze", "encoder.mid_block.attentions.0.to_out.0.weight"),
        ),
        (
            "cond_stage_model.transformer.text_model.embeddings.position_ids",
            (1, 77),
            ("identity", "text_model.embeddings.position_ids"),
        ),
        ("posterior_mean_coef2", (1000,), None),
        ("model_ema.diffusion_modeloutput_blocks30skip_connectionbias", (1280,), None),
    ],
    ids=[
        "channels-change",
        "upsampler-without-attention",
        "upsampler-after-attention",
        "decoder-counts-backwards",
        "convolution-becomes-linear",
        "position-ids",
        "schedule",
        "ema",
    ],
)
def test_an_entry_spelled_out(
    key: str, shape: tuple[int, ...], destination: tuple[str, str] | None
) -> None:
    (entry,) = (entry for entry in SD1.inventory(ema=True) if entry.key == key)

    assert entry.shape == shape
    assert [(there.op, there.key) for there in entry.diffusers] == (
        [] if destination is None else [destination]
    )


def test_every_inventory_names_each_tensor_once_in_a_known_dtype() -> None:
    for variant in (None, "novelai"):
        entries = SD1.inventory(ema=True, variant=variant)
        assert len({entry.key for entry in entries}) == len(entries)
        assert {there.rows for entry in entries for there in entry.diffusers} == {None}
        assert all(by_name(entry.dtype) for entry in entries)


def test_no_key_means_one_name_canonically_and_another_in_a_variant() -> None:
    entries = SD1.inventory(ema=True)
    for variant in SD1.variants:
        for entry in entries:
            spelled = variant.spell(entry.key)
            assert spelled == entry.key or spelled not in WITH_EMA


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="no variant 'anything'"):
        SD1.inventory(variant="anything")


@pytest.mark.parametrize("tensors", [COMPLETE, WITH_EMA], ids=["pruned", "with-ema"])
def test_a_complete_file_is_recognised_and_lacks_nothing(tensors: dict[str, Spec]) -> None:
    found = detect(tensors)

    assert (found.family, found.variant) == ("sd1", None)
    assert all(p.name == p.key for p in place(found, tensors))
    assert all(
        row.present == row.expected and not (row.missing or row.unexpected or row.misshapen)
        for row in count(found, tensors)
    )


def test_the_evidence_names_keys_and_shapes() -> None:
    evidence = detect(COMPLETE).evidence

    assert evidence[0].startswith(f"{UNET}input_blocks.0.0.weight is [320, 4, 3, 3]: ")
    assert "248 of the 248 vae tensors of Stable Diffusion 1.x are there in their shape" in evidence


def test_novelai_keys_get_the_name_that_loaders_look_for() -> None:
    found = detect(NOVELAI)

    assert (found.family, found.variant) == ("sd1", "novelai")
    assert {p.name for p in place(found, NOVELAI)} == set(COMPLETE)
    assert {row.component: row.present for row in count(found, NOVELAI)} == {
        Component.UNET: 686,
        Component.VAE: 248,
        Component.TEXT_ENCODER: 197,
        Component.SCHEDULE: 12,
    }


def test_of_two_spellings_the_canonical_one_has_the_name_in_either_order() -> None:
    for tensors in ({**NOVELAI, **COMPLETE}, {**COMPLETE, **NOVELAI}):
        found = detect(tensors)
        placed = {p.key: p for p in place(found, tensors)}

        assert (found.family, found.variant) == ("sd1", None)
        stray = placed[f"{BARE_TEXT}final_layer_norm.bias"]
        assert (stray.component, stray.name) == (Component.OTHER, stray.key)
        assert stray.of == f"{TEXT}final_layer_norm.bias"
        assert placed[stray.of].component is Component.TEXT_ENCODER


def test_a_nested_state_dict_is_other_and_says_what_it_repeats() -> None:
    nested = {f"state_dict.{key}": spec for key, spec in NOVELAI.items()}
    tensors = {**nested, **COMPLETE}

    placed = {p.key: p for p in place(detect(tensors), tensors)}

    for key in nested:
        assert (placed[key].component, placed[key].name) == (Component.OTHER, key)
    assert placed[f"state_dict.{BARE_TEXT}final_layer_norm.bias"].of == (
        f"{TEXT}final_layer_norm.bias"
    )
    assert {placed[key].of for key in nested} == set(COMPLETE)


def test_a_nested_key_repeats_nothing_if_nothing_outside_has_its_name() -> None:
    gone = f"{TEXT}final_layer_norm.bias"
    tensors = {**COMPLETE, f"state_dict.{gone}": COMPLETE[gone]}
    del tensors[gone]

    *_, last = place(detect(tensors), tensors)

    assert (last.key, last.of) == (f"state_dict.{gone}", None)


def test_training_state_and_schedule_are_not_demanded_and_weights_are() -> None:
    placed = {p.name: p for p in place(detect(WITH_EMA), WITH_EMA)}

    demanded = Counter(p.component for p in placed.values() if p.demanded)

    assert demanded == {Component.UNET: 686, Component.VAE: 248, Component.TEXT_ENCODER: 196}
    assert placed["model_ema.decay"].component is Component.EMA
    assert placed["model_ema.num_updates"].component is Component.EMA
    assert placed["betas"].component is Component.SCHEDULE
    assert placed[f"{TEXT}embeddings.position_ids"].component is Component.TEXT_ENCODER
    copies = {p.of for p in placed.values() if p.component is Component.EMA and p.of}
    assert copies == {p.name for p in placed.values() if p.component is Component.UNET}


@pytest.mark.parametrize(
    ("prefix", "missing"),
    [
        ("first_stage_model.", {Component.VAE: 248}),
        ("cond_stage_model.", {Component.TEXT_ENCODER: 196}),
        (f"{TEXT}embeddings.position_ids", {}),
        ("model_ema.", {}),
        (("betas", "alphas", "sqrt", "log", "posterior"), {}),
        (f"{UNET}out.2.bias", {Component.UNET: 1}),
    ],
    ids=["no-vae", "no-text-encoder", "no-position-ids", "no-ema", "no-schedule", "one-gone"],
)
def test_a_file_that_lacks_something_is_still_sd1(
    prefix: str | tuple[str, ...], missing: dict[Component, int]
) -> None:
    tensors = {key: spec for key, spec in WITH_EMA.items() if not key.startswith(prefix)}

    found = detect(tensors)

    assert found.family == "sd1"
    rows = count(found, tensors)
    assert {row.component: len(row.missing) for row in rows if row.missing} == missing


def test_a_pruned_file_with_ema_counters_left_over_lacks_nothing() -> None:
    counters = ("model_ema.decay", "model_ema.num_updates")
    tensors = {**COMPLETE, **{key: WITH_EMA[key] for key in counters}}

    (row,) = (r for r in count(detect(tensors), tensors) if r.component is Component.EMA)

    assert (row.present, row.expected, row.missing) == (2, 2, ())


def test_a_wrong_shape_is_counted_as_present_and_reported() -> None:
    longer = f"{TEXT}embeddings.position_embedding.weight"
    tensors = {**COMPLETE, longer: Spec((248, 768), "float32")}
    found = detect(tensors)

    (row,) = (r for r in count(found, tensors) if r.component is Component.TEXT_ENCODER)

    assert found.family == "sd1"
    assert (row.present, row.expected, row.misshapen) == (197, 197, (longer,))


def test_an_unexpected_key_is_other_and_reported_where_its_prefix_lies() -> None:
    strangers = (f"{UNET}lora.up", "model_ema.encoderconv_inweight", "logvar", "epoch")
    tensors = {**COMPLETE, **dict.fromkeys(strangers, Spec((1,), "float32"))}
    found = detect(tensors)

    assert [(p.component, p.name) for p in place(found, tensors)[-4:]] == [
        (Component.OTHER, key) for key in strangers
    ]
    rows = {row.component: row for row in count(found, tensors)}
    assert rows[Component.UNET].unexpected == strangers[:1]
    assert rows[Component.EMA].unexpected == strangers[1:2]
    assert rows[Component.OTHER].unexpected == strangers[2:]
    assert rows[Component.OTHER].present == len(strangers)


def changed(key: str, *shape: int) -> dict[str, Spec]:
    """A complete SD1 file but for one tensor of another shape."""
    return {**COMPLETE, key: Spec(shape, "float32")}


def with_unet(unet: UNetArchitecture) -> dict[str, Spec]:
    """A complete SD1 file but for another UNet."""
    rest = {key: spec for key, spec in COMPLETE.items() if not key.startswith(UNET)}
    return {**rest, **{UNET + t.key: Spec(t.shape, t.dtype) for t in unet.tensors()}}


def with_text_encoder(*keys: str) -> dict[str, Spec]:
    """A complete SD1 file but for another text encoder."""
    rest = {key: spec for key, spec in COMPLETE.items() if not key.startswith("cond_stage_")}
    return {**rest, **dict.fromkeys(keys, Spec((768,), "float32"))}


def only(*prefixes: str) -> dict[str, Spec]:
    """Parts of an SD1 file."""
    return {key: spec for key, spec in COMPLETE.items() if key.startswith(prefixes)}


def plus(key: str) -> dict[str, Spec]:
    """A complete SD1 file and something else."""
    return {**COMPLETE, key: Spec((1280, 2816), "float32")}


NOTHING_FAMILIAR = "no tensor is there by which a family we know is told"

RELATIVES: dict[str, tuple[dict[str, Spec], str]] = {
    "nothing": ({}, NOTHING_FAMILIAR),
    "seven-channels": (changed(f"{UNET}input_blocks.0.0.weight", 320, 7, 3, 3), "[320, 7, 3, 3]"),
    "sd2-unet": (with_unet(SD2_UNET), "under cond_stage_model."),
    "sdxl-unet": (with_unet(SDXL_UNET), "cond_stage_model. is there"),
    "ldm-bert-unet": (with_unet(replace(SD1_UNET, context=1280)), "under cond_stage_model."),
    "openclip": (with_text_encoder("cond_stage_model.model.ln_final.weight"), "cond_stage_model."),
    "altdiffusion": (
        with_text_encoder("cond_stage_model.roberta.embeddings.word_embeddings.weight"),
        "of 1 tensor under cond_stage_model. ",
    ),
    "part-of-a-controlnet": (plus("control_model.input_hint_block.0.weight"), "control_model."),
    "label-embedding": (plus(f"{UNET}label_emb.0.0.weight"), "label_emb."),
    "sgm-text-encoders": (plus("conditioner.embedders.0.model.ln_final.weight"), "conditioner."),
    "half-a-text-encoder": (
        {k: s for k, s in only("cond_stage_model.").items() if ".layers." not in k},
        "layers.0.mlp.fc1.weight is not there",
    ),
    "a-few-unet-tensors": (only(*SIGNS), "only 3 of the 686 unet tensors"),
    # One sign of an autoencoder is left, and strangers to it.
    "small-tensors-alone": (
        {k: s for k, s in COMPLETE.items() if math.prod(s.shape) <= 3000},
        NOTHING_FAMILIAR,
    ),
    "ema-alone": (
        {k: s for k, s in WITH_EMA.items() if k.startswith("model_ema.")},
        NOTHING_FAMILIAR,
    ),
    "data-parallel": (
        {f"module.{k}": s for k, s in COMPLETE.items()},
        NOTHING_FAMILIAR,
    ),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_is_unknown_and_the_evidence_says_why(name: str) -> None:
    tensors, reason = RELATIVES[name]

    found = detect(tensors)

    assert (found.family, found.variant) == (UNKNOWN, None)
    assert any(reason in sentence for sentence in found.evidence)


@pytest.mark.parametrize("key", sorted(SIGNS))
def test_without_one_of_its_signs_a_file_is_unknown(key: str) -> None:
    tensors = {k: spec for k, spec in COMPLETE.items() if k != key}

    found = detect(tensors)

    assert found.family == UNKNOWN
    assert found.evidence == (
        f"{key} is not there, which tells Stable Diffusion 1.x from its relatives",
    )


@needs_inventories
@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("diffusers_ldm_sd15.unet", "unet-sd1"),
        ("diffusers_ldm_sd15.vae", "vae"),
        ("diffusers_ldm_sd15.text_encoder", "clip-l"),
        ("diffusers_ldm_sd21_768_v.unet", "unet-sd2"),
        ("diffusers_ldm_sd21_768_v.text_encoder", "openclip-h"),
        ("diffusers_ldm_sdxl_base.unet", "unet-sdxl"),
        ("diffusers_ldm_sdxl_base.vae", "vae"),
        ("diffusers_ldm_sdxl_base.text_encoder", "clip-l"),
        ("diffusers_ldm_sdxl_base.text_encoder_2", "openclip-bigg"),
    ],
)
def test_one_file_out_of_a_folder_of_diffusers_is_known_alone(name: str, family: str) -> None:
    tensors = load(name)
    found = detect(tensors)

    # Of CLIP ViT-L/14 both layouts have the same names.
    assert (found.family, found.variant) == (family, None if family == "clip-l" else "diffusers")
    assert [row.missing + row.unexpected + row.misshapen for row in count(found, tensors)] == [()]


def test_an_unknown_file_is_placed_whole_under_its_own_keys() -> None:
    tensors = {k: s for k, s in NOVELAI.items() if k not in SIGNS}
    found = detect(tensors)

    assert [(p.key, p.component) for p in place(found, tensors)] == [
        (key, Component.OTHER) for key in tensors
    ]
    assert all(p.name == p.key and not p.demanded for p in place(found, tensors))
    (row,) = count(found, tensors)
    assert (row.component, row.present, row.unexpected) == (Component.OTHER, len(tensors), ())


SHAPES = st.lists(st.integers(0, 2000), max_size=4).map(tuple)
SPECS = st.builds(Spec, SHAPES, st.sampled_from(["float16", "float32", "int64"]))
KNOWN = sorted({**WITH_EMA, **NOVELAI})


@st.composite
def known_keys(draw: st.DrawFn) -> str:
    """Draw a key that SD1 files have, in either spelling."""
    return KNOWN[draw(st.integers(0, len(KNOWN) - 1))]


STRANGE = st.one_of(
    st.text(max_size=20),
    st.builds(
        "{}{}".format,
        st.sampled_from(["state_dict.", "state_dict.state_dict.", "model_ema.", UNET, BARE_TEXT]),
        st.one_of(known_keys(), st.text(max_size=5)),
    ),
)


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, Spec]:
    """Draw an SD1 file in one spelling or both, with keys gone, added, bent and shuffled."""
    whole = draw(st.sampled_from([COMPLETE, WITH_EMA, NOVELAI, {**WITH_EMA, **NOVELAI}]))
    gone = draw(st.sets(known_keys(), max_size=20))
    tensors = {key: spec for key, spec in whole.items() if key not in gone}
    tensors |= draw(st.dictionaries(STRANGE, SPECS, max_size=10))
    tensors |= draw(st.dictionaries(known_keys(), SPECS, max_size=3))
    return shuffled(tensors, draw(st.randoms(use_true_random=True)))


def shuffled(tensors: dict[str, Spec], random: Random) -> dict[str, Spec]:
    keys = list(tensors)
    random.shuffle(keys)
    return {key: tensors[key] for key in keys}


ANY_DETECTION = st.sampled_from([None, Detection("sd1", None, ()), Detection(UNKNOWN, None, ())])


@settings(max_examples=60, deadline=None)
@given(st.one_of(state_dicts(), st.dictionaries(STRANGE, SPECS)), ANY_DETECTION)
def test_each_key_is_placed_once_in_order_and_no_name_twice(
    tensors: dict[str, Spec], told: Detection | None
) -> None:
    placed = place(told or detect(tensors), tensors)

    assert [p.key for p in placed] == list(tensors)
    assert len({p.name for p in placed}) == len(tensors)


@settings(max_examples=60, deadline=None)
@given(state_dicts())
def test_a_stray_is_a_copy_only_of_what_another_key_is_called(tensors: dict[str, Spec]) -> None:
    placed = place(detect(tensors), tensors)

    owners = {p.name: p.key for p in placed}
    for p in placed:
        if p.component is Component.OTHER:
            assert p.name == p.key
            assert p.of is None or owners[p.of] != p.key


@settings(max_examples=60, deadline=None)
@given(state_dicts(), st.randoms(use_true_random=True))
def test_the_order_of_keys_changes_nothing(tensors: dict[str, Spec], random: Random) -> None:
    other = shuffled(tensors, random)
    found = detect(tensors)

    assert detect(other) == found
    assert set(place(found, other)) == set(place(found, tensors))
    for here, there in zip(count(found, tensors), count(found, other), strict=True):
        assert sorted(here.unexpected) == sorted(there.unexpected)
        assert (here.component, here.present, here.expected, here.missing, here.misshapen) == (
            there.component,
            there.present,
            there.expected,
            there.missing,
            there.misshapen,
        )


@settings(max_examples=60, deadline=None)
@given(state_dicts())
def test_every_tensor_is_counted_where_it_is_placed(tensors: dict[str, Spec]) -> None:
    found = Detection("sd1", None, ())
    rows = count(found, tensors)
    placed = place(found, tensors)

    assert {row.component: row.present for row in rows if row.present} == Counter(
        p.component for p in placed
    )
    strays = Counter(p.key for p in placed if p.component is Component.OTHER)
    assert Counter(key for row in rows for key in row.unexpected) == strays
    for row in rows:
        if row.component is not Component.OTHER:
            assert row.present + len(row.missing) == row.expected


@settings(max_examples=60, deadline=None)
@given(st.sets(known_keys().filter(lambda key: key not in SIGNS), max_size=300))
def test_whatever_a_file_lacks_is_reported_exactly(gone: set[str]) -> None:
    tensors = {key: spec for key, spec in WITH_EMA.items() if key not in gone}
    found = detect(tensors)

    missing = {name for row in count(found, tensors) for name in row.missing}

    assert found.family == "sd1"
    assert missing == {e.key for e in SD1.inventory() if e.demanded and e.key in gone}


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.one_of(STRANGE, known_keys()), SPECS, max_size=40))
def test_a_handful_of_familiar_keys_is_never_enough(tensors: dict[str, Spec]) -> None:
    assert detect(tensors).family == UNKNOWN
