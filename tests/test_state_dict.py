"""The state dict of a file is what torch would load, and whatever else it holds is named."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
from forge import floats, torch_zip

from ckptaudit.containers import open_container
from ckptaudit.jobs.stream import read_block
from ckptaudit.source import BufferSource
from ckptaudit.tensors import StateDict, blocks, find_state_dict
from ckptaudit.tensors.blocks import blocks_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptaudit.containers import Container

torch = pytest.importorskip("torch")

from oracle import Bits, bits, flattened  # noqa: E402 - it needs torch


def opened(data: bytes) -> tuple[Container, StateDict]:
    container = open_container(BufferSource(data))
    return container, find_state_dict(container)


def saved(obj: object, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(obj, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def contents(data: bytes) -> dict[str, Bits]:
    """What we read: type, shape and bytes by key."""
    container, state = opened(data)
    buffer = memoryview(bytearray(blocks.BLOCK_BYTES))
    found = {}
    for view in state.views:
        out = bytearray(view.nbytes)
        size = view.dtype.itemsize
        for block in blocks_of(view):
            elements = read_block(container, view, block, buffer)
            at = 0
            for first, last in block.runs:
                out[first * size : last * size] = elements[at : at + (last - first) * size]
                at += (last - first) * size
        found[view.key] = (f"torch.{view.dtype.name}", view.shape, bytes(out))
    return found


def loaded(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def weights(*, legacy: bool) -> dict[str, Any]:
    """Tensors of every kind that torch itself can read back from that framing."""
    ramp = torch.arange(24.0)
    return {
        "a": ramp.reshape(4, 6),
        "b.weight": ramp[3:7],
        "tied": ramp.reshape(4, 6),
        "transposed": ramp.reshape(4, 6).T,
        "expanded": torch.tensor([1.5]).expand(3, 2),
        "scalar": torch.tensor(7),
        "nothing": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "half": torch.ones(3, dtype=torch.float16),
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
        "complex": torch.tensor([1 + 2j]),
        "flags": torch.tensor([True, False]),
    } | ({} if legacy else untyped())


def untyped() -> dict[str, Any]:
    return {
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "uint16": torch.arange(6).to(torch.uint16)[2:].reshape(2, 2).T,
    }


def model() -> Any:
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    body.register_buffer("kept", torch.ones(2))
    body.register_buffer("passing", torch.zeros(2), persistent=False)
    body.tied = torch.nn.Linear(4, 4)
    body.also = body.tied
    body.plain = torch.ones(5)
    body.listed = torch.nn.ParameterList([torch.ones(2), torch.zeros(1)])
    return body


SAVED: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "root": ("", lambda w: w),
    "ordered-root": ("", OrderedDict),
    "state_dict": ("state_dict", lambda w: {"epoch": 3, "state_dict": w}),
    "nested": ("state_dict.state_dict", lambda w: {"state_dict": {"state_dict": w, "step": 1}}),
    "model": ("model", lambda w: {"model": w, "optimizer": {}}),
    "params_ema": ("params_ema", lambda w: {"params_ema": w, "x": None}),
    "module-in-model": ("model.module", lambda w: {"model": {"module": w}}),
    "nested-keys": ("", lambda w: {"unet": {"x": w}, "vae": {"y": w}}),
    "list": ("", lambda w: list(w.values())),
    "tuple": ("", lambda w: tuple(w.values())),
    "number-for-key": ("", lambda w: dict(enumerate(w.values()))),
    "one-tensor": ("", lambda w: w["a"]),
    "one-parameter": ("", lambda w: w["parameter"]),
    "stray-wrapper": ("", lambda w: {**w, "state_dict": {"x": w["a"]}}),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(("path", "wrap"), SAVED.values(), ids=SAVED)
def test_keys_and_bytes_are_what_torch_loads(
    path: str, wrap: Callable[[dict[str, Any]], Any], *, legacy: bool
) -> None:
    data = saved(wrap(weights(legacy=legacy)), legacy=legacy)
    expected = loaded(data)
    for step in path.split(".") if path else ():
        expected = expected[step]

    _, state = opened(data)

    assert state.path == path
    assert contents(data) == flattened(expected)
    assert not [left for left in state.leftovers if left.is_tensor]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m}], ids=["root", "model"])
def test_a_whole_module_gives_the_keys_of_its_state_dict(
    wrap: Callable[[Any], Any], *, legacy: bool
) -> None:
    module = model()
    expected = {key: bits(held) for key, held in module.state_dict().items()}
    data = saved(wrap(module), legacy=legacy)

    _, state = opened(data)
    left = {leftover.path.rsplit(".", 1)[-1]: leftover.reason for leftover in state.leftovers}

    assert contents(data) == expected
    assert [view.key for view in state.views] == list(expected)
    assert left["passing"] == "is a buffer that state_dict() leaves out"
    assert left["plain"] == "is no part of the module's state_dict()"


def test_a_parameter_dict_is_found_as_new_torch_writes_it() -> None:
    inversion = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 3))}),
        "name": "x",
    }

    found = contents(saved(inversion))

    assert found["string_to_param.*"] == bits(torch.ones(2, 3))
    assert found["string_to_token.*"] == bits(torch.tensor(265))


def test_an_optimizer_is_left_over_with_every_tensor() -> None:
    module = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    data = saved({"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]})

    _, state = opened(data)
    tensors = {left.path for left in state.leftovers if left.is_tensor}

    assert [view.key for view in state.views] == ["weight", "bias"]
    assert tensors == {
        f"optimizer_states[0].state[{index}].{name}"
        for index in (0, 1)
        for name in ("step", "exp_avg", "exp_avg_sq")
    }


def test_training_state_beside_bare_weights_is_left_over() -> None:
    _, state = opened(saved({"w": torch.ones(2), "optimizer": {"m": torch.ones(2)}}))

    assert [view.key for view in state.views] == ["w"]
    assert [(left.path, left.reason) for left in state.leftovers] == [
        ("optimizer.m", "is training state")
    ]


UNREADABLE: dict[str, tuple[str, Callable[[], Any]]] = {
    "sparse": ("sparse tensor", lambda: torch.eye(3).to_sparse()),
    "nested": (
        "nested tensor",
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.strided),
    ),
    "quantised": (
        "quantised tensor",
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8),
    ),
    "meta": ("meta tensor", lambda: torch.empty(3, device="meta")),
    "conjugated": ("tensor with deferred changes", lambda: torch.tensor([1 + 2j]).conj()),
    "negated": ("tensor with deferred changes", lambda: torch._neg_view(torch.ones(2))),  # noqa: SLF001 - there is no other way to one
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("what", "make"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_dense_tensor_is_left_over_with_a_reason(
    what: str, make: Callable[[], Any]
) -> None:
    _, state = opened(saved({"w": torch.ones(2), "odd": make()}))

    assert [view.key for view in state.views] == ["w"]
    (left,) = state.leftovers
    assert (left.path, left.what, left.is_tensor) == ("odd", what, True)
    assert left.reason


def test_a_bare_storage_is_left_over() -> None:
    _, state = opened(saved({"w": torch.ones(2), "s": torch.ones(3).untyped_storage()}))

    assert [(left.is_tensor, left.what) for left in state.leftovers if left.is_tensor] == [
        (True, "storage '1': uint8 [12]")
    ]


def test_a_tensor_hung_on_another_on_the_same_storage_does_not_go_unnoticed() -> None:
    flat = torch.arange(20.0)
    parameter = torch.nn.Parameter(flat[:10])
    parameter.extra = flat[10:20]

    _, state = opened(saved({"p": parameter}))

    assert [(left.what, left.is_tensor) for left in state.leftovers] == [("float32 [10]", True)]


def test_a_weight_is_no_training_state_for_how_its_name_begins() -> None:
    names = ["amplifier.weight", "scaler.mean", "optimus.w", "loops.0", "optimizer"]
    nested = {"amplifier": {"weight": torch.ones(1)}, "optimizer": {"state": torch.ones(1)}}

    _, flat = opened(saved({name: torch.ones(2) for name in names}))
    _, deep = opened(saved({"w": torch.ones(2), **nested}))

    assert {view.key for view in flat.views} == set(names)
    assert {view.key for view in deep.views} == {"w", "amplifier.weight"}


def test_a_tensor_hung_on_a_parameter_does_not_go_unnoticed() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.extra = torch.zeros(5)

    _, state = opened(saved({"p": parameter}))

    assert [view.key for view in state.views] == ["p"]
    assert [(left.what, left.is_tensor) for left in state.leftovers] == [("float32 [5]", True)]


def test_an_empty_archive_has_an_empty_state_dict() -> None:
    _, state = opened(saved({}))

    assert (state.views, state.path) == ((), "")


def test_the_bytes_are_those_of_the_file() -> None:
    """The oracle itself is not asked here: two floats, forged by hand."""
    from forge import state_dict  # noqa: PLC0415

    data = torch_zip(state_dict({"w": 2}), {"0": floats(1, 2)})

    assert contents(data) == {"w": ("torch.float32", (2,), floats(1, 2))}
