"""What a permission takes out of a verdict, and what an attacker cannot make it take out."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import pytest
import toml
from catalogue import CASES
from forge import (
    APPENDS,
    BINPERSID,
    BUILD,
    CALLS_SYSTEM,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ,
    NEWOBJ_EX,
    NONE,
    POP,
    REDUCE,
    SETITEMS,
    TUPLE2,
    Raw,
    binget,
    binput,
    call,
    called,
    global_,
    inst,
    legacy_stream,
    made,
    pickled,
    stack_global,
    torch_zip,
    value,
    values,
)
from hypothesis import example, given
from hypothesis import strategies as st

from ckptaudit.containers import open_container
from ckptaudit.errors import PolicyInvalid
from ckptaudit.policy import Judgement, Policy, Severity, allowed, dated, judge, parse_policy
from ckptaudit.policy.permissions import is_nameable, line_for_file, line_for_name
from ckptaudit.source import BufferSource
from ckptaudit.tensors import misfits
from ckptaudit.vm import Global

if TYPE_CHECKING:
    from catalogue.case import Case

TODAY = date(2026, 11, 25)
LATER = date(2027, 2, 23)
SHA256 = "0123456789abcdef" * 4
# So many findings of one rule are spelled out.
MOST = 200
THING = ("thing", "Thing")
MODULE_STATE: dict[str, object] = {
    "training": True,
    "_parameters": {},
    "_buffers": {},
    "_modules": {},
}


def permitting(*pairs: tuple[str, str]) -> Policy:
    entries = [
        {"module": module, "name": name, "justification": "we wrote it", "expires": LATER}
        for module, name in pairs
    ]
    return parse_policy({"allow": entries}, TODAY)


def permitting_in(sha256: str, *rules: str) -> Policy:
    entries = [
        {"sha256": sha256, "rule": rule, "justification": "we looked", "expires": LATER}
        for rule in rules
    ]
    return parse_policy({"allow": entries}, TODAY)


def judged(data: bytes, policy: Policy | None = None) -> Judgement:
    return judge(open_container(BufferSource(data)), misfits, policy)


def judged_with(pairs: list[tuple[str, str]], *opcodes: bytes) -> Judgement:
    return judged(torch_zip(pickled(*opcodes)), permitting(*pairs))


def rules_left(judgement: Judgement) -> set[str]:
    return {finding.rule for finding in judgement.findings}


# What a permission for a pair covers

COVERED = {
    "mention": (THING, global_(*THING)),
    "call": (THING, call(*THING, "x", (1, 2.5))),
    "call-with-a-result": (THING, call(*THING, Raw(call("collections", "OrderedDict")))),
    "stack-global": (THING, called(stack_global(*THING), "x")),
    "call-with-a-type": (THING, call(*THING, Raw(global_("torch", "float32")))),
    "call-with-a-factory": (THING, call(*THING, Raw(global_("builtins", "list")))),
    "call-with-many-arguments": (THING, call(*THING, *range(100))),
    "object": (THING, global_(*THING) + EMPTY_TUPLE + NEWOBJ),
    "object-with-arguments": (THING, values(Raw(global_(*THING)), (1,)) + NEWOBJ),
    "object-with-keywords": (THING, values(Raw(global_(*THING)), (), {"a": 1}) + NEWOBJ_EX),
    "object-of-python-2": (THING, inst(*THING, "x")),
    "state": (THING, global_(*THING) + EMPTY_TUPLE + NEWOBJ + value({"a": 1}) + BUILD),
    "state-of-a-reconstructed-one": (
        THING,
        call(
            "copyreg",
            "_reconstructor",
            Raw(global_(*THING)),
            Raw(global_("builtins", "object")),
            None,
        )
        + value({"a": 1})
        + BUILD,
    ),
    "state-of-one-with-arguments": (
        THING,
        values(Raw(global_(*THING)), (1,)) + NEWOBJ + value({"a": 1}) + BUILD,
    ),
    "items": (THING, global_(*THING) + EMPTY_TUPLE + NEWOBJ + MARK + values("k", 1) + SETITEMS),
    "elements": (THING, global_(*THING) + EMPTY_TUPLE + NEWOBJ + MARK + value(1) + APPENDS),
    "module": (THING, global_(*THING) + EMPTY_TUPLE + NEWOBJ + value(MODULE_STATE) + BUILD),
    "class-of-a-class": (("thing", "Outer.Inner"), global_("thing", "Outer.Inner")),
    "partial": (
        ("functools", "partial"),
        call("functools", "partial", Raw(global_("collections", "OrderedDict"))),
    ),
    "activation-function": (
        ("torch.nn.functional", "gelu"),
        global_("torch.nn.functional", "gelu"),
    ),
    "layer": (("torch.nn.modules.linear", "Linear"), global_("torch.nn.modules.linear", "Linear")),
    "mention-of-what-runs-code": (("builtins", "eval"), global_("builtins", "eval")),
    "what-runs-code-with-text": (("logging", "getLogger"), call("logging", "getLogger", "train")),
}


@pytest.mark.parametrize(("pair", "opcodes"), COVERED.values(), ids=COVERED)
def test_a_permitted_name_has_no_part_in_the_verdict_and_is_told_all_the_same(
    pair: tuple[str, str], opcodes: bytes
) -> None:
    data = torch_zip(pickled(opcodes))

    before, after = judged(data), judged(data, permitting(pair))

    assert before.verdict > Severity.CLEAN
    assert after.verdict is Severity.CLEAN
    assert after.findings == ()
    assert [each.finding for each in after.permitted] == list(before.findings)
    assert {(each.justification, each.expires, each.entry) for each in after.permitted} == {
        ("we wrote it", LATER, 1)
    }


@pytest.mark.parametrize(("pair", "opcodes"), COVERED.values(), ids=COVERED)
def test_the_lines_that_are_proposed_permit_what_they_are_proposed_for(
    pair: tuple[str, str], opcodes: bytes
) -> None:
    """A person has only to say why: with that done, and nothing else, the file is clean."""
    data = torch_zip(pickled(opcodes))
    lines = [dated(line, LATER) for line in judged(data).proposals(SHA256)]
    filled = "".join(
        line.replace('justification = ""', 'justification = "because"') for line in lines
    )

    policy = parse_policy(toml.loads(f"allow = [{filled}]"), TODAY)

    assert judged(data, policy).of_file(SHA256, policy).verdict is Severity.CLEAN
    assert pair in policy.names or RULES_OF_CODE & {rule for _, rule in policy.files}


RULES_OF_CODE = {"CKA101", "CKA105"}


# What it does not cover

REBUILD = Raw(global_("torch._utils", "_rebuild_tensor_v2"))

NOT_COVERED: dict[str, tuple[list[tuple[str, str]], str, bytes]] = {
    "other-name": ([THING], "CKA102", call("thing", "Other")),
    "other-module": ([THING], "CKA102", call("thing.sub", "Thing")),
    "other-case": ([THING], "CKA102", call("thing", "thing")),
    "name-that-begins-so": ([THING], "CKA102", call("thing", "Thing2")),
    "attribute-of-it": ([THING], "CKA105", call("thing", "Thing.run")),
    "pair-split-elsewhere": ([("a.b", "C")], "CKA105", call("a", "b.C")),
    "alias-of-python-2": ([("__builtin__", "eval")], "CKA101", call("builtins", "eval", "1")),
    "alias-of-python-3": ([("builtins", "eval")], "CKA101", call("__builtin__", "eval", "1")),
    "what-it-is-given": ([THING], "CKA101", call(*THING, Raw(global_("os", "system")))),
    "what-its-state-holds": (
        [THING],
        "CKA101",
        global_(*THING) + EMPTY_TUPLE + NEWOBJ + value({"f": Raw(global_("os", "system"))}) + BUILD,
    ),
    "hidden-attributes": (
        [THING],
        "CKA107",
        global_(*THING) + EMPTY_TUPLE + NEWOBJ + value({"__class__": 1}) + BUILD,
    ),
    "result-that-is-called": ([THING], "CKA103", called(call(*THING), "x")),
    "what-getattr-resolves-to": (
        [("builtins", "getattr"), THING],
        "CKA103",
        called(call("builtins", "getattr", Raw(global_(*THING)), "run"), "true"),
    ),
    "state-of-the-class-itself": ([THING], "CKA107", global_(*THING) + value({"a": 1}) + BUILD),
    "state-of-what-a-function-returns": (
        [("thing", "current")],
        "CKA107",
        call("thing", "current") + value({"a": 1}) + BUILD,
    ),
    "items-in-what-a-function-returns": (
        [("thing", "registry")],
        "CKA103",
        call("thing", "registry") + MARK + values("k", 1) + SETITEMS,
    ),
    "arguments-of-an-allowed-name": (
        [("_codecs", "encode")],
        "CKA103",
        call("_codecs", "encode", "x", "rot13"),
    ),
    "arguments-of-a-partial": (
        [("functools", "partial")],
        "CKA103",
        call("functools", "partial", Raw(call("thing", "run"))),
    ),
    "state-of-a-partial": (
        [("functools", "partial")],
        "CKA107",
        call("functools", "partial", Raw(global_("torch.nn.functional", "gelu")))
        + value((1, 2))
        + BUILD,
    ),
    "function-that-a-partial-holds": (
        [("functools", "partial")],
        "CKA101",
        call("functools", "partial", Raw(global_("os", "system")), "true"),
    ),
    "allowed-function-that-it-is-handed": (
        [("__builtin__", "reduce")],
        "CKA102",
        call("__builtin__", "reduce", REBUILD, ((), ())),
    ),
    "allowed-function-handed-by-keyword": (
        [THING],
        "CKA102",
        values(Raw(global_(*THING)), (), {"f": REBUILD}) + NEWOBJ_EX,
    ),
    "allowed-function-in-a-partial": (
        [THING, ("functools", "partial")],
        "CKA102",
        call(*THING, Raw(call("functools", "partial", REBUILD))),
    ),
    "allowed-function-in-the-state-of-a-partial": (
        [THING, ("functools", "partial")],
        "CKA102",
        call(
            *THING,
            Raw(
                call("functools", "partial", Raw(global_("torch.nn.functional", "gelu")))
                + value((REBUILD, (), {}, None))
                + BUILD
            ),
        ),
    ),
    "allowed-function-behind-many-arguments": (
        [THING],
        "CKA102",
        call(*THING, *range(100), REBUILD),
    ),
    "function-that-rebuilds-a-tensor": (
        [("torch._tensor", "_rebuild_from_type_v2"), THING],
        "CKA101",
        call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            Raw(global_("os", "system")),
            Raw(global_(*THING)),
            ("true",),
            None,
        ),
    ),
    "persistent-id": ([THING], "CKA106", value(("thing", Raw(global_(*THING)))) + BINPERSID),
    "computed-name": ([THING], "CKA104", global_(*THING) + value("x") + b"\x93"),
    "sparse-tensor": (
        [("torch._utils", "_rebuild_sparse_tensor")],
        "CKA111",
        call("torch._utils", "_rebuild_sparse_tensor", Raw(global_("torch", "float32")), (1, 2)),
    ),
    "leftovers": ([THING], "CKA109", call(*THING) + NONE),
    "what-runs-code-with-a-name": (
        [("builtins", "map"), THING],
        "CKA101",
        call("builtins", "map", Raw(global_(*THING)), ("x",)),
    ),
    "what-runs-code-with-an-allowed-name": (
        [("builtins", "map")],
        "CKA101",
        call("builtins", "map", Raw(global_("torch._utils", "_rebuild_tensor_v2")), ()),
    ),
    "what-runs-code-with-a-result": (
        [("builtins", "exec"), THING],
        "CKA101",
        call("builtins", "exec", Raw(call(*THING))),
    ),
    "what-runs-code-with-bytes": (
        [("pickle", "loads")],
        "CKA101",
        value(Raw(global_("pickle", "loads"))) + value((b"not a file that we know",)) + REDUCE,
    ),
    "what-runs-code-with-a-keyword": (
        [("subprocess", "Popen"), THING],
        "CKA101",
        values(Raw(global_("subprocess", "Popen")), (), {"a": Raw(global_(*THING))}) + NEWOBJ_EX,
    ),
    "what-runs-code-with-more-than-anybody-reads": (
        [("builtins", "eval")],
        "CKA101",
        call("builtins", "eval", tuple(range(1000))),
    ),
    "what-runs-code-with-more-in-small-parts": (
        [("builtins", "eval")],
        "CKA101",
        call("builtins", "eval", ((1,) * 20,) * 20),
    ),
    "items-in-an-allowed-object": (
        [("argparse", "Namespace")],
        "CKA103",
        global_("argparse", "Namespace") + EMPTY_TUPLE + NEWOBJ + MARK + values("k", 1) + SETITEMS,
    ),
    "state-of-what-runs-code": (
        [("subprocess", "Popen")],
        "CKA107",
        global_("subprocess", "Popen") + EMPTY_TUPLE + NEWOBJ + value({"a": 1}) + BUILD,
    ),
    "state-of-what-a-dotted-name-leads-to": (
        [("thing", "Outer.Inner")],
        "CKA107",
        made("thing", "Outer.Inner", {"a": 1}),
    ),
    "items-in-what-runs-code": (
        [("types", "SimpleNamespace")],
        "CKA103",
        global_("types", "SimpleNamespace")
        + EMPTY_TUPLE
        + NEWOBJ
        + MARK
        + values("k", 1)
        + SETITEMS,
    ),
    "what-loads-bytes-that-nobody-read": (
        [("torch.storage", "_load_from_bytes")],
        "CKA101",
        call("torch.storage", "_load_from_bytes", "text"),
    ),
}


@pytest.mark.parametrize(("pairs", "rule", "opcodes"), NOT_COVERED.values(), ids=NOT_COVERED)
def test_a_permission_for_a_name_is_none_for_anything_else(
    pairs: list[tuple[str, str]], rule: str, opcodes: bytes
) -> None:
    judgement = judged_with(pairs, opcodes)

    assert rule in rules_left(judgement)
    assert judgement.verdict > Severity.CLEAN


def test_what_a_permitted_call_is_given_is_judged_for_itself() -> None:
    """Bytes that are a pickle are looked at, whoever permits the call they are given to."""
    evil = pickled(CALLS_SYSTEM)
    carrying = call(*THING, Raw(call("_codecs", "encode", evil.decode("latin-1"), "latin1")))

    judgement = judged_with([THING, ("posix", "call")], carrying)

    assert "CKA101" in rules_left(judgement)
    assert any("posix.system" in finding.message for finding in judgement.findings)


def test_a_checkpoint_that_a_call_brings_is_permitted_by_nobody() -> None:
    inner = legacy_stream(pickled(CALLS_SYSTEM))
    load = ("torch.storage", "_load_from_bytes")
    bringing = call(*load, Raw(call("_codecs", "encode", inner.decode("latin-1"), "latin1")))

    judgement = judged_with([load], bringing)

    assert {"CKA101", "CKA113"} <= rules_left(judgement)


def test_what_was_not_read_is_never_permitted() -> None:
    data = torch_zip(pickled(call(*THING))[:-1])
    policy = permitting(THING)

    judgement = judged(data, policy)

    assert not judgement.coverage.complete
    assert rules_left(judgement) == {"CKA208"}
    assert judgement.proposals(SHA256) == ()


def names_in(data: bytes) -> list[tuple[str, str]]:
    """The names that nobody vouches for, in all pickles of a file and in what is inside it."""
    pickles = (trace for place in judged(data).places for trace in place.container.traces)
    asked = ((e.module, e.name) for t in pickles for e in t.events if isinstance(e, Global))
    return [pair for pair in dict.fromkeys(asked) if is_nameable(*pair) and not allowed(*pair)]


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if isinstance(case.file, bytes) and not (case.limits or case.refused)],
    ids=lambda case: case.technique,
)
def test_no_known_attack_is_clean_while_one_of_its_names_is_not_permitted(case: Case) -> None:
    names = names_in(case.data)
    for left_out in names or [THING]:
        policy = permitting(*(pair for pair in names if pair != left_out))

        judgement = judged(case.data, policy)

        assert judgement.verdict > Severity.CLEAN


# Floods


def test_a_flood_of_what_is_permitted_washes_nothing_away() -> None:
    flood = (call(*THING) + POP) * 5000

    judgement = judged_with([THING], flood, call("other", "run"), CALLS_SYSTEM, TUPLE2)

    assert [finding.message for finding in judgement.findings] == [
        "would call other.run(), which is not on the allowlist",
        "would call posix.system('true') when unpickled",
    ]
    assert len(judgement.permitted) == MOST + 1
    assert judgement.permitted[-1].finding.message.startswith("4800 more: ")


def test_a_flood_of_what_is_not_permitted_washes_nothing_away() -> None:
    flood = (call("other", "run") + POP) * 5000

    judgement = judged_with(
        [THING, ("rare", "Rare")], flood, call(*THING), call("rare", "Rare"), TUPLE2
    )

    assert judgement.verdict is Severity.SUSPICIOUS
    assert len(judgement.findings) == MOST + 1
    assert [each.finding.message.split("(")[0] for each in judgement.permitted] == [
        "would call thing.Thing",
        "would call rare.Rare",
    ]


def test_a_flood_under_one_permission_does_not_hide_what_is_under_another() -> None:
    flood = (call(*THING) + POP) * 5000

    judgement = judged_with([THING, ("rare", "Rare")], flood, call("rare", "Rare"))

    assert judgement.verdict is Severity.CLEAN
    assert {each.entry for each in judgement.permitted} == {1, 2}


def test_many_arguments_given_to_many_permitted_calls_are_not_looked_at_each_time() -> None:
    """100,000 values for each of 10,000 calls would take minutes."""
    shared = value(tuple(range(100_000))) + binput(0)
    calls = (global_(*THING) + binget(0) + REDUCE + POP) * 10_000

    # What it costs a reader is not about the name.
    assert rules_left(judged_with([THING], shared, calls)) == {"CKA112"}


@pytest.mark.parametrize(
    "huge",
    [list(range(100_000)), {str(number): number for number in range(50_000)}],
    ids=["list", "dict"],
)
def test_one_huge_value_given_to_many_permitted_calls_is_not_looked_at_each_time(
    huge: object,
) -> None:
    """100,000 values for each of 10,000 calls would take minutes."""
    shared = value((huge,)) + binput(0)
    calls = (global_("builtins", "eval") + binget(0) + REDUCE + POP) * 10_000

    judgement = judged_with([("builtins", "eval")], shared, calls)

    assert judgement.verdict is Severity.MALICIOUS


def test_a_thousand_pairs_are_proposed_and_no_more() -> None:
    many = b"".join(call(f"thing{number}", "run") + POP for number in range(1500))

    lines = judged(torch_zip(pickled(many, NONE))).proposals(SHA256)

    assert len(lines) == 1001
    assert lines[-1] == line_for_file(SHA256, "CKA102")


# A permission for a rule in a file


def test_a_permission_for_a_file_is_for_one_rule_in_that_file() -> None:
    policy = permitting_in(SHA256, "CKA102")
    judgement = judged(torch_zip(pickled(call(*THING), CALLS_SYSTEM, TUPLE2)), policy)

    permitted = judgement.of_file(SHA256, policy)

    assert rules_left(permitted) == {"CKA101"}
    assert [each.finding.rule for each in permitted.permitted] == ["CKA102"]
    assert permitted.verdict is Severity.MALICIOUS
    assert not any("CKA102" in line for line in permitted.proposals(SHA256))
    assert not any(THING[0] in line for line in permitted.proposals(SHA256))
    for other in (SHA256[::-1], None):
        assert judgement.of_file(other, policy) == judgement


def test_a_permission_for_a_file_covers_the_findings_that_were_only_counted() -> None:
    policy = permitting_in(SHA256, "CKA102")
    judgement = judged(torch_zip(pickled((call(*THING) + POP) * 500, NONE)), policy)

    permitted = judgement.of_file(SHA256, policy)

    assert permitted.verdict is Severity.CLEAN
    assert len(permitted.permitted) == MOST + 1


@pytest.mark.parametrize(
    "opcodes",
    [
        call("thing*", "run"),
        call("x" * 300, "run"),
        call("a[0]", "run"),
        CALLS_SYSTEM,
        called(call("a", "b"), 1),
    ],
    ids=["wildcard", "long", "brackets", "runs code", "call of a call"],
)
def test_what_no_pair_can_permit_is_proposed_for_the_file(opcodes: bytes) -> None:
    """What runs code, too: a pair would permit it in every other file as well."""
    judgement = judged(torch_zip(pickled(opcodes)))
    lines = judgement.proposals(SHA256)
    entries = toml.loads(f"allow = [{''.join(lines)}]")["allow"]
    rules = [entry["rule"] for entry in entries if "rule" in entry]
    policy = permitting_in(SHA256, *rules)

    assert rules
    after = judgement.of_file(SHA256, policy).proposals(SHA256)
    assert not any("sha256" in line for line in after)
    assert not rules_left(judgement.of_file(SHA256, policy)) & set(rules)
    assert not any("sha256" in line for line in judgement.proposals(None))


def test_a_pair_is_proposed_for_as_long_as_one_of_its_findings_is_left() -> None:
    items = global_(*THING) + EMPTY_TUPLE + NEWOBJ + MARK + values("k", 1) + SETITEMS
    judgement = judged(torch_zip(pickled(items)))
    line = line_for_name(*THING)

    assert rules_left(judgement) == {"CKA102", "CKA103"}
    for rules, proposed in ((["CKA102"], (line,)), (["CKA102", "CKA103"], ())):
        policy = permitting_in(SHA256, *rules)
        assert judgement.of_file(SHA256, policy).proposals(SHA256) == proposed


# Lines

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)


@given(texts, texts)
def test_a_line_names_exactly_the_pair_however_it_is_spelled(module: str, name: str) -> None:
    line = line_for_name(module, name)

    for written in (line, dated(line, LATER)):
        assert written.isascii()
        assert written.isprintable()
        (entry,) = toml.loads(f"allow = [\n{written}\n]")["allow"]
        assert (entry["module"], entry["name"]) == (module, name)
        assert entry["justification"] == ""
    assert entry["expires"] == LATER


@given(st.text(max_size=210), st.text(max_size=210))
@example("x" * 200, "y" * 201)
@example("a", "*")
@example("", "a")
@example("a", "\ud800")
def test_a_pair_is_proposed_if_and_only_if_a_policy_may_name_it(module: str, name: str) -> None:
    line = line_for_name(module, name) if is_nameable(module, name) else None
    entry = {"module": module, "name": name, "justification": "because", "expires": LATER}

    if line is not None:
        assert parse_policy({"allow": [entry]}, TODAY).names.keys() == {(module, name)}
        assert toml.loads(f"allow = [{line}]")["allow"][0]["name"] == name
    elif all(char not in module + name for char in map(chr, range(0xD800, 0xE000))):
        with pytest.raises(PolicyInvalid):
            parse_policy({"allow": [entry]}, TODAY)


@given(texts)
def test_a_line_holds_nothing_that_a_renderer_or_a_log_would_change(text: str) -> None:
    line = line_for_name(text, text)

    assert not set("`|<>&#\n") & set(line)
    assert line.count('"') == 8
