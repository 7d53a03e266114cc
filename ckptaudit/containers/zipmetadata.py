"""What torch writes into an archive beside the pickle and the storages.

Knows:      torch/serialization.py (_save); caffe2/serialize/inline_container.cc
            (writeEndOfFile, writeSerializationId).
Is told:    what a record is called, and what it holds.
Never asks: where it is.
"""

from __future__ import annotations

import re

__all__ = ["METADATA", "MOST_METADATA_BYTES", "is_as_written"]

# The longest is .data/serialization_id, 40 digits.
MOST_METADATA_BYTES = 64

# torch takes the number that its version begins with, whatever follows.
_VERSION = re.compile(rb"[0-9]{1,4}\n?")
METADATA = {
    "version": _VERSION,
    # Any: what is wrong with it is told where it is needed.
    "byteorder": re.compile(rb".*", re.DOTALL),
    ".format_version": re.compile(rb"[0-9]{1,4}"),
    ".storage_alignment": re.compile(rb"[0-9]{1,19}"),
    ".data/serialization_id": re.compile(rb"[0-9]+"),
    ".data/version": _VERSION,
}


def is_as_written(name: str, text: bytes) -> bool:
    """Whether torch may have written *text* into the record that it calls *name*."""
    return METADATA[name].fullmatch(text) is not None
