"""How much is said about a hostile file: enough to act on, and no sentence for nothing."""

from __future__ import annotations

import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from catalogue import CASES, Case
from forge import (
    APPEND,
    BINPERSID,
    BUILD,
    CALLS_SYSTEM,
    EMPTY_LIST,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ,
    NONE,
    POP,
    READONLY_BUFFER,
    REDUCE,
    STACK_GLOBAL,
    STOP,
    TUPLE1,
    TUPLE2,
    ZipEntry,
    binget,
    binput,
    call,
    global_,
    inst,
    legacy_stream,
    persid,
    pickled,
    proto,
    torch_entries,
    torch_zip,
    value,
    values,
    zip_archive,
)
from hypothesis import given
from hypothesis import strategies as st

from ckptaudit.containers import Gap, Place, key_of, open_container, storage_of
from ckptaudit.errors import CkptauditError
from ckptaudit.policy import Finding, Judgement, Severity, Subject, judge, record_text
from ckptaudit.policy.arguments import fraction
from ckptaudit.policy.findings import Findings
from ckptaudit.source import BufferSource
from ckptaudit.tensors import misfits
from ckptaudit.vm import Global, PersistentId

if TYPE_CHECKING:
    from collections.abc import Callable

# So many findings of one rule are spelled out.
MOST = 200
EMPTY = torch_entries(pickled(value({})), {})
HUGE = 1 << (8 << 22)  # four megabytes


def judged(data: bytes) -> Judgement:
    return judge(open_container(BufferSource(data)))


def judged_pickle(*parts: bytes) -> Judgement:
    return judged(torch_zip(pickled(*parts)))


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """A list that grows with each call of the function *name* that the judge makes."""
    room = sys.modules["ckptaudit.policy.pickles"]
    real: Callable[..., object] = getattr(room, name)
    calls: list[object] = []

    def counting(*args: object) -> object:
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(room, name, counting)
    return calls


def test_a_message_is_written_only_for_what_is_kept() -> None:
    written = []

    def describe() -> str:
        written.append(1)
        return "because"

    findings = Findings()
    container = open_container(BufferSource(pickled(NONE)))
    for _ in range(5000):
        findings.add("CKA103", describe, Subject(Place.of_file(container), ""))

    assert len(written) == MOST
    assert [finding.message for finding in findings.all()] == [
        *["because"] * MOST,
        "4800 more: calls something that no checkpoint calls",
    ]


