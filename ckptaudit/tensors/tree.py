"""The object a pickle describes, as containers, tensors and everything else.

Knows:      which calls make mappings, sequences and modules, and what they hold.
Is told:    the root node of a pickle.
Never asks: which part of it is the state dict.

Every walk here is a loop that counts: a hostile tree may nest 200,000 deep or
share itself 2^60 times over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ckptaudit.errors import LimitExceeded
from ckptaudit.tensors.rebuild import Rebuilt, rebuild
from ckptaudit.vm import Call, Dict, Global, PersistentId, Set

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.containers import Container
    from ckptaudit.vm import Node

__all__ = ["Child", "Key", "Tree", "path_of"]

# No real checkpoint names as many tensors; sharing can make a small pickle name 2^60.
_MOST_LEAVES = 1_000_000
_MOST_VISITS = 4 * _MOST_LEAVES

_MAPPINGS = {
    ("collections", "OrderedDict"),
    ("typing", "OrderedDict"),
    ("collections", "defaultdict"),
    ("collections", "Counter"),
    ("builtins", "dict"),
    ("__builtin__", "dict"),
}


@dataclass(frozen=True, slots=True)
class Key:
    """One step from a node to a child.

    Attributes:
        name: The key, index or attribute name.
        is_attribute: Whether it is reached by ``.name`` and not by ``[name]``.
    """

    name: Node
    is_attribute: bool = False

    @property
    def text(self) -> str | None:
        """The step as part of a state-dict key, or None if nothing readable can be made of it."""
        match self.name:
            case bool() | float() | None:
                return repr(self.name)
            case str():
                # Lone surrogates, which no file format can hold, are escaped.
                return self.name.encode("utf-8", "backslashreplace").decode("utf-8")
            case int():
                return str(self.name)
            case Global():
                return str(self.name)
            case _:
                return None


Child: TypeAlias = "tuple[Key, Node]"


def path_of(steps: tuple[Key, ...]) -> str:
    """The expression that leads along *steps*, such as ``optimizer.state[0].exp_avg``.

    A key that is an identifier is written like an attribute; "" is the root itself.
    """
    text = ""
    for step in steps:
        name = step.name
        if isinstance(name, str) and name.isascii() and name.isidentifier():
            text += f".{name}" if text else name
        elif isinstance(name, (str, int, float, bool)) or name is None:
            text += f"[{name!a}]"
        else:
            text += f"[{step.text!a}]" if step.text is not None else "[?]"
    return text


class Tree:
    """What a pickle's root holds, with each node's tensors counted once and for all."""

    def __init__(self, container: Container, depth: int) -> None:
        self._container = container
        self._depth = depth
        self._rebuilt: dict[int, Rebuilt | None] = {}
        self._children: dict[int, tuple[Child, ...]] = {}
        self._tensors: dict[int, int] = {}
        self._visits = 0

    def tensor(self, node: Node) -> Rebuilt | None:
        """The tensor *node* stands for, or None."""
        if not isinstance(node, (Call, PersistentId)):
            return None
        if id(node) not in self._rebuilt:
            self._rebuilt[id(node)] = rebuild(node, self._container)
        return self._rebuilt[id(node)]

    def children(self, node: Node) -> tuple[Child, ...]:
        """What *node* holds, in order; nothing if it is a tensor or no container."""
        if not isinstance(node, (Call, Dict, Set, list, tuple)):
            return ()
        if id(node) not in self._children:
            held = () if self.tensor(node) is not None else tuple(_children(node))
            self._children[id(node)] = held
        return self._children[id(node)]

    def count(self, root: Node) -> int:
        """Tensors below *root* (or *root* itself), shared ones once per name, capped."""
        stack: list[tuple[Node, bool]] = [(root, False)]
        on_path: set[int] = set()
        while stack:
            node, done = stack.pop()
            if done:
                on_path.discard(id(node))
                total = sum(self._tensors.get(id(child), 0) for _, child in self.children(node))
                self._tensors[id(node)] = min(total, _MOST_LEAVES + 1)
            elif id(node) in self._tensors or id(node) in on_path:
                continue
            elif self.tensor(node) is not None:
                self._tensors[id(node)] = 1
            elif isinstance(node, (Call, Dict, Set, list, tuple)):
                on_path.add(id(node))
                stack.append((node, True))
                stack.extend((child, False) for _, child in self.children(node))
        return self._tensors.get(id(root), 0)

    def visit(self, steps: tuple[Key, ...]) -> None:
        """Pay for one step of a walk; every walk does, so that all of them together end.

        Raises:
            LimitExceeded: There have been too many, or this one is nested too deep.
        """
        self._visits += 1
        where = self._container.source.name
        if self._visits > _MOST_VISITS:
            raise LimitExceeded(f"names over {_MOST_LEAVES} values", where=where)
        if len(steps) > self._depth:
            raise LimitExceeded(f"nests tensors over {self._depth} levels deep", where=where)

    def leaves(self, root: Node) -> Iterator[tuple[tuple[Key, ...], Node]]:
        """Every tensor below *root*, and every largest part of it that holds no tensor.

        Yields:
            The steps from *root*, and the node.

        Raises:
            LimitExceeded: There are too many, or they are nested too deep.
        """
        stack: list[tuple[tuple[Key, ...], Node]] = [((), root)]
        while stack:
            steps, node = stack.pop()
            self.visit(steps)
            if self.count(node) == 0 or self.tensor(node) is not None:
                yield steps, node
            else:
                stack.extend(((*steps, key), child) for key, child in reversed(self.children(node)))


def is_module(node: Node) -> bool:
    """Whether *node* is a pickled ``torch.nn.Module``, by its state; its class is not asked."""
    return isinstance(node, Call) and _attribute(node, "_modules") is not None


def pairs_of(node: Node) -> list[tuple[Node, Node]] | None:
    """The pairs of a dict or of a call that makes one, or None."""
    if isinstance(node, Dict):
        return node.pairs
    if not isinstance(node, Call) or not isinstance(node.func, Global):
        return None
    if (node.func.module, node.func.name) not in _MAPPINGS:
        return [*node.pairs] if node.pairs else None
    pairs = []
    for argument in node.args if isinstance(node.args, tuple) else ():
        # Python 2 wrote OrderedDict([[key, value], ...]); defaultdict has its factory first.
        if isinstance(argument, Dict):
            pairs += argument.pairs
        elif isinstance(argument, (list, tuple)):
            pairs += [
                (pair[0], pair[1])
                for pair in argument
                if isinstance(pair, (list, tuple)) and len(pair) == 2  # noqa: PLR2004 - a pair
            ]
    return pairs + node.pairs


def attributes_of(node: Call) -> list[tuple[Node, Node]]:
    """The pairs of the state BUILD gave *node*: a dict, or (dict, dict of slots)."""
    match node.state:
        case Dict() as state:
            return state.pairs
        case (Dict() | None as state, Dict() as slots):
            return [*(state.pairs if state else ()), *slots.pairs]
        case _:
            return []


def _attribute(node: Call, name: str) -> Node:
    found: Node = None
    for key, value in attributes_of(node):
        if isinstance(key, str) and key == name:
            found = value
    return found


def _children(node: Call | Dict | Set | list[Node] | tuple[Node, ...]) -> Iterator[Child]:
    match node:
        case Dict():
            yield from ((Key(key), value) for key, value in node.pairs)
        case Set():
            yield from ((Key(index), value) for index, value in enumerate(node.elements))
        case list() | tuple():
            yield from ((Key(index), value) for index, value in enumerate(node))
        case Call():
            yield from _children_of_call(node)


def _children_of_call(node: Call) -> Iterator[Child]:
    pairs = pairs_of(node)
    if pairs is not None:
        yield from ((Key(key), value) for key, value in pairs)
    else:
        # Whatever a call was given may hold tensors; none of them may go unnoticed.
        args = node.args if isinstance(node.args, tuple) else (node.args,)
        yield from ((Key(f"<argument {index}>"), value) for index, value in enumerate(args))
    yield from ((Key(index), value) for index, value in enumerate(node.elements))
    if node.kwargs is not None:
        yield Key("<keywords>"), node.kwargs
    known = attributes_of(node)
    if known:
        yield from ((Key(name, is_attribute=True), value) for name, value in known)
    elif node.state is not None:
        yield Key("<state>"), node.state
