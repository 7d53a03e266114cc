"""What every pickler writes, the machine reads: C and Python, framed and not, with a memo or not.

Only what was written here, from plain data and harmless classes, is ever unpickled.
"""

from __future__ import annotations

import _codecs
import _pickle
import builtins
import copyreg
import io
import pickle
import pickletools
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import pytest
from forge import (
    APPENDS,
    EMPTY_LIST,
    MARK,
    binstring,
    pickled,
    short_binstring,
    string_line,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vm import Picture, Rebuild, plain_data, run, shared_data

from ckptaudit.vm import Call, Global, Oddity, PersistentId, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptaudit.vm import Node


class Unframed(pickle._Pickler):  # noqa: SLF001 - the pickler in Python has no other name
    """Writes protocols 4 and 5 without frames, as other languages' picklers do."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        vars(self)["framer"].start_framing = lambda: None


def by_c(data: object, protocol: int) -> bytes:
    return _pickle.dumps(data, protocol)


def by_python(data: object, protocol: int) -> bytes:
    file = io.BytesIO()
    pickle._Pickler(file, protocol).dump(data)  # noqa: SLF001 - the same
    return file.getvalue()


def without_frames(data: object, protocol: int) -> bytes:
    file = io.BytesIO()
    Unframed(file, protocol).dump(data)
    return file.getvalue()


def optimized(data: object, protocol: int) -> bytes:
    return pickletools.optimize(_pickle.dumps(data, protocol))


def without_memo(data: object, protocol: int) -> bytes:
    """What is there twice is written twice; what holds itself cannot be written."""
    file = io.BytesIO()
    pickler = _pickle.Pickler(file, protocol)
    pickler.fast = True
    pickler.dump(data)
    return file.getvalue()


PICKLERS = (by_c, by_python, without_frames, optimized)
protocols = st.integers(0, 5)


def read(pickle_: bytes) -> Trace:
    trace = run(pickle_)
    assert trace.error is None
    assert trace.end == len(pickle_)
    assert not any(isinstance(event, Oddity) for event in trace.events)
    return trace


@settings(max_examples=300)
@given(shared_data() | plain_data, protocols, st.sampled_from(PICKLERS))
def test_whoever_wrote_it_the_tree_rebuilds_what_cpython_loads(
    data: object, protocol: int, pickler: Callable[[object, int], bytes]
) -> None:
    """Down to which lists are one and the same, and which hold themselves."""
    written = pickler(data, protocol)

    rebuilt = Rebuild()(read(written).root)

    assert Picture()(rebuilt) == Picture()(_pickle.loads(written))


@settings(max_examples=100)
@given(plain_data, protocols)
def test_without_a_memo_the_same_is_rebuilt(data: object, protocol: int) -> None:
    written = without_memo(data, protocol)

    rebuilt = Rebuild()(read(written).root)

    assert Picture()(rebuilt) == Picture()(_pickle.loads(written))


LENGTHS = (0, 1, 7, 8, 15, 16, 31, 32, 63, 64, 2039, 2040, 2047, 2048, 8190)


@pytest.mark.parametrize("pickler", PICKLERS)
@pytest.mark.parametrize("protocol", range(6))
def test_integers_are_rebuilt_on_either_side_of_every_width(
    pickler: Callable[[object, int], bytes], protocol: int
) -> None:
    """INT, LONG, BININT and its kin, LONG1 up to 255 bytes and LONG4 beyond."""
    numbers = [sign * (1 << bits) + by for bits in LENGTHS for sign in (1, -1) for by in (-1, 0, 1)]

    assert Rebuild()(read(pickler(numbers, protocol)).root) == numbers


# Persistent ids


class Ref(NamedTuple):
    """What stands outside of the pickle."""

    pid: object


class Referring(_pickle.Pickler):
    """Leaves every `Ref` to whoever loads."""

    def persistent_id(self, obj: object) -> object:
        """The id, of a `Ref`."""
        return obj.pid if isinstance(obj, Ref) else None


class ReferringInPython(pickle._Pickler):  # noqa: SLF001 - the same
    """The same in Python."""

    persistent_id = Referring.persistent_id


class Loading(_pickle.Unpickler):
    """Finds every `Ref` again."""

    def persistent_load(self, pid: object) -> object:
        """The `Ref` of this id."""
        return Ref(pid)


class RebuildRefs(Rebuild):
    """Rebuilds persistent ids as well."""

    def _make(self, node: Node) -> object:
        return Ref(self(node.pid)) if isinstance(node, PersistentId) else super()._make(node)


lines = st.text(st.characters(codec="ascii", exclude_characters="\n\r"), min_size=1)
ids = plain_data.filter(lambda data: data is not None)


def referring(refs: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    held = st.builds(Ref, refs) | plain_data
    return st.lists(held | st.dictionaries(st.text(), held, max_size=3), max_size=5)


@settings(max_examples=150)
@given(
    st.tuples(st.just(0), referring(lines)) | st.tuples(st.integers(1, 5), referring(ids)),
    st.sampled_from([Referring, ReferringInPython]),
)
def test_what_a_persistent_id_holds_is_rebuilt(
    what: tuple[int, object], pickler: type[Referring]
) -> None:
    """Protocol 0 has ids of one line of text, the others any value."""
    protocol, data = what
    file = io.BytesIO()
    pickler(file, protocol).dump(data)

    rebuilt = RebuildRefs()(read(file.getvalue()).root)

    assert rebuilt == Loading(io.BytesIO(file.getvalue())).load()


# Strings of Python 2


def as_python_2_wrote_it(data: bytes) -> bytes:
    """STRING, its text as Python 2's repr; a quote in it changes the quotes around it."""
    return string_line(repr(data).removeprefix("b").encode())


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=300) | st.text().map(str.encode), max_size=6))
def test_a_string_of_python_2_is_text_or_its_bytes(strings: list[bytes]) -> None:
    """Whichever of the three opcodes wrote it; text as torch.load reads it, in utf-8."""
    ways = [as_python_2_wrote_it, binstring]
    opcodes = [way(data) for data in strings for way in ways]
    opcodes += [short_binstring(data) for data in strings if len(data) < 256]
    written = pickled(EMPTY_LIST, MARK, *opcodes, APPENDS)

    root = run(written).root

    assert isinstance(root, list)
    by_bytes = _pickle.loads(written, encoding="bytes")
    assert [each.encode() if isinstance(each, str) else each for each in root] == by_bytes
    if all(isinstance(each, str) for each in root):
        assert root == _pickle.loads(written, encoding="utf-8")


