"""torch's rebuild functions: which calls in a pickle stand for a tensor, and which tensor.

Knows:      torch/_utils.py, torch/_tensor.py and torch/nn/parameter.py, 0.1 to 2.13.
Is told:    a node, and the storages of its file.
Never asks: whether the call is allowed (`policy`), what the tensor is called.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from ckptaudit.containers import check_rank, key_of, storage_of
from ckptaudit.dtypes import DType, by_name
from ckptaudit.errors import MalformedInput
from ckptaudit.tensors.view import TensorView
from ckptaudit.vm import Build, Call, Dict, Global, PersistentId

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptaudit.containers import Container
    from ckptaudit.vm import Event, Node

__all__ = [
    "MOST_WRAPPERS",
    "Tensor",
    "Unreadable",
    "beside_storage",
    "made_by",
    "rebuild",
    "rebuilt_names",
    "window_of",
    "wraps",
]


class Tensor(NamedTuple):
    """A dense tensor as its pickle describes it, not yet checked against its storage.

    Attributes:
        storage: Key of its storage.
        dtype: Type of its elements, or None for that of the storage.
        shape: Elements per dimension.
        stride: Elements to step per dimension.
        offset: First element, counted in elements from the start of the storage.
        room: Elements from the start of the storage that it may look into; None for all.
    """

    storage: str
    dtype: DType | None
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    room: int | None = None

    def view(self, key: str, container: Container) -> TensorView:
        """The checked view of this tensor under the name *key*.

        Raises:
            MalformedInput: The storage is missing, or the view does not lie inside it.
        """
        storage = container.storages.get(self.storage)
        if storage is None:
            raise MalformedInput(
                f"storage {self.storage!r} is missing or contradicts itself", where=key
            )
        dtype = self.dtype or storage.dtype
        if self.room is not None and self.room * dtype.itemsize < storage.nbytes:
            # It must lie in the part that its persistent id shows, too.
            part = replace(storage, numel=self.room, nbytes=self.room * dtype.itemsize)
            TensorView(key, part, dtype, self.shape, self.stride, self.offset)
        return TensorView(key, storage, dtype, self.shape, self.stride, self.offset)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something that is a tensor to torch, but that we do not turn into one.

    Attributes:
        what: What it is.
        reason: Why we leave it.
        is_broken: Whether torch could not make it either.
        storage: Key of the storage that it would look into, or "" if nothing says so.
    """

    what: str
    reason: str
    is_broken: bool = False
    storage: str = ""


Rebuilt: TypeAlias = "Tensor | Unreadable"

# Functions that call a function that calls a function: so many are followed.
MOST_WRAPPERS = 8
_BEYOND_ANY_FILE = 1 << 62
# Elements in a byte.
_PACKED = {"quint4x2": 2, "quint2x4": 4}
# Sizes of so many dimensions are looked at first.
_USUAL_RANK = 8
_INT = {int}
# Types of torch that nothing here reads, and safetensors has no code for.
_UNREAD_TYPES = {
    ("torch", name)
    for name in "complex32 float4_e2m1fn_x2 bits8 bits16 bits1x8 bits2x4 bits4x2".split()
}
_NO_CODE = "safetensors has no code for its type"
# torch knows two flags.
_MOST_FLAGS = 8
_LOADS_STORAGE = ("torch.storage", "_load_from_bytes")
_BROKEN = Unreadable(
    "tensor", "its rebuild call has arguments torch would not take", is_broken=True
)


def rebuild(node: Node, container: Container) -> Rebuilt | None:
    """The tensor that *node* stands for, or None if it stands for none.

    Raises:
        LimitExceeded: It has more dimensions than we follow.
    """
    if isinstance(node, PersistentId):
        return _framed(node, container)
    for _ in range(MOST_WRAPPERS):
        if not isinstance(node, Call) or not isinstance(node.func, Global):
            return None
        name = (node.func.module, node.func.name)
        handler = _REBUILDERS.get(name)
        if handler is None:
            return _stateful(node) if _is_tensor_class(node.func) else None
        done = handler(node)
        if not isinstance(done, _Wrapped):
            return done
        node = done.inner
        if isinstance(node, PersistentId):
            return _framed(node, container) or _BROKEN
    return _BROKEN


