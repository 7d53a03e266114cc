"""Conversions one at a time: layouts in memory, framings, overflow, order of the data, faults."""

from __future__ import annotations

import os
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import forge
import numpy as np
import pytest
import safetensors.torch
from commands import names_in
from oracle import (
    aliases_in,
    bits,
    converted,
    data_order,
    header_of,
    load,
    metadata_of,
    rewrite,
    torch,
    written,
)

from ckptaudit import __version__
from ckptaudit.errors import Incomplete, OutputFailed, Refused, SourceChanged
from ckptaudit.jobs.convert import convert
from ckptaudit.jobs.verify import verify
from ckptaudit.plan import Dedupe, OnOverflow, Options, Precision
from ckptaudit.report import to_json
from ckptaudit.tensors.blocks import BLOCK_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from ckptaudit.jobs.account import Conversion

KEEP = Options(precision=Precision.KEEP)
BLOCK = BLOCK_BYTES


def save(path: Path, state_dict: Any, *, new_zip: bool = True) -> Path:
    torch.save(state_dict, path, _use_new_zipfile_serialization=new_zip)
    return path


def convert_to(tmp_path: Path, source: Path, options: Options | None = None) -> Conversion:
    return convert(source, tmp_path / "out.safetensors", options)


@pytest.mark.parametrize("new_zip", [True, False], ids=["zip", "legacy"])
def test_tensors_of_several_blocks_and_odd_shapes_keep_every_bit(
    tmp_path: Path, *, new_zip: bool
) -> None:
    """Of 4 MiB blocks and strided tiles none is whole here, and several go at once."""
    torch.manual_seed(0)
    wide = torch.randn(1031, 2053)
    deep = torch.randn(37, 129, 17, 19)
    state_dict = {
        "plain": wide,
        "turned": wide.t(),
        "channels_last": deep.contiguous(memory_format=torch.channels_last),
        "permuted": deep.permute(3, 1, 0, 2),
        "columns": wide[:, 7:2000:3],
        "overlapping": torch.as_strided(wide, (1500, 1024), (700, 1), 5),
        "expanded": wide[:3].unsqueeze(1).expand(3, 400, 2053),
        "halves": torch.randn(3, 1_000_003).half()[:, 1:],
        "doubles": torch.randn(700_001, dtype=torch.float64)[3:],
        # More than NumPy has.
        "axes": torch.randn([3, 5, *[1] * 70, 7]),
        "turned axes": torch.randn([3, 5, *[1] * 70, 7]).transpose(0, -1),
        "empty axes": torch.zeros([1] * 100 + [0]),
    }
    source = save(tmp_path / "model.pt", state_dict, new_zip=new_zip)

    convert_to(tmp_path, source, KEEP)

    assert converted(tmp_path / "out.safetensors") == {
        key: bits(tensor) for key, tensor in load(source).items()
    }
    assert verify(source, tmp_path / "out.safetensors").equal


