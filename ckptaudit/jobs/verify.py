"""`verify`: prove each tensor of a converted file from its source.

Knows:      how to read, plan and cast a source again and compare what comes out.
Is told:    a source, and a file made from it by us or by any other tool.
Never asks: to be believed: from the converted file it takes which options were used and
            which type each tensor has, and proves both (of another tool's file also which
            names it has).
"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ckptaudit.containers import Kind
from ckptaudit.errors import Unsupported
from ckptaudit.floats import TARGETS, decode
from ckptaudit.jobs.basis import from_where
from ckptaudit.jobs.choosing import choose
from ckptaudit.jobs.given import Given
from ckptaudit.jobs.modelspec import (
    TITLE,
    hash_claimed,
    modelspec_in,
    modelspec_of,
    with_data_hash,
)
from ckptaudit.jobs.opening import File, Folders, Opened, opened
from ckptaudit.jobs.receipt import receipt_in, strange_claims
from ckptaudit.jobs.stream import JobId, Nowhere, Tally, stream
from ckptaudit.layouts import Component
from ckptaudit.plan import Dedupe, Ema, Layout, OnOverflow, Options, Output, Precision
from ckptaudit.vm import escape
from ckptaudit.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from os import PathLike

    from numpy.typing import NDArray

    from ckptaudit.containers import Container, StoredTensor
    from ckptaudit.dtypes import DType
    from ckptaudit.plan import Alias, ConversionPlan, Drop, OutputTensor, TensorJob
    from ckptaudit.policy import Coverage

__all__ = ["FOREIGN_FOLDER", "Place", "TensorProof", "Verification", "file_of", "prove", "verify"]

# A file by another tool is held against every tensor of the source under its own name.
_FOREIGN = Options(precision=Precision.KEEP, ema=Ema.KEEP, dedupe=Dedupe.NONE)
# A folder by another tool is one for diffusers: nobody else agrees on names in folders.
FOREIGN_FOLDER = replace(_FOREIGN, layout=Layout.DIFFUSERS)


@dataclass(frozen=True, slots=True)
class TensorProof:
    """What became of one tensor.

    Attributes:
        name: What it is called in the converted file.
        source: Its key in the source.
        origin: Path of the file that *source* is a key of, if that is not the source.
        equal: Whether the converted file holds exactly what its source gives.
        problem: What is wrong, if it does not.
        file: The file it is in, by its path in the folder; "" where there is one file only.
    """

    name: str
    source: str
    origin: str | None
    equal: bool
    problem: str | None
    file: str


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether a converted file, or a folder of such files, is what its source gives.

    Attributes:
        source: The checkpoint.
        vae_source: The file that its VAE was replaced from; None if it was not.
        converted: What was made from them; of a folder the bytes of all *files*, and no hash.
        files: The files that were compared, in a folder its settings too, by path.
        equal: Whether every tensor is proven and nothing else is wrong.
        coverage: Whether all of both was read; what was not cannot be in the converted file.
        options: How *converted* says it was made, which was followed; None if it does not say.
        tensors: Each tensor that should be there, file by file, in the order of the data.
        aliases: Names stored under another, which is among *tensors*.
        dropped: Tensors of the source that were not to be written.
        problems: What is wrong apart from single tensors.
        notes: What is worth knowing besides.
    """

    source: File
    vae_source: File | None
    converted: File
    files: tuple[File, ...]
    equal: bool
    coverage: Coverage
    options: Options | None
    tensors: tuple[TensorProof, ...]
    aliases: tuple[Alias, ...]
    dropped: tuple[Drop, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def verify(
    source: str | PathLike[str],
    converted: str | PathLike[str],
    *,
    replace_vae: str | PathLike[str] | None = None,
    with_hash: bool = True,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Verification:
    """Read *source* again and compare what it gives with *converted*, element by element.

    Args:
        source: The checkpoint, or the folder of a diffusers model.
        converted: A safetensors file made from it, of several that were made one; or the folder
            in which all of them are, with the settings that belong to them.
        replace_vae: The file whose VAE took the place of the checkpoint's.
        with_hash: Compute the SHA-256 of all of them.
        progress: Told bytes of weights done, and in all.

    Raises:
        CkptauditError: There is no answer: one of the files cannot be read.
    """
    with ExitStack() as stack:
        one = stack.enter_context(opened(source, with_hash=with_hash, folders=Folders.MODEL))
        vae = None
        if replace_vae is not None:
            file = opened(replace_vae, with_hash=with_hash, folders=Folders.MODEL)
            vae = stack.enter_context(file)
        given = Given(one, vae)
        if os.path.isdir(converted):  # noqa: PTH112 - a name that is too long is none
            # It imports this module, and is for folders only.
            from ckptaudit.jobs.folderproof import FolderProof  # noqa: PLC0415 - as said above

            return FolderProof(given, Path(converted)).run(progress, with_hash=with_hash)
        two = stack.enter_context(opened(converted, with_hash=with_hash, with_data_hash=True))
        return prove(two, given, progress)


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
        self.check_vae_is_named()
        # What another tool made a file with is not known: every name and type is looked at.
        foreign = _FOREIGN if place is None else FOREIGN_FOLDER
        self.asked_for = self.options or foreign
        self.basis = given.basis(self.asked_for)

    def check_vae_is_named(self) -> None:
        """Refuse to compare with other weights than were written."""
        claimed = None if self.receipt is None else self.receipt.vae_sha256
        if claimed is not None and self.given.vae is None:
            whose = f" of SHA-256 {escape(claimed)}" if claimed else ""
            raise Unsupported(
                f"{self.file.source.name}: has the VAE of another file{whose}; name that file with "
                "--replace-vae"
            )

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
        source_digest, digest = self.given.source.finish(), self.converted.finish()
        self.check_metadata(plan, source_digest)
        vae = None
        if self.given.vae is not None:
            vae = file_of(self.given.vae.container, self.given.vae.finish())
            self.check_vae_claim(vae.sha256)
        proofs = tuple(self.proof(job, stored) for job, stored in pairs)
        converted = file_of(self.file, digest)
        return Verification(
            source=file_of(self.given.source.container, source_digest),
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
        sink = _Comparison(self.file, homes, self.differing)
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

    def check_metadata(self, plan: ConversionPlan, digest: str | None) -> None:
        if self.receipt is None:
            return
        self.problems += [
            f"says by {escape(key)} what no conversion does"
            for key in strange_claims(self.file.metadata)
        ]
        self.check_modelspec(self.receipt.options.modelspec)
        claimed = self.receipt.source_sha256
        if claimed is not None and digest is not None and claimed != digest:
            self.problems.append(f"names a source of SHA-256 {escape(claimed)}, which this is not")
        if self.receipt.aliases != {alias.name: alias.of for alias in plan.aliases}:
            self.problems.append("lists other aliases than its source gives")

    def check_modelspec(self, said: Iterable[tuple[str, str]] | None) -> None:
        """Prove what the file says by the ModelSpec, all but a title that was its name once."""
        there = modelspec_in(self.file.metadata)
        claimed, of_data = hash_claimed(there), self.converted.data_digest()
        owed: dict[str, str] = {}
        if said is not None:
            title, name = there.get(TITLE, ""), self.given.source.container.source.name
            # What cannot be known of this source was not known when the file was made of it.
            with suppress(Unsupported):
                owed = modelspec_of(self.basis.meaning.detection, title, said, name)
            # Whoever wanted no hash of the file got none of its data either.
            owed = owed if claimed is None else with_data_hash(owed, claimed)
        wrong = [key for key in {*there, *owed} if there.get(key) != owed.get(key)]
        if wrong:
            self.problems.append(f"says by {escape(min(wrong))} what its source does not give")
        elif claimed is not None and of_data not in {None, claimed}:
            self.problems.append("names a SHA-256 of its data that they do not have")

    def check_vae_claim(self, digest: str | None) -> None:
        if self.receipt is None:
            return
        claimed = self.receipt.vae_sha256
        if claimed is None:
            self.problems.append("does not say that its VAE was replaced")
        elif claimed and digest is not None and claimed != digest:
            self.problems.append(
                f"names a file of SHA-256 {escape(claimed)} for its VAE, which this is not"
            )

    def proof(self, job: TensorJob, stored: StoredTensor | None) -> TensorProof:
        problem = self.tensor_problems.get(job.id)
        if stored is None:
            problem = "is missing"
        elif self.differing.get(job.id):
            problem = f"differs in {self.differing[job.id]} of {counted(job.view.numel, 'element')}"
        name = stored.key if stored is not None else job.name
        origin, source = self.basis.whence(job.source)
        return TensorProof(name, source, origin, problem is None, problem, self.path)


@dataclass(frozen=True, slots=True)
class _Comparison:
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
        return self.homes[job.id] + first * job.target.itemsize

    def take(self, job: TensorJob, first: int, data: memoryview) -> None:
        there = self.file.source.read_at(self.position(job, first), len(data))
        if data != there:
            self.recall(((job.id, _differing(bytes(data), there, job)),))

    def tally(self) -> Tally:
        return tuple(self.differing.items())

    def recall(self, tally: Tally) -> None:
        for job, count in tally:
            self.differing[job] = self.differing.get(job, 0) + count


def _part(plan: ConversionPlan, file: str) -> ConversionPlan:
    """What *plan* has for one *file* of it."""
    return replace(
        plan,
        outputs=tuple(output for output in plan.outputs if output.file == file),
        jobs=tuple(job for job in plan.jobs if job.file == file),
        aliases=tuple(alias for alias in plan.aliases if alias.file == file),
    )


def file_of(container: Container, digest: str | None) -> File:
    """What an answer says of the file that *container* is."""
    return File(container.source.name, container.source.size, digest)


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
