"""Read, audit and convert legacy PyTorch checkpoints without executing them.

>>> import ckptaudit
>>> ckptaudit.__version__.count(".")
2

The verbs are `scan`, `explain`, `inspect`, `convert` and `verify`; each takes a path, returns a
frozen dataclass and raises nothing but a `CkptauditError` for bad input.  `scan_file_path` is
`scan` for programs that ask, with nobody watching, whether to load a file; it raises not even
that.  Importing the package loads none of their dependencies: a name is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptaudit.errors import (
        CastOverflow,
        CkptauditError,
        Incomplete,
        JobDied,
        LimitExceeded,
        MalformedInput,
        NoSuchRecord,
        OutputExists,
        OutputFailed,
        Refused,
        SourceChanged,
        SourceUnreadable,
        Unsupported,
    )
    from ckptaudit.jobs.account import Conversion
    from ckptaudit.jobs.convert import convert
    from ckptaudit.jobs.explain import Explanation, explain
    from ckptaudit.jobs.inspect import Inspection, inspect
    from ckptaudit.jobs.scan import ScanResult, scan
    from ckptaudit.jobs.screening import SafetyLevel, ScreenedGlobal, Screening, scan_file_path
    from ckptaudit.jobs.verify import Verification, verify
    from ckptaudit.plan import Action, Dedupe, Ema, OnOverflow, Options, Precision
    from ckptaudit.policy import Coverage, Finding, Severity

__version__ = "0.1.0"

__all__ = [
    "Action",
    "CastOverflow",
    "CkptauditError",
    "Conversion",
    "Coverage",
    "Dedupe",
    "Ema",
    "Explanation",
    "Finding",
    "Incomplete",
    "Inspection",
    "JobDied",
    "LimitExceeded",
    "MalformedInput",
    "NoSuchRecord",
    "OnOverflow",
    "Options",
    "OutputExists",
    "OutputFailed",
    "Precision",
    "Refused",
    "SafetyLevel",
    "ScanResult",
    "ScreenedGlobal",
    "Screening",
    "Severity",
    "SourceChanged",
    "SourceUnreadable",
    "Unsupported",
    "Verification",
    "__version__",
    "convert",
    "explain",
    "inspect",
    "scan",
    "scan_file_path",
    "verify",
]


_ERRORS = (
    *("CastOverflow", "CkptauditError", "Incomplete", "JobDied", "LimitExceeded"),
    *("MalformedInput", "NoSuchRecord", "OutputExists", "OutputFailed", "Refused"),
    *("SourceChanged", "SourceUnreadable", "Unsupported"),
)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    # PEP 562: asked once per name, for what is found is kept.  Each branch loads no more than
    # its names need: only `verify` loads numpy, and `convert` when it is called.
    found: dict[str, object]
    if name in _ERRORS:
        from ckptaudit import errors  # noqa: PLC0415 - as all of these, only when it is asked for

        found = {error: getattr(errors, error) for error in _ERRORS}
    elif name in {"Coverage", "Finding", "Severity"}:
        from ckptaudit import policy  # noqa: PLC0415

        found = {each: getattr(policy, each) for each in ("Coverage", "Finding", "Severity")}
    elif name in {"ScanResult", "scan"}:
        from ckptaudit.jobs.scan import ScanResult, scan  # noqa: PLC0415

        found = {"ScanResult": ScanResult, "scan": scan}
    elif name in {"SafetyLevel", "ScreenedGlobal", "Screening", "scan_file_path"}:
        from ckptaudit.jobs import screening  # noqa: PLC0415

        found = {each: getattr(screening, each) for each in screening.__all__}
    elif name in {"Inspection", "inspect"}:
        from ckptaudit.jobs.inspect import Inspection, inspect  # noqa: PLC0415

        found = {"Inspection": Inspection, "inspect": inspect}
    elif name in {"Explanation", "explain"}:
        from ckptaudit.jobs.explain import Explanation, explain  # noqa: PLC0415

        found = {"Explanation": Explanation, "explain": explain}
    elif name in {"Action", "Dedupe", "Ema", "OnOverflow", "Options", "Precision"}:
        from ckptaudit import plan  # noqa: PLC0415

        found = {option: getattr(plan, option) for option in plan.__all__}
    elif name in {"Conversion", "convert"}:
        from ckptaudit.jobs.account import Conversion  # noqa: PLC0415
        from ckptaudit.jobs.convert import convert  # noqa: PLC0415

        found = {"Conversion": Conversion, "convert": convert}
    elif name in {"Verification", "verify"}:
        from ckptaudit.jobs.verify import Verification, verify  # noqa: PLC0415

        found = {"Verification": Verification, "verify": verify}
    else:
        raise AttributeError(f"module 'ckptaudit' has no attribute {name!r}")
    globals()[name] = found[name]
    return found[name]
