"""What a user may say of a model in ModelSpec metadata.

Knows:      the keys of Stability-AI/ModelSpec 1.0.1, and the form some values have.
Is told:    what the user says, by key.
Never asks: whether it is true, or what is known without it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MODELSPEC_KEYS", "check_described"]

# In the order in which they are written.  The version and the hash of the data are not the
# user's to say.
MODELSPEC_KEYS = (
    *("architecture", "implementation", "title", "resolution"),
    *("description", "author", "date"),
    *("implementation_version", "license", "usage_hint", "thumbnail", "tags", "merged_from"),
    *("trigger_phrase", "prediction_type", "timestep_range", "encoder_layer", "preprocessor"),
    *("is_negative_embedding", "unet_dtype", "vae_dtype"),
)
_FORMS = {
    "date": (
        re.compile(r"\d{4}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"),
        "a date such as 2026-11-25 or 2026-11-25T18:30:00Z",
    ),
    "resolution": (re.compile(r"[1-9]\d*x[1-9]\d*"), "a width and a height such as 512x512"),
    "thumbnail": (re.compile(r"data:image/[\w.+-]+;base64,.+"), "an image such as data:image/..."),
}


def check_described(fields: Iterable[tuple[str, str]]) -> None:
    """Refuse what the specification has no place for.

    Raises:
        ValueError: A key is none of `MODELSPEC_KEYS`, is there twice, or its value says nothing
            or is not of the form it has to have.
    """
    seen = set()
    for key, value in fields:
        if key not in MODELSPEC_KEYS:
            raise ValueError(f"{key!a} is not one of {', '.join(MODELSPEC_KEYS)}")
        if key in seen:
            raise ValueError(f"{key} is said twice")
        seen.add(key)
        if not value.strip():
            raise ValueError(f"{key} says nothing; leave it out")
        form, example = _FORMS.get(key, (None, ""))
        if form is not None and not form.fullmatch(value):
            raise ValueError(f"{key}={value!a} is not {example}")
