"""Tensors of a few numbers, read whole: where one look decides, and numpy is not worth loading.

Knows:      how elements are packed.
Is told:    an open container, and a tensor in it.
Never asks: what the numbers mean.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptaudit.containers import Container
    from ckptaudit.tensors import TensorView

__all__ = ["numbers_of", "std_of"]

_MOST = 4096
# How `struct` calls an element; a bfloat16 is the upper half of a float32.
_CODES = {"int64": "q", "float64": "d", "float32": "f", "float16": "e", "bfloat16": "H"}


def numbers_of(container: Container, view: TensorView) -> tuple[float, ...] | None:
    """The elements of *view*; None if they are many, lie apart, or are of a type not known here.

    Raises:
        CkptauditError: They cannot be read.
    """
    code = _CODES.get(view.dtype.name)
    if code is None or view.numel > _MOST or not view.is_contiguous:
        return None
    start = view.storage.offset + view.offset * view.dtype.itemsize
    read = container.bytes_of(view.storage).read_at(start, view.nbytes)
    order = "<" if container.byteorder == "little" else ">"
    numbers: tuple[float, ...] = struct.unpack(f"{order}{view.numel}{code}", read)
    if code != "H":
        return numbers
    floats = (struct.pack("<I", int(upper) << 16) for upper in numbers)
    return struct.unpack(f"<{view.numel}f", b"".join(floats))


def std_of(container: Container, view: TensorView) -> float | None:
    """The standard deviation of the elements of *view*; None where nobody can tell."""
    numbers = numbers_of(container, view)
    if not numbers or not all(map(math.isfinite, numbers)):
        return None
    mean = math.fsum(numbers) / len(numbers)
    return math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / len(numbers))
