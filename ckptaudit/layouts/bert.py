"""The text encoder of the first text-to-image latent diffusion models.

Knows:      how it is built, as ldm/modules/x_transformer.py does.
Is told:    the numbers of one encoder.
Never asks: which family has it (`families`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptaudit.layouts.grammar import Tensor, same, under

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BertText"]


@dataclass(frozen=True, slots=True)
class BertText:
    """A transformer over BERT's tokens; no diffusers folder of this family is written.

    Attributes:
        vocabulary: Tokens.
        positions: Longest prompt, in tokens.
        width: Width of the embedding.
        layers: Attention layers, each followed by a feed-forward layer.
        heads: Width of all attention heads together.
    """

    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        for tensor in self._tensors():
            yield replace(tensor, there=())

    def _tensors(self) -> Iterator[Tensor]:
        yield from same("token_emb", self.vocabulary, self.width, bias=False)
        yield from same("pos_emb.emb", self.positions, self.width, bias=False)
        for number in range(self.layers):
            # Attention and feed-forward layers take turns in one list, each behind its norm.
            for turn, inner in enumerate((self._attention(), self._feed_forward())):
                at = f"attn_layers.layers.{2 * number + turn}"
                yield from same(f"{at}.0", self.width)
                yield from under(f"{at}.1", "", inner)
        yield from same("norm", self.width)
        yield from same("to_logits", self.vocabulary, self.width)

    def _attention(self) -> Iterator[Tensor]:
        for name in ("to_q", "to_k", "to_v"):
            yield from same(name, self.heads, self.width, bias=False)
        yield from same("to_out", self.width, self.heads)

    def _feed_forward(self) -> Iterator[Tensor]:
        yield from same("net.0.0", 4 * self.width, self.width)
        yield from same("net.2", self.width, 4 * self.width)
