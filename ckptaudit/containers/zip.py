"""The zip framing of torch >= 1.6: ``data.pkl`` and the storages beside it.

Knows:      caffe2/serialize/inline_container.cc, torch/serialization.py (_save, _load).
Is told:    a source that begins with a local file header.
Never asks: what the pickle means.
"""

from __future__ import annotations

from itertools import filterfalse
from typing import TYPE_CHECKING, TypeAlias

from ckptaudit.containers.container import Container, Gap, Kind, Mishap, Record, Role, Storage
from ckptaudit.containers.inflate import METHODS, InflatedSource
from ckptaudit.containers.persistent import StorageRef, references
from ckptaudit.containers.zipdirectory import SIGNATURE, Directory, Entry
from ckptaudit.errors import LimitExceeded, MalformedInput, Unsupported
from ckptaudit.vm import Build, Call, Global, Opaque, Trace, trace_pickle

if TYPE_CHECKING:
    from ckptaudit.source import ByteSource
    from ckptaudit.vm import Budget

__all__ = ["SIGNATURE", "open_zip"]

# The longest is .data/serialization_id, 40 digits.
_MOST_METADATA_BYTES = 64

_METADATA = {
    "version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
    ".data/version",
}


def open_zip(source: ByteSource, budget: Budget) -> Container:
    """Read the zip archive that *source* begins with.

    Raises:
        MalformedInput: Its directory cannot be read, or lists more than the budget allows.
        Unsupported: Its pickle is encrypted, or it is a zip but no torch checkpoint.
    """
    directory = Directory(source, budget)
    if not directory.entries:
        raise Unsupported(f"{source.name}: is an empty zip archive, not a checkpoint")
    return _Reading(source, directory, budget).container()


