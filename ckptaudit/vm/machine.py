"""A pickle machine that writes down what would happen instead of doing it.

Where CPython's unpickler would import a name we push a `Global`; where it would
call something we push a `Call`.  An event is recorded when its opcode runs,
whatever becomes of the value afterwards: a call whose result is popped is still
a call.

Knows:      the pickle opcodes, protocols 0 to 5.
Is told:    bytes, and how much work they may still cost (`Budget`).
Never asks: what a name means.  ``os.system`` and ``torch.FloatStorage`` look the
            same here; telling them apart is `policy`'s trade, rebuilding tensors
            is `tensors`'.

Semantics follow CPython's Modules/_pickle.c, which is what torch runs, and not
Lib/pickletools.py, which refuses streams that the C code executes.  Where only Lib/pickle.py,
which joblib runs, or a Python of another day would go on, we go on as well and say so.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ckptaudit.errors import MalformedInput
from ckptaudit.vm.limits import Budget
from ckptaudit.vm.literals import (
    parse_float,
    parse_float_laxly,
    parse_int,
    parse_integer_laxly,
    parse_long,
    parse_string,
    unwarned,
)
from ckptaudit.vm.nodes import (
    Build,
    Call,
    Dict,
    Global,
    Node,
    Opaque,
    PersistentId,
    Set,
    Trace,
)
from ckptaudit.vm.reader import Reader
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptaudit.source import ByteSource

__all__ = ["trace_pickle"]

_HIGHEST_PROTOCOL = 5
# So far memo indices may run ahead of the opcodes: 16 MiB, in CPython.
_MEMO_AHEAD = 1 << 20
# Bits of the largest integer anybody has a use for.
_LARGE_INTEGER = 8192
# Opcodes between two looks at the budget.
_ROUND = 1000


def trace_pickle(
    source: ByteSource, start: int, stop: int, *, record: str, budget: Budget | None = None
) -> Trace:
    """Run the pickle that begins at byte *start* of *source*, executing nothing.

    Args:
        source: The bytes.
        start: Offset of the first opcode.
        stop: First byte that does not belong to the pickle; reading never passes it.
        record: What to call the pickle in errors.
        budget: Pays for it; of the file's limits so much may be spent already.

    Returns:
        A `Trace`, also for a broken pickle: then ``error`` says why and where.  Where the
        budget ran out the error is a `LimitExceeded`.
    """
    budget = budget or Budget()
    machine = _Machine(source, start, stop, record, budget)
    error: MalformedInput | None = None
    try:
        machine.run()
    except MalformedInput as err:
        # Its traceback holds this frame and the machine, window and all, and this frame holds it:
        # a circle, of which there may be a thousand while nobody collects garbage.
        error = err.with_traceback(None)
        error.__cause__ = error.__context__ = None
    budget.opcodes += machine.executed
    budget.events += len(machine.events)
    budget.nodes += machine.nodes
    budget.literals += machine.literals
    return Trace(
        record=record,
        root=machine.root,
        events=tuple(machine.events),
        protocol=machine.protocol,
        opcodes=machine.executed,
        end=machine.position,
        error=error,
        dropped=(*machine.dropped, *machine.stack),
        source=source,
        start=start,
        stop=stop,
    )


class _Machine(Reader):
    """Stack, marks and memo of one pickle being read.

    It is its own reader, and the commonest handlers look into the window
    directly: one call more per opcode is a third of the time.
    """

    __slots__ = (
        "dropped",
        "executed",
        "fence",
        "marks",
        "memo",
        "nodes",
        "protocol",
        "root",
        "running",
        "stack",
    )

    def __init__(
        self, source: ByteSource, start: int, stop: int, record: str, budget: Budget
    ) -> None:
        super().__init__(source, start, stop, record, budget)
        self.root: Node = None
        self.dropped: list[Node] = []
        self.protocol = 0
        # What this pickle alone has cost; the budget hears of it when it is done.
        self.executed = 0
        self.nodes = 0
        self.running = True
        self.stack: list[Node] = []
        self.marks: list[int] = []
        # Values below the fence, the top mark, cannot be popped.
        self.fence = 0
        self.memo: dict[int, Node] = {}

    def run(self) -> None:
        with unwarned():
            while self.running:
                self.check_budget()
                # No opcode makes more than two values or events, so no round overshoots by much.
                self.execute(_ROUND)

    def execute(self, count: int) -> None:
        """Execute *count* opcodes, or those up to STOP if they are fewer."""
        handlers = _HANDLERS
        for _ in range(count):
            at = self.began = self.at
            if at < self.horizon:
                code = self.window[at]
                self.at = at + 1
            else:
                code = self.code_beyond()
            self.executed += 1
            handlers[code](self)
            if not self.running:
                return

    def check_budget(self) -> None:
        spent, limits = self.budget, self.limits
        if spent.opcodes + self.executed >= limits.opcodes:
            raise self.too_much("opcodes")
        if spent.events + len(self.events) > limits.events:
            raise self.too_much("names and calls")
        if spent.nodes + self.nodes > limits.nodes:
            raise self.too_much("lists, tuples, dicts and sets")
        if len(self.stack) + len(self.marks) > limits.stack:
            raise self.too_much("stack entries")

    # Stack

    def pop(self) -> Node:
        if len(self.stack) <= self.fence:
            raise self.malformed("takes a value from an empty stack")
        return self.stack.pop()

    def top(self) -> Node:
        if len(self.stack) <= self.fence:
            raise self.malformed("looks at an empty stack")
        return self.stack[-1]

    def unmark(self) -> None:
        self.marks.pop()
        self.fence = self.marks[-1] if self.marks else 0

    def pop_to_mark(self) -> list[Node]:
        if not self.marks:
            raise self.malformed("looks for a MARK where there is none")
        at = self.fence
        taken = self.stack[at:]
        del self.stack[at:]
        self.unmark()
        return taken

    def pairs_to_mark(self) -> list[tuple[Node, Node]]:
        flat = self.pop_to_mark()
        if len(flat) % 2:
            raise self.malformed("has a key without a value")
        return list(zip(flat[::2], flat[1::2], strict=True))

    def remember(self, index: int) -> None:
        stack = self.stack
        if len(stack) <= self.fence:
            raise self.malformed("stores a value from an empty stack")
        memo = self.memo
        if len(memo) >= self.limits.memo:
            raise self.too_much("memo entries")
        # Modules/_pickle.c, _Unpickler_MemoPut: the memo is an array up to its highest index,
        # and picklers count from 0.
        if index > self.executed + _MEMO_AHEAD:
            self.odd("memo-index", f"stores under memo index {_shown(index)}")
        memo[index] = stack[-1]

    def recall(self, index: int) -> None:
        try:
            self.stack.append(self.memo[index])
        except KeyError:
            raise self.malformed(f"fetches memo entry {index}, which was never stored") from None

    # Framing

    def op_proto(self) -> None:
        version = self.unsigned(1)
        if self.offset:
            self.odd("proto-not-first", f"PROTO {version} in mid-stream")
        if version > _HIGHEST_PROTOCOL:
            self.odd("proto-unknown", f"protocol {version} does not exist")
        self.protocol = max(self.protocol, version)

    def op_frame(self) -> None:
        self.begin_frame(self.unsigned(8))

    def op_stop(self) -> None:
        self.root = self.pop()
        self.end_frame()
        if self.stack or self.marks:
            self.odd("stack-not-empty", f"{counted(len(self.stack), 'value')} left over at STOP")
        self.running = False

    # Stack manipulation

    def op_mark(self) -> None:
        self.fence = len(self.stack)
        self.marks.append(self.fence)

    def op_pop(self) -> None:
        if self.marks and self.fence == len(self.stack):
            self.unmark()
        else:
            self.drop(self.pop())

    def op_pop_mark(self) -> None:
        for node in self.pop_to_mark():
            self.drop(node)

    def drop(self, node: Node) -> None:
        # What holds nothing is not worth keeping: a million empty lists may be thrown away.
        if isinstance(node, (PersistentId, Opaque, Call, Dict, Set)) or (
            isinstance(node, (list, tuple)) and node
        ):
            self.dropped.append(node)

    def op_dup(self) -> None:
        self.stack.append(self.top())

    # Memo

    def op_put(self) -> None:
        index = self.memo_index()
        if index < 0:
            raise self.malformed("stores under a negative memo index")
        self.remember(index)

    def op_get(self) -> None:
        self.recall(self.memo_index())

    def op_binput(self) -> None:
        at = self.at
        if at < len(self.window):
            self.at = at + 1
            self.remember(self.window[at])
        else:
            self.remember(self.take(1)[0])

    def op_long_binput(self) -> None:
        self.remember(self.unsigned(4))

    def op_binget(self) -> None:
        at = self.at
        if at < len(self.window):
            self.at = at + 1
            self.recall(self.window[at])
        else:
            self.recall(self.take(1)[0])

    def memo_index(self) -> int:
        try:
            return int(self.line().split(b"\0", 1)[0])
        except ValueError as err:
            raise self.malformed("the text of a memo index is not a number") from err

    # Containers

    def push_node(self, node: Node) -> None:
        self.nodes += 1
        self.stack.append(node)

    def push_holder(self, node: Node) -> None:
        # A dict or set is an object and a list, and takes as much memory as two tuples.
        self.nodes += 2
        self.stack.append(node)

    def op_dict(self) -> None:
        self.push_holder(Dict(self.pairs_to_mark()))

    def op_append(self) -> None:
        value = self.pop()
        self.extend(self.top(), [value])

    def op_appends(self) -> None:
        values = self.pop_to_mark()
        self.extend(self.top(), values)

    def extend(self, target: Node, values: list[Node]) -> None:
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Call):
            self.add_to_call(target, values)
        else:
            self.odd("append-to-other", f"appends to {_kind(target)}")

    def add_to_call(self, target: Call, values: list[Node]) -> None:
        if not target.elements:
            self.nodes += 2
            target.elements = []
        target.elements += values

    def op_setitem(self) -> None:
        value = self.pop()
        key = self.pop()
        self.store(self.top(), [(key, value)])

    def op_setitems(self) -> None:
        pairs = self.pairs_to_mark()
        self.store(self.top(), pairs)

    def store(self, target: Node, pairs: list[tuple[Node, Node]]) -> None:
        if isinstance(target, Dict):
            target.pairs += pairs
        elif isinstance(target, Call):
            if not target.pairs:
                self.nodes += 2
                target.pairs = []
            target.pairs += pairs
        else:
            self.odd("setitem-on-other", f"sets items of {_kind(target)}")

    def op_additems(self) -> None:
        values = self.pop_to_mark()
        target = self.top()
        if isinstance(target, Set):
            target.elements += values
        elif isinstance(target, Call):
            self.add_to_call(target, values)
        else:
            self.odd("additems-to-other", f"adds to {_kind(target)} as to a set")

    # Names, calls and what else leaves the data

    def ask(self, module: str, name: str) -> Global:
        # Its names have been read: what is before the cursor is the whole instruction.
        asked = Global(module, name, self.offset, self.at - self.began)
        self.events.append(asked)
        return asked

    def op_global(self) -> None:
        self.stack.append(self.ask(self.text_line("utf-8"), self.text_line("utf-8")))

    def op_stack_global(self) -> None:
        name = self.pop()
        module = self.pop()
        if isinstance(module, str) and isinstance(name, str):
            self.stack.append(self.ask(module, name))
        else:
            self.opaque("STACK_GLOBAL", module, name)

    def opaque(self, op: str, *args: Node) -> None:
        value = Opaque(op, args, self.offset)
        self.events.append(value)
        self.stack.append(value)

    def call(self, op: str, func: Node, args: Node, kwargs: Node = None) -> None:
        made = Call(op, func, args, kwargs, self.offset)
        self.events.append(made)
        self.stack.append(made)

    def op_reduce(self) -> None:
        args = self.pop()
        self.call("REDUCE", self.pop(), args)

    def op_newobj(self) -> None:
        args = self.pop()
        self.call("NEWOBJ", self.pop(), args)

    def op_newobj_ex(self) -> None:
        kwargs = self.pop()
        args = self.pop()
        self.call("NEWOBJ_EX", self.pop(), args, kwargs)

    def op_inst(self) -> None:
        asked = self.ask(self.text_line("ascii"), self.text_line("ascii"))
        self.call("INST", asked, tuple(self.pop_to_mark()))

    def op_obj(self) -> None:
        values = self.pop_to_mark()
        if not values:
            raise self.malformed("makes an object of no class")
        self.call("OBJ", values[0], tuple(values[1:]))

    def op_build(self) -> None:
        state = self.pop()
        target = self.top()
        self.events.append(Build(target, state, self.offset))
        if isinstance(target, Call):
            self.drop(target.state)
            target.state = state
        else:
            self.drop(state)

    def persistent(self, pid: Node) -> None:
        value = PersistentId(pid, self.offset, self.at - self.began)
        self.events.append(value)
        self.stack.append(value)

    def op_persid(self) -> None:
        self.persistent(self.text_line("ascii"))

    def op_int(self) -> None:
        self.push_integer(self.parsed(parse_int, parse_integer_laxly))

    def op_long(self) -> None:
        self.push_integer(self.parsed(parse_long, parse_integer_laxly))

    def push_integer(self, value: Node) -> None:
        # To write it out in decimal takes time by the square of its length.
        if isinstance(value, int) and value.bit_length() > _LARGE_INTEGER:
            self.odd("integer-large", f"an integer of {value.bit_length()} bits")
        self.stack.append(value)

    def op_string(self) -> None:
        self.python2_string(self.parsed(parse_string))

    def python2_string(self, data: Node) -> None:
        # torch unpickles with encoding="utf-8" (serialization.py, load), so a Python 2 str is text;
        # what it stops at is read by whoever asks for "latin1" or "bytes", as arrays need it.
        if not isinstance(data, bytes):
            raise self.malformed("a string is not bytes")
        try:
            self.stack.append(data.decode("utf-8"))
        except UnicodeDecodeError:
            self.stack.append(data)
            self.odd("text-not-utf-8", "a string of Python 2 that is no text in utf-8", data)


def _kind(node: Node) -> str:
    return "nothing" if node is None else f"a {type(node).__name__.lower()}"


_DOUBLE = struct.Struct(">d")
_INT32 = struct.Struct("<i")


def _shown(number: int) -> str:
    # str() refuses integers of more than 4300 digits.
    return str(number) if number < 1 << 64 else "beyond 2^64"


def _push_constant(make: Callable[[], Node]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(make())


def _push_unsigned(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.unsigned(width))


def _push_long(width: int) -> Callable[[_Machine], None]:
    def handle(machine: _Machine) -> None:
        # load_counted_long: the length of LONG4 is signed, and a negative one is refused.
        length = machine.unsigned(width)
        if length >= 1 << 31:
            raise machine.malformed("an integer of negative length")
        machine.push_integer(int.from_bytes(machine.literal(length), "little", signed=True))

    return handle


def _push_bytes(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.literal(machine.unsigned(width)))


def _push_text(width: int) -> Callable[[_Machine], None]:
    def handle(machine: _Machine) -> None:
        data = machine.literal(machine.unsigned(width))
        machine.stack.append(machine.decoded(data, "utf-8", "surrogatepass"))

    return handle


def _push_python2_string(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.python2_string(machine.literal(machine.unsigned(width)))


def _push_tuple(length: int) -> Callable[[_Machine], None]:
    def handle(machine: _Machine) -> None:
        stack = machine.stack
        if len(stack) - machine.fence < length:
            raise machine.malformed("makes a tuple of more values than there are")
        values = tuple(stack[-length:])
        del stack[-length:]
        machine.push_node(values)

    return handle


def _push_extension(op: str, width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.opaque(op, machine.unsigned(width))


def _no_opcode(code: int) -> Callable[[_Machine], None]:
    def handle(machine: _Machine) -> None:
        raise machine.malformed(f"no opcode 0x{code:02x} exists")

    return handle


# Every opcode of Lib/pickle.py, protocol by protocol.
_BY_OPCODE: dict[bytes, Callable[[_Machine], None]] = {
    # Protocol 0
    b"(": _Machine.op_mark,
    b".": _Machine.op_stop,
    b"0": _Machine.op_pop,
    b"2": _Machine.op_dup,
    b"F": lambda m: m.stack.append(m.parsed(parse_float, parse_float_laxly)),
    b"I": _Machine.op_int,
    b"L": _Machine.op_long,
    b"N": _push_constant(lambda: None),
    b"P": _Machine.op_persid,
    b"R": _Machine.op_reduce,
    b"S": _Machine.op_string,
    b"V": lambda m: m.stack.append(m.text_line("raw-unicode-escape")),
    b"a": _Machine.op_append,
    b"b": _Machine.op_build,
    b"c": _Machine.op_global,
    b"d": _Machine.op_dict,
    b"g": _Machine.op_get,
    b"i": _Machine.op_inst,
    b"l": lambda m: m.push_node(m.pop_to_mark()),
    b"p": _Machine.op_put,
    b"s": _Machine.op_setitem,
    b"t": lambda m: m.push_node(tuple(m.pop_to_mark())),
    # Protocol 1
    b"1": _Machine.op_pop_mark,
    b"G": lambda m: m.stack.append(_DOUBLE.unpack(m.take(8))[0]),
    b"J": lambda m: m.stack.append(_INT32.unpack(m.take(4))[0]),
    b"K": lambda m: m.stack.append(m.byte()),
    b"M": _push_unsigned(2),
    b"Q": lambda m: m.persistent(m.pop()),
    b"T": _push_python2_string(4),
    b"U": _push_python2_string(1),
    b"X": _push_text(4),
    b"e": _Machine.op_appends,
    b"h": _Machine.op_binget,
    b"j": lambda m: m.recall(m.unsigned(4)),
    b"q": _Machine.op_binput,
    b"r": _Machine.op_long_binput,
    b"u": _Machine.op_setitems,
    b"]": lambda m: m.push_node([]),
    b")": _push_constant(tuple),
    b"}": lambda m: m.push_holder(Dict()),
    b"o": _Machine.op_obj,
    # Protocol 2
    b"\x80": _Machine.op_proto,
    b"\x81": _Machine.op_newobj,
    b"\x82": _push_extension("EXT1", 1),
    b"\x83": _push_extension("EXT2", 2),
    b"\x84": _push_extension("EXT4", 4),
    b"\x85": _push_tuple(1),
    b"\x86": _push_tuple(2),
    b"\x87": _push_tuple(3),
    b"\x88": _push_constant(lambda: True),
    b"\x89": _push_constant(lambda: False),
    b"\x8a": _push_long(1),
    b"\x8b": _push_long(4),
    # Protocol 3
    b"B": _push_bytes(4),
    b"C": _push_bytes(1),
    # Protocol 4
    b"\x8c": _push_text(1),
    b"\x8d": _push_text(8),
    b"\x8e": _push_bytes(8),
    b"\x8f": lambda m: m.push_holder(Set([], frozen=False)),
    b"\x90": _Machine.op_additems,
    b"\x91": lambda m: m.push_holder(Set(m.pop_to_mark(), frozen=True)),
    b"\x92": _Machine.op_newobj_ex,
    b"\x93": _Machine.op_stack_global,
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"\x95": _Machine.op_frame,
    # Protocol 5
    b"\x96": lambda m: m.stack.append(bytearray(m.literal(m.unsigned(8)))),
    b"\x97": lambda m: m.opaque("NEXT_BUFFER"),
    b"\x98": lambda m: m.opaque("READONLY_BUFFER", m.pop()),
}
_HANDLERS = [_BY_OPCODE.get(bytes([code]), _no_opcode(code)) for code in range(256)]
