"""From a pickle's tree to named, validated tensor views; nothing is read until asked.

`blocks` is imported by whoever reads tensors, so that nobody else waits for it.
"""

from __future__ import annotations

from ckptaudit.tensors.misfits import misfits
from ckptaudit.tensors.rebuild import rebuilt_names
from ckptaudit.tensors.statedict import find_state_dict
from ckptaudit.tensors.view import Leftover, StateDict, TensorView

__all__ = [
    "Leftover",
    "StateDict",
    "TensorView",
    "find_state_dict",
    "misfits",
    "rebuilt_names",
]
