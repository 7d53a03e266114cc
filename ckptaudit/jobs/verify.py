"""`verify`: prove each tensor of a converted file from its source.

Knows:      which files are held against which.
Is told:    a source, and a file made from it by us or by any other tool, or a folder of such.
Never asks: how a file is proven (`fileproof`), or a folder (`folderproof`).
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ckptaudit.jobs.fileproof import prove
from ckptaudit.jobs.folderproof import FolderProof
from ckptaudit.jobs.given import Given
from ckptaudit.jobs.opening import Folders, opened

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from ckptaudit.jobs.verification import Verification

__all__ = ["verify"]


def verify(
    source: str | PathLike[str],
    converted: str | PathLike[str],
    *,
    replace_vae: str | PathLike[str] | None = None,
    with_hash: bool = True,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Verification:
    """Read *source* again and compare what it gives with *converted*, element by element.

    Args:
        source: The checkpoint, or the folder of a diffusers model.
        converted: A safetensors file made from it, of several that were made one; or the folder
            in which all of them are, with the settings that belong to them.
        replace_vae: The file whose VAE took the place of the checkpoint's.
        with_hash: Compute the SHA-256 of all of them.
        progress: Told bytes of weights done, and in all.

    Raises:
        CkptauditError: There is no answer: one of the files cannot be read.
    """
    with ExitStack() as stack:
        one = stack.enter_context(opened(source, with_hash=with_hash, folders=Folders.MODEL))
        vae = None
        if replace_vae is not None:
            file = opened(replace_vae, with_hash=with_hash, folders=Folders.MODEL)
            vae = stack.enter_context(file)
        given = Given(one, vae)
        if os.path.isdir(converted):  # noqa: PTH112 - a name that is too long is none
            return FolderProof(given, Path(converted)).run(progress, with_hash=with_hash)
        two = stack.enter_context(opened(converted, with_hash=with_hash, with_data_hash=True))
        return prove(two, given, progress)
