"""What an allowed name may be given: the arguments and the state that picklers write.

A harmless name can be used for harm.  ``_rebuild_from_type_v2`` calls its first argument;
a NumPy dtype whose flags are overwritten makes an array take bytes of the file for
pointers.  So arguments are default-deny as well: what no pickler writes is not harmless.

Knows:      ``__reduce__`` and ``__getstate__`` of what stands on the allowlist.
Is told:    the arguments of a call, or the state that BUILD gives.
Never asks: which names are allowed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from ckptaudit.containers import MOST_DIMENSIONS
from ckptaudit.vm import Build, Call, Dict, Global, Node, PersistentId, Set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptaudit.vm import Trace

__all__ = [
    "FACTORIES",
    "Arguments",
    "State",
    "any_values",
    "array_state",
    "at_most_one_text",
    "attribute_dicts",
    "attributes",
    "calls",
    "complete_state",
    "container",
    "counts",
    "device",
    "dtype",
    "dtype_state",
    "factory_and_pairs",
    "fits_dtype",
    "flag",
    "fraction",
    "function",
    "functions_given",
    "hidden_names",
    "inner_call",
    "is_plain",
    "latin1",
    "made_array",
    "nothing",
    "numbers",
    "octets",
    "octets_in",
    "of_parameter",
    "of_tensor",
    "on_storage",
    "pairs",
    "parameter",
    "partial_state",
    "queue",
    "raw_array",
    "rebuild_by",
    "scalar",
    "sizes",
    "tensor",
    "tensor_state",
    "texts",
    "with_hooks",
    "with_state",
]

Arguments: TypeAlias = "Callable[[tuple[Node, ...]], bool]"
State: TypeAlias = "Callable[[Node], bool]"

FACTORIES = {
    *(
        (module, name)
        for module in ("builtins", "__builtin__")
        for name in ("bool", "dict", "float", "int", "list", "long", "set", "str", "tuple")
    ),
    ("collections", "OrderedDict"),
    ("collections", "Counter"),
}
_LATIN1 = {"latin1", "latin-1"}
# Where the functions and classes are that make tensors.
_TENSOR_MODULES = {
    *("torch", "torch.cuda", "torch._utils", "torch._tensor", "torch.tensor"),
    *("torch.nn", "torch.nn.parameter"),
}
# numpy/core/src/multiarray/descriptor.c, arraydescr_reduce: kind and bytes of a builtin
# type.  Objects ("O") are pointers, and the fields of a record ("V") may lie anywhere.
_DTYPE = re.compile(r"b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16|24|32)|[SU][0-9]{1,9}|[Mm]8")
_OBJECTS = "O8"
_FRACTION = re.compile(r"-?[0-9]+(?:/[0-9]+)?")
# Nobody writes a longer one, and one text may be given to ten thousand calls.
_MOST_DIGITS = 1000
# The state of a dtype: version, byte order, base, names, fields, size, alignment, flags,
# and the unit of a date.
_DTYPE_STATE = 8
_DTYPE_FLAGS = 7
# What NumPy sets for objects; NPY_LIST_PICKLE, by which it wants them in a list, among them.
_OBJECT_FLAGS = 63
# NPY_NEEDS_INIT, which NumPy sets for text.  Every other flag is about Python objects.
_NEEDS_INIT = 8
_MOST_ARGUMENTS = 16
_MOST_ATTRIBUTES = 100
_MOST_PLAIN = 100


# Arguments


def nothing(args: tuple[Node, ...]) -> bool:
    """No arguments."""
    return not args


def any_values(args: tuple[Node, ...]) -> bool:
    """Whatever is not itself a name that could be called."""
    return _few(args) and not any(isinstance(arg, (Global, PersistentId)) for arg in args)


def tensor(args: tuple[Node, ...]) -> bool:
    """A tensor's parts, other than a storage."""
    return len(args) > 1


def on_storage(args: tuple[Node, ...]) -> bool:
    """A storage and a tensor's parts; `tensors` checks them against each other."""
    return len(args) > 1 and _is_storage(args[0])


def with_hooks(at: int) -> Arguments:
    """The same, where number *at* is its backward hooks: functions to call, so none."""
    return lambda args: len(args) > at and _is_storage(args[0]) and _is_empty(args[at])


def of_tensor(args: tuple[Node, ...]) -> bool:
    """A tensor that has been rebuilt, and what it is to be."""
    return len(args) > 1 and _is_tensor(args[0])


