"""How large and deep a pickle's values are, sharing undone: counted, and never walked."""

from __future__ import annotations

import _pickle
from typing import TYPE_CHECKING

import pytest
from forge import (
    APPEND,
    APPENDS,
    BINPERSID,
    BUILD,
    DUP,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    LIST,
    MARK,
    NONE,
    POP,
    POP_MARK,
    REDUCE,
    SETITEM,
    STOP,
    TUPLE,
    TUPLE1,
    TUPLE2,
    Raw,
    binget,
    binput,
    call,
    global_,
    made,
    pickled,
    storage_id,
    torch_zip,
    value,
)
from hypothesis import given
from hypothesis import strategies as st

from ckptaudit.containers import open_container
from ckptaudit.policy import Severity, judge
from ckptaudit.source import BufferSource
from ckptaudit.vm import Extent, Trace, extent_of, trace_pickle

if TYPE_CHECKING:
    from collections.abc import Callable

EVERYTHING = 1 << 62

nested = st.recursive(
    st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.integers(), inner, max_size=3)
    ),
    max_leaves=30,
)


def run(pickle: bytes) -> Trace:
    return trace_pickle(BufferSource(pickle), 0, len(pickle), record="p")


def extent(*parts: bytes, enough: int = 1000, deep: int = 1000) -> Extent:
    trace = run(b"".join(parts) + STOP)
    assert trace.error is None
    return extent_of([trace.root], enough=enough, deep=deep)


def counted(data: object) -> Extent:
    """The same, the slow way: by walking through all of it."""
    if isinstance(data, dict):
        parts = [part for pair in data.items() for part in pair]
    elif isinstance(data, (list, tuple)):
        parts = list(data)
    else:
        return Extent(0, 0)
    inner = [counted(part) for part in parts]
    return Extent(
        len(parts) + sum(part.size for part in inner),
        1 + max((part.depth for part in inner), default=0),
    )


@given(nested, st.booleans())
def test_size_and_depth_are_those_of_walking_through(data: object, shared: bool) -> None:  # noqa: FBT001 - hypothesis
    """Whether by steps or by looking at each node once."""
    whole = [data, data] if shared else data
    root = run(_pickle.dumps(whole)).root

    assert extent_of([root], enough=EVERYTHING, deep=EVERYTHING) == counted(whole)
    assert extent_of([root], enough=0, deep=EVERYTHING) == counted(whole)


@pytest.mark.parametrize("enough", [0, 1000])
def test_two_to_the_sixtieth_values_are_counted_in_sixty_steps(enough: int) -> None:
    bomb = value("boom") + (DUP + TUPLE2) * 60

    assert extent(bomb, enough=enough) == Extent((1 << 61) - 2, 60)
    assert extent(bomb, (DUP + TUPLE2) * 1000, enough=enough).size == 1 << 62


@pytest.mark.parametrize(
    "circle",
    [
        EMPTY_LIST + binput(0) + binget(0) + APPEND,
        EMPTY_LIST + binput(0) + MARK + binget(0) * 9 + APPENDS,
        EMPTY_DICT + binput(0) + value("me") + binget(0) + SETITEM,
        made("a", "B") + binput(0) + value({"me": Raw(binget(0))}) + BUILD,
    ],
    ids=["list", "list-nine-times", "dict", "state"],
)
def test_a_circle_is_gone_round_once(circle: bytes) -> None:
    assert extent(circle).size < 20


@pytest.mark.parametrize(
    "use",
    [
        global_("a", "b") + binget(0) + REDUCE,
        binget(0) + BINPERSID,
        global_("a", "b") + binget(0) + REDUCE + EMPTY_DICT + BUILD,
        TUPLE1 + binget(0) + REDUCE,
    ],
    ids=["calls", "persistent-ids", "calls-with-state", "calls-of-something-else"],
)
def test_arguments_that_many_share_are_looked_at_once(use: bytes) -> None:
    """And count as often as they are there; 100,000 for each of 10,000 would take minutes."""

    def sharing(parts: int, times: int, enough: int) -> Extent:
        shared = MARK + EMPTY_TUPLE * parts + TUPLE + binput(0) + POP
        function = NONE if use.startswith(TUPLE1) else b""
        return extent(shared, MARK + (function + use) * times + LIST, enough=enough)

    assert sharing(10, 20, enough=0) == sharing(10, 20, enough=EVERYTHING)
    of_one = sharing(100_000, 1, enough=0)
    assert sharing(100_000, 10_000, enough=0) == Extent(10_000 * of_one.size, of_one.depth)


def test_what_is_deeper_than_asked_for_is_one_deeper() -> None:
    assert extent(EMPTY_TUPLE + TUPLE1 * 200_000, deep=50) == Extent(51, 51)


# What the judge makes of it


def costs(*parts: bytes) -> list[str]:
    judgement = judge(open_container(BufferSource(torch_zip(pickled(*parts)))))
    return [finding.message for finding in judgement.findings if finding.rule == "CKA112"]


