"""Each way to ask for harm falls under its rule, and is found wherever the pickle breaks."""

from __future__ import annotations

import pytest
from forge import (
    ADDITEMS,
    APPEND,
    APPENDS,
    BINPERSID,
    BUILD,
    CALLS_SYSTEM,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ,
    NEWOBJ_EX,
    NONE,
    OBJ,
    POP,
    READONLY_BUFFER,
    REDUCE,
    SETITEM,
    SETITEMS,
    STACK_GLOBAL,
    TUPLE,
    TUPLE1,
    TUPLE2,
    Raw,
    binget,
    binput,
    call,
    ext1,
    ext4,
    global_,
    inst,
    persid,
    pickled,
    proto,
    storage_id,
    tensor,
    torch_zip,
    unicode_line,
    value,
    values,
)

from ckptaudit.containers import open_container
from ckptaudit.policy import Judgement, Severity, judge
from ckptaudit.source import BufferSource
from ckptaudit.tensors import misfits

MODULE_STATE: dict[str, object] = {
    "training": True,
    "_parameters": {},
    "_buffers": {},
    "_modules": {},
}


def judged(data: bytes) -> Judgement:
    return judge(open_container(BufferSource(data)))


def judged_pickle(*parts: bytes) -> Judgement:
    return judged(torch_zip(pickled(*parts)))


def named(module: str, name: str) -> Raw:
    return Raw(global_(module, name))


def made(module: str, name: str, state: object = None) -> bytes:
    """NEWOBJ without arguments, and BUILD if there is a state."""
    build = b"" if state is None else value(state) + BUILD
    return global_(module, name) + EMPTY_TUPLE + NEWOBJ + build


THING = made("thing", "Thing")
NAMESPACE = made("argparse", "Namespace")
LAYER = named("torch.nn.modules.linear", "Linear")


def dtype(name: str = "O", flags: int = 0) -> bytes:
    """A NumPy dtype with the flags of another."""
    state = (3, "|", None, None, None, -1, -1, flags)
    return call("numpy", "dtype", name, 0, 1) + value(state) + BUILD


def ndarray(kind: bytes, data: object) -> bytes:
    array = named("numpy", "ndarray")
    made = call("numpy.core.multiarray", "_reconstruct", array, (0,), b"b")
    return made + value((1, (1,), Raw(kind), False, data)) + BUILD


