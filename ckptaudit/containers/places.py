"""Containers inside containers, and where in the outermost file each of them lies.

Knows:      how files nest.
Is told:    an open file.
Never asks: what is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ckptaudit.containers.container import Container, Nested
    from ckptaudit.vm import Trace

__all__ = ["Place", "places"]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A container, and where it is in the outermost file.

    Attributes:
        around: Names of the containers around it, the outermost first.
        start: Where its byte 0 is in the outermost file, or would be, before the beginning, if
            the file had it; None where that is compressed.
        container: The container.
    """

    around: tuple[str, ...]
    start: int | None
    container: Container

    def record(self, name: str) -> str:
        """What to call a record: the names of what is around it, and its own."""
        return "!".join((*self.around, name) if name else self.around)

    def offset(self, at: int | None) -> int | None:
        """Where byte *at* of the container is in the outermost file; None if it is not in it."""
        if self.start is None or at is None or self.start + at < 0:
            return None
        return self.start + at

    def start_of(self, trace: Trace) -> int | None:
        """Where a pickle of the container begins in the outermost file; None if compressed."""
        return self.offset(trace.start) if trace.source is self.container.source else None

    def within(self, files: Iterable[Nested]) -> list[Place]:
        """Where *files*, which the container holds, are in the outermost file."""
        return [
            Place((*self.around, file.name), self._start_of(file), file.container) for file in files
        ]

    def _start_of(self, file: Nested) -> int | None:
        return None if self.start is None or file.offset is None else self.start + file.offset


def places(container: Container) -> Iterator[Place]:
    """*container* itself, then all that is inside it, in file order."""
    pending = [Place((), 0, container)]
    while pending:
        place = pending.pop()
        yield place
        pending += reversed(place.within(place.container.nested))
