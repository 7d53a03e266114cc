"""Another VAE in place of a model's own: it is what converting both and joining them would give.

Models here are narrow ones of the real families: every layer is there, and is thin.
"""

from __future__ import annotations

import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import assert_one_clear_line, audit, names_in
from hypothesis import given, settings
from hypothesis import strategies as st
from narrow import checkpoint, moved, narrow
from oracle import bits, metadata_of, rewrite, torch, written
from safetensors.torch import load_file, save_file
from samples import HOSTILE

from ckptaudit import (
    Action,
    Dedupe,
    Ema,
    Incomplete,
    Layout,
    OnOverflow,
    Options,
    OutputFailed,
    Precision,
    Refused,
    SourceChanged,
    Unsupported,
    convert,
    verify,
)
from ckptaudit.layouts import FAMILIES, Component

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptaudit import Conversion
    from ckptaudit.layouts import Family

    Tensors = dict[str, torch.Tensor]

KEEP = Options(precision=Precision.KEEP)
HOME = "first_stage_model."
WEIGHTS = "diffusion_pytorch_model.safetensors"
FIRST = "encoder.conv_in.weight"
THIN = {
    name: narrow(FAMILIES[name])
    for name in ("sd1", "sd2", "sdxl", "vae", "vae-sdxl", "vae-f4", "ldm-class")
}


@pytest.fixture(autouse=True, scope="module")
def thin_families() -> Iterator[None]:
    """Some families with thin layers take the place of the real ones."""
    with pytest.MonkeyPatch.context() as patched:
        module = sys.modules["ckptaudit.layouts.detect"]
        patched.setattr(module, "FAMILIES", {**FAMILIES, **THIN})
        yield


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """A model of Stable Diffusion 1."""
    return checkpoint(THIN["sd1"], tmp_path_factory.mktemp("own") / "a.ckpt")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """A VAE alone, of other weights than any other here."""
    made = checkpoint(THIN["vae"], tmp_path_factory.mktemp("other") / "a.ckpt")
    return {key: tensor + 1 for key, tensor in made.items()}


@pytest.fixture
def model(own: Tensors, tmp_path: Path) -> Path:
    torch.save({"state_dict": own}, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


@pytest.fixture
def vae(other: Tensors, tmp_path: Path) -> Path:
    torch.save(other, tmp_path / "vae.pt")
    return tmp_path / "vae.pt"


def of_vae(tensors: Tensors) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key.startswith(HOME)}


def rest_of(tensors: Tensors) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(HOME)}


def prefixed(tensors: Tensors) -> Tensors:
    return {HOME + key: tensor for key, tensor in tensors.items()}


def averages(family: Family) -> Tensors:
    """Averaged copies of the core of *family*, of weights of their own."""
    return {
        entry.key: torch.randn(entry.shape)
        for entry in family.inventory(ema=True)
        if entry.component is Component.EMA and entry.of is not None
    }


def alone(path: Path, tensors: Tensors) -> None:
    torch.save(tensors, path)


def legacy(path: Path, tensors: Tensors) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def in_place(path: Path, tensors: Tensors) -> None:
    torch.save({"state_dict": prefixed(tensors)}, path)


def training(path: Path, tensors: Tensors) -> None:
    further = averages(THIN["vae"]) | {"loss.logvar": torch.zeros(()), "global_step": 7}
    torch.save({"state_dict": tensors | further, "optimizer": {"step": 3}}, path)


def as_safetensors(path: Path, tensors: Tensors) -> None:
    save_file(tensors, path)


def whole_sd1(path: Path, tensors: Tensors) -> None:
    rest = rest_of(checkpoint(THIN["sd1"], path))
    torch.save(rest | prefixed(tensors), path)


def whole_sd2(path: Path, tensors: Tensors) -> None:
    rest = rest_of(checkpoint(THIN["sd2"], path))
    torch.save(rest | prefixed(tensors), path)


def in_a_strange_model(path: Path, tensors: Tensors) -> None:
    torch.save(prefixed(tensors) | {"model.diffusion_model.joint.weight": torch.ones(3)}, path)


def file_of_diffusers(path: Path, tensors: Tensors) -> None:
    torch.save(moved(THIN["vae"], tensors)[""], path)


