"""Headings D and E: tensors that reach outside, rebuilding that trusts, and what costs too much."""

from __future__ import annotations

import struct

from forge import (
    APPENDS,
    BUILD,
    CALLS_SYSTEM,
    DUP,
    EMPTY_LIST,
    EMPTY_TUPLE,
    MARK,
    POP,
    SETITEM,
    SETITEMS,
    STOP,
    TUPLE1,
    TUPLE2,
    Raw,
    binbytes8,
    binget,
    binput,
    binunicode8,
    bytearray8,
    call,
    called,
    floats,
    legacy_stream,
    long4,
    long_binput,
    made,
    pickled,
    proto,
    put,
    stack_global,
    storage_id,
    tensor,
    torch_zip,
    value,
    values,
)

from catalogue.case import (
    COSTLY,
    DANGEROUS,
    EXPANDED,
    NOT_ALL_READ,
    NOT_LISTED,
    OUTSIDE,
    PAYLOAD,
    STORED,
    STRANGE_CALL,
    STRANGE_ID,
    UNCHECKED,
    WRONG_STORAGE,
    Case,
    at_least,
    beside_weights,
    named,
    zipped,
)
from ckptaudit.policy import Severity

WEIGHTS = tensor(storage_id("0", 2), (2,))
NO_HOOKS = Raw(call("collections", "OrderedDict"))
TENSOR = named("torch", "Tensor")
_RECORD = ("CVE-2026-24747", "GHSA-63cw-57p8-fm3p")


def from_type(inner: str, *args: object, state: object = None) -> bytes:
    """``_rebuild_from_type_v2``, which calls the rebuild function *inner* with *args*."""
    function = named("torch._utils", inner)
    return call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        function,
        TENSOR,
        args,
        {} if state is None else state,
    )


def on_weights(opcodes: bytes) -> bytes:
    """A checkpoint of nothing but what *opcodes* make of storage 0, of two floats."""
    return torch_zip(pickled(opcodes), STORED)


def quantised(offset: object = 0, shape: object = (2,)) -> bytes:
    scheme = (named("torch", "per_tensor_affine"), 1.0, 0)
    storage = Raw(storage_id("0", 8, storage="QInt8Storage"))
    return call(
        "torch._utils",
        "_rebuild_qtensor",
        storage,
        offset,
        shape,
        (1,),
        scheme,
        0,
        NO_HOOKS,
    )


# 92, 93: sizes that lie

_WINDOWS: dict[str, bytes] = {
    "beyond-the-end": tensor(storage_id("0", 2), (3,)),
    "an-offset": tensor(storage_id("0", 2), (2,), offset=1),
    "a-negative-offset": tensor(storage_id("0", 2), (2,), offset=-1),
    "a-stride": tensor(storage_id("0", 2), (2,), (1 << 40,)),
    "a-negative-stride": tensor(storage_id("0", 2), (2,), (-1,), offset=1),
    "an-overflow": tensor(storage_id("0", 2), (1 << 32, 1 << 32), (1 << 32, 1)),
    "a-size-of-text": call(
        "torch._utils", "_rebuild_tensor", Raw(storage_id("0", 2)), 0, ("2",), (1,)
    ),
    "state-of-a-legacy-tensor": call("torch", "FloatTensor")
    + value((Raw(storage_id("0", 2)), 0, (3,), (1,)))
    + BUILD,
    "a-state-that-another-replaces": call("torch", "FloatTensor")
    + value((Raw(storage_id("0", 2)), 0, (3,), (1,)))
    + BUILD
    + value((Raw(storage_id("0", 2)), 0, (2,), (1,)))
    + BUILD,
    "one-with-deferred-changes": call(
        "torch._utils",
        "_rebuild_tensor_v2",
        Raw(storage_id("0", 2)),
        0,
        (3,),
        (1,),
        0,
        NO_HOOKS,
        {"neg": True},
    ),
    "one-inside-a-parameter": call(
        "torch._utils", "_rebuild_parameter", Raw(tensor(storage_id("0", 2), (3,))), 1, NO_HOOKS
    ),
    "one-inside-another-rebuild": from_type(
        "_rebuild_tensor_v2", Raw(storage_id("0", 2)), 0, (3,), (1,), 0, NO_HOOKS
    ),
}