def made_by(call: Call) -> bool:
    """Whether *call* itself puts a tensor on a storage, and does not wrap one already made."""
    if not isinstance(call.func, Global):
        return False
    name = (call.func.module, call.func.name)
    known = name in _WINDOWS or name in _FROM_TYPE
    return known or (call.state is not None and _stateful(call) is not None)


def window_of(event: Event) -> Rebuilt | None:
    """The window on a storage that *event* opens; None if it opens none, or wraps one.

    What is done with the values behind it, deferred changes or a scale, makes no difference.

    Raises:
        LimitExceeded: It has more dimensions than we follow.
    """
    for _ in range(MOST_WRAPPERS):
        if isinstance(event, Build):
            return _windowed(event.state)
        if not isinstance(event, Call) or not isinstance(event.func, Global):
            return None
        name = (event.func.module, event.func.name)
        if name not in _FROM_TYPE:
            opens = _WINDOWS.get(name)
            return opens(event) if opens else None
        wrapped = _from_type(event)
        if not isinstance(wrapped, _Wrapped) or not isinstance(wrapped.inner, Call):
            return _BROKEN
        event = wrapped.inner
    return _BROKEN


def wraps(event: Event) -> bool:
    """Whether *event* calls a function that is given another to call, up to `MOST_WRAPPERS`."""
    if not isinstance(event, Call) or not isinstance(event.func, Global):
        return False
    return (event.func.module, event.func.name) in _FROM_TYPE


def beside_storage(call: Call) -> list[Node]:
    """What *call* holds, without the storages that it, or its state, opens windows on."""
    args, state = call.args, call.state
    name = (call.func.module, call.func.name) if isinstance(call.func, Global) else None
    parts: list[Node] = [call.func, call.kwargs, *chain.from_iterable(call.pairs), *call.elements]
    match args:
        case (PersistentId(), *others) if name in _WINDOWS:
            parts += others
        case (func, cls, (PersistentId(), *others), attributes) if name in _FROM_TYPE:
            parts += (func, cls, *others, attributes)
        case _:
            parts.append(args)
    match state:
        case (PersistentId(), offset, size, stride):
            parts += (offset, size, stride)
        case _:
            parts.append(state)
    return parts


def rebuilt_names() -> frozenset[tuple[str, str]]:
    """Every (module, name) that this room turns into a tensor."""
    return frozenset(_REBUILDERS)


@dataclass(frozen=True, slots=True)
class _Wrapped:
    """The tensor is what *inner* stands for."""

    inner: Node


def _args(call: Call) -> tuple[Node, ...]:
    return call.args if isinstance(call.args, tuple) else ()


