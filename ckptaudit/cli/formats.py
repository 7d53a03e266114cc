"""Which function renders which format of which command.

Knows:      the formats of each command.
Is told:    a format's name, and what a run came to.
Never asks: what a result says.

Each format is imported when it is asked for: a scan that prints text waits for no other.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ckptaudit.cli.policy import day_to_propose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptaudit.jobs.account import Conversion
    from ckptaudit.jobs.explain import Explanation
    from ckptaudit.jobs.inspect import Inspection
    from ckptaudit.jobs.scan import ScanResult
    from ckptaudit.jobs.verification import Verification
    from ckptaudit.jobs.weights import Weights
    from ckptaudit.report import Run

__all__ = ["conversion_as", "explanation_as", "inspection_as", "scan_as", "verification_as"]

Result = TypeVar("Result")


def scan_as(format_: str, run: Run[ScanResult], weights: Mapping[str, Weights | None]) -> str:
    """The answers of ``scan``, in the format named; see `scan_bom` for *weights*."""
    match format_:
        case "sarif":
            from ckptaudit.report.sarif import scan_sarif

            return scan_sarif(run)
        case "sbom":
            from ckptaudit.report.cyclonedx import scan_bom

            return scan_bom(run, weights)
        case "md":
            from ckptaudit.report.markdown import scan_markdown

            return scan_markdown(run, day_to_propose())
        case _:
            from ckptaudit.report import scan_text

            return _as(format_, run, partial(scan_text, expires=day_to_propose()))


def explanation_as(format_: str, run: Run[Explanation]) -> str:
    """The answer of ``explain``, in the format named."""
    from ckptaudit.report.explanation import explanation_text

    return _as(format_, run, lambda result: "".join(explanation_text(result)))


def inspection_as(format_: str, run: Run[Inspection]) -> str:
    """The answers of ``inspect``, in the format named."""
    if format_ == "md":
        from ckptaudit.report.markdown import inspection_markdown

        return inspection_markdown(run)
    from ckptaudit.report import inspection_text

    return _as(format_, run, inspection_text)


def conversion_as(format_: str, run: Run[Conversion]) -> str:
    """The answers of ``convert``, in the format named."""
    if format_ == "md":
        from ckptaudit.report.markdown import conversion_markdown

        return conversion_markdown(run)
    from ckptaudit.report import conversion_text

    return _as(format_, run, conversion_text)


def verification_as(format_: str, run: Run[Verification]) -> str:
    """The answer of ``verify``, in the format named."""
    from ckptaudit.report import verification_text

    return _as(format_, run, verification_text)


def _as(format_: str, run: Run[Result], as_text: Callable[[Result], str]) -> str:
    """What every command has: JSON, a line of JSON for each file, and text."""
    from ckptaudit.report import to_json, to_jsonl

    match format_:
        case "json":
            return to_json(run.results, run.failures).decode()
        case "jsonl":
            return to_jsonl(run.answers)
        case _:
            return "".join(map(as_text, run.results))
