"""The object a pickle describes, as containers, tensors and everything else.

Knows:      which calls make mappings, sequences and modules, and what they hold.
Is told:    the root node of a pickle.
Never asks: which part of it is the state dict.

Every walk here is a loop that pays for each step and each character: a hostile tree may
nest 200,000 deep, share itself 2^60 times over, or repeat one long name on every level.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from ckptaudit.errors import LimitExceeded
from ckptaudit.tensors.rebuild import Rebuilt, rebuild
from ckptaudit.vm import Call, Dict, Global, Opaque, PersistentId, Set

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ckptaudit.containers import Container
    from ckptaudit.vm import Node

__all__ = [
    "Child",
    "Key",
    "Steps",
    "Tree",
    "attributes_of",
    "held_in",
    "is_module",
    "pairs_of",
    "path_of",
]

# A pickle spends an opcode on each value and a byte on each character, unless it shares
# them: a tree may be walked through, and written out, so many times larger than its pickle.
_VISITS_PER_OPCODE = 4
_CHARACTERS_PER_BYTE = 64
# Small pickles may be larger than that.
_VISITS_FLOOR = 20_000
_CHARACTERS_FLOOR = 1 << 20
# No way to a tensor takes as many characters to write down.
_MOST_PATH = 1 << 16
_MOST_INT_BITS = 128
# Deeper than any real object, tensors in it or not.
_MOST_NESTING = 10_000

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
        is_aside: Whether it is no value of the node but stands beside one: a key, a function.
            It is worth a word only if there are tensors in it.
    """

    name: Node
    is_attribute: bool = False
    is_aside: bool = False

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
                # str() refuses integers of more than 4300 digits.
                return str(self.name) if self.name.bit_length() <= _MOST_INT_BITS else None
            case Global():
                return str(self.name)
            case _:
                return None


Child: TypeAlias = "tuple[Key, Node]"


@dataclass(frozen=True, slots=True)
class Steps:
    """The way from the root to a node, as a chain: siblings share all but their last step.

    Attributes:
        above: The way to the parent; None if that is the root.
        key: The last step.
        passed: The parent.
        depth: Steps.
        length: Characters it takes to write down, about.
    """

    above: Steps | None
    key: Key
    passed: Node
    depth: int
    length: int

    @classmethod
    def below(cls, above: Steps | None, key: Key, passed: Node) -> Steps:
        """One step further than *above*, which leads to *passed*."""
        length = len(key.name) if isinstance(key.name, str) else 8
        if above is None:
            return cls(None, key, passed, 1, length)
        return cls(above, key, passed, above.depth + 1, above.length + length)

    def keys(self) -> list[Key]:
        """All steps, from the root on."""
        keys = []
        steps: Steps | None = self
        while steps is not None:
            keys.append(steps.key)
            steps = steps.above
        return keys[::-1]

    def passes(self, node: Node) -> bool:
        """Whether *node* is on the way, so that stepping to it again goes round in a circle."""
        steps: Steps | None = self
        while steps is not None:
            if steps.passed is node:
                return True
            steps = steps.above
        return False


def path_of(steps: Steps | None) -> str:
    """The expression that leads along *steps*, such as ``optimizer.state[0].exp_avg``.

    A key that is an identifier is written like an attribute; "" is the root itself.
    """
    text: list[str] = []
    for key in steps.keys() if steps is not None else ():
        name = key.name
        if isinstance(name, str) and name.isascii() and name.isidentifier():
            text.append(f".{name}" if text else name)
        elif isinstance(name, (str, int, float)) or name is None:
            text.append(f"[{name!a}]" if key.text is not None else "[?]")
        else:
            text.append(f"[{key.text!a}]" if key.text is not None else "[?]")
    return "".join(text)


