"""The framings before zip: the legacy stream and tar."""

from __future__ import annotations

import io
import struct
import tarfile

import pytest
from forge import (
    BINPERSID,
    CALLS_SYSTEM,
    MAGIC,
    NONE,
    POP,
    STOP,
    Raw,
    TarStorage,
    TarTensor,
    floats,
    inst,
    legacy_stream,
    long1,
    pax_header,
    pickled,
    state_dict,
    storage_id,
    tar_archive,
    tar_member,
    tar_members,
    value,
)

from ckptaudit.containers import Container, Kind, Role, open_container
from ckptaudit.errors import CkptauditError, MalformedInput
from ckptaudit.source import BufferSource
from ckptaudit.vm import Call

EVIL = pickled(CALLS_SYSTEM)

OBJECT = state_dict({"a": 3, "b": 2}, legacy=True)
STORED = [("0", 3, floats(1, 2, 3)), ("1", 2, floats(4, 5))]
LEGACY = legacy_stream(OBJECT, STORED)

TAR_MEMBERS = tar_members(
    pickled(value({"w": Raw(value(7) + BINPERSID)})),
    [TarStorage(5, floats(1, 2, 3, 4, 5, 6))],
    [TarTensor(7, 5, (2, 3), (3, 1))],
    [(9, 5, 2, 3)],
)
TAR = tar_archive(TAR_MEMBERS)


def opened(data: bytes) -> Container:
    return open_container(BufferSource(data))


def is_whole(data: bytes) -> bool:
    """Whether *data* opens as something that was read to its end."""
    try:
        container = opened(data)
    except CkptauditError:
        return False
    return not container.gaps and all(trace.error is None for trace in container.traces)


def calls_in(container: Container) -> list[str]:
    events = [event for trace in container.traces for event in trace.events]
    return [str(event.func) for event in events if isinstance(event, Call)]


def storages_of(container: Container) -> dict[str, bytes]:
    return {
        key: container.bytes_of(storage).read_at(storage.offset, storage.nbytes)
        for key, storage in container.storages.items()
    }


# Legacy stream


def test_a_legacy_stream_holds_its_storages_behind_its_pickles() -> None:
    container = opened(LEGACY)

    assert container.kind is Kind.LEGACY
    assert (container.mishaps, container.gaps) == ((), ())
    assert storages_of(container) == {key: data for key, _, data in STORED}
    assert container.object_trace.record == "object"


def test_keys_of_python_2_may_be_numbers() -> None:
    obj = pickled(value([Raw(storage_id(140, 1, view=(None,)))]))
    stream = legacy_stream(obj, [("140", 1, floats(7))], keys=pickled(value([140])))

    assert storages_of(opened(stream)) == {"140": floats(7)}


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("legacy-magic", legacy_stream(OBJECT, STORED, magic=pickled(NONE, POP, long1(MAGIC)))),
        ("legacy-protocol", legacy_stream(OBJECT, STORED, version=1000)),
        ("legacy-system", legacy_stream(OBJECT, STORED, system=pickled(NONE))),
        (
            "legacy-byteorder",
            legacy_stream(OBJECT, STORED, system=pickled(value({"little_endian": False}))),
        ),
        ("storage-missing", legacy_stream(OBJECT, STORED[:1])),
        ("bytes-after-storages", legacy_stream(OBJECT, STORED, tail=b"more")),
    ],
)
def test_each_contradiction_in_a_legacy_stream_has_its_name(code: str, data: bytes) -> None:
    assert code in {mishap.code for mishap in opened(data).mishaps}


