"""Files inside and beside files: archives of any kind, and what Python's zipfile would see."""

from __future__ import annotations

import io
import struct
import zipfile
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from forge import (
    CALLS_SYSTEM,
    STOP,
    ZipEntry,
    bzipped,
    call,
    deflated,
    floats,
    global_,
    gzipped,
    legacy_stream,
    lz4_stub,
    npy_file,
    object_npy,
    pickled,
    python_zip,
    seven_zip_stub,
    state_dict,
    string_line,
    tar_archive,
    tar_members,
    torch_entries,
    torch_zip,
    value,
    xzipped,
    zip_archive,
    zlibbed,
)
from hypothesis import given
from hypothesis import strategies as st

from ckptaudit.containers import Container, Kind, open_container
from ckptaudit.containers.pythonzip import find_archive
from ckptaudit.errors import CkptauditError, MalformedInput, Unsupported
from ckptaudit.policy import Judgement, Severity, judge
from ckptaudit.source import BufferSource
from ckptaudit.tensors import find_state_dict, misfits
from ckptaudit.vm import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

EVIL = pickled(CALLS_SYSTEM)
# Text, as protocol 0 writes it: no PROTO to know it by.
PLAIN_EVIL = global_("posix", "system") + b"(" + string_line(b"'true'") + b"tR" + STOP
ENTRIES = torch_entries(state_dict({"w": 2}), {"0": floats(1, 2)})
CHECKPOINT = zip_archive(ENTRIES)
BARE = pickled(value({"a": 1}))
LEGACY = legacy_stream(BARE)


def opened(data: bytes, limits: Limits | None = None) -> Container:
    return open_container(BufferSource(data), limits)


def judged(data: bytes, limits: Limits | None = None) -> Judgement:
    return judge(opened(data, limits), misfits)


def rules(judgement: Judgement) -> set[str]:
    return {finding.rule for finding in judgement.findings}


def is_told(judgement: Judgement) -> bool:
    return any("posix.system('true')" in finding.message for finding in judgement.findings)


# What a payload may be packed in: each of these is opened wherever it stands.
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzipped,
    "bzip2": bzipped,
    "xz": xzipped,
    "zlib": zlibbed,
    "array": object_npy,
    "checkpoint": torch_zip,
    "archive": lambda pickle: python_zip({"folder/x": pickle}),
    "tar": lambda pickle: tar_archive(tar_members(pickle)),
    "gzip in an archive": lambda pickle: python_zip({"x": gzipped(pickle)}),
    "checkpoint in bzip2": lambda pickle: bzipped(torch_zip(pickle)),
}
# Where a file may stand in another.
PLACES: dict[str, Callable[[bytes], bytes]] = {
    "record": lambda data: zip_archive([*ENTRIES, ZipEntry("archive/x", data)]),
    "deflated record": lambda data: zip_archive([*ENTRIES, ZipEntry("archive/x", data, method=8)]),
    "storage nobody refers to": lambda data: zip_archive(
        [*ENTRIES, ZipEntry("archive/data/9", data)]
    ),
    "between entries": lambda data: zip_archive([*ENTRIES[:-1], replace(ENTRIES[-1], before=data)]),
    "comment": lambda data: zip_archive(ENTRIES, comment=data),
    "member of an archive": lambda data: python_zip({"x": data, "y": BARE}),
    "member of a tar": lambda data: tar_archive({**tar_members(BARE), "x": data}),
    "behind a pickle": lambda data: BARE + data,
    "behind a legacy stream": lambda data: LEGACY + data,
    "behind an archive": lambda data: CHECKPOINT + data,
    "behind an array": lambda data: npy_file("|u1", (1,), b"x") + data,
    "behind what is compressed": lambda data: zlibbed(BARE) + data,
}


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_payload_is_found_however_it_is_packed_and_wherever_it_stands(
    pack: Callable[[bytes], bytes], place: Callable[[bytes], bytes]
) -> None:
    assert is_told(judged(place(pack(EVIL))))


@pytest.mark.parametrize("data", [EVIL, PLAIN_EVIL, legacy_stream(EVIL)], ids=["2", "0", "legacy"])
def test_any_member_of_an_archive_may_be_a_pickle(data: bytes) -> None:
    assert is_told(judged(python_zip({"folder/readme": data})))


