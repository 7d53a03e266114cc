"""Every family's grammar against the architectures, and against what diffusers makes of them.

The ground truth is that of `test_layouts`: inventories made by instantiating the original
architectures, maps made by running diffusers' own conversion.  Beside them stand facts that
were counted elsewhere: the number of tensors in files that are not at hand here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_layout_laws import state_dict

from ckptaudit.dtypes import by_name
from ckptaudit.jobs.planning import meaning_of
from ckptaudit.layouts import FAMILIES, Component, Entry, Spec, count, detect, place
from ckptaudit.plan import Ema, Layout, Options, Precision, make_plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

INVENTORIES = Path(__file__).parents[2] / "shared" / "inventories"
DIGESTS = json.loads((Path(__file__).parent / "data" / "layouts.json").read_text())
needs_inventories = pytest.mark.skipif(
    not INVENTORIES.is_dir(), reason="the full inventories are not beside this checkout"
)

WHOLE = {
    "ldm_sd15": "sd1",
    "ldm_sd20_base": "sd2",
    "ldm_sd21_768_v": "sd2",
    "ldm_sdxl_base": "sdxl",
    "ldm_txt2img_1p4B_bert": "ldm-text2img",
    "ldm_vae_only": "vae",
}
MAPS = {
    "map_ldm_sd15": "sd1",
    "map_ldm_sd20_base": "sd2",
    "map_ldm_sd21_768_v": "sd2",
    "map_ldm_sdxl_base": "sdxl",
    "map_ldm_vae_only": "vae",
}
# Files with more than the model, whose maps say what becomes of the rest as well.
WITH_MORE = {
    "map_ldm_sd15_with_ema": Ema.DROP,
    "map_ldm_sd15_with_ema_extract_ema": Ema.USE,
    "map_ldm_vae_kl_f8_training": Ema.DROP,
}
# Components of which the models in diffusers were counted, tensor by tensor.
IN_DIFFUSERS = [
    *(f"diffusers_ldm_sd15.{part}" for part in ("unet", "vae", "text_encoder")),
    *(f"diffusers_ldm_sd21_768_v.{part}" for part in ("unet", "text_encoder")),
    *(
        f"diffusers_ldm_sdxl_base.{part}"
        for part in ("unet", "vae", "text_encoder", "text_encoder_2")
    ),
]
DETECTED = [name for name, family in FAMILIES.items() if not family.is_named_only]
# The tensors of files without EMA copies, as reference tables of others count them.
COUNTED = {
    "sd1": 1143,
    "sd1-inpainting": 1143,
    "sd1-instruct-pix2pix": 1143,
    "sd2": 1240,
    "sd2-inpainting": 1240,
    # MiDaS has 368 of them.
    "sd2-depth": 1240 + 368,
    "sd2-upscaler": 1205,
    "sd2-sgm": 1229,
    "sd2-unclip-h": 1650,
    # The image half has eight layers fewer, and the text half its twelve, which the other has not.
    "sd2-unclip-l": 1650 + 12 * 12 - 8 * 12,
    "sdxl": 2516,
    "sdxl-refiner": 1859,
    "ldm-text2img": 1368,
    "ldm-class": 906,
    "vae": 248,
    "vae-f4": 204,
    "controlnet-sd1": 340,
}


def read(name: str) -> Any:
    return json.loads((INVENTORIES / f"{name}.json").read_text())


def digest(lines: Iterable[str]) -> dict[str, Any]:
    """How ``tests/data/layouts.json`` keeps a list: its length, sha256 of its sorted lines."""
    text = sorted(f"{line}\n" for line in lines)
    return {"tensors": len(text), "sha256": hashlib.sha256("".join(text).encode()).hexdigest()}


def listing(tensors: dict[str, Spec]) -> Iterator[str]:
    return (f"{key} {spec.dtype} {list(spec.shape)}" for key, spec in tensors.items())


def specs(entries: Iterable[Entry]) -> dict[str, Spec]:
    return {entry.key: Spec(entry.shape, entry.dtype) for entry in entries}


def load(name: str) -> dict[str, Spec]:
    return {k: Spec(tuple(v["shape"]), v["dtype"]) for k, v in read(name).items()}


def moves(family: str) -> Iterator[str]:
    """Each step of a conversion to diffusers as a line."""
    for entry in FAMILIES[family].inventory():
        for there in entry.diffusers:
            rows = there.rows and list(there.rows)
            yield f"{entry.key} {there.op} {rows} {there.component.value} {there.key}"
        if not entry.diffusers:
            yield f"{entry.key} goes nowhere"


def true_moves(name: str) -> Iterator[str]:
    truth = read(name)
    for component, mapped in truth["components"].items():
        for key, v in mapped.items():
            op, rows = v["op"], None
            if op == "slice_rows":
                op, rows = "rows", [v["start"], v["stop"]]
            yield f"{v['source']} {op} {rows} {component} {key}"
    for key in truth["unused_source_keys"]:
        yield f"{key} goes nowhere"


@pytest.mark.parametrize("name", WHOLE)
def test_a_grammar_generates_exactly_the_tensors_of_its_architecture(name: str) -> None:
    assert digest(listing(specs(FAMILIES[WHOLE[name]].inventory()))) == DIGESTS[name]


@needs_inventories
@pytest.mark.parametrize("name", WHOLE)
def test_an_inventory_is_in_the_order_of_the_original_files(name: str) -> None:
    assert list(specs(FAMILIES[WHOLE[name]].inventory()).items()) == list(load(name).items())


@pytest.mark.parametrize("name", MAPS)
def test_every_tensor_goes_where_diffusers_own_conversion_puts_it(name: str) -> None:
    """The same destinations, operations and rows, and the same tensors left behind."""
    assert digest(moves(MAPS[name])) == DIGESTS[f"{name}.moves"]


@needs_inventories
@pytest.mark.parametrize("name", MAPS)
def test_the_full_maps_say_the_same_move_by_move(name: str) -> None:
    assert sorted(moves(MAPS[name])) == sorted(true_moves(name))


def source_of(name: str) -> dict[str, Spec]:
    """The file that a map of `WITH_MORE` was made from."""
    if name.startswith("map_ldm_sd15_with_ema"):
        return specs(FAMILIES["sd1"].inventory(ema=True))
    # What trained the autoencoder is no part of any grammar, and stands in the data key by key.
    trainer = {key: Spec(tuple(shape), dtype) for key, (dtype, shape) in DIGESTS["loss"].items()}
    return specs(FAMILIES["vae"].inventory()) | trainer


def planned_moves(tensors: dict[str, Spec], ema: Ema) -> Iterator[str]:
    """Each step of a conversion to diffusers as a line, as the plan has it."""
    held = state_dict({key: (spec.shape, spec.dtype) for key, spec in tensors.items()}, ())
    found = meaning_of(held)
    options = Options(layout=Layout.DIFFUSERS, precision=Precision.KEEP, ema=ema)
    plan = make_plan(held, found.detection, found.placements, options)
    for job in plan.jobs:
        rows = job.rows and list(job.rows)
        # What is no pipeline has the folder for itself.
        component = job.file.split("/")[0] if "/" in job.file else job.component.value
        yield f"{job.source} {job.op} {rows} {component} {job.name}"
    for drop in plan.drops:
        yield f"{drop.source} goes nowhere"


@pytest.mark.parametrize("name", WITH_MORE)
def test_of_a_file_with_more_than_the_model_diffusers_gets_and_misses_the_same(name: str) -> None:
    """Averages beside the weights or in their place, and what trained an autoencoder."""
    made = digest(planned_moves(source_of(name), WITH_MORE[name]))

    assert made == DIGESTS[f"{name}.moves"]


@needs_inventories
@pytest.mark.parametrize("name", WITH_MORE)
def test_a_plan_says_the_same_as_the_full_map_move_by_move(name: str) -> None:
    tensors = load(read(name)["source_inventory"])

    assert tensors == source_of(name)
    assert sorted(planned_moves(tensors, WITH_MORE[name])) == sorted(true_moves(name))


@needs_inventories
@pytest.mark.parametrize("name", WHOLE)
def test_the_digests_are_those_of_the_inventories(name: str) -> None:
    assert digest(listing(load(name))) == DIGESTS[name]


@needs_inventories
@pytest.mark.parametrize("name", [*MAPS, *WITH_MORE])
def test_the_digests_are_those_of_the_maps(name: str) -> None:
    assert digest(true_moves(name)) == DIGESTS[f"{name}.moves"]


def arrived(name: str) -> dict[str, tuple[int, ...]]:
    """The shapes in which the tensors of a component of diffusers get there."""
    source, _, component = name.removeprefix("diffusers_").partition(".")
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in FAMILIES[WHOLE[source]].inventory():
        for there in entry.diffusers:
            if there.component.value == component:
                shapes[there.key] = {
                    "identity": entry.shape,
                    "squeeze": entry.shape[:2],
                    "transpose": entry.shape[::-1],
                    "rows": (there.rows[1] - there.rows[0] if there.rows else 0, *entry.shape[1:]),
                }[there.op]
    shapes.pop("text_model.embeddings.position_ids", None)  # newer transformers do not have it
    return shapes


def shape_lines(shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    return (f"{key} {list(shape)}" for key, shape in shapes.items())


@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_every_tensor_arrives_in_the_shape_that_diffusers_has(name: str) -> None:
    assert digest(shape_lines(arrived(name))) == DIGESTS[name]


@needs_inventories
@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_the_full_inventories_of_diffusers_have_the_same_shapes(name: str) -> None:
    truth = {key: spec.shape for key, spec in load(name).items()}

    assert arrived(name) == truth
    assert digest(shape_lines(truth)) == DIGESTS[name]


@pytest.mark.parametrize(
    ("key", "there"),
    [
        (
            "pretrained.model.patch_embed.backbone.stages.2.blocks.0.downsample.conv.weight",
            "dpt.embeddings.backbone.bit.encoder.stages.2.layers.0.downsample.conv.weight",
        ),
        ("pretrained.model.blocks.3.norm2.bias", "dpt.encoder.layer.3.layernorm_after.bias"),
        (
            "pretrained.act_postprocess3.0.project.0.weight",
            "neck.reassemble_stage.readout_projects.2.0.weight",
        ),
        ("pretrained.act_postprocess4.4.bias", "neck.reassemble_stage.layers.3.resize.bias"),
        ("scratch.layer1_rn.weight", "neck.convs.0.weight"),
        (
            "scratch.refinenet4.resConfUnit1.conv2.weight",
            "neck.fusion_stage.layers.0.residual_layer1.convolution2.weight",
        ),
        ("scratch.refinenet1.out_conv.weight", "neck.fusion_stage.layers.3.projection.weight"),
        ("scratch.output_conv.2.weight", "head.head.2.weight"),
    ],
)
def test_a_depth_estimator_gets_the_names_that_transformers_gave_it(key: str, there: str) -> None:
    """As its convert_dpt_hybrid_to_pytorch.py did; shapes alone leave some of them open."""
    entries = {entry.key: entry for entry in FAMILIES["sd2-depth"].inventory()}

    assert [to.key for to in entries[f"depth_model.model.{key}"].diffusers] == [there]


@pytest.mark.parametrize("name", COUNTED)
def test_a_file_has_as_many_tensors_as_others_have_counted(name: str) -> None:
    assert len(FAMILIES[name].inventory()) == COUNTED[name]


def test_files_with_more_than_the_model_have_as_many_tensors_as_others_have_counted() -> None:
    """What trained them: averages, and the weight of the loss in each step."""
    assert len(FAMILIES["sd1-instruct-pix2pix"].inventory(ema=True)) == 1831
    tensors = specs(FAMILIES["controlnet-sd1-full"].inventory()) | {
        "logvar": Spec((1000,), "float32")
    }
    assert len(tensors) == 1484
    rows = count(detect(tensors), tensors)
    assert not any(row.missing + row.unexpected + row.misshapen for row in rows)


@pytest.mark.parametrize("name", DETECTED)
def test_a_complete_file_is_of_its_family_and_lacks_nothing(name: str) -> None:
    tensors = specs(FAMILIES[name].inventory())

    found = detect(tensors)

    assert (found.family, found.variant) == (name, None)
    rows = count(found, tensors)
    assert [row.missing + row.unexpected + row.misshapen for row in rows] == [()] * len(rows)
    assert sum(row.present for row in rows) == len(tensors)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_inventory_names_each_tensor_once_in_a_known_dtype(name: str) -> None:
    entries = FAMILIES[name].inventory(ema=True)

    assert len({entry.key for entry in entries}) == len(entries)
    assert all(by_name(entry.dtype) for entry in entries)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_two_tensors_go_to_one_place_in_diffusers(name: str) -> None:
    places = [
        (there.component, there.key)
        for entry in FAMILIES[name].inventory()
        for there in entry.diffusers
    ]

    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_taken_from_one_tensor_are_all_of_its_rows(name: str) -> None:
    """So that they can be put together again."""
    for entry in FAMILIES[name].inventory():
        cut = [there.rows for there in entry.diffusers if there.rows is not None]
        if cut:
            stops = [stop for _, stop in cut]
            assert [start for start, _ in cut] == [0, *stops[:-1]]
            assert stops[-1] == entry.shape[0]
        else:
            assert len(entry.diffusers) <= 1


@pytest.mark.parametrize("name", FAMILIES)
def test_the_signs_of_a_family_stand_in_its_inventory_in_that_shape(name: str) -> None:
    shapes = {entry.key: entry.shape for entry in FAMILIES[name].inventory()}

    assert {s.key: s.shape for s in FAMILIES[name].signs}.items() <= shapes.items()


@pytest.mark.parametrize("name", DETECTED)
def test_the_order_of_keys_says_nothing_of_the_family(name: str) -> None:
    tensors = dict(sorted(specs(FAMILIES[name].inventory()).items(), reverse=True))

    assert detect(tensors).family == name


@pytest.mark.parametrize("name", FAMILIES)
def test_whatever_speaks_against_it_a_family_that_is_named_is_taken(name: str) -> None:
    tensors = specs(FAMILIES["sd1"].inventory())

    found = detect(tensors, name)

    assert found.family == name
    assert len({placement.name for placement in place(found, tensors)}) == len(tensors)
    assert any(line.startswith("against it: ") for line in found.evidence) == (name != "sd1")


def test_an_autoencoder_under_its_prefix_gets_the_bare_names_its_loaders_want() -> None:
    bare = FAMILIES["vae"].inventory()
    tensors = {f"first_stage_model.{e.key}": Spec(e.shape, e.dtype) for e in bare}

    found = detect(tensors)

    assert (found.family, found.variant) == ("vae", "prefixed")
    assert [placement.name for placement in place(found, tensors)] == [e.key for e in bare]


def test_what_trained_an_autoencoder_is_kept_and_not_unexpected() -> None:
    tensors = specs(FAMILIES["vae"].inventory())
    tensors["loss.discriminator.main.3.num_batches_tracked"] = Spec((), "int64")
    found = detect(tensors)

    (vae, other) = count(found, tensors)

    assert (vae.present, vae.expected) == (248, 248)
    assert (other.component, other.present, other.unexpected) == (Component.OTHER, 1, ())


def test_averaged_copies_of_an_autoencoder_are_named_after_its_bare_names() -> None:
    tensors = specs(FAMILIES["vae"].inventory(ema=True))
    assert "model_ema.encoderconv_inweight" in tensors
    assert sum(key.startswith("model_ema.") for key in tensors) == 250

    of = {placement.key: placement.of for placement in place(detect(tensors), tensors)}

    assert of["model_ema.encoderconv_inweight"] == "encoder.conv_in.weight"


@pytest.mark.parametrize("flat", ["cond_stage_modeltransformer", "transformer"])
def test_averaged_copies_of_a_text_encoder_are_recognised_however_they_were_made(
    flat: str,
) -> None:
    if flat == "transformer":
        flat = ""
    key = f"model_ema.{flat}text_modelfinal_layer_normweight"
    tensors = {**specs(FAMILIES["sd1"].inventory(ema=True)), key: Spec((768,), "float32")}

    (found,) = (each for each in place(detect(tensors), tensors) if each.key == key)

    assert found.component is Component.EMA
    assert found.of == "cond_stage_model.transformer.text_model.final_layer_norm.weight"


def test_a_controlnet_without_its_prefix_gets_it() -> None:
    entries = FAMILIES["controlnet-sd1"].inventory()
    tensors = {e.key.removeprefix("control_model."): Spec(e.shape, e.dtype) for e in entries}

    found = detect(tensors)

    assert (found.family, found.variant) == ("controlnet-sd1", "bare")
    assert [placement.name for placement in place(found, tensors)] == [e.key for e in entries]


def test_marks_of_trainers_belong_to_the_schedule() -> None:
    tensors = specs(FAMILIES["sdxl"].inventory())
    tensors |= {"v_pred": Spec((0,), "float32"), "edm_vpred.sigma_max": Spec((), "float32")}

    rows = {row.component: row for row in count(detect(tensors), tensors)}

    assert rows[Component.SCHEDULE].present == 3
    assert Component.OTHER not in rows


@pytest.mark.parametrize(
    ("name", "prediction"),
    [("sdxl", "v_prediction"), ("sdxl-refiner", "v_prediction"), ("sd2-depth", "epsilon")],
)
def test_a_mark_of_v_says_so_in_the_families_whose_trainers_leave_it(
    name: str, prediction: str
) -> None:
    tensors = specs(FAMILIES[name].inventory()) | {"v_pred": Spec((0,), "float32")}

    assert detect(tensors).prediction == prediction


@needs_inventories
@pytest.mark.parametrize(
    ("name", "family", "present"),
    [
        ("ldm_vae_kl_f8_training", "vae", {"vae": 248, "other": 56}),
        ("controlnet_sd15_full", "controlnet-sd1-full", {"controlnet": 340, "schedule": 13}),
        ("ldm_sd15_with_ema", "sd1", {"ema": 688, "unet": 686}),
    ],
)
def test_inventories_with_more_than_the_model_are_recognised(
    name: str, family: str, present: dict[str, int]
) -> None:
    tensors = load(name)
    found = detect(tensors)

    assert found.family == family
    rows = {row.component.value: row for row in count(found, tensors)}
    assert {part: rows[part].present for part in present} == present
    assert not any(row.missing + row.unexpected + row.misshapen for row in rows.values())
