"""Stable Diffusion 1.x: parts, averages, spellings, and exact counts of what was planted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from oracle import Made, aliases_in, bits, load, sd1_entries, write_sd1, written

from ckptaudit.jobs.convert import convert
from ckptaudit.layouts import FAMILIES, Component
from ckptaudit.plan import Action, Dedupe, Ema, OnOverflow, Options, Precision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptaudit.jobs.account import Conversion

EMA_COUNT = sum(entry.component is Component.EMA for entry in sd1_entries(ema=True))
NAMES = {entry.key for entry in sd1_entries()}
SPELLED = {entry.key for entry in sd1_entries(variant="novelai")}
Source = tuple["Path", dict[str, Any]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Source]:
    """Writes each kind of checkpoint once; gives its path and its state dict as torch has it."""
    made: dict[str, Source] = {}

    def make(options: Made | None = None, **more: Any) -> Source:
        name = f"{options}{more}"
        if name not in made:
            folder = tmp_path_factory.mktemp("sd1")
            write_sd1(folder / "model.ckpt", options, **more)
            # torch does not load what Lightning adds; without it the tensors are the same.
            twin = replace(options or Made(), lightning=False, bare=True)
            write_sd1(folder / "twin.ckpt", twin, **more)
            made[name] = folder / "model.ckpt", load(folder / "twin.ckpt")
        return made[name]

    return make


def run(source: Source, folder: Path, **options: Any) -> tuple[Conversion, dict[str, Any]]:
    output = folder / "out.safetensors"
    result = convert(source[0], output, Options(**options))
    assert result.family == "sd1"
    return result, written(output)


def test_weights_become_half_and_buffers_and_counters_stay(
    make: Callable[..., Source], tmp_path: Path
) -> None:
    """Schedule buffers are computed with, and position ids are integers."""
    source = make(Made(bare=True))

    result, found = run(source, tmp_path)

    assert found.keys() == source[1].keys() == NAMES
    schedule = FAMILIES["sd1"].inventory()
    apart = {entry.key for entry in schedule if entry.component is Component.SCHEDULE}
    apart |= {key for key in NAMES if key.endswith("position_ids")}
    assert len(apart & NAMES) == 13
    for key, tensor in source[1].items():
        assert found[key] == bits(tensor if key in apart else tensor.half()), key
    assert result.dropped == ()


def test_averages_are_left_out_and_accounted_for(
    make: Callable[..., Source], tmp_path: Path
) -> None:
    source = make(Made(lightning=True), ema=True)

    result, found = run(source, tmp_path, precision=Precision.KEEP)

    assert found.keys() == NAMES
    reasons = Counter(drop.reason.split(" ")[0] for drop in result.dropped)
    # Two moments for each of four weights, and the monitored score twice.
    assert sum(reasons.values()) == EMA_COUNT + 4 * 2 + 2
    assert {drop.source for drop in result.dropped if drop.source.startswith("optimizer")} == {
        f"optimizer_states[0].state[{at}].{moment}"
        for at in range(4)
        for moment in ("exp_avg", "exp_avg_sq")
    }


def test_averages_replace_the_weights_on_request(
    make: Callable[..., Source], tmp_path: Path
) -> None:
    source = make(Made(lightning=True), ema=True)
    copies = {entry.of: entry.key for entry in sd1_entries(ema=True) if entry.of}

    result, found = run(source, tmp_path, ema=Ema.USE, precision=Precision.KEEP)

    assert found.keys() == NAMES
    for key, copy in copies.items():
        if copy in source[1] and key in source[1]:
            assert found[key] == bits(source[1][copy])
            assert found[key] != bits(source[1][key])
    without = sum(
        1
        for entry in sd1_entries()
        if entry.component is Component.UNET and copies.get(entry.key) not in source[1]
    )
    noted = [note for note in result.notes if "no averaged copy" in note]
    assert bool(noted) == bool(without)


def test_a_file_without_averages_says_so_where_they_were_asked_for(
    make: Callable[..., Source], tmp_path: Path
) -> None:
    result, found = run(make(Made(bare=True)), tmp_path, ema=Ema.USE)

    assert found.keys() == NAMES
    assert any("holds no averaged (EMA) copies" in note for note in result.notes)


def test_averages_stay_beside_the_weights_on_request(
    make: Callable[..., Source], tmp_path: Path
) -> None:
    source = make(Made(lightning=True), ema=True)

    result, found = run(source, tmp_path, ema=Ema.KEEP)

    assert found.keys() == source[1].keys()
    assert result.aliases == ()


@pytest.mark.parametrize("dedupe", Dedupe)
def test_averages_equal_to_the_weights_are_stored_once(
    make: Callable[..., Source], dedupe: Dedupe, tmp_path: Path
) -> None:
    source = make(Made(bare=True, ema_identical=True), ema=True)

    result, found = run(source, tmp_path, ema=Ema.KEEP, dedupe=dedupe)

    aliases = aliases_in(tmp_path / "out.safetensors")
    assert aliases == {alias.name: alias.of for alias in result.aliases}
    if dedupe is Dedupe.NONE:
        assert aliases == {}
    else:
        copies = [entry for entry in sd1_entries(ema=True) if entry.of in source[1]]
        assert len(copies) > 300
        assert {entry.key for entry in copies} <= aliases.keys()
    assert found.keys() | aliases.keys() == source[1].keys()
    for name, kept in aliases.items():
        assert bits(source[1][name]) == bits(source[1][kept])
    if dedupe is Dedupe.SAFE:
        assert found.keys() >= NAMES


def test_the_novelai_spelling_becomes_canonical(
    make: Callable[..., Source], tmp_path: Path
) -> None:
    source = make(Made(), variant="novelai")
    assert source[1].keys() == SPELLED != NAMES

    result, found = run(source, tmp_path)

    assert result.variant == "novelai"
    assert found.keys() == NAMES
    renamed = {entry.source: entry.name for entry in result.tensors if entry.source != entry.name}
    assert renamed.keys() == SPELLED - NAMES
    for spelled, name in renamed.items():
        tensor = source[1][spelled]
        assert found[name] == bits(tensor.half() if tensor.is_floating_point() else tensor)


def test_a_spelling_is_kept_on_request(make: Callable[..., Source], tmp_path: Path) -> None:
    _, found = run(make(Made(), variant="novelai"), tmp_path, keep_names=True)

    assert found.keys() == SPELLED


def test_a_second_prefix_is_written_once_and_every_demanded_name_is(
    make: Callable[..., Source], tmp_path: Path
) -> None:
    """The keys under it are strangers to the family, on the same bytes as its own."""
    source = make(Made(bare=True, aliases=("4",)))
    strangers = source[1].keys() - NAMES
    assert len(strangers) == 4

    for dedupe, stored in (
        (Dedupe.SAFE, NAMES),
        (Dedupe.NONE, NAMES | strangers),
        # By content some names of the family itself are equal, and stored once.
        (Dedupe.ALL, None),
    ):
        (tmp_path / dedupe.value).mkdir()
        result, found = run(source, tmp_path / dedupe.value, dedupe=dedupe)
        aliases = {alias.name: alias.of for alias in result.aliases}
        assert found.keys() | aliases.keys() == NAMES | strangers
        assert found.keys() & aliases.keys() == set()
        assert set(aliases.values()) <= found.keys()
        if stored is not None:
            assert found.keys() == stored
        if dedupe is not Dedupe.NONE:
            assert aliases.keys() >= strangers
            assert set(aliases.values()) <= NAMES


@pytest.mark.parametrize(
    ("option", "component"),
    [
        ("unet", Component.UNET),
        ("vae", Component.VAE),
        ("text_encoder", Component.TEXT_ENCODER),
        ("other", Component.OTHER),
    ],
)
@pytest.mark.parametrize("action", [Action.COPY, Action.DROP])
def test_each_part_is_copied_or_dropped_for_itself(
    make: Callable[..., Source], option: str, component: Component, action: Action, tmp_path: Path
) -> None:
    source = make(Made(bare=True, aliases=("4",)))
    part = {entry.key for entry in sd1_entries() if entry.component is component}
    if component is Component.OTHER:
        part = set(source[1]) - NAMES
    if (component, action) == (Component.UNET, Action.DROP):
        part |= {entry.key for entry in sd1_entries() if entry.component is Component.SCHEDULE}

    result, found = run(source, tmp_path, dedupe=Dedupe.NONE, **{option: action})

    if action is Action.DROP:
        assert found.keys() == source[1].keys() - part
        assert {drop.source for drop in result.dropped} == part
        assert all("on request" in drop.reason for drop in result.dropped)
    else:
        assert found.keys() == source[1].keys()
        assert {key for key in part if found[key] != bits(source[1][key])} == set()
        other = "model.diffusion_model.out.0.bias" if option != "unet" else "first_stage_model."
        some = next(key for key in NAMES - part if key.startswith(other))
        assert found[some] == bits(source[1][some].half())


def test_counts_are_those_of_what_was_planted(tmp_path: Path) -> None:
    plants = ("overflow:9", "nan:5", "inf:3", "flush:7", "subnormal:4")
    path = tmp_path / "model.ckpt"
    made = write_sd1(path, Made(bare=True, plants=plants, seed=3, non_contiguous=5))

    result = convert(path, tmp_path / "out.safetensors", Options(dedupe=Dedupe.NONE))

    kept = {finding.record for finding in result.findings if finding.rule == "CKA301"}
    assert kept == set(made.planted["overflow"])
    odd = {finding.record for finding in result.findings if finding.rule == "CKA302"}
    assert odd == set(made.planted["nan"]) | set(made.planted["inf"])
    dtypes = {entry.source: entry.dtype for entry in result.tensors}
    assert {dtypes[key] for key in kept} == {"float32"}
    clamped = Options(on_overflow=OnOverflow.CLAMP, dedupe=Dedupe.NONE)
    lossy = convert(path, tmp_path / "clamped.safetensors", clamped)
    for component, counts in made.counts.items():
        stats = [
            entry.stats
            for entry in lossy.tensors
            if entry.component.value == component and entry.dtype == "float16"
        ]
        for name in ("numel", "nan", "inf", "overflowed", "flushed", "subnormal"):
            total = sum(getattr(each, name) for each in stats if each is not None)
            assert total == counts[name], (component, name)
