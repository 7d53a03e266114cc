"""The text encoder of the first text-to-image latent diffusion models.

Knows:      how it is built, as ldm/modules/x_transformer.py does, and what diffusers calls its
            parts (LDMBertModel).
Is told:    the numbers of one encoder.
Never asks: which family has it (`families`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.layouts.grammar import layer, under

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.layouts.grammar import Tensor

__all__ = ["BertText"]


@dataclass(frozen=True, slots=True)
class BertText:
    """A transformer over BERT's tokens.

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
        width = self.width
        yield from layer("token_emb", "model.embed_tokens", self.vocabulary, width, bias=False)
        positions = "model.embed_positions"
        yield from layer("pos_emb.emb", positions, self.positions, width, bias=False)
        for number in range(self.layers):
            there = f"model.layers.{number}"
            # Attention and feed-forward layers take turns in one list, each behind its norm.
            at = f"attn_layers.layers.{2 * number}"
            yield from layer(f"{at}.0", f"{there}.self_attn_layer_norm", width)
            yield from under(f"{at}.1", f"{there}.self_attn", self._attention())
            at = f"attn_layers.layers.{2 * number + 1}"
            yield from layer(f"{at}.0", f"{there}.final_layer_norm", width)
            yield from under(f"{at}.1", there, self._feed_forward())
        yield from layer("norm", "model.layer_norm", width)
        yield from layer("to_logits", "to_logits", self.vocabulary, width)

    def _attention(self) -> Iterator[Tensor]:
        for name, other in (("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj")):
            yield from layer(name, other, self.heads, self.width, bias=False)
        yield from layer("to_out", "out_proj", self.width, self.heads)

    def _feed_forward(self) -> Iterator[Tensor]:
        yield from layer("net.0.0", "fc1", 4 * self.width, self.width)
        yield from layer("net.2", "fc2", self.width, 4 * self.width)