class Tree:
    """What a pickle's root holds, with each node's tensors counted once and for all."""

    def __init__(self, container: Container, depth: int) -> None:
        self._container = container
        self._depth = depth
        trace = container.object_trace
        self._most_visits = _VISITS_FLOOR + _VISITS_PER_OPCODE * trace.opcodes
        self._visits = 0
        self._characters = _CHARACTERS_FLOOR + _CHARACTERS_PER_BYTE * trace.end
        self._rebuilt: dict[int, Rebuilt | None] = {}
        self._tensors: dict[int, int] = {}

    def tensor(self, node: Node) -> Rebuilt | None:
        """The tensor *node* stands for, or None."""
        if not isinstance(node, (Call, PersistentId)):
            return None
        if id(node) not in self._rebuilt:
            self._rebuilt[id(node)] = rebuild(node, self._container)
        return self._rebuilt[id(node)]

    def children(self, node: Node) -> list[Child]:
        """What *node* holds, in order; nothing if it is a tensor or no container.

        Not kept: ten thousand objects may share one state of ten thousand values.

        Raises:
            LimitExceeded: All walks together have taken too many steps.
        """
        if not isinstance(node, _HOLDERS) or self.tensor(node) is not None:
            return []
        held = list(_children(node))
        self.pay(len(held))
        return held

    def parts(self, node: Node) -> list[Child]:
        """The children of *node* that are worth a word."""
        return [
            (key, child)
            for key, child in self.children(node)
            if not key.is_aside or self.count(child)
        ]

    def count(self, root: Node) -> int:
        """Tensors below *root* (or *root* itself), shared ones once per name, capped.

        Raises:
            LimitExceeded: It is nested deeper than any real object.
        """
        if not isinstance(root, _HOLDERS):
            return 0
        known = self._tensors.get(id(root))
        if known is not None:
            return known
        stack: list[tuple[Node, bool]] = [(root, False)]
        on_path: set[int] = set()
        while stack:
            node, done = stack.pop()
            if done:
                on_path.discard(id(node))
                total = sum(self._tensors.get(id(child), 0) for child in held_in(node))
                self._tensors[id(node)] = min(total, self._most_visits + 1)
            elif id(node) in self._tensors or id(node) in on_path:
                continue
            elif self.tensor(node) is not None:
                self._tensors[id(node)] = 1
            elif isinstance(node, _HOLDERS):
                on_path.add(id(node))
                if len(on_path) > _MOST_NESTING:
                    raise LimitExceeded(
                        f"nests over {_MOST_NESTING} levels deep", where=self._container.source.name
                    )
                stack.append((node, True))
                stack.extend((child, False) for child in held_in(node))
        return self._tensors.get(id(root), 0)

    def pay(self, visits: int) -> None:
        """Pay for looking at so many nodes.

        Raises:
            LimitExceeded: All walks together have looked at too many.
        """
        self._visits += visits
        if self._visits > self._most_visits:
            raise self._too_large()

    def check_size(self, root: Node) -> None:
        """Refuse a tree of which not all tensors can be named.

        Raises:
            LimitExceeded: It names many more than its pickle has opcodes.
        """
        if self.count(root) > self._most_visits:
            raise self._too_large()

    def visit(self, steps: Steps | None) -> None:
        """Pay for one step of a walk; every walk does, so that all of them together end.

        Raises:
            LimitExceeded: There have been too many, or this one is nested too deep.
        """
        self.pay(1)
        if steps is None:
            return
        where = self._container.source.name
        if steps.depth > self._depth:
            raise LimitExceeded(f"nests tensors over {self._depth} levels deep", where=where)
        if steps.length > _MOST_PATH:
            raise LimitExceeded(f"has names of over {_MOST_PATH} characters", where=where)

    def written(self, text: str) -> str:
        """Pay for *text*, a name or a path, and give it back.

        Raises:
            LimitExceeded: All of them together are many times larger than the pickle.
        """
        self._characters -= len(text)
        if self._characters < 0:
            raise self._too_large()
        return text

    def _too_large(self) -> LimitExceeded:
        return LimitExceeded(
            "shares its parts so often that to name them all takes many times its own size",
            where=self._container.source.name,
        )

    def leaves(self, root: Node, at: Steps | None) -> Iterator[tuple[Steps | None, Node]]:
        """Every tensor below *root*, and every largest part of it that holds no tensor.

        Args:
            root: Where to begin.
            at: The way there.

        Yields:
            The way to the leaf, and the leaf.

        Raises:
            LimitExceeded: There are too many, or they are nested too deep.
        """
        stack: list[tuple[Steps | None, Node]] = [(at, root)]
        while stack:
            steps, node = stack.pop()
            self.visit(steps)
            if self.count(node) == 0 or self.tensor(node) is not None:
                yield steps, node
            elif steps is None or not steps.passes(node):
                stack.extend(
                    (Steps.below(steps, key, node), child)
                    for key, child in reversed(self.parts(node))
                )


