"""What to think of an open file: findings, verdict, coverage.

Knows:      which events of a pickle, and which mishaps of a framing, are reasons for distrust.
Is told:    an open container.
Never asks: what the tensors are, or what the caller will do with the answer.

Default deny: a name counts as harmless only if its exact (module, name) pair is on
the allowlist, and a call only if that entry says it may be called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.containers import Kind, module_of, storage_of
from ckptaudit.policy.allowlist import Use, allowed, dangerous
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
    from collections.abc import Iterator

    from ckptaudit.containers import Container, Record
    from ckptaudit.vm import Node, Trace

__all__ = ["GlobalUse", "Judgement", "judge"]

_MAPPING_CLASSES = {"OrderedDict", "defaultdict", "Counter", "dict"}
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
    "safetensors-cover": "CKA202",
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


def judge(container: Container) -> Judgement:
    """Judge everything *container* holds."""
    findings: list[Finding] = []
    gaps: list[str] = []
    records = {record.name: record for record in container.records}
    scripted = container.kind is Kind.TORCHSCRIPT
    for trace in container.traces:
        findings += _TraceJudge(trace, records.get(trace.record), scripted=scripted).findings()
        if trace.error is not None:
            gaps.append(escape(str(trace.error)))
    for mishap in container.mishaps:
        rule = RULES[_MISHAP_RULES[mishap.code]]
        record = escape(mishap.record)
        findings.append(
            Finding(rule.id, rule.severity, escape(mishap.message), record, mishap.offset)
        )
    if scripted:
        rule = RULES["CKA205"]
        findings.append(Finding(rule.id, rule.severity, rule.title, "", None))
    gaps += [
        escape(f"{gap.record}: {gap.reason}" if gap.record else gap.reason)
        for gap in container.gaps
    ]
    verdict = max((finding.severity for finding in findings), default=Severity.CLEAN)
    return Judgement(
        verdict=verdict,
        coverage=Coverage(complete=not gaps, gaps=tuple(gaps)),
        findings=tuple(findings),
        globals=_global_uses(container),
    )


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

    def __init__(self, trace: Trace, record: Record | None, *, scripted: bool) -> None:
        self.scripted = scripted
        self.trace = trace
        self.record = record
        self.module_classes = self._module_classes()
        self.called = {
            id(_function_of(event)): event for event in trace.events if isinstance(event, Call)
        }

    def findings(self) -> list[Finding]:
        found: list[Finding] = []
        for event in self.trace.events:
            match event:
                case Global():
                    found += self.judge_global(event)
                case Call():
                    found += self.judge_call(event)
                case PersistentId():
                    found += self.judge_persistent_id(event)
                case Build():
                    found += self.judge_build(event)
                case Opaque():
                    found += self.judge_opaque(event)
                case Oddity():
                    found.append(self.finding("CKA109", escape(event.message), event.offset))
        return found

    def finding(self, rule_id: str, message: str, at: int) -> Finding:
        rule = RULES[rule_id]
        record = self.record
        offset = record.offset + at if record and record.method == "stored" else None
        return Finding(
            rule.id, rule.severity, message, escape(self.trace.record), offset, stream_offset=at
        )

    def _module_classes(self) -> set[int]:
        """Classes whose objects are modules, by what the pickle does with them.

        Either torch wrote the class's source beside it, or every object made of the class
        takes no arguments and is given the state of a ``torch.nn.Module``.
        """
        declared = set()
        made: dict[int, bool] = {}
        for event in self.trace.events:
            if isinstance(event, PersistentId):
                cls = module_of(event)
                declared |= {id(cls)} if cls is not None else set()
            elif isinstance(event, Call):
                cls = _class_made(event)
                if cls is not None:
                    made[id(cls)] = made.get(id(cls), True) and _has_module_state(event)
        return declared | {cls for cls, always in made.items() if always}

    def judge_global(self, event: Global) -> Iterator[Finding]:
        shown = brief(event)
        if dangerous(event.module, event.name):
            call = self.called.get(id(event))
            would = f"would call {brief(call)}" if call else f"asks for {shown}"
            where = call.offset if call else event.offset
            yield self.finding("CKA101", f"{would} when unpickled", where)
        elif allowed(event.module, event.name) is not None:
            return
        elif self.scripted and event.module.split(".", 1)[0] == "__torch__":
            # A class defined by the archive's own code, which CKA205 speaks of.
            return
        elif "." in event.name or "__" in event.name or not _plain(event):
            yield self.finding("CKA105", f"asks for {shown}", event.offset)
        elif id(event) in self.module_classes:
            message = f"holds an object of class {shown}, whose code is not in the file"
            yield self.finding("CKA108", message, event.offset)
        elif _is_torch_module_helper(event):
            yield self.finding("CKA108", f"asks for {shown}", event.offset)
        else:
            call = self.called.get(id(event))
            would = f"would call {brief(call)}" if call else f"asks for {shown}"
            message = f"{would}, which is not on the allowlist"
            yield self.finding("CKA102", message, call.offset if call else event.offset)

    def judge_call(self, event: Call) -> Iterator[Finding]:
        func = _function_of(event)
        if not isinstance(func, Global):
            if _class_made(event) is None:
                message = f"would call the result of something else: {brief(event)}"
                yield self.finding("CKA103", message, event.offset)
            return
        entry = allowed(func.module, func.name)
        if entry is None:
            return  # The name itself is a finding already.
        if entry.use is Use.VALUE:
            yield self.finding("CKA103", f"would call {brief(event)}", event.offset)
        elif (event.pairs and func.name not in _MAPPING_CLASSES) or (
            event.elements and entry.use is not Use.OBJECT
        ):
            message = f"would store items in the result of {brief(event)}"
            yield self.finding("CKA103", message, event.offset)

    def judge_persistent_id(self, event: PersistentId) -> Iterator[Finding]:
        # In a tar of torch < 0.1.10 a persistent id is the number of a tensor.
        if storage_of(event) is None and module_of(event) is None and type(event.pid) is not int:
            message = f"refers to {brief(event.pid)}, which is no storage"
            yield self.finding("CKA106", message, event.offset)

    def judge_build(self, event: Build) -> Iterator[Finding]:
        target = event.target
        if not isinstance(target, Call):
            message = f"would set the state of {brief(target)}"
            yield self.finding("CKA107", message, event.offset)
            return
        func = _function_of(target)
        entry = allowed(func.module, func.name) if isinstance(func, Global) else None
        if entry is not None and entry.use is not Use.OBJECT:
            message = f"would set the state of what {brief(target)} returns"
            yield self.finding("CKA107", message, event.offset)
        for key in _state_names(event.state):
            if key.startswith("__") and key.endswith("__"):
                message = f"would replace {escape(key)} of {brief(target)}"
                yield self.finding("CKA107", message, event.offset)

    def judge_opaque(self, event: Opaque) -> Iterator[Finding]:
        what = ", ".join(brief(arg) for arg in event.args)
        yield self.finding("CKA104", f"{event.op} asks for something by {what}", event.offset)


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


def _has_module_state(call: Call) -> bool:
    return {"_parameters", "_modules"} <= set(_state_names(call.state))


def _state_names(state: Node) -> Iterator[str]:
    """The attribute names BUILD would set: of a dict, or of (dict, dict of slots)."""
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, Dict):
            yield from (key for key, _ in part.pairs if isinstance(key, str))


def _plain(event: Global) -> bool:
    return event.module.isascii() and event.name.isascii() and event.name.isidentifier()


def _is_torch_module_helper(event: Global) -> bool:
    # Modules of torch < 0.4 kept a handle on their C backend.
    return (event.module, event.name) == (
        "torch.nn.backends.thnn",
        "_get_thnn_function_backend",
    )
