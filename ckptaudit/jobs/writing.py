"""Weights from an open checkpoint into safetensors files, and the account of it.

Knows:      how plan, cast and writer meet, and when a plan must be made again.
Is told:    an open file that may be converted, a destination and the user's options.
Never asks: whether it may be converted (`convert`), how the answer is shown.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ckptaudit.errors import CastOverflow, Unsupported
from ckptaudit.jobs.account import Conversion, Source, TensorEntry
from ckptaudit.jobs.baking import account_of, notes_on_vae, with_vae
from ckptaudit.jobs.basis import basis_of, from_where
from ckptaudit.jobs.choosing import choose
from ckptaudit.jobs.folderfiles import own_files
from ckptaudit.jobs.hashing import hash_of, hashes_of
from ckptaudit.jobs.health import averaged_alike, counted_ailments
from ckptaudit.jobs.modelspec import modelspec_of, with_data_hash
from ckptaudit.jobs.opening import File, Judged, notes_on
from ckptaudit.jobs.planning import check_layout, planner, prediction_of, texts_of
from ckptaudit.jobs.receipt import metadata_of
from ckptaudit.jobs.sizes import sizes_by
from ckptaudit.jobs.small import std_of
from ckptaudit.jobs.stream import digest_of, stream
from ckptaudit.layouts import Component
from ckptaudit.plan import (
    CANDIDATES,
    FALLBACK,
    Choice,
    ConversionPlan,
    Ema,
    Layout,
    OnOverflow,
    Options,
    Output,
    Precision,
    TensorJob,
)
from ckptaudit.policy import RULES, Finding
from ckptaudit.vm import escape
from ckptaudit.wording import counted
from ckptaudit.writer import (
    Draft,
    DraftFolder,
    check_spares,
    header_of,
    path_text,
    write_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ckptaudit.jobs.stream import JobId, Sink, Tally
    from ckptaudit.numerics import TensorStats

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
    run = _Run(source, vae_source, target, options, progress)
    run.check_places(tuple(sources))
    if dry_run:
        return run.dry(with_hash=with_hash)
    return run.write(with_hash=with_hash, overwrite=overwrite)


class _Digests(NamedTuple):
    """SHA-256 of the source and of the file its VAE is from, where wanted."""

    source: str | None
    vae: str | None


class _Run:
    """One conversion."""

    def __init__(
        self,
        source: Judged,
        vae_source: Judged | None,
        target: Path,
        options: Options,
        progress: Callable[[int, int], None],
    ) -> None:
        self.source = source
        self.vae_source = vae_source
        self.name = source.file.container.source.name
        self.target = target
        self.options = options
        self.progress = progress
        self.basis = basis_of(source.file.container, options.family)
        self.detection = self.basis.meaning.detection
        check_layout(self.detection, options, self.name)
        if vae_source is not None:
            self.basis = with_vae(self.basis, vae_source.file.container, options)
        container = self.basis.container
        self.prediction, self.hints = prediction_of(
            self.basis.meaning, self.basis.state_dict, partial(std_of, container)
        )
        self.plan_with = planner(self.basis, options, partial(digest_of, container))
        self.stats: dict[JobId, TensorStats] = {}
        # By file and name of the output, the type that its weights ask for.
        self.chosen: dict[tuple[str, str], Choice] = {}
        # The same, why a tensor is not cast.
        self.unfit: dict[tuple[str, str], str] = {}
        # The same by the jobs that told so: of a tensor of several parts, maybe one.
        self.misfits: dict[JobId, str] = {}
        # What the header says by the ModelSpec; None where that is not wanted.
        self.modelspec = self.described()
        # Files of an earlier conversion that go, where its folder is overwritten.
        self.stale: tuple[str, ...] = ()
        # Bytes of weights that were read to choose types, or in attempts that came to nothing.
        self.in_vain = 0
        # One byte that lanes share: not 0 once the attempt under way has come to nothing.
        self.is_vain = mmap(-1, 1)

    def described(self) -> dict[str, str] | None:
        """What is known of the model and what the user says, in the words of the ModelSpec."""
        if self.options.modelspec is None:
            return None
        title = path_text(Path(self.target.stem))
        return modelspec_of(self.detection, title, self.options.modelspec, self.name)

    def check_places(self, sources: tuple[Path, ...]) -> None:
        """Refuse to write to any of *sources*, which may lie where a file of a folder goes.

        Nor is a folder written that nothing would be in.
        """
        if not self.options.makes_folder:
            return
        plan = self.plan_with({})
        if not plan.outputs:
            raise Unsupported(
                f"{self.name}: no tensor of it is left for a folder; leave less of it out"
            )
        if self.target.exists():
            files = [output.file for output in plan.outputs]
            places = {*map(self.within, files), *self.texts(plan)}
            own = own_files(self.target, self.target.name)
            self.stale = tuple(sorted(own - places))
            for file in sorted(places | own):
                check_spares(self.target / file, sources)

    def choose(self) -> None:
        """Read the weights to choose their types, where that is left to them."""
        if self.options.precision is not Precision.AUTO:
            return
        plan = self.plan_with({})
        total = sum(job.view.nbytes for job in plan.jobs)

        def advance(done: int, in_all: int) -> None:
            self.in_vain = done
            self.progress(done, in_all + total)

        self.chosen = choose(self.basis.container, plan, beside=self.cores_taken, progress=advance)

    def dry(self, *, with_hash: bool) -> Conversion:
        self.choose()
        plan = self.plan_with({}, self.chosen)
        starts = self.starts(plan, with_hash=with_hash)
        digests = self.finish()
        weights = [
            File(self.path_of(output.file), starts[output.file] + output.nbytes, None)
            for output in plan.outputs
        ]
        texts = [
            File(self.path_of(file), len(text), None) for file, text in self.texts(plan).items()
        ]
        return self.result(plan, (*weights, *texts), digests, written=False)

    def write(self, *, with_hash: bool, overwrite: bool) -> Conversion:
        self.choose()
        outputs = None
        while outputs is None:
            # Which tensors stay as they are decides where every other one lies; they are
            # known after one attempt, which then writes nothing.
            plan = self.plan_with(self.unfit, self.chosen)
            outputs = self.attempt(plan, with_hash=with_hash, overwrite=overwrite)
        # That nothing had changed was seen before the output appeared.  A source that lies in a
        # folder that was replaced is linked into the new one, which changes its ctime.
        return self.result(plan, outputs, self.digests(), written=True)

    def finish(self) -> _Digests:
        """Wait for the hashes of both files, which must not have changed."""
        for judged in (self.source, self.vae_source):
            if judged is not None:
                judged.file.finish()
        return self.digests()

    def digests(self) -> _Digests:
        """Wait for the hashes of both files."""
        vae = None if self.vae_source is None else self.vae_source.file.digest()
        return _Digests(self.source.file.digest(), vae)

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
            if self.options.makes_folder:
                folder = _begun(DraftFolder(self.target, own_files), stack)
            drafts = {}
            for output in plan.outputs:
                file = self.within(output.file)
                final = self.target / file
                place = final if folder is None else folder.place(file)
                size = starts[output.file] + output.nbytes
                drafts[output.file] = _begun(Draft(place, size, final), stack)
            self.cast(plan, DraftSink(drafts, starts, self.is_vain))
            if len(self.unfit) > known:
                self.in_vain += sum(job.view.nbytes for job in plan.jobs)
                return None
            digests = self.finish()
            written = []
            for output in plan.outputs:
                draft = drafts[output.file]
                if self.modelspec is not None and with_hash:
                    (of_data,) = hashes_of(draft.read_into, draft.size, (starts[output.file],))
                    self.modelspec = with_data_hash(self.modelspec, of_data)
                draft.write_at(0, self.header(plan, output, digests))
                draft.check_opens()
                digest = hash_of(draft.read_into, draft.size) if with_hash else None
                draft.publish(overwrite=overwrite)
                written.append(File(self.path_of(output.file), draft.size, digest))
            if folder is not None:
                for file, text in self.texts(plan).items():
                    write_text(folder.place(file), text, overwrite=False)
                    digest = sha256(text).hexdigest() if with_hash else None
                    written.append(File(self.path_of(file), len(text), digest))
                folder.publish(overwrite=overwrite)
            return tuple(written)

    def texts(self, plan: ConversionPlan) -> dict[str, bytes]:
        """The JSON files of a folder, by path in it."""
        return texts_of(self.detection, self.prediction, plan, self.options)

    def starts(self, plan: ConversionPlan, *, with_hash: bool) -> dict[str, int]:
        """Where in each file its data begin, in bytes."""
        digests = _Digests(_NO_HASH, _NO_HASH) if with_hash else _Digests(None, None)
        return {output.file: len(self.header(plan, output, digests)) for output in plan.outputs}

    def within(self, file: str) -> str:
        """What *file* of the plan is called in the folder that is written; "" without one.

        A part keeps the name of the whole: InvokeAI tells by it whose an autoencoder is.
        """
        return f"{self.target.name}.{file}.safetensors" if self.options.split else file

    def path_of(self, file: str) -> str:
        return path_text(self.target / self.within(file))

    def shown(self, file: str) -> str:
        """What a line of the report calls *file* of the plan."""
        return path_text(Path(self.target.name) / self.within(file))

    def cast(self, plan: ConversionPlan, sink: Sink) -> None:
        total = sum(job.view.nbytes for job in plan.jobs)
        done = 0

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            # Once it is known that all has to be done again, that is to be seen.
            passes = 2 if self.is_vain[0] else 1
            self.progress(self.in_vain + done, self.in_vain + passes * total)

        clamp = self.options.on_overflow is OnOverflow.CLAMP
        done_jobs = stream(
            self.basis.container,
            plan.jobs,
            sink,
            clamp=clamp,
            beside=self.cores_taken,
            progress=advance,
        )
        # Closed, so that no thread writes any more when the draft is discarded.
        with closing(done_jobs):
            for job, stats in done_jobs:
                self.stats[job.id] = stats
                if stats.overflowed and not clamp:
                    self.misfit(job, stats)

    def misfit(self, job: TensorJob, stats: TensorStats) -> None:
        what = (
            f"{job.target.name} cannot hold {stats.overflowed} of {counted(stats.numel, 'weight')} "
            f"(from {stats.min:g} to {stats.max:g})"
        )
        if self.options.on_overflow is OnOverflow.ERROR:
            raise CastOverflow(f"{self.name}: {escape(job.source)}: {what}")
        self.unfit[job.file, job.name] = what
        self.misfits[job.id] = what
        self.is_vain[0] = 1

    @property
    def cores_taken(self) -> int:
        beside = self.vae_source.file.cores_taken if self.vae_source is not None else 0
        return self.source.file.cores_taken + beside

    def header(self, plan: ConversionPlan, output: Output, digests: _Digests) -> bytes:
        aliases = [alias for alias in plan.aliases if alias.file == output.file]
        modelspec = self.modelspec or {}
        if modelspec and digests.source is not None:
            # Room for the hash, where it is not known yet.
            modelspec = with_data_hash(modelspec, _NO_HASH) | modelspec
        vae = None if self.vae_source is None else digests.vae or ""
        metadata = metadata_of(self.options, aliases, digests.source, vae, modelspec)
        return header_of(output.tensors, metadata)

    def result(
        self,
        plan: ConversionPlan,
        outputs: tuple[File, ...],
        digests: _Digests,
        *,
        written: bool,
    ) -> Conversion:
        container, judgement = self.source.file.container, self.source.judgement
        # A dry run may know a hash that a policy asked for, but promises none.
        digests = digests if written else _Digests(None, None)
        return Conversion(
            source=Source(
                path=container.source.name,
                size=container.source.size,
                sha256=digests.source,
                container=container.kind,
                state_dict=self.basis.state_dict.path,
                verdict=judgement.verdict,
                coverage=judgement.coverage,
            ),
            vae_source=account_of(self.vae_source, self.basis.vae, digests.vae),
            written=written,
            family=self.detection.family,
            variant=self.detection.variant,
            evidence=(*self.detection.evidence, *self.hints),
            prediction=self.prediction,
            options=self.options,
            components=self.basis.meaning.components,
            sizes=sizes_by(plan, self.basis),
            outputs=outputs,
            tensors=tuple(self.entry(job) for job in plan.jobs),
            aliases=tuple(
                replace(from_where(alias, self.basis), file=self.shown(alias.file))
                for alias in plan.aliases
            ),
            dropped=tuple(from_where(drop, self.basis) for drop in plan.drops),
            leftovers=plan.leftovers,
            modelspec=self.modelspec,
            findings=(
                *judgement.findings,
                *self.basis.health(),
                *self.numeric_findings(plan),
            ),
            permitted=judgement.permitted,
            notes=(
                *notes_on(container),
                *notes_on_vae(self.vae_source, self.basis.vae),
                *self.empty_notes(plan),
                *self.ema_notes(plan),
                *self.vae_notes(plan),
                *self.type_notes(),
                *self.folder_notes(plan),
                *self.guesses(),
                *self.stale_notes(written=written),
                *self.dry_notes(written=written),
            ),
        )

    def entry(self, job: TensorJob) -> TensorEntry:
        origin, source = self.basis.whence(job.source)
        return TensorEntry(
            name=job.name,
            file=self.shown(job.file),
            source=source,
            origin=origin,
            component=job.component,
            op=job.op,
            rows=job.rows,
            source_dtype=job.view.dtype.name,
            dtype=job.target.name,
            shape=job.view.shape,
            stats=self.stats.get(job.id),
            why=choice.why if (choice := self.choice(job)) is not None else None,
        )

    def choice(self, job: TensorJob) -> Choice | None:
        """The type that the weights asked for, if *job* got it."""
        choice = self.chosen.get((job.file, job.name))
        return choice if choice is not None and choice.dtype is job.target else None

    def empty_notes(self, plan: ConversionPlan) -> list[str]:
        """Say so where there was nothing to convert, or nothing is left of it."""
        if not self.basis.state_dict.views:
            return ["holds no tensors that can be converted"]
        return [] if plan.jobs else ["every tensor is left out: there is none in the output"]

    def folder_notes(self, plan: ConversionPlan) -> list[str]:
        """Say what a folder lacks without which it does not open."""
        if self.options.layout is not Layout.DIFFUSERS:
            return []
        absent = self.detection.absent_from_folder(output.file for output in plan.outputs)
        return [
            f"the folder has no {each.value}: give from_pretrained one, {each.value}=..., or None"
            for each in absent
        ]

    def guesses(self) -> tuple[str, ...]:
        """Say what is a guess and stands in a folder's settings as if it were known."""
        if self.options.layout is not Layout.DIFFUSERS:
            return ()
        guess = self.detection.guess
        return (*self.hints, guess) if guess else self.hints

    def stale_notes(self, *, written: bool) -> list[str]:
        """Say which files of an earlier conversion have no successor."""
        if not self.stale:
            return []
        verb = "were" if written else "would be"
        more = f" and {counted(len(self.stale) - 1, 'other')}" if len(self.stale) > 1 else ""
        which = f"{escape(path_text(self.stale[0]))}{more}"
        return [f"files of an earlier conversion {verb} removed: {which}"]

    def dry_notes(self, *, written: bool) -> list[str]:
        """Say what a dry run cannot know."""
        if written:
            return []
        if self.options.precision is Precision.AUTO:
            notes = [
                "weights were read to choose types; what float32 cannot hold would stay as it is"
            ]
        else:
            unread = "a tensor that does not fit its new type would stay as it is"
            notes = [f"no weight was read: {unread}"]
        if self.target.exists():
            notes.append("the output exists: it is written only where it may be overwritten")
        return notes

    def ema_notes(self, plan: ConversionPlan) -> list[str]:
        """Say so where averaged copies were asked for and weights have none."""
        if self.options.ema is not Ema.USE:
            return []
        if not any(job.component is Component.EMA for job in plan.jobs):
            return ["holds no averaged (EMA) copies: the weights themselves are written"]
        without = sum(job.component is Component.UNET for job in plan.jobs)
        if not without:
            return []
        return [f"no averaged copy of {counted(without, 'weight')} of the unet: written as trained"]

    def vae_notes(self, plan: ConversionPlan) -> list[str]:
        """Say so where a VAE was spared a type in which it cannot run."""
        options = self.options
        spared = [
            job
            for job in plan.jobs
            if job.component is Component.VAE and job.target.name == "float32"
        ]
        if not (options.spares_fragile_vae and self.detection.vae_overflows and spared):
            return []
        why = "in fp16 this family's overflows while it runs, and images turn black"
        return [f"the VAE stays float32: {why}; --vae convert casts it"]

    def type_notes(self) -> list[str]:
        """Say how many tensors got another type than the first, where it was left to them."""
        if self.options.precision is not Precision.AUTO:
            return []
        chosen = Counter(choice.dtype.name for choice in self.chosen.values())
        kinds = [f"{chosen[dtype.name]} {dtype.name}" for dtype in (*CANDIDATES, FALLBACK)]
        tensors = counted(len(self.chosen), "tensor")
        return [f"--precision auto, of {tensors} that would be cast: {', '.join(kinds)}"]

    def numeric_findings(self, plan: ConversionPlan) -> list[Finding]:
        found = []
        for job in plan.jobs:
            stats = self.stats.get(job.id)
            name = escape(job.source)
            if job.id in self.misfits:
                what = f"{self.misfits[job.id]}; it stays {job.target.name}"
                found.append(_finding("CKA301", what, name))
            elif stats is not None and stats.overflowed:
                weights = counted(stats.overflowed, "weight")
                what = f"{weights} clamped to the range of {job.target.name}"
                found.append(_finding("CKA301", what, name))
        held = ((job.source, self.stats[job.id]) for job in plan.jobs if job.id in self.stats)
        without_infinity = {job.source for job in plan.jobs if job.target.name == "float8_e4m3fn"}
        return [
            *found,
            *counted_ailments(self.basis.meaning, held, without_infinity),
            *averaged_alike(*self.averages_alike(plan)),
        ]

    def averages_alike(self, plan: ConversionPlan) -> tuple[list[str], int]:
        """Keys of averaged copies known to be their weights; how many there are, biases left out.

        That is known where both are wanted and equal ones are stored once.
        """
        holders = {placement.name: placement.key for placement in self.basis.meaning.placements}
        weights = {
            placement.key: placement.of
            for placement in self.basis.meaning.placements
            if placement.component is Component.EMA and placement.of in holders
            if not placement.of.endswith("bias")
        }
        stored_as = {alias.source: alias.of for alias in plan.aliases}
        equal = [
            key
            for key, weight in weights.items()
            if stored_as.get(key) in {weight, holders[weight]}
        ]
        left_out = {drop.source for drop in plan.drops}
        return equal, len(weights.keys() - left_out)


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


def _finding(rule_id: str, message: str, record: str) -> Finding:
    rule = RULES[rule_id]
    return Finding(rule.id, rule.severity, message, record, None)
