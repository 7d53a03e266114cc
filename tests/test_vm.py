"""The pickle machine: it rebuilds what was pickled, and outlives what was not."""

from __future__ import annotations

import _pickle
import pickletools
import struct
from typing import TYPE_CHECKING, cast

import pytest
from forge import (
    APPEND,
    APPENDS,
    BINPERSID,
    DUP,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    MARK,
    MEMOIZE,
    NEWOBJ,
    NONE,
    POP,
    POP_MARK,
    REDUCE,
    SETITEM,
    SETITEMS,
    STOP,
    TUPLE1,
    TUPLE2,
    Raw,
    binget,
    binput,
    frame,
    get,
    global_,
    long_binget,
    long_binput,
    pickled,
    proto,
    put,
    short_binstring,
    string_line,
    value,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptaudit.errors import MalformedInput
from ckptaudit.source import BufferSource, Cursor
from ckptaudit.vm import (
    Budget,
    Call,
    Dict,
    Event,
    Global,
    Limits,
    Node,
    Oddity,
    Set,
    Trace,
    trace_pickle,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def run(pickle: bytes, limits: Limits | None = None) -> Trace:
    return trace_pickle(BufferSource(pickle), 0, len(pickle), record="p", budget=Budget(limits))


def result(*parts: bytes) -> Node:
    trace = run(b"".join(parts) + STOP)
    assert trace.error is None
    return trace.root


def oddities(*parts: bytes) -> list[str]:
    trace = run(b"".join(parts) + STOP)
    assert trace.error is None
    return [event.code for event in trace.events if isinstance(event, Oddity)]


# Plain data


class Rebuild:
    """Makes the value that a tree of plain data describes, each list and dict once."""

    def __init__(self) -> None:
        self.made: dict[int, object] = {}

    def __call__(self, node: Node) -> object:
        """The value of *node*."""
        if id(node) not in self.made:
            self.made[id(node)] = self._make(node)
        return self.made[id(node)]

    def _make(self, node: Node) -> object:
        match node:
            case list():
                rebuilt = self.made[id(node)] = cast("list[object]", [])
                rebuilt.extend(map(self, node))
                return rebuilt
            case Dict():
                table = self.made[id(node)] = cast("dict[object, object]", {})
                table.update((self(key), self(val)) for key, val in node.pairs)
                return table
            case tuple():
                return tuple(map(self, node))
            case Set():
                elements = map(self, node.elements)
                return frozenset(elements) if node.frozen else set(elements)
            case Call():
                return self._call(node)
            case _:
                return node

    def _call(self, node: Call) -> object:
        """The calls by which low protocols write bytes and sets."""
        args = self(node.args)
        assert isinstance(args, tuple)
        assert isinstance(node.func, Global)
        match str(node.func), args:
            case "_codecs.encode", (str(text), "latin1"):
                return text.encode("latin-1")
            case (("__builtin__.bytes" | "builtins.bytes"), ()):
                return b""
            case (("__builtin__.bytearray" | "builtins.bytearray"), _):
                return bytearray(*args)
            case (("__builtin__.set" | "builtins.set"), (list(elements),)):
                return set(elements)
            case (("__builtin__.frozenset" | "builtins.frozenset"), (list(elements),)):
                return frozenset(elements)
        pytest.fail(f"plain data calls {node.func!s}")


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 3000), 1 << 3000)
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
)
keys = scalars | st.tuples(scalars, scalars) | st.frozensets(scalars, max_size=3)
plain_data = st.recursive(
    scalars | st.binary().map(bytearray) | st.sets(scalars, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=400)
@given(plain_data, st.integers(0, 5))
def test_the_trace_of_a_pickle_rebuilds_its_value(data: object, protocol: int) -> None:
    trace = run(_pickle.dumps(data, protocol=protocol))

    rebuilt = Rebuild()(trace.root)

    assert trace.error is None
    assert rebuilt == data
    assert type(rebuilt) is type(data)
    assert not any(isinstance(event, Oddity) for event in trace.events)


@st.composite
def shared_data(draw: st.DrawFn) -> list[object]:
    """Plain data some of which is there more than once, or inside itself."""
    pool: list[object] = draw(st.lists(plain_data, min_size=1, max_size=3))
    for _ in range(draw(st.integers(0, 6))):
        picked = [
            pool[index] for index in draw(st.lists(st.integers(0, len(pool) - 1), max_size=4))
        ]
        made: list[object] = []
        pool.append(draw(st.sampled_from([made, tuple(picked), dict(enumerate(picked)), [picked]])))
        if draw(st.booleans()):
            # Whatever holds this list may be in it, itself included.
            made.extend(pool[draw(st.integers(0, len(pool) - 1)) :])
            pool.append((made, picked))
    return pool


class Picture:
    """What of plain data a program can tell apart, as something that can be compared.

    Types, every bit of a float, the order of a dict, and which lists are one and the same.
    """

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def __call__(self, data: object) -> Hashable:
        """The picture of *data*."""
        kind = type(data).__name__
        if isinstance(data, float):
            return kind, struct.pack(">d", data)
        if isinstance(data, tuple):
            return kind, tuple(map(self, data))
        if isinstance(data, frozenset):
            return kind, frozenset(map(self, data))
        if not isinstance(data, (list, dict, set, bytearray)):
            return kind, repr(data)
        if id(data) in self.seen:
            return kind, self.seen[id(data)]
        self.seen[id(data)] = len(self.seen)
        if isinstance(data, dict):
            return kind, tuple((self(key), self(value)) for key, value in data.items())
        if isinstance(data, set):
            return kind, frozenset(map(self, data))
        return kind, tuple(map(self, data))


@settings(max_examples=300)
@given(
    shared_data() | st.lists(st.floats()),
    st.integers(0, 5),
    st.sampled_from([bytes, pickletools.optimize]),
)
def test_the_tree_rebuilds_what_cpython_loads(
    data: list[object], protocol: int, rewritten: Callable[[bytes], bytes]
) -> None:
    """Down to which of its lists are one and the same, and as `pickletools` rewrites it."""
    pickle = rewritten(_pickle.dumps(data, protocol=protocol))

    trace = run(pickle)

    assert trace.error is None
    assert Picture()(Rebuild()(trace.root)) == Picture()(_pickle.loads(pickle))
    assert trace.end == len(pickle)


@pytest.mark.parametrize("protocol", range(6))
def test_a_shared_list_stays_shared(protocol: int) -> None:
    shared = ["x"]

    root = run(_pickle.dumps((shared, shared, ["x"]), protocol=protocol)).root

    assert isinstance(root, tuple)
    assert root[0] is root[1]
    assert root[0] is not root[2]


@pytest.mark.parametrize("protocol", range(6))
def test_a_list_in_itself_stays_in_itself(protocol: int) -> None:
    recursive: list[object] = [1]
    recursive.append((recursive, {"again": recursive}))

    root = run(_pickle.dumps(recursive, protocol=protocol)).root

    assert isinstance(root, list)
    assert isinstance(root[1], tuple)
    assert root[1][0] is root
    assert isinstance(root[1][1], Dict)
    assert root[1][1].pairs[0][1] is root


def test_a_trace_says_where_the_pickle_ended_and_what_it_cost() -> None:
    pickle = pickled(value([1, 2]), protocol=3)

    trace = run(pickle + b"more")

    assert (trace.end, trace.protocol, trace.opcodes) == (len(pickle), 3, 7)


def test_a_pickle_may_begin_anywhere_and_its_offsets_count_from_there() -> None:
    pickle = pickled(NONE, global_("posix", "system"), POP)
    source = BufferSource(b"before" + pickle)

    trace = trace_pickle(source, 6, source.size, record="p")

    assert [event.offset for event in trace.events] == [3]
    assert trace.end == len(pickle)


# The memo


@pytest.mark.parametrize(
    ("store", "fetch"),
    [
        (put(7), get(7)),
        (binput(7), binget(7)),
        (long_binput(7), long_binget(7)),
        (put(7), long_binget(7)),
        (long_binput(255), binget(255)),
        (b"p 7 \n", get(7)),
        (long_binput((1 << 32) - 1), long_binget((1 << 32) - 1)),
    ],
)
def test_all_ways_into_the_memo_and_out_share_one_memo(store: bytes, fetch: bytes) -> None:
    assert result(value("wanted"), store, POP, fetch) == "wanted"


def test_memoize_stores_under_the_number_of_entries() -> None:
    stored = [value("a") + put(5) + POP, value("b") + MEMOIZE + POP, value("c") + binput(5) + POP]

    assert result(*stored, value("d"), MEMOIZE, POP, binget(1)) == "b"
    assert result(*stored, value("d"), MEMOIZE, POP, binget(2)) == "d"


def test_the_last_value_stored_under_an_index_counts() -> None:
    assert result(value("old"), put(0), POP, value("new"), put(0), POP, get(0)) == "new"


def test_the_memo_holds_the_value_and_not_a_copy() -> None:
    root = result(EMPTY_LIST, binput(0), value(1), APPEND, POP, binget(0))

    assert root == [1]


@pytest.mark.parametrize("fetch", [get(3), binget(3), long_binget(3), b"gx\n", put(-1), put(0)])
def test_a_memo_entry_that_cannot_be_is_an_error(fetch: bytes) -> None:
    assert isinstance(run(fetch + STOP).error, MalformedInput)


# Framing


@pytest.mark.parametrize(
    ("parts", "codes"),
    [
        ([proto(2), NONE], []),
        ([NONE], []),
        ([proto(4), frame(2), NONE], []),
        ([NONE, proto(2)], ["proto-not-first"]),
        ([proto(2), proto(4), NONE], ["proto-not-first"]),
        ([proto(6), NONE], ["proto-unknown"]),
        ([proto(4), frame(3), NONE], ["frame-mismatch"]),
        ([proto(4), frame((1 << 64) - 1), NONE], ["frame-mismatch"]),
        ([proto(4), frame(11), frame(2), NONE], ["frame-mismatch"]),
        ([proto(4), frame(1), NONE, frame(1)], []),
        ([proto(4), frame(0), frame(2), NONE], []),
        ([proto(4), frame(3), value(1)], ["frame-mismatch"]),
        ([proto(4), frame(5), value(1)], []),
        ([proto(4), frame(8), value(1), POP, value(1)], ["frame-mismatch"]),
        ([proto(4), frame(3), value("long" * 50_000)], ["frame-mismatch"]),
        ([short_binstring(b"caf\xc3\xa9")], []),
        ([short_binstring(b"caf\xe9")], ["text-not-utf-8"]),
        ([string_line(b"'\xff'")], ["text-not-utf-8"]),
        ([NONE, NONE], ["stack-not-empty"]),
        ([MARK, NONE], ["stack-not-empty"]),
        ([EMPTY_TUPLE, value(1), APPEND], ["append-to-other"]),
        ([EMPTY_TUPLE, MARK, value(1), APPENDS], ["append-to-other"]),
        ([EMPTY_LIST, value(1), value(2), SETITEM], ["setitem-on-other"]),
        ([EMPTY_LIST, MARK, value(1), b"\x90"], ["additems-to-other"]),
    ],
)
def test_what_no_pickler_writes_is_an_oddity(parts: list[bytes], codes: list[str]) -> None:
    assert oddities(*parts) == codes


def test_a_frame_that_reaches_past_stop_is_an_oddity() -> None:
    trace = run(proto(4) + frame(4) + NONE + STOP + b"more")

    assert [event.code for event in trace.events if isinstance(event, Oddity)] == ["frame-mismatch"]


def test_a_large_literal_stands_outside_of_frames_as_picklers_write_it() -> None:
    """CPython ends a frame before what is too large for one; that is no oddity."""
    pickle = _pickle.dumps(["small", b"x" * 200_000, "y" * 100_000, "small"], protocol=5)

    assert pickle.count(frame(0)[:1]) > 1
    assert run(pickle).events == ()


@pytest.mark.parametrize("encoding", ["latin-1", "bytes"])
def test_text_that_is_not_utf_8_is_kept_as_its_bytes(encoding: str) -> None:
    """As torch.load gives it to whoever asks for that encoding, arrays of Python 2 among them."""
    pickle = pickled(short_binstring(b"caf\xe9"))
    read = _pickle.loads(pickle, encoding=encoding)

    root = run(pickle).root

    assert isinstance(root, bytes)
    assert root == (read.encode(encoding) if isinstance(read, str) else read)


def test_the_protocol_is_the_highest_one_named() -> None:
    assert run(proto(4) + proto(2) + NONE + STOP).protocol == 4


# Errors and opcodes


@pytest.mark.parametrize("opcode", pickletools.opcodes, ids=lambda opcode: opcode.name)
def test_every_opcode_is_handled(opcode: pickletools.OpcodeInfo) -> None:
    trace = run(opcode.code.encode("latin-1") + b"\n" * 20)

    assert f"no opcode 0x{ord(opcode.code):02x}" not in str(trace.error)


@pytest.mark.parametrize("code", sorted({bytes([n]) for n in range(256)} - set(OPCODES)))
def test_no_other_byte_is_an_opcode(code: bytes) -> None:
    error = run(code).error

    assert error is not None
    assert f"no opcode 0x{code[0]:02x}" in str(error)
    assert error.offset == 0


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        NONE,
        STOP,
        POP + STOP,
        POP_MARK + STOP,
        MARK + STOP,
        NONE + MARK + STOP,
        NONE + MARK + DUP + STOP,
        NONE + MARK + TUPLE1 + STOP,
        TUPLE2 + STOP,
        EMPTY_DICT + MARK + NONE + SETITEMS + STOP,
        EMPTY_DICT + NONE + SETITEM + STOP,
        MARK + NONE + b"d" + STOP,
        MARK + b"o" + STOP,
        EMPTY_LIST + MARK + NONE + APPEND + STOP,
        MARK + NONE + APPENDS + STOP,
        REDUCE + STOP,
        NONE + REDUCE + STOP,
        NONE + NEWOBJ + STOP,
        NONE + b"b" + STOP,
        BINPERSID + STOP,
        b"X\x02\0\0\0\xff\xff" + STOP,
        b"c\xff\nname\n" + STOP,
        b"imodule\nname\n" + STOP,
        b"P\xff\n" + STOP,
    ],
)
def test_a_broken_pickle_gives_an_error_with_its_place(broken: bytes) -> None:
    trace = run(broken)

    assert isinstance(trace.error, MalformedInput)
    assert trace.error.offset is not None
    assert 0 <= trace.error.offset <= len(broken)
    assert trace.root is None


