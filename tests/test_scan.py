"""`scan`: what is hostile is never clean, what is real is no false alarm, and nothing ever runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from pickletools import genops

import pytest
from forge import (
    BINPERSID,
    BUILD,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ,
    NEWOBJ_EX,
    OBJ,
    POP,
    REDUCE,
    STACK_GLOBAL,
    TUPLE1,
    Raw,
    TarStorage,
    TarTensor,
    ZipEntry,
    binget,
    binput,
    call,
    floats,
    global_,
    inst,
    legacy_stream,
    pickled,
    proto,
    safetensors_entry,
    safetensors_file,
    state_dict,
    storage_id,
    tar_archive,
    tar_members,
    tensor,
    torch_entries,
    torch_zip,
    value,
    values,
    zip_archive,
)

from ckptaudit.errors import CkptauditError, LimitExceeded
from ckptaudit.jobs.convert import convert
from ckptaudit.jobs.inspect import inspect
from ckptaudit.jobs.scan import ScanResult, scan
from ckptaudit.policy import Severity

REALFILES = Path(__file__).parents[2] / "shared" / "realfiles"

Scanned = Callable[[bytes], ScanResult]


@pytest.fixture
def scanned(tmp_path: Path) -> Scanned:
    """Write bytes to a file and scan it."""

    def run(data: bytes) -> ScanResult:
        path = tmp_path / "model.ckpt"
        path.write_bytes(data)
        return scan(path)

    return run


def empty(module: str, name: str, state: object = None) -> bytes:
    build = b"" if state is None else value(state) + BUILD
    return global_(module, name) + EMPTY_TUPLE + NEWOBJ + build


WINDOWS = {
    "beyond-the-end": tensor(storage_id("0", 2), (3,)),
    "offset": tensor(storage_id("0", 2), (2,), offset=1),
    "stride": tensor(storage_id("0", 2), (2,), (1 << 40,)),
    "negative-offset": tensor(storage_id("0", 2), (2,), offset=-1),
    "negative-stride": tensor(storage_id("0", 2), (2,), (-1,), offset=1),
    "rank": tensor(storage_id("0", 2), (2,), (1, 1)),
    "size-of-text": call(
        "torch._utils", "_rebuild_tensor", Raw(storage_id("0", 2)), 0, ("2",), (1,)
    ),
    "legacy-tensor": call("torch", "FloatTensor")
    + value((Raw(storage_id("0", 2)), 0, (3,), (1,)))
    + BUILD,
    "inside-a-parameter": call(
        "torch._utils",
        "_rebuild_parameter",
        Raw(tensor(storage_id("0", 2), (3,))),
        1,
        Raw(call("collections", "OrderedDict")),
    ),
}


@pytest.mark.parametrize("opcodes", WINDOWS.values(), ids=WINDOWS)
def test_a_tensor_outside_its_storage_is_suspicious(scanned: Scanned, opcodes: bytes) -> None:
    """Old loaders made such a tensor from whatever lay behind it (CVE-2026-24747)."""
    result = scanned(torch_zip(pickled(opcodes), {"0": floats(1, 2)}))

    (finding,) = result.findings
    assert (finding.rule, finding.severity) == ("CKA207", Severity.SUSPICIOUS)
    assert finding.offset is not None


DIMENSIONS: dict[str, Callable[[int], bytes]] = {
    "zip": lambda rank: torch_zip(
        pickled(tensor(storage_id("0", 1), (1,) * rank)), {"0": floats(1)}
    ),
    "torch.Size": lambda rank: torch_zip(
        pickled(
            call(
                "torch._utils",
                "_rebuild_tensor",
                Raw(storage_id("0", 1)),
                0,
                Raw(call("torch", "Size", (1,) * rank)),
                (1,) * rank,
            )
        ),
        {"0": floats(1)},
    ),
    "legacy": lambda rank: legacy_stream(
        pickled(tensor(storage_id("0", 1, view=(None,)), (1,) * rank)), [("0", 1, floats(1))]
    ),
    "tar": lambda rank: tar_archive(
        tar_members(
            pickled(value(7) + BINPERSID),
            [TarStorage(1, floats(1))],
            [TarTensor(7, 1, (1,) * rank, (1,) * rank)],
        )
    ),
    "safetensors": lambda rank: safetensors_file(
        {"w": safetensors_entry([1] * rank, 0, 4)}, floats(1)
    ),
}


@pytest.mark.parametrize("rank", [64, 65, 256])
@pytest.mark.parametrize("framed", DIMENSIONS.values(), ids=DIMENSIONS)
def test_a_tensor_may_have_more_dimensions_than_numpy_has(
    scanned: Scanned, framed: Callable[[int], bytes], rank: int
) -> None:
    """Torch knows no limit."""
    result = scanned(framed(rank))

    assert (result.verdict, result.coverage.complete) == (Severity.CLEAN, True)


@pytest.mark.parametrize("framed", ["zip", "legacy"])
def test_a_tensor_of_more_dimensions_than_we_follow_is_a_gap_and_no_lie(
    scanned: Scanned, framed: str
) -> None:
    result = scanned(DIMENSIONS[framed](257))

    assert [finding.rule for finding in result.findings] == ["CKA208"]
    (gap,) = result.coverage.gaps
    assert "a tensor has 257 dimensions, more than the 256 we follow" in gap.reason


def test_a_tar_of_more_dimensions_than_we_follow_is_read_up_to_them(scanned: Scanned) -> None:
    result = scanned(DIMENSIONS["tar"](257))

    assert result.verdict > Severity.CLEAN
    reasons = [gap.reason for gap in result.coverage.gaps]
    assert any("257 dimensions, more than the 256 we follow" in reason for reason in reasons)


def test_a_safetensors_file_of_more_dimensions_than_we_follow_gets_no_answer(
    scanned: Scanned,
) -> None:
    with pytest.raises(LimitExceeded, match="257 dimensions, more than the 256 we follow"):
        scanned(DIMENSIONS["safetensors"](257))


def test_a_shape_that_a_million_tensors_share_is_not_looked_at_a_million_times(
    scanned: Scanned,
) -> None:
    shape = value((1,) * 256) + binput(0)
    weight = call(
        "torch._utils",
        "_rebuild_tensor",
        Raw(storage_id("0", 1)),
        0,
        Raw(binget(0)),
        Raw(binget(0)),
    )

    result = scanned(torch_zip(pickled(shape, (POP + weight) * 20_000), {"0": floats(1)}))

    assert result.verdict is Severity.REVIEW
    (gap,) = result.coverage.gaps
    assert (gap.record, gap.reason) == (
        "archive/data.pkl",
        "makes more tensors than the limit allows",
    )


def canary(path: Path) -> dict[str, bytes]:
    """Pickles each of which creates *path*, in its own way, if it is ever executed."""
    touch = f"open({str(path)!r}, 'w').close()"
    shell = f"touch '{path}'"
    system = global_("os", "system")
    return {
        "reduce": call("os", "system", shell),
        "global-and-tuple": system + value(shell) + TUPLE1 + REDUCE,
        "inst": inst("os", "system", shell),
        "obj": MARK + system + value(shell) + OBJ,
        "stack-global": values("os", "system") + STACK_GLOBAL + value((shell,)) + REDUCE,
        "builtin": call("builtins", "exec", touch),
        "newobj": global_("_io", "FileIO") + value((str(path), "w")) + NEWOBJ,
        "newobj-ex": values(Raw(global_("_io", "FileIO")), (str(path),), {"mode": "w"}) + NEWOBJ_EX,
        "resolver": call("pkgutil", "resolve_name", "os:system") + value((shell,)) + REDUCE,
        "attribute": call("operator", "attrgetter", "system") + TUPLE1 + REDUCE,
        "nested": call("pickle", "loads", pickled(call("os", "system", shell))),
        "torch-nested": call(
            "torch.storage", "_load_from_bytes", pickled(call("os", "system", shell))
        ),
        "set-state": empty("argparse", "Namespace", {"__setstate__": Raw(system)})
        + value(shell)
        + BUILD,
        "append": empty("argparse", "Namespace", {"append": Raw(system)}) + value(shell) + b"a",
        "hook": call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            Raw(system),
            Raw(global_("torch", "Tensor")),
            (shell,),
            {},
        ),
        "factory": call("collections", "defaultdict", Raw(system)),
    }


def framings(opcodes: bytes) -> dict[str, bytes]:
    weights = Raw(tensor(storage_id("0", 2), (2,)))
    pickle = pickled(value({"w": weights, "evil": Raw(opcodes)}))
    return {
        "zip": torch_zip(pickle, {"0": floats(1, 2)}),
        "zip-with-a-second-pickle": zip_archive(
            [
                *torch_entries(state_dict({"w": 2}), {"0": floats(1, 2)}),
                ZipEntry("archive/x.pkl", pickled(opcodes)),
            ]
        ),
        "torchscript": zip_archive(
            [
                *torch_entries(pickle, {"0": floats(1, 2)}),
                ZipEntry("archive/constants.pkl", pickled(opcodes)),
            ]
        ),
        "legacy": legacy_stream(pickle, [("0", 2, floats(1, 2))]),
        "legacy-magic": legacy_stream(pickle, [("0", 2, floats(1, 2))], magic=pickled(opcodes)),
        "legacy-keys": legacy_stream(pickled(value({})), keys=pickled(opcodes)),
        "tar": tar_archive(tar_members(pickled(opcodes))),
        "bare": pickled(opcodes),
        "broken": proto(2) + opcodes + b"\xff",
        "second": pickled(value({})) + pickled(opcodes),
    }


def test_nothing_that_is_read_is_ever_executed(tmp_path: Path) -> None:
    """Whatever creates the canary when unpickled is scanned, inspected and converted."""
    trap = tmp_path / "canary"
    checkpoint = tmp_path / "model.ckpt"
    for way, opcodes in canary(trap).items():
        for framing, data in framings(opcodes).items():
            checkpoint.write_bytes(data)
            assert scan(checkpoint).verdict >= Severity.SUSPICIOUS, (way, framing)
            with suppress(CkptauditError):
                inspect(checkpoint)
            with suppress(CkptauditError):
                convert(checkpoint, tmp_path / "out.safetensors", allow_unsafe=True, overwrite=True)
            assert not trap.exists(), (way, framing)


def test_the_canary_is_called_by_what_an_independent_parser_reads(tmp_path: Path) -> None:
    """The trap is no dud: `pickletools`, which executes nothing, reads the same call."""
    trap = tmp_path / "canary"

    read = [
        (opcode.name, argument) for opcode, argument, _ in genops(pickled(canary(trap)["reduce"]))
    ]

    names = [name for name, _ in read]
    assert "REDUCE" in names[names.index("GLOBAL") :]
    assert f"touch '{trap}'" in [argument for _, argument in read]
    assert not trap.exists()


def real_files() -> list[object]:
    manifest = REALFILES / "manifest.json"
    if not manifest.exists():
        skip = pytest.mark.skip(reason=f"{REALFILES.name} is not beside this checkout")
        return [pytest.param({}, marks=skip)]
    return [pytest.param(entry, id=entry["file"]) for entry in json.loads(manifest.read_text())]


@pytest.mark.parametrize("entry", real_files())
def test_a_real_file_gets_the_verdict_it_deserves(entry: dict[str, object]) -> None:
    path = REALFILES / str(entry["file"])
    if entry["hostile"]:
        with suppress(CkptauditError):
            assert scan(path).verdict > Severity.CLEAN
        return
    reviewed = path.name in {"vdsr_model_epoch_50.pth", "silero_vad.jit"}

    result = scan(path)

    assert result.verdict is (Severity.REVIEW if reviewed else Severity.CLEAN)
    assert result.coverage.complete
