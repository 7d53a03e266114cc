"""Framings: what kind of file this is, which pickles it holds, where its storages lie.

`folder` is imported by whoever is given one, so that nobody else waits for it.
"""

from __future__ import annotations

from ckptaudit.containers.container import (
    MOST_DIMENSIONS,
    Carried,
    Container,
    Gap,
    Kind,
    Mishap,
    Nested,
    Record,
    Region,
    Role,
    Storage,
    StoredTensor,
    Use,
    check_rank,
)
from ckptaudit.containers.dispatch import open_container
from ckptaudit.containers.inside import Inside
from ckptaudit.containers.persistent import (
    StorageRef,
    key_of,
    module_of,
    storage_of,
    storage_type,
)
from ckptaudit.containers.places import Place
from ckptaudit.containers.safetensors import MODELSPEC_PREFIX, data_start, speaks_of_file

__all__ = [
    "MODELSPEC_PREFIX",
    "MOST_DIMENSIONS",
    "Carried",
    "Container",
    "Gap",
    "Inside",
    "Kind",
    "Mishap",
    "Nested",
    "Place",
    "Record",
    "Region",
    "Role",
    "Storage",
    "StorageRef",
    "StoredTensor",
    "Use",
    "check_rank",
    "data_start",
    "key_of",
    "module_of",
    "open_container",
    "speaks_of_file",
    "storage_of",
    "storage_type",
]
