"""The names that a pickle asks for: how each came about, what is done with it, what it is given.

Knows:      which samples of each are enough to act on.
Is told:    the instructions of a pickle, one after the other.
Never asks: which of the names are bad; it repeats what the allowlist says.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.containers import storage_of
from ckptaudit.policy import allowed, shown
from ckptaudit.vm import Call, Global, PersistentId, brief

if TYPE_CHECKING:
    from ckptaudit.vm.listing import Instruction, Use

__all__ = ["ExplainedGlobal", "Names"]

_MOST_GLOBALS = 1000
# Of one name so many ways it came about and so many calls are shown.
_MOST_SAMPLES = 4
_MOST_ARGUMENTS = 200
_IN_TUPLE = "tuple element"


@dataclass(frozen=True, slots=True)
class ExplainedGlobal:
    """A name that a pickle asks for.

    Attributes:
        module: As the pickle spells it, escaped.
        name: As the pickle spells it, escaped.
        count: How often it is asked for.
        allowed: Why it is allowed, or None.
        offset: Where it is asked for first, in bytes from the start of the pickle.
        resolved: How it came about: ``literal``, ``computed``, or where module and name came
            from; the first few ways.
        uses: What is done with it, and by how many instructions; empty if nothing is.
        arguments: What it is called with; the first few different calls, cut and escaped.
    """

    module: str
    name: str
    count: int
    allowed: str | None
    offset: int
    resolved: tuple[str, ...]
    uses: tuple[tuple[str, int], ...]
    arguments: tuple[str, ...]


class Names:
    """The names one pickle asks for, as its instructions go by."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], _Row] = {}
        # Only counted: their hashes are kept and not the names, which may be long.
        self._left_out: set[int] = set()

    @property
    def left_out(self) -> int:
        """How many different names there are besides those that are kept."""
        return len(self._left_out)

    def hear(self, line: Instruction) -> None:
        """Take note of what *line* asks for and of what it does with names."""
        for event in line.events:
            if isinstance(event, Global):
                self._ask(event, line)
        for use in line.uses:
            row = self._rows.get((use.name.module, use.name.name))
            if row is not None:
                row.use(use)

    def _ask(self, asked: Global, line: Instruction) -> None:
        pair = asked.module, asked.name
        row = self._rows.get(pair)
        if row is None:
            if len(self._rows) >= _MOST_GLOBALS:
                self._left_out.add(hash(pair))
                return
            row = self._rows[pair] = _Row(asked, line.offset)
        row.count += 1
        _sample(row.resolved, line.resolved)

    def all(self) -> tuple[ExplainedGlobal, ...]:
        """Each name with what is known of it."""
        return tuple(row.explained() for row in self._rows.values())


class _Row:
    """One name."""

    def __init__(self, asked: Global, offset: int) -> None:
        self.asked = asked
        self.offset = offset
        self.count = 0
        self.resolved: list[str] = []
        self.uses: Counter[str] = Counter()
        self.arguments: list[str] = []

    def use(self, use: Use) -> None:
        event = use.event
        is_storage = isinstance(event, PersistentId) and storage_of(event) is not None
        self.uses["storage type in a persistent id" if is_storage else use.how] += 1
        if (
            isinstance(event, Call)
            and event.func is use.name
            and len(self.arguments) < _MOST_SAMPLES
        ):
            given = brief(event.args) if isinstance(event.args, tuple) else f"*{brief(event.args)}"
            if event.kwargs is not None:
                given += f" **{brief(event.kwargs)}"
            _sample(self.arguments, given[:_MOST_ARGUMENTS])

    def explained(self) -> ExplainedGlobal:
        entry = allowed(self.asked.module, self.asked.name)
        # Arguments and persistent ids are tuples, which by itself says nothing.
        telling = {how: times for how, times in self.uses.items() if how != _IN_TUPLE}
        return ExplainedGlobal(
            module=shown(self.asked.module),
            name=shown(self.asked.name),
            count=self.count,
            allowed=entry.reason if entry else None,
            offset=self.offset,
            resolved=tuple(self.resolved),
            uses=tuple((telling or self.uses).items()),
            arguments=tuple(self.arguments),
        )


def _sample(texts: list[str], text: str) -> None:
    if len(texts) < _MOST_SAMPLES and text not in texts:
        texts.append(text)
