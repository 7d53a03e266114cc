"""From a pickle's tree to named, validated tensor views; nothing is read until asked."""

from __future__ import annotations

from ckptaudit.tensors.blocks import BLOCK_BYTES, Block, blocks_of, pieces_of
from ckptaudit.tensors.misfits import misfits
from ckptaudit.tensors.rebuild import rebuilt_names
from ckptaudit.tensors.statedict import find_state_dict
from ckptaudit.tensors.view import Leftover, StateDict, TensorView

__all__ = [
    "BLOCK_BYTES",
    "Block",
    "Leftover",
    "StateDict",
    "TensorView",
    "blocks_of",
    "find_state_dict",
    "misfits",
    "pieces_of",
    "rebuilt_names",
]
