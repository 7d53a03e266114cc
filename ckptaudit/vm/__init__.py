"""Pickle opcodes in, an inert tree and a list of events out; nothing is executed.

`listing` is imported by whoever explains a pickle instruction by instruction, so that nobody
else waits for it.
"""

from __future__ import annotations

from ckptaudit.vm.brief import brief, escape
from ckptaudit.vm.extent import Extent, extent_of
from ckptaudit.vm.limits import Budget, Limits
from ckptaudit.vm.machine import trace_pickle
from ckptaudit.vm.nodes import (
    Build,
    Call,
    Dict,
    Event,
    Global,
    Node,
    Oddity,
    Opaque,
    PersistentId,
    Set,
    Trace,
    length_of,
)

__all__ = [
    "Budget",
    "Build",
    "Call",
    "Dict",
    "Event",
    "Extent",
    "Global",
    "Limits",
    "Node",
    "Oddity",
    "Opaque",
    "PersistentId",
    "Set",
    "Trace",
    "brief",
    "escape",
    "extent_of",
    "length_of",
    "trace_pickle",
]
