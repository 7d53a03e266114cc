"""`scan_file_path`: may a program that loads files with nobody watching load this one?

The function, and the shape of its answer, are those that WebUIs and download managers have
called for years as ``picklescan.scanner.scan_file_path``: whoever calls that changes one import.
What such a caller does next is to hand the file to ``torch.load`` with everything allowed, so
what a person would be asked to review is an issue here.

Knows:      which answers of a scan mean that a file had better not be loaded.
Is told:    a path.
Never asks: why: that is what `scan` and `explain` are for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ckptaudit.errors import CkptauditError
from ckptaudit.jobs.scan import scan
from ckptaudit.policy import RULES, Severity
from ckptaudit.policy.pickles import rule_of_pair

if TYPE_CHECKING:
    from ckptaudit.jobs.scan import ScanResult
    from ckptaudit.policy import GlobalUse

__all__ = ["SafetyLevel", "ScreenedGlobal", "Screening", "scan_file_path"]


class SafetyLevel(str, Enum):
    """What is thought of one name, under the words that callers compare with."""

    Innocuous = "innocuous"
    Suspicious = "suspicious"
    Dangerous = "dangerous"


@dataclass(frozen=True, slots=True)
class ScreenedGlobal:
    """A name that the file asks for.

    Attributes:
        module: As the pickle spells it, escaped.
        name: As the pickle spells it, escaped.
        safety: What is thought of the pair alone.  Harmless names have been put to harmful
            use, and some harm has no name: go by the numbers of the `Screening`.
    """

    module: str
    name: str
    safety: SafetyLevel


@dataclass(frozen=True, slots=True)
class Screening:
    """Whether to load a file.

    Callers look at one of three fields, some of them at only one ever since: so all three
    agree.  *infected_files* is 1 exactly if *issues_count* is not 0, and neither is 0 if
    *scan_err* is true.

    Attributes:
        globals: Names its pickles ask for, in order of first mention; the first thousand.
        scanned_files: 1, or 0 if there is no answer: the file is missing, cannot be read, is
            no checkpoint or changed meanwhile.
        issues_count: Findings that count; one at least if *scan_err* is true.
        infected_files: 1 if there is an issue, else 0.
        scan_err: Part of the file, or all of it, was not read.
    """

    globals: tuple[ScreenedGlobal, ...]
    scanned_files: int
    issues_count: int
    infected_files: int
    scan_err: bool


def scan_file_path(
    path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    *,
    fail_on: Severity | str = Severity.REVIEW,
) -> Screening:
    """Scan one file for a caller that goes by numbers; nothing is executed or printed.

    A file that is missing or no checkpoint, damaged or hostile, raises nothing: it has an
    answer that says not to load it.

    Args:
        path: The file, or the folder of a diffusers model.
        fail_on: The lowest severity that counts as an issue.  By default whole modules,
            TorchScript and what else is for review do; ``"suspicious"``, as for the command
            line, lets them pass.

    Raises:
        ValueError: *fail_on* is no severity.
        TypeError: *path* is no path.

    >>> scan_file_path("no/such/model.ckpt")
    Screening(globals=(), scanned_files=0, issues_count=1, infected_files=1, scan_err=True)
    """
    threshold = Severity(fail_on)
    named = os.fsdecode(path)
    try:
        # The hash is no part of the answer.
        return _screened(scan(named, with_hash=False), threshold)
    except CkptauditError:
        return Screening((), scanned_files=0, issues_count=1, infected_files=1, scan_err=True)


def _screened(result: ScanResult, threshold: Severity) -> Screening:
    is_partial = not result.coverage.complete
    issues = sum(finding.severity >= threshold for finding in result.findings)
    if is_partial:
        issues = max(issues, 1)
    return Screening(
        globals=tuple(ScreenedGlobal(use.module, use.name, _safety(use)) for use in result.globals),
        scanned_files=1,
        issues_count=issues,
        infected_files=min(issues, 1),
        scan_err=is_partial,
    )


def _safety(use: GlobalUse) -> SafetyLevel:
    if use.allowed is not None:
        return SafetyLevel.Innocuous
    # A name that had to be escaped or cut for the report is none that is merely unknown.
    rule_id = rule_of_pair(use.module, use.name)
    is_malicious = rule_id is not None and RULES[rule_id].severity is Severity.MALICIOUS
    return SafetyLevel.Dangerous if is_malicious else SafetyLevel.Suspicious
