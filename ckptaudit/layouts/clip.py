"""The encoders of CLIP, in the names of transformers and in those of OpenCLIP.

Knows:      how they are built, as transformers' modeling_clip.py, open_clip/model.py and
            OpenAI's clip/model.py do, and which name of one is which of another.
Is told:    the numbers of one encoder.
Never asks: which family has which encoder (`families`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptaudit.layouts.grammar import Tensor, There, layer, same, under

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ClipImage", "ClipText", "EmbeddingStatistics", "OpenClipText"]

_QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class ClipText:
    """The text encoder as transformers writes it; both layouts use its names.

    Attributes:
        vocabulary: Tokens.
        positions: Longest prompt, in tokens.
        width: Width of the embedding.
        layers: Transformer layers.
    """

    vocabulary: int
    positions: int
    width: int
    layers: int

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        yield from under("text_model", "text_model", self._text_model())

    def _text_model(self) -> Iterator[Tensor]:
        # Counts 0, 1, 2…: every loader can make it, and newer transformers do not save it.
        ids = "embeddings.position_ids"
        yield Tensor(ids, (1, self.positions), (There(ids),), dtype="int64", demanded=False)
        yield from same("embeddings.token_embedding", self.vocabulary, self.width, bias=False)
        yield from same("embeddings.position_embedding", self.positions, self.width, bias=False)
        for number in range(self.layers):
            name = f"encoder.layers.{number}"
            yield from under(name, name, self._layer())
        yield from same("final_layer_norm", self.width)

    def _layer(self) -> Iterator[Tensor]:
        width, inner = self.width, 4 * self.width
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from same(f"self_attn.{projection}", width, width)
        yield from same("layer_norm1", width)
        yield from same("mlp.fc1", inner, width)
        yield from same("mlp.fc2", width, inner)
        yield from same("layer_norm2", width)


@dataclass(frozen=True, slots=True)
class OpenClipText:
    """The text half of an OpenCLIP model; diffusers has it in the names of transformers.

    Attributes:
        vocabulary: Tokens.
        positions: Longest prompt, in tokens.
        width: Width of the embedding.
        layers: Transformer layers.
        used_layers: Layers that diffusers keeps: SD 2 takes what the last but one gives.
        projects: Whether diffusers keeps the projection of the pooled text.
    """

    vocabulary: int
    positions: int
    width: int
    layers: int
    used_layers: int
    projects: bool

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order.

        ``logit_scale`` and what lies behind the layer that is used are not demanded: fine-tunes
        have been saved without them, and no loader stops.
        """
        width = self.width
        positions = There("text_model.embeddings.position_embedding.weight")
        yield Tensor("positional_embedding", (self.positions, width), (positions,))
        projection = (There("text_projection.weight", "transpose"),) if self.projects else ()
        yield Tensor("text_projection", (width, width), projection, demanded=self.projects)
        yield Tensor("logit_scale", (), demanded=False)
        for number in range(self.layers):
            there = f"text_model.encoder.layers.{number}"
            block = under(f"transformer.resblocks.{number}", there, _block(width))
            yield from block if number < self.used_layers else _left_behind(block)
        tokens = There("text_model.embeddings.token_embedding.weight")
        yield Tensor("token_embedding.weight", (self.vocabulary, width), (tokens,))
        yield from layer("ln_final", "text_model.final_layer_norm", width)


@dataclass(frozen=True, slots=True)
class ClipImage:
    """A CLIP whose image half is used, as unCLIP keeps it.

    diffusers has that half in the names of transformers, and fetches it from elsewhere where it
    converts; transformers' own convert_clip_original_pytorch_to_hf.py says which name is which.

    Attributes:
        width: Width of the image half.
        layers: Its transformer layers.
        patch: Side of a patch, in pixels.
        patches: Patches of an image; one position more is that of the class.
        text: Width of the text half and of the embedding.
        vocabulary: Tokens of the text half.
        positions: Longest prompt of the text half, in tokens.
        text_layers: Transformer layers of the text half; the wrapper of OpenCLIP takes them out.
        activation: What transformers calls the function between the layers of each block.
        heads: Attention heads of each layer of the image half.
    """

    width: int
    layers: int
    patch: int
    patches: int
    text: int
    vocabulary: int
    positions: int
    text_layers: int
    activation: str
    heads: int = 16

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor once, in the original implementation's order."""
        yield Tensor("positional_embedding", (self.positions, self.text), demanded=False)
        yield Tensor("text_projection", (self.text, self.text), demanded=False)
        yield Tensor("logit_scale", (), demanded=False)
        for tensor in self._visual():
            yield replace(tensor, key=f"visual.{tensor.key}")
        for number in range(self.text_layers):
            block = under(f"transformer.resblocks.{number}", "", _block(self.text))
            yield from _left_behind(block)
        yield Tensor("token_embedding.weight", (self.vocabulary, self.text), demanded=False)
        for name in ("weight", "bias"):
            yield Tensor(f"ln_final.{name}", (self.text,), demanded=False)

    def _visual(self) -> Iterator[Tensor]:
        width = self.width
        home, embeds = "vision_model", "vision_model.embeddings"
        positions = (There(f"{embeds}.position_embedding.weight"),)
        projection = (There("visual_projection.weight", "transpose"),)
        yield Tensor("class_embedding", (width,), (There(f"{embeds}.class_embedding"),))
        yield Tensor("positional_embedding", (self.patches + 1, width), positions)
        yield Tensor("proj", (width, self.text), projection)
        patches = 3, self.patch, self.patch
        yield from layer("conv1", f"{embeds}.patch_embedding", width, *patches, bias=False)
        # So transformers spells it.
        yield from layer("ln_pre", f"{home}.pre_layrnorm", width)
        for number in range(self.layers):
            there = f"{home}.encoder.layers.{number}"
            yield from under(f"transformer.resblocks.{number}", there, _block(width))
        yield from layer("ln_post", f"{home}.post_layernorm", width)


@dataclass(frozen=True, slots=True)
class EmbeddingStatistics:
    """Mean and deviation of the embeddings of images, by which unCLIP makes them alike.

    The original code keeps them as buffers that are not saved, and most files lack them.

    Attributes:
        width: Width of the embedding.
    """

    width: int

    def tensors(self) -> Iterator[Tensor]:
        """Yield both."""
        yield Tensor("data_mean", (1, self.width), (There("mean"),), demanded=False)
        yield Tensor("data_std", (1, self.width), (There("std"),), demanded=False)


def _block(width: int) -> Iterator[Tensor]:
    """Yield a transformer layer of OpenCLIP, whose query, key and value are one matrix."""
    yield from layer("ln_1", "layer_norm1", width)
    for name in ("weight", "bias"):
        shape = (3 * width, width) if name == "weight" else (3 * width,)
        parts = tuple(
            There(f"self_attn.{part}.{name}", "rows", (number * width, (number + 1) * width))
            for number, part in enumerate(_QUERY_KEY_VALUE)
        )
        yield Tensor(f"attn.in_proj_{name}", shape, parts)
    yield from layer("attn.out_proj", "self_attn.out_proj", width, width)
    yield from layer("ln_2", "layer_norm2", width)
    yield from layer("mlp.c_fc", "mlp.fc1", 4 * width, width)
    yield from layer("mlp.c_proj", "mlp.fc2", width, 4 * width)


def _left_behind(tensors: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield *tensors* as what no loader asks for and diffusers has no place for."""
    for tensor in tensors:
        yield replace(tensor, there=(), demanded=False)
