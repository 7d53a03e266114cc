"""Archives that are no checkpoint themselves: each of their members is opened as a file.

Knows:      what to say of a member that cannot be opened.
Is told:    the members, and what may be opened inside the archive.
Never asks: what kind of archive it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.containers.container import Gap, Kind, Nested

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptaudit.containers.inside import Inside
    from ckptaudit.source import ByteSource

__all__ = ["Member", "Members", "open_members"]


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: Its name.
        source: Where its uncompressed bytes are.
        start: The first of them.
        size: How many there are.
        offset: Where the first one is in the archive, or None if it is compressed.
        gap: Why that may not be all of it, or None.
        otherwise: What to say if it is no file that is read.
    """

    name: str
    source: ByteSource
    start: int
    size: int
    offset: int | None
    gap: Gap | None = None
    otherwise: str = "is in none of the formats that are read"


class Members(NamedTuple):
    """What was found in the members of an archive.

    Attributes:
        nested: Those that could be opened.
        gaps: Those that could not, and why.
    """

    nested: tuple[Nested, ...]
    gaps: tuple[Gap, ...]

    @property
    def are_arrays(self) -> bool:
        """Whether all of them are NumPy arrays, and the archive what numpy.savez writes."""
        return not self.gaps and all(inner.container.kind is Kind.NUMPY for inner in self.nested)


def open_members(members: Iterable[Member | Gap], inside: Inside) -> Members:
    """Open each of *members* that has any bytes."""
    nested = []
    gaps = []
    for member in members:
        found = member if isinstance(member, Gap) else _open(member, inside)
        if isinstance(member, Member) and member.gap is not None:
            gaps.append(member.gap)
        if isinstance(found, Nested):
            nested.append(found)
        elif found is not None:
            gaps.append(found)
    return Members(tuple(nested), tuple(gaps))


def _open(member: Member, inside: Inside) -> Nested | Gap | None:
    if member.size == 0:
        return None
    start = member.start
    found = inside.look(member.source, start, start + member.size, member.name, member.offset)
    if found is None:
        return Gap(member.otherwise, member.name, member.offset)
    return found