def of_parameter(args: tuple[Node, ...]) -> bool:
    """A tensor that has been rebuilt, whether it needs a gradient, no hooks."""
    return len(args) == 3 and _is_tensor(args[0]) and _is_empty(args[2])  # noqa: PLR2004 - spelled out above


def with_state(args: tuple[Node, ...]) -> bool:
    """The same, and attributes to set."""
    return len(args) == 4 and of_parameter(args[:3]) and _set_later(args[3])  # noqa: PLR2004 - as above


def rebuild_by(args: tuple[Node, ...]) -> bool:
    """A function that rebuilds a tensor, the class it is to have, arguments, attributes to set."""
    match args:
        case (Global(module="torch._utils", name=name), Global(), tuple(), state):
            return name.startswith("_rebuild_") and _set_later(state)
        case _:
            return False


def inner_call(call: Call) -> Call | None:
    """The call that *call* would make of what it is given, or None."""
    outer = call.func
    if not isinstance(outer, Global) or outer.module not in {"torch._tensor", "torch.tensor"}:
        return None
    match call.args:
        case (Global() as func, _, tuple() as args, _):
            return Call("REDUCE", func, args, None, call.offset)
        case _:
            return None


def parameter(args: tuple[Node, ...]) -> bool:
    """A tensor and whether it needs a gradient; or nothing, when BUILD brings them."""
    match args:
        case ():
            return True
        case (data,) | (data, bool()):
            return _is_tensor(data)
        case _:
            return False


def sizes(args: tuple[Node, ...]) -> bool:
    """One sequence of integers."""
    match args:
        case (tuple() | list() as items,):
            return len(items) <= MOST_DIMENSIONS and set(map(type, items)) <= {int}
        case _:
            return False


def device(args: tuple[Node, ...]) -> bool:
    """A kind of device, and a number if there are several."""
    match args:
        case (str(),) | (str(), int()):
            return True
        case _:
            return False


def flag(args: tuple[Node, ...]) -> bool:
    """One boolean, if any."""
    match args:
        case () | (bool(),):
            return True
        case _:
            return False


def at_most_one_text(args: tuple[Node, ...]) -> bool:
    """One string, if any."""
    return len(args) <= 1 and texts(args)


def texts(args: tuple[Node, ...]) -> bool:
    """Strings."""
    return _few(args) and all(isinstance(arg, str) for arg in args)


def numbers(args: tuple[Node, ...]) -> bool:
    """Numbers, or None."""
    return _few(args) and all(arg is None or isinstance(arg, (int, float)) for arg in args)


def fraction(args: tuple[Node, ...]) -> bool:
    """Two integers, or the text of them: an exponent in it could ask for a terabyte."""
    match args:
        case (int(), int()):
            return True
        case (str(text),):
            return len(text) <= _MOST_DIGITS and _FRACTION.fullmatch(text) is not None
        case _:
            return False


def pairs(args: tuple[Node, ...]) -> bool:
    """Nothing, a dict, or the list of pairs that Python 2 wrote."""
    return not args or (len(args) == 1 and isinstance(args[0], (Dict, list, tuple)))


def counts(args: tuple[Node, ...]) -> bool:
    """Nothing, or a dict."""
    return not args or (len(args) == 1 and isinstance(args[0], Dict))


def factory_and_pairs(args: tuple[Node, ...]) -> bool:
    """What makes a missing value, a plain class; then what makes a dict."""
    match args:
        case ():
            return True
        case (None, *rest):
            return pairs(tuple(rest))
        case (Global() as factory, *rest):
            return (factory.module, factory.name) in FACTORIES and pairs(tuple(rest))
        case _:
            return False


def container(args: tuple[Node, ...]) -> bool:
    """Nothing, or a container as it stands: a range could be of a terabyte."""
    return not args or (len(args) == 1 and isinstance(args[0], (list, tuple, Dict, Set)))


def queue(args: tuple[Node, ...]) -> bool:
    """What `container` says, and the most it may hold."""
    match args:
        case () | (list() | tuple(),) | (list() | tuple(), int() | None):
            return True
        case _:
            return False


def octets(args: tuple[Node, ...]) -> bool:
    """Bytes however they were written; a number would ask for as many."""
    match args:
        case ():
            return True
        case (data,):
            return isinstance(data, (bytes, bytearray)) or _is_encoded(data)
        case _:
            return latin1(args)


def latin1(args: tuple[Node, ...]) -> bool:
    """A string whose characters are bytes, and the encoding that says so."""
    match args:
        case (str(), str(encoding)):
            return encoding in _LATIN1
        case _:
            return False


