"""Generators of random numbers, as objects: how Python, NumPy and torch pickle them.

They are pickled by functions of strange names, some of which call what they are given.

Knows:      random.Random, torch.Generator, numpy/random/_pickle.py and NumPy's bit generators.
Is told:    the arguments of a call, or the state that BUILD gives.
Never asks: what becomes of the numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptaudit.policy.arguments import calls, nothing
from ckptaudit.vm import Call, Dict, Global

if TYPE_CHECKING:
    from ckptaudit.policy.arguments import Arguments, State
    from ckptaudit.vm import Node

__all__ = ["GENERATORS", "NAMED"]

# numpy/random/_pickle.py and the modules of NumPy's own bit generators.
_SEED_SEQUENCE = ("numpy.random.bit_generator", "SeedSequence")
_BIT_GENERATORS = frozenset(
    (f"numpy.random.{place}", name)
    for place, name in (
        ("_mt19937", "MT19937"),
        ("_pcg64", "PCG64"),
        ("_pcg64", "PCG64DXSM"),
        ("_philox", "Philox"),
        ("_sfc64", "SFC64"),
    )
)
# Python's has 624, and where it is in them.
_MOST_WORDS = 1000
_MAKES_BIT_GENERATOR = ("numpy.random._pickle", "__bit_generator_ctor")


def _on_device(args: tuple[Node, ...]) -> bool:
    """The device that its numbers are made on."""
    match args:
        case (Call() as made,):
            return calls(made, "torch", "device")
        case _:
            return False


def _any_tuple(state: Node) -> bool:
    """A tuple, whose parts are checked by what reads it."""
    return isinstance(state, tuple)


def _bit_generator(args: tuple[Node, ...]) -> bool:
    """A class of NumPy's, which is called, or the name of one."""
    match args:
        case () | (str(),):
            return True
        case (Global(module=module, name=name),):
            return (module, name) in _BIT_GENERATORS
        case _:
            return False


def _numpy_generator(args: tuple[Node, ...]) -> bool:
    """What makes a bit generator, called already or to be called with its name."""
    match args:
        case () | (str(),):
            return True
        case (str(), Global(module=module, name=name)):
            return (module, name) == _MAKES_BIT_GENERATOR
        case (Call() as made,):
            return calls(made, *_MAKES_BIT_GENERATOR)
        case _:
            return False


def _seed_sequence(args: tuple[Node, ...]) -> bool:
    """The class that Cython makes an object of, a checksum, and no state, which BUILD brings."""
    match args:
        case (Global(module=module, name=name), int(), None):
            return (module, name) == _SEED_SEQUENCE
        case _:
            return False


def _mersenne_twister(state: Node) -> bool:
    """Version, words and position, the next number of a pair."""
    match state:
        case (int(), tuple(words), float() | None):
            return len(words) <= _MOST_WORDS and set(map(type, words)) == {int}
        case _:
            return False


def _numpy_random(state: Node) -> bool:
    """A dict of the state; of a bit generator, the seed it grew from as well."""
    match state:
        case None | Dict() | (Dict(), Call() | None):
            return True
        case _:
            return False


# What may be called, with which arguments, and the state that what it makes may be given.
GENERATORS: dict[tuple[str, str], tuple[Arguments, State]] = {
    ("random", "Random"): (nothing, _mersenne_twister),
    ("torch._C", "Generator"): (_on_device, _any_tuple),
    _MAKES_BIT_GENERATOR: (_bit_generator, _numpy_random),
    ("numpy.random._pickle", "__generator_ctor"): (_numpy_generator, _numpy_random),
    ("numpy.random._pickle", "__randomstate_ctor"): (_numpy_generator, _numpy_random),
    ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"): (_seed_sequence, _any_tuple),
}
# What is only named, in the arguments of those.
NAMED = frozenset({_SEED_SEQUENCE, *_BIT_GENERATORS})
