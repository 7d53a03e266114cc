"""Heading B: the payload is there, and the engine that reads the pickle mistakes it."""

from __future__ import annotations

from forge import (
    BINPERSID,
    BUILD,
    CALLS_SYSTEM,
    DUP,
    EMPTY_DICT,
    MARK,
    MEMOIZE,
    NEWOBJ,
    NEWOBJ_EX,
    NONE,
    OBJ,
    POP,
    REDUCE,
    SETITEM,
    SETITEMS,
    STACK_GLOBAL,
    STOP,
    TUPLE2,
    Raw,
    binget,
    binstring,
    binunicode,
    bytearray8,
    call,
    called,
    ext1,
    ext2,
    ext4,
    get,
    global_,
    inst,
    legacy_stream,
    made,
    persid,
    pickled,
    proto,
    put,
    stack_global,
    storage_id,
    tar_archive,
    tar_members,
    tensor,
    torch_zip,
    value,
    values,
)

from catalogue.case import (
    COMPUTED,
    DANGEROUS,
    DOTTED,
    NOT_LISTED,
    PAYLOAD,
    STRANGE_ID,
    STRANGE_STATE,
    WRONG_STORAGE,
    Case,
    at_least,
    named,
    zipped,
)
from ckptaudit.policy import Severity

NAMESPACE = made("argparse", "Namespace")
ARGUMENT = value(("true",))
SYSTEM = global_("posix", "system")


def names_on_the_stack(*opcodes: bytes) -> bytes:
    """A pickle that pushes a module and a name by *opcodes*, asks for it, and calls it."""
    return zipped(*opcodes, STACK_GLOBAL, ARGUMENT, REDUCE, protocol=4)


# 49 to 52: where the names of STACK_GLOBAL come from

OPERANDS = [
    Case(
        (49,),
        "names-from-a-memo-that-put-wrote",
        PAYLOAD,
        names_on_the_stack(
            value("posix"), put(0), POP, value("system"), put(1), POP, get(0), get(1)
        ),
    ),
    Case(
        (49,),
        "put-overwrites-what-memoize-stored",
        PAYLOAD,
        names_on_the_stack(
            value("collections"), MEMOIZE, POP, value("OrderedDict"), MEMOIZE, POP,
            value("posix"), put(0), POP, value("system"), put(1), POP, binget(0), binget(1),
        ),
    ),
    Case(
        (49,),
        "memoize-after-put-takes-the-number-of-entries",
        PAYLOAD,
        names_on_the_stack(
            value("posix"), put(0), POP, value("system"), MEMOIZE, POP, binget(0), binget(1)
        ),
    ),
    Case(
        (50,),
        "put-stores-the-stack-and-not-the-argument-before-it",
        PAYLOAD,
        names_on_the_stack(
            value("posix"), value("harmless"), POP, put(0), POP,
            value("system"), value("harmless"), POP, put(1), POP, get(0), get(1),
        ),
    ),
    Case(
        (50,),
        "names-planted-in-slots-and-read-with-a-dotted-global",
        DOTTED,
        zipped(
            NAMESPACE, value((None, {"a": "posix", "b": "system"})), BUILD, POP,
            global_("argparse", "Namespace.a"), protocol=4,
        ),
    ),
    Case(
        (51,),
        "put-after-put",
        PAYLOAD,
        names_on_the_stack(
            value("posix"), put(7), put(0), POP, value("system"), put(8), put(1), POP,
            get(0), get(1),
        ),
    ),
    Case(
        (51,),
        "pop-then-put",
        PAYLOAD,
        names_on_the_stack(
            value("posix"), NONE, POP, put(0), value("system"), NONE, POP, put(1), TUPLE2, POP,
            get(0), get(1),
        ),
    ),
    Case(
        (51,),
        "dup-then-put",
        PAYLOAD,
        names_on_the_stack(
            value("posix"), DUP, put(0), POP, POP, value("system"), DUP, put(1), POP, POP,
            get(0), get(1),
        ),
    ),
    Case(
        (52,),
        "name-pushed-by-the-very-first-opcode",
        PAYLOAD,
        torch_zip(called(stack_global("posix", "system"), "true") + STOP),
        ("GHSA-9gvj-pp9x-gcfr", "CVE-2025-71325"),
    ),
]  # fmt: skip


