"""A pickle as a stream of instructions: what each takes, gives and would have done.

The machine that executes the opcodes is the one that every other reader uses; here it is
driven one opcode at a time and watched.  An instruction is made when it is asked for and
forgotten after, so that a pickle of eight million opcodes can be listed.

Knows:      which value on the stack came from where, and which memo slot was set when.
Is told:    the `Trace` of the pickle, which says where its bytes are and how far they were read.
Never asks: what a name means, or which instruction matters.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.errors import MalformedInput
from ckptaudit.vm.brief import brief, escape
from ckptaudit.vm.limits import Budget
from ckptaudit.vm.literals import unwarned
from ckptaudit.vm.machine import _Machine
from ckptaudit.vm.nodes import Build, Call, Global, Oddity, Opaque, PersistentId
from ckptaudit.vm.opcodes import OPCODES, TO_MARK, Argument, Opcode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ckptaudit.source import ByteSource
    from ckptaudit.vm.limits import Limits
    from ckptaudit.vm.nodes import Event, Node, Trace

__all__ = ["Instruction", "Use", "instructions"]

_MOST_TEXT = 500
_MOST_NAME = 60
# One tuple may be given to ten thousand calls: of each so many values are looked at.
_MOST_LOOKED_AT = 100
# What becomes of the values that an opcode puts together.
_PARTS = {
    "APPEND": "list element",
    "APPENDS": "list element",
    "LIST": "list element",
    "ADDITEMS": "set element",
    "FROZENSET": "set element",
    "TUPLE": "tuple element",
    "TUPLE1": "tuple element",
    "TUPLE2": "tuple element",
    "TUPLE3": "tuple element",
    "STACK_GLOBAL": "operand of STACK_GLOBAL",
    "STOP": "result of the pickle",
}
_PAIRS = {"SETITEM", "SETITEMS", "DICT"}
_STORING = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}


@dataclass(frozen=True, slots=True)
class Use:
    """Something that an instruction does with a name asked for before.

    Attributes:
        name: The name.
        how: The use in a few words, such as ``REDUCE target`` or ``dict key``.
        event: The event it is part of: the call, the persistent id; None if there is none.
    """

    name: Global
    how: str
    event: Event | None


# Not frozen, which would make it three times as slow to make.
@dataclass(slots=True, eq=False)
class Instruction:
    """One opcode, executed; or the place where the pickle breaks.

    Attributes:
        offset: Bytes from the start of the pickle.
        opcode: Its name; "" where no opcode could be read.
        argument: What follows it in the stream, in printable ASCII; "" if nothing does.
        before: Values on the stack before it, marks not counted.
        after: Values on the stack after it.
        marks: Marks on the stack after it.
        meaning: What the opcode does, in general.
        note: What it does here, in printable ASCII; "" if there is nothing to add.
        events: The events it gave.
        uses: What it does with names asked for before.
        resolved: How a name it asks for came about; "" if it asks for none.
        error: Why the pickle breaks here, or None.
    """

    offset: int
    opcode: str
    argument: str
    before: int
    after: int
    marks: int
    meaning: str
    note: str
    events: tuple[Event, ...] = ()
    uses: tuple[Use, ...] = ()
    resolved: str = ""
    error: MalformedInput | None = None


def instructions(trace: Trace, limits: Limits | None = None) -> Iterator[Instruction]:
    """Execute a traced pickle once more and list it, as far as the trace goes.

    Where the trace ended in an error, the last instruction is the place of the error.

    Args:
        trace: Of the pickle.
        limits: Those it was traced under.
    """
    broken: MalformedInput | None = None
    if trace.source is not None:
        listing = _Listing(trace.source, trace, Budget(limits))
        for _ in range(trace.opcodes):
            instruction = listing.step()
            yield instruction
            broken = instruction.error
            if broken is not None:
                break
    if trace.error is not None and broken is None:
        yield _break(trace.error)


def _break(error: MalformedInput) -> Instruction:
    why = f"breaks here: {escape(str(error.args[0]))}"
    return Instruction(error.offset or 0, "", "", 0, 0, 0, "", why[:_MOST_TEXT], error=error)


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a value on the stack came from.

    Attributes:
        made_at: Offset of the instruction that made it.
        slot: The memo slot it was fetched from, or None.
        set_at: When that slot was set.
    """

    made_at: int
    slot: int | None = None
    set_at: int | None = None

    def __str__(self) -> str:
        if self.slot is None or self.set_at is None:
            return f"literal at byte 0x{self.made_at:x}"
        return f"memo slot {self.slot}, set at byte 0x{self.set_at:x}"


