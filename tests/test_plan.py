"""Plans: what is cast, renamed, stored once or left out, decided without reading a weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from ckptaudit.containers import Storage
from ckptaudit.dtypes import DTYPES, DType, by_name
from ckptaudit.layouts import UNKNOWN, Component, Detection, Placement
from ckptaudit.plan import (
    Action,
    Alias,
    Choice,
    ConversionPlan,
    Dedupe,
    Ema,
    Options,
    Precision,
    comparable_groups,
    make_plan,
    undecided,
)
from ckptaudit.tensors import Leftover, StateDict, TensorView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KNOWN = Detection("sd1", None, ())
STRANGE = Detection(UNKNOWN, None, ())

UNET = "model.diffusion_model.out.weight"
VAE = "first_stage_model.quant_conv.weight"
TEXT = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
TEXT_SPELLED = "cond_stage_model.transformer.final_layer_norm.weight"
EMA = "model_ema.outweight"


@dataclass(frozen=True)
class Given:
    """A tensor, what it means, and on which storage it lies."""

    placement: Placement
    storage: str
    dtype: str = "float32"
    shape: tuple[int, ...] = (2, 3)

    @property
    def view(self) -> TensorView:
        """The tensor as `tensors` would have found it."""
        dtype = known(self.dtype)
        # Six elements of room, whatever the shape; one storage at each multiple of 1000.
        offset = 1000 * (1 + sum(self.storage.encode()))
        size = 6 * dtype.itemsize
        storage = Storage(self.storage, dtype, 6, offset, size, "cpu", f"data/{self.storage}")
        stride = tuple(
            6 // max(1, self.shape[0]) if axis == 0 and len(self.shape) > 1 else 1
            for axis in range(len(self.shape))
        )
        return TensorView(self.placement.key, storage, dtype, self.shape, stride, 0)


def known(name: str) -> DType:
    dtype = by_name(name)
    assert dtype is not None
    return dtype


def part(
    component: Component, key: str, storage: str, *, name: str = "", dtype: str = "float32"
) -> Given:
    """A tensor that loaders demand, under its canonical name unless *name* says otherwise."""
    return Given(Placement(key, component, name or key, demanded=True), storage, dtype)


def stranger(key: str, storage: str, dtype: str = "float32", of: str | None = None) -> Given:
    return Given(Placement(key, Component.OTHER, key, of=of), storage, dtype)


def average(key: str, storage: str, of: str | None, dtype: str = "float32") -> Given:
    return Given(Placement(key, Component.EMA, key, of=of), storage, dtype)


def state_dict(tensors: Sequence[Given], leftovers: tuple[Leftover, ...] = ()) -> StateDict:
    return StateDict(tuple(tensor.view for tensor in tensors), {}, "", leftovers)


def plan(
    tensors: Sequence[Given],
    *,
    detection: Detection = KNOWN,
    unfit: Mapping[str, str] | None = None,
    chosen: Mapping[str, str] | None = None,
    digests: Mapping[str, bytes] | None = None,
    **options: Any,
) -> ConversionPlan:
    return make_plan(
        state_dict(tensors),
        detection,
        [tensor.placement for tensor in tensors],
        Options(**options),
        unfit={("", name): why for name, why in (unfit or {}).items()},
        chosen={("", name): Choice(known(kind), None) for name, kind in (chosen or {}).items()},
        digests=digests,
    )


def names(made: ConversionPlan) -> set[str]:
    return {job.name for job in made.jobs}


def targets(made: ConversionPlan) -> dict[str, str]:
    return {job.source: job.target.name for job in made.jobs}


def test_the_text_of_a_choice_is_the_choice_and_any_other_is_refused() -> None:
    texts: dict[str, Any] = {"ema": "use", "precision": "keep"}
    assert Options(**texts) == Options(ema=Ema.USE, precision=Precision.KEEP)
    for wrong in ({"ema": "bogus"}, {"precision": 16}, {"keep_names": "no"}, {"other": None}):
        with pytest.raises(ValueError, match="is not one of"):
            Options(**wrong)


MODEL = (
    part(Component.UNET, UNET, "0"),
    part(Component.VAE, VAE, "1"),
    part(Component.TEXT_ENCODER, TEXT_SPELLED, "2", name=TEXT),
    Given(Placement("betas", Component.SCHEDULE, "betas"), "3"),
    average(EMA, "4", UNET),
    average("model_ema.decay", "5", None),
    stranger("junk", "6"),
)


@pytest.mark.parametrize("precision", Precision)
def test_only_weights_are_cast(precision: Precision) -> None:
    """Schedule buffers, EMA bookkeeping, integers, bools and complex numbers are none."""
    tensors = (
        *MODEL,
        *(stranger(dtype.name, f"x{at}", dtype.name) for at, dtype in enumerate(DTYPES)),
    )
    # Left to the weights, what is open is float16 until they are looked at.
    eight = {"auto": "float16", "fp8_e4m3fn": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
    wanted = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", **eight}.get(
        precision.value
    )

    made = targets(plan(tensors, precision=precision, ema=Ema.KEEP, other=Action.COPY)) | targets(
        plan(MODEL, precision=precision, ema=Ema.KEEP)
    )
    made |= targets(plan(tensors[len(MODEL) :], detection=STRANGE, precision=precision))

    for tensor in tensors:
        key = tensor.placement.key
        weight = tensor.dtype in ("float64", "float32", "float16", "bfloat16") and key not in (
            "betas",
            "model_ema.decay",
        )
        if known(tensor.dtype).safetensors is not None:
            assert made[key] == (wanted if weight and wanted else tensor.dtype), key


def test_a_chosen_type_is_that_of_its_tensor_and_of_no_other() -> None:
    chosen = {UNET: "bfloat16", VAE: "float32"}
    before = plan(MODEL, precision=Precision.AUTO, ema=Ema.KEEP)

    made = plan(MODEL, precision=Precision.AUTO, ema=Ema.KEEP, chosen=chosen)

    open_ = {job.name for jobs in undecided(before) for job in jobs}
    assert open_ == {UNET, VAE, TEXT, EMA, "junk"}
    assert targets(made) == targets(before) | chosen
    (output,) = made.outputs
    ends = [tensor.offset + tensor.nbytes for tensor in output.tensors]
    assert [tensor.offset for tensor in output.tensors] == [0, *ends[:-1]]
    assert ends[-1] == output.nbytes


def test_what_fits_no_type_that_was_chosen_stays_what_it_was() -> None:
    tensors = (stranger("a", "0", "float64"), stranger("b", "1"))

    made = plan(
        tensors,
        detection=STRANGE,
        precision=Precision.AUTO,
        chosen={"a": "float32", "b": "bfloat16"},
        unfit={"a": "too large"},
    )

    assert targets(made) == {"a": "float64", "b": "bfloat16"}


def test_nothing_is_open_that_has_its_type_already_or_is_not_to_be_cast() -> None:
    kinds = ("float16", "bfloat16", "float32", "float64", "float8_e5m2", "int8", "complex64")
    tensors = [stranger(kind, str(at), kind) for at, kind in enumerate(kinds)]

    made = undecided(plan(tensors, detection=STRANGE, precision=Precision.AUTO))

    assert {job.name for jobs in made for job in jobs} == {"bfloat16", "float32", "float64"}
    kept = plan(tensors, detection=STRANGE, precision=Precision.AUTO, other=Action.COPY)
    assert undecided(kept) == []


def test_an_integer_that_no_loader_asks_for_is_left_out_because_one_stops_at_it() -> None:
    tensors = (*MODEL, stranger("steps", "9", "int64"), stranger("mask", "8", "bool"))

    made = plan(tensors)

    reasons = {drop.source: drop.reason for drop in made.drops}
    assert "int64" in reasons["steps"]
    assert "mask" in names(made)
    for kept in (
        plan(tensors, other=Action.COPY),
        plan(tensors, precision=Precision.KEEP),
        plan(tensors, dedupe=Dedupe.NONE),
        plan(tensors, keep_names=True),
        plan(tensors, detection=STRANGE),
    ):
        assert "steps" in names(kept)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_schedule_of_half_precision_is_left_out_and_one_of_single_is_written(dtype: str) -> None:
    half = Given(Placement("betas", Component.SCHEDULE, "betas"), "9", dtype)
    single = Given(Placement("betas", Component.SCHEDULE, "betas"), "9")
    rest = [tensor for tensor in MODEL if tensor.placement.key != "betas"]

    assert "betas" not in names(plan([*rest, half]))
    assert "betas" in names(plan([*rest, half], precision=Precision.KEEP))
    assert targets(plan([*rest, single]))["betas"] == "float32"


def test_a_vae_that_overflows_in_fp16_is_spared_it_unless_the_user_insists() -> None:
    sdxl = Detection("sdxl", None, ())

    assert targets(plan(MODEL, detection=sdxl))[VAE] == "float32"
    assert targets(plan(MODEL, detection=sdxl))[UNET] == "float16"
    assert targets(plan(MODEL, detection=sdxl, precision=Precision.BF16))[VAE] == "bfloat16"
    assert targets(plan(MODEL, detection=sdxl, precision=Precision.FP32))[VAE] == "float32"
    assert targets(plan(MODEL, detection=sdxl, precision=Precision.FP8_E5M2))[VAE] == "float32"
    assert targets(plan(MODEL, detection=sdxl, vae=Action.CONVERT))[VAE] == "float16"
    assert targets(plan(MODEL))[VAE] == "float16"


def test_every_tensor_is_written_aliased_or_dropped_and_only_once() -> None:
    tensors = (*MODEL, stranger("again", "6"), stranger("c", "7", "complex128"))
    left = Leftover("optimizer.exp_avg", "float32 [1]", "is outside the state dict", is_tensor=True)
    count = Leftover("epoch", "3", "is outside the state dict", is_tensor=False)
    for options in (Options(), Options(ema=Ema.USE), Options(dedupe=Dedupe.ALL, vae=Action.DROP)):
        made = make_plan(
            state_dict(tensors, (left, count)),
            KNOWN,
            [tensor.placement for tensor in tensors],
            options,
        )

        told = [
            *(job.source for job in made.jobs),
            *(alias.source for alias in made.aliases),
            *(drop.source for drop in made.drops),
        ]
        assert sorted(told) == sorted([*(t.placement.key for t in tensors), "optimizer.exp_avg"])
        assert made.leftovers == (count,)


def test_offsets_leave_no_gap_and_the_widest_types_come_first() -> None:
    tensors = [
        stranger(f"{letter}.{dtype.name}", f"{letter}{at}", dtype.name)
        for at, dtype in enumerate(DTYPES)
        for letter in "ba"
    ]

    made = plan(tensors, detection=STRANGE, precision=Precision.KEEP)

    end = 0
    for job in made.jobs:
        assert job.offset == end
        end += job.nbytes
    assert [end] == [output.nbytes for output in made.outputs]
    widths = [job.target.itemsize for job in made.jobs]
    assert widths == sorted(widths, reverse=True)


def test_names_are_canonical_unless_the_users_keys_are_to_be_kept() -> None:
    assert TEXT in names(plan(MODEL))
    assert TEXT_SPELLED in names(plan(MODEL, keep_names=True))
    assert len(names(plan(MODEL)) & {TEXT, TEXT_SPELLED}) == 1


def test_averages_are_left_out_by_default() -> None:
    made = plan(MODEL)

    assert {drop.source for drop in made.drops} == {EMA, "model_ema.decay"}
    assert targets(made)[UNET] == "float16"


@pytest.mark.parametrize("keep_names", [False, True])
def test_averages_take_the_place_and_the_name_of_their_weights(*, keep_names: bool) -> None:
    made = plan(MODEL, ema=Ema.USE, keep_names=keep_names)

    (job,) = (job for job in made.jobs if job.name == UNET)
    assert job.source == EMA
    assert {drop.source for drop in made.drops} == {UNET, "model_ema.decay"}


def test_an_average_of_another_shape_or_of_no_weight_takes_no_place() -> None:
    odd = replace(average(EMA, "4", UNET), shape=(6,))
    lost = average("model_ema.lost", "7", "model.diffusion_model.lost")

    made = plan((MODEL[0], odd, lost), ema=Ema.USE)

    assert [job.source for job in made.jobs] == [UNET]
    assert {drop.source for drop in made.drops} == {EMA, "model_ema.lost"}


def test_an_average_that_cannot_be_written_takes_no_place() -> None:
    """Safetensors has no complex128; the weight must not be left out for it."""
    copy = average(EMA, "4", UNET, dtype="complex128")

    made = plan((part(Component.UNET, UNET, "0"), copy), ema=Ema.USE)

    assert targets(made) == {UNET: "float16"}
    assert [(drop.source, "has no type" in drop.reason) for drop in made.drops] == [(EMA, True)]


def test_an_average_in_a_weights_place_is_as_demanded_as_the_weight() -> None:
    tensors = (part(Component.UNET, UNET, "0"), average(EMA, "4", UNET), stranger("a.junk", "9"))
    equal = {EMA: b"=", "a.junk": b"="}

    made = plan(tensors, ema=Ema.USE, dedupe=Dedupe.ALL, digests=equal)

    assert names(made) == {UNET}
    assert made.aliases == (Alias("a.junk", UNET, "a.junk"),)


def test_nothing_is_replaced_by_averages_that_are_dropped_with_their_part() -> None:
    made = plan(MODEL, ema=Ema.USE, unet=Action.DROP)

    reasons = {drop.source: drop.reason for drop in made.drops}
    assert reasons[UNET] == "component unet is dropped on request"
    assert UNET not in names(made)


def test_both_are_written_where_averages_are_kept() -> None:
    assert {UNET, EMA, "model_ema.decay"} <= names(plan(MODEL, ema=Ema.KEEP))


@pytest.mark.parametrize(
    ("option", "key"),
    [("unet", UNET), ("vae", VAE), ("text_encoder", TEXT_SPELLED), ("other", "junk")],
)
def test_a_part_is_copied_or_dropped_on_request(option: str, key: str) -> None:
    copy: dict[str, Any] = {option: Action.COPY}
    copied = plan(MODEL, **copy)
    assert targets(copied) == targets(plan(MODEL)) | {key: "float32"}

    drop_: dict[str, Any] = {option: Action.DROP}
    dropped = plan(MODEL, **drop_)
    assert key not in targets(dropped)
    (reason,) = (drop.reason for drop in dropped.drops if drop.source == key)
    assert "on request" in reason


def test_averages_go_with_the_unet() -> None:
    made = plan(MODEL, ema=Ema.KEEP, unet=Action.DROP)

    assert {UNET, EMA, "model_ema.decay"} <= {drop.source for drop in made.drops}


def test_strangers_on_the_same_bytes_are_stored_once() -> None:
    tensors = (stranger("b", "0"), stranger("a", "0"), stranger("c", "1"))

    made = plan(tensors, detection=STRANGE)

    assert made.aliases == (Alias("b", "a", "b"),)
    assert names(made) == {"a", "c"}
    assert names(plan(tensors, detection=STRANGE, dedupe=Dedupe.NONE)) == {"a", "b", "c"}


def test_in_a_known_family_only_strangers_are_left_out_for_lying_on_the_same_bytes() -> None:
    weight = part(Component.UNET, UNET, "0")
    demanded_twice = part(Component.VAE, VAE, "0")
    second_prefix = stranger(f"copy.{UNET}", "0")
    junk = (stranger("junk.a", "7"), stranger("junk.b", "7"))

    made = plan((weight, demanded_twice, second_prefix, *junk))

    assert names(made) == {UNET, VAE, "junk.a"}
    assert {alias.name: alias.of for alias in made.aliases} == {
        second_prefix.placement.name: VAE,
        "junk.b": "junk.a",
    }


def test_overlapping_but_different_views_are_both_written() -> None:
    whole = stranger("whole", "0")
    flat = replace(stranger("flat", "0"), shape=(6,))
    head = replace(stranger("head", "0"), shape=(3,))

    assert names(plan((whole, flat, head), detection=STRANGE)) == {"whole", "flat", "head"}


def test_a_name_that_loaders_demand_is_written_though_its_bytes_stand_elsewhere() -> None:
    """Tied weights of a known family: no loader restores a name that was left out."""
    other = part(Component.UNET, "model.diffusion_model.tied.weight", "0")

    assert {UNET, "model.diffusion_model.tied.weight"} <= names(plan((MODEL[0], other)))


def test_copies_that_no_loader_asks_for_are_stored_once_if_they_are_equal() -> None:
    tensors = (MODEL[0], average(EMA, "4", UNET), stranger("state_dict." + UNET, "9", of=UNET))
    equal = {UNET: b"=", EMA: b"=", "state_dict." + UNET: b"="}

    groups = comparable_groups(
        state_dict(tensors), KNOWN, [t.placement for t in tensors], Options(ema=Ema.KEEP)
    )
    made = plan(tensors, ema=Ema.KEEP, digests=equal)

    assert [{view.key for view in group} for group in groups] == [set(equal)]
    assert names(made) == {UNET}
    assert {(alias.name, alias.of) for alias in made.aliases} == {
        (EMA, UNET),
        ("state_dict." + UNET, UNET),
    }
    assert names(plan(tensors, ema=Ema.KEEP, digests=equal | {EMA: b"!"})) == {UNET, EMA}


@pytest.mark.parametrize("keep_names", [False, True])
def test_a_copy_is_found_under_whatever_name_its_original_is_written(*, keep_names: bool) -> None:
    copy = stranger("state_dict." + TEXT_SPELLED, "2", of=TEXT)

    made = plan((MODEL[2], copy), keep_names=keep_names)

    (job,) = made.jobs
    assert made.aliases == (Alias(copy.placement.key, job.name, copy.placement.key),)


def test_a_copy_of_a_copy_leads_to_what_is_written() -> None:
    copy = stranger("state_dict." + EMA, "0", of=EMA)
    tensors = (MODEL[0], average(EMA, "0", UNET), copy)

    made = plan(tensors, ema=Ema.KEEP)

    assert names(made) == {UNET}
    assert {alias.of for alias in made.aliases} == {UNET}


def test_equal_contents_are_stored_once_only_where_everything_equal_is() -> None:
    tensors = (stranger("a", "0"), stranger("b", "1"))
    digests = {"a": b"=", "b": b"="}

    assert names(plan(tensors, detection=STRANGE, digests=digests, dedupe=Dedupe.ALL)) == {"a"}
    for dedupe in (Dedupe.SAFE, Dedupe.NONE):
        options = Options(dedupe=dedupe)
        assert not comparable_groups(
            state_dict(tensors), STRANGE, [t.placement for t in tensors], options
        )


def test_of_equals_the_one_that_loaders_demand_is_written() -> None:
    made = plan((stranger("a copy", "0"), MODEL[0]), dedupe=Dedupe.ALL)

    assert made.aliases == (Alias("a copy", UNET, "a copy"),)


@pytest.mark.parametrize("dedupe", [Dedupe.SAFE, Dedupe.ALL])
@pytest.mark.parametrize("name", ["format", "ckptaudit.version"])
def test_a_name_that_means_something_in_the_metadata_is_no_alias(name: str, dedupe: Dedupe) -> None:
    """Its entry would be overwritten, and the tensor lost."""
    tensors = (stranger("a", "0"), stranger(name, "0"))

    assert names(plan(tensors, detection=STRANGE, dedupe=dedupe)) == {"a", name}


def test_a_tensor_called_metadata_is_dropped_and_not_written_over_the_metadata() -> None:
    made = plan((stranger("__metadata__", "0"),), detection=STRANGE)

    assert not made.jobs
    assert "reserves this name" in made.drops[0].reason


def test_empty_tensors_are_written_each_for_itself() -> None:
    tensors = [replace(stranger(key, "0"), shape=(0, 3)) for key in "ab"]

    made = plan(tensors, detection=STRANGE, dedupe=Dedupe.ALL)

    assert names(made) == {"a", "b"}
    assert [output.nbytes for output in made.outputs] == [0]


def test_what_does_not_fit_stays_as_it_is_and_so_do_its_aliases() -> None:
    """The aliases of a tensor are its equals: none of them fits."""
    tensors = (stranger("a", "0"), stranger("b", "0"), stranger("c", "1"))

    made = plan(tensors, detection=STRANGE, unfit={"a": "overflows"})

    assert targets(made) == {"a": "float32", "c": "float16"}
    assert made.aliases == (Alias("b", "a", "b"),)
    # Wider than before, it comes before what it came after.
    assert [job.source for job in made.jobs] == ["a", "c"]


def test_plans_are_pure() -> None:
    """Twice the same; and the order in the file does not show in the output."""
    there, back = plan(MODEL), plan(MODEL[::-1])

    assert plan(MODEL) == there
    assert (there.jobs, there.aliases) == (back.jobs, back.aliases)