# 48 and 53: an error behind the payload must not swallow it

ERRORS: dict[str, bytes] = {
    "an-undefined-memo-entry": binget(200),
    "a-name-of-bytes": values(b"posix", 5) + STACK_GLOBAL,
    "a-key-that-cannot-be-hashed": EMPTY_DICT + bytearray8(b"x") + NONE + SETITEM,
    "an-opcode-that-is-none": b"\xff",
    "an-empty-stack": POP + POP + POP,
    "a-mark-that-is-not-there": b"t",
    "a-key-without-a-value": MARK + NONE + SETITEMS,
    "a-literal-cut-short": binunicode("x", 1000),
    "text-that-is-no-utf-8": binstring(b"\xff"),
    "no-stop": b"",
}


def _broken(opcodes: bytes) -> dict[str, bytes]:
    broken = proto(2) + opcodes
    return {
        "zip": torch_zip(broken),
        "legacy": legacy_stream(broken),
        "tar": tar_archive(tar_members(broken)),
        "bare": broken,
    }


EXCEPTIONS = [
    Case((48, 53, 68), f"payload-and-then-{error}-in-{framing}", PAYLOAD, data)
    for error, opcodes in ERRORS.items()
    for framing, data in _broken(CALLS_SYSTEM + opcodes).items()
]


# 48, 54 to 58: what becomes of the value makes no difference

FATES = [
    Case(
        (48, 71),
        "chain-from-an-allowed-function-through-its-attributes",
        DOTTED,
        zipped(global_("collections", "OrderedDict.__init__.__globals__"), protocol=4),
    ),
    Case(
        (48, 71),
        "chain-from-an-allowed-module-to-another",
        DOTTED,
        zipped(call("torch", "serialization.os.system", "true"), protocol=4),
    ),
    Case(
        (54,),
        "obj-whose-result-is-popped",
        PAYLOAD,
        zipped(MARK, SYSTEM, value("true"), OBJ, POP, NONE),
        ("GHSA-mxhj-88fx-4pcv",),
    ),
    Case(
        (55,),
        "reduce-then-build-on-a-standard-class",
        STRANGE_STATE,
        zipped(call("builtins", "set"), value({"x": 1}), BUILD),
        ("GHSA-mhc9-48gj-9gp3",),
    ),
    Case(
        (55,),
        "payload-then-build-on-its-result",
        PAYLOAD,
        zipped(CALLS_SYSTEM, value({"__setstate__": 1}), BUILD),
        ("GHSA-mhc9-48gj-9gp3",),
    ),
    Case(
        (56,),
        "import-from-builtins-without-a-call",
        DANGEROUS,
        zipped(global_("builtins", "eval"), POP, NONE),
        ("GHSA-h4rm-mm56-xf63", "CVE-2026-22612"),
    ),
    Case(
        (57,),
        "the-same-call-a-second-time",
        at_least(Severity.MALICIOUS, "CKA101", says="posix.system('second')"),
        zipped(call("posix", "system", "first"), POP, call("posix", "system", "second")),
        ("GHSA-cffv-grgg-g429", "CVE-2026-14535"),
    ),
]


# 59 to 63: indirect ways to a call

_PLANTED = made("argparse", "Namespace", {"__setstate__": Raw(SYSTEM)})

