"""Literals written as text mean to us what they mean to CPython's C unpickler.

The C unpickler is the oracle.  It is run on one-literal pickles of numbers and strings
that are made here, and on nothing else.
"""

from __future__ import annotations

import _pickle
import io
import warnings
from pickle import _Unpickler
from typing import TYPE_CHECKING

import pytest
from forge import STOP, float_line, int_line, long_line, string_line, unicode_line
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckptaudit.source import BufferSource
from ckptaudit.vm import Oddity, trace_pickle

if TYPE_CHECKING:
    from collections.abc import Callable

REFUSED = "refused"
LAX = "literal-lax"

numbers = st.text("0179afxXobL+-_. \t\v\f\r\0eEinN\x1c\xa0", max_size=8).map(
    lambda text: text.encode("latin-1")
)
quoted = st.tuples(st.sampled_from("'\""), st.text("'\"\\xu41n0\0a\xe9", max_size=8)).map(
    lambda parts: (parts[0] + parts[1] + parts[0]).encode("utf-8")
)
strings = quoted | st.binary(max_size=6).map(lambda line: line.replace(b"\n", b""))
escaped = st.text("\\uU00dDfa1\xe9'", max_size=12).map(lambda text: text.encode("latin-1"))


def read_by_cpython(pickle: bytes) -> str:
    # One opcode whose argument is a line of text, and STOP: there is no room for a name or a call.
    assert pickle[:1] in {b"I", b"L", b"F", b"S", b"V"}
    assert pickle.index(b"\n") == len(pickle) - 2
    assert pickle[-1:] == STOP
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # torch.load asks for utf-8, so that strings of Python 2 are text; whoever has others
            # asks for bytes.
            try:
                value = _pickle.loads(pickle, encoding="utf-8")
            except UnicodeDecodeError:
                value = _pickle.loads(pickle, encoding="bytes")
        except (ValueError, OverflowError, _pickle.UnpicklingError):
            return REFUSED
    return f"{type(value).__name__} {value!r}"


def read_by_us(pickle: bytes) -> str:
    trace = trace_pickle(BufferSource(pickle), 0, len(pickle), record="p")
    # What other unpicklers read is read, and said to be odd.
    is_lax = any(isinstance(event, Oddity) and event.code == LAX for event in trace.events)
    return REFUSED if trace.error or is_lax else f"{type(trace.root).__name__} {trace.root!r}"


@settings(max_examples=1500)
@given(numbers)
@example(b"01")
@example(b"+1")
@example(b" 0")
@example(b"\0x")
@example(b"010")
@example(b"0x10")
@example(b"0x")
@example(b"08")
@example(b"7\0junk")
@example(b"9223372036854775808")
@example(b"-9223372036854775808")
@example(b"0777777777777777777777777")
@example(b"0" * 5000 + b"7")
@example(b"5 ")
@example(b"1_0")
@example(b"0b11")
@example(b"\x1c5")
@example(b"")
def test_int_lines_mean_what_they_mean_to_cpython(line: bytes) -> None:
    pickle = int_line(line) + STOP

    assert read_by_us(pickle) == read_by_cpython(pickle)


@settings(max_examples=1000)
@given(numbers)
@example(b"5L")
@example(b"L")
@example(b"5\0L")
@example(b"0x10L")
@example(b"9" * 4300)
@example(b"9" * 4301)
def test_long_lines_mean_what_they_mean_to_cpython(line: bytes) -> None:
    pickle = long_line(line) + STOP

    assert read_by_us(pickle) == read_by_cpython(pickle)


@settings(max_examples=1000)
@given(numbers | st.floats().map(lambda number: repr(number).encode()))
@example(b"1.5\0x")
@example(b"1e400")
@example(b"-1e999")
@example(b"1e-400")
@example(b"infinity")
@example(b"infin")
@example(b"nan")
@example(b"1.")
@example(b".5")
@example(b".")
@example(b"1e")
@example(b"1_0.5")
@example(b" 1.5")
@example(b"0e99999999999999999999")
def test_float_lines_mean_what_they_mean_to_cpython(line: bytes) -> None:
    pickle = float_line(line) + STOP

    assert read_by_us(pickle) == read_by_cpython(pickle)


@settings(max_examples=1000)
@given(strings)
@example(rb"'\x73ys'")
@example(rb"'\x7'")
@example(rb"'\7'")
@example(rb"'\q'")
@example(b"'")
@example(b"'a\"")
@example(b"'a' ")
@example(b"'\xff'")
def test_string_lines_mean_what_they_mean_to_cpython(line: bytes) -> None:
    pickle = string_line(line) + STOP

    assert read_by_us(pickle) == read_by_cpython(pickle)


@settings(max_examples=500)
@given(escaped)
@example(rb"\u0073ys")
@example(rb"\ud800")
@example(rb"\U00110000")
@example(rb"\u12")
def test_unicode_lines_mean_what_they_mean_to_cpython(line: bytes) -> None:
    pickle = unicode_line(line) + STOP

    assert read_by_us(pickle) == read_by_cpython(pickle)


@pytest.mark.parametrize(
    "line",
    [b"0x" + b"0" * 200_000 + b"g", b"0" * 200_000 + b"9", b"1" * 200_000, b" " * 200_000 + b"x"],
    ids=["hexadecimal", "octal", "decimal", "spaces"],
)
def test_a_long_line_is_refused_without_backtracking(line: bytes) -> None:
    """Anything quadratic would take minutes here."""
    for opcode in (int_line, long_line):
        assert read_by_us(opcode(line) + STOP) == REFUSED


@settings(max_examples=1000)
@given(numbers | st.floats().map(lambda number: repr(number).encode()))
@example(b"1_0.5")
@example(b" 1.5")
@example(b"1e400")
@example(b"1.5\0x")
def test_whatever_either_unpickler_reads_as_a_float_is_read(line: bytes) -> None:
    """Joblib runs Lib/pickle.py, whose float() takes what the C code does not."""
    pickle = float_line(line) + STOP
    try:
        read = f"float {pickle_in_python(pickle)!r}"
    except ValueError:
        read = read_by_cpython(pickle)

    trace = trace_pickle(BufferSource(pickle), 0, len(pickle), record="p")

    assert (REFUSED if trace.error else f"float {trace.root!r}") == read


def pickle_in_python(pickle: bytes) -> float:
    assert pickle[:1] == b"F"
    value = _Unpickler(io.BytesIO(pickle)).load()
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize("opcode", [int_line, long_line])
@pytest.mark.parametrize("sign", [b"", b"-"])
def test_an_integer_too_long_for_this_python_does_not_end_the_reading(
    opcode: Callable[[bytes], bytes], sign: bytes
) -> None:
    pickle = opcode(sign + b"9" * 5000) + STOP

    trace = trace_pickle(BufferSource(pickle), 0, len(pickle), record="p")

    assert trace.error is None
    assert {event.code for event in trace.events if isinstance(event, Oddity)} == {
        LAX,
        "integer-large",
    }
