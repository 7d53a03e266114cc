"""One converted file held against what its source gives, tensor by tensor.

Knows:      how to plan and cast a source again, and what a converted file may have otherwise.
Is told:    an open file, what its source gives, and which of the files of a folder it is.
Never asks: to be believed: from the converted file it takes which options were used and
            which type each tensor has, and proves both (of another tool's file also which
            names it has).  What else a file says of itself is for `claims`.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.containers import Kind
from ckptaudit.errors import Unsupported
from ckptaudit.floats import TARGETS
from ckptaudit.jobs.basis import from_where
from ckptaudit.jobs.choosing import choose
from ckptaudit.jobs.claims import check_vae_is_named, wrong_claims
from ckptaudit.jobs.comparison import Comparison
from ckptaudit.jobs.receipt import receipt_in
from ckptaudit.jobs.stream import Nowhere, stream
from ckptaudit.jobs.verification import TensorProof, Verification
from ckptaudit.layouts import Component
from ckptaudit.plan import Dedupe, Ema, Layout, OnOverflow, Options, Output, Precision
from ckptaudit.vm import escape
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptaudit.containers import Container, StoredTensor
    from ckptaudit.dtypes import DType
    from ckptaudit.jobs.given import Given
    from ckptaudit.jobs.opening import Opened
    from ckptaudit.jobs.stream import JobId
    from ckptaudit.plan import ConversionPlan, OutputTensor, TensorJob

__all__ = ["FOREIGN_FOLDER", "Place", "prove"]

# A file by another tool is held against every tensor of the source under its own name.
_FOREIGN = Options(precision=Precision.KEEP, ema=Ema.KEEP, dedupe=Dedupe.NONE)
# A folder by another tool is one for diffusers: nobody else agrees on names in folders.
FOREIGN_FOLDER = replace(_FOREIGN, layout=Layout.DIFFUSERS)


def prove(
    converted: Opened,
    given: Given,
    progress: Callable[[int, int], None],
    place: Place | None = None,
) -> Verification:
    """Hold one file against what its source gives.

    Args:
        converted: The file.
        given: What its source gives.
        progress: Told bytes of weights done, and in all.
        place: Which of the files of a folder *converted* is, if it is one of those.
    """
    return _Proof(converted, given, place).run(progress)


class Place(NamedTuple):
    """Which of the files of a folder a converted file is.

    Attributes:
        file: What the plan calls it.
        path: Its path in the folder.
        options: How the folder was made; None if it does not say.
    """

    file: str
    path: str
    options: Options | None


class _Proof:
    """One comparison; of a file in a folder if it has a *place*."""

    def __init__(self, converted: Opened, given: Given, place: Place | None = None) -> None:
        self.given = given
        self.place = place
        self.converted = converted
        self.file: Container = converted.container
        if self.file.kind is not Kind.SAFETENSORS:
            raise Unsupported(
                f"{self.file.source.name}: is no safetensors file; "
                "name the source first and the converted file second"
            )
        self.problems: list[str] = [escape(mishap.message) for mishap in self.file.mishaps]
        self.tensor_problems: dict[JobId, str] = {}
        self.receipt = receipt_in(self.file.metadata)
        self.options = self.receipt.options if self.receipt is not None else None
        if place is not None:
            self.options = place.options
        self.outputs: Mapping[str, OutputTensor] = {}
        # By job, the type it is written in where a weight does not fit the one wanted.
        self.spared: Mapping[JobId, DType] = {}
        # Bytes of weights that were read to choose types.
        self.measured = 0
        # How many elements differ.
        self.differing: dict[JobId, int] = {}
        self.notes: list[str] = []
        if self.options is None:
            self.notes.append("was not written by ckptaudit; names and types are its own")
        check_vae_is_named(self.file.source.name, self.receipt, given)
        # What another tool made a file with is not known: every name and type is looked at.
        foreign = _FOREIGN if place is None else FOREIGN_FOLDER
        self.asked_for = self.options or foreign
        self.basis = given.basis(self.asked_for)

    def run(self, progress: Callable[[int, int], None]) -> Verification:
        plan = self.part_of(self.plan(progress))
        self.outputs = {tensor.name: tensor for output in plan.outputs for tensor in output.tensors}
        pairs = [
            (job, stored)
            for job in plan.jobs
            if (stored := self.stored(job)) is not None or self.is_owed(job)
        ]
        jobs = [self.job_for(job, stored) for job, stored in pairs if stored is not None]
        self.compare([job for job in jobs if job is not None], progress)
        self.prove_unfit(pairs)
        self.check_names(plan)
        source, vae = self.given.finished()
        converted = self.converted.finished()
        if self.receipt is not None:
            found = self.basis.meaning.detection
            self.problems += wrong_claims(self.converted, self.receipt, self.given, found, plan)
        proofs = tuple(self.proof(job, stored) for job, stored in pairs)
        return Verification(
            source=source,
            vae_source=vae,
            converted=converted,
            files=(converted,),
            equal=not self.problems and all(proof.equal for proof in proofs),
            coverage=self.given.coverage(),
            options=self.options,
            tensors=proofs,
            aliases=tuple(from_where(alias, self.basis) for alias in plan.aliases),
            dropped=tuple(from_where(drop, self.basis) for drop in plan.drops),
            problems=tuple(map(self.said_here, self.problems)),
            notes=tuple(self.notes),
        )

    @property
    def path(self) -> str:
        return "" if self.place is None else self.place.path

    def said_here(self, problem: str) -> str:
        """*problem*, and of which of several files it is one."""
        return f"{escape(self.path)}: {problem}" if self.path else problem

    def plan(self, progress: Callable[[int, int], None]) -> ConversionPlan:
        """What was to be written; where types were left to the weights, by them."""
        plan_with = self.given.planner(self.asked_for)
        plan = plan_with({})
        if self.asked_for.precision is Precision.AUTO:
            own = _part(plan, self.own_file(plan))
            total = sum(job.view.nbytes for job in own.jobs)

            def advance(done: int, in_all: int) -> None:
                self.measured = done
                progress(done, in_all + total)

            chosen = choose(self.basis.container, own, beside=self.cores_taken, progress=advance)
            plan = plan_with({}, chosen)
        if self.options is not None:
            spared = plan_with({(job.file, job.name): "" for job in plan.jobs})
            self.spared = {job.id: job.target for job in spared.jobs}
        return plan

    def part_of(self, plan: ConversionPlan) -> ConversionPlan:
        """What *plan* has for the converted file, which is one of several."""
        own = self.own_file(plan)
        others = len(plan.outputs) - 1
        if others > 0 and self.place is None:
            self.notes.append(
                f"is proven as {own}, by itself; {counted(others, 'other file')} of the "
                "conversion must be proven too"
            )
        return _part(plan, own)

    def own_file(self, plan: ConversionPlan) -> str:
        """Which of the files of *plan* the converted file is.

        That is the one whose place it has, or else the one that most of its names and shapes
        are in: where another was meant, all that is missing is said to be.
        """
        if self.place is not None:
            return self.place.file
        held = {(key, tensor.shape) for key, tensor in self.file.tensors.items()}

        def agreement(output: Output) -> int:
            return sum((tensor.name, tensor.shape) in held for tensor in output.tensors)

        return max(plan.outputs, key=agreement, default=Output("", (), 0)).file

    def is_owed(self, job: TensorJob) -> bool:
        """Whether the converted file must hold *job*; another tool may leave averages out."""
        return self.options is not None or job.component is not Component.EMA

    def stored(self, job: TensorJob) -> StoredTensor | None:
        """Where the converted file has *job*'s tensor; another tool may have kept the key."""
        tensors = self.file.tensors
        if self.options is not None:
            return tensors.get(job.name)
        names = (job.name, job.source, self.file.metadata.get(job.source, ""))
        return next((tensors[name] for name in names if name in tensors), None)

    def job_for(self, job: TensorJob, stored: StoredTensor) -> TensorJob | None:
        """The job that would give what is stored, or None if nothing would."""
        shape = self.outputs[job.name].shape
        if stored.shape != shape:
            shapes = f"{list(stored.shape)} where its source is {list(shape)}"
            self.tensor_problems[job.id] = f"has shape {shapes}"
            return None
        if not self.may_be(stored.dtype, job):
            self.tensor_problems[job.id] = (
                f"is {stored.dtype.name} where {job.target.name} was to be written"
            )
            return None
        return replace(job, target=stored.dtype)

    def may_be(self, dtype: DType, job: TensorJob) -> bool:
        if self.options is not None:
            return dtype in (job.target, self.spared.get(job.id))
        is_cast = job.view.dtype.is_float and dtype.name in TARGETS
        return is_cast or dtype in (job.target, job.view.dtype)

    def compare(self, jobs: list[TensorJob], progress: Callable[[int, int], None]) -> None:
        total = sum(job.view.nbytes for job in jobs)
        done = 0

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress(self.measured + done, self.measured + total)

        homes = {job.id: self.home(job) for job in jobs}
        sink = Comparison(self.file, homes, self.differing)
        clamp = self.options is not None and self.options.on_overflow is OnOverflow.CLAMP
        cast = stream(
            self.basis.container,
            jobs,
            sink,
            clamp=clamp,
            beside=self.cores_taken,
            progress=advance,
        )
        infinite = 0
        with closing(cast):
            for job, stats in cast:
                if stats.overflowed and not clamp:
                    infinite += stats.overflowed
                    self.overflows(job, stats.overflowed)
        if infinite and self.options is None:
            self.notes.append(
                f"{counted(infinite, 'weight')}, finite in the source, became infinite or NaN"
            )

    def overflows(self, job: TensorJob, count: int) -> None:
        """We never write an infinity that the source does not have; another tool may."""
        if self.options is not None:
            what = "NaN" if job.target.name == "float8_e4m3fn" else "infinite"
            self.tensor_problems[job.id] = (
                f"{what} where the source is finite: {count} of {counted(job.view.numel, 'weight')}"
            )

    @property
    def cores_taken(self) -> int:
        return self.given.cores_taken + self.converted.cores_taken

    def home(self, job: TensorJob) -> int:
        """Where in the converted file what *job* writes begins, in bytes."""
        stored = self.stored(job)
        if stored is None:
            return 0
        # Of a tensor that was put together from parts, each has its own beginning.
        output = self.outputs[job.name]
        before = (job.offset - output.offset) // output.dtype.itemsize
        start = self.file.storages[stored.storage].offset
        return start + before * stored.dtype.itemsize

    def prove_unfit(self, pairs: list[tuple[TensorJob, StoredTensor | None]]) -> None:
        """A tensor that was not cast must have had a weight that does not fit, in any part."""
        if self.options is None:
            return
        kept = [
            job
            for job, stored in pairs
            if stored is not None
            and stored.dtype is not job.target
            and job.id not in self.tensor_problems
        ]
        if self.options.on_overflow is not OnOverflow.KEEP:
            for job in kept:
                self.tensor_problems[job.id] = f"was not cast to {job.target.name}"
            return
        unfit = set()
        cast = stream(self.basis.container, kept, Nowhere(), beside=self.cores_taken)
        with closing(cast):
            for job, stats in cast:
                if stats.overflowed:
                    unfit.add(job.name)
        for job in kept:
            if job.name not in unfit:
                self.tensor_problems[job.id] = (
                    f"was not cast to {job.target.name}, though every weight fits"
                )

    def check_names(self, plan: ConversionPlan) -> None:
        # Of several names that another tool may have used, only the one that was compared.
        known = {found.key for job in plan.jobs if (found := self.stored(job)) is not None}
        self.problems += [
            f"holds {escape(name)}, which its source does not give"
            for name in self.file.tensors
            if name not in known
        ]

    def proof(self, job: TensorJob, stored: StoredTensor | None) -> TensorProof:
        problem = self.tensor_problems.get(job.id)
        if stored is None:
            problem = "is missing"
        elif self.differing.get(job.id):
            problem = f"differs in {self.differing[job.id]} of {counted(job.view.numel, 'element')}"
        name = stored.key if stored is not None else job.name
        origin, source = self.basis.whence(job.source)
        return TensorProof(name, source, origin, problem is None, problem, self.path)


def _part(plan: ConversionPlan, file: str) -> ConversionPlan:
    """What *plan* has for one *file* of it."""
    return replace(
        plan,
        outputs=tuple(output for output in plan.outputs if output.file == file),
        jobs=tuple(job for job in plan.jobs if job.file == file),
        aliases=tuple(alias for alias in plan.aliases if alias.file == file),
    )
