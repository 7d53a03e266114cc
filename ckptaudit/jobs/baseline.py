"""An earlier report to compare with: what it has of a file need not stop anybody again.

A file is the same if its SHA-256 is, and a finding if rule, place and message are.  A file
whose content changed starts anew.

Knows:      what a JSON report of a scan looks like.
Is told:    a path.
Never asks: whether what is known is harmless: it stays in report and verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from ckptaudit.errors import PolicyInvalid
from ckptaudit.jobs.policyfile import read_named
from ckptaudit.vm import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

    from ckptaudit.policy import Finding, Judgement

__all__ = ["Baseline", "read_baseline"]

# What `report` writes; its number is there, a floor higher.
_SCHEMA_VERSION = "1"
_TOOL = "ckptaudit"
_MOST_BYTES = 256_000_000
# A gap is told again for as long as there is one.
_NEVER_KNOWN = "CKA208"

_Key: TypeAlias = "tuple[str, str, int | None, int | None, str]"


class _Finding(msgspec.Struct):
    rule: str
    message: str
    record: str
    offset: int | None
    stream_offset: int | None


class _Permitted(msgspec.Struct):
    finding: _Finding


class _File(msgspec.Struct):
    """A file in the report of a scan; no other report has all of this."""

    sha256: str | None
    findings: list[_Finding]
    permitted: list[_Permitted]
    globals: list[msgspec.Raw]


class _Tool(msgspec.Struct):
    name: str


class _Report(msgspec.Struct):
    schema_version: str
    tool: _Tool
    files: list[_File]


@dataclass(frozen=True, slots=True)
class Baseline:
    """What an earlier scan found.

    Attributes:
        found: By SHA-256, what stood against that file.
        permitted: By SHA-256, what a policy permitted of it: where that no longer holds, it is new.
        nameless: How many files of it have no SHA-256, so that they cannot be recognised.
    """

    found: Mapping[str, frozenset[_Key]]
    permitted: Mapping[str, frozenset[_Key]]
    nameless: int

    def marked(self, judgement: Judgement, sha256: str | None) -> Judgement:
        """*judgement* of the file with that hash, each finding with a word on whether it is known.

        Without a hash none is.
        """
        found = self.found.get(sha256 or "", frozenset())
        either = found | self.permitted.get(sha256 or "", frozenset())
        return replace(
            judgement,
            findings=tuple(_marked(finding, found) for finding in judgement.findings),
            permitted=tuple(
                replace(each, finding=_marked(each.finding, either)) for each in judgement.permitted
            ),
        )


def _marked(finding: Finding, known: frozenset[_Key]) -> Finding:
    is_known = finding.rule != _NEVER_KNOWN and _key(finding) in known
    return replace(finding, known=is_known)


def _key(finding: Finding | _Finding) -> _Key:
    return (
        finding.rule,
        finding.record,
        finding.offset,
        finding.stream_offset,
        finding.message,
    )


def read_baseline(path: str | PathLike[str]) -> Baseline:
    """The report at *path*, which an earlier ``scan --format json`` wrote.

    Raises:
        PolicyInvalid: It is no such report.
        CkptauditError: It cannot be read.
    """
    name, data = read_named(path, "baseline", _MOST_BYTES)
    help_ = "write one with: ckptaudit scan --format json"
    try:
        report = msgspec.json.decode(data, type=_Report)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        why = escape(str(err))
        raise PolicyInvalid(f"{name}: is no JSON report of a scan ({why}); {help_}") from err
    if report.schema_version != _SCHEMA_VERSION or report.tool.name != _TOOL:
        raise PolicyInvalid(f"{name}: is no report of this version of ckptaudit; {help_}")
    return Baseline(
        _by_hash(report, lambda file: file.findings),
        _by_hash(report, lambda file: [each.finding for each in file.permitted]),
        sum(file.sha256 is None for file in report.files),
    )


def _by_hash(
    report: _Report, findings_of: Callable[[_File], list[_Finding]]
) -> dict[str, frozenset[_Key]]:
    keys: dict[str, frozenset[_Key]] = {}
    for file in report.files:
        if file.sha256 is not None:
            same = keys.get(file.sha256, frozenset())
            keys[file.sha256] = same.union(map(_key, findings_of(file)))
    return keys
