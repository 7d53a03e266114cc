r"""Pickles, opcode by opcode, and the phrases that torch writes with them.

>>> pickled(call("posix", "system", "true"))
b'\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.'
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Opcodes without an argument.
MARK, STOP, POP, POP_MARK, DUP = b"(", b".", b"0", b"1", b"2"
NONE, NEWTRUE, NEWFALSE = b"N", b"\x88", b"\x89"
EMPTY_LIST, EMPTY_TUPLE, EMPTY_DICT, EMPTY_SET = b"]", b")", b"}", b"\x8f"
LIST, TUPLE, DICT, FROZENSET = b"l", b"t", b"d", b"\x91"
TUPLE1, TUPLE2, TUPLE3 = b"\x85", b"\x86", b"\x87"
APPEND, APPENDS, SETITEM, SETITEMS, ADDITEMS = b"a", b"e", b"s", b"u", b"\x90"
REDUCE, BUILD, OBJ, NEWOBJ, NEWOBJ_EX = b"R", b"b", b"o", b"\x81", b"\x92"
STACK_GLOBAL, BINPERSID, MEMOIZE = b"\x93", b"Q", b"\x94"
NEXT_BUFFER, READONLY_BUFFER = b"\x97", b"\x98"


# Opcodes with an argument


def proto(version: int) -> bytes:
    return b"\x80" + bytes([version])


def frame(length: int) -> bytes:
    return b"\x95" + struct.pack("<Q", length)


def int_line(text: bytes) -> bytes:
    return b"I" + text + b"\n"


def long_line(text: bytes) -> bytes:
    return b"L" + text + b"\n"


def float_line(text: bytes) -> bytes:
    return b"F" + text + b"\n"


def string_line(text: bytes) -> bytes:
    """STRING; *text* brings its quotes."""
    return b"S" + text + b"\n"


def unicode_line(text: bytes) -> bytes:
    return b"V" + text + b"\n"


def binint(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def binint1(value: int) -> bytes:
    return b"K" + struct.pack("<B", value)


def binint2(value: int) -> bytes:
    return b"M" + struct.pack("<H", value)


def long1(value: int) -> bytes:
    return b"\x8a" + _counted("<B", _integer(value))


def long4(data: bytes, length: int | None = None) -> bytes:
    return b"\x8b" + _counted("<I", data, length)


def binfloat(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


def short_binstring(data: bytes) -> bytes:
    return b"U" + _counted("<B", data)


def binstring(data: bytes, length: int | None = None) -> bytes:
    return b"T" + _counted("<I", data, length)


def short_binunicode(text: str) -> bytes:
    return b"\x8c" + _counted("<B", utf8(text))


def binunicode(text: str, length: int | None = None) -> bytes:
    return b"X" + _counted("<I", utf8(text), length)


def binunicode8(text: str, length: int | None = None) -> bytes:
    return b"\x8d" + _counted("<Q", utf8(text), length)


def short_binbytes(data: bytes) -> bytes:
    return b"C" + _counted("<B", data)


def binbytes(data: bytes, length: int | None = None) -> bytes:
    return b"B" + _counted("<I", data, length)


def binbytes8(data: bytes, length: int | None = None) -> bytes:
    return b"\x8e" + _counted("<Q", data, length)


def bytearray8(data: bytes, length: int | None = None) -> bytes:
    return b"\x96" + _counted("<Q", data, length)


def put(index: int) -> bytes:
    return b"p%d\n" % index


def binput(index: int) -> bytes:
    return b"q" + bytes([index])


def long_binput(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"g%d\n" % index


def binget(index: int) -> bytes:
    return b"h" + bytes([index])


def long_binget(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def global_(module: str, name: str) -> bytes:
    return b"c" + utf8(module) + b"\n" + utf8(name) + b"\n"


def inst(module: str, name: str, *args: object) -> bytes:
    """MARK, the arguments, INST."""
    return MARK + values(*args) + b"i" + utf8(module) + b"\n" + utf8(name) + b"\n"


def persid(text: str) -> bytes:
    return b"P" + utf8(text) + b"\n"


def ext1(code: int) -> bytes:
    return b"\x82" + struct.pack("<B", code)


def ext2(code: int) -> bytes:
    return b"\x83" + struct.pack("<H", code)


def ext4(code: int) -> bytes:
    return b"\x84" + struct.pack("<i", code)


def _counted(length_format: str, data: bytes, length: int | None = None) -> bytes:
    return struct.pack(length_format, len(data) if length is None else length) + data


def _integer(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# Values and phrases


@dataclass(frozen=True)
class Raw:
    """Opcodes that push one value, to stand among plain values."""

    opcodes: bytes


def value(plain: object) -> bytes:
    """Opcodes of protocol 2 that push *plain*: plain data, or `Raw` for anything else."""
    match plain:
        case Raw():
            return plain.opcodes
        case tuple() if len(plain) <= 3:
            return values(*plain) + (EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3)[len(plain)]
        case tuple():
            return MARK + values(*plain) + TUPLE
        case list():
            return EMPTY_LIST + MARK + values(*plain) + APPENDS
        case dict():
            flat = [part for pair in plain.items() for part in pair]
            return EMPTY_DICT + MARK + values(*flat) + SETITEMS
        case _:
            return _scalar(plain)


def _scalar(plain: object) -> bytes:
    match plain:
        case None:
            return NONE
        case bool():
            return NEWTRUE if plain else NEWFALSE
        case int():
            if -(1 << 31) <= plain < 1 << 31:
                return binint(plain)
            return long1(plain) if plain.bit_length() < 2000 else long4(_integer(plain))
        case float():
            return binfloat(plain)
        case str():
            return binunicode(plain)
        case bytes():
            return binbytes(plain)
        case _:
            raise TypeError(f"{type(plain).__name__} is not plain data")


def values(*plain: object) -> bytes:
    return b"".join(map(value, plain))


def call(module: str, name: str, *args: object) -> bytes:
    """GLOBAL, the arguments as a tuple, REDUCE."""
    return global_(module, name) + value(args) + REDUCE


def called(function: bytes, *args: object) -> bytes:
    """The opcodes of a function, the arguments as a tuple, REDUCE."""
    return function + value(args) + REDUCE


def stack_global(module: str, name: str) -> bytes:
    """A global as protocol 4 writes it: two strings, STACK_GLOBAL."""
    return short_binunicode(module) + short_binunicode(name) + STACK_GLOBAL


def made(module: str, name: str, state: object = None) -> bytes:
    """GLOBAL, no arguments, NEWOBJ; and BUILD, if there is a state."""
    build = b"" if state is None else value(state) + BUILD
    return global_(module, name) + EMPTY_TUPLE + NEWOBJ + build


def pickled(*parts: bytes, protocol: int = 2) -> bytes:
    return proto(protocol) + b"".join(parts) + STOP


# A call that would do something, if anybody made it.
CALLS_SYSTEM = call("posix", "system", "true")


# What torch writes into a pickle


def storage_id(
    key: object,
    numel: object,
    *,
    storage: str = "FloatStorage",
    module: str = "torch",
    location: object = "cpu",
    view: tuple[object, ...] = (),
) -> bytes:
    """A storage's persistent id; *view* is what a legacy stream puts behind it."""
    parts = ("storage", Raw(global_(module, storage)), key, location, numel, *view)
    return value(parts) + BINPERSID


def tensor(
    pid: bytes,
    shape: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    offset: int = 0,
) -> bytes:
    """A call of ``torch._utils._rebuild_tensor_v2`` on the storage that *pid* pushes."""
    if stride is None:
        steps = [1]
        for size in reversed(shape[1:]):
            steps.insert(0, steps[0] * size)
        stride = tuple(steps[: len(shape)])
    hooks = Raw(call("collections", "OrderedDict"))
    return call("torch._utils", "_rebuild_tensor_v2", Raw(pid), offset, shape, stride, False, hooks)  # noqa: FBT003 - requires_grad


def floats(*numbers: float) -> bytes:
    """The bytes of a float32 storage."""
    return struct.pack(f"<{len(numbers)}f", *numbers)


def state_dict(sizes: Mapping[str, int], *, legacy: bool = False, **others: object) -> bytes:
    """A pickle of one float32 vector per name, on the storages "0", "1" and so on."""
    view = (None,) if legacy else ()
    tensors = {
        name: Raw(tensor(storage_id(str(key), numel, view=view), (numel,)))
        for key, (name, numel) in enumerate(sizes.items())
    }
    return pickled(value({**tensors, **others}))
