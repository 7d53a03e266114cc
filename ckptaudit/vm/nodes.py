"""What a pickle says, as inert data: the tree it describes and the events of reading it.

Knows:      which kinds of value and event a pickle can hold.
Is told:    nothing; `machine` makes these.
Never asks: what a name means.  Holding a `Global` imports nothing, holding a
            `Call` calls nothing.

Nodes compare by identity and have no ``repr``: a hostile tree can share itself
2^60 times over or nest 200,000 deep, and must only ever be walked by loops that
count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from ckptaudit.errors import MalformedInput
    from ckptaudit.source import ByteSource

__all__ = [
    "Build",
    "Call",
    "Dict",
    "Event",
    "Global",
    "Node",
    "Oddity",
    "Opaque",
    "PersistentId",
    "Set",
    "Trace",
    "length_of",
]


@dataclass(slots=True, eq=False)
class Global:
    """A name the pickle asks for.  Holding one imports nothing.

    Attributes:
        module: As the pickle spells it.
        name: As the pickle spells it.
        offset: Byte offset of the opcode.
        length: Bytes of the opcode and what follows it as its argument.
    """

    module: str
    name: str
    offset: int
    length: int = 1

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False, repr=False)
class Call:
    """A call the pickle asks for.  Holding one calls nothing.

    Attributes:
        op: REDUCE, NEWOBJ, NEWOBJ_EX, OBJ or INST.
        func: What would be called.
        args: A tuple, unless the pickle is malformed on purpose.
        kwargs: Keyword arguments of NEWOBJ_EX, else None.
        offset: Byte offset of the opcode.
        state: What the last BUILD would have given the result; None if there was none.
        pairs: What SETITEM and SETITEMS would have stored in the result, in order.
        elements: What APPEND, APPENDS and ADDITEMS would have added to it, in order.
    """

    op: str
    func: Node
    args: Node
    kwargs: Node
    offset: int
    state: Node = None
    # A pickle may make a million calls, and nothing is stored in most of them.
    pairs: list[tuple[Node, Node]] | tuple[()] = ()
    elements: list[Node] | tuple[()] = ()


@dataclass(slots=True, eq=False, repr=False)
class PersistentId:
    """A reference out of the pickle; torch keeps its storages behind these.

    Attributes:
        pid: What the loader is asked for.
        offset: Byte offset of the opcode.
        length: Bytes of the opcode and what follows it as its argument.
    """

    pid: Node
    offset: int
    length: int = 1


@dataclass(slots=True, eq=False, repr=False)
class Build:
    """State that BUILD would have given *target*, by ``__setstate__`` or ``__dict__``."""

    target: Node
    state: Node
    offset: int


@dataclass(slots=True, eq=False, repr=False)
class Opaque:
    """A value that cannot be known without running code.

    Attributes:
        op: The opcode: EXT1, EXT2, EXT4, STACK_GLOBAL, NEXT_BUFFER or READONLY_BUFFER.
        args: What the opcode was given.
        offset: Byte offset of the opcode.
    """

    op: str
    args: tuple[Node, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something that not every unpickler accepts, or that no pickler writes.

    Attributes:
        code: Stable short name, such as ``frame-mismatch``; `policy` turns it into a rule.
        message: What was seen.
        offset: Byte offset of the opcode.
        value: What the opcode pushed, if that is what it is about.
        length: Bytes of the opcode, and of what had been read of its argument.
    """

    code: str
    message: str
    offset: int
    value: Node = None
    length: int = 1


@dataclass(slots=True, eq=False, repr=False)
class Dict:
    """A dict as its pairs, in order.  Keys are never hashed: hashing hostile tuples can recurse."""

    pairs: list[tuple[Node, Node]] = field(default_factory=list)


@dataclass(slots=True, eq=False, repr=False)
class Set:
    """A set or frozenset as its elements, in order, never hashed."""

    elements: list[Node]
    frozen: bool


Node: TypeAlias = (
    "Global | Call | PersistentId | Opaque | Dict | Set | list[Node] | tuple[Node, ...]"
    " | str | bytes | bytearray | bool | int | float | None"
)
Event: TypeAlias = "Global | Call | PersistentId | Build | Opaque | Oddity"


# Bytes of the opcodes that have a number behind them; the others that make these events have none.
_EXTENSIONS = {"EXT1": 2, "EXT2": 3, "EXT4": 5}


def length_of(event: Event) -> int:
    """Bytes of the instruction that gave *event*, its argument included."""
    match event:
        case Global() | PersistentId() | Oddity():
            return event.length
        case Call(op="INST", func=Global() as asked):
            return asked.length
        case Opaque():
            return _EXTENSIONS.get(event.op, 1)
        case Call() | Build():
            return 1


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Trace:
    """All there is to know about one pickle.

    Attributes:
        record: The record it stands in.
        root: The value STOP would have returned; None if *error* is set.
        events: Every global, call, build, persistent id and oddity, in order.
        protocol: The highest PROTO seen, 0 without one.
        opcodes: Instructions executed.
        end: Offset just past STOP, counted like all offsets from the pickle's first byte.
        error: Why reading stopped before STOP, or None.  *events* holds what came before it.
        dropped: What was made and is no part of the root: popped, replaced or left over.
        source: Where the pickle's bytes are; None if they could not even be looked at.
        start: Offset in *source* of the pickle's first byte.
        stop: Offset in *source* of the first byte that cannot belong to the pickle.
    """

    record: str
    root: Node
    events: tuple[Event, ...]
    protocol: int
    opcodes: int
    end: int
    error: MalformedInput | None
    dropped: tuple[Node, ...] = ()
    source: ByteSource | None = None
    start: int = 0
    stop: int = 0
