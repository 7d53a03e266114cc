"""Which framing a file has, decided by its content in the order torch.load decides.

Knows:      the order in which torch.load tries its readers, and how common non-checkpoints begin.
Is told:    a source.
Never asks: what the file is called.

Source: torch/serialization.py, load: zip if the first four bytes say so, else tar,
else the legacy stream.  Safetensors comes first, since every other reader opens it; but
a file can be safetensors and a pickle at once (a header length of ``V`` makes the header
a string and the data the next opcodes), and torch.load would run that.  So what is not a
zip is run as a pickle in any case; and what torch.load would not read at all, compressed
files and archives, is opened for what is inside.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptaudit.containers.beginnings import ARCHIVED, NUMPY, SEVEN_ZIP, head_of, what_it_is
from ckptaudit.containers.container import Container, Gap, Kind, Mishap, Nested, Record, Role, Use
from ckptaudit.containers.inside import Inside
from ckptaudit.containers.ledger import Ledger
from ckptaudit.containers.legacy import begins_with_magic, open_legacy
from ckptaudit.containers.packings import may_be_compressed
from ckptaudit.containers.pythonzip import PythonArchive, find_archive
from ckptaudit.containers.safetensors import looks_like_safetensors, open_safetensors
from ckptaudit.containers.tarheader import has_tar_header
from ckptaudit.containers.zip import SIGNATURE, open_zip
from ckptaudit.errors import LimitExceeded, MalformedInput, Unsupported
from ckptaudit.vm import Budget, Oddity, PersistentId, Trace, trace_pickle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Limits

__all__ = ["open_container", "open_one_of", "opener_of"]

_OTHER_READING = (
    "Python's zipfile, which goes by the last end record, sees another archive than torch.load does"
)
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
    return open_one_of(source, opener_of(source.size, limits))


def opener_of(nbytes: int, limits: Limits | None = None) -> Inside:
    """What opens files of *nbytes* in all, which are one model and pay from one purse."""
    return Inside(Budget(limits), _open, nbytes)


def open_one_of(source: ByteSource, inside: Inside) -> Container:
    """Open *source* as `open_container` does, with what *inside* has left; raises likewise."""
    with _collecting_no_garbage():
        return _open(source, inside)


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


def _open(source: ByteSource, inside: Inside) -> Container:
    if source.size == 0:
        raise MalformedInput("is empty; fetch it again", where=source.name, offset=0)
    archive = find_archive(source)
    try:
        container = _open_as_torch(source, inside)
    except (MalformedInput, Unsupported) as err:
        if archive is None:
            raise
        container = _unread(source, str(err.args[0]).removeprefix(f"{source.name}: "))
        is_torchs = archive.is_torchs
        archive = archive._replace(is_torchs=False)
        found = list(_around(container, archive, inside))
        # Where both go to the same directory, zipfile may still read what torch does not.
        if is_torchs and not any(isinstance(inner, Nested) for inner in found):
            raise
    else:
        found = list(_around(container, archive, inside))
    nested = tuple(inner for inner in found if isinstance(inner, Nested))
    gaps = tuple(gap for gap in found if isinstance(gap, Gap))
    mishaps = tuple(mishap for mishap in found if isinstance(mishap, Mishap))
    return replace(
        container,
        inside=inside,
        nested=(*container.nested, *nested),
        gaps=(*container.gaps, *gaps),
        mishaps=(*container.mishaps, *mishaps),
    )


def _open_as_torch(source: ByteSource, inside: Inside) -> Container:
    """Open *source* by how it begins."""
    budget = inside.budget
    if source.read_at(0, min(4, source.size)) == SIGNATURE:
        return open_zip(source, inside)
    first = trace_pickle(source, 0, source.size, record="pickle", budget=budget)
    try:
        framed = _open_framed(source, inside)
    except MalformedInput:
        if not _may_ask_for_something(_pickles_from(source, first, budget)):
            raise
    else:
        if framed is not None:
            pickles = _pickles_from(source, first, budget)
            return _with_pickles(framed, pickles) if _may_ask_for_something(pickles) else framed
    if begins_with_magic(first):
        return open_legacy(source, first, budget)
    return _open_pickle(source, first, budget)


def _open_framed(source: ByteSource, inside: Inside) -> Container | None:
    """The container, if *source* has a framing that its first bytes tell; None if not.

    What reads a rare one is loaded by the file that has it.
    """
    if looks_like_safetensors(source):
        return open_safetensors(source, inside.budget)
    if has_tar_header(source):
        from ckptaudit.containers.tar import open_tar

        return open_tar(source, inside.budget)
    head = head_of(source)
    if head.startswith(NUMPY):
        from ckptaudit.containers.npy import open_npy

        return open_npy(source, inside)
    if head.startswith(SEVEN_ZIP):
        from ckptaudit.containers.sevenzip import open_seven_zip

        return open_seven_zip(source, inside)
    for beginning, what in ARCHIVED.items():
        if head.startswith(beginning):
            return _unread(source, f"is {what}")
    if may_be_compressed(source):
        from ckptaudit.containers.compressed import open_compressed

        return open_compressed(source, inside)
    return None


def _unread(source: ByteSource, why: str) -> Container:
    """A file of which nothing is read."""
    return Container(
        source=source,
        kind=Kind.ARCHIVE,
        records=(),
        traces=(),
        gaps=(Gap(why, "", 0),),
        refusal=why,
    )


def _around(
    opened: Container, archive: PythonArchive | None, inside: Inside
) -> Iterator[Nested | Gap | Mishap]:
    """What other readers see in the same bytes, and files before and behind this one."""
    source = opened.source
    # Of what stands there with another reader's eyes nothing more needs to be told.
    taken: tuple[int, int] | None = None
    if archive is not None and not archive.is_torchs:
        start = max(archive.base, 0)
        yield Mishap("zip-other-reading", _OTHER_READING, "", start, archive.end - start)
        try:
            alone = archive.alone("zip")
            below = inside.below(alone.name, archive.end - start)
            missing = max(-archive.base, 0)
            container = replace(open_zip(alone, below, missing=missing), inside=below)
            yield Nested(alone.name, archive.base, container)
        except (MalformedInput, Unsupported) as err:
            reason = str(err.args[0]).removeprefix("zip: ")
            why = f"another zip archive in the file {reason}"
            yield Gap(why, "zip", start, length=archive.end - start)
        taken = (start, archive.end)
    names = {mishap.offset: mishap.record for mishap in opened.mishaps if mishap.record}
    for start, stop in _without(taken, _uncovered(opened)):
        name = names.get(start) or f"byte {start}"
        found = inside.look_for_framing(source, start, stop, name, start)
        if found is not None:
            yield found


def _uncovered(opened: Container) -> Iterator[tuple[int, int]]:
    """Ranges of bytes that belong to nothing; none if nobody has accounted for any."""
    at = 0
    for region in opened.regions:
        if region.start > at:
            yield at, region.start
        at = max(at, region.stop)
    if opened.regions and at < opened.source.size:
        yield at, opened.source.size


def _without(
    taken: tuple[int, int] | None, ranges: Iterator[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """What is left of *ranges* once the range *taken* is cut out of them."""
    for start, stop in ranges:
        first, last = taken or (stop, stop)
        if start < min(stop, first):
            yield start, min(stop, first)
        if max(start, last) < stop:
            yield max(start, last), stop


def _with_pickles(framed: Container, pickles: list[Trace]) -> Container:
    """*framed*, whose bytes are at the same time pickles that may ask for something."""
    message = f"is a pickle as well as {framed.kind.value}, and torch.load may run it"
    return replace(
        framed,
        records=(*map(_record_of, pickles), *framed.records),
        traces=(*pickles, *framed.traces),
        main=None if framed.main is None else framed.main + len(pickles),
        mishaps=(
            *framed.mishaps,
            Mishap("extra-pickle", message, pickles[0].record, 0, pickles[0].end),
        ),
    )


def _record_of(trace: Trace) -> Record:
    return Record(trace.record, trace.start, trace.end, "stored", Role.PICKLE)


def _pickles_from(source: ByteSource, first: Trace, budget: Budget) -> list[Trace]:
    """*first*, which begins the file, and every pickle that follows it without a gap.

    torch goes on with its legacy schedule if the first one, once *executed*, gives the magic
    number, and other loaders read until the file ends.
    """
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
    return traces


def _open_pickle(source: ByteSource, first: Trace, budget: Budget) -> Container:
    """A bare pickle, or several behind each other; whatever cannot be one is refused."""
    broken = first.error if _is_broken(first) else None
    if broken is not None and all(isinstance(event, Oddity) for event in first.events):
        raise _not_a_checkpoint(source, broken)
    traces = _pickles_from(source, first, budget)
    ledger = Ledger(source, budget)
    if first.error is not None:
        # A PNG file is one: its first bytes are a pickle that has a persistent id.
        what = what_it_is(head_of(source))
        ledger.gaps += [Gap(f"looks like {what}", "", 0)] if what else []
    if len(traces) > 1:
        message = f"{len(traces)} pickles, one behind the other"
        last = traces[-1]
        rest = last.start + last.end - first.end
        ledger.mishaps.append(Mishap("several-pickles", message, "", first.end, rest))
    for trace in traces:
        ledger.claim(trace.start, trace.start + trace.end, Use.PICKLE)
    last = traces[-1]
    if last.error is not None:
        ledger.leave(last.start + last.end, source.size, last.record)
    ledger.settle("bytes-after-pickle", "after the pickle's end")
    return Container(
        source=source,
        kind=Kind.PICKLE,
        records=(*map(_record_of, traces), *ledger.records),
        traces=(*traces, *ledger.traces),
        main=0 if len(traces) == 1 else None,
        mishaps=tuple(ledger.mishaps),
        gaps=tuple(ledger.gaps),
        regions=tuple(ledger.regions),
    )


def _may_ask_for_something(pickles: list[Trace]) -> bool:
    """Whether one of them got as far as a name or a call, or goes on for longer than we follow."""
    return any(
        isinstance(trace.error, LimitExceeded)
        or not all(isinstance(event, (Oddity, PersistentId)) for event in trace.events)
        for trace in pickles
    )


def _is_broken(trace: Trace) -> bool:
    """Whether an unpickler would stop before STOP; of one that costs too much we cannot tell."""
    return trace.error is not None and not isinstance(trace.error, LimitExceeded)


def _not_a_checkpoint(source: ByteSource, error: MalformedInput) -> MalformedInput | Unsupported:
    what = what_it_is(head_of(source))
    if what:
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
