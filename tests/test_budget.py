"""What one file may cost: everything in it pays from one purse, and an empty purse is a gap."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from commands import audit
from forge import (
    CALLS_SYSTEM,
    DUP,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    NONE,
    POP,
    REDUCE,
    STOP,
    TUPLE1,
    TarStorage,
    ZipEntry,
    binbytes,
    call,
    deflated,
    floats,
    legacy_stream,
    pickled,
    safetensors_entry,
    safetensors_file,
    state_dict,
    tar_archive,
    tar_members,
    torch_entries,
    torch_zip,
    unicode_line,
    value,
    with_entry,
    zip_archive,
)

from ckptaudit.containers import Container, open_container
from ckptaudit.containers.inflate import InflatedSource
from ckptaudit.errors import LimitExceeded
from ckptaudit.policy import Judgement, Severity, judge
from ckptaudit.source import BufferSource
from ckptaudit.vm import Budget, Call, Limits, Trace, trace_pickle

if TYPE_CHECKING:
    from pathlib import Path

IDLE = NONE + POP
EMPTY = torch_entries(pickled(value({})), {})
# The machine looks at its budget once in so many opcodes.
ROUND = 1000


def run(pickle: bytes, budget: Budget) -> Trace:
    return trace_pickle(BufferSource(pickle), 0, len(pickle), record="p", budget=budget)


def opened(data: bytes, limits: Limits | None = None) -> Container:
    return open_container(BufferSource(data), limits)


def judged(data: bytes, limits: Limits) -> Judgement:
    return judge(opened(data, limits))


def executed(container: Container) -> int:
    return sum(trace.opcodes for trace in container.traces)


# Pickles of one file share their budget


@pytest.mark.parametrize(
    ("limits", "pickle", "what"),
    [
        (Limits(opcodes=5000), pickled(IDLE * 1500, NONE), "opcodes"),
        (Limits(events=2500), pickled(EMPTY_TUPLE, (EMPTY_TUPLE + REDUCE) * 2000), "names and"),
        (Limits(nodes=2500), pickled(NONE, (EMPTY_LIST + POP) * 2000), "lists, tuples, dicts"),
        (Limits(literals=250), pickled(binbytes(bytes(200))), "bytes in all literals"),
        (Limits(literals=250), pickled(unicode_line(b"x" * 200)), "bytes in all literals"),
    ],
    ids=["opcodes", "events", "nodes", "literals", "lines"],
)
def test_what_one_pickle_may_cost_two_may_not_cost_twice(
    limits: Limits, pickle: bytes, what: str
) -> None:
    budget = Budget(limits)

    assert run(pickle, budget).error is None
    error = run(pickle, budget).error

    assert isinstance(error, LimitExceeded)
    assert f"more {what}" in str(error)


def test_stack_and_memo_are_given_back_when_a_pickle_ends() -> None:
    budget = Budget(Limits(stack=5000, memo=100))

    for _ in range(100):
        assert run(pickled(NONE, b"q\0", DUP * 1000, POP * 1000), budget).error is None


def test_a_length_that_lies_costs_nothing() -> None:
    budget = Budget()

    run(binbytes(b"x", length=1 << 20) + STOP, budget)

    assert budget.literals == 0


def test_a_hundred_pickles_in_an_archive_cost_no_more_than_one() -> None:
    pickles = [ZipEntry(f"archive/{n}.pkl", pickled(NONE, IDLE * 1000)) for n in range(100)]
    container = opened(zip_archive([*EMPTY, *pickles]), Limits(opcodes=9000))

    assert executed(container) <= 9000 + ROUND
    assert sum(isinstance(trace.error, LimitExceeded) for trace in container.traces) > 90


@pytest.mark.parametrize("limits", [Limits(tries=30), Limits(loose=600)], ids=["tries", "loose"])
def test_what_is_left_over_of_many_files_costs_no_more_than_that_of_one(limits: Limits) -> None:
    """Entries may share their bytes, so that ten thousand files have sixteen megabytes each."""
    loose = pickled(CALLS_SYSTEM) * 20
    data = zip_archive([ZipEntry(f"{n}.zip", torch_zip(pickled(NONE)) + loose) for n in range(5)])

    told = [found for found in judged(data, limits).findings if found.rule == "CKA110"]

    assert len(told) <= 30
    assert not judged(data, limits).coverage.complete
    assert sum(found.rule == "CKA110" for found in judged(data, Limits()).findings) >= 5 * 20


def test_files_that_share_their_bytes_are_not_all_opened() -> None:
    """To skip the zeros at the end of one takes little, and of ten thousand a minute."""
    whole = tar_archive({"pickle": pickled(NONE)}) + bytes(1 << 16)
    first = ZipEntry("0", whole)
    at = zip_archive([first]).index(b"PK\3\4")
    others = [ZipEntry(str(n), packed=b"", size=len(whole) - n, header=at) for n in range(1, 200)]

    container = opened(zip_archive([first, *others]), Limits(inflated=0))

    assert 0 < len(container.nested) < 100
    assert any("share their bytes" in gap.reason for gap in container.gaps)


def test_a_hundred_pickles_in_a_row_cost_no_more_than_one() -> None:
    container = opened(pickled(NONE, IDLE * 1000) * 100, Limits(opcodes=9000))

    assert executed(container) <= 9000 + ROUND
    assert isinstance(container.traces[-1].error, LimitExceeded)


@pytest.mark.parametrize("method", [0, 8], ids=["stored", "deflated"])
def test_entries_that_share_their_bytes_are_run_once(method: int) -> None:
    """A directory may name one record a million times."""
    pickle = pickled(CALLS_SYSTEM)
    record = ZipEntry("archive/x.pkl", pickle, method=method)
    start = len(zip_archive(EMPTY)) - len(directory_of(EMPTY))
    packed = deflated(pickle) if method else pickle
    # They state the sizes of the first and bring no bytes of their own.
    names = [replace(record, name=f"archive/{n}", packed=packed, header=start) for n in range(50)]

    container = opened(zip_archive([*EMPTY, record, *names]))

    # The bytes that they bring all the same belong to none of them, and are told as that.
    named = [trace.record for trace in container.traces if not trace.record.startswith("byte ")]
    assert named == ["archive/data.pkl", "archive/x.pkl"]
    called_extra = [m.record for m in container.mishaps if m.code == "extra-pickle"]
    assert {"archive/x.pkl", *(entry.name for entry in names)} <= set(called_extra)


def directory_of(entries: list[ZipEntry]) -> bytes:
    """Central directory and end records of an archive of *entries*."""
    archive = zip_archive(entries)
    return archive[archive.index(b"PK\1\2") :]


# Whatever runs out, the file is not clean


BENIGN_CALLS = call("collections", "OrderedDict") + POP


@pytest.mark.parametrize(
    ("limits", "before"),
    [
        (Limits(opcodes=5000), IDLE * 5000),
        (Limits(events=2000), BENIGN_CALLS * 2000),
        (Limits(nodes=2000), (EMPTY_DICT + POP) * 5000),
        (Limits(literals=5000), (binbytes(bytes(1000)) + POP) * 10),
        (Limits(literal=5000), binbytes(bytes(6000)) + POP),
        (Limits(stack=5000), NONE * 10_000),
        (Limits(memo=5), NONE + b"".join(b"q" + bytes([n]) for n in range(10))),
    ],
    ids=["opcodes", "events", "nodes", "literals", "literal", "stack", "memo"],
)
@pytest.mark.parametrize(
    "framed",
    [
        torch_zip,
        legacy_stream,
        lambda pickle: tar_archive(tar_members(pickle)),
        lambda pickle: pickle,
        lambda pickle: zip_archive([*EMPTY, ZipEntry("archive/x.pkl", pickle)]),
        lambda pickle: zip_archive([*EMPTY, ZipEntry("archive/readme", pickle[2:])]),
    ],
    ids=["zip", "legacy", "tar", "bare", "extra-pickle", "unnamed-pickle"],
)
def test_what_comes_after_a_limit_never_makes_a_file_clean(
    limits: Limits, before: bytes, framed: object
) -> None:
    assert callable(framed)
    judgement = judged(framed(pickled(before, CALLS_SYSTEM)), limits)

    assert judgement.verdict > Severity.CLEAN
    assert not judgement.coverage.complete
    assert any(
        "more " in gap.reason and "limit allows" in gap.reason for gap in judgement.coverage.gaps
    )


@pytest.mark.parametrize("limits", [Limits(opcodes=5000), Limits(events=2000)])
def test_what_came_before_a_limit_is_still_told(limits: Limits) -> None:
    judgement = judged(torch_zip(pickled(CALLS_SYSTEM, POP, BENIGN_CALLS * 5000, NONE)), limits)

    assert judgement.verdict is Severity.MALICIOUS


def test_a_safetensors_file_that_is_a_long_pickle_as_well_is_not_clean() -> None:
    """A header of ``V`` bytes makes the header a string, and the data go on with the opcodes."""
    opcodes = POP + IDLE * 5000 + CALLS_SYSTEM + STOP
    entry = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % ((len(opcodes),) * 2)
    data = safetensors_file(entry.ljust(ord("V") - 1) + b"\n", opcodes)

    assert judged(data, Limits()).verdict is Severity.MALICIOUS
    cut_short = judged(data, Limits(opcodes=5000))
    assert cut_short.verdict > Severity.CLEAN
    assert not cut_short.coverage.complete


# Compressed pickles


def bomb(*before: bytes) -> bytes:
    """An archive of some 20 kB whose pickle is a string of 17 MB and whatever comes before it."""
    pickle = pickled(*before, binbytes(bytes(17 << 20)))
    return zip_archive(with_entry(torch_entries(pickle, {}), "data.pkl", method=8))


def test_a_pickle_that_inflates_to_hundreds_of_times_its_size_is_a_gap() -> None:
    tracemalloc.start()
    try:
        data = bomb()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        judgement = judged(data, Limits())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert not judgement.coverage.complete
    assert peak - before < 5 << 20


@pytest.mark.parametrize(
    ("data", "status"), [(bomb(), 2), (bomb(CALLS_SYSTEM), 1)], ids=["bomb", "call and bomb"]
)
def test_a_file_over_a_limit_is_no_good_answer(data: bytes, status: int, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(data)

    done = audit("scan", path, "--format", "json")

    assert done.status == status
    (file,) = done.files
    assert file["verdict"] == ("malicious" if status == 1 else "review")
    (gap,) = file["coverage"]["gaps"]
    assert "inflates to over 200 bytes for each compressed one" in gap["reason"]


@pytest.mark.parametrize("inflated", [30_000, 90_000])
def test_all_compressed_pickles_together_inflate_to_no_more_than_the_limit(inflated: int) -> None:
    # Text that deflate cannot do much with.
    numbers = value([n * n for n in range(2000)])
    pickles = [ZipEntry(f"archive/{n}.pkl", pickled(numbers), method=8) for n in range(50)]

    container = opened(zip_archive([*EMPTY, *pickles]), Limits(inflated=inflated))

    whole = [trace for trace in container.traces[1:] if trace.error is None]
    assert whole
    assert sum(trace.end for trace in whole) <= inflated
    assert len(whole) < 50
    assert all(
        isinstance(trace.error, LimitExceeded) for trace in container.traces[1 + len(whole) :]
    )


@pytest.mark.parametrize(
    "pickle",
    [
        pickled(value([n * n for n in range(50_000)])),
        pickled(NONE, (POP + unicode_line(b"line" * 150_000) + POP + NONE) * 5),
        pickled(NONE, (POP + binbytes(bytes(range(256)) * 3000)) * 3),
        pickled(EMPTY_TUPLE, TUPLE1 * 200_000),
    ],
    ids=["numbers", "long lines", "long literals", "short opcodes"],
)
def test_a_compressed_pickle_is_inflated_once_and_gives_the_same_trace(pickle: bytes) -> None:
    packed = deflated(pickle)
    budget = Budget()
    source = InflatedSource(BufferSource(packed), 0, len(packed), len(pickle), "p", budget)

    trace = trace_pickle(source, 0, len(pickle), record="p", budget=budget)

    plain = run(pickle, Budget())
    assert (trace.error, trace.opcodes, trace.end) == (None, plain.opcodes, plain.end)
    assert (budget.packed, budget.inflated) == (len(packed), len(pickle))


def test_a_stream_of_nothing_but_empty_blocks_is_paid_for() -> None:
    """A stored block of no bytes takes five, so that a long stream may give nothing."""
    nothing = b"\0\0\0\xff\xff" * 50_000
    record = ZipEntry("archive/x.pkl", packed=nothing + deflated(NONE + STOP), size=2, method=8)

    container = opened(zip_archive([*EMPTY, record]), Limits(inflated=100_000))

    assert any("inflates to more bytes" in gap.reason for gap in container.gaps)


# Records


SIX = {
    "zip": torch_zip(state_dict({"a": 1, "b": 1}), {"0": floats(1), "1": floats(2)}),
    "safetensors": safetensors_file(
        {str(n): safetensors_entry([1], 4 * n, 4 * n + 4) for n in range(6)}, floats(*range(6))
    ),
    "legacy": legacy_stream(
        state_dict({str(n): 1 for n in range(6)}, legacy=True),
        [(str(n), 1, floats(n)) for n in range(6)],
    ),
    "tar": tar_archive(tar_members(pickled(NONE), [TarStorage(n, floats(n)) for n in range(6)])),
}


@pytest.mark.parametrize("data", SIX.values(), ids=SIX)
def test_as_many_records_as_the_limit_allows_are_read(data: bytes) -> None:
    judgement = judged(data, Limits(records=6))

    assert (judgement.verdict, judgement.coverage.complete) == (Severity.CLEAN, True)


@pytest.mark.parametrize("framing", ["zip", "safetensors"])
def test_a_directory_of_more_records_than_the_limit_is_not_read(framing: str) -> None:
    with pytest.raises(LimitExceeded, match="has 6 records, more than the limit of 5"):
        opened(SIX[framing], Limits(records=5))


@pytest.mark.parametrize("framing", ["legacy", "tar"])
def test_records_beyond_the_limit_are_a_gap(framing: str) -> None:
    judgement = judged(SIX[framing], Limits(records=5))

    assert judgement.verdict > Severity.CLEAN
    assert any("more than the limit of 5" in gap.reason for gap in judgement.coverage.gaps)


def test_no_call_is_lost_because_the_record_that_holds_it_comes_last() -> None:
    """Pickles that fit into the budget are all run, in whichever order they stand."""
    idle = [ZipEntry(f"archive/{n}.pkl", pickled(NONE, IDLE * 100)) for n in range(20)]
    data = zip_archive([*EMPTY, *idle, ZipEntry("archive/last", CALLS_SYSTEM + STOP)])

    calls = [e for t in opened(data).traces for e in t.events if isinstance(e, Call)]

    assert [str(event.func) for event in calls] == ["posix.system"]


@pytest.mark.parametrize(
    ("filling", "limits"),
    [(b"[]", Limits(nodes=500)), (b"{}", Limits(nodes=500)), (b"0", Limits(opcodes=500))],
    ids=["lists", "objects", "numbers"],
)
def test_a_safetensors_header_of_too_many_values_is_not_parsed(
    filling: bytes, limits: Limits
) -> None:
    data = safetensors_file(b'{"w":[' + b",".join([filling] * 1000) + b"]}")

    with pytest.raises(LimitExceeded, match="more values than the limit allows"):
        opened(data, limits)
