"""The bytes of a pickle: one opcode after the other, its arguments, and the frames around them.

Knows:      how long arguments say they are, and what a frame is.
Is told:    where the pickle lies, and how much reading it may cost.
Never asks: what an opcode does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptaudit.errors import LimitExceeded, MalformedInput
from ckptaudit.source import ByteSource, Cursor
from ckptaudit.vm.nodes import Event, Node, Oddity
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptaudit.vm.limits import Budget

__all__ = ["Reader"]


class Reader(Cursor):
    """A cursor that knows which opcode it is in, and pays for what it reads.

    Attributes:
        budget: Pays for it, once it is done.
        limits: The limits of that budget.
        events: What happened so far; here, what is odd about the bytes.
        began: Where in the window the opcode being executed begins.
        literals: Bytes of literals read so far.
        horizon: Up to here, in the window, opcodes may be taken without a second thought.
    """

    __slots__ = (
        "began",
        "budget",
        "events",
        "frame_end",
        "framed",
        "horizon",
        "limits",
        "literals",
    )

    def __init__(
        self, source: ByteSource, start: int, stop: int, record: str, budget: Budget
    ) -> None:
        super().__init__(source, start, stop, record)
        self.budget = budget
        self.limits = budget.limits
        self.events: list[Event] = []
        self.began = 0
        self.literals = 0
        self.horizon = 0
        # Where the last frame ends, in the pickle, and whether that still lies ahead.
        self.frame_end = 0
        self.framed = False

    @property
    def offset(self) -> int:
        """Bytes from the start of the pickle to the opcode being executed."""
        return self._base - self._start + self.began

    def malformed(self, message: str) -> MalformedInput:
        """An error that says *message*, and where."""
        return MalformedInput(message, where=self.where, offset=self.offset)

    def too_much(self, what: str) -> LimitExceeded:
        """The error of having met more of *what* than the limits allow."""
        return LimitExceeded(
            f"more {what} than the limit allows", where=self.where, offset=self.offset
        )

    def odd(self, code: str, message: str, value: Node = None) -> None:
        """Write down an `Oddity` of the instruction, as far as that has been read."""
        length = max(self.at - self.began, 1)
        self.events.append(Oddity(code, message, self.offset, value, length))

    # Windows and frames

    def _slide(self, length: int) -> None:
        # The opcode being executed stays where it is in the pickle while the window moves on.
        self.began -= self.at
        super()._slide(length)
        self.look_ahead()

    def look_ahead(self) -> None:
        """See how far opcodes may be taken: to the end of the window or, before it, of a frame."""
        self.horizon = len(self.window)
        if self.framed:
            self.horizon = min(self.horizon, self.frame_end + self._start - self._base)

    def code_beyond(self) -> int:
        """The next opcode, where the window or a frame has ended."""
        if self.framed and self.position >= self.frame_end:
            if self.position > self.frame_end:
                self.odd("frame-mismatch", "a frame ended inside the opcode before")
            self.framed = False
            self.look_ahead()
        return self.take(1)[0]

    def begin_frame(self, length: int) -> None:
        """Enter a frame of *length* bytes.

        It is a hint for buffering.  It bounds nothing here, but a wrong one is a sign.
        """
        self.framed = length <= self.remaining
        if not self.framed:
            self.odd("frame-mismatch", f"a frame of {counted(length, 'byte')} reaches past the end")
        if self.offset < self.frame_end:
            self.odd("frame-mismatch", "a frame begins inside another")
        self.frame_end = self.position + length
        self.look_ahead()

    def end_frame(self) -> None:
        """See that the pickle ends where its last frame does."""
        if self.framed and self.position < self.frame_end:
            self.odd("frame-mismatch", "a frame reaches past STOP")

    # Arguments

    def unsigned(self, width: int) -> int:
        """An integer of *width* bytes."""
        at = self.at
        end = at + width
        if end <= len(self.window):
            self.at = end
            return int.from_bytes(self.window[at:end], "little")
        return int.from_bytes(self.take(width), "little")

    def byte(self) -> int:
        """An integer of one byte."""
        at = self.at
        if at < len(self.window):
            self.at = at + 1
            return self.window[at]
        return self.take(1)[0]

    def literal(self, length: int) -> bytes:
        """The bytes of a literal that says it has *length*."""
        # A length that lies costs nothing: `take` refuses what is not there.
        if length <= self.remaining:
            if length > self.limits.literal:
                raise self.too_much("bytes in one literal")
            if self.budget.literals + self.literals + length > self.limits.literals:
                raise self.too_much("bytes in all literals")
        data = self.take(length)
        self.literals += length
        return data

    def line(self) -> bytes:
        """The bytes up to the end of the line, which is left out."""
        at = self.at
        end = self.window.find(b"\n", at)
        length = end - at
        one = self.limits.literal
        all_left = self.limits.literals - self.budget.literals - self.literals
        if end < 0 or length > one or length > all_left:
            return self.far_line(one, all_left)
        self.at = end + 1
        self.literals += length
        return self.window[at:end]

    def far_line(self, one: int, all_left: int) -> bytes:
        """The same, where the line's end is not at hand or it is longer than the limits allow."""
        most = min(one, all_left)
        try:
            line = self.take_line(most)
            length = len(line)
        except MalformedInput:
            # Whoever looks for an end where there is none pays for all that was looked at.
            length = min(most + 1, self.remaining)
            if length <= most:
                self.literals += length
                raise
        if length > most:
            raise self.too_much("bytes in one literal" if most == one else "bytes in all literals")
        self.literals += length
        return line

    def text_line(self, encoding: str) -> str:
        """A line of text."""
        return self.decoded(self.line(), encoding, "strict")

    def decoded(self, data: bytes, encoding: str, errors: str) -> str:
        """Bytes as text; what is none is an error."""
        try:
            return data.decode(encoding, errors)
        except UnicodeDecodeError as err:
            raise self.malformed(f"text is not {encoding}") from err

    def parsed(
        self, parse: Callable[[bytes], Node], laxly: Callable[[bytes], Node] | None = None
    ) -> Node:
        """What *parse* makes of a line; a ``ValueError`` of it becomes one of ours.

        If there are unpicklers that would go on, as *laxly* says, so do we.
        """
        line = self.line()
        try:
            return parse(line)
        except ValueError as err:
            try:
                value = None if laxly is None else laxly(line)
            except ValueError:
                value = None
            if value is None:
                raise self.malformed("the text of a literal is not one") from err
            self.odd("literal-lax", "a number that not every unpickler reads")
            return value
