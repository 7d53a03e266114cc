"""Numbers and strings written as text, read the way CPython's C unpickler reads them.

The C unpickler is laxer than `pickletools` and differs from `pickle.py`: a
scanner that is stricter than the loader stops reading before the payload.

Knows:      Modules/_pickle.c (load_int, load_long, load_float, load_string), strtol(3).
Is told:    the bytes of one line, without its newline.
Never asks: which opcode they belong to, or what the value is for.
"""

from __future__ import annotations

import codecs
import re
import warnings
from contextlib import contextmanager
from math import isinf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "parse_float",
    "parse_float_laxly",
    "parse_int",
    "parse_integer_laxly",
    "parse_long",
    "parse_string",
    "unwarned",
]

# strtol(3) with base 0: white space, a sign, then 0x…, 0… (octal) or decimal digits.
_STRTOL = re.compile(
    rb"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))(?:\0|\Z)"
)
# Of the digits in each group; the first is the sign.
_BASES = {2: 16, 3: 8, 4: 10}
# No number of more digits fits a C long, whatever its base.
_MOST_LONG_DIGITS = 22
_LONG_RANGE = range(-(1 << 63), 1 << 63)
# More digits than Python of today makes a number of, sys.set_int_max_str_digits().
_LONG_DECIMAL = re.compile(rb"[ \t\n\v\f\r]*([+-]?)([0-9][0-9_]{4300,})L?(?:\0|\Z)")
_LEAST_BITS_OF_DIGIT = 3
# PyOS_string_to_double: no white space, no underscores, unlike float().
_DOUBLE = re.compile(
    rb"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf(?:inity)?|nan)", re.IGNORECASE
)


def parse_int(line: bytes) -> int:
    r"""The value of an INT line; ``00`` and ``01`` are the booleans of protocol 0.

    Raises:
        ValueError: The C unpickler would not read it either.

    >>> parse_int(b"0x10"), parse_int(b"010"), parse_int(b"01"), parse_int(b"7\0junk")
    (16, 8, True, 7)
    """
    if not line:
        raise ValueError("an empty line")
    value = _strtol(line)
    if value is None:
        return _python_int(line)
    # load_int: whatever strtol reads as 0 or 1 from two characters is a boolean.
    return value == 1 if len(line) == len("00") and value in (0, 1) else value


def parse_long(line: bytes) -> int:
    r"""The value of a LONG line, with or without its trailing ``L``.

    Raises:
        ValueError: The C unpickler would not read it either.

    >>> parse_long(b"123L"), parse_long(b"0x10"), parse_long(b"5\0x")
    (123, 16, 5)
    """
    return _python_int(line[:-1] if line.endswith(b"L") else line)


def parse_float(line: bytes) -> float:
    r"""The value of a FLOAT line.

    Raises:
        ValueError: The C unpickler would not read it either.

    >>> parse_float(b"1.5\0x"), parse_float(b"-inf")
    (1.5, -inf)
    """
    match = _DOUBLE.match(line)
    if not match or (match.end() != len(line) and line[match.end()] != 0):
        raise ValueError("not a float")
    value = float(match.group())
    if isinf(value) and b"n" not in match.group().lower():
        raise ValueError("too large for a float")
    return value


def parse_float_laxly(line: bytes) -> float:
    """The value of a FLOAT line that the C unpickler refuses, and ``pickle.py`` reads.

    Raises:
        ValueError: Neither does.

    >>> parse_float_laxly(b" 1_0.5"), parse_float_laxly(b"1e400")
    (10.5, inf)
    """
    return float(line)


def parse_integer_laxly(line: bytes) -> int:
    """An integer too long for Python of today, and about as large as what an older one reads.

    Raises:
        ValueError: It is none.
    """
    match = _LONG_DECIMAL.match(line)
    if not match:
        raise ValueError("not an integer")
    sign, digits = match.groups()
    about = 1 << (_LEAST_BITS_OF_DIGIT * len(digits))
    return -about if sign == b"-" else about


def parse_string(line: bytes) -> bytes:
    r"""The bytes of a STRING line: quoted, with Python 2 escapes; see `unwarned`.

    Raises:
        ValueError: The quotes or an escape are wrong; the C unpickler refuses it too.

    >>> parse_string(rb"'s\x79s'")
    b'sys'
    """
    inner = line[1:-1]
    if line[:1] not in (b"'", b'"') or line != line[:1] + inner + line[:1]:
        raise ValueError("not quoted")
    return codecs.escape_decode(inner)[0] if b"\\" in inner else inner


@contextmanager
def unwarned() -> Iterator[None]:
    """Let `parse_string` read unknown escapes without Python's warning of them.

    They stay as they are; the unpickler warns and goes on.  To be put around many strings, for
    it takes longer than a string does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _strtol(line: bytes) -> int | None:
    """What strtol gives if it reads *line* up to its end or a NUL; None if it does not."""
    if line.startswith(b"\0"):
        return 0
    match = _STRTOL.match(line)
    if not match:
        return None
    group = match.lastindex or 0
    significant = match[group].lstrip(b"0")
    if len(significant) > _MOST_LONG_DIGITS:
        return None
    value = int(significant or b"0", _BASES[group]) * (-1 if match[1] == b"-" else 1)
    return value if value in _LONG_RANGE else None


def _python_int(line: bytes) -> int:
    """What ``PyLong_FromString(line, NULL, 0)`` gives: a C string, so a NUL ends it."""
    return int(line.split(b"\0", 1)[0], 0)
