"""Trees that nobody should write end in an answer or in our error, within a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from forge import (
    APPEND,
    APPENDS,
    BINPERSID,
    BUILD,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    LIST,
    MARK,
    NEWOBJ,
    NONE,
    POP,
    SETITEM,
    SETITEMS,
    TUPLE1,
    TUPLE2,
    Raw,
    binget,
    binput,
    binunicode,
    call,
    floats,
    global_,
    pickled,
    storage_id,
    tensor,
    torch_zip,
    value,
    values,
)

from ckptaudit.containers import open_container
from ckptaudit.errors import CkptauditError, LimitExceeded
from ckptaudit.source import BufferSource
from ckptaudit.tensors import StateDict, find_state_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

TENSOR = Raw(tensor(storage_id("0", 4), (4,)))


def found(*parts: bytes, storages: Mapping[str, bytes] | None = None) -> StateDict:
    stored = {"0": floats(1, 2, 3, 4)} if storages is None else storages
    return find_state_dict(open_container(BufferSource(torch_zip(pickled(*parts), stored))))


LEAF = TENSOR.opcodes
DEEP = 200_000


def shared(times: int) -> bytes:
    """A list of one list twice, of one list twice, and so on: 2^times names for one tensor."""
    twice = binput(1) + POP + EMPTY_LIST + MARK + binget(1) * 2 + APPENDS
    return EMPTY_LIST + LEAF + APPEND + twice * times


# In the memo: 9 OrderedDict, 8 the function that makes sparse tensors, 7 a class.
MEMO = (
    global_("collections", "OrderedDict")
    + binput(9)
    + global_("torch._utils", "_rebuild_sparse_tensor")
    + binput(8)
    + global_("thing", "Thing")
    + binput(7)
)
THING = binget(7) + EMPTY_TUPLE + NEWOBJ
MANY: dict[str, object] = {str(number): [number] for number in range(3000)}
STATE = value(MANY) + binput(0) + POP
MODULE = value({**MANY, "_modules": {}, "w": TENSOR}) + binput(0) + POP
TREES: dict[str, bytes] = {
    "deep-tuples": LEAF + TUPLE1 * DEEP,
    "deep-lists": MARK * DEEP + LEAF + LIST * DEEP,
    "deep-dicts": (EMPTY_DICT + NONE) * DEEP + LEAF + SETITEM * DEEP,
    "deep-calls": global_("thing", "f") * 1
    + binput(0)
    + POP
    + LEAF
    + (TUPLE1 + binput(1) + POP + binget(0) + binget(1) + b"R") * 20_000,
    "deep-parameters": global_("torch.nn", "Parameter") * 5000 + LEAF + (TUPLE1 + b"R") * 5000,
    "deep-persistent-ids": LEAF + TUPLE1 + BINPERSID * DEEP,
    "deep-state": call("thing", "f")
    + binput(0)
    + LEAF
    + (binput(1) + POP + call("thing", "f") + binget(1) + BUILD) * 5000,
    "deep-wrappers": b"".join([(EMPTY_DICT + value("model")) * 5000, LEAF, SETITEM * 5000]),
    "shared-2^60": shared(60),
    "shared-2^16": shared(16),
    "dict-of-itself": EMPTY_DICT
    + binput(0)
    + value("model")
    + binget(0)
    + SETITEM
    + value("w")
    + LEAF
    + SETITEM,
    "list-of-itself": EMPTY_LIST + binput(0) + binget(0) + APPEND + LEAF + APPEND,
    "list-of-itself-twice": EMPTY_LIST
    + binput(0)
    + binget(0)
    + APPEND
    + binget(0)
    + APPEND
    + LEAF
    + APPEND,
    "wrapper-of-itself": EMPTY_DICT
    + binput(0)
    + value("state_dict")
    + value({"model": Raw(binget(0)), "w": TENSOR})
    + SETITEM,
    "object-of-itself": call("thing", "f")
    + binput(0)
    + value({"me": Raw(binget(0)), "w": TENSOR})
    + BUILD,
    "module-of-itself": call("thing", "f")
    + binput(0)
    + value({"_modules": {"me": Raw(binget(0))}, "_parameters": {"w": TENSOR}})
    + BUILD,
    "long-names-on-every-level": binunicode("k" * 100_000)
    + binput(0)
    + POP
    + (EMPTY_DICT + binget(0)) * 400
    + LEAF
    + SETITEM * 400,
    "many-names-behind-a-long-one": (EMPTY_DICT + value("k" * 100)) * 400
    + EMPTY_LIST
    + MARK
    + LEAF
    + binput(0)
    + binget(0) * 20_000
    + APPENDS
    + SETITEM * 400,
    "many-names": EMPTY_LIST + MARK + LEAF + binput(0) + binget(0) * 20_000 + APPENDS,
    "many-nothings": EMPTY_LIST + MARK + LEAF + NONE * 50_000 + APPENDS,
    "many-nothings-in-a-dict": EMPTY_DICT + MARK + values("w") + LEAF + NONE * 50_000 + SETITEMS,
    "one-state-for-many-objects": STATE + MARK + LEAF + (THING + binget(0) + BUILD) * 10_000 + LIST,
    "one-module-state-for-many-objects": MODULE
    + MARK
    + (THING + binget(0) + BUILD) * 10_000
    + LIST,
    "one-list-for-many-dicts": value([[1, 2]] * 5000)
    + binput(0)
    + POP
    + MARK
    + LEAF
    + (binget(9) + binget(0) + TUPLE1 + b"R") * 10_000
    + LIST,
    "one-list-for-many-sparse-tensors": value([Raw(storage_id("0", 4))] * 500)
    + binput(0)
    + POP
    + MARK
    + LEAF
    + (binget(8) + NONE + binget(0) + TUPLE2 + b"R") * 10_000
    + LIST,
}


@pytest.mark.parametrize("opcodes", TREES.values(), ids=TREES)
def test_a_hostile_tree_ends_in_an_answer_or_our_error(opcodes: bytes) -> None:
    """Neither recursion nor a walk that does not end."""
    try:
        state = found(MEMO, opcodes)
    except CkptauditError:
        return
    assert isinstance(state, StateDict)


@pytest.mark.parametrize(
    "name",
    [
        "deep-tuples",
        "shared-2^60",
        "shared-2^16",
        "long-names-on-every-level",
        "many-names-behind-a-long-one",
    ],
)
def test_a_tree_that_takes_more_than_its_pickle_allows_is_refused(name: str) -> None:
    with pytest.raises(LimitExceeded):
        found(TREES[name])


@pytest.mark.parametrize(
    "name", ["dict-of-itself", "list-of-itself", "object-of-itself", "module-of-itself"]
)
def test_an_object_that_holds_itself_still_has_its_tensors(name: str) -> None:
    state = found(TREES[name])

    tensors = [*state.views, *(left for left in state.leftovers if left.is_tensor)]
    assert len(tensors) == 1


def test_values_that_are_no_tensors_are_listed_up_to_a_point() -> None:
    state = found(TREES["many-nothings"])

    assert len(state.views) == 1
    assert len(state.leftovers) == 10_001
    assert state.leftovers[-1].what == "40000 more values"


def test_many_names_for_one_tensor_are_all_views() -> None:
    assert len(found(TREES["many-names"]).views) == 20_001
