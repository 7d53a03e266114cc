"""One conversion as it was asked for and understood, before a weight is read.

Knows:      what belongs together of it: its files, the options, what the model is, and what the
            outputs are called.
Is told:    files that may be converted, a destination and the user's options.
Never asks: how weights get from one file to the other (`writing`), what came of it (`accounting`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ckptaudit.jobs.baking import basis_under
from ckptaudit.jobs.planning import prediction_of, texts_of
from ckptaudit.jobs.small import std_of
from ckptaudit.source import path_text

if TYPE_CHECKING:
    from ckptaudit.jobs.basis import Basis
    from ckptaudit.jobs.opening import Judged
    from ckptaudit.layouts import Detection
    from ckptaudit.plan import ConversionPlan, Options

__all__ = ["Case", "Digests", "case_of"]


class Digests(NamedTuple):
    """SHA-256 of the source and of the file its VAE is from, where wanted."""

    source: str | None
    vae: str | None


@dataclass(frozen=True, slots=True)
class Case:
    """One conversion.

    Attributes:
        source: The checkpoint, open; it may be converted.
        vae_source: The file whose VAE takes the place of the checkpoint's, open likewise.
        target: Where the output appears when it is whole.
        options: What to do with weights, copies and names.
        basis: What a plan is made of.
        prediction: What the denoiser predicts; None where there is none.
        hints: What that rests on where it is a guess.
    """

    source: Judged
    vae_source: Judged | None
    target: Path
    options: Options
    basis: Basis
    prediction: str | None
    hints: tuple[str, ...]

    @property
    def name(self) -> str:
        """What errors call the checkpoint."""
        return self.source.file.container.source.name

    @property
    def detection(self) -> Detection:
        """What the model is."""
        return self.basis.meaning.detection

    @property
    def cores_taken(self) -> int:
        """Processes that hash beside the job, each of which keeps a core busy."""
        beside = self.vae_source.file.cores_taken if self.vae_source is not None else 0
        return self.source.file.cores_taken + beside

    def finish(self) -> Digests:
        """Wait for the hashes of both files, which must not have changed.

        Raises:
            SourceChanged: One has.
        """
        for judged in (self.source, self.vae_source):
            if judged is not None:
                judged.file.finish()
        return self.digests()

    def digests(self) -> Digests:
        """Wait for the hashes of both files."""
        vae = None if self.vae_source is None else self.vae_source.file.digest()
        return Digests(self.source.file.digest(), vae)

    def texts(self, plan: ConversionPlan) -> dict[str, bytes]:
        """The JSON files of a folder, by path in it."""
        return texts_of(self.detection, self.prediction, plan, self.options)

    def within(self, file: str) -> str:
        """What *file* of a plan is called in the folder that is written; "" without one.

        A part keeps the name of the whole: InvokeAI tells by it whose an autoencoder is.
        """
        return f"{self.target.name}.{file}.safetensors" if self.options.split else file

    def path_of(self, file: str) -> str:
        """The path of *file* of a plan, or of a folder's settings."""
        return path_text(self.target / self.within(file))

    def shown(self, file: str) -> str:
        """What a line of the report calls *file* of a plan."""
        return path_text(Path(self.target.name) / self.within(file))


def case_of(source: Judged, vae_source: Judged | None, target: Path, options: Options) -> Case:
    """Understand what *options* make of *source*; see `Case`.

    Raises:
        CkptauditError: That cannot be made of it.
    """
    vae = None if vae_source is None else vae_source.file.container
    basis = basis_under(options, source.file.container, vae)
    std = partial(std_of, basis.container)
    prediction, hints = prediction_of(basis.meaning, basis.state_dict, std)
    return Case(source, vae_source, target, options, basis, prediction, hints)