@pytest.mark.parametrize("method", [0, 8], ids=["stored", "deflated"])
@pytest.mark.parametrize("order", ["little", "big"])
def test_byte_order_and_compression_make_no_difference(
    method: int, order: str, tmp_path: Path
) -> None:
    """Torch swaps what a big-endian machine has written; each half of a complex number alone."""
    weight = torch.randn(BLOCK // 4 + 3)
    state_dict = {
        "turned": torch.randn(5, 3, dtype=torch.complex64).t(),
        "weight": weight,
        "stepped": weight[1::3],
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(7).bfloat16(),
        "octets": torch.arange(9, dtype=torch.uint8),
    }
    plain, source = save(tmp_path / "plain.pt", state_dict), tmp_path / "model.pt"
    widths = {"0": 4, "1": 4, "2": 8, "3": 2, "4": 1}
    with zipfile.ZipFile(plain) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    entries = []
    for name, data in records.items():
        folder, _, key = name.rpartition("/")
        if order == "big" and folder.endswith("/data"):
            data = np.frombuffer(data, f"u{widths[key]}").byteswap().tobytes()  # noqa: PLW2901
        if key == "byteorder":
            data = order.encode()  # noqa: PLW2901
        packed = method if folder.endswith("/data") else 0
        entries.append(forge.ZipEntry(name, data, method=packed))
    source.write_bytes(forge.zip_archive(entries))

    convert_to(tmp_path, source, KEEP)

    expected = {key: bits(tensor) for key, tensor in load(source).items()}
    assert expected == {key: bits(tensor) for key, tensor in state_dict.items()}
    assert converted(tmp_path / "out.safetensors") == expected
    assert verify(source, tmp_path / "out.safetensors").equal


def test_data_lie_in_the_order_of_the_official_writer(tmp_path: Path) -> None:
    """sd-scripts finds its blocks by the order of the data."""
    kinds = (
        "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz "
        "float8_e5m2fnuz float8_e8m0fnu int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool "
        "complex64"
    ).split()
    tensors = {
        f"{letter}.{at}": torch.ones(3).to(getattr(torch, kind))
        for letter in ("b", "a", "é", "B")
        for at, kind in enumerate(kinds)
    }
    source = save(tmp_path / "model.pt", tensors)
    rewrite(tmp_path / "official.safetensors", tensors, {"format": "pt"})

    convert_to(tmp_path, source, KEEP)

    assert data_order(tmp_path / "out.safetensors") == data_order(tmp_path / "official.safetensors")


def test_the_metadata_say_where_everything_comes_from(tmp_path: Path) -> None:
    weight = torch.ones(3)
    source = save(tmp_path / "model.pt", {"b": weight, "a": weight, "c": torch.zeros(2)})

    result = convert_to(tmp_path, source)

    metadata = metadata_of(tmp_path / "out.safetensors")
    assert metadata["format"] == "pt"
    assert metadata["ckptaudit.version"] == __version__
    assert metadata["ckptaudit.source_sha256"] == result.source.sha256
    assert aliases_in(tmp_path / "out.safetensors") == {"b": "a"}
    assert written(tmp_path / "out.safetensors").keys() == {"a", "c"}


def test_every_name_is_written_where_nothing_is_to_be_stored_once(tmp_path: Path) -> None:
    weight = torch.ones(3)
    source = save(tmp_path / "model.pt", {"b": weight, "a": weight, "c": weight.clone()})

    convert(source, tmp_path / "none.safetensors", Options(dedupe=Dedupe.NONE))
    convert(source, tmp_path / "all.safetensors", Options(dedupe=Dedupe.ALL))

    assert written(tmp_path / "none.safetensors").keys() == {"a", "b", "c"}
    assert aliases_in(tmp_path / "all.safetensors") == {"b": "a", "c": "a"}


def test_what_does_not_fit_stays_and_everything_else_lies_right_around_it(tmp_path: Path) -> None:
    """In the middle of the file, in several blocks, and found only at the end of the tensor."""
    large = torch.ones(BLOCK // 4 + 10)
    large[-1] = 70_000.0
    state_dict = {"a": torch.full((5,), 2.0), "m": large, "z": torch.full((7,), 3.0)}
    source = save(tmp_path / "model.pt", state_dict)

    result = convert_to(tmp_path, source)

    found = converted(tmp_path / "out.safetensors")
    assert found["m"] == bits(large)
    assert found["a"] == bits(state_dict["a"].half())
    assert found["z"] == bits(state_dict["z"].half())
    assert {entry.name: entry.dtype for entry in result.tensors} == {
        "m": "float32",
        "a": "float16",
        "z": "float16",
    }
    (finding,) = result.findings
    assert (finding.rule, finding.record) == ("CKA301", "m")
    assert f"float16 cannot hold 1 of {large.numel()} weights" in finding.message
    assert data_order(tmp_path / "out.safetensors") == ["m", "a", "z"]


def test_an_alias_of_what_does_not_fit_is_still_written_once(tmp_path: Path) -> None:
    """And the file is there: its second name must not send the conversion round for nothing."""
    weight = torch.tensor([1.0, 1e6])
    source = save(tmp_path / "model.pt", {"b": weight, "a": weight})

    result = convert_to(tmp_path, source)

    assert written(tmp_path / "out.safetensors") == {"a": bits(weight)}
    assert [alias.name for alias in result.aliases] == ["b"]
    assert verify(source, tmp_path / "out.safetensors").equal


def test_an_overflow_that_is_an_error_writes_nothing(tmp_path: Path) -> None:
    source = save(tmp_path / "model.pt", {"a": torch.ones(3), "b": torch.tensor([1e6])})

    with pytest.raises(Refused, match="b: float16 cannot hold 1 of 1 weight "):
        convert_to(tmp_path, source, Options(on_overflow=OnOverflow.ERROR))

    assert names_in(tmp_path) == {"model.pt"}


def test_infinities_and_nan_of_the_source_stay_and_are_told(tmp_path: Path) -> None:
    odd = torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0])
    source = save(tmp_path / "model.pt", {"odd": odd})

    result = convert_to(tmp_path, source)

    (name, _, data) = converted(tmp_path / "out.safetensors")["odd"]
    assert name == "torch.float16"
    found = np.frombuffer(data, "<f2")
    assert found[:2].tolist() == [np.inf, -np.inf]
    assert np.isnan(found[2])
    (finding,) = result.findings
    assert finding.rule == "CKA302"
    assert "1 NaN and 2 infinite" in finding.message


