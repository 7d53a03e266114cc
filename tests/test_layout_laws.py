"""Laws of plans for whatever lies in a file: families mixed, torn, misshapen and in any order.

Nothing is read here: that every element of a job arrives is `test_convert_laws`' law.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptaudit.containers import Storage
from ckptaudit.dtypes import DTYPES, by_name
from ckptaudit.jobs.planning import Meaning, meaning_of
from ckptaudit.layouts import FAMILIES
from ckptaudit.layouts.folder import folder_key
from ckptaudit.numerics import Caster
from ckptaudit.plan import (
    Action,
    ConversionPlan,
    Dedupe,
    Ema,
    Layout,
    Options,
    Precision,
    comparable_groups,
    make_plan,
)
from ckptaudit.tensors import StateDict, TensorView

if TYPE_CHECKING:
    from collections.abc import Iterable

    Specs = dict[str, tuple[tuple[int, ...], str]]

STRANGE_NAMES = (
    *("", "..", "../../x", "/etc/x", "a/../../b", "a\0b", "unet/conv_in.weight", "unet/x", "vae/"),
    *("__metadata__", "format", "ckptaudit.options", "first_stage_model.__metadata__", "x.\u202e"),
    *("model_ema.decay", "model_ema.x", "encoder.conv_in.weight", "text_model.embeddings.x"),
    *("v_pred", "lora_te_x.alpha", "control_model.x", "embedding_manager.embedder.x"),
)
SHAPES = ((), (0,), (1,), (3,), (0, 4), (4, 0, 2), (2, 2), (2, 3), (4, 4, 1, 1), (4, 4, 3, 3))
fits = st.sampled_from(["all fit", "none fits"])
outputs = st.sampled_from(["one file", "several files"])
FOLDERS = sorted(
    name
    for name, family in FAMILIES.items()
    if family.has_diffusers_layout and not family.is_named_only
)
COPYABLE = sorted(dtype.name for dtype in DTYPES if dtype.safetensors or dtype.itemsize)


def in_file(name: str, *, ema: bool, variant: int) -> Specs:
    family = FAMILIES[name]
    spelling = family.variants[0].name if variant and family.variants else None
    return {e.key: (e.shape, e.dtype) for e in family.inventory(ema=ema, variant=spelling)}


def in_folder(name: str) -> Specs:
    """The shapes are those of the source, and wrong where the layout changes them."""
    family = FAMILIES[name]
    found: Specs = {}
    for entry in family.inventory():
        for there in entry.diffusers:
            shape = entry.shape
            if there.op == "squeeze":
                shape = shape[:2]
            elif there.op == "transpose":
                shape = shape[::-1]
            elif there.rows is not None:
                shape = (there.rows[1] - there.rows[0], *shape[1:])
            found[folder_key(family, there)] = shape, entry.dtype
    return found


class File:
    """Tensors, and in a few words how they came about: nobody reads all of their names."""

    def __init__(self, tensors: StateDict, told: str) -> None:
        self.tensors = tensors
        self.told = told

    def __repr__(self) -> str:
        return self.told


@st.composite
def files(draw: st.DrawFn) -> File:
    """A file of some family, to which a good deal has happened."""
    names = st.sampled_from(sorted(FAMILIES))
    name = draw(names)
    is_folder = draw(st.booleans()) and FAMILIES[name].has_diffusers_layout
    ema, variant = draw(st.booleans()), draw(st.integers(0, 1))
    specs = in_folder(name) if is_folder else in_file(name, ema=ema, variant=variant)
    if draw(st.booleans()):
        other = in_file(draw(names), ema=False, variant=draw(st.integers(0, 1)))
        prefix = draw(st.sampled_from(sorted(other))).split(".")[0]
        taken = {key: spec for key, spec in other.items() if key.startswith(prefix)}
        specs = {**specs, **taken} if draw(st.booleans()) else {**taken, **specs}
    keys = st.sampled_from(sorted(specs))
    for key in draw(st.lists(keys, max_size=3)):
        again = draw(st.sampled_from(["state_dict.", "module.", "first_stage_model.", "unet/"]))
        specs[again + key] = specs[key]
    for key in draw(st.lists(st.sampled_from(STRANGE_NAMES), max_size=4)):
        specs.setdefault(key, (draw(st.sampled_from(SHAPES)), draw(st.sampled_from(COPYABLE))))
    for key in draw(st.lists(keys, max_size=4)):
        shape = specs[key][0]
        wrong = (shape[::-1], (*shape, 1), shape[:-1], tuple(size + 1 for size in shape), *SHAPES)
        specs[key] = draw(st.sampled_from(wrong)), specs[key][1]
    for key in draw(st.lists(keys, max_size=4)):
        specs[key] = specs[key][0], draw(st.sampled_from(COPYABLE))
    for key in draw(st.lists(keys, max_size=4)):
        specs.pop(key, None)
    # On the bytes of another one of its kind.
    shared = set(draw(st.lists(keys, max_size=4))) | set(STRANGE_NAMES)
    in_order = list(specs)
    # By a seed: drawn step by step, the order of thousands would be most of what is drawn.
    Random(draw(st.integers(0, 999))).shuffle(in_order)  # noqa: S311 - nothing secret
    tensors = state_dict({key: specs[key] for key in in_order}, shared)
    return File(tensors, f"{name}, {is_folder=}, {ema=}, {variant=}, {len(specs)} tensors")


def state_dict(specs: Specs, shared: Iterable[str]) -> StateDict:
    views: list[TensorView] = []
    storages: dict[str, Storage] = {}
    first: dict[object, Storage] = {}
    offset = 0
    for key, (shape, name) in sorted(specs.items()):
        dtype = by_name(name)
        assert dtype is not None
        stride, numel = tuple(stride_of(shape)), prod(shape)
        made = Storage(key, dtype, numel, offset, numel * dtype.itemsize, "cpu", f"data/{key}")
        offset += made.nbytes
        if key in shared:
            made = first.get((shape, dtype), made)
        first.setdefault((shape, dtype), made)
        storages[key] = made
        views.append(TensorView(key, made, dtype, shape, stride, 0))
    by_key = {view.key: view for view in views}
    return StateDict(tuple(by_key[key] for key in specs), storages, "", ())


def stride_of(shape: tuple[int, ...]) -> list[int]:
    """Elements to step per dimension where each row lies behind the one before."""
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


@st.composite
def choices(draw: st.DrawFn) -> Options:
    layout = draw(st.sampled_from(Layout))
    is_original = layout is Layout.ORIGINAL
    return Options(
        precision=draw(st.sampled_from(Precision)),
        layout=layout,
        ema=draw(st.sampled_from(Ema)),
        dedupe=draw(st.sampled_from(Dedupe)),
        keep_names=is_original and draw(st.booleans()),
        split=is_original and draw(st.booleans()),
        vae=draw(st.sampled_from(Action)),
        text_encoder=draw(st.sampled_from([Action.CONVERT, Action.COPY, Action.DROP])),
        other=draw(st.sampled_from([Action.CONVERT, Action.COPY, Action.DROP])),
    )


@dataclass(frozen=True)
class Made:
    """A plan, and what it was made of."""

    tensors: StateDict
    meaning: Meaning
    options: Options
    plan: ConversionPlan


def made(tensors: StateDict, options: Options, fits: str = "all fit") -> Made:
    meaning = meaning_of(tensors)
    arguments = tensors, meaning.detection, meaning.placements, options
    # Whatever may be equal is.
    digests = {view.key: b"" for group in comparable_groups(*arguments) for view in group}
    plan = make_plan(*arguments, digests=digests)
    if fits == "none fits":
        unfit = {(job.file, job.name): "too large" for job in plan.jobs}
        plan = make_plan(*arguments, digests=digests, unfit=unfit)
    return Made(tensors, meaning, options, plan)


def can_be_made(tensors: StateDict, options: Options) -> bool:
    """Whether the command would not refuse: parts must be known to be told apart."""
    found = meaning_of(tensors).detection
    if options.layout is Layout.DIFFUSERS:
        return found.has_diffusers_layout
    return found.has_inventory or not options.split


@settings(max_examples=40)
@given(files(), choices(), fits)
def test_every_tensor_is_written_whole_or_stands_in_the_report(
    file: File, options: Options, fits: str
) -> None:
    if not can_be_made(file.tensors, options):
        options = replace(options, layout=Layout.ORIGINAL, split=False)
    it = made(file.tensors, options, fits)
    plan, views = it.plan, {view.key: view for view in file.tensors.views}

    written = {job.source for job in plan.jobs}
    aliased = Counter(alias.source for alias in plan.aliases)
    dropped = Counter(drop.source for drop in plan.drops)
    # Each once, in one of three places.
    assert Counter(written) + aliased + dropped == Counter(list(views))
    for key in written:
        elements = sum(job.view.numel for job in plan.jobs if job.source == key)
        assert elements == views[key].numel, key
    for job in plan.jobs:
        Caster(job.view.dtype, job.target)


@settings(max_examples=25)
@given(files(), choices(), fits)
def test_an_output_has_each_name_once_and_no_byte_twice(
    file: File, options: Options, fits: str
) -> None:
    if not can_be_made(file.tensors, options):
        options = replace(options, layout=Layout.ORIGINAL, split=False)
    it = made(file.tensors, options, fits)

    assert len({job.id for job in it.plan.jobs}) == len(it.plan.jobs)
    names = set()
    for output in it.plan.outputs:
        jobs = [job for job in it.plan.jobs if job.file == output.file]
        at = 0
        for job in jobs:
            assert job.offset == at
            at += job.nbytes
        assert at == output.nbytes == sum(tensor.nbytes for tensor in output.tensors)
        own = [tensor.name for tensor in output.tensors]
        assert len(set(own)) == len(own)
        assert "__metadata__" not in own
        names |= {(output.file, name) for name in own}
        parts = output.file.split("/")
        assert ".." not in parts
        assert len(parts) <= 2
    for alias in it.plan.aliases:
        assert (alias.file, alias.of) in names
        assert (alias.file, alias.name) not in names


@settings(max_examples=25)
@given(files(), choices(), st.integers(0, 999))
def test_the_order_of_keys_changes_neither_what_a_file_is_nor_what_is_written(
    file: File, options: Options, seed: int
) -> None:
    if not can_be_made(file.tensors, options):
        options = replace(options, layout=Layout.ORIGINAL, split=False)
    views = list(file.tensors.views)
    Random(seed).shuffle(views)  # noqa: S311 - nothing secret
    one = made(file.tensors, options)
    other = made(replace(file.tensors, views=tuple(views)), options)

    assert one.meaning.detection == other.meaning.detection
    assert one.plan.outputs == other.plan.outputs
    assert one.plan.jobs == other.plan.jobs
    assert one.plan.aliases == other.plan.aliases
    assert set(one.plan.drops) == set(other.plan.drops)


@settings(max_examples=60)
@given(files(), st.integers(0, 100), st.integers(0, 999))
def test_a_file_is_of_a_family_only_if_it_has_what_tells_it_and_most_of_its_core(
    file: File, percent: int, seed: int
) -> None:
    """Whatever was mixed in, taken out or bent: else it is of another, or of none."""
    chance = Random(seed)  # noqa: S311 - nothing secret
    signs = {sign.key for family in FAMILIES.values() for sign in family.signs}
    views = [
        view for view in file.tensors.views if view.key in signs or chance.randrange(100) < percent
    ]
    left = replace(file.tensors, views=tuple(views))
    meaning = meaning_of(left)
    found = meaning.detection
    if not found.has_inventory or found.variant == "diffusers":
        return
    family = FAMILIES[found.family]
    pairs = zip(left.views, meaning.placements, strict=True)
    shapes = {placement.name: view.shape for view, placement in pairs}
    core = [each for each in family.inventory() if each.component is family.core and each.demanded]
    assert all(shapes.get(sign.key) == sign.shape for sign in family.signs)
    assert 2 * sum(shapes.get(each.key) == each.shape for each in core) > len(core)


@settings(max_examples=25)
@given(files(), st.sampled_from([Dedupe.SAFE, Dedupe.NONE]), outputs)
def test_what_loaders_demand_is_written_whatever_is_equal_to_it(
    file: File, dedupe: Dedupe, output: str
) -> None:
    options = Options(dedupe=dedupe, split=output == "several files")
    if not can_be_made(file.tensors, options):
        options = replace(options, split=False)
    it = made(file.tensors, options)

    demanded = {placement.key for placement in it.meaning.placements if placement.demanded}
    assert not {alias.source for alias in it.plan.aliases} & demanded
    reasons = {drop.reason for drop in it.plan.drops if drop.source in demanded}
    known = ("safetensors has no type", "is not of a shape from which", "is a part of")
    assert all(reason.startswith(known) for reason in reasons), reasons


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_a_family_is_known_for_what_it_is(name: str) -> None:
    """What the laws above tear apart is whole to begin with."""
    found = meaning_of(state_dict(in_folder(name), ())).detection
    # In a folder it is what any other SD 2 is.
    name = "sd2" if name == "sd2-sgm" else name
    # Of CLIP ViT-L/14 both layouts have the same names.
    variant = None if name == "clip-l" else "diffusers"
    assert (found.family, found.variant) == (name, variant)


@pytest.mark.parametrize(
    "specs",
    [
        {"<b>": ((1024,), "float32"), "<a>": ((2, 1024), "float32")},
        {**in_file("sdxl", ema=False, variant=0), "v_pred": ((0,), "float32"),
         "edm_vpred.sigma_max": ((), "float32"), "edm_vpred.sigma_min": ((), "float32")},
    ],
    ids=["embeddings", "marks of a trainer"],
)  # fmt: skip
def test_the_order_of_keys_changes_no_sentence_of_the_evidence(specs: Specs) -> None:
    turned = dict(reversed(list(specs.items())))

    assert meaning_of(state_dict(specs, ())) != meaning_of(state_dict({"a": ((), "int8")}, ()))
    one, other = (meaning_of(state_dict(each, ())).detection for each in (specs, turned))
    assert one == other


@pytest.mark.parametrize("turn", [1, -1])
def test_of_two_averages_of_one_weight_the_same_is_used_in_any_order(turn: int) -> None:
    """Trainers name the averages of a text encoder in two ways; a file may have both."""
    family = FAMILIES["sd1"]
    specs = in_file("sd1", ema=True, variant=0)
    copies = [entry for entry in family.further_copies() if entry.key not in specs]
    specs |= {entry.key: (entry.shape, entry.dtype) for entry in copies}
    specs = dict(list(specs.items())[::turn])

    plan = made(state_dict(specs, ()), Options(ema=Ema.USE)).plan

    weight = next(entry.of for entry in copies)
    used = [job.source for job in plan.jobs if job.name == weight]
    assert used == [min(entry.key for entry in copies if entry.of == weight)]
