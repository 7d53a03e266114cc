"""How a number is put into a sentence, so that the noun agrees with it.

Knows:      English plurals that end in s.
Is told:    a number and what is counted.
Never asks: what the sentence is about.
"""

from __future__ import annotations

__all__ = ["counted", "first_and_others", "left"]

# Python writes out no integer of more than 4300 digits, and nobody reads one of more than 40.
_MOST_BITS = 128


def counted(number: int, noun: str) -> str:
    """So many of *noun*, however many a file says there are.

    >>> counted(1, "tensor"), counted(0, "byte"), counted(2, "more value")
    ('1 tensor', '0 bytes', '2 more values')
    >>> counted(1 << 20_000, "byte")
    '<integer of 20001 bits> bytes'
    """
    return f"{_shown(number)} {noun}" if number == 1 else f"{_shown(number)} {noun}s"


def first_and_others(first: str, number: int) -> str:
    """*first* of so many, and how many others there are.

    >>> first_and_others("a.json", 1), first_and_others("a.json", 3)
    ('a.json', 'a.json and 2 others')
    """
    return first if number == 1 else f"{first} and {counted(number - 1, 'other')}"


def left(number: int) -> str:
    """How many are left of what was named before.

    >>> left(1), left(0)
    ('1 is left', '0 are left')
    """
    return f"{_shown(number)} is left" if number == 1 else f"{_shown(number)} are left"


def _shown(number: int) -> str:
    bits = number.bit_length()
    return str(number) if bits <= _MOST_BITS else f"<integer of {bits} bits>"
