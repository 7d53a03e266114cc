"""What a hostile pickle costs: no more than its bytes, and never the stack."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest
from forge import (
    APPEND,
    APPENDS,
    BINPERSID,
    DUP,
    EMPTY_LIST,
    EMPTY_TUPLE,
    MARK,
    MEMOIZE,
    NONE,
    POP,
    REDUCE,
    STOP,
    TUPLE1,
    TUPLE2,
    binbytes,
    binbytes8,
    binget,
    binput,
    binstring,
    binunicode,
    binunicode8,
    bytearray8,
    frame,
    long4,
    unicode_line,
    value,
)

from ckptaudit.errors import LimitExceeded, MalformedInput
from ckptaudit.source import BufferSource
from ckptaudit.vm import Budget, Limits, Trace, trace_pickle

if TYPE_CHECKING:
    from collections.abc import Callable


def run(pickle: bytes, limits: Limits | None = None) -> Trace:
    return trace_pickle(BufferSource(pickle), 0, len(pickle), record="p", budget=Budget(limits))


def test_whoever_looks_for_an_end_of_line_in_vain_pays_for_the_way() -> None:
    """A thousand pickles may begin at a thousand places of the same bytes."""
    budget = Budget(Limits(literals=250_000))
    pickle = b"V" + b"x" * 100_000

    errors = [
        trace_pickle(BufferSource(pickle), 0, len(pickle), record="p", budget=budget).error
        for _ in range(4)
    ]

    assert [isinstance(error, LimitExceeded) for error in errors] == [False, False, True, True]


def test_a_bomb_of_shared_tuples_costs_no_more_than_its_opcodes() -> None:
    """Two to the thousandth elements, each there once."""
    trace = run(value("boom") + (DUP + TUPLE2) * 1000 + STOP)

    assert trace.error is None
    assert trace.opcodes == 2002


def test_a_bomb_in_the_memo_costs_no_more_than_its_opcodes() -> None:
    doubling = b"".join(
        EMPTY_LIST + MARK + binget(n) * 2 + APPENDS + binput(n + 1) for n in range(60)
    )

    trace = run(value("boom") + binput(0) + doubling + STOP)

    node = trace.root
    for _ in range(60):
        assert isinstance(node, list)
        assert node[0] is node[1]
        node = node[0]
    assert node == "boom"


@pytest.mark.parametrize(
    ("wrap", "times"),
    [
        (TUPLE1, 200_000),
        (BINPERSID, 50_000),
        (b"\x98", 50_000),
        (value("x") + value(("y",)) + REDUCE + TUPLE2, 50_000),
    ],
    ids=["tuples", "persistent ids", "buffers", "calls"],
)
def test_deep_nesting_neither_recurses_nor_crashes_on_its_way_out(wrap: bytes, times: int) -> None:
    trace = run(EMPTY_TUPLE + wrap * times + STOP)

    assert trace.error is None
    del trace


def test_deep_lists_neither_recurse_nor_crash_on_their_way_out() -> None:
    trace = run(EMPTY_LIST * 200_000 + APPEND * 199_999 + STOP)

    assert isinstance(trace.root, list)
    del trace


@pytest.mark.parametrize(
    ("limits", "pickle", "what"),
    [
        (Limits(opcodes=5000), NONE + (NONE + POP) * 10_000 + STOP, "opcodes"),
        (Limits(stack=5000), NONE * 10_000 + STOP, "stack entries"),
        (Limits(stack=5000), NONE + MARK * 10_000 + STOP, "stack entries"),
        (Limits(memo=5), NONE + b"".join(map(binput, range(10))) + STOP, "memo entries"),
        (Limits(memo=5), NONE + MEMOIZE * 10 + STOP, "memo entries"),
        (Limits(literal=5), binbytes(b"longer") + STOP, "bytes in one literal"),
        (Limits(literal=5), long4(b"longer") + STOP, "bytes in one literal"),
        (Limits(literal=5), unicode_line(b"longer") + STOP, "bytes in one literal"),
        (Limits(literal=9999), unicode_line(b"x" * 99_999) + STOP, "bytes in one literal"),
        (Limits(literals=9999), unicode_line(b"x" * 99_999) + STOP, "bytes in all literals"),
    ],
)
def test_a_limit_ends_the_pickle_with_an_error_that_says_which(
    limits: Limits, pickle: bytes, what: str
) -> None:
    error = run(pickle, limits).error

    assert isinstance(error, LimitExceeded)
    assert f"more {what} than the limit allows" in str(error)
    assert not isinstance(run(pickle).error, LimitExceeded)


@pytest.mark.parametrize(
    "opcode",
    [
        lambda length: binunicode("x", length % (1 << 32)),
        lambda length: binunicode8("x", length),
        lambda length: binstring(b"x", length % (1 << 32)),
        lambda length: binbytes(b"x", length % (1 << 32)),
        lambda length: binbytes8(b"x", length),
        lambda length: bytearray8(b"x", length),
        lambda length: long4(b"x", length % (1 << 31)),
        frame,
    ],
    ids=["unicode", "unicode8", "string", "bytes", "bytes8", "bytearray8", "long4", "frame"],
)
@pytest.mark.parametrize("length", [(1 << 63) - 1, (1 << 64) - 1, (1 << 31) - 1])
def test_a_length_that_lies_allocates_nothing(opcode: Callable[[int], bytes], length: int) -> None:
    pickle = opcode(length)
    tracemalloc.start()
    try:
        trace = run(pickle, Limits(literal=1 << 65))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert isinstance(trace.error, MalformedInput)
    assert peak < 100_000
