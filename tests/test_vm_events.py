"""Every name and every call is written down, whatever becomes of the value."""

from __future__ import annotations

from itertools import pairwise
from pickletools import genops

import pytest
from forge import (
    APPEND,
    APPENDS,
    BINPERSID,
    BUILD,
    CALLS_SYSTEM,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ,
    NEWOBJ_EX,
    NEXT_BUFFER,
    NONE,
    OBJ,
    POP,
    POP_MARK,
    READONLY_BUFFER,
    REDUCE,
    SETITEM,
    SETITEMS,
    STACK_GLOBAL,
    STOP,
    TUPLE1,
    Raw,
    binget,
    binput,
    call,
    ext1,
    ext2,
    ext4,
    frame,
    global_,
    inst,
    persid,
    pickled,
    proto,
    string_line,
    unicode_line,
    value,
    values,
)

from ckptaudit.source import BufferSource
from ckptaudit.vm import (
    Build,
    Call,
    Dict,
    Event,
    Global,
    Opaque,
    PersistentId,
    Trace,
    length_of,
    trace_pickle,
)

SYSTEM = global_("posix", "system")


def run(*parts: bytes) -> Trace:
    pickle = b"".join(parts)
    return trace_pickle(BufferSource(pickle), 0, len(pickle), record="p")


def only_event(*parts: bytes, after: int = 0) -> Event:
    trace = run(*parts, STOP)
    assert trace.error is None
    assert len(trace.events) == after + 1
    return trace.events[after]


# What survives


@pytest.mark.parametrize(
    "parts",
    [
        [CALLS_SYSTEM, STOP],
        [CALLS_SYSTEM, POP, NONE, STOP],
        [NONE, MARK, CALLS_SYSTEM, POP_MARK, STOP],
        [CALLS_SYSTEM, binput(0), POP, NONE, binput(0), STOP],
        [EMPTY_LIST, CALLS_SYSTEM, APPEND, STOP],
        [EMPTY_DICT, CALLS_SYSTEM, NONE, SETITEM, STOP],
        [EMPTY_TUPLE, CALLS_SYSTEM, APPEND, STOP],
        [CALLS_SYSTEM, TUPLE1, POP, NONE, STOP],
        [CALLS_SYSTEM, NONE, BUILD, POP, NONE, STOP],
        [CALLS_SYSTEM],
        [CALLS_SYSTEM, b"\xff"],
        [CALLS_SYSTEM, POP, POP],
        [CALLS_SYSTEM, binget(9), STOP],
        [CALLS_SYSTEM, b"I not a number\n", STOP],
        [CALLS_SYSTEM, b"S'unquoted\n", STOP],
        [CALLS_SYSTEM, b"B\xff\xff\xff\xffshort"],
        [CALLS_SYSTEM, MARK, STOP],
        [b"\x95\xff\xff\xff\xff\xff\xff\xff\xff", CALLS_SYSTEM, STOP],
        [b"I0x10\n0I1\0junk\n0F1.5\0x\n0", CALLS_SYSTEM, STOP],
    ],
    ids=[
        "returned",
        "popped",
        "popped to mark",
        "memo overwritten",
        "appended",
        "used as key",
        "appended to a tuple",
        "inside a tuple",
        "built upon",
        "no STOP",
        "then no opcode",
        "then an empty stack",
        "then an empty memo entry",
        "then no number",
        "then no string",
        "then a lying length",
        "then a left-over mark",
        "after a lying frame",
        "after literals pickletools refuses",
    ],
)
def test_a_call_is_written_down_whatever_becomes_of_its_value(parts: list[bytes]) -> None:
    events = run(*parts).events

    calls = [event for event in events if isinstance(event, Call)]
    assert [str(made.func) for made in calls] == ["posix.system"]
    assert calls[0].args == ("true",)
    assert [str(event) for event in events if isinstance(event, Global)] == ["posix.system"]


# Names


@pytest.mark.parametrize(
    "parts",
    [
        [SYSTEM],
        [value("posix"), value("system"), STACK_GLOBAL],
        [string_line(rb"'p\x6fsix'"), unicode_line(rb"\u0073ystem"), STACK_GLOBAL],
        [value("system"), binput(0), POP, value("posix"), binget(0), STACK_GLOBAL],
        [value("decoy"), binput(0), POP, value("posix"), binput(0), value("system"), STACK_GLOBAL],
    ],
    ids=["GLOBAL", "STACK_GLOBAL", "escapes", "by way of the memo", "memo overwritten"],
)
def test_a_name_is_known_however_it_is_asked_for(parts: list[bytes]) -> None:
    asked = only_event(*parts)

    assert isinstance(asked, Global)
    assert (asked.module, asked.name) == ("posix", "system")


def test_a_dotted_name_stays_one_name() -> None:
    asked = only_event(global_("torch", "serialization.os.system"))

    assert isinstance(asked, Global)
    assert (asked.module, asked.name) == ("torch", "serialization.os.system")


@pytest.mark.parametrize(
    "operands",
    [
        [value(1), value("system")],
        [value("posix"), value(b"system")],
        [value("posix"), EMPTY_LIST],
        [value("posix"), CALLS_SYSTEM],
    ],
    ids=["number", "bytes", "list", "computed"],
)
def test_a_name_that_is_no_literal_string_is_opaque(operands: list[bytes]) -> None:
    events = run(*operands, STACK_GLOBAL, STOP).events

    assert isinstance(events[-1], Opaque)
    assert events[-1].op == "STACK_GLOBAL"


