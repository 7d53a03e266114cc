"""Bytes that nobody says are a pickle, run as one.

An unpickler can be pointed at any byte of a file: by another reader of the same framing,
by a loop that goes on after the first pickle, by a loader of another format.  So what is
left over is not only counted but run, on the same purse as everything else.

Knows:      what makes bytes a pickle, whatever they are called.
Is told:    where bytes lie that nothing refers to.
Never asks: why they are left over, or whether what they ask for is dangerous.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ckptaudit.errors import LimitExceeded
from ckptaudit.vm import Build, Call, Global, Opaque, Trace, trace_pickle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Budget

__all__ = ["Trial", "begins_like_a_pickle", "may_act"]

# Where a pickle may begin among other bytes: PROTO 0 to 5, or GLOBAL and two lines of names.
_BEGINNING = re.compile(
    rb"\x80[\x00-\x05]|c[A-Za-z_][A-Za-z0-9_.]{0,63}\n[A-Za-z_][A-Za-z0-9_.]{0,63}\n"
)
_LONGEST_BEGINNING = 256
_CHUNK = 1 << 20
# Each costs a window of reading, and the opcodes that it runs.  What they leave untried is
# not passed over: it stays a gap.  These are for one of the files inside a file; what they
# share, the budget pays for.
_MOST_TRIES = 1000
_MOST_BYTES = 16 << 20


class Trial:
    """Looks for pickles in what is left over of one file.

    Args:
        budget: Pays for every pickle that is run.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._tries = _MOST_TRIES
        self._bytes = _MOST_BYTES

    def pickles_in(
        self, source: ByteSource, start: int, stop: int, record: str
    ) -> Iterator[tuple[int, Trace]]:
        """Every pickle in ``[start, stop)`` of *source* that ends or does something.

        Args:
            source: The bytes.
            start: The first one left over.
            stop: The first one that is not.
            record: The record they are in, or "".

        Yields:
            Where the pickle begins, and its trace.
        """
        free = start
        for at in self._beginnings(source, start, stop):
            if at < free:
                continue
            if not self._tries or not self._budget.may_try():
                return
            self._tries -= 1
            name = f"{record} @ {at}" if record else f"byte {at}"
            trace = trace_pickle(source, at, stop, record=name, budget=self._budget)
            if may_act(trace) or (
                trace.error is None and begins_like_a_pickle(source.read_at(at, 2))
            ):
                free = at + max(trace.end, 1)
                yield at, trace
            if isinstance(trace.error, LimitExceeded):
                # The purse is empty for whatever comes after as well.
                self._tries = 0

    def _beginnings(self, source: ByteSource, start: int, stop: int) -> Iterator[int]:
        """The first byte, the first one that is not zero, and what looks like a beginning."""
        stop = start + self._budget.take_loose(min(stop - start, self._bytes))
        self._bytes -= stop - start
        yield start
        zeros = True
        for at in range(start, stop, _CHUNK):
            piece = source.read_at(at, min(_CHUNK + _LONGEST_BEGINNING, stop - at))
            rest = piece.lstrip(b"\0") if zeros else b""
            if rest:
                zeros = False
                yield at + len(piece) - len(rest)
            for match in _BEGINNING.finditer(piece):
                yield at + match.start()


def begins_like_a_pickle(head: bytes) -> bool:
    """Whether *head* begins with PROTO 0 to 5."""
    return len(head) > 1 and head[0] == 0x80 and head[1] <= 5  # noqa: PLR2004 - as the text above has them


def may_act(trace: Trace) -> bool:
    """Whether what was run as a pickle would do something before it ends or breaks.

    Any text that begins with ``c`` and has two lines names something.  That counts only if
    a whole pickle does it, or if something is done with the name; and only if the name could
    be a module's, since an unpickler stops where it cannot import.
    """
    asked = next((event for event in trace.events if isinstance(event, (Global, Opaque))), None)
    if asked is None or (isinstance(asked, Global) and not _may_be_a_module(asked.module)):
        return False
    return trace.error is None or any(isinstance(event, (Call, Build)) for event in trace.events)


def _may_be_a_module(name: str) -> bool:
    return name != "" and not any(map(str.isspace, name))
