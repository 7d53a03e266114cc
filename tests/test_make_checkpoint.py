"""Synthetic checkpoints are what torch would have written, and hold what they say they hold.

torch is the judge of the files; `ckptaudit` reads them, and is not what is tested here.
"""

from __future__ import annotations

import collections
import io
import json
import math
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ckptaudit.containers import Kind, open_container
from ckptaudit.layouts import FAMILIES, Component, Entry, Spec, detect
from ckptaudit.source import FileSource

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import make_checkpoint  # noqa: E402 - scripts are no package
import torchfile  # noqa: E402
import weights  # noqa: E402
from make_checkpoint import Options, select, write_checkpoint  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from make_checkpoint import Summary

CONV = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
MATRIX = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"

# One tensor of each kind, and one of several blocks; real names, small shapes.
ENTRIES = (
    Entry("betas", (1000,), "float32", Component.SCHEDULE),
    Entry("alphas_cumprod", (1000,), "float32", Component.SCHEDULE),
    Entry(CONV, (8, 6, 3, 3), "float32", Component.UNET),
    Entry("model.diffusion_model.out.0.weight", (64,), "float32", Component.UNET),
    Entry("model.diffusion_model.out.0.bias", (64,), "float32", Component.UNET),
    Entry("model_ema.decay", (), "float32", Component.EMA),
    Entry("model_ema.num_updates", (), "int32", Component.EMA),
    Entry("model_ema.out", (8, 6, 3, 3), "float32", Component.EMA, of=CONV),
    Entry("first_stage_model.post_quant_conv.weight", (4, 4, 1, 1), "float32", Component.VAE),
    Entry("first_stage_model.empty", (0, 4), "float32", Component.VAE),
    Entry(IDS, (1, 77), "int64", Component.TEXT_ENCODER),
    Entry(MATRIX, (1200, 500), "float32", Component.TEXT_ENCODER),
)
FRAMINGS = pytest.mark.parametrize("framing", ["zip", "legacy"])


def load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def write(
    path: Path, options: Options | None = None, entries: Sequence[Entry] = ENTRIES
) -> tuple[Summary, dict[str, Any]]:
    """Write a checkpoint, and have torch read its state dict."""
    summary = write_checkpoint(path, entries, options or Options())
    assert summary.bytes == path.stat().st_size
    return summary, load(path)["state_dict"]


