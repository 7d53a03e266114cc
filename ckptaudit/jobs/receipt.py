"""What a converted file says of itself, in the ``__metadata__`` of its header.

Knows:      which of its keys are ours, and that any other names an alias.
Is told:    options, aliases and a hash to write down; or the metadata of a file.
Never asks: whether what it reads is true; `verify` proves it.

``format`` is what other loaders look for.  Our own keys begin with ``ckptaudit.``, those of the
ModelSpec (`modelspec`) with ``modelspec.``.  Every other key is a name that was left out, and its
value the name that has the same bytes: this is how safetensors' own tools write down tied weights.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import msgspec

from ckptaudit import __version__
from ckptaudit.errors import Unsupported
from ckptaudit.plan import METADATA_PREFIX, Options, names_an_alias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ckptaudit.plan import Alias

__all__ = ["Receipt", "metadata_of", "receipt_in", "strange_claims"]

_FORMAT, _TORCH = "format", "pt"
_VERSION = f"{METADATA_PREFIX}version"
_OPTIONS = f"{METADATA_PREFIX}options"
_SOURCE_SHA256 = f"{METADATA_PREFIX}source_sha256"
_VAE_SHA256 = f"{METADATA_PREFIX}vae_source_sha256"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a file of ours claims.

    Attributes:
        options: How it was made.
        source_sha256: Hash of the file it was made from, or None if nobody wanted that.
        vae_sha256: Hash of the file that its VAE is from, "" if nobody wanted that; None if the
            VAE was not replaced.
        aliases: By name left out, the name that has its bytes.
    """

    options: Options
    source_sha256: str | None
    vae_sha256: str | None
    aliases: Mapping[str, str]


def metadata_of(
    options: Options,
    aliases: Iterable[Alias],
    source_sha256: str | None,
    vae_sha256: str | None = None,
    modelspec: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The metadata that `receipt_in` reads, see `Receipt`, and *modelspec*."""
    metadata = {alias.name: alias.of for alias in aliases}
    metadata |= {
        **(modelspec or {}),
        _FORMAT: _TORCH,
        _VERSION: __version__,
        _OPTIONS: msgspec.json.encode(options, order="sorted").decode(),
    }
    if source_sha256 is not None:
        metadata[_SOURCE_SHA256] = source_sha256
    if vae_sha256 is not None:
        metadata[_VAE_SHA256] = vae_sha256
    return metadata


def receipt_in(metadata: Mapping[str, str]) -> Receipt | None:
    """What a file with this *metadata* claims; None if it is not one of ours.

    Raises:
        Unsupported: It is, but names options that this version does not know.
    """
    text = metadata.get(_OPTIONS)
    if text is None:
        return None
    aliases = {name: kept for name, kept in metadata.items() if names_an_alias(name)}
    return Receipt(
        _options_in(text), metadata.get(_SOURCE_SHA256), metadata.get(_VAE_SHA256), aliases
    )


def strange_claims(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Keys of a file of ours that say of it what `metadata_of` never does, sorted."""
    known = {_VERSION, _OPTIONS, _SOURCE_SHA256, _VAE_SHA256}
    strange = {key for key in metadata if key.startswith(METADATA_PREFIX)} - known
    # transformers refuses a file that does not say that it is torch's.
    return tuple(sorted(strange if metadata.get(_FORMAT) == _TORCH else {*strange, _FORMAT}))


def _options_in(text: str) -> Options:
    given: dict[str, object] = {}
    with contextlib.suppress(ValueError, RecursionError):
        given = msgspec.json.decode(text, type=dict[str, object])
    # An option that we do not know would be one that we do not follow.
    if given.keys() == {field.name for field in fields(Options)}:
        with contextlib.suppress(ValueError):
            return msgspec.convert(given, Options, strict=True)
    raise Unsupported(
        "the converted file names options that this version of ckptaudit does not know; "
        "verify it with the version that wrote it"
    )
