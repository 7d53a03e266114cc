"""The VAE of one file among the tensors of another, so that a plan is made of both as of one.

Every tensor of both files is there, and every one that is not wanted has its reason: those that
make room for another VAE, and what else the other file holds.

Knows:      how the tensors of two files become one state dict.
Is told:    the checkpoint and the other file, open, and options.
Never asks: whether either may be converted, or what becomes of the tensors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from ckptaudit.containers.joined import joined
from ckptaudit.errors import Unsupported
from ckptaudit.jobs.account import VaeSource
from ckptaudit.jobs.basis import Basis, VaeBasis, basis_of
from ckptaudit.jobs.opening import notes_on
from ckptaudit.jobs.planning import Meaning, check_layout
from ckptaudit.layouts import Component, Donor, Placement, Spec, has_vae, makes_room
from ckptaudit.plan import Ema
from ckptaudit.tensors import StateDict, find_state_dict
from ckptaudit.vm import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptaudit.containers import Container
    from ckptaudit.jobs.opening import Judged
    from ckptaudit.layouts import ComponentCount
    from ckptaudit.plan import Options
    from ckptaudit.tensors import TensorView

__all__ = ["account_of", "basis_under", "notes_on_vae"]


def basis_under(options: Options, container: Container, vae: Container | None) -> Basis:
    """What a plan under *options* is made of.

    Args:
        options: What is to be done with weights, copies and names.
        container: The checkpoint, open.
        vae: The file whose VAE takes the place of the checkpoint's, open; None if none does.

    Raises:
        CkptauditError: That cannot be made of it.
    """
    basis = basis_of(container, options.family)
    check_layout(basis.meaning.detection, options, container.source.name)
    return basis if vae is None else _with_vae(basis, vae, options)


def _with_vae(basis: Basis, other: Container, options: Options) -> Basis:
    """*basis* with the VAE that is in *other* in place of its own, or besides, if it has none.

    Args:
        basis: What a plan for the checkpoint is made of.
        other: An open file with a VAE; it stays open as long as the result is used.
        options: What is to be done with averaged copies and names.

    Raises:
        Unsupported: The model has no room for a VAE, or *other* has none that fits.
    """
    found = find_state_dict(other)
    donor = Donor.among({view.key: Spec(view.shape, view.dtype.name) for view in found.views})
    model = basis.meaning.detection
    _check_fit(basis, other, donor, options)
    shown = escape(PurePath(other.source.name).name)
    vae = VaeBasis(
        path=other.source.name,
        mark=_mark(shown, basis.state_dict),
        state_dict=found.path,
        detection=donor.detection,
        doubt=donor.doubt(model),
        leftovers=tuple(left for left in found.leftovers if not left.is_tensor),
    )
    placed = zip(found.views, donor.placed(model), strict=True)
    lines = [_line(vae.mark + view.key, placement, options) for view, placement in placed]
    placements = tuple(placement for placement, _ in lines)
    room = makes_room(model, basis.meaning.placements, basis.meaning.components)
    both = joined((basis.container, other))
    return Basis(
        container=both,
        state_dict=_united(basis.state_dict, found, vae.mark, both),
        meaning=Meaning(
            model,
            (*basis.meaning.placements, *placements),
            tuple(_with_row(basis.meaning.components, donor.row)),
        ),
        damage=basis.damage,
        barred=dict.fromkeys(room, f"is replaced by the VAE of {shown}")
        | {placement.key: bar for placement, bar in lines if bar},
        vae=vae,
    )


def account_of(source: Judged | None, vae: VaeBasis | None, sha256: str | None) -> VaeSource | None:
    """What an account says of the file that a VAE is from; None where there is none."""
    if source is None or vae is None:
        return None
    container, judgement = source.file.container, source.judgement
    return VaeSource(
        path=container.source.name,
        size=container.source.size,
        sha256=sha256,
        container=container.kind,
        state_dict=vae.state_dict,
        verdict=judgement.verdict,
        coverage=judgement.coverage,
        family=vae.detection.family,
        variant=vae.detection.variant,
        evidence=vae.detection.evidence,
        leftovers=vae.leftovers,
        findings=judgement.findings,
        permitted=judgement.permitted,
    )


def notes_on_vae(source: Judged | None, vae: VaeBasis | None) -> tuple[str, ...]:
    """What is worth telling besides about the file that a VAE is from, if there is one."""
    if source is None or vae is None:
        return ()
    told = (f"of the file of the VAE: {note}" for note in notes_on(source.file.container))
    return (*told, *([f"the VAE {vae.doubt}"] if vae.doubt else []))


def _check_fit(basis: Basis, other: Container, donor: Donor, options: Options) -> None:
    name, model = basis.container.source.name, basis.meaning.detection
    if not has_vae(model):
        raise Unsupported(
            f"{name}: is of family {model.family}, of whose VAE nothing is known, so none can be "
            "put in its place; --family names another"
        )
    if options.keep_names:
        raise Unsupported(
            f"{name}: its names cannot be kept beside those of another VAE; leave one of "
            "--keep-names and --replace-vae out"
        )
    for objection in donor.objections(model):
        raise Unsupported(f"{other.source.name}: {objection}; name another VAE")


def _mark(shown: str, state_dict: StateDict) -> str:
    """What no key of *state_dict* begins with, and says which file it stands for."""
    taken = [view.key for view in state_dict.views] + [left.path for left in state_dict.leftovers]
    mark = f"{shown}!"
    while any(key.startswith(mark) for key in taken):
        mark += "!"
    return mark


def _line(key: str, placement: Placement | None, options: Options) -> tuple[Placement, str]:
    """What the tensor *key* of the other file is, and why it is not written; "" if it may be."""
    if placement is None:
        return Placement(key, Component.OTHER, key), "is no part of the VAE, which alone is taken"
    if placement.component is not Component.EMA:
        return replace(placement, key=key), ""
    why = "is an averaged (EMA) copy of the VAE, for which the model has no name"
    return replace(placement, key=key, name=key), why if options.ema is Ema.KEEP else ""


def _united(own: StateDict, other: StateDict, mark: str, both: Container) -> StateDict:
    """Both state dicts as one, the keys of the second one behind *mark*, read from *both*."""

    def moved(view: TensorView, number: int) -> TensorView:
        key = mark + view.key if number else view.key
        return replace(view, key=key, storage=both.parts[number].storage(view.storage))

    views = (*(moved(view, 0) for view in own.views), *(moved(view, 1) for view in other.views))
    return StateDict(
        views=views,
        storages={view.storage.key: view.storage for view in views},
        path=own.path,
        leftovers=(
            *own.leftovers,
            *(replace(left, path=mark + left.path) for left in other.leftovers if left.is_tensor),
        ),
    )


def _with_row(
    rows: tuple[ComponentCount, ...], row: ComponentCount | None
) -> Iterator[ComponentCount]:
    """*rows* with *row* for the VAE, in the order of components."""
    by_component = {each.component: each for each in rows}
    if row is not None:
        by_component[row.component] = replace(row, unexpected=())
    return (by_component[each] for each in Component if each in by_component)
