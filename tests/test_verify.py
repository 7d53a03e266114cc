"""Verification proves each tensor, and is not to be fooled."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from oracle import Made, header_of, load, metadata_of, rewrite, torch, write_sd1

from ckptaudit.errors import Unsupported
from ckptaudit.jobs.convert import convert
from ckptaudit.jobs.verify import verify
from ckptaudit.plan import Action, Dedupe, Ema, OnOverflow, Options, Precision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptaudit.jobs.verification import Verification

NAN = float("nan")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A source, and the file we made of it: casts, a kept tensor, aliases, NaN, integers."""
    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    tensors = {
        "alias": weight,
        "bias": torch.randn(12).reshape(3, 4),
        "count": torch.arange(5),
        "fits": torch.tensor([1.0, NAN, -2.0, float("inf")]),
        "kept": torch.tensor([1e6, NAN]),
        "turned": weight.t(),
        "weight": weight,
    }
    source, output = tmp_path / "model.pt", tmp_path / "model.safetensors"
    torch.save(tensors, source)
    convert(source, output)
    return source, output


def unpacked(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    return header_of(path), data[8 + int.from_bytes(data[:8], "little") :]


def pack(path: Path, header: dict[str, Any], data: bytes) -> None:
    body = json.dumps(header).encode()
    path.write_bytes(len(body).to_bytes(8, "little") + body + data)


def problems(done: Verification) -> str:
    return "\n".join(
        [*done.problems, *(f"{p.name}: {p.problem}" for p in done.tensors if p.problem)]
    )


SOME = [
    Options(precision=precision, on_overflow=overflow, dedupe=dedupe, keep_names=keep_names)
    for precision, overflow, dedupe, keep_names in product(
        Precision, (OnOverflow.KEEP, OnOverflow.CLAMP), Dedupe, (False, True)
    )
]


def options_id(options: Options) -> str:
    return "-".join(str(getattr(value, "value", value)) for value in asdict(options).values())


@pytest.mark.parametrize("options", SOME, ids=options_id)
def test_our_own_output_is_proven_whatever_the_options(
    pair: tuple[Path, Path], options: Options
) -> None:
    source, output = pair
    convert(source, output, options, overwrite=True)

    done = verify(source, output)

    assert done.equal, problems(done)
    assert done.converted.sha256


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd1") / "model.ckpt"
    made = Made(lightning=True, plants=("overflow:3", "nan:2"), aliases=("3",), non_contiguous=4)
    write_sd1(path, made, ema=True, variant="novelai")
    return path


@pytest.mark.parametrize(
    "options",
    [
        Options(ema=Ema.USE),
        Options(ema=Ema.KEEP, dedupe=Dedupe.ALL),
        Options(unet=Action.DROP, vae=Action.COPY, keep_names=True),
        Options(text_encoder=Action.COPY, other=Action.DROP, precision=Precision.BF16),
        Options(on_overflow=OnOverflow.CLAMP, dedupe=Dedupe.NONE),
    ],
    ids=options_id,
)
def test_our_own_output_of_a_known_family_is_proven(
    sd1: Path, options: Options, tmp_path: Path
) -> None:
    convert(sd1, tmp_path / "out.safetensors", options)

    done = verify(sd1, tmp_path / "out.safetensors")

    assert done.equal, problems(done)


def test_one_flipped_bit_is_found_wherever_it_is(pair: tuple[Path, Path]) -> None:
    """But for the payload of a NaN that a cast has made: which one that is depends on the CPU."""
    source, output = pair
    header, data = unpacked(output)
    free = set()
    start = header["fits"]["data_offsets"][0]
    for bit in range(10):
        free.add((start + 2) * 8 + bit)
    whole = output.read_bytes()
    base = len(whole) - len(data)
    # Every third bit is one of each place in a byte.
    for bit in range(0, 8 * len(data), 3):
        if bit in free or bit == (start + 2) * 8 + 15:
            continue
        flipped = bytearray(whole)
        flipped[base + bit // 8] ^= 1 << bit % 8
        output.write_bytes(flipped)

        done = verify(source, output, with_hash=False)

        assert not done.equal, bit
        (proof,) = (proof for proof in done.tensors if not proof.equal)
        begin, end = header[proof.name]["data_offsets"]
        assert begin <= bit // 8 < end
        assert proof.problem is not None
        assert proof.problem.startswith("differs in 1 of ")


def swap(header: dict[str, Any], data: bytes) -> bytes:
    one, two = header["bias"], header["weight" if "weight" in header else "alias"]
    one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]
    return data


def lose(header: dict[str, Any], data: bytes) -> bytes:
    last = max(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    begin, _ = header.pop(last)["data_offsets"]
    return data[:begin]


def add(header: dict[str, Any], data: bytes) -> bytes:
    at = len(data)
    header["extra"] = {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]}
    return data + b"\0"


def trail(_: dict[str, Any], data: bytes) -> bytes:
    return data + b"\0\0"


def rename(header: dict[str, Any], data: bytes) -> bytes:
    header["wieght"] = header.pop("bias")
    return data


def reshape(header: dict[str, Any], data: bytes) -> bytes:
    header["bias"]["shape"] = [4, 3]
    return data


def retype(header: dict[str, Any], data: bytes) -> bytes:
    header["count"]["dtype"] = "U64"
    return data


def alias_elsewhere(header: dict[str, Any], data: bytes) -> bytes:
    header["__metadata__"]["weight"] = "bias"
    return data


def alias_lost(header: dict[str, Any], data: bytes) -> bytes:
    del header["__metadata__"]["weight"]
    return data


def alias_more(header: dict[str, Any], data: bytes) -> bytes:
    header["__metadata__"]["more"] = "bias"
    return data


def other_source(header: dict[str, Any], data: bytes) -> bytes:
    header["__metadata__"]["ckptaudit.source_sha256"] = "0" * 64
    return data


def another_format(header: dict[str, Any], data: bytes) -> bytes:
    header["__metadata__"]["format"] = "tf"
    return data


def no_format(header: dict[str, Any], data: bytes) -> bytes:
    del header["__metadata__"]["format"]
    return data


def claim_more(header: dict[str, Any], data: bytes) -> bytes:
    header["__metadata__"]["ckptaudit.proven"] = "yes"
    return data


@pytest.mark.parametrize(
    "lie",
    [swap, lose, add, trail, rename, reshape, retype, alias_elsewhere, alias_lost, alias_more,
     other_source, another_format, no_format, claim_more],
)  # fmt: skip
def test_a_lie_is_found(
    pair: tuple[Path, Path], lie: Callable[[dict[str, Any], bytes], bytes]
) -> None:
    source, output = pair
    header, data = unpacked(output)
    pack(output, header, lie(header, data))

    done = verify(source, output)

    assert not done.equal
    assert problems(done)


def repack(output: Path, tensors: dict[str, Any], **options: Any) -> None:
    """Write *tensors* as if we had, with the metadata of *output* and other options."""
    metadata = metadata_of(output)
    claimed = replace(Options(), **options)
    metadata["ckptaudit.options"] = json.dumps(asdict(claimed))
    rewrite(output, tensors, metadata)


@pytest.mark.parametrize(
    ("precision", "target", "says"),
    [("fp16", torch.float16, "infinite"), ("fp8_e4m3fn", torch.float8_e4m3fn, "NaN")],
)
def test_an_infinity_that_the_source_does_not_have_is_no_proof(
    precision: str, target: Any, says: str, tmp_path: Path
) -> None:
    """Casting again gives the same infinity; but we never write one, so somebody else did."""
    source, output = tmp_path / "model.pt", tmp_path / "model.safetensors"
    torch.save({"a": torch.tensor([1.0, 1e6])}, source)
    convert(source, output)
    beyond = NAN if precision == "fp8_e4m3fn" else 1e6
    repack(output, {"a": torch.tensor([1.0, beyond]).to(target)}, precision=precision)

    done = verify(source, output)

    assert not done.equal
    assert f"{says} where the source is finite: 1 of 2 weights" in problems(done)


@pytest.mark.parametrize("on_overflow", [OnOverflow.KEEP, OnOverflow.CLAMP, OnOverflow.ERROR])
def test_a_tensor_that_fits_must_have_been_cast(on_overflow: OnOverflow, tmp_path: Path) -> None:
    source, output = tmp_path / "model.pt", tmp_path / "model.safetensors"
    torch.save({"a": torch.tensor([1.0, 2.0])}, source)
    convert(source, output)
    repack(output, {"a": torch.tensor([1.0, 2.0])}, on_overflow=on_overflow)

    assert "was not cast to float16" in problems(verify(source, output))


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32", "float8_e5m2"])
def test_a_file_made_with_torch_alone_is_proven(precision: str, pair: tuple[Path, Path]) -> None:
    source, output = pair
    target = getattr(torch, precision)
    rewrite(
        output,
        {
            key: tensor.to(target) if tensor.dtype.is_floating_point else tensor
            for key, tensor in load(source).items()
        },
        {},
    )

    done = verify(source, output)

    assert done.equal, problems(done)
    assert "was not written by ckptaudit" in done.notes[0]
    infinite = [note for note in done.notes if "became infinite or NaN" in note]
    assert bool(infinite) == (precision in {"float16", "float8_e5m2"})


def test_a_file_made_with_torch_alone_and_a_wrong_value_is_not(pair: tuple[Path, Path]) -> None:
    source, output = pair
    tensors = {key: tensor.half() for key, tensor in load(source).items()}
    tensors["count"] = load(source)["count"]
    tensors["bias"] = tensors["bias"].clone()
    tensors["bias"][0, 0] += 1
    rewrite(output, tensors, {})

    assert "bias: differs in 1 of 12 elements" in problems(verify(source, output))


@pytest.mark.parametrize("kind", ["float8_e4m3fnuz", "float64", "int32", "complex64"])
def test_a_type_we_do_not_cast_to_is_a_problem_and_no_crash(
    kind: str, pair: tuple[Path, Path]
) -> None:
    source, output = pair
    tensors = dict(load(source))
    tensors["bias"] = tensors["bias"].to(getattr(torch, kind))
    rewrite(output, tensors, {})

    assert f"bias: is {kind} where float32 was to be written" in problems(verify(source, output))


def test_names_that_another_tool_left_out_and_named_are_no_loss(pair: tuple[Path, Path]) -> None:
    """safetensors.torch.save_model writes ``dropped: kept`` as we do."""
    source, output = pair
    tensors = dict(load(source))
    del tensors["alias"]
    rewrite(output, tensors, {"format": "pt", "alias": "weight"})
    assert verify(source, output).equal

    rewrite(output, tensors, {"format": "pt"})
    assert "alias: is missing" in problems(verify(source, output))


def test_of_two_spellings_of_one_name_none_goes_uncompared(tmp_path: Path) -> None:
    """A file by another tool may have either; a second one is something the source has not."""
    source, output = tmp_path / "m.ckpt", tmp_path / "m.safetensors"
    write_sd1(source, Made(bare=True), variant="novelai")
    tensors = dict(load(source))
    spelled = "cond_stage_model.transformer.final_layer_norm.bias"
    canonical = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    tensors[canonical] = tensors[spelled].clone()
    tensors[spelled] = tensors[spelled] + 9
    rewrite(output, tensors, {"format": "pt"})

    assert f"holds {spelled}, which its source does not give" in problems(verify(source, output))


def test_options_from_a_younger_version_are_no_difference_but_no_answer(
    pair: tuple[Path, Path],
) -> None:
    source, output = pair
    header, data = unpacked(output)
    known = json.loads(header["__metadata__"]["ckptaudit.options"])
    strange = [known | {"colour": "blue"}, known | {"keep_names": "no"}, known | {"ema": 1}]
    for text in ("{}", "[]", "null", "{", "[" * 9999, *map(json.dumps, strange)):
        header["__metadata__"]["ckptaudit.options"] = text
        pack(output, header, data)

        with pytest.raises(Unsupported, match="verify it with the version that wrote it"):
            verify(source, output)


def test_two_checkpoints_cannot_be_compared(pair: tuple[Path, Path]) -> None:
    source, output = pair

    with pytest.raises(Unsupported, match="name the source first"):
        verify(output, source)


def test_files_of_many_blocks_are_compared_to_their_ends(tmp_path: Path) -> None:
    source, output = tmp_path / "model.pt", tmp_path / "model.safetensors"
    torch.manual_seed(0)
    torch.save({"a": torch.randn(1500, 1100).t(), "b": torch.randn(1_500_001)}, source)
    convert(source, output)
    assert verify(source, output).equal
    whole = np.fromfile(output, np.uint8)

    for at in (-1, -3_000_003, -6_000_000, -4_100_007, -1_500_000, -77):
        flipped = whole.copy()
        flipped[at] ^= 1
        flipped.tofile(output)

        assert not verify(source, output, with_hash=False).equal
