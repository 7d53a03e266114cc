"""Zip archives that contradict themselves: each lie has its name, and hides nothing."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from forge import (
    CALLS_SYSTEM,
    STOP,
    Raw,
    ZipEntry,
    call,
    extra_field,
    floats,
    pickled,
    state_dict,
    storage_id,
    tensor,
    torch_entries,
    torch_zip,
    unicode_path,
    value,
    with_entry,
    zip_archive,
)
from hypothesis import given
from hypothesis import strategies as st

from ckptaudit.containers import Container, Kind, Role, open_container
from ckptaudit.errors import CkptauditError, Unsupported
from ckptaudit.source import BufferSource
from ckptaudit.tensors import find_state_dict
from ckptaudit.vm import Call

PICKLE = state_dict({"a": 3, "b": 2})
STORAGES = {"0": floats(1, 2, 3), "1": floats(4, 5)}
ENTRIES = torch_entries(PICKLE, STORAGES)
PLAIN = zip_archive(ENTRIES)
EVIL = pickled(CALLS_SYSTEM)
# A zip64 field as miniz puts it into a local header: the size, and not yet the packed one.
WIDE_SIZES = extra_field(b"\1\0", struct.pack("<2Q", len(STORAGES["0"]), 0))
END = 22  # bytes of the end record
LOCATOR = 20  # bytes of the zip64 locator before it
END64 = 56  # bytes of the zip64 end record before that


def opened(data: bytes) -> Container:
    return open_container(BufferSource(data))


def codes(data: bytes) -> set[str]:
    return {mishap.code for mishap in opened(data).mishaps}


def patched(data: bytes, at: int, patch: bytes) -> bytes:
    """*data* with *patch* written over it, *at* bytes from its start or, if negative, its end."""
    at %= len(data)
    return data[:at] + patch + data[at + len(patch) :]


def deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def calls_in(container: Container) -> list[str]:
    return [
        str(event.func)
        for trace in container.traces
        for event in trace.events
        if isinstance(event, Call) and str(event.func) == "posix.system"
    ]


def storages_of(container: Container) -> dict[str, bytes]:
    return {
        key: container.bytes_of(storage).read_at(storage.offset, storage.nbytes)
        for key, storage in container.storages.items()
    }


# What is as it should be


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        zip_archive(ENTRIES, zip64=False),
        zip_archive([replace(entry, flags=0) for entry in ENTRIES]),
        zip_archive([replace(entry, method=8) for entry in ENTRIES]),
        zip_archive([entry for entry in ENTRIES if not entry.name.endswith("byteorder")]),
        zip_archive([replace(entry, local_sizes=(0xFFFFFFFF,) * 2) for entry in ENTRIES]),
        zip_archive([replace(entry, crc=0) for entry in ENTRIES]),
        zip_archive([replace(entry, extra=b"") for entry in ENTRIES]),
        zip_archive(with_entry(ENTRIES, "data/0", extra=WIDE_SIZES + extra_field(b"FB", b"ZZ"))),
        zip_archive(with_entry(ENTRIES, "byteorder", flags=0x0800)),
    ],
    ids=[
        "as torch",
        "32-bit",
        "no descriptors",
        "deflated",
        "no byteorder",
        "zip64 sizes",
        "no checksums",
        "no padding",
        "wide sizes",
        "no descriptor",
    ],
)
def test_an_archive_without_contradiction_has_no_mishap(data: bytes) -> None:
    container = opened(data)

    assert (container.mishaps, container.gaps) == ((), ())
    assert container.kind is Kind.ZIP
    assert storages_of(container) == STORAGES
    assert {record.role for record in container.records} == {
        Role.PICKLE,
        Role.STORAGE,
        Role.METADATA,
    }


def test_byteorder_is_what_its_record_says() -> None:
    assert opened(zip_archive(torch_entries(PICKLE, STORAGES, order="big"))).byteorder == "big"


def test_a_byteorder_that_is_none_is_a_gap_and_takes_nothing_else_away() -> None:
    container = opened(zip_archive(torch_entries(EVIL, {}, order="middle")))

    assert calls_in(container) == ["posix.system"]
    assert {mishap.code for mishap in container.mishaps} == {"zip-byteorder"}
    assert [gap.record for gap in container.gaps] == ["archive/byteorder"]


def test_an_archive_with_constants_is_torchscript() -> None:
    extra = [
        ZipEntry("archive/constants.pkl", pickled(value(()))),
        ZipEntry("archive/code/__torch__.py", b"class Module: ..."),
    ]

    container = opened(zip_archive([*ENTRIES, *extra]))

    assert container.kind is Kind.TORCHSCRIPT
    assert container.mishaps == ()
    assert len(container.traces) == 2


# Lies


def extra(name: str, data: bytes = b"", **lies: Any) -> bytes:
    return zip_archive([*ENTRIES, replace(ZipEntry(name, data), **lies)])


def lying(name: str, **lies: object) -> bytes:
    return zip_archive(with_entry(ENTRIES, name, **lies))


TWO_SIZES = pickled(
    value([Raw(tensor(storage_id("0", 3), (3,))), Raw(tensor(storage_id("0", 2), (2,)))])
)
TWO_TYPES = pickled(value([Raw(storage_id("0", 3)), Raw(storage_id("0", 3, storage="IntStorage"))]))


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("zip-comment", zip_archive(ENTRIES, comment=b"hello")),
        ("zip-comment", lying("version", comment=b"hello")),
        ("zip-several-ends", PLAIN + zip_archive(ENTRIES, start_at=len(PLAIN))),
        ("zip-several-ends", PLAIN + PLAIN),
        ("zip-several-ends", zip_archive(ENTRIES, comment=PLAIN)),
        ("zip-end-mismatch", zip_archive(ENTRIES, count=1)),
        ("zip-end-mismatch", patched(PLAIN, -END - LOCATOR + 8, b"\0" * 8)),
        ("zip-disks", patched(zip_archive(ENTRIES, zip64=False), -END + 4, b"\1")),
        ("zip-disks", patched(zip_archive(ENTRIES, zip64=False), -END + 8, b"\1")),
        ("zip-gap", lying("version", before=b"hidden")),
        ("zip-gap", lying("version", hidden=True)),
        ("zip-gap", lying("serialization_id", hidden=True)),
        ("zip-gap", PLAIN + b"behind the end"),
        ("zip-gap", PLAIN + zip_archive(ENTRIES, start_at=len(PLAIN))),
        ("zip-gap", zip_archive(with_entry(ENTRIES, "data.pkl", before=b"PK\3\4" + EVIL))),
        ("zip-gap", lying("data.pkl", method=8, packed=deflated(PICKLE) + b"hidden")),
        ("zip-gap", lying("data/0", method=8, packed=deflated(STORAGES["0"]) + b"hidden")),
        ("zip-gap", lying("data.pkl", extra=extra_field(b"FB", b"Z" * 9 + b"X"))),
        ("zip-gap", lying("data.pkl", extra=extra_field(b"FB", b"Z") * 2)),
        ("zip-gap", lying("data.pkl", extra=extra_field(b"UT", bytes(5)))),
        ("zip-gap", lying("data.pkl", extra=b"FB\xff\xffZZ")),
        ("zip-gap", lying("data.pkl", extra=b"FB")),
        ("zip-gap", lying("data.pkl", extra=extra_field(b"\1\0", b"12345678"))),
        ("zip-gap", lying("data.pkl", extra=extra_field(b"\1\0", b"1"))),
        ("zip-gap", lying("data.pkl", central_extra=extra_field(b"\1\0", bytes(8)))),
        ("zip-gap", lying("data.pkl", central_extra=extra_field(b"FB", b"Z"))),
        ("zip-gap", zip_archive(ENTRIES, extension=b"hidden")),
        ("zip-end-mismatch", zip_archive(ENTRIES, extension=b"hidden")),
        ("zip-end-mismatch", patched(PLAIN, -END - LOCATOR - END64 + 4, b"\x2d")),
        ("zip-disks", patched(PLAIN, -END - LOCATOR - END64 + 16, b"\1")),
        ("zip-disks", patched(PLAIN, -END - 4, b"\2")),
        ("zip-disks", patched(PLAIN, -END - 4, b"\0")),
        ("zip-crc", lying("data.pkl", crc=1)),
        ("zip-crc", lying("version", crc=1)),
        ("zip-crc", lying("data.pkl", method=8, crc=1)),
        ("zip-crc", lying("data/0", method=8, crc=1)),
        ("zip-byteorder", lying("byteorder", data=b"middle")),
        ("zip-version", zip_archive([e for e in ENTRIES if not e.name.endswith("version")])),
        ("zip-version", extra("archive/.data/version", b"3\n")),
        (
            "zip-name-mismatch",
            lying("data.pkl", central_extra=unicode_path("archive/data.pkl", "x")),
        ),
        ("zip-overlap", extra("archive/data/2", b"x", header=0)),
        ("zip-header", extra("archive/data/2", b"x", header=1)),
        ("zip-header", extra("archive/data/2", b"x", header=1 << 31)),
        ("zip-name-mismatch", lying("data.pkl", local_name="archive/safe.pkl")),
        ("zip-method-mismatch", lying("data.pkl", local_method=8)),
        ("zip-size-mismatch", lying("data.pkl", local_sizes=(1, 1))),
        ("zip-size-mismatch", lying("data.pkl", size=len(PICKLE) - 1)),
        ("zip-size-mismatch", extra("archive/x", size=0, packed=b"hidden")),
        ("zip-flags", lying("data.pkl", flags=0x0809)),
        ("zip-flags", lying("data.pkl", local_flags=0x0809)),
        ("zip-flags", lying("data.pkl", flags=0x0828)),
        ("zip-flags", lying("data.pkl", local_flags=0x0828)),
        ("zip-flags", lying("data.pkl", flags=0x8808)),
        ("zip-flags", lying("data.pkl", needed=64)),
        ("zip-disks", lying("data.pkl", disk=1)),
        ("zip-header", lying("data.pkl", attributes=0x10)),
        ("zip-header", extra("archive/x/", b"x")),
        # The length of the last entry's comment, of which there is nothing.
        ("zip-header", patched(PLAIN, PLAIN.rindex(b"PK\1\2") + 32, b"\1")),
        ("zip-duplicate", extra("archive/data.pkl", PICKLE)),
        ("zip-duplicate", extra("archive/DATA.PKL", PICKLE)),
        ("zip-name", extra("archive\\evil", b"x")),
        ("zip-name", extra("/etc/passwd", b"x")),
        ("zip-name", extra("archive/a\0b", b"x")),
        ("zip-name", extra("archive/../b", b"x")),
        ("zip-name", extra("archive/a\\..\\b", b"x")),
        ("zip-name", zip_archive(torch_entries(PICKLE, STORAGES, root=".."))),
        ("zip-second-root", extra("elsewhere/x", b"x")),
        ("zip-second-root", extra("x", b"x")),
        ("storage-missing", zip_archive(torch_entries(PICKLE, {"0": floats(1, 2, 3)}))),
        ("storage-size", lying("data/0", data=floats(1, 2))),
        ("storage-size", lying("data/0", data=floats(1, 2, 3, 4))),
        ("storage-contradiction", torch_zip(TWO_SIZES, STORAGES)),
        ("storage-contradiction", torch_zip(TWO_TYPES, STORAGES)),
        ("storage-unreferenced", extra("archive/data/2", b"x")),
        ("extra-pickle", extra("archive/other.pkl", PICKLE)),
        ("extra-pickle", extra("archive/OTHER.PKL", PICKLE)),
        ("extra-pickle", extra("archive/data/2", PICKLE)),
        ("record-unknown", extra("archive/readme", b"x")),
        ("record-unknown", lying("serialization_id", data=b"x" * 1000)),
        ("record-unknown", lying("serialization_id", data=b"hidden")),
        ("record-unknown", lying("version", data=b"3\nhidden")),
        ("record-unknown", lying("version", data=b"3\n" + EVIL)),
        ("record-unknown", extra("archive/.format_version", b"1 hidden")),
        ("record-unknown", extra("archive/.storage_alignment", b"64 hidden")),
        ("record-unknown", extra("archive/x", size=0, packed=b"hidden")),
        ("record-unknown", extra("archive/hidden")),
        ("record-unknown", extra("archive/hidden/")),
        ("bytes-after-pickle", lying("data.pkl", data=PICKLE + EVIL)),
    ],
)
def test_each_contradiction_has_its_name(code: str, data: bytes) -> None:
    assert code in codes(data)


# What lies may not hide


def deflated_evil(pickle: bytes, **lies: object) -> bytes:
    """Torch takes as much as it should of what inflates to more; other readers read along."""
    return zip_archive(
        with_entry(torch_entries(pickle, {}), "data.pkl", data=pickle, method=8, **lies)
    )


@pytest.mark.parametrize(
    "data",
    [
        torch_zip(EVIL),
        zip_archive([*torch_entries(PICKLE, STORAGES), ZipEntry("archive/data.pkl", EVIL)]),
        zip_archive([*torch_entries(EVIL, {}), ZipEntry("archive/data.pkl", PICKLE)]),
        zip_archive([*ENTRIES, ZipEntry("archive/data.pkl", EVIL, method=8)]),
        zip_archive([*ENTRIES, ZipEntry("archive/DATA.PKL", CALLS_SYSTEM + STOP)]),
        zip_archive([*ENTRIES, ZipEntry("archive/data/7", EVIL)]),
        zip_archive([*ENTRIES, ZipEntry("archive/version", EVIL + bytes(60))]),
        torch_zip(EVIL) + b"ten bytes!",
        zip_archive([*torch_entries(EVIL, {}), ZipEntry("archive/x", b"x", flags=0x0809)]),
        zip_archive([*torch_entries(EVIL, {}), ZipEntry("archive/x.pkl", b"x", header=1)]),
        zip_archive([*torch_entries(EVIL, {}), ZipEntry("archive/x.pkl", b"x", method=99)]),
        zip_archive([*torch_entries(EVIL, {}), ZipEntry("archive/x.pkl", b"x", header=1 << 31)]),
        zip_archive(
            [*torch_entries(EVIL, {}), ZipEntry("archive/x.pkl", method=8, packed=b"\xff", size=9)]
        ),
        zip_archive(
            [*torch_entries(EVIL, {}), ZipEntry("archive/x.pkl", method=8, size=0xFFFFFFF0)]
        ),
        zip_archive(with_entry(torch_entries(EVIL, {}), "data.pkl", flags=0x0809)),
        zip_archive(with_entry(torch_entries(EVIL, {}), "data.pkl", local_name="archive/safe")),
        zip_archive(with_entry(torch_entries(EVIL, {}), "data.pkl", packed=EVIL + b"hidden")),
        zip_archive(with_entry(torch_entries(EVIL, {}), "byteorder", method=99)),
        patched(torch_zip(EVIL), -END - LOCATOR + 8, b"\0" * 8),
        torch_zip(EVIL[:-1]),
        deflated_evil(EVIL + b"more", size=len(EVIL)),
        deflated_evil(EVIL + bytes(100_000), size=len(EVIL)),
        deflated_evil(EVIL, size=len(EVIL) + 5),
        deflated_evil(EVIL, packed=deflated(EVIL + bytes(9))[:-4] + b"\xff" * 4),
        deflated_evil(EVIL, packed=deflated(EVIL + bytes(9))[:-1]),
        deflated_evil(PICKLE + EVIL, size=len(PICKLE + EVIL) + 1),
        deflated_evil(PICKLE + EVIL + b"more", size=len(PICKLE + EVIL)),
    ],
    ids=[
        "plain",
        "second of two",
        "first of two",
        "second of two, deflated",
        "other letter case",
        "as a storage",
        "as metadata",
        "bytes behind the archive",
        "beside an entry that says encrypted",
        "beside an entry without header",
        "beside an unknown method",
        "beside an entry past the end",
        "beside an entry that cannot be inflated",
        "beside an entry too large to inflate",
        "says encrypted and is not",
        "another name in the local header",
        "two sizes",
        "beside a byteorder nobody can read",
        "zip64 record not where it should be",
        "no STOP",
        "inflates to more than it says",
        "inflates to far more than it says",
        "inflates to less than it says",
        "breaks while it is inflated",
        "breaks off",
        "behind a pickle that inflates to less than it says",
        "behind a pickle that inflates to more than it says",
    ],
)
def test_no_lie_in_the_archive_hides_a_call(data: bytes) -> None:
    assert calls_in(opened(data)) == ["posix.system"]


@pytest.mark.parametrize(
    "entry",
    [
        ZipEntry("archive/x", b"x", header=1),
        ZipEntry("archive/x", b"x", method=99),
        ZipEntry("archive/x", b"x", header=1 << 31),
        ZipEntry("archive/x.pkl", b"x", method=99),
        ZipEntry("archive/x", method=8, packed=b"\xff", size=9),
        ZipEntry("archive/x.pkl", method=8, packed=b"\xff", size=9),
        ZipEntry("archive/x.pkl", method=8, packed=deflated(b"longer"), size=3),
        ZipEntry("archive/x.pkl", method=8, packed=deflated(b"short"), size=9),
    ],
)
def test_a_record_that_cannot_be_read_is_a_gap(entry: ZipEntry) -> None:
    container = opened(zip_archive([*ENTRIES, entry]))

    broken = [trace.record for trace in container.traces if trace.error is not None]
    assert [*(gap.record for gap in container.gaps), *broken].count(entry.name) == 1


@pytest.mark.parametrize(
    "data",
    [
        PLAIN + b"behind the end",
        PLAIN + PLAIN,
        lying("version", before=b"hidden"),
        lying("version", hidden=True),
        lying("data.pkl", data=PICKLE + EVIL),
        lying("data.pkl", method=8, packed=deflated(PICKLE) + b"hidden"),
    ],
)
def test_bytes_that_nothing_refers_to_are_a_gap(data: bytes) -> None:
    assert opened(data).gaps


# What is not a checkpoint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zip_archive([replace(e, hidden=True) for e in ENTRIES]), "is an empty zip archive"),
        (zip_archive([], zip64=False), "is an empty zip archive"),
        (
            zip_archive(with_entry(ENTRIES, "data.pkl", flags=0x0809, packed=b"\xde" * 50)),
            "is encrypted; decrypt",
        ),
    ],
)
def test_an_archive_that_is_no_checkpoint_says_what_it_is(data: bytes, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        opened(data)


def test_an_archive_without_the_object_is_opened_but_is_no_checkpoint() -> None:
    container = opened(zip_archive([ZipEntry("word/document.xml", b"<x/>")]))

    assert container.kind is Kind.ARCHIVE
    assert [mishap.code for mishap in container.mishaps] == ["zip-no-checkpoint"]
    assert [(gap.record, gap.reason) for gap in container.gaps] == [
        ("word/document.xml", "is in none of the formats that are read")
    ]
    with pytest.raises(Unsupported, match=r"without word/data\.pkl"):
        find_state_dict(container)


def test_no_beginning_of_an_archive_passes_for_the_whole() -> None:
    for length in range(1, len(PLAIN)):
        with pytest.raises(CkptauditError):
            opened(PLAIN[:length])


@given(st.integers(0, len(PLAIN) - 1), st.binary(min_size=1, max_size=8))
def test_no_overwritten_bytes_make_the_reader_raise_anything_but_our_errors(
    at: int, patch: bytes
) -> None:
    with suppress(CkptauditError):
        storages_of(opened(patched(PLAIN, at, patch)))


# Storages


@pytest.mark.parametrize(
    "pid",
    [
        storage_id(1 << 20_000, 3),
        storage_id(None, 3),
        storage_id("0", 1 << 62),
        storage_id("0", -1),
        storage_id("0", True),  # noqa: FBT003 - a number of elements
        storage_id("0", 3, storage="EvilStorage"),
        storage_id("0", 3, module="posix"),
        storage_id("0", 3, location=7),
        storage_id("0", 3, view=("x", 2, 2)),
        storage_id("0", 3, view=(("x", 2, 2),)),
        storage_id("0", 3, view=(("x", -1, 2),)),
        value("storage") + b"Q",
        call("a", "b") + b"Q",
    ],
)
def test_a_persistent_id_that_is_no_storage_locates_nothing(pid: bytes) -> None:
    container = opened(torch_zip(pickled(value([Raw(pid)])), {"0": floats(1, 2, 3)}))

    assert container.storages == {}
    assert container.object_trace.error is None


def test_a_key_cannot_leave_the_archive() -> None:
    pickle = pickled(value([Raw(storage_id("../../etc/passwd", 3))]))

    assert codes(torch_zip(pickle)) == {"storage-missing"}
