"""How much is said about a hostile file: enough to act on, and no sentence for nothing."""

from __future__ import annotations

import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest
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
    persid,
    pickled,
    torch_entries,
    torch_zip,
    value,
    values,
    zip_archive,
)

from ckptaudit.containers import key_of, open_container, storage_of
from ckptaudit.policy import Finding, Judgement, Severity, judge
from ckptaudit.policy.arguments import fraction
from ckptaudit.policy.findings import Findings
from ckptaudit.source import BufferSource
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
    room = sys.modules["ckptaudit.policy.judge"]
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
    for _ in range(5000):
        findings.add("CKA103", describe)

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
        global_("argparse", "Namespace") + binput(0) + (POP + binget(0) + EMPTY_TUPLE + NEWOBJ
        + value({"__class__": 1}) + BUILD) * 5000,
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
)  # fmt: skip
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
