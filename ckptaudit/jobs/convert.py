"""`convert`: a checkpoint in, deduplicated safetensors and an account of every tensor out.

Knows:      how reader, policy, plan, cast and writer meet.
Is told:    a path, a destination and the user's options.
Never asks: how its answer is shown.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckptaudit import __version__
from ckptaudit.errors import MalformedInput, OutputFailed, Refused
from ckptaudit.jobs.inspect import Meaning, meaning_of
from ckptaudit.jobs.opening import Opened, hash_of, notes_on, opened
from ckptaudit.jobs.stream import digest_of, stream
from ckptaudit.layouts import Component
from ckptaudit.plan import (
    METADATA_PREFIX,
    ConversionPlan,
    Ema,
    OnOverflow,
    Options,
    TensorJob,
    comparable_groups,
    make_plan,
)
from ckptaudit.policy import RULES, Coverage, Finding, Judgement, Severity, judge
from ckptaudit.tensors import find_state_dict, misfits
from ckptaudit.vm import escape
from ckptaudit.writer import Draft, Slot, check_destination, header_of, path_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

    from ckptaudit.containers import Container, Kind
    from ckptaudit.jobs.stream import Sink
    from ckptaudit.layouts import ComponentCount
    from ckptaudit.numerics import TensorStats
    from ckptaudit.tensors import Leftover, StateDict

__all__ = [
    "METADATA_PREFIX",
    "AliasEntry",
    "Conversion",
    "DropEntry",
    "Output",
    "Source",
    "TensorEntry",
    "convert",
    "plan_for",
]

# As long as any: what a header takes does not depend on which hash is in it.
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class Source:
    """The file that was converted.

    Attributes:
        path: As it was named.
        size: Bytes.
        sha256: Of the whole file, in hexadecimal; None if it was not wanted.
        container: Its framing.
        state_dict: Where in the pickle the weights were found; "" is the root.
        verdict: What a scan thinks of it.
        coverage: Whether all of it was read.
    """

    path: str
    size: int
    sha256: str | None
    container: Kind
    state_dict: str
    verdict: Severity
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class Output:
    """A file that was written, or would be.

    Attributes:
        path: Where.
        size: Bytes.
        sha256: Of the whole file, read back after writing; None in a dry run or if not wanted.
    """

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor that was written, or would be.

    Attributes:
        name: What it is called in the output.
        file: Name of the output file it is in.
        source: Its key in the source.
        component: What part of the model it is.
        op: What was done to its shape.
        rows: Which rows of the source were taken, or None for all.
        source_dtype: torch's name of its type in the source.
        dtype: torch's name of its type in the output.
        shape: Elements per dimension, in the output.
        stats: What it holds and what the cast cost; None in a dry run.
    """

    name: str
    file: str
    source: str
    component: Component
    op: str
    rows: tuple[int, int] | None
    source_dtype: str
    dtype: str
    shape: tuple[int, ...]
    stats: TensorStats | None


@dataclass(frozen=True, slots=True)
class AliasEntry:
    """A name that is not written, because *of* has the same bytes.

    Attributes:
        name: The name left out.
        of: The name under which the bytes are.
        source: The key left out.
    """

    name: str
    of: str
    source: str