class _Listing(_Machine):
    """The machine, and beside each value of its stack and memo where that came from."""

    __slots__ = ("memo_origins", "number", "origins")

    def __init__(self, source: ByteSource, trace: Trace, budget: Budget) -> None:
        super().__init__(source, trace.start, trace.stop, trace.record, budget)
        # Beside each value of the stack: a bare offset for what was made there, which most were.
        self.origins: list[int | _Origin] = []
        # By slot: when it was set, and when its value was made.
        self.memo_origins: dict[int, tuple[int, int]] = {}
        # The last slot or number that an opcode had as its argument.
        self.number = 0

    # What the machine does by methods of its own is noted on the way.

    def unsigned(self, width: int) -> int:
        self.number = super().unsigned(width)
        return self.number

    def remember(self, index: int) -> None:
        super().remember(index)
        self.number = index

    def recall(self, index: int) -> None:
        super().recall(index)
        self.number = index

    def step(self) -> Instruction:
        """Execute one opcode and say what it was and did."""
        offset = self.position
        try:
            opcode = self.upcoming()
        except MalformedInput as err:
            return _break(err)
        before = len(self.stack)
        taken = self.upcoming_values(opcode)
        operands = self.origins[-2:]
        # Of what has been, a listing keeps nothing.
        self.events.clear()
        self.dropped.clear()
        try:
            # Nothing else has escapes that Python would warn of.
            with unwarned() if opcode.name == "STRING" else nullcontext():
                self.execute(1)
        except MalformedInput as err:
            return self.broken(opcode, before, err)
        events = tuple(self.events)
        note = resolved = ""
        uses: tuple[Use, ...] = ()
        if opcode.argument is Argument.SLOT:
            note = self.note_on_slot(opcode)
        elif events:
            note = "; ".join(map(_told, events))
            resolved = _resolved(opcode, operands, events)
            if opcode.name == "STACK_GLOBAL":
                note = f"{note} ({resolved})"
        if events or taken:
            uses = _uses(opcode, taken, events)
        # The notes on a slot speak of what it was before.
        self.follow(opcode, offset)
        return Instruction(
            offset=offset,
            opcode=opcode.name,
            argument=self.argument(opcode, events)[:_MOST_TEXT],
            before=before,
            after=len(self.stack),
            marks=len(self.marks),
            meaning=opcode.meaning,
            note=note[:_MOST_TEXT],
            events=events,
            uses=uses,
            resolved=resolved,
        )

    def broken(self, opcode: Opcode, before: int, error: MalformedInput) -> Instruction:
        why = f"breaks here: {escape(str(error.args[0]))}"
        return Instruction(
            offset=self.offset,
            opcode=opcode.name,
            argument="",
            before=before,
            after=len(self.stack),
            marks=len(self.marks),
            meaning=opcode.meaning,
            note=why[:_MOST_TEXT],
            # An instruction may break after it has asked for something.
            events=tuple(self.events),
            resolved=_resolved(opcode, [], self.events),
            error=error,
        )

    def upcoming(self) -> Opcode:
        """The opcode to be executed next."""
        if self.at >= len(self.window) and self.remaining:
            self._slide(1)
        if self.at >= len(self.window):
            return _NO_OPCODE
        return OPCODES.get(self.window[self.at], _NO_OPCODE)

    def upcoming_values(self, opcode: Opcode) -> Sequence[Node]:
        """The values it will take, the lowest first."""
        if opcode.takes == TO_MARK:
            return self.stack[self.fence :] if self.marks else ()
        return self.stack[max(self.fence, len(self.stack) - opcode.takes) :] if opcode.takes else ()

    def follow(self, opcode: Opcode, offset: int) -> None:
        """Keep the origins beside the stack and the memo as they now are."""
        origins = self.origins
        if opcode.name == "DUP":
            origins.append(origins[-1])
            return
        del origins[len(self.stack) - opcode.gives :]
        if opcode.argument is not Argument.SLOT:
            if opcode.gives:
                origins.append(offset)
        elif opcode.gives:
            set_at, made_at = self.memo_origins[self.number]
            origins.append(_Origin(made_at, self.number, set_at))
        else:
            top = origins[-1]
            made_at = top.made_at if isinstance(top, _Origin) else top
            self.memo_origins[self.number] = (offset, made_at)

    def argument(self, opcode: Opcode, events: Iterable[Event]) -> str:
        match opcode.argument:
            case Argument.VALUE:
                return brief(self.stack[-1])
            case Argument.NUMBER | Argument.SLOT:
                return str(self.number)
            case Argument.NAME:
                return "".join(
                    f"{escape(event.module[:_MOST_NAME])} {escape(event.name[:_MOST_NAME])}"
                    for event in events
                    if isinstance(event, Global)
                )
            case Argument.ID:
                return "".join(
                    brief(event.pid) for event in events if isinstance(event, PersistentId)
                )
            case Argument.NONE:
                return ""

    def note_on_slot(self, opcode: Opcode) -> str:
        value = brief(self.stack[-1])
        known = self.memo_origins.get(self.number)
        if known is None:
            return f"{value} becomes slot {self.number}"
        set_at = f"set at byte 0x{known[0]:x}"
        if opcode.name in _STORING:
            return f"{value} replaces slot {self.number}, {set_at}"
        return f"{value} from slot {self.number}, {set_at}"


