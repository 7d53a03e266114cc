"""Weights from an open checkpoint into safetensors files.

Knows:      how plan, cast and writer meet, and when a plan must be made again.
Is told:    an open file that may be converted, a destination and the user's options.
Never asks: whether it may be converted (`convert`), what is said of it (`accounting`).
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ckptaudit.errors import CastOverflow, Unsupported
from ckptaudit.jobs.accounting import Accounting, Learned
from ckptaudit.jobs.case import Digests, case_of
from ckptaudit.jobs.choosing import choose
from ckptaudit.jobs.folderfiles import own_files
from ckptaudit.jobs.hashing import hash_of, hashes_of
from ckptaudit.jobs.modelspec import modelspec_of, with_data_hash
from ckptaudit.jobs.opening import File, Judged
from ckptaudit.jobs.planning import planner
from ckptaudit.jobs.receipt import metadata_of
from ckptaudit.jobs.stream import digest_of, stream
from ckptaudit.plan import (
    ConversionPlan,
    OnOverflow,
    Options,
    Output,
    Precision,
    TensorJob,
)
from ckptaudit.source import path_text
from ckptaudit.vm import escape
from ckptaudit.wording import counted
from ckptaudit.writer import (
    Draft,
    DraftFolder,
    check_spares,
    header_of,
    write_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ckptaudit.jobs.account import Conversion
    from ckptaudit.jobs.case import Case
    from ckptaudit.jobs.stream import Sink, Tally
    from ckptaudit.stats import TensorStats

__all__ = ["DraftSink", "write"]

AnyDraft = TypeVar("AnyDraft", Draft, DraftFolder)

# As long as any: what a header takes does not depend on which hash is in it.
_NO_HASH = "0" * 64


def write(
    source: Judged,
    target: Path,
    options: Options,
    *,
    vae_source: Judged | None,
    sources: Iterable[Path],
    with_hash: bool,
    overwrite: bool,
    dry_run: bool,
    progress: Callable[[int, int], None],
) -> Conversion:
    """Write what *options* make of *source* to *target*, or say what would be written.

    Args:
        source: The checkpoint, open; it may be converted.
        target: Where the output appears when it is whole.
        options: What to do with weights, copies and names.
        vae_source: The file whose VAE takes the place of the checkpoint's, open likewise.
        sources: What both may consist of, none of which is ever written.
        with_hash: Hash the output and put the hashes of its sources into it.
        overwrite: Replace *target* if it is there.
        dry_run: Write nothing.
        progress: Told bytes of weights done, and in all.

    Raises:
        CkptauditError: See `convert`.
    """
    run = _Run(case_of(source, vae_source, target, options), progress)
    run.check_places(tuple(sources))
    if dry_run:
        return run.dry(with_hash=with_hash)
    return run.write(with_hash=with_hash, overwrite=overwrite)


class _Run:
    """One conversion."""

    def __init__(self, case: Case, progress: Callable[[int, int], None]) -> None:
        self.case = case
        self.progress = progress
        digests = partial(digest_of, case.basis.container)
        self.plan_with = planner(case.basis, case.options, digests)
        self.learned = Learned(modelspec=self.described())
        self.account = Accounting(case, self.learned).conversion
        # By file and name of the output, why a tensor is not cast.
        self.unfit: dict[tuple[str, str], str] = {}
        # Bytes of weights that were read to choose types, or in attempts that came to nothing.
        self.in_vain = 0
        # One byte that lanes share: not 0 once the attempt under way has come to nothing.
        self.is_vain = mmap(-1, 1)

    def described(self) -> dict[str, str] | None:
        """What is known of the model and what the user says, in the words of the ModelSpec."""
        if self.case.options.modelspec is None:
            return None
        title = path_text(Path(self.case.target.stem))
        return modelspec_of(self.case.detection, title, self.case.options.modelspec, self.case.name)

    def check_places(self, sources: tuple[Path, ...]) -> None:
        """Refuse to write to any of *sources*, which may lie where a file of a folder goes.

        Nor is a folder written that nothing would be in.
        """
        if not self.case.options.makes_folder:
            return
        plan = self.plan_with({})
        if not plan.outputs:
            raise Unsupported(
                f"{self.case.name}: no tensor of it is left for a folder; leave less of it out"
            )
        if self.case.target.exists():
            files = [output.file for output in plan.outputs]
            places = {*map(self.case.within, files), *self.case.texts(plan)}
            own = own_files(self.case.target, self.case.target.name)
            self.learned.stale = tuple(sorted(own - places))
            for file in sorted(places | own):
                check_spares(self.case.target / file, sources)

    def choose(self) -> None:
        """Read the weights to choose their types, where that is left to them."""
        if self.case.options.precision is not Precision.AUTO:
            return
        plan = self.plan_with({})
        total = sum(job.view.nbytes for job in plan.jobs)

        def advance(done: int, in_all: int) -> None:
            self.in_vain = done
            self.progress(done, in_all + total)

        self.learned.chosen = choose(
            self.case.basis.container, plan, beside=self.case.cores_taken, progress=advance
        )

    def dry(self, *, with_hash: bool) -> Conversion:
        self.choose()
        plan = self.plan_with({}, self.learned.chosen)
        starts = self.starts(plan, with_hash=with_hash)
        digests = self.case.finish()
        weights = [
            File(self.case.path_of(output.file), starts[output.file] + output.nbytes, None)
            for output in plan.outputs
        ]
        texts = [
            File(self.case.path_of(file), len(text), None)
            for file, text in self.case.texts(plan).items()
        ]
        return self.account(plan, (*weights, *texts), digests, written=False)

    def write(self, *, with_hash: bool, overwrite: bool) -> Conversion:
        self.choose()
        outputs = None
        while outputs is None:
            # Which tensors stay as they are decides where every other one lies; they are
            # known after one attempt, which then writes nothing.
            plan = self.plan_with(self.unfit, self.learned.chosen)
            outputs = self.attempt(plan, with_hash=with_hash, overwrite=overwrite)
        # That nothing had changed was seen before the output appeared.  A source that lies in a
        # folder that was replaced is linked into the new one, which changes its ctime.
        return self.account(plan, outputs, self.case.digests(), written=True)

    def attempt(
        self, plan: ConversionPlan, *, with_hash: bool, overwrite: bool
    ) -> tuple[File, ...] | None:
        """Write the files that *plan* describes.

        Returns:
            What was written; None if nothing was, because there are weights that do not fit
            and the plan did not know of: `unfit` has more of them than before.
        """
        known = len(self.unfit)
        self.is_vain[0] = 0
        starts = self.starts(plan, with_hash=with_hash)
        with ExitStack() as stack:
            folder = None
            if self.case.options.makes_folder:
                folder = _begun(DraftFolder(self.case.target, own_files), stack)
            drafts = {}
            for output in plan.outputs:
                file = self.case.within(output.file)
                final = self.case.target / file
                place = final if folder is None else folder.place(file)
                size = starts[output.file] + output.nbytes
                drafts[output.file] = _begun(Draft(place, size, final), stack)
            self.cast(plan, DraftSink(drafts, starts, self.is_vain))
            if len(self.unfit) > known:
                self.in_vain += sum(job.view.nbytes for job in plan.jobs)
                return None
            digests = self.case.finish()
            written = []
            for output in plan.outputs:
                draft = drafts[output.file]
                if self.learned.modelspec is not None and with_hash:
                    (of_data,) = hashes_of(draft.read_into, draft.size, (starts[output.file],))
                    self.learned.modelspec = with_data_hash(self.learned.modelspec, of_data)
                draft.write_at(0, self.header(plan, output, digests))
                draft.check_opens()
                digest = hash_of(draft.read_into, draft.size) if with_hash else None
                draft.publish(overwrite=overwrite)
                written.append(File(self.case.path_of(output.file), draft.size, digest))
            if folder is not None:
                for file, text in self.case.texts(plan).items():
                    write_text(folder.place(file), text, overwrite=False)
                    digest = sha256(text).hexdigest() if with_hash else None
                    written.append(File(self.case.path_of(file), len(text), digest))
                folder.publish(overwrite=overwrite)
            return tuple(written)

    def starts(self, plan: ConversionPlan, *, with_hash: bool) -> dict[str, int]:
        """Where in each file its data begin, in bytes."""
        digests = Digests(_NO_HASH, _NO_HASH) if with_hash else Digests(None, None)
        return {output.file: len(self.header(plan, output, digests)) for output in plan.outputs}

    def cast(self, plan: ConversionPlan, sink: Sink) -> None:
        total = sum(job.view.nbytes for job in plan.jobs)
        done = 0

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            # Once it is known that all has to be done again, that is to be seen.
            passes = 2 if self.is_vain[0] else 1
            self.progress(self.in_vain + done, self.in_vain + passes * total)

        clamp = self.case.options.on_overflow is OnOverflow.CLAMP
        done_jobs = stream(
            self.case.basis.container,
            plan.jobs,
            sink,
            clamp=clamp,
            beside=self.case.cores_taken,
            progress=advance,
        )
        # Closed, so that no thread writes any more when the draft is discarded.
        with closing(done_jobs):
            for job, stats in done_jobs:
                self.learned.stats[job.id] = stats
                if stats.overflowed and not clamp:
                    self.misfit(job, stats)

    def misfit(self, job: TensorJob, stats: TensorStats) -> None:
        what = (
            f"{job.target.name} cannot hold {stats.overflowed} of {counted(stats.numel, 'weight')} "
            f"(from {stats.min:g} to {stats.max:g})"
        )
        if self.case.options.on_overflow is OnOverflow.ERROR:
            raise CastOverflow(f"{self.case.name}: {escape(job.source)}: {what}")
        self.unfit[job.file, job.name] = what
        self.learned.misfits[job.id] = what
        self.is_vain[0] = 1

    def header(self, plan: ConversionPlan, output: Output, digests: Digests) -> bytes:
        aliases = [alias for alias in plan.aliases if alias.file == output.file]
        modelspec = self.learned.modelspec or {}
        if modelspec and digests.source is not None:
            # Room for the hash, where it is not known yet.
            modelspec = with_data_hash(modelspec, _NO_HASH) | modelspec
        vae = None if self.case.vae_source is None else digests.vae or ""
        metadata = metadata_of(self.case.options, aliases, digests.source, vae, modelspec)
        return header_of(output.tensors, metadata)


@dataclass(frozen=True, slots=True)
class DraftSink:
    """Puts blocks where the plan says, for as long as the attempt is not in vain.

    Attributes:
        drafts: The files.
        starts: Where in each its data begin, in bytes.
        is_vain: One byte, shared by all processes of the attempt: not 0 once it is.
    """

    drafts: Mapping[str, Draft]
    starts: Mapping[str, int]
    is_vain: mmap

    def position(self, job: TensorJob, first: int) -> int:
        """See `Sink.position`."""
        return self.starts[job.file] + job.offset + first * job.target.itemsize

    def take(self, job: TensorJob, first: int, data: memoryview) -> None:
        """See `Sink.take`."""
        if not self.is_vain[0]:
            self.drafts[job.file].write_at(self.position(job, first), data)

    def tally(self) -> Tally:
        """See `Sink.tally`: there is nothing to remember."""
        return ()

    def recall(self, tally: Tally) -> None:
        """See `Sink.recall`."""


def _begun(draft: AnyDraft, stack: ExitStack) -> AnyDraft:
    """Begin *draft*, which *stack* will end.

    It is the stack's before there is anything to remove: an interrupt may strike between two
    steps of `ExitStack.enter_context`, and nobody would remove what was made in the first.
    """
    stack.push(draft)
    draft.begin()
    return draft
