"""What each byte of a file is there for, and what becomes of those that are for nothing.

Knows:      that ranges of bytes may lie side by side, overlap, or leave something between.
Is told:    by the framing, which bytes it understood; or that it did not understand some, or
            could not read them.
Never asks: what makes bytes understood.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.containers.container import Gap, Mishap, Record, Region, Role, Use
from ckptaudit.containers.trial import Trial
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Budget, Trace

__all__ = ["Ledger"]

_CHUNK = 1 << 18


class _Leftover(NamedTuple):
    """Bytes ``[start, stop)`` of the file that belong to nothing.

    The code is that of a mishap, or "" if somebody else says why they were not read.
    """

    start: int
    stop: int
    code: str
    message: str
    record: str


class Ledger:
    """The bytes of one file being accounted for.

    Attributes:
        regions: What was understood; in file order once `settle` was called.
        mishaps: What is wrong with the framing.
        gaps: What was not read.
        traces: Pickles found where none should be.
        records: Where each of those lies.
    """

    def __init__(self, source: ByteSource, budget: Budget) -> None:
        self.regions: list[Region] = []
        self.mishaps: list[Mishap] = []
        self.gaps: list[Gap] = []
        self.traces: list[Trace] = []
        self.records: list[Record] = []
        self._source = source
        self._size = source.size
        self._trial = Trial(budget)
        self._leftovers: list[_Leftover] = []

    def claim(self, start: int, stop: int, use: Use) -> None:
        """Say what the bytes in ``[start, stop)`` are there for."""
        if start < stop:
            self.regions.append(Region(start, stop, use))

    def claim_zeros(self, start: int, stop: int) -> None:
        """Claim ``[start, stop)`` as padding, from either end as far as it is zeros."""
        first = self._first_other_than_zero(start, stop)
        if first == stop:
            self.claim(start, stop, Use.PADDING)
            return
        self.claim(start, first, Use.PADDING)
        for at in range(stop, first, -_CHUNK):
            piece = self._source.read_at(max(first, at - _CHUNK), at - max(first, at - _CHUNK))
            rest = piece.rstrip(b"\0")
            if rest:
                self.claim(at - len(piece) + len(rest), stop, Use.PADDING)
                return

    def disown(self, start: int, stop: int, code: str, message: str, record: str = "") -> None:
        """Say that the bytes in ``[start, stop)`` belong to nothing, by a mishap of their own."""
        if start < stop:
            self._leftovers.append(_Leftover(start, stop, code, message, record))

    def leave(self, start: int, stop: int, record: str) -> None:
        """Leave bytes for which an error speaks already, and which may hold pickles."""
        self.disown(start, stop, "", "", record)

    def settle(self, code: str, what: str) -> None:
        """Tell of every byte that nothing was said about by now, and run it as a pickle.

        Args:
            code: The mishap it is.
            what: Where they are; follows "12 bytes".
        """
        self.regions.sort()
        rest = _Leftover(0, self._size, code, "", "")
        for start, stop, leftover in self._left_over(rest):
            code, message, record = leftover[2:]
            # An error speaks for what follows it, and not for what is left behind other regions.
            if leftover is rest or (not code and start > leftover.start):
                code, message = rest.code, f"{counted(stop - start, 'byte')} {what}"
            if code:
                self.mishaps.append(Mishap(code, message, record, start, stop - start))
                self.gaps.append(Gap(message, record, start, length=stop - start))
            self.look_into(self._source, start, stop, record, extra=bool(code))

    def look_into(
        self, source: ByteSource, start: int, stop: int, record: str, *, extra: bool
    ) -> None:
        """Run every pickle in ``[start, stop)`` of *source*.

        Args:
            source: The file, or what a compressed record inflates to.
            start: The first byte.
            stop: The first one behind it.
            record: The record it is in, or "".
            extra: Whether a pickle there is one that should not be there, and not the rest of
                one that could not be read on.
        """
        for at, trace in self._trial.pickles_in(source, start, stop, record):
            offset = at if source is self._source else None
            self.traces.append(trace)
            if offset is not None:
                self.records.append(Record(trace.record, at, trace.end, "stored", Role.PICKLE))
            if extra:
                message = "a pickle among bytes that belong to nothing"
                self.mishaps.append(
                    Mishap("extra-pickle", message, trace.record, offset, trace.end)
                )

    def _left_over(self, rest: _Leftover) -> Iterator[tuple[int, int, _Leftover]]:
        """The ranges that no region covers, cut where what was said about them changes."""
        said = iter([*sorted(self._leftovers), rest])
        current = next(said)
        for start, stop in self._uncovered():
            at = start
            while at < stop:
                while current is not rest and current.stop <= at:
                    current = next(said)
                if current.start > at:
                    end = min(stop, current.start)
                    yield at, end, rest
                else:
                    end = min(stop, current.stop)
                    yield at, end, current
                at = end

    def _uncovered(self) -> Iterator[tuple[int, int]]:
        at = 0
        for start, stop, _ in self.regions:
            if start > at:
                yield at, start
            at = max(at, stop)
        if at < self._size:
            yield at, self._size

    def _first_other_than_zero(self, start: int, stop: int) -> int:
        for at in range(start, stop, _CHUNK):
            piece = self._source.read_at(at, min(_CHUNK, stop - at))
            rest = piece.lstrip(b"\0")
            if rest:
                return at + len(piece) - len(rest)
        return stop