EIGHT_BITS = [
    (Precision.FP8_E4M3FN, torch.float8_e4m3fn, 448.0),
    (Precision.FP8_E5M2, torch.float8_e5m2, 57344.0),
]


@pytest.mark.parametrize(("precision", "target", "largest"), EIGHT_BITS)
def test_what_does_not_fit_eight_bits_is_kept_clamped_or_an_error(
    precision: Precision, target: Any, largest: float, tmp_path: Path
) -> None:
    """In the one format it would become NaN, in the other infinite: neither is ever written."""
    state_dict = {"a": torch.tensor([1.0, -1e6]), "b": torch.tensor([0.3, 448.0])}
    source = save(tmp_path / "model.pt", state_dict)
    output = tmp_path / "out.safetensors"

    result = convert(source, output, Options(precision=precision))

    found = converted(output)
    assert found == {"a": bits(state_dict["a"]), "b": bits(state_dict["b"].to(target))}
    (finding,) = result.findings
    assert (finding.rule, finding.record) == ("CKA301", "a")
    assert f"{str(target)[6:]} cannot hold 1 of 2 weights" in finding.message
    assert verify(source, output).equal

    clamp = Options(precision=precision, on_overflow=OnOverflow.CLAMP)
    result = convert(source, output, clamp, overwrite=True)

    assert converted(output)["a"] == bits(torch.tensor([1.0, -largest]).to(target))
    assert [finding.rule for finding in result.findings] == ["CKA301"]
    assert verify(source, output).equal

    with pytest.raises(Refused, match=f"a: {str(target)[6:]} cannot hold 1 of 2 weights"):
        convert(
            source,
            output,
            Options(precision=precision, on_overflow=OnOverflow.ERROR),
            overwrite=True,
        )


@pytest.mark.parametrize("on_overflow", [OnOverflow.KEEP, OnOverflow.CLAMP])
def test_an_infinity_of_the_source_is_told_where_it_becomes_nan(
    on_overflow: OnOverflow, tmp_path: Path
) -> None:
    """It is no number that could be clamped; and what has no infinity has to have something."""
    source = save(tmp_path / "model.pt", {"odd": torch.tensor([float("inf"), -float("inf"), 1.0])})

    options = Options(precision=Precision.FP8_E4M3FN, on_overflow=on_overflow)
    result = convert_to(tmp_path, source, options)

    (name, _, data) = converted(tmp_path / "out.safetensors")["odd"]
    assert (name, data) == ("torch.float8_e4m3fn", bytes([0x7F, 0xFF, 0x38]))
    (finding,) = result.findings
    assert finding.rule == "CKA302"
    assert finding.message == ("holds 0 NaN and 2 infinite values; in float8_e4m3fn all are NaN")
    assert verify(source, tmp_path / "out.safetensors").equal


