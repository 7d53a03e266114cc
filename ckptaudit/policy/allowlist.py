"""The names a checkpoint may ask for, each with its reason; everything else is distrusted.

Knows:      what torch, NumPy, Lightning and the standard library put into checkpoints.
Is told:    a module and a name, exactly as a pickle spells them.
Never asks: for a prefix or a wildcard: ``torch.*`` holds dozens of ways to run code.

What may be done with a name is part of its entry: `arguments` says which arguments and
which state are those that picklers write.

Names were seen in files written by torch 0.1 to 2.13, in torch's own list for
``weights_only`` (torch/_weights_only_unpickler.py), or in issues of loaders that
refused a benign file for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.dtypes import DTYPES
from ckptaudit.policy import arguments as given
from ckptaudit.policy.generators import GENERATORS, NAMED

if TYPE_CHECKING:
    from ckptaudit.policy.arguments import Arguments, State

__all__ = [
    "ATTRIBUTE_DICTS",
    "COSTLY",
    "MAPPINGS",
    "SEQUENCES",
    "UNCHECKED",
    "Allowed",
    "allowed",
    "reviewed",
]


class Allowed(NamedTuple):
    """Why a name is allowed, and for what.

    Attributes:
        reason: Why it stands in checkpoints.
        takes: Whether these are arguments it may be called with; None if it may never be called.
        state: Whether this is state that what it makes may be given; None if there is none.
        keywords: Whether it may be called with keyword arguments.
    """

    reason: str
    takes: Arguments | None
    state: State | None
    keywords: bool


_NAMES: dict[tuple[str, str], Allowed] = {}
# What whole modules bring with them: data to nobody, and no danger while it is unpickled.
_REVIEWED = {
    # Holds a function for later.  Which one is judged by its own name.
    ("functools", "partial"): Allowed(
        "a function that is to be called with fixed arguments",
        given.function,
        given.partial_state,
        keywords=False,
    ),
    ("logging", "getLogger"): Allowed(
        "where an object writes its log", given.at_most_one_text, None, keywords=False
    ),
    ("torch.nn.backends.thnn", "_get_thnn_function_backend"): Allowed(
        "a module's handle on its C code, torch < 1.2", given.nothing, None, keywords=False
    ),
    # TransformerEncoderLayer and its like keep theirs as an attribute.
    **{
        (module, name): Allowed("a module's activation function", None, None, keywords=False)
        for module in ("torch.nn.functional", "torch._C._nn")
        for name in (
            "celu elu gelu glu hardsigmoid hardswish hardtanh leaky_relu log_softmax logsigmoid"
            " mish relu relu6 selu sigmoid silu softmax softplus softsign tanh tanhshrink"
        ).split()
    },
}


_RANDOM = "a generator of random numbers"
for _pair, (_takes, _state) in GENERATORS.items():
    _REVIEWED[_pair] = Allowed(_RANDOM, _takes, _state, keywords=False)
for _pair in NAMED:
    _REVIEWED[_pair] = Allowed(_RANDOM, None, None, keywords=False)


def _allow(
    reason: str,
    module: str,
    *names: str,
    takes: Arguments | None = None,
    state: State | None = None,
    keywords: bool = False,
) -> None:
    for name in names:
        _NAMES[module, name] = Allowed(reason, takes, state, keywords)


_PICKLE_LEAVES = "what pickle itself writes for a plain Python value"
_NUMPY = "scalars and arrays that training scripts leave beside the weights"
_TENSOR = "rebuilds a tensor"

# Dicts and their like.
_allow(
    "the dict that holds a state dict",
    "collections",
    "OrderedDict",
    takes=given.pairs,
    state=given.attributes,
)
_allow(
    "OrderedDict under another name",
    "typing",
    "OrderedDict",
    takes=given.pairs,
    state=given.attributes,
)
_allow(_PICKLE_LEAVES, "collections", "Counter", takes=given.counts)
_allow(_PICKLE_LEAVES, "collections", "defaultdict", takes=given.factory_and_pairs)
_allow(_PICKLE_LEAVES, "collections", "deque", takes=given.queue)

# Storages, which only stand in persistent ids, and tensors.
for _module in ("torch", "torch.cuda"):
    for _dtype in DTYPES:
        _allow("type of a storage", _module, *_dtype.storages)
        _allow(
            "tensor class of torch 0.1",
            _module,
            *(storage.replace("Storage", "Tensor") for storage in _dtype.storages),
            takes=given.nothing,
            state=given.tensor_state,
        )
    _allow("type of a storage", _module, "UntypedStorage")
_allow(
    "type of a storage",
    "torch.storage",
    "UntypedStorage",
    "TypedStorage",
    "_UntypedStorage",
    "_TypedStorage",
)
_allow(
    _TENSOR,
    "torch._utils",
    "_rebuild_sparse_tensor",
    "_rebuild_sparse_csr_tensor",
    "_rebuild_nested_tensor",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_wrapper_subclass",
    "_rebuild_device_tensor_from_numpy",
    takes=given.tensor,
)
_allow(_TENSOR, "torch._utils", "_rebuild_tensor", takes=given.on_storage)
_allow(_TENSOR, "torch._utils", "_rebuild_device_tensor_from_cpu_tensor", takes=given.of_tensor)
# torch/_utils.py: backward_hooks are functions that a training step would call.
_allow(_TENSOR, "torch._utils", "_rebuild_tensor_v2", takes=given.with_hooks(5))
_allow(_TENSOR, "torch._utils", "_rebuild_tensor_v3", takes=given.with_hooks(5))
_allow(_TENSOR, "torch._utils", "_rebuild_qtensor", takes=given.with_hooks(6))
_allow(_TENSOR, "torch._utils", "_rebuild_parameter", takes=given.of_parameter)
_allow(_TENSOR, "torch._utils", "_rebuild_parameter_with_state", takes=given.with_state)
# Before torch 1.9 torch._tensor was torch.tensor.
for _module in ("torch._tensor", "torch.tensor"):
    _allow(
        "rebuilds a tensor of a subclass",
        _module,
        "_rebuild_from_type_v2",
        "_rebuild_from_type",
        takes=given.rebuild_by,
    )
for _module in ("torch.nn.parameter", "torch.nn"):
    _allow(
        "a trainable tensor",
        _module,
        "Parameter",
        "Buffer",
        takes=given.parameter,
        state=given.tensor_state,
    )
_allow(
    "the dict or list of parameters in a textual inversion",
    "torch.nn.modules.container",
    "ParameterDict",
    "ParameterList",
    takes=given.nothing,
    state=given.attributes,
)
for _module in ("torch", "torch._tensor"):
    _allow(
        "the class of a tensor", _module, "Tensor", takes=given.nothing, state=given.tensor_state
    )
_allow("a tensor's shape", "torch", "Size", takes=given.sizes)
_allow("names a device, which is never used", "torch", "device", takes=given.device)
_allow("names a memory layout", "torch.serialization", "_get_layout", takes=given.texts)
_allow("an element type", "torch", *(dtype.name for dtype in DTYPES))
# No tensor of them is read.
_allow(
    "an element type of few bits",
    "torch",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)),
    *"complex32 float4_e2m1fn_x2 bits8 bits16 bits1x8 bits2x4 bits4x2".split(),
)
_allow(
    "a parameter of a lazy module, not made yet",
    "torch.nn.parameter",
    "UninitializedParameter",
    "UninitializedBuffer",
    takes=given.flag,
)
_allow(
    "a kind of quantisation",
    "torch",
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
    "per_channel_affine_float_qparams",
)

# Plain values.  Numbers and strings are opcodes, so their classes are named (as what a
# defaultdict makes) but not called.
for _module in ("builtins", "__builtin__"):
    _allow(
        _PICKLE_LEAVES,
        _module,
        "set",
        "frozenset",
        "list",
        "dict",
        "tuple",
        takes=given.container,
    )
    _allow(_PICKLE_LEAVES, _module, "bytearray", "bytes", takes=given.octets)
    _allow(_PICKLE_LEAVES, _module, "complex", "slice", "range", "xrange", takes=given.numbers)
    _allow(_PICKLE_LEAVES, _module, "int", "long", "float", "str", "unicode", "bool")
    _allow("a value without a type of its own", _module, "Ellipsis", "NotImplemented")
    _allow("the base of every class, named when an object is rebuilt", _module, "object")
_allow(
    "a typed list in a TorchScript archive",
    "torch.jit._pickle",
    "build_intlist",
    "build_tensorlist",
    "build_doublelist",
    "build_boollist",
    "restore_type_tag",
    takes=given.any_values,
)
_allow("how protocol 2 writes bytes", "_codecs", "encode", takes=given.latin1)
for _module in ("copyreg", "copy_reg"):
    _allow(
        "rebuilds an object of a class that is named too",
        _module,
        "_reconstructor",
        takes=given.complete_state,
    )
    _allow(
        "makes an empty object of a class that is named too",
        _module,
        "__newobj__",
        takes=given.function,
    )

# NumPy.
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _allow(_NUMPY, _module, "_reconstruct", takes=given.made_array, state=given.array_state)
    _allow(_NUMPY, _module, "scalar", takes=given.scalar)
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _allow(_NUMPY, _module, "_frombuffer", takes=given.raw_array)
_allow(_NUMPY, "numpy", "dtype", takes=given.dtype, state=given.dtype_state)
_allow(_NUMPY, "numpy", "ndarray")
# As values, in a configuration.
_allow(
    "the name of a type of elements",
    "numpy",
    *"bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split(),
    *"complex64 complex128 str_ bytes_ datetime64 timedelta64".split(),
)
_allow(
    _NUMPY,
    "numpy.dtypes",
    *(f"{name}DType" for name in ("Float64", "Float32", "Float16", "Int64", "Int32", "Bool")),
)

# What training scripts leave behind.
_allow(
    "command-line options of the training script",
    "argparse",
    "Namespace",
    takes=given.nothing,
    state=given.attributes,
    keywords=True,
)
for _module in ("pathlib", "pathlib._local"):
    _allow(
        "a path, kept as text",
        _module,
        "PurePosixPath",
        "PosixPath",
        "PureWindowsPath",
        "WindowsPath",
        takes=given.texts,
    )
_allow(
    "a point or span of time",
    "datetime",
    "datetime",
    "date",
    "time",
    "timedelta",
    "timezone",
    takes=given.any_values,
)
_allow(
    "attributes without a class, mostly options of the training script",
    "types",
    "SimpleNamespace",
    takes=given.nothing,
    state=given.attributes,
)
_allow(
    "the version of torch that saved the file",
    "torch.torch_version",
    "TorchVersion",
    takes=given.texts,
)
_allow("an exact number", "decimal", "Decimal", takes=given.texts)
_allow("an exact number", "fractions", "Fraction", takes=given.fraction)
_allow("an identifier", "uuid", "UUID", takes=given.nothing, state=given.attributes)
for _module, _name in (
    ("omegaconf.listconfig", "ListConfig"),
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.base", "ContainerMetadata"),
    ("omegaconf.base", "Metadata"),
    *(
        ("omegaconf.nodes", f"{kind}Node")
        for kind in ("Any", "Boolean", "Bytes", "Float", "Integer", "Path", "String")
    ),
):
    _allow(
        "the training configuration",
        _module,
        _name,
        takes=given.nothing,
        state=given.attributes,
    )
_allow("the training configuration", "typing", "Any")
_CALLBACK = "the key under which Lightning keeps a callback's state"
for _module in (
    "pytorch_lightning.callbacks.model_checkpoint",
    "lightning.pytorch.callbacks.model_checkpoint",
):
    _allow(_CALLBACK, _module, "ModelCheckpoint")
for _module in ("pytorch_lightning.callbacks", "lightning.pytorch.callbacks"):
    for _place, _name in (
        ("early_stopping", "EarlyStopping"),
        ("finetuning", "BackboneFinetuning"),
        ("stochastic_weight_avg", "StochasticWeightAveraging"),
        ("timer", "Timer"),
    ):
        _allow(_CALLBACK, f"{_module}.{_place}", _name)
_allow(_CALLBACK, "pytorch_lightning.callbacks", "model_checkpoint", "ModelCheckpoint")
_ATTRIBUTE_DICTS = {
    ("pytorch_lightning.utilities.parsing", "AttributeDict"),
    ("lightning_fabric.utilities.data", "AttributeDict"),
    ("lightning.fabric.utilities.data", "AttributeDict"),
}
for _module, _name in sorted(_ATTRIBUTE_DICTS):
    _allow(
        "the hyper-parameters Lightning saves",
        _module,
        _name,
        takes=given.nothing,
        state=given.attributes,
    )

# In what these make, a pickle may store items, or append to it.  Of some, items are attributes
# as well, which Python looks up.
ATTRIBUTE_DICTS = frozenset(_ATTRIBUTE_DICTS)
MAPPINGS = frozenset(
    {
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("collections", "Counter"),
        ("typing", "OrderedDict"),
        ("builtins", "dict"),
        ("__builtin__", "dict"),
    }
    | _ATTRIBUTE_DICTS
)
SEQUENCES = frozenset({("collections", "deque")})
# torch 2.13, _utils.py, _validate_loaded_sparse_tensors: the indices of a sparse tensor are
# not checked unless the user asks for it, and one out of range reads and writes past the end.
# The sizes and offsets of a nested tensor never are.
UNCHECKED = frozenset(
    ("torch._utils", name)
    for name in (
        "_rebuild_sparse_tensor",
        "_rebuild_sparse_csr_tensor",
        "_rebuild_nested_tensor",
    )
)


# What looks at more than a handful of values each time it is asked.
COSTLY = frozenset(
    {
        given.sizes,
        given.with_state,
        given.rebuild_by,
        given.partial_state,
        *(state for _, state in GENERATORS.values()),
    }
)


def allowed(module: str, name: str) -> Allowed | None:
    """Why this exact pair may be asked for, or None if nothing says it may."""
    return _NAMES.get((module, name))


def reviewed(module: str, name: str) -> Allowed | None:
    """Why this exact pair is worth a look and no alarm, or None if nothing says so."""
    return _REVIEWED.get((module, name))
