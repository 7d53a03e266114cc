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

__all__ = ["parse_float", "parse_int", "parse_long", "parse_string"]

# strtol(3) with base 0: white space, a sign, then 0x…, 0… (octal) or decimal digits.
_STRTOL = re.compile(rb"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")
_LONG_RANGE = range(-(1 << 63), 1 << 63)
# PyOS_string_to_double: no white space, no underscores, unlike float().
_DOUBLE = re.compile(
    rb"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf(?:inity)?|nan)", re.IGNORECASE
)
# Above this many digits CPython refuses to convert text to an integer (sys.int_info).
_MAX_DIGITS = 4300


def parse_int(line: bytes) -> int:
    r"""The value of an INT line; ``00`` and ``01`` are the booleans of protocol 0.

    Raises:
        ValueError: The C unpickler would not read it either.

    >>> parse_int(b"0x10"), parse_int(b"010"), parse_int(b"01"), parse_int(b"7\0junk")
    (16, 8, True, 7)
    """
    if line in (b"00", b"01"):
        return line == b"01"
    match = _STRTOL.match(line)
    if match and (match.end() == len(line) or line[match.end()] == 0):
        sign, hexadecimal, octal, decimal = match.groups()
        digits, base = next(
            (text, base)
            for text, base in ((hexadecimal, 16), (octal, 8), (decimal, 10))
            if text is not None
        )
        if len(digits) <= _MAX_DIGITS:
            value = int(digits, base) * (-1 if sign == b"-" else 1)
            if value in _LONG_RANGE:
                return value
    return _python_int(line)


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
    return float(match.group())


def parse_string(line: bytes) -> bytes:
    r"""The bytes of a STRING line: quoted, with Python 2 escapes.

    Raises:
        ValueError: The quotes or an escape are wrong; the C unpickler refuses it too.

    >>> parse_string(rb"'s\x79s'")
    b'sys'
    """
    inner = line[1:-1]
    if line[:1] not in (b"'", b'"') or line != line[:1] + inner + line[:1]:
        raise ValueError("not quoted")
    if b"\\" not in inner:
        return inner
    with warnings.catch_warnings():
        # An unknown escape stays as it is; the unpickler warns about it and goes on.
        warnings.simplefilter("ignore", DeprecationWarning)
        return codecs.escape_decode(inner)[0]


def _python_int(line: bytes) -> int:
    """What ``PyLong_FromString(line, NULL, 0)`` gives: a C string, so a NUL ends it."""
    text = line.split(b"\0", 1)[0]
    return int(text.decode("ascii", "strict"), 0)
