"""Ways to damage a file, as values: a failing test prints them, and hypothesis shrinks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Mutation", "mutated", "mutations"]


@dataclass(frozen=True)
class Flip:
    """Change bits of one byte."""

    at: int
    mask: int

    def __call__(self, data: bytes) -> bytes:
        """The damaged file."""
        changed = bytes(byte ^ self.mask for byte in data[self.at : self.at + 1])
        return data[: self.at] + changed + data[self.at + 1 :]


@dataclass(frozen=True)
class Overwrite:
    """Write other bytes over those that are there."""

    at: int
    patch: bytes

    def __call__(self, data: bytes) -> bytes:
        """The damaged file."""
        end = min(self.at + len(self.patch), len(data))
        return data[: self.at] + self.patch[: max(end - self.at, 0)] + data[end:]


@dataclass(frozen=True)
class Insert:
    """Put bytes in between."""

    at: int
    patch: bytes

    def __call__(self, data: bytes) -> bytes:
        """The damaged file."""
        return data[: self.at] + self.patch + data[self.at :]


@dataclass(frozen=True)
class Delete:
    """Leave bytes out."""

    at: int
    length: int

    def __call__(self, data: bytes) -> bytes:
        """The damaged file."""
        return data[: self.at] + data[self.at + self.length :]


@dataclass(frozen=True)
class Duplicate:
    """Put bytes there a second time, right behind themselves."""

    at: int
    length: int

    def __call__(self, data: bytes) -> bytes:
        """The damaged file."""
        end = self.at + self.length
        return data[:end] + data[self.at : end] + data[end:]


@dataclass(frozen=True)
class Splice:
    """Copy bytes to another place, in between or over what is there."""

    start: int
    length: int
    at: int
    over: bool

    def __call__(self, data: bytes) -> bytes:
        """The damaged file."""
        piece = data[self.start : self.start + self.length]
        return data[: self.at] + piece + data[self.at + len(piece) * self.over :]


@dataclass(frozen=True)
class Truncate:
    """End the file early."""

    at: int

    def __call__(self, data: bytes) -> bytes:
        """The damaged file."""
        return data[: self.at]


Mutation: TypeAlias = Flip | Overwrite | Insert | Delete | Duplicate | Splice | Truncate

# What lengths, offsets, counts and opcodes turn into something else by.
_PATCHES = (
    b"\0",
    b"\xff",
    b"\0" * 4,
    b"\xff" * 4,
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
    b"\n",
    b"\x01\0\0\0",
    b"\0\0\0\x80",
    b".",
    b"(",
    b"0",
    b"N",
    b"\x80\x02",
    b"PK\5\6",
    b"h\0",
    b"c\n\n",
)


def mutations(size: int, spared: range = range(0)) -> st.SearchStrategy[list[Mutation]]:
    """One to three ways, one after the other, to damage a file of *size* bytes.

    Half of them begin in front of or behind the bytes that are *spared*: who damages those of
    a payload mostly destroys it.
    """
    at = st.integers(0, size)
    if spared:
        at |= st.integers(0, max(spared.start - 1, 0)) | st.integers(spared.stop, size)
    length = st.one_of(*[st.integers(1, 16)] * 3, st.integers(1, max(size, 1)))
    patch = st.sampled_from(_PATCHES) | st.binary(min_size=1, max_size=8)
    one = st.one_of(
        st.builds(Flip, at, st.sampled_from([1 << bit for bit in range(8)]) | st.integers(1, 255)),
        st.builds(Overwrite, at, patch),
        st.builds(Insert, at, patch),
        st.builds(Delete, at, length),
        st.builds(Duplicate, at, length),
        st.builds(Splice, at, length, at, st.booleans()),
        # What is left of most files is none.
        st.builds(Truncate, st.integers(max(size - 20, 0), size) | at),
    )
    return st.lists(one, min_size=1, max_size=3)


def mutated(data: bytes, damage: Sequence[Mutation]) -> bytes:
    """*data*, damaged in each of these ways, one after the other."""
    for mutation in damage:
        data = mutation(data)
    return data
