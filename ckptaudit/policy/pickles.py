"""One pickle judged: what each of its events is a reason for.

Default deny: a name counts as harmless only if its exact (module, name) pair is on
the allowlist, a call only if its arguments are those that picklers write, and the same
for state.

Knows:      which events of a pickle are reasons for distrust, and which rule each falls under.
Is told:    a trace, and where its container lies.
Never asks: what is wrong with the framing, or what the findings come to (`judge`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ckptaudit.containers import Kind, Place, key_of, module_of, storage_of
from ckptaudit.policy.allowlist import (
    ATTRIBUTE_DICTS,
    COSTLY,
    MAPPINGS,
    SEQUENCES,
    UNCHECKED,
    allowed,
    reviewed,
)
from ckptaudit.policy.arguments import (
    FACTORIES,
    attribute_dicts,
    calls,
    fits_dtype,
    functions_given,
    hidden_names,
    inner_call,
    is_plain,
    octets_in,
)
from ckptaudit.policy.carried import CarriedFiles, is_constant
from ckptaudit.policy.dangerous import LOADS_CHECKPOINT, dangerous
from ckptaudit.policy.findings import Findings, Subject
from ckptaudit.policy.modules import (
    class_behind,
    class_made,
    function_of,
    is_layer,
    is_method_of_layer,
    module_classes,
    package_of,
)
from ckptaudit.policy.rules import RULES, Severity
from ckptaudit.vm import (
    Build,
    Call,
    Global,
    Oddity,
    Opaque,
    PersistentId,
    brief,
    escape,
    extent_of,
    length_of,
)
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias, TypeGuard

    from ckptaudit.policy.allowlist import Allowed
    from ckptaudit.vm import Event, Node, Trace

    # A rule, what it applies to, what is said, and the name that might be permitted.
    _Found: TypeAlias = tuple[str, Event, Callable[[], str], Global | None]

__all__ = ["judge_pickle", "rule_of_pair"]

# Which rule each oddity of the machine falls under, if it is not CKA109.
_ODDITY_RULES = {
    # They change something else than a list, a dict or a set.
    "append-to-other": "CKA103",
    "setitem-on-other": "CKA103",
    "additems-to-other": "CKA103",
    "integer-large": "CKA112",
    "memo-index": "CKA112",
}
# A pickle pays an opcode for each value, unless it shares them.  To write out what it shares
# may take so many values for each opcode, after so many that are nothing to anyone.
_SIZE_PER_OPCODE = 64
_SIZE_FLOOR = 1_000_000
# CPython's pickler gives up at about 1000 levels, and so do repr, copy and comparison.
_MOST_DEPTH = 2000
# Framings in which a pickle has storages beside it.
_WITH_STORAGES = {Kind.ZIP, Kind.TORCHSCRIPT, Kind.LEGACY, Kind.TAR}
# What a torch that pickles a storage without torch.save has written for its bytes.
_LOADABLE = {Kind.LEGACY, Kind.ZIP}
# A tensor's subclass is rebuilt through one; `tensors` follows as many.
_MOST_INNER_CALLS = 8
_MOST_NAME = 60
_MOST_NAMES = 4
# Modules with functions that call another, or make an object of a class they are given.
_AT_SECOND_HAND = {"copyreg", "copy_reg", "torch._tensor", "torch.tensor"}
_MODULE = re.compile(r"[A-Za-z0-9_.-]+")
# The rules about names of which nothing is known but that they are not on the allowlist.
_OF_UNKNOWN_NAMES = {"CKA102", "CKA108"}
# How a sentence about a name ends.
_WHY = {
    "CKA101": " when unpickled",
    "CKA102": ", which is not on the allowlist",
    "CKA105": " when unpickled",
    "CKA108": "",
}


def judge_pickle(trace: Trace, place: Place, findings: Findings, carried: CarriedFiles) -> None:
    """Add what the events of *trace* are reasons for to *findings*.

    Args:
        trace: The pickle.
        place: The container it is in, and where that is.
        findings: What was found so far.
        carried: Opens the files that the pickle hands to calls.
    """
    _PickleJudge(trace, place, findings, carried).judge()


def rule_of_pair(module: str, name: str) -> str | None:
    """The rule that asking for a name falls under, whatever is done with it; None if it is allowed.

    Args:
        module: As a pickle spells it.
        name: As a pickle spells it.
    """
    if dangerous(module, name):
        return "CKA101"
    if allowed(module, name) is not None:
        return None
    if reviewed(module, name) is not None:
        return "CKA108"
    is_hidden = "." in name or "__" in name or not _plain(module, name)
    return "CKA105" if is_hidden else "CKA102"


class _PickleJudge:
    """One pickle being judged."""

    def __init__(
        self,
        trace: Trace,
        place: Place,
        findings: Findings,
        carried: CarriedFiles,
    ) -> None:
        self.trace = trace
        self.place = place
        self.container = container = place.container
        self.start = place.start_of(trace)
        self.findings = findings
        self.scripted = container.kind is Kind.TORCHSCRIPT
        # By id of a dict of attributes, which may be given to many objects.
        self.hidden: dict[int, list[str]] = {}
        # By id of a name: its rule, and what the allowlist says of it.
        self.known: dict[int, tuple[str | None, Allowed | None]] = {}
        # By module and name, which may be long and asked for many times.
        self.rules: dict[tuple[str, str], str | None] = {}
        # By ids of arguments, which may be long and given to many calls: whether there is a
        # function among them that must not be called with others.
        self.functions: dict[tuple[int, int], bool] = {}
        self.carried = carried
        # By id of function and arguments, what was found of a call that is costly to look at: a
        # pickle may make the same one a million times.
        self.judged: dict[tuple[int, int, str], list[_Found]] = {}
        self.recorded: list[_Found] | None = None
        # The same for states: whether they are those of an entry.
        self.fits: dict[tuple[int, int], bool] = {}
        # By id, calls that load a file which has been read, or take a method off a class: what
        # they give has no state.
        self.loads: set[int] = set()
        self.module_classes = module_classes(trace)
        # By id: values that are bytes and no text; asked for by few pickles only.
        self.octets: set[int] | None = None
        # By id: names that are called, so that each call speaks for them; and classes of which
        # objects are made by a function.
        self.called: set[int] = set()
        self.made: set[int] = set()
        for event in trace.events:
            if isinstance(event, Call):
                func = event.func if isinstance(event.func, Global) else function_of(event)
                self.called.add(id(func))
                if isinstance(func, Global) and func.module in _AT_SECOND_HAND:
                    inner = inner_call(event)
                    self.called |= {id(inner.func)} if inner else set()
                    self.made.add(id(class_made(event)))

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
        self.judge_extent()

    def judge_extent(self) -> None:
        trace = self.trace
        extent = extent_of(
            (trace.root, *trace.dropped),
            # Sharing undone, honest pickles hold few values more than they have opcodes.
            enough=10_000 + 2 * trace.opcodes,
            deep=_MOST_DEPTH,
        )
        if extent.depth > _MOST_DEPTH:
            self.found_of_all("CKA112", lambda: f"nests values over {_MOST_DEPTH} levels deep")
        if extent.size > _SIZE_FLOOR + _SIZE_PER_OPCODE * trace.opcodes:
            opcodes = counted(trace.opcodes, "opcode")
            self.found_of_all(
                "CKA112", lambda: f"makes {opcodes} stand for {_counted(extent.size)} values"
            )

    def found(
        self, rule_id: str, event: Event, describe: Callable[[], str], about: Global | None = None
    ) -> None:
        """Something is wrong with the instruction that gave *event*.

        Args:
            rule_id: The rule.
            event: What the instruction asks for.
            describe: See `Findings.add`.
            about: A name, if to permit the name is to permit what was found.
        """
        trace, at = self.trace, event.offset
        if self.recorded is not None:
            self.recorded.append((rule_id, event, describe, about))
        offset = None if self.start is None else self.start + at
        subject = Subject(self.place, trace.record, offset, at, length_of(event), trace, event)
        pair = (about.module, about.name) if about is not None else None
        self.findings.add(rule_id, describe, subject, pair)

    def found_of_all(self, rule_id: str, describe: Callable[[], str]) -> None:
        """Something is wrong with the pickle as a whole."""
        trace = self.trace
        subject = Subject(self.place, trace.record, self.start, 0, trace.end, trace)
        self.findings.add(rule_id, describe, subject)

    def rule_of(self, name: Global) -> str | None:
        """The rule that asking for *name* falls under, or None if it is allowed."""
        pair = name.module, name.name
        if pair not in self.rules:
            # A class defined by the code of a TorchScript archive, which CKA205 speaks of.
            is_scripted = self.scripted and package_of(name) == "__torch__"
            self.rules[pair] = None if is_scripted else rule_of_pair(*pair)
        rule_id = self.rules[pair]
        return "CKA108" if rule_id == "CKA102" and id(name) in self.module_classes else rule_id

    def judge_opaque(self, event: Opaque) -> None:
        self.found(
            "CKA104",
            event,
            lambda: f"{event.op} asks for something by {', '.join(map(brief, event.args))}",
        )

    def judge_oddity(self, event: Oddity) -> None:
        if event.code == "text-not-utf-8":
            if self.octets is None:
                self.octets = octets_in(self.trace)
            if id(event.value) in self.octets:
                return
        rule_id = _ODDITY_RULES.get(event.code, "CKA109")
        self.found(rule_id, event, lambda: escape(event.message))

    def judge_global(self, event: Global) -> None:
        rule_id = self.rule_of(event)
        if rule_id is None:
            return
        if id(event) in self.module_classes:
            self.found(
                rule_id,
                event,
                lambda: f"holds an object of class {brief(event)}, whose code is not in the file",
                about=event,
            )
        elif id(event) not in self.called:
            # Else each call says so, with its arguments.
            if rule_id == "CKA102" and is_layer(event) and id(event) not in self.made:
                rule_id = "CKA108"
            why = _WHY[rule_id]
            self.found(rule_id, event, lambda: f"asks for {brief(event)}{why}", event)

    def judge_call(self, event: Call) -> None:
        """Judge a call, or remember what was found of the same one."""
        key = id(event.func), id(event.args), event.op
        if key not in self.judged or event.kwargs is not None or event.pairs or event.elements:
            recorded = self.recorded = []
            self.judge_calls(event)
            self.recorded = None
            if self.is_costly(event):
                self.judged[key] = recorded
            return
        for rule_id, found, describe, about in self.judged[key]:
            # It is about the call itself, or about one that it would make of what it is given.
            is_itself = isinstance(found, Call) and found.args is event.args
            at = event if is_itself else replace(found, offset=event.offset)
            self.found(rule_id, at, describe, about)

    def is_costly(self, event: Call) -> bool:
        if event.kwargs is not None or event.pairs or event.elements:
            return False
        _, entry = self.known.get(id(event.func), (None, None))
        return entry is not None and entry.takes in COSTLY

    def judge_calls(self, event: Call) -> None:
        """Judge a call, and those that it would make of what it is given."""
        for _ in range(_MOST_INNER_CALLS):
            self.judge_one_call(event)
            inner = inner_call(event)
            if inner is None:
                return
            event = inner
        # Names further in are judged for themselves, as names that nothing calls.
        self.found("CKA103", event, lambda: f"would call through many calls: {brief(event)}")

    def judge_one_call(self, event: Call) -> None:
        func = function_of(event)
        if not isinstance(func, Global):
            self.refused(
                "CKA103",
                event,
                lambda: f"would call the result of something else: {brief(event)}",
            )
            return
        if id(func) not in self.known:
            self.known[id(func)] = self.rule_of(func), _entry(func)
        rule_id, entry = self.known[id(func)]
        if entry is None:
            if (
                rule_id is not None
                and id(func) not in self.module_classes
                and not self.loads_what_was_read(event, func)
                and not self.takes_a_method(event)
            ):
                why = _WHY[rule_id]
                about = func if self.is_about_the_name(rule_id, event, func) else None
                self.refused(rule_id, event, lambda: f"would call {brief(event)}{why}", about)
        elif (thought := _thought_of(event, func, entry)) is not None:
            thought_of, said = thought
            self.refused(thought_of, event, lambda: said.format(brief(event)))
        elif rule_id is not None:
            self.refused(rule_id, event, lambda: f"would call {brief(event)}", func)
        self.judge_contents(event, func)

    def is_about_the_name(self, rule_id: str, event: Call, func: Global) -> bool:
        """Whether to permit *func* is to permit this call of it.

        What runs code is permitted with numbers and text only: nobody can tell what it would make
        of a name, of a result, or of bytes that hold who knows what.  Any other may be handed no
        function that the allowlist allows with some arguments only: it might call it with others.
        """
        if RULES[rule_id].severity is Severity.MALICIOUS:
            is_loader = (func.module, func.name) == LOADS_CHECKPOINT
            return not is_loader and is_plain((event.args, event.kwargs))
        given = id(event.args), id(event.kwargs)
        if given not in self.functions:
            self.functions[given] = any(map(_is_allowed_for_some, functions_given(event)))
        return not self.functions[given]

    def refused(
        self, rule_id: str, event: Call, describe: Callable[[], str], about: Global | None = None
    ) -> None:
        """A call that is not allowed: the bytes it is given may be what it would load.

        They are looked at whoever permits the call: what is in them is permitted by nobody.
        """
        self.found(rule_id, event, describe, about)
        self.carried.open(event)

    def loads_what_was_read(self, event: Call, func: Global) -> bool:
        """Whether *event* loads a checkpoint it brings along, and that is judged for itself.

        Nothing has compared the tensors made from it with the storages in it.
        """
        args = event.args
        if (func.module, func.name) != LOADS_CHECKPOINT or event.kwargs is not None:
            return False
        if not isinstance(args, tuple) or len(args) != 1 or not is_constant(args[0]):
            return False
        files = self.carried.open(event)
        if not files or any(file.container.kind not in _LOADABLE for file in files):
            return False
        self.loads.add(id(event))
        self.found("CKA113", event, lambda: f"would unpickle what it brings: {brief(event)}")
        return True

    def takes_a_method(self, event: Call) -> bool:
        """Whether *event* takes a method off a class that is there for whole modules."""
        if not is_method_of_layer(event):
            return False
        # It is a function, and has no state.
        self.loads.add(id(event))
        self.found("CKA108", event, lambda: f"keeps a method: {brief(event)}")
        return True

    def judge_contents(self, event: Call, func: Global) -> None:
        """Storing calls a method of what the call made, and any object may bring its own."""
        if not (event.pairs or event.elements):
            return
        made = class_made(event) or func
        name = (made.module, made.name)
        if (event.pairs and name not in MAPPINGS) or (event.elements and name not in SEQUENCES):
            self.found(
                "CKA103",
                event,
                lambda: f"would store items in the result of {brief(event)}",
                about=made if self.is_of_its_class(event, made) else None,
            )
        elif name in ATTRIBUTE_DICTS and (names := hidden_names(event)):
            self.found("CKA107", event, partial(_hidden_attributes, event, names))

    def judge_persistent_id(self, event: PersistentId) -> None:
        kind = self.container.kind
        if storage_of(event) is not None:
            if kind not in _WITH_STORAGES:
                self.found(
                    "CKA204",
                    event,
                    lambda: f"refers to {brief(event.pid)}, and a bare pickle has no storages",
                )
            return
        if kind is Kind.LEGACY and module_of(event) is not None:
            return
        if kind is Kind.TAR and self.is_in_tar(event):
            return
        self.found("CKA106", event, lambda: f"refers to {brief(event.pid)}, which is no storage")

    def is_in_tar(self, event: PersistentId) -> bool:
        """Whether a tar of torch < 0.1.10 may mean that: a class, or a tensor or storage it has."""
        if class_behind(event) is not None:
            return True
        key = key_of(event.pid) if type(event.pid) is int else None
        return key in self.container.tensors or key in self.container.storages

    def judge_build(self, event: Build) -> None:
        target = event.target
        for part in attribute_dicts(event.state):
            if id(part) not in self.hidden:
                self.hidden[id(part)] = hidden_names(part)
            names = self.hidden[id(part)]
            if names:
                self.found("CKA107", event, partial(_hidden_attributes, target, names))
                return
        if id(target) in self.loads:
            self.found("CKA107", event, lambda: f"would set the state of {brief(target)}")
            return
        made = (class_made(target) or function_of(target)) if isinstance(target, Call) else None
        if made is None:
            self.found("CKA107", event, lambda: f"would set the state of {brief(target)}")
            return
        entry = _entry(made) if isinstance(made, Global) else None
        if isinstance(made, Global) and (made.module, made.name) == ("functools", "partial"):
            self.judge_partial(event)
        is_bad = entry is not None and not self.is_state_of(entry, event.state)
        if is_bad or (_is_dtype(target) and not fits_dtype(target, event.state)):
            self.found(
                "CKA107",
                event,
                lambda: (
                    f"would set the state of what {brief(target)} returns to {brief(event.state)}"
                ),
            )
        elif isinstance(made, Global) and entry is None and isinstance(target, Call):
            self.judge_state_of_permitted(event, target, made)

    def judge_state_of_permitted(self, event: Build, target: Call, made: Global) -> None:
        """The call of a name speaks for the state of its result, unless the name is permitted.

        What a function returns may be anything that is there already, such as a class.
        """
        pair = made.module, made.name
        if self.findings.permits(pair) and not self.is_of_its_class(target, made):
            self.found(
                "CKA107",
                event,
                lambda: f"would set the state of what {brief(target)} returns",
            )

    def is_of_its_class(self, call: Call, cls: Global) -> bool:
        """Whether *call* makes an object of *cls*, a class of which nothing worse is known.

        Modules/_pickle.c, load_newobj: it must be a class, whose own ``__new__`` makes the object.
        """
        is_made = class_made(call) is cls or (call.func is cls and call.op.startswith("NEWOBJ"))
        return is_made and _entry(cls) is None and self.rule_of(cls) in _OF_UNKNOWN_NAMES

    def is_state_of(self, entry: Allowed, state: Node) -> bool:
        if entry.state not in COSTLY:
            return entry.state is not None and entry.state(state)
        key = id(entry), id(state)
        if key not in self.fits:
            self.fits[key] = entry.state(state)
        return self.fits[key]

    def judge_partial(self, event: Build) -> None:
        """Judge the call that a partial function is to make, if it is one of an allowed name."""
        match event.state:
            case (Global() as func, (_, *_) as args, _, _) if isinstance(args, tuple):
                entry = allowed(func.module, func.name)
                if entry is not None and entry.takes is not None and not entry.takes(args):
                    call = Call("REDUCE", func, args, None, event.offset)
                    self.found("CKA103", event, lambda: f"keeps {brief(call)} for later")
            case _:
                return


def _is_dtype(target: Node) -> TypeGuard[Call]:
    return isinstance(target, Call) and calls(target, "numpy", "dtype")


def _hidden_attributes(target: Node, names: list[str]) -> str:
    listed = ", ".join(escape(name[:_MOST_NAME]) for name in names[:_MOST_NAMES])
    return f"would replace {listed} of {brief(target)}"


def _entry(name: Global) -> Allowed | None:
    return allowed(name.module, name.name) or reviewed(name.module, name.name)


def _thought_of(event: Call, func: Global, entry: Allowed) -> tuple[str, str] | None:
    """A rule that the call of a name we know falls under, and how to say it; or None."""
    if entry.takes is None:
        return "CKA103", "would call {}"
    if not (isinstance(event.args, tuple) and entry.takes(event.args)) or (
        event.kwargs is not None and not entry.keywords
    ):
        return "CKA103", "would call {}, with arguments that no pickler writes"
    if (func.module, func.name) in UNCHECKED:
        return "CKA111", "would call {}"
    may_make_empty = event.op != "REDUCE" or func.module in _AT_SECOND_HAND
    if may_make_empty and not _may_be_empty(class_made(event)):
        return "CKA103", "would make an empty object: {}"
    return None


def _is_allowed_for_some(name: Global) -> bool:
    """Whether *name* may be called, but not with whatever a function would call it with."""
    entry = _entry(name)
    return (
        entry is not None and entry.takes is not None and (name.module, name.name) not in FACTORIES
    )


def _may_be_empty(cls: Global | None) -> bool:
    """Whether *cls*, if it is on the allowlist, is there for objects made without arguments."""
    entry = allowed(cls.module, cls.name) if cls else None
    return entry is None or (entry.takes is not None and entry.takes(()))


def _counted(size: int) -> str:
    return f"over 2^{size.bit_length() - 1}" if size >= 1 << 32 else str(size)


def _plain(module: str, name: str) -> bool:
    # Modules that are made while a program runs may have a dash in their name.
    is_identifier = name.isascii() and name.isidentifier()
    return is_identifier and _MODULE.fullmatch(module) is not None
