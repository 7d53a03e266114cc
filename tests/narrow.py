"""Models of the real families with thin layers: every tensor is there, and is small."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from oracle import torch
from safetensors.torch import load_file

from ckptaudit.layouts.autoencoder import Vae
from ckptaudit.layouts.bert import BertText
from ckptaudit.layouts.clip import ClipImage, ClipText, OpenClipText
from ckptaudit.layouts.midas import DptHybrid
from ckptaudit.layouts.unet import ControlNet, UNet
from ckptaudit.layouts.xlmr import XlmRoberta

if TYPE_CHECKING:
    from pathlib import Path

    from ckptaudit.layouts import Family
    from ckptaudit.layouts.grammar import Architecture

__all__ = ["checkpoint", "moved", "narrow", "read"]


def narrow(family: Family) -> Family:
    """*family* with thin layers, recognised by its signs in their new shapes."""
    parts = tuple(replace(part, architecture=thin(part.architecture)) for part in family.parts)
    made = replace(family, parts=parts)
    shapes = {entry.key: entry.shape for entry in made.inventory()}
    return replace(made, signs=tuple(replace(s, shape=shapes[s.key]) for s in family.signs))


def thin(architecture: Architecture) -> Architecture:
    match architecture:
        case UNet(depths=depths, up_depths=up, middle_depth=middle):
            return replace(
                architecture,
                channels=32,
                depths=tuple(min(depth, 1) for depth in depths),
                # What tells one distilled model from another is how many blocks are left.
                up_depths=tuple(tuple(min(depth, 4) for depth in level) for level in up),
                middle_depth=min(middle, 1),
                context=64,
            )
        case ControlNet(unet=unet):
            return replace(architecture, unet=narrowed(unet))
        case Vae():
            return replace(architecture, channels=32)
        case DptHybrid():
            return replace(
                architecture, stem=32, stages=(1, 1, 2), width=64, features=32, classes=5
            )
        case _:
            return thin_encoder(architecture)


def thin_encoder(architecture: Architecture) -> Architecture:
    """*architecture* narrow, if it is an encoder of text or images."""
    match architecture:
        case ClipText():
            return replace(architecture, width=64, layers=2, vocabulary=99)
        case OpenClipText(projects=True):
            return replace(architecture, width=64, layers=2, used_layers=2, vocabulary=99)
        case OpenClipText():
            # Which layer SD 2 leaves out is known by its number.
            return replace(architecture, width=64, vocabulary=99)
        case ClipImage(text_layers=layers):
            # The UNet of unCLIP takes what it projects to as wide as it is.
            few = min(layers, 1)
            return replace(architecture, width=64, layers=2, text_layers=few, vocabulary=99)
        case XlmRoberta():
            return replace(architecture, width=64, layers=1, vocabulary=99)
        case BertText():
            return replace(architecture, width=64, heads=128, layers=2, vocabulary=99)
        case _:
            return architecture


def narrowed(unet: UNet) -> UNet:
    made = thin(unet)
    assert isinstance(made, UNet)
    return made


def checkpoint(family: Family, path: Path) -> dict[str, torch.Tensor]:
    """A complete file of *family*, of random weights."""
    torch.manual_seed(0)
    tensors = {
        entry.key: torch.arange(entry.shape[-1])[None]
        if entry.dtype == "int64"
        else torch.randn(entry.shape) / 20
        for entry in family.inventory()
    }
    torch.save({"state_dict": tensors}, path)
    return tensors


def moved(family: Family, tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """By folder and name, what the inventory says becomes of *tensors*, done by torch."""
    made: dict[str, dict[str, torch.Tensor]] = {}
    for entry in family.inventory():
        for there in entry.diffusers:
            tensor = tensors[entry.key]
            if there.op == "squeeze":
                tensor = tensor[:, :, 0, 0]
            elif there.op == "transpose":
                tensor = tensor.T
            elif there.rows is not None:
                tensor = tensor[slice(*there.rows)]
            made.setdefault(family.home(there.component).rstrip("/"), {})[there.key] = tensor
    return made


def read(folder: Path, component: str) -> dict[str, torch.Tensor]:
    """The tensors in the folder of one component; there is one file of weights in it."""
    (file,) = (folder / component).glob("*.safetensors")
    return load_file(file)
