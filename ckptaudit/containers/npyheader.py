"""The header of a NumPy array: a Python dict as text, read without Python.

NumPy hands the text to ``ast.literal_eval``, which a header that nests deep enough can
crash.  Here it is read by a grammar of its own, as strict as what NumPy writes: strings,
integers, True, False and None in tuples, lists and dicts.

Knows:      numpy/lib/format.py (_write_array_header, descr_to_dtype), and which element
            types are plain bytes.
Is told:    the text of a header.
Never asks: where the elements are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

__all__ = ["ArrayHeader", "NotAHeader", "parse_header"]

_Value: TypeAlias = (
    "str | int | bool | tuple[_Value, ...] | list[_Value] | dict[str, _Value] | None"
)

# A record of records of records is as deep as anybody has seen.
_MOST_DEPTH = 32
_MOST_DIMENSIONS = 64
_MOST_BYTES = 1 << 62
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
        |(?P<number>[0-9]{1,19})L?
        |(?P<word>True|False|None)
        |(?P<mark>[(),:{}\[\]])
    )""",
    re.VERBOSE,
)
# A name that needs one may have escapes in it; nothing that is compared here has any.
_WORDS = {"True": True, "False": False, "None": None}
_PAIRS = {"(": ")", "[": "]", "{": "}"}
# numpy/core/src/multiarray/descriptor.c, arraydescr_protocol_typestr_get: byte order, kind,
# bytes.  Text has four bytes a character; a date says its unit behind its size.
_PLAIN = re.compile(
    r"[<>|=]?(?:(?P<kind>[biufcSaV])(?P<size>[0-9]{1,9})"
    r"|U(?P<characters>[0-9]{1,9})|[mM](?P<date>8)(?:\[[0-9a-zA-Z/]{1,20}\])?)"
)
_SIZES = {
    "b": {1},
    "i": {1, 2, 4, 8},
    "u": {1, 2, 4, 8},
    "f": {2, 4, 8, 12, 16},
    "c": {8, 16, 24, 32},
}


class NotAHeader(Exception):
    """The text is not one that NumPy writes."""


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What an array is.

    Attributes:
        numel: Elements.
        itemsize: Bytes of one element, or None if it may be a Python object.
    """

    numel: int
    itemsize: int | None

    @property
    def nbytes(self) -> int | None:
        """Bytes of all elements, or None if they may be Python objects."""
        return None if self.itemsize is None else self.numel * self.itemsize


def parse_header(text: str) -> ArrayHeader:
    """Read the header *text*.

    Raises:
        NotAHeader: It is not one.

    >>> parse_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }")
    ArrayHeader(numel=6, itemsize=4)
    >>> parse_header("{'descr': [('w', '<f8'), ('x', '|O')], 'fortran_order': False, 'shape': ()}")
    ArrayHeader(numel=1, itemsize=None)
    """
    match _Reader(text).whole():
        case {"descr": kind, "fortran_order": bool(), "shape": tuple(shape), **rest} if not rest:
            pass
        case _:
            raise NotAHeader("is not a dict of type, order and shape")
    sizes = [size for size in shape if type(size) is int]
    if len(sizes) < len(shape) or len(sizes) > _MOST_DIMENSIONS:
        raise NotAHeader("has a shape that is none")
    itemsize = _itemsize(kind)
    numel = _product(sizes)
    if itemsize is not None:
        _product([numel, itemsize])
    return ArrayHeader(numel, itemsize)


def _product(sizes: list[int]) -> int:
    whole = 0 if 0 in sizes else prod(sizes)
    if whole > _MOST_BYTES:
        raise NotAHeader("has a shape larger than any file")
    return whole


def _itemsize(kind: _Value) -> int | None:
    """Bytes of an element of type *kind*, or None if it may be, or hold, a Python object.

    What NumPy would make of any other text, such as ``f4,O``, is not worth knowing.
    """
    match kind:
        case str():
            return _plain_itemsize(kind)
        case list(fields):
            return _record_itemsize(fields)
        case (inner, tuple(shape)):
            # A subarray: so many of one type make an element.
            sizes = [size for size in shape if type(size) is int]
            itemsize = _itemsize(inner)
            if itemsize is None or len(sizes) < len(shape):
                return None
            return _product([itemsize, *sizes])
        case _:
            return None


def _plain_itemsize(kind: str) -> int | None:
    match = _PLAIN.fullmatch(kind)
    if match is None:
        return None
    if match["characters"]:
        return 4 * int(match["characters"])
    if match["date"]:
        return int(match["date"])
    size = int(match["size"])
    return size if size in _SIZES.get(match["kind"], {size}) else None


def _record_itemsize(fields: list[_Value]) -> int | None:
    total = 0
    for field in fields:
        match field:
            # A name, or a title and a name; the type; and how many of it.
            case (str() | (str(), str()), kind):
                itemsize = _itemsize(kind)
            case (str() | (str(), str()), kind, tuple(shape)):
                itemsize = _itemsize((kind, shape))
            case _:
                itemsize = None
        if itemsize is None:
            return None
        total += itemsize
    return total


class _Reader:
    """One header being read from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def whole(self) -> _Value:
        value = self.value(0)
        if self.text[self.at :].strip(" \n"):
            raise NotAHeader("goes on behind its dict")
        return value

    def next(self) -> tuple[str, str]:
        """The kind of the next token, and its text."""
        match = _TOKEN.match(self.text, self.at)
        if match is None or match.lastgroup is None:
            raise NotAHeader("has text that NumPy does not write")
        self.at = match.end()
        return match.lastgroup, match[match.lastgroup]

    def peek(self) -> str:
        at = self.at
        _, token = self.next()
        self.at = at
        return token

    def expect(self, mark: str) -> None:
        if self.next() != ("mark", mark):
            raise NotAHeader(f"has no {mark!r} where there should be one")

    def value(self, depth: int) -> _Value:
        kind, token = self.next()
        match kind:
            case "text":
                return token[1:-1]
            case "number":
                return int(token)
            case "word":
                return _WORDS[token]
        if depth == _MOST_DEPTH:
            raise NotAHeader("nests deeper than any type")
        match token:
            case "(":
                return tuple(self.items(")", depth))
            case "[":
                return self.items("]", depth)
            case "{":
                return self.pairs(depth)
            case _:
                raise NotAHeader(f"has {token!r} where a value should be")

    def items(self, close: str, depth: int) -> list[_Value]:
        found: list[_Value] = []
        while self.peek() != close:
            found.append(self.value(depth + 1))
            if self.peek() != close:
                self.expect(",")
        self.expect(close)
        return found

    def pairs(self, depth: int) -> dict[str, _Value]:
        found: dict[str, _Value] = {}
        while self.peek() != "}":
            key = self.value(depth + 1)
            self.expect(":")
            if not isinstance(key, str) or key in found:
                raise NotAHeader("has a key that is no text, or comes twice")
            found[key] = self.value(depth + 1)
            if self.peek() != "}":
                self.expect(",")
        self.expect("}")
        return found
