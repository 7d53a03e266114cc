"""Files that are compressed as a whole: what comes out of them is opened as a file of its own.

torch.load uncompresses nothing, but joblib and those who download do, and a payload that
breaks off halfway has run by then.  So whatever comes out before an error or a limit is
looked at as well.

Knows:      what uncompresses gzip, bzip2, xz, lzma and zlib, a stream behind the other.
Is told:    a source, and what may be opened inside it.
Never asks: what comes out.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import TYPE_CHECKING, Protocol

from ckptaudit.containers.container import (
    Container,
    Gap,
    Kind,
    Mishap,
    Nested,
    Record,
    Role,
    Use,
)
from ckptaudit.containers.ledger import Ledger
from ckptaudit.containers.packings import LONGEST_HEAD, packings_of
from ckptaudit.errors import LimitExceeded, MalformedInput, Unsupported
from ckptaudit.source import BufferSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptaudit.containers.inside import Inside
    from ckptaudit.containers.packings import Packing
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Budget

__all__ = ["open_compressed"]

_CHUNK = 1 << 18
# Of a stream that may be a short one among many little is read.
_FIRST_CHUNK = 1 << 12
# A decoder that meets an error gives nothing of what it was asked for in that call.  So another
# one is asked for less, and one more for less than that.
_SALVAGE = (1 << 9, 1)
# xz -9 has a dictionary of 64 MiB and takes one MiB more.
_MOST_MEMORY = 80 << 20


class _Decoder(Protocol):
    """What `bz2` and `lzma` call a decompressor."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Inflater:
    """zlib's decompressor as `bz2` would have made it."""

    def __init__(self, window: int) -> None:
        self._stream = zlib.decompressobj(window)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max_length)


# What uncompresses one stream, by what the packing is called.
_DECODERS: dict[str, Callable[[], _Decoder]] = {
    "gzip": lambda: _Inflater(zlib.MAX_WBITS | 16),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_MEMORY),
    "zlib": lambda: _Inflater(zlib.MAX_WBITS),
    "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MOST_MEMORY),
}


def open_compressed(source: ByteSource, inside: Inside) -> Container | None:
    """What comes out of the compressed file *source*; None if it is none.

    A file without a signature is one only if it can be uncompressed to its end, or as far as
    the budget reaches, or if what comes out before it breaks off is a file.
    """
    for packing in packings_of(source):
        content = _Content(source, packing, inside.budget)
        if packing.is_sure or content.is_convincing(inside):
            return _container(content, packing, inside)
    return None


