"""The account of a conversion: where every tensor of the source went, and what it cost.

Knows:      what a conversion has to say.
Is told:    all of it, by `writing`.
Never asks: how it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.jobs.opening import File

if TYPE_CHECKING:
    from ckptaudit.containers import Kind
    from ckptaudit.jobs.sizes import Sizes
    from ckptaudit.layouts import Component, ComponentCount
    from ckptaudit.numerics import TensorStats
    from ckptaudit.plan import Alias, Drop, Options
    from ckptaudit.policy import Coverage, Finding, Permitted, Severity
    from ckptaudit.tensors import Leftover

__all__ = ["Conversion", "Source", "TensorEntry", "VaeSource"]


@dataclass(frozen=True, slots=True)
class Source(File):
    """The file that was converted.

    Attributes:
        container: Its framing.
        state_dict: Where in the pickle the weights were found; "" is the root.
        verdict: What a scan thinks of it.
        coverage: Whether all of it was read.
    """

    container: Kind
    state_dict: str
    verdict: Severity
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class VaeSource(Source):
    """The file whose VAE took the place of the source's.

    Attributes:
        family: Name of the model family it is of, or of the part of it that is a VAE.
        variant: Which variant of it, or None.
        evidence: What the family was recognised by.
        leftovers: Its values that are no tensors.
        findings: What the scan found in it.
        permitted: What the policy permits of that.
    """

    family: str
    variant: str | None
    evidence: tuple[str, ...]
    leftovers: tuple[Leftover, ...]
    findings: tuple[Finding, ...]
    permitted: tuple[Permitted, ...]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor that was written, or would be.

    Attributes:
        name: What it is called in the output.
        file: Path of the output file it is in, from where the output lies.
        source: Its key in the source.
        origin: Path of the file that *source* is a key of, if that is not the source: that of
            `VaeSource`.
        component: What part of the model it is.
        op: What was done to its shape.
        rows: Half-open range of rows: of the source, those that were taken where *op* is
            ``rows``; of the output, those that it fills where *op* is ``join``; else None.
        source_dtype: torch's name of its type in the source.
        dtype: torch's name of its type in the output.
        shape: Elements per dimension, as they were written; where *op* is ``join``, of its rows.
        stats: What it holds and what the cast cost; None in a dry run.
        why: What spoke against the types that ``--precision auto`` prefers to this one; None
            where it was the first, or was not chosen.
    """

    name: str
    file: str
    source: str
    origin: str | None
    component: Component
    op: str
    rows: tuple[int, int] | None
    source_dtype: str
    dtype: str
    shape: tuple[int, ...]
    stats: TensorStats | None
    why: str | None


@dataclass(frozen=True, slots=True)
class Conversion:
    """The account of a conversion: every tensor of its sources is in it exactly once.

    One that is written in pieces has an entry for each piece.

    Attributes:
        source: The file that was converted.
        vae_source: The file whose VAE took the place of its own; None if there is none.
        written: False in a dry run: then it says what would be.
        family: Name of the model family, or ``unknown``.
        variant: Which variant of it, or None.
        evidence: What the family was recognised by.
        prediction: What the denoiser predicts, ``epsilon`` or ``v_prediction``; None where there
            is none.
        options: What was asked for.
        components: What is there, missing and unexpected, component by component.
        sizes: What its parts take, before and after, and why that is less.
        outputs: The files written, their hashes read back after writing; a dry run has none.
        tensors: In the order of the data in the output.
        aliases: Names stored under another.
        dropped: Tensors not written.
        leftovers: Values of the source that are no tensors.
        modelspec: The ModelSpec metadata of the output, by key; None where none were wanted.
        findings: What the scan found, and what became of weights that did not fit.
        permitted: What the policy permits of what the scan found.
        notes: What is worth knowing besides.
    """

    source: Source
    vae_source: VaeSource | None
    written: bool
    family: str
    variant: str | None
    evidence: tuple[str, ...]
    prediction: str | None
    options: Options
    components: tuple[ComponentCount, ...]
    sizes: Sizes
    outputs: tuple[File, ...]
    tensors: tuple[TensorEntry, ...]
    aliases: tuple[Alias, ...]
    dropped: tuple[Drop, ...]
    leftovers: tuple[Leftover, ...]
    modelspec: dict[str, str] | None
    findings: tuple[Finding, ...]
    permitted: tuple[Permitted, ...]
    notes: tuple[str, ...]
