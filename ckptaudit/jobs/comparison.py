"""What a conversion gives, compared with what a file holds, block by block.

Knows:      when two elements are the same.
Is told:    a file, where in it each job's elements begin, and blocks that should be there.
Never asks: which tensor has to be where (`fileproof`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ckptaudit.floats import decode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ckptaudit.containers import Container
    from ckptaudit.dtypes import DType
    from ckptaudit.jobs.stream import JobId, Tally
    from ckptaudit.plan import TensorJob

__all__ = ["Comparison"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Holds converted blocks against those of a file.

    Attributes:
        file: What to compare with.
        homes: Where what a job writes begins in *file*, in bytes.
        differing: How many elements of it were found to differ.
    """

    file: Container
    homes: Mapping[JobId, int]
    differing: dict[JobId, int]

    def position(self, job: TensorJob, first: int) -> int:
        """See `Sink.position`."""
        return self.homes[job.id] + first * job.target.itemsize

    def take(self, job: TensorJob, first: int, data: memoryview) -> None:
        """See `Sink.take`: *data* should be there already."""
        there = self.file.source.read_at(self.position(job, first), len(data))
        if data != there:
            self.recall(((job.id, _differing(bytes(data), there, job)),))

    def tally(self) -> Tally:
        """See `Sink.tally`: how many elements differ."""
        return tuple(self.differing.items())

    def recall(self, tally: Tally) -> None:
        """See `Sink.recall`."""
        for job, count in tally:
            self.differing[job] = self.differing.get(job, 0) + count


def _differing(one: bytes, other: bytes, job: TensorJob) -> int:
    """Elements whose bits differ; of a cast, which NaN it makes is the processor's affair."""
    dtype = job.target
    width = f"<u{dtype.itemsize}"
    first, second = np.frombuffer(one, width), np.frombuffer(other, width)
    differ = first != second
    if job.view.dtype is not dtype:
        differ &= ~(_is_nan(first, dtype) & _is_nan(second, dtype))
    return int(np.count_nonzero(differ))


def _is_nan(bits: NDArray[np.unsignedinteger], dtype: DType) -> NDArray[np.bool_]:
    nan: NDArray[np.bool_] = np.isnan(decode(bits.view(dtype.numpy), dtype, np.empty(bits.size)))
    return nan
