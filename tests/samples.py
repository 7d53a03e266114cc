"""Small valid files of every kind we read, honest ones and hostile ones, to be damaged.

The hostile ones ask for a name that no honest file asks for, `HOSTILE`, and do something
with it; each by another opcode and in another framing.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from forge import (
    BINPERSID,
    BUILD,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ,
    NEWOBJ_EX,
    OBJ,
    REDUCE,
    STACK_GLOBAL,
    STOP,
    Raw,
    TarStorage,
    TarTensor,
    ZipEntry,
    bzipped,
    call,
    floats,
    frame,
    global_,
    gzipped,
    inst,
    legacy_stream,
    npy_file,
    npz_file,
    object_npy,
    pickled,
    proto,
    python_zip,
    safetensors_entry,
    safetensors_file,
    short_binunicode,
    stack_global,
    state_dict,
    storage_id,
    string_line,
    tar_archive,
    tar_members,
    tensor,
    torch_entries,
    torch_zip,
    torchscript_zip,
    value,
    values,
    xzipped,
    zip_archive,
    zlibbed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FRAMINGS", "HONEST", "HOSTILE", "HOSTILE_FILES", "PAYLOADS", "Sample"]


@dataclass(frozen=True, repr=False)
class Sample:
    """A file, told by its name.

    Attributes:
        name: What is in it.
        data: Its bytes.
    """

    name: str
    data: bytes

    def __repr__(self) -> str:
        return f"<{self.name}>"


HOSTILE = "posix system"
_NAME = global_("posix", "system")
# Each pushes one value, and has the name do something.
PAYLOADS: dict[str, bytes] = {
    "REDUCE": call("posix", "system", "true"),
    "INST": inst("posix", "system", "true"),
    "OBJ": MARK + _NAME + value("true") + OBJ,
    "NEWOBJ": _NAME + value(("true",)) + NEWOBJ,
    "NEWOBJ_EX": values(Raw(_NAME), ("true",), {}) + NEWOBJ_EX,
    "BUILD": _NAME + value({"x": 1}) + BUILD,
    "STACK_GLOBAL": stack_global("posix", "system") + value(("true",)) + REDUCE,
    "STACK_GLOBAL-of-old-text": (
        string_line(b"'posix'") + string_line(b"'system'") + STACK_GLOBAL + EMPTY_TUPLE + REDUCE
    ),
}

_DATA = floats(1, 2)
_WEIGHTS = Raw(tensor(storage_id("0", 2), (2,)))
_VIEWED = Raw(tensor(storage_id("0", 2, view=(None,)), (2,)))


def _beside(opcodes: bytes, weights: Raw = _WEIGHTS) -> bytes:
    return pickled(value({"w": weights, "x": Raw(opcodes), "y": 1}))


def _bare(opcodes: bytes) -> bytes:
    return pickled(value([1, Raw(opcodes), "y"]))


def _framed(opcodes: bytes) -> bytes:
    return proto(4) + frame(len(opcodes) + 1) + opcodes + STOP


def _protocol_0(opcodes: bytes) -> bytes:
    return b"(dp0\nVa\np1\n" + opcodes + b"s."


def _deflated(pickle_: bytes) -> bytes:
    entries = [replace(entry, method=8) for entry in torch_entries(pickle_, {"0": _DATA})]
    return zip_archive(entries)


_HONEST_PICKLE = state_dict({"w": 2})
_HONEST_ENTRIES = torch_entries(_HONEST_PICKLE, {"0": _DATA})

# How a file is made around opcodes that push one value: a pickle of them, and the file around
# that.  In between, a pickle may be damaged that the file around it then fits.
FRAMINGS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "zip": (_beside, lambda pickle_: torch_zip(pickle_, {"0": _DATA})),
    "zip-deflated": (_beside, _deflated),
    "zip-with-a-second-pickle": (
        _bare,
        lambda pickle_: zip_archive([*_HONEST_ENTRIES, ZipEntry("archive/x.pkl", pickle_)]),
    ),
    "zip-with-a-pickle-of-another-name": (
        _bare,
        lambda pickle_: zip_archive([*_HONEST_ENTRIES, ZipEntry("archive/x", pickle_)]),
    ),
    "torchscript": (
        _bare,
        lambda pickle_: torchscript_zip(pickled(inst("__torch__", "Net")), constants=pickle_),
    ),
    "legacy": (
        lambda opcodes: _beside(opcodes, _VIEWED),
        lambda pickle_: legacy_stream(pickle_, [("0", 2, _DATA)]),
    ),
    "legacy-keys": (
        _bare,
        lambda pickle_: legacy_stream(pickled(value({})), keys=pickle_),
    ),
    "tar": (_bare, lambda pickle_: tar_archive(tar_members(pickle_))),
    "bare": (_bare, bytes),
    "bare-framed": (_framed, bytes),
    "bare-of-protocol-0": (_protocol_0, bytes),
    "second-of-two": (_bare, lambda pickle_: pickled(value({})) + pickle_),
    "npy": (_bare, object_npy),
    "npz": (_bare, lambda pickle_: npz_file({"a": object_npy(pickle_)})),
    "gzip": (_bare, gzipped),
    "bzip2": (_bare, bzipped),
    "xz": (_bare, xzipped),
    "zlib": (_bare, zlibbed),
    "zip-in-a-zip": (
        _beside,
        lambda pickle_: python_zip({"a.ckpt": torch_zip(pickle_, {"0": _DATA})}),
    ),
}

_PLAIN = {"a": [1, 2.5, "x", None, True, (b"y", 1 << 70)], "b": {}}

HONEST: tuple[Sample, ...] = (
    Sample("zip", torch_zip(_HONEST_PICKLE, {"0": _DATA})),
    Sample("zip-deflated", _deflated(_HONEST_PICKLE)),
    Sample("zip-of-two-names", torch_zip(state_dict({"a": 2, "b": 2}), {"0": _DATA, "1": _DATA})),
    Sample("torchscript", torchscript_zip(pickled(inst("__torch__", "Net")))),
    Sample("legacy", legacy_stream(state_dict({"w": 2}, legacy=True), [("0", 2, _DATA)])),
    Sample(
        "tar",
        tar_archive(
            tar_members(
                pickled(value({"w": Raw(value(7) + BINPERSID)})),
                [TarStorage(5, floats(1, 2, 3, 4))],
                [TarTensor(7, 5, (2, 2), (2, 1))],
                [(9, 5, 1, 2)],
            )
        ),
    ),
    Sample("safetensors", safetensors_file({"w": safetensors_entry([2], 0, 8)}, _DATA)),
    *(
        Sample(f"bare-of-protocol-{protocol}", pickle.dumps(_PLAIN, protocol=protocol))
        for protocol in range(6)
    ),
    Sample("npy", npy_file("<f4", (2,), _DATA)),
    Sample("npy-of-objects", object_npy(pickled(value([1, "x"])))),
    Sample("npz", npz_file({"a": npy_file("<f4", (2,), _DATA)})),
    Sample("gzip", gzipped(torch_zip(_HONEST_PICKLE, {"0": _DATA}))),
    Sample("bzip2", bzipped(_HONEST_PICKLE)),
    Sample("xz", xzipped(pickled(value([1])))),
    Sample("zlib", zlibbed(pickled(value([1])))),
    Sample("zip-in-a-zip", python_zip({"a.ckpt": torch_zip(_HONEST_PICKLE, {"0": _DATA})})),
    Sample("short-text", pickled(short_binunicode("x"))),
)

HOSTILE_FILES: tuple[Sample, ...] = tuple(
    Sample(f"{framing}: {opcode}", framed(pickle_of(opcodes)))
    for framing, (pickle_of, framed) in FRAMINGS.items()
    for opcode, opcodes in PAYLOADS.items()
)
