"""Containers inside containers, and where in the outermost file each of them lies.

Knows:      how files nest.
Is told:    an open file, and which others were found in it.
Never asks: what is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptaudit.containers.container import Carried, Container, Nested
    from ckptaudit.vm import Trace

__all__ = ["Place"]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A container, and where it is in the outermost file.

    Attributes:
        around: Names of what is around it and its own, the outermost first; empty for the
            outermost file itself.
        start: Where its byte 0 is in the outermost file, or would be, before the beginning, if
            the file had it; None where it does not lie there as it is.
        container: The container.
        parent: The place it is in; None for the outermost file.
        nested: What the container of *parent* says of it; None for the outermost file.
    """

    around: tuple[str, ...]
    start: int | None
    container: Container
    parent: Place | None = None
    nested: Nested | None = None

    @classmethod
    def of_file(cls, container: Container) -> Place:
        """The place of the outermost file."""
        return cls((), 0, container)

    @property
    def carried(self) -> Carried | None:
        """How a pickle of *parent* brings it along; None if none does."""
        return self.nested.carried if self.nested is not None else None

    def path(self, name: str) -> tuple[str, ...]:
        """The way to a record: the names of what is around it, and its own."""
        return (*self.around, name) if name else self.around

    def offset(self, at: int | None) -> int | None:
        """Where byte *at* of the container is in the outermost file; None if it is not in it."""
        # A directory may say that something is where no file reaches.
        if self.start is None or at is None or at > self.container.source.size:
            return None
        if self.start + at < 0:
            return None
        return self.start + at

    def start_of(self, trace: Trace) -> int | None:
        """Where a pickle of the container begins in the outermost file; None if compressed."""
        return self.offset(trace.start) if trace.source is self.container.source else None

    def within(self, files: Iterable[Nested]) -> list[Place]:
        """Where *files*, which the container holds, are in the outermost file."""
        return [
            Place(
                (*self.path(file.carried.trace.record if file.carried else ""), file.name),
                self._start_of(file),
                file.container,
                self,
                file,
            )
            for file in files
        ]

    def _start_of(self, file: Nested) -> int | None:
        return None if self.start is None or file.offset is None else self.start + file.offset