HOSTILE: dict[str, tuple[str, bytes]] = {
    # Names
    "runs-a-command": ("CKA101", CALLS_SYSTEM),
    "runs-a-command-and-drops-the-result": ("CKA101", CALLS_SYSTEM + POP + NONE),
    "names-a-command-only": ("CKA101", global_("os", "system")),
    "inst": ("CKA101", inst("posix", "system", "true")),
    "obj": ("CKA101", MARK + global_("posix", "system") + value("true") + OBJ),
    "newobj": ("CKA101", global_("subprocess", "Popen") + value(("true",)) + NEWOBJ),
    "newobj-ex": ("CKA101", values(named("subprocess", "Popen"), (), {"args": "true"}) + NEWOBJ_EX),
    "stack-global": (
        "CKA101",
        values("posix", "system") + STACK_GLOBAL + value(("true",)) + REDUCE,
    ),
    "python-2-name": ("CKA101", call("commands", "getoutput", "true")),
    "python-2-builtin": ("CKA101", call("__builtin__", "eval", "1")),
    "nested-pickle": ("CKA101", call("torch.storage", "_load_from_bytes", b"x")),
    "escaped-name": ("CKA101", unicode_line(b"p\\u006fsix") + value("system") + STACK_GLOBAL),
    "unknown-function": ("CKA102", call("thing", "run", "true")),
    "case-differs": ("CKA102", call("Collections", "OrderedDict")),
    "submodule-of-an-allowed-one": ("CKA102", call("collections.abc", "OrderedDict")),
    "torch-but-not-listed": ("CKA102", call("torch.utils.dlpack", "to_dlpack", "true")),
    "submodule-of-a-dangerous-one": ("CKA101", call("pandas.io.anything", "read", "true")),
    "dotted-name": ("CKA105", global_("torch", "serialization.os.system")),
    "hidden-name": ("CKA105", global_("collections", "__builtins__")),
    "cyrillic-name": ("CKA105", global_("c\u043ellections", "OrderedDict")),
    "name-with-a-space": ("CKA105", global_("collections", "OrderedDict ")),
    "module-with-control-characters": ("CKA105", global_("thing\x1b[2J", "Thing")),
    "module-with-a-space": ("CKA105", global_("thing ", "Thing")),
    "module-without-a-name": ("CKA105", global_("", "Thing")),
    "computed-module": ("CKA104", call("builtins", "str") + value("system") + STACK_GLOBAL),
    "name-of-bytes": ("CKA104", values(b"posix", b"system") + STACK_GLOBAL),
    "extension": ("CKA104", ext1(1) + value(("true",)) + REDUCE),
    "negative-extension": ("CKA104", ext4(-1)),
    "buffer": ("CKA104", NONE + READONLY_BUFFER),
    # Calls of allowed names
    "calls-a-storage-type": ("CKA103", call("torch", "FloatStorage", 5)),
    "calls-a-dtype": ("CKA103", call("torch", "float32")),
    "calls-a-callback": ("CKA103", call("pytorch_lightning.callbacks", "ModelCheckpoint", "/etc")),
    "calls-the-result-of-a-call": (
        "CKA103",
        call("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE,
    ),
    "calls-a-persistent-id": ("CKA103", storage_id("0", 1) + EMPTY_TUPLE + REDUCE),
    "calls-a-string": ("CKA103", value("x") + EMPTY_TUPLE + REDUCE),
    "arguments-are-no-tuple": ("CKA103", global_("builtins", "set") + value([]) + REDUCE),
    "keywords": ("CKA103", values(named("collections", "OrderedDict"), (), {"a": 1}) + NEWOBJ_EX),
    "rebuild-by-a-function": (
        "CKA103",
        call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            named("_codecs", "encode"),
            named("torch", "Tensor"),
            ("x", "latin1"),
            {},
        ),
    ),
    "rebuild-sets-a-hidden-attribute": (
        "CKA103",
        call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            named("torch._utils", "_rebuild_tensor_v2"),
            named("torch", "Tensor"),
            (),
            {"__class__": 1},
        ),
    ),
    "parameter-sets-a-hidden-attribute": (
        "CKA103",
        call("torch._utils", "_rebuild_parameter_with_state", None, 1, None, {"__class__": 1}),
    ),
    "backward-hooks": (
        "CKA103",
        call(
            "torch._utils",
            "_rebuild_tensor_v2",
            Raw(storage_id("0", 1)),
            0,
            (1,),
            (1,),
            1,
            {0: named("builtins", "set")},
        ),
    ),
    "a-codec-of-its-own": ("CKA103", call("_codecs", "encode", "x", "zlib")),
    "encodes-what-is-made": ("CKA103", call("_codecs", "encode", Raw(NAMESPACE), "latin1")),
    "factory-is-a-function": (
        "CKA103",
        call("collections", "defaultdict", named("_codecs", "encode")),
    ),
    "factory-is-made": ("CKA103", call("collections", "defaultdict", Raw(NAMESPACE))),
    "a-terabyte-of-zeros": ("CKA103", call("builtins", "bytearray", 1 << 40)),
    "a-list-of-a-range": (
        "CKA103",
        call("builtins", "list", Raw(call("builtins", "range", 1 << 40))),
    ),
    "a-fraction-of-a-terabyte": ("CKA103", call("fractions", "Fraction", "1e999999999999")),
    "text-of-an-object": ("CKA103", call("builtins", "str", Raw(NAMESPACE))),
    "config-with-arguments": (
        "CKA103",
        call("omegaconf.listconfig", "ListConfig", "${oc.env:HOME}"),
    ),
    "reconstructor-with-a-base": (
        "CKA103",
        call(
            "copyreg", "_reconstructor", named("argparse", "Namespace"), named("builtins", "int"), 1
        ),
    ),
    "reconstructor-of-a-storage": (
        "CKA103",
        call(
            "copyreg",
            "_reconstructor",
            named("torch.storage", "TypedStorage"),
            named("builtins", "object"),
            None,
        ),
    ),
    "reconstructor-of-a-class": (
        "CKA102",
        call(
            "copyreg", "_reconstructor", named("thing", "Thing"), named("builtins", "object"), None
        ),
    ),
    "numpy-dtype-of-objects": ("CKA103", call("numpy", "dtype", "O", 0, 1)),
    "numpy-dtype-of-fields": ("CKA103", call("numpy", "dtype", "i4,O")),
    "numpy-array-of-pointers": ("CKA103", ndarray(dtype("O"), b"A" * 8)),
    "numpy-dtype-that-becomes-objects": ("CKA107", ndarray(dtype("i8", flags=63), b"A" * 8)),
    "numpy-array-of-a-subclass": (
        "CKA103",
        call("numpy.core.multiarray", "_reconstruct", named("collections", "deque"), (0,), b"b"),
    ),
    "numpy-array-called": ("CKA103", call("numpy", "ndarray", (1,), "O", b"A" * 8)),
    "numpy-scalar-of-something": ("CKA103", call("numpy.core.multiarray", "scalar", "O", b"A" * 8)),
    # Items
    "items-in-a-tensor": ("CKA103", tensor(storage_id("0", 1), (1,)) + values(0, 1) + SETITEM),
    "items-in-a-storage": ("CKA103", storage_id("0", 1) + values(0, 1) + SETITEM),
    "items-in-a-class": ("CKA103", global_("torch", "Tensor") + values(0, 1) + SETITEM),
    "items-in-a-namespace": ("CKA103", NAMESPACE + MARK + values(0, 1) + SETITEMS),
    "appends-to-a-parameter": ("CKA103", call("torch.nn", "Parameter") + NONE + APPEND),
    "appends-to-a-namespace": ("CKA103", NAMESPACE + MARK + values(0, 1) + APPENDS),
    "adds-to-a-namespace": ("CKA103", NAMESPACE + MARK + values(0, 1) + ADDITEMS),
    # State
    "state-of-a-class": ("CKA107", global_("torch", "Tensor") + value({"x": 1}) + BUILD),
    "state-of-a-list": ("CKA107", value([]) + value({"x": 1}) + BUILD),
    "state-of-a-storage": ("CKA107", storage_id("0", 1) + value({"x": 1}) + BUILD),
    "state-of-a-value": ("CKA107", call("builtins", "set") + value({"x": 1}) + BUILD),
    "state-is-no-dict": ("CKA107", NAMESPACE + value("x") + BUILD),
    "hidden-attribute": ("CKA107", NAMESPACE + value({"__setstate__": 1}) + BUILD),
    "hidden-attribute-in-a-slot": ("CKA107", NAMESPACE + value((None, {"__class__": 1})) + BUILD),
    "hidden-attribute-in-an-ordered-dict": (
        "CKA107",
        NAMESPACE + call("collections", "OrderedDict") + values("__class__", 1) + SETITEM + BUILD,
    ),
    "hidden-attribute-and-then-none": (
        "CKA107",
        NAMESPACE + value({"__class__": 1}) + BUILD + value({}) + BUILD,
    ),
    # Persistent ids
    "persistent-id-of-text": ("CKA106", persid("0")),
    "persistent-id-of-a-number": ("CKA106", value(5) + BINPERSID),
    "persistent-id-of-a-class-in-a-zip": (
        "CKA106",
        value(("module", named("collections", "OrderedDict"), None, None)) + BINPERSID,
    ),
    "persistent-id-of-a-class-in-a-tar-in-a-zip": (
        "CKA106",
        value((named("collections", "OrderedDict"), None, None)) + BINPERSID,
    ),
    "persistent-id-with-a-number-for-a-place": ("CKA106", storage_id("0", 1, location=5)),
    "persistent-id-with-a-size-of-text": ("CKA106", storage_id("0", "1")),
    "persistent-id-of-a-strange-type": (
        "CKA106",
        storage_id("0", 1, module="collections", storage="deque"),
    ),
    # Modules
    "module-state-and-a-call": (
        "CKA102",
        global_("thing", "Thing")
        + binput(0)
        + EMPTY_TUPLE
        + NEWOBJ
        + value(MODULE_STATE)
        + BUILD
        + binget(0)
        + value(("true",))
        + REDUCE
        + TUPLE2,
    ),
    "module-state-after-another": (
        "CKA102",
        made("thing", "Thing", {"x": 1}) + value(MODULE_STATE) + BUILD,
    ),
    "module-without-state": ("CKA102", THING),
    "module-of-the-standard-library": ("CKA102", made("sched", "scheduler", MODULE_STATE)),
    "module-of-a-library-that-has-none": ("CKA102", made("sklearn.base", "Net", MODULE_STATE)),
    "module-of-torch-that-is-no-layer": ("CKA102", made("torch.utils.data", "Net", MODULE_STATE)),
    "module-beside-the-models-of-a-library": (
        "CKA102",
        made("transformers.trainer", "Net", MODULE_STATE),
    ),
    "module-whose-place-is-only-a-prefix": ("CKA102", made("torch.nnet", "Net", MODULE_STATE)),
    "module-without-buffers": (
        "CKA102",
        made("thing", "Thing", {"training": True, "_parameters": {}, "_modules": {}}),
    ),
    "module-whose-parts-are-no-dict": (
        "CKA102",
        made("thing", "Thing", {**MODULE_STATE, "_modules": 1}),
    ),
    "module-whose-parts-are-replaced": (
        "CKA102",
        global_("thing", "Thing")
        + EMPTY_TUPLE
        + NEWOBJ
        + (value(MODULE_STATE) + values("_modules", 1) + SETITEM)
        + BUILD,
    ),
    "module-that-is-given-items": (
        "CKA103",
        made("thing", "Thing", MODULE_STATE) + values("a", 1) + SETITEM,
    ),
    "layer-of-a-terabyte": ("CKA102", call("torch.nn.modules.linear", "Linear", 1 << 20, 1 << 20)),
    "layer-without-state": ("CKA102", made("torch.nn.modules.linear", "Linear")),
    "layer-without-state-by-copyreg": (
        "CKA102",
        call("copyreg", "__newobj__", named("torch.nn.modules.linear", "Linear")),
    ),
    "function-beside-the-layers": (
        "CKA102",
        global_("torch.nn.modules.module", "register_module_forward_hook"),
    ),
    "activation-that-is-called": ("CKA103", call("torch.nn.functional", "relu", 1 << 40)),
    # Functions for later
    "partial-of-a-command": ("CKA101", call("functools", "partial", named("posix", "system"))),
    "partial-of-an-unknown-function": ("CKA102", call("functools", "partial", named("a", "b"))),
    "partial-of-a-command-by-its-state": (
        "CKA101",
        call("functools", "partial", LAYER)
        + value((named("posix", "system"), ("true",), {}, None))
        + BUILD,
    ),
    "partial-with-arguments": ("CKA103", call("functools", "partial", LAYER, 1 << 40)),
    "partial-of-what-a-call-made": ("CKA103", call("functools", "partial", Raw(NAMESPACE))),
    "partial-that-is-called": (
        "CKA103",
        call("functools", "partial", LAYER) + EMPTY_TUPLE + REDUCE,
    ),
    "partial-with-state-of-another-kind": (
        "CKA107",
        call("functools", "partial", LAYER) + value({"func": 1}) + BUILD,
    ),
    "partial-with-a-hidden-attribute": (
        "CKA107",
        call("functools", "partial", LAYER) + value((LAYER, (), {}, {"__class__": 1})) + BUILD,
    ),
    # Empty objects
    "newobj-of-copyreg-with-arguments": (
        "CKA103",
        call("copyreg", "__newobj__", named("argparse", "Namespace"), 1),
    ),
    "newobj-of-copyreg-of-a-class": (
        "CKA102",
        call("copyreg", "__newobj__", named("thing", "Thing")),
    ),
    "newobj-of-copyreg-of-a-storage": (
        "CKA103",
        call("copyreg", "__newobj__", named("torch", "FloatStorage")),
    ),
    # What is called at second hand
    "rebuild-by-a-command": (
        "CKA101",
        call(
            "torch.tensor",
            "_rebuild_from_type",
            named("posix", "system"),
            named("torch", "Tensor"),
            ("true",),
            {},
        ),
    ),
    "rebuild-by-a-rebuild-that-is-not-listed": (
        "CKA102",
        call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            named("torch._utils", "_rebuild_anything"),
            named("torch", "Tensor"),
            ("true",),
            {},
        ),
    ),
    "module-that-is-dangerous": ("CKA101", made("threading", "Thread", MODULE_STATE)),
}


