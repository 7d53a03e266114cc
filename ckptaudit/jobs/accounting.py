"""What a conversion has to say of itself: every tensor, every finding, everything worth knowing.

Knows:      what of all that is worth a line.
Is told:    a conversion as it was understood, and what was learned on the way.
Never asks: how weights get from one file to the other (`writing`), how the answer is shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ckptaudit.jobs.account import Conversion, Source, TensorEntry
from ckptaudit.jobs.baking import account_of, notes_on_vae
from ckptaudit.jobs.basis import from_where
from ckptaudit.jobs.case import Digests
from ckptaudit.jobs.found import found_by
from ckptaudit.jobs.opening import notes_on
from ckptaudit.jobs.sizes import sizes_by
from ckptaudit.layouts import Component
from ckptaudit.plan import CANDIDATES, FALLBACK, Ema, Layout, Precision
from ckptaudit.source import path_text
from ckptaudit.vm import escape
from ckptaudit.wording import counted, first_and_others

if TYPE_CHECKING:
    from ckptaudit.jobs.case import Case
    from ckptaudit.jobs.opening import File
    from ckptaudit.jobs.stream import JobId
    from ckptaudit.plan import Choice, ConversionPlan, TensorJob
    from ckptaudit.stats import TensorStats

__all__ = ["Accounting", "Learned"]


@dataclass(slots=True)
class Learned:
    """What is learned on the way.

    Attributes:
        stats: What was counted, by job; empty if nothing was read.
        chosen: By file and name of the output, the type that its weights ask for.
        misfits: By job, why a tensor is not cast; of a tensor of several parts, maybe one.
        stale: Files of an earlier conversion that go, where its folder is overwritten.
        modelspec: What the header says by the ModelSpec; None where that is not wanted.
    """

    stats: dict[JobId, TensorStats] = field(default_factory=dict)
    chosen: dict[tuple[str, str], Choice] = field(default_factory=dict)
    misfits: dict[JobId, str] = field(default_factory=dict)
    stale: tuple[str, ...] = ()
    modelspec: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Accounting:
    """The account of one conversion.

    Attributes:
        case: The conversion.
        learned: What was learned on the way.
    """

    case: Case
    learned: Learned

    def conversion(
        self,
        plan: ConversionPlan,
        outputs: tuple[File, ...],
        digests: Digests,
        *,
        written: bool,
    ) -> Conversion:
        """Account for *plan*, of which *outputs* were written, or would be."""
        container, judgement = self.case.source.file.container, self.case.source.judgement
        # A dry run may know a hash that a policy asked for, but promises none.
        digests = digests if written else Digests(None, None)
        return Conversion(
            source=Source(
                path=container.source.name,
                size=container.source.size,
                sha256=digests.source,
                container=container.kind,
                state_dict=self.case.basis.state_dict.path,
                verdict=judgement.verdict,
                coverage=judgement.coverage,
            ),
            vae_source=account_of(self.case.vae_source, self.case.basis.vae, digests.vae),
            written=written,
            family=self.case.detection.family,
            variant=self.case.detection.variant,
            evidence=(*self.case.detection.evidence, *self.case.hints),
            prediction=self.case.prediction,
            options=self.case.options,
            components=self.case.basis.meaning.components,
            sizes=sizes_by(plan, self.case.basis),
            outputs=outputs,
            tensors=tuple(self._entry(job) for job in plan.jobs),
            aliases=tuple(
                replace(from_where(alias, self.case.basis), file=self.case.shown(alias.file))
                for alias in plan.aliases
            ),
            dropped=tuple(from_where(drop, self.case.basis) for drop in plan.drops),
            leftovers=plan.leftovers,
            modelspec=self.learned.modelspec,
            findings=(
                *judgement.findings,
                *self.case.basis.health(),
                *found_by(plan, self.case.basis.meaning, self.learned.stats, self.learned.misfits),
            ),
            permitted=judgement.permitted,
            notes=(
                *notes_on(container),
                *notes_on_vae(self.case.vae_source, self.case.basis.vae),
                *self._empty_notes(plan),
                *self._ema_notes(plan),
                *self._vae_notes(plan),
                *self._type_notes(),
                *self._folder_notes(plan),
                *self._guesses(),
                *self._stale_notes(written=written),
                *self._dry_notes(written=written),
            ),
        )

    def _entry(self, job: TensorJob) -> TensorEntry:
        origin, source = self.case.basis.whence(job.source)
        return TensorEntry(
            name=job.name,
            file=self.case.shown(job.file),
            source=source,
            origin=origin,
            component=job.component,
            op=job.op,
            rows=job.rows,
            source_dtype=job.view.dtype.name,
            dtype=job.target.name,
            shape=job.view.shape,
            stats=self.learned.stats.get(job.id),
            why=choice.why if (choice := self._choice(job)) is not None else None,
        )

    def _choice(self, job: TensorJob) -> Choice | None:
        """The type that the weights asked for, if *job* got it."""
        choice = self.learned.chosen.get((job.file, job.name))
        return choice if choice is not None and choice.dtype is job.target else None

    def _empty_notes(self, plan: ConversionPlan) -> list[str]:
        """Say so where there was nothing to convert, or nothing is left of it."""
        if not self.case.basis.state_dict.views:
            return ["holds no tensors that can be converted"]
        return [] if plan.jobs else ["every tensor is left out: there is none in the output"]

    def _folder_notes(self, plan: ConversionPlan) -> list[str]:
        """Say what a folder lacks without which it does not open, or opens and goes wrong."""
        if self.case.options.layout is not Layout.DIFFUSERS:
            return []
        found = self.case.detection
        absent = found.absent_from_folder(output.file for output in plan.outputs)
        notes = [
            f"the folder has no {each.value}: give from_pretrained one, {each.value}=..., or None"
            for each in absent
        ]
        if marks := found.marks_of_noise(drop.source for drop in plan.drops):
            told = ", ".join(marks)
            notes.append(
                f"{told}: by such marks a model is made for other noise than that of the folder's "
                "scheduler, which is the family's: give from_pretrained scheduler=..."
            )
        if found.named_in_folder:
            # transformers 5 makes a tokenizer that knows two words where the files are missing.
            arguments = ", ".join(f"{name}=..." for name in found.named_in_folder)
            notes.append(
                f"no checkpoint has {', '.join(found.named_in_folder)}: bring the files, or give "
                f"from_pretrained {arguments}; without, it may open and not understand a word"
            )
        return notes

    def _guesses(self) -> tuple[str, ...]:
        """Say what is a guess and stands in a folder's settings as if it were known."""
        if self.case.options.layout is not Layout.DIFFUSERS:
            return ()
        guess = self.case.detection.guess
        return (*self.case.hints, guess) if guess else self.case.hints

    def _stale_notes(self, *, written: bool) -> list[str]:
        """Say which files of an earlier conversion have no successor."""
        if not self.learned.stale:
            return []
        verb = "were" if written else "would be"
        first = escape(path_text(self.learned.stale[0]))
        which = first_and_others(first, len(self.learned.stale))
        return [f"files of an earlier conversion {verb} removed: {which}"]

    def _dry_notes(self, *, written: bool) -> list[str]:
        """Say what a dry run cannot know."""
        if written:
            return []
        if self.case.options.precision is Precision.AUTO:
            notes = [
                "weights were read to choose types; what float32 cannot hold would stay as it is"
            ]
        else:
            unread = "a tensor that does not fit its new type would stay as it is"
            notes = [f"no weight was read: {unread}"]
        if self.case.target.exists():
            notes.append("the output exists: it is written only where it may be overwritten")
        return notes

    def _ema_notes(self, plan: ConversionPlan) -> list[str]:
        """Say so where averaged copies were asked for and weights have none."""
        if self.case.options.ema is not Ema.USE:
            return []
        if not any(job.component is Component.EMA for job in plan.jobs):
            return ["holds no averaged (EMA) copies: the weights themselves are written"]
        without = sum(job.component is Component.UNET for job in plan.jobs)
        if not without:
            return []
        return [f"no averaged copy of {counted(without, 'weight')} of the unet: written as trained"]

    def _vae_notes(self, plan: ConversionPlan) -> list[str]:
        """Say so where a VAE was spared a type in which it cannot run."""
        options = self.case.options
        spared = [
            job
            for job in plan.jobs
            if job.component is Component.VAE and job.target.name == "float32"
        ]
        if not (options.spares_fragile_vae and self.case.detection.vae_overflows and spared):
            return []
        why = "in fp16 this family's overflows while it runs, and images turn black"
        return [f"the VAE stays float32: {why}; --vae convert casts it"]

    def _type_notes(self) -> list[str]:
        """Say how many tensors got another type than the first, where it was left to them."""
        if self.case.options.precision is not Precision.AUTO:
            return []
        chosen = Counter(choice.dtype.name for choice in self.learned.chosen.values())
        kinds = [f"{chosen[dtype.name]} {dtype.name}" for dtype in (*CANDIDATES, FALLBACK)]
        tensors = counted(len(self.learned.chosen), "tensor")
        return [f"--precision auto, of {tensors} that would be cast: {', '.join(kinds)}"]