_NO_OPCODE = Opcode(-1, "", Argument.NONE, 0, 0, "no such opcode exists")


def _uses(opcode: Opcode, taken: Sequence[Node], events: Sequence[Event]) -> tuple[Use, ...]:
    """What is done with names, each use told once however often it is made."""
    event = events[-1] if events else None
    found: dict[tuple[int, str], Use] = {}
    for node, how in _parts(opcode.name, taken, event):
        if isinstance(node, Global):
            found.setdefault((id(node), how), Use(node, how, event))
    return tuple(found.values())


def _parts(name: str, taken: Sequence[Node], event: Event | None) -> Iterator[tuple[Node, str]]:
    """Values an instruction uses, and how."""
    match event:
        case Call():
            yield event.func, f"{name} target"
            args = event.args if isinstance(event.args, tuple) else (event.args,)
            yield from ((arg, f"argument of {name}") for arg in args[:_MOST_LOOKED_AT])
        case PersistentId():
            parts = event.pid if isinstance(event.pid, tuple) else (event.pid,)
            yield from ((part, "in a persistent id") for part in parts[:_MOST_LOOKED_AT])
        case Build(target=Call() as made):
            yield made.func, "BUILD target, by what it makes"
            yield event.state, "state in BUILD"
        case Build():
            yield event.target, "BUILD target"
            yield event.state, "state in BUILD"
        case _:
            if name in _PAIRS:
                yield from ((key, "dict key") for key in taken[::2])
                yield from ((value, "dict value") for value in taken[1::2])
            elif name in _PARTS:
                yield from ((value, _PARTS[name]) for value in taken)


def _told(event: Event) -> str:
    match event:
        case Global():
            return f"asks for {brief(event)}"
        case Call():
            verb = "make" if event.op.startswith("NEWOBJ") else "call"
            return f"would {verb} {brief(event)}"
        case PersistentId():
            return f"refers to {brief(event.pid)}"
        case Build():
            return f"would set the state of {brief(event.target)} to {brief(event.state)}"
        case Opaque():
            return f"asks for something by {brief(event)}"
        case Oddity():
            return escape(event.message)


def _resolved(opcode: Opcode, operands: Sequence[int | _Origin], events: Iterable[Event]) -> str:
    """How the name came about that the instruction asks for; "" if it asks for none."""
    if not any(isinstance(event, (Global, Opaque)) for event in events):
        return ""
    if opcode.argument is Argument.NAME:
        return "literal"
    if opcode.name != "STACK_GLOBAL":
        return "by number" if opcode.name.startswith("EXT") else ""
    if any(isinstance(event, Opaque) for event in events):
        return "computed"
    module, name = (
        origin if isinstance(origin, _Origin) else _Origin(origin) for origin in operands
    )
    return f"module: {module}; name: {name}"