@pytest.mark.parametrize(
    "opcodes",
    [
        EMPTY_TUPLE + (EMPTY_TUPLE + REDUCE) * 5000,
        NONE + BINPERSID * 5000,
        NONE + READONLY_BUFFER * 5000,
        NONE + (EMPTY_TUPLE + BUILD) * 5000,
        NONE + (POP + global_("posix", "system")) * 5000,
        NONE + (POP + CALLS_SYSTEM) * 5000,
        NONE + (POP + persid("0")) * 5000,
        NONE + (NONE + APPEND) * 5000,
        global_("argparse", "Namespace")
        + binput(0)
        + (POP + binget(0) + EMPTY_TUPLE + NEWOBJ + value({"__class__": 1}) + BUILD) * 5000,
    ],
    ids=[
        "calls of calls",
        "persistent ids",
        "buffers",
        "states",
        "names",
        "commands",
        "persistent ids of text",
        "appends",
        "hidden attributes",
    ],
)
def test_a_flood_of_events_costs_a_bounded_number_of_sentences(
    opcodes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    briefs = counted(monkeypatch, "brief")
    escapes = counted(monkeypatch, "escape")

    judgement = judged_pickle(opcodes)

    assert judgement.verdict >= Severity.SUSPICIOUS
    assert len(judgement.findings) <= 2 * MOST + 2
    assert len(briefs) + len(escapes) <= 4 * MOST


def test_a_thousand_pickles_do_not_give_a_thousand_times_as_many_findings() -> None:
    pickles = [ZipEntry(f"archive/{n}.pkl", pickled(NONE, BINPERSID * 10)) for n in range(300)]

    judgement = judged(zip_archive([*EMPTY, *pickles]))

    of_ids = [finding for finding in judgement.findings if finding.rule == "CKA106"]
    assert len(of_ids) == MOST + 1
    assert of_ids[-1] == Finding(
        "CKA106",
        Severity.SUSPICIOUS,
        "2800 more: has a persistent id that is not a storage",
        "",
        None,
    )


def test_every_rule_that_applies_is_there_after_any_flood() -> None:
    judgement = judged_pickle(
        NONE, BINPERSID * 5000, (READONLY_BUFFER) * 5000, CALLS_SYSTEM, call("thing", "run")
    )

    assert {"CKA101", "CKA102", "CKA104", "CKA106"} <= {f.rule for f in judgement.findings}


def test_gaps_beyond_a_thousand_are_counted() -> None:
    broken = [ZipEntry(f"archive/{n}", b"x", method=99) for n in range(1500)]

    coverage = judged(zip_archive([*EMPTY, *broken])).coverage

    assert not coverage.complete
    assert len(coverage.gaps) == 1001
    assert coverage.gaps[-1].reason == "500 more"


def test_names_beyond_a_thousand_are_left_out_and_still_judged() -> None:
    many = b"".join(POP + global_(f"thing{n}", "run") for n in range(1500))

    judgement = judged_pickle(NONE, many, POP, CALLS_SYSTEM)

    assert len(judgement.globals) == 1000
    assert judgement.verdict is Severity.MALICIOUS


def test_what_a_name_means_is_looked_up_once_however_often_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be a megabyte long, and asking for it again takes five bytes."""
    lookups = counted(monkeypatch, "dangerous")
    name = values("thing" * 1000, "run" * 1000)
    again = binget(0) + binget(1) + STACK_GLOBAL + EMPTY_TUPLE + REDUCE + POP

    judged_pickle(name, binput(1), POP, binput(0), again * 2000, NONE, TUPLE2)

    assert len(lookups) == 1


def test_a_long_name_is_cut_wherever_it_is_shown() -> None:
    long = "x" * 60_000
    judgement = judged(
        zip_archive([*EMPTY, ZipEntry(f"archive/{long}", pickled(call(long, long)))])
    )

    (use,) = judgement.globals
    for text in (use.module, use.name, *(f.record + f.message for f in judgement.findings)):
        assert len(text) < 800
        assert text.isascii()


# One value of megabytes may be given to a million calls


@pytest.mark.parametrize(
    "look",
    [
        lambda: key_of(HUGE),
        lambda: storage_of(
            PersistentId(("storage", Global("torch", "FloatStorage", 0), HUGE, "cpu", 1), 0)
        ),
        lambda: storage_of(
            PersistentId(("storage", Global("torch", "FloatStorage", 0), "0", "cpu", HUGE), 0)
        ),
        lambda: storage_of(
            PersistentId(
                ("storage", Global("torch", "FloatStorage", 0), "0", "cpu", 1, ("v", HUGE, 1)), 0
            )
        ),
        lambda: storage_of(
            PersistentId(
                ("storage", Global("torch", "FloatStorage", 0), "0", "cpu", 1, ("v", 0, HUGE)), 0
            )
        ),
    ],
    ids=["key", "key of a storage", "size", "offset of a view", "size of a view"],
)
def test_a_huge_integer_is_compared_and_not_computed_with(look: Callable[[], object]) -> None:
    tracemalloc.start()
    try:
        refused = look()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert refused is None
    assert peak < 100_000


def test_a_fraction_is_no_longer_than_somebody_would_write() -> None:
    assert fraction(("-1/3",))
    assert not fraction(("1" * 1001,))


def test_an_endless_stream_of_marks_and_lists_gives_one_gap() -> None:
    judgement = judged(EMPTY_LIST * 2_500_000 + MARK + TUPLE1 + STOP)

    assert judgement.verdict is Severity.REVIEW
    assert [finding.rule for finding in judgement.findings] == ["CKA208"]


# What records are called


@given(st.lists(st.text() | st.text("!\\x21.a", max_size=300), max_size=4).map(tuple))
def test_the_text_of_a_record_leads_back_to_its_names(path: tuple[str, ...]) -> None:
    """All but long ones, of which the text keeps a digest."""
    text = record_text(path)

    assert text.isascii()
    assert text.isprintable()
    names = [part.encode().decode("unicode-escape") for part in text.split("!")] if path else []
    for name, told in zip(path, names, strict=True):
        assert told == name or (len(name) > 200 and told.startswith(name[:200]))


def test_two_long_names_that_begin_alike_are_not_called_the_same() -> None:
    assert record_text(["a" * 300]) != record_text(["a" * 301])


def place_of(data: bytes) -> list[tuple[Finding, bytes]]:
    """Each finding that has a place in the file, and the bytes it says it is about."""
    return [
        (finding, data[finding.offset :][: finding.length])
        for finding in judge(open_container(BufferSource(data)), misfits).findings
        if finding.offset is not None
    ]


@pytest.mark.parametrize(
    ("data", "rule", "about"),
    [
        (torch_zip(pickled(CALLS_SYSTEM)), "CKA101", REDUCE),
        (torch_zip(pickled(inst("posix", "system", "x"))), "CKA101", b"iposix\nsystem\n"),
        (torch_zip(pickled(NONE, POP, global_("a.b", "c"))), "CKA102", b"ca.b\nc\n"),
        (torch_zip(pickled(NONE, proto(2), STOP)), "CKA109", proto(2)),
        (legacy_stream(pickled(NONE), version=7), "CKA206", pickled(value(7))),
        (pickled(NONE) + b"left over", "CKA202", b"left over"),
        (pickled(NONE) + pickled(value(1)), "CKA110", pickled(value(1))),
    ],
    ids=["call", "inst", "name", "oddity", "record", "left-over", "second-pickle"],
)
def test_a_finding_spans_what_it_is_about(data: bytes, rule: str, about: bytes) -> None:
    assert about in [span for finding, span in place_of(data) if finding.rule == rule]


def test_a_finding_about_an_entry_spans_its_header_and_its_data() -> None:
    entry = ZipEntry("archive/readme", b"hello")
    data = zip_archive([*EMPTY, entry])

    (span,) = (span for finding, span in place_of(data) if finding.rule == "CKA203")

    assert span.startswith(b"PK\3\4")
    assert span.endswith(b"hello")


@pytest.mark.parametrize("case", CASES, ids=[case.technique for case in CASES])
def test_no_finding_and_no_gap_lies_outside_of_its_file(case: Case) -> None:
    data = case.data
    try:
        judgement = judge(open_container(BufferSource(data), case.limits), misfits)
    except CkptauditError:
        return

    every: list[Finding | Gap] = [*judgement.findings, *judgement.coverage.gaps]
    for told in every:
        assert told.offset is None or 0 <= told.offset <= len(data)
        assert told.length is None or told.length >= 0
        assert told.stream_offset is None or told.stream_offset >= 0
