"""Which pickles other readers find in a file, and what those ask for; nothing is executed.

The witness of the property tests.  It shares no code with the package: files are opened by
those who open them in earnest (`zipfile`, `tarfile`, `gzip` and so on, NumPy's own header
reader), and what they would hand to an unpickler is walked by `asked_by`: tokens come from
`pickletools`, and on a stack only names and texts are told apart.

What the witness says is true of every unpickler up to where it falls silent, but for types:
it lets a pickle append to a number.  It falls silent too early where `pickletools` is
stricter than CPython's C code, and it does not look at tensors' storages, into which a
pickle may have been written and nobody would run it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickletools
import struct
import tarfile
import tokenize
import warnings
import zipfile
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from numpy.lib import format as npy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BROKEN", "Asked", "Pickle", "asked_by", "pickles_in", "pickles_in_row"]

# What other people's readers raise when they are given broken bytes.
BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tarfile.TarError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_CALLS = {"REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3, "BUILD": 2}
# They change what lies below their arguments and leave it where it is.
_IN_PLACE = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_MOST_BYTES = 1 << 20
_MOST_LEVELS = 4
_MOST_ROW = 50
_STEP = 64


class Asked(NamedTuple):
    """A name that a pickle asks for, or does something with.

    Attributes:
        name: Module and name, with a space between.
        by: The opcode that asks for it, or that calls it or sets its state.
    """

    name: str
    by: str


class Pickle(NamedTuple):
    """What a reader would hand to an unpickler: the bytes from a pickle's first one on."""

    reader: str
    data: bytes


class _Name(str):
    """A global on the stack of the witness, which any other text is not."""

    __slots__ = ()


class _Mark:
    """A mark on the stack of the witness."""


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


_Value: TypeAlias = "str | _Mark | None"


class _Stopped(Exception):
    """No unpickler gets past this opcode."""