def test_a_finding_says_where_in_the_outermost_file_it_is() -> None:
    inner = torch_zip(EVIL)
    data = zip_archive([*ENTRIES, ZipEntry("archive/x", inner)])

    judgement = judged(data)

    (told,) = [f for f in judgement.findings if "posix.system('true')" in f.message]
    assert told.record == "archive/x!archive/data.pkl"
    assert told.offset is not None
    assert told.stream_offset is not None
    assert data.startswith(EVIL, told.offset - told.stream_offset)


# Archives that are no checkpoint


def test_an_archive_of_honest_checkpoints_is_for_review_and_read_completely() -> None:
    """Deflated: of a stored one the zip reader finds the end record as well as its own."""
    judgement = judged(zip_archive([ZipEntry("folder/a.pt", CHECKPOINT, method=8)]))

    assert (judgement.verdict, judgement.coverage.complete) == (Severity.REVIEW, True)
    assert rules(judgement) == {"CKA203"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"hello", "in none of the formats"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "in none of the formats"),
        (lz4_stub(EVIL), "lz4-compressed"),
        (seven_zip_stub(), "7z archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(9), "zstandard-compressed"),
        (b"Rar!\x1a\x07\x00" + bytes(9), "RAR archive"),
        (gzipped(BARE)[:-1], "truncated"),
        (CHECKPOINT[:-1], "without an end record"),
    ],
)
def test_a_member_that_cannot_be_read_is_a_gap(data: bytes, why: str) -> None:
    judgement = judged(python_zip({"x": data, "y": BARE}))

    assert judgement.verdict > Severity.CLEAN
    assert any(why in gap.reason and gap.record.startswith("x") for gap in judgement.coverage.gaps)


def test_a_member_whose_bytes_are_encrypted_is_a_gap_that_says_so() -> None:
    judgement = judged(zip_archive([ZipEntry("x", b"\xde" * 50, flags=0x0809)]))

    assert [gap.reason for gap in judgement.coverage.gaps] == [
        "is encrypted; decrypt the archive first"
    ]


def test_a_member_that_only_claims_to_be_encrypted_is_read() -> None:
    """A reader that does not look at the flag would run it."""
    assert is_told(judged(zip_archive([ZipEntry("x", EVIL, flags=0x0809)])))


