"""Read, audit and convert legacy PyTorch checkpoints without executing them.

>>> import ckptaudit
>>> ckptaudit.__version__.count(".")
2

The verbs are `scan`, `inspect`, `convert` and `verify`; each takes a path, returns a
frozen dataclass and raises nothing but a `CkptauditError` for bad input.  Importing
the package loads none of their dependencies: a name is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptaudit.errors import CkptauditError
    from ckptaudit.jobs import Inspection, ScanResult, inspect, scan
    from ckptaudit.jobs.convert import Conversion, convert
    from ckptaudit.jobs.verify import Verification, verify
    from ckptaudit.plan import Action, Dedupe, Ema, OnOverflow, Options, Precision

__version__ = "0.1.0"

__all__ = [
    "Action",
    "CkptauditError",
    "Conversion",
    "Dedupe",
    "Ema",
    "Inspection",
    "OnOverflow",
    "Options",
    "Precision",
    "ScanResult",
    "Verification",
    "__version__",
    "convert",
    "inspect",
    "scan",
    "verify",
]


def __getattr__(name: str) -> object:
    # PEP 562: asked once per name that is not there yet.
    if name not in __all__:
        raise AttributeError(f"module 'ckptaudit' has no attribute {name!r}")
    from ckptaudit import errors, jobs, plan  # noqa: PLC0415

    for room in (errors, jobs, plan):
        if hasattr(room, name):
            return getattr(room, name)
    # These two load numpy.
    from ckptaudit.jobs import convert, verify  # noqa: PLC0415

    return getattr(convert if hasattr(convert, name) else verify, name)
