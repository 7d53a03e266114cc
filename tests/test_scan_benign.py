"""What honest people save is clean, as far as it is data; whole modules are for review."""

from __future__ import annotations

import argparse
import datetime as dt
import decimal
import fractions
import io
import logging
import pathlib
import random
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from forge import (
    BUILD,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ,
    SETITEMS,
    Raw,
    call,
    floats,
    global_,
    short_binstring,
    state_dict,
    torch_zip,
    value,
    values,
)
from oracle import torch
from torch.nn.utils import prune

from ckptaudit.jobs.scan import ScanResult, scan
from ckptaudit.policy import Severity

Scanned = Callable[[bytes], ScanResult]


@pytest.fixture
def scanned(tmp_path: Path) -> Scanned:
    """Write bytes to a file and scan it."""

    def run(data: bytes) -> ScanResult:
        path = tmp_path / "model.ckpt"
        path.write_bytes(data)
        return scan(path)

    return run


def saved(obj: object, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(obj, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def weights() -> dict[str, object]:
    return {"w": torch.arange(6.0).reshape(2, 3)}


def with_metadata() -> object:
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()


def with_adam() -> object:
    module = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"state_dict": module.state_dict(), "optimizer": optimizer.state_dict()}


BENIGN: dict[str, Callable[[], object]] = {
    "state-dict-with-metadata": with_metadata,
    "adam": with_adam,
    "nothing": dict,
    "one-tensor": lambda: torch.ones(2),
    "parameter": lambda: {"p": torch.nn.Parameter(torch.ones(2))},
    "parameter-dict": lambda: torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2))}),
    "parameter-list": lambda: torch.nn.ParameterList([torch.ones(2)]),
    "namespace": lambda: {**weights(), "args": argparse.Namespace(lr=0.1, name="x", deep={})},
    "every-dtype": lambda: {
        str(kind): torch.zeros(3, dtype=kind)
        for kind in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.uint16,
            torch.uint32,
            torch.uint64,
            torch.bool,
            torch.complex64,
            torch.complex128,
            torch.float8_e4m3fn,
            torch.float8_e5m2,
        )
    },
    "views": lambda: {"t": torch.ones(3, 4).T, "e": torch.ones(1).expand(5), "z": torch.ones(0, 3)},
    "meta": lambda: torch.empty(3, device="meta"),
    "storage": lambda: torch.ones(3).untyped_storage(),
    "dtypes-and-devices": lambda: [
        torch.float32,
        torch.device("cpu"),
        torch.device("cuda:1"),
        torch.Size([2, 3]),
    ],
    "numpy-scalars": lambda: [
        np.float64(1.5),
        np.int32(3),
        np.bool_(1),
        np.str_("x"),
        np.complex64(1j),
    ],
    "numpy-arrays": lambda: [
        np.arange(3),
        np.zeros((2, 2), order="F"),
        np.array(["ab"]),
        np.array([b"ab"]),
        np.empty(0),
    ],
    "numpy-byte-order-and-dates": lambda: [
        np.arange(3, dtype=">i4"),
        np.datetime64("2020-01-01"),
        np.timedelta64(3, "s"),
    ],
    "numpy-dtypes": lambda: [np.dtype("f8"), np.dtype("U3")],
    "python-values": lambda: [
        1,
        1 << 100,
        -5,
        1.5,
        True,
        None,
        "x",
        "\u00e9",
        b"",
        b"x",
        bytearray(b"y"),
        1j,
        ...,
    ][:-1],
    "containers": lambda: [
        set(),
        {1, 2},
        frozenset("a"),
        slice(1, None, 2),
        range(5),
        (),
        (1, 2, 3, 4),
        [[]],
    ],
    "collections": lambda: [
        Counter("aab"),
        defaultdict(list, a=[1]),
        defaultdict(int),
        defaultdict(None),
        deque([1, 2]),
        deque([1], maxlen=3),
        OrderedDict(a=1),
        defaultdict(OrderedDict),
    ],
    "paths": lambda: [pathlib.PurePosixPath("a/b"), pathlib.Path("a")],
    "times": lambda: [
        dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc),
        dt.date(2020, 1, 1),
        dt.time(1, 2),
        dt.timedelta(3, 4),
    ],
    "exact-numbers": lambda: [decimal.Decimal("1.5"), fractions.Fraction(1, 3)],
    "uuid": lambda: uuid.UUID(int=5),
    "numpy-arrays-of-objects": lambda: [
        np.array(["a", None, 3, (1, [2])], dtype=object),
        np.empty((0, 2), dtype=object),
        np.dtype(object),
    ],
    "tensors-of-types-that-are-not-converted": lambda: [
        torch.empty(3, dtype=kind) for kind in (torch.bits8, torch.float4_e2m1fn_x2)
    ],
    "version-of-torch": lambda: {"torch": torch.__version__},
    "simple-namespace": lambda: types.SimpleNamespace(lr=0.1, deep=types.SimpleNamespace(a=[1])),
    "values-without-a-type-of-their-own": lambda: [..., NotImplemented],
    "types-in-a-configuration": lambda: [int, str, np.float32, np.int64, torch.int4, torch.bits8],
    "parameters-of-a-lazy-module": lambda: torch.nn.LazyLinear(3).state_dict(),
    "random-states": lambda: [
        torch.get_rng_state(),
        np.random.get_state(),  # noqa: NPY002 - as training scripts do
        np.random.default_rng(0).bit_generator.state,
        random.getstate(),
    ],
}