def made_array(args: tuple[Node, ...]) -> bool:
    """The class of arrays, and the shape and type that BUILD will replace."""
    match args:
        case (Global(module="numpy", name="ndarray"), (0,), kind):
            return _is_raw(kind)
        case _:
            return False


def raw_array(args: tuple[Node, ...]) -> bool:
    """A buffer, its type, its shape, its order."""
    match args:
        case (bytes() | bytearray(), kind, tuple(), "C" | "F" | "A"):
            return _is_dtype(kind)
        case _:
            return False


def scalar(args: tuple[Node, ...]) -> bool:
    """A type and the bytes of one value."""
    match args:
        case (kind, data):
            return _is_dtype(kind) and _is_raw(data)
        case _:
            return False


def dtype(args: tuple[Node, ...]) -> bool:
    """The name of a type without fields, and how to copy it."""
    match args:
        case (str(name), int(), int()):
            return name == _OBJECTS or _DTYPE.fullmatch(name) is not None
        case _:
            return False


def function(args: tuple[Node, ...]) -> bool:
    """One name, of a function or class."""
    match args:
        case (Global(),):
            return True
        case _:
            return False


def complete_state(args: tuple[Node, ...]) -> bool:
    """A class whose object is to be made empty."""
    match args:
        case (Global(), Global(module="builtins" | "__builtin__", name="object"), None):
            return True
        case _:
            return False


# State


def attributes(state: Node) -> bool:
    """Attributes by name: a dict, or (dict, dict of slots); the judge looks at the names."""
    match state:
        case None | Dict() | (Dict() | None, Dict() | None):
            return True
        case _:
            return False


def tensor_state(state: Node) -> bool:
    """What tensors and variables of torch 0.1 to 0.3 were given."""
    match state:
        case (PersistentId(), int(), tuple(), tuple()):
            return True
        case (bool(), _, hooks):
            return _is_empty(hooks)
        case (_, _, hooks, bool(), _):
            return _is_empty(hooks)
        case _:
            return False


def dtype_state(state: Node) -> bool:
    """Byte order and size, flags, and nothing about fields; `fits_dtype` says which flags."""
    if not isinstance(state, tuple) or len(state) < _DTYPE_STATE:
        return False
    match state:
        case (int(), str(), None, None, None, int(), int(), int(), *_):
            return state[_DTYPE_FLAGS] in (0, _NEEDS_INIT, _OBJECT_FLAGS)
        case _:
            return False


def fits_dtype(made: Call, state: Node) -> bool:
    """Whether *state*, which is that of a type, is that of the type which *made* makes.

    The flags are where NumPy looks to see whether elements are pointers, and the size is how far
    one is from the next.
    """
    match state:
        case (_, _, _, _, _, int(size), int(alignment), flags, *_):
            pass
        case _:
            return False
    if (flags == _OBJECT_FLAGS) != _is_of_objects(made):
        return False
    # Only of text NumPy takes them from here, whatever they are.
    if _is_of_text(made):
        return size >= 0 and alignment > 0
    return size == alignment == -1


def array_state(state: Node) -> bool:
    """Version, shape, type, whether columns come first, and the values: bytes, or objects."""
    match state:
        case (int(), tuple(), kind, int(), list()):
            return isinstance(kind, Call) and _is_of_objects(kind)
        case (int(), tuple(), kind, int(), data):
            return _is_dtype(kind) and _is_raw(data)
        case _:
            return False


def partial_state(state: Node) -> bool:
    """A function, its arguments, its keyword arguments, attributes."""
    match state:
        case (Global(), tuple(), Dict() | None, Dict() | None as others):
            return _set_later(others)
        case _:
            return False


def functions_given(call: Call) -> list[Global]:
    """The names that *call* is handed, by themselves or in a partial."""
    args = call.args if isinstance(call.args, tuple) else (call.args,)
    kwargs = call.kwargs.pairs if isinstance(call.kwargs, Dict) else []
    given: list[Node] = [*args, *(value for _, value in kwargs)]
    for arg in tuple(given):
        if isinstance(arg, Call) and calls(arg, "functools", "partial"):
            for part in (arg.args, arg.state):
                given += part[:1] if isinstance(part, tuple) else []
    return [arg for arg in given if isinstance(arg, Global)]


