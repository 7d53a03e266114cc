"""Pickles that cost their reader much, each up to a limit: none does anything, none is loaded.

Knows:      which opcodes a pickler writes for plain data, and which cost most to read.
Is told:    how many opcodes, or how deep.
Never asks: who reads it.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["HEAVY"]

PROTO_2, STOP = b"\x80\x02", b"."
MARK, POP, POP_MARK = b"(", b"0", b"1"
NONE, REDUCE = b"N", b"R"
EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE = b"}", b"]", b")"
SETITEMS, APPENDS = b"u", b"e"
TUPLE1, TUPLE2 = b"\x85", b"\x86"

# Picklers write a dict or a list in batches (Lib/pickle.py, _BATCHSIZE).
BATCH = 1000
OPCODES = 8_000_000


def binint(number: int) -> bytes:
    """Push an integer, in as many bytes as a pickler takes."""
    if number < 1 << 8:
        return b"K" + struct.pack("<B", number)
    return (
        b"M" + struct.pack("<H", number) if number < 1 << 16 else b"J" + struct.pack("<i", number)
    )


def binfloat(number: float) -> bytes:
    """Push a float."""
    return b"G" + struct.pack(">d", number)


def binunicode(text: str) -> bytes:
    """Push a string."""
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def put(slot: int) -> bytes:
    """Remember the top value."""
    return b"q" + struct.pack("<B", slot) if slot < 1 << 8 else b"r" + struct.pack("<I", slot)


def get(slot: int) -> bytes:
    """Push a value that was remembered."""
    return b"h" + struct.pack("<B", slot) if slot < 1 << 8 else b"j" + struct.pack("<I", slot)


def vocabulary_and_history() -> bytes:
    """8 million opcodes of what grows large beside weights, as a pickler writes it.

    A tokenizer's vocabulary, ``{"token 0": 0, ...}``, its merges, pairs of tokens that stand
    in the memo, and a log of losses, ``[(step, loss), ...]``: with what surrounds them in
    proportions of 3 : 3 : 2.
    """
    slots = iter(range(OPCODES))
    tokens = range(1_000_000)
    first = next(slots)
    vocabulary = (
        binunicode(f"token {token}") + put(next(slots)) + binint(token) for token in tokens
    )
    merges = (
        get(first + 1 + token) + get(first + 2 + token // 2) + TUPLE2 + put(next(slots))
        for token in range(740_000)
    )
    log = (
        binint(step) + binfloat(1 / (step + 1)) + TUPLE2 + put(next(slots))
        for step in range(508_000)
    )
    return b"".join(
        [
            PROTO_2 + EMPTY_LIST + put(first) + MARK,
            EMPTY_DICT + batched(vocabulary, SETITEMS),
            EMPTY_LIST + batched(merges, APPENDS),
            EMPTY_LIST + batched(log, APPENDS),
            APPENDS + STOP,
        ]
    )


def batched(items: Iterator[bytes], store: bytes) -> bytes:
    """Items between MARK and *store*, so many at a time."""
    groups = []
    while group := b"".join(islice(items, BATCH)):
        groups += [MARK, group, store]
    return b"".join(groups)


def doubtful_strings() -> bytes:
    """8 million opcodes, nearly all of them the one that takes us longest.

    It is a short string as text, with an escape that Python would warn of; they are thrown
    away by the thousand.
    """
    group = MARK + b"S'\\q'\n" * (BATCH - 2) + POP_MARK
    return PROTO_2 + group * (OPCODES // BATCH) + EMPTY_TUPLE + STOP


def cheap_opcodes() -> bytes:
    """Nearly as many opcodes as a file may have, of the kind that leaves nothing behind."""
    group = MARK + NONE * (BATCH - 2) + POP_MARK
    return PROTO_2 + group * (10_000_000 // BATCH - 1) + EMPTY_TUPLE + STOP


def calls() -> bytes:
    """Nearly as many calls as a file may have, of a name that is allowed."""
    call = get(0) + EMPTY_TUPLE + REDUCE + POP
    return PROTO_2 + b"ccollections\nOrderedDict\n" + put(0) + call * 999_990 + STOP


def lists() -> bytes:
    """Nearly as many lists as a file may have, all of them kept."""
    many = batched((EMPTY_LIST for _ in range(1_999_990)), APPENDS)
    return PROTO_2 + EMPTY_LIST + many + STOP


def wide_text() -> bytes:
    """500 MB of text in two strings, each of which one letter makes four times as large."""
    letters = b"a" * 250_000_000 + "\N{GRINNING FACE}".encode()
    text = b"X" + struct.pack("<I", len(letters)) + letters
    return PROTO_2 + text + text + TUPLE2 + STOP


def memo_bomb() -> bytes:
    """Tuples of twice the one before, sixty times over: 2^60 leaves when it is walked."""
    doubled = get(0) + get(0) + TUPLE2 + put(0) + POP
    return PROTO_2 + EMPTY_TUPLE + put(0) + POP + doubled * 60 + get(0) + STOP


def nested_tuples() -> bytes:
    """A tuple in a tuple, 200,000 deep."""
    return PROTO_2 + EMPTY_TUPLE + TUPLE1 * 200_000 + STOP


# What each is called, and what makes it.
HEAVY: dict[str, Callable[[], bytes]] = {
    "8 million opcodes, vocabulary, merges and log": vocabulary_and_history,
    "8 million opcodes, strings with doubtful escapes": doubtful_strings,
    "memo bomb, 2^60 nodes": memo_bomb,
    "200,000 nested tuples": nested_tuples,
    "10 million opcodes, the cheapest": cheap_opcodes,
    "a million calls": calls,
    "two million lists": lists,
    "500 MB of text": wide_text,
}