class _Reading:
    """One archive on its way to a `Container`."""

    def __init__(self, source: ByteSource, directory: Directory, budget: Budget) -> None:
        self.source = source
        self.budget = budget
        self.entries = directory.entries
        self.mishaps = directory.mishaps
        self.gaps = [
            Gap(mishap.message, mishap.record, mishap.offset)
            for mishap in directory.mishaps
            if mishap.code == "zip-gap"
        ]
        self.traces: list[Trace] = []
        # By entry, not by name: of two entries of one name both are looked into.
        self.roles: dict[Entry, Role] = {}
        # By where it lies, whether it was a pickle: entries may share their bytes.
        self.tried: dict[_Place, bool] = {}
        self.inflated: dict[str, ByteSource] = {}
        # torch takes the root from the first entry; every other entry must lie in it.
        self.root = self.entries[0].name.split("/", 1)[0]
        self.by_name = {entry.name: entry for entry in reversed(self.entries)}
        folded = {name.casefold(): name for name in reversed(list(self.by_name))}
        self.by_folded_name = {name: self.by_name[real] for name, real in folded.items()}

    def container(self) -> Container:
        main = self.find("data.pkl")
        if main is None:
            raise Unsupported(
                f"{self.source.name}: is a zip archive without {self.root}/data.pkl, "
                "so not a torch checkpoint"
            )
        for entry in self.entries:
            if entry.name.split("/", 1)[0] != self.root or "/" not in entry.name:
                self.odd("zip-second-root", "lies outside the archive's root folder", entry)
        self.trace_main(main)
        if main.encrypted and self.traces[0].error is not None and not self.traces[0].events:
            raise Unsupported(
                f"{self.source.name}: {main.name!r} is encrypted; decrypt the archive first"
            )
        storages = self.locate(references(self.traces[0].events))
        scripted = self.find("constants.pkl") is not None
        # Pickles first: which records a TorchScript archive refers to stands in two of them.
        for entry in filter(_is_named_pickle, self.entries):
            self.assign(entry, scripted=scripted)
        if scripted:
            self.assign_constants()
        for entry in filterfalse(_is_named_pickle, self.entries):
            self.assign(entry, scripted=scripted)
        return Container(
            source=self.source,
            kind=Kind.TORCHSCRIPT if scripted else Kind.ZIP,
            records=tuple(
                Record(
                    entry.name,
                    entry.data,
                    entry.packed,
                    METHODS.get(entry.method, f"method {entry.method}"),
                    self.roles.get(entry, Role.UNKNOWN),
                )
                for entry in sorted(self.entries, key=lambda entry: entry.header)
            ),
            traces=tuple(self.traces),
            main=0,
            storages=storages,
            byteorder=self.byteorder(),
            mishaps=tuple(self.mishaps),
            gaps=tuple(self.gaps),
            inflated=self.inflated,
        )

    def odd(self, code: str, message: str, entry: Entry) -> None:
        self.mishaps.append(Mishap(code, message, entry.name, entry.header))

    def unread(self, code: str, message: str, entry: Entry, offset: int | None) -> None:
        self.mishaps.append(Mishap(code, message, entry.name, offset))
        self.gaps.append(Gap(message, entry.name, offset))

    def find(self, name: str) -> Entry | None:
        """The entry torch would find: exact name first, then letter case ignored."""
        path = f"{self.root}/{name}"
        return self.by_name.get(path) or self.by_folded_name.get(path.casefold())

    def content(self, entry: Entry, budget: Budget | None) -> tuple[ByteSource, int]:
        """Where the uncompressed bytes of *entry* are, and the first one's offset there.

        Args:
            entry: The entry.
            budget: Pays for inflating it; None for a storage.

        Raises:
            MalformedInput: We cannot tell.
        """
        if entry.fault:
            raise MalformedInput(entry.fault, where=entry.name)
        if entry.method == 0:
            return self.source, entry.data
        if entry.method not in METHODS:
            reason = f"compression method {entry.method} is not one torch reads"
            raise MalformedInput(reason, where=entry.name)
        return InflatedSource(
            self.source, entry.data, entry.packed, entry.size, entry.name, budget
        ), 0

    def trace_main(self, entry: Entry) -> None:
        """Run the pickle that torch.load runs; one that costs too much is a gap."""
        self.roles[entry] = Role.PICKLE
        try:
            source, start = self.content(entry, self.budget)
        except LimitExceeded as err:
            self.traces.append(Trace(entry.name, None, (), 0, 0, 0, err))
        else:
            self.keep(entry, source, self.run(entry, source, start))

    def run(self, entry: Entry, source: ByteSource, start: int) -> Trace:
        stop = start + entry.size
        return trace_pickle(source, start, stop, record=entry.name, budget=self.budget)

    def keep(self, entry: Entry, source: ByteSource, trace: Trace) -> None:
        """Let *trace* count as the pickle in *entry*, and look at what lies behind its end."""
        self.tried[_place_of(entry)] = True
        self.roles[entry] = Role.PICKLE
        self.traces.append(trace)
        if trace.error is not None:
            return
        if trace.end != entry.size:
            message = f"{entry.size - trace.end} bytes after the pickle's end"
            at = entry.data + trace.end if entry.method == 0 else None
            self.unread("bytes-after-pickle", message, entry, at)
        elif isinstance(source, InflatedSource) and source.unread:
            self.unread("zip-gap", "bytes after the end of the compressed data", entry, None)

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
        return storages

    def locate_one(self, key: str, refs: list[StorageRef], entry: Entry) -> Storage | None:
        ref = refs[0]
        if any((other.dtype, other.numel) != (ref.dtype, ref.numel) for other in refs):
            self.odd("storage-contradiction", "is referred to as two different storages", entry)
            return None
        nbytes = ref.numel * ref.dtype.itemsize
        if nbytes != entry.size:
            message = f"has {entry.size} bytes where the pickle says {nbytes}"
            self.odd("storage-size", message, entry)
            return None
        try:
            source, start = self.content(entry, budget=None)
        except MalformedInput as err:
            self.gaps.append(Gap.left_by(err, entry.header))
            return None
        if entry.method != 0:
            self.inflated[entry.name] = source
        return Storage(
            key, ref.dtype, ref.numel, start, nbytes, ref.location, entry.name, ref.typed
        )

    def assign(self, entry: Entry, *, scripted: bool) -> None:
        """Give an entry its role; look into what might be a pickle nobody refers to."""
        if entry in self.roles:
            return
        try:
            self.assign_unreferenced(entry, scripted=scripted)
        except MalformedInput as err:
            self.gaps.append(Gap.left_by(err, entry.header))

    def assign_constants(self) -> None:
        """Give the records that TorchScript's second pickle refers to the role of storages."""
        constants = self.find("constants.pkl")
        for trace in self.traces:
            if constants is not None and trace.record == constants.name:
                for key in references(trace.events):
                    entry = self.find(f"constants/{key}")
                    if entry is not None:
                        self.roles.setdefault(entry, Role.STORAGE)

    def assign_unreferenced(self, entry: Entry, *, scripted: bool) -> None:
        inner = entry.name.removeprefix(f"{self.root}/")
        filled = bool(entry.size or entry.packed)
        if filled and self.is_pickle(entry):
            self.roles[entry] = Role.PICKLE
            # TorchScript has several: constants.pkl, code/__torch__.py.debug_pkl.
            if not (scripted and entry.name.lower().endswith("pkl")):
                self.odd("extra-pickle", "a pickle that torch.load does not read", entry)
        elif inner in _METADATA and entry.packed <= _MOST_METADATA_BYTES:
            self.roles[entry] = Role.METADATA
        elif inner.startswith("data/") and not scripted:
            self.odd("storage-unreferenced", "a storage that no tensor refers to", entry)
        elif scripted and inner.startswith(("constants/", "tensors/", "data/")):
            self.roles[entry] = Role.STORAGE
        elif not (scripted and inner.startswith(("code/", "extra/"))) and filled:
            self.odd("record-unknown", "a record that torch.save does not write", entry)

    def is_pickle(self, entry: Entry) -> bool:
        """Whether *entry* is a pickle; it is one by its name, its beginning, or what it does.

        Raises:
            MalformedInput: It cannot be read.
        """
        place = _place_of(entry)
        if place not in self.tried:
            source, start = self.content(entry, self.budget)
            head = source.read_at(start, min(2, entry.size))
            trace = self.run(entry, source, start)
            self.tried[place] = False
            if _is_named_pickle(entry) or _begins_like_a_pickle(head) or _may_act(trace):
                self.keep(entry, source, trace)
            elif isinstance(trace.error, LimitExceeded):
                self.gaps.append(Gap.left_by(trace.error, entry.header))
        return self.tried[place]

    def byteorder(self) -> str:
        entry = self.find("byteorder")
        if entry is None:
            return "little"
        try:
            source, start = self.content(entry, self.budget)
            text = source.read_at(start, min(entry.size, _MOST_METADATA_BYTES))
        except MalformedInput as err:
            self.gaps.append(Gap(f"byte order unknown: {err.args[0]}", entry.name, entry.header))
            return "little"
        if text not in (b"little", b"big"):
            raise MalformedInput(f"byte order {text!r} is neither little nor big", where=entry.name)
        return text.decode("ascii")


# Method, offset, packed and real size, fault: entries that agree in these hold the same bytes.
_Place: TypeAlias = tuple[int, int, int, int, str]


def _place_of(entry: Entry) -> _Place:
    return entry.method, entry.data, entry.packed, entry.size, entry.fault


def _is_named_pickle(entry: Entry) -> bool:
    return entry.name.lower().endswith(".pkl")


def _begins_like_a_pickle(head: bytes) -> bool:
    return len(head) > 1 and head[0] == 0x80 and head[1] <= 5  # noqa: PLR2004 - PROTO 0 to 5


def _may_act(trace: Trace) -> bool:
    """Whether what was run as a pickle would do something before it ends or breaks.

    Any text that begins with ``c`` and has two lines names something.  That counts only if
    a whole pickle does it, or if something is done with the name; and only if the name could
    be a module's, since an unpickler stops where it cannot import.
    """
    asked = next((event for event in trace.events if isinstance(event, (Global, Opaque))), None)
    if asked is None or (isinstance(asked, Global) and not _may_be_a_module(asked.module)):
        return False
    return trace.error is None or any(isinstance(event, (Call, Build)) for event in trace.events)


def _may_be_a_module(name: str) -> bool:
    return name != "" and not any(map(str.isspace, name))