SIZES = [
    Case(
        (93,),
        "tensor-of-a-rank-of-300",
        NOT_ALL_READ,
        on_weights(tensor(storage_id("0", 2), (1,) * 300)),
    ),
    Case(
        (92,),
        "storage-longer-than-its-record",
        WRONG_STORAGE,
        torch_zip(pickled(tensor(storage_id("0", 1 << 20), (2,))), STORED),
        _RECORD,
    ),
    Case(
        (92,),
        "storage-shorter-than-its-record",
        WRONG_STORAGE,
        torch_zip(pickled(tensor(storage_id("0", 1), (1,))), STORED),
        _RECORD,
    ),
    Case(
        (92,),
        "items-set-in-a-tensor",
        STRANGE_CALL,
        on_weights(WEIGHTS + values(0, 1) + SETITEM),
        _RECORD,
    ),
    Case(
        (92,),
        "many-items-set-in-a-tensor",
        STRANGE_CALL,
        on_weights(WEIGHTS + MARK + values(0, 1, 1, 2) + SETITEMS),
        _RECORD,
    ),
    Case(
        (92,),
        "items-set-in-a-storage",
        STRANGE_CALL,
        on_weights(storage_id("0", 2) + values(0, 1) + SETITEM),
    ),
    *(
        Case((93,), f"tensor-outside-by-{what}", OUTSIDE, on_weights(opcodes))
        for what, opcodes in _WINDOWS.items()
    ),
    Case(
        (93,),
        "tensor-outside-in-a-legacy-stream",
        OUTSIDE,
        legacy_stream(
            pickled(tensor(storage_id("0", 2, view=(None,)), (3,))), [("0", 2, floats(1, 2))]
        ),
    ),
    Case((93, 95), "quantised-tensor-outside", OUTSIDE, on_weights(quantised(offset=1 << 40))),
    Case(
        (93,),
        "tensor-of-a-terabyte-on-two-floats",
        EXPANDED,
        on_weights(tensor(storage_id("0", 2), (1 << 40,), (0,))),
    ),
    Case(
        (94,),
        "storage-of-two-types",
        WRONG_STORAGE,
        torch_zip(
            pickled(
                value([Raw(WEIGHTS), Raw(tensor(storage_id("0", 2, storage="IntStorage"), (2,)))])
            ),
            STORED,
        ),
    ),
    Case(
        (94,),
        "storage-of-two-sizes",
        WRONG_STORAGE,
        torch_zip(pickled(value([Raw(WEIGHTS), Raw(tensor(storage_id("0", 1), (1,)))])), STORED),
    ),
]


# 95 to 98: rebuild functions that trust what they are given

_LAYOUT = Raw(call("torch.serialization", "_get_layout", "torch.sparse_coo"))
_INDICES = (Raw(WEIGHTS), Raw(WEIGHTS), (2,))

REBUILDERS = [
    Case(
        (95,),
        "sparse-indices",
        UNCHECKED,
        beside_weights(call("torch._utils", "_rebuild_sparse_tensor", _LAYOUT, _INDICES)),
    ),
    Case(
        (95,),
        "compressed-sparse-indices",
        UNCHECKED,
        beside_weights(
            call(
                "torch._utils",
                "_rebuild_sparse_csr_tensor",
                Raw(WEIGHTS),
                Raw(WEIGHTS),
                Raw(WEIGHTS),
                (2, 2),
            )
        ),
    ),
    Case(
        (95, 96),
        "sparse-indices-inside-another-rebuild",
        UNCHECKED,
        beside_weights(from_type("_rebuild_sparse_tensor", _LAYOUT, _INDICES)),
    ),
    Case(
        (95,),
        "nested-tensor-whose-parts-nobody-checks",
        UNCHECKED,
        beside_weights(call("torch._utils", "_rebuild_nested_tensor", *(Raw(WEIGHTS),) * 4)),
    ),
    Case(
        (95,),
        "subclass-of-a-class-that-is-not-listed",
        NOT_LISTED,
        beside_weights(
            call(
                "torch._utils",
                "_rebuild_wrapper_subclass",
                named("thing", "Thing"),
                0,
                (1,),
                (1,),
                0,
                0,
                0,
                0,
            )
        ),
    ),
    Case(
        (96,),
        "rebuild-by-the-payload",
        DANGEROUS,
        zipped(
            call(
                "torch._tensor",
                "_rebuild_from_type_v2",
                named("posix", "system"),
                TENSOR,
                ("true",),
                {},
            )
        ),
    ),
    Case(
        (96,),
        "rebuild-by-an-allowed-function-that-makes-no-tensor",
        STRANGE_CALL,
        zipped(
            call(
                "torch._tensor",
                "_rebuild_from_type_v2",
                named("_codecs", "encode"),
                TENSOR,
                ("x", "latin1"),
                {},
            )
        ),
    ),
    Case(
        (96,),
        "rebuild-that-sets-a-hidden-attribute",
        STRANGE_CALL,
        beside_weights(
            from_type("_rebuild_parameter", Raw(WEIGHTS), 1, NO_HOOKS, state={"__class__": 1})
        ),
    ),
    Case(
        (96,),
        "backward-hooks",
        STRANGE_CALL,
        on_weights(
            call(
                "torch._utils",
                "_rebuild_tensor_v2",
                Raw(storage_id("0", 2)),
                0,
                (2,),
                (1,),
                0,
                {0: named("builtins", "set")},
            )
        ),
    ),
    Case(
        (96,),
        "backward-hooks-inside-another-rebuild",
        STRANGE_CALL,
        on_weights(
            from_type(
                "_rebuild_tensor_v2",
                Raw(storage_id("0", 2)),
                0,
                (2,),
                (1,),
                0,
                {0: named("builtins", "set")},
            )
        ),
    ),
    Case(
        (96,),
        "tensor-from-an-array-of-pointers",
        STRANGE_CALL,
        zipped(
            call(
                "torch._utils",
                "_rebuild_device_tensor_from_numpy",
                Raw(call("numpy", "dtype", "O", 0, 1)),
                named("torch", "float32"),
                "cpu",
                0,
            )
        ),
    ),
    Case(
        (97,),
        "encode-by-another-codec",
        STRANGE_CALL,
        zipped(call("_codecs", "encode", "x", "zlib")),
    ),
    Case(
        (97,),
        "encode-of-an-object",
        STRANGE_CALL,
        zipped(call("_codecs", "encode", Raw(made("argparse", "Namespace")), "latin1")),
    ),
    Case(
        (97,), "a-terabyte-of-zeros", STRANGE_CALL, zipped(call("builtins", "bytearray", 1 << 40))
    ),
    Case(
        (97,),
        "a-set-of-a-range",
        STRANGE_CALL,
        zipped(call("builtins", "set", Raw(call("builtins", "range", 1 << 40)))),
    ),
    Case(
        (98,),
        "a-location-that-is-no-text",
        STRANGE_ID,
        torch_zip(pickled(storage_id("0", 2, location=5)), STORED),
    ),
]


