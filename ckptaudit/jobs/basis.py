"""What a plan is made of: the tensors of a checkpoint, maybe with the VAE of another file.

Knows:      what belongs together of a file that is to be converted.
Is told:    an open container; by `baking`, what another file adds.
Never asks: whether it may be converted, or what becomes of its tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from ckptaudit.jobs.health import damaged_ids, health_of
from ckptaudit.jobs.planning import meaning_of
from ckptaudit.plan import Alias, Drop
from ckptaudit.tensors import find_state_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptaudit.containers import Container
    from ckptaudit.jobs.planning import Meaning
    from ckptaudit.layouts import Detection
    from ckptaudit.policy import Finding
    from ckptaudit.tensors import Leftover, StateDict

__all__ = ["Basis", "VaeBasis", "basis_of", "from_where"]

Line = TypeVar("Line", Alias, Drop)


@dataclass(frozen=True, slots=True)
class VaeBasis:
    """The file whose VAE takes the place of a checkpoint's.

    Attributes:
        path: What it is called.
        mark: What its keys begin with among those of the checkpoint, none of which begins so.
        state_dict: Where in its pickle the weights were found; "" is the root.
        detection: What it, or what of it is a VAE, was taken for.
        doubt: What of the fit is taken on trust; "" is nothing.
        leftovers: What it holds that is no tensor.
    """

    path: str
    mark: str
    state_dict: str
    detection: Detection
    doubt: str
    leftovers: tuple[Leftover, ...]


@dataclass(frozen=True, slots=True)
class Basis:
    """What a plan is made of.

    Attributes:
        container: Where the bytes of the tensors are.
        state_dict: The tensors of the checkpoint; behind them those of the other file.
        meaning: What they are.
        damage: By key, what is wrong with tensors that loaders make better themselves.
        barred: By key, why a tensor is not written, whatever it is.
        vae: The other file; None if there is none.
    """

    container: Container
    state_dict: StateDict
    meaning: Meaning
    damage: Mapping[str, str]
    barred: Mapping[str, str] = field(default_factory=dict)
    vae: VaeBasis | None = None

    def whence(self, key: str) -> tuple[str | None, str]:
        """The path of the other file, if *key* is of that, and the key verbatim."""
        if self.vae is not None and key.startswith(self.vae.mark):
            return self.vae.path, key.removeprefix(self.vae.mark)
        return None, key

    def health(self) -> list[Finding]:
        """What ails the model; what is not written whatever it is ails nobody."""
        pairs = [
            (view, placement)
            for view, placement in zip(self.state_dict.views, self.meaning.placements, strict=True)
            if view.key not in self.barred
        ]
        state_dict = replace(self.state_dict, views=tuple(view for view, _ in pairs))
        meaning = replace(self.meaning, placements=tuple(placement for _, placement in pairs))
        return health_of(state_dict, meaning, self.damage)


def basis_of(container: Container, family: str = "") -> Basis:
    """What a plan for *container* alone is made of.

    Args:
        container: An open file.
        family: What it is to be taken for; "" is whatever it is found to be.

    Raises:
        CkptauditError: It has no state dict, or there is no such family.
    """
    state_dict = find_state_dict(container)
    meaning = meaning_of(state_dict, family)
    return Basis(container, state_dict, meaning, damaged_ids(container, state_dict))


def from_where(line: Line, basis: Basis) -> Line:
    """*line* of a plan for *basis* as an account has it: the key verbatim, and whose it is."""
    origin, source = basis.whence(line.source)
    return replace(line, source=source, origin=origin)
