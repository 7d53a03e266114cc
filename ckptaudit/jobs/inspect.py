"""`inspect`: what is in this file?

Knows:      how state dict, layouts and policy meet.
Is told:    a path, and what earlier files of a run hold.
Never asks: how weights are hashed and measured (`measuring`, which is loaded when they are).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ckptaudit.jobs.contents import averages_alike, contents_of, units_of
from ckptaudit.jobs.health import averaged_alike, counted_ailments, damaged_ids, health_of
from ckptaudit.jobs.identity import Known, identity_of
from ckptaudit.jobs.measures import by_part
from ckptaudit.jobs.opening import File, Folders, notes_on, opened
from ckptaudit.jobs.planning import meaning_of, prediction_of
from ckptaudit.jobs.risks import risks_of
from ckptaudit.jobs.sizes import sizes_of
from ckptaudit.jobs.small import std_of
from ckptaudit.policy import judge
from ckptaudit.tensors import find_state_dict, misfits

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from ckptaudit.containers import Kind
    from ckptaudit.jobs.identity import Identity, Twin
    from ckptaudit.jobs.measures import Measured, PartMeasure
    from ckptaudit.jobs.risks import Risk
    from ckptaudit.jobs.sizes import Sizes
    from ckptaudit.layouts import Component, ComponentCount
    from ckptaudit.policy import Coverage, Finding, Severity
    from ckptaudit.tensors import Leftover

__all__ = ["InspectedTensor", "Inspection", "inspect"]


@dataclass(frozen=True, slots=True)
class InspectedTensor:
    """One tensor of the state dict.

    Attributes:
        key: Its key, verbatim.
        component: What part of the model it is.
        dtype: torch's name of its element type.
        shape: Elements per dimension.
        nbytes: Bytes of its elements, each counted once per name.
        stats: What it holds and what casts would make of it; None if that was not wanted.
    """

    key: str
    component: Component
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    stats: Measured | None


@dataclass(frozen=True, slots=True)
class Inspection(File):
    """What is in a file.

    Attributes:
        container: Its framing.
        verdict: What a scan thinks of it.
        coverage: Whether all of it was read.
        state_dict: Where in the pickle the weights were found; "" is the root.
        family: Name of the model family, or ``unknown``.
        variant: Which variant of it, or None.
        evidence: What the family was recognised by.
        prediction: What the denoiser predicts, ``epsilon`` or ``v_prediction``; None where there
            is none.
        components: What is there, missing and unexpected, component by component.
        tensors: In the file's order.
        leftovers: What else the file holds.
        sizes: What its parts take.
        stats: What its components hold, in the order of `Component`; empty if that was not wanted.
        risks: Tensors that fp16 would do harm to or bf16 do better; empty without statistics.
        identity: The hashes by which it and its parts are known; None if they were not wanted.
        twins: Components that an earlier file of the run has as well.
        findings: What ails the model, as far as keys, shapes and types show; with hashes, what
            its weights show too.
        notes: What is worth knowing besides.
    """

    container: Kind
    verdict: Severity
    coverage: Coverage
    state_dict: str
    family: str
    variant: str | None
    evidence: tuple[str, ...]
    prediction: str | None
    components: tuple[ComponentCount, ...]
    tensors: tuple[InspectedTensor, ...]
    leftovers: tuple[Leftover, ...]
    sizes: Sizes
    stats: tuple[PartMeasure, ...]
    risks: tuple[Risk, ...]
    identity: Identity | None
    twins: tuple[Twin, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def inspect(
    path: str | PathLike[str],
    *,
    with_hash: bool = True,
    with_stats: bool = False,
    known: Known | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Inspection:
    """Say what is in the file; with neither hash nor statistics next to no weight is read for it.

    That is one vector of Stable Diffusion 2, which hints at what the model predicts, and what
    text encoders number their tokens by.

    Args:
        path: The file, or the folder of a diffusers model.
        with_hash: Read all of it, once, for its SHA-256 and for hashes of its components.
        with_stats: Measure all weights, and what fp16 and bf16 would make of them.
        known: What earlier files were found to hold, to tell which components are the same.
        progress: Told bytes of weights done, and in all.

    Raises:
        CkptauditError: There is no answer.
    """
    with opened(path, with_hash=with_hash, folders=Folders.MODEL, with_data_hash=True) as file:
        container = file.container
        judgement = judge(container, misfits)
        state_dict = find_state_dict(container)
        meaning = meaning_of(state_dict)
        std = partial(std_of, container)
        prediction, hints = prediction_of(meaning, state_dict, std)
        findings = health_of(state_dict, meaning, damaged_ids(container, state_dict))
        identity, measured = None, None
        if with_hash or with_stats:
            # Only now, when the hash has begun: to load numpy takes a tenth of a second.
            from ckptaudit.jobs.measuring import measure  # noqa: PLC0415

            units = units_of(state_dict, meaning)
            found = measure(
                container,
                units,
                with_hash=with_hash,
                with_casts=with_stats,
                beside=file.cores_taken,
                progress=progress,
            )
            held = ((key, each.held) for key, each in found.tensors.items())
            findings += counted_ailments(meaning, held)
            measured = found.tensors if with_stats else None
            if found.digests is not None:
                findings += averaged_alike(*averages_alike(units, found.digests))
                contents = contents_of(units, found.digests)
                identity = identity_of(container, file.digest(), file.data_digest(), contents)
        digest = file.finish()
        name = container.source.name
        return Inspection(
            path=name,
            size=container.source.size,
            sha256=digest,
            container=container.kind,
            verdict=judgement.verdict,
            coverage=judgement.coverage,
            state_dict=state_dict.path,
            family=meaning.detection.family,
            variant=meaning.detection.variant,
            evidence=(*meaning.detection.evidence, *hints),
            prediction=prediction,
            components=meaning.components,
            tensors=tuple(
                InspectedTensor(
                    view.key,
                    placement.component,
                    view.dtype.name,
                    view.shape,
                    view.nbytes,
                    None if measured is None else measured[view.key],
                )
                for view, placement in zip(state_dict.views, meaning.placements, strict=True)
            ),
            leftovers=state_dict.leftovers,
            sizes=sizes_of(state_dict, meaning),
            stats=() if measured is None else by_part(meaning.placements, measured),
            risks=() if measured is None else tuple(risks_of(meaning.placements, measured)),
            identity=identity,
            twins=() if known is None or identity is None else known.twins(name, identity.contents),
            findings=tuple(findings),
            notes=notes_on(container),
        )
