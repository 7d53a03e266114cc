"""What a pickle asks for, and what `judge` thinks of it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from forge import (
    BINPERSID,
    BUILD,
    CALLS_SYSTEM,
    EMPTY_DICT,
    EMPTY_TUPLE,
    LIST,
    MARK,
    NEWOBJ,
    NONE,
    POP,
    READONLY_BUFFER,
    REDUCE,
    TUPLE1,
    TUPLE2,
    Raw,
    ZipEntry,
    binget,
    binput,
    call,
    floats,
    global_,
    legacy_stream,
    persid,
    pickled,
    proto,
    storage_id,
    tensor,
    torch_entries,
    torch_zip,
    value,
    zip_archive,
)

import ckptaudit.containers
from ckptaudit.containers import open_container
from ckptaudit.policy import RULES, Judgement, Severity, allowed, judge
from ckptaudit.source import BufferSource


def judged(data: bytes) -> Judgement:
    return judge(open_container(BufferSource(data)))


def judged_pickle(*parts: bytes) -> Judgement:
    return judged(torch_zip(pickled(*parts)))


def test_a_dangerous_call_is_told_with_its_arguments() -> None:
    (finding,) = judged_pickle(CALLS_SYSTEM).findings

    assert finding.message == "would call posix.system('true') when unpickled"


def test_every_call_of_one_name_is_told() -> None:
    judgement = judged_pickle(
        global_("posix", "system"),
        binput(0),
        value(("first",)),
        REDUCE,
        POP,
        binget(0),
        value(("second",)),
        REDUCE,
    )

    assert ["first" in f.message for f in judgement.findings] == [True, False]
    assert ["second" in f.message for f in judgement.findings] == [False, True]


def test_a_class_behind_a_legacy_persistent_id_is_no_cover_for_a_function() -> None:
    """Only what makes empty objects with the state of a module counts as the class of one."""
    function = Raw(global_("thing", "run"))
    opcodes = value(("module", function, "thing.py", "source")) + BINPERSID
    judgement = judged(legacy_stream(pickled(opcodes)))

    assert judgement.verdict is Severity.SUSPICIOUS


def test_a_million_reasons_are_counted_and_not_spelled_out() -> None:
    judgement = judged_pickle(NONE, BINPERSID * 50_000)

    told = [f.message for f in judgement.findings if f.rule == "CKA106"]
    assert len(told) == 201
    assert told[-1] == "49800 more: has a persistent id that is not a storage"


def test_a_flood_of_one_reason_does_not_wash_away_another() -> None:
    judgement = judged_pickle(NONE, BINPERSID * 50_000, CALLS_SYSTEM, TUPLE2)

    assert judgement.verdict is Severity.MALICIOUS
    assert "would call posix.system('true') when unpickled" in [
        finding.message for finding in judgement.findings
    ]


def test_a_message_is_short_whatever_it_is_about() -> None:
    text = "x" * 200
    args = ((text,) * 9,) * 9
    (finding,) = judged_pickle(call("posix", "system", *args)).findings

    assert len(finding.message) == 503


@pytest.mark.parametrize("depth", [10, 100_000])
@pytest.mark.parametrize(
    ("wrap", "start"),
    [
        (BINPERSID, NONE),
        (READONLY_BUFFER, NONE),
        (TUPLE1, CALLS_SYSTEM),
        (EMPTY_TUPLE + REDUCE, CALLS_SYSTEM),
        (EMPTY_DICT + BUILD, CALLS_SYSTEM),
        (b"\x85" + REDUCE, global_("posix", "system") * 2),
    ],
    ids=["persistent-ids", "buffers", "tuples", "calls", "states", "argument"],
)
def test_nesting_does_not_overwhelm_the_judge(wrap: bytes, start: bytes, depth: int) -> None:
    opcodes = start + (wrap * depth if wrap != b"\x85" + REDUCE else wrap)

    assert judged_pickle(opcodes).verdict >= Severity.SUSPICIOUS


@pytest.mark.parametrize(
    "many",
    [
        (call("argparse", "Namespace") + binget(0) + BUILD) * 10_000,
        (global_("thing", "Thing") + EMPTY_TUPLE + NEWOBJ + binget(0) + BUILD) * 10_000,
        (global_("collections", "OrderedDict") + binget(0) + TUPLE1 + REDUCE) * 10_000,
        (global_("datetime", "date") + binget(1) + REDUCE) * 10_000,
        (global_("torch", "Size") + binget(1) + TUPLE1 + REDUCE) * 10_000,
    ],
    ids=["attributes", "module-state", "pairs", "arguments", "sizes"],
)
def test_what_many_calls_share_is_not_looked_at_each_time(many: bytes) -> None:
    """5,000 values for each of 10,000 calls would take minutes."""
    shared = value({str(number): number for number in range(5000)}) + binput(0)
    numbers = value(tuple(range(5000))) + binput(1)

    assert judged_pickle(shared, numbers, MARK, many, LIST).coverage.complete


def test_a_name_with_control_characters_is_shown_in_printable_ascii() -> None:
    judgement = judged_pickle(global_("evil\x1b[31m", "\u202egnp.\r"), POP, persid("\x07"))

    for text in (
        *(f.message + f.record for f in judgement.findings),
        *(use.module + use.name for use in judgement.globals),
    ):
        assert re.fullmatch("[ -~]*", text)


def test_everything_shown_of_a_hostile_archive_is_printable_ascii() -> None:
    entries = [
        *torch_entries(proto(2) + b"\xff", {}),
        ZipEntry("archive/\x1b]0;\u202e.pkl", pickled(CALLS_SYSTEM)),
        ZipEntry("\x07/evil", b"x"),
    ]
    judgement = judged(zip_archive(entries))

    assert len(judgement.findings) > 2
    for text in (
        *(f.message + f.record for f in judgement.findings),
        *map(str, judgement.coverage.gaps),
    ):
        assert re.fullmatch("[ -~]*", text)


def test_of_a_record_that_is_there_twice_each_gives_its_own_file_offset() -> None:
    entries = torch_entries(pickled(CALLS_SYSTEM), {})
    data = zip_archive([*entries, entries[0]])

    calls = [f for f in judged(data).findings if f.rule == "CKA101"]

    offsets = {f.offset for f in calls if f.offset is not None}
    assert len(offsets) == len(calls) == 2
    assert all(data[offset : offset + 1] == REDUCE for offset in offsets)


def test_a_sparse_tensor_is_worth_a_look() -> None:
    """Torch 2.13 loads indices out of range, with weights_only too, and crashes later."""
    layout = Raw(call("torch.serialization", "_get_layout", "torch.sparse_coo"))
    judgement = judged_pickle(call("torch._utils", "_rebuild_sparse_tensor", layout, (None, None)))

    assert [f.rule for f in judgement.findings] == ["CKA111"]
    assert judgement.verdict is Severity.REVIEW


def test_severities_are_ordered() -> None:
    ladder = [Severity.CLEAN, Severity.REVIEW, Severity.SUSPICIOUS, Severity.MALICIOUS]

    assert sorted([ladder[i] for i in (2, 0, 3, 1)]) == ladder
    assert all(low < high and low <= high and high > low for low, high in pairwise(ladder))
    assert max(ladder) is Severity.MALICIOUS


def test_every_rule_has_its_own_id_and_is_worse_than_clean() -> None:
    assert all(rule.id == key and rule.severity > Severity.CLEAN for key, rule in RULES.items())


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "Tensor.backward"),
        ("torch.", "Tensor"),
        ("Torch", "Tensor"),
        ("collections", "ordereddict"),
        ("collections", ""),
        ("", "OrderedDict"),
        ("builtins", "eval"),
        ("torch._utils", "_rebuild"),
    ],
)
def test_the_allowlist_knows_exact_pairs_only(module: str, name: str) -> None:
    assert allowed(module, name) is None


def test_every_mishap_of_a_framing_falls_under_a_rule() -> None:
    """The framings' source names the codes; none may be missing in the judge's table."""
    from ckptaudit.policy.judge import _MISHAP_RULES  # noqa: PLC0415 - held here on purpose

    folder = Path(ckptaudit.containers.__file__).parent
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    codes = set(
        re.findall(r'(?:Mishap|odd|unread|mishap)\(\s*"([a-z0-9]+(?:-[a-z0-9]+)+)"', source)
    )

    assert len(codes) > 15
    assert codes <= set(_MISHAP_RULES)
    assert set(_MISHAP_RULES.values()) <= set(RULES)


def test_a_tensor_outside_its_storage_is_still_one_to_the_judge() -> None:
    """Windows are checked by `tensors`; `scan` brings both together."""
    data = torch_zip(pickled(tensor(storage_id("0", 1), (2,))), {"0": floats(1)})

    assert judged(data).verdict is Severity.CLEAN
