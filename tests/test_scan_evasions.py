"""Files that were made to look clean, or to leave the scan without an answer, and what they are.

Each is a trick that once worked here: a second reading of the same bytes, an allowed name
put to a use of its own, a number too long to be written out.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from catalogue.case import EVIL, PLAIN_EVIL
from catalogue.objects import NO_GRADIENT
from commands import audit
from forge import (
    BUILD,
    MAGIC,
    MEMOIZE,
    NONE,
    POP,
    REDUCE,
    SETITEM,
    STACK_GLOBAL,
    STOP,
    Raw,
    binget,
    call,
    called,
    float_line,
    floats,
    global_,
    int_line,
    long1,
    long_line,
    made,
    object_npy,
    pax_header,
    pickled,
    proto,
    python_zip,
    safetensors_entry,
    safetensors_file,
    short_binunicode,
    storage_id,
    tar_archive,
    tar_member,
    tar_members,
    tensor,
    torch_entries,
    torch_zip,
    value,
    zip_archive,
)

from ckptaudit.containers import Kind, open_container
from ckptaudit.jobs.explain import explain
from ckptaudit.jobs.scan import ScanResult, scan
from ckptaudit.policy import Severity
from ckptaudit.source import BufferSource

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

Scanned = Callable[[bytes], ScanResult]


@pytest.fixture
def scanned(tmp_path: Path) -> Scanned:
    """Write bytes to a file and scan it."""

    def run(data: bytes) -> ScanResult:
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        return scan(path)

    return run


def rules_of(result: ScanResult) -> set[str]:
    return {finding.rule for finding in result.findings}


# A second reading of the same bytes


def safetensors_that_is_pickles(pickles: bytes) -> bytes:
    """A safetensors file whose only tensor is *pickles*, and which an unpickler reads up to there.

    The header is 86 bytes long, and ``V`` is 86: all up to the end of the line is a string, the
    brace that ends the header a dict, and the tensor's bytes are the next opcodes.
    """
    size = len(pickles)
    entry = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(entry, separators=(",", ":"))[:-1]
    return struct.pack("<Q", ord("V")) + f"{text:<84}\n}}".encode() + pickles


MAGIC_NUMBER = long1(MAGIC) + STOP
FOLLOWING = {
    "a-legacy-stream": MAGIC_NUMBER
    + pickled(value(1001))
    + pickled(value({}))
    + EVIL
    + pickled(value([])),
    "a-second-pickle": NONE + STOP + EVIL,
    "a-third-pickle": NONE + STOP + pickled(value(1)) + EVIL,
}


@pytest.mark.parametrize("pickles", FOLLOWING.values(), ids=FOLLOWING)
def test_what_follows_a_harmless_first_pickle_is_judged_in_a_framed_file_as_well(
    scanned: Scanned, pickles: bytes
) -> None:
    """torch.load goes on with the legacy schedule wherever the first pickle is its magic number."""
    result = scanned(safetensors_that_is_pickles(POP + POP + pickles))

    assert result.verdict is Severity.MALICIOUS
    assert rules_of(result) >= {"CKA101", "CKA110"}


def test_a_framed_file_that_is_a_harmless_pickle_as_well_is_what_its_framing_says(
    scanned: Scanned,
) -> None:
    result = scanned(safetensors_that_is_pickles(POP + POP + NONE + STOP))

    assert (result.verdict, result.coverage.complete) == (Severity.CLEAN, True)


# Numbers too long to be written out in decimal, which Python refuses beyond 4300 digits

HUGE = 1 << 16_000
LARGE_SHAPE = (1 << 61,) * 256
STORED = {"0": floats(1, 2)}
ON_STORAGE = Raw(storage_id("0", 2))
NO_HOOKS = Raw(call("collections", "OrderedDict"))

HUGE_NUMBERS = {
    "tensors-in-a-tar": tar_archive(
        {**tar_members(pickled(value({}))), "tensors": pickled(value(HUGE))}
    ),
    "storages-in-a-tar": tar_archive(
        {**tar_members(pickled(value({}))), "storages": pickled(value(HUGE))}
    ),
    "bytes-of-an-expanded-tensor": torch_zip(
        pickled(value({"w": Raw(tensor(storage_id("0", 2), LARGE_SHAPE, (0,) * 256))})), STORED
    ),
    "elements-of-a-tensor-of-safetensors": safetensors_file(
        {"w": safetensors_entry(LARGE_SHAPE, 0, 8)}, floats(1, 2)
    ),
    "a-size": torch_zip(
        pickled(
            value(
                {
                    "w": Raw(
                        call(
                            "torch._utils",
                            "_rebuild_tensor_v2",
                            *(ON_STORAGE, 0, (HUGE,), (1,), NO_GRADIENT, NO_HOOKS),
                        )
                    )
                }
            )
        ),
        STORED,
    ),
}


@pytest.mark.parametrize("command", ["scan", "inspect", "explain"])
@pytest.mark.parametrize("data", HUGE_NUMBERS.values(), ids=HUGE_NUMBERS)
def test_a_number_too_long_to_be_written_out_is_no_error_of_ours(
    tmp_path: Path, data: bytes, command: str
) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(data)

    done = audit(command, path)

    assert "internal error" not in done.err
    assert done.status != 0 or command != "scan"


# Allowed names, put to a use of their own

ATTRIBUTE_DICT = "lightning_fabric.utilities.data"
# It has an attribute that a rebuild function would call as a tensor's method.
IN_DISGUISE = Raw(made("argparse", "Namespace", {"detach": Raw(global_("builtins", "bytearray"))}))
MISUSED = {
    # Its items are attributes, and BUILD calls the one of this name.
    "an-attribute-dict-with-a-setstate-of-its-own": (
        "CKA107",
        made(ATTRIBUTE_DICT, "AttributeDict")
        + value("__setstate__")
        + global_("builtins", "bytearray")
        + SETITEM
        + value({"a": 1})
        + BUILD,
    ),
    "a-parameter-of-what-is-no-tensor": (
        "CKA103",
        call("torch._utils", "_rebuild_parameter", IN_DISGUISE, NO_GRADIENT, NO_HOOKS),
    ),
    "a-parameter-with-state-of-what-is-no-tensor": (
        "CKA103",
        call(
            "torch._utils",
            "_rebuild_parameter_with_state",
            *(IN_DISGUISE, NO_GRADIENT, NO_HOOKS, None),
        ),
    ),
    "a-parameter-class-of-what-is-no-tensor": (
        "CKA103",
        call("torch.nn.parameter", "Parameter", IN_DISGUISE, NO_GRADIENT),
    ),
    "a-device-tensor-of-what-is-no-tensor": (
        "CKA103",
        call(
            "torch._utils",
            "_rebuild_device_tensor_from_cpu_tensor",
            *(IN_DISGUISE, None, "cpu", NO_GRADIENT),
        ),
    ),
    "a-tensor-on-what-is-no-storage": (
        "CKA103",
        call("torch._utils", "_rebuild_tensor", IN_DISGUISE, 0, (1,), (1,)),
    ),
    "a-bit-generator-that-is-another-class": (
        "CKA103",
        call("numpy.random._pickle", "__bit_generator_ctor", Raw(global_("builtins", "dict"))),
    ),
    "a-generator-made-by-another-function": (
        "CKA103",
        call("numpy.random._pickle", "__generator_ctor", "x", Raw(global_("builtins", "dict"))),
    ),
    "a-seed-of-another-class": (
        "CKA103",
        call(
            "numpy.random.bit_generator",
            "__pyx_unpickle_SeedSequence",
            *(Raw(global_("builtins", "dict")), 1, None),
        ),
    ),
    "a-log-of-two-names": ("CKA103", call("logging", "getLogger", "x", "y")),
    "a-partial-of-a-type-of-records": (
        "CKA103",
        call("functools", "partial", Raw(global_("numpy", "dtype")))
        + value((Raw(global_("numpy", "dtype")), ("V8", 0, 1), None, None))
        + BUILD,
    ),
}


@pytest.mark.parametrize(("rule", "opcodes"), MISUSED.values(), ids=MISUSED)
def test_an_allowed_name_is_not_allowed_for_everything(
    scanned: Scanned, rule: str, opcodes: bytes
) -> None:
    result = scanned(torch_zip(pickled(opcodes)))

    assert rule in rules_of(result)
    assert result.verdict is Severity.SUSPICIOUS


def test_an_array_has_no_storages_beside_it(scanned: Scanned) -> None:
    result = scanned(object_npy(pickled(storage_id("0", 2))))

    assert rules_of(result) == {"CKA204"}


@pytest.mark.parametrize("pickle", [EVIL, PLAIN_EVIL], ids=["with-proto", "without-proto"])
@pytest.mark.parametrize("name", ["data.pkl", "evil.pkl", "x", "0.pkl", "\u0661"])
def test_a_storage_of_a_name_that_torch_does_not_give_is_looked_into(
    scanned: Scanned, name: str, pickle: bytes
) -> None:
    """A loader may go by how a name ends; torch's own storages are numbered, and never sniffed."""
    size = len(pickle)
    weights = Raw(tensor(storage_id(name, size, storage="ByteStorage"), (size,)))

    result = scanned(torch_zip(pickled(value({"w": weights})), {name: pickle}))

    assert result.verdict is Severity.MALICIOUS
    assert rules_of(result) == {"CKA101", "CKA110", "CKA203"}