def test_folders_and_empty_members_are_nothing() -> None:
    judgement = judged(python_zip({"folder/": b"", "folder/x": BARE, "empty": b""}))

    assert judgement.coverage.complete


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (python_zip({"x": BARE}), "is a zip archive without x/data.pkl"),
        (gzipped(CHECKPOINT), "is gzip-compressed"),
        (lz4_stub(EVIL), "is lz4-compressed"),
        (npy_file("|u1", (1,), b"x"), "is a NumPy array"),
        (bytes(64) + CHECKPOINT, "is neither zip, tar, pickle nor safetensors"),
    ],
)
def test_what_is_no_checkpoint_is_never_converted_and_says_why(data: bytes, words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        find_state_dict(opened(data))


# Records that are referred to are data


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_a_storage_that_is_referred_to_is_never_opened(pack: Callable[[bytes], bytes]) -> None:
    data = pack(EVIL)
    weights = data + bytes(-len(data) % 4)
    # Far from the end, where zip readers look for end records.
    stored = {"0": weights, "1": bytes(1 << 17)}
    pickle = state_dict({"a": len(weights) // 4, "b": 1 << 15})

    container = opened(torch_zip(pickle, stored))

    assert container.nested == ()
    assert judge(container, misfits).verdict is Severity.CLEAN


# What Python's zipfile sees

# In front of an archive, behind it, and how far its offsets are off.
pieces = st.lists(
    st.one_of(
        st.sampled_from(
            [
                CHECKPOINT,
                torch_zip(EVIL),
                python_zip({"x": BARE}),
                zip_archive(ENTRIES, comment=b"a comment"),
                zip_archive(ENTRIES, start_at=len(BARE)),
                zip_archive(ENTRIES, comment=torch_zip(EVIL)),
                zip_archive(ENTRIES, extension=b"hidden"),
                zip_archive(ENTRIES, count=1),
                BARE,
                EVIL,
                bytes(64),
                b"PK\5\6",
            ]
        ),
        st.binary(max_size=30),
    ),
    min_size=1,
    max_size=3,
).map(b"".join)


@given(pieces)
def test_zipfile_finds_the_archive_that_is_found_here(data: bytes) -> None:
    """The oracle: where zipfile opens a file, the directory is the same."""
    found = find_archive(BufferSource(data))
    start, names = 0, []
    with (
        suppress(zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError),
        zipfile.ZipFile(io.BytesIO(data)) as archive,
    ):
        start, names = archive.start_dir, archive.namelist()

    if names:
        assert found is not None
        assert found.start == start


@given(pieces)
def test_what_zipfile_would_read_is_read(data: bytes) -> None:
    """Every pickle that zipfile could get at is among those that were run, whatever is around."""
    contents: list[bytes] = []
    with (
        suppress(zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, OSError),
        zipfile.ZipFile(io.BytesIO(data)) as archive,
    ):
        contents += (archive.read(name) for name in archive.namelist())

    if EVIL in contents:
        assert is_told(judged(data))


@pytest.mark.parametrize(
    "data",
    [CHECKPOINT, python_zip({e.name: e.data for e in ENTRIES}), CHECKPOINT + b"behind the end"],
    ids=["torch", "python", "bytes behind"],
)
def test_where_both_see_the_same_there_is_no_other_reading(data: bytes) -> None:
    found = find_archive(BufferSource(data))

    assert found is not None
    assert found.is_torchs
    assert opened(data).nested == ()


@pytest.mark.parametrize(
    "data",
    [
        BARE + torch_zip(EVIL),
        bytes(64) + torch_zip(EVIL),
        b"\xff" * 9 + torch_zip(EVIL),
        LEGACY + torch_zip(EVIL),
        BARE + zip_archive(torch_entries(EVIL, {}), start_at=len(BARE)),
        gzipped(BARE) + torch_zip(EVIL),
        CHECKPOINT + torch_zip(EVIL),
        zip_archive(ENTRIES, comment=torch_zip(EVIL)),
    ],
)
def test_another_archive_in_the_same_bytes_is_a_finding_and_judged(data: bytes) -> None:
    judgement = judged(data)

    assert is_told(judgement)
    assert "CKA201" in rules(judgement)


def test_an_archive_whose_beginning_is_missing_is_read_as_zipfile_reads_it() -> None:
    """To each offset zipfile adds a negative number, and reads what then lies in the file."""
    entries = [ZipEntry("first", BARE), *torch_entries(EVIL, {})]
    at = zip_archive(entries).index(EVIL)

    for missing in (1, 2, 40):
        judgement = judged(zip_archive(entries)[missing:])

        assert is_told(judgement)
        (call,) = (found for found in judgement.findings if found.rule == "CKA101")
        assert call.offset == at - missing + len(b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85")
        assert all(found.offset is None or found.offset >= 0 for found in judgement.findings)
        assert all(gap.offset is None or gap.offset >= 0 for gap in judgement.coverage.gaps)


def test_an_archive_that_begins_far_before_its_file_is_read_and_costs_no_more() -> None:
    """To each offset zipfile would add a negative number."""
    far = (1 << 32) - 10_000
    judgement = judged(BARE + zip_archive(torch_entries(EVIL, {}), start_at=far))

    assert is_told(judgement)
    assert "CKA201" in rules(judgement)


@pytest.mark.parametrize("begins", [b"", BARE], ids=["alone", "behind-a-pickle"])
@pytest.mark.parametrize("stated", [(1 << 64) - 1, (1 << 63) - 1], ids=["64-bits", "63-bits"])
def test_an_archive_that_begins_further_before_its_file_than_can_be_counted_is_a_gap(
    stated: int, begins: bytes
) -> None:
    """Its directory is said to be where no file reaches, and zipfile corrects that."""
    data = bytearray(zip_archive(torch_entries(EVIL, {})))
    # Signature, size of the rest, versions, disks, entries here and in all, directory size.
    struct.pack_into("<Q", data, data.rindex(b"PK\6\6") + struct.calcsize("<4sQ2H2I3Q"), stated)

    judgement = judged(begins + bytes(data))

    assert "CKA201" in rules(judgement)
    assert any("bytes before the file" in gap.reason for gap in judgement.coverage.gaps)
    assert judgement.verdict >= Severity.SUSPICIOUS


@pytest.mark.parametrize("off", [-4, 5])
def test_an_array_that_inflates_to_another_size_than_it_says_is_looked_at(off: int) -> None:
    """Zipfile hands over as much of it as the archive says, or as there is."""
    array = object_npy(EVIL)
    entry = ZipEntry(
        "x.npy", array, method=8, packed=deflated(array + b"more"), size=len(array) + 4 + off
    )

    judgement = judged(zip_archive([entry]))

    assert is_told(judgement)
    assert not judgement.coverage.complete


@pytest.mark.parametrize("claimed", [6, 1 << 33])
def test_entries_that_only_torch_counts_hide_none_from_zipfile(claimed: int) -> None:
    """Zipfile reads as many as there are; torch refuses an archive that claims more."""
    archive = torch_zip(EVIL)
    end64 = archive.rindex(b"PK\6\6")
    lying = archive[: end64 + 32] + claimed.to_bytes(8, "little") + archive[end64 + 40 :]

    judgement = judged(lying)

    assert is_told(judgement)
    assert "CKA201" in rules(judgement)


# Limits


def matryoshka(levels: int) -> bytes:
    data = EVIL
    for _ in range(levels):
        data = python_zip({"x": data})
    return data


def test_archives_nest_as_deep_as_the_limit_and_no_deeper() -> None:
    assert is_told(judged(matryoshka(4)))
    cut = judged(matryoshka(6))
    assert not is_told(cut)
    assert any("inside more than 4 others" in gap.reason for gap in cut.coverage.gaps)


def test_an_archive_of_more_files_than_the_limit_is_a_gap() -> None:
    files = {str(n): pickled(value(n)) for n in range(20)}

    judgement = judged(python_zip(files), Limits(files=10))

    assert any("more than 10 places" in gap.reason for gap in judgement.coverage.gaps)


@pytest.mark.parametrize("place", list(PLACES.values()), ids=PLACES)
def test_what_is_inside_pays_from_the_budget_of_the_whole(place: Callable[[bytes], bytes]) -> None:
    """A thousand calls are beyond the limit, in whatever they are packed."""
    calls = pickled(*[call("collections", "OrderedDict") + b"0"] * 3000, value(None), CALLS_SYSTEM)

    judgement = judged(place(gzipped(calls)), Limits(events=2000))

    assert judgement.verdict > Severity.CLEAN
    assert any("more names and calls" in gap.reason for gap in judgement.coverage.gaps)


# Laws


@given(
    st.sampled_from(list(PACKED.values())),
    st.sampled_from(list(PLACES.values())),
    st.binary(max_size=300),
)
def test_no_bytes_anywhere_raise_anything_but_our_errors(
    pack: Callable[[bytes], bytes], place: Callable[[bytes], bytes], data: bytes
) -> None:
    with suppress(CkptauditError):
        judged(place(pack(data)))
    with suppress(CkptauditError):
        judged(place(data))


@given(
    st.sampled_from(list(PACKED.values())),
    st.sampled_from(list(PLACES.values())),
    st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 9), st.binary(max_size=9))),
)
def test_no_damage_makes_a_packed_payload_clean(
    pack: Callable[[bytes], bytes],
    place: Callable[[bytes], bytes],
    changes: list[tuple[int, int, bytes]],
) -> None:
    data = place(pack(EVIL))
    for at, length, patch in changes:
        start = at % (len(data) + 1)
        data = data[:start] + patch + data[start + length :]

    with suppress(CkptauditError):
        assert judged(data).verdict > Severity.CLEAN


@given(
    st.binary(max_size=60),
    st.sampled_from(list(PLACES.values())),
    st.integers(0, 3),
)
def test_limits_hold_whatever_is_inside(
    data: bytes, place: Callable[[bytes], bytes], levels: int
) -> None:
    limits = Limits(files=5, nesting=2, inflated=20_000, opcodes=3000)
    for _ in range(levels):
        data = gzipped(data * 50)

    with suppress(CkptauditError):
        container = opened(place(data), limits)
        budget = container.inside.budget if container.inside else None
        assert budget is not None
        # One piece may have come out before it is paid for.
        assert budget.inflated <= limits.inflated + (1 << 18)
        assert depth_of(container) <= limits.nesting


def depth_of(container: Container) -> int:
    return max((1 + depth_of(nested.container) for nested in container.nested), default=0)


def test_an_empty_file_is_empty_and_an_empty_archive_says_so() -> None:
    with pytest.raises(MalformedInput, match="is empty"):
        opened(b"")
    with pytest.raises(Unsupported, match="is an empty zip archive"):
        opened(zip_archive([], zip64=False))
    assert opened(gzipped(b"")).gaps
    assert opened(CHECKPOINT).kind is Kind.ZIP
