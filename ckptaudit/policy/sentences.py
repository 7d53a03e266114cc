"""One sentence a person can act on for each finding: what would have been done, by whom.

Knows:      which pickles torch.load executes, and what its restricted loader refuses.
Is told:    a finding, the event it is about, and how its pickle comes to be executed.
Never asks: whether there is a finding; `judge` has decided that.

What is said of torch is no more than is known of it.  Where a name is allowed but its use is
not one that picklers write, torch may or may not refuse it, and the sentence says so.

Sources: torch/serialization.py, load and _legacy_load, for the order of its readers;
torch/_weights_only_unpickler.py of 2.13 for the opcodes and names it knows; CVE-2025-32434 for
tar and TorchScript before 2.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from ckptaudit.containers import Kind
from ckptaudit.policy.allowlist import allowed
from ckptaudit.policy.dangerous import dangerous
from ckptaudit.policy.findings import record_text
from ckptaudit.policy.rules import RULES
from ckptaudit.vm import Build, Call, Global, Oddity, Opaque, PersistentId, brief

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptaudit.containers import Carried, Container, Place
    from ckptaudit.policy.rules import Finding
    from ckptaudit.vm import Event, Node, Trace

    # What an instruction asks for or does; what is merely odd about it is no act.
    _Act: TypeAlias = Global | Call | Build | PersistentId | Opaque

__all__ = ["Route", "route_of", "sentence"]

_TRUSTING = "torch.load(weights_only=False)"
_REFUSES = "torch >= 2.6 refuses it by default"
_MAY_NOT_REFUSE = "do not rely on torch >= 2.6 to refuse it"
# It unpickles so many of a legacy stream: magic number, version, system, object, keys.
_LEGACY_PICKLES = 5
# What NumPy's framing calls the elements of an array.
_ELEMENTS = "data"
# What torch.load unpickles of a tar: it lists and opens these three members.
_TAR_MEMBERS = ("storages", "tensors", "pickle")
_MOST_ACT = 500

# Opcodes that the restricted loader does not have; a name asked for by GLOBAL it may know.
_REFUSED_CALLS = {"INST", "OBJ", "NEWOBJ_EX"}

# What to do about what is wrong, where that is not what an instruction asks for or calls.
_ADVICE = {
    "CKA109": "no pickler writes it, so ask where the file comes from",
    "CKA110": "torch.load or another program may run it: load it with neither",
    "CKA112": "loading it may take all the memory or time there is: do not load it",
    "CKA201": "another program may read another model out of it: fetch it from its author again",
    "CKA202": "nothing reads what is there, so nothing vouches for it: convert the file to lose it",
    "CKA203": "torch writes nothing like it: look at what it is before you load the file",
    "CKA204": "loading it fails or reads what is not there: fetch the file again",
    "CKA205": "torch.jit.load would run that code, and torch >= 2.6 refuses such an archive by "
    "default: load it only from whom you trust",
    "CKA206": "torch.load may refuse it or read it as something else: fetch it again",
    "CKA207": "loading it fails or reads memory that is not the tensor's: do not load it",
    "CKA208": "nobody can say what is there: do not load it on the strength of this answer",
    "CKA209": "loading it brings them along unseen: convert the file to lose them",
    "CKA210": "the first copy of it takes all the memory there is: ask its author for another",
}


@dataclass(frozen=True, slots=True)
class Route:
    """How a pickle comes to be executed.

    Attributes:
        when: When that is, as the end of "would have called it ...".
        who: Who does it, as a sentence of its own.
        refused: What torch >= 2.6 makes of such a file, or of what leads to this pickle, whatever
            is in it; "" if that depends.
        by_torch: Whether torch.load executes it at all.
    """

    when: str
    who: str
    refused: str
    by_torch: bool


def route_of(place: Place, index: int) -> Route:
    """How pickle number *index* of a container comes to be executed."""
    if place.carried is not None and place.parent is not None:
        return _by_call(place.parent, place.carried)
    route = _route(place, index)
    if not place.around:
        return route
    inner = f"the file inside ({record_text(place.around)})"
    return Route(
        f"{route.when} from {inner}", f"in {inner}: {route.who}", route.refused, route.by_torch
    )


def _by_call(parent: Place, carried: Carried) -> Route:
    """How a pickle in bytes comes to be executed, which a call in another pickle is given."""
    traces = parent.container.traces
    index = next(index for index, trace in enumerate(traces) if trace is carried.trace)
    outer = route_of(parent, index)
    record = record_text(parent.path(carried.trace.record))
    by = f"the call at byte 0x{carried.call.offset:x} of {record}"
    refused = outer.refused
    if outer.by_torch and not refused:
        # Its restricted loader never sees these bytes: it stops at the call, or it does not.
        refused = _REFUSES if _is_refused(carried.call) else _MAY_NOT_REFUSE
    return Route(
        f"{outer.when}, if {by} unpickles the bytes it is given",
        f"{by} is given these bytes and may unpickle them: {outer.who}",
        refused,
        outer.by_torch,
    )


def _route(place: Place, index: int) -> Route:
    container = place.container
    trace = container.traces[index]
    if _is_from_first_byte(container, index):
        return _IN_MEMORY if container.kind is Kind.TAR else _FIRST
    if container.kind is not Kind.LEGACY and _follows(container.traces, index):
        return _FOLLOWING
    match container.kind:
        case Kind.TORCHSCRIPT:
            return _SCRIPT
        case Kind.TAR:
            return _tar_route(trace)
        case Kind.NUMPY if trace.record == _ELEMENTS:
            return _ARRAY
        case Kind.ZIP if index == container.main:
            return _LOADED
        case Kind.LEGACY if index < _LEGACY_PICKLES:
            return _LOADED
        case _:
            return _UNREAD


def _is_from_first_byte(container: Container, index: int) -> bool:
    """Whether the pickle begins where the file does, whatever else that is."""
    trace = container.traces[index]
    return index == 0 and trace.start == 0 and trace.source is container.source


def _follows(traces: Sequence[Trace], index: int) -> bool:
    """Whether nothing but pickles lies between the beginning of the file and the pickle."""
    return traces[0].start == 0 and all(
        one.start + one.end == other.start for one, other in pairwise(traces[: index + 1])
    )


_LOADED = Route(
    f"when loaded with {_TRUSTING}",
    f"{_TRUSTING}, the default before torch 2.6, unpickles it",
    "",
    by_torch=True,
)
_FIRST = Route(
    f"when loaded with pickle.load or {_TRUSTING}",
    f"pickle.load unpickles it, and so does {_TRUSTING}, the default before torch 2.6",
    "",
    by_torch=True,
)
# _legacy_load tries tar first only if the file is one on disk.
_IN_MEMORY = Route(
    f"when loaded with pickle.load, or from memory with {_TRUSTING}",
    f"pickle.load unpickles it, and so does {_TRUSTING}, the default before torch 2.6, if it is "
    "given the bytes and not a file; a file on disk it takes for a tar",
    "",
    by_torch=True,
)
_FOLLOWING = Route(
    "when a program goes on to unpickle what follows the first pickle",
    "a program that goes on after the first pickle unpickles it; torch.load does if the first "
    "gives its magic number",
    "",
    by_torch=True,
)
_SCRIPT = Route(
    "if it were unpickled",
    "torch.load hands TorchScript archives to torch.jit.load",
    "torch >= 2.6 refuses TorchScript archives by default",
    by_torch=False,
)
# NumPy's documentation of numpy.load: allow_pickle is False by default since 1.16.3.
_ARRAY = Route(
    "when loaded with numpy.load(allow_pickle=True)",
    "numpy.load(allow_pickle=True) unpickles it; without that, numpy >= 1.16.3 does not",
    "",
    by_torch=False,
)
_UNREAD = Route(
    "if it were unpickled, which torch.load does not do",
    "torch.load does not read it; another program may unpickle it",
    "",
    by_torch=False,
)


def _tar_route(trace: Trace) -> Route:
    refused = (
        "torch >= 2.6 refuses tar checkpoints by default, and torch <= 2.5.1 did not even with "
        "weights_only=True (CVE-2025-32434)"
    )
    if trace.record.split("@", 1)[0] not in _TAR_MEMBERS:
        return Route("if it were unpickled", "another program may unpickle it", "", by_torch=False)
    return Route(_LOADED.when, _LOADED.who, refused, by_torch=True)


def sentence(finding: Finding, event: Event | None, route: Route | None) -> str:
    """What a person should know about *finding*, in printable ASCII.

    Args:
        finding: The finding.
        event: The event it is about, or None if it is about the framing or that is not known.
        route: How the pickle it stands in comes to be executed, or None if it is in none.
    """
    if event is None or route is None or isinstance(event, Oddity) or finding.rule in _ADVICE:
        advice = _ADVICE.get(finding.rule, f"the file {RULES[finding.rule].title}")
        return f"{finding.message}{_where(finding)}; {advice}"
    said = [f"{_act(event)[:_MOST_ACT]} {route.when}{_where(finding)}"]
    if route.refused:
        said.append(route.refused)
    elif route.by_torch:
        said.append(_REFUSES if _is_refused(event) else _MAY_NOT_REFUSE)
    return "; ".join(said)


def _where(finding: Finding) -> str:
    record = finding.record
    # A pickle that no record is for is called by the place where it begins.
    of = f" of the pickle at {record}" if record.startswith("byte ") else f" of {record}"
    if finding.stream_offset is not None:
        return f", at byte 0x{finding.stream_offset:x}{of if record else ''}"
    if finding.offset is not None:
        return f", at byte 0x{finding.offset:x} of the file"
    return f", in {record}" if record else ""


def _act(event: _Act) -> str:
    match event:
        case Global():
            return f"would have imported {brief(event)}"
        case Call():
            verb = "made" if event.op.startswith("NEWOBJ") else "called"
            return f"would have {verb} {brief(event)}"
        case Build():
            return f"would have set the state of {brief(event.target)} to {brief(event.state)}"
        case PersistentId():
            return f"would have asked the loader for {brief(event.pid)}"
        case Opaque(op="STACK_GLOBAL"):
            given = ", ".join(map(brief, event.args))
            return f"would have imported a name computed while unpickling, from {given}"
        case Opaque():
            return f"would have asked for what nobody can tell from the file ({brief(event)})"


def _is_refused(event: _Act) -> bool:
    """Whether the restricted loader is known to stop at *event*, or before it."""
    match event:
        case Global():
            return _is_unknown(event)
        case Call():
            return event.op in _REFUSED_CALLS or _is_unknown(event.func)
        case Build():
            target = event.target
            return _is_unknown(target.func if isinstance(target, Call) else target)
        case Opaque():
            return True
        case PersistentId():
            return False


def _is_unknown(name: Node) -> bool:
    """Whether a name is certainly not on torch's own list.

    Outside of torch its list is shorter than ours, as a test sees to.  In ``torch`` it has
    dozens of types that ours lacks, so there only what is known to be dangerous is certain.
    """
    if not isinstance(name, Global):
        return False
    if name.module.split(".", 1)[0] == "torch":
        return dangerous(name.module, name.name)
    return allowed(name.module, name.name) is None