BOMB = value("boom") + (DUP + TUPLE2) * 60

HIDDEN: dict[str, bytes] = {
    "root": BOMB,
    "key": EMPTY_DICT + BOMB + NONE + SETITEM,
    "key-of-a-dict-that-is-dropped": EMPTY_DICT + BOMB + NONE + SETITEM + POP + NONE,
    "dropped-up-to-a-mark": NONE + MARK + BOMB + POP_MARK,
    "left-over-at-stop": BOMB + NONE,
    "argument": global_("collections", "OrderedDict") + BOMB + TUPLE1 + REDUCE,
    "argument-of-a-call-that-is-dropped": (
        global_("collections", "OrderedDict") + BOMB + TUPLE1 + REDUCE + POP + NONE
    ),
    "arguments-that-are-no-tuple": global_("a", "b") + EMPTY_LIST + BOMB + APPEND + REDUCE,
    "state": made("argparse", "Namespace") + EMPTY_DICT + value("a") + BOMB + SETITEM + BUILD,
    "state-that-another-replaces": (
        made("argparse", "Namespace") + BOMB + BUILD + value({}) + BUILD
    ),
    "state-of-what-has-none": NONE + BOMB + BUILD,
    "elements": call("collections", "deque") + BOMB + APPEND,
    "items": call("collections", "OrderedDict") + value("a") + BOMB + SETITEM,
    "persistent-id": storage_id(Raw(BOMB), 1),
    "persistent-id-that-is-no-tuple": EMPTY_LIST + BOMB + APPEND + b"Q",
    "name": BOMB + value("x") + b"\x93",
    "function": BOMB + EMPTY_TUPLE + REDUCE,
    "set": b"\x8f" + MARK + BOMB + b"\x90",
    "in-a-pickle-that-breaks": BOMB + b"\xff",
}


@pytest.mark.parametrize("opcodes", HIDDEN.values(), ids=HIDDEN)
def test_a_bomb_is_found_wherever_it_is(opcodes: bytes) -> None:
    (message,) = costs(opcodes)

    assert "values" in message


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (EMPTY_TUPLE + TUPLE1 * 3000, "nests values over 2000 levels deep"),
        (EMPTY_LIST * 3000 + APPEND * 2999, "nests values over 2000 levels deep"),
        (value(1 << 10_000), "an integer of 10001 bits"),
        (b"L0x" + b"f" * 3000 + b"\n", "an integer of 12000 bits"),
        (b"I0x" + b"f" * 3000 + b"\n", "an integer of 12000 bits"),
        (NONE + b"r\xff\xff\xff\x7f", "stores under memo index 2147483647"),
        (NONE + b"p%d\n" % (1 << 70), "stores under memo index beyond 2^64"),
        (
            value(list(range(5000))) + binput(0) + POP + MARK + binget(0) * 5000 + b"l",
            "makes 10009 opcodes stand for 25010000 values",
        ),
    ],
    ids=[
        "tuples",
        "lists",
        "long4",
        "long",
        "int",
        "memo",
        "memo-of-text",
        "a-list-very-often",
    ],
)
def test_what_costs_more_than_its_bytes_is_for_review(opcodes: bytes, message: str) -> None:
    judgement = judge(open_container(BufferSource(torch_zip(pickled(opcodes)))))

    assert message in [finding.message for finding in judgement.findings]
    assert judgement.verdict is Severity.REVIEW


def shared_configuration() -> object:
    shared = {str(number): number for number in range(100)}
    return [shared] * 5000


def tree_of_modules(depth: int) -> object:
    node: object = {}
    for number in range(depth):
        node = {"_modules": {str(number): node}, "_parameters": {}, "_hooks": ({}, [(), []])}
    return node


def self_referring() -> object:
    parents: list[object] = []
    for number in range(5000):
        parents.append({"number": number, "all": parents})
    return parents


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"state": {n: {"step": n, "parts": [1.0, 2.0]} for n in range(20_000)}},
        lambda: {str(n): n for n in range(100_000)},
        lambda: [list(range(1000))] * 50,
        lambda: [(n, n + 1) for n in range(50_000)],
        lambda: tree_of_modules(60),
        shared_configuration,
        self_referring,
        lambda: [1 << 8000, -(1 << 2000)],
        lambda: "x" * 3_000_000,
    ],
    ids=[
        "optimizer",
        "large-dict",
        "shared-list",
        "many-tuples",
        "deep-modules",
        "shared-configuration",
        "parents",
        "integers",
        "text",
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_what_honest_programs_hold_costs_no_more_than_it_weighs(
    make: Callable[[], object], protocol: int
) -> None:
    data = torch_zip(_pickle.dumps(make(), protocol=protocol))
    judgement = judge(open_container(BufferSource(data)))

    assert judgement.findings == ()