@dataclass(frozen=True, slots=True)
class DropEntry:
    """A tensor of the source that is not written.

    Attributes:
        source: Its key, or where in the pickle it stands if it is outside the state dict.
        what: Its type and shape.
        reason: Why.
    """

    source: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """The account of a conversion: every tensor of the source is in it exactly once.

    Attributes:
        source: The file that was converted.
        written: False in a dry run: then it says what would be.
        family: Name of the model family, or ``unknown``.
        variant: Which variant of it, or None.
        evidence: What the family was recognised by.
        options: What was asked for.
        components: What is there, missing and unexpected, component by component.
        outputs: The files written.
        tensors: In the order of the data in the output.
        aliases: Names stored under another.
        dropped: Tensors not written.
        leftovers: Values of the source that are no tensors.
        findings: What the scan found, and what became of weights that did not fit.
        notes: What is worth knowing besides.
    """

    source: Source
    written: bool
    family: str
    variant: str | None
    evidence: tuple[str, ...]
    options: Options
    components: tuple[ComponentCount, ...]
    outputs: tuple[Output, ...]
    tensors: tuple[TensorEntry, ...]
    aliases: tuple[AliasEntry, ...]
    dropped: tuple[DropEntry, ...]
    leftovers: tuple[Leftover, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def convert(
    path: str | PathLike[str],
    output: str | PathLike[str],
    options: Options | None = None,
    *,
    with_hash: bool = True,
    overwrite: bool = False,
    allow_unsafe: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Conversion:
    """Convert the checkpoint at *path* into the safetensors file *output*.

    Args:
        path: The checkpoint.
        output: The file to write; it appears under this name only when it is whole.
        options: What to do with weights, copies and names.
        with_hash: Compute the SHA-256 of source and output.
        overwrite: Replace *output* if it is there.
        allow_unsafe: Convert a file that a scan distrusts or could not read completely;
            nothing of it is executed all the same.
        dry_run: Write nothing; the result says what would be written.
        progress: Told bytes of weights done, and in all.

    Raises:
        Refused: The scan distrusts the file, or a weight overflows under ``--on-overflow error``.
        OutputExists, OutputFailed: The output cannot be written.
        CkptauditError: The source cannot be read completely, or changed meanwhile.
    """
    options = options or Options()
    target = Path(output)
    with opened(path, with_hash=with_hash and not dry_run) as file:
        # A dry run, too, is refused what the conversion would be.
        _check_target(target, path, overwrite=overwrite or dry_run)
        judgement = judge(file.container, misfits(file.container))
        if not allow_unsafe:
            _refuse_unsafe(file.container, judgement)
        run = _Run(file, target, options, judgement, progress)
        if dry_run:
            return run.dry(with_hash=with_hash)
        return run.write(with_hash=with_hash, overwrite=overwrite)


def plan_for(
    container: Container, state_dict: StateDict, meaning: Meaning, options: Options
) -> Callable[[Mapping[str, str]], ConversionPlan]:
    """Everything `make_plan` wants but the tensors that do not fit, which it is given last."""
    groups = comparable_groups(state_dict, meaning.detection, meaning.placements, options)
    views = {view.key: view for group in groups for view in group}
    digests = {key: digest_of(container, view) for key, view in views.items()}

    def plan(unfit: Mapping[str, str]) -> ConversionPlan:
        return make_plan(
            state_dict,
            meaning.detection,
            meaning.placements,
            options,
            unfit=unfit,
            digests=digests,
        )

    return plan


def _check_target(target: Path, source: str | PathLike[str], *, overwrite: bool) -> None:
    """Refuse a destination that cannot be written, or that is the source itself."""
    check_destination(target, overwrite=True)
    if target.exists() and target.samefile(source):
        raise OutputFailed(
            f"{path_text(target)}: is the source itself, which is never written; "
            "name another output with -o"
        )
    check_destination(target, overwrite=overwrite)


def _refuse_unsafe(container: Container, judgement: Judgement) -> None:
    name = container.source.name
    if judgement.verdict >= Severity.SUSPICIOUS:
        worst = max(judgement.findings, key=lambda finding: finding.severity.rank)
        raise Refused(
            f"{name}: is {judgement.verdict.value} ({worst.message}); "
            "`ckptaudit scan` says more, --allow-unsafe converts it all the same"
        )
    if not judgement.coverage.complete:
        raise MalformedInput(
            f"could not be read completely ({judgement.coverage.gaps[0]}); "
            "--allow-unsafe converts what could",
            where=name,
        )


class _Run:
    """One conversion."""

    def __init__(
        self,
        file: Opened,
        target: Path,
        options: Options,
        judgement: Judgement,
        progress: Callable[[int, int], None],
    ) -> None:
        self.file = file
        self.target = target
        self.options = options
        self.judgement = judgement
        self.progress = progress
        self.state_dict = find_state_dict(file.container)
        self.meaning = meaning_of(self.state_dict)
        self.plan_with = plan_for(file.container, self.state_dict, self.meaning, options)
        self.stats: dict[str, TensorStats] = {}
        # By source key, why a tensor is not cast.
        self.unfit: dict[str, str] = {}

    def dry(self, *, with_hash: bool) -> Conversion:
        plan = self.plan_with({})
        size = len(self.header(plan, _NO_HASH if with_hash else None)) + plan.nbytes
        self.file.finish()
        output = Output(path_text(self.target), size, None)
        return self.result(plan, output, None, written=False)

    def write(self, *, with_hash: bool, overwrite: bool) -> Conversion:
        output = None
        while output is None:
            # Which tensors stay as they are decides where every other one lies; they are
            # known after one attempt, which then writes nothing.
            plan = self.plan_with(self.unfit)
            output = self.attempt(plan, with_hash=with_hash, overwrite=overwrite)
        return self.result(plan, output, self.file.digest(), written=True)

    def attempt(self, plan: ConversionPlan, *, with_hash: bool, overwrite: bool) -> Output | None:
        """Write the file that *plan* describes.

        Returns:
            What was written; None if nothing was, because there are weights that do not fit
            and the plan did not know of: `unfit` has more of them than before.
        """
        known = len(self.unfit)
        length = len(self.header(plan, _NO_HASH if with_hash else None))
        with Draft(self.target, length + plan.nbytes) as draft:
            self.cast(plan, _DraftSink(draft, length, lambda: len(self.unfit) == known))
            if len(self.unfit) > known:
                return None
            draft.write_at(0, self.header(plan, self.file.finish()))
            draft.check_opens()
            digest = hash_of(draft.read_into, draft.size) if with_hash else None
            draft.publish(overwrite=overwrite)
            return Output(path_text(self.target), draft.size, digest)

    def cast(self, plan: ConversionPlan, sink: Sink) -> None:
        total = sum(job.view.nbytes for job in plan.jobs)
        done = 0

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            self.progress(done, total)

        clamp = self.options.on_overflow is OnOverflow.CLAMP
        done_jobs = stream(
            self.file.container,
            plan.jobs,
            sink,
            clamp=clamp,
            progress=advance,
            started=self.file.start_hashing,
        )
        # Closed, so that no thread writes any more when the draft is discarded.
        with closing(done_jobs):
            for job, stats in done_jobs:
                self.stats[job.source] = stats
                if stats.overflowed and not clamp:
                    self.misfit(job, stats)

    def misfit(self, job: TensorJob, stats: TensorStats) -> None:
        what = (
            f"{stats.overflowed} of {stats.numel} weights do not fit {job.target.name} "
            f"(they span {stats.min:g} to {stats.max:g})"
        )
        if self.options.on_overflow is OnOverflow.ERROR:
            raise Refused(
                f"{self.file.container.source.name}: {escape(job.source)}: {what}; "
                "--on-overflow keep leaves such tensors as they are"
            )
        self.unfit[job.source] = what

    def header(self, plan: ConversionPlan, digest: str | None) -> bytes:
        metadata = {
            "format": "pt",
            f"{METADATA_PREFIX}version": __version__,
            f"{METADATA_PREFIX}options": json.dumps(asdict(self.options), sort_keys=True),
        }
        if digest is not None:
            metadata[f"{METADATA_PREFIX}source_sha256"] = digest
        aliases = {alias.name: alias.of for alias in plan.aliases}
        slots = (
            Slot(job.name, job.target, job.view.shape, job.offset, job.nbytes) for job in plan.jobs
        )
        return header_of(slots, {**aliases, **metadata})

    def result(
        self, plan: ConversionPlan, output: Output, digest: str | None, *, written: bool
    ) -> Conversion:
        container = self.file.container
        return Conversion(
            source=Source(
                path=container.source.name,
                size=container.source.size,
                sha256=digest,
                container=container.kind,
                state_dict=self.state_dict.path,
                verdict=self.judgement.verdict,
                coverage=self.judgement.coverage,
            ),
            written=written,
            family=self.meaning.detection.family,
            variant=self.meaning.detection.variant,
            evidence=self.meaning.detection.evidence,
            options=self.options,
            components=self.meaning.components,
            outputs=(output,),
            tensors=tuple(self.entry(job) for job in plan.jobs),
            aliases=tuple(AliasEntry(alias.name, alias.of, alias.source) for alias in plan.aliases),
            dropped=tuple(DropEntry(drop.source, drop.what, drop.reason) for drop in plan.drops),
            leftovers=plan.leftovers,
            findings=(*self.judgement.findings, *self.numeric_findings(plan)),
            notes=(*notes_on(container), *self.empty_notes(), *self.ema_notes(plan)),
        )

    def entry(self, job: TensorJob) -> TensorEntry:
        return TensorEntry(
            name=job.name,
            file=path_text(Path(self.target.name)),
            source=job.source,
            component=job.component,
            op="identity",
            rows=None,
            source_dtype=job.view.dtype.name,
            dtype=job.target.name,
            shape=job.view.shape,
            stats=self.stats.get(job.source),
        )

    def empty_notes(self) -> list[str]:
        """Say so where there was nothing to convert."""
        return [] if self.state_dict.views else ["holds no tensors that can be converted"]

    def ema_notes(self, plan: ConversionPlan) -> list[str]:
        """Say so where averaged copies were asked for and weights have none."""
        if self.options.ema is not Ema.USE:
            return []
        if not any(job.component is Component.EMA for job in plan.jobs):
            return ["holds no averaged (EMA) copies: the weights themselves are written"]
        without = sum(job.component is Component.UNET for job in plan.jobs)
        if not without:
            return []
        return [f"{without} weights of the unet have no averaged copy and are written themselves"]

    def numeric_findings(self, plan: ConversionPlan) -> list[Finding]:
        found = []
        for job in plan.jobs:
            stats = self.stats.get(job.source)
            name = escape(job.source)
            if job.source in self.unfit:
                what = f"{self.unfit[job.source]}; it stays {job.target.name}"
                found.append(_finding("CKA301", what, name))
            elif stats is not None and stats.overflowed:
                what = f"{stats.overflowed} weights were clamped to the range of {job.target.name}"
                found.append(_finding("CKA301", what, name))
            if stats is not None and stats.nan + stats.inf:
                what = f"holds {stats.nan} NaN and {stats.inf} infinite values, which stay"
                found.append(_finding("CKA302", what, name))
        return found


@dataclass(frozen=True, slots=True)
class _DraftSink:
    """Puts blocks where the plan says, for as long as they are *wanted*."""

    draft: Draft
    start: int
    wanted: Callable[[], bool]

    def position(self, job: TensorJob, first: int) -> int:
        return self.start + job.offset + first * job.target.itemsize

    def take(self, job: TensorJob, first: int, data: memoryview) -> None:
        if self.wanted():
            self.draft.write_at(self.position(job, first), data)

    def tally(self) -> Mapping[str, int]:
        return {}

    def recall(self, tally: Mapping[str, int]) -> None:
        pass


def _finding(rule_id: str, message: str, record: str) -> Finding:
    rule = RULES[rule_id]
    return Finding(rule.id, rule.severity, message, record, None)
