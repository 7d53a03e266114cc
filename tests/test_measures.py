"""Statistics of an inspection: those that a conversion would find, tensor by tensor."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import pytest
from commands import audit
from narrow import checkpoint
from oracle import Made, torch, write_sd1

from ckptaudit import (
    Dedupe,
    Ema,
    Inspection,
    OnOverflow,
    Options,
    Precision,
    convert,
    inspect,
)
from ckptaudit.jobs import measuring
from ckptaudit.layouts import Component

if TYPE_CHECKING:
    from pathlib import Path

    from ckptaudit.jobs.measures import Measured
    from ckptaudit.layouts import Family


def measured(result: Inspection) -> dict[str, Measured]:
    found = {tensor.key: tensor.stats for tensor in result.tensors}
    stats = {key: each for key, each in found.items() if each is not None}
    assert stats.keys() == found.keys()
    return stats


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16, Precision.KEEP])
def test_an_inspection_foresees_what_a_conversion_finds(
    tmp_path: Path, precision: Precision
) -> None:
    plants = ("overflow:9", "nan:5", "inf:3", "flush:7", "subnormal:4")
    write_sd1(tmp_path / "a.ckpt", Made(plants=plants, seed=3, bare=True), ema=True)
    clamp = OnOverflow.CLAMP
    options = Options(precision, clamp, dedupe=Dedupe.NONE, ema=Ema.KEEP)

    foreseen = measured(inspect(tmp_path / "a.ckpt", with_hash=False, with_stats=True))
    entries = convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", options).tensors

    assert {entry.source for entry in entries} == foreseen.keys()
    for entry in entries:
        of = foreseen[entry.source]
        told = {"float16": of.float16, "bfloat16": of.bfloat16}.get(entry.dtype, of.held)
        assert told is not None
        assert entry.stats is not None
        # What is clamped has an error, what becomes infinite has none.
        of_clamped = {"max_abs_error", "sqnr_db", "signal", "noise"} if told.overflowed else set()
        for field in fields(told):
            expected, found = getattr(told, field.name), getattr(entry.stats, field.name)
            if field.name not in {"histogram", *of_clamped}:
                assert found == expected, (entry.source, field.name)


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_a_part_is_all_of_its_tensors_as_if_they_were_one(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    tensors["first_stage_model.quant_conv.bias"][:3] = torch.tensor([1e5, 0.0, 1e-9])
    torch.save(tensors, tmp_path / "a.ckpt")
    own = [t.numpy().ravel() for k, t in tensors.items() if k.startswith("first_stage_model.")]
    values = np.concatenate(own).astype(np.float64)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).astype(np.float64)
    kept = np.isfinite(halves)

    result = inspect(tmp_path / "a.ckpt", with_hash=False, with_stats=True)

    told = [part.component.value for part in result.stats]
    assert told == ["unet", "vae", "text_encoder", "schedule"]
    (part,) = (part.stats for part in result.stats if part.component is Component.VAE)
    assert part.held.numel == values.size
    assert (part.held.min, part.held.max) == (values.min(), values.max())
    assert part.held.mean == pytest.approx(values.mean())
    assert part.held.std == pytest.approx(values.std())
    assert part.held.zeros == np.count_nonzero(values == 0)
    assert part.held.histogram is not None
    assert sum(count for _, count in part.held.histogram) == np.count_nonzero(values)
    assert part.float16 is not None
    assert part.float16.overflowed == 1
    assert part.float16.flushed == np.count_nonzero((halves == 0) & (values != 0)) > 0
    noise = ((halves - values)[kept] ** 2).sum()
    assert part.float16.sqnr_db == pytest.approx(10 * np.log10((values[kept] ** 2).sum() / noise))


def test_integers_are_described_and_not_cast(tmp_path: Path) -> None:
    torch.save({"n": torch.tensor([3, -4, 0]), "b": torch.tensor([True])}, tmp_path / "a.pt")

    result = inspect(tmp_path / "a.pt", with_stats=True)

    stats = measured(result)
    assert (stats["n"].held.min, stats["n"].held.max, stats["n"].held.zeros) == (-4, 3, 1)
    assert {of.float16 for of in stats.values()} == {None}
    assert result.stats == ()


def test_what_is_half_already_costs_nothing(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(50).half(), "v": torch.randn(50).bfloat16()}, tmp_path / "a.pt")

    stats = measured(inspect(tmp_path / "a.pt", with_stats=True))

    assert stats["w"].float16 == stats["w"].held
    assert stats["v"].bfloat16 == stats["v"].held
    assert stats["w"].bfloat16 is not None
    assert stats["w"].bfloat16.sqnr_db is not None


def test_many_processes_measure_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sd1(tmp_path / "a.ckpt", Made(non_contiguous=5))
    alone = inspect(tmp_path / "a.ckpt", with_hash=False, with_stats=True)
    monkeypatch.setattr(measuring, "_LEAST_LANE_BYTES", 1000)
    monkeypatch.setattr(measuring, "lanes_at_hand", lambda _beside: 3)

    assert inspect(tmp_path / "a.ckpt", with_hash=False, with_stats=True) == alone


@pytest.mark.parametrize("options", [[], ["--no-hash"]], ids=["hashed", "unhashed"])
def test_statistics_are_told_where_they_are_asked_for(tmp_path: Path, options: list[str]) -> None:
    torch.save({"w": torch.tensor([1.0, 7e4, 1e-9, 0.0])}, tmp_path / "a.pt")
    path = str(tmp_path / "a.pt")

    text = audit("inspect", "--stats", path, *options)
    page = audit("inspect", "--stats", path, *options, "-f", "md")
    (told,) = audit("inspect", "--stats", path, *options, "-f", "json").files
    (untold,) = audit("inspect", path, *options, "-f", "json").files

    assert (
        "other holds 4 values from 0 to 7e+04, mean 1.75e+04, std 3.031e+04, 1 of them" in text.out
    )
    assert "other as fp16: 1 overflowed, 1 flushed to zero, 0 subnormal" in text.out
    assert "other as bf16: 0 overflowed, 0 flushed to zero, 0 subnormal, largest error" in text.out
    assert "| other | 4 | 0 | 7e+04 | 1.75e+04 | 3.031e+04 | 1 |" in page.out
    assert "| other | fp16 | 1 | 1 | 0 | 1e-09 | 180.0 |" in page.out
    assert told["tensors"][0]["stats"]["float16"]["overflowed"] == 1
    assert (untold["stats"], untold["tensors"][0]["stats"]) == ([], None)
    assert (told["identity"] is None) is bool(options)


# What fp16 would do


def tensors_at_risk() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    plain = torch.randn(4000) / 20
    two_sizes = torch.cat([plain[:3000], plain[3000:] * 1e-8])
    huge = plain.clone()
    huge[7] = 1e5
    beyond = plain.double()
    beyond[7] = 1e39
    return {
        "plain": plain,
        "overflows": huge,
        "overflows-in-both": beyond,
        "flushes": two_sizes,
        "is-small": plain * 1e-4,
        "is-small-already": (plain * 1e-4).half(),
        "zero": torch.zeros(30),
        "ids": torch.arange(9),
    }


def test_tensors_at_risk_are_those_that_auto_would_spare(tmp_path: Path) -> None:
    torch.save(tensors_at_risk(), tmp_path / "a.pt")

    result = inspect(tmp_path / "a.pt", with_hash=False, with_stats=True)
    chosen = convert(
        tmp_path / "a.pt", tmp_path / "a.safetensors", Options(precision=Precision.AUTO)
    )

    found = {risk.key: risk for risk in result.risks}
    assert list(found) == ["overflows", "overflows-in-both", "flushes", "is-small"]
    assert found["overflows"].against_float16 == "float16 cannot hold 1 of 4000 weights"
    assert found["flushes"].against_float16 is not None
    assert "nonzero weights would be zero" in found["flushes"].against_float16
    assert "noise would be only" in (found["is-small"].against_float16 or "")
    better = {key for key, risk in found.items() if risk.better_in_bfloat16}
    assert better == {"overflows", "is-small"}
    written = {entry.source: entry.dtype for entry in chosen.tensors}
    for key, risk in found.items():
        assert written[key] in {risk.chosen, "float64"}
    assert {written[key] for key in written.keys() - found.keys()} == {"float16", "int64"}


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_what_no_conversion_casts_is_at_no_risk(thin_family: Family, tmp_path: Path) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    tensors["betas"] = torch.full((1000,), 1e9)
    tensors["model_ema.decay"] = torch.tensor(1e9)
    torch.save(tensors, tmp_path / "a.ckpt")

    assert inspect(tmp_path / "a.ckpt", with_hash=False, with_stats=True).risks == ()


def test_risks_are_told_to_people(tmp_path: Path) -> None:
    torch.save(tensors_at_risk(), tmp_path / "a.pt")

    text = audit("inspect", "--stats", tmp_path / "a.pt").out
    page = audit("inspect", "--stats", tmp_path / "a.pt", "-f", "md").out

    said = "overflows: float16 cannot hold 1 of 4000 weights; bfloat16 keeps more of it (auto: bfl"
    assert f"  risk: {said}" in text
    assert f"At risk:\n\n* `{said}" in page