def folder_of_vae(path: Path, tensors: Tensors) -> None:
    path.mkdir()
    save_file({k: t.clone() for k, t in moved(THIN["vae"], tensors)[""].items()}, path / WEIGHTS)


def folder_of_model(path: Path, tensors: Tensors) -> None:
    whole_sd1(path.with_name("made.ckpt"), tensors)
    convert(path.with_name("made.ckpt"), path, replace(KEEP, layout=Layout.DIFFUSERS))
    path.with_name("made.ckpt").unlink()


def folder_of_strange_model(path: Path, tensors: Tensors) -> None:
    (path / "transformer").mkdir(parents=True)
    save_file({"x.weight": torch.ones(3)}, path / "transformer" / WEIGHTS)
    folder_of_vae(path / "vae", tensors)


DONORS = [
    alone,
    legacy,
    in_place,
    training,
    as_safetensors,
    whole_sd1,
    whole_sd2,
    in_a_strange_model,
    file_of_diffusers,
    folder_of_vae,
    folder_of_model,
    folder_of_strange_model,
]


@pytest.mark.parametrize("put", DONORS)
def test_whatever_holds_the_vae_the_model_gets_it_and_the_rest_is_listed(
    model: Path, own: Tensors, other: Tensors, tmp_path: Path, put: Callable[[Path, Tensors], None]
) -> None:
    put(tmp_path / "donor", other)

    done = convert(model, tmp_path / "out.safetensors", KEEP, replace_vae=tmp_path / "donor")

    wanted = rest_of(own) | prefixed(other)
    assert written(tmp_path / "out.safetensors") == {k: bits(t) for k, t in wanted.items()}
    by_origin = {entry.origin for entry in done.tensors if entry.component is Component.VAE}
    assert by_origin == {str(tmp_path / "donor")}
    assert {e.origin for e in done.tensors if e.component is not Component.VAE} == {None}
    assert not [finding for finding in done.findings if finding.rule == "CKA304"]
    assert verify(model, tmp_path / "out.safetensors", replace_vae=tmp_path / "donor").equal


def accounted_for(done: Conversion) -> list[tuple[str | None, str]]:
    """File and key of each line of the account."""
    return [
        *((entry.origin, entry.source) for entry in done.tensors),
        *((alias.origin, alias.source) for alias in done.aliases),
        *((drop.origin, drop.source) for drop in done.dropped),
    ]


@pytest.mark.parametrize("put", DONORS)
def test_every_tensor_of_both_files_is_accounted_for_once(
    model: Path, own: Tensors, other: Tensors, tmp_path: Path, put: Callable[[Path, Tensors], None]
) -> None:
    donor = tmp_path / "donor"
    put(donor, other)
    held = convert(donor, tmp_path / "x.safetensors", dry_run=True)
    everything = {source for _, source in accounted_for(held)}

    done = convert(model, tmp_path / "out.safetensors", replace_vae=donor, dry_run=True)

    lines = accounted_for(done)
    assert len(set(lines)) == len(lines)
    assert set(lines) == {(None, key) for key in own} | {(str(donor), key) for key in everything}
    reasons = {d.source: d.reason for d in done.dropped if d.origin is None}
    assert set(reasons) == set(of_vae(own))
    assert set(reasons.values()) == {"is replaced by the VAE of donor"}
    assert done.vae_source is not None
    assert done.vae_source.leftovers == held.leftovers


MANY = [
    Options(),
    KEEP,
    Options(precision=Precision.BF16, dedupe=Dedupe.ALL),
    Options(precision=Precision.AUTO),
    Options(vae=Action.COPY, dedupe=Dedupe.NONE),
    Options(layout=Layout.DIFFUSERS),
    Options(split=True, vae=Action.CONVERT),
    Options(vae=Action.DROP),
    Options(split=True, vae=Action.DROP),
    Options(layout=Layout.DIFFUSERS, vae=Action.DROP),
]


