"""Which framing a file has, decided by its content in the order torch.load decides.

Knows:      the order in which torch.load tries its readers, and how common non-checkpoints begin.
Is told:    a source.
Never asks: what the file is called.

Source: torch/serialization.py, load: zip if the first four bytes say so, else tar,
else the legacy stream.  Safetensors comes first, since every other reader opens it; but
a file can be safetensors and a pickle at once (a header length of ``V`` makes the header
a string and the data the next opcodes), and torch.load would run that.  So what is not a
zip is run as a pickle in any case.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptaudit.containers.container import Container, Gap, Kind, Mishap, Record, Role, Use
from ckptaudit.containers.ledger import Ledger
from ckptaudit.containers.legacy import begins_with_magic, open_legacy
from ckptaudit.containers.safetensors import looks_like_safetensors, open_safetensors
from ckptaudit.containers.tar import open_tar
from ckptaudit.containers.tarmembers import has_tar_header
from ckptaudit.containers.zip import SIGNATURE, open_zip
from ckptaudit.errors import LimitExceeded, MalformedInput, Unsupported
from ckptaudit.vm import Budget, Oddity, PersistentId, Trace, trace_pickle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Limits

__all__ = ["open_container"]

# How files begin that are often found under a checkpoint's name.
_BEGINNINGS = (
    (b"<!doctype html", "an HTML page; the download went wrong: fetch the file itself"),
    (b"<html", "an HTML page; the download went wrong: fetch the file itself"),
    (b"<?xml", "an XML document, often a server's error message; fetch the file again"),
    (b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull` to get the file itself"),
    (b'{"', "JSON text, not a checkpoint; often a server's error message: fetch the file again"),
    (b"\x89png\r\n", "a PNG image, not a checkpoint"),
    (b"\xff\xd8\xff", "a JPEG image, not a checkpoint"),
    (b"gguf", "a GGUF model; it holds no pickle and needs no conversion by us"),
    (b"\x89hdf\r\n", "an HDF5 file, not a torch checkpoint"),
    (b"\x1f\x8b", "gzip-compressed; uncompress it first"),
    (b"bzh", "bzip2-compressed; uncompress it first"),
    (b"\xfd7zxz", "xz-compressed; uncompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstandard-compressed; uncompress it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"rar!", "a RAR archive; unpack it first"),
    (b"pk\5\6", "an empty zip archive, not a checkpoint"),
    (b"\x93numpy", "a NumPy array, not a torch checkpoint"),
)
_LONGEST_BEGINNING = 64
# Files of several pickles hold a handful; each costs a window of reading.
_MOST_PICKLES = 1000


def open_container(source: ByteSource, limits: Limits | None = None) -> Container:
    """Open *source* by what it holds, whatever it is called.

    Args:
        source: The bytes; whoever opened it closes it.
        limits: The most the whole of it may cost.

    Raises:
        MalformedInput: It is a checkpoint, but truncated or damaged; or it is empty.
        Unsupported: It is something else; the message says what.
    """
    with _collecting_no_garbage():
        return _open(source, Budget(limits))


@contextmanager
def _collecting_no_garbage() -> Iterator[None]:
    """All that opening a file makes lives as long as its container.

    Looking for garbage in it, again whenever it has grown by a quarter, takes three times as
    long as making it.  What may be made is limited.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _open(source: ByteSource, budget: Budget) -> Container:
    if source.size == 0:
        raise MalformedInput("is empty; fetch it again", where=source.name, offset=0)
    if source.read_at(0, min(4, source.size)) == SIGNATURE:
        return open_zip(source, budget)
    first = trace_pickle(source, 0, source.size, record="pickle", budget=budget)
    try:
        framed = _open_framed(source, budget)
    except MalformedInput:
        if not _may_ask_for_something(first):
            raise
    else:
        if framed is not None:
            return _with_pickle(framed, first) if _may_ask_for_something(first) else framed
    if begins_with_magic(first):
        return open_legacy(source, first, budget)
    return _open_pickle(source, first, budget)


