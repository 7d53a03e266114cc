"""Pickles made of random phrases: whatever they say, there is an answer or one of our errors."""

from __future__ import annotations

from contextlib import suppress

from forge import (
    ADDITEMS,
    APPEND,
    APPENDS,
    BINPERSID,
    BUILD,
    CALLS_SYSTEM,
    DICT,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    LIST,
    MARK,
    MEMOIZE,
    NEWOBJ,
    NEWOBJ_EX,
    NONE,
    OBJ,
    POP,
    READONLY_BUFFER,
    REDUCE,
    SETITEM,
    SETITEMS,
    STACK_GLOBAL,
    TUPLE,
    TUPLE1,
    TUPLE2,
    TUPLE3,
    binget,
    call,
    ext1,
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
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptaudit.containers import Container, open_container
from ckptaudit.errors import CkptauditError
from ckptaudit.policy import Severity, judge
from ckptaudit.source import BufferSource
from ckptaudit.tensors import find_state_dict, misfits

NAMES = [
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("argparse", "Namespace"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.nn.parameter", "Parameter"),
    ("torch", "FloatStorage"),
    ("torch", "FloatTensor"),
    ("torch", "Size"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("copyreg", "_reconstructor"),
    ("builtins", "object"),
    ("builtins", "set"),
    ("thing", "Thing"),
    ("posix", "system"),
]
PHRASES = [
    *(global_(*name) for name in NAMES),
    *(call(*name) for name in NAMES),
    *(value(plain) for plain in (0, -1, 1 << 70, 1.5, b"x", (), (1,), None)),
    *(value(plain) for plain in ("w", "state_dict", "\ud800")),
    value({"training": True, "_parameters": {}, "_buffers": {}, "_modules": {}}),
    *(value({"__class__": 1}), value("__setstate__")),
    tensor(storage_id("0", 2), (2,)),
    tensor(storage_id("0", 2), (3,)),
    tensor(storage_id("9", 2), (1,)),
    storage_id("0", 2),
    long4(b"\1" * 2000),
    CALLS_SYSTEM,
    ADDITEMS,
    APPEND,
    APPENDS,
    BINPERSID,
    BUILD,
    DICT,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    LIST,
    MARK,
    MEMOIZE,
    NEWOBJ,
    NEWOBJ_EX,
    NONE,
    OBJ,
    POP,
    READONLY_BUFFER,
    REDUCE,
    SETITEM,
    SETITEMS,
    STACK_GLOBAL,
    TUPLE,
    TUPLE1,
    TUPLE2,
    TUPLE3,
    binget(0),
    binget(1),
    ext1(1),
]
# Enough values at the bottom that most opcodes find what they take.
BOTTOM = EMPTY_DICT + MEMOIZE + EMPTY_LIST + MEMOIZE + NONE * 4
soups = st.lists(st.sampled_from(PHRASES), max_size=25).map(b"".join)


def opened(soup: bytes) -> list[Container]:
    pickle = pickled(BOTTOM, soup)
    data = floats(1, 2)
    files = [
        torch_zip(pickle, {"0": data}),
        legacy_stream(pickle, [("0", 2, data)]),
        tar_archive(tar_members(pickle)),
        pickle,
    ]
    containers = []
    for file in files:
        with suppress(CkptauditError):
            containers.append(open_container(BufferSource(file)))
    return containers


@settings(max_examples=400)
@given(soups)
def test_any_pickle_gets_an_answer_or_our_error(soup: bytes) -> None:
    for container in opened(soup):
        judgement = judge(container, misfits)

        assert all(finding.message.isascii() for finding in judgement.findings)
        with suppress(CkptauditError):
            state = find_state_dict(container)
            assert all(left.path.isascii() and left.reason for left in state.leftovers)


@settings(max_examples=200)
@given(soups, soups)
def test_no_surroundings_make_a_command_clean(before: bytes, after: bytes) -> None:
    for container in opened(before + CALLS_SYSTEM + after):
        main = container.traces[container.main or 0]
        reached = main.error is None or any(
            str(use.module) == "posix" for use in judge(container).globals
        )
        if reached:
            assert judge(container).verdict is Severity.MALICIOUS


@settings(max_examples=200)
@given(soups)
def test_a_clean_pickle_names_nothing_off_the_list(soup: bytes) -> None:
    for container in opened(soup):
        judgement = judge(container)
        if judgement.verdict is Severity.CLEAN:
            assert all(use.allowed for use in judgement.globals)
