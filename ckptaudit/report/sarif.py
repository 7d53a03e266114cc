"""Scans as SARIF 2.1.0, the format of code scanning services and of security dashboards.

Knows:      which of SARIF's objects say what a finding, a gap and a file without an answer are.
Is told:    what a run came to.
Never asks: for the time, the machine or the user: two runs write the same bytes.

Rules stand in the order of their ids, artifacts and results in the order in which the files
were named: a file, then what findings and gaps name in it, as nested artifacts.
A review is a ``note``, a suspicion a ``warning``, malice an ``error``.

Standard: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html; sections are named
where they decide something.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import PurePath
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from ckptaudit import __version__
from ckptaudit.containers import Kind
from ckptaudit.policy import RULES, Severity, record_text
from ckptaudit.policy.fingerprints import fingerprints
from ckptaudit.report.document import Failure, json_text
from ckptaudit.report.escaping import printable
from ckptaudit.report.rules import cwe_url

if TYPE_CHECKING:
    from ckptaudit.containers import Gap
    from ckptaudit.jobs.parts import Part
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
_MOST_NAME = 500
_RULE_INDEX = {rule_id: index for index, rule_id in enumerate(RULES)}


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
    offset: int | None = None
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


def _notification(name: str, level: str, what: str, why: str) -> _Descriptor:
    return _Descriptor(
        name,
        short_description=_Message(what),
        full_description=_Message(why),
        help=_Message(why),
        default_configuration={"level": level},
    )


_NOTIFICATIONS = (
    _notification(
        "not-read",
        "warning",
        "Part of a file was recognised but not read.",
        "What was not read was not judged, so the file is not called clean. Fetch a damaged file "
        "again; unpack a packed one and scan what is in it.",
    ),
    _notification(
        "no-answer",
        "error",
        "A file could not be scanned at all.",
        "It cannot be read, or is no checkpoint. Nothing is known of it.",
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
        told = [*scan.findings, *(each.finding for each in scan.permitted)]
        suppressions = [None] * len(scan.findings) + [
            [_suppression(each)] for each in scan.permitted
        ]
        self.results += [
            _result(finding, file, fingerprint, suppressed)
            for finding, fingerprint, suppressed in zip(
                told, fingerprints(told), suppressions, strict=True
            )
        ]
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
    """A scanned file among the artifacts, and the parts of it that findings and gaps name."""

    def __init__(self, artifacts: list[_Artifact], scan: ScanResult) -> None:
        self._size = scan.size
        self._index = len(artifacts)
        self._location = _ArtifactLocation(_uri(scan.path), self._index)
        self._parts: defaultdict[str, list[tuple[int, Part]]] = defaultdict(list)
        is_folder = scan.container is Kind.FOLDER
        artifacts.append(
            _Artifact(
                _ArtifactLocation(self._location.uri),
                length=scan.size,
                roles=["analysisTarget", *(["directory"] if is_folder else [])],
                hashes=_hashes(scan.sha256),
                properties={
                    "container": scan.container.value,
                    "verdict": scan.verdict.value,
                    "coverage": "complete" if scan.coverage.complete else "incomplete",
                },
            )
        )
        concerned = {finding.record for finding in scan.findings}
        concerned |= {each.finding.record for each in scan.permitted}
        for part in scan.parts:
            self._parts[part.record].append((len(artifacts), part))
            artifacts.append(self._nested(part, is_concerned=part.record in concerned))

    def _nested(self, part: Part, *, is_concerned: bool) -> _Artifact:
        properties = {"role": part.role.value}
        if part.container is not None:
            properties["container"] = part.container.value
        if len(part.name) > _MOST_NAME:
            properties["name"] = part.name
        return _Artifact(
            _ArtifactLocation(_nested_uri(part)),
            parent_index=self._index + (0 if part.within is None else 1 + part.within),
            offset=part.offset,
            length=part.size,
            # Section 3.24.6: where something was found though nobody asked for it by name.
            roles=["resultFile"] if is_concerned else None,
            hashes=_hashes(part.sha256),
            properties=properties,
        )

    def location(self, found: Finding | Gap) -> _Location:
        """Where a finding or a gap is in the outermost file, which services know by its path."""
        logical = None
        if found.record:
            at = found.stream_offset
            full = found.record if at is None else f"{found.record}@{at}"
            logical = [_LogicalLocation(found.record, full, "resource")]
        region = _region(found.offset, found.length, self._size)
        return _Location(_PhysicalLocation(self._location, region), logical)

    def related(self, finding: Finding) -> list[_Location] | None:
        """Where a finding is in the part it names, whose bytes may be compressed in the file."""
        index, part = self._named(finding)
        if part is None:
            return None
        region = _region(finding.stream_offset, finding.length, part.size)
        location = _ArtifactLocation(_nested_uri(part), index)
        return [_Location(_PhysicalLocation(location, region), id=1)]

    def _named(self, finding: Finding) -> tuple[int, Part | None]:
        """The part that *finding* names, and its artifact; of several of one name the nearest."""
        named = self._parts.get(finding.record, [])
        at = finding.offset
        if at is not None and len(named) > 1:
            # Of an instruction that gives the beginning of its pickle, of a zip's entry its header.
            at -= finding.stream_offset or 0
            behind = [one for one in named if (one[1].file_offset or 0) >= at]
            named = sorted(behind, key=lambda one: one[1].file_offset or 0) or named
        return named[0] if named else (self._index, None)


def _result(
    finding: Finding, file: _File, fingerprint: str, suppressions: list[_Suppression] | None
) -> _Result:
    return _Result(
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


def _region(offset: int | None, length: int | None, size: int | None) -> _Region | None:
    """Bytes of an artifact of *size* bytes; what has no known length is the byte it begins with."""
    if offset is None or (size is not None and offset > size):
        return None
    reach = 1 if length is None else length
    return _Region(offset, reach if size is None else min(reach, size - offset))


def _hashes(sha256: str | None) -> dict[str, str] | None:
    return {"sha-256": sha256} if sha256 else None


def _suppression(permitted: Permitted) -> _Suppression:
    """What takes a result out of account: a policy, which lies outside of what was scanned."""
    why = f"{printable(permitted.justification)} (until {permitted.expires})"
    return _Suppression("external", "accepted", why)


def _rule(rule: Rule) -> _Descriptor:
    weakness = f"[{rule.cwe}]({cwe_url(rule)})"
    learnt = f" Learnt from: {'; '.join(rule.learnt_from)}."
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


def _nested_uri(part: Part) -> str:
    """The name of a part as the path of a nested artifact, from which it can be had again.

    Section 3.4.3: it is relative to what is around it, so it begins with no slash.  What would
    make a reader resolve it to another is written in percent: an empty step, or one of dots.
    Each finding repeats it, so of a long name it has the beginning and a digest, and a property
    of the artifact the whole.
    """
    name = part.name if len(part.name) <= _MOST_NAME else record_text([part.name])
    steps = name.split("/")
    if {"", ".", ".."} & set(steps):
        return quote(name, safe="", errors="surrogatepass").replace(".", "%2E")
    return quote(name, errors="surrogatepass")
