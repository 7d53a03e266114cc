"""ModelSpec metadata of a converted file: what is known of a model, and what the user says.

Stability-AI/ModelSpec 1.0.1 has keys for ``__metadata__`` by which programs list and load models
without a look at tensors.  Nothing is invented for it: what keys and shapes show is written, what
only people know is written where they say it, and a key that the specification demands and
nobody knows is asked for.

Knows:      which keys can be known, and which are demanded.
Is told:    a family, what the user says, a title for want of another.
Never asks: whether what the user says is true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptaudit.containers import MODELSPEC_PREFIX
from ckptaudit.errors import Unsupported
from ckptaudit.layouts import FAMILIES, Component, modelspec_ids
from ckptaudit.plan import MODELSPEC_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ckptaudit.layouts import Detection

__all__ = ["TITLE", "hash_claimed", "modelspec_in", "modelspec_of", "with_data_hash"]

TITLE = f"{MODELSPEC_PREFIX}title"
_VERSION = "1.0.1"
_HASH = f"{MODELSPEC_PREFIX}hash_sha256"


def modelspec_of(
    detection: Detection, title: str, said: Iterable[tuple[str, str]], name: str
) -> dict[str, str]:
    """The ModelSpec metadata of a file, in the specification's order.

    Args:
        detection: What the model was taken for.
        title: What it is called where the user says nothing else.
        said: What the user says, by key of the specification; it outranks what is known.
        name: What to call the source in a message.

    Raises:
        Unsupported: A key is demanded that nobody knows.
    """
    fields = {"title": title, **_known(detection), **dict(said)}
    demanded = ["architecture", "implementation"]
    demanded += ["resolution"] if _makes_images(detection) else []
    missing = [key for key in demanded if key not in fields]
    if missing:
        hint = "; --family sd2-base or sd2-v says it too" if detection.family == "sd2" else ""
        raise Unsupported(
            f"{name}: is of family {detection.family}, for which the ModelSpec's "
            f"{' and '.join(missing)} must be said: --modelspec-field {missing[0]}=...{hint}"
        )
    metadata = {f"{MODELSPEC_PREFIX}sai_model_spec": _VERSION}
    return metadata | {f"{MODELSPEC_PREFIX}{k}": fields[k] for k in MODELSPEC_KEYS if k in fields}


def modelspec_in(metadata: Mapping[str, str]) -> dict[str, str]:
    """What of the *metadata* of a file is of the ModelSpec."""
    return {key: value for key, value in metadata.items() if key.startswith(MODELSPEC_PREFIX)}


def with_data_hash(metadata: Mapping[str, str], digest: str) -> dict[str, str]:
    """*metadata* with the SHA-256 of the file's data, written as the specification has it."""
    return {**metadata, _HASH: f"0x{digest}"}


def hash_claimed(metadata: Mapping[str, str]) -> str | None:
    """The SHA-256 that a file says its data have, in hexadecimal; None if it does not say."""
    claimed = metadata.get(_HASH)
    return None if claimed is None else claimed.lower().removeprefix("0x")


def _makes_images(detection: Detection) -> bool:
    return detection.has_inventory and FAMILIES[detection.family].core is Component.UNET


def _known(detection: Detection) -> dict[str, str]:
    """What keys and shapes show.

    That a model predicts v, they may show; that it does not, they never do: trainers need not
    leave a mark.  A guess at it from a weight is not among what is known.
    """
    known: dict[str, str] = {}
    ids = modelspec_ids(detection.family)
    if ids is not None:
        known |= {"architecture": ids.architecture, "implementation": ids.implementation}
    if _makes_images(detection) and detection.prediction is not None:
        side = FAMILIES[detection.family].image_size(detection.prediction)
        known["resolution"] = f"{side}x{side}"
        if detection.prediction == "v_prediction":
            known["prediction_type"] = "v"
    return known
