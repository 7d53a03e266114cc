"""7z archives, read by py7zr if it is installed: into memory, and no further than the budget.

Knows:      py7zr's interface, and that its codecs fail each in a way of its own.
Is told:    a source that begins with 7z's signature, and what may be opened inside it.
Never asks: what is in a member.

py7zr parses the archive's own header before anything can be counted, and its codecs take
the memory the header asks for: whoever installs it trusts it with that.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Protocol

from ckptaudit.containers.archive import Member, open_members
from ckptaudit.containers.container import Container, Gap, Kind, Mishap
from ckptaudit.errors import CkptauditError, LimitExceeded
from ckptaudit.source import BufferSource

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from _typeshed import WriteableBuffer

    from ckptaudit.containers.inside import Inside
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Budget

__all__ = ["open_seven_zip"]

_REFUSAL = "is a 7z archive; unpack it first"
_MOST_REASON = 200


class _Listed(Protocol):
    """What py7zr tells of a member."""

    filename: str
    uncompressed: int
    is_file: bool
    is_directory: bool
    is_symlink: bool


class _Archive(Protocol):
    """An archive that py7zr has opened."""

    def list(self) -> Sequence[_Listed]: ...
    def extract(self, *, targets: Collection[str], factory: _Outputs) -> None: ...


def open_seven_zip(source: ByteSource, inside: Inside) -> Container:
    """What is in the archive *source*; what cannot be read of it is a gap."""
    outputs = _Outputs(inside.budget)
    gaps = []
    try:
        inside.budget.pay_inflated(source.size, 0, source.name)
        others = _extract(source, outputs)
    except ImportError:
        why = "`pip install ckptaudit[archives]` lets a scan look inside"
        gaps.append(Gap(f"{_REFUSAL}; {why}", "", 0))
    except LimitExceeded as err:
        gaps.append(Gap(f"{_REFUSAL}: it {err.args[0]}", "", None))
    except CkptauditError:
        raise
    # py7zr and its seven codecs, written in C for the most part, raise what they like at damage:
    # of a hostile archive nobody can list it.  Whatever it is, the archive was not read: a gap.
    except Exception as err:  # noqa: BLE001 - not hidden: it becomes a gap that names it
        reason = f"{type(err).__name__}: {err}"[:_MOST_REASON]
        gaps.append(Gap(f"{_REFUSAL}: it cannot be read ({reason})", "", None))
    else:
        reason = "is a link, or said to be no plain file, and is not read"
        gaps += [Gap(reason, name, None) for name in others]
        if not others and outputs.are_none:
            gaps.append(Gap(f"{_REFUSAL}: no file was found in it", "", 0))
    # What came out before an error is looked at as well.
    members = open_members(outputs.members(), inside)
    return Container(
        source=source,
        kind=Kind.ARCHIVE,
        records=(),
        traces=(),
        mishaps=(Mishap("other-archive", _REFUSAL, "", 0),),
        gaps=(*gaps, *members.gaps),
        nested=members.nested,
        refusal=_REFUSAL,
    )


def _extract(source: ByteSource, outputs: _Outputs) -> list[str]:
    """Write all plain files of the archive to *outputs*.

    Returns:
        The names of whatever else may be more than an empty folder.

    Raises:
        ImportError: py7zr is not installed.
        LimitExceeded: There is more than the budget allows.
    """
    # An extra: most files are no 7z archives, and most people have none.
    import py7zr  # noqa: PLC0415 - see above

    with py7zr.SevenZipFile(io.BufferedReader(_File(source)), "r") as opened:
        archive: _Archive = opened
        listed = archive.list()
        outputs.budget.pay_records(len(listed), source.name)
        # Links it would make on the disk, so it is asked for plain files only.
        plain = [info for info in listed if _is_plain(info)]
        if plain:
            archive.extract(targets={info.filename for info in plain}, factory=outputs)
        # Other programs go by the bytes, and make a file of a folder that has some.
        rest = [info for info in listed if not _is_plain(info)]
        return [info.filename for info in rest if info.uncompressed or not info.is_directory]


def _is_plain(info: _Listed) -> bool:
    """Whether py7zr takes it for a file; it asks one half of the attributes, then the other."""
    return info.is_file and not (info.is_symlink or info.is_directory)


class _Outputs:
    """Where py7zr puts what it uncompresses: it asks `create` for a file, and writes to it."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        # In order, and not by name: two members may have one.
        self._outputs: list[tuple[str, _Output]] = []

    @property
    def are_none(self) -> bool:
        return not self._outputs

    def create(self, filename: str) -> _Output:
        output = _Output(filename, self.budget)
        self._outputs.append((filename, output))
        return output

    def members(self) -> list[Member]:
        """What was written, member by member."""
        return [
            Member(name, BufferSource(output.data, name), 0, len(output.data), None)
            for name, output in self._outputs
        ]


class _Output:
    """One member: what py7zr calls a ``Py7zIO``."""

    def __init__(self, name: str, budget: Budget) -> None:
        self.data = bytearray()
        self._name = name
        self._budget = budget
        self._at = 0

    def write(self, piece: bytes | bytearray) -> int:
        self._budget.pay_inflated(0, len(piece), self._name)
        self.data += piece
        return len(piece)

    def read(self, size: int | None = None) -> bytes:
        stop = len(self.data) if size is None or size < 0 else self._at + size
        piece = bytes(self.data[self._at : stop])
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self.data)}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def flush(self) -> None:
        """Do nothing: it is written."""

    def close(self) -> None:
        """Do nothing: py7zr is done with the member, and we begin with it."""

    def size(self) -> int:
        return len(self.data)


class _File(io.RawIOBase):
    """A source as the file that py7zr wants."""

    def __init__(self, source: ByteSource) -> None:
        super().__init__()
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise ValueError("seeks before the beginning of the archive")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        room = memoryview(buffer).cast("B")
        length = max(0, min(len(room), self._source.size - self._at))
        self._source.read_into(self._at, room[:length])
        self._at += length
        return length