# Objects of classes that everybody has, which run code of their own when they are given a state.
REVIEWED: dict[str, Callable[[], object]] = {
    "random-of-python": lambda: random.Random(3),  # noqa: S311 - not for secrets
    "random-of-torch": torch.Generator,
    "random-state-of-numpy": lambda: np.random.RandomState(0),
    **{
        f"generator-of-numpy-by-{kind.__name__}": partial(np.random.Generator, kind(1))
        for kind in (np.random.MT19937, np.random.PCG64, np.random.Philox, np.random.SFC64)
    },
    "log": lambda: logging.getLogger("train"),
    "whole-optimizer": lambda: torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1),
    "whole-scheduler": lambda: torch.optim.lr_scheduler.StepLR(
        torch.optim.Adam(torch.nn.Linear(2, 2).parameters()), 1
    ),
    "averaged-module": lambda: torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 2)),
    "module-with-weight-norm": lambda: torch.nn.utils.weight_norm(torch.nn.Linear(2, 2)),
    "module-with-spectral-norm": lambda: torch.nn.utils.spectral_norm(torch.nn.Linear(2, 2)),
    "pruned-module": lambda: prune.l1_unstructured(torch.nn.Linear(2, 2), "weight", 1),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("make", BENIGN.values(), ids=BENIGN)
def test_what_training_scripts_save_is_clean(
    scanned: Scanned, make: Callable[[], object], *, legacy: bool
) -> None:
    result = scanned(saved(make(), legacy=legacy))

    assert [finding.message for finding in result.findings] == []
    assert (result.verdict, result.coverage.complete) == (Severity.CLEAN, True)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("make", REVIEWED.values(), ids=REVIEWED)
def test_an_object_of_a_class_that_everybody_has_is_for_review(
    scanned: Scanned, make: Callable[[], object], *, legacy: bool
) -> None:
    result = scanned(saved({"object": make()}, legacy=legacy))

    assert {finding.rule for finding in result.findings} == {"CKA108"}
    assert (result.verdict, result.coverage.complete) == (Severity.REVIEW, True)


def forged(other: bytes) -> bytes:
    return torch_zip(state_dict({"w": 2}, other=Raw(other)), {"0": floats(1, 2)})


def empty(module: str, name: str, state: object = None) -> bytes:
    build = b"" if state is None else value(state) + BUILD
    return global_(module, name) + EMPTY_TUPLE + NEWOBJ + build


