"""Bytes that a pickle hands to a call: they may be a file that the call would load.

Knows:      how picklers write bytes, protocol by protocol.
Is told:    a call that is not allowed, and what opens files inside a file.
Never asks: why the call is not allowed, or whether what is in such a file is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ckptaudit.containers import Carried, Gap, Nested
from ckptaudit.source import BufferSource
from ckptaudit.vm import Call, Dict, Global

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.containers import Inside
    from ckptaudit.vm import Node, Trace

__all__ = ["CarriedFiles", "is_constant"]

# One tuple may be given to ten thousand calls: none of them may take long to look at.
_MOST_ARGUMENTS = 16
_LATIN1 = {"latin1", "latin-1"}
_MAKERS = {
    *((module, name) for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray")),
    ("_codecs", "encode"),
}


class CarriedFiles:
    """The files that one pickle hands to calls.

    Args:
        trace: The pickle.
        inside: Opens them; None if none are to be opened.
    """

    def __init__(self, trace: Trace, inside: Inside | None) -> None:
        self._trace = trace
        self._inside = inside
        # By id of the bytes, which may be handed to a million calls.
        self._found: dict[int, Nested | Gap | None] = {}

    def open(self, call: Call) -> list[Nested]:
        """The files that *call* is given; bytes that are none are left out."""
        if self._inside is None:
            return []
        found = []
        for number, data in enumerate(_carried(call)):
            if id(data) not in self._found:
                # A call may be given several.
                name = f"bytes at {call.offset}" + (f", number {number + 1}" if number else "")
                self._found[id(data)] = self._look(data, name, call, self._inside)
            found.append(self._found[id(data)])
        return [file for file in found if isinstance(file, Nested)]

    def _look(
        self, data: bytes | bytearray | str, name: str, call: Call, inside: Inside
    ) -> Nested | Gap | None:
        octets = data.encode("latin-1", "replace") if isinstance(data, str) else bytes(data)
        found = inside.look(BufferSource(octets), 0, len(octets), name, None)
        if isinstance(found, Gap):
            reason = f"hands bytes to a call that are a file: it {found.reason}"
            return replace(found, reason=reason, stream_offset=call.offset)
        return found and replace(found, carried=Carried(self._trace, call))

    @property
    def files(self) -> list[Nested]:
        """Those that were opened so far, each of them once."""
        return [file for file in self._found.values() if isinstance(file, Nested)]

    @property
    def gaps(self) -> list[Gap]:
        """Why others were not."""
        return [gap for gap in self._found.values() if isinstance(gap, Gap)]


def is_constant(node: Node) -> bool:
    """Whether *node* is bytes that nothing can have changed or computed since they were read."""
    match node:
        case bytes():
            return True
        case Call(func=Global(module="_codecs", name="encode"), elements=(), pairs=(), state=None):
            return isinstance(_octets(node), str)
        case _:
            return False


def _carried(call: Call) -> Iterator[bytes | bytearray | str]:
    """Every argument of *call* that is bytes; as text of Latin-1 where it was pickled so.

    Two calls are given the same bytes if these are the same object.
    """
    args = call.args if isinstance(call.args, tuple) else (call.args,)
    kwargs = call.kwargs.pairs if isinstance(call.kwargs, Dict) else []
    for arg in (*args[:_MOST_ARGUMENTS], *(value for _, value in kwargs[:_MOST_ARGUMENTS])):
        data = _octets(arg)
        # What makes an object of bytes may itself be given some.
        if data is None and isinstance(arg, Call) and isinstance(arg.args, tuple) and arg.args:
            data = _octets(arg.args[0]) if _makes_bytes(arg) else None
        if data:
            yield data


def _octets(node: Node) -> bytes | bytearray | str | None:
    match node:
        case bytes() | bytearray():
            return node
        # Protocol 2 has no bytes: Python 3 writes encode(text, "latin1"), or
        # bytearray(text, "latin-1").
        case Call(args=(str(text), str(encoding))) if encoding in _LATIN1 and _makes_bytes(node):
            return text
        case _:
            return None


def _makes_bytes(call: Call) -> bool:
    func = call.func
    return isinstance(func, Global) and (func.module, func.name) in _MAKERS
