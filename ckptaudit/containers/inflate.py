"""Compressed records, read in order without holding them in memory.

Knows:      raw deflate, and how much of it is too much.
Is told:    where a compressed record lies, how long it should be, and who pays for it.
Never asks: what is in it.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

from ckptaudit.errors import LimitExceeded, MalformedInput
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Budget

__all__ = ["METHODS", "InflatedSource"]

# APPNOTE.TXT 4.4.5; torch's miniz reads these two and no others.
METHODS = {0: "stored", 8: "deflate"}

_CHUNK = 1 << 18
# Of a record that is only looked into, little is read: a directory may name a million.
_FIRST_CHUNK = 1 << 12
# A pickle's reader goes back by what is left of its window, and no window that is left in
# part is larger than the longest line, a megabyte.
_RECENT = (1 << 20) + _CHUNK
# Deflate cannot do better than 1032 to 1; weights never come near it.
_MOST_RATIO = 1100
# To get at what zlib keeps back: in steps of so many bytes, and then of so many.
_SALVAGE = (512, 1)
# Reading backwards starts again from the beginning; so much work and no more.
_MOST_PASSES = 64


class InflatedSource:
    """The uncompressed bytes of one deflated record, as a `ByteSource`.

    Reading forward costs one pass; reading backward further than the bytes still at hand
    starts again.

    Args:
        source: The file.
        offset: First compressed byte.
        packed: Compressed bytes.
        size: Bytes that they should inflate to.
        name: The record, for errors.
        budget: Pays for every byte, and has the last ones kept at hand, as a pickle's reader
            needs them; None for a storage, whose reader goes forward and pays with its time.
    """

    def __init__(
        self,
        source: ByteSource,
        offset: int,
        packed: int,
        size: int,
        name: str,
        budget: Budget | None = None,
    ) -> None:
        if size > packed * _MOST_RATIO + _CHUNK:
            raise LimitExceeded(
                f"claims to inflate from {packed} to {counted(size, 'byte')}, "
                "more than deflate can",
                where=name,
            )
        self.name = name
        self.size = size
        self._source = source
        self._offset = offset
        self._packed = packed
        self._budget = budget
        self._allowance = _MOST_PASSES * size + _CHUNK
        # Bytes that come out before it turns out to be broken; None as long as it does not.
        self.broken_at: int | None = None
        # How far the checksum goes.  It grows with the first pass, whoever makes it.
        self._summed = 0
        self._sum = 0
        self.rewind()

    def rewind(self) -> None:
        """Start again from the beginning when next read, and hold no memory until then."""
        # Of 300,000 sources each decompressor would take 40 kB.
        self._decompressor: zlib._Decompress | None = None
        self._read = 0
        self._position = 0
        self._error: MalformedInput | None = None
        # The bytes just before the position, if they may be wanted again.
        self._recent = bytearray()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `ByteSource.read_into`."""
        self._check_range(offset, len(buffer))
        if offset < self._position - len(self._recent):
            self.rewind()
        while self._position < offset:
            self._inflate(min(_CHUNK, offset - self._position))
        again = offset - self._position + len(self._recent)
        known = self._recent[again : again + len(buffer)]
        buffer[: len(known)] = known
        done = len(known)
        while done < len(buffer):
            piece = self._inflate(min(_CHUNK, len(buffer) - done))
            buffer[done : done + len(piece)] = piece
            done += len(piece)

    def read_at(self, offset: int, length: int) -> bytes:
        """See `ByteSource.read_at`."""
        self._check_range(offset, length)
        if self._budget is not None and length > _CHUNK:
            # Before there is room for them.
            self._budget.check_inflated(self._packed, length, self.name)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def will_need(self, offset: int, length: int) -> None:
        """Do nothing: only its own reader knows which packed bytes these are."""

    def check_unchanged(self) -> None:
        """See `ByteSource.check_unchanged`."""
        self._source.check_unchanged()

    def close(self) -> None:
        """Do nothing: the file belongs to the container."""

    def finish(self) -> tuple[int, int]:
        """Inflate what nobody has read yet, once, and keep none of it.

        Returns:
            The CRC-32 of all of it, and how many bytes of the record lie behind the end of
            its compressed data.

        Raises:
            MalformedInput: It cannot be inflated to what it should.
        """
        while self._position < self.size:
            self._inflate(min(_CHUNK, self.size - self._position))
        if self._next(1) or not self._stream.eof:
            raise self._not_as_promised()
        return self._sum, self._packed - self._read + len(self._stream.unused_data)

    @property
    def _stream(self) -> zlib._Decompress:
        if self._decompressor is None:
            self._decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
        return self._decompressor

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise MalformedInput(
                f"needs {counted(length, 'byte')} where the record ends at byte {self.size}",
                where=self.name,
                offset=offset,
            )

    def _inflate(self, length: int) -> bytes:
        """Return the next 1 to *length* bytes."""
        try:
            piece = self._next(length)
        except LimitExceeded:
            raise
        except MalformedInput:
            self.broken_at = self._position
            raise
        fresh = self._position + len(piece) - self._summed
        if fresh > 0:
            self._sum = zlib.crc32(piece[-fresh:], self._sum)
            self._summed += fresh
        self._position += len(piece)
        self._allowance -= len(piece)
        if self._budget is not None:
            self._recent += piece
            if len(self._recent) > 2 * _RECENT:
                del self._recent[:-_RECENT]
        if self._allowance < 0:
            raise LimitExceeded("needs to be inflated too often", where=self.name)
        if not piece:
            self.broken_at = self._position
            raise self._not_as_promised()
        # Of a record that inflates to more than it should torch's reader takes as much as it
        # should: for a pickle `finish` says so, behind which nobody reads a storage.
        if self._budget is None and self._position == self.size and self._next(1):
            raise self._not_as_promised()
        return piece

    def _not_as_promised(self) -> MalformedInput:
        return MalformedInput(
            f"does not inflate to the {counted(self.size, 'byte')} promised; the file is damaged",
            where=self.name,
            offset=self._position,
        )

    def _next(self, length: int) -> bytes:
        """Return the next 1 to *length* bytes, or none where the compressed data end."""
        if self._error is not None:
            raise self._error
        stream = self._stream
        while not stream.eof:
            packed = stream.unconsumed_tail
            if not packed and self._read < self._packed:
                chunk = min(max(_FIRST_CHUNK, self._read), _CHUNK, self._packed - self._read)
                packed = self._source.read_at(self._offset + self._read, chunk)
                self._read += chunk
            before = stream.copy() if self._budget is not None else None
            try:
                piece = stream.decompress(packed, length)
            except zlib.error as err:
                salvaged = self._salvaged(before, packed) if before is not None else b""
                self._error = MalformedInput(
                    f"cannot be inflated ({err}); the file is damaged: fetch it again",
                    where=self.name,
                    offset=self._position + len(salvaged),
                )
                if not salvaged:
                    raise self._error from err
                return salvaged
            if self._budget is not None:
                consumed = len(packed) - len(stream.unconsumed_tail) - len(stream.unused_data)
                self._budget.pay_inflated(consumed, len(piece), self.name)
            if piece:
                return piece
            if not packed:
                break
        return b""

    def _salvaged(self, stream: zlib._Decompress, packed: bytes) -> bytes:
        """What comes out of *packed* before an error: zlib keeps back what came with one."""
        salvaged = b""
        for step in _SALVAGE:
            with suppress(zlib.error):
                while True:
                    before = stream.copy()
                    piece = stream.decompress(packed, step)
                    packed = stream.unconsumed_tail
                    salvaged += piece
            stream = before
        if self._budget is not None:
            self._budget.pay_inflated(0, len(salvaged), self.name)
        return salvaged
