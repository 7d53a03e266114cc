"""What to think of an open file: findings, verdict, coverage.

Knows:      which events of a pickle, and which mishaps of a framing, are reasons for distrust.
Is told:    an open container.
Never asks: what the tensors are, or what the caller will do with the answer.

Default deny: a name counts as harmless only if its exact (module, name) pair is on
the allowlist, a call only if its arguments are those that picklers write, and the same
for state.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.containers import Kind, key_of, module_of, storage_of
from ckptaudit.policy.allowlist import MAPPINGS, SEQUENCES, UNCHECKED, allowed
from ckptaudit.policy.arguments import attribute_dicts, hidden_names
from ckptaudit.policy.dangerous import dangerous
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
    from collections.abc import Iterable, Iterator

    from ckptaudit.containers import Container, Mishap, Record
    from ckptaudit.vm import Node, Trace

__all__ = ["GlobalUse", "Judgement", "judge"]

# A hostile pickle of a megabyte can give a million reasons; so many are spelled out.
_MOST_FINDINGS = 1000
# Oddities of the machine that change something else than a list, a dict or a set.
_CHANGES = {"append-to-other", "setitem-on-other", "additems-to-other"}
_MOST_MESSAGE = 500
_MOST_NAME = 60
_MOST_NAMES = 4
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
        findings: In file order, pickle by pickle.
        globals: Every name asked for, in order of first mention.
    """

    verdict: Severity
    coverage: Coverage
    findings: tuple[Finding, ...]
    globals: tuple[GlobalUse, ...]


def judge(container: Container, mishaps: Iterable[Mishap] = ()) -> Judgement:
    """Judge everything *container* holds.

    Args:
        container: An open file.
        mishaps: What else was found wrong with it, beside its framing.
    """
    findings: list[Finding] = []
    gaps: list[str] = []
    records = _records_by_name(container)
    for trace in container.traces:
        findings += _TraceJudge(trace, container, records.get(trace.record)).findings()
        if trace.error is not None:
            gaps.append(escape(str(trace.error)))
    for mishap in (*container.mishaps, *mishaps):
        rule = RULES[_MISHAP_RULES[mishap.code]]
        record = escape(mishap.record)
        findings.append(
            Finding(rule.id, rule.severity, escape(mishap.message), record, mishap.offset)
        )
    if container.kind is Kind.TORCHSCRIPT:
        rule = RULES["CKA205"]
        findings.append(Finding(rule.id, rule.severity, rule.title, "", None))
    gaps += [
        escape(f"{gap.record}: {gap.reason}" if gap.record else gap.reason)
        for gap in container.gaps
    ]
    if gaps:
        # Of a file that was read in part nobody can say that it is clean.
        rule = RULES["CKA208"]
        message = f"{rule.title}: {gaps[0]}{f' and {len(gaps) - 1} more' if gaps[1:] else ''}"
        findings.append(Finding(rule.id, rule.severity, message, "", None))
    verdict = max((finding.severity for finding in findings), default=Severity.CLEAN)
    return Judgement(
        verdict=verdict,
        coverage=Coverage(complete=not gaps, gaps=tuple(gaps)),
        findings=tuple(findings),
        globals=_global_uses(container),
    )


def _records_by_name(container: Container) -> dict[str, Record]:
    """Where two records have one name, which of them a pickle stands in is not known."""
    times = Counter(record.name for record in container.records)
    return {record.name: record for record in container.records if times[record.name] == 1}


def _global_uses(container: Container) -> tuple[GlobalUse, ...]:
    counts: dict[tuple[str, str], int] = {}
    for trace in container.traces:
        for event in trace.events:
            if isinstance(event, Global):
                pair = event.module, event.name
                counts[pair] = counts.get(pair, 0) + 1
    uses = []
    for (module, name), count in counts.items():
        entry = allowed(module, name)
        reason = entry.reason if entry else None
        uses.append(GlobalUse(escape(module), escape(name), count, reason))
    return tuple(uses)


