"""Which file it is, and whose parts it has, in the hashes that people and tools know.

Knows:      what the hashes of the field cover, and how they are written.
Is told:    an open file, the hashes of all of it, and what its components hold (`contents`).
Never asks: for weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from ckptaudit.containers import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptaudit.containers import Container
    from ckptaudit.jobs.contents import Content
    from ckptaudit.layouts import Component

__all__ = ["Identity", "Known", "Twin", "identity_of"]

# AUTOMATIC1111/stable-diffusion-webui, modules/sd_models.py, model_hash: the bytes that its first
# hash is of; of a shorter file those that there are.
_LEGACY_START, _LEGACY_BYTES, _LEGACY_DIGITS = 0x100000, 0x10000, 8
_AUTOV2_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Identity:
    """The hashes by which a file is known.

    Attributes:
        autov2: The first ten digits of the file's SHA-256, as the WebUI and Civitai show them;
            None for a folder.
        legacy: The WebUI's first hash, eight digits over 64 KiB of the file; files that differ
            elsewhere have the same.  None for a folder.
        data_sha256: Of a safetensors file, SHA-256 of all that follows the header: kohya's
            ``sshs_model_hash``, and, with 0x before it, ModelSpec's ``hash_sha256``.  None for
            any other file.
        contents: What each component holds.
    """

    autov2: str | None
    legacy: str | None
    data_sha256: str | None
    contents: tuple[Content, ...]


@dataclass(frozen=True, slots=True)
class Twin:
    """A component that an earlier file of the run has as well, to the last bit.

    Attributes:
        component: The component.
        path: The first file that has it.
        as_component: What it is there.
    """

    component: Component
    path: str
    as_component: Component


@dataclass(slots=True)
class Known:
    """What the files of a run were found to hold so far."""

    _first: dict[str, tuple[str, Component]] = field(default_factory=dict)

    def twins(self, path: str, contents: Iterable[Content]) -> tuple[Twin, ...]:
        """Which of *contents* an earlier file has; those of *path* are known from then on.

        Of several files that hold the same, each is told to be a twin of the first.
        """
        own: dict[str, Component] = {}
        found = []
        for content in contents:
            own.setdefault(content.sha256, content.component)
            if content.sha256 in self._first:
                found.append(Twin(content.component, *self._first[content.sha256]))
        for digest, component in own.items():
            self._first.setdefault(digest, (path, component))
        return tuple(found)


def identity_of(
    container: Container,
    digest: str | None,
    data_digest: str | None,
    contents: tuple[Content, ...],
) -> Identity:
    """The identity of *container*.

    Args:
        container: The open file.
        digest: Its SHA-256, in hexadecimal.
        data_digest: That of the data of a safetensors file.
        contents: What its components hold.

    Raises:
        CkptauditError: It cannot be read.
    """
    if container.kind is Kind.FOLDER or digest is None:
        return Identity(None, None, None, contents)
    of_data = data_digest if container.kind is Kind.SAFETENSORS else None
    return Identity(digest[:_AUTOV2_DIGITS], _legacy(container), of_data, contents)


def _legacy(container: Container) -> str:
    source = container.source
    there = max(0, min(_LEGACY_BYTES, source.size - _LEGACY_START))
    window = source.read_at(_LEGACY_START, there) if there else b""
    return sha256(window).hexdigest()[:_LEGACY_DIGITS]
