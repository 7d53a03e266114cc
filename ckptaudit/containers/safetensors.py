"""Safetensors as input: a JSON header and one buffer.

Knows:      the safetensors format (safetensors/src/tensor.rs, README "Format").
Is told:    a source that begins with a header length and ``{``.
Never asks: what the tensors are for.

Layout: 8 bytes little-endian header length; the header, a JSON object of
``name: {dtype, shape, data_offsets: [begin, end)}`` and ``__metadata__``, padded
with spaces; then the data, which the tensors must cover without gap or overlap.
"""

from __future__ import annotations

from itertools import accumulate, chain
from math import prod
from operator import mul
from typing import TYPE_CHECKING

from ckptaudit.containers.container import (
    Container,
    Kind,
    Mishap,
    Record,
    Role,
    Storage,
    StoredTensor,
    Use,
    check_rank,
)
from ckptaudit.containers.ledger import Ledger
from ckptaudit.dtypes import by_safetensors
from ckptaudit.errors import LimitExceeded, MalformedInput
from ckptaudit.vm import brief
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Budget

__all__ = [
    "MODELSPEC_PREFIX",
    "data_start",
    "looks_like_safetensors",
    "open_safetensors",
    "read_header",
    "speaks_of_file",
]

# Stability-AI/ModelSpec, README: how its keys in ``__metadata__`` begin.
MODELSPEC_PREFIX = "modelspec."
# safetensors/src/tensor.rs, MAX_HEADER_SIZE.
_MOST_HEADER_BYTES = 100_000_000
# No file has a larger size; prod() must stay cheap.
_MOST_ELEMENTS = 1 << 62
_PREFIX = 8
_FIELDS = ("dtype", "shape", "data_offsets")


def looks_like_safetensors(source: ByteSource) -> bool:
    """Whether *source* begins as a safetensors file does."""
    if source.size <= _PREFIX:
        return False
    head = source.read_at(0, _PREFIX + 1)
    length = int.from_bytes(head[:_PREFIX], "little")
    return head[_PREFIX:] == b"{" and 1 < length <= min(_MOST_HEADER_BYTES, source.size - _PREFIX)


def speaks_of_file(key: str) -> bool:
    """Whether *key* of ``__metadata__`` is known to say something of the file.

    Any other may be the name of a tensor that is stored under another name, which is its value;
    what these say may happen to be a tensor's name, too.
    """
    return key == "format" or key.startswith(MODELSPEC_PREFIX)


def data_start(source: ByteSource) -> int | None:
    """Where the data begin, in bytes, if *source* begins as a safetensors file does; else None."""
    if not looks_like_safetensors(source):
        return None
    return _PREFIX + int.from_bytes(source.read_at(0, _PREFIX), "little")


def read_header(
    source: ByteSource, budget: Budget
) -> tuple[dict[str, object], dict[str, str], int]:
    """The tensors' entries, the metadata, and the offset of the first byte of data.

    Raises:
        MalformedInput: The header is not one.
        LimitExceeded: It could be of more values than the budget allows.
    """
    # Loaded by the file that needs it: most files are no safetensors.
    import json  # noqa: PLC0415 - see above

    length = int.from_bytes(source.read_at(0, _PREFIX), "little")
    if length > _MOST_HEADER_BYTES:
        raise MalformedInput("has a header over 100 MB", where=source.name, offset=0)
    text = source.read_at(_PREFIX, length)
    # An empty list takes three bytes here and sixty in memory: look before parsing.
    nodes = budget.nodes + text.count(b"[") + text.count(b"{")
    opcodes = budget.opcodes + text.count(b",")
    if nodes > budget.limits.nodes or opcodes > budget.limits.opcodes:
        raise LimitExceeded(
            "has a header of more values than the limit allows", where=source.name, offset=_PREFIX
        )
    budget.nodes, budget.opcodes = nodes, opcodes
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as err:
        raise MalformedInput(
            f"the header is not valid JSON ({err})", where=source.name, offset=_PREFIX
        ) from err
    if not isinstance(header, dict):
        raise MalformedInput("the header is not an object", where=source.name, offset=_PREFIX)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise MalformedInput(
            "__metadata__ is not a map of strings", where=source.name, offset=_PREFIX
        )
    return header, metadata, _PREFIX + length


