"""Bytes that a pickle hands to a call: opened as what the call would load, and judged for it."""

from __future__ import annotations

import pytest
from forge import (
    APPEND,
    BUILD,
    CALLS_SYSTEM,
    EMPTY_DICT,
    NEWOBJ_EX,
    POP,
    REDUCE,
    STOP,
    TUPLE1,
    Raw,
    binbytes,
    binget,
    binint1,
    binput,
    bytearray8,
    call,
    floats,
    global_,
    gzipped,
    legacy_stream,
    object_npy,
    pickled,
    state_dict,
    storage_id,
    torch_zip,
    value,
    zlibbed,
)

from ckptaudit.containers import open_container
from ckptaudit.policy import Judgement, Severity, judge
from ckptaudit.source import BufferSource
from ckptaudit.vm import Limits

EVIL = pickled(CALLS_SYSTEM)
STORAGE = legacy_stream(pickled(storage_id("0", 2, view=(None,))), [("0", 2, floats(1, 2))])
# Python's zipfile takes an archive in the last 64 KiB of a file for the file itself.
FAR_FROM_THE_END = (POP, binbytes(bytes(1 << 17)))
LOAD = ("torch.storage", "_load_from_bytes")


def judged(*opcodes: bytes, limits: Limits | None = None) -> Judgement:
    return judge(open_container(BufferSource(pickled(*opcodes)), limits))


def rules(judgement: Judgement) -> list[str]:
    return [finding.rule for finding in judgement.findings]


def records_of_the_payload(judgement: Judgement) -> list[str]:
    says = "posix.system('true')"
    return [finding.record for finding in judgement.findings if says in finding.message]


@pytest.mark.parametrize(
    "opcodes",
    [
        call("thing", "load", EVIL),
        call("thing", "load", 1, 2, EVIL),
        call("thing", "load", Raw(bytearray8(EVIL))),
        call("thing", "load", Raw(call("_codecs", "encode", EVIL.decode("latin-1"), "latin1"))),
        call("thing", "load", Raw(call("builtins", "bytearray", EVIL))),
        call("thing", "load", Raw(call("builtins", "bytes", EVIL.decode("latin-1"), "latin-1"))),
        call("thing", "load", Raw(call("zlib", "decompress", zlibbed(EVIL)))),
        call("collections", "deque", EVIL),
        global_("thing", "load") + value(()) + value({"data": EVIL}) + NEWOBJ_EX,
        call("thing", "load") + value((EVIL,)) + REDUCE,
    ],
    ids=[
        "bytes",
        "third argument",
        "bytearray",
        "text of latin-1",
        "bytearray of bytes",
        "bytes of latin-1",
        "compressed",
        "allowed name with arguments nobody writes",
        "keyword",
        "call of a result",
    ],
)
def test_a_payload_in_the_bytes_of_a_call_is_told(opcodes: bytes) -> None:
    judgement = judged(opcodes)

    assert judgement.verdict is Severity.MALICIOUS
    assert len(records_of_the_payload(judgement)) == 1


@pytest.mark.parametrize(
    "wrap", [torch_zip, legacy_stream, gzipped, object_npy], ids=["zip", "legacy", "gzip", "npy"]
)
def test_the_bytes_may_be_any_file_that_is_read(wrap: object) -> None:
    assert callable(wrap)

    (record,) = records_of_the_payload(judged(call("thing", "load", wrap(EVIL)), *FAR_FROM_THE_END))

    assert record.startswith("pickle!bytes at ")


def test_bytes_that_are_handed_to_many_calls_are_opened_once() -> None:
    calls = global_("thing", "load") + binget(0) + TUPLE1 + REDUCE + POP

    judgement = judged(binbytes(EVIL), binput(0), POP, calls * 100, value(None))

    assert rules(judgement).count("CKA102") == 100
    assert len(records_of_the_payload(judgement)) == 1


def test_files_in_more_calls_than_the_limit_are_a_gap() -> None:
    calls = b"".join(call("thing", "load", EVIL + bytes([n])) + POP for n in range(10))

    judgement = judged(calls, value(None), limits=Limits(files=3))

    assert any("more than 3 places" in gap.reason for gap in judgement.coverage.gaps)


