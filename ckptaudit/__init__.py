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
    from collections.abc import Callable
    from types import ModuleType

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
        PolicyInvalid,
        Refused,
        SourceChanged,
        SourceUnreadable,
        Unsupported,
    )
    from ckptaudit.jobs.account import Conversion
    from ckptaudit.jobs.baseline import Baseline, read_baseline
    from ckptaudit.jobs.convert import convert
    from ckptaudit.jobs.explain import Explanation, explain
    from ckptaudit.jobs.inspect import Inspection, inspect
    from ckptaudit.jobs.policyfile import read_policy
    from ckptaudit.jobs.scan import ScanResult, scan
    from ckptaudit.jobs.screening import SafetyLevel, ScreenedGlobal, Screening, scan_file_path
    from ckptaudit.jobs.verification import Verification
    from ckptaudit.jobs.verify import verify
    from ckptaudit.plan import Action, Dedupe, Ema, Layout, OnOverflow, Options, Precision
    from ckptaudit.policy import Coverage, Finding, Permitted, Policy, Severity

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Baseline",
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
    "Layout",
    "LimitExceeded",
    "MalformedInput",
    "NoSuchRecord",
    "OnOverflow",
    "Options",
    "OutputExists",
    "OutputFailed",
    "Permitted",
    "Policy",
    "PolicyInvalid",
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
    "read_baseline",
    "read_policy",
    "scan",
    "scan_file_path",
    "verify",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    # PEP 562: asked once per name, for what is found is kept.
    for names, home in _HOMES:
        if name in names:
            found: object = getattr(home(), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'ckptaudit' has no attribute {name!r}")


# Each of these loads no more than its names need: only `verify` loads numpy, and `convert` and
# `inspect` when they are called.  So each has its import inside, which is what PLC0415 is about.
def _errors() -> ModuleType:
    from ckptaudit import errors  # noqa: PLC0415 - as all of these, only when it is asked for

    return errors


def _policy() -> ModuleType:
    from ckptaudit import policy  # noqa: PLC0415

    return policy


def _policyfile() -> ModuleType:
    from ckptaudit.jobs import policyfile  # noqa: PLC0415

    return policyfile


def _baseline() -> ModuleType:
    from ckptaudit.jobs import baseline  # noqa: PLC0415

    return baseline


def _scan() -> ModuleType:
    from ckptaudit.jobs import scan  # noqa: PLC0415

    return scan


def _screening() -> ModuleType:
    from ckptaudit.jobs import screening  # noqa: PLC0415

    return screening


def _inspect() -> ModuleType:
    from ckptaudit.jobs import inspect  # noqa: PLC0415

    return inspect


def _explain() -> ModuleType:
    from ckptaudit.jobs import explain  # noqa: PLC0415

    return explain


def _plan() -> ModuleType:
    from ckptaudit import plan  # noqa: PLC0415

    return plan


def _account() -> ModuleType:
    from ckptaudit.jobs import account  # noqa: PLC0415

    return account


def _convert() -> ModuleType:
    from ckptaudit.jobs import convert  # noqa: PLC0415

    return convert


def _verification() -> ModuleType:
    from ckptaudit.jobs import verification  # noqa: PLC0415

    return verification


def _verify() -> ModuleType:
    from ckptaudit.jobs import verify  # noqa: PLC0415

    return verify


_HOMES: tuple[tuple[tuple[str, ...], Callable[[], ModuleType]], ...] = (
    (("CastOverflow", "CkptauditError", "Incomplete", "JobDied", "LimitExceeded"), _errors),
    (("MalformedInput", "NoSuchRecord", "OutputExists", "OutputFailed"), _errors),
    (("PolicyInvalid", "Refused", "SourceChanged", "SourceUnreadable", "Unsupported"), _errors),
    (("Coverage", "Finding", "Permitted", "Policy", "Severity"), _policy),
    (("read_policy",), _policyfile),
    (("Baseline", "read_baseline"), _baseline),
    (("ScanResult", "scan"), _scan),
    (("SafetyLevel", "ScreenedGlobal", "Screening", "scan_file_path"), _screening),
    (("Inspection", "inspect"), _inspect),
    (("Explanation", "explain"), _explain),
    (("Action", "Dedupe", "Ema", "Layout", "OnOverflow", "Options", "Precision"), _plan),
    (("Conversion",), _account),
    (("convert",), _convert),
    (("Verification",), _verification),
    (("verify",), _verify),
)
