"""An explanation as text and as JSON, piece by piece: a listing may be of eight million lines.

Knows:      how a disassembly is laid out.
Is told:    the answer of `explain`, and where to ask for all instructions of a pickle.
Never asks: what an instruction does; every string out of a file is escaped already.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from ckptaudit.report import facts
from ckptaudit.report.document import SCHEMA_VERSION, Tool, json_line
from ckptaudit.report.escaping import printable, without_commands
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ckptaudit.jobs.explain import (
        ExplainedFinding,
        ExplainedPickle,
        Explanation,
        ListedInstruction,
    )
    from ckptaudit.jobs.names import ExplainedGlobal

__all__ = ["Listing", "explanation_json", "explanation_text"]

# Gives every instruction of a pickle by its number in the explanation.
Listing: TypeAlias = "Callable[[int], Iterable[ListedInstruction]]"

_MOST_GLOBALS = 100


def explanation_text(answer: Explanation, listing: Listing | None = None) -> Iterator[str]:
    """What the file would do, for a person; in pieces that end with a newline.

    Args:
        answer: The explanation.
        listing: Where to ask for all instructions; None for those the answer holds.
    """
    return map(without_commands, _text(answer, listing))


def _text(answer: Explanation, listing: Listing | None) -> Iterator[str]:
    coverage = "complete" if answer.coverage.complete else "incomplete"
    sha256 = f", sha256 {answer.sha256}" if answer.sha256 else ""
    yield f"{printable(answer.path)}: {answer.verdict.value}, coverage {coverage}\n"
    yield f"  {answer.container.value}, {facts.size_text(answer.size)}{sha256}\n"
    yield from (f"  note: {note}\n" for note in answer.notes)
    for explained in sorted(answer.findings, key=lambda each: -each.finding.severity.rank):
        yield from _finding(explained)
    yield from (f"  permitted {told}\n" for told in facts.permitted(answer.permitted))
    yield from (
        f"  {line}\n" for line in facts.first_of(f"not read: {gap}" for gap in answer.coverage.gaps)
    )
    for index, pickle in enumerate(answer.pickles):
        yield from _pickle(pickle)
        if listing is not None:
            yield from _instructions(listing(index))
        elif pickle.instructions:
            yield from _instructions(pickle.instructions)
            left = pickle.opcodes - len(pickle.instructions)
            if left > 0:
                every = counted(pickle.opcodes, "instruction")
                yield f"  ... {left} more of {every}; --all shows them\n"
    if answer.more_pickles:
        more = counted(answer.more_pickles, "more pickle")
        yield f"\n{more}, in which nothing was found; see --record\n"


def _finding(explained: ExplainedFinding) -> Iterator[str]:
    finding = explained.finding
    yield f"  {finding.severity.value} {finding.rule}: {facts.said_of(finding)}\n"
    yield f"    -> {explained.sentence}\n"


def _pickle(pickle: ExplainedPickle) -> Iterator[str]:
    # No line begins with a string out of the file: "::" at its beginning commands a CI runner.
    where = "that do not lie in the file as they are"
    if pickle.offset is not None:
        where = f"from byte 0x{pickle.offset:x} of the file"
    yield (
        f"\n== {pickle.record}: protocol {pickle.protocol}, "
        f"{counted(pickle.opcodes, 'instruction')}, {counted(pickle.nbytes, 'byte')} {where}\n"
    )
    yield f"  {pickle.executed_by}\n"
    if pickle.error is not None:
        yield f"  breaks: {pickle.error}\n"
    # The names that nobody vouches for come first, so that no flood hides them.
    rows = sorted(pickle.globals, key=lambda row: row.allowed is not None)
    for row in rows[:_MOST_GLOBALS]:
        yield from _global(row)
    more = len(rows[_MOST_GLOBALS:]) + pickle.more_globals
    if more:
        yield f"  ... and {counted(more, 'more name')}; see --format json\n"


def _global(row: ExplainedGlobal) -> Iterator[str]:
    times = f", {row.count} times" if row.count > 1 else ""
    yield f"  asks for {row.module}.{row.name} at byte 0x{row.offset:x}{times}\n"
    yield f"    {row.allowed or 'not on the allowlist'}\n"
    for resolved in row.resolved:
        yield f"    resolved: {resolved}\n"
    uses = ", ".join(how if times == 1 else f"{how} ({times} times)" for how, times in row.uses)
    yield f"    use: {uses or 'unused'}\n"
    for arguments in row.arguments:
        yield f"    given: {arguments}\n"


def _instructions(lines: Iterable[ListedInstruction]) -> Iterator[str]:
    yield "      byte    in file  stack marks\n"
    expected = 0
    for line in lines:
        if line.number != expected:
            yield "       ...\n"
        expected = line.number + 1
        yield _instruction(line)


def _instruction(line: ListedInstruction) -> str:
    in_file = "" if line.file_offset is None else f"{line.file_offset:x}"
    flag = ">" if line.rules else " "
    what = f"{line.opcode} {line.argument}" if line.argument else line.opcode or "?"
    why = line.note or line.meaning
    rules = f" [{', '.join(line.rules)}]" if line.rules else ""
    stack = f"{line.before}>{line.after}"
    place = f"{flag}{line.offset:>8x} {in_file:>10} {stack:>6} {line.marks:>5}"
    return f" {place}  {what}  ; {why}{rules}\n"


def explanation_json(answer: Explanation, listing: Listing) -> Iterator[str]:
    """The JSON document with every instruction in it, in pieces; otherwise as `to_json` has it.

    The answer's last field are its pickles and a pickle's last field its instructions, so both
    can be left open and filled one by one.
    """
    head = {"schema_version": SCHEMA_VERSION, "tool": Tool(), "files": []}
    yield _opened(head, "files")
    yield _opened(replace(answer, pickles=()), "pickles")
    for index, pickle in enumerate(answer.pickles):
        yield f"{',' if index else ''}{_opened(replace(pickle, instructions=()), 'instructions')}"
        yield from _items(listing(index))
        yield "]}"
    yield ']}],"errors":[]}\n'


def _opened(value: object, field: str) -> str:
    """*value*, whose last *field* is an empty list, up to where that list's items would stand."""
    text = json_line(value)
    ending = f'"{field}":[]}}'
    if not text.endswith(ending):
        raise ValueError(f"the last field is not {field}")
    return text.removesuffix("]}")


def _items(lines: Iterable[ListedInstruction]) -> Iterator[str]:
    separators = chain(["\n"], iter(lambda: ",\n", None))
    for separator, line in zip(separators, lines, strict=False):
        yield f"{separator}{json_line(line)}"