def nested(levels: int) -> bytes:
    return EVIL if levels == 0 else pickled(call("thing", "load", nested(levels - 1)))


def test_pickles_nest_as_deep_as_the_limit_and_no_deeper() -> None:
    whole = judge(open_container(BufferSource(nested(4))))
    cut = judge(open_container(BufferSource(nested(5))))

    assert records_of_the_payload(whole)
    assert not records_of_the_payload(cut)
    assert cut.verdict >= Severity.SUSPICIOUS
    assert [gap.reason for gap in cut.coverage.gaps] == [
        "hands bytes to a call that are a file: it is inside more than 4 others"
    ]


@pytest.mark.parametrize("data", [b"", b"hello", b"cat\ndog\n", b"x" * 100, bytes(100)])
def test_bytes_that_are_no_file_are_neither_a_gap_nor_a_finding(data: bytes) -> None:
    judgement = judged(call("thing", "load", data))

    assert rules(judgement) == ["CKA102"]
    assert judgement.coverage.complete


def test_bytes_of_an_allowed_call_are_data() -> None:
    """Whatever an array holds, no loader unpickles it."""
    judgement = judged(call("builtins", "bytearray", EVIL))

    assert (judgement.verdict, judgement.coverage.complete) == (Severity.CLEAN, True)


# A storage that pickles itself


@pytest.mark.parametrize(
    "checkpoint",
    [STORAGE, torch_zip(state_dict({"w": 2}), {"0": floats(1, 2)})],
    ids=["legacy", "zip"],
)
def test_a_checkpoint_that_a_storage_brings_along_is_judged_for_itself(checkpoint: bytes) -> None:
    judgement = judged(call(*LOAD, checkpoint), *FAR_FROM_THE_END)

    assert (judgement.verdict, judgement.coverage.complete) == (Severity.REVIEW, True)
    assert rules(judgement) == ["CKA113"]


def test_what_protocol_2_writes_for_the_bytes_is_read_as_well() -> None:
    text = Raw(call("_codecs", "encode", STORAGE.decode("latin-1"), "latin1"))

    assert rules(judged(call(*LOAD, text))) == ["CKA113"]


@pytest.mark.parametrize(
    "opcodes",
    [
        global_(*LOAD),
        call(*LOAD, b""),
        call(*LOAD, b"no checkpoint"),
        call(*LOAD, pickled(value({}))),
        call(*LOAD, gzipped(STORAGE)),
        call(*LOAD, STORAGE, STORAGE),
        call(*LOAD, Raw(call("_codecs", "encode", STORAGE, "latin1"))),
        call(*LOAD, Raw(call("_codecs", "encode", STORAGE.decode("latin-1"), "rot13"))),
        call(*LOAD, Raw(bytearray8(STORAGE) + binint1(0) + APPEND)),
        call(*LOAD, Raw(call("builtins", "bytearray", STORAGE) + binint1(0) + APPEND)),
        call("torch.storage", "_load_from_bytes2", STORAGE),
    ],
    ids=[
        "name only",
        "no bytes",
        "no checkpoint",
        "bare pickle",
        "compressed",
        "two arguments",
        "encoded bytes",
        "another encoding",
        "bytes that are changed",
        "bytes that are made and changed",
        "another name",
    ],
)
def test_bytes_that_are_not_what_would_be_loaded_excuse_nothing(opcodes: bytes) -> None:
    judgement = judged(opcodes)

    assert judgement.verdict >= Severity.SUSPICIOUS
    assert "CKA113" not in rules(judgement)


def test_a_gap_in_what_is_brought_along_is_a_gap_of_the_file() -> None:
    judgement = judged(call(*LOAD, STORAGE[:-1]))

    assert not judgement.coverage.complete


def test_what_is_loaded_may_be_given_no_state() -> None:
    judgement = judged(call(*LOAD, STORAGE), EMPTY_DICT, BUILD)

    assert "CKA107" in rules(judgement)


def test_what_is_brought_along_is_named_by_its_place() -> None:
    judgement = judge(open_container(BufferSource(torch_zip(pickled(call(*LOAD, EVIL))))))

    (record,) = records_of_the_payload(judgement)

    assert record.startswith("archive/data.pkl!bytes at ")
    assert record.endswith("!pickle")
    assert EVIL.endswith(STOP)
