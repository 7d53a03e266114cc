"""The names a checkpoint may ask for, each with its reason; everything else is distrusted.

Knows:      what torch, NumPy, Lightning and the standard library put into checkpoints.
Is told:    a module and a name, exactly as a pickle spells them.
Never asks: for a prefix or a wildcard: ``torch.*`` holds dozens of ways to run code.

Names were seen in files written by torch 0.1 to 2.13, in torch's own list for
``weights_only`` (torch/_weights_only_unpickler.py), or in issues of loaders that
refused a benign file for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ckptaudit.dtypes import DTYPES

__all__ = ["Allowed", "Use", "allowed", "dangerous"]


class Use(str, Enum):
    """What may be done with an allowed name."""

    VALUE = "value"  # stand there; never be called
    CALL = "call"  # be called with arguments
    OBJECT = "object"  # make an object, which may be given state


@dataclass(frozen=True, slots=True)
class Allowed:
    """Why a name is allowed, and for what."""

    use: Use
    reason: str


_PICKLE_LEAVES = "what pickle itself writes for a plain Python value"
_NUMPY = "scalars and arrays that training scripts leave beside the weights"

# torch's modules moved; each pair stands here as some file spells it.
_NAMES: dict[tuple[str, str], Allowed] = {}


def _allow(use: Use, reason: str, module: str, *names: str) -> None:
    for name in names:
        _NAMES[module, name] = Allowed(use, reason)


_allow(Use.OBJECT, "the dict that holds a state dict", "collections", "OrderedDict")
_allow(Use.OBJECT, "OrderedDict under another name", "typing", "OrderedDict")
_allow(Use.OBJECT, _PICKLE_LEAVES, "collections", "Counter", "defaultdict", "deque")
for _module in ("torch", "torch.cuda"):
    for _dtype in DTYPES:
        _allow(Use.VALUE, "type of a storage", _module, *_dtype.storages)
        _allow(
            Use.OBJECT,
            "tensor class of torch 0.1",
            _module,
            *(storage.replace("Storage", "Tensor") for storage in _dtype.storages),
        )
    _allow(Use.VALUE, "type of a storage", _module, "UntypedStorage")
_allow(
    Use.VALUE,
    "type of a storage",
    "torch.storage",
    "UntypedStorage",
    "TypedStorage",
    "_UntypedStorage",
    "_TypedStorage",
)
_allow(
    Use.CALL,
    "rebuilds a tensor",
    "torch._utils",
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_sparse_tensor",
    "_rebuild_sparse_csr_tensor",
    "_rebuild_qtensor",
    "_rebuild_nested_tensor",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_wrapper_subclass",
    "_rebuild_device_tensor_from_numpy",
    "_rebuild_device_tensor_from_cpu_tensor",
)
_allow(
    Use.CALL,
    "rebuilds a tensor of a subclass",
    "torch._tensor",
    "_rebuild_from_type_v2",
    "_rebuild_from_type",
)
_allow(Use.OBJECT, "a trainable tensor", "torch.nn.parameter", "Parameter", "Buffer")
_allow(Use.OBJECT, "a trainable tensor", "torch.nn", "Parameter")
_allow(
    Use.OBJECT,
    "the dict or list of parameters in a textual inversion",
    "torch.nn.modules.container",
    "ParameterDict",
    "ParameterList",
)
_allow(Use.OBJECT, "the class of a tensor", "torch", "Tensor")
_allow(Use.OBJECT, "the class of a tensor", "torch._tensor", "Tensor")
_allow(Use.CALL, "a tensor's shape", "torch", "Size")
_allow(Use.CALL, "names a device, which is never used", "torch", "device")
_allow(Use.CALL, "names a memory layout", "torch.serialization", "_get_layout")
_allow(Use.VALUE, "an element type", "torch", *(dtype.name for dtype in DTYPES))
_allow(
    Use.VALUE,
    "a kind of quantisation",
    "torch",
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
    "per_channel_affine_float_qparams",
)
for _module in ("builtins", "__builtin__"):
    _allow(
        Use.CALL,
        _PICKLE_LEAVES,
        _module,
        "set",
        "frozenset",
        "bytearray",
        "complex",
        "slice",
        "range",
        "list",
        "dict",
        "tuple",
        "int",
        "long",
        "float",
        "str",
        "unicode",
        "bool",
        "bytes",
        "xrange",
    )
    _allow(Use.VALUE, "the base of every class, named when an object is rebuilt", _module, "object")
_allow(
    Use.CALL,
    "a typed list in a TorchScript archive",
    "torch.jit._pickle",
    "build_intlist",
    "build_tensorlist",
    "build_doublelist",
    "build_boollist",
)
_allow(Use.CALL, "how protocol 2 writes bytes", "_codecs", "encode")
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _allow(Use.OBJECT, _NUMPY, _module, "_reconstruct")
    _allow(Use.CALL, _NUMPY, _module, "scalar")
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _allow(Use.CALL, _NUMPY, _module, "_frombuffer")
_allow(Use.OBJECT, _NUMPY, "numpy", "dtype", "ndarray")
_allow(
    Use.OBJECT,
    _NUMPY,
    "numpy.dtypes",
    *(f"{name}DType" for name in ("Float64", "Float32", "Float16", "Int64", "Int32", "Bool")),
)
for _module in ("copyreg", "copy_reg"):
    _allow(Use.OBJECT, "rebuilds an object of a class that is named too", _module, "_reconstructor")
_allow(Use.OBJECT, "command-line options of the training script", "argparse", "Namespace")
_allow(
    Use.CALL,
    "a path, kept as text",
    "pathlib",
    "PurePosixPath",
    "PosixPath",
    "PureWindowsPath",
    "WindowsPath",
)
_allow(
    Use.CALL,
    "a path, kept as text",
    "pathlib._local",
    "PurePosixPath",
    "PosixPath",
    "PureWindowsPath",
    "WindowsPath",
)
_allow(
    Use.CALL,
    "a point or span of time",
    "datetime",
    "datetime",
    "date",
    "time",
    "timedelta",
    "timezone",
)
_allow(Use.CALL, "an exact number", "decimal", "Decimal")
_allow(Use.CALL, "an exact number", "fractions", "Fraction")
_allow(Use.OBJECT, "an identifier", "uuid", "UUID")
_OMEGACONF = "the training configuration"
_allow(Use.OBJECT, _OMEGACONF, "omegaconf.listconfig", "ListConfig")
_allow(Use.OBJECT, _OMEGACONF, "omegaconf.dictconfig", "DictConfig")
_allow(Use.OBJECT, _OMEGACONF, "omegaconf.base", "ContainerMetadata", "Metadata")
_allow(Use.OBJECT, _OMEGACONF, "omegaconf.nodes", "AnyNode")
_allow(Use.VALUE, _OMEGACONF, "typing", "Any")
_CALLBACK = "the key under which Lightning keeps a callback's state"
for _module in (
    "pytorch_lightning.callbacks.model_checkpoint",
    "lightning.pytorch.callbacks.model_checkpoint",
):
    _allow(Use.VALUE, _CALLBACK, _module, "ModelCheckpoint")
_allow(Use.VALUE, _CALLBACK, "pytorch_lightning.callbacks", "model_checkpoint", "ModelCheckpoint")
_HYPERPARAMETERS = "the hyper-parameters Lightning saves"
for _module in ("pytorch_lightning.utilities.parsing", "lightning_fabric.utilities.data"):
    _allow(Use.OBJECT, _HYPERPARAMETERS, _module, "AttributeDict")
_allow(Use.OBJECT, _HYPERPARAMETERS, "lightning.fabric.utilities.data", "AttributeDict")

# Whatever these offer, no checkpoint needs it.  The list raises severity and wording;
# a name that is not on it is not allowed for that.
_DANGEROUS_MODULES = frozenset(
    """
    os posix nt ntpath posixpath sys subprocess _posixsubprocess shutil pty commands popen2
    importlib imp runpy pkgutil zipimport ctypes _ctypes cffi code codeop pdb bdb
    marshal types _pickle pickle cPickle cloudpickle dill joblib shelve operator _operator functools
    socket _socket ssl http urllib urllib2 requests ftplib smtplib imaplib webbrowser
    multiprocessing threading _thread asyncio signal atexit gc inspect linecache
    timeit profile cProfile trace doctest pydoc idlelib lib2to3 ensurepip pip distutils setuptools
    tempfile io _io fileinput glob platform yaml logging
    _xxsubinterpreters _interpreters test site _aix_support _osx_support _pyrepl
    """.split()
)
_DANGEROUS_NAMES = frozenset(
    {
        *(
            (module, name)
            for module in ("builtins", "__builtin__", "__builtins__")
            for name in (
                "eval",
                "exec",
                "execfile",
                "compile",
                "open",
                "file",
                "input",
                "getattr",
                "setattr",
                "delattr",
                "__import__",
                "apply",
                "globals",
                "locals",
                "vars",
                "map",
                "filter",
                "breakpoint",
                "type",
                "memoryview",
            )
        ),
        ("copyreg", "add_extension"),
        ("copy_reg", "add_extension"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.jit", "load"),
        ("torch.serialization", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("codecs", "open"),
        ("numpy", "load"),
    }
)


def allowed(module: str, name: str) -> Allowed | None:
    """Why this exact pair may be asked for, or None if nothing says it may."""
    return _NAMES.get((module, name))


def dangerous(module: str, name: str) -> bool:
    """Whether the pair is known to run code or to reach files, processes or the network."""
    return (
        module.split(".", 1)[0] in _DANGEROUS_MODULES
        or module in _DANGEROUS_MODULES
        or (module, name) in _DANGEROUS_NAMES
    )