@pytest.mark.parametrize(
    ("options", "put"),
    [*((options, alone) for options in MANY), (Options(), folder_of_vae)],
)
def test_it_is_what_converting_one_joined_file_gives_whatever_is_asked_for(
    model: Path,
    own: Tensors,
    other: Tensors,
    tmp_path: Path,
    options: Options,
    put: Callable[[Path, Tensors], None],
) -> None:
    """Hashes of the sources apart, byte by byte."""
    put(tmp_path / "donor", other)
    torch.save({"state_dict": rest_of(own) | prefixed(other)}, tmp_path / "joined.ckpt")
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    name = "out" if options.makes_folder else "out.safetensors"

    done = convert(
        model, tmp_path / "1" / name, options, replace_vae=tmp_path / "donor", with_hash=False
    )
    told = convert(tmp_path / "joined.ckpt", tmp_path / "2" / name, options, with_hash=False)

    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert done.components == told.components
    assert done.findings == told.findings
    assert [replace(entry, source="", origin=None, op="") for entry in done.tensors] == [
        replace(entry, source="", origin=None, op="") for entry in told.tensors
    ]


def contents(folder: Path) -> dict[str, object]:
    """What is in each file; of safetensors the tensors in their order, and the metadata."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            metadata = metadata_of(path) or {}
            metadata.pop("ckptaudit.vae_source_sha256", None)
            found[str(path.relative_to(folder))] = list(written(path).items()), metadata
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.mark.parametrize("layout", Layout)
def test_a_model_without_a_vae_gets_one(
    own: Tensors, vae: Path, model: Path, tmp_path: Path, layout: Layout
) -> None:
    """Pruned files lack it, or part of it; WebUIs show them in washed-out colours."""
    torch.save(rest_of(own), tmp_path / "pruned.ckpt")
    broken = rest_of(own) | dict(list(of_vae(own).items())[9:])
    torch.save(broken, tmp_path / "broken.ckpt")
    options = Options(layout=layout)
    name = "out" if options.makes_folder else "out.safetensors"

    for folder, source in enumerate((model, tmp_path / "pruned.ckpt", tmp_path / "broken.ckpt")):
        (tmp_path / str(folder)).mkdir()
        convert(source, tmp_path / str(folder) / name, options, replace_vae=vae, with_hash=False)

    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")


def test_what_stands_where_the_vae_belongs_makes_room_whatever_it_is(
    own: Tensors, vae: Path, other: Tensors, tmp_path: Path
) -> None:
    """A model with a strange one is of no family by itself; the user names it."""
    strange = {HOME + FIRST: torch.zeros(3), f"{HOME}strange.weight": torch.ones(3)}
    torch.save(rest_of(own) | strange, tmp_path / "a.ckpt")
    options = replace(KEEP, family="sd1")

    done = convert(tmp_path / "a.ckpt", tmp_path / "out.safetensors", options, replace_vae=vae)

    wanted = rest_of(own) | prefixed(other)
    assert written(tmp_path / "out.safetensors") == {k: bits(t) for k, t in wanted.items()}
    assert {drop.source for drop in done.dropped} == set(strange)
    assert not {finding.rule for finding in done.findings} & {"CKA304", "CKA305"}


def test_a_folder_as_source_gets_it_too(
    model: Path, vae: Path, own: Tensors, other: Tensors, tmp_path: Path
) -> None:
    convert(model, tmp_path / "folder", replace(KEEP, layout=Layout.DIFFUSERS))

    convert(tmp_path / "folder", tmp_path / "out.safetensors", KEEP, replace_vae=vae)

    found = load_file(tmp_path / "out.safetensors")
    assert of_vae(found).keys() == prefixed(other).keys()
    for key, tensor in found.items():
        assert torch.equal(tensor, (own | prefixed(other))[key]), key


def test_a_model_that_gets_its_own_vae_stays_as_it_is(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "a.safetensors")

    convert(model, tmp_path / "b.safetensors", replace_vae=model)

    assert written(tmp_path / "a.safetensors") == written(tmp_path / "b.safetensors")


def test_a_vae_goes_back_to_where_it_is_from(
    model: Path, vae: Path, own: Tensors, tmp_path: Path
) -> None:
    convert(model, tmp_path / "a.safetensors", KEEP, replace_vae=vae)

    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", KEEP, replace_vae=model)

    assert written(tmp_path / "b.safetensors") == {key: bits(t) for key, t in own.items()}


@given(seed=st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_the_order_of_keys_changes_nothing(
    own: Tensors, other: Tensors, tmp_path_factory: pytest.TempPathFactory, seed: object
) -> None:
    assert hasattr(seed, "shuffle")
    tmp_path = tmp_path_factory.mktemp("order")
    outputs = []
    for tensors, name in ((own, "a"), (other, "b")):
        keys = list(tensors)
        alone(tmp_path / f"{name}.pt", tensors)
        seed.shuffle(keys)
        alone(tmp_path / f"{name}-shuffled.pt", {key: tensors[key] for key in keys})
    for end in ("", "-shuffled"):
        outputs.append(tmp_path / f"out{end}.safetensors")
        donor = tmp_path / f"b{end}.pt"
        convert(tmp_path / f"a{end}.pt", outputs[-1], replace_vae=donor, with_hash=False)

    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@pytest.mark.parametrize("ema", Ema)
def test_averaged_copies_go_with_the_vae_they_are_copies_of(
    thin_families: None, other: Tensors, own: Tensors, tmp_path: Path, ema: Ema
) -> None:
    """Copies of the VAE that makes room go too, and never take the place of the new one."""
    del thin_families
    unet, copies = averages(THIN["sd1"]), averages(THIN["vae"])
    stray = {f"state_dict.{HOME}{FIRST}": torch.ones(2), f"{HOME}loss.logvar": torch.ones(())}
    torch.save(own | unet | stray, tmp_path / "a.ckpt")
    torch.save(other | copies | {"model_ema.decay": torch.ones(())}, tmp_path / "v.pt")
    donor, options = tmp_path / "v.pt", replace(KEEP, ema=ema)

    done = convert(tmp_path / "a.ckpt", tmp_path / "out.safetensors", options, replace_vae=donor)

    name = f"model_ema.{FIRST.replace('.', '')}"
    found = load_file(tmp_path / "out.safetensors")
    wanted = copies[name] if ema is Ema.USE else other[FIRST]
    assert torch.equal(found[HOME + FIRST], wanted)
    assert not found.keys() & (copies.keys() | stray.keys())
    assert (unet.keys() <= found.keys()) == (ema is Ema.KEEP)
    dropped = {(drop.origin, drop.source) for drop in done.dropped}
    assert {(None, key) for key in stray} <= dropped
    assert (str(donor), "model_ema.decay") in dropped
    assert ((str(donor), name) in dropped) == (ema is not Ema.USE)
    assert verify(tmp_path / "a.ckpt", tmp_path / "out.safetensors", replace_vae=donor).equal


def test_averages_of_an_autoencoder_that_makes_room_are_not_used(
    other: Tensors, tmp_path: Path
) -> None:
    old = {key: tensor - 9 for key, tensor in other.items()}
    torch.save(old | averages(THIN["vae"]), tmp_path / "old.pt")
    torch.save(other, tmp_path / "new.pt")

    options = replace(KEEP, ema=Ema.USE)
    output = tmp_path / "out.safetensors"
    convert(tmp_path / "old.pt", output, options, replace_vae=tmp_path / "new.pt")

    assert written(output) == {key: bits(tensor) for key, tensor in other.items()}


def lacks_one(tensors: Tensors) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key != "quant_conv.bias"}


def lacks_all(tensors: Tensors) -> Tensors:
    return {"x": next(iter(tensors.values()))}


def has_the_encoder_only(tensors: Tensors) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key.startswith("encoder.")}


def has_a_wrong_shape(tensors: Tensors) -> Tensors:
    return tensors | {"decoder.conv_out.bias": torch.zeros(5)}


def of_another_shape(tensors: Tensors) -> Tensors:
    del tensors
    return checkpoint(THIN["vae-f4"], Path("/dev/null"))


def of_sdxl(tensors: Tensors) -> Tensors:
    return rest_of(checkpoint(THIN["sdxl"], Path("/dev/null"))) | prefixed(tensors)


def of_a_model_without(tensors: Tensors) -> Tensors:
    del tensors
    return rest_of(checkpoint(THIN["sd1"], Path("/dev/null")))


def with_a_codebook(tensors: Tensors) -> Tensors:
    del tensors
    return checkpoint(THIN["ldm-class"], Path("/dev/null"))


def a_lora(tensors: Tensors) -> Tensors:
    del tensors
    return {
        "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.ones(()),
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(4, 8),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(8, 4),
    }


UNFIT = [
    (lacks_one, "lacks 1 of the 248 tensors of its VAE, such as quant_conv.bias"),
    (lacks_all, "holds no VAE that we know"),
    (has_the_encoder_only, "holds no VAE that we know"),
    (has_a_wrong_shape, "1 tensor of its VAE in a wrong shape, such as decoder.conv_out.bias"),
    (of_another_shape, "is that of the autoencoder of the x4 upscaler, built otherwise"),
    (with_a_codebook, "built otherwise"),
    (of_sdxl, "a scaling factor of 0.13025; that of Stable Diffusion 1.x is 0.18215"),
    (of_a_model_without, "is of family sd1 and holds no VAE"),
    (a_lora, "is of family lora and holds no VAE"),
]


@pytest.mark.parametrize(("spoil", "words"), UNFIT)
def test_what_is_no_vae_for_the_model_is_one_line_and_no_answer(
    model: Path, other: Tensors, tmp_path: Path, spoil: Callable[[Tensors], Tensors], words: str
) -> None:
    alone(tmp_path / "b.pt", spoil(other))

    done = audit("convert", model, "--replace-vae", tmp_path / "b.pt")

    assert_one_clear_line(done, words, "b.pt")
    assert names_in(tmp_path) == {"model.ckpt", "b.pt"}


@pytest.mark.parametrize(
    ("tensors", "family"),
    [({"a.b": torch.ones(3)}, "unknown"), (a_lora({}), "lora")],
    ids=["unknown", "lora"],
)
def test_what_has_no_room_for_a_vae_is_one_line_and_no_answer(
    vae: Path, tmp_path: Path, tensors: Tensors, family: str
) -> None:
    alone(tmp_path / "a.pt", tensors)

    done = audit("convert", tmp_path / "a.pt", "--replace-vae", vae)

    assert_one_clear_line(done, "a.pt", f"is of family {family}", "--family names another")


def test_names_are_not_kept_beside_those_of_another(model: Path, vae: Path) -> None:
    done = audit("convert", model, "--replace-vae", vae, "--keep-names")

    assert_one_clear_line(done, "--keep-names")


@pytest.mark.parametrize(
    ("family", "put", "is_doubted"),
    [
        ("sd1", alone, True),
        ("sdxl", alone, True),
        ("sd1", whole_sd2, False),
        ("vae", alone, False),
        ("vae-f4", None, False),
    ],
)
def test_what_keys_do_not_show_of_the_fit_is_said(
    other: Tensors,
    tmp_path: Path,
    family: str,
    put: Callable[[Path, Tensors], None] | None,
    is_doubted: bool,  # noqa: FBT001 - a case's
) -> None:
    """Alone, the VAEs of SD 1 and of SDXL have the same keys and other scaling factors."""
    source = tmp_path / "a.ckpt"
    made = checkpoint(THIN[family], source)
    if put is None:
        alone(tmp_path / "b", made)
    else:
        put(tmp_path / "b", other)

    done = convert(source, tmp_path / "c.safetensors", replace_vae=tmp_path / "b", dry_run=True)

    notes = [note for note in done.notes if "scaling factor" in note]
    assert bool(notes) == is_doubted
    if is_doubted:
        assert f"of {THIN[family].scaling}" in notes[0]


def test_the_vae_of_sdxl_is_spared_half_precision_wherever_it_is_from(
    other: Tensors, tmp_path: Path
) -> None:
    torch.save(checkpoint(THIN["sdxl"], tmp_path / "a.ckpt"), tmp_path / "a.ckpt")
    alone(tmp_path / "b.pt", other)
    alone(tmp_path / "half.pt", {key: tensor.half() for key, tensor in other.items()})
    output = tmp_path / "out.safetensors"

    done = convert(tmp_path / "a.ckpt", output, replace_vae=tmp_path / "b.pt")
    assert load_file(output)[HOME + FIRST].dtype == torch.float32
    assert "CKA309" not in {finding.rule for finding in done.findings}

    done = convert(tmp_path / "a.ckpt", output, replace_vae=tmp_path / "half.pt", overwrite=True)
    assert "CKA309" in {finding.rule for finding in done.findings}


def test_a_weight_of_the_other_file_that_does_not_fit_is_told_with_its_file(
    model: Path, other: Tensors, tmp_path: Path
) -> None:
    large = other | {FIRST: torch.full_like(other[FIRST], 1e6)}
    alone(tmp_path / "vae.pt", large)
    output = tmp_path / "out.safetensors"

    done = convert(model, output, replace_vae=tmp_path / "vae.pt")

    (finding,) = (finding for finding in done.findings if finding.rule == "CKA301")
    assert finding.record == f"vae.pt!{FIRST}"
    assert load_file(output)[HOME + FIRST].dtype == torch.float32
    assert verify(model, output, replace_vae=tmp_path / "vae.pt").equal
    with pytest.raises(Refused, match=rf"vae\.pt!{FIRST}"):
        convert(
            model,
            tmp_path / "b.safetensors",
            Options(on_overflow=OnOverflow.ERROR),
            replace_vae=tmp_path / "vae.pt",
        )


def test_no_key_of_the_model_is_taken_for_one_of_the_other_file(
    own: Tensors, vae: Path, tmp_path: Path
) -> None:
    """Whatever it is called."""
    further = {f"vae.pt!{FIRST}": torch.ones(1), "vae.pt!!x": torch.ones(2)}
    torch.save(own | further, tmp_path / "a.ckpt")

    done = convert(tmp_path / "a.ckpt", tmp_path / "out.safetensors", KEEP, replace_vae=vae)

    assert {e.source for e in done.tensors if e.origin is None} == set(rest_of(own) | further)
    found = written(tmp_path / "out.safetensors")
    assert {key: found[key] for key in further} == {k: bits(t) for k, t in further.items()}


def test_compressed_and_uncompressed_files_are_read_side_by_side(
    model: Path, vae: Path, other: Tensors, own: Tensors, tmp_path: Path
) -> None:
    for path in (model, vae):
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path.with_suffix(".z"), "w") as archive:
            for name, data in records.items():
                folder = name.partition("/")[2]
                packed = zipfile.ZIP_DEFLATED if folder.startswith("data/") else zipfile.ZIP_STORED
                archive.writestr(name, data, packed)
    wanted = {key: bits(tensor) for key, tensor in (rest_of(own) | prefixed(other)).items()}

    for number, (one, two) in enumerate([(".ckpt", ".z"), (".z", ".pt"), (".z", ".z")]):
        output = tmp_path / f"{number}.safetensors"
        convert(model.with_suffix(one), output, KEEP, replace_vae=vae.with_suffix(two))
        assert written(output) == wanted


def test_files_of_different_byte_orders_are_not_read_as_if_they_had_one(
    model: Path, vae: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(vae) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "big.pt", "w") as archive:
        for name, data in records.items():
            archive.writestr(name, b"big" if name.endswith("/byteorder") else data)

    done = audit("convert", model, "--replace-vae", tmp_path / "big.pt")

    assert_one_clear_line(done, "big.pt", "big-endian", "little-endian")


def with_a_second_pickle(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/more.pkl", data)


def calls(module: str, name: str) -> bytes:
    """A pickle that would call a name with one string."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"U\x04true\x85R."