@pytest.mark.parametrize("key", ["", "format", "a b", "é", "a\nb", "\x1b[2J", "x" * 5000, "0"])
def test_any_key_is_written_as_it_is(key: str, tmp_path: Path) -> None:
    source = save(tmp_path / "model.pt", {"a": torch.ones(1), key: torch.zeros(2)})

    convert_to(tmp_path, source, KEEP)

    assert converted(tmp_path / "out.safetensors") == {
        "a": bits(torch.ones(1)),
        key: bits(torch.zeros(2)),
    }


def test_no_tensors_give_a_file_without_any(tmp_path: Path) -> None:
    convert_to(tmp_path, save(tmp_path / "model.pt", {}))

    assert safetensors.torch.load_file(tmp_path / "out.safetensors") == {}


def test_a_dry_run_says_what_would_be_and_writes_nothing(tmp_path: Path) -> None:
    source = save(tmp_path / "model.pt", {"b": torch.ones(3), "a": torch.ones(2).double()})

    dry = convert(source, tmp_path / "out.safetensors", dry_run=True)
    assert names_in(tmp_path) == {"model.pt"}
    wet = convert_to(tmp_path, source)

    output = tmp_path / "out.safetensors"
    assert (dry.written, wet.written) == (False, True)
    assert [entry.name for entry in dry.tensors] == [entry.name for entry in wet.tensors]
    assert dry.outputs[0].size == wet.outputs[0].size == output.stat().st_size
    assert dry.source.sha256 is None


def test_reports_of_two_runs_are_the_same_bytes(tmp_path: Path) -> None:
    source = save(tmp_path / "model.pt", {"b": torch.randn(300, 7), "a": torch.randn(9) * 1e6})

    reports = []
    for _ in range(2):
        reports.append(to_json([convert_to(tmp_path, source)]))
        (tmp_path / "out.safetensors").unlink()

    assert reports[0] == reports[1]


def test_the_source_is_never_written_over(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    rewrite(source, {"a": torch.ones(3)}, {})
    before = source.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(source)
    (tmp_path / "hard.safetensors").hardlink_to(source)

    for name in ("model.safetensors", "link.safetensors", "hard.safetensors"):
        with pytest.raises(OutputFailed, match=r"is the source itself|is a link"):
            convert(source, tmp_path / name, overwrite=True)

    assert source.read_bytes() == before


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def cut(path: Path) -> None:
    os.truncate(path, 100)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-BLOCK, os.SEEK_END)
        file.write(b"flipped")


