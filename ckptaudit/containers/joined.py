"""Open files read as one, laid end to end: for a job that needs tensors of several.

Knows:      what has to be said of a storage so that it is found among those of other files.
Is told:    the files, open.
Never asks: what they are, or what is wanted of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ckptaudit.containers.container import Container, Kind, Storage
from ckptaudit.errors import Unsupported
from ckptaudit.source import SplicedSource

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["joined", "key_in_joined"]


def joined(parts: Sequence[Container]) -> Container:
    """One container for the storages of all *parts*, which stay open as long as it is used.

    It holds what reading takes and nothing else: what is to be said of a part is said of it
    alone.  A storage of part number n has the key that `key_in_joined` gives it.

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
    storages, records, inflated, base = {}, [], {}, 0
    for number, part in enumerate(parts):
        for record in part.records:
            name = key_in_joined(number, record.name)
            records.append(replace(record, name=name, offset=base + record.offset))
        for name, source in part.inflated.items():
            inflated[key_in_joined(number, name)] = source
        for storage in part.storages.values():
            moved = _moved(storage, number, 0 if storage.record in part.inflated else base)
            storages[moved.key] = moved
        base += part.source.size
    sources = ((part.source, 0, part.source.size) for part in parts)
    return Container(
        source=SplicedSource(first.source.name, *sources),
        kind=Kind.FOLDER,
        records=tuple(records),
        traces=(),
        storages=storages,
        byteorder=first.byteorder,
        inflated=inflated,
    )


def key_in_joined(number: int, key: str) -> str:
    """What part number *number* calls *key*, of a storage or a record, among all of them."""
    return f"{number}/{key}"


def _moved(storage: Storage, number: int, by: int) -> Storage:
    return replace(
        storage,
        key=key_in_joined(number, storage.key),
        record=key_in_joined(number, storage.record),
        offset=storage.offset + by,
    )
