"""A short, safe text for any node: bounded, printable ASCII, never recursive beyond a few levels.

Knows:      how each kind of node is best named to a human.
Is told:    a node.
Never asks: what the text is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptaudit.vm.nodes import Call, Dict, Global, Opaque, PersistentId, Set

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptaudit.vm.nodes import Node

__all__ = ["brief", "escape"]

_MOST_TEXT = 60
_MOST_ITEMS = 4
_MOST_LEVELS = 3
_MOST_INT_BITS = 128


def escape(text: str) -> str:
    r"""*text* with everything but printable ASCII escaped, so that no terminal obeys it.

    >>> escape("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return text.encode("unicode-escape", "backslashreplace").decode("ascii")


def brief(node: Node, levels: int = _MOST_LEVELS) -> str:
    """What *node* is, in at most a few hundred characters of printable ASCII."""
    match node:
        case Global():
            return escape(f"{node.module[:_MOST_TEXT]}.{node.name[:_MOST_TEXT]}")
        case Call() | Dict() | Set() | list() | tuple() | PersistentId() | Opaque():
            return _collection(node, levels) if levels > 0 else "..."
        case _:
            return _scalar(node)


def _scalar(value: str | bytes | bytearray | int | float | None) -> str:  # noqa: PYI041 - an int is told apart
    match value:
        case str():
            return _cut(ascii(value[:_MOST_TEXT]), len(value))
        case bytes() | bytearray():
            return _cut(ascii(bytes(value[:_MOST_TEXT])), len(value))
        case int() if value.bit_length() > _MOST_INT_BITS:
            return f"<integer of {value.bit_length()} bits>"
        case _:
            return repr(value)


def _collection(
    node: Call | Dict | Set | list[Node] | tuple[Node, ...] | PersistentId | Opaque, levels: int
) -> str:
    match node:
        case PersistentId():
            return f"<persistent id {brief(node.pid, levels - 1)}>"
        case Opaque():
            return f"<{node.op} {_items(node.args, levels)}>"
        case Call():
            args = node.args if isinstance(node.args, tuple) else (node.args,)
            return f"{brief(node.func, levels - 1)}({_items(args, levels)})"
        case tuple():
            return f"({_items(node, levels)})"
        case list():
            return f"[{_items(node, levels)}]"
        case Set():
            return f"{{{_items(node.elements, levels)}}}"
        case Dict():
            shown = [
                f"{brief(key, levels - 1)}: {brief(value, levels - 1)}"
                for key, value in node.pairs[:_MOST_ITEMS]
            ]
            return f"{{{', '.join(shown)}{', ...' if len(node.pairs) > _MOST_ITEMS else ''}}}"


def _items(nodes: Sequence[Node], levels: int) -> str:
    shown = ", ".join(brief(node, levels - 1) for node in nodes[:_MOST_ITEMS])
    return shown + (", ..." if len(nodes) > _MOST_ITEMS else "")


def _cut(shown: str, length: int) -> str:
    return shown if length <= _MOST_TEXT else f"{shown[:-1]}...{shown[-1]}"
