"""What parts take: every byte of the source is written, or told why it is not."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import pytest
from commands import audit
from narrow import checkpoint
from oracle import torch

from ckptaudit import Action, Dedupe, Ema, Layout, Options, Precision, convert, inspect
from ckptaudit.containers import Storage
from ckptaudit.dtypes import named
from ckptaudit.jobs.planning import meaning_of
from ckptaudit.jobs.sizes import sizes_of
from ckptaudit.layouts import FAMILIES, Component
from ckptaudit.report.figures import memory
from ckptaudit.tensors import StateDict, TensorView

if TYPE_CHECKING:
    from pathlib import Path

    from ckptaudit.layouts import Family


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(precision=Precision.FP32),
        Options(ema=Ema.USE),
        Options(ema=Ema.KEEP, dedupe=Dedupe.ALL),
        Options(other=Action.DROP, vae=Action.DROP),
        Options(layout=Layout.DIFFUSERS),
        Options(split=True),
    ],
    ids=["default", "wider", "averages", "once", "parts", "diffusers", "split"],
)
@pytest.mark.parametrize("dry_run", [True, False], ids=["planned", "written"])
@pytest.mark.parametrize("thin_family", ["sd2"], indirect=True)
def test_what_was_saved_is_all_that_is_missing(
    thin_family: Family, tmp_path: Path, options: Options, *, dry_run: bool
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    for number, entry in enumerate(thin_family.inventory(ema=True)):
        if entry.of is not None:
            tensors[entry.key] = tensors[entry.of].half() if number % 2 else tensors[entry.of]
    tensors["mine"] = torch.arange(5)
    torch.save(tensors, tmp_path / "a.ckpt")
    out = tmp_path / ("out" if options.makes_folder else "out.safetensors")

    result = convert(tmp_path / "a.ckpt", out, options, dry_run=dry_run)

    assert result.sizes.saved is not None
    saved = result.sizes.saved
    before = {part.component: part.nbytes for part in result.sizes.parts}
    assert sum(before.values()) == sum(t.numel() * t.element_size() for t in tensors.values())
    after = sum(part.written or 0 for part in result.sizes.parts)
    assert saved.ema + saved.dedupe + saved.others + saved.cast == sum(before.values()) - after
    assert saved.added == 0
    if not dry_run and not options.makes_folder:
        header = int.from_bytes(out.read_bytes()[:8], "little")
        assert after == out.stat().st_size - 8 - header


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_what_another_file_adds_is_told_apart(thin_family: Family, tmp_path: Path) -> None:
    """An autoencoder that takes the place of another weighs in the output, not in the source."""
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    halves = {key: t.half() if t.is_floating_point() else t for key, t in tensors.items()}
    torch.save(halves, tmp_path / "b.ckpt")
    vae = sum(4 * t.numel() for key, t in tensors.items() if key.startswith("first_stage_model."))
    keep = Options(precision=Precision.KEEP)
    alone = convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", keep).sizes

    sizes = convert(
        tmp_path / "a.ckpt",
        tmp_path / "c.safetensors",
        keep,
        replace_vae=tmp_path / "b.ckpt",
    ).sizes

    (part,) = (part for part in sizes.parts if part.component is Component.VAE)
    assert (part.nbytes, part.written) == (vae, vae // 2)
    assert sizes.saved is not None
    assert (sizes.saved.others, sizes.saved.added, sizes.saved.cast) == (vae, vae // 2, 0)
    assert sizes.memory == alone.memory


@pytest.mark.parametrize("thin_family", ["sd1"], indirect=True)
def test_each_saving_is_told_by_its_reason(thin_family: Family, tmp_path: Path) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    weights = [entry for entry in thin_family.inventory(ema=True) if entry.of is not None]
    for entry in weights:
        tensors[entry.key] = tensors[entry.of or ""]
    torch.save(tensors, tmp_path / "a.ckpt")
    averaged = sum(4 * tensors[entry.key].numel() for entry in weights)
    out = tmp_path / "a.safetensors"

    dropped = convert(tmp_path / "a.ckpt", out, Options(precision=Precision.KEEP)).sizes
    kept = Options(precision=Precision.KEEP, ema=Ema.KEEP)
    once = convert(tmp_path / "a.ckpt", out, kept, overwrite=True).sizes
    text = audit("convert", tmp_path / "a.ckpt", "-o", out, "--if-exists", "overwrite").out
    page = audit("convert", tmp_path / "a.ckpt", "-o", out, "--dry-run", "-f", "md").out

    assert dropped.saved is not None
    assert (dropped.saved.ema, dropped.saved.dedupe, dropped.saved.cast) == (averaged, 0, 0)
    assert once.saved is not None
    assert (once.saved.ema, once.saved.dedupe, once.saved.cast) == (0, averaged, 0)
    for document in (text, page):
        assert "by averaged copies left out, " in document
        assert "by narrower types\n" in document
    assert "| ema | 686/686 | " in page
    assert " became 0 B |" in page


def whole(family: Family) -> StateDict:
    """A complete file of *family* with averages, of which nothing is ever read."""
    views = []
    for entry in family.inventory(ema=True):
        dtype, numel = named(entry.dtype), prod(entry.shape)
        stored = Storage(entry.key, dtype, numel, 0, numel * dtype.itemsize, "cpu", "r", typed=True)
        stride = tuple(prod(entry.shape[axis + 1 :]) for axis in range(len(entry.shape)))
        views.append(TensorView(entry.key, stored, dtype, entry.shape, stride, 0))
    return StateDict(tuple(views), {}, "", ())


@pytest.mark.parametrize(
    ("family", "parameters", "told"),
    [
        (
            "sd1",
            1_066_235_307,
            [
                (
                    "weights in fp32: 4.26 GB, on a card 99% of 4 GB, 66% of 6 GB, 50% of 8 GB, "
                    "33% of 12 GB"
                ),
                (
                    "weights in fp16 or bf16: 2.13 GB, on a card 50% of 4 GB, 33% of 6 GB, 25% of "
                    "8 GB, 17% of 12 GB"
                ),
            ],
        ),
        (
            "sdxl",
            3_468_837_868,
            [
                "weights in fp32: 13.88 GB, more than cards of 4/6/8/12 GB have",
                (
                    "weights in fp16 or bf16: 6.94 GB, more than cards of 4/6 GB have, "
                    "on a card 81% of 8 GB, 54% of 12 GB"
                ),
            ],
        ),
    ],
)
def test_the_weights_that_make_an_image_are_held_against_cards(
    family: str, parameters: int, told: list[str]
) -> None:
    """Neither averages nor schedules are loaded for it; positions stay what they are."""
    state_dict = whole(FAMILIES[family])

    sizes = sizes_of(state_dict, meaning_of(state_dict))

    assert [each.precision for each in sizes.memory] == ["fp32", "fp16", "bf16"]
    assert [each.nbytes - 8 * 77 for each in sizes.memory] == [
        4 * parameters,
        2 * parameters,
        2 * parameters,
    ]
    assert [use.gigabytes for use in sizes.memory[0].cards] == [4, 6, 8, 12]
    assert sizes.memory[0].cards[0].share == pytest.approx(4 * parameters / 2**32, abs=1e-3)
    *lines, apart = memory(sizes)
    assert lines == told
    assert "not counted: activations" in apart


def test_next_to_nothing_is_held_against_no_card(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")

    sizes = inspect(tmp_path / "a.pt", with_hash=False).sizes

    assert memory(sizes) == ["weights in fp32: 12 B", "weights in fp16 or bf16: 6 B"]
    assert sizes.saved is None
    assert [(part.component, part.written) for part in sizes.parts] == [(Component.OTHER, None)]
