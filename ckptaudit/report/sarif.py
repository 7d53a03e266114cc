"""Scans as SARIF 2.1.0, the format of code scanning services and of security dashboards.

Knows:      which of SARIF's objects say what a finding, a gap and a file without an answer are.
Is told:    what a run came to.
Never asks: for the time, the machine or the user: two runs write the same bytes.

Rules stand in the order of their ids, artifacts and results in the order in which the files
were named: a file, then the records of it that a finding names, as nested artifacts.
A review is a ``note``, a suspicion a ``warning``, malice an ``error``.

Standard: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html; sections are named
where they decide something.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from ckptaudit import __version__
from ckptaudit.policy import RULES, Severity
from ckptaudit.report.document import Failure, json_text
from ckptaudit.report.escaping import printable
from ckptaudit.report.rules import cwe_url

if TYPE_CHECKING:
    from ckptaudit.containers import Gap
    from ckptaudit.jobs.scan import ScanResult
    from ckptaudit.policy import Finding, Permitted, Rule
    from ckptaudit.report.document import Run

__all__ = ["scan_sarif"]

_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS = {Severity.REVIEW: "note", Severity.SUSPICIOUS: "warning", Severity.MALICIOUS: "error"}
# What GitHub sorts alerts by: over 9.0 is critical, over 7.0 high, over 4.0 medium, else low.
_SECURITY_SEVERITY = {
    Severity.REVIEW: "3.0",
    Severity.SUSPICIOUS: "7.5",
    Severity.MALICIOUS: "9.5",
}
_BASELINE_STATES = {None: None, True: "unchanged", False: "new"}
# Rules about weights say nothing about security.
_WEIGHTS = "CKA3"
_RULE_INDEX = {rule_id: index for index, rule_id in enumerate(RULES)}
# Hexadecimal digits of a fingerprint: 64 bits.
_FINGERPRINT_DIGITS = 16


class _Object(msgspec.Struct, rename="camel", omit_defaults=True):
    """An object of SARIF; what is None or empty is left out."""


class _Message(_Object):
    text: str
    markdown: str | None = None


class _Descriptor(_Object):
    id: str
    name: str | None = None
    short_description: _Message | None = None
    full_description: _Message | None = None
    help: _Message | None = None
    help_uri: str | None = None
    default_configuration: dict[str, str] | None = None
    properties: dict[str, object] | None = None


class _ArtifactLocation(_Object):
    uri: str
    index: int | None = None


class _Region(_Object):
    byte_offset: int
    byte_length: int


class _PhysicalLocation(_Object):
    artifact_location: _ArtifactLocation
    # Section 3.30.1: where the artifact is binary, a region of bytes and no line.
    region: _Region | None = None


class _LogicalLocation(_Object):
    name: str
    fully_qualified_name: str
    kind: str


class _Location(_Object):
    physical_location: _PhysicalLocation
    logical_locations: list[_LogicalLocation] | None = None
    id: int | None = None


class _Artifact(_Object):
    location: _ArtifactLocation
    parent_index: int | None = None
    length: int | None = None
    roles: list[str] | None = None
    hashes: dict[str, str] | None = None
    properties: dict[str, str] | None = None


class _Reference(_Object):
    id: str
    index: int


class _Notification(_Object):
    descriptor: _Reference
    level: str
    message: _Message
    locations: list[_Location]


class _Invocation(_Object):
    execution_successful: bool
    exit_code: int
    exit_code_description: str
    tool_execution_notifications: list[_Notification]


class _Suppression(_Object):
    kind: str
    status: str
    justification: str


class _Result(_Object):
    rule_id: str
    rule_index: int
    level: str
    message: _Message
    locations: list[_Location]
    partial_fingerprints: dict[str, str]
    related_locations: list[_Location] | None = None
    suppressions: list[_Suppression] | None = None
    baseline_state: str | None = None


class _Driver(_Object):
    name: str
    version: str
    semantic_version: str
    rules: list[_Descriptor]
    notifications: list[_Descriptor]


class _Run(_Object):
    tool: dict[str, _Driver]
    invocations: list[_Invocation]
    artifacts: list[_Artifact]
    results: list[_Result]


class _Log(_Object):
    schema: str = msgspec.field(name="$schema")
    version: str
    runs: list[_Run]


_NOTIFICATIONS = (
    _Descriptor(
        "not-read",
        short_description=_Message("Part of a file was recognised but not read."),
        default_configuration={"level": "warning"},
    ),
    _Descriptor(
        "no-answer",
        short_description=_Message("A file could not be scanned at all."),
        default_configuration={"level": "error"},
    ),
)
_NOT_READ = _Reference("not-read", 0)
_NO_ANSWER = _Reference("no-answer", 1)
_EXIT_CODES = {
    0: "nothing at or above the threshold was found, and everything was read",
    1: "something at or above the threshold was found",
    2: "not everything could be read",
}


def scan_sarif(run: Run[ScanResult]) -> str:
    """All scans of a run as one SARIF log."""
    writer = _Writer()
    for answer in run.answers:
        if isinstance(answer, Failure):
            writer.add_failure(answer)
        else:
            writer.add_scan(answer)
    driver = _Driver(
        "ckptaudit", __version__, __version__, list(map(_rule, RULES.values())), [*_NOTIFICATIONS]
    )
    invocation = _Invocation(
        execution_successful=not writer.notifications,
        exit_code=run.status,
        exit_code_description=_EXIT_CODES[run.status],
        tool_execution_notifications=writer.notifications,
    )
    sarif_run = _Run({"driver": driver}, [invocation], writer.artifacts, writer.results)
    return json_text(_Log(_SCHEMA, "2.1.0", [sarif_run]))


class _Writer:
    """The lists of a SARIF run, which refer to each other by index."""

    def __init__(self) -> None:
        self.artifacts: list[_Artifact] = []
        self.results: list[_Result] = []
        self.notifications: list[_Notification] = []

    def add_scan(self, scan: ScanResult) -> None:
        """Add a file, what was found in it and what was not read of it."""
        file = _File(self.artifacts, scan)
        times: Counter[tuple[str, str, str]] = Counter()
        permitted = [(each.finding, [_suppression(each)]) for each in scan.permitted]
        for finding, suppressions in (*((each, None) for each in scan.findings), *permitted):
            same = (finding.rule, finding.record, finding.message)
            times[same] += 1
            fingerprint = f"{_digest(*same)}:{times[same]}"
            self.results.append(
                _Result(
                    rule_id=finding.rule,
                    rule_index=_RULE_INDEX[finding.rule],
                    level=_LEVELS[finding.severity],
                    message=_message(finding.message),
                    locations=[file.location(finding)],
                    related_locations=file.related(finding),
                    suppressions=suppressions,
                    baseline_state=_BASELINE_STATES[finding.known],
                    # The second is the only one that GitHub looks at, whatever it is made from.
                    partial_fingerprints={
                        "ckptaudit/v1": fingerprint,
                        "primaryLocationLineHash": fingerprint,
                    },
                )
            )
        self.notifications += [
            _Notification(_NOT_READ, "warning", _message(gap.reason), [file.location(gap)])
            for gap in scan.coverage.gaps
        ]

    def add_failure(self, failure: Failure) -> None:
        """Add a file without an answer."""
        uri = _uri(failure.path)
        index = len(self.artifacts)
        self.artifacts.append(_Artifact(_ArtifactLocation(uri), roles=["analysisTarget"]))
        location = _Location(_PhysicalLocation(_ArtifactLocation(uri, index)))
        self.notifications.append(
            _Notification(_NO_ANSWER, "error", _message(failure.error), [location])
        )


class _File:
    """A scanned file among the artifacts, and the records in it that are named."""

    def __init__(self, artifacts: list[_Artifact], scan: ScanResult) -> None:
        self._artifacts = artifacts
        self._size = scan.size
        self._location = _ArtifactLocation(_uri(scan.path), len(artifacts))
        # By the names around a record, and its own.
        self._nested: dict[tuple[str, ...], int] = {}
        artifacts.append(
            _Artifact(
                _ArtifactLocation(self._location.uri),
                length=scan.size,
                roles=["analysisTarget"],
                hashes={"sha-256": scan.sha256} if scan.sha256 else None,
                properties={
                    "container": scan.container.value,
                    "verdict": scan.verdict.value,
                    "coverage": "complete" if scan.coverage.complete else "incomplete",
                },
            )
        )

    def location(self, found: Finding | Gap) -> _Location:
        """Where a finding or a gap is in the outermost file, which services know by its path."""
        logical = None
        if found.record:
            at = found.stream_offset
            full = found.record if at is None else f"{found.record}@{at}"
            logical = [_LogicalLocation(found.record, full, "resource")]
        region = _region(found.offset, self._size)
        return _Location(_PhysicalLocation(self._location, region), logical)

    def related(self, finding: Finding) -> list[_Location] | None:
        """Where a finding is in the record itself, whose bytes may be compressed in the file."""
        if not finding.record:
            return None
        index = self._name(tuple(finding.record.split("!")))
        nested = _ArtifactLocation(self._artifacts[index].location.uri, index)
        return [_Location(_PhysicalLocation(nested, _region(finding.stream_offset)), id=1)]

    def _name(self, path: tuple[str, ...]) -> int:
        """The index of the artifact that a record is; it is added if this is the first time."""
        if path not in self._nested:
            parent = self._name(path[:-1]) if path[1:] else self._location.index
            self._nested[path] = len(self._artifacts)
            # Section 3.24.2: where a path leads to a nested artifact, it begins with a slash.
            location = _ArtifactLocation(f"/{quote(path[-1].lstrip('/'))}")
            self._artifacts.append(_Artifact(location, parent_index=parent))
        return self._nested[path]


def _region(offset: int | None, size: int | None = None) -> _Region | None:
    """The byte at which something begins: how long it is nobody says; none behind the end."""
    if offset is None or (size is not None and offset > size):
        return None
    return _Region(offset, int(offset != size))


def _suppression(permitted: Permitted) -> _Suppression:
    """What takes a result out of account: a policy, which lies outside of what was scanned."""
    why = f"{printable(permitted.justification)} (until {permitted.expires})"
    return _Suppression("external", "accepted", why)


def _rule(rule: Rule) -> _Descriptor:
    weakness = f"[{rule.cwe}]({cwe_url(rule)})"
    learnt = f" Learnt from: {', '.join(rule.advisories)}." if rule.advisories else ""
    properties: dict[str, object] = {"tags": ["weights", rule.cwe]}
    if not rule.id.startswith(_WEIGHTS):
        properties = {
            "tags": ["security", f"external/cwe/{rule.cwe.lower()}", rule.cwe],
            "security-severity": _SECURITY_SEVERITY[rule.severity],
        }
    return _Descriptor(
        rule.id,
        name="".join(filter(str.isalnum, rule.title.title())),
        short_description=_Message(f"The file {rule.title}."),
        full_description=_Message(rule.why),
        help=_Message(
            f"{rule.why}\n\nWeakness: {rule.cwe}.{learnt}",
            f"{rule.why}\n\nWeakness: {weakness}.{learnt}",
        ),
        default_configuration={"level": _LEVELS[rule.severity]},
        properties=properties,
    )


def _message(text: str) -> _Message:
    """*text*, which may quote a file, as a message that holds neither placeholder nor link."""
    # Section 3.11.5: braces are doubled.  Section 3.11.6: `[text](target)` would be a link.
    return _Message(text.replace("{", "{{").replace("}", "}}").replace("](", "]\\x28"))


def _uri(path: str) -> str:
    """*path* as a URI reference, relative to the working directory if it lies there."""
    pure = PurePath(path)
    here = PurePath(os.getcwd())  # noqa: PTH109 - it is no more than a name here
    if pure.is_absolute() and pure.is_relative_to(here):
        pure = pure.relative_to(here)
    return f"file://{quote(str(pure))}" if pure.is_absolute() else quote(str(pure))


def _digest(*parts: str) -> str:
    """What tells a finding from others, wherever the file lies and whatever else was scanned."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_FINGERPRINT_DIGITS]