opcode_soup = st.lists(
    st.sampled_from(OPCODES) | st.sampled_from([value(1), value("a"), NONE, MARK, b"\n", b"\0\0"]),
    max_size=40,
).map(b"".join)


@settings(max_examples=1000)
@given(st.binary(max_size=200) | opcode_soup)
def test_no_bytes_make_the_machine_raise(pickle: bytes) -> None:
    """Any error comes back in the trace, and says where in the pickle it happened."""
    trace = run(pickle)

    assert 0 <= trace.end <= len(pickle)
    if trace.error is None:
        assert pickle[trace.end - 1 : trace.end] == STOP
    else:
        assert trace.error.offset is not None
        assert 0 <= trace.error.offset <= len(pickle)
        assert str(trace.error).startswith("p @ byte ")


# Windows


@pytest.mark.parametrize("window", range(1, 12))
def test_where_windows_end_does_not_show(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opcodes that straddle a border have the same values and the same offsets."""
    inner = [1, 300, 70000, 1 << 70, "text", b"bytes", (1, 2, 3), 2.5, None, True]
    pickle = b"".join(
        [
            proto(2),
            frame(7),
            value([*inner, Raw(global_("torch", "FloatStorage") + binput(1) + POP + binget(1))]),
            long_binput(70000),
            POP,
            long_binget(70000),
            value("pid") + BINPERSID + POP,
            b"I123\nL456L\nS'old'\n\x82\x01" + MARK + b"iposix\nsystem\n",
            STOP,
        ]
    )
    whole = run(pickle)
    monkeypatch.setattr(Cursor, "WINDOW", window)
    monkeypatch.setattr(Cursor, "FIRST_WINDOW", window)

    trace = run(pickle)

    assert trace.error is None
    assert (trace.end, trace.opcodes) == (whole.end, whole.opcodes)
    assert _places(trace.events) == _places(whole.events)
    assert all(pickle[offset] in b"\x95cQ\x82i" for _, offset in _places(trace.events)[:-1])


def _places(events: Iterable[Event]) -> list[tuple[str, int]]:
    return [(type(event).__name__, event.offset) for event in events]