class _Content:
    """All that comes out of a compressed file, until its end, an error or a limit.

    Attributes:
        data: The bytes.
        streams: Streams that came to their end.
        end: Offset just past the last of them, padding and all.
        error: Why there may be more, or None.
    """

    def __init__(self, source: ByteSource, packing: Packing, budget: Budget) -> None:
        self.source = source
        self.packing = packing
        self.budget = budget
        self.data = bytearray()
        self.streams = 0
        self.end = 0
        self.error: MalformedInput | None = None
        try:
            self._read_streams()
        except MalformedInput as err:
            self.error = err

    def is_convincing(self, inside: Inside) -> bool:
        """Whether what has no signature was compressed nevertheless."""
        if self.error is None or isinstance(self.error, LimitExceeded):
            return True
        found = inside.look(BufferSource(self.data), 0, len(self.data), self.packing.name, None)
        return found is not None

    def _read_streams(self) -> None:
        while True:
            self.budget.pay_records(1, self.source.name)
            self.end = self._read_stream(self.end)
            self.streams += 1
            following = self._past_padding(self.end)
            if following == self.source.size:
                self.end = following
            if not self.packing.repeats or not self._begins_at(following):
                return
            self.end = following

    def _begins_at(self, at: int) -> bool:
        head = self.source.read_at(at, min(LONGEST_HEAD, self.source.size - at))
        return self.packing.begins(head)

    def _past_padding(self, at: int) -> int:
        """The end of the zeros that begin at *at*, or *at* if they are no padding."""
        if not self.packing.padding:
            return at
        end = at
        while end < self.source.size:
            piece = self.source.read_at(end, min(_FIRST_CHUNK, self.source.size - end))
            zeros = len(piece) - len(piece.lstrip(b"\0"))
            end += zeros
            if zeros < len(piece):
                break
        return at if (end - at) % self.packing.padding else end

    def _read_stream(self, start: int) -> int:
        """Uncompress the stream that begins at *start*; returns the offset just past its end."""
        decoder = _DECODERS[self.packing.name]()
        begun = len(self.data)
        at = start
        ended = False
        while not ended:
            packed = self._packed(decoder, start, at)
            at += len(packed)
            try:
                piece = self._decompressed(decoder, packed, _CHUNK)
            except MalformedInput:
                self._salvage(start, len(self.data) - begun)
                raise
            ended = decoder.eof
            unused = len(decoder.unused_data) if ended else 0
            self.data += piece
            self.budget.pay_inflated(len(packed) - unused, len(piece), self.source.name)
            if not (ended or packed or piece) and at == self.source.size:
                raise MalformedInput(
                    "is truncated: fetch it again", where=self.source.name, offset=at
                )
        return at - len(decoder.unused_data)

    def _packed(self, decoder: _Decoder, start: int, at: int) -> bytes:
        """What *decoder* is given next, of the stream that began at *start*: from *at* on."""
        if not decoder.needs_input or at >= self.source.size:
            return b""
        length = min(max(_FIRST_CHUNK, at - start), _CHUNK, self.source.size - at)
        return self.source.read_at(at, length)

    def _salvage(self, start: int, known: int) -> None:
        """Get what comes out of the broken stream at *start* behind its first *known* bytes.

        An unpickler reads along, and has run what stands before the error.
        """
        for step in _SALVAGE:
            decoder = _DECODERS[self.packing.name]()
            at = start
            done = 0
            while not decoder.eof:
                packed = self._packed(decoder, start, at)
                at += len(packed)
                try:
                    piece = self._decompressed(decoder, packed, min(known - done, _CHUNK) or step)
                except MalformedInput:
                    break
                done += len(piece)
                if done > known:
                    self.data += piece
                    known = done
                    self.budget.pay_inflated(0, len(piece), self.source.name)
                if not (packed or piece) and at == self.source.size:
                    break

    def _decompressed(self, decoder: _Decoder, packed: bytes, most: int) -> bytes:
        try:
            return decoder.decompress(packed, most)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError) as err:
            reason = f"cannot be uncompressed ({str(err) or type(err).__name__})"
            raise MalformedInput(reason, where=self.source.name) from err


def _container(content: _Content, packing: Packing, inside: Inside) -> Container:
    source = content.source
    refusal = f"is {packing.name}-compressed; uncompress it first"
    ledger = Ledger(source, inside.budget)
    # A stream that breaks off may reach to the end of the file.
    end = content.end if content.error is None else source.size
    ledger.claim(0, end, Use.RECORD)
    if content.error is not None:
        at = content.error.offset
        ledger.gaps.append(Gap(f"{refusal}: it {content.error.args[0]}", "", at))
    if content.streams > 1:
        message = f"{content.streams} compressed streams, of which some readers take the first only"
        ledger.mishaps.append(Mishap("several-streams", message, "", None))
    ledger.settle("bytes-after-compressed", "after the compressed data")
    nested: tuple[Nested, ...] = ()
    inner = BufferSource(content.data, packing.name)
    try:
        nested = (Nested(packing.name, None, inside.open(inner)),)
    except (MalformedInput, Unsupported) as err:
        # Of what did not come out whole the gap has been told.
        if content.error is None or isinstance(err, LimitExceeded):
            reason = str(err.args[0]).removeprefix(f"{inner.name}: ")
            ledger.gaps.append(Gap(reason, packing.name, None))
    return Container(
        source=source,
        kind=Kind.COMPRESSED,
        records=(Record(packing.name, 0, end, packing.name, Role.UNKNOWN), *ledger.records),
        traces=tuple(ledger.traces),
        mishaps=tuple(ledger.mishaps),
        gaps=tuple(ledger.gaps),
        nested=nested,
        regions=tuple(ledger.regions),
        refusal=refusal,
    )