class _Witness:
    """Reads one pickle as far as any unpickler would, and writes down its names."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.stack: list[_Value] = []
        self.memo: dict[int, _Value] = {}

    def pop(self) -> _Value:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise _Stopped
        return self.stack.pop()

    def pop_to_mark(self) -> list[_Value]:
        at = len(self.stack) - 1
        while at >= 0 and not isinstance(self.stack[at], _Mark):
            at -= 1
        if at < 0:
            raise _Stopped
        taken = self.stack[at + 1 :]
        del self.stack[at:]
        return taken

    def ask(self, name: str, by: str) -> None:
        self.asked.append(Asked(name, by))

    def remember(self, index: int, value: _Value) -> None:
        if index < 0:
            raise _Stopped
        self.memo[index] = value

    def note_use(self, value: _Value, by: str) -> None:
        if isinstance(value, _Name):
            self.ask(value, by)

    def step(self, opcode: pickletools.OpcodeInfo, arg: object) -> None:
        name = opcode.name
        if name == "MARK":
            self.stack.append(_Mark())
        elif name == "POP" and self.stack and isinstance(self.stack[-1], _Mark):
            self.stack.pop()
        elif name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            self.step_name(name, arg)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if not isinstance(arg, int) or arg not in self.memo:
                raise _Stopped
            self.stack.append(self.memo[arg])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "DUP"):
            top = self.pop()
            self.stack.append(top)
            if name == "DUP":
                self.stack.append(top)
            else:
                self.remember(arg if isinstance(arg, int) else len(self.memo), top)
        else:
            self.step_by_table(opcode, arg)

    def step_name(self, name: str, arg: object) -> None:
        if name == "STACK_GLOBAL":
            what, module = self.pop(), self.pop()
            if isinstance(what, (_Name, type(None))) or isinstance(module, (_Name, type(None))):
                raise _Stopped
            arg = f"{module} {what}"
        asked = _Name(arg)
        self.ask(asked, name)
        if name == "INST":
            self.pop_to_mark()
            self.stack.append(None)
        else:
            self.stack.append(asked)

    def step_by_table(self, opcode: pickletools.OpcodeInfo, arg: object) -> None:
        """Take and give as many values as `pickletools` says; text is kept, all else is None."""
        name, before, after = opcode.name, opcode.stack_before, opcode.stack_after
        taken: list[_Value] = []
        if pickletools.stackslice in before:
            taken = self.pop_to_mark()
            if name == "OBJ" and not taken:
                raise _Stopped
            before = before[: before.index(pickletools.markobject)]
            if len(taken) % 2 and name in ("DICT", "SETITEMS"):
                raise _Stopped
        taken = [self.pop() for _ in before][::-1] + taken
        if name in _CALLS or name == "OBJ":
            self.note_use(taken[0], name)
        if name in _IN_PLACE:
            self.stack.append(taken[0])
        elif name != "STOP":
            self.stack += [_text(kind, arg) for kind in after]


def _text(kind: pickletools.StackObject, arg: object) -> str | None:
    """The value pushed, if that is a text which every unpickler reads alike."""
    is_old = kind is pickletools.pybytes_or_str
    if not isinstance(arg, str) or not (is_old or kind is pickletools.pyunicode):
        return None
    return None if is_old and not arg.isascii() else arg


def asked_by(pickle: bytes) -> tuple[list[Asked], int | None]:
    """What the pickle that *pickle* begins with asks for, until an unpickler would stop.

    Returns:
        The names, in order; and the bytes of the pickle, STOP included, or None if there is
        no whole one.
    """
    witness = _Witness()
    stream = io.BytesIO(pickle)
    with warnings.catch_warnings():
        # Of escapes in text that Python does not know.
        warnings.simplefilter("ignore")
        try:
            for opcode, arg, _ in pickletools.genops(stream):
                witness.step(opcode, arg)
        except (_Stopped, *BROKEN):
            return witness.asked, None
    return witness.asked, stream.tell()


def pickles_in_row(pickle: bytes) -> Iterator[bytes]:
    """*pickle*, and behind each one that has an end the next, as loops of loads read them."""
    for _ in range(_MOST_ROW):
        yield pickle
        _, end = asked_by(pickle)
        if end is None or end == len(pickle):
            return
        pickle = pickle[end:]


def pickles_in(data: bytes, level: int = 0) -> Iterator[Pickle]:
    """Everything that some reader of the file *data* would unpickle."""
    # A zip archive read as a pickle begins with a persistent id in text, at which `pickle.load`
    # stops; and torch, which would go on, takes it for an archive.
    if not data.startswith(b"PK\3\4"):
        for pickle in pickles_in_row(data):
            yield Pickle("a bare unpickler", pickle)
    if level == _MOST_LEVELS:
        return
    for name, inner in _archived(data):
        if "/data/" in name:
            continue
        for found in pickles_in(inner, level + 1):
            yield Pickle(f"{name}: {found.reader}", found.data)
    objects = _behind_npy_header(data)
    if objects is not None:
        yield Pickle("numpy", objects)


def _archived(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Files in the file *data*, by name; what breaks off is handed over as far as it goes."""
    yield from _in_zip(data)
    yield from _in_tar(data)
    for name, opened in _DECODERS.items():
        inner = _read(opened(io.BytesIO(data)))
        if inner:
            yield name, inner


def _in_zip(data: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except BROKEN:
        return
    for info in archive.infolist():
        try:
            with archive.open(info) as file:
                inner = _read(file)
        except BROKEN:
            continue
        yield info.filename, inner


def _in_tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    with suppress(*BROKEN), tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive.getmembers():
            with suppress(*BROKEN):
                file = archive.extractfile(member)
                if file is not None:
                    yield member.name, _read(file)


class _InflatedFile(io.RawIOBase):
    """What zlib inflates, a few bytes of it at a time; the standard library has no such file."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__()
        self._file = file
        self._stream = zlib.decompressobj()

    def read(self, size: int = -1, /) -> bytes:
        piece = b""
        while not piece and not self._stream.eof:
            packed = self._stream.unconsumed_tail or self._file.read(_STEP)
            piece = self._stream.decompress(packed, size)
            if not packed:
                break
        return piece


_DECODERS: dict[str, Callable[[io.BytesIO], _Readable]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "zlib": _InflatedFile,
    "bzip2": bz2.BZ2File,
    "xz": lambda file: lzma.LZMAFile(file, format=lzma.FORMAT_XZ),  # noqa: SIM115 - in memory
}


def _read(file: _Readable) -> bytes:
    """What comes out of *file* before its end or an error: an unpickler reads along."""
    out = b""
    while len(out) < _MOST_BYTES:
        try:
            piece = file.read(_STEP)
        except BROKEN:
            break
        if not piece:
            break
        out += piece
    return out


def _behind_npy_header(data: bytes) -> bytes | None:
    """What stands behind a NumPy header, if that is an array of objects."""
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = npy.read_magic(stream)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            _, _, dtype = read(stream)
    except BROKEN:
        return None
    return data[stream.tell() :] if dtype.hasobject else None
