"""What to think of an open file: findings, verdict, coverage.

Knows:      which events of a pickle, and which mishaps of a framing, are reasons for distrust.
Is told:    an open container.
Never asks: what the tensors are, or what the caller will do with the answer.

Default deny: a name counts as harmless only if its exact (module, name) pair is on
the allowlist, a call only if its arguments are those that picklers write, and the same
for state.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING

from ckptaudit.containers import Gap, Kind, key_of, module_of, storage_of
from ckptaudit.policy.allowlist import MAPPINGS, SEQUENCES, UNCHECKED, allowed
from ckptaudit.policy.arguments import attribute_dicts, hidden_names
from ckptaudit.policy.dangerous import dangerous
from ckptaudit.policy.findings import Findings, shown
from ckptaudit.policy.rules import RULES, Coverage, Finding, Severity
from ckptaudit.vm import (
    Build,
    Call,
    Dict,
    Global,
    Oddity,
    Opaque,
    PersistentId,
    brief,
    escape,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ckptaudit.containers import Container, Mishap, Record
    from ckptaudit.vm import Node, Trace

__all__ = ["GlobalUse", "Judgement", "judge"]

# So many gaps, and so many different names, are listed one by one.
_MOST_GAPS = 1000
_MOST_USES = 1000
# Oddities of the machine that change something else than a list, a dict or a set.
_CHANGES = {"append-to-other", "setitem-on-other", "additems-to-other"}
_MOST_NAME = 60
_LONGEST_PACKAGE = 100
_MOST_NAMES = 4
_MODULE = re.compile(r"[A-Za-z0-9_.-]+")
# How a sentence about a name ends.
_WHY = {
    "CKA101": " when unpickled",
    "CKA102": ", which is not on the allowlist",
    "CKA105": " when unpickled",
    "CKA108": "",
}
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
    "storage-missing": "CKA204",
    "storage-size": "CKA204",
    "storage-contradiction": "CKA204",
    "storage-unreferenced": "CKA203",
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
    "safetensors-cover": "CKA202",
    "tensor-outside": "CKA207",
}


@dataclass(frozen=True, slots=True)
class GlobalUse:
    """A name the file asks for.

    Attributes:
        module: As the pickle spells it, escaped.
        name: As the pickle spells it, escaped.
        count: How often it is asked for.
        allowed: Why it is allowed, or None.
    """

    module: str
    name: str
    count: int
    allowed: str | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """The answer of a scan.

    Attributes:
        verdict: The worst severity among *findings*; clean without any.
        coverage: Whether the whole file was read.
        findings: In file order, pickle by pickle; of each rule the first few hundred, and
            then how many more there were.
        globals: The names asked for, in order of first mention; the first thousand of them.
    """

    verdict: Severity
    coverage: Coverage
    findings: tuple[Finding, ...]
    globals: tuple[GlobalUse, ...]


def judge(
    container: Container, examine: Callable[[Container], Iterable[Mishap | Gap]] = lambda _: ()
) -> Judgement:
    """Judge everything *container* holds, and what is inside that.

    Args:
        container: An open file.
        examine: What else is wrong with a container, or left unread, beside its framing;
            asked for the file and for each one inside it.
    """
    findings = Findings()
    gaps = _Gaps()
    uses: Counter[tuple[str, str]] = Counter()
    # Names of the files around, and where byte 0 is in the outermost one.
    pending: list[tuple[tuple[str, ...], int | None, Container]] = [((), 0, container)]
    while pending:
        around, start, inner = pending.pop()
        place = _Place(around, start, inner)
        _judge_one(place, examine(inner), findings, gaps)
        uses.update(_names_in(inner))
        pending += [
            ((*around, nested.name), place.offset(nested.offset), nested.container)
            for nested in reversed(inner.nested)
        ]
    if gaps.times:
        # Of a file that was read in part nobody can say that it is clean.
        others = f" and {gaps.times - 1} more" if gaps.times > 1 else ""
        findings.add("CKA208", lambda: f"{RULES['CKA208'].title}: {gaps.listed[0]}{others}")
    return Judgement(
        verdict=findings.verdict,
        coverage=Coverage(complete=not gaps.times, gaps=gaps.all()),
        findings=findings.all(),
        globals=_global_uses(uses),
    )


class _Place:
    """A container, and where it is in the outermost file.

    Args:
        around: Names of the containers around it, the outermost first.
        start: Where its byte 0 is in the outermost file; None where that is compressed.
        container: The container.
    """

    def __init__(self, around: tuple[str, ...], start: int | None, container: Container) -> None:
        self.container = container
        self._around = around
        self._start = start

    def record(self, name: str) -> str:
        """What to call a record: the names of what is around it, and its own."""
        return "!".join((*self._around, name) if name else self._around)

    def offset(self, at: int | None) -> int | None:
        """Where byte *at* of the container is in the outermost file, or None."""
        return None if self._start is None or at is None else self._start + at


def _judge_one(
    place: _Place, examined: Iterable[Mishap | Gap], findings: Findings, gaps: _Gaps
) -> None:
    container = place.container
    records = _records_by_name(container)
    for trace in container.traces:
        record = records.get(trace.record)
        # Where the pickle begins in the outermost file; None where it is compressed.
        start = place.offset(record.offset) if record and record.method == "stored" else None
        _TraceJudge(trace, place, start, findings).judge()
        if trace.error is not None:
            at = trace.error.offset
            offset = None if start is None or at is None else start + at
            gaps.add(str(trace.error.args[0]), place.record(trace.record), offset, at)
    for mishap in chain(container.gaps, container.mishaps, examined):
        record_name, offset = place.record(mishap.record), place.offset(mishap.offset)
        if isinstance(mishap, Gap):
            gaps.add(mishap.reason, record_name, offset, mishap.stream_offset)
        else:
            rule_id = _MISHAP_RULES[mishap.code]
            findings.add(rule_id, partial(escape, mishap.message), record_name, offset)
    if container.kind is Kind.TORCHSCRIPT:
        findings.add("CKA205", lambda: RULES["CKA205"].title, place.record(""))


class _Gaps:
    """What was not read: the first of it listed, the rest counted."""

    def __init__(self) -> None:
        self.listed: list[Gap] = []
        self.times = 0

    def add(
        self, reason: str, record: str, offset: int | None, stream_offset: int | None = None
    ) -> None:
        self.times += 1
        if self.times <= _MOST_GAPS:
            self.listed.append(Gap(escape(reason), shown(record), offset, stream_offset))

    def all(self) -> tuple[Gap, ...]:
        more = self.times - len(self.listed)
        return (*self.listed, Gap(f"{more} more", "", None)) if more else tuple(self.listed)


def _records_by_name(container: Container) -> dict[str, Record]:
    """Where two records have one name, which of them a pickle stands in is not known."""
    times = Counter(record.name for record in container.records)
    return {record.name: record for record in container.records if times[record.name] == 1}


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


class _TraceJudge:
    """One pickle being judged."""

    def __init__(self, trace: Trace, place: _Place, start: int | None, findings: Findings) -> None:
        self.trace = trace
        self.container = container = place.container
        self.record = place.record(trace.record)
        self.start = start
        self.findings = findings
        self.scripted = container.kind is Kind.TORCHSCRIPT
        # By id of a dict of attributes, which may be given to many objects.
        self.hidden: dict[int, list[str]] = {}
        # By module and name, which may be long and asked for many times.
        self.rules: dict[tuple[str, str], str | None] = {}
        self.module_classes = _module_classes(trace)
        self.called = {id(_function_of(event)) for event in trace.events if isinstance(event, Call)}

    def judge(self) -> None:
        """Find what is wrong with the pickle, in its order."""
        for event in self.trace.events:
            match event:
                case Global():
                    self.judge_global(event)
                case Call():
                    self.judge_call(event)
                case PersistentId():
                    self.judge_persistent_id(event)
                case Build():
                    self.judge_build(event)
                case Opaque():
                    self.judge_opaque(event)
                case Oddity():
                    self.judge_oddity(event)

    def found(self, rule_id: str, at: int, describe: Callable[[], str]) -> None:
        offset = None if self.start is None else self.start + at
        self.findings.add(rule_id, describe, self.record, offset, stream_offset=at)

    def rule_of(self, name: Global) -> str | None:
        """The rule that asking for *name* falls under, or None if it is allowed."""
        pair = name.module, name.name
        if pair not in self.rules:
            self.rules[pair] = self.rule_of_pair(name)
        rule_id = self.rules[pair]
        return "CKA108" if rule_id == "CKA102" and id(name) in self.module_classes else rule_id

    def rule_of_pair(self, name: Global) -> str | None:
        if dangerous(name.module, name.name):
            return "CKA101"
        if allowed(name.module, name.name) is not None:
            return None
        if self.scripted and _package_of(name) == "__torch__":
            # A class defined by the archive's own code, which CKA205 speaks of.
            return None
        if "." in name.name or "__" in name.name or not _plain(name):
            return "CKA105"
        return "CKA108" if _is_torch_module_helper(name) else "CKA102"

    def judge_opaque(self, event: Opaque) -> None:
        self.found(
            "CKA104",
            event.offset,
            lambda: f"{event.op} asks for something by {', '.join(map(brief, event.args))}",
        )

    def judge_oddity(self, event: Oddity) -> None:
        rule_id = "CKA103" if event.code in _CHANGES else "CKA109"
        self.found(rule_id, event.offset, lambda: escape(event.message))

    def judge_global(self, event: Global) -> None:
        rule_id = self.rule_of(event)
        if rule_id is None:
            return
        if id(event) in self.module_classes:
            self.found(
                rule_id,
                event.offset,
                lambda: f"holds an object of class {brief(event)}, whose code is not in the file",
            )
        elif id(event) not in self.called:
            # Else each call says so, with its arguments.
            why = _WHY[rule_id]
            self.found(rule_id, event.offset, lambda: f"asks for {brief(event)}{why}")

    def judge_call(self, event: Call) -> None:
        func = _function_of(event)
        if not isinstance(func, Global):
            self.found(
                "CKA103",
                event.offset,
                lambda: f"would call the result of something else: {brief(event)}",
            )
            return
        entry = allowed(func.module, func.name)
        rule_id = self.rule_of(func)
        if rule_id is not None and id(func) not in self.module_classes:
            why = _WHY[rule_id]
            self.found(rule_id, event.offset, lambda: f"would call {brief(event)}{why}")
        elif entry is None:
            return
        elif entry.takes is None:
            self.found("CKA103", event.offset, lambda: f"would call {brief(event)}")
        elif not (isinstance(event.args, tuple) and entry.takes(event.args)) or (
            event.kwargs is not None and not entry.keywords
        ):
            self.found(
                "CKA103",
                event.offset,
                lambda: f"would call {brief(event)}, with arguments that no pickler writes",
            )
        elif (func.module, func.name) in UNCHECKED:
            self.found("CKA111", event.offset, lambda: f"would call {brief(event)}")
        elif not _may_be_empty(_class_made(event)):
            self.found(
                "CKA103", event.offset, lambda: f"would make an empty object: {brief(event)}"
            )
        self.judge_contents(event, func)

    def judge_contents(self, event: Call, func: Global) -> None:
        """Storing calls a method of what the call made, and any object may bring its own."""
        made = _class_made(event) or func
        name = (made.module, made.name)
        if (event.pairs and name not in MAPPINGS) or (event.elements and name not in SEQUENCES):
            self.found(
                "CKA103",
                event.offset,
                lambda: f"would store items in the result of {brief(event)}",
            )

    def judge_persistent_id(self, event: PersistentId) -> None:
        if storage_of(event) is not None:
            return
        kind = self.container.kind
        if kind is Kind.LEGACY and module_of(event) is not None:
            return
        if kind is Kind.TAR and type(event.pid) is int:
            # In a tar of torch < 0.1.10 a persistent id is the number of a tensor or storage.
            key = key_of(event.pid)
            if key in self.container.tensors or key in self.container.storages:
                return
        self.found(
            "CKA106", event.offset, lambda: f"refers to {brief(event.pid)}, which is no storage"
        )

    def judge_build(self, event: Build) -> None:
        target = event.target
        for part in attribute_dicts(event.state):
            if id(part) not in self.hidden:
                self.hidden[id(part)] = hidden_names(part)
            names = self.hidden[id(part)]
            if names:
                self.found("CKA107", event.offset, partial(_hidden_attributes, target, names))
                return
        made = (_class_made(target) or _function_of(target)) if isinstance(target, Call) else None
        if made is None:
            self.found("CKA107", event.offset, lambda: f"would set the state of {brief(target)}")
            return
        entry = allowed(made.module, made.name) if isinstance(made, Global) else None
        if entry is not None and (entry.state is None or not entry.state(event.state)):
            self.found(
                "CKA107",
                event.offset,
                lambda: (
                    f"would set the state of what {brief(target)} returns to {brief(event.state)}"
                ),
            )


def _hidden_attributes(target: Node, names: list[str]) -> str:
    listed = ", ".join(escape(name[:_MOST_NAME]) for name in names[:_MOST_NAMES])
    return f"would replace {listed} of {brief(target)}"


def _module_classes(trace: Trace) -> frozenset[int]:
    """Classes (by id of their node) whose objects are modules, by what the pickle does with them.

    Whenever it calls the class it does so to make an empty object, and every state that the
    object is given is that of a ``torch.nn.Module``.  A function cannot pass for one: it
    would be called with arguments, or the loader would stop when it is asked for an object.
    """
    # By id of the target: whether each state it is given is that of a module.
    states: dict[int, bool] = {}
    of_module: dict[int, bool] = {}
    for event in trace.events:
        if isinstance(event, Build):
            state = id(event.state)
            if state not in of_module:
                of_module[state] = _is_module_state(event.state)
            states[id(event.target)] = states.get(id(event.target), True) and of_module[state]
    if not any(of_module.values()):
        return frozenset()
    made: dict[int, bool] = {}
    for event in trace.events:
        if isinstance(event, Call):
            cls = _class_made(event)
            fits = (
                cls is not None
                and states.get(id(event), False)
                and _package_of(cls) not in sys.stdlib_module_names
            )
            func = id(cls or _function_of(event))
            made[func] = made.get(func, True) and fits
    return frozenset(node for node, always in made.items() if always)


def _function_of(call: Call) -> Node:
    """What a call calls; behind a module's persistent id, the class it names."""
    if isinstance(call.func, PersistentId):
        return module_of(call.func)
    return call.func


