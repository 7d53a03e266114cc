"""Forms that torch no longer writes, and tensors in places where nobody looks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from forge import (
    BINPERSID,
    BUILD,
    EMPTY_DICT,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ,
    NEWOBJ_EX,
    NONE,
    POP,
    SETITEM,
    SETITEMS,
    TUPLE1,
    TUPLE2,
    Raw,
    TarStorage,
    TarTensor,
    call,
    floats,
    global_,
    legacy_stream,
    long4,
    pickled,
    storage_id,
    tar_archive,
    tar_members,
    tensor,
    torch_zip,
    value,
    values,
)

from ckptaudit.containers import open_container
from ckptaudit.source import BufferSource
from ckptaudit.tensors import Leftover, StateDict, find_state_dict, rebuilt_names

if TYPE_CHECKING:
    from collections.abc import Mapping

HOOKS = Raw(call("collections", "OrderedDict"))
PID = Raw(storage_id("0", 4))
BYTES_PID = Raw(storage_id("0", 16, module="torch.storage", storage="UntypedStorage"))
TENSOR = Raw(tensor(storage_id("0", 4), (4,)))


def found(*parts: bytes, storages: Mapping[str, bytes] | None = None) -> StateDict:
    stored = {"0": floats(1, 2, 3, 4)} if storages is None else storages
    return find_state_dict(open_container(BufferSource(torch_zip(pickled(*parts), stored))))


def dense(*args: object, function: str = "_rebuild_tensor_v2") -> bytes:
    return call("torch._utils", function, *args)


def torch_name(name: str, module: str = "torch") -> Raw:
    return Raw(global_(module, name))


def named(key: str, kind: str, size: int) -> bytes:
    """A tensor of *size* floats on a storage of its own."""
    return tensor(storage_id(key, size, storage=kind), (size,))


ODD = named("1", "FloatStorage", 2)
OLD: dict[str, bytes] = {
    "rebuild-tensor": dense(PID, 0, (4,), (1,), function="_rebuild_tensor"),
    "v2": dense(PID, 0, (4,), (1,), 0, HOOKS),
    "v2-metadata": dense(PID, 0, (4,), (1,), 0, HOOKS, {}),
    "v2-size-by-class": dense(PID, 0, Raw(call("torch", "Size", (4,))), (1,), 0, HOOKS),
    "v2-lists": dense(PID, 0, [4], [1], 0, HOOKS),
    "v3": dense(
        BYTES_PID, 0, (4,), (1,), 0, HOOKS, torch_name("float32"), function="_rebuild_tensor_v3"
    ),
    "device": dense(
        TENSOR, torch_name("float32"), "xla:0", 0, function="_rebuild_device_tensor_from_cpu_tensor"
    ),
    "parameter": dense(TENSOR, 1, HOOKS, function="_rebuild_parameter"),
    "parameter-with-state": dense(TENSOR, 1, HOOKS, {}, function="_rebuild_parameter_with_state"),
    "parameter-by-reduce": call("torch.nn.parameter", "Parameter", TENSOR, 1),
    "parameter-by-reduce-and-build": call("torch.nn.parameter", "Parameter", TENSOR)
    + value((True, False, HOOKS))
    + BUILD,
    "parameter-by-build": global_("torch.nn.parameter", "Parameter")
    + EMPTY_TUPLE
    + NEWOBJ
    + value((TENSOR, None, HOOKS, True, False))
    + BUILD,
    "parameter-of-a-parameter": call(
        "torch.nn", "Parameter", Raw(call("torch.nn", "Parameter", TENSOR))
    ),
    "buffer": call("torch.nn.parameter", "Buffer", TENSOR),
    "from-type": call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        torch_name("_rebuild_tensor_v2", "torch._utils"),
        torch_name("Buffer", "torch.nn.parameter"),
        (PID, 0, (4,), (1,), 0, HOOKS),
        {},
    ),
    "torch-0.1": call("torch", "FloatTensor") + value((PID, 0, (4,), (1,))) + BUILD,
    "torch-0.1-cuda": call("torch.cuda", "FloatTensor") + value((PID, 0, (4,), (1,))) + BUILD,
}


@pytest.mark.parametrize("opcodes", OLD.values(), ids=OLD)
def test_every_way_to_write_a_tensor_is_read(opcodes: bytes) -> None:
    state = found(value({"w": Raw(opcodes)}))

    (view,) = state.views
    assert (view.key, view.dtype.name, view.shape, view.stride, view.offset) == (
        "w",
        "float32",
        (4,),
        (1,),
        0,
    )
    assert state.leftovers == ()


BROKEN: dict[str, bytes] = {
    "no-storage": dense(None, 0, (4,), (1,), 0, HOOKS),
    "too-few-arguments": dense(PID, 0, (4,)),
    "size-of-text": dense(PID, 0, ("4",), (1,), 0, HOOKS),
    "size-of-bool": dense(PID, 0, (True,), (1,), 0, HOOKS),
    "offset-of-none": dense(PID, None, (4,), (1,), 0, HOOKS),
    "offset-of-bool": dense(PID, True, (4,), (1,), 0, HOOKS),  # noqa: FBT003 - that it is one is the fault
    "dtype-unknown": dense(
        BYTES_PID, 0, (4,), (1,), 0, HOOKS, torch_name("float31"), function="_rebuild_tensor_v3"
    ),
    "dtype-on-a-typed-storage": dense(
        PID, 0, (4,), (1,), 0, HOOKS, torch_name("float32"), function="_rebuild_tensor_v3"
    ),
    "empty-parameter": call("torch.nn.parameter", "Parameter"),
    "nine-parameters": global_("torch.nn", "Parameter") * 9 + TENSOR.opcodes + (TUPLE1 + b"R") * 9,
}


@pytest.mark.parametrize("opcodes", BROKEN.values(), ids=BROKEN)
def test_a_tensor_torch_could_not_make_is_left_over(opcodes: bytes) -> None:
    state = found(
        value({"odd": Raw(opcodes), "w": Raw(ODD)}),
        storages={"0": floats(1, 2, 3, 4), "1": floats(5, 6)},
    )

    assert [view.key for view in state.views] == ["w"]
    odd = state.leftovers[0]
    assert (odd.path, odd.is_tensor) == ("odd", True)
    assert all(left.is_tensor for left in state.leftovers)


def test_every_rebuild_function_is_known_by_module_and_name() -> None:
    assert ("torch._utils", "_rebuild_tensor_v2") in rebuilt_names()
    assert all(module.startswith("torch") for module, _ in rebuilt_names())


def test_a_tensor_of_a_missing_storage_is_left_over_and_the_others_stay() -> None:
    there = Raw(tensor(storage_id("1", 2), (2,)))
    state = found(value({"w": TENSOR, "v": there}), storages={"1": floats(5, 6)})

    assert [view.key for view in state.views] == ["v"]
    (left,) = state.leftovers
    assert (left.path, left.is_tensor) == ("w", True)
    assert "cannot be read: storage '0' is missing" in left.reason


# Legacy streams and tars


def legacy(view: tuple[object, ...] | None, size: int, offset: int = 0) -> StateDict:
    pid = storage_id("7", 6, view=(view,))
    obj = pickled(value({"w": Raw(tensor(pid, (size,), offset=offset))}))
    data = legacy_stream(obj, [("7", 6, floats(*range(6)))])
    return find_state_dict(open_container(BufferSource(data)))


def test_a_legacy_view_counts_from_where_it_begins_in_its_root() -> None:
    (view,) = legacy(("9", 2, 3), 2, offset=1).views

    assert (view.storage.key, view.offset, view.shape) == ("7", 3, (2,))


def test_a_legacy_view_ends_where_it_says_though_its_root_goes_on() -> None:
    (left,) = legacy(("9", 2, 3), 4).leftovers

    assert left.is_tensor
    assert "of a storage of 5" in left.reason


def test_a_negative_offset_does_not_reach_in_front_of_a_legacy_view() -> None:
    (left,) = legacy(("9", 2, 3), 2, offset=-1).leftovers

    assert left.is_tensor


def test_a_tar_names_its_tensors_by_number() -> None:
    parameter = Raw(call("torch.nn.parameter", "Parameter", Raw(value(5) + BINPERSID)))
    obj = pickled(value({"a": Raw(value(5) + BINPERSID), "p": parameter}))
    data = tar_archive(
        tar_members(
            obj,
            [TarStorage(1, floats(1, 2, 3, 4))],
            [TarTensor(5, 1, (2, 2), (2, 1)), TarTensor(6, 1, (1,), (1,), 3)],
        )
    )

    state = find_state_dict(open_container(BufferSource(data)))

    assert [(view.key, view.shape) for view in state.views] == [("a", (2, 2)), ("p", (2, 2))]
    assert [(left.what, left.is_tensor) for left in state.leftovers] == [("float32 [1]", True)]


def test_a_persistent_id_of_any_size_is_no_key_in_a_tar() -> None:
    huge = long4(b"\1" * 5000)
    data = tar_archive(tar_members(pickled(value({"a": Raw(huge + BINPERSID)}))))

    assert find_state_dict(open_container(BufferSource(data))).views == ()


# Nothing is lost


def pair(where: bytes) -> bytes:
    return value({"w": TENSOR, "odd": Raw(where)})


BESIDE: dict[str, bytes] = {
    "argument": call("thing", "Thing", Raw(ODD)),
    "keyword": values(Raw(global_("thing", "Thing")), (), {"x": Raw(ODD)}) + NEWOBJ_EX,
    "attribute": call("thing", "Thing") + value({"x": Raw(ODD)}) + BUILD,
    "slot": call("thing", "Thing") + value((None, {"x": Raw(ODD)})) + BUILD,
    "odd-state": call("thing", "Thing") + value((1, 2, Raw(ODD))) + BUILD,
    "state-that-is-replaced": call("thing", "Thing")
    + value({"x": Raw(ODD)})
    + BUILD
    + EMPTY_DICT
    + BUILD,
    "argument-beside-items": call("thing", "Thing", Raw(ODD)) + value("x") + NONE + SETITEM,
    "made-and-dropped": ODD + POP + NONE,
    "key": EMPTY_DICT + ODD + value(1) + SETITEM,
    "inside-a-key": EMPTY_DICT + value((1, Raw(ODD))) + value(1) + SETITEM,
    "function": call("thing", "Thing", Raw(ODD)) + EMPTY_TUPLE + b"R",
    "persistent-id": value(("x", Raw(ODD))) + BINPERSID,
    "inside-a-sparse-tensor": call(
        "torch._utils", "_rebuild_sparse_tensor", None, (None, Raw(ODD))
    ),
    "deferred-metadata": call(
        "torch._utils",
        "_rebuild_tensor_v2",
        Raw(storage_id("1", 2)),
        0,
        (2,),
        (1,),
        0,
        HOOKS,
        {"neg": True},
    ),
    "ordered-dict-attribute": call("collections", "OrderedDict") + value({"x": Raw(ODD)}) + BUILD,
    "triple-in-an-ordered-dict": call("collections", "OrderedDict", [(1, 2, Raw(ODD))]),
    "bytes-for-key": EMPTY_DICT + value(b"x") + ODD + SETITEM,
    "huge-number-for-key": EMPTY_DICT + long4(b"\1" * 5000) + ODD + SETITEM,
}


@pytest.mark.parametrize("odd", BESIDE.values(), ids=BESIDE)
def test_views_and_leftovers_are_all_tensors_of_the_file(odd: bytes) -> None:
    state = found(pair(odd), storages={"0": floats(1, 2, 3, 4), "1": floats(5, 6)})

    assert [view.key for view in state.views] == ["w"]
    assert len([left for left in state.leftovers if left.is_tensor]) == 1


def test_of_two_entries_of_one_key_the_later_is_the_weight() -> None:
    both = EMPTY_DICT + MARK + values("w", Raw(ODD), "w", TENSOR) + SETITEMS
    state = found(both, storages={"0": floats(1, 2, 3, 4), "1": floats(5, 6)})

    assert [view.shape for view in state.views] == [(4,)]
    assert [left.reason for left in state.leftovers] == [
        "is replaced by a later entry of the same key"
    ]


def test_of_two_parameters_of_one_name_the_later_is_the_weight() -> None:
    both = EMPTY_DICT + MARK + values("w", Raw(ODD), "w", TENSOR) + SETITEMS
    module = call("thing", "Net") + value({"_parameters": Raw(both), "_modules": {}}) + BUILD
    state = found(module, storages={"0": floats(1, 2, 3, 4), "1": floats(5, 6)})

    assert [(view.key, view.shape) for view in state.views] == [("w", (4,))]
    assert [left.is_tensor for left in state.leftovers] == [True]


def test_keys_that_read_alike_do_not_hide_a_tensor() -> None:
    state = found(
        value({"1": Raw(ODD), 1: TENSOR}), storages={"0": floats(1, 2, 3, 4), "1": floats(5, 6)}
    )

    assert [view.shape for view in state.views] == [(2,)]
    assert [left.reason for left in state.leftovers] == ["has the same name as another entry, '1'"]


def test_a_path_is_an_expression() -> None:
    odd = {"a b": 1, 3: 2, "x": Raw(values(1.5) + TUPLE1), "_y": [Raw(call("thing", "f"))]}
    state = found(value({"state_dict": {"w": TENSOR}, "other": {"t": TENSOR, **odd}}))

    lefts: list[Leftover] = list(state.leftovers)
    assert [left.path for left in lefts] == [
        "other.t",
        "other['a b']",
        "other[3]",
        "other.x",
        "other._y",
    ]


def test_two_tensors_in_one_tuple_are_not_a_state() -> None:
    assert [view.key for view in found(TENSOR.opcodes + TENSOR.opcodes + TUPLE2).views] == [
        "0",
        "1",
    ]
