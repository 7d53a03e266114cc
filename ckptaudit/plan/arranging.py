"""Where in the output each tensor goes: file, name, and offset in the data.

Knows:      what a layout does to a tensor, and in which order data lie.
Is told:    the tensors that are written, each with its places in either layout.
Never asks: whether a tensor is wanted (`making`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptaudit.dtypes import named
from ckptaudit.plan.options import Layout
from ckptaudit.plan.values import Drop, Output, OutputTensor, TensorJob

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ckptaudit.dtypes import DType
    from ckptaudit.layouts import Detection, Op
    from ckptaudit.plan.duplicates import Candidate
    from ckptaudit.plan.options import Options
    from ckptaudit.tensors import TensorView

__all__ = ["Arranged", "arrange", "described"]

# safetensors/src/tensor.rs sorts by dtype, the widest first, then by name: this is its order.
# sd-scripts finds its blocks by the order of the data and fails on any other.
_ORDER = (
    "U64 I64 F64 C64 F32 U32 I32 BF16 F16 U16 I16 "
    "F8_E5M2FNUZ F8_E4M3FNUZ F8_E8M0 F8_E4M3 F8_E5M2 I8 U8 BOOL"
).split()
_RANK = {code: rank for rank, code in enumerate(_ORDER)}
_MATRIX, _KERNEL = 2, 4


@dataclass(frozen=True, slots=True)
class Arranged:
    """The output, and what has no place in it.

    Attributes:
        outputs: Its files, sorted by path.
        jobs: File by file, in the order of the data.
        drops: Tensors that have no place, in the order they were given.
    """

    outputs: tuple[Output, ...]
    jobs: tuple[TensorJob, ...]
    drops: tuple[Drop, ...]


def arrange(
    candidates: Sequence[Candidate],
    detection: Detection,
    options: Options,
    unfit: Collection[tuple[str, str]],
    types: Mapping[tuple[str, str], DType],
) -> Arranged:
    """Give each tensor its place in the output that *options* ask for.

    Args:
        candidates: The tensors to be written.
        detection: The family they belong to.
        options: What the user asked for.
        unfit: File and name of those in the output that stay in the type of the source.
        types: By file and name, the type of those that get another than they were to have.
    """
    drops: list[Drop] = []
    parts: dict[tuple[str, str], list[TensorJob]] = defaultdict(list)
    heights: dict[tuple[str, str], int] = {}
    for candidate in candidates:
        places = _places(candidate, detection, options)
        made = [(place, _made(candidate.view, place)) for place in places]
        # A tensor of which one part cannot be made is not written at all: it is whole, or listed.
        misfit = next((place.name for place, view in made if view is None), None)
        reason = None if places else "has no place in the diffusers layout"
        if misfit is not None:
            reason = f"is not of a shape from which {misfit} can be made"
        if reason is not None:
            drops.append(Drop(candidate.view.key, described(candidate.view), reason))
            continue
        for place, view in made:
            if view is not None:
                output = place.file, place.name
                parts[output].append(_job(candidate, place, view))
                heights[output] = place.height if place.op == "join" else 0
    joined: dict[tuple[str, str], list[TensorJob]] = {}
    for output, jobs in parts.items():
        jobs.sort(key=lambda job: job.rows or (0, 0))
        together = _joined(jobs, types.get(output), is_unfit=output in unfit)
        if not _is_whole(jobs, heights[output]):
            reason = f"is a part of {output[1]}, whose other parts are not there"
        elif together is None:
            reason = f"is a part of {output[1]}, whose parts are of types that have none in common"
        else:
            joined[output] = together
            continue
        drops += [Drop(job.source, described(job.view), reason) for job in jobs]
    files = sorted({file for file, _ in joined}) or ([] if options.makes_folder else [""])
    arranged = [
        _file(file, [jobs for (home, _), jobs in joined.items() if home == file]) for file in files
    ]
    return Arranged(
        outputs=tuple(output for output, _ in arranged),
        jobs=tuple(job for _, jobs in arranged for job in jobs),
        drops=tuple(drops),
    )


def described(view: TensorView) -> str:
    """Type and shape of *view*, for a report."""
    return f"{view.dtype.name} {list(view.shape)}"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor goes, or some of its rows.

    Attributes:
        file: Which file.
        name: Which tensor there.
        op: How it comes to be.
        rows: Half-open range of rows of the source that are taken, or of the output that are
            filled; None for all.
        height: Rows of the one or the other in all, where these are only some; else 0.
    """

    file: str
    name: str
    op: Op = "identity"
    rows: tuple[int, int] | None = None
    height: int = 0