# 102 to 107: what costs more than it weighs

_DOUBLED_LISTS = b"".join(
    EMPTY_LIST + MARK + binget(n) * 2 + APPENDS + binput(n + 1) + POP for n in range(60)
)
_LENGTHS: dict[str, bytes] = {
    "long4": long4(b"x", (1 << 31) - 1),
    "negative-long4": long4(b"x", 1 << 31),
    "binbytes8": binbytes8(b"x", 1 << 63),
    "binunicode8": binunicode8("x", (1 << 64) - 1),
    "bytearray8": bytearray8(b"x", 1 << 40),
}

COSTS = [
    Case((102,), "memo-bomb-of-tuples", COSTLY, zipped(value("boom"), (DUP + TUPLE2) * 60)),
    Case(
        (102,),
        "memo-bomb-of-lists",
        COSTLY,
        zipped(value("boom"), binput(0), POP, _DOUBLED_LISTS, binget(60)),
    ),
    Case(
        (102,),
        "memo-bomb-and-a-payload",
        PAYLOAD,
        zipped(value("boom"), (DUP + TUPLE2) * 60, POP, CALLS_SYSTEM),
    ),
    Case((103,), "tuples-nested-200000-deep", COSTLY, zipped(EMPTY_TUPLE, TUPLE1 * 200_000)),
    Case((103,), "a-payload-200000-deep", PAYLOAD, zipped(CALLS_SYSTEM, TUPLE1 * 200_000)),
    *(
        Case(
            (104,),
            f"a-length-that-lies-in-{what}",
            NOT_ALL_READ,
            torch_zip(proto(4) + opcodes + STOP),
        )
        for what, opcodes in _LENGTHS.items()
    ),
    *(
        Case(
            (104,),
            f"a-payload-before-a-length-that-lies-in-{what}",
            PAYLOAD,
            torch_zip(proto(4) + CALLS_SYSTEM + opcodes + STOP),
        )
        for what, opcodes in _LENGTHS.items()
    ),
    Case(
        (105,),
        "memo-index-of-two-thousand-million",
        COSTLY,
        zipped(value("x"), long_binput((1 << 31) - 1)),
    ),
    Case((105,), "memo-index-of-text", COSTLY, zipped(value("x"), put(1 << 31))),
    Case(
        (107,),
        "header-of-safetensors-nests-too-deep",
        NOT_ALL_READ,
        struct.pack("<Q", 5 + 100_000) + b'{"w":' + b"[" * 100_000,
        refused="not valid JSON",
    ),
    Case(
        (107,),
        "integer-of-a-megabyte",
        COSTLY,
        lambda: zipped(long4(b"\1" * 1_000_000)),
    ),
]


# 108: names that talk to the terminal

VOICES = {
    "escape-sequences": "\x1b[2J\x1b]0;owned\x07",
    "right-to-left": "\u202egnp.exe",
    "workflow-commands": "\n::set-output name=x::y\n::error::z",
    "carriage-returns": "\rclean\r",
    "markup": "<script>alert(1)</script>",
}


SPOKEN = [
    Case(
        (108,),
        f"name-with-{what}",
        at_least(Severity.SUSPICIOUS, "CKA102", "CKA105"),
        zipped(called(stack_global(text, "run")), protocol=4),
    )
    for what, text in VOICES.items()
]

CASES: tuple[Case, ...] = (*SIZES, *REBUILDERS, *COSTS, *SPOKEN)
