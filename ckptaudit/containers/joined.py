"""Open files read as one, laid end to end: for a job that needs tensors of several.

Knows:      what has to be said of a storage so that it is found among those of other files.
Is told:    the files, open.
Never asks: what they are, or what is wanted of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from ckptaudit.containers.container import Container, Kind, Storage
from ckptaudit.errors import Unsupported
from ckptaudit.source import SplicedSource

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Joined", "joined"]


@dataclass(frozen=True, slots=True)
class Joined:
    """Several open files as one.

    Attributes:
        parts: The files, in order.
        starts: Where each begins, in bytes.
        container: All of them: what reading takes and nothing else, for what is to be said of
            a part is said of it alone.
    """

    parts: tuple[Container, ...]
    starts: tuple[int, ...]
    container: Container

    def storage(self, number: int, storage: Storage) -> Storage:
        """What *storage* of part number *number* is among those of all parts."""
        is_inflated = storage.record in self.parts[number].inflated
        return replace(
            storage,
            key=_key(number, storage.key),
            record=_key(number, storage.record),
            # In the bytes of a compressed record nothing moves.
            offset=storage.offset + (0 if is_inflated else self.starts[number]),
        )


def joined(parts: Sequence[Container]) -> Joined:
    """All *parts* as one; they stay open as long as it is used.

    Raises:
        Unsupported: Their numbers are written in different byte orders.
    """
    first = parts[0]
    for part in parts:
        if part.byteorder != first.byteorder:
            raise Unsupported(
                f"{part.source.name}: its numbers are {part.byteorder}-endian, those of "
                f"{first.source.name} {first.byteorder}-endian; convert one of them by itself "
                "first, and take the result for it"
            )
    starts = tuple(accumulate((part.source.size for part in parts), initial=0))[:-1]
    records = tuple(
        replace(record, name=_key(number, record.name), offset=start + record.offset)
        for number, (part, start) in enumerate(zip(parts, starts, strict=True))
        for record in part.records
    )
    inflated = {
        _key(number, name): source
        for number, part in enumerate(parts)
        for name, source in part.inflated.items()
    }
    sources = ((part.source, 0, part.source.size) for part in parts)
    container = Container(
        source=SplicedSource(first.source.name, *sources),
        kind=Kind.FOLDER,
        records=records,
        traces=(),
        byteorder=first.byteorder,
        inflated=inflated,
    )
    return Joined(tuple(parts), starts, container)


def _key(number: int, key: str) -> str:
    """What part number *number* calls *key*, of a storage or a record, among all of them."""
    return f"{number}/{key}"