def _open_framed(source: ByteSource, budget: Budget) -> Container | None:
    """The container, if *source* has a framing that its first bytes tell; None if not."""
    if looks_like_safetensors(source):
        return open_safetensors(source, budget)
    if has_tar_header(source):
        return open_tar(source, budget)
    return None


def _with_pickle(framed: Container, pickle: Trace) -> Container:
    """*framed*, whose bytes are at the same time a pickle that may ask for something."""
    message = f"is a pickle as well as {framed.kind.value}, and torch.load may run it"
    return replace(
        framed,
        records=(Record(pickle.record, 0, pickle.end, "stored", Role.PICKLE), *framed.records),
        traces=(pickle, *framed.traces),
        main=None if framed.main is None else framed.main + 1,
        mishaps=(*framed.mishaps, Mishap("extra-pickle", message, pickle.record, 0)),
    )


def _open_pickle(source: ByteSource, first: Trace, budget: Budget) -> Container:
    """A bare pickle, or several behind each other; whatever cannot be one is refused.

    torch would go on with its legacy schedule if the first pickle, once *executed*, gave
    the magic number, so every pickle that follows is run as well.
    """
    broken = first.error if _is_broken(first) else None
    if broken is not None and all(isinstance(event, Oddity) for event in first.events):
        raise _not_a_checkpoint(source, broken)
    traces = [first]
    end = first.end
    while end < source.size and traces[-1].error is None and len(traces) < _MOST_PICKLES:
        following = trace_pickle(
            source, end, source.size, record=f"pickle {len(traces)}", budget=budget
        )
        if _is_broken(following) and not following.events:
            break
        traces.append(following)
        end += following.end
    ledger = Ledger(source, budget)
    if first.error is not None:
        # A PNG file is one: its first bytes are a pickle that has a persistent id.
        ledger.gaps += [Gap(f"looks like {what}", "", 0) for what in _looks_like(source)]
    if len(traces) > 1:
        message = f"{len(traces)} pickles, one behind the other"
        ledger.mishaps.append(Mishap("several-pickles", message, "", traces[0].end))
    records = []
    at = 0
    for trace in traces:
        records.append(Record(trace.record, at, trace.end, "stored", Role.PICKLE))
        ledger.claim(at, at + trace.end, Use.PICKLE)
        at += trace.end
    if traces[-1].error is not None:
        ledger.leave(end, source.size, traces[-1].record)
    ledger.settle("bytes-after-pickle", "bytes after the pickle's end")
    return Container(
        source=source,
        kind=Kind.PICKLE,
        records=(*records, *ledger.records),
        traces=(*traces, *ledger.traces),
        main=0 if len(traces) == 1 else None,
        mishaps=tuple(ledger.mishaps),
        gaps=tuple(ledger.gaps),
        regions=tuple(ledger.regions),
    )


def _may_ask_for_something(trace: Trace) -> bool:
    """Whether a pickle got as far as a name or a call, or goes on for longer than we follow."""
    return isinstance(trace.error, LimitExceeded) or not all(
        isinstance(event, (Oddity, PersistentId)) for event in trace.events
    )


def _is_broken(trace: Trace) -> bool:
    """Whether an unpickler would stop before STOP; of one that costs too much we cannot tell."""
    return trace.error is not None and not isinstance(trace.error, LimitExceeded)


def _looks_like(source: ByteSource) -> list[str]:
    """What else the file may be, by how it begins."""
    head = source.read_at(0, min(_LONGEST_BEGINNING, source.size)).lstrip().lower()
    return [what for beginning, what in _BEGINNINGS if head.startswith(beginning)]


def _not_a_checkpoint(source: ByteSource, error: MalformedInput) -> MalformedInput | Unsupported:
    for what in _looks_like(source):
        return Unsupported(f"{source.name}: is {what}")
    if error.offset == 0:
        return Unsupported(
            f"{source.name}: is neither zip, tar, pickle nor safetensors; is it a checkpoint?"
        )
    return MalformedInput(
        f"is not a whole checkpoint ({error}); it is truncated or damaged: fetch it again",
        where=source.name,
        offset=error.offset,
    )