def test_a_file_that_a_scan_distrusts_gives_no_vae(
    model: Path, vae: Path, other: Tensors, tmp_path: Path
) -> None:
    """It is refused as a source would be, and is converted where that is asked for."""
    with_a_second_pickle(vae, calls(*HOSTILE.split()))
    output = tmp_path / "out.safetensors"

    done = audit("convert", model, "-o", output, "--replace-vae", vae)
    assert done.status == 1
    assert "vae.pt: is malicious" in done.err
    assert "--allow-unsafe" in done.err
    assert not output.exists()
    with pytest.raises(Refused):
        convert(model, output, replace_vae=vae, dry_run=True)

    done = audit("convert", model, "-o", output, "--replace-vae", vae, "--allow-unsafe")
    assert done.status == 0
    assert f"{vae}: malicious" in done.out
    assert of_vae(load_file(output)).keys() == prefixed(other).keys()


class Averager:
    """What no allowlist has."""


@pytest.mark.parametrize("by", ["name", "hash"])
def test_a_policy_permits_in_the_other_file_what_it_would_in_a_source(
    model: Path, other: Tensors, tmp_path: Path, by: str
) -> None:
    torch.save(other | {"averager": Averager()}, tmp_path / "vae.pt")
    convert_it = ("convert", model, "--replace-vae", tmp_path / "vae.pt")
    scanned = audit("scan", tmp_path / "vae.pt", "-f", "json").files[0]
    (finding,) = scanned["findings"]
    what = (
        f'module = "{__name__}", name = "Averager"'
        if by == "name"
        else f'sha256 = "{scanned["sha256"]}", rule = "{finding["rule"]}"'
    )
    line = f'{{ {what}, justification = "ours", expires = 2999-12-31 }}'
    (tmp_path / "policy.toml").write_text(f"allow = [{line}]\n", encoding="utf-8")

    refused = audit(*convert_it)
    done = audit(*convert_it, "--policy", tmp_path / "policy.toml", "-f", "json")

    assert refused.status == 1
    assert "vae.pt: is suspicious" in refused.err
    assert done.status == 0, done
    assert "permitted nothing" not in done.err
    (told,) = done.files
    assert not told["permitted"]
    (permitted,) = told["vae_source"]["permitted"]
    assert permitted["finding"]["rule"] == finding["rule"]


