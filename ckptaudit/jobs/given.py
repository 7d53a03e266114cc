"""What a source gives, under whatever options a converted file says it was made with.

Knows:      how to plan a conversion again, and that several files of one are asked about in turn.
Is told:    an open source; then options.
Never asks: what was made of it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ckptaudit.jobs.health import damaged_ids
from ckptaudit.jobs.planning import check_layout, meaning_of, planner, prediction_of, texts_of
from ckptaudit.jobs.small import std_of
from ckptaudit.jobs.stream import digest_of
from ckptaudit.tensors import find_state_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptaudit.containers import Container
    from ckptaudit.jobs.planning import Meaning
    from ckptaudit.plan import ConversionPlan, Options
    from ckptaudit.tensors import TensorView

__all__ = ["Given"]


class Given:
    """The tensors of a source; what was read of them once is remembered.

    Args:
        source: The source, open.
    """

    def __init__(self, source: Container) -> None:
        self.source = source
        self._state_dict = find_state_dict(source)
        self._damage = damaged_ids(source, self._state_dict)
        self._digests: dict[str, bytes] = {}

    def planner(
        self, options: Options
    ) -> Callable[[Mapping[tuple[str, str], str]], ConversionPlan]:
        """What makes plans under *options*; see `planning.planner`.

        Raises:
            Unsupported: They ask for what cannot be made of such a source.
        """
        meaning = self._meaning(options)
        return planner(self._state_dict, meaning, options, self._digest_of, self._damage)

    def texts(self, plan: ConversionPlan, options: Options) -> Mapping[str, bytes]:
        """The settings that stand beside the weights of *plan*, by path in the folder."""
        meaning = self._meaning(options)
        std = partial(std_of, self.source)
        prediction, _ = prediction_of(meaning, self._state_dict, std)
        return texts_of(meaning.detection, prediction, plan, options)

    def _meaning(self, options: Options) -> Meaning:
        meaning = meaning_of(self._state_dict, options.family)
        check_layout(meaning.detection, options, self.source.source.name)
        return meaning

    def _digest_of(self, view: TensorView) -> bytes:
        if view.key not in self._digests:
            self._digests[view.key] = digest_of(self.source, view)
        return self._digests[view.key]
