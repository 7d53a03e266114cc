"""The listing of a pickle: every opcode by its name, each value by where it came from."""

from __future__ import annotations

import pickletools
import tracemalloc
from itertools import islice
from pickle import dumps
from typing import TYPE_CHECKING

import pytest
from forge import (
    ADDITEMS,
    APPEND,
    APPENDS,
    BINPERSID,
    BUILD,
    CALLS_SYSTEM,
    DICT,
    DUP,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    FROZENSET,
    LIST,
    MARK,
    MEMOIZE,
    NEWFALSE,
    NEWOBJ_EX,
    NEWTRUE,
    NEXT_BUFFER,
    NONE,
    OBJ,
    POP,
    POP_MARK,
    READONLY_BUFFER,
    REDUCE,
    SETITEM,
    STACK_GLOBAL,
    TUPLE,
    Raw,
    binbytes8,
    binget,
    binint1,
    binint2,
    binput,
    binstring,
    binunicode,
    binunicode8,
    bytearray8,
    call,
    ext1,
    ext2,
    ext4,
    float_line,
    frame,
    get,
    global_,
    inst,
    int_line,
    long1,
    long4,
    long_binget,
    long_binput,
    long_line,
    made,
    persid,
    pickled,
    proto,
    put,
    short_binbytes,
    short_binstring,
    short_binunicode,
    stack_global,
    state_dict,
    storage_id,
    string_line,
    unicode_line,
    value,
)
from hypothesis import given
from hypothesis import strategies as st

from ckptaudit.errors import LimitExceeded
from ckptaudit.source import BufferSource
from ckptaudit.vm import Budget, Limits, Trace, trace_pickle
from ckptaudit.vm.listing import Instruction, instructions
from ckptaudit.vm.opcodes import OPCODES, TO_MARK

if TYPE_CHECKING:
    from collections.abc import Iterator

# Each opcode that no other part of it needs stands in here once.
EVERYTHING = b"".join(
    [
        frame(8),
        *(part + POP for part in (int_line(b"1"), long_line(b"1L"), float_line(b"1.5"))),
        *(part + POP for part in (string_line(b"'a'"), unicode_line(b"a"), binstring(b"a"))),
        *(part + POP for part in (short_binstring(b"a"), binunicode("a"), binunicode8("a"))),
        *(part + POP for part in (binbytes8(b"a"), short_binbytes(b"a"), bytearray8(b"a"))),
        *(part + POP for part in (binint1(1), binint2(1), long1(1), long4(b"\1"), NONE)),
        *(part + POP for part in (NEWTRUE, NEWFALSE, value(1), value(1.5), value(b"a"))),
        *(part + POP for part in (ext1(1), ext2(1), ext4(1), NEXT_BUFFER + READONLY_BUFFER)),
        *(part + POP for part in (persid("a"), NONE + BINPERSID, inst("a", "b"), CALLS_SYSTEM)),
        *(part + POP for part in (value((1, 2)), value((1, 2, 3)), value((1, 2, 3, 4)))),
        *(part + POP for part in (MARK + LIST, MARK + DICT, MARK + FROZENSET, EMPTY_TUPLE)),
        *(part + POP for part in (EMPTY_SET + MARK + ADDITEMS, value({"a": 1}), value([1]))),
        EMPTY_LIST + NONE + APPEND + POP + EMPTY_DICT + NONE + NONE + SETITEM + POP,
        stack_global("a", "b") + EMPTY_TUPLE + EMPTY_DICT + NEWOBJ_EX + POP,
        made("a", "b", {"c": 1}) + POP + MARK + global_("a", "b") + OBJ + POP + MARK + POP_MARK,
        NONE + put(0) + binput(1) + long_binput(2) + MEMOIZE + DUP + POP + POP,
        get(0) + POP + binget(1) + POP + long_binget(2),
    ]
)


def traced(data: bytes, limits: Limits | None = None) -> Trace:
    return trace_pickle(BufferSource(data), 0, len(data), record="pickle", budget=Budget(limits))


def listed(data: bytes) -> list[Instruction]:
    return list(instructions(traced(data)))


def resolutions(*parts: bytes) -> list[str]:
    found = [line.resolved for line in listed(pickled(*parts, protocol=4))]
    return [resolved for resolved in found if resolved]


# Names and depths


def test_an_escape_that_python_warns_of_is_read_without_a_warning() -> None:
    """Warnings are errors here; the unpickler goes on, and so do we, listing or not."""
    lines = listed(pickled(string_line(rb"'\q'")))

    assert [line.opcode for line in lines] == ["PROTO", "STRING", "STOP"]
    assert lines[1].error is None


def test_every_opcode_has_the_name_and_the_effect_that_pickletools_gives_it() -> None:
    assert set(OPCODES) == {ord(opcode.code) for opcode in pickletools.opcodes}
    for reference in pickletools.opcodes:
        ours = OPCODES[ord(reference.code)]
        assert ours.name == reference.name
        if pickletools.markobject in reference.stack_before:
            assert ours.takes == TO_MARK
        elif ours.name not in {"MARK", "INST"}:
            before, after = len(reference.stack_before), len(reference.stack_after)
            assert ours.gives - ours.takes == after - before


