"""All weights of a file read once: hashed, and measured.

Each tensor is read block by block in the order of its elements; while a block is in memory it
is hashed and looked at by as many casts as are asked for, of which nothing is kept but the
statistics.  Where there are cores, tensors are shared out over as many processes (`lanes`).
Memory is a few blocks for each and does not grow with the file.

Knows:      how reading, hashing and measuring share one pass.
Is told:    an open container, and which tensors make up one (`contents`).
Never asks: what a tensor is, or what its statistics say (`health`, `risks`).
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from mmap import mmap
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from ckptaudit.dtypes import named
from ckptaudit.jobs.lanes import Lane, Say, lanes_at_hand, run_lanes
from ckptaudit.jobs.measures import Measured
from ckptaudit.jobs.stream import read_block
from ckptaudit.numerics import Caster
from ckptaudit.tensors.blocks import BLOCK_BYTES, SLAB_BYTES, blocks_in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from ckptaudit.containers import Container
    from ckptaudit.dtypes import DType
    from ckptaudit.jobs.contents import Unit
    from ckptaudit.tensors import TensorView

__all__ = ["Measurement", "measure"]

# What a cast is tried to, where casts are asked for.
_TRIED = (named("float16"), named("bfloat16"))
# Below this a second process costs more than it saves.
_LEAST_LANE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one pass over a file's weights has found.

    Attributes:
        digests: SHA-256 of the elements of each unit, in the order of the units; None where no
            hash was wanted.
        tensors: By source key, what the tensor holds.
    """

    digests: tuple[bytes, ...] | None
    tensors: dict[str, Measured]


def measure(
    container: Container,
    units: Sequence[Unit],
    *,
    with_hash: bool,
    with_casts: bool,
    beside: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Measurement:
    """Read every tensor of *units* once.

    Args:
        container: The open file.
        units: Its tensors, each view in one of them.
        with_hash: Hash them.
        with_casts: Count sizes, and try what casts to float16 and bfloat16 would cost.
        beside: Other processes of the job that keep a core busy each.
        progress: Told bytes done, and in all.

    Raises:
        CkptauditError: Whatever reading the file raises.
    """
    order = _in_order(container, units)
    total = sum(map(_nbytes, units))
    lanes = max(1, min(lanes_at_hand(beside), total // _LEAST_LANE_BYTES))
    reading = _Reading(container, units, with_hash=with_hash, with_casts=with_casts)
    digests: dict[int, str] = {}
    tensors: dict[str, Measured] = {}
    done = 0
    results = _in_lanes(reading, _shares(order, units, lanes)) if lanes > 1 else reading.of(order)
    # Closed, so that no process reads any more when whoever asked has given up.
    with closing(results):
        for number, digest, measured in results:
            digests[number] = digest
            views = units[number].views
            tensors |= {view.key: each for view, each in zip(views, measured, strict=True)}
            done += _nbytes(units[number])
            progress(done, total)
    hashed = tuple(bytes.fromhex(digests[number]) for number in range(len(units)))
    return Measurement(hashed if with_hash else None, tensors)


# Which unit it is, the hash of its elements in hexadecimal, and what each of its views holds.
_Result: TypeAlias = tuple[int, str, list[Measured]]


@dataclass(frozen=True, slots=True)
class _Reading:
    """How units are read.

    Attributes:
        container: The open file.
        units: All of its tensors.
        with_hash: Whether they are hashed; the hash is "" if not.
        with_casts: Whether casts are tried.
    """

    container: Container
    units: Sequence[Unit]
    with_hash: bool
    with_casts: bool

    def of(self, share: Sequence[int]) -> Generator[_Result, None, None]:
        """Read the units of these numbers, in this process."""
        # Pages that are never touched are never given: few tensors need more than a block.
        room = memoryview(mmap(-1, SLAB_BYTES))
        # Elements of one byte become elements of two.
        spare = memoryview(mmap(-1, 2 * BLOCK_BYTES))
        for number in share:
            hasher = sha256() if self.with_hash else None
            measured = []
            for view in self.units[number].views:
                casters = _casters(view, with_casts=self.with_casts)
                for block in blocks_in_order(view):
                    data = read_block(self.container, view, block, room)
                    if hasher is not None:
                        hasher.update(data)
                    for at in range(0, len(data), BLOCK_BYTES):
                        _cast(view.dtype, casters, data[at : at + BLOCK_BYTES], spare)
                measured.append(_measured(casters))
            yield number, hasher.hexdigest() if hasher is not None else "", measured


def _in_lanes(reading: _Reading, shares: Sequence[Sequence[int]]) -> Generator[_Result, None, None]:
    def lane(share: Sequence[int]) -> Lane:
        def work(say: Say) -> None:
            for result in reading.of(share):
                say({"unit": result})

        return work

    with closing(run_lanes([lane(share) for share in shares])) as talk:
        for message in talk:
            yield msgspec.convert(message["unit"], _Result)


def _casters(view: TensorView, *, with_casts: bool) -> list[tuple[DType, Caster]]:
    """A caster that copies first, then one for each cast that is worth trying."""
    tried = _TRIED if with_casts and view.dtype.is_float else ()
    casts = [target for target in tried if target is not view.dtype]
    return [
        (view.dtype, Caster(view.dtype, view.dtype, histogram=with_casts)),
        *((target, Caster(view.dtype, target)) for target in casts),
    ]


def _cast(
    source: DType, casters: list[tuple[DType, Caster]], data: memoryview, spare: memoryview
) -> None:
    for target, caster in casters:
        numel = len(data) // source.itemsize
        caster.cast(data, data if target is source else spare[: numel * target.itemsize])


def _measured(casters: list[tuple[DType, Caster]]) -> Measured:
    (own, held), *others = ((target.name, caster.stats) for target, caster in casters)
    stats = {own: held, **dict(others)} if others else {}
    return Measured(held, stats.get("float16"), stats.get("bfloat16"))


def _nbytes(unit: Unit) -> int:
    return sum(view.nbytes for view in unit.views)


def _in_order(container: Container, units: Sequence[Unit]) -> list[int]:
    """Numbers of *units* by where they begin in the file; those of a compressed record together."""
    homes = {record.name: record.offset for record in container.records}

    def position(number: int) -> tuple[int, int]:
        view = units[number].views[0]
        storage, first = view.storage, view.offset * view.dtype.itemsize
        if storage.record in container.inflated:
            return homes[storage.record], storage.offset + first
        return storage.offset + first, 0

    return sorted(range(len(units)), key=position)


def _shares(order: list[int], units: Sequence[Unit], count: int) -> list[list[int]]:
    """Cut *order* into *count* ranges of about as many bytes each."""
    total = sum(map(_nbytes, units))
    shares: list[list[int]] = [[]]
    done = 0
    for number in order:
        if done >= total * len(shares) // count and len(shares) < count:
            shares.append([])
        shares[-1].append(number)
        done += _nbytes(units[number])
    return shares
