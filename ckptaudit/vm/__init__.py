"""Pickle opcodes in, an inert tree and a list of events out; nothing is executed."""

from __future__ import annotations

from ckptaudit.vm.brief import brief, escape
from ckptaudit.vm.extent import Extent, extent_of
from ckptaudit.vm.limits import Budget, Limits
from ckptaudit.vm.listing import Instruction, Use, instructions
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
    "Instruction",
    "Limits",
    "Node",
    "Oddity",
    "Opaque",
    "PersistentId",
    "Set",
    "Trace",
    "Use",
    "brief",
    "escape",
    "extent_of",
    "instructions",
    "length_of",
    "trace_pickle",
]