def test_a_file_that_could_not_be_read_completely_gives_no_vae(
    model: Path, vae: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(vae, "a") as archive:
        name = f"{archive.namelist()[0].partition('/')[0]}/data/more"
        archive.writestr(name, b"\x00" * 10, zipfile.ZIP_LZMA)

    with pytest.raises(Incomplete, match=r"vae\.pt: could not be read completely"):
        convert(model, tmp_path / "out.safetensors", replace_vae=vae)


@pytest.mark.parametrize("with_hash", [True, False])
def test_a_file_that_changes_meanwhile_is_an_error(
    model: Path, vae: Path, tmp_path: Path, *, with_hash: bool
) -> None:
    done_once: list[bool] = []

    def progress(done: int, _total: int) -> None:
        if done and not done_once:
            done_once.append(True)
            with vae.open("ab") as file:
                file.write(b"\0")

    with pytest.raises(SourceChanged, match=r"vae\.pt"):
        convert(
            model,
            tmp_path / "out.safetensors",
            replace_vae=vae,
            with_hash=with_hash,
            progress=progress,
        )

    assert names_in(tmp_path) == {"model.ckpt", "vae.pt"}


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "folder"])
def test_a_file_that_is_none_is_one_line(model: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "b.pt"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else b"hello, this is no checkpoint\n")

    assert_one_clear_line(audit("convert", model, "--replace-vae", path), "b.pt")