def is_plain(node: Node) -> bool:
    """Whether *node* is numbers and text, or few of them in lists, tuples and dicts."""
    pending = [node]
    for _ in range(_MOST_PLAIN):
        if not pending:
            return True
        match pending.pop():
            case None | str() | int() | float():
                pass
            case Dict(pairs=pairs) if len(pairs) <= _MOST_PLAIN:
                pending += [part for pair in pairs for part in pair]
            case list() | tuple() as items if len(items) <= _MOST_PLAIN:
                pending += items
            case _:
                return False
    return not pending


def octets_in(trace: Trace) -> set[int]:
    """The ids of the values that are the bytes of an array, of a NumPy scalar or of a date.

    Python 2 wrote them like text, and they are none.
    """
    found = set()
    for event in trace.events:
        match event:
            case Build(state=(int(), tuple(), _, int(), bytes() as data)):
                found.add(id(data))
            case Call(func=Global(module=module), args=(bytes() as data, *_)):
                if module == "datetime":
                    found.add(id(data))
            case Call(func=Global(name="scalar"), args=(_, bytes() as data)):
                found.add(id(data))
    return found


def attribute_dicts(state: Node) -> Iterator[Dict | Call]:
    """The dicts of attributes in what BUILD was given; an OrderedDict is one as well."""
    # Modules/_pickle.c, load_build: only a tuple of two is told apart.
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # noqa: PLR2004 - as there
    yield from (part for part in parts if isinstance(part, (Dict, Call)))


def hidden_names(attributes: Dict | Call) -> list[str]:
    """Those of its names that Python itself looks up, such as ``__class__``."""
    return [
        name
        for name, _ in attributes.pairs
        if isinstance(name, str) and name.startswith("__") and name.endswith("__")
    ]


def _set_later(state: Node) -> bool:
    """Attributes that a function sets: as many as a tensor might have, none of them hidden."""
    return attributes(state) and all(
        len(part.pairs) <= _MOST_ATTRIBUTES and not hidden_names(part)
        for part in attribute_dicts(state)
    )


def _few(args: tuple[Node, ...]) -> bool:
    # One tuple may be given to ten thousand calls: none of them may take long to look at.
    return len(args) <= _MOST_ARGUMENTS


def _is_empty(hooks: Node) -> bool:
    match hooks:
        case None:
            return True
        case Dict():
            return not hooks.pairs
        case Call(func=Global(module="collections", name="OrderedDict"), args=()):
            return not hooks.pairs
        case _:
            return False


def _is_storage(node: Node) -> bool:
    # Or what brings one along: torch/storage.py, where it is pickled without torch.save.
    return isinstance(node, PersistentId) or (
        isinstance(node, Call) and calls(node, "torch.storage", "_load_from_bytes")
    )


def _is_tensor(node: Node) -> bool:
    """Whether *node* can be nothing but a tensor; of other objects a method of theirs is called.

    torch/nn/parameter.py, Parameter.__new__, calls ``detach``, and torch/_utils.py ``to``; both
    may be attributes that a pickle gave to a harmless object.
    """
    # In a tar a persistent id is a tensor.
    if isinstance(node, PersistentId):
        return True
    if not isinstance(node, Call) or not isinstance(node.func, Global):
        return False
    module, name = node.func.module, node.func.name
    return module in _TENSOR_MODULES and (
        name.startswith("_rebuild_") or name.endswith(("Tensor", "Parameter", "Buffer"))
    )


def _is_dtype(node: Node) -> bool:
    # Of objects the bytes would be pointers.
    return isinstance(node, Call) and calls(node, "numpy", "dtype") and not _is_of_objects(node)


def _is_of_text(made: Call) -> bool:
    match made.args:
        case (str(name), *_):
            return name.startswith(("S", "U"))
        case _:
            return False


def _is_of_objects(made: Call) -> bool:
    match made.args:
        case (str(name), *_):
            return calls(made, "numpy", "dtype") and name == _OBJECTS
        case _:
            return False


def _is_raw(node: Node) -> bool:
    return isinstance(node, (bytes, bytearray, str)) or _is_encoded(node)


def _is_encoded(node: Node) -> bool:
    # Python 3 writes b"" of protocol 2 as bytes().
    return isinstance(node, Call) and (
        calls(node, "_codecs", "encode")
        or calls(node, "builtins", "bytes")
        or calls(node, "__builtin__", "bytes")
    )


def calls(node: Call, module: str, name: str) -> bool:
    """Whether *node* calls exactly that name."""
    func = node.func
    return isinstance(func, Global) and (func.module, func.name) == (module, name)
