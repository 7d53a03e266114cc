"""Where in a checkpoint the weights are, and what else the file holds.

Knows:      how training scripts wrap a state dict, and how a module's own state names its tensors.
Is told:    an open container.
Never asks: what a key means.

Nothing is read from disk but what the container has read already.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ckptaudit.containers import Kind, storage_of
from ckptaudit.errors import MalformedInput, Unsupported
from ckptaudit.tensors.rebuild import Tensor, Unreadable, made_by
from ckptaudit.tensors.stored import of_folder, of_safetensors
from ckptaudit.tensors.tree import Steps, Tree, is_module, pairs_of, path_of
from ckptaudit.tensors.view import Leftover, StateDict, TensorView
from ckptaudit.vm import Call, Dict, Global, Limits, PersistentId, Set, brief
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from typing import TypeAlias

    from ckptaudit.containers import Container, StoredTensor
    from ckptaudit.tensors.tree import Child
    from ckptaudit.vm import Node

    # A name, the way, and what stands there.
    _Part: TypeAlias = tuple[str, Steps | None, Node]

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
_TRAINING = re.compile(
    "(optim|optimizers?|lr_schedulers?|schedulers?|callbacks|loops|scaler|amp|rng_state"
    "|hyper_parameters)(?![A-Za-z0-9.])"
)
# So many values that are no tensors are listed one by one.
_MOST_OTHERS = 10_000
# The one tensor of a file that holds nothing else has no name; safetensors needs one.
_BARE_TENSOR = "tensor"


def find_state_dict(container: Container, limits: Limits | None = None) -> StateDict:
    """The state dict of *container*, and everything in the file that is not part of it.

    A tensor that does not fit its storage, or whose storage is missing, is a leftover.

    Raises:
        MalformedInput: The pickle cannot be read to its end.
        LimitExceeded: It nests too deep, or shares its parts too often.
        Unsupported: The file is a TorchScript archive, whose tensors belong to its code; or no
            checkpoint, though it may hold one.
    """
    if container.refusal:
        raise Unsupported(f"{container.source.name}: {container.refusal}")
    if container.kind is Kind.TORCHSCRIPT:
        raise Unsupported(
            f"{container.source.name}: is a TorchScript archive; it contains code and is not "
            "converted: ask its author for the state dict"
        )
    if container.kind is Kind.SAFETENSORS:
        return of_safetensors(container)
    if container.kind is Kind.FOLDER:
        return of_folder(container, lambda part: find_state_dict(part, limits))
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
        # Leftovers that are no tensors: those listed, and those only counted.
        self.others = 0
        self.unlisted = 0
        # The storages, and the windows on them, that have been accounted for.
        self.storages: set[str] = set()
        self.accounted: set[int] = set()
        self.windows: set[tuple[str, tuple[int, ...], tuple[int, ...], int]] = set()

    def state_dict(self) -> StateDict:
        self.tree.check_size(self.root)
        steps, found = self.descend()
        self.collect_outside(steps)
        if self.tree.tensor(found) is not None:
            self.add(_BARE_TENSOR, steps, found)
        else:
            self.collect(found, steps)
        self.collect_unnamed()
        return StateDict(
            tuple(self.views.values()),
            self.container.storages,
            path_of(steps),
            tuple(self.leftovers),
        )

    def descend(self) -> tuple[Steps | None, Node]:
        """Follow wrapper keys from the root for as long as the weights lie behind one."""
        node = self.root
        steps: Steps | None = None
        while (child := self.wrapped(node)) is not None and not (steps and steps.passes(node)):
            self.tree.visit(steps)
            steps = Steps.below(steps, child[0], node)
            node = child[1]
        return steps, node

    def wrapped(self, node: Node) -> Child | None:
        if is_module(node) or pairs_of(node) is None:
            return None
        held = self.last_of_each_key(self.tree.children(node))
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

    def last_of_each_key(self, children: list[Child]) -> dict[str, Child]:
        """A dict keeps the last value stored under a key."""
        return {
            key.name: (key, child)
            for key, child in children
            if isinstance(key.name, str) and not key.is_attribute
        }

    def collect_outside(self, steps: Steps | None) -> None:
        """Name what stands beside the state dict on each level above it."""
        above: list[Steps] = []
        while steps is not None:
            above.append(steps)
            steps = steps.above
        for step in reversed(above):
            parts = self.tree.parts(step.passed)
            taken, _ = self.last_of_each_key(parts)[str(step.key.name)]
            for key, child in parts:
                if key is not taken:
                    way = Steps.below(step.above, key, step.passed)
                    self.leave(child, way, "is outside the state dict")

    def collect(self, found: Node, steps: Steps | None) -> None:
        """Flatten *found* into dotted keys; a module gives the keys its state_dict() would."""
        # For each node still to be seen: the name of its parent, its own in it, the way to it.
        stack: list[tuple[str, str, Steps | None, Node]] = [("", "", steps, found)]
        while stack:
            prefix, name, at, node = stack.pop()
            self.tree.visit(at)
            whole = self.tree.written(f"{prefix}.{name}" if prefix else name)
            if at is not steps and self.tree.tensor(node) is not None:
                self.add(whole, at, node)
            elif self.tree.count(node) == 0:
                self.leave(node, at, "is not a tensor")
            elif at is None or not at.passes(node):
                parts = self.module_parts(node, at) if is_module(node) else self.parts(node, at)
                stack.extend((whole, inner, path, child) for inner, path, child in reversed(parts))

    def parts(self, node: Node, at: Steps | None) -> list[_Part]:
        """The children of a container that may hold weights; the others are leftovers."""
        parts: dict[str, _Part] = {}
        for key, child in self.tree.parts(node):
            path = Steps.below(at, key, node)
            name = key.text
            if key.is_attribute or name is None:
                self.leave(child, path, "is no entry of the state dict")
            elif (
                at is None
                and isinstance(key.name, str)
                and _TRAINING.match(key.name)
                and self.tree.tensor(child) is None
            ):
                self.leave(child, path, "is training state")
            else:
                self.place(parts, (name, path, child))
        return list(parts.values())

    def module_parts(self, node: Node, at: Steps | None) -> list[_Part]:
        """What ``Module.state_dict`` would name: parameters, persistent buffers, submodules."""
        parts: dict[str, _Part] = {}
        children = self.tree.parts(node)
        # Of two attributes of one name the last stays.
        attributes = {
            key.name: (key, child)
            for key, child in children
            if key.is_attribute and isinstance(key.name, str)
        }
        holders = [attributes.get(name) for name in ("_parameters", "_buffers", "_modules")]
        _, passing = attributes.get("_non_persistent_buffers_set", (None, None))
        passing_names = _names(passing)
        self.tree.pay(len(passing_names))
        for key, child in children:
            path = Steps.below(at, key, node)
            if not any(holder is not None and holder[0] is key for holder in holders):
                if self.tree.count(child):
                    self.leave(child, path, "is no part of the module's state_dict()")
                continue
            for inner, held in self.tree.parts(child):
                way = Steps.below(path, inner, child)
                if key.name == "_buffers" and inner.text in passing_names:
                    self.leave(held, way, "is a buffer that state_dict() leaves out")
                elif inner.text is None or inner.is_attribute:
                    if self.tree.count(held):
                        self.leave(held, way, "is no part of the module's state_dict()")
                elif held is not None:
                    self.place(parts, (inner.text, way, held))
        return list(parts.values())

    def place(self, parts: dict[str, _Part], part: _Part) -> None:
        """Let *part* take the place of what had its key before, as it would in a dict."""
        name, way, node = part
        if name in parts:
            _, path, earlier = parts[name]
            if not _same_key(path, way):
                self.leave(node, way, f"has the same name as another entry, {brief(name)}")
                return
            del parts[name]
            self.leave(earlier, path, "is replaced by a later entry of the same key")
        parts[name] = part

    def add(self, key: str, steps: Steps | None, node: Node) -> None:
        tensor = self.tree.tensor(node)
        if isinstance(tensor, Unreadable):
            self.leave(node, steps, tensor.reason)
        elif key in self.views:
            self.leave(node, steps, f"has the same key as another tensor, {brief(key)}")
        elif tensor is not None:
            try:
                view = tensor.view(key, self.container)
            except MalformedInput as err:
                # Of a file that is truncated or lies, the other tensors are still there.
                self.leave(node, steps, f"cannot be read: {err.args[0]}")
            else:
                self.account(node, tensor)
                self.views[key] = view

    def leave(self, node: Node, at: Steps | None, reason: str) -> None:
        """Put every tensor of *node* among the leftovers, and what else it holds."""
        if self.others >= _MOST_OTHERS and not self.tree.count(node):
            self.unlisted += 1
            return
        for steps, leaf in self.tree.leaves(node, at):
            tensor = self.tree.tensor(leaf)
            self.account(leaf, tensor)
            if tensor is None:
                self.others += 1
                if self.others > _MOST_OTHERS:
                    self.unlisted += 1
                    continue
            self.leftovers.append(
                Leftover(
                    self.tree.written(path_of(steps)),
                    self.tree.written(_describe(tensor, leaf, self.container)),
                    reason,
                    is_tensor=tensor is not None,
                )
            )

    def account(self, node: Node, tensor: Tensor | Unreadable | None) -> None:
        if isinstance(tensor, Tensor):
            self.storages.add(tensor.storage)
            self.windows.add(self.window(tensor))
        if isinstance(tensor, Unreadable):
            self.account_below(node)

    @staticmethod
    def window(
        tensor: Tensor | StoredTensor,
    ) -> tuple[str, tuple[int, ...], tuple[int, ...], int]:
        """What two tensors share if they show the same elements in the same order."""
        return tensor.storage, tensor.shape, tensor.stride, tensor.offset

    def account_below(self, node: Node) -> None:
        """Account for all storages that the parts of an unreadable tensor lie in."""
        stack = [node]
        while stack:
            inner = stack.pop()
            if id(inner) in self.accounted:
                continue
            self.accounted.add(id(inner))
            match inner:
                case PersistentId():
                    ref = storage_of(inner)
                    self.storages |= {ref.key} if ref else set()
                case Call():
                    part = self.tree.tensor(inner) if made_by(inner) else None
                    if isinstance(part, Tensor):
                        self.windows.add(self.window(part))
                    stack += (inner.args, inner.state)
                case Dict():
                    stack += (value for _, value in inner.pairs)
                case list() | tuple():
                    stack += inner

    def collect_unnamed(self) -> None:
        """Name the weights that no tensor of the object refers to.

        A pickle may make a tensor and throw it away, or hang one on another tensor.
        """
        if self.unlisted:
            what = counted(self.unlisted, "more value")
            reason = "beyond what is listed; no tensor among them"
            self.leftovers.append(Leftover("", what, reason, is_tensor=False))
        reason = "is in the file, but no tensor of the object is in it"
        if self.container.kind is Kind.TAR:
            for stored in self.container.tensors.values():
                if self.window(stored) not in self.windows:
                    what = f"{stored.dtype.name} {list(stored.shape)}"
                    self.leftovers.append(Leftover("", what, reason, is_tensor=True))
            return
        for event in self.container.object_trace.events:
            if not isinstance(event, Call) or not made_by(event):
                continue
            tensor = self.tree.tensor(event)
            if isinstance(tensor, Tensor) and self.window(tensor) not in self.windows:
                what = self.tree.written(_describe(tensor, event, self.container))
                self.leftovers.append(Leftover("", what, reason, is_tensor=True))
                self.account(event, tensor)
        for key, storage in self.container.storages.items():
            if key not in self.storages:
                what = f"storage {brief(key)}: {storage.dtype.name} [{storage.numel}]"
                self.leftovers.append(Leftover("", what, reason, is_tensor=True))


def _same_key(one: Steps | None, other: Steps | None) -> bool:
    """Whether two ways end in one key of a dict: 1 and '1' read alike, and are two."""
    return one is not None and other is not None and one.key.name == other.key.name


def _names(node: Node) -> set[str]:
    """The strings of a set, however it was pickled: ``set([...])`` or EMPTY_SET."""
    match node:
        case Set():
            elements = node.elements
        case Call(func=Global(name="set"), args=(list(elements), *_)):
            pass
        case _:
            return set()
    return {element for element in elements if isinstance(element, str)}


def _describe(tensor: Tensor | Unreadable | None, node: Node, container: Container) -> str:
    match tensor:
        case Tensor():
            storage = container.storages.get(tensor.storage)
            dtype = tensor.dtype or (storage.dtype if storage else None)
            return f"{dtype.name if dtype else 'tensor'} [{', '.join(map(brief, tensor.shape))}]"
        case Unreadable():
            return tensor.what
        case None:
            if isinstance(node, Dict):
                return f"dict of {len(node.pairs)}"
            if isinstance(node, (list, tuple)):
                return f"{type(node).__name__} of {len(node)}"
            return brief(node)
