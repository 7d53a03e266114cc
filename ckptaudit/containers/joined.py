"""Open files read as one, laid end to end: those of a folder, or any for a job that needs several.

Knows:      what has to be said of records so that they are found among those of other files.
Is told:    the files, open.
Never asks: what they are, or what is wanted of them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from ckptaudit.containers.container import Container, Kind, Nested
from ckptaudit.errors import Unsupported
from ckptaudit.source import SplicedSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptaudit.source import ByteSource

__all__ = ["end_to_end", "joined"]


def joined(files: Sequence[Container]) -> Container:
    """All *files* as the parts of one; they stay open as long as it is used.

    Raises:
        Unsupported: Their numbers are written in different byte orders.
    """
    first = files[0]
    for file in files:
        if file.byteorder != first.byteorder:
            raise Unsupported(
                f"{file.source.name}: its numbers are {file.byteorder}-endian, those of "
                f"{first.source.name} {first.byteorder}-endian; convert one of them by itself "
                "first, and take the result for it"
            )
    starts = tuple(accumulate((file.source.size for file in files), initial=0))[:-1]
    parts = (
        Nested(str(number), start, file)
        for number, (start, file) in enumerate(zip(starts, files, strict=True))
    )
    sources = ((file.source, 0, file.source.size) for file in files)
    return end_to_end(SplicedSource(first.source.name, *sources), tuple(parts))


def end_to_end(
    source: ByteSource, parts: tuple[Nested, ...], notes: tuple[str, ...] = ()
) -> Container:
    """One container of all *parts*; what there is to say of each is said of a file inside it.

    Records are those that are compressed: of the others every byte lies in *source*.

    Args:
        source: The files, end to end.
        parts: The files, each with its place there.
        notes: What is worth telling about how they were read.
    """
    records = tuple(
        replace(record, name=part.record_name(record.name), offset=part.offset + record.offset)
        for part in parts
        for record in part.container.records
        if record.name in part.container.inflated and part.offset is not None
    )
    inflated = {
        part.record_name(name): data
        for part in parts
        for name, data in part.container.inflated.items()
    }
    return Container(
        source=source,
        kind=Kind.FOLDER,
        records=records,
        traces=(),
        # Those that read tensors refuse parts that differ in it.
        byteorder=parts[0].container.byteorder if parts else "little",
        nested=parts,
        parts=parts,
        inflated=inflated,
        notes=notes,
    )
