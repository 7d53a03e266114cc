"""Which names need no bytes of their own, because another name has the same.

A loader must never miss a tensor for it: what a family's inventory demands is written,
whatever is equal to it.

Knows:      when two tensors are equal, and which of them may be left out.
Is told:    the tensors that may be written, what each is, and hashes where they are needed.
Never asks: for the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptaudit.containers import speaks_of_file
from ckptaudit.plan.options import Dedupe, Layout
from ckptaudit.plan.values import Alias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ckptaudit.dtypes import DType
    from ckptaudit.layouts import Destination, Detection, Op, Placement
    from ckptaudit.plan.options import Options
    from ckptaudit.tensors import TensorView

__all__ = [
    "METADATA_PREFIX",
    "Candidate",
    "bytes_of",
    "copies",
    "deduplicate",
    "names_an_alias",
]

# Our own keys in ``__metadata__``.
METADATA_PREFIX = "ckptaudit."


@dataclass(slots=True)
class Candidate:
    """A tensor that may be written, with what its key means.

    Attributes:
        view: Where its elements are.
        placement: What it is.
        canonical: The name it would have if names were canonical.
        name: The name it has in the output.
        op: What is done to it on the way there, in the original layout.
        home: Which of several files of the original layout it goes to; "" if there is one.
        target: The type it has there, if all of it fits.
        demanded: Whether loaders demand a tensor of the name it would canonically have.
        diffusers: Where it goes in the diffusers layout.
        harm: Why loaders do better without it, unless another name has its bytes; else None.
    """

    view: TensorView
    placement: Placement
    canonical: str
    name: str
    op: Op
    home: str
    target: DType
    demanded: bool
    diffusers: tuple[Destination, ...] = ()
    harm: str | None = None


def deduplicate(
    candidates: list[Candidate],
    detection: Detection,
    options: Options,
    digests: Mapping[str, bytes],
) -> list[Alias]:
    """Every name that needs no bytes of its own.

    Args:
        candidates: The tensors that may be written.
        detection: The family they belong to.
        options: What the user asked for.
        digests: By source key, a hash of the tensor's elements, where there is one.
    """
    if options.dedupe is Dedupe.NONE or options.layout is Layout.DIFFUSERS:
        # What has a place in the diffusers layout is asked for there under each of its names.
        return []
    if options.dedupe is Dedupe.SAFE and detection.has_inventory:
        return _alias_undemanded(candidates, digests)
    return _alias_equals(candidates, digests)


def _alias_undemanded(candidates: list[Candidate], digests: Mapping[str, bytes]) -> list[Alias]:
    """Alias what no loader of the family asks for to its equal: a copy by name, or by place."""
    # By home and name: files of one conversion may use a name each for itself.
    stored_as: dict[tuple[str, str], str] = {}
    sources: dict[tuple[str, str], str] = {}
    for candidate, kept in copies(candidates):
        if (
            names_an_alias(candidate.name)
            and not candidate.demanded
            and _equal(candidate.view, kept.view, digests)
        ):
            stored_as[candidate.home, candidate.name] = kept.name
            sources[candidate.home, candidate.name] = candidate.view.key
    others = [each for each in candidates if (each.home, each.name) not in stored_as]
    for alias in _alias_equals(others, {}, spare_demanded=True):
        stored_as[alias.file, alias.name] = alias.of
        sources[alias.file, alias.name] = alias.source
    aliases = []
    for (home, name), source in sources.items():
        of = stored_as[home, name]
        # A second copy of an averaged copy, say, whose bytes stand under the weight's name.
        while (home, of) in stored_as:
            of = stored_as[home, of]
        aliases.append(Alias(name, of, source, home))
    return aliases


def copies(candidates: list[Candidate]) -> Iterator[tuple[Candidate, Candidate]]:
    """Each tensor that may be a second copy, with the one it may be a copy of."""
    by_canonical = {candidate.canonical: candidate for candidate in candidates}
    for candidate in candidates:
        kept = by_canonical.get(candidate.placement.of or "")
        if kept is not None and kept is not candidate and _alike(candidate, kept):
            yield candidate, kept


def _alias_equals(
    candidates: list[Candidate], digests: Mapping[str, bytes], *, spare_demanded: bool = False
) -> list[Alias]:
    """Alias equal tensors to the first name among them, or the first that loaders demand.

    What does harm is not written under its own name: anything else comes before it.

    Without a digest, those are equal that lie on the same bytes.
    """
    kept: dict[tuple[object, ...], Candidate] = {}
    aliases = []
    in_order = sorted(
        candidates, key=lambda each: (each.harm is not None, not each.demanded, each.name.encode())
    )
    for candidate in in_order:
        view = candidate.view
        # A part of a tensor is no tensor that could stand for another.
        if not view.numel or candidate.op == "join":
            continue
        digest = digests.get(view.key)
        content: object = bytes_of(view) if digest is None else digest
        key = (view.dtype, view.shape, candidate.target, candidate.op, candidate.home, content)
        first = kept.setdefault(key, candidate)
        is_spared = spare_demanded and candidate.demanded
        if first is not candidate and not is_spared and names_an_alias(candidate.name):
            aliases.append(Alias(candidate.name, first.name, view.key, candidate.home))
    return aliases


def names_an_alias(key: str) -> bool:
    """Whether *key*, in ``__metadata__``, is a name left out and nothing else."""
    return not speaks_of_file(key) and not key.startswith(METADATA_PREFIX)


def _alike(one: Candidate, other: Candidate) -> bool:
    return (one.view.dtype, one.view.shape, one.target, one.op, one.home) == (
        other.view.dtype,
        other.view.shape,
        other.target,
        other.op,
        other.home,
    )


def _equal(one: TensorView, other: TensorView, digests: Mapping[str, bytes]) -> bool:
    if bytes_of(one) == bytes_of(other):
        return True
    digest = digests.get(one.key)
    return digest is not None and digest == digests.get(other.key)


def bytes_of(view: TensorView) -> tuple[object, ...]:
    """What two views share if and only if they read the same bytes in the same order."""
    storage = view.storage
    start = storage.offset + view.offset * view.dtype.itemsize
    # Strides of dimensions of size 1 are never stepped.
    stride = tuple(step for size, step in zip(view.shape, view.stride, strict=True) if size != 1)
    return storage.record, start, view.shape, stride
