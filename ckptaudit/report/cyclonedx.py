"""Scans as a CycloneDX 1.6 bill of materials: each file a machine-learning model.

Knows:      which of CycloneDX's objects say what a checkpoint and a finding are.
Is told:    what a run came to.
Never asks: for the time: the serial number is made from the content, so that one content has
            one number.

Components stand in the order in which the files were named, the vulnerabilities of each in the
order of their rules.  Annotations would be nearer to what a gap is, but must tell the time.

Standard: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import msgspec

from ckptaudit import __version__
from ckptaudit.policy import RULES, Severity
from ckptaudit.report.document import json_text
from ckptaudit.report.facts import first_of, permitted, place_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptaudit.jobs.parts import Part
    from ckptaudit.jobs.scan import ScanResult
    from ckptaudit.jobs.weights import Count, Weights
    from ckptaudit.policy import Finding, Rule
    from ckptaudit.report.document import Run

__all__ = ["scan_bom"]

_SEVERITIES = {
    Severity.REVIEW: "low",
    Severity.SUSPICIOUS: "high",
    Severity.MALICIOUS: "critical",
}
_UNKNOWN = "unknown"
# Names a serial number is derived under; any fixed one would do.
_NAMESPACE = uuid.UUID("c1f1a5f6-6f0e-5f5c-9d4b-2f0f6a3f7f10")


class _Object(msgspec.Struct, rename="camel", omit_defaults=True):
    """An object of CycloneDX; what is None is left out."""


class _Property(_Object):
    name: str
    value: str


class _Hash(_Object):
    alg: str
    content: str


class _ModelParameters(_Object):
    model_architecture: str


class _ModelCard(_Object):
    model_parameters: _ModelParameters


class _Component(_Object):
    type: str
    name: str
    bom_ref: str | None = msgspec.field(name="bom-ref", default=None)
    version: str | None = None
    hashes: list[_Hash] | None = None
    components: list[_Component] | None = None
    model_card: _ModelCard | None = None
    properties: list[_Property] | None = None


class _Named(_Object):
    name: str


class _Rating(_Object):
    source: _Named
    severity: str
    method: str


class _Affected(_Object):
    ref: str


class _Vulnerability(_Object):
    bom_ref: str = msgspec.field(name="bom-ref")
    id: str
    source: _Named
    ratings: list[_Rating]
    cwes: list[int]
    description: str
    detail: str
    recommendation: str
    affects: list[_Affected]


class _Metadata(_Object):
    tools: dict[str, list[_Component]]
    properties: list[_Property] | None = None


class _Bom(_Object):
    schema: str = msgspec.field(name="$schema")
    bom_format: str
    spec_version: str
    version: int
    metadata: _Metadata
    components: list[_Component]
    vulnerabilities: list[_Vulnerability]
    serial_number: str | None = None


def scan_bom(run: Run[ScanResult], weights: Mapping[str, Weights | None]) -> str:
    """All scans of a run as one bill of materials; files without an answer are told as such.

    Args:
        run: The scans.
        weights: By path, what tensors a file holds; None if it has no state dict.
    """
    tool = _Component("application", "ckptaudit", version=__version__)
    unanswered = [_Property("ckptaudit:no-answer", failure.error) for failure in run.failures]
    files = [(f"file-{number}", result) for number, result in enumerate(run.results, 1)]
    bom = _Bom(
        "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "CycloneDX",
        "1.6",
        1,
        _Metadata({"components": [tool]}, unanswered or None),
        [_component(ref, result, weights.get(result.path)) for ref, result in files],
        [each for ref, result in files for each in _vulnerabilities(ref, result)],
    )
    serial = uuid.uuid5(_NAMESPACE, json_text(bom))
    return json_text(msgspec.structs.replace(bom, serial_number=f"urn:uuid:{serial}"))


def _component(ref: str, result: ScanResult, weights: Weights | None) -> _Component:
    told = {
        "path": result.path,
        "format": result.container.value,
        "size": result.size,
        "verdict": result.verdict.value,
        "coverage": "complete" if result.coverage.complete else "incomplete",
        **(_weights(weights) if weights else {}),
    }
    listed = _properties(told)
    listed += [_Property("ckptaudit:not-read", str(gap)) for gap in result.coverage.gaps]
    listed += [_Property("ckptaudit:permitted", told) for told in permitted(result.permitted)]
    listed += [_Property("ckptaudit:note", note) for note in result.notes]
    is_known = weights is not None and weights.family != _UNKNOWN
    return _Component(
        "machine-learning-model",
        result.path.rstrip("/").rpartition("/")[2] or result.path,
        ref,
        hashes=_hashes(result.sha256),
        components=[*_of_model(ref, weights), *_of_file(ref, result.parts)] or None,
        model_card=_ModelCard(_ModelParameters(weights.family)) if weights and is_known else None,
        properties=listed,
    )


def _weights(weights: Weights) -> dict[str, str | int]:
    """What is told of the tensors of a file; parameters are elements."""
    told: dict[str, str | int] = {"family": weights.family}
    if weights.variant:
        told["variant"] = weights.variant
    told |= _counts(weights.total)
    for dtype, count in weights.by_dtype.items():
        told |= {f"{name}:{dtype}": number for name, number in _counts(count).items()}
    return told


def _counts(count: Count) -> dict[str, int]:
    return {"tensors": count.tensors, "parameters": count.parameters}


def _of_model(ref: str, weights: Weights | None) -> list[_Component]:
    """The parts of a model whose family is known."""
    if weights is None or weights.family == _UNKNOWN:
        return []
    return [
        _Component(
            "machine-learning-model",
            component.value,
            f"{ref}-{component.value}",
            properties=_properties(_counts(count)),
        )
        for component, count in weights.by_component.items()
    ]


def _of_file(ref: str, parts: tuple[Part, ...]) -> list[_Component]:
    """The records and files inside that findings and gaps name, each in what it is in."""
    inside: dict[int | None, list[_Component]] = {}
    # Each stands behind what it is in, so backwards all that is in one is known before it.
    for number, part in reversed(list(enumerate(parts))):
        told: dict[str, str | int | None] = {
            "record": part.record,
            "role": part.role.value,
            "format": part.container.value if part.container else None,
            "offset": part.offset,
            "size": part.size,
        }
        component = _Component(
            "file",
            part.name,
            f"{ref}-part-{number + 1}",
            hashes=_hashes(part.sha256),
            components=inside.get(number),
            properties=_properties(told),
        )
        inside.setdefault(part.within, []).insert(0, component)
    return inside.get(None, [])


def _properties(told: Mapping[str, str | int | None]) -> list[_Property]:
    return [
        _Property(f"ckptaudit:{name}", str(value))
        for name, value in told.items()
        if value is not None
    ]


def _hashes(sha256: str | None) -> list[_Hash] | None:
    return [_Hash("SHA-256", sha256)] if sha256 else None


def _vulnerabilities(ref: str, result: ScanResult) -> list[_Vulnerability]:
    """One for each rule that was hit, with what was found."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in result.findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    return [
        _vulnerability(ref, RULES[rule_id], found) for rule_id, found in sorted(by_rule.items())
    ]


def _vulnerability(ref: str, rule: Rule, found: list[Finding]) -> _Vulnerability:
    us = _Named("ckptaudit")
    detail = first_of(
        ": ".join([*([", ".join(place)] if (place := place_of(one)) else []), one.message])
        for one in found
    )
    return _Vulnerability(
        bom_ref=f"{ref}-{rule.id}",
        id=rule.id,
        source=us,
        ratings=[_Rating(us, _SEVERITIES[rule.severity], "other")],
        cwes=[int(rule.cwe.removeprefix("CWE-"))],
        description=f"The file {rule.title}.",
        detail="\n".join(detail),
        recommendation=rule.why,
        affects=[_Affected(ref)],
    )