def values(tensor: Any) -> np.ndarray[Any, Any]:
    """A tensor's elements, row by row, as bits."""
    array: np.ndarray[Any, Any] = tensor.contiguous().numpy()
    return array.view(f"u{array.itemsize}") if array.dtype.kind == "f" else array


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two state dicts have the same keys and, bit for bit, values."""
    return one.keys() == other.keys() and all(
        np.array_equal(values(one[key]), values(other[key])) for key in one
    )


def stored(tensor: Any) -> torchfile.Storage:
    """A `torchfile.Storage` of all elements of a tensor that owns its memory."""
    flat = tensor.numpy().reshape(-1)
    kind = str(tensor.dtype).removeprefix("torch.")
    return torchfile.Storage(kind, flat.size, lambda: [flat.view(np.uint8).data])


def examples() -> tuple[dict[str, Any], dict[str, torchfile.Tree]]:
    """The same object, for torch to save and for us."""
    matrix, half, empty = torch.randn(3, 4), torch.randn(300).half(), torch.zeros(2, 0, 3)
    scalar, count = torch.tensor(0.5), torch.arange(5)
    plain = {
        "constants": (None, True, False),
        "tuples": [(), (0.9, 0.999), (1, 2, 3, 4)],
        "numbers": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**31) - 1, 2**63, 1e-4],
        "lists": [[], [1], list(range(2500))],
        "dicts": [{}, {"a": 1}, {f"number {n}": n for n in range(2500)}],
    }
    views: dict[str, Any] = {"a": matrix, "b": matrix.t(), "c": count, "d": scalar}
    theirs: Any = collections.OrderedDict(views, e=half, f=empty, g=half[20:30:2])
    theirs._metadata = collections.OrderedDict({"": {"version": 1}})  # noqa: SLF001 - as torch does
    whole, some = stored(matrix), stored(half)
    ours = torchfile.OrderedDict(
        {
            "a": torchfile.Tensor(whole, (3, 4)),
            "b": torchfile.Tensor(whole, (4, 3), (1, 4)),
            "c": torchfile.Tensor(stored(count), (5,)),
            "d": torchfile.Tensor(stored(scalar), ()),
            "e": torchfile.Tensor(some, (300,)),
            "f": torchfile.Tensor(stored(empty), (2, 0, 3)),
            "g": torchfile.Tensor(some, (5,), (2,), 20),
        },
        {"": {"version": 1}},
    )
    return {"state_dict": theirs, **plain}, {"state_dict": ours, **plain}


def test_zip_is_byte_for_byte_what_torch_writes(tmp_path: Path) -> None:
    """Local headers, descriptors, padding, pickle opcodes, memo numbers: all of it."""
    theirs, ours = examples()
    (tmp_path / "theirs").mkdir()
    torch.save(theirs, tmp_path / "theirs" / "model.ckpt")
    with zipfile.ZipFile(tmp_path / "theirs" / "model.ckpt") as archive:
        serialization_id = archive.read("model/.data/serialization_id").decode()

    torchfile.write_file(tmp_path / "model.ckpt", ours, serialization_id=serialization_id)

    written = (tmp_path / "model.ckpt").read_bytes()
    assert written == (tmp_path / "theirs" / "model.ckpt").read_bytes()


def test_legacy_stream_is_as_long_as_torch_s_and_reads_the_same(tmp_path: Path) -> None:
    """The bytes cannot be equal: torch names storages by their address."""
    theirs, ours = examples()
    buffer = io.BytesIO()
    torch.save(theirs, buffer, _use_new_zipfile_serialization=False)

    torchfile.write_file(tmp_path / "model.ckpt", ours, framing="legacy")

    assert (tmp_path / "model.ckpt").stat().st_size == len(buffer.getvalue())
    read = load(tmp_path / "model.ckpt")
    assert same(read.pop("state_dict"), theirs.pop("state_dict"))
    assert read == theirs


def test_a_storage_of_the_wrong_length_is_not_written(tmp_path: Path) -> None:
    storage = torchfile.Storage("float32", 3, lambda: [memoryview(bytes(8))])

    with pytest.raises(ValueError, match="12 bytes was given 8"):
        torchfile.write_file(tmp_path / "model.ckpt", torchfile.Tensor(storage, (3,)))
    assert not any(tmp_path.iterdir())


@FRAMINGS
@pytest.mark.parametrize("lightning", [False, True], ids=["plain", "lightning"])
def test_ckptaudit_finds_nothing_odd_and_no_gap(
    tmp_path: Path, framing: torchfile.Framing, *, lightning: bool
) -> None:
    path = tmp_path / "model.ckpt"
    options = Options(framing=framing, lightning=lightning, aliases=("2",), non_contiguous=3)
    write_checkpoint(path, ENTRIES, options)

    with open_container(FileSource(path)) as container:
        assert container.kind is (Kind.ZIP if framing == "zip" else Kind.LEGACY)
        assert container.mishaps == ()
        assert container.gaps == ()


@FRAMINGS
def test_torch_reads_every_key_with_its_shape_and_type(
    tmp_path: Path, framing: torchfile.Framing
) -> None:
    _, read = write(tmp_path / "model.ckpt", Options(framing=framing))

    found = {
        key: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for key, tensor in read.items()
    }
    assert found == {entry.key: (entry.shape, entry.dtype) for entry in ENTRIES}
    assert list(found) == [entry.key for entry in ENTRIES]


def test_values_are_those_of_the_generator(tmp_path: Path) -> None:
    """A tensor of several blocks arrives in order, bit for bit."""
    _, read = write(tmp_path / "model.ckpt", Options(seed=7))

    shape = (1200, 500)
    generator = weights.Weights(weights.Pool(7), MATRIX, 600_000, weights.spread(MATRIX, shape))
    expected = np.concatenate([block.copy() for block in generator.blocks()]).reshape(shape)
    assert np.array_equal(read[MATRIX].numpy(), expected)
    assert np.std(expected) == pytest.approx(500**-0.5, rel=0.06)


@FRAMINGS
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, framing: torchfile.Framing) -> None:
    options = Options(framing=framing, seed=3, lightning=True, plants=("nan:2",), aliases=("1",))
    folders = [tmp_path / name for name in ("one", "two", "other")]
    for folder in folders:
        folder.mkdir()
    for folder, seed in zip(folders, (3, 3, 4), strict=True):
        write_checkpoint(folder / "m.ckpt", ENTRIES, replace(options, seed=seed))

    one, two, other = [(folder / "m.ckpt").read_bytes() for folder in folders]
    assert one == two
    assert one != other


def test_how_a_file_is_saved_does_not_change_its_values(tmp_path: Path) -> None:
    _, plain = write(tmp_path / "plain.ckpt")

    for number, options in enumerate(
        (Options(framing="legacy"), Options(non_contiguous=3), Options(optimizer_params=0))
    ):
        _, other = write(tmp_path / f"{number}.ckpt", options)
        assert same(plain, other)


def test_no_two_weights_are_alike(tmp_path: Path) -> None:
    entries = [Entry(f"{n}.bias", (320,), "float32", Component.UNET) for n in range(300)]
    _, read = write(tmp_path / "model.ckpt", entries=entries)

    assert len({tensor.numpy().tobytes() for tensor in read.values()}) == len(entries)


def test_float16_files_keep_schedule_and_decay_in_float32(tmp_path: Path) -> None:
    _, full = write(tmp_path / "full.ckpt")
    _, half = write(tmp_path / "half.ckpt", Options(dtype="fp16"))

    kept = {key for key, tensor in half.items() if tensor.dtype == torch.float32}
    assert kept == {"betas", "alphas_cumprod", "model_ema.decay"}
    assert torch.equal(half[MATRIX], full[MATRIX].half())
    assert half[IDS].tolist() == [list(range(77))]


def test_the_schedule_is_that_of_stable_diffusion() -> None:
    """The ends are those of `scheduler_config.json`; the product is the published 0.00466."""
    buffers = weights.schedule(1000)

    assert buffers["betas"][[0, -1]] == pytest.approx([0.00085, 0.012])
    assert buffers["alphas_cumprod"][-1] == pytest.approx(0.0046600, abs=1e-6)
    assert buffers["alphas_cumprod_prev"][0] == 1
    assert buffers["posterior_log_variance_clipped"][0] == pytest.approx(np.log(1e-20))
    # Mean of the posterior for x_0 = x_t = 1 without noise: the coefficients nearly add to 1.
    assert (buffers["posterior_mean_coef1"] + buffers["posterior_mean_coef2"])[1:] == (
        pytest.approx(1, abs=0.01)
    )
    assert buffers["sigmas"][-1] == pytest.approx(14.6146, abs=1e-3)


def test_every_schedule_buffer_of_every_family_is_computed() -> None:
    for family in FAMILIES.values():
        for entry in family.inventory(ema=True):
            if entry.component is Component.SCHEDULE:
                assert weights.fixed(entry.key, entry.shape, entry.dtype) is not None, entry.key


@pytest.mark.parametrize("identical", [False, True], ids=["drifted", "identical"])
def test_moving_averages_have_their_own_storage(tmp_path: Path, *, identical: bool) -> None:
    options = Options(ema_identical=identical, plants=(f"overflow:{CONV}:1",))
    _, read = write(tmp_path / "model.ckpt", options)
    weight, average = read[CONV], read["model_ema.out"]

    assert weight.untyped_storage().data_ptr() != average.untyped_storage().data_ptr()
    assert torch.equal(weight, average) is identical
    usual = weight.abs() < 1
    assert torch.allclose(weight[usual], average[usual], atol=0.02)
    assert float(read["model_ema.decay"]) == pytest.approx(0.9999)


def test_aliases_share_memory(tmp_path: Path) -> None:
    summary, read = write(tmp_path / "model.ckpt", Options(aliases=("2", f"again={CONV}")))

    repeated = "embedding_manager.embedder.transformer.text_model."
    assert summary.aliases == {
        f"{repeated}embeddings.position_ids": IDS,
        f"{repeated}encoder.layers.0.mlp.fc1.weight": MATRIX,
        "again": CONV,
    }
    assert summary.tensors == len(read) == len(ENTRIES) + 3
    for alias, of in summary.aliases.items():
        assert read[alias].untyped_storage().data_ptr() == read[of].untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_non_contiguous_tensors_are_views_of_each_kind(tmp_path: Path, dtype: Any) -> None:
    other = replace(ENTRIES[-1], key="first_stage_model.matrix", shape=(10, 6))
    entries = (*ENTRIES, other)
    summary, read = write(tmp_path / "m.ckpt", Options(dtype=dtype, non_contiguous=4), entries)

    assert summary.non_contiguous == {
        CONV: "channels_last",
        "first_stage_model.post_quant_conv.weight": "transposed",
        MATRIX: "transposed",
        other.key: "columns",
    }
    assert {key for key, tensor in read.items() if not tensor.is_contiguous()} == set(
        summary.non_contiguous
    )
    assert read[CONV].is_contiguous(memory_format=torch.channels_last)
    assert read[MATRIX].stride() == (1, 1200)
    assert (read[other.key].stride(), read[other.key].storage_offset()) == ((12, 1), 6)


@pytest.mark.parametrize("where", ["", f"{MATRIX}:", "unet:"], ids=["anywhere", "key", "part"])
def test_planted_values_are_counted_exactly(tmp_path: Path, where: str) -> None:
    """Numpy is the judge of what a cast loses."""
    wanted = {"overflow": 5, "nan": 2, "inf": 3, "subnormal": 4, "flush": 6}
    plants = tuple(f"{kind}:{where}{count}" for kind, count in wanted.items())
    summary, read = write(tmp_path / "model.ckpt", Options(plants=plants))

    assert {kind: sum(keys.values()) for kind, keys in summary.planted.items()} == wanted
    weights_of = {"unet": set[str](), "vae": set[str](), "text_encoder": set[str]()}
    for entry in ENTRIES:
        if entry.component.value in weights_of and entry.dtype == "float32":
            weights_of[entry.component.value].add(entry.key)
    for component, keys in weights_of.items():
        x = np.concatenate([read[key].numpy().reshape(-1) for key in sorted(keys)])
        with np.errstate(all="ignore"):
            y = x.astype(np.float16)
        assert summary.counts[component] == {
            "numel": x.size,
            "nan": np.count_nonzero(np.isnan(x)),
            "inf": np.count_nonzero(np.isinf(x)),
            "overflowed": np.count_nonzero(np.isfinite(x) & np.isinf(y)),
            "flushed": np.count_nonzero((x != 0) & (y == 0)),
            "subnormal": np.count_nonzero((y != 0) & (np.abs(y) < 2.0**-14)),
        }
    total = {
        name: sum(counts[name] for part, counts in summary.counts.items() if part != "ema")
        for name in ("overflowed", "nan", "inf")
    }
    assert total == {"overflowed": 5, "nan": 2, "inf": 3}


def test_lightning_extras_stand_beside_the_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    write_checkpoint(path, ENTRIES, Options(lightning=True, optimizer_params=2))

    asked_for = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    assert asked_for == ["pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"]

    class ModelCheckpoint:
        """Stands in for Lightning's, which is not installed."""

    stand_in = (ModelCheckpoint, asked_for[0])
    with torch.serialization.safe_globals([stand_in]):
        read = load(path)
    assert list(read) == [
        "epoch",
        "global_step",
        "pytorch-lightning_version",
        "state_dict",
        "callbacks",
        "optimizer_states",
        "lr_schedulers",
    ]
    assert list(read["callbacks"]) == [ModelCheckpoint]
    assert float(read["callbacks"][ModelCheckpoint]["best_model_score"]) == pytest.approx(0.1423)
    assert "model.diffusion_model.out.0" in read["state_dict"]._metadata  # noqa: SLF001
    (optimizer,) = read["optimizer_states"]
    assert optimizer["param_groups"][0]["params"] == [0, 1]
    assert optimizer["state"][0]["exp_avg"].shape == (8, 6, 3, 3)
    assert bool((optimizer["state"][0]["exp_avg_sq"] > 0).all())