@pytest.mark.parametrize("meddle", [grow, cut, touch, flip])
@pytest.mark.parametrize("with_hash", [True, False])
def test_a_source_that_changes_while_it_is_read_gives_no_output(
    meddle: Any, tmp_path: Path, *, with_hash: bool
) -> None:
    source = save(tmp_path / "model.pt", {"a": torch.ones(5 * BLOCK // 4), "b": torch.ones(BLOCK)})
    done_once: list[bool] = []

    def progress(_done: int, _total: int) -> None:
        if not done_once:
            done_once.append(True)
            meddle(source)

    with pytest.raises(SourceChanged, match=r"run again when nothing writes to it"):
        convert(source, tmp_path / "out.safetensors", with_hash=with_hash, progress=progress)

    assert names_in(tmp_path) == {"model.pt"}


def test_a_disk_that_fills_up_midway_ends_the_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error arises on the writing thread while others are reading and casting."""
    source = save(tmp_path / "model.pt", {"a": torch.ones(12 * BLOCK // 4)})
    pwrite = os.pwrite

    def fill_up(fd: int, data: bytes, offset: int) -> int:
        if offset > 3 * BLOCK:
            raise OSError(28, "No space left on device")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", fill_up)

    with pytest.raises(OutputFailed, match="no space left on the device"):
        convert_to(tmp_path, source, KEEP)

    assert names_in(tmp_path) == {"model.pt"}


def test_a_progress_callback_that_raises_ends_the_conversion(tmp_path: Path) -> None:
    """As Ctrl-C does, which arises on the calling thread."""
    source = save(tmp_path / "model.pt", {"a": torch.ones(12 * BLOCK // 4)})

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out.safetensors", progress=interrupt)

    assert names_in(tmp_path) == {"model.pt"}


def test_progress_ends_where_it_said_it_would(tmp_path: Path) -> None:
    source = save(tmp_path / "model.pt", {"a": torch.ones(3 * BLOCK // 4), "b": torch.ones(3)})
    told: list[tuple[int, int]] = []

    convert(source, tmp_path / "o.safetensors", progress=lambda *at: told.append(at))

    assert told[-1][0] == told[-1][1] == 4 * (3 * BLOCK // 4 + 3)
    assert told == sorted(told)


def test_progress_goes_one_way_where_weights_do_not_fit(tmp_path: Path) -> None:
    """Everything is cast a second time then; the bar must not run twice."""
    big = torch.full((3 * BLOCK // 4,), 1e6)
    source = save(tmp_path / "model.pt", {"a": big, "b": torch.ones(2 * BLOCK // 4)})
    told: list[tuple[int, int]] = []

    convert(source, tmp_path / "o.safetensors", progress=lambda *at: told.append(at))

    assert told[-1] == (2 * 5 * BLOCK, 2 * 5 * BLOCK)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert all(done < total for done, total in told[:-1])


def test_a_header_that_no_library_opens_is_refused_by_a_dry_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library takes 100 MB of names; here it is 200 bytes, so that the test is a small one."""
    monkeypatch.setattr("ckptaudit.writer.file._MOST_HEADER", 200)
    source = save(tmp_path / "model.pt", {f"layer.{at}.weight": torch.ones(1) for at in range(9)})

    for dry_run in (True, False):
        with pytest.raises(OutputFailed, match="no safetensors library opens"):
            convert(source, tmp_path / "out.safetensors", dry_run=dry_run)

    assert names_in(tmp_path) == {"model.pt"}


def test_a_header_is_not_trusted_to_be_short(tmp_path: Path) -> None:
    """Its length stands in the first eight bytes, and the data begin right behind it."""
    source = save(tmp_path / "model.pt", {f"layer.{at}.weight": torch.ones(1) for at in range(999)})

    convert_to(tmp_path, source)

    data = (tmp_path / "out.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    assert len(data) == 8 + length + 999 * 2
    assert len(header_of(tmp_path / "out.safetensors")) == 1000


def test_a_name_that_stands_in_the_metadata_only_is_not_lost_the_second_time(
    tmp_path: Path,
) -> None:
    tied = torch.arange(4.0)
    torch.save({"a": tied, "b": tied}, tmp_path / "m.pt")
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"

    convert(tmp_path / "m.pt", once, Options(precision=Precision.KEEP))
    result = convert(once, twice, Options(precision=Precision.KEEP))

    assert [(alias.name, alias.of) for alias in result.aliases] == [("b", "a")]
    assert verify(once, twice).equal


def test_what_the_metadata_of_a_source_say_is_a_leftover(tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, source, {"format": "pt", "ss_tag": "x"})

    result = convert(source, tmp_path / "out.safetensors")

    assert [(left.path, left.what) for left in result.leftovers] == [
        ("__metadata__['ss_tag']", "'x'")
    ]


def test_a_tensor_that_stands_for_many_times_what_is_stored_costs_only_itself(
    tmp_path: Path,
) -> None:
    source = tmp_path / "m.pt"
    torch.save({"a": torch.ones(2), "e": torch.zeros(1).expand(4096, 1200)}, source)

    with pytest.raises(Incomplete, match="expands 4 stored bytes"):
        convert(source, tmp_path / "out.safetensors")
    result = convert(source, tmp_path / "out.safetensors", allow_unsafe=True)

    assert [entry.name for entry in result.tensors] == ["a"]
    assert [drop.source for drop in result.dropped] == ["e"]


def test_a_library_caller_writes_no_file_that_loaders_unpickle(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "m.pt")

    with pytest.raises(OutputFailed, match="must be named"):
        convert(tmp_path / "m.pt", tmp_path / "lib.ckpt")
