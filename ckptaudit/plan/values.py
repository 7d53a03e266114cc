"""What a plan says: which tensor is written where, stored under another name, or left out.

Knows:      the fields of each line of a plan.
Is told:    all of it.
Never asks: why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptaudit.dtypes import DType
    from ckptaudit.layouts import Component
    from ckptaudit.tensors import Leftover, TensorView

__all__ = ["Alias", "ConversionPlan", "Drop", "TensorJob"]


@dataclass(frozen=True, slots=True)
class TensorJob:
    """One tensor to be written.

    Attributes:
        name: What it is called in the output.
        source: Its key in the state dict.
        view: Where its elements are.
        component: What part of the model it is.
        target: Type it is written in.
        offset: First byte in the data section of the output.
    """

    name: str
    source: str
    view: TensorView
    component: Component
    target: DType
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the output."""
        return self.view.numel * self.target.itemsize


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that is not written because *of* has the same bytes.

    Attributes:
        name: The name left out.
        of: The name under which the bytes are written.
        source: The key left out.
    """

    name: str
    of: str
    source: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A tensor of the file that is not written.

    Attributes:
        source: Its key, or its path in the pickle where it is outside the state dict.
        what: Its type and shape.
        reason: Why it is left out.
    """

    source: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What will be written, and what will not.

    Attributes:
        jobs: In the order of the data in the output.
        aliases: Names stored under another, sorted.
        drops: Tensors left out: those of the state dict in its order, then the others.
        leftovers: Values of the file that are no tensors.
        nbytes: Bytes of the data section.
    """

    jobs: tuple[TensorJob, ...]
    aliases: tuple[Alias, ...]
    drops: tuple[Drop, ...]
    leftovers: tuple[Leftover, ...]
    nbytes: int
