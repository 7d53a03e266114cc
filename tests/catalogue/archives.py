"""Heading C, zip: readers that find different entries in one archive, or the wrong bytes in one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from forge import (
    CALLS_SYSTEM,
    STOP,
    Raw,
    ZipEntry,
    deflated,
    extra_field,
    floats,
    pickled,
    python_zip,
    storage_id,
    tensor,
    torch_entries,
    torch_zip,
    unicode_path,
    value,
    with_entry,
    zip_archive,
)

from catalogue.case import (
    AMBIGUOUS,
    BENIGN,
    COSTLY,
    ENTRIES,
    EVIL,
    HIDDEN_BYTES,
    NOT_ALL_READ,
    PAYLOAD,
    PLAIN_EVIL,
    STORED,
    STRANGE_RECORD,
    UNCOVERED,
    WRONG_STORAGE,
    Case,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from catalogue.case import Hit

EVIL_ENTRIES = torch_entries(EVIL, {})
# As long as the evil one, so that both archives have the same layout.
HARMLESS_ENTRIES = torch_entries(pickled(value("x" * (len(EVIL) - 8))), {})


def lying(entries: Sequence[ZipEntry], name: str, **lies: object) -> bytes:
    return zip_archive(with_entry(entries, name, **lies))


def lie(
    entry: int, technique: str, hit: Hit, *advisories: str, name: str = "data.pkl", **lies: object
) -> list[Case]:
    """Twice the same lie: of a harmless archive it must be told, in a hostile one hide nothing."""
    return [
        Case(
            (entry,),
            f"{technique}-in-a-harmless-archive",
            hit,
            lying(ENTRIES, name, **lies),
            advisories,
        ),
        Case(
            (entry,),
            f"{technique}-and-a-payload",
            PAYLOAD,
            lying(EVIL_ENTRIES, name, **lies),
            advisories,
        ),
    ]


# 74, 75: what a record or a file is called says nothing

_EXTENSION = ("CVE-2025-1889", "GHSA-769v-p64c-89pr")
_FILENAME = ("CVE-2025-10155", "GHSA-jgw4-cr84-mqxg")

NAMES = [
    Case(
        (74,),
        "pickle-under-a-name-of-its-own",
        PAYLOAD,
        zip_archive([*ENTRIES, ZipEntry("archive/config.p", EVIL)]),
        _EXTENSION,
    ),
    Case(
        (74,),
        "pickle-without-proto-under-a-name-of-its-own",
        PAYLOAD,
        zip_archive([*ENTRIES, ZipEntry("archive/config.p", PLAIN_EVIL)]),
        _EXTENSION,
    ),
    Case(
        (74,),
        "pickle-without-proto-as-the-version",
        PAYLOAD,
        lying(ENTRIES, "version", data=PLAIN_EVIL),
        _EXTENSION,
    ),
    Case(
        (74, 86),
        "pickle-as-a-storage-nobody-refers-to",
        PAYLOAD,
        zip_archive([*ENTRIES, ZipEntry("archive/data/7", EVIL)]),
        _EXTENSION,
    ),
    Case(
        (74, 86),
        "pickle-without-proto-as-a-storage-nobody-refers-to",
        PAYLOAD,
        zip_archive([*ENTRIES, ZipEntry("archive/data/7", PLAIN_EVIL)]),
        _EXTENSION,
    ),
    Case(
        (86,),
        "pickle-in-a-part-of-a-storage-that-no-tensor-covers",
        UNCOVERED,
        torch_zip(
            pickled(tensor(storage_id("0", 2 + len(EVIL) // 4), (2,))), {"0": floats(1, 2) + EVIL}
        ),
    ),
    Case((75,), "bare-pickle-without-proto", PAYLOAD, PLAIN_EVIL, _FILENAME),
    *(
        Case(
            (75,),
            f"bare-pickle-named-{extension}",
            PAYLOAD,
            EVIL,
            _FILENAME,
            filename=f"model.{extension}",
        )
        for extension in ("bin", "pt", "pth", "ckpt", "pkl", "safetensors", "h5", "txt")
    ),
    *(
        Case(
            (75,),
            f"zip-named-{extension}",
            PAYLOAD,
            torch_zip(EVIL),
            _FILENAME,
            filename=f"model.{extension}",
        )
        for extension in ("pkl", "safetensors", "npy")
    ),
]


# 76 to 78: fields that readers compare, ignore or trust

_FLAGS = ("CVE-2025-1945", "GHSA-w8jq-xcqf-f792")

FIELDS = [
    *lie(
        76, "another-name-in-the-local-header", AMBIGUOUS, "CVE-2025-1944", "GHSA-7q5r-7gvp-wc82",
        local_name="archive/safe.txt",
    ),
    *lie(77, "flag-1-encrypted", AMBIGUOUS, *_FLAGS, flags=0x0809),
    *lie(77, "flag-20-patch-data", AMBIGUOUS, *_FLAGS, flags=0x0828),
    *lie(77, "flag-40-strong-encryption", AMBIGUOUS, *_FLAGS, flags=0x0848),
    *lie(77, "flag-1-in-the-local-header-only", AMBIGUOUS, *_FLAGS, local_flags=0x0809),
    *lie(
        78, "a-wrong-checksum", AMBIGUOUS, "CVE-2025-10156", "GHSA-mjqp-26hc-grxg", crc=0xDEADBEEF
    ),
    *lie(78, "another-method-in-the-local-header", AMBIGUOUS, local_method=99),
    *lie(78, "other-sizes-in-the-local-header", AMBIGUOUS, local_sizes=(1, 1)),
    Case(
        (78,),
        "two-sizes-of-what-is-stored",
        AMBIGUOUS,
        lying(ENTRIES, "data.pkl", size=len(BENIGN) - 1),
    ),
    Case(
        (78, 90),
        "a-size-past-the-end-and-a-payload",
        PAYLOAD,
        lying(EVIL_ENTRIES, "data.pkl", size=1 << 20),
    ),
]  # fmt: skip


# 79, 80: two entries, one name


def twice(*pickles: bytes, name: str = "data.pkl") -> bytes:
    """An archive with a data.pkl and as many more as there are *pickles* besides."""
    first, *more = pickles
    entries = torch_entries(first, {})
    return zip_archive([*entries, *(ZipEntry(f"archive/{name}", pickle) for pickle in more)])


TWICE = [
    Case((79,), "two-entries-of-one-name", AMBIGUOUS, twice(BENIGN, BENIGN)),
    Case((79,), "the-first-of-two-is-evil", PAYLOAD, twice(EVIL, BENIGN)),
    Case((79,), "the-second-of-two-is-evil", PAYLOAD, twice(BENIGN, EVIL)),
    *(
        Case(
            (79,),
            f"number-{at + 1}-of-three-is-evil",
            PAYLOAD,
            twice(*(EVIL if at == here else BENIGN for here in range(3))),
        )
        for at in range(3)
    ),
    Case((80,), "other-letter-case", AMBIGUOUS, twice(BENIGN, BENIGN, name="DATA.PKL")),
    Case(
        (80,),
        "other-letter-case-only",
        PAYLOAD,
        zip_archive(
            [
                replace(entry, name=entry.name.replace("data.pkl", "DATA.PKL"))
                for entry in EVIL_ENTRIES
            ]
        ),
    ),
    Case(
        (80,),
        "pickle-without-proto-in-other-letter-case",
        PAYLOAD,
        twice(BENIGN, CALLS_SYSTEM + STOP, name="DATA.PKL"),
    ),
]


# 81, 82: two archives in one file

_EVIL, _HARMLESS = zip_archive(EVIL_ENTRIES), zip_archive(HARMLESS_ENTRIES)
_BARE = pickled(value({"a": 1}))

ARCHIVES = [
    Case((81,), "two-harmless-archives", AMBIGUOUS, _HARMLESS + _HARMLESS),
    Case((81,), "an-evil-archive-before-a-harmless-one", PAYLOAD, _EVIL + _HARMLESS),
    Case((81,), "an-evil-archive-behind-a-harmless-one", PAYLOAD, _HARMLESS + _EVIL),
    Case(
        (81,),
        "an-evil-archive-behind-that-knows-where-it-stands",
        PAYLOAD,
        _HARMLESS + zip_archive(EVIL_ENTRIES, start_at=len(_HARMLESS)),
    ),
    Case(
        (81,),
        "an-evil-archive-before-one-that-knows-where-it-stands",
        PAYLOAD,
        _EVIL + zip_archive(HARMLESS_ENTRIES, start_at=len(_EVIL)),
    ),
    Case(
        (81,),
        "an-evil-archive-in-the-comment",
        PAYLOAD,
        zip_archive(HARMLESS_ENTRIES, comment=_EVIL),
    ),
    Case((81,), "a-comment", HIDDEN_BYTES, zip_archive(ENTRIES, comment=b"hello")),
    Case((81,), "bytes-between-entries", HIDDEN_BYTES, lying(ENTRIES, "version", before=b"hidden")),
    Case(
        (81,),
        "a-pickle-between-entries",
        PAYLOAD,
        lying(ENTRIES, "version", before=EVIL),
    ),
    Case(
        (81,),
        "an-entry-left-out-of-the-directory",
        HIDDEN_BYTES,
        lying(ENTRIES, "version", hidden=True),
    ),
    Case(
        (81,),
        "an-evil-entry-left-out-of-the-directory",
        PAYLOAD,
        zip_archive([*ENTRIES, ZipEntry("archive/x.pkl", EVIL, hidden=True)]),
    ),
    Case(
        (81,),
        "bytes-in-the-padding-before-the-data",
        HIDDEN_BYTES,
        lying(ENTRIES, "data.pkl", extra=extra_field(b"FB", EVIL)),
    ),
    Case(
        (81,),
        "bytes-in-an-extra-field-of-an-unknown-kind",
        HIDDEN_BYTES,
        lying(ENTRIES, "data.pkl", extra=extra_field(b"??", EVIL)),
    ),
    Case(
        (81,),
        "bytes-in-an-extra-field-of-the-directory",
        HIDDEN_BYTES,
        lying(ENTRIES, "data.pkl", central_extra=extra_field(b"??", EVIL)),
    ),
    Case((81,), "bytes-behind-the-archive", HIDDEN_BYTES, zip_archive(ENTRIES) + b"ten bytes!"),
    Case((82,), "an-evil-pickle-before-an-archive", PAYLOAD, EVIL + _HARMLESS),
    Case((82,), "an-evil-archive-behind-a-pickle", PAYLOAD, _BARE + _EVIL),
    Case(
        (82,),
        "an-evil-archive-behind-a-pickle-that-knows-where-it-stands",
        PAYLOAD,
        _BARE + zip_archive(EVIL_ENTRIES, start_at=len(_BARE)),
    ),
    Case((82,), "an-evil-archive-behind-zeros", PAYLOAD, bytes(64) + _EVIL),
]


# Readers that go by other fields than torch does

# Bytes of the locator and the 32-bit end record.
_END_BYTES = 20 + 22


def renamed_for_python() -> bytes:
    """A newer zipfile calls the storage data.pkl, and data.pkl by another name."""
    first, second = "archive/data.pkl", "archive/data/0"
    pickle = pickled(tensor(storage_id("0", len(EVIL), storage="ByteStorage"), (len(EVIL),)))
    entries = torch_entries(pickle, {"0": EVIL})
    entries = with_entry(entries, first, central_extra=unicode_path(first, "archive/byteorder2"))
    return zip_archive(with_entry(entries, second, central_extra=unicode_path(second, first)))


def second_directory_for_python() -> bytes:
    """An archive inside the 64-bit end record of another.

    Torch finds that record by its locator; zipfile looks 56 bytes before the locator, where
    the end record of the archive inside stands.
    """
    outer_end = len(zip_archive(ENTRIES)) - _END_BYTES
    inner = zip_archive([ZipEntry("archive/data.pkl", EVIL)], start_at=outer_end)
    return zip_archive(ENTRIES, extension=inner[:-_END_BYTES])


OTHER_FIELDS = [
    Case((76,), "a-name-that-only-another-reader-looks-at", AMBIGUOUS, renamed_for_python()),
    Case(
        (81, 83),
        "bytes-in-the-64-bit-end-record",
        HIDDEN_BYTES,
        zip_archive(ENTRIES, extension=b"hidden"),
    ),
    Case(
        (81, 83),
        "an-evil-archive-in-the-64-bit-end-record",
        PAYLOAD,
        second_directory_for_python(),
    ),
]


# 83 to 86: 64 bits, compression, roots

_BOMB_FLOATS = 1 << 24


def bomb() -> bytes:
    """64 MB of zeros as a storage of 64 KB."""
    pickle = pickled(value({"w": Raw(tensor(storage_id("0", _BOMB_FLOATS), (_BOMB_FLOATS,)))}))
    entries = torch_entries(pickle, {"0": bytes(4 * _BOMB_FLOATS)})
    return zip_archive(with_entry(entries, "data/0", method=8))


ROOTS = [
    Case((83,), "32-and-64-bit-records-disagree", AMBIGUOUS, zip_archive(ENTRIES, count=1)),
    Case(
        (83,),
        "32-and-64-bit-records-disagree-and-a-payload",
        PAYLOAD,
        zip_archive(EVIL_ENTRIES, count=1),
    ),
    Case((84,), "deflated-pickle", PAYLOAD, lying(EVIL_ENTRIES, "data.pkl", method=8)),
    Case(
        (84,),
        "bytes-behind-the-end-of-a-deflated-pickle",
        HIDDEN_BYTES,
        lying(ENTRIES, "data.pkl", method=8, packed=deflated(BENIGN) + b"hidden"),
    ),
    Case(
        (84,),
        "bytes-behind-the-end-of-a-deflated-storage",
        HIDDEN_BYTES,
        lying(ENTRIES, "data/0", method=8, packed=deflated(floats(1, 2)) + EVIL),
    ),
    Case(
        (84, 106),
        "a-pickle-that-claims-to-inflate-to-4-gigabytes",
        NOT_ALL_READ,
        lying(ENTRIES, "data.pkl", method=8, size=0xFFFFFFF0),
        refused="more than deflate can",
    ),
    Case((84, 106), "a-storage-that-inflates-a-thousandfold", COSTLY, bomb),
    Case(
        (84, 106),
        "entries-that-share-their-compressed-bytes",
        AMBIGUOUS,
        zip_archive([*ENTRIES, ZipEntry("archive/data/7", b"x", header=0)]),
    ),
    Case((85,), "a-second-root", AMBIGUOUS, zip_archive([*ENTRIES, ZipEntry("other/x", b"x")])),
    Case(
        (85,),
        "an-evil-pickle-under-a-second-root",
        PAYLOAD,
        zip_archive([*ENTRIES, ZipEntry("other/data.pkl", EVIL)]),
    ),
    Case(
        (85,), "dots-for-a-root", AMBIGUOUS, zip_archive(torch_entries(BENIGN, STORED, root=".."))
    ),
    Case(
        (85,),
        "dots-for-a-root-and-a-payload",
        PAYLOAD,
        zip_archive(torch_entries(EVIL, {}, root="..")),
    ),
    Case(
        (85,),
        "dots-in-a-name",
        AMBIGUOUS,
        zip_archive([*ENTRIES, ZipEntry("archive/../../x", b"x")]),
    ),
    Case(
        (85,), "an-absolute-name", AMBIGUOUS, zip_archive([*ENTRIES, ZipEntry("/etc/passwd", b"x")])
    ),
    Case(
        (85,), "a-nul-in-a-name", AMBIGUOUS, zip_archive([*ENTRIES, ZipEntry("archive/a\0b", b"x")])
    ),
    Case(
        (85,),
        "a-backslash-in-a-name",
        AMBIGUOUS,
        zip_archive([*ENTRIES, ZipEntry("archive\\x", b"x")]),
    ),
    Case((85,), "an-evil-pickle-without-a-root", PAYLOAD, python_zip({"data.pkl": EVIL})),
    Case(
        (85,),
        "an-evil-pickle-under-two-roots",
        PAYLOAD,
        zip_archive(torch_entries(EVIL, {}, root="a/b")),
    ),
    Case(
        (85,),
        "an-evil-pickle-behind-a-backslash",
        PAYLOAD,
        python_zip({"archive\\data.pkl": EVIL}),
    ),
    Case(
        (85,),
        "an-evil-pickle-without-a-version",
        PAYLOAD,
        zip_archive([entry for entry in EVIL_ENTRIES if not entry.name.endswith("version")]),
    ),
    Case(
        (100,),
        "a-storage-outside-the-archive",
        WRONG_STORAGE,
        torch_zip(pickled(value([Raw(storage_id("../../etc/passwd", 2))]))),
    ),
    Case(
        (85, 100),
        "a-storage-whose-name-climbs-out",
        AMBIGUOUS,
        torch_zip(
            pickled(value([Raw(tensor(storage_id("../../x", 2), (2,)))])), {"../../x": floats(1, 2)}
        ),
    ),
    Case(
        (74,),
        "a-record-torch-does-not-write",
        STRANGE_RECORD,
        zip_archive([*ENTRIES, ZipEntry("archive/x", b"x")]),
    ),
    Case(
        (99,),
        "a-byte-order-that-is-none-beside-a-payload",
        PAYLOAD,
        zip_archive(torch_entries(EVIL, {}, order="middle")),
    ),
]

CASES: tuple[Case, ...] = (*NAMES, *FIELDS, *TWICE, *ARCHIVES, *OTHER_FIELDS, *ROOTS)
