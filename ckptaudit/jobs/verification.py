"""The answer of `verify`: what became of every tensor, and whether all of it is right.

Knows:      what a proof has to say.
Is told:    all of it, by `fileproof` and `folderproof`.
Never asks: how it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptaudit.jobs.opening import File
    from ckptaudit.plan import Alias, Drop, Options
    from ckptaudit.policy import Coverage

__all__ = ["TensorProof", "Verification"]


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
