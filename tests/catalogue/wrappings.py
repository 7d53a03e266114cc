"""Heading C, the rest: tar, the legacy stream, compression, archives in archives, budgets."""

from __future__ import annotations

import json
import struct

from forge import (
    BINPERSID,
    CALLS_SYSTEM,
    MAGIC,
    NONE,
    POP,
    STOP,
    ZipEntry,
    binunicode,
    bzipped,
    call,
    gzipped,
    inst,
    legacy_stream,
    long1,
    lz4_stub,
    npy_file,
    npz_file,
    object_npy,
    pax_header,
    pickled,
    python_zip,
    seven_zip_stub,
    tar_archive,
    tar_member,
    tar_members,
    torch_zip,
    torchscript_zip,
    unicode_line,
    value,
    xzipped,
    zip_archive,
    zlibbed,
)

from catalogue.case import (
    DANGEROUS,
    ENTRIES,
    EVIL,
    HIDDEN_BYTES,
    NOT_ALL_READ,
    PAYLOAD,
    SCRIPT,
    STRANGE_RECORD,
    UNREAD_PICKLE,
    WRONG_SCHEDULE,
    Case,
    zipped,
)
from ckptaudit.vm import Limits

HARMLESS = pickled(value({"a": 1}))
TAR = tar_members(HARMLESS)
_DISPATCH = ("CVE-2025-32434", "GHSA-53q9-r3pm-6pq6")


# 82, 87: tar and TorchScript, to which torch.load once gave a full unpickler