@pytest.mark.parametrize(
    ("opcode", "op"),
    [
        (ext1(7), "EXT1"),
        (ext2(7), "EXT2"),
        (ext4(7), "EXT4"),
        (NEXT_BUFFER, "NEXT_BUFFER"),
        (NONE + READONLY_BUFFER, "READONLY_BUFFER"),
    ],
)
def test_what_cannot_be_known_is_opaque(opcode: bytes, op: str) -> None:
    event = only_event(opcode)

    assert isinstance(event, Opaque)
    assert event.op == op


# Calls


@pytest.mark.parametrize(
    ("parts", "op"),
    [
        ([SYSTEM, value(("true",)), REDUCE], "REDUCE"),
        ([SYSTEM, value(("true",)), NEWOBJ], "NEWOBJ"),
        ([SYSTEM, value(("true",)), EMPTY_DICT, NEWOBJ_EX], "NEWOBJ_EX"),
        ([MARK, SYSTEM, value("true"), OBJ], "OBJ"),
        ([inst("posix", "system", "true")], "INST"),
    ],
)
def test_each_way_to_call_is_a_call(parts: list[bytes], op: str) -> None:
    made = only_event(*parts, after=1)

    assert isinstance(made, Call)
    assert (made.op, str(made.func), made.args) == (op, "posix.system", ("true",))
    assert (made.kwargs is None) == (op != "NEWOBJ_EX")


def test_a_call_may_call_what_a_call_returned() -> None:
    events = run(call("operator", "attrgetter", "system"), value(("true",)), REDUCE, STOP).events

    outer = events[-1]
    assert isinstance(outer, Call)
    assert isinstance(outer.func, Call)
    assert str(outer.func.func) == "operator.attrgetter"


def test_arguments_that_are_no_tuple_are_kept_as_they_are() -> None:
    made = only_event(SYSTEM, NONE, REDUCE, after=1)

    assert isinstance(made, Call)
    assert made.args is None


def test_what_is_stored_in_a_called_object_is_kept_in_order() -> None:
    root = run(
        call("collections", "OrderedDict"),
        *(value("a"), value(1), SETITEM),
        *(MARK, values("b", 2, "a", 3), SETITEMS),
        *(value("x"), APPEND, MARK, values("y", "z"), APPENDS),
        *(value({"state": 1}), BUILD),
        STOP,
    ).root

    assert isinstance(root, Call)
    assert root.pairs == [("a", 1), ("b", 2), ("a", 3)]
    assert root.elements == ["x", "y", "z"]
    assert isinstance(root.state, Dict)


def test_every_build_is_an_event_and_the_last_state_counts() -> None:
    events = run(call("a", "B"), value("first"), BUILD, value("second"), BUILD, STOP).events

    builds = [event for event in events if isinstance(event, Build)]
    assert [build.state for build in builds] == ["first", "second"]
    assert isinstance(builds[0].target, Call)
    assert builds[0].target.state == "second"


@pytest.mark.parametrize("target", [SYSTEM, EMPTY_DICT, EMPTY_SET, value("text")])
def test_building_on_anything_is_an_event(target: bytes) -> None:
    events = run(target, EMPTY_DICT, BUILD, STOP).events

    assert isinstance(events[-1], Build)


# Persistent ids


def test_both_persistent_ids_are_events() -> None:
    binary = only_event(value(("storage", 1)), BINPERSID)
    text = only_event(persid("key"))

    assert isinstance(binary, PersistentId)
    assert binary.pid == ("storage", 1)
    assert isinstance(text, PersistentId)
    assert text.pid == "key"


@pytest.mark.parametrize(
    "parts",
    [
        [SYSTEM],
        [value("posix"), value("system"), STACK_GLOBAL],
        [inst("posix", "system", "true")],
        [CALLS_SYSTEM],
        [persid("some id")],
        [NONE, BINPERSID],
        [ext1(7)],
        [ext2(7)],
        [ext4(7)],
        [NEXT_BUFFER],
        [EMPTY_DICT, NONE, BUILD],
        [NONE, b"r" + (1 << 31).to_bytes(4, "little")],
        [NONE, proto(2)],
        [NONE, NONE, NONE, SETITEM],
        [b"\x8b" + (2000).to_bytes(4, "little") + b"\x7f" * 2000],
        [frame(1 << 40)],
    ],
    ids=[
        "global",
        "stack-global",
        "inst",
        "reduce",
        "persid",
        "binpersid",
        "ext1",
        "ext2",
        "ext4",
        "next-buffer",
        "build",
        "far-memo-slot",
        "second-proto",
        "setitem-on-nothing",
        "large-integer",
        "frame-past-the-end",
    ],
)
def test_an_event_is_as_long_as_its_instruction(parts: list[bytes]) -> None:
    """Wherever the reader's window ends; pickletools says where each instruction begins."""
    padding = (NONE + POP) * 2045
    pickle = b"".join([padding, *parts, NONE, STOP])
    begins = [at or 0 for _, _, at in genops(pickle)]
    lengths = {at: after - at for at, after in pairwise([*begins, len(pickle)])}

    events = run(pickle).events

    assert events
    for event in events:
        assert length_of(event) == lengths[event.offset]


def test_a_name_beyond_ascii_is_as_long_as_its_bytes() -> None:
    asked = global_("m\u00f6dule", "n\u00e4me")

    assert length_of(only_event(asked)) == len(asked)


def test_events_stand_in_the_order_of_their_opcodes() -> None:
    pid = value(("storage", Raw(global_("torch", "FloatStorage")))) + BINPERSID
    pickle = pickled(pid, POP, CALLS_SYSTEM, NONE, BUILD)

    events = run(pickle).events

    offsets = [event.offset for event in events]
    assert [type(event) for event in events] == [Global, PersistentId, Global, Call, Build]
    assert offsets == sorted(offsets)
    assert [pickle[offset : offset + 1] for offset in offsets] == [b"c", b"Q", b"c", b"R", b"b"]
