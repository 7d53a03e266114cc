"""Files inside a file: opened like any other, but all of them pay from one purse.

Knows:      how deep and how often a file may hold others, and when bytes that nobody calls
            a file are one.
Is told:    which bytes, and how a file is opened.
Never asks: what the file around does with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptaudit.containers.beginnings import ARCHIVED, NUMPY, SEVEN_ZIP, head_of
from ckptaudit.containers.container import Gap, Kind, Nested
from ckptaudit.containers.packings import is_compressed, may_be_compressed
from ckptaudit.containers.pythonzip import find_archive
from ckptaudit.containers.safetensors import looks_like_safetensors
from ckptaudit.containers.tarheader import has_tar_header
from ckptaudit.containers.trial import begins_like_a_pickle, may_act
from ckptaudit.containers.zipdirectory import SIGNATURE
from ckptaudit.errors import LimitExceeded, MalformedInput, Unsupported
from ckptaudit.source import SplicedSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from ckptaudit.containers.container import Container
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Budget

    _Opener: TypeAlias = Callable[[ByteSource, "Inside"], Container]

__all__ = ["Inside"]


class Inside:
    """What opens the files inside one file.

    Args:
        budget: Pays for all of them.
        opener: Opens one of them; told where it is to look for files inside that.
        size: Bytes of the outermost file.
        level: How many files are around this one.
    """

    def __init__(self, budget: Budget, opener: _Opener, size: int, level: int = 0) -> None:
        self.budget = budget
        self._opener = opener
        self._size = size
        self._level = level

    def open(self, source: ByteSource) -> Container:
        """Open *source*, all of which is a file.

        Raises:
            LimitExceeded: It is inside too many others, or one of too many.
            MalformedInput: It is a file we read, but damaged.
            Unsupported: It is something else.
        """
        return self._opener(source, self.below(source.name, source.size))

    def below(self, name: str, nbytes: int) -> Inside:
        """What opens the files inside the one of *nbytes* called *name*, which is inside this one.

        Raises:
            LimitExceeded: It is inside too many others, or one of too many, or of too many bytes.
        """
        limit = self.budget.limits.nesting
        if self._level >= limit:
            raise LimitExceeded(f"is inside more than {limit} others", where=name)
        self.budget.pay_file(name)
        self.budget.pay_nested(nbytes, self._size, name)
        return Inside(self.budget, self._opener, self._size, self._level + 1)

    def look(
        self, source: ByteSource, start: int, stop: int, name: str, offset: int | None
    ) -> Nested | Gap | None:
        """Open bytes ``[start, stop)`` of *source* if they are a file, bare pickles included.

        Args:
            source: The bytes.
            start: First byte.
            stop: First byte not to be looked at.
            name: What to call them.
            offset: Where byte *start* is in the file around, or None where it is compressed.

        Returns:
            The file; or why there is one that cannot be opened; or None if there is none.
        """
        part = SplicedSource(name, (source, start, stop - start))
        return self._look(part, offset, is_one=_is_framed(part), may_be=True)

    def look_for_framing(
        self, source: ByteSource, start: int, stop: int, name: str, offset: int | None
    ) -> Nested | Gap | None:
        """The same, where bare pickles have been looked for already."""
        part = SplicedSource(name, (source, start, stop - start))
        try:
            self.budget.pay_file(name)
        except LimitExceeded as err:
            return Gap(str(err.args[0]), name, offset)
        return self._look(part, offset, is_one=_is_framed(part), may_be=may_be_compressed(part))

    def _look(
        self, part: ByteSource, offset: int | None, *, is_one: bool, may_be: bool
    ) -> Nested | Gap | None:
        if not is_one and not may_be:
            return None
        try:
            container = self.open(part)
        except LimitExceeded as err:
            return Gap(str(err.args[0]), part.name, offset)
        except (MalformedInput, Unsupported) as err:
            reason = str(err.args[0]).removeprefix(f"{part.name}: ")
            return Gap(reason, part.name, offset) if is_one else None
        if container.kind is Kind.PICKLE and not _is_convincing(container):
            return None
        return Nested(part.name, offset, container)


def _is_framed(source: ByteSource) -> bool:
    """Whether *source* begins or ends as only files do."""
    head = head_of(source)
    return (
        head.startswith((SIGNATURE, SEVEN_ZIP, NUMPY, *ARCHIVED))
        or is_compressed(source)
        or has_tar_header(source)
        or looks_like_safetensors(source)
        or find_archive(source) is not None
    )


def _is_convincing(container: Container) -> bool:
    """Whether what was opened as bare pickles is one, and not text that reads like opcodes."""
    if all(trace.error is None for trace in container.traces) and not container.gaps:
        return True
    head = container.source.read_at(0, min(2, container.source.size))
    return (
        begins_like_a_pickle(head) or bool(container.nested) or any(map(may_act, container.traces))
    )
