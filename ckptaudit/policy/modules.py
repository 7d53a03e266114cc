"""Whole modules: which classes a pickle uses as those of ``torch.nn.Module`` objects.

Knows:      how pickle makes an object, what state a module has, where modules are defined.
Is told:    a trace, or one call of it.
Never asks: whether any other name is allowed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ckptaudit.containers import module_of
from ckptaudit.vm import Build, Call, Dict, Global, PersistentId

if TYPE_CHECKING:
    from ckptaudit.vm import Node, Trace

__all__ = [
    "class_behind",
    "class_made",
    "function_of",
    "is_layer",
    "is_method_of_layer",
    "module_classes",
    "package_of",
]

_LONGEST_PACKAGE = 100
_LONGEST_PLACE = 100
_COPYREG = {"copyreg", "copy_reg"}
_GETATTR = {("builtins", "getattr"), ("__builtin__", "getattr")}
# torch/nn/modules/module.py, Module.__init__, 0.1 to 2.13.
_HOLDERS = {"_parameters", "_buffers", "_modules"}
# Packages that many machines have.  What their classes do when they are given a state is
# theirs to say, and anyone can read it: only where they define modules is it a module's.
_PLACES = {
    "diffusers": ("diffusers.models.",),
    "timm": ("timm.models.", "timm.layers."),
    "torch": (
        "torch.nn.",
        "torch.ao.nn.",
        "torch.ao.quantization.",
        "torch.quantization.",
        "torch.optim.swa_utils.",
    ),
    "torchaudio": ("torchaudio.models.", "torchaudio.transforms."),
    "torchvision": ("torchvision.models.", "torchvision.ops."),
    "transformers": (
        "transformers.activations.",
        "transformers.modeling_",
        "transformers.models.",
        "transformers.pytorch_utils.",
    ),
    "ultralytics": (
        "ultralytics.nn.",
        *(
            f"ultralytics.{utils}.{place}."
            for utils in ("utils", "yolo.utils")
            for place in ("loss", "tal")
        ),
    ),
}
# Tokenizers load files, and some of them libraries, when they are given a state.
_NO_PLACE = ".tokenization_"
# What whole modules, and training scripts that save everything, hold beside modules.  None of
# these classes has more to do with a state than to keep it.
_OTHER_PLACES = ("torch.nn.utils.", "torch.optim.")
_OTHERS = {
    *(
        (f"ultralytics.{utils}.loss", f"{kind}Loss")
        for utils in ("utils", "yolo.utils")
        for kind in ("E2EDetect v8Classification v8Detection v8OBB v8Pose v8Segmentation".split())
    ),
    ("torch.nn.modules.module", "_WrappedHook"),
    ("ultralytics.utils", "IterableSimpleNamespace"),
    ("ultralytics.yolo.utils", "IterableSimpleNamespace"),
}
# Packages that many machines have and that define none.
_WITHOUT_MODULES = frozenset(
    """
    IPython PIL _pytest aiohttp attr attrs boto3 botocore celery click cv2 dask datasets distributed
    django fastapi flask fsspec google gradio h5py huggingface_hub hydra ipykernel jax jaxlib jinja2
    markupsafe matplotlib mpmath msgpack networkx nltk numba numpy omegaconf onnx onnxruntime pandas
    paramiko pexpect pkg_resources psutil ptyprocess pyarrow pydantic pytest ray regex rich
    safetensors scipy sklearn sqlalchemy sympy tensorboard tensorflow tokenizers tornado tqdm
    traitlets triton twisted wandb werkzeug zmq
    """.split()
)


def module_classes(trace: Trace) -> frozenset[int]:
    """The ids of the names that are classes of modules, or of what modules hold beside modules.

    Whenever it calls the class it does so to make an empty object, and every state that the
    object is given is that of a ``torch.nn.Module``, or a dict for the others.  A function cannot
    pass for one: it would be called with arguments, or the loader would stop when it is asked for
    an object.
    """
    # By id of the target: whether each state it is given is that of a module.
    states: dict[int, bool] = {}
    of_module: dict[int, bool] = {}
    with_dicts: dict[int, bool] = {}
    for event in trace.events:
        if isinstance(event, Build):
            state = id(event.state)
            if state not in of_module:
                of_module[state] = _is_module_state(event.state)
            target = id(event.target)
            states[target] = states.get(target, True) and of_module[state]
            with_dicts[target] = with_dicts.get(target, True) and isinstance(event.state, Dict)
    if not any(with_dicts.values()):
        return frozenset()
    made: dict[int, bool] = {}
    for event in trace.events:
        if isinstance(event, Call):
            cls = class_made(event)
            fits = cls is not None and (
                (states.get(id(event), False) and _may_be_a_module(cls))
                or (with_dicts.get(id(event), False) and _is_beside_modules(cls))
            )
            func = id(cls or function_of(event))
            made[func] = made.get(func, True) and fits
    return frozenset(node for node, always in made.items() if always)


def function_of(call: Call) -> Node:
    """What a call calls; behind a module's persistent id, the class it names."""
    if isinstance(call.func, PersistentId):
        return module_of(call.func) or class_behind(call.func)
    return call.func


