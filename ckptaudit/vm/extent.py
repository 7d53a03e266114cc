"""How large and how deep a pickle's values are for whoever walks, compares or prints them.

A pickle says in two bytes that a value is to be there once more.  Said sixty times, of a
pair that holds the last pair twice, that makes 2^60 values, each of which is there once.

Knows:      what each kind of node holds.
Is told:    nodes, and how far to count.
Never asks: what is too much.

Every loop here ends: it pays for each step, or looks at each node once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from ckptaudit.vm.nodes import Call, Dict, Global, Opaque, PersistentId, Set

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ckptaudit.vm.nodes import Node

__all__ = ["Extent", "extent_of"]

# What holds others.  Compared by type and not by `isinstance`: this is most of the work.
_HOLDERS = frozenset((tuple, list, Dict, Set, Call, PersistentId, Opaque))
_TOO_MANY = 1 << 62


@dataclass(frozen=True, slots=True)
class Extent:
    """How far values reach, sharing undone.

    Attributes:
        size: Values in all, each counted as often as it is met; 2^62 stands for more as well.
        depth: Values inside values; arguments and state count with their call.
    """

    size: int
    depth: int


def extent_of(nodes: Iterable[Node], *, enough: int, deep: int) -> Extent:
    """How large all *nodes* together are, and how deep the deepest is.

    Args:
        nodes: The values.
        enough: So many values are counted by walking through them, which is quickest.  If there
            are more, each node is looked at once; of a circle, only the first round counts.
        deep: So deep is walked; whatever is deeper counts as one deeper, or as it is.
    """
    roots = [node for node in nodes if type(node) in _HOLDERS]
    level = roots
    size = depth = 0
    while level and depth <= deep:
        depth += 1
        following: list[Node] = []
        for node in level:
            parts = node if type(node) is tuple else _parts(node)
            size += len(parts)
            if size > enough:
                return _of_shared(roots)
            following += [part for part in parts if type(part) in _HOLDERS]
        level = following
    return Extent(size, depth)


def _of_shared(roots: list[Node]) -> Extent:
    """The same of nodes that share their parts, or hold themselves: each is looked at once."""
    sizes: dict[int, int] = {}
    depths: dict[int, int] = {}
    begun: set[int] = set()
    # Each node twice: to be begun, and with all it holds behind it.
    stack = [(root, False) for root in roots]
    while stack:
        node, done = stack.pop()
        if not done and id(node) in begun:
            continue
        args = _arguments(node)
        parts = _parts_beside(node) if args else _parts(node)
        held = [part for part in parts if type(part) in _HOLDERS]
        if done:
            size = len(parts) + sum(sizes.get(id(part), 0) for part in held)
            sizes[id(node)] = min(size + sizes.get(id(args), 0), _TOO_MANY)
            deepest = max((depths.get(id(part), 0) for part in held), default=0)
            depths[id(node)] = 1 + max(deepest, depths.get(id(args), 1) - 1)
        else:
            begun.add(id(node))
            stack.append((node, True))
            stack += [(part, False) for part in held]
            if args:
                stack.append((args, False))
    size = sum(sizes[id(root)] for root in roots)
    return Extent(min(size, _TOO_MANY), max(depths[id(root)] for root in roots))


def _parts(node: Node) -> Sequence[Node]:
    """What *node* holds, the parts of its arguments included."""
    if isinstance(node, (tuple, list)):
        return node
    if isinstance(node, Call):
        return _parts_of_call(node)
    if isinstance(node, PersistentId):
        return node.pid if isinstance(node.pid, tuple) else (node.pid,)
    if isinstance(node, Dict):
        return list(chain.from_iterable(node.pairs))
    if isinstance(node, Set):
        return node.elements
    return node.args if isinstance(node, Opaque) else ()


def _arguments(node: Node) -> tuple[Node, ...]:
    """The tuple that *node* was made with, if it has parts and other nodes may share it.

    Its parts count as those of the node, and the tuple itself for nothing.
    """
    if isinstance(node, Call):
        return node.args if isinstance(node.args, tuple) else ()
    return node.pid if isinstance(node, PersistentId) and isinstance(node.pid, tuple) else ()


def _parts_of_call(node: Call) -> Sequence[Node]:
    args = node.args if isinstance(node.args, tuple) else (node.args,)
    if node.state is None and node.kwargs is None and not (node.pairs or node.elements):
        return args if isinstance(node.func, Global) else (node.func, *args)
    return [*_parts_beside(node), *args]


def _parts_beside(node: Node) -> Sequence[Node]:
    """What a call, or a persistent id, holds beside its `_arguments`."""
    if not isinstance(node, Call):
        return ()
    if node.state is None and node.kwargs is None and not (node.pairs or node.elements):
        return () if isinstance(node.func, Global) else (node.func,)
    whole = (node.func, node.kwargs, node.state)
    return [*whole, *chain.from_iterable(node.pairs), *node.elements]
