"""The text encoder of AltDiffusion: XLM-RoBERTa, and a layer to the width of CLIP's embedding.

Knows:      how it is built, as transformers' modeling_xlm_roberta.py and the WebUI's xlmr.py and
            xlmr_m18.py do.
Is told:    the numbers of one encoder.
Never asks: which family has it (`families`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptaudit.layouts.grammar import Tensor, same, under

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["XlmRoberta"]


@dataclass(frozen=True, slots=True)
class XlmRoberta:
    """A transformer over the tokens of a hundred languages; no diffusers folder of it is written.

    Attributes:
        projected: Width of the text embedding that a UNet attends to.
        takes_last: Whether that is made of what the last layer gives; else, of what the one
            before it gives, normalised first.
        vocabulary: Tokens.
        positions: Longest text, in tokens; the first two count padding.
        width: Width of the embedding.
        layers: Its layers.
    """

    projected: int
    takes_last: bool
    vocabulary: int = 250002
    positions: int = 514
    width: int = 1024
    layers: int = 24

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        for tensor in self._tensors():
            yield replace(tensor, there=())

    def _tensors(self) -> Iterator[Tensor]:
        yield from under("roberta", "", self._roberta())
        at_last = self._projection("transformation")
        if self.takes_last:
            yield from at_last
        else:
            yield from _unused(at_last)
            yield from self._projection("transformation_pre")
        norm = same("pre_LN", self.width)
        yield from _unused(norm) if self.takes_last else norm

    def _roberta(self) -> Iterator[Tensor]:
        width = self.width
        # Counts 0, 1, 2…: every loader can make it, and newer transformers do not save it.
        ids = "embeddings.position_ids"
        yield Tensor(ids, (1, self.positions), dtype="int64", demanded=False)
        yield from same("embeddings.word_embeddings", self.vocabulary, width, bias=False)
        yield from same("embeddings.position_embeddings", self.positions, width, bias=False)
        yield from same("embeddings.token_type_embeddings", 1, width, bias=False)
        yield from same("embeddings.LayerNorm", width)
        for number in range(self.layers):
            yield from under(f"encoder.layer.{number}", "", self._layer())
        yield from _unused(same("pooler.dense", width, width))

    def _layer(self) -> Iterator[Tensor]:
        width, inner = self.width, 4 * self.width
        for name in ("query", "key", "value"):
            yield from same(f"attention.self.{name}", width, width)
        yield from same("attention.output.dense", width, width)
        yield from same("attention.output.LayerNorm", width)
        yield from same("intermediate.dense", inner, width)
        yield from same("output.dense", width, inner)
        yield from same("output.LayerNorm", width)

    def _projection(self, name: str) -> Iterator[Tensor]:
        return same(name, self.projected, self.width)


def _unused(tensors: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield *tensors* as what is in files and is never run."""
    for tensor in tensors:
        yield replace(tensor, demanded=False)