INDIRECT = [
    Case(
        (59,),
        "name-computed-by-a-codec",
        COMPUTED,
        zipped(call("codecs", "decode", "cbfvk", "rot13"), value("system"), STACK_GLOBAL),
    ),
    Case(
        (59,),
        "name-computed-by-an-allowed-call",
        COMPUTED,
        zipped(call("_codecs", "encode", "posix", "latin1"), value("system"), STACK_GLOBAL),
    ),
    Case(
        (59,),
        "name-computed-by-an-operator",
        COMPUTED,
        zipped(call("operator", "add", "po", "six"), value("system"), STACK_GLOBAL),
    ),
    Case(
        (60,),
        "setstate-planted-and-then-used",
        STRANGE_STATE,
        zipped(_PLANTED, value("true"), BUILD),
    ),
    Case(
        (60,),
        "state-of-a-class",
        STRANGE_STATE,
        zipped(global_("argparse", "Namespace"), value({"x": 1}), BUILD),
    ),
    Case(
        (60,),
        "state-replaces-the-dict",
        STRANGE_STATE,
        zipped(NAMESPACE, value({"__dict__": {}}), BUILD),
    ),
    Case(
        (60,),
        "state-in-slots-replaces-the-class",
        STRANGE_STATE,
        zipped(NAMESPACE, value((None, {"__class__": named("collections", "OrderedDict")})), BUILD),
    ),
    Case(
        (60,),
        "state-of-a-function",
        STRANGE_STATE,
        zipped(global_("torch._utils", "_rebuild_tensor_v2"), value({"__code__": 1}), BUILD),
    ),
    Case((61,), "inst", PAYLOAD, zipped(inst("posix", "system", "true"))),
    Case((61,), "obj", PAYLOAD, zipped(MARK, SYSTEM, value("true"), OBJ)),
    Case((61,), "newobj", PAYLOAD, zipped(SYSTEM, ARGUMENT, NEWOBJ)),
    Case(
        (61,),
        "newobj-ex",
        PAYLOAD,
        zipped(SYSTEM, ARGUMENT, value({"x": 1}), NEWOBJ_EX, protocol=4),
    ),
    Case((62,), "extension-1", COMPUTED, zipped(called(ext1(1), "true"))),
    Case((62,), "extension-2", COMPUTED, zipped(called(ext2(1000), "true"))),
    Case((62,), "extension-4", COMPUTED, zipped(called(ext4(1 << 30), "true"))),
    Case(
        (62,),
        "extension-registered-in-the-same-pickle",
        DANGEROUS,
        zipped(
            call("copyreg", "add_extension", "posix", "system", 1), POP, called(ext1(1), "true")
        ),
    ),
    Case((63,), "persistent-id-of-text", STRANGE_ID, zipped(persid("storage"))),
    Case(
        (63,),
        "persistent-id-of-a-module-in-a-zip",
        STRANGE_ID,
        zipped(value(("module", named("collections", "OrderedDict"), "f.py", "x")), BINPERSID),
    ),
    Case(
        (63,),
        "persistent-id-of-a-module-that-is-a-function",
        NOT_LISTED,
        legacy_stream(pickled(value(("module", named("thing", "run"), "f.py", "x")), BINPERSID)),
    ),
    Case(
        (63,),
        "the-patch-writer-switched-on-for-all-modules",
        STRANGE_STATE,
        legacy_stream(
            pickled(
                global_("torch.nn.modules.container", "ParameterDict"),
                value({"dump_patches": True}),
                BUILD,
            )
        ),
    ),
    Case(
        (63, 92),
        "persistent-id-of-a-storage-in-a-bare-pickle",
        WRONG_STORAGE,
        pickled(tensor(storage_id("0", 2), (1 << 20,))),
    ),
    Case(
        (63,),
        "persistent-id-whose-place-is-a-call",
        PAYLOAD,
        zipped(storage_id("0", 1, location=Raw(CALLS_SYSTEM))),
    ),
]


CASES: tuple[Case, ...] = (*OPERANDS, *EXCEPTIONS, *FATES, *INDIRECT)
