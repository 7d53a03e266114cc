"""What honest writers write, forged: torch 0.1 to 2.13, Lightning, NumPy 1 and 2, Python 2.

An object comes as the opcodes that push it, told how its framing refers to a storage: the
legacy stream puts one more element into a persistent id.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from forge import (
    BUILD,
    EMPTY_TUPLE,
    MARK,
    NEWFALSE,
    NEWOBJ,
    NEWTRUE,
    SETITEMS,
    Raw,
    call,
    global_,
    made,
    short_binstring,
    storage_id,
    tensor,
    value,
    values,
)

from catalogue.case import named

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["OBJECTS", "REVIEWED", "Storages", "module_state"]

# What torch calls requires_grad.
GRADIENT, NO_GRADIENT = Raw(NEWTRUE), Raw(NEWFALSE)


class Storages:
    """Hands out persistent ids as one framing writes them, and keeps what they refer to.

    Attributes:
        contents: By key, elements and bytes of each storage asked for.
    """

    def __init__(self, view: tuple[object, ...] = ()) -> None:
        self.contents: dict[str, tuple[int, bytes]] = {}
        self._view = view

    def __call__(
        self,
        key: str,
        numel: int,
        *,
        itemsize: int = 4,
        module: str = "torch",
        storage: str = "FloatStorage",
        location: str = "cpu",
    ) -> bytes:
        """The persistent id of a storage of zeros."""
        self.contents[key] = (numel, bytes(numel * itemsize))
        return storage_id(
            key, numel, module=module, storage=storage, location=location, view=self._view
        )


if TYPE_CHECKING:
    Make = Callable[[Storages], bytes]

PARAMETER_DICT = "torch.nn.modules.container"
LIGHTNING = ("pytorch_lightning", "lightning.pytorch")


def ordered(pairs: Mapping[str, object] | None = None, **attributes: object) -> Raw:
    """An OrderedDict: an empty one, its items, its attributes."""
    opcodes = call("collections", "OrderedDict")
    if pairs:
        opcodes += MARK + values(*(part for pair in pairs.items() for part in pair)) + SETITEMS
    if attributes:
        opcodes += value(attributes) + BUILD
    return Raw(opcodes)


def module_state(**parts: object) -> dict[str, object]:
    """What every ``torch.nn.Module`` has, and *parts*."""
    empty = {
        name: ordered()
        for name in ("_parameters", "_buffers", "_modules", "_backward_hooks", "_forward_hooks")
    }
    hidden = {"_non_persistent_buffers_set": Raw(call("__builtin__", "set", []))}
    return {"training": True, **empty, **hidden, **parts}


def dtype(name: str, order: str = "<") -> Raw:
    state = (3, order, None, None, None, -1, -1, 0)
    if name.startswith("U"):
        # Text says how long it is, aligned like a character; its flag is NPY_NEEDS_INIT.
        state = (3, order, None, None, None, 4 * int(name[1:]), 4, 8)
    return Raw(call("numpy", "dtype", name, 0, 1) + value(state) + BUILD)


def latin1(data: bytes) -> Raw:
    """Bytes as protocol 2 writes them."""
    return Raw(call("_codecs", "encode", data.decode("latin1"), "latin1"))


def array(module: str, kind: Raw, shape: tuple[int, ...], data: object) -> bytes:
    empty = call(
        f"{module}.multiarray", "_reconstruct", named("numpy", "ndarray"), (0,), latin1(b"b")
    )
    return empty + value((1, shape, kind, False, data)) + BUILD


def parameter(ids: Storages) -> bytes:
    return call("torch._utils", "_rebuild_parameter", Raw(weights(ids)), GRADIENT, ordered())


def weights(ids: Storages) -> bytes:
    return tensor(ids("0", 2), (2,))


def _subclass(module: str, rebuild: str, ids: Storages) -> bytes:
    """A tensor of a class derived from Tensor, with an attribute of its own."""
    args = (Raw(ids("0", 2)), 0, (2,), (1,), NO_GRADIENT, ordered())
    function = named("torch._utils", "_rebuild_tensor_v2")
    return call(module, rebuild, function, named("torch", "Tensor"), args, {"note": 1})


def plain(opcodes: bytes) -> Make:
    """An object that refers to no storage."""
    return lambda _: opcodes


# Objects: what 6.1 j of the reference lists first, then the rest of its allowlist.
OBJECTS: dict[str, Make] = {
    "ordered-dict-with-metadata": lambda ids: (
        ordered({"w": Raw(weights(ids))}, _metadata=ordered({"": {"version": 1}})).opcodes
    ),
    "parameter": parameter,
    "parameter-dict-of-a-textual-inversion": lambda ids: made(
        PARAMETER_DICT,
        "ParameterDict",
        module_state(_parameters=ordered({"*": Raw(parameter(ids))})),
    ),
    "parameter-list": lambda ids: made(
        PARAMETER_DICT,
        "ParameterList",
        module_state(_parameters=ordered({"0": Raw(parameter(ids))})),
    ),
    **{
        f"callback-of-{package}-as-a-key": plain(
            ordered().opcodes
            + MARK
            + global_(f"{package}.callbacks.model_checkpoint", "ModelCheckpoint")
            + value({"best_model_score": None, "monitor": "val/loss"})
            + SETITEMS
        )
        for package in LIGHTNING
    },
    "namespace": plain(made("argparse", "Namespace", {"lr": 0.1, "name": "x", "sizes": [1, 2]})),
    "namespace-of-protocol-1": plain(
        call(
            "copy_reg",
            "_reconstructor",
            named("argparse", "Namespace"),
            named("__builtin__", "object"),
            None,
        )
        + value({"lr": 0.1})
        + BUILD
    ),
    "namespace-by-newobj-of-copyreg": plain(
        call("copyreg", "__newobj__", named("argparse", "Namespace")) + value({"lr": 0.1}) + BUILD
    ),
    "numpy-1-scalar": plain(
        call("numpy.core.multiarray", "scalar", dtype("f8"), latin1(b"\0" * 8))
    ),
    "numpy-2-scalar": plain(call("numpy._core.multiarray", "scalar", dtype("f4"), b"\0" * 4)),
    "numpy-1-array": plain(array("numpy.core", dtype("i8"), (2,), latin1(bytes(16)))),
    "numpy-2-array": plain(array("numpy._core", dtype("f4"), (1, 2), bytes(8))),
    "numpy-array-of-text": plain(array("numpy.core", dtype("U2"), (1,), bytes(8))),
    "numpy-array-in-a-buffer": plain(
        call("numpy._core.numeric", "_frombuffer", b"\0" * 8, dtype("f4"), (2,), "C")
    ),
    "numpy-array-of-python-2": plain(
        call(
            "numpy.core.multiarray",
            "_reconstruct",
            named("numpy", "ndarray"),
            (0,),
            Raw(short_binstring(b"b")),
        )
        + value((1, (1,), dtype("f4"), False, Raw(short_binstring(b"\0\0\x80\x3f"))))
        + BUILD
    ),
    "numpy-scalar-of-python-2": plain(
        call("numpy.core.multiarray", "scalar", dtype("f4"), Raw(short_binstring(b"\0\0\x80\x3f")))
    ),
    "time-of-python-2": plain(
        call("datetime", "datetime", Raw(short_binstring(b"\x07\xe4\1\1\0\0\0\0\0\0")))
    ),
    "numpy-dtype-class": plain(global_("numpy.dtypes", "Float64DType")),
    "python-2-keys": plain(MARK + short_binstring(b"w\xc3\xa9") + value(1) + b"d"),
    "python-2-set": plain(call("__builtin__", "set", [1, 2])),
    "python-2-ordered-dict": plain(call("collections", "OrderedDict", [["a", 1], ["b", 2]])),
    "float8-on-an-untyped-storage": lambda ids: call(
        "torch._utils",
        "_rebuild_tensor_v3",
        Raw(ids("0", 8, itemsize=1, module="torch.storage", storage="UntypedStorage")),
        0,
        (8,),
        (1,),
        NO_GRADIENT,
        ordered(),
        named("torch", "float8_e4m3fn"),
    ),
    "untyped-storage": lambda ids: ids(
        "0", 8, itemsize=1, module="torch.storage", storage="UntypedStorage"
    ),
    "tensor-of-torch-0.3": lambda ids: call(
        "torch._utils", "_rebuild_tensor", Raw(ids("0", 2)), 0, (2,), (1,)
    ),
    "tensor-of-torch-0.1": lambda ids: (
        global_("torch", "FloatTensor")
        + EMPTY_TUPLE
        + NEWOBJ
        + value((Raw(ids("0", 2)), 0, (2,), (1,)))
        + BUILD
    ),
    "tensor-on-a-gpu": lambda ids: tensor(
        ids("0", 2, module="torch.cuda", location="cuda:99"), (2,)
    ),
    "tensor-on-a-device-of-its-own": lambda ids: tensor(
        ids("0", 2, location="privateuseone:0"), (2,)
    ),
    **{
        f"tensor-of-a-subclass-by-{module}": partial(_subclass, module, rebuild)
        for module, rebuild in (
            ("torch._tensor", "_rebuild_from_type_v2"),
            # torch 1.7 and 1.8; the module has moved since.
            ("torch.tensor", "_rebuild_from_type"),
        )
    },
    "parameter-with-state": lambda ids: call(
        "torch._utils",
        "_rebuild_parameter_with_state",
        Raw(weights(ids)),
        GRADIENT,
        ordered(),
        {"note": 1},
    ),
    "tensor-of-directml": plain(
        call(
            "torch._utils",
            "_rebuild_device_tensor_from_numpy",
            Raw(array("numpy.core", dtype("f4"), (2,), latin1(bytes(8)))),
            named("torch", "float32"),
            "privateuseone:0",
            NO_GRADIENT,
        )
    ),
    "meta-tensor": plain(
        call(
            "torch._utils",
            "_rebuild_meta_tensor_no_storage",
            named("torch", "float32"),
            (2,),
            (1,),
            NO_GRADIENT,
        )
    ),
    "quantised-tensor": lambda ids: call(
        "torch._utils",
        "_rebuild_qtensor",
        Raw(ids("0", 8, itemsize=1, storage="QInt8Storage")),
        0,
        (8,),
        (1,),
        (named("torch", "per_tensor_affine"), 0.5, 0),
        NO_GRADIENT,
        ordered(),
    ),
    "expanded-tensor": lambda ids: tensor(ids("0", 2), (4, 2), (0, 1)),
    "shapes-dtypes-devices": plain(
        value(
            [
                Raw(call("torch", "Size", (2, 3))),
                named("torch", "bfloat16"),
                Raw(call("torch", "device", "cuda", 1)),
                Raw(call("torch.serialization", "_get_layout", "torch.strided")),
            ]
        )
    ),
    "collections": plain(
        value(
            [
                Raw(call("collections", "Counter", {"a": 1})),
                Raw(call("collections", "defaultdict", named("builtins", "list"))),
                Raw(call("collections", "deque", [1, 2], 5)),
                Raw(call("typing", "OrderedDict")),
            ]
        )
    ),
    "values": plain(
        value(
            [
                Raw(call("builtins", "frozenset", [1])),
                Raw(call("builtins", "bytearray", latin1(b"x"))),
                Raw(call("builtins", "complex", 1.0, 2.0)),
                Raw(call("builtins", "slice", 1, None, 2)),
                Raw(call("builtins", "range", 0, 5, 1)),
            ]
        )
    ),
    "paths": plain(
        value(
            [
                Raw(call("pathlib", "PosixPath", "a", "b")),
                Raw(call("pathlib._local", "PosixPath", "a/b")),
                Raw(call("pathlib", "WindowsPath", "C:\\", "x")),
            ]
        )
    ),
    "times-and-exact-numbers": plain(
        value(
            [
                Raw(call("datetime", "datetime", latin1(b"\x07\xe4\1\1\0\0\0\0\0\0"))),
                Raw(call("datetime", "timedelta", 1, 2, 3)),
                Raw(call("decimal", "Decimal", "1.5")),
                Raw(call("fractions", "Fraction", "1/3")),
                Raw(made("uuid", "UUID", {"int": 5})),
            ]
        )
    ),
    "training-configuration": plain(
        made(
            "omegaconf.listconfig",
            "ListConfig",
            {
                "_metadata": Raw(
                    made(
                        "omegaconf.base",
                        "ContainerMetadata",
                        {
                            "ref_type": named("typing", "Any"),
                            "object_type": named("builtins", "list"),
                        },
                    )
                ),
                "_content": [Raw(made("omegaconf.nodes", "AnyNode", {"_val": 1}))],
            },
        )
    ),
    **{
        f"hyper-parameters-of-{module}": plain(
            made(module, "AttributeDict") + MARK + values("lr", 0.1) + SETITEMS
        )
        for module in (
            "pytorch_lightning.utilities.parsing",
            "lightning_fabric.utilities.data",
            "lightning.fabric.utilities.data",
        )
    },
    "optimizer-state": lambda ids: value(
        {0: {"step": 1, "exp_avg": Raw(weights(ids))}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    ),
    "hypernetwork": lambda ids: value(
        {320: [ordered({"linear.weight": Raw(weights(ids))})], "step": 5}
    ),
}

# Objects of classes whose code is not in the file.
REVIEWED: dict[str, tuple[str, Make]] = {
    "whole-module": (
        "CKA108",
        lambda ids: made(
            "torch.nn.modules.linear",
            "Linear",
            module_state(_parameters=ordered({"weight": Raw(parameter(ids))})),
        ),
    ),
    "whole-module-of-the-training-script": (
        "CKA108",
        plain(made("__main__", "Net", module_state())),
    ),
    "whole-detector": (
        "CKA108",
        plain(
            made(
                "ultralytics.nn.tasks",
                "DetectionModel",
                module_state(
                    _modules=ordered(
                        {"0": Raw(made("torch.nn.modules.conv", "Conv2d", module_state()))}
                    )
                ),
            )
        ),
    ),
    "whole-module-of-torch-0.3": (
        "CKA108",
        plain(
            made(
                "torch.nn.modules.linear",
                "Linear",
                module_state(
                    _backend=Raw(call("torch.nn.backends.thnn", "_get_thnn_function_backend"))
                ),
            )
        ),
    ),
    "partial-function-of-a-training-script": (
        "CKA108",
        plain(
            call("functools", "partial", named("torch.nn.modules.conv", "Conv2d"))
            + value((named("torch.nn.modules.conv", "Conv2d"), (), {"bias": False}, None))
            + BUILD
        ),
    ),
    "python-2-keys-of-latin-1": (
        "CKA109",
        plain(MARK + short_binstring(b"w\xe9") + value(1) + b"d"),
    ),
    "activation-functions": (
        "CKA108",
        plain(value([named("torch.nn.functional", "relu"), named("torch._C._nn", "gelu")])),
    ),
    "class-of-layers-in-a-configuration": (
        "CKA108",
        plain(value({"norm": named("torch.nn.modules.normalization", "LayerNorm")})),
    ),
    "nested-tensor": (
        "CKA111",
        lambda ids: call(
            "torch._utils",
            "_rebuild_nested_tensor",
            Raw(weights(ids)),
            *(
                Raw(tensor(ids(key, 1, itemsize=8, storage="LongStorage"), (1, 1)))
                for key in ("1", "2")
            ),
            Raw(tensor(ids("3", 1, itemsize=8, storage="LongStorage"), (1,))),
        ),
    ),
    "sparse-tensor": (
        "CKA111",
        lambda ids: call(
            "torch._utils",
            "_rebuild_sparse_tensor",
            Raw(call("torch.serialization", "_get_layout", "torch.sparse_coo")),
            (
                Raw(tensor(ids("0", 1, itemsize=8, storage="LongStorage"), (1, 1))),
                Raw(tensor(ids("1", 1), (1,))),
                Raw(call("torch", "Size", (2,))),
            ),
        ),
    ),
}