def class_behind(pid: PersistentId) -> Global | None:
    """The class that ``(class, source_file, source)`` names, as torch wrote it into a tar."""
    match pid.pid:
        case (Global() as cls, str() | None, str() | None):
            return cls
        case _:
            return None


def class_made(call: Call) -> Global | None:
    """The class of which *call* makes an empty object, as pickle does before BUILD; or None."""
    func = function_of(call)
    if not isinstance(func, Global):
        return None
    if func.module in _COPYREG:
        match func.name, call.args:
            case "_reconstructor", (Global() as cls, Global(name="object"), None):
                return cls
            case "__newobj__", (Global() as cls,):
                return cls
            case _:
                return None
    return func if call.op == "NEWOBJ" and call.args == () else None


def is_layer(name: Global) -> bool:
    """Whether *name* is that of a class of layers, or of what whole modules hold beside them.

    The functions there are in lower case.
    """
    package = package_of(name)
    place = f"{name.module[:_LONGEST_PLACE]}."
    return _is_beside_modules(name) or (
        name.name[:1].isupper() and place.startswith(_PLACES.get(package, ("torch.nn.",)))
    )


def is_method_of_layer(call: Call) -> bool:
    """Whether *call* takes a method off a class, or an object of a class, that `is_layer` knows.

    So are methods pickled that a module keeps as an attribute.  Nothing is called by it.
    """
    func = call.func
    if not isinstance(func, Global) or (func.module, func.name) not in _GETATTR:
        return False
    match call.args:
        case (Global() | Call() as owner, str(method)) if call.kwargs is None:
            cls = class_made(owner) if isinstance(owner, Call) else owner
            is_plain = method.isidentifier() and "__" not in method
            return is_plain and cls is not None and is_layer(cls)
        case _:
            return False


def package_of(name: Global) -> str:
    """The outermost package of the module that defines *name*."""
    # No package whose name we know is as long; a name of a megabyte may be asked for often.
    return name.module[:_LONGEST_PACKAGE].split(".", 1)[0]


def _is_beside_modules(cls: Global) -> bool:
    place = f"{cls.module[:_LONGEST_PLACE]}."
    is_class = cls.name[:1].isupper()
    return (is_class and place.startswith(_OTHER_PLACES)) or (cls.module, cls.name) in _OTHERS


def _may_be_a_module(cls: Global) -> bool:
    package = package_of(cls)
    if package in _PLACES:
        place = f"{cls.module[:_LONGEST_PLACE]}."
        return place.startswith(_PLACES[package]) and _NO_PLACE not in place
    return package not in sys.stdlib_module_names and package not in _WITHOUT_MODULES


def _is_module_state(state: Node) -> bool:
    """Whether *state* is a dict with what every module has, and none of that is anything else."""
    if not isinstance(state, Dict):
        return False
    found = set()
    for key, value in state.pairs:
        if not isinstance(key, str):
            continue
        if key in _HOLDERS and not _is_mapping(value):
            return False
        if key == "training" and not isinstance(value, bool):
            return False
        found.add(key)
    return found >= _HOLDERS | {"training"}


def _is_mapping(node: Node) -> bool:
    if isinstance(node, Call) and isinstance(node.func, Global):
        return (node.func.module, node.func.name) == ("collections", "OrderedDict")
    return isinstance(node, Dict)