def is_module(node: Node) -> bool:
    """Whether *node* is a pickled ``torch.nn.Module``, by its state; its class is not asked."""
    return isinstance(node, Call) and _attribute(node, "_modules") is not None


def pairs_of(node: Node) -> list[tuple[Node, Node]] | None:
    """The pairs of a dict or of a call that makes one, or None."""
    if isinstance(node, Dict):
        return node.pairs
    if not isinstance(node, Call):
        return None
    if not _is_mapping(node):
        return list(node.pairs) or None
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
    return [*pairs, *node.pairs]


def _is_mapping(node: Call) -> bool:
    func = node.func
    return isinstance(func, Global) and (func.module, func.name) in _MAPPINGS


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


_HOLDERS = (Call, Dict, Set, list, tuple, PersistentId, Opaque)


def held_in(node: Node) -> Iterator[Node]:
    """The nodes directly inside *node* that may themselves hold something, as they are shared."""
    inner: Iterable[Node] = ()
    match node:
        case Dict():
            inner = chain.from_iterable(node.pairs)
        case Set():
            inner = node.elements
        case list() | tuple():
            inner = node
        case Call():
            whole = (node.func, node.args, node.kwargs, node.state)
            inner = chain(whole, chain.from_iterable(node.pairs), node.elements)
        case PersistentId():
            inner = (node.pid,)
        case Opaque():
            inner = node.args
    return (part for part in inner if isinstance(part, _HOLDERS))


def _children(node: Node) -> Iterator[Child]:
    match node:
        case Dict():
            yield from _children_of_pairs(node.pairs)
        case Set():
            yield from ((Key(index), value) for index, value in enumerate(node.elements))
        case list() | tuple():
            yield from ((Key(index), value) for index, value in enumerate(node))
        case Call():
            yield from _children_of_call(node)
        case PersistentId():
            yield Key("<persistent id>", is_aside=True, is_attribute=True), node.pid
        case Opaque():
            yield Key("<arguments>", is_aside=True, is_attribute=True), node.args


def _children_of_pairs(pairs: list[tuple[Node, Node]]) -> Iterator[Child]:
    for key, value in pairs:
        yield Key(key), value
        if isinstance(key, _HOLDERS):
            yield Key("<key>", is_aside=True, is_attribute=True), key


def _children_of_call(node: Call) -> Iterator[Child]:
    pairs = pairs_of(node)
    if pairs is not None:
        yield from _children_of_pairs(pairs)
    if pairs is None or not _is_mapping(node):
        # Whatever a call was given may hold tensors; none of them may go unnoticed.
        args = node.args if isinstance(node.args, tuple) else (node.args,)
        for index, value in enumerate(args):
            yield Key(f"<argument {index}>", is_attribute=True), value
    yield from ((Key(index), value) for index, value in enumerate(node.elements))
    if node.kwargs is not None:
        yield Key("<keywords>", is_attribute=True), node.kwargs
    if isinstance(node.func, _HOLDERS):
        yield Key("<function>", is_aside=True, is_attribute=True), node.func
    known = attributes_of(node)
    if known:
        yield from ((Key(name, is_attribute=True), value) for name, value in known)
    elif node.state is not None:
        yield Key("<state>", is_attribute=True), node.state