# Objects of harmless classes


class Remake(Rebuild):
    """Makes what calls in a tree would make, of the classes below and no others."""

    def _make(self, node: Node) -> object:
        if isinstance(node, Global):
            return KNOWN[str(node)]
        return super()._make(node)

    def _call(self, node: Call) -> object:
        function: Any = self(node.func)
        args: Any = self(node.args)
        kwargs: Any = self(node.kwargs) or {}
        as_new = node.op in ("NEWOBJ", "NEWOBJ_EX")
        made = function.__new__(function, *args, **kwargs) if as_new else function(*args, **kwargs)
        self.made[id(node)] = made
        self._fill(made, node)
        return made

    def _fill(self, made: Any, node: Call) -> None:
        for element in node.elements:
            (made.add if isinstance(made, set) else made.append)(self(element))
        for key, value in node.pairs:
            made[self(key)] = self(value)
        if node.state is not None:
            state: Any = self(node.state)
            if hasattr(made, "__setstate__"):
                made.__setstate__(state)
            else:
                vars(made).update(state)


OBJECTS = {
    "ordered-dict": OrderedDict(b=1, a=[2]),
    "default-dict": defaultdict(list, x=[1]),
    "counter": Counter("abca"),
    "deque": deque([1, (2,)], maxlen=5),
    "complex": 1.5 - 2j,
    "date": date(2022, 8, 22),
    "datetime": datetime(2022, 8, 22, 12, tzinfo=timezone.utc),
    "timedelta": timedelta(days=-1, microseconds=5),
    "decimal": Decimal("1.50"),
    "fraction": Fraction(22, 7),
    "namespace": Namespace(lr=1e-4, names=["a"]),
    "simple-namespace": SimpleNamespace(a=1, b=None),
    "uuid": UUID(int=5),
    "path": PurePosixPath("a/b"),
    "range": range(1, 9, 2),
    "slice": slice(1, None, 2),
    "bytearray": bytearray(b"\0\xff"),
    "nested": [OrderedDict(a=Namespace(b=deque([Fraction(1, 2)])))],
}


def _known() -> dict[str, object]:
    classes = [
        OrderedDict,
        defaultdict,
        Counter,
        deque,
        date,
        datetime,
        timedelta,
        timezone,
        Decimal,
        Fraction,
        Namespace,
        SimpleNamespace,
        UUID,
        PurePosixPath,
    ]
    known: dict[str, object] = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in classes}
    for name in (
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "list",
        "object",
        "range",
        "slice",
        "set",
    ):
        known |= {
            f"{module}.{name}": getattr(builtins, name) for module in ("builtins", "__builtin__")
        }
    known["__builtin__.xrange"] = range
    known["copy_reg._reconstructor"] = vars(copyreg)["_reconstructor"]
    known["_codecs.encode"] = _codecs.encode
    return known


KNOWN = _known()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("pickler", PICKLERS)
@pytest.mark.parametrize("data", OBJECTS.values(), ids=OBJECTS)
def test_objects_of_harmless_classes_are_made_of_what_the_tree_says(
    data: object, pickler: Callable[[object, int], bytes], protocol: int
) -> None:
    """REDUCE, NEWOBJ and NEWOBJ_EX, what BUILD sets and what is stored in the result after."""
    remade = Remake()(read(pickler(data, protocol)).root)

    assert remade == data
    assert type(remade) is type(data)
