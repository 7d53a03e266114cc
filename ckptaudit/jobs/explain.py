"""`explain`: what would this file do, instruction by instruction, and who would have it done?

Knows:      how the judgement of a file and the listing of its pickles meet.
Is told:    a path.
Never asks: how bad a name is; the judgement is the one that a scan gives.

A pickle is executed twice: once to judge it, and once more to list it, an instruction at a
time.  An answer holds the instructions around the findings; all of them are listed on demand
and never held.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.errors import NoSuchRecord
from ckptaudit.jobs.names import Names
from ckptaudit.jobs.opening import File, notes_on, opened
from ckptaudit.policy import judge, record_text, shown
from ckptaudit.policy.sentences import route_of, sentence
from ckptaudit.tensors import misfits
from ckptaudit.vm import escape
from ckptaudit.vm.listing import instructions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from os import PathLike

    from ckptaudit.containers import Kind, Place
    from ckptaudit.jobs.names import ExplainedGlobal
    from ckptaudit.jobs.opening import Opened
    from ckptaudit.policy import Coverage, Finding, Permitted, Policy, Severity, Subject
    from ckptaudit.vm.listing import Instruction

__all__ = [
    "ExplainedFinding",
    "ExplainedPickle",
    "Explaining",
    "Explanation",
    "ListedInstruction",
    "explain",
    "explaining",
]

CONTEXT = 4
# Of the pickles in which nothing was found, so many are explained.
_MOST_PICKLES = 100
# An answer holds so many instructions; a listing has them all.
_MOST_LISTED = 20_000
# An error names so many pickles.
_MOST_NAMES = 10


@dataclass(frozen=True, slots=True)
class ExplainedFinding:
    """A finding and what to make of it.

    Attributes:
        finding: As a scan gives it.
        sentence: What would have happened, when and where; what torch makes of it.
    """

    finding: Finding
    sentence: str


@dataclass(frozen=True, slots=True)
class ListedInstruction:
    """One instruction of a pickle.

    Attributes:
        number: Which one it is, counted from 0.
        offset: Bytes from the start of the pickle.
        file_offset: Byte offset in the file, or None where the pickle is compressed.
        opcode: Its name; "" where none could be read.
        argument: What follows it, in printable ASCII.
        before: Values on the stack before it, marks not counted.
        after: Values on the stack after it.
        marks: Marks on the stack after it.
        meaning: What the opcode does, in general.
        note: What it does here; "" if there is nothing to add.
        rules: Rules that it falls under.
    """

    number: int
    offset: int
    file_offset: int | None
    opcode: str
    argument: str
    before: int
    after: int
    marks: int
    meaning: str
    note: str
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExplainedPickle:
    """One pickle of the file.

    Attributes:
        record: The record it stands in; names of files around it come first.
        offset: Where it begins in the file; None where it does not lie there as it is,
            compressed or in bytes that another pickle hands to a call.
        nbytes: Bytes that were read of it.
        protocol: The highest protocol it claims.
        opcodes: Instructions executed.
        executed_by: Who would execute it.
        error: Why reading it ended early, or None.
        globals: The names it asks for, in order of first mention; the first thousand.
        more_globals: How many different names it asks for besides.
        instructions: Those at findings, and some around each; of all pickles together the first
            twenty thousand.
    """

    record: str
    offset: int | None
    nbytes: int
    protocol: int
    opcodes: int
    executed_by: str
    error: str | None
    globals: tuple[ExplainedGlobal, ...]
    more_globals: int
    instructions: tuple[ListedInstruction, ...]


@dataclass(frozen=True, slots=True)
class Explanation(File):
    """What a file would do.

    Attributes:
        container: Its framing.
        verdict: That of a scan.
        coverage: Whether all of it was read.
        findings: All that a scan finds and no policy permits, each with a sentence.
        permitted: What the policy permits; it has no part in the verdict.
        notes: What is worth knowing besides.
        more_pickles: How many pickles, in which nothing was found, are not explained.
        pickles: The pickles, in file order.
    """

    container: Kind
    verdict: Severity
    coverage: Coverage
    findings: tuple[ExplainedFinding, ...]
    permitted: tuple[Permitted, ...]
    notes: tuple[str, ...]
    more_pickles: int
    pickles: tuple[ExplainedPickle, ...]


def explain(
    path: str | PathLike[str],
    *,
    record: str | None = None,
    context: int = CONTEXT,
    with_hash: bool = True,
    policy: Policy | None = None,
) -> Explanation:
    """Say what the file's pickles would do; nothing is executed.

    Args:
        path: The file.
        record: Explain only the pickle of this record; all are judged in any case.
        context: Instructions to list before and after each finding.
        with_hash: Read the whole file once for its SHA-256.
        policy: What of the findings is permitted; see `scan`.

    Raises:
        CkptauditError: There is no answer.
    """
    with explaining(
        path, record=record, context=context, with_hash=with_hash, policy=policy
    ) as job:
        return job.explanation


@contextmanager
def explaining(
    path: str | PathLike[str],
    *,
    record: str | None = None,
    context: int = CONTEXT,
    with_hash: bool = True,
    policy: Policy | None = None,
) -> Iterator[Explaining]:
    """What `explain` does, with the file held open so that every instruction can be listed.

    Raises:
        CkptauditError: There is no answer.
    """
    with opened(path, with_hash=with_hash) as file:
        yield Explaining(file, record, context, policy)


class Explaining:
    """A file being explained.

    Attributes:
        explanation: The answer.
    """

    def __init__(
        self, file: Opened, record: str | None, context: int, policy: Policy | None = None
    ) -> None:
        self._source = file.container.source
        judgement = judge(file.container, misfits, policy)
        if judgement.hangs_on_hash(policy):
            judgement = judgement.of_file(file.digest(), policy)
        found = list(_pickles_in(judgement.places))
        left = set(judgement.findings)
        # An instruction of which all is permitted is listed as any other.
        subjects = (each for each in judgement.subjects if each[0] in left)
        sentences = _sentences(subjects, found)
        chosen = found if record is None else _named(found, record, self._source.name)
        self._pickles = _worth_it(chosen)
        explained = tuple(_each_explained(self._pickles, context))
        self.explanation = Explanation(
            path=self._source.name,
            size=self._source.size,
            sha256=file.finish(),
            container=file.container.kind,
            verdict=judgement.verdict,
            coverage=judgement.coverage,
            findings=tuple(
                ExplainedFinding(finding, sentences.get(finding) or sentence(finding, None, None))
                for finding in judgement.findings
            ),
            permitted=judgement.permitted,
            notes=notes_on(file.container),
            more_pickles=len(chosen) - len(explained),
            pickles=explained,
        )

    def listing(self, index: int) -> Iterator[ListedInstruction]:
        """Every instruction of pickle number *index* of the explanation, made when asked for.

        Raises:
            SourceChanged: The file is no longer the one that was explained.
        """
        pickle = self._pickles[index]
        for number, line in enumerate(instructions(pickle.trace)):
            yield pickle.listed(number, line)
        self._source.check_unchanged()


class _Pickle:
    """A pickle, where it is, and how it comes to be executed."""

    def __init__(self, place: Place, index: int) -> None:
        self.trace = place.container.traces[index]
        self.record = record_text(place.path(self.trace.record))
        self.start = place.start_of(self.trace)
        self.route = route_of(place, index)
        # By offset in the pickle, the rules that the instruction there falls under.
        self.rules: dict[int, list[str]] = {}

    def listed(self, number: int, line: Instruction) -> ListedInstruction:
        """Instruction *number* of the pickle as a report has it."""
        return ListedInstruction(
            number=number,
            offset=line.offset,
            file_offset=None if self.start is None else self.start + line.offset,
            opcode=line.opcode,
            argument=line.argument,
            before=line.before,
            after=line.after,
            marks=line.marks,
            meaning=line.meaning,
            note=line.note,
            rules=tuple(self.rules.get(line.offset, ())),
        )

    def explained(self, context: int, most: int) -> ExplainedPickle:
        """The pickle with the names it asks for and at most so many of its instructions."""
        names = Names()
        excerpt: list[ListedInstruction] = []
        for line in self.excerpt(names, context):
            # The rest is gone through as well, for the names in it.
            if len(excerpt) < most:
                excerpt.append(line)
        trace = self.trace
        return ExplainedPickle(
            record=self.record,
            offset=self.start,
            nbytes=trace.end,
            protocol=trace.protocol,
            opcodes=trace.opcodes,
            executed_by=self.route.who,
            error=None if trace.error is None else escape(str(trace.error)),
            globals=names.all(),
            more_globals=names.left_out,
            instructions=tuple(excerpt),
        )

    def excerpt(self, names: Names, context: int) -> Iterator[ListedInstruction]:
        """The instructions worth showing, and *context* around each; *names* hears of all."""
        before: deque[tuple[int, Instruction]] = deque(maxlen=context)
        after = 0
        for number, line in enumerate(instructions(self.trace)):
            names.hear(line)
            if line.offset in self.rules or line.error is not None:
                yield from (self.listed(*earlier) for earlier in before)
                before.clear()
                after = context + 1
            if after:
                yield self.listed(number, line)
                after -= 1
            else:
                before.append((number, line))


def _each_explained(pickles: Iterable[_Pickle], context: int) -> Iterator[ExplainedPickle]:
    left = _MOST_LISTED
    for pickle in pickles:
        explained = pickle.explained(context, left)
        left -= len(explained.instructions)
        yield explained


def _pickles_in(places: Iterable[Place]) -> Iterator[_Pickle]:
    for place in places:
        for index in range(len(place.container.traces)):
            yield _Pickle(place, index)


def _sentences(
    subjects: Iterable[tuple[Finding, Subject]], pickles: Iterable[_Pickle]
) -> dict[Finding, str]:
    """The sentence to each finding; the pickle that one is about hears of it."""
    by_trace = {id(pickle.trace): pickle for pickle in pickles}
    sentences = {}
    for finding, subject in subjects:
        pickle = by_trace.get(id(subject.trace))
        if pickle is None or subject.stream_offset is None:
            sentences[finding] = sentence(finding, None, None)
        else:
            pickle.rules.setdefault(subject.stream_offset, []).append(finding.rule)
            sentences[finding] = sentence(finding, subject.event, pickle.route)
    return sentences


def _named(pickles: Sequence[_Pickle], record: str, path: str) -> list[_Pickle]:
    """Those in *record*, which may be spelled as in the file or as we show it."""
    spellings = {record, record_text([record])}
    chosen = [pickle for pickle in pickles if pickle.record in spellings]
    if not chosen:
        there = ", ".join(pickle.record for pickle in pickles[:_MOST_NAMES])
        more = ", ..." if len(pickles) > _MOST_NAMES else ""
        raise NoSuchRecord(f"{path}: has no pickle '{shown(record)}', but {there}{more}")
    return chosen


def _worth_it(pickles: Iterable[_Pickle]) -> list[_Pickle]:
    """Those in which something was found, and the first of the others."""
    chosen = []
    others = 0
    for pickle in pickles:
        others += not pickle.rules
        if pickle.rules or others <= _MOST_PICKLES:
            chosen.append(pickle)
    return chosen