def _class_made(call: Call) -> Global | None:
    """The class of which *call* makes an empty object, as pickle does before BUILD; or None."""
    func = _function_of(call)
    if not isinstance(func, Global):
        return None
    if func.name == "_reconstructor" and func.module in {"copyreg", "copy_reg"}:
        match call.args:
            case (Global() as cls, Global(name="object"), None):
                return cls
            case _:
                return None
    return func if call.op == "NEWOBJ" and call.args == () else None


def _may_be_empty(cls: Global | None) -> bool:
    """Whether *cls*, if it is on the allowlist, is there for objects made without arguments."""
    entry = allowed(cls.module, cls.name) if cls else None
    return entry is None or (entry.takes is not None and entry.takes(()))


def _is_module_state(state: Node) -> bool:
    if not isinstance(state, Dict):
        return False
    return {"_parameters", "_modules"} <= {key for key, _ in state.pairs if isinstance(key, str)}


def _package_of(name: Global) -> str:
    # No package whose name we know is as long; a name of a megabyte may be asked for often.
    return name.module[:_LONGEST_PACKAGE].split(".", 1)[0]


def _plain(event: Global) -> bool:
    # Modules that are made while a program runs may have a dash in their name.
    is_identifier = event.name.isascii() and event.name.isidentifier()
    return is_identifier and _MODULE.fullmatch(event.module) is not None


def _is_torch_module_helper(event: Global) -> bool:
    # Modules of torch < 0.4 kept a handle on their C backend.
    return (event.module, event.name) == (
        "torch.nn.backends.thnn",
        "_get_thnn_function_backend",
    )
