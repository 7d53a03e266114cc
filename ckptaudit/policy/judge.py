"""What to think of an open file: findings, verdict, coverage.

Knows:      which mishaps of a framing are reasons for distrust, and how all that is found in a
            file, and in the files inside it, comes to one answer.
Is told:    an open container.
Never asks: what an event of a pickle is worth (`pickles`), what the tensors are, or what the
            caller will do with the answer.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING

from ckptaudit.containers import Gap, Kind, Place
from ckptaudit.policy.allowlist import allowed
from ckptaudit.policy.carried import CarriedFiles
from ckptaudit.policy.findings import Findings, Subject, record_text, shown
from ckptaudit.policy.judgement import GlobalUse, Judgement
from ckptaudit.policy.pickles import judge_pickle
from ckptaudit.policy.rules import RULES, Coverage
from ckptaudit.vm import Build, Call, Global, escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ckptaudit.containers import Container, Mishap, Nested
    from ckptaudit.policy.permissions import Policy
    from ckptaudit.vm import Event, Trace

__all__ = ["judge"]

# So many gaps, and so many different names, are listed one by one.
_MOST_GAPS = 1000
_MOST_USES = 1000
# Which rule each contradiction of a framing falls under.
_MISHAP_RULES = {
    "zip-several-ends": "CKA201",
    "zip-comment": "CKA202",
    "zip-end-mismatch": "CKA201",
    "zip-disks": "CKA201",
    "zip-gap": "CKA202",
    "zip-overlap": "CKA201",
    "zip-duplicate": "CKA201",
    "zip-name": "CKA201",
    "zip-name-mismatch": "CKA201",
    "zip-method-mismatch": "CKA201",
    "zip-size-mismatch": "CKA201",
    "zip-flags": "CKA201",
    "zip-second-root": "CKA201",
    "zip-header": "CKA201",
    "zip-crc": "CKA201",
    "zip-byteorder": "CKA206",
    "zip-version": "CKA203",
    "zip-ratio": "CKA112",
    "storage-missing": "CKA204",
    "storage-size": "CKA204",
    "storage-contradiction": "CKA204",
    "storage-unreferenced": "CKA203",
    "storage-name": "CKA203",
    "record-unknown": "CKA203",
    "extra-pickle": "CKA110",
    "several-pickles": "CKA110",
    "bytes-after-pickle": "CKA202",
    "bytes-after-storages": "CKA202",
    "legacy-magic": "CKA206",
    "legacy-protocol": "CKA206",
    "legacy-system": "CKA206",
    "legacy-byteorder": "CKA206",
    "tar-member": "CKA203",
    "tar-duplicate": "CKA201",
    "tar-gap": "CKA202",
    "tar-missing": "CKA206",
    "zip-no-checkpoint": "CKA203",
    "zip-other-reading": "CKA201",
    "other-archive": "CKA203",
    "several-streams": "CKA203",
    "bytes-after-compressed": "CKA202",
    "bytes-after-array": "CKA202",
    "safetensors-cover": "CKA202",
    "tensor-outside": "CKA207",
    "tensor-expanded": "CKA210",
    "storage-uncovered": "CKA209",
}


def judge(
    container: Container,
    examine: Callable[[Container], Iterable[Mishap | Gap]] = lambda _: (),
    policy: Policy | None = None,
) -> Judgement:
    """Judge everything *container* holds, and what is inside that.

    Args:
        container: An open file.
        examine: What else is wrong with a container, or left unread, beside its framing;
            asked for the file and for each one inside it.
        policy: Which names are permitted; of what it permits in one file `Judgement.of_file` is
            told when the file's hash is known.
    """
    findings = Findings(policy)
    gaps = _Gaps()
    uses: Counter[tuple[str, str]] = Counter()
    outermost = Place.of_file(container)
    judged: list[Place] = []
    pending = [outermost]
    while pending:
        place = pending.pop()
        judged.append(place)
        carried_in = _judge_one(place, examine(place.container), findings, gaps)
        uses.update(_names_in(place.container))
        pending += reversed(place.within((*place.container.nested, *carried_in)))
    if gaps.times:
        # Of a file that was read in part nobody can say that it is clean.
        others = f" and {gaps.times - 1} more" if gaps.times > 1 else ""
        findings.add(
            "CKA208",
            lambda: f"{RULES['CKA208'].title}: {gaps.listed[0]}{others}",
            Subject(outermost, ""),
        )
    return Judgement(
        verdict=findings.verdict,
        coverage=Coverage(complete=not gaps.times, gaps=gaps.all()),
        findings=findings.all(),
        permitted=findings.permitted(),
        globals=_global_uses(uses),
        pairs=findings.pairs(),
        rules=findings.rules(),
        subjects=findings.subjects,
        unread=tuple(gaps.subjects),
        places=tuple(judged),
    )


def _judge_one(
    place: Place, examined: Iterable[Mishap | Gap], findings: Findings, gaps: _Gaps
) -> list[Nested]:
    """Judge the container at *place*; returns the files that its pickles hand to calls."""
    container = place.container
    nested: list[Nested] = []
    for trace in container.traces:
        carried = CarriedFiles(trace, container.inside)
        judge_pickle(trace, place, findings, carried)
        nested += carried.files
        for gap in carried.gaps:
            gaps.add(gap.reason, _inside(place, trace, gap.stream_offset))
        if trace.error is not None:
            gaps.add(str(trace.error.args[0]), _inside(place, trace, trace.error.offset))
    for mishap in chain(container.gaps, container.mishaps, examined):
        subject = _subject_of(mishap, place)
        if isinstance(mishap, Gap):
            gaps.add(mishap.reason, subject)
        else:
            findings.add(_MISHAP_RULES[mishap.code], partial(escape, mishap.message), subject)
    if container.kind is Kind.TORCHSCRIPT:
        findings.add("CKA205", lambda: RULES["CKA205"].title, Subject(place, ""))
    return nested


def _inside(place: Place, trace: Trace, at: int | None) -> Subject:
    """Byte *at* of a pickle."""
    start = place.start_of(trace)
    offset = None if start is None or at is None else start + at
    return Subject(place, trace.record, offset, at, trace=trace)


def _subject_of(mishap: Mishap | Gap, place: Place) -> Subject:
    """What *mishap* is about; if that is an instruction, the one in the first pickle of its name.

    Only the main pickle is looked at for instructions that its framing cannot know, and no
    other of that name stands before it.
    """
    at, length = mishap.stream_offset, mishap.length
    if length is not None and mishap.offset is not None:
        # A directory may state any size.
        length = min(length, max(place.container.source.size - mishap.offset, 0))
    trace = event = None
    if at is not None:
        traces = place.container.traces
        trace = next((one for one in traces if one.record == mishap.record), None)
        events = trace.events if trace else ()
        event = next((one for one in events if one.offset == at and _makes(one)), None)
    return Subject(place, mishap.record, place.offset(mishap.offset), at, length, trace, event)


def _makes(event: Event) -> bool:
    return isinstance(event, (Call, Build))


class _Gaps:
    """What was not read: the first of it listed, the rest counted."""

    def __init__(self) -> None:
        self.listed: list[Gap] = []
        self.subjects: list[Subject] = []
        self.times = 0

    def add(self, reason: str, subject: Subject) -> None:
        self.times += 1
        if self.times <= _MOST_GAPS:
            record = record_text(subject.place.path(subject.record))
            _, _, offset, stream_offset, length, _, _ = subject
            self.listed.append(Gap(escape(reason), record, offset, stream_offset, length))
            self.subjects.append(subject)

    def all(self) -> tuple[Gap, ...]:
        more = self.times - len(self.listed)
        return (*self.listed, Gap(f"{more} more", "", None)) if more else tuple(self.listed)


def _names_in(container: Container) -> Iterator[tuple[str, str]]:
    for trace in container.traces:
        for event in trace.events:
            if isinstance(event, Global):
                yield event.module, event.name


def _global_uses(counts: Counter[tuple[str, str]]) -> tuple[GlobalUse, ...]:
    uses = []
    for (module, name), count in islice(counts.items(), _MOST_USES):
        entry = allowed(module, name)
        reason = entry.reason if entry else None
        uses.append(GlobalUse(shown(module), shown(name), count, reason))
    return tuple(uses)