@pytest.mark.parametrize(("rule", "opcodes"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_event_falls_under_its_rule(rule: str, opcodes: bytes) -> None:
    judgement = judged_pickle(opcodes)

    assert rule in {finding.rule for finding in judgement.findings}
    assert judgement.verdict >= Severity.SUSPICIOUS


@pytest.mark.parametrize(("rule", "opcodes"), HOSTILE.values(), ids=HOSTILE)
def test_an_event_is_found_though_the_pickle_breaks_after_it(rule: str, opcodes: bytes) -> None:
    judgement = judged(torch_zip(proto(2) + opcodes + b"\xff"))

    assert rule in {finding.rule for finding in judgement.findings}
    assert not judgement.coverage.complete


@pytest.mark.parametrize(("rule", "opcodes"), HOSTILE.values(), ids=HOSTILE)
def test_a_finding_points_at_the_bytes_of_its_opcode(rule: str, opcodes: bytes) -> None:
    data = torch_zip(pickled(opcodes))
    start = data.index(pickled(opcodes))

    findings = [found for found in judged(data).findings if found.rule == rule]

    for finding in findings:
        at = finding.stream_offset
        assert at is not None
        assert finding.offset == start + at
        assert finding.record == "archive/data.pkl"
        assert data[start + at] in b"ciRo\x81\x92\x93\x82\x84\x98sauebQP\x90"


# Ways to put values into values; each is opcodes before and behind what is inside.
_FROM_TYPE = global_("torch._tensor", "_rebuild_from_type_v2") + global_("torch", "Tensor")
_ORDERED = global_("collections", "OrderedDict")
NESTINGS = {
    "tuples": (b"", TUPLE1),
    "lists": (EMPTY_LIST, APPEND),
    "dicts": (EMPTY_DICT + NONE, SETITEM),
    "arguments": (_ORDERED, TUPLE1 + REDUCE),
    "functions": (b"", EMPTY_TUPLE + REDUCE),
    "states": (_ORDERED + EMPTY_TUPLE + REDUCE, BUILD),
    "persistent-ids": (b"", BINPERSID),
    "rebuild-calls": (MARK + _FROM_TYPE, NONE + TUPLE),
}


@pytest.mark.parametrize("depth", [10, 3000, 60_000])
@pytest.mark.parametrize(("before", "behind"), NESTINGS.values(), ids=NESTINGS)
def test_no_depth_takes_a_finding_away(before: bytes, behind: bytes, depth: int) -> None:
    """What is as deep as the file likes must be walked by loops, or not at all."""
    nested = before * depth + EMPTY_TUPLE + behind * depth
    if behind == NONE + TUPLE:
        nested = global_("torch._tensor", "_rebuild_from_type_v2") + nested + REDUCE

    container = open_container(BufferSource(torch_zip(pickled(CALLS_SYSTEM, POP, nested))))

    assert judge(container, misfits).verdict is Severity.MALICIOUS
