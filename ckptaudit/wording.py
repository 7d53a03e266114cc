"""How a number is put into a sentence, so that the noun agrees with it.

Knows:      English plurals that end in s.
Is told:    a number and what is counted.
Never asks: what the sentence is about.
"""

from __future__ import annotations

__all__ = ["counted", "left"]


def counted(number: int, noun: str) -> str:
    """So many of *noun*.

    >>> counted(1, "tensor"), counted(0, "byte"), counted(2, "more value")
    ('1 tensor', '0 bytes', '2 more values')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def left(number: int) -> str:
    """How many are left of what was named before.

    >>> left(1), left(0)
    ('1 is left', '0 are left')
    """
    return f"{number} is left" if number == 1 else f"{number} are left"
