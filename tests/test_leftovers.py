"""What belongs to nothing is run as a pickle, wherever it is left over."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
from forge import (
    CALLS_SYSTEM,
    STOP,
    ZipEntry,
    deflated,
    extra_field,
    floats,
    legacy_stream,
    pax_header,
    pickled,
    safetensors_entry,
    safetensors_file,
    state_dict,
    tar_archive,
    tar_member,
    tar_members,
    torch_entries,
    value,
    with_entry,
    zip_archive,
)

from ckptaudit.containers import Container, open_container
from ckptaudit.policy import Judgement, Severity, judge
from ckptaudit.source import BufferSource
from ckptaudit.vm import Limits

PICKLE = state_dict({"a": 2})
ENTRIES = torch_entries(PICKLE, {"0": floats(1, 2)})
HARMLESS = pickled(value({"a": 1}))
TAR = tar_members(HARMLESS)
# The same call: with PROTO, without, and behind bytes that are no pickle.
PAYLOADS = {
    "pickle": pickled(CALLS_SYSTEM),
    "pickle-without-proto": CALLS_SYSTEM + STOP,
    "pickle-behind-zeros": bytes(100) + pickled(CALLS_SYSTEM),
    "pickle-behind-junk": b"\xff\xfe junk \x00" + pickled(CALLS_SYSTEM),
    "pickle-behind-a-pickle": HARMLESS + pickled(CALLS_SYSTEM),
    "pickle-without-proto-behind-junk": b"\xff\xfe junk \x00" + CALLS_SYSTEM + STOP,
    "pickle-without-end": pickled(CALLS_SYSTEM)[:-1],
}


def lying(name: str, **lies: object) -> bytes:
    return zip_archive(with_entry(ENTRIES, name, **lies))


def between_entries(payload: bytes) -> bytes:
    return lying("version", before=payload)


def left_out_of_the_directory(payload: bytes) -> bytes:
    return zip_archive([*ENTRIES, ZipEntry("archive/x", payload, hidden=True)])


def behind_the_archive(payload: bytes) -> bytes:
    return zip_archive(ENTRIES) + payload


def in_the_comment(payload: bytes) -> bytes:
    return zip_archive(ENTRIES, comment=payload)


def in_an_entrys_comment(payload: bytes) -> bytes:
    return lying("version", comment=payload)


def in_the_64_bit_end_record(payload: bytes) -> bytes:
    return zip_archive(ENTRIES, extension=payload)


def in_the_padding(payload: bytes) -> bytes:
    return lying("data/0", extra=extra_field(b"FB", payload))


def in_an_extra_field(payload: bytes) -> bytes:
    return lying("data/0", extra=extra_field(b"??", payload))


def in_an_extra_field_of_the_directory(payload: bytes) -> bytes:
    return lying("data/0", central_extra=extra_field(b"??", payload))


def behind_stop_in_a_zip(payload: bytes) -> bytes:
    return lying("data.pkl", data=PICKLE + payload)


def behind_the_end_of_a_compressed_pickle(payload: bytes) -> bytes:
    return lying("data.pkl", method=8, packed=deflated(PICKLE) + payload)


def behind_the_end_of_a_compressed_storage(payload: bytes) -> bytes:
    return lying("data/0", method=8, packed=deflated(floats(1, 2)) + payload)


def behind_what_a_record_states(payload: bytes) -> bytes:
    return lying("version", packed=b"3\n" + payload)


def behind_the_storages_of_a_legacy_stream(payload: bytes) -> bytes:
    return legacy_stream(state_dict({"a": 2}, legacy=True), [("0", 2, floats(1, 2))], tail=payload)


def where_a_legacy_stream_has_no_keys(payload: bytes) -> bytes:
    return legacy_stream(HARMLESS, keys=pickled(value(1)), tail=payload)


def behind_a_bare_pickle(payload: bytes) -> bytes:
    return HARMLESS + b"\xff" + payload


def in_a_tar_member_of_another_name(payload: bytes) -> bytes:
    return tar_archive({**TAR, "more": payload})


def in_the_first_of_two_tar_members(payload: bytes) -> bytes:
    return tar_archive([("pickle", payload), *TAR.items()])


def behind_what_a_tar_member_is_read_for(payload: bytes) -> bytes:
    return tar_archive({**TAR, "sys_info": HARMLESS + payload})


def behind_the_members_of_a_tar(payload: bytes) -> bytes:
    return tar_archive(TAR) + payload


def behind_a_link_in_a_tar(payload: bytes) -> bytes:
    link = tar_member("link", b"", typeflag=b"2")
    return tar_archive(TAR)[:-1024] + link + payload


def where_a_tar_member_is_cut_short(payload: bytes) -> bytes:
    return tar_archive(TAR)[:-1024] + tar_member("more", payload, size=b"7" * 8)


def in_a_pax_header(payload: bytes) -> bytes:
    return pax_header(comment=payload.decode("latin-1")) + tar_archive(TAR)


def behind_the_tensors_of_a_safetensors_file(payload: bytes) -> bytes:
    return safetensors_file({"a": safetensors_entry([2], 0, 8)}, floats(1, 2) + payload)


PLACES = [
    between_entries,
    left_out_of_the_directory,
    behind_the_archive,
    in_the_comment,
    in_an_entrys_comment,
    in_the_64_bit_end_record,
    in_the_padding,
    in_an_extra_field,
    in_an_extra_field_of_the_directory,
    behind_stop_in_a_zip,
    behind_the_end_of_a_compressed_pickle,
    behind_the_end_of_a_compressed_storage,
    behind_what_a_record_states,
    behind_the_storages_of_a_legacy_stream,
    where_a_legacy_stream_has_no_keys,
    behind_a_bare_pickle,
    in_a_tar_member_of_another_name,
    in_the_first_of_two_tar_members,
    behind_what_a_tar_member_is_read_for,
    behind_the_members_of_a_tar,
    behind_a_link_in_a_tar,
    where_a_tar_member_is_cut_short,
    behind_the_tensors_of_a_safetensors_file,
]


def opened(data: bytes, limits: Limits | None = None) -> Container:
    return open_container(BufferSource(data), limits)


def judged(data: bytes) -> Judgement:
    return judge(opened(data))


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_payload_is_told_wherever_it_is_left_over(place: object, payload: bytes) -> None:
    assert callable(place)
    data: bytes = place(payload)
    judgement = judged(data)

    assert judgement.verdict is Severity.MALICIOUS
    assert not judgement.coverage.complete
    calls = [f for f in judgement.findings if "would call posix.system('true')" in f.message]
    assert calls
    # The opcode that calls is the one before the last, STOP, if that is there at all.
    where = data.index(CALLS_SYSTEM) + len(CALLS_SYSTEM) - 1
    assert where in {finding.offset for finding in calls}


def test_a_payload_in_a_pax_header_is_told() -> None:
    """Its text is UTF-8, so this one is of protocol 0."""
    judgement = judged(in_a_pax_header(b"cposix\nsystem\n(S'true'\ntR."))

    assert any("would call posix.system('true')" in f.message for f in judgement.findings)


def test_a_payload_behind_stop_in_a_compressed_pickle_is_told() -> None:
    """It has no offset in the file, but one in what the record inflates to."""
    content = PICKLE + pickled(CALLS_SYSTEM)
    judgement = judged(lying("data.pkl", data=content, method=8))

    (finding,) = (f for f in judgement.findings if "posix.system('true')" in f.message)
    assert (finding.offset, finding.record.split(" @ ")[0]) == (None, "archive/data.pkl")


def test_the_rest_of_a_broken_pickle_is_looked_at() -> None:
    broken = b"\x80\x02" + b"\xff" + CALLS_SYSTEM + STOP

    judgement = judged(zip_archive(torch_entries(broken, {})))

    assert judgement.verdict is Severity.MALICIOUS
    assert not judgement.coverage.complete


@pytest.mark.parametrize(
    "tail",
    [b"cat\ndog\nhorse\n", b"import torch\n", floats(*range(100)), b"hello" * 100, b"\x80\x02"],
    ids=["labels", "code", "floats", "text", "proto"],
)
def test_what_is_left_over_and_asks_for_nothing_is_no_pickle(tail: bytes) -> None:
    container = opened(behind_the_archive(tail))

    assert [trace.record for trace in container.traces] == ["archive/data.pkl"]
    assert [mishap.code for mishap in container.mishaps] == ["zip-gap"]


def test_a_harmless_pickle_that_is_left_over_is_one_too_many() -> None:
    judgement = judged(behind_the_archive(HARMLESS))

    assert judgement.verdict is Severity.SUSPICIOUS
    assert {finding.rule for finding in judgement.findings} == {"CKA110", "CKA202", "CKA208"}


# What it costs


def test_leftovers_are_tried_so_often_and_no_more() -> None:
    """What is not tried is a gap all the same."""
    container = opened(between_entries(pickled(CALLS_SYSTEM) * 3000))

    assert len(container.traces) == 1 + 1000
    assert container.gaps


def test_leftovers_pay_from_the_budget_of_the_file() -> None:
    idle = pickled(b"N0" * 1000, CALLS_SYSTEM)

    container = opened(between_entries(idle * 100), Limits(opcodes=20_000))

    assert sum(trace.opcodes for trace in container.traces) < 22_000


def test_looking_behind_a_compressed_pickle_takes_no_finding_away() -> None:
    """There the bytes have to be inflated again, which the budget does not allow."""
    evil = pickled(CALLS_SYSTEM)
    content = evil + hashlib.shake_256().digest(4 << 20)
    data = zip_archive(with_entry(torch_entries(evil, {}), "data.pkl", data=content, method=8))

    container = opened(data, Limits(inflated=5 << 20))

    assert judge(container).verdict is Severity.MALICIOUS
    assert [gap.record for gap in container.gaps] == ["archive/data.pkl"]


# Another directory for another reader

END_BYTES = 20 + 22  # of the locator and the 32-bit end record


def second_directory(method: int) -> bytes:
    """Python's zipfile finds the archive inside the 64-bit end record, torch the one around it."""
    start = len(zip_archive(ENTRIES)) - END_BYTES
    inner = torch_entries(pickled(CALLS_SYSTEM), {})
    inner = [replace(entry, method=method) for entry in inner]
    return zip_archive(ENTRIES, extension=zip_archive(inner, start_at=start)[:-END_BYTES])


@pytest.mark.parametrize("method", [0, 8], ids=["stored", "deflated"])
def test_the_directory_that_another_reader_finds_is_read(method: int) -> None:
    container = opened(second_directory(method))
    judgement = judge(container)

    (nested,) = container.nested
    assert nested.container.object_trace.error is None
    assert judgement.verdict is Severity.MALICIOUS
    assert "zip!archive/data.pkl" in {f.record for f in judgement.findings}
    assert {"CKA201", "CKA202"} <= {finding.rule for finding in judgement.findings}


def test_another_directory_that_leads_nowhere_is_a_gap() -> None:
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 9, 9, 999, 0)

    container = opened(zip_archive(ENTRIES, extension=end64))

    assert container.nested == ()
    assert container.gaps
