"""What a converted file says of itself, held against what its source gives.

Knows:      which claims of a receipt, and which of the ModelSpec, are proven, and how.
Is told:    a converted file, its receipt, and what its source gives.
Never asks: for weights (`fileproof`), or how a claim is written down (`receipt`, `modelspec`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ckptaudit.errors import Unsupported
from ckptaudit.jobs.modelspec import (
    TITLE,
    hash_claimed,
    modelspec_in,
    modelspec_of,
    with_data_hash,
)
from ckptaudit.jobs.receipt import strange_claims
from ckptaudit.vm import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.jobs.given import Given
    from ckptaudit.jobs.opening import Opened
    from ckptaudit.jobs.receipt import Receipt
    from ckptaudit.layouts import Detection
    from ckptaudit.plan import ConversionPlan

__all__ = ["check_vae_is_named", "wrong_claims"]


def check_vae_is_named(name: str, receipt: Receipt | None, given: Given) -> None:
    """Refuse to compare with other weights than were written.

    Args:
        name: What to call the converted file in a message.
        receipt: What it says of itself; None if it says nothing.
        given: What its source gives.

    Raises:
        Unsupported: It says that it has the VAE of another file, and there is none.
    """
    claimed = None if receipt is None else receipt.vae_sha256
    if claimed is not None and given.vae is None:
        whose = f" of SHA-256 {escape(claimed)}" if claimed else ""
        raise Unsupported(
            f"{name}: has the VAE of another file{whose}; name that file with --replace-vae"
        )


def wrong_claims(
    converted: Opened, receipt: Receipt, given: Given, found: Detection, plan: ConversionPlan
) -> Iterator[str]:
    """What *converted* says of itself and its source does not bear out, a sentence for each.

    Args:
        converted: The converted file.
        receipt: What it says of itself.
        given: What its source gives.
        found: What the source was taken for.
        plan: What of that belongs into this file.
    """
    for key in strange_claims(converted.container.metadata):
        yield f"says by {escape(key)} what no conversion does"
    yield from _wrong_modelspec(converted, receipt, given.source.container.source.name, found)
    claimed, digest = receipt.source_sha256, given.source.digest()
    if claimed is not None and digest is not None and claimed != digest:
        yield f"names a source of SHA-256 {escape(claimed)}, which this is not"
    if receipt.aliases != {alias.name: alias.of for alias in plan.aliases}:
        yield "lists other aliases than its source gives"
    if given.vae is None:
        return
    claimed, digest = receipt.vae_sha256, given.vae.digest()
    if claimed is None:
        yield "does not say that its VAE was replaced"
    elif claimed and digest is not None and claimed != digest:
        yield f"names a file of SHA-256 {escape(claimed)} for its VAE, which this is not"


def _wrong_modelspec(
    converted: Opened, receipt: Receipt, name: str, found: Detection
) -> Iterator[str]:
    """What is wrong of the ModelSpec's, where a title may be one that was the file's name once."""
    there = modelspec_in(converted.container.metadata)
    claimed, of_data = hash_claimed(there), converted.data_digest()
    owed: dict[str, str] = {}
    if receipt.options.modelspec is not None:
        title = there.get(TITLE, "")
        # What cannot be known of this source was not known when the file was made of it.
        with suppress(Unsupported):
            owed = modelspec_of(found, title, receipt.options.modelspec, name)
        # Whoever wanted no hash of the file got none of its data either.
        owed = owed if claimed is None else with_data_hash(owed, claimed)
    wrong = [key for key in {*there, *owed} if there.get(key) != owed.get(key)]
    if wrong:
        yield f"says by {escape(min(wrong))} what its source does not give"
    elif claimed is not None and of_data not in {None, claimed}:
        yield "names a SHA-256 of its data that they do not have"