@pytest.mark.parametrize(
    "data",
    [
        legacy_stream(OBJECT, STORED, keys=pickled(value(["0", "1", "2"]))),
        legacy_stream(OBJECT, STORED, keys=pickled(value(["0", "0"]))),
        legacy_stream(OBJECT, STORED, keys=pickled(value([1 << 20_000]))),
        legacy_stream(OBJECT, STORED, keys=pickled(value([("0",)]))),
        legacy_stream(OBJECT, STORED, keys=pickled(NONE)),
        legacy_stream(OBJECT, [("0", 4, floats(1, 2, 3, 4))]),
        legacy_stream(OBJECT, [("0", -1, b"")]),
        legacy_stream(OBJECT, STORED, tail=b"more"),
        legacy_stream(
            pickled(value([Raw(storage_id("0", 1 << 40, view=(None,)))])), [("0", 1 << 40, b"")]
        ),
        legacy_stream(
            pickled(
                value([Raw(storage_id("0", 1)), Raw(storage_id("0", 1, storage="IntStorage"))])
            ),
            [("0", 1, floats(1))],
        ),
    ],
    ids=[
        "a key nobody refers to",
        "a key twice",
        "an endless key",
        "a tuple as key",
        "no list of keys",
        "more elements",
        "fewer than none",
        "bytes behind",
        "more than the file has",
        "two types",
    ],
)
def test_a_legacy_stream_that_cannot_be_followed_is_a_gap(data: bytes) -> None:
    container = opened(data)

    assert container.gaps
    assert container.object_trace.error is None


def test_no_beginning_of_a_legacy_stream_passes_for_the_whole() -> None:
    assert is_whole(LEGACY)
    assert not any(is_whole(LEGACY[:length]) for length in range(len(LEGACY)))


@pytest.mark.parametrize("at", range(5))
def test_a_call_in_any_pickle_of_a_legacy_stream_is_seen(at: int) -> None:
    pickles = [pickled(long1(MAGIC)), pickled(value(1001)), pickled(value({})), OBJECT, OBJECT]
    pickles[at] = pickles[at].replace(STOP, CALLS_SYSTEM + POP + STOP, 1) if at < 2 else EVIL

    assert "posix.system" in calls_in(opened(b"".join(pickles)))


# Tar


def test_a_tar_checkpoint_says_where_its_storages_and_tensors_are() -> None:
    container = opened(TAR)
    tensor = container.tensors["7"]

    assert container.kind is Kind.TAR
    assert (container.mishaps, container.gaps) == ((), ())
    assert storages_of(container) == {"5": floats(1, 2, 3, 4, 5, 6), "9": floats(3, 4, 5)}
    assert (tensor.storage, tensor.shape, tensor.stride, tensor.offset) == ("5", (2, 3), (3, 1), 0)
    assert container.object_trace.record == "pickle"


