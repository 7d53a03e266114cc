"""The bytes of a zip's entries: where they are, where they end, what they are there for.

Checksums are computed for pickles and for what torch writes beside the storages, and for
what is inflated anyway.  Not for stored storages: a scan does not read those, and torch
compares no checksum at all.  One of zero is none: torch writes it when told to compute
none (torch.serialization.set_crc32_options).

Knows:      stored and deflated entries, CRC-32.
Is told:    an entry, and once its role is known, that and where its pickle ends.
Never asks: which role an entry has.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from ckptaudit.containers.container import Gap, Mishap, Role, Use
from ckptaudit.containers.inflate import METHODS, InflatedSource
from ckptaudit.errors import MalformedInput
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from ckptaudit.containers.ledger import Ledger
    from ckptaudit.containers.zipdirectory import Entry
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Budget, Trace

__all__ = ["Contents", "Place", "place_of"]

_CHUNK = 1 << 18
# Compressed storages are inflated once, to see where they end: all together to so many bytes...
_MOST_INFLATED = 1 << 30
# ...or to so many for each byte of the file.  Compressed weights come to one and a half.
_MOST_TIMES = 20
_USES = {Role.PICKLE: Use.PICKLE, Role.STORAGE: Use.STORAGE}

# Method, offset, packed and real size, fault: entries that agree in these hold the same bytes.
Place: TypeAlias = tuple[int, int, int, int, str]


def place_of(entry: Entry) -> Place:
    """Where the data of *entry* are."""
    return entry.method, entry.data, entry.packed, entry.size, entry.fault


class Contents:
    """The data of all entries of one archive.

    Args:
        source: The archive.
        size: Bytes of it that are there: what looking at them may cost goes by that.
        ledger: Told what the bytes are there for.
        budget: Pays for what is inflated.
    """

    def __init__(self, source: ByteSource, size: int, ledger: Ledger, budget: Budget) -> None:
        self.source = source
        self.ledger = ledger
        self.budget = budget
        # By place, how many packed bytes were read to inflate it; None if that failed.
        self.consumed: dict[Place, int | None] = {}
        # What overlaps costs no more than what does not: entries that share bytes are odd
        # enough, so that nobody need look at each of them.
        self.to_sum = size
        self.to_consume = size
        self.to_inflate = max(_MOST_INFLATED, _MOST_TIMES * size)

    def open(self, entry: Entry, budget: Budget | None) -> tuple[ByteSource, int]:
        """Where the uncompressed bytes of *entry* are, and the first one's offset there.

        Args:
            entry: The entry.
            budget: Pays for inflating it; None for a storage.

        Raises:
            MalformedInput: We cannot tell.
        """
        if entry.fault:
            raise MalformedInput(entry.fault, where=entry.name)
        if entry.method == 0:
            return self.source, entry.data
        if entry.method not in METHODS:
            reason = f"compression method {entry.method} is not one torch reads"
            raise MalformedInput(reason, where=entry.name)
        packed = min(entry.packed, self.source.size - entry.data)
        return InflatedSource(self.source, entry.data, packed, entry.size, entry.name, budget), 0

    def finish(self, entry: Entry, source: ByteSource) -> None:
        """Inflate what is left of *entry*, if it is compressed, and hold it against its entry.

        Raises:
            MalformedInput: It cannot be inflated, or would cost too much.
        """
        if not isinstance(source, InflatedSource) or place_of(entry) in self.consumed:
            return
        self.consumed[place_of(entry)] = None
        checksum, unread = source.finish()
        packed = min(entry.packed, self.source.size - entry.data)
        self.consumed[place_of(entry)] = packed - unread
        self._check_sum(entry, checksum)

    def finish_storage(self, entry: Entry) -> None:
        """As `finish`, for what may be as large as weights are.

        Raises:
            MalformedInput: It cannot be inflated, or would cost too much.
        """
        source, _ = self.open(entry, budget=None)
        if source is self.source or place_of(entry) in self.consumed:
            return
        limits = self.budget.limits
        if entry.size > max(limits.inflated_freely, limits.ratio * entry.packed):
            self._odd(
                "zip-ratio",
                f"inflates from {entry.packed} to {counted(entry.size, 'byte')}, "
                "as weights never do",
                entry,
            )
        self.to_consume -= entry.packed
        self.to_inflate -= entry.size
        if min(self.to_consume, self.to_inflate) < 0:
            self.consumed[place_of(entry)] = None
            raise MalformedInput(
                f"inflates, with all others, to more than {_MOST_TIMES} times the file, so where "
                "it ends is not known",
                where=entry.name,
            )
        self.finish(entry, source)

    def account(self, entry: Entry, role: Role, trace: Trace | None) -> None:
        """Tell the ledger what the bytes of *entry* are there for.

        Args:
            entry: The entry.
            role: What it is for.
            trace: Its pickle, if it is one.
        """
        if entry.fault:
            return
        if entry.is_cut:
            message = "has data that reach past the end of the file"
            self.ledger.gaps.append(Gap(message, entry.name, entry.data))
        use = _USES.get(role, Use.RECORD)
        stop = min(entry.data + entry.packed, self.source.size)
        if entry.method != 0:
            consumed = self.consumed.get(place_of(entry))
            if consumed is None:
                self.ledger.leave(entry.data, stop, entry.name)
                return
            end = entry.data + consumed
            self.ledger.claim(entry.data, end, use)
            message = "bytes after the end of the compressed data"
            self.ledger.disown(end, stop, "zip-gap", message, entry.name)
            return
        stop = min(stop, entry.data + entry.size)
        end = stop if trace is None else entry.data + trace.end
        self.ledger.claim(entry.data, end, use)
        if trace is not None and trace.error is not None:
            self.ledger.leave(end, stop, entry.name)
        elif stop > end:
            message = f"{counted(stop - end, 'byte')} after the pickle's end"
            self.ledger.disown(end, stop, "bytes-after-pickle", message, entry.name)
        if role in (Role.PICKLE, Role.METADATA) and not entry.is_cut and entry.crc:
            self._sum_up(entry)

    def account_inflated(self, entry: Entry, source: ByteSource, trace: Trace) -> None:
        """Tell what lies behind the end of the pickle in *entry*, if that is compressed."""
        if not isinstance(source, InflatedSource):
            return
        size = entry.size if source.broken_at is None else source.broken_at
        is_whole = trace.error is None
        if is_whole and trace.end < size:
            length = size - trace.end
            message = f"{counted(length, 'byte')} after the pickle's end"
            self.ledger.mishaps.append(Mishap("bytes-after-pickle", message, entry.name, None))
            self.ledger.gaps.append(Gap(message, entry.name, None, trace.end, length))
        if trace.end < size:
            # It may have to be inflated again, which may cost too much; a gap is told already.
            with suppress(MalformedInput):
                self.ledger.look_into(source, trace.end, size, entry.name, extra=is_whole)

    def _sum_up(self, entry: Entry) -> None:
        self.to_sum -= entry.size
        if self.to_sum < 0:
            return
        checksum = 0
        end = entry.data + entry.size
        for at in range(entry.data, end, _CHUNK):
            checksum = zlib.crc32(self.source.read_at(at, min(_CHUNK, end - at)), checksum)
        self._check_sum(entry, checksum)

    def _check_sum(self, entry: Entry, checksum: int) -> None:
        if entry.crc not in (0, checksum):
            message = f"has the checksum {checksum:08x} where the directory says {entry.crc:08x}"
            self._odd("zip-crc", message, entry)

    def _odd(self, code: str, message: str, entry: Entry) -> None:
        mishap = Mishap(code, message, entry.name, entry.header, entry.length)
        self.ledger.mishaps.append(mishap)