def test_the_other_file_is_never_overwritten(
    model: Path, other: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    as_safetensors(Path("vae.safetensors"), other)
    folder_of_vae(Path("p"), other)
    Path("linked").symlink_to("p")
    Path("out/vae").mkdir(parents=True)
    as_safetensors(Path("out/vae", WEIGHTS), other)
    convert(model, "parts", Options(split=True))
    before = contents(tmp_path)

    for output, donor in (
        ("parts --split", "parts/parts.vae.safetensors"),
        # It would not be written over, but removed as what an earlier conversion left there.
        ("parts --split --vae=drop", "parts/parts.vae.safetensors"),
        ("vae.safetensors", "vae.safetensors"),
        (f"linked/{WEIGHTS}", "p"),
        (f"linked/{WEIGHTS}", f"p/{WEIGHTS}"),
        ("out --layout diffusers", f"out/vae/{WEIGHTS}"),
        ("out --layout diffusers", "out/vae"),
    ):
        arguments = ("-o", *output.split(), "--replace-vae", donor, "--if-exists", "overwrite")
        assert_one_clear_line(audit("convert", model, *arguments), "is the source itself")
        assert contents(tmp_path) == before


def test_a_caller_of_the_library_overwrites_it_no_more_than_the_command_line(
    model: Path, other: Tensors, tmp_path: Path
) -> None:
    donor = tmp_path / "vae.safetensors"
    as_safetensors(donor, other)
    before = donor.read_bytes()

    with pytest.raises(OutputFailed, match="is the source itself"):
        convert(model, donor, replace_vae=donor, overwrite=True)

    assert donor.read_bytes() == before


def test_the_receipt_names_the_other_file_and_a_proof_asks_for_it(
    model: Path, vae: Path, other: Tensors, tmp_path: Path
) -> None:
    output = tmp_path / "out.safetensors"
    done = convert(model, output, replace_vae=vae)
    assert done.vae_source is not None
    sha256 = done.vae_source.sha256
    assert sha256 is not None
    assert metadata_of(output)["ckptaudit.vae_source_sha256"] == sha256

    assert_one_clear_line(audit("verify", model, output), sha256, "--replace-vae")
    proven = audit("verify", model, output, "--replace-vae", vae)
    assert proven.status == 0, proven
    assert f"with the VAE of {vae}" in proven.out

    alone(tmp_path / "same.pt", dict(reversed(other.items())))
    wrong = audit("verify", model, output, "--replace-vae", tmp_path / "same.pt")
    assert wrong.status == 1
    assert f"names a file of SHA-256 {sha256} for its VAE" in wrong.out

    changed = load_file(output)
    changed[HOME + FIRST] = changed[HOME + FIRST] + 1
    rewrite(output, changed, metadata_of(output))
    assert audit("verify", model, output, "--replace-vae", vae).status == 1


def test_a_receipt_without_hashes_says_that_the_vae_is_another(
    model: Path, vae: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.safetensors"
    convert(model, output, replace_vae=vae, with_hash=False)

    with pytest.raises(Unsupported, match="has the VAE of another file; name that file"):
        verify(model, output)
    assert verify(model, output, replace_vae=vae).equal


def test_a_file_with_its_own_vae_is_not_proven_with_another(
    model: Path, vae: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.safetensors"
    convert(model, output)
    assert "ckptaudit.vae_source_sha256" not in metadata_of(output)

    done = verify(model, output, replace_vae=vae)

    assert not done.equal
    assert "does not say that its VAE was replaced" in done.problems


def test_what_another_tool_baked_in_is_proven(
    model: Path, vae: Path, own: Tensors, other: Tensors, tmp_path: Path
) -> None:
    tensors = rest_of(own) | prefixed(other)
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "a.safetensors")
    assert verify(model, tmp_path / "a.safetensors", replace_vae=vae).equal

    save_file({key: tensor.clone() for key, tensor in own.items()}, tmp_path / "b.safetensors")
    assert not verify(model, tmp_path / "b.safetensors", replace_vae=vae).equal


@pytest.mark.parametrize("options", [Options(split=True), Options(layout=Layout.DIFFUSERS)])
def test_each_file_of_a_folder_is_proven(
    model: Path, vae: Path, tmp_path: Path, options: Options
) -> None:
    convert(model, tmp_path / "out", options, replace_vae=vae)

    files = sorted((tmp_path / "out").rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        assert verify(model, file, replace_vae=vae).equal, file
        with pytest.raises(Unsupported, match="has the VAE of another file"):
            verify(model, file)


def test_several_models_get_the_same_vae(
    own: Tensors, model: Path, vae: Path, other: Tensors, tmp_path: Path
) -> None:
    torch.save(rest_of(own), tmp_path / "second.ckpt")
    (tmp_path / "out").mkdir()

    done = audit(
        *("convert", model, tmp_path / "second.ckpt", tmp_path / "missing.ckpt"),
        *("--replace-vae", vae, "-o", tmp_path / "out", "-f", "json"),
    )

    assert done.status == 2
    assert len(done.files) == 2
    for name in ("model", "second"):
        found = load_file(tmp_path / f"out/{name}.safetensors")
        assert of_vae(found).keys() == prefixed(other).keys()


def test_a_dry_run_says_what_is_done(model: Path, vae: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"

    dry: Conversion = convert(model, output, replace_vae=vae, dry_run=True)
    done = convert(model, output, replace_vae=vae)

    assert [replace(entry, stats=None) for entry in done.tensors] == list(dry.tensors)
    assert (done.aliases, done.dropped) == (dry.aliases, dry.dropped)
    assert done.outputs[0].size == dry.outputs[0].size
    assert convert(model, output, replace_vae=vae, overwrite=True) == done


@pytest.mark.parametrize("format_", ["text", "md", "json"])
def test_every_format_says_whose_vae_it_is(model: Path, vae: Path, format_: str) -> None:
    done = audit("convert", model, "--replace-vae", vae, "-f", format_)

    assert done.status == 0, done
    assert str(vae) in done.out
    assert "is replaced by the VAE of vae.pt" in done.out
