"""What each pickle opcode is called, what it takes and gives, and what it means in words.

`machine` executes opcodes and needs none of this; a listing does.

Knows:      the names and meanings of the opcodes, protocols 0 to 5.
Is told:    nothing.
Never asks: how an opcode is executed.

Names are those of Lib/pickletools.py, with which a test compares them; so that what is said
here can be looked up there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["OPCODES", "TO_MARK", "Argument", "Opcode"]

# Stands for a number of values taken: all those above the topmost mark, and the mark.
TO_MARK = -1


class Argument(str, Enum):
    """What follows an opcode in the stream."""

    NONE = "nothing"
    VALUE = "the value it pushes"
    NUMBER = "a number"
    # MEMOIZE has it from counting.
    SLOT = "the number of a memo slot"
    NAME = "a module and a name"
    ID = "a persistent id"


@dataclass(frozen=True, slots=True)
class Opcode:
    """One opcode.

    Attributes:
        code: The byte it is.
        name: As ``pickletools`` calls it.
        argument: What follows it in the stream.
        takes: Values it takes from the stack, or `TO_MARK`.
        gives: Values it pushes.
        meaning: What it does, in a few words.
    """

    code: int
    name: str
    argument: Argument
    takes: int
    gives: int
    meaning: str


_NONE, _VALUE, _NUMBER = Argument.NONE, Argument.VALUE, Argument.NUMBER
_SLOT, _NAME, _ID = Argument.SLOT, Argument.NAME, Argument.ID

_ALL = (
    # Protocol 0
    Opcode(ord("("), "MARK", _NONE, 0, 0, "begins a group of values"),
    Opcode(ord("."), "STOP", _NONE, 1, 0, "ends the pickle; the top value is its result"),
    Opcode(ord("0"), "POP", _NONE, 1, 0, "throws the top value, or a mark on top of it, away"),
    Opcode(ord("2"), "DUP", _NONE, 0, 1, "pushes the top value again"),
    Opcode(ord("F"), "FLOAT", _VALUE, 0, 1, "pushes a float"),
    Opcode(ord("I"), "INT", _VALUE, 0, 1, "pushes an integer or a boolean"),
    Opcode(ord("L"), "LONG", _VALUE, 0, 1, "pushes an integer"),
    Opcode(ord("N"), "NONE", _NONE, 0, 1, "pushes None"),
    Opcode(ord("P"), "PERSID", _ID, 0, 1, "asks the loader for what a persistent id refers to"),
    Opcode(ord("R"), "REDUCE", _NONE, 2, 1, "calls a function with a tuple of arguments"),
    Opcode(ord("S"), "STRING", _VALUE, 0, 1, "pushes a string of Python 2"),
    Opcode(ord("V"), "UNICODE", _VALUE, 0, 1, "pushes a string"),
    Opcode(ord("a"), "APPEND", _NONE, 1, 0, "appends the top value to a list"),
    Opcode(ord("b"), "BUILD", _NONE, 1, 0, "gives an object its state"),
    Opcode(ord("c"), "GLOBAL", _NAME, 0, 1, "imports a module and pushes what it calls so"),
    Opcode(ord("d"), "DICT", _NONE, TO_MARK, 1, "makes a dict of the group"),
    Opcode(ord("g"), "GET", _SLOT, 0, 1, "pushes a value from the memo"),
    Opcode(ord("i"), "INST", _NAME, TO_MARK, 1, "imports a class and calls it with the group"),
    Opcode(ord("l"), "LIST", _NONE, TO_MARK, 1, "makes a list of the group"),
    Opcode(ord("p"), "PUT", _SLOT, 0, 0, "stores the top value in the memo"),
    Opcode(ord("s"), "SETITEM", _NONE, 2, 0, "stores a value under a key"),
    Opcode(ord("t"), "TUPLE", _NONE, TO_MARK, 1, "makes a tuple of the group"),
    # Protocol 1
    Opcode(ord("1"), "POP_MARK", _NONE, TO_MARK, 0, "throws the group away"),
    Opcode(ord("G"), "BINFLOAT", _VALUE, 0, 1, "pushes a float"),
    Opcode(ord("J"), "BININT", _VALUE, 0, 1, "pushes an integer"),
    Opcode(ord("K"), "BININT1", _VALUE, 0, 1, "pushes an integer"),
    Opcode(ord("M"), "BININT2", _VALUE, 0, 1, "pushes an integer"),
    Opcode(ord("Q"), "BINPERSID", _NONE, 1, 1, "asks the loader for what a persistent id means"),
    Opcode(ord("T"), "BINSTRING", _VALUE, 0, 1, "pushes a string of Python 2"),
    Opcode(ord("U"), "SHORT_BINSTRING", _VALUE, 0, 1, "pushes a string of Python 2"),
    Opcode(ord("X"), "BINUNICODE", _VALUE, 0, 1, "pushes a string"),
    Opcode(ord("e"), "APPENDS", _NONE, TO_MARK, 0, "appends the group to a list"),
    Opcode(ord("h"), "BINGET", _SLOT, 0, 1, "pushes a value from the memo"),
    Opcode(ord("j"), "LONG_BINGET", _SLOT, 0, 1, "pushes a value from the memo"),
    Opcode(ord("o"), "OBJ", _NONE, TO_MARK, 1, "calls the group's first value with the others"),
    Opcode(ord("q"), "BINPUT", _SLOT, 0, 0, "stores the top value in the memo"),
    Opcode(ord("r"), "LONG_BINPUT", _SLOT, 0, 0, "stores the top value in the memo"),
    Opcode(ord("u"), "SETITEMS", _NONE, TO_MARK, 0, "stores the group, keys and values by turns"),
    Opcode(ord("]"), "EMPTY_LIST", _NONE, 0, 1, "pushes an empty list"),
    Opcode(ord(")"), "EMPTY_TUPLE", _NONE, 0, 1, "pushes an empty tuple"),
    Opcode(ord("}"), "EMPTY_DICT", _NONE, 0, 1, "pushes an empty dict"),
    # Protocol 2
    Opcode(0x80, "PROTO", _NUMBER, 0, 0, "says which protocol the pickle is written in"),
    Opcode(0x81, "NEWOBJ", _NONE, 2, 1, "makes an object of a class by its __new__"),
    Opcode(0x82, "EXT1", _NUMBER, 0, 1, "imports what copyreg has under this number"),
    Opcode(0x83, "EXT2", _NUMBER, 0, 1, "imports what copyreg has under this number"),
    Opcode(0x84, "EXT4", _NUMBER, 0, 1, "imports what copyreg has under this number"),
    Opcode(0x85, "TUPLE1", _NONE, 1, 1, "makes a tuple of one value"),
    Opcode(0x86, "TUPLE2", _NONE, 2, 1, "makes a tuple of two values"),
    Opcode(0x87, "TUPLE3", _NONE, 3, 1, "makes a tuple of three values"),
    Opcode(0x88, "NEWTRUE", _NONE, 0, 1, "pushes True"),
    Opcode(0x89, "NEWFALSE", _NONE, 0, 1, "pushes False"),
    Opcode(0x8A, "LONG1", _VALUE, 0, 1, "pushes an integer"),
    Opcode(0x8B, "LONG4", _VALUE, 0, 1, "pushes an integer"),
    # Protocol 3
    Opcode(ord("B"), "BINBYTES", _VALUE, 0, 1, "pushes bytes"),
    Opcode(ord("C"), "SHORT_BINBYTES", _VALUE, 0, 1, "pushes bytes"),
    # Protocol 4
    Opcode(0x8C, "SHORT_BINUNICODE", _VALUE, 0, 1, "pushes a string"),
    Opcode(0x8D, "BINUNICODE8", _VALUE, 0, 1, "pushes a string"),
    Opcode(0x8E, "BINBYTES8", _VALUE, 0, 1, "pushes bytes"),
    Opcode(0x8F, "EMPTY_SET", _NONE, 0, 1, "pushes an empty set"),
    Opcode(0x90, "ADDITEMS", _NONE, TO_MARK, 0, "adds the group to a set"),
    Opcode(0x91, "FROZENSET", _NONE, TO_MARK, 1, "makes a frozenset of the group"),
    Opcode(0x92, "NEWOBJ_EX", _NONE, 3, 1, "makes an object by __new__, with keywords"),
    Opcode(0x93, "STACK_GLOBAL", _NONE, 2, 1, "imports the module and name that two values give"),
    Opcode(0x94, "MEMOIZE", _SLOT, 0, 0, "stores the top value in the next memo slot"),
    Opcode(0x95, "FRAME", _NUMBER, 0, 0, "announces so many bytes to be read at once"),
    # Protocol 5
    Opcode(0x96, "BYTEARRAY8", _VALUE, 0, 1, "pushes a bytearray"),
    Opcode(0x97, "NEXT_BUFFER", _NONE, 0, 1, "pushes a buffer that the loader brings"),
    Opcode(0x98, "READONLY_BUFFER", _NONE, 1, 1, "makes a buffer read-only"),
)
# By code.
OPCODES = {opcode.code: opcode for opcode in _ALL}