def test_a_storage_of_a_strange_name_is_for_review(scanned: Scanned) -> None:
    result = scanned(torch_zip(pickled(tensor(storage_id("x", 2), (2,))), {"x": floats(1, 2)}))

    assert (result.verdict, rules_of(result)) == (Severity.REVIEW, {"CKA203"})


# Zip archives that torch refuses and Python's zipfile reads


def without_its_end64() -> bytes:
    """An archive whose locator leads past the end of the file; zipfile does not ask it."""
    data = bytearray(torch_zip(EVIL))
    locator = data.rfind(b"PK\6\7")
    struct.pack_into("<Q", data, locator + 8, 1 << 40)
    return bytes(data)


def packed_by_zipfile(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for entry in torch_entries(EVIL, {}):
            archive.writestr(entry.name, entry.data)
    return file.getvalue()


PYTHONS = {
    "locator-past-the-end": without_its_end64(),
    "more-entries-than-there-are": zip_archive(torch_entries(EVIL, {}), zip64=False, count=99),
    "bzip2": packed_by_zipfile(zipfile.ZIP_BZIP2),
    "lzma": packed_by_zipfile(zipfile.ZIP_LZMA),
}


@pytest.mark.parametrize("data", PYTHONS.values(), ids=PYTHONS)
def test_what_zipfile_would_read_is_judged_where_torch_gives_up(
    scanned: Scanned, data: bytes
) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("archive/data.pkl") == EVIL

    result = scanned(data)

    assert result.verdict is Severity.MALICIOUS
    assert "CKA101" in rules_of(result)


# Tar archives in which tarfile, by which torch reads them, would find other members

PARTS = tar_members(pickled(value({"w": 1})))
PLAIN_PARTS = b"".join(tar_member(name, data) for name, data in PARTS.items())
END_OF_TAR = bytes(1024)
# More beginnings of pickles than are tried in bytes that belong to nothing.
DECOY = tar_member("decoy", b"\xff\x80\x02" * 1100)


def checksummed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


def _in_an_old_directory() -> bytes:
    hidden = DECOY + tar_member("pickle", EVIL)
    return PLAIN_PARTS + tar_member("x/", hidden, typeflag=b"\0") + END_OF_TAR


def _behind_a_path_that_ends_in_a_slash() -> bytes:
    return PLAIN_PARTS + pax_header(path="pickle/") + tar_member("y", EVIL) + END_OF_TAR


def _before_one_with_a_prefix_and_no_magic() -> bytes:
    benign = bytearray(tar_member("pickle", PARTS["pickle"]))
    benign[257:265] = bytes(8)
    benign[345:346] = b"x"
    others = [tar_member(name, data) for name, data in PARTS.items() if name != "pickle"]
    return b"".join(others) + tar_member("pickle", EVIL) + checksummed(benign) + END_OF_TAR


def _with_a_checksum_in_strange_white_space() -> bytes:
    header = bytearray(tar_member("pickle", EVIL))
    header[148:156] = b" " * 8
    header[148:156] = b"\x1c%06o\0" % sum(header[:512])
    others = [tar_member(name, data) for name, data in PARTS.items() if name != "pickle"]
    return bytes(header) + b"".join(others) + END_OF_TAR


OTHER_MEMBERS = {
    "in-an-old-directory": _in_an_old_directory(),
    "behind-a-path-that-ends-in-a-slash": _behind_a_path_that_ends_in_a_slash(),
    "before-one-with-a-prefix-and-no-magic": _before_one_with_a_prefix_and_no_magic(),
    "with-a-checksum-in-strange-white-space": _with_a_checksum_in_strange_white_space(),
}


@pytest.mark.parametrize("data", OTHER_MEMBERS.values(), ids=OTHER_MEMBERS)
def test_the_member_that_tarfile_takes_is_the_object(data: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        pickle = archive.extractfile("pickle")
        assert pickle is not None
        assert pickle.read() == EVIL

    container = open_container(BufferSource(data))

    assert container.kind is Kind.TAR
    assert str(container.object_trace.events[0]) == "posix.system"


# Literals that one unpickler stops at and another does not


@pytest.mark.parametrize(
    "literal",
    [float_line(b"1_0.5"), float_line(b" 1"), long_line(b"9" * 5000), int_line(b"9" * 5000)],
    ids=["float-with-underscore", "float-with-space", "long-of-5000-digits", "int-of-5000-digits"],
)
def test_a_literal_that_some_unpickler_reads_does_not_end_the_reading(
    scanned: Scanned, literal: bytes
) -> None:
    """The rest is no pickle by itself: its names are in the memo of what came before."""
    names = short_binunicode("posix") + MEMOIZE + short_binunicode("system") + MEMOIZE
    payload = binget(0) + binget(1) + STACK_GLOBAL + value(("true",)) + REDUCE

    result = scanned(pickled(names, literal, payload, protocol=4))

    assert result.verdict is Severity.MALICIOUS
    assert rules_of(result) >= {"CKA101", "CKA109"}


# What a few kilobytes may cost: one call, or one object, a million times

AGAIN = 300


def over_and_over(first: bytes, second: bytes, action: bytes) -> bytes:
    """A pickle that does the same thing with the same two values over and over."""
    loop = (binget(0) + binget(1) + action + POP) * AGAIN
    return pickled(first, MEMOIZE, POP, second, MEMOIZE, POP, loop, NONE, protocol=4)


ATTRIBUTES = {f"a{number}": 1 for number in range(100)}
BY_TYPE = global_("torch._tensor", "_rebuild_from_type_v2")
REBUILD = global_("torch._utils", "_rebuild_tensor_v2")
TENSOR_CLASS = Raw(global_("torch", "Tensor"))
TENSOR_PARTS = (ON_STORAGE, 0, (2,), (1,), NO_GRADIENT, NO_HOOKS)
SUBCLASS = (Raw(REBUILD), TENSOR_CLASS, TENSOR_PARTS, ATTRIBUTES)

COSTLY = {
    "sizes": (global_("torch", "Size"), value((tuple(range(256)),)), REDUCE),
    "rebuild_by": (BY_TYPE, value((Raw(BY_TYPE), TENSOR_CLASS, SUBCLASS, ATTRIBUTES)), REDUCE),
    "with_state": (
        global_("torch._utils", "_rebuild_parameter_with_state"),
        value((Raw(tensor(storage_id("0", 2), (2,))), NO_GRADIENT, NO_HOOKS, ATTRIBUTES)),
        REDUCE,
    ),
    "hidden_names": (made("argparse", "Namespace"), value(ATTRIBUTES), BUILD),
    "_mersenne_twister": (
        call("random", "Random"),
        value((3, tuple(range(625)), None)),
        BUILD,
    ),
}


@pytest.mark.parametrize(("look", "parts"), COSTLY.items(), ids=COSTLY)
def test_what_is_done_again_with_the_same_values_is_not_looked_at_again(
    scanned: Scanned, look: str, parts: tuple[bytes, bytes, bytes]
) -> None:
    """Each look takes up to 40 microseconds, and the limits allow for a million events."""
    looks = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal looks
        looks += event == "call" and frame.f_code.co_name == look

    sys.setprofile(count)
    try:
        result = scanned(over_and_over(*parts))
    finally:
        sys.setprofile(None)

    assert 1 <= looks <= 4
    assert result.coverage.complete


def test_a_finding_about_a_call_is_made_as_often_as_the_call(scanned: Scanned) -> None:
    result = scanned(over_and_over(global_("torch", "Size"), value((("x",),)), REDUCE))

    assert sum(finding.rule == "CKA103" for finding in result.findings) == 200 + 1
    assert f"{AGAIN - 200} more" in result.findings[-1].message
    assert len({finding.stream_offset for finding in result.findings[:-1]}) == 200


# What may be done with a method that a module keeps

LAYER = Raw(global_("torch.nn.modules.linear", "Linear"))
METHOD = call("__builtin__", "getattr", LAYER, "forward")
NO_METHODS = {
    "a-hidden-one": ("CKA101", call("__builtin__", "getattr", LAYER, "__init__")),
    "a-path": ("CKA101", call("__builtin__", "getattr", LAYER, "forward.x")),
    "of-a-module": ("CKA101", call("__builtin__", "getattr", Raw(global_("torch", "nn")), "x")),
    "of-a-function": (
        "CKA101",
        call("builtins", "getattr", Raw(global_("torch.nn.functional", "relu")), "x"),
    ),
    "of-a-method": ("CKA101", call("builtins", "getattr", Raw(METHOD), "x")),
    "called": ("CKA103", called(METHOD, 1)),
    "with-a-state": ("CKA107", METHOD + value({"a": 1}) + BUILD),
    "a-tokenizer-that-looks-like-a-module": (
        "CKA102",
        made(
            "transformers.models.bert_japanese.tokenization_bert_japanese",
            "BertJapaneseTokenizer",
            {"training": True, "_parameters": {}, "_buffers": {}, "_modules": {}},
        ),
    ),
}


@pytest.mark.parametrize(("rule", "opcodes"), NO_METHODS.values(), ids=NO_METHODS)
def test_a_method_is_kept_and_nothing_else(scanned: Scanned, rule: str, opcodes: bytes) -> None:
    result = scanned(torch_zip(pickled(opcodes)))

    assert rule in rules_of(result)
    assert result.verdict in {Severity.SUSPICIOUS, Severity.MALICIOUS}


def test_a_thousand_broken_pickles_are_not_held_in_memory_at_once(scanned: Scanned) -> None:
    """No garbage is collected while a file is opened, and each reads half a megabyte."""
    broken = proto(2) + b"V"
    data = pickled(NONE) + b"\xff" + broken * 300 + b"x" * 500_000
    tracemalloc.start()
    try:
        result = scanned(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert "CKA202" in rules_of(result)
    assert peak < 20_000_000


# Arrays whose elements are pointers


def dtype_of(name: str, flags: int, size: int = -1, alignment: int = -1) -> Raw:
    state = (3, "|", None, None, None, size, alignment, flags)
    return Raw(call("numpy", "dtype", name, 0, 1) + value(state) + BUILD)


def array_of(kind: Raw, data: object) -> bytes:
    empty = call("numpy.core.multiarray", "_reconstruct", NDARRAY, (0,), b"b")
    return empty + value((1, (1,), kind, False, data)) + BUILD


NDARRAY = Raw(global_("numpy", "ndarray"))
OBJECTS = dtype_of("O8", 63)
POINTERS = {
    "bytes-for-objects": ("CKA107", array_of(OBJECTS, b"12345678")),
    "objects-that-are-not-to-be-pickled-as-a-list": ("CKA107", dtype_of("O8", 0).opcodes),
    "objects-of-another-type": ("CKA107", dtype_of("f8", 63).opcodes),
    "text-of-a-negative-size": ("CKA107", dtype_of("S4", 0, -8, 1).opcodes),
    "text-without-a-size": ("CKA107", dtype_of("U2", 8).opcodes),
    "numbers-of-another-size": ("CKA107", dtype_of("f8", 0, 4, 4).opcodes),
    "a-list-for-numbers": ("CKA107", array_of(dtype_of("f8", 0), [1.5])),
    "a-list-for-numbers-that-claim-to-be-objects": (
        "CKA107",
        array_of(dtype_of("f8", 63), [1.5]),
    ),
    "a-scalar": ("CKA103", call("numpy.core.multiarray", "scalar", OBJECTS, b"12345678")),
    "a-buffer": (
        "CKA103",
        call("numpy.core.numeric", "_frombuffer", b"12345678", OBJECTS, (1,), "C"),
    ),
}


@pytest.mark.parametrize(("rule", "opcodes"), POINTERS.values(), ids=POINTERS)
def test_objects_of_an_array_come_as_a_list_and_nothing_else_does(
    scanned: Scanned, rule: str, opcodes: bytes
) -> None:
    result = scanned(torch_zip(pickled(opcodes)))

    assert rule in rules_of(result)
    assert result.verdict is Severity.SUSPICIOUS


# End records that zipfile finds


def signature_in_its_end() -> bytes:
    """An archive whose end record has the signature of one again, for the numbers of disks."""
    data = bytearray(python_zip({"archive/data.pkl": EVIL}))
    data[-18:-14] = b"PK\5\6"
    return bytes(data)


def furthest_from_the_end() -> bytes:
    """An archive before as many bytes as zipfile looks past."""
    return python_zip({"archive/data.pkl": EVIL}) + b"x" * (1 << 16)


@pytest.mark.parametrize(
    "archive",
    [signature_in_its_end(), furthest_from_the_end()],
    ids=["signature-in-its-end", "furthest-from-the-end"],
)
def test_an_archive_that_zipfile_finds_in_a_tensor_is_found(
    scanned: Scanned, archive: bytes
) -> None:
    """Nothing of a storage that a tensor refers to is looked into; but zipfile does not know."""
    size = len(archive)
    data = safetensors_file({"w": safetensors_entry([size], 0, size, "U8")}, archive)
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        assert opened.read("archive/data.pkl") == EVIL

    result = scanned(data)

    assert rules_of(result) >= {"CKA101", "CKA201"}
    assert result.verdict is Severity.MALICIOUS


@pytest.mark.parametrize("inner", [False, True], ids=["itself", "a-call-it-would-make"])
def test_what_is_said_of_a_call_is_said_of_it_again(tmp_path: Path, *, inner: bool) -> None:
    """Its place aside: as many bytes, and in an explanation the same sentence."""
    asked, given = global_("torch", "Size"), value((("x",),))
    if inner:
        asked, given = BY_TYPE, value((Raw(REBUILD), TENSOR_CLASS, ("x",), {}))
    path = tmp_path / "model.pt"
    path.write_bytes(over_and_over(asked, given, REDUCE))

    told = [each for each in explain(path).findings if each.finding.rule == "CKA103"][:-1]

    assert len(told) == 200
    assert {each.finding.length for each in told} == {1}
    offsets = [each.finding.stream_offset for each in told]
    said = {each.sentence.replace(f"0x{at:x}", "") for each, at in zip(told, offsets, strict=True)}
    assert len(said) == 1