def safetensors_and_pickle(opcodes: bytes) -> bytes:
    """A safetensors file whose header, read as a pickle, is a string; its data are *opcodes*.

    The length of the header, 86, is the opcode UNICODE, which reads up to a newline.
    """
    data = POP + opcodes + STOP
    entry = {"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    header = json.dumps(entry).ljust(ord("V") - 1) + "\n"
    return struct.pack("<Q", ord("V")) + header.encode() + data


_LINK = tar_member("pickle", b"", typeflag=b"2", link="sys_info")

FRAMED = [
    Case(
        (82,),
        "a-safetensors-file-that-is-a-pickle-as-well",
        PAYLOAD,
        safetensors_and_pickle(CALLS_SYSTEM),
    ),
    Case(
        (82,),
        "a-tar-whose-first-name-is-a-pickle",
        PAYLOAD,
        tar_member((inst("posix", "system", "true") + STOP).decode(), b"") + tar_archive(TAR),
    ),
    *(
        Case(
            (87,),
            f"payload-in-{member}-of-a-tar",
            PAYLOAD,
            tar_archive({**TAR, member: EVIL}),
            _DISPATCH,
        )
        for member in TAR
    ),
    Case(
        (87,),
        "payload-in-a-tar-member-torch-did-not-write",
        PAYLOAD,
        tar_archive({**TAR, "more": EVIL}),
        _DISPATCH,
    ),
    Case(
        (87,),
        "payload-in-the-first-of-two-members",
        PAYLOAD,
        tar_archive([("pickle", EVIL), *TAR.items()]),
        _DISPATCH,
    ),
    Case(
        (82, 87),
        "a-tar-whose-checksum-is-a-binary-number",
        PAYLOAD,
        tar_member("sys_info", TAR["sys_info"], binary=True) + tar_archive({**TAR, "pickle": EVIL}),
        _DISPATCH,
    ),
    Case(
        (87,),
        "bytes-in-an-extended-header-of-a-tar",
        HIDDEN_BYTES,
        pax_header(comment="cposix system") + tar_archive(TAR),
    ),
    Case((87,), "a-tar-with-a-link", HIDDEN_BYTES, tar_archive(TAR)[:-1024] + _LINK + bytes(1024)),
    Case(
        (87,),
        "a-tar-whose-pickle-is-a-link-to-another-member",
        PAYLOAD,
        tar_archive({"sys_info": EVIL, "storages": TAR["storages"], "tensors": TAR["tensors"]})[
            :-1024
        ]
        + _LINK
        + bytes(1024),
    ),
    Case(
        (87,),
        "a-tar-member-that-climbs-out",
        STRANGE_RECORD,
        tar_archive({**TAR, "../../x": b"x"}),
    ),
    Case((87,), "payload-in-torchscript", PAYLOAD, torchscript_zip(EVIL), _DISPATCH),
    Case((87, 101), "torchscript", SCRIPT, torchscript_zip(HARMLESS)),
    Case((101,), "payload-in-the-constants", PAYLOAD, torchscript_zip(HARMLESS, constants=EVIL)),
]


# 88: wrapped

COMPRESSED = {
    "gzip": gzipped,
    "bzip2": bzipped,
    "xz": xzipped,
    "zlib": zlibbed,
}

WRAPPED = [
    *(Case((88,), f"pickle-in-{name}", PAYLOAD, wrap(EVIL)) for name, wrap in COMPRESSED.items()),
    *(
        Case((88,), f"checkpoint-in-{name}", PAYLOAD, wrap(torch_zip(EVIL)))
        for name, wrap in COMPRESSED.items()
    ),
    Case((88,), "gzip-in-gzip", PAYLOAD, gzipped(gzipped(EVIL))),
    Case((68, 88), "7z-archive", NOT_ALL_READ, seven_zip_stub(), refused="7z"),
    Case((88,), "lz4-frame", NOT_ALL_READ, lz4_stub(EVIL), refused="lz4"),
    Case(
        (88,),
        "zstandard-frame",
        NOT_ALL_READ,
        b"\x28\xb5\x2f\xfd" + bytes(8),
        refused="zstandard",
    ),
    Case(
        (88,),
        "zip-in-a-checkpoint",
        PAYLOAD,
        zip_archive([*ENTRIES, ZipEntry("archive/x.zip", torch_zip(EVIL))]),
    ),
    Case(
        (88,),
        "deflated-zip-in-a-checkpoint",
        PAYLOAD,
        zip_archive([*ENTRIES, ZipEntry("archive/x", torch_zip(EVIL), method=8)]),
    ),
    Case(
        (88,),
        "gzip-in-a-checkpoint",
        PAYLOAD,
        zip_archive([*ENTRIES, ZipEntry("archive/x.gz", gzipped(EVIL))]),
    ),
    Case((88,), "checkpoint-in-a-zip", PAYLOAD, python_zip({"folder/model.pt": torch_zip(EVIL)})),
    Case((88,), "pickle-in-a-zip", PAYLOAD, python_zip({"folder/model.pkl": EVIL})),
    Case((48, 72), "array-of-objects", PAYLOAD, object_npy(EVIL), filename="model.npy"),
    Case(
        (48, 72),
        "arrays-of-objects",
        PAYLOAD,
        npz_file({"w": object_npy(EVIL)}),
        filename="model.npz",
    ),
    Case(
        (48, 72),
        "array-of-objects-in-a-checkpoint",
        PAYLOAD,
        zip_archive([*ENTRIES, ZipEntry("archive/x.npy", object_npy(EVIL))]),
    ),
    Case(
        (107,),
        "array-whose-header-nests-too-deep",
        NOT_ALL_READ,
        npy_file("(" * 20_000, (1,), b""),
        refused="NumPy array",
        filename="model.npy",
    ),
]


# 89 to 91: the magic number, budgets, what is not there

_MAGIC = pickled(long1(MAGIC))

SCHEDULE = [
    Case(
        (89,),
        "magic-number-computed",
        DANGEROUS,
        legacy_stream(HARMLESS, magic=pickled(call("builtins", "eval", hex(MAGIC)))),
        ("GHSA-97f8-7cmv-76j2", "CVE-2026-53875"),
    ),
    Case(
        (89,),
        "magic-number-behind-a-payload",
        PAYLOAD,
        legacy_stream(HARMLESS, magic=pickled(CALLS_SYSTEM, POP, long1(MAGIC))),
        ("GHSA-97f8-7cmv-76j2", "CVE-2026-53875"),
    ),
    Case(
        (89,),
        "magic-number-that-is-not-one-literal",
        WRONG_SCHEDULE,
        legacy_stream(HARMLESS, magic=pickled(NONE, POP, long1(MAGIC))),
    ),
    Case(
        (89,),
        "no-magic-number-but-its-schedule",
        UNREAD_PICKLE,
        legacy_stream(HARMLESS, magic=pickled(call("builtins", "set"))),
    ),
    Case((89,), "another-protocol-version", WRONG_SCHEDULE, legacy_stream(HARMLESS, version=1002)),
    *(
        Case((66, 89), f"payload-in-the-{name}-of-a-legacy-stream", PAYLOAD, data)
        for name, data in {
            "version": _MAGIC + EVIL,
            "system": legacy_stream(HARMLESS, system=EVIL),
            "object": legacy_stream(EVIL),
            "keys": legacy_stream(HARMLESS, keys=EVIL),
        }.items()
    ),
    Case(
        (90,),
        "payload-behind-five-megabytes",
        PAYLOAD,
        lambda: zipped(binunicode("x" * 5_000_000), POP, CALLS_SYSTEM),
    ),
    Case(
        (67, 90),
        "payload-behind-a-line-of-two-megabytes",
        PAYLOAD,
        lambda: zipped(unicode_line(b"x" * 2_000_000), POP, CALLS_SYSTEM),
    ),
    Case(
        (90, 107),
        "payload-behind-a-million-opcodes",
        PAYLOAD,
        lambda: zipped((NONE + POP) * 500_000, CALLS_SYSTEM),
    ),
    Case(
        (90,),
        "payload-behind-as-many-oddities-as-are-spelled-out",
        DANGEROUS,
        lambda: zipped(NONE, BINPERSID * 5000, POP, CALLS_SYSTEM),
    ),
    Case(
        (90, 107),
        "payload-beyond-the-budget-of-opcodes",
        NOT_ALL_READ,
        zipped((NONE + POP) * 5000, CALLS_SYSTEM),
        limits=Limits(opcodes=2000),
    ),
    Case(
        (90,),
        "payload-before-the-budget-of-opcodes-is-spent",
        PAYLOAD,
        zipped(CALLS_SYSTEM, (NONE + POP) * 5000),
        limits=Limits(opcodes=2000),
    ),
    Case(
        (90,),
        "payload-beyond-the-budget-of-one-literal",
        NOT_ALL_READ,
        zipped(binunicode("x" * 5000), POP, CALLS_SYSTEM),
        limits=Limits(literal=2000),
    ),
    Case(
        (90,),
        "payload-beyond-the-budget-of-pickles",
        NOT_ALL_READ,
        pickled(NONE) * 2000 + EVIL,
    ),
    Case(
        (91,),
        "git-lfs-pointer",
        NOT_ALL_READ,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 7\n",
        refused="a Git LFS pointer",
    ),
]

CASES: tuple[Case, ...] = (*FRAMED, *WRAPPED, *SCHEDULE)
