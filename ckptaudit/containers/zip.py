"""The zip framing of torch >= 1.6: ``data.pkl`` and the storages beside it.

Knows:      caffe2/serialize/inline_container.cc, torch/serialization.py (_save, _load).
Is told:    a source that begins with a local file header.
Never asks: what the pickle means.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from itertools import filterfalse
from typing import TYPE_CHECKING

from ckptaudit.containers.archive import Member, open_members
from ckptaudit.containers.container import (
    Container,
    Gap,
    Kind,
    Mishap,
    Nested,
    Record,
    Role,
    Storage,
    Use,
)
from ckptaudit.containers.inflate import METHODS, InflatedSource
from ckptaudit.containers.ledger import Ledger
from ckptaudit.containers.persistent import StorageRef, references
from ckptaudit.containers.trial import begins_like_a_pickle, may_act
from ckptaudit.containers.zipcontent import Contents, Place, place_of
from ckptaudit.containers.zipdirectory import SIGNATURE, Directory, Entry
from ckptaudit.containers.zipend import End, find_end
from ckptaudit.containers.zipmetadata import METADATA, MOST_METADATA_BYTES, is_as_written
from ckptaudit.errors import LimitExceeded, MalformedInput, Unsupported
from ckptaudit.source import BufferSource, SplicedSource
from ckptaudit.vm import Trace, trace_pickle
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from ckptaudit.containers.inside import Inside
    from ckptaudit.source import ByteSource

__all__ = ["SIGNATURE", "open_zip"]

# APPNOTE.TXT 4.4.5, which Python's zipfile reads as well; bzip2 (12) tells itself.
_LZMA = 14
_LZMA_HEADER = 9
_MAX32 = 0xFFFFFFFF

# Those who pack a checkpoint again write entries for its folders.
_FOLDERS = {"", "data/", ".data/"}


def open_zip(source: ByteSource, inside: Inside, *, missing: int = 0) -> Container:
    """Read the zip archive that *source* begins with.

    Args:
        source: The file.
        inside: Opens the files in it, and has the budget that pays for it.
        missing: So many bytes of it are not there, and stand for nothing.

    Raises:
        MalformedInput: Its directory cannot be read, or lists more than the budget allows.
        Unsupported: Its pickle is encrypted, or there is nothing in it.
    """
    ledger = Ledger(source, inside.budget)
    end = find_end(source, ledger)
    directory = Directory(source, end.place, ledger, inside.budget)
    if not directory.entries:
        raise Unsupported(f"{source.name}: is an empty zip archive, not a checkpoint")
    contents = Contents(source, source.size - missing, ledger, inside.budget)
    reading = _Reading(contents, directory.entries, ledger, inside)
    main = reading.find("data.pkl")
    return reading.archive(end) if main is None else reading.container(main, end)


class _Reading:
    """One archive on its way to a `Container`."""

    def __init__(
        self, contents: Contents, entries: tuple[Entry, ...], ledger: Ledger, inside: Inside
    ) -> None:
        self.source = contents.source
        self.contents = contents
        self.inside = inside
        self.budget = inside.budget
        self.entries = entries
        self.ledger = ledger
        self.mishaps = ledger.mishaps
        self.gaps = ledger.gaps
        self.traces: list[Trace] = []
        # By entry, not by name: of two entries of one name both are looked into.
        self.roles: dict[Entry, Role] = {}
        # By where it lies, the pickle that it is, or None: entries may share their bytes.
        self.tried: dict[Place, Trace | None] = {}
        # The same for files of other kinds.
        self.looked: set[Place] = set()
        self.nested: list[Nested] = []
        self.inflated: dict[str, ByteSource] = {}
        # torch takes the root from the first entry; every other entry must lie in it.
        self.root = self.entries[0].name.split("/", 1)[0]
        self.by_name = {entry.name: entry for entry in reversed(self.entries)}
        folded = {name.casefold(): name for name in reversed(list(self.by_name))}
        self.by_folded_name = {name: self.by_name[real] for name, real in folded.items()}

    def container(self, main: Entry, end: End) -> Container:
        """The checkpoint whose object is pickled in *main*."""
        for entry in self.entries:
            if entry.name.split("/", 1)[0] != self.root or "/" not in entry.name:
                self.odd("zip-second-root", "lies outside the archive's root folder", entry)
        self.trace_main(main)
        storages = self.locate(references(self.traces[0].events))
        scripted = self.find("constants.pkl") is not None
        # Pickles first: which records a TorchScript archive refers to stands in two of them.
        for entry in filter(_is_named_pickle, self.entries):
            self.assign(entry, scripted=scripted)
        if scripted:
            self.assign_constants()
        for entry in filterfalse(_is_named_pickle, self.entries):
            self.assign(entry, scripted=scripted)
        byteorder = self.byteorder()
        versions = self.find("version"), self.find(".data/version")
        if versions == (None, None):
            message = "has no record of its version, without which torch refuses it"
            self.mishaps.append(Mishap("zip-version", message, "", None))
        elif None not in versions:
            message = "has two records of its version, of which torch goes by the one in .data"
            self.mishaps.append(Mishap("zip-version", message, "", None))
        self.account(end, {Use.STORAGE})
        if main.encrypted and self.traces[0].error and not any(t.events for t in self.traces):
            raise Unsupported(
                f"{self.source.name}: {main.name!r} is encrypted; decrypt the archive first"
            )
        return Container(
            source=self.source,
            kind=Kind.TORCHSCRIPT if scripted else Kind.ZIP,
            records=self.records(),
            traces=tuple(self.traces),
            main=0,
            storages=storages,
            byteorder=byteorder,
            mishaps=tuple(self.mishaps),
            gaps=tuple(self.gaps),
            inflated=self.inflated,
            nested=tuple(self.nested),
            regions=tuple(self.ledger.regions),
        )

    def archive(self, end: End) -> Container:
        """What torch would not load: every entry is opened as a file of its own."""
        refusal = f"is a zip archive without {self.root}/data.pkl, so not a torch checkpoint"
        members = open_members(map(self.member, self.entries), self.inside)
        # An archive in the archive has been opened, end record and all.
        self.account(end, {Use.RECORD})
        if not members.are_arrays:
            self.mishaps.append(Mishap("zip-no-checkpoint", refusal, "", None))
        return Container(
            source=self.source,
            kind=Kind.NUMPY if members.are_arrays else Kind.ARCHIVE,
            records=self.records(),
            traces=tuple(self.traces),
            mishaps=tuple(self.mishaps),
            gaps=(*self.gaps, *members.gaps),
            nested=(*members.nested, *self.nested),
            regions=tuple(self.ledger.regions),
            refusal=refusal,
        )

    def member(self, entry: Entry) -> Member | Gap:
        """All of *entry* as a file of its own, or why it cannot be read."""
        gap = None
        try:
            source, start = self.contents.open(entry, self.budget)
            if isinstance(source, InflatedSource):
                source, gap = self.whole(entry, source)
        except MalformedInput as err:
            return Gap.left_by(err, entry.header)
        size = min(entry.size, source.size - start)
        member = Member(
            entry.name, source, start, size, entry.data if entry.method == 0 else None, gap
        )
        if entry.encrypted:
            return member._replace(otherwise="is encrypted; decrypt the archive first")
        return member

    def whole(self, entry: Entry, source: InflatedSource) -> tuple[BufferSource, Gap | None]:
        """All that comes out of *entry*, as a file is not read from front to back.

        Also what is wrong with it: other readers take what comes out all the same.

        Raises:
            MalformedInput: Nothing comes out, or it would cost too much.
        """
        gap = None
        try:
            data = source.read_at(0, entry.size)
        except MalformedInput as err:
            if not source.broken_at:
                raise
            return BufferSource(source.read_at(0, source.broken_at)), Gap.left_by(err, entry.header)
        try:
            self.contents.finish(entry, source)
        except MalformedInput as err:
            gap = Gap.left_by(err, entry.header)
        return BufferSource(data), gap

    def look_inside(self, entry: Entry) -> None:
        """Open a record nobody refers to if it is a file; whether it is a pickle is known."""
        place = place_of(entry)
        if place in self.looked:
            return
        self.looked.add(place)
        member = self.member(entry)
        gap = member if isinstance(member, Gap) else member.gap
        if gap is not None:
            broken = [trace.record for trace in self.traces[-1:] if trace.error is not None]
            # Unless that has been told, because it could not be read as a pickle either.
            if entry.name not in (*broken, *(gap.record for gap in self.gaps[-1:])):
                self.gaps.append(gap)
        if isinstance(member, Gap):
            return
        stop = member.start + member.size
        found = self.inside.look_for_framing(
            member.source, member.start, stop, member.name, member.offset
        )
        if isinstance(found, Gap):
            self.gaps.append(found)
        elif found is not None:
            self.nested.append(found)

    def look_into_lzma(self, entry: Entry) -> None:
        """Open what Python's zipfile would uncompress, and torch does not read.

        APPNOTE.TXT 5.8.8: a version, the number of properties, the properties, the stream.  The
        same stream stands in an ``.lzma`` file behind the properties and a size, if it is known;
        the dictionary is rounded up to what every writer of those has.
        """
        if entry.packed <= _LZMA_HEADER:
            return
        head = self.source.read_at(entry.data, _LZMA_HEADER)
        dictionary = 1 << max(int.from_bytes(head[5:], "little") - 1, 1 << 12).bit_length()
        alone = head[4:5] + min(dictionary, _MAX32).to_bytes(4, "little") + b"\xff" * 8
        stream = (self.source, entry.data + _LZMA_HEADER, entry.packed - _LZMA_HEADER)
        whole = SplicedSource(entry.name, (BufferSource(alone), 0, len(alone)), stream)
        found = self.inside.look(whole, 0, whole.size, entry.name, None)
        if isinstance(found, Nested):
            self.nested.append(found)

    def records(self) -> tuple[Record, ...]:
        return (*map(self.record, sorted(self.entries, key=_header)), *self.ledger.records)

    def record(self, entry: Entry) -> Record:
        method = METHODS.get(entry.method, f"method {entry.method}")
        role = self.roles.get(entry, Role.UNKNOWN)
        return Record(entry.name, entry.data, entry.packed, method, role)

    def account(self, end: End, harmless: set[Use]) -> None:
        """See that every byte of the file belongs to something.

        Args:
            end: What the end records say.
            harmless: Where what reads like another end record means nothing.
        """
        for entry in self.entries:
            if entry.method == _LZMA and not entry.fault and not entry.is_cut:
                self.look_into_lzma(entry)
            role = self.roles.get(entry, Role.UNKNOWN)
            trace = self.tried.get(place_of(entry)) if role is Role.PICKLE else None
            self.contents.account(entry, role, trace)
        self.check_other_ends(end, harmless)
        self.ledger.settle("zip-gap", "outside of all entries")
        self.traces += self.ledger.traces

    def check_other_ends(self, end: End, harmless: set[Use]) -> None:
        """Other end records are odd, unless they are just bytes of a tensor or a member."""
        if not end.others:
            return
        regions = sorted(r for r in self.ledger.regions if r.use in harmless)
        starts = [region.start for region in regions]
        loose = []
        for at in end.others:
            before = bisect_right(starts, at)
            # Readers take the last end record of all: behind the directory none is harmless.
            if at >= end.limit or not before or at >= regions[before - 1].stop:
                loose.append(at)
        if loose:
            message = f"{len(loose) + 1} end records; readers disagree about which one counts"
            self.mishaps.append(Mishap("zip-several-ends", message, "", loose[-1]))

    def odd(self, code: str, message: str, entry: Entry) -> None:
        self.mishaps.append(Mishap(code, message, entry.name, entry.header, entry.length))

    def find(self, name: str) -> Entry | None:
        """The entry torch would find: exact name first, then letter case ignored."""
        path = f"{self.root}/{name}"
        return self.by_name.get(path) or self.by_folded_name.get(path.casefold())

    def trace_main(self, entry: Entry) -> None:
        """Run the pickle that torch.load runs; one that cannot be read is a gap."""
        self.roles[entry] = Role.PICKLE
        try:
            source, start = self.contents.open(entry, self.budget)
        except MalformedInput as err:
            self.traces.append(Trace(entry.name, None, (), 0, 0, 0, err))
        else:
            self.keep(entry, source, self.run(entry, source, start))

    def run(self, entry: Entry, source: ByteSource, start: int) -> Trace:
        stop = min(start + entry.size, source.size)
        trace = trace_pickle(source, start, stop, record=entry.name, budget=self.budget)
        if not isinstance(source, InflatedSource) or not source.broken_at:
            return trace
        # Asked for more than there is it gave nothing of it; an unpickler may read less at once.
        rest = trace_pickle(source, 0, source.broken_at, record=entry.name, budget=self.budget)
        return rest if rest.error is None else replace(rest, error=trace.error)

    def keep(self, entry: Entry, source: ByteSource, trace: Trace) -> None:
        """Let *trace* count as the pickle in *entry*, and look at what lies behind its end."""
        self.tried[place_of(entry)] = trace
        self.roles[entry] = Role.PICKLE
        self.traces.append(trace)
        try:
            self.contents.finish(entry, source)
        except MalformedInput as err:
            # Why the pickle ends where it does may have been the same.
            if trace.error is None:
                self.gaps.append(Gap.left_by(err, entry.data))
        self.contents.account_inflated(entry, source, trace)
        if isinstance(source, InflatedSource):
            # The trace keeps it, for whoever wants to read the pickle again.
            source.rewind()

    def locate(self, wanted: dict[str, list[StorageRef]]) -> dict[str, Storage]:
        storages = {}
        for key, refs in wanted.items():
            entry = self.find(f"data/{key}")
            if entry is None:
                name = f"{self.root}/data/{key}"
                self.mishaps.append(
                    Mishap("storage-missing", "is referred to but not there", name, None)
                )
                continue
            storage = self.locate_one(key, refs, entry)
            if storage is not None:
                storages[key] = storage
                self.roles[entry] = Role.STORAGE
                if not (key.isascii() and key.isdecimal()):
                    self.doubt(entry)
        return storages

    def doubt(self, entry: Entry) -> None:
        """See what else a storage is whose name torch would not have given it.

        torch counts its storages.  One of another name may be what a loader looks for that goes
        by the end of a name: ``data.pkl``.
        """
        self.odd("storage-name", "a storage whose name is no number, as torch's are", entry)
        try:
            source, start = self.contents.open(entry, self.budget)
            trace = self.run(entry, source, start)
        except MalformedInput as err:
            self.gaps.append(Gap.left_by(err, entry.data))
            return
        if may_act(trace):
            self.traces.append(trace)
            self.odd("extra-pickle", "a pickle as well as a storage", entry)

    def locate_one(self, key: str, refs: list[StorageRef], entry: Entry) -> Storage | None:
        ref = refs[0]
        if any((other.dtype, other.numel) != (ref.dtype, ref.numel) for other in refs):
            self.odd("storage-contradiction", "is referred to as two different storages", entry)
            return None
        nbytes = ref.numel * ref.dtype.itemsize
        if nbytes != entry.size:
            message = f"has {counted(entry.size, 'byte')} where the pickle says {nbytes}"
            self.odd("storage-size", message, entry)
            return None
        if entry.is_cut:
            return None
        try:
            source, start = self.contents.open(entry, budget=None)
        except MalformedInput as err:
            self.gaps.append(Gap.left_by(err, entry.data))
            return None
        self.finish_storage(entry)
        if entry.method != 0:
            self.inflated[entry.name] = source
        return Storage(
            key, ref.dtype, ref.numel, start, nbytes, ref.location, entry.name, ref.typed
        )

    def finish_storage(self, entry: Entry) -> None:
        try:
            self.contents.finish_storage(entry)
        except MalformedInput as err:
            self.gaps.append(Gap.left_by(err, entry.data))

    def assign(self, entry: Entry, *, scripted: bool) -> None:
        """Give an entry its role; look into what might be a pickle nobody refers to."""
        if entry in self.roles:
            return
        try:
            self.assign_unreferenced(entry, scripted=scripted)
        except MalformedInput as err:
            self.gaps.append(Gap.left_by(err, entry.data))

    def assign_constants(self) -> None:
        """Give the records that TorchScript's second pickle refers to the role of storages."""
        constants = self.find("constants.pkl")
        for trace in self.traces:
            if constants is not None and trace.record == constants.name:
                for key in references(trace.events):
                    entry = self.find(f"constants/{key}")
                    if entry is not None and entry not in self.roles:
                        self.roles[entry] = Role.STORAGE
                        self.finish_storage(entry)

    def assign_unreferenced(self, entry: Entry, *, scripted: bool) -> None:
        inner = entry.name.removeprefix(f"{self.root}/")
        filled = bool(entry.size or entry.packed)
        is_pickle = filled and self.is_pickle(entry)
        if filled:
            self.look_inside(entry)
        if is_pickle:
            self.roles[entry] = Role.PICKLE
            # TorchScript has several: constants.pkl, code/__torch__.py.debug_pkl.
            if not (scripted and entry.name.lower().endswith("pkl")):
                self.odd("extra-pickle", "a pickle that torch.load does not read", entry)
        elif inner in METADATA:
            if self.is_metadata(entry, inner):
                self.roles[entry] = Role.METADATA
            else:
                self.odd("record-unknown", "holds something else than torch writes there", entry)
        elif inner in _FOLDERS and not filled:
            pass
        elif inner.startswith("data/") and not scripted:
            self.odd("storage-unreferenced", "a storage that no tensor refers to", entry)
        elif scripted and inner.startswith(("constants/", "tensors/", "data/")):
            self.roles[entry] = Role.STORAGE
        elif not (scripted and inner.startswith(("code/", "extra/"))):
            self.odd("record-unknown", "a record that torch.save does not write", entry)

    def is_metadata(self, entry: Entry, inner: str) -> bool:
        """Whether *entry* holds what torch writes into the record that it calls *inner*.

        Raises:
            MalformedInput: It cannot be read.
        """
        if max(entry.packed, entry.size) > MOST_METADATA_BYTES:
            return False
        source, start = self.contents.open(entry, self.budget)
        text = source.read_at(start, min(entry.size, source.size - start))
        return is_as_written(inner, text)

    def is_pickle(self, entry: Entry) -> bool:
        """Whether *entry* is a pickle; it is one by its name, its beginning, or what it does.

        Raises:
            MalformedInput: It cannot be read.
        """
        place = place_of(entry)
        if place not in self.tried:
            source, start = self.contents.open(entry, self.budget)
            head = source.read_at(start, min(2, entry.size, source.size - start))
            trace = self.run(entry, source, start)
            self.tried[place] = None
            if _is_named_pickle(entry) or begins_like_a_pickle(head) or may_act(trace):
                self.keep(entry, source, trace)
            elif isinstance(trace.error, LimitExceeded):
                self.gaps.append(Gap.left_by(trace.error, entry.data))
            else:
                self.contents.finish(entry, source)
        return self.tried[place] is not None

    def byteorder(self) -> str:
        entry = self.find("byteorder")
        if entry is None:
            return "little"
        try:
            source, start = self.contents.open(entry, self.budget)
            text = source.read_at(start, min(entry.size, MOST_METADATA_BYTES))
        except MalformedInput as err:
            self.gaps.append(Gap(f"byte order unknown: {err.args[0]}", entry.name, entry.data))
            return "little"
        if text not in (b"little", b"big"):
            message = f"byte order {text!r} is neither little nor big"
            self.odd("zip-byteorder", message, entry)
            self.gaps.append(Gap(message, entry.name, entry.data))
            return "little"
        return text.decode("ascii")


def _header(entry: Entry) -> int:
    return entry.header


def _is_named_pickle(entry: Entry) -> bool:
    return entry.name.lower().endswith(".pkl")
