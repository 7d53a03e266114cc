"""Heading B, continued: PROTO, FRAME, STOP, text, and pickles inside pickles."""

from __future__ import annotations

from forge import (
    BUILD,
    CALLS_SYSTEM,
    MARK,
    NONE,
    POP,
    REDUCE,
    SETITEM,
    STACK_GLOBAL,
    Raw,
    binunicode,
    bytearray8,
    call,
    called,
    float_line,
    floats,
    frame,
    global_,
    int_line,
    legacy_stream,
    long_line,
    made,
    object_npy,
    pickled,
    proto,
    short_binstring,
    stack_global,
    storage_id,
    string_line,
    tar_archive,
    tar_members,
    torch_zip,
    unicode_line,
    value,
    values,
    with_entry,
    zip_archive,
)

from catalogue.case import (
    BENIGN,
    DANGEROUS,
    DOTTED,
    ENTRIES,
    EVIL,
    HIDDEN_BYTES,
    NOT_LISTED,
    ODD_OPCODES,
    PAYLOAD,
    STRANGE_STATE,
    UNREAD_PICKLE,
    Case,
    at_least,
    calls,
    zipped,
)
from ckptaudit.policy import Severity

ARGUMENT = value(("true",))


# 64 to 66: PROTO, FRAME and STOP

_HARMLESS = value({"a": 1})
_UNSEEN = pickled(value({"a": 1}))

FRAMES = [
    Case(
        (64,),
        "proto-in-mid-stream-lets-a-dotted-name-resolve",
        DOTTED,
        zipped(proto(4), global_("collections", "OrderedDict.fromkeys")),
    ),
    Case((64,), "two-protos", ODD_OPCODES, zipped(proto(2), _HARMLESS)),
    Case((64,), "a-protocol-that-does-not-exist", ODD_OPCODES, zipped(_HARMLESS, protocol=6)),
    Case(
        (65,),
        "frame-longer-than-the-pickle",
        ODD_OPCODES,
        zipped(frame(1 << 40), _HARMLESS, protocol=4),
    ),
    Case(
        (65,),
        "frame-that-ends-inside-an-opcode",
        ODD_OPCODES,
        zipped(frame(3), _HARMLESS, protocol=4),
    ),
    Case(
        (65,),
        "payload-behind-the-end-of-a-frame",
        PAYLOAD,
        zipped(frame(1), NONE, POP, CALLS_SYSTEM, protocol=4),
    ),
    Case(
        (66,),
        "harmless-bytes-behind-stop",
        HIDDEN_BYTES,
        zip_archive(with_entry(ENTRIES, "data.pkl", data=BENIGN + b"\0" * 8)),
    ),
    Case(
        (66,),
        "payload-behind-stop-in-a-zip",
        PAYLOAD,
        zip_archive(with_entry(ENTRIES, "data.pkl", data=BENIGN + EVIL)),
    ),
    Case((66,), "payload-behind-stop-in-a-bare-pickle", PAYLOAD, _UNSEEN + EVIL),
    Case((66,), "several-pickles", UNREAD_PICKLE, _UNSEEN + _UNSEEN),
    Case((66,), "payload-behind-stop-and-junk", PAYLOAD, _UNSEEN + b"\0\xff junk" + EVIL),
    Case(
        (66,),
        "payload-behind-the-storages-of-a-legacy-stream",
        PAYLOAD,
        legacy_stream(
            pickled(value([Raw(storage_id("0", 2, view=(None,)))])),
            [("0", 2, floats(1, 2))],
            tail=EVIL,
        ),
    ),
    Case(
        (66,),
        "payload-behind-what-a-tar-member-is-read-for",
        PAYLOAD,
        tar_archive({**tar_members(_UNSEEN), "pickle": _UNSEEN + EVIL}),
    ),
    Case((66,), "marks-left-over-at-stop", ODD_OPCODES, zipped(MARK, NONE, MARK, MARK, _HARMLESS)),
]


# 67 to 71: text that means one thing to the loader and another to a parser

LENIENT: dict[str, bytes] = {
    "hexadecimal-int": int_line(b"0x10"),
    "octal-int": int_line(b"010"),
    "hexadecimal-long": long_line(b"0x10"),
    "int-up-to-a-nul": int_line(b"1\0junk"),
    "long-up-to-a-nul": long_line(b"5\0x"),
    "float-up-to-a-nul": float_line(b"1.5\0x"),
    "string-of-utf-8": string_line(b"'\xc3\xa9'"),
    "unicode-of-latin-1": unicode_line(b"\xe9"),
}

