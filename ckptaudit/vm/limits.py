"""What reading one file may cost, and what of it has been spent.

A file may hold a million pickles, or name one of them a million times.  So it is the
file that has limits, and everything in it pays from the same purse.

Knows:      which kinds of work and memory a hostile file could ask for.
Is told:    by whoever does the work, how much of it was done.
Never asks: what the work was for.

The defaults leave room for a checkpoint of 300,000 tensors, a hundred times SDXL, which
takes about 30 opcodes, 10 memo entries, 5 tuples and 3 events for each.  Literals are
those of NumPy arrays beside the weights, which stand in the pickle itself; torch never
compresses a pickle, and those who do it afterwards gain a factor of ten.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckptaudit.errors import LimitExceeded
from ckptaudit.wording import counted

__all__ = ["Budget", "Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The most one file may cost before we stop reading.

    Attributes:
        opcodes: Instructions executed, in all pickles together.
        events: Names, calls, persistent ids and so on written down, in all pickles together.
        nodes: Lists, tuples, dicts and sets made, in all pickles together; a dict or set counts
            twice.
        literals: Bytes of strings, byte strings and long integers, in all pickles together.
        literal: Bytes in any one of them.
        stack: Values on the stack of one pickle, marks included.
        memo: Entries in the memo of one pickle.
        depth: Containers inside containers that a reader of the tree follows.
        records: Entries of an archive, storages or tensors listed by a framing.
        files: Files inside the file that are opened, and places looked at for one.
        nesting: Files inside each other, the outermost not counted.
        tries: Places in bytes that belong to nothing that are tried for a pickle.
        loose: Such bytes that are searched for one, all together.
        inflated: Bytes that compressed pickles and files take, and bytes they inflate to, all
            together.
        ratio: Bytes inflated for each compressed one, all together...
        inflated_freely: ...once they are more than so many bytes.
    """

    opcodes: int = 10_000_000
    events: int = 1_000_000
    nodes: int = 2_000_000
    literals: int = 512 << 20
    literal: int = 256 << 20
    stack: int = 2_000_000
    memo: int = 3_000_000
    depth: int = 500
    records: int = 300_000
    files: int = 10_000
    nesting: int = 4
    tries: int = 20_000
    loose: int = 256 << 20
    inflated: int = 128 << 20
    ratio: int = 200
    inflated_freely: int = 16 << 20


class Budget:
    """What one file has cost so far.

    Attributes:
        limits: The most it may cost.
        opcodes: Instructions executed.
        events: Events written down.
        nodes: Lists, tuples, dicts and sets made.
        literals: Bytes of literals read.
        records: Records listed.
        files: Files inside the file, and places looked at for one.
        nested: Bytes of the files inside the file.
        tries: Places tried for a pickle.
        loose: Bytes searched for one.
        packed: Compressed bytes consumed.
        inflated: Bytes they gave.
    """

    __slots__ = (
        "events",
        "files",
        "inflated",
        "limits",
        "literals",
        "loose",
        "nested",
        "nodes",
        "opcodes",
        "packed",
        "records",
        "tries",
    )

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.opcodes = 0
        self.events = 0
        self.nodes = 0
        self.literals = 0
        self.records = 0
        self.files = 0
        self.nested = 0
        self.tries = 0
        self.loose = 0
        self.packed = 0
        self.inflated = 0

    def pay_records(self, count: int, where: str) -> None:
        """Pay for *count* more records, before they are read.

        Raises:
            LimitExceeded: The file lists too many.
        """
        self.records += count
        if self.records > self.limits.records:
            raise LimitExceeded(
                f"has {counted(self.records, 'record')}, "
                f"more than the limit of {self.limits.records}",
                where=where,
            )

    def pay_file(self, where: str) -> None:
        """Pay for one more place where a file may be, before it is looked at.

        Raises:
            LimitExceeded: There are too many.
        """
        self.files += 1
        if self.files > self.limits.files:
            raise LimitExceeded(
                f"there are more than {self.limits.files} places in the file where another may be",
                where=where,
            )

    def pay_nested(self, nbytes: int, outermost: int, where: str) -> None:
        """Pay for a file of *nbytes* inside one of *outermost* bytes, before it is opened.

        Files that lie in a file, and in what it inflates to, come to its size at each level, and
        once more for another reader.  Only those that share their bytes come to more.

        Raises:
            LimitExceeded: They come to more.
        """
        self.nested += nbytes
        limits = self.limits
        if self.nested > 2 * (limits.nesting + 1) * (outermost + limits.inflated):
            raise LimitExceeded(
                f"the files inside the file share their bytes: together they come to over "
                f"{counted(self.nested - nbytes, 'byte')}",
                where=where,
            )

    def may_try(self) -> bool:
        """Whether one more place may be tried for a pickle; what is not tried stays a gap."""
        self.tries += 1
        return self.tries <= self.limits.tries

    def take_loose(self, wanted: int) -> int:
        """How many of *wanted* bytes may be searched for pickles; the others stay a gap."""
        taken = min(wanted, self.limits.loose - self.loose)
        self.loose += taken
        return taken

    def pay_inflated(self, packed: int, inflated: int, where: str) -> None:
        """Pay for a piece of *inflated* bytes that came out of *packed* ones.

        Raises:
            LimitExceeded: There were too many, or too many for what they came from.
        """
        self.packed += packed
        self.inflated += inflated
        self.check_inflated(0, 0, where)

    def check_inflated(self, packed: int, inflated: int, where: str) -> None:
        """Refuse a piece of *inflated* bytes out of at most *packed* that could not be paid for.

        Raises:
            LimitExceeded: It could not.
        """
        packed += self.packed
        inflated += self.inflated
        # Both, because empty blocks make a stream that is long and gives nothing.
        if max(self.packed, inflated) > self.limits.inflated:
            raise LimitExceeded(
                f"inflates to more bytes than the limit of {self.limits.inflated} allows",
                where=where,
            )
        if inflated > max(self.limits.inflated_freely, packed * self.limits.ratio):
            raise LimitExceeded(
                f"inflates to over {self.limits.ratio} bytes for each compressed one", where=where
            )