def test_every_byte_of_the_members_is_a_record_or_numbers() -> None:
    container = opened(TAR)
    numbers = {"storages": 8, "tensors": 8 + 5 * 8, "pickle": 0, "sys_info": 0}

    covered = sum(record.nbytes for record in container.records)

    assert covered + sum(numbers.values()) == sum(map(len, TAR_MEMBERS.values()))
    assert {record.role for record in container.records} == {Role.PICKLE, Role.STORAGE}


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_an_archive_that_tarfile_writes_reads_the_same(tar_format: int) -> None:
    """Old torch wrote times with a fraction, for which tarfile makes pax headers."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tar_format) as archive:
        for name, data in TAR_MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if tar_format == tarfile.PAX_FORMAT:
                info.mtime = 1486000000.25  # as os.stat has it
            archive.addfile(info, io.BytesIO(data))

    container = opened(buffer.getvalue())

    assert (container.mishaps, container.gaps) == ((), ())
    assert storages_of(container) == storages_of(opened(TAR))


def test_a_pax_header_may_name_and_measure_its_member() -> None:
    members = [tar_member(name, data) for name, data in TAR_MEMBERS.items() if name != "pickle"]
    data = TAR_MEMBERS["pickle"]
    odd = pax_header(path="pickle", size=str(len(data))) + tar_member("x", data, size=b"0")

    container = opened(b"".join([*members, odd, bytes(1024)]))

    assert (container.mishaps, container.gaps) == ((), ())


LINK = tar_member("pickle", b"", typeflag=b"2")
GLOBAL_PAX = tar_member("pax", b"9 a=bcd\n\n", typeflag=b"g")
NEGATIVE = tar_member("more", b"", size=b"\xff" * 12)
LONG_NAME = tar_member("././@LongLink", b"pickle\0", typeflag=b"L")
MEMBERS = TAR[:-1024]
# The rank of the one tensor, and four bytes of padding.
RANK = struct.pack("<i4x", 2)


def in_header(at: int, field: bytes) -> bytes:
    """The archive with *field* in its first header, whose checksum is right all the same."""
    head = TAR[:at] + field + TAR[at + len(field) : 512]
    total = sum(head[:148]) + sum(head[156:]) + 8 * ord(" ")
    return head[:148] + b"%06o\0 " % total + head[156:] + TAR[512:]


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("tar-member", tar_archive({**TAR_MEMBERS, "readme": b"x"})),
        ("tar-duplicate", tar_archive([("pickle", EVIL), *TAR_MEMBERS.items()])),
        ("tar-gap", MEMBERS + LINK + bytes(1024)),
        ("tar-gap", MEMBERS + GLOBAL_PAX + bytes(1024)),
        ("tar-gap", MEMBERS + LONG_NAME + bytes(1024)),
        ("tar-gap", MEMBERS + NEGATIVE + bytes(1024)),
        ("tar-gap", MEMBERS + tar_member("more", b"", size=b"7" * 11 + b"\0") + bytes(1024)),
        ("tar-gap", MEMBERS + tar_member("more", b"", size=b"\x80" + b"\xff" * 11) + bytes(1024)),
        ("tar-gap", MEMBERS + pax_header(size="9" * 5000) + LINK + bytes(1024)),
        ("tar-gap", MEMBERS + pax_header(size="-512") + tar_member("x", b"") + bytes(1024)),
        ("tar-gap", MEMBERS + pax_header(mtime="1") * 5000 + bytes(1024)),
        ("tar-gap", MEMBERS + pax_header(**{"GNU.sparse.major": "1"}) + bytes(1024)),
        ("tar-gap", MEMBERS + tar_member("x", b"1" * 4000, typeflag=b"x") + bytes(1024)),
        ("tar-gap", MEMBERS + b"x" * 512 + bytes(1024)),
        ("tar-gap", MEMBERS),
        ("tar-gap", TAR + b"hidden"),
        ("tar-gap", TAR + EVIL),
        ("tar-gap", MEMBERS[:-1] + b"x" + bytes(1024)),
        ("tar-gap", pax_header(comment="hidden") + TAR),
        ("tar-gap", pax_header(mtime="1" * 100) + TAR),
        ("tar-gap", pax_header(path="sys_info\nhidden") + TAR),
        ("tar-gap", TAR.replace(RANK, RANK[:4] + b"evil")),
        *(
            ("tar-gap", in_header(at, field))
            for at, field in {
                99: b"!",
                107: b"!",
                115: b"!",
                116: b"\x80" + b"\1" * 7,
                147: b"!",
                200: b"hidden",
                257: b"evil!",
                280: b"a\0b",
                310: b"a\nb",
                330: b"7",
                400: b"\0!",
                511: b"!",
            }.items()
        ),
        ("tar-gap", tar_member("sys_info", TAR_MEMBERS["sys_info"], binary=True) + TAR),
        ("tar-missing", tar_archive({n: d for n, d in TAR_MEMBERS.items() if n != "tensors"})),
        ("bytes-after-pickle", tar_archive({**TAR_MEMBERS, "pickle": EVIL + EVIL})),
        ("bytes-after-pickle", tar_archive({**TAR_MEMBERS, "sys_info": EVIL + b"x"})),
    ],
)
def test_each_contradiction_in_a_tar_has_its_name_and_is_a_gap(code: str, data: bytes) -> None:
    container = opened(data)

    assert code in {mishap.code for mishap in container.mishaps}
    assert container.gaps


@pytest.mark.parametrize(
    "changed",
    [
        {"sys_info": b"x"},
        {"storages": b""},
        {"storages": pickled(value(-1))},
        {"storages": pickled(value(1 << 60))},
        {"storages": pickled(value(1)) + pickled(value(("a", "cpu", "no type")))},
        {"storages": pickled(value(1)) + pickled(NONE)},
        {"storages": pickled(value(0)) + pickled(NONE)},
        tar_members(EVIL, [TarStorage(1 << 20_000, b"")]),
        tar_members(EVIL, [TarStorage(5, b"", numel=1 << 60)]),
        tar_members(EVIL, [TarStorage(5, b"", numel=-1)]),
        tar_members(EVIL, [TarStorage(5, b""), TarStorage(5, b"")]),
        tar_members(EVIL, [TarStorage(5, b"", storage="Evil")]),
        tar_members(EVIL, [TarStorage(5, floats(1))], views=[(6, 5, 0, 2)]),
        tar_members(EVIL, [TarStorage(5, floats(1))], views=[(6, 4, 0, 1)]),
        tar_members(EVIL, [TarStorage(5, floats(1))], views=[(1 << 20_000, 5, 0, 1)]),
        tar_members(EVIL, [TarStorage(5, floats(1))], views=[(6, 5, -1, 1)]),
        tar_members(EVIL, [TarStorage(5, floats(1)), TarStorage(6, EVIL)], views=[(6, 5, 0, 1)]),
        tar_members(EVIL, [TarStorage(5, floats(1))], views=[(6, 5, 0, 1), (6, 5, 0, 1)]),
        tar_members(EVIL, [], [TarTensor(7, 5, (1,), (1,))]),
        {"tensors": pickled(value(1)) + pickled(value((7, 5, None))) + struct.pack("<q", 1 << 31)},
        {"tensors": pickled(value(1)) + pickled(value((7, 5, None))) + struct.pack("<q", 2)},
    ],
)
def test_a_tar_that_cannot_be_followed_is_a_gap_and_its_calls_are_seen(
    changed: dict[str, bytes],
) -> None:
    data = tar_archive({**TAR_MEMBERS, **changed, "pickle": EVIL})

    container = opened(data)

    assert not is_whole(data)
    assert calls_in(container) == ["posix.system"]


@pytest.mark.parametrize("size", [b"\xff" * 12, b"-1000\0", b"x"])
def test_a_member_cannot_lead_back_to_itself(size: bytes) -> None:
    """A negative size, taken at its word, makes an endless archive."""
    container = opened(MEMBERS + tar_member("more", b"", size=size) + bytes(1024))

    (fault,) = container.mishaps
    assert fault.message == "has a member whose size is no number"


@pytest.mark.parametrize("missing", sorted(TAR_MEMBERS))
def test_a_tar_without_one_of_the_members_is_a_gap_and_the_others_are_read(missing: str) -> None:
    others = {name: EVIL for name in TAR_MEMBERS if name != missing}

    container = opened(tar_archive(others))

    assert {mishap.message for mishap in container.mishaps if mishap.code == "tar-missing"} == {
        f"has no member {missing}, without which torch refuses it"
    }
    assert container.gaps
    assert "posix.system" in calls_in(container)


def test_a_tar_without_the_object_has_none_to_convert() -> None:
    container = opened(tar_archive({n: d for n, d in TAR_MEMBERS.items() if n != "pickle"}))

    with pytest.raises(MalformedInput, match="holds no pickle of an object"):
        _ = container.object_trace


def test_a_tar_with_none_of_the_members_is_refused() -> None:
    with pytest.raises(
        MalformedInput, match="without sys_info and storages and tensors and pickle"
    ):
        opened(tar_archive({"readme": b"hello"}))


def test_a_tar_with_none_of_the_members_is_looked_into_all_the_same() -> None:
    assert calls_in(opened(tar_archive({"readme": EVIL}))) == ["posix.system"]


def test_no_beginning_of_a_tar_passes_for_the_whole() -> None:
    """The second of the two empty blocks that end it says nothing new."""
    assert is_whole(TAR)
    assert not any(is_whole(TAR[:length]) for length in range(0, len(TAR) - 512, 7))


def test_a_tar_whose_first_name_is_a_pickle_shows_what_the_pickle_asks_for() -> None:
    name = (inst("posix", "system", "true") + STOP).decode()

    container = opened(tar_member(name, b"") + TAR)

    assert container.kind is Kind.TAR
    assert set(calls_in(container)) == {"posix.system"}
    assert "extra-pickle" in {mishap.code for mishap in container.mishaps}
    assert container.object_trace.record == "pickle"