TEXT = [
    *(
        Case((67,), f"payload-behind-{what}", PAYLOAD, zipped(opcodes, POP, CALLS_SYSTEM))
        for what, opcodes in LENIENT.items()
    ),
    # torch.load(encoding="latin1"), as many a script has it, reads what utf-8 is none of.
    Case(
        (67,),
        "payload-behind-text-of-latin-1",
        PAYLOAD,
        zipped(short_binstring(b"caf\xe9"), POP, CALLS_SYSTEM),
    ),
    Case(
        (67,),
        "payload-behind-a-name-that-is-not-ascii",
        PAYLOAD,
        zipped(global_("caf\u00e9", "Thing"), POP, CALLS_SYSTEM),
    ),
    Case((69,), "python-2-module", DANGEROUS, calls("commands", "getoutput", "true")),
    Case((69,), "python-2-builtin-of-protocol-2", DANGEROUS, calls("__builtin__", "eval", "1")),
    Case(
        (69,),
        "python-2-builtin-of-protocol-4",
        DANGEROUS,
        zipped(called(stack_global("__builtin__", "eval"), "1"), protocol=4),
    ),
    Case((69,), "python-2-builtin-renamed", NOT_LISTED, calls("__builtin__", "reduce", 1)),
    Case((69,), "python-2-copyreg", DANGEROUS, calls("copy_reg", "add_extension", "a", "b", 1)),
    Case((69,), "python-2-class-that-has-moved", NOT_LISTED, calls("UserDict", "UserDict")),
    Case((69,), "python-2-pickle", DANGEROUS, calls("cPickle", "loads", b"")),
    Case((69,), "python-2-thread", NOT_LISTED, calls("thread", "start_new_thread", 1)),
    Case((69,), "python-2-download", DANGEROUS, calls("urllib2", "urlopen", "http://x.invalid")),
    Case(
        (70,),
        "name-with-string-escapes",
        PAYLOAD,
        zipped(
            string_line(rb"'\x70osix'"), string_line(rb"'\x73ystem'"),
            STACK_GLOBAL, ARGUMENT, REDUCE,
        ),
    ),
    Case(
        (70,),
        "name-with-unicode-escapes",
        PAYLOAD,
        zipped(
            unicode_line(rb"\u0070osix"), unicode_line(rb"\u0073ystem"),
            STACK_GLOBAL, ARGUMENT, REDUCE,
        ),
    ),
    Case(
        (70,),
        "name-with-a-surrogate",
        DOTTED,
        zipped(binunicode("collections\ud800"), value("OrderedDict"), STACK_GLOBAL),
    ),
    Case((70, 108), "name-that-looks-like-another", DOTTED, calls("c\u043ellections", "deque")),
    Case((70,), "name-with-a-space", DOTTED, calls("collections", "OrderedDict ")),
    Case((71,), "attribute-of-an-attribute", DOTTED, calls("builtins", "print.__class__.__base__")),
    Case((71,), "attribute-of-an-allowed-name", DOTTED, calls("torch", "Tensor.register_hook")),
    Case((71,), "hidden-attribute", DOTTED, calls("collections", "__builtins__")),
]  # fmt: skip


# 72 and 73: pickles inside pickles, and the scanner's own process


def _nested(opcodes: bytes) -> bytes:
    return pickled(call("torch.storage", "_load_from_bytes", opcodes))


LOADS_ARRAY = at_least(Severity.MALICIOUS, "CKA101", says="numpy.load")

NESTED = [
    Case((72,), "pickle-inside-load-from-bytes", PAYLOAD, torch_zip(_nested(EVIL))),
    Case((72,), "checkpoint-inside-load-from-bytes", PAYLOAD, torch_zip(_nested(torch_zip(EVIL)))),
    Case(
        (72,), "pickle-inside-a-pickle-inside-a-pickle", PAYLOAD, torch_zip(_nested(_nested(EVIL)))
    ),
    Case((47, 72), "pickle-inside-loads", PAYLOAD, calls("pickle", "loads", EVIL)),
    Case(
        (72,),
        "pickle-inside-loads-as-python-2-writes-bytes",
        PAYLOAD,
        calls("pickle", "loads", Raw(call("_codecs", "encode", EVIL.decode("latin1"), "latin1"))),
    ),
    Case(
        (72,),
        "pickle-inside-a-bytearray",
        PAYLOAD,
        calls("pickle", "loads", Raw(bytearray8(EVIL))),
    ),
    Case(
        (72,),
        "array-of-objects-inside-numpy-load",
        LOADS_ARRAY,
        calls("numpy", "load", object_npy(EVIL)),
    ),
    Case(
        (47, 72), "yaml-inside", DANGEROUS, calls("yaml", "unsafe_load", "!!python/name:os.system")
    ),
    Case((72,), "code-inside-marshal", DANGEROUS, calls("marshal", "loads", b"\xe3")),
    Case(
        (72,),
        "array-beside-a-joblib-pickle",
        DANGEROUS,
        pickled(made("joblib.numpy_pickle", "NumpyArrayWrapper", {"allow_mmap": True}))
        + floats(1, 2),
        filename="model.joblib",
    ),
    Case(
        (73,),
        "list-of-loaded-modules-changed",
        DANGEROUS,
        zipped(global_("sys", "modules"), values("scanner", None), SETITEM),
    ),
    Case(
        (73,),
        "scanner-imported-and-its-state-replaced",
        STRANGE_STATE,
        zipped(global_("scanner", "unsafe_globals"), value({"os": None}), BUILD),
    ),
]

CASES: tuple[Case, ...] = (*FRAMES, *TEXT, *NESTED)
