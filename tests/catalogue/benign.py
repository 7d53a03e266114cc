"""Files of honest writers: each object in each framing, and each framing as it has been written.

Torch 0.1 to 2.13, Python 2, big-endian machines, and archives that users packed again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from forge import (
    BINPERSID,
    BUILD,
    EMPTY_TUPLE,
    MEMOIZE,
    NEWOBJ,
    STOP,
    TUPLE2,
    Raw,
    TarStorage,
    TarTensor,
    ZipEntry,
    binget,
    call,
    floats,
    frame,
    inst,
    legacy_stream,
    made,
    pickled,
    proto,
    python_zip,
    safetensors_entry,
    safetensors_file,
    short_binunicode,
    storage_id,
    tar_archive,
    tar_members,
    tensor,
    torch_entries,
    torch_zip,
    torchscript_zip,
    value,
    zip_archive,
)

from catalogue.case import BENIGN, ENTRIES, EVIL, PLAIN_EVIL, STORED, named
from catalogue.objects import OBJECTS, REVIEWED, Storages, module_state
from ckptaudit.policy import Severity

if TYPE_CHECKING:
    from catalogue.objects import Make

__all__ = ["FILES", "Benign"]


@dataclass(frozen=True)
class Benign:
    """A file that an honest program wrote.

    Attributes:
        kind: What it holds, the id of the test.
        file: Its bytes.
        verdict: What a scan must say.
        rules: Ids of the rules that may have a finding.
    """

    kind: str
    file: bytes
    verdict: Severity = Severity.CLEAN
    rules: frozenset[str] = frozenset()


def in_zip(make: Make) -> bytes:
    """A zip checkpoint that holds the object."""
    storages = Storages()
    pickle = pickled(value({"object": Raw(make(storages))}))
    return torch_zip(pickle, {key: data for key, (_, data) in storages.contents.items()})


def in_legacy(make: Make) -> bytes:
    """A legacy stream that holds the object."""
    storages = Storages(view=(None,))
    pickle = pickled(value({"object": Raw(make(storages))}))
    return legacy_stream(
        pickle, [(key, numel, data) for key, (numel, data) in storages.contents.items()]
    )


# Framings: what torch always writes, once wrote, or what careful users make of it.


def _only(*names: str) -> bytes:
    """The archive without all records but these."""
    return zip_archive([entry for entry in ENTRIES if entry.name.endswith(names)])


def _storage_of(data: bytes) -> bytes:
    """A checkpoint whose one storage holds *data*, all of it covered by a tensor of bytes."""
    pid = storage_id("0", len(data), storage="ByteStorage")
    return torch_zip(pickled(value({"w": Raw(tensor(pid, (len(data),)))})), {"0": data})


_PROTOCOL_4 = short_binunicode("a") + MEMOIZE + binget(0) + TUPLE2 + STOP
# Without torch.save a storage pickles itself, as a legacy stream inside the pickle.
_OWN_STREAM = legacy_stream(pickled(storage_id("0", 2, view=(None,))), [("0", 2, floats(1, 2))])
_OWN_STORAGE = call("torch.storage", "_load_from_bytes", _OWN_STREAM)
_TAR_OBJECT = pickled(value({"w": Raw(value(7) + BINPERSID)}))
_TAR_PARTS = (
    [TarStorage(5, floats(1, 2, 3, 4))],
    [TarTensor(7, 5, (2, 2), (2, 1))],
    [(9, 5, 1, 2)],
)
_MODULE_ID = (named("torch.nn.modules.linear", "Linear"), "linear.py", "class Linear: ...")

FRAMINGS: dict[str, bytes] = {
    "zip-of-torch-1.6": _only("data.pkl", "data/0", "version"),
    "zip-of-torch-2.13": zip_archive(
        [
            *ENTRIES[:1],
            ZipEntry("archive/.format_version", b"1"),
            ZipEntry("archive/.storage_alignment", b"64"),
            *ENTRIES[1:],
        ]
    ),
    "zip-with-a-root-of-its-own": zip_archive(
        torch_entries(BENIGN, STORED, root="anything-v3.0 (pruned)")
    ),
    "zip-with-a-root-that-is-not-ascii": zip_archive(
        torch_entries(BENIGN, STORED, root="\u30e2\u30c7\u30eb")
    ),
    "zip-of-a-big-endian-machine": zip_archive(torch_entries(BENIGN, STORED, order="big")),
    "zip-packed-again-by-python": python_zip({entry.name: entry.data for entry in ENTRIES}),
    "zip-packed-again-with-its-folders": python_zip(
        {
            **{f"archive/{folder}": b"" for folder in ("", "data/", ".data/")},
            **{entry.name: entry.data for entry in ENTRIES},
        }
    ),
    "zip-packed-again-and-deflated": zip_archive([replace(entry, method=8) for entry in ENTRIES]),
    "zip-with-sizes-of-64-bits": zip_archive(
        [replace(entry, local_sizes=(0xFFFFFFFF,) * 2) for entry in ENTRIES]
    ),
    "zip-without-tensors": torch_zip(pickled(value({}))),
    "zip-of-protocol-4": torch_zip(proto(4) + frame(len(_PROTOCOL_4)) + _PROTOCOL_4),
    "storage-that-reads-like-a-pickle": _storage_of(EVIL),
    "storage-that-reads-like-a-pickle-without-proto": _storage_of(PLAIN_EVIL),
    "storage-that-reads-like-an-archive": _storage_of(torch_zip(EVIL)),
    "legacy-stream": legacy_stream(
        pickled(value({"w": Raw(tensor(storage_id("0", 2, view=(None,)), (2,)))})),
        [("0", 2, floats(1, 2))],
    ),
    "legacy-stream-with-views": legacy_stream(
        pickled(
            value(
                {
                    str(start): Raw(
                        tensor(storage_id("0", 4, view=((str(start), start, 2),)), (2,))
                    )
                    for start in (0, 1, 2)
                }
            )
        ),
        [("0", 4, floats(1, 2, 3, 4))],
    ),
    "legacy-stream-with-numbers-for-keys": legacy_stream(
        pickled(value({"w": Raw(tensor(storage_id(140, 2, view=(None,)), (2,)))})),
        [("140", 2, floats(1, 2))],
        keys=pickled(value([140])),
    ),
    "tar": tar_archive(tar_members(_TAR_OBJECT, *_TAR_PARTS)),
    "safetensors": safetensors_file({"w": safetensors_entry([2], 0, 8)}, floats(1, 2)),
    **{
        f"bare-pickle-of-protocol-{protocol}": pickled(
            value({"a": [1, 2.5, "x"]}), protocol=protocol
        )
        for protocol in (2, 3, 4, 5)
    },
    "bare-pickle-of-protocol-0": b"(dp0\nVa\np1\nI1\ns.",
}

REVIEWED_FRAMINGS: dict[str, tuple[str, bytes]] = {
    "storage-pickled-without-torch-save": ("CKA113", pickled(_OWN_STORAGE)),
    "tensor-pickled-without-torch-save": ("CKA113", pickled(tensor(_OWN_STORAGE, (2,)))),
    "torchscript": ("CKA205", torchscript_zip(pickled(inst("__torch__", "Net")))),
    "torchscript-with-constants": (
        "CKA205",
        torchscript_zip(pickled(made("__torch__", "Net", {})), constants=pickled(value((1, 2.5)))),
    ),
    "legacy-stream-with-a-slice": (
        "CKA209",
        legacy_stream(
            pickled(value({"w": Raw(tensor(storage_id("0", 4, view=(("140", 1, 2),)), (2,)))})),
            [("0", 4, floats(1, 2, 3, 4))],
        ),
    ),
    "zip-with-a-slice": (
        "CKA209",
        torch_zip(
            pickled(value({"w": Raw(tensor(storage_id("0", 4), (2,), offset=1))})),
            {"0": floats(1, 2, 3, 4)},
        ),
    ),
    "whole-module-in-a-legacy-stream": (
        "CKA108",
        legacy_stream(
            pickled(
                value(("module", *_MODULE_ID)), BINPERSID, EMPTY_TUPLE, NEWOBJ,
                value(module_state()), BUILD,
            )
        ),
    ),
    "whole-module-in-a-tar": (
        "CKA108",
        tar_archive(
            tar_members(
                pickled(
                    value(_MODULE_ID), BINPERSID, EMPTY_TUPLE, NEWOBJ, value(module_state()), BUILD
                )
            )
        ),
    ),
}  # fmt: skip


def _review(rule: str, kind: str, file: bytes) -> Benign:
    return Benign(kind, file, Severity.REVIEW, frozenset({rule}))


FILES: tuple[Benign, ...] = (
    *(Benign(f"{kind}-in-a-zip", in_zip(make)) for kind, make in OBJECTS.items()),
    *(Benign(f"{kind}-in-a-legacy-stream", in_legacy(make)) for kind, make in OBJECTS.items()),
    *(_review(rule, kind, in_zip(make)) for kind, (rule, make) in REVIEWED.items()),
    *(Benign(kind, file) for kind, file in FRAMINGS.items()),
    *(_review(rule, kind, file) for kind, (rule, file) in REVIEWED_FRAMINGS.items()),
)