FORGED_BENIGN = {
    "callback-as-key": call("collections", "OrderedDict")
    + MARK
    + global_("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    + value({"best": 1.0})
    + SETITEMS,
    "python-2-bytes-for-keys": MARK + short_binstring(b"\xc3\xa9") + value(1) + b"d",
    "python-2-set": call("__builtin__", "set", [1, 2]),
    "python-2-ordered-dict": call("collections", "OrderedDict", [["a", 1], ["b", 2]]),
    "python-2-parameter-dict": empty(
        "torch.nn.modules.container",
        "ParameterDict",
        {"_parameters": {}, "_buffers": {}, "_modules": {}, "training": True},
    ),
    **{
        f"{name}-as-a-key": MARK
        + global_(f"pytorch_lightning.callbacks.{place}", name)
        + value({"wait_count": 0})
        + b"d"
        for place, name in (("early_stopping", "EarlyStopping"), ("timer", "Timer"))
    },
    "attribute-dict": empty("pytorch_lightning.utilities.parsing", "AttributeDict")
    + MARK
    + values("lr", 0.1)
    + SETITEMS,
    "list-config": empty(
        "omegaconf.listconfig",
        "ListConfig",
        {
            "_metadata": Raw(
                empty(
                    "omegaconf.base",
                    "ContainerMetadata",
                    {"ref_type": Raw(global_("typing", "Any"))},
                )
            ),
            "_content": [Raw(empty("omegaconf.nodes", "AnyNode", {"_val": 1}))],
        },
    ),
    "protocol-1-namespace": call(
        "copy_reg",
        "_reconstructor",
        Raw(global_("argparse", "Namespace")),
        Raw(global_("__builtin__", "object")),
        None,
    )
    + value({"lr": 1})
    + BUILD,
    "numpy-1-scalar": call(
        "numpy.core.multiarray",
        "scalar",
        Raw(
            call("numpy", "dtype", "f8", 0, 1)
            + value((3, "<", None, None, None, -1, -1, 0))
            + BUILD
        ),
        Raw(call("_codecs", "encode", "\0" * 8, "latin1")),
    ),
    "defaultdict-of-builtin": call(
        "collections", "defaultdict", Raw(global_("__builtin__", "list"))
    ),
}


@pytest.mark.parametrize("opcodes", FORGED_BENIGN.values(), ids=FORGED_BENIGN)
def test_what_old_training_scripts_saved_is_clean(scanned: Scanned, opcodes: bytes) -> None:
    result = scanned(forged(opcodes))

    assert [finding.message for finding in result.findings] == []
    assert (result.verdict, result.coverage.complete) == (Severity.CLEAN, True)


MODULE = {"training": True, "_parameters": {}, "_buffers": {}, "_modules": {}}
DETECT = Raw(global_("ultralytics.nn.modules.head", "Detect"))
HELD_BY_MODULES = {
    # What segmentation models keep of the class they extend; protocol 2 has no other spelling.
    "method-of-another-layer": call("__builtin__", "getattr", DETECT, "forward"),
    "method-of-an-object": call(
        "__builtin__", "getattr", Raw(empty("torch.nn.modules.linear", "Linear", MODULE)), "reset"
    ),
    # The state of a scheduler of torch before 2.0.
    "how-one-cycle-anneals": call(
        "__builtin__",
        "getattr",
        Raw(global_("torch.optim.lr_scheduler", "OneCycleLR")),
        "_annealing_cos",
    ),
    "options-of-a-detector": empty("ultralytics.utils", "IterableSimpleNamespace", {"imgsz": 640}),
    "loss-of-a-detector": empty("ultralytics.utils.loss", "v8DetectionLoss", {"use_dfl": True}),
    "assigner-of-a-detector": empty("ultralytics.utils.tal", "TaskAlignedAssigner", MODULE),
}


@pytest.mark.parametrize("opcodes", HELD_BY_MODULES.values(), ids=HELD_BY_MODULES)
def test_what_whole_modules_hold_beside_modules_is_for_review(
    scanned: Scanned, opcodes: bytes
) -> None:
    result = scanned(forged(opcodes))

    assert {finding.rule for finding in result.findings} == {"CKA108"}
    assert result.verdict is Severity.REVIEW


def test_a_whole_module_is_for_review(scanned: Scanned) -> None:
    for legacy in (False, True):
        result = scanned(saved(torch.nn.Sequential(torch.nn.Linear(2, 2)), legacy=legacy))

        assert result.verdict is Severity.REVIEW
        assert {finding.rule for finding in result.findings} == {"CKA108"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_for_review(scanned: Scanned, tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)

    result = scanned(path.read_bytes())

    assert result.verdict is Severity.REVIEW
    assert [finding.rule for finding in result.findings] == ["CKA205"]