def test_every_opcode_is_listed_by_its_name_and_with_a_meaning() -> None:
    lines = listed(pickled(EVERYTHING, protocol=5))

    assert {line.opcode for line in lines} == {opcode.name for opcode in pickletools.opcodes}
    assert all(line.meaning and line.error is None for line in lines)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=10,
)


def depths(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Offset, and values and marks after each instruction, by what pickletools says of it."""
    stack: list[bool] = []
    for opcode, _, offset in pickletools.genops(data):
        assert offset is not None
        if pickletools.markobject in opcode.stack_before:
            while stack.pop():
                pass
            # What stands below the mark is taken as well: the list of APPENDS.
            below = opcode.stack_before.index(pickletools.markobject)
            stack = stack[: len(stack) - below]
        else:
            stack = stack[: len(stack) - len(opcode.stack_before)]
        stack += [kind is not pickletools.markobject for kind in opcode.stack_after]
        yield offset, sum(stack), len(stack) - sum(stack)


@given(plain, st.integers(0, 5))
def test_depths_are_those_that_pickletools_would_have(data: object, protocol: int) -> None:
    pickle = dumps(data, protocol)

    lines = listed(pickle)

    assert [(line.offset, line.after, line.marks) for line in lines] == list(depths(pickle))
    assert [line.before for line in lines[1:]] == [line.after for line in lines[:-1]]


@given(st.binary(max_size=40))
def test_a_listing_gives_the_events_of_its_trace_and_ends_where_that_ends(data: bytes) -> None:
    trace = traced(pickled(EVERYTHING, protocol=5)[:100] + data)

    lines = list(instructions(trace))

    events = [event for line in lines for event in line.events]
    assert [(type(event), _offset(event)) for event in events] == [
        (type(event), _offset(event)) for event in trace.events
    ]
    assert trace.opcodes <= len(lines) <= trace.opcodes + 1
    assert [str(line.error) for line in lines if line.error] == (
        [str(trace.error)] if trace.error else []
    )
    assert all(f"{line.argument}{line.note}".isprintable() for line in lines)


def _offset(event: object) -> object:
    return getattr(event, "offset", None)


# Where names come from


def test_a_literal_name_is_called_literal() -> None:
    assert resolutions(CALLS_SYSTEM, POP, inst("a", "b")) == ["literal", "literal"]


def test_a_name_of_two_literals_names_their_places() -> None:
    (resolved,) = resolutions(stack_global("os", "system"))

    # Behind PROTO; behind the first string, two bytes of opcode and length and two of text.
    assert resolved == "module: literal at byte 0x2; name: literal at byte 0x6"


@pytest.mark.parametrize(
    ("store", "fetch", "slot"),
    [
        (MEMOIZE, binget(0), 0),
        (put(300), get(300), 300),
        (binput(7), long_binget(7), 7),
        (long_binput(70_000), long_binget(70_000), 70_000),
    ],
    ids=["memoize", "put", "binput", "long-binput"],
)
def test_a_name_from_the_memo_names_its_slot_and_when_it_was_set(
    store: bytes, fetch: bytes, slot: int
) -> None:
    module = short_binunicode("os")

    (resolved,) = resolutions(module, store, POP, fetch, short_binunicode("system"), STACK_GLOBAL)

    literal = 2 + len(module + store + POP + fetch)
    assert resolved == (
        f"module: memo slot {slot}, set at byte 0x{2 + len(module):x}; "
        f"name: literal at byte 0x{literal:x}"
    )


def test_an_overwritten_slot_names_the_last_time_it_was_set() -> None:
    parts = [short_binunicode("harmless"), binput(0), POP, short_binunicode("os")]

    (resolved,) = resolutions(
        *parts, binput(0), POP, binget(0), short_binunicode("system"), STACK_GLOBAL
    )

    assert resolved.startswith(f"module: memo slot 0, set at byte 0x{2 + len(b''.join(parts)):x};")
    lines = listed(pickled(*parts, binput(0)))
    assert lines[-2].note == "'os' replaces slot 0, set at byte 0xc"


def test_a_copy_of_a_value_keeps_where_it_came_from() -> None:
    (resolved,) = resolutions(short_binunicode("os"), DUP, STACK_GLOBAL)

    assert resolved == "module: literal at byte 0x2; name: literal at byte 0x2"


@pytest.mark.parametrize(
    "operands",
    [
        call("builtins", "str", "os") + value("system"),
        value("os") + call("_codecs", "decode", b"system"),
        value(b"os") + value("system"),
        persid("os") + value("system"),
    ],
    ids=["module-called", "name-called", "bytes", "persistent-id"],
)
def test_a_name_that_is_no_literal_is_called_computed(operands: bytes) -> None:
    assert resolutions(operands, STACK_GLOBAL)[-1] == "computed"


def test_a_name_from_the_extension_registry_comes_by_number() -> None:
    assert resolutions(ext1(1), ext2(1), ext4(1)) == ["by number"] * 3


# What is done with names

NAME = Raw(global_("m", "n"))


@pytest.mark.parametrize(
    ("opcodes", "uses"),
    [
        (call("m", "n", 1), {"REDUCE target"}),
        (made("m", "n"), {"NEWOBJ target"}),
        (
            global_("m", "n") + EMPTY_TUPLE + EMPTY_DICT + NEWOBJ_EX,
            {"NEWOBJ_EX target"},
        ),
        (MARK + global_("m", "n") + NONE + OBJ, {"OBJ target"}),
        (inst("m", "n", 1), {"INST target"}),
        (global_("m", "n") + EMPTY_DICT + BUILD + POP + NONE, {"BUILD target"}),
        (
            made("m", "n", {"a": 1}),
            {"NEWOBJ target", "BUILD target, by what it makes"},
        ),
        (value({1: NAME}), {"dict value"}),
        (EMPTY_DICT + NAME.opcodes + NONE + SETITEM, {"dict key"}),
        (MARK + NAME.opcodes + NONE + DICT, {"dict key"}),
        (EMPTY_LIST + MARK + NAME.opcodes + APPENDS, {"list element"}),
        (EMPTY_SET + MARK + NAME.opcodes + ADDITEMS, {"set element"}),
        (storage_id("0", 1, module="m", storage="n"), {"tuple element", "in a persistent id"}),
        (call("a", "b", NAME), {"tuple element", "argument of REDUCE"}),
        (MARK + NAME.opcodes + NONE + TUPLE, {"tuple element"}),
        (NAME.opcodes + POP + NONE, set()),
        (NAME.opcodes, {"result of the pickle"}),
    ],
    ids=[
        "reduce",
        "newobj",
        "newobj-ex",
        "obj",
        "inst",
        "build",
        "build-of-made",
        "dict-value",
        "dict-key",
        "key-of-dict",
        "list",
        "set",
        "persistent-id",
        "argument",
        "tuple",
        "unused",
        "root",
    ],
)
def test_what_is_done_with_a_name_is_told(opcodes: bytes, uses: set[str]) -> None:
    lines = listed(pickled(opcodes))

    told = [use.how for line in lines for use in line.uses if str(use.name) == "m.n"]
    assert set(told) == uses


def test_a_name_used_a_thousand_times_by_one_instruction_is_told_once() -> None:
    lines = listed(pickled(NAME.opcodes, binput(0), EMPTY_LIST, MARK, binget(0) * 1000, APPENDS))

    assert [use.how for line in lines for use in line.uses] == ["list element"]


# Broken, large and hostile pickles


@pytest.mark.parametrize("length", range(1, len(pickled(CALLS_SYSTEM))))
def test_a_truncated_pickle_is_listed_up_to_where_it_breaks(length: int) -> None:
    data = pickled(CALLS_SYSTEM)

    *whole, last = listed(data[:length])

    assert last.error is not None
    assert last.note.startswith("breaks here: ")
    assert [line.offset for line in whole] == [
        line.offset for line in islice(listed(data), len(whole))
    ]


@pytest.mark.parametrize(
    ("tail", "opcode", "why"),
    [
        (REDUCE, "REDUCE", "empty stack"),
        (b"\xff", "", "no opcode 0xff exists"),
        (get(9), "GET", "memo entry 9"),
        (int_line(b"x"), "INT", "not one"),
    ],
    ids=["empty-stack", "no-opcode", "memo", "number"],
)
def test_an_error_stands_at_its_place(tail: bytes, opcode: str, why: str) -> None:
    head = proto(2) + CALLS_SYSTEM + POP

    *whole, last = listed(head + tail)

    assert whole[-2].note == "would call posix.system('true')"
    assert (last.opcode, last.offset) == (opcode, len(head))
    assert why in last.note


def test_what_the_limits_kept_from_being_read_is_an_error_at_its_place() -> None:
    limits = Limits(opcodes=3000)

    trace = traced(pickled((NONE + POP) * 5000, NONE), limits)

    *whole, last = instructions(trace, limits)

    assert len(whole) == trace.opcodes
    assert isinstance(last.error, LimitExceeded)
    assert last.error is trace.error


def test_a_long_pickle_is_listed_in_memory_that_does_not_grow() -> None:
    phrase = CALLS_SYSTEM + POP + value({"key": [1, 2.5, ("a", b"b")]}) + POP
    times = 200_000 // 17
    trace = traced(pickled(phrase * times, NONE))
    assert trace.opcodes > 200_000

    tracemalloc.start()
    for _ in instructions(trace):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1 << 20


def test_hostile_text_is_escaped_and_cut() -> None:
    wicked = "\x1b[2J\u202e" + "x" * 10_000

    lines = listed(pickled(call(wicked, "b", wicked), short_binunicode("a"), MEMOIZE, b"P\x1b\n"))

    for line in lines:
        shown = line.argument + line.note + line.resolved
        assert shown.isascii()
        assert shown.isprintable()
        assert len(shown) < 1100
    assert r"\x1b[2J\u202e" in lines[1].argument


def test_a_normal_checkpoint_is_listed_to_its_end() -> None:
    lines = listed(state_dict({"a": 3, "b": 4}))

    assert lines[-1].opcode == "STOP"
    assert lines[-1].error is None