def test_a_bare_state_dict_is_the_root(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.ckpt", ENTRIES, Options(bare=True))

    assert list(load(tmp_path / "model.ckpt")) == [entry.key for entry in ENTRIES]


@pytest.mark.parametrize(
    "options",
    [
        Options(bare=True, lightning=True),
        Options(plants=("overflow",)),
        Options(plants=("overflow:no.such.key:1",)),
        Options(plants=("chaos:1",)),
        Options(plants=("overflow:1",), dtype="fp16"),
        Options(plants=("nan:vae:17",)),
        Options(aliases=("99",)),
        Options(aliases=("a=b",)),
        Options(aliases=(f"{CONV}={MATRIX}",)),
        Options(non_contiguous=99),
    ],
    ids=lambda options: repr(options)[8:-1] if isinstance(options, Options) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, options: Options
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        write_checkpoint(tmp_path / "model.ckpt", ENTRIES, options)
    assert not any(tmp_path.iterdir())


def test_selection_by_component_prefix_and_size() -> None:
    chosen = select(ENTRIES, ["schedule"], ["model.diffusion_model.out."])

    assert [entry.key for entry in chosen] == [
        "betas",
        "alphas_cumprod",
        "model.diffusion_model.out.0.weight",
        "model.diffusion_model.out.0.bias",
    ]
    small = select(ENTRIES, largest=1000)
    assert [entry.key for entry in ENTRIES if entry not in small] == [MATRIX]
    with pytest.raises(ValueError, match="no tensor belongs to component 'depth'"):
        select(ENTRIES, ["depth"], [])
    with pytest.raises(ValueError, match="no key begins with 'x'"):
        select(ENTRIES, [], ["x"])


def test_trained_values_have_heavy_tails_and_rows_that_stand_out_at_the_same_scale(
    tmp_path: Path,
) -> None:
    made = {}
    for values in ("plain", "trained"):
        path = tmp_path / f"{values}.ckpt"
        write_checkpoint(path, ENTRIES, Options(values=values))
        made[values] = load(path)["state_dict"]

    def tails(tensor: Any) -> float:
        """The kurtosis: 3 of normal numbers, above 5 of a t distribution with unequal rows."""
        apart = tensor.double() - tensor.double().mean()
        return float((apart**4).mean() / (apart**2).mean() ** 2)

    plain, trained = made["plain"][MATRIX], made["trained"][MATRIX]
    norms = trained.double().norm(dim=1)
    # By the initialisation of CLIP it is 1 / sqrt(2) of the inverse root of a row's length.
    assert float(trained.std()) == pytest.approx((2 * 500) ** -0.5, rel=0.1)
    assert tails(plain) < 3.1
    assert tails(trained) > 5
    assert float(norms.max() / norms.median()) > 3
    assert float(norms.min() / norms.median()) < 0.1
    assert made["trained"]["first_stage_model.empty"].shape == (0, 4)
    assert float(made["trained"]["model.diffusion_model.out.0.weight"].mean()) == pytest.approx(
        1, abs=0.1
    )


def test_the_command_prints_one_line_of_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.ckpt"
    status = make_checkpoint.main(["sd1", str(path), "--components", "schedule", "--seed", "5"])

    (line,) = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    assert status == 0
    assert (said["family"], said["seed"], said["tensors"]) == ("sd1", 5, 12)
    assert said["bytes"] == path.stat().st_size
    assert len(load(path)["state_dict"]) == 12


def test_the_sample_for_a_demonstration_is_recognised() -> None:
    """Its size and its number of tensors are those the script's docstring states."""
    chosen = select(FAMILIES["sd1"].inventory(), largest=600_000)

    tensors = {entry.key: Spec(entry.shape, entry.dtype) for entry in chosen}
    assert detect(tensors).family == "sd1"
    assert len(chosen) == 921
    assert sum(4 * math.prod(entry.shape) for entry in chosen) // 10**6 == 291


def test_the_command_refuses_an_unknown_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        make_checkpoint.main(["sd1", str(tmp_path / "model.ckpt"), "--variant", "nonsense"])

    assert stopped.value.code == 2
    assert "no variant 'nonsense'" in capsys.readouterr().err
