"""What a source gives, under whatever options a converted file says it was made with.

Knows:      how to plan a conversion again, and that several files of one are asked about in turn.
Is told:    an open source, maybe the file whose VAE took the place of its own; then options.
Never asks: what was made of it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ckptaudit.jobs.baking import with_vae
from ckptaudit.jobs.basis import basis_of
from ckptaudit.jobs.planning import check_layout, planner, prediction_of, texts_of
from ckptaudit.jobs.small import std_of
from ckptaudit.jobs.stream import digest_of
from ckptaudit.policy import Coverage, judge
from ckptaudit.tensors import misfits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptaudit.jobs.basis import Basis
    from ckptaudit.jobs.opening import Opened
    from ckptaudit.jobs.planning import Planner
    from ckptaudit.plan import ConversionPlan, Options
    from ckptaudit.tensors import TensorView

__all__ = ["Given"]


class Given:
    """The tensors of a source; what was read of them once is remembered.

    Args:
        source: The source, open.
        vae: The file whose VAE took the place of the source's, open; None if none did.
    """

    def __init__(self, source: Opened, vae: Opened | None = None) -> None:
        self.source = source
        self.vae = vae
        self._bases: dict[Options, Basis] = {}
        self._digests: dict[str, bytes] = {}

    @property
    def cores_taken(self) -> int:
        """Processes that hash beside the job, each of which keeps a core busy."""
        return sum(file.cores_taken for file in self._files)

    def coverage(self) -> Coverage:
        """Whether all was read that a converted file may be made from."""
        found = [judge(file.container, misfits).coverage for file in self._files]
        return Coverage(
            complete=all(each.complete for each in found),
            gaps=tuple(gap for each in found for gap in each.gaps),
        )

    def basis(self, options: Options) -> Basis:
        """What a plan under *options* is made of.

        Raises:
            Unsupported: They ask for what cannot be made of such a source.
        """
        if options not in self._bases:
            container = self.source.container
            basis = basis_of(container, options.family)
            check_layout(basis.meaning.detection, options, container.source.name)
            if self.vae is not None:
                basis = with_vae(basis, self.vae.container, options)
            self._bases[options] = basis
        return self._bases[options]

    def planner(self, options: Options) -> Planner:
        """What makes plans under *options*; see `planning.planner`.

        Raises:
            Unsupported: They ask for what cannot be made of such a source.
        """
        basis = self.basis(options)
        return planner(basis, options, partial(self._digest_of, basis))

    def texts(self, plan: ConversionPlan, options: Options) -> Mapping[str, bytes]:
        """The settings that stand beside the weights of *plan*, by path in the folder."""
        basis = self.basis(options)
        std = partial(std_of, basis.container)
        prediction, _ = prediction_of(basis.meaning, basis.state_dict, std)
        return texts_of(basis.meaning.detection, prediction, plan, options)

    @property
    def _files(self) -> tuple[Opened, ...]:
        return (self.source,) if self.vae is None else (self.source, self.vae)

    def _digest_of(self, basis: Basis, view: TensorView) -> bytes:
        if view.key not in self._digests:
            self._digests[view.key] = digest_of(basis.container, view)
        return self._digests[view.key]