def _places(candidate: Candidate, detection: Detection, options: Options) -> tuple[_Place, ...]:
    if options.layout is Layout.DIFFUSERS:
        height = max((there.rows[1] for there in candidate.diffusers if there.rows), default=0)
        return tuple(
            _Place(detection.weights_file(there.component), there.key, there.op, there.rows, height)
            for there in candidate.diffusers
        )
    file, name = candidate.home, candidate.name
    if candidate.op != "join" or candidate.placement.rows is None:
        return (_Place(file, name, candidate.op),)
    start, stop, height = candidate.placement.rows
    return (_Place(file, name, "join", (start, stop), height),)


def _made(view: TensorView, place: _Place) -> TensorView | None:
    """What *place* makes of *view*; None if it can make nothing of that shape.

    Of a tensor that is taken row by row all rows have to be taken: of one that has more, the rest
    would be lost, and of one that has fewer a part.
    """
    rank = len(view.shape)
    match place.op:
        case "identity":
            return view
        case "squeeze":
            # Files that went through other hands may have matrices here already.
            is_kernel = rank == _KERNEL and view.shape[_MATRIX:] == (1, 1)
            return view.of_rank(_MATRIX) if is_kernel or rank == _MATRIX else None
        case "unsqueeze":
            return view.of_rank(_KERNEL) if rank in {_MATRIX, _KERNEL} else None
        case "transpose":
            return view.transposed() if rank == _MATRIX else None
        case "rows":
            start, stop = place.rows or (0, 0)
            fits = rank > 0 and view.shape[0] == place.height
            return view.narrowed(start, stop) if fits else None
        case "join":
            start, stop = place.rows or (0, 0)
            return view if rank > 0 and view.shape[0] == stop - start else None


def _job(candidate: Candidate, place: _Place, view: TensorView) -> TensorJob:
    return TensorJob(
        name=place.name,
        file=place.file,
        source=candidate.view.key,
        view=view,
        component=candidate.placement.component,
        op=place.op,
        rows=place.rows,
        target=candidate.target,
        offset=0,
    )


def _is_whole(jobs: list[TensorJob], height: int) -> bool:
    """Whether *jobs*, by their rows, fill all of their tensor, each once, in one shape."""
    if not height:
        return True
    filled = [row for job in jobs for row in job.rows or ()]
    in_turn = filled[0] == 0 and filled[-1] == height and filled[1:-1:2] == filled[2::2]
    return in_turn and len({job.view.shape[1:] for job in jobs}) == 1


def _joined(
    jobs: list[TensorJob], chosen: DType | None, *, is_unfit: bool
) -> list[TensorJob] | None:
    """*jobs* of one tensor, which has one type; None if there is no such type."""
    target = _common({job.view.dtype if is_unfit else chosen or job.target for job in jobs})
    return None if target is None else [replace(job, target=target) for job in jobs]


def _common(dtypes: set[DType]) -> DType | None:
    """A type that holds the values of all, and that all can be cast to."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    are_floats = all(dtype.is_float and dtype.name != "float64" for dtype in dtypes)
    return named("float32") if are_floats else None


def _file(file: str, tensors: list[list[TensorJob]]) -> tuple[Output, list[TensorJob]]:
    """Lay *tensors*, each given by its jobs, one behind the other."""
    tensors.sort(key=lambda jobs: (_rank(jobs[0].target), jobs[0].name.encode()))
    placed: list[TensorJob] = []
    outputs = []
    offset = 0
    for jobs in tensors:
        first = offset
        for job in jobs:
            placed.append(replace(job, offset=offset))
            offset += job.nbytes
        outputs.append(
            OutputTensor(jobs[0].name, jobs[0].target, _shape(jobs), first, offset - first)
        )
    return Output(file, tuple(outputs), offset), placed


def _shape(jobs: list[TensorJob]) -> tuple[int, ...]:
    shape = jobs[0].view.shape
    return (sum(job.view.shape[0] for job in jobs), *shape[1:]) if len(jobs) > 1 else shape


def _rank(dtype: DType) -> int:
    return _RANK[dtype.safetensors or ""]
