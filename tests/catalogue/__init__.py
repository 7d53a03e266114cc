"""The published techniques by which pickle checkpoints attack their reader or fool a scanner.

108 numbered entries under five headings: A gaps in lists of bad names, B errors of the
engine that reads the pickle, C readers that see different things in one file, D torch's
restricted loader and tensors, E denial of service.  Each is forged here, or `NO_FILE`
says why it is nothing that a file could show.
"""

from __future__ import annotations

from catalogue import archives, engines, streams, tensors, wrappings
from catalogue.case import Case
from catalogue.gadgets import GADGETS, Gadget

__all__ = ["CASES", "ENTRIES", "GADGETS", "NO_FILE", "Case", "Gadget"]

ENTRIES = range(1, 109)
CASES: tuple[Case, ...] = (
    *engines.CASES,
    *streams.CASES,
    *archives.CASES,
    *wrappings.CASES,
    *tensors.CASES,
)
NO_FILE = {
    58: "GHSA-wccx-j62j-r448: a hook on one of pickle's loaders, and no file chooses its loader",
}
