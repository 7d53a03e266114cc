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
    from ckptaudit.layouts import Component, Op
    from ckptaudit.tensors import Leftover, TensorView

__all__ = ["Alias", "ConversionPlan", "Drop", "Output", "OutputTensor", "TensorJob"]


@dataclass(frozen=True, slots=True)
class TensorJob:
    """One tensor, or some rows of one, to be written.

    Attributes:
        name: Which tensor of the output it is, or is a part of.
        file: Which file of the output that is in; see `Output`.
        source: Its key in the state dict.
        view: Its elements, in the shape and order in which they are written.
        component: What part of the model it is.
        op: What made *view* of the tensor in the source.
        rows: The half-open range of rows of the source that *view* is, where *op* is
            ``rows``; of the output that it fills, where *op* is ``join``.
        target: Type it is written in.
        offset: First byte in the data section of its file.
    """

    name: str
    file: str
    source: str
    view: TensorView
    component: Component
    op: Op
    rows: tuple[int, int] | None
    target: DType
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the output."""
        return self.view.numel * self.target.itemsize

    @property
    def id(self) -> tuple[str, str, int]:
        """What tells it from every other job of its plan: file, name, first row."""
        first = self.rows[0] if self.rows is not None and self.op == "join" else 0
        return self.file, self.name, first


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of an output file, which one job writes, or several.

    Attributes:
        name: What it is called.
        dtype: Type of its elements.
        shape: Elements per dimension.
        offset: First byte in the data section of the file.
        nbytes: Bytes it takes.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Output:
    """One file to be written.

    Attributes:
        file: Its path below the folder that is written; "" where one file is all there is.
        tensors: In the order of its data.
        nbytes: Bytes of its data section.
    """

    file: str
    tensors: tuple[OutputTensor, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that is not written because *of* has the same bytes.

    Attributes:
        name: The name left out.
        of: The name under which the bytes are written.
        source: The key left out.
        file: The file that it is left out of, and that has *of*; see `Output`.
        origin: In an account, the path of the file that it is a key of, if that is not the source.
    """

    name: str
    of: str
    source: str
    file: str = ""
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """A tensor of the file that is not written.

    Attributes:
        source: Its key, or its path in the pickle where it is outside the state dict.
        what: Its type and shape.
        reason: Why it is left out.
        origin: In an account, the path of the file that it is in, if that is not the source.
    """

    source: str
    what: str
    reason: str
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What will be written, and what will not.

    Attributes:
        outputs: The files, sorted by path; one, though nothing may be in it, where a single file
            is asked for.
        jobs: File by file, in the order of the data.
        aliases: Names stored under another, sorted.
        drops: Tensors left out: those of the state dict in its order, then the others.
        leftovers: Values of the file that are no tensors.
    """

    outputs: tuple[Output, ...]
    jobs: tuple[TensorJob, ...]
    aliases: tuple[Alias, ...]
    drops: tuple[Drop, ...]
    leftovers: tuple[Leftover, ...]
