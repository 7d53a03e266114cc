"""Where in a checkpoint the weights are, and what else the file holds.

Knows:      how training scripts wrap a state dict, and how a module's own state names its tensors.
Is told:    an open container.
Never asks: what a key means.

Nothing is read from disk but what the container has read already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptaudit.containers import Kind
from ckptaudit.errors import Unsupported
from ckptaudit.tensors.rebuild import Tensor, Unreadable
from ckptaudit.tensors.tree import Key, Tree, is_module, pairs_of, path_of
from ckptaudit.tensors.view import Leftover, StateDict, TensorView
from ckptaudit.vm import Call, Dict, Global, Limits, Set, brief

if TYPE_CHECKING:
    from ckptaudit.containers import Container
    from ckptaudit.vm import Node

__all__ = ["find_state_dict"]

# In the order they are looked for.  A wrapper may hold another.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "params_ema",
    "params",
    "module",
    "net",
    "network",
    "generator",
    "weights",
)
# What training scripts keep beside the weights when they do not wrap them.
_TRAINING = (
    "optim",
    "lr_scheduler",
    "scheduler",
    "callbacks",
    "loops",
    "scaler",
    "amp",
    "rng_state",
    "hyper_parameters",
)
# The one tensor of a file that holds nothing else has no name; safetensors needs one.
_BARE_TENSOR = "tensor"


def find_state_dict(container: Container, limits: Limits | None = None) -> StateDict:
    """The state dict of *container*, and everything in the file that is not part of it.

    Raises:
        MalformedInput: The pickle cannot be read to its end, or a tensor does not fit its storage.
        Unsupported: The file is a TorchScript archive, whose tensors belong to its code.
    """
    if container.kind is Kind.TORCHSCRIPT:
        raise Unsupported(
            f"{container.source.name}: is a TorchScript archive; it contains code and is not "
            "converted: ask its author for the state dict"
        )
    if container.kind is Kind.SAFETENSORS:
        views = tuple(
            Tensor(stored.storage, stored.dtype, stored.shape, stored.stride, stored.offset).view(
                key, container
            )
            for key, stored in container.tensors.items()
        )
        return StateDict(views, container.storages, "")
    root = container.object_trace.root
    return _Search(container, limits or Limits(), root).state_dict()


class _Search:
    """One object being divided into state dict and leftovers."""

    def __init__(self, container: Container, limits: Limits, root: Node) -> None:
        self.container = container
        self.tree = Tree(container, limits.depth)
        self.root = root
        self.views: dict[str, TensorView] = {}
        self.leftovers: list[Leftover] = []

    def state_dict(self) -> StateDict:
        steps, found = self.descend()
        self.collect_outside(steps)
        if self.tree.tensor(found) is not None:
            self.add(_BARE_TENSOR, steps, found)
        else:
            self.collect(found, steps)
        return StateDict(
            tuple(self.views.values()),
            self.container.storages,
            path_of(steps),
            tuple(self.leftovers),
        )

    def descend(self) -> tuple[tuple[Key, ...], Node]:
        """Follow wrapper keys from the root for as long as the weights lie behind one."""
        node = self.root
        steps: tuple[Key, ...] = ()
        while (child := self.wrapped(node)) is not None:
            key, node = child
            steps = (*steps, key)
        return steps, node

    def wrapped(self, node: Node) -> tuple[Key, Node] | None:
        if is_module(node) or pairs_of(node) is None:
            return None
        held = self.last_of_each_key(node)
        beside = sum(1 for _, child in held.values() if self.tree.tensor(child) is not None)
        for name in _WRAPPERS:
            if name not in held:
                continue
            key, child = held[name]
            # A state dict may itself hold a stray "state_dict": the weights are where more of
            # them lie.
            if self.tree.tensor(child) is None and self.tree.count(child) > beside:
                return key, child
        return None

    def last_of_each_key(self, node: Node) -> dict[str, tuple[Key, Node]]:
        """A dict keeps the last value stored under a key."""
        held: dict[str, tuple[Key, Node]] = {}
        for key, child in self.tree.children(node):
            if isinstance(key.name, str) and not key.is_attribute:
                held[key.name] = key, child
        return held

    def collect_outside(self, steps: tuple[Key, ...]) -> None:
        """Name what stands beside the state dict on each level above it."""
        node = self.root
        for depth, step in enumerate(steps):
            inside: Node = None
            for key, child in self.tree.children(node):
                if key is step:
                    inside = child
                else:
                    self.leave(child, (*steps[:depth], key), "is outside the state dict")
            node = inside

    def collect(self, found: Node, steps: tuple[Key, ...]) -> None:
        """Flatten *found* into dotted keys; a module gives the keys its state_dict() would."""
        stack: list[tuple[str, tuple[Key, ...], Node]] = [("", steps, found)]
        while stack:
            prefix, at, node = stack.pop()
            self.tree.visit(at)
            if prefix and (self.tree.tensor(node) is not None):
                self.add(prefix[:-1], at, node)
            elif self.tree.count(node) == 0:
                self.leave(node, at, "is not a tensor")
            else:
                parts = self.module_parts(node, at) if is_module(node) else self.parts(node, at)
                stack.extend(
                    (f"{prefix}{name}.", path, child) for name, path, child in reversed(parts)
                )

    def parts(self, node: Node, at: tuple[Key, ...]) -> list[tuple[str, tuple[Key, ...], Node]]:
        """The children of a container that may hold weights; the others are leftovers."""
        parts: dict[str, tuple[str, tuple[Key, ...], Node]] = {}
        for key, child in self.tree.children(node):
            path = (*at, key)
            name = key.text
            if key.is_attribute or name is None:
                self.leave(child, path, "is no entry of the state dict")
            elif not at and isinstance(key.name, str) and key.name.startswith(_TRAINING):
                self.leave(child, path, "is training state")
            else:
                if name in parts:
                    _, earlier_path, earlier = parts.pop(name)
                    self.leave(
                        earlier, earlier_path, "is replaced by a later entry of the same key"
                    )
                parts[name] = (name, path, child)
        return list(parts.values())

    def module_parts(
        self, node: Node, at: tuple[Key, ...]
    ) -> list[tuple[str, tuple[Key, ...], Node]]:
        """What ``Module.state_dict`` would name: parameters, persistent buffers, submodules."""
        parts: list[tuple[str, tuple[Key, ...], Node]] = []
        attributes = {
            key.name: child
            for key, child in self.tree.children(node)
            if key.is_attribute and isinstance(key.name, str)
        }
        passing = _names(attributes.get("_non_persistent_buffers_set"))
        for key, child in self.tree.children(node):
            if key.name in ("_parameters", "_buffers", "_modules") and key.is_attribute:
                for inner, held in self.tree.children(child):
                    path = (*at, key, inner)
                    if key.name == "_buffers" and inner.name in passing:
                        self.leave(held, path, "is a buffer that state_dict() leaves out")
                    elif inner.text is None or inner.is_attribute:
                        self.leave(held, path, "is no part of the module's state_dict()")
                    elif held is not None:
                        parts.append((inner.text, path, held))
            elif self.tree.count(child):
                self.leave(child, (*at, key), "is no part of the module's state_dict()")
        return parts

    def add(self, key: str, steps: tuple[Key, ...], node: Node) -> None:
        tensor = self.tree.tensor(node)
        if isinstance(tensor, Unreadable):
            self.leave(node, steps, tensor.reason)
        elif key in self.views:
            self.leave(node, steps, f"has the same key as another tensor, {brief(key)}")
        elif tensor is not None:
            self.views[key] = tensor.view(key, self.container)

    def leave(self, node: Node, steps: tuple[Key, ...], reason: str) -> None:
        """Put every tensor of *node* among the leftovers, and what else it holds."""
        for inner, leaf in self.tree.leaves(node):
            tensor = self.tree.tensor(leaf)
            self.leftovers.append(
                Leftover(
                    path_of((*steps, *inner)),
                    _describe(tensor, leaf, self.container),
                    reason,
                    is_tensor=tensor is not None,
                )
            )


def _names(node: Node) -> list[str]:
    """The strings of a set, however it was pickled: ``set([...])`` or EMPTY_SET."""
    match node:
        case Set():
            elements = node.elements
        case Call(func=Global(name="set"), args=(list(elements), *_)):
            pass
        case _:
            return []
    return [element for element in elements if isinstance(element, str)]


def _describe(tensor: Tensor | Unreadable | None, node: Node, container: Container) -> str:
    match tensor:
        case Tensor():
            storage = container.storages.get(tensor.storage)
            dtype = tensor.dtype or (storage.dtype if storage else None)
            return f"{dtype.name if dtype else 'tensor'} {list(tensor.shape)}"
        case Unreadable():
            return tensor.what
        case None:
            if isinstance(node, Dict):
                return f"dict of {len(node.pairs)}"
            if isinstance(node, (list, tuple)):
                return f"{type(node).__name__} of {len(node)}"
            return brief(node)