def open_safetensors(source: ByteSource, budget: Budget) -> Container:
    """Read the safetensors file in *source*.

    Raises:
        MalformedInput: The header breaks the format's rules.
        LimitExceeded: It lists more than the budget allows.
    """
    header, metadata, start = read_header(source, budget)
    budget.pay_records(len(header), source.name)
    storages = {}
    tensors = {}
    for name, entry in header.items():
        storage, tensor = _read_entry(source, name, entry, start)
        storages[name] = storage
        tensors[name] = tensor
    in_order = sorted(storages.values(), key=lambda storage: (storage.offset, storage.nbytes))
    records = [Record("header", 0, start, "stored", Role.METADATA)]
    records += [
        Record(storage.record, storage.offset, storage.nbytes, "stored", Role.STORAGE)
        for storage in in_order
    ]
    ledger = Ledger(source, budget)
    ledger.claim(0, start, Use.STRUCTURE)
    end = start
    for storage in in_order:
        ledger.claim(storage.offset, storage.offset + storage.nbytes, Use.STORAGE)
        if storage.offset < end:
            at, length = storage.offset, storage.nbytes
            ledger.mishaps.append(
                Mishap("safetensors-cover", "overlaps another", storage.record, at, length)
            )
        end = max(end, storage.offset + storage.nbytes)
    for name, entry in header.items():
        # Its own reader does not look at them, and they may say anything.
        if isinstance(entry, dict) and len(entry) > len(_FIELDS):
            message = "has more in the header than dtype, shape and data_offsets"
            ledger.mishaps.append(Mishap("safetensors-cover", message, name, _PREFIX))
    ledger.settle("safetensors-cover", "outside of all tensors")
    return Container(
        source=source,
        kind=Kind.SAFETENSORS,
        records=(*records, *ledger.records),
        traces=tuple(ledger.traces),
        storages=storages,
        tensors=tensors,
        mishaps=tuple(ledger.mishaps),
        gaps=tuple(ledger.gaps),
        metadata=metadata,
        regions=tuple(ledger.regions),
    )


def _read_entry(
    source: ByteSource, name: str, entry: object, start: int
) -> tuple[Storage, StoredTensor]:
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
            type(begin) is type(end) is int
        ):
            pass
        case _:
            raise MalformedInput("has no dtype, shape and data_offsets", where=name)
    dtype = by_safetensors(code)
    if dtype is None:
        raise MalformedInput(f"has dtype {code!r}, which we do not know", where=name)
    check_rank(len(shape), name)
    if not all(type(size) is int and 0 <= size < _MOST_ELEMENTS for size in shape):
        raise MalformedInput("has a shape that is not a list of sizes", where=name)
    numel = prod(shape)
    if not 0 <= begin <= end <= source.size - start or end - begin != numel * dtype.itemsize:
        raise MalformedInput(
            f"has data at [{brief(begin)}, {brief(end)}) for {counted(numel, 'element')} of "
            f"{dtype.name} in a file of {counted(source.size - start, 'byte')} of data; it is "
            "truncated or damaged: fetch it again",
            where=name,
        )
    storage = Storage(name, dtype, numel, start + begin, end - begin, "cpu", name)
    # From the last axis, which steps by one, to the first.
    steps = accumulate(reversed(shape[1:]), mul, initial=1)
    stride = tuple(steps)[::-1] if shape else ()
    return storage, StoredTensor(name, name, dtype, tuple(shape), stride, 0)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    for text in chain.from_iterable(pairs):
        if isinstance(text, str):
            # A lone surrogate, which JSON can spell, is no text that could be written again.
            text.encode("utf-8")
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found