class _TraceJudge:
    """One pickle being judged."""

    def __init__(self, trace: Trace, container: Container, record: Record | None) -> None:
        self.trace = trace
        self.container = container
        self.record = record
        self.scripted = container.kind is Kind.TORCHSCRIPT
        # By id of a dict of attributes, which may be given to many objects.
        self.hidden: dict[int, list[str]] = {}
        self.module_classes = _module_classes(trace)
        self.called = {id(_function_of(event)) for event in trace.events if isinstance(event, Call)}

    def findings(self) -> list[Finding]:
        """What is wrong with the pickle, in its order; beyond `_MOST_FINDINGS` only how often."""
        found: list[Finding] = []
        more: Counter[str] = Counter()
        for finding in self.all_findings():
            if len(found) < _MOST_FINDINGS:
                found.append(finding)
            else:
                more[finding.rule] += 1
        record = escape(self.trace.record)
        for rule_id, count in more.items():
            rule = RULES[rule_id]
            message = f"{count} more: {rule.title}"
            found.append(Finding(rule.id, rule.severity, message, record, None))
        return found

    def all_findings(self) -> Iterator[Finding]:
        for event in self.trace.events:
            match event:
                case Global():
                    yield from self.judge_global(event)
                case Call():
                    yield from self.judge_call(event)
                case PersistentId():
                    yield from self.judge_persistent_id(event)
                case Build():
                    yield from self.judge_build(event)
                case Opaque():
                    what = ", ".join(brief(arg) for arg in event.args)
                    message = f"{event.op} asks for something by {what}"
                    yield self.finding("CKA104", message, event.offset)
                case Oddity():
                    rule_id = "CKA103" if event.code in _CHANGES else "CKA109"
                    yield self.finding(rule_id, escape(event.message), event.offset)

    def finding(self, rule_id: str, message: str, at: int) -> Finding:
        rule = RULES[rule_id]
        record = self.record
        offset = record.offset + at if record and record.method == "stored" else None
        if len(message) > _MOST_MESSAGE:
            message = f"{message[:_MOST_MESSAGE]}..."
        return Finding(
            rule.id, rule.severity, message, escape(self.trace.record), offset, stream_offset=at
        )

    def rule_of(self, name: Global) -> str | None:
        """The rule that asking for *name* falls under, or None if it is allowed."""
        if dangerous(name.module, name.name):
            return "CKA101"
        if allowed(name.module, name.name) is not None:
            return None
        if self.scripted and name.module.split(".", 1)[0] == "__torch__":
            # A class defined by the archive's own code, which CKA205 speaks of.
            return None
        if "." in name.name or "__" in name.name or not _plain(name):
            return "CKA105"
        if id(name) in self.module_classes or _is_torch_module_helper(name):
            return "CKA108"
        return "CKA102"

    def judge_global(self, event: Global) -> Iterator[Finding]:
        rule_id = self.rule_of(event)
        if rule_id is None:
            return
        shown = brief(event)
        if id(event) in self.module_classes:
            message = f"holds an object of class {shown}, whose code is not in the file"
            yield self.finding(rule_id, message, event.offset)
        elif id(event) not in self.called:
            # Else each call says so, with its arguments.
            yield self.finding(rule_id, f"asks for {shown}{_WHY[rule_id]}", event.offset)

    def judge_call(self, event: Call) -> Iterator[Finding]:
        func = _function_of(event)
        if not isinstance(func, Global):
            message = f"would call the result of something else: {brief(event)}"
            yield self.finding("CKA103", message, event.offset)
            return
        entry = allowed(func.module, func.name)
        rule_id = self.rule_of(func)
        if rule_id is not None and id(func) not in self.module_classes:
            message = f"would call {brief(event)}{_WHY[rule_id]}"
            yield self.finding(rule_id, message, event.offset)
        elif entry is None:
            return
        elif entry.takes is None:
            yield self.finding("CKA103", f"would call {brief(event)}", event.offset)
        elif not (isinstance(event.args, tuple) and entry.takes(event.args)) or (
            event.kwargs is not None and not entry.keywords
        ):
            message = f"would call {brief(event)}, with arguments that no pickler writes"
            yield self.finding("CKA103", message, event.offset)
        elif (func.module, func.name) in UNCHECKED:
            yield self.finding("CKA111", f"would call {brief(event)}", event.offset)
        elif not _may_be_empty(_class_made(event)):
            message = f"would make an empty object: {brief(event)}"
            yield self.finding("CKA103", message, event.offset)
        yield from self.judge_contents(event, func)

    def judge_contents(self, event: Call, func: Global) -> Iterator[Finding]:
        """Storing calls a method of what the call made, and any object may bring its own."""
        made = _class_made(event) or func
        name = (made.module, made.name)
        if (event.pairs and name not in MAPPINGS) or (event.elements and name not in SEQUENCES):
            message = f"would store items in the result of {brief(event)}"
            yield self.finding("CKA103", message, event.offset)

    def judge_persistent_id(self, event: PersistentId) -> Iterator[Finding]:
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
        message = f"refers to {brief(event.pid)}, which is no storage"
        yield self.finding("CKA106", message, event.offset)

    def judge_build(self, event: Build) -> Iterator[Finding]:
        target = event.target
        for part in attribute_dicts(event.state):
            if id(part) not in self.hidden:
                self.hidden[id(part)] = hidden_names(part)
            names = self.hidden[id(part)]
            if names:
                shown = ", ".join(escape(name[:_MOST_NAME]) for name in names[:_MOST_NAMES])
                message = f"would replace {shown} of {brief(target)}"
                yield self.finding("CKA107", message, event.offset)
                return
        made = (_class_made(target) or _function_of(target)) if isinstance(target, Call) else None
        if made is None:
            message = f"would set the state of {brief(target)}"
            yield self.finding("CKA107", message, event.offset)
            return
        entry = allowed(made.module, made.name) if isinstance(made, Global) else None
        if entry is not None and (entry.state is None or not entry.state(event.state)):
            message = f"would set the state of what {brief(target)} returns to {brief(event.state)}"
            yield self.finding("CKA107", message, event.offset)


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
    made: dict[int, bool] = {}
    for event in trace.events:
        if isinstance(event, Call):
            cls = _class_made(event)
            fits = (
                cls is not None
                and cls.module.split(".", 1)[0] not in sys.stdlib_module_names
                and states.get(id(event), False)
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


def _plain(event: Global) -> bool:
    return event.module.isascii() and event.name.isascii() and event.name.isidentifier()


def _is_torch_module_helper(event: Global) -> bool:
    # Modules of torch < 0.4 kept a handle on their C backend.
    return (event.module, event.name) == (
        "torch.nn.backends.thnn",
        "_get_thnn_function_backend",
    )
