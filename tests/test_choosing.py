"""``--precision auto``: each tensor gets the first type that does its weights no harm."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from narrow import checkpoint
from oracle import bits, converted, metadata_of, rewrite, torch
from rounding import TYPES, nearest
from safetensors.torch import load_file, save_file

from ckptaudit.jobs.convert import convert
from ckptaudit.jobs.verify import verify
from ckptaudit.numerics import Caster, TensorStats
from ckptaudit.plan import Dedupe, Ema, Layout, OnOverflow, Options, Precision, objection
from ckptaudit.report import conversion_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ckptaudit.jobs.account import Conversion
    from ckptaudit.layouts import Family

AUTO = Options(precision=Precision.AUTO)
PLAIN = torch.linspace(-1, 1, 60)
# 65792 is 65536 and half of what follows it in bfloat16: as far off as a number can be.
HALFWAY = torch.full((5,), 65792.0)


def stats_of(numbers: list[float], target: str = "float16") -> TensorStats:
    caster = Caster(TYPES["float64"], TYPES[target])
    block = memoryview(np.array(numbers, "<f8").tobytes())
    caster.cast(block, memoryview(bytearray(len(numbers) * TYPES[target].itemsize)))
    return caster.stats


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ([65519.9, 1.0], None),
        ([65520.0, 1.0], "float16 cannot hold 1 of 2 weights"),
        ([0.1] * 99 + [1e-9], None),
        ([0.1] * 99 + [1e-9, 0.0, math.nan, math.inf], None),
        ([0.1] * 98 + [1e-9, 0.0], "in float16 1 of 99 nonzero weights would be zero"),
        ([1e-9], "in float16 1 of 1 nonzero weight would be zero"),
        ([2.0**-24, 1.5 * 2.0**-24], "in float16 its noise would be only 11.1 dB below the signal"),
        ([0.0, -0.0], None),
        ([math.nan, math.inf], None),
        ([], None),
    ],
    ids=[
        *("largest", "overflow", "one-in-100", "not-of-zeros", "one-in-99", "all-flushed"),
        *("noise", "zeros", "no-number", "nothing"),
    ],
)
def test_what_speaks_against_a_type(numbers: list[float], says: str | None) -> None:
    assert objection(stats_of(numbers), TYPES["float16"]) == says


@pytest.mark.parametrize(("decibels", "is_bad"), [(50.0, False), (49.999, True), (None, False)])
def test_noise_may_be_fifty_decibels_below_the_signal(
    decibels: float | None, *, is_bad: bool
) -> None:
    stats = replace(stats_of([0.1, 0.2]), sqnr_db=decibels)

    assert (objection(stats, TYPES["float16"]) is not None) == is_bad


def chosen(result: Conversion) -> dict[str, str]:
    return {entry.name: entry.dtype for entry in result.tensors}


def made(folder: Path, state_dict: dict[str, Any], options: Options = AUTO) -> Conversion:
    torch.save(state_dict, folder / "a.pt")
    return convert(folder / "a.pt", folder / "a.safetensors", options)


MIXED = {
    "halfway": HALFWAY,
    "large": torch.cat((PLAIN, torch.tensor([7e4]))),
    "number": torch.arange(3),
    "plain": PLAIN,
    "short": torch.tensor([1e30, 1.0]).bfloat16(),
    "small": torch.linspace(0.5, 1, 60) * 1e-6,
    "sparse": torch.cat((PLAIN, PLAIN * 1e-9)),
    "wide": torch.tensor([1e300, 1.0], dtype=torch.float64),
}


def test_each_tensor_gets_the_first_type_that_will_do(tmp_path: Path) -> None:
    result = made(tmp_path, MIXED)

    assert chosen(result) == {
        "halfway": "float32",
        "large": "bfloat16",
        "number": "int64",
        "plain": "float16",
        "short": "bfloat16",
        "small": "bfloat16",
        "sparse": "bfloat16",
        "wide": "float64",
    }
    found = converted(tmp_path / "a.safetensors")
    for name, dtype in chosen(result).items():
        assert found[name] == bits(MIXED[name].to(getattr(torch, dtype)))
    assert verify(tmp_path / "a.pt", tmp_path / "a.safetensors").equal


def test_the_report_says_why_a_type_is_not_the_first(tmp_path: Path) -> None:
    result = made(tmp_path, MIXED)

    why = {entry.name: entry.why for entry in result.tensors}
    assert why == {
        "halfway": "float16 cannot hold 5 of 5 weights; "
        "in bfloat16 its noise would be only 48.2 dB below the signal",
        "large": "float16 cannot hold 1 of 61 weights",
        "number": None,
        "plain": None,
        "short": "float16 cannot hold 1 of 2 weights",
        "small": "in float16 its noise would be only 32.7 dB below the signal",
        "sparse": "in float16 60 of 120 nonzero weights would be zero",
        "wide": None,
    }
    assert (
        "--precision auto, of 7 tensors that would be cast: 1 float16, 4 bfloat16, 2 float32"
        in (result.notes)
    )
    # It was to be float32, which does not hold it either.
    (finding,) = result.findings
    assert finding.message.startswith("float32 cannot hold 1 of 2 weights")
    assert "large is bfloat16: float16 cannot hold 1 of 61 weights" in conversion_text(result)


def test_a_dry_run_reads_the_weights_and_says_so(tmp_path: Path) -> None:
    wet = made(tmp_path, MIXED)
    dry = convert(tmp_path / "a.pt", tmp_path / "b.safetensors", AUTO, dry_run=True)

    assert not (tmp_path / "b.safetensors").exists()
    told = {**chosen(wet), "wide": "float32"}
    assert chosen(dry) == told
    assert any("weights were read to choose types" in note for note in dry.notes)


def test_progress_never_goes_back(tmp_path: Path) -> None:
    torch.save(MIXED, tmp_path / "a.pt")
    told: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        told.append((done, total))

    convert(tmp_path / "a.pt", tmp_path / "a.safetensors", AUTO, progress=note)
    written, told[:] = told[:], []
    verify(tmp_path / "a.pt", tmp_path / "a.safetensors", progress=note)

    for steps in (written, told):
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert all(done <= total for done, total in steps)
        assert steps[-1][0] == steps[-1][1]


def test_a_second_name_gets_no_type_of_its_own(tmp_path: Path) -> None:
    large = MIXED["large"]
    result = made(tmp_path, {"b": large, "a": large, "c": large.clone()}, replace(
        AUTO, dedupe=Dedupe.ALL
    ))  # fmt: skip

    assert chosen(result) == {"a": "bfloat16"}
    assert [alias.name for alias in result.aliases] == ["b", "c"]
    assert verify(tmp_path / "a.pt", tmp_path / "a.safetensors").equal


@pytest.mark.parametrize("on_overflow", OnOverflow)
def test_nothing_is_clamped_that_another_type_holds(
    on_overflow: OnOverflow, tmp_path: Path
) -> None:
    result = made(tmp_path, {"large": MIXED["large"]}, replace(AUTO, on_overflow=on_overflow))

    assert chosen(result) == {"large": "bfloat16"}
    assert result.findings == ()


@pytest.mark.parametrize(
    ("name", "dtype", "says"),
    [
        ("plain", torch.bfloat16, "is bfloat16 where float16 was to be written"),
        ("small", torch.float16, "is float16 where bfloat16 was to be written"),
        ("plain", torch.float32, "was not cast to float16, though every weight fits"),
        ("large", torch.float32, "was not cast to bfloat16, though every weight fits"),
        ("halfway", torch.bfloat16, "is bfloat16 where float32 was to be written"),
    ],
)
def test_verify_chooses_for_itself(name: str, dtype: Any, says: str, tmp_path: Path) -> None:
    made(tmp_path, MIXED)
    output = tmp_path / "a.safetensors"
    tensors = dict(load_file(output)) | {name: MIXED[name].to(dtype)}
    rewrite(output, tensors, metadata_of(output))

    done = verify(tmp_path / "a.pt", output)

    assert not done.equal
    assert {proof.name: proof.problem for proof in done.tensors if proof.problem} == {name: says}


def test_a_claim_of_auto_is_not_believed(tmp_path: Path) -> None:
    made(tmp_path, MIXED, Options())
    output = tmp_path / "a.safetensors"
    metadata = metadata_of(output) | {"ckptaudit.options": json.dumps(asdict(AUTO))}
    rewrite(output, load_file(output), metadata)

    done = verify(tmp_path / "a.pt", output)

    # The others became what they would have become, for another reason.
    assert {proof.name for proof in done.tensors if not proof.equal} == {"large", "small", "sparse"}


WHOLE = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
PART = "text_model.encoder.layers.0.self_attn.{}_proj.weight"


@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_a_tensor_and_the_parts_it_is_cut_into_or_put_together_from_have_one_type(
    thin_family: Family, tmp_path: Path
) -> None:
    """One part overflows, one has eight bits of mantissa anyway, one would do with float16."""
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    tensors[WHOLE] = tensors[WHOLE].clone()
    tensors[WHOLE][0, 0] = 1e6
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt")
    folder, back = tmp_path / "out", tmp_path / "b.safetensors"

    result = convert(tmp_path / "a.ckpt", folder, replace(AUTO, layout=Layout.DIFFUSERS))

    text = load_file(folder / "text_encoder/model.safetensors")
    assert {text[PART.format(part)].dtype for part in "qkv"} == {torch.bfloat16}
    entries = [entry for entry in result.tensors if entry.source == WHOLE]
    assert {entry.why for entry in entries} == {"float16 cannot hold 1 of 12288 weights"}
    assert {e.dtype for e in result.tensors if e not in entries} == {"float16"}
    assert verify(tmp_path / "a.ckpt", folder / "text_encoder/model.safetensors").equal
    assert verify(tmp_path / "a.ckpt", folder).equal

    text[PART.format("q")] = text[PART.format("q")].float()
    text[PART.format("k")] = torch.ones(64, 64).half()
    save_file(text, folder / "text_encoder/model.safetensors")
    result = convert(folder, back, AUTO)

    assert load_file(back)[WHOLE].dtype == torch.bfloat16
    assert {e.why for e in result.tensors if e.name == WHOLE} == {
        "float16 cannot hold 1 of 12288 weights"
    }
    assert verify(folder, back).equal


@pytest.mark.parametrize("ema", Ema)
@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_averages_and_weights_choose_each_for_itself(
    thin_family: Family, ema: Ema, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    key = "model.diffusion_model.out.2.bias"
    copies = {
        entry.key: tensors[entry.of].clone()
        for entry in thin_family.inventory(ema=True)
        if entry.of is not None and entry.of in tensors
    }
    average = next(entry.key for entry in thin_family.inventory(ema=True) if entry.of == key)
    copies[average] = copies[average] + 1e6
    torch.save({"state_dict": tensors | copies}, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", replace(AUTO, ema=ema))

    others = {entry.source for entry in result.tensors if entry.dtype == "bfloat16"}
    assert others == (set() if ema is Ema.DROP else {average})
    assert verify(tmp_path / "a.ckpt", tmp_path / "a.safetensors").equal


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_weights_of_another_file_choose_as_those_of_the_model_do(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    key = "first_stage_model.quant_conv.bias"
    torch.save({"state_dict": tensors | {key: tensors[key] + 1e6}}, tmp_path / "b.ckpt")
    output = tmp_path / "a.safetensors"

    result = convert(tmp_path / "a.ckpt", output, AUTO, replace_vae=tmp_path / "b.ckpt")

    assert {entry.name for entry in result.tensors if entry.dtype == "bfloat16"} == {key}
    assert verify(tmp_path / "a.ckpt", output, replace_vae=tmp_path / "b.ckpt").equal
    assert not verify(tmp_path / "a.ckpt", output, replace_vae=tmp_path / "a.ckpt").equal


@pytest.mark.parametrize("thin_family", ["sdxl"], indirect=True)
def test_a_vae_that_cannot_run_in_fp16_is_spared_the_choice(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")

    result = convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", AUTO)

    dtypes = {e.dtype for e in result.tensors if e.component.value == "vae"}
    assert dtypes == {"float32"}
    assert any("the VAE stays float32" in note for note in result.notes)
    assert verify(tmp_path / "a.ckpt", tmp_path / "a.safetensors").equal


def expected(x: NDArray[np.float64], source: str) -> str:
    """The first type without objection, by numpy; float64 that float32 does not hold stays."""
    finite = x[np.isfinite(x)]
    for name in ("float16", "bfloat16"):
        y = finite if name == source else nearest(finite, TYPES[name])
        nonzero = np.count_nonzero(finite)
        noise = float(((y - finite) ** 2).sum())
        signal = float((finite**2).sum())
        is_quiet = noise == 0 or signal / noise >= 1e5
        flushed = np.count_nonzero((y == 0) & (finite != 0))
        if np.isfinite(y).all() and 100 * flushed <= nonzero and is_quiet:
            return name
    fits = np.isfinite(nearest(finite, TYPES["float32"])).all()
    return "float32" if fits else source


@settings(max_examples=150)
@given(
    numbers=st.lists(
        st.floats(-1e10, 1e10, width=32)
        | st.floats(width=64)
        | st.sampled_from([65519.0, 65520.0, 65792.0, 1e-7, 3e-8, 1e-9, 0.0, 2.0**-14]),
        max_size=12,
    ),
    plain=st.sampled_from([0, 0, 98, 99, 600]),
    source=st.sampled_from(["float64", "float32", "bfloat16", "float16"]),
)
def test_the_choice_is_the_one_that_numpy_makes(
    numbers: list[float], plain: int, source: str
) -> None:
    kind = getattr(torch, source)
    tensor = torch.tensor([*numbers, *([1 / 3] * plain)], dtype=torch.float64).to(kind)
    x = tensor.double().numpy()
    sizes = np.abs(x[np.isfinite(x) & (x != 0)])
    if sizes.size and not 1e-140 < sizes.min() <= sizes.max() < 1e140:
        return
    with TemporaryDirectory() as folder:
        result = made(Path(folder), {"a": tensor})
        assert verify(Path(folder) / "a.pt", Path(folder) / "a.safetensors").equal

    assert chosen(result) == {"a": expected(x, source)}