def _dense(storage: Node, offset: Node, size: Node, stride: Node, dtype: DType | None) -> Rebuilt:
    if isinstance(storage, Call) and _brings_storage(storage):
        return Unreadable("tensor pickled with its storage", "its storage is no record of the file")
    ref = storage_of(storage) if isinstance(storage, PersistentId) else None
    shape, steps = _sizes(size), _sizes(stride)
    if ref is None:
        return _BROKEN
    # A legacy storage may be a view on a root storage, counted in the root's elements.
    itemsize = dtype.itemsize if dtype else 1
    if (
        shape is None
        or steps is None
        or type(offset) is not int
        # Before it is computed with: one integer of a megabyte may stand in every call.
        or not 0 <= offset < _BEYOND_ANY_FILE
        or (dtype is not None and ref.typed)
        or ref.view_offset % itemsize
    ):
        return replace(_BROKEN, storage=ref.key)
    room = (ref.view_offset + ref.view_numel) // itemsize
    return Tensor(ref.key, dtype, shape, steps, offset + ref.view_offset // itemsize, room)


def _brings_storage(call: Call) -> bool:
    """Whether *call* is how a storage is pickled without torch.save (torch/storage.py)."""
    func = call.func
    return isinstance(func, Global) and (func.module, func.name) == _LOADS_STORAGE


def _sizes(node: Node) -> tuple[int, ...] | None:
    """A tuple of ints, or the ``torch.Size`` of one; raises like `rebuild`."""
    if type(node) is tuple and len(node) <= _USUAL_RANK and _INT.issuperset(map(type, node)):
        return cast("tuple[int, ...]", node)
    if isinstance(node, Call) and isinstance(node.func, Global):
        args = _args(node)
        if (node.func.module, node.func.name) != ("torch", "Size") or len(args) != 1:
            return None
        node = args[0]
    if not isinstance(node, (tuple, list)):
        return None
    check_rank(len(node), "tensor")
    sizes = [size for size in node if type(size) is int]
    return tuple(sizes) if len(sizes) == len(node) else None


def _tensor_v1(call: Call) -> Rebuilt:
    match _args(call):
        case (storage, offset, size, stride):
            return _dense(storage, offset, size, stride, None)
        case _:
            return _BROKEN


def _quantised(call: Call) -> Rebuilt:
    # storage, offset, size, stride, quantizer, requires_grad, backward_hooks
    match _args(call):
        case (PersistentId() as storage, offset, size, stride, _, _, _):
            window = _dense(storage, offset, size, stride, None)
            ref = storage_of(storage)
            packed = _PACKED.get(ref.dtype.name) if ref else None
            if packed is None or not isinstance(window, Tensor):
                return window
            return _unpacked(window, packed)
        case _:
            return _BROKEN


def _unpacked(window: Tensor, packed: int) -> Tensor:
    """The bytes that a tensor of *packed* elements in each of them touches.

    torch counts the elements of the tensor one by one, but its storage in bytes.
    """
    numbers = (*window.shape, *window.stride, 0)
    is_view = len(window.shape) == len(window.stride) and 0 not in window.shape
    if not is_view or min(numbers) < 0 or max(numbers) >= _BEYOND_ANY_FILE:
        return window
    last = window.offset
    for size, step in zip(window.shape, window.stride, strict=True):
        last += (size - 1) * step
    first = window.offset // packed
    return window._replace(shape=(last // packed - first + 1,), stride=(1,), offset=first)


def _tensor_v2(call: Call) -> Rebuilt:
    # storage, offset, size, stride, requires_grad, backward_hooks[, metadata]
    match _args(call):
        case (_, _, _, _, _, _, *metadata):
            return _altered(metadata) or _window_v2(call)
        case _:
            return _BROKEN


def _window_v2(call: Call) -> Rebuilt:
    match _args(call):
        case (storage, offset, size, stride, _, _, *metadata) if len(metadata) <= 1:
            return _dense(storage, offset, size, stride, None)
        case _:
            return _BROKEN


def _tensor_v3(call: Call) -> Rebuilt:
    # storage, offset, size, stride, requires_grad, backward_hooks, dtype[, metadata]
    match _args(call):
        case (_, _, _, _, _, _, _, *metadata):
            return _altered(metadata) or _window_v3(call)
        case _:
            return _BROKEN


def _window_v3(call: Call) -> Rebuilt:
    match _args(call):
        case (storage, offset, size, stride, _, _, Global() as dtype, *rest) if len(rest) <= 1:
            known = by_name(dtype.name) if dtype.module == "torch" else None
            if (dtype.module, dtype.name) in _UNREAD_TYPES and isinstance(storage, PersistentId):
                ref = storage_of(storage)
                what = f"{dtype.name} tensor"
                return Unreadable(what, _NO_CODE, storage=ref.key) if ref else _BROKEN
            return _dense(storage, offset, size, stride, known) if known else _BROKEN
        case _:
            return _BROKEN


def _altered(metadata: list[Node]) -> Rebuilt | None:
    """What a tensor is whose metadata change its values; None for any other.

    torch/_utils.py, get_tensor_metadata: ``conj`` and ``neg`` say that the values in the
    storage are still to be conjugated or negated.
    """
    match metadata:
        case [] | [None] | [_, _, *_]:
            return None
        case [Dict(pairs)] if len(pairs) <= _MOST_FLAGS and not any(is_set for _, is_set in pairs):
            return None
        case _:
            return Unreadable(
                "tensor with deferred changes", "its values are negated or conjugated on loading"
            )


def _first_argument(call: Call) -> Rebuilt | _Wrapped:
    args = _args(call)
    return _Wrapped(args[0]) if args else _BROKEN


def _parameter(call: Call) -> Rebuilt | _Wrapped:
    """A Parameter is given its tensor, or by BUILD: one's state, or a Variable's (torch 0.1)."""
    match call.state:
        # data, gradient, backward hooks, requires_grad, volatile
        case (data, _, _, _, _):
            return _Wrapped(data)
        case _:
            return _stateful(call) or _first_argument(call)


def _from_type(call: Call) -> Rebuilt | _Wrapped:
    # func, type, args, state: func(*args) makes the tensor, which is then given its type.
    match _args(call):
        case (Global() as func, _, tuple() as args, _):
            return _Wrapped(Call("REDUCE", func, args, None, call.offset))
        case _:
            return _BROKEN


def _unreadable(what: str, reason: str) -> Callable[[Call], Rebuilt]:
    return lambda _: Unreadable(what, reason)


def _stateful(call: Call) -> Rebuilt | None:
    """Torch 0.1 made an empty tensor and gave it (storage, offset, size, stride) by BUILD."""
    return _windowed(call.state)


def _windowed(state: Node) -> Rebuilt | None:
    match state:
        case (PersistentId() as storage, offset, size, stride):
            return _dense(storage, offset, size, stride, None)
        case _:
            return None


def _is_tensor_class(func: Global) -> bool:
    return func.module in {"torch", "torch.cuda", "torch.tensor", "torch._tensor"} and (
        func.name.endswith("Tensor")
    )


def _framed(pid: PersistentId, container: Container) -> Rebuilt | None:
    """A tensor that the framing itself describes: in a tar, the persistent id is its key."""
    stored = container.tensors.get(key_of(pid.pid) or "")
    if stored is None:
        return None
    return Tensor(stored.storage, stored.dtype, stored.shape, stored.stride, stored.offset)


_NO_DATA = "it has no data in the file"
_REBUILDERS: dict[tuple[str, str], Callable[[Call], Rebuilt | _Wrapped | None]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor_v1,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first_argument,
    ("torch._utils", "_rebuild_parameter_with_state"): _first_argument,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _first_argument,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch.nn.parameter", "Buffer"): _parameter,
    ("torch.nn", "Parameter"): _parameter,
    ("torch._utils", "_rebuild_sparse_tensor"): _unreadable(
        "sparse tensor", "safetensors holds dense tensors only"
    ),
    ("torch._utils", "_rebuild_sparse_csr_tensor"): _unreadable(
        "sparse tensor", "safetensors holds dense tensors only"
    ),
    ("torch._utils", "_rebuild_qtensor"): _unreadable(
        "quantised tensor", "safetensors has no place for its scale and zero point"
    ),
    ("torch._utils", "_rebuild_nested_tensor"): _unreadable(
        "nested tensor", "safetensors holds dense tensors only"
    ),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _unreadable(
        "tensor held as a NumPy array", "its values lie inside the pickle, not in a storage"
    ),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _unreadable("meta tensor", _NO_DATA),
    ("torch._utils", "_rebuild_wrapper_subclass"): _unreadable("tensor subclass", _NO_DATA),
}
_FROM_TYPE = {
    (module, name)
    for module in ("torch._tensor", "torch.tensor")
    for name in ("_rebuild_from_type_v2", "_rebuild_from_type")
}
_REBUILDERS |= dict.fromkeys(_FROM_TYPE, _from_type)
_WINDOWS: dict[tuple[str, str], Callable[[Call], Rebuilt]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor_v1,
    ("torch._utils", "_rebuild_tensor_v2"): _window_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _window_v3,
    ("torch._utils", "_rebuild_qtensor"): _quantised,
}
