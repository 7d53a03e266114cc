"""Every format of a scan: true to its standard, the same twice, and deaf to what files say."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from gzip import compress
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from catalogue import CASES, Case
from catalogue.case import STORED
from catalogue.tensors import VOICES
from commands import Run, audit
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from forge import (
    CALLS_SYSTEM,
    NONE,
    POP,
    REDUCE,
    Raw,
    ZipEntry,
    called,
    deflated,
    extra_field,
    global_,
    inst,
    legacy_stream,
    object_npy,
    pickled,
    stack_global,
    state_dict,
    storage_id,
    tensor,
    torch_entries,
    torch_zip,
    value,
    zip_archive,
)
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from oracle import write_sd1
from pydantic import BaseModel
from sarif_pydantic import Level, Sarif
from sarif_pydantic.sarif import Notification

from ckptaudit.policy import RULES, Severity
from ckptaudit.report import code, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from markdown_it.token import Token

FORMATS = ("text", "json", "jsonl", "sarif", "md")
SIDE_FILES = ("json", "sarif", "md", "sbom")
CALLS = "posix.system('true')"
BOM = JsonStrictValidator(SchemaVersion.V1_6)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One clean, one malicious, one cut short, one nobody can read; in that order."""
    monkeypatch.chdir(tmp_path)
    good = torch_zip(state_dict({"w": 2}), STORED)
    cut = pickled(CALLS_SYSTEM)[:-1]
    for name, data in {
        "good.pt": good,
        "bad.pt": torch_zip(pickled(CALLS_SYSTEM)),
        "cut.pt": cut,
        "none.pt": b"<html>",
    }.items():
        Path(name).write_bytes(data)
    return ["good.pt", "bad.pt", "cut.pt", "none.pt"]


def sarif_of(*paths: object) -> Any:
    """The only run in the SARIF log about *paths*, which is what an independent model takes."""
    text = audit("scan", *paths, "-f", "sarif").out
    assert set(not_in(Sarif.model_validate_json(text))) <= NOT_IN_MODEL
    (run,) = json.loads(text)["runs"]
    for notification in run["invocations"][0]["toolExecutionNotifications"]:
        assert set(not_in(Notification.model_validate(notification))) == set()
    return run


# The standard has these (section 3.20); the model does not.
NOT_IN_MODEL = {
    "Invocation.exitCode",
    "Invocation.exitCodeDescription",
    "Invocation.toolExecutionNotifications",
}


def not_in(value: object) -> Iterator[str]:
    """What the model keeps without knowing it, such as a property whose name is misspelled."""
    if isinstance(value, BaseModel):
        yield from (f"{type(value).__name__}.{name}" for name in value.model_extra or ())
        value = [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, list):
        for item in value:
            yield from not_in(item)


# What all formats have in common


@pytest.mark.parametrize("which", ["good.pt", "bad.pt", "cut.pt", "none.pt"])
def test_the_exit_status_does_not_depend_on_the_format(which: str, files: list[str]) -> None:
    assert which in files

    statuses = {audit("scan", which, "-f", format_).status for format_ in FORMATS}

    assert len(statuses) == 1


def test_two_runs_write_the_same_bytes(files: list[str], tmp_path: Path) -> None:
    runs = []
    for turn in ("first", "second"):
        side = [
            option for kind in SIDE_FILES for option in (f"--{kind}", tmp_path / f"{turn}.{kind}")
        ]
        outs = [audit("scan", *files, "-f", format_).out for format_ in FORMATS]
        assert audit("scan", *files, *side).status == 1
        runs.append((outs, [(tmp_path / f"{turn}.{kind}").read_bytes() for kind in SIDE_FILES]))

    assert runs[0] == runs[1]


def test_a_side_file_is_what_standard_output_would_be(files: list[str], tmp_path: Path) -> None:
    """All of them in one run; and the next run may write over them."""
    for _ in range(2):
        done = audit(
            "scan", *files, *(f"--{kind}={tmp_path / f'report.{kind}'}" for kind in SIDE_FILES)
        )
        assert done.status == 1
        assert done.out == audit("scan", *files).out
    for kind in set(SIDE_FILES) & set(FORMATS):
        written = (tmp_path / f"report.{kind}").read_text(encoding="utf-8")
        assert written == audit("scan", *files, "-f", kind).out


@pytest.mark.parametrize("kind", SIDE_FILES)
def test_a_report_is_written_over_nothing_but_its_like(
    kind: str, files: list[str], tmp_path: Path
) -> None:
    """Neither over a checkpoint, a report in another format, or notes; and before any work."""
    Path("notes").write_text(f"# ckptaudit {kind}\n\nWhat we found.\n", encoding="utf-8")
    other = "sarif" if kind != "sarif" else "json"
    audit("scan", files[0], f"--{other}", "other.report")
    for taken in ("good.pt", "other.report", "notes"):
        before = Path(taken).read_bytes()

        done = audit("scan", "bad.pt", f"--{kind}", taken)

        assert (done.status, done.out) == (2, "")
        assert "exists and is no" in done.err
        assert Path(taken).read_bytes() == before
    assert not list(tmp_path.glob(".ckptaudit*"))


def test_two_reports_cannot_have_one_place(files: list[str]) -> None:
    done = audit("scan", *files, "--json", "x", "--sarif", "x")

    assert (done.status, done.out) == (2, "")
    assert not Path("x").exists()


# Each format


def test_a_line_of_jsonl_is_the_json_document_of_its_file(files: list[str]) -> None:
    lines = audit("scan", *files, "-f", "jsonl").out.splitlines()

    assert len(lines) == len(files)
    for file, line in zip(files, lines, strict=True):
        assert json.loads(line) == json.loads(audit("scan", file, "-f", "json").out)


def test_a_sarif_log_is_what_the_standard_says(files: list[str]) -> None:
    run = sarif_of(*files)
    (invocation,) = run["invocations"]
    rules = run["tool"]["driver"]["rules"]

    assert invocation["exitCode"] == 1
    assert invocation["executionSuccessful"] is False
    assert [rule["id"] for rule in rules] == list(RULES)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        for location in (*result["locations"], *result.get("relatedLocations", [])):
            where = location["physicalLocation"]["artifactLocation"]
            artifact = run["artifacts"][where["index"]]
            assert artifact["location"]["uri"] == where["uri"]
    for artifact in run["artifacts"]:
        if "parentIndex" in artifact:
            assert not artifact["location"]["uri"].startswith("/")
            assert "length" in run["artifacts"][artifact["parentIndex"]]
    notifications = run["tool"]["driver"]["notifications"]
    for told in invocation["toolExecutionNotifications"]:
        assert notifications[told["descriptor"]["index"]]["id"] == told["descriptor"]["id"]


def test_a_sarif_result_points_at_the_byte(files: list[str]) -> None:
    data = Path(files[1]).read_bytes()
    (scanned,) = audit("scan", "bad.pt", "-f", "json").files
    run = sarif_of("bad.pt")
    (result,) = run["results"]
    (finding,) = scanned["findings"]

    assert result["message"]["text"] == finding["message"]
    assert CALLS in result["message"]["text"]
    (outer,), (inner,) = result["locations"], result["relatedLocations"]
    region = outer["physicalLocation"]["region"]
    # REDUCE, which would have made the call.
    assert region == {"byteOffset": finding["offset"], "byteLength": 1}
    assert data[region["byteOffset"] :][:1] == b"R"
    assert inner["physicalLocation"] == {
        "artifactLocation": {"uri": "archive/data.pkl", "index": 1},
        "region": {"byteOffset": finding["stream_offset"], "byteLength": 1},
    }
    (logical,) = outer["logicalLocations"]
    assert logical["fullyQualifiedName"] == f"archive/data.pkl@{finding['stream_offset']}"
    top, nested = run["artifacts"]
    assert top["location"]["uri"] == "bad.pt"
    assert top["hashes"] == {"sha-256": scanned["sha256"]}
    pickle = pickled(CALLS_SYSTEM)
    assert nested == {
        "location": {"uri": "archive/data.pkl"},
        "parentIndex": 0,
        "offset": data.index(pickle),
        "length": len(pickle),
        "roles": ["resultFile"],
        "hashes": {"sha-256": sha256(pickle).hexdigest()},
        "properties": {"role": "pickle"},
    }


def test_what_is_compressed_has_no_place_in_the_file_but_one_in_its_record(tmp_path: Path) -> None:
    path = tmp_path / "packed.pt"
    pickle = pickled(CALLS_SYSTEM)
    first, *others = torch_entries(pickle, {})
    packed = replace(first, packed=deflated(pickle), method=8)
    path.write_bytes(zip_archive([packed, *others]))

    (result,) = (one for one in sarif_of(path)["results"] if one["ruleId"] == "CKA101")

    assert "region" not in result["locations"][0]["physicalLocation"]
    inner = result["relatedLocations"][0]["physicalLocation"]
    assert inner["region"] == {"byteOffset": pickle.index(REDUCE), "byteLength": 1}
    artifact = sarif_of(path)["artifacts"][inner["artifactLocation"]["index"]]
    assert artifact["length"] == len(pickle)
    assert artifact["hashes"] == {"sha-256": sha256(pickle).hexdigest()}
    assert "offset" not in artifact


@pytest.mark.parametrize(
    ("severity", "level", "floor"),
    [
        (Severity.REVIEW, "note", 0.1),
        (Severity.SUSPICIOUS, "warning", 7),
        (Severity.MALICIOUS, "error", 9.1),
    ],
    ids=["review", "suspicious", "malicious"],
)
def test_a_sarif_level_is_the_severity(severity: Severity, level: str, floor: float) -> None:
    """So is GitHub's own scale: high is what `--fail-on` stops at by default."""
    levels = [one.value for one in Level]
    rules = audit("scan", "/no-such", "-f", "sarif").out
    for rule in json.loads(rules)["runs"][0]["tool"]["driver"]["rules"]:
        if RULES[rule["id"]].severity is severity:
            assert rule["defaultConfiguration"]["level"] == level
            assert level in levels
            assert RULES[rule["id"]].cwe in rule["properties"]["tags"]
            if "security" in rule["properties"]["tags"]:
                assert float(rule["properties"]["security-severity"]) >= floor
            else:
                assert rule["id"].startswith("CKA3")


def test_gaps_and_files_without_an_answer_are_notifications(files: list[str]) -> None:
    (scanned,) = audit("scan", "cut.pt", "-f", "json").files
    (invocation,) = sarif_of(*files)["invocations"]

    told = [
        (one["descriptor"]["id"], one["level"], one["message"]["text"])
        for one in invocation["toolExecutionNotifications"]
    ]

    gaps = [("not-read", "warning", gap["reason"]) for gap in scanned["coverage"]["gaps"]]
    assert gaps
    assert told[:-1] == gaps
    assert told[-1][:2] == ("no-answer", "error")
    assert told[-1][2].startswith("none.pt: ")
    (alone,) = sarif_of("good.pt")["invocations"]
    assert (alone["executionSuccessful"], alone["exitCode"]) == (True, 0)


def fingerprints(*paths: object) -> dict[str, list[str]]:
    run = sarif_of(*paths)
    by_file: dict[str, list[str]] = {}
    for result in run["results"]:
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        by_file.setdefault(uri, []).append(result["partialFingerprints"]["ckptaudit/v1"])
        assert len(set(result["partialFingerprints"].values())) == 1
    return by_file


def test_a_fingerprint_outlives_a_move_and_other_files(files: list[str]) -> None:
    """And tells two findings of one file apart, though they say the same."""
    twice = pickled(CALLS_SYSTEM, CALLS_SYSTEM)
    Path("twice.pt").write_bytes(torch_zip(twice))
    alone = fingerprints("bad.pt")["bad.pt"]
    Path("elsewhere").mkdir()
    Path("elsewhere/moved.pt").write_bytes(Path("bad.pt").read_bytes())

    among = fingerprints("twice.pt", "cut.pt", "elsewhere/moved.pt", *files)

    assert among["bad.pt"] == among["elsewhere/moved.pt"] == alone
    assert len(set(among["twice.pt"])) == len(among["twice.pt"]) > 1


def test_a_fingerprint_does_not_know_where_in_the_file_a_finding_is(files: list[str]) -> None:
    """What lies in front of it may grow: bytes, opcodes, records, other pickles, other findings."""
    call = torch_zip(pickled(CALLS_SYSTEM))
    inner = pickled(called(global_("pickle", "loads"), pickled(CALLS_SYSTEM)), protocol=4)
    longer = pickled(
        NONE, POP, called(global_("pickle", "loads"), pickled(CALLS_SYSTEM)), protocol=4
    )
    pairs = {
        "opcodes": (call, torch_zip(pickled((NONE + POP) * 7, CALLS_SYSTEM))),
        "another": (call, torch_zip(pickled(inst("some", "Thing"), POP, CALLS_SYSTEM))),
        "records": (call, torch_zip(pickled(CALLS_SYSTEM), {"0": bytes(999)})),
        "carried": (torch_zip(inner), torch_zip(longer)),
        "among-loose-bytes": (
            pickled(NONE) + b"\xff" * 7 + pickled(CALLS_SYSTEM),
            pickled(NONE) + b"\xff" * 9 + pickled(CALLS_SYSTEM),
        ),
        "behind-others": (
            pickled(NONE) + pickled(CALLS_SYSTEM),
            pickled(NONE) * 3 + pickled(CALLS_SYSTEM),
        ),
        "how-many-more": (
            torch_zip(pickled((CALLS_SYSTEM + POP) * 203, NONE)),
            torch_zip(pickled((CALLS_SYSTEM + POP) * 204, NONE)),
        ),
    }
    assert files
    for name, (before, after) in pairs.items():
        known = []
        for data in (before, after):
            Path("changed.pt").write_bytes(data)
            known.append(
                {
                    result["partialFingerprints"]["ckptaudit/v1"]
                    for result in sarif_of("changed.pt")["results"]
                    if result["ruleId"] == "CKA101"
                }
            )
        assert known[0] <= known[1], name
        assert known[0], name


def test_different_findings_have_different_fingerprints(files: list[str]) -> None:
    """By rule, by record, by what would be called with what; and by number where all are equal."""
    calls = [("posix", "system", "a"), ("posix", "system", "b"), ("nt", "system", "a")]
    parts = [inst(*call) + POP for call in calls * 2]
    pickle = pickled(*parts, NONE)
    Path("many.pt").write_bytes(
        zip_archive([*torch_entries(pickle, {}), ZipEntry("archive/more.pkl", pickle)])
    )

    (known,) = fingerprints("many.pt").values()

    assert files
    assert len(known) > 12
    assert len(set(known)) == len(known)


# Nested artifacts

NAMES = [
    "a!b",
    "100%",
    "%2e%2e",
    "/etc/passwd",
    "//host/share",
    "../../up",
    "a/./b",
    "..",
    "a\\b",
    "x:y?q#f",
    "\u2215\u202e\U0001f4a9",
    "a\nb\x1b[2J",
    "!",
    "x" * 500,
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_the_name_of_a_record_can_be_had_from_its_uri(name: str, files: list[str]) -> None:
    assert files
    Path("odd.pt").write_bytes(
        zip_archive([*torch_entries(pickled(NONE), {}), ZipEntry(name, pickled(CALLS_SYSTEM))])
    )

    artifacts = sarif_of("odd.pt")["artifacts"]

    uris = [one["location"]["uri"] for one in artifacts if "parentIndex" in one]
    (uri,) = (uri for uri in uris if not uri.startswith("archive/"))
    assert unquote(uri) == name
    assert re.fullmatch(r"[A-Za-z0-9._~%-]+(/[A-Za-z0-9._~%-]+)*", uri), "a relative path"
    assert not {".", ".."} & set(uri.split("/"))


def test_a_long_name_is_told_once_and_repeated_by_its_digest(files: list[str]) -> None:
    assert files
    name = "\U0001f4a9" * 10_000
    Path("odd.pt").write_bytes(
        zip_archive([*torch_entries(pickled(NONE), {}), ZipEntry(name, pickled(CALLS_SYSTEM))])
    )

    run = sarif_of("odd.pt")

    assert [one["properties"].get("name") for one in run["artifacts"]].count(name) == 1
    assert len(json.dumps(run["results"])) < 100_000


def test_two_records_of_one_name_are_two_artifacts(files: list[str]) -> None:
    assert files
    first, second = pickled(CALLS_SYSTEM), pickled(NONE, POP, CALLS_SYSTEM)
    data = zip_archive(
        [
            *torch_entries(pickled(NONE), {}),
            ZipEntry("archive/a.pkl", first),
            ZipEntry("archive/a.pkl", second),
        ]
    )
    Path("twins.pt").write_bytes(data)

    run = sarif_of("twins.pt")

    for result in run["results"]:
        if result["ruleId"] == "CKA101":
            outer = result["locations"][0]["physicalLocation"]["region"]["byteOffset"]
            inner = result["relatedLocations"][0]["physicalLocation"]
            artifact = run["artifacts"][inner["artifactLocation"]["index"]]
            assert artifact["offset"] + inner["region"]["byteOffset"] == outer
    digests = [one["hashes"]["sha-256"] for one in run["artifacts"] if "parentIndex" in one]
    assert {sha256(pickle).hexdigest() for pickle in (first, second)} <= set(digests)


def test_artifacts_nest_as_files_do(files: list[str]) -> None:
    """Each with its place in what is around it, and the hash of its own bytes."""
    assert files
    carried = pickled(CALLS_SYSTEM)
    pickle = pickled(called(global_("pickle", "loads"), carried), protocol=4)
    zipped = torch_zip(pickle)
    outer = zip_archive([ZipEntry("in!side.gz", compress(zipped, mtime=0))])
    Path("nest.zip").write_bytes(outer)

    run = sarif_of("nest.zip")

    nested = {one["location"]["uri"]: one for one in run["artifacts"]}
    expected = {
        "in%21side.gz": compress(zipped, mtime=0),
        "gzip": zipped,
        "archive/data.pkl": pickle,
        f"bytes%20at%20{pickle.rindex(REDUCE)}": carried,
        "pickle": carried,
    }
    parent = "nest.zip"
    for uri, data in expected.items():
        artifact = nested[uri]
        assert run["artifacts"][artifact["parentIndex"]] == nested[parent]
        assert artifact["length"] == len(data)
        assert artifact["hashes"] == {"sha-256": sha256(data).hexdigest()}
        parent = uri
    assert nested["in%21side.gz"]["offset"] == outer.index(compress(zipped, mtime=0))
    assert "offset" not in nested["gzip"]
    assert nested["archive/data.pkl"]["offset"] == zipped.index(pickle)
    assert nested["pickle"]["offset"] == 0


def test_an_artifact_without_its_beginning_has_no_place(files: list[str]) -> None:
    """The standard has no number for where a file would begin that is not all there."""
    assert files
    array = object_npy(pickled(called(global_("pickle", "loads"), pickled(CALLS_SYSTEM))))
    broken = ZipEntry("b.npy", array, method=8, packed=deflated(array)[:-4])
    Path("cut.npz").write_bytes(zip_archive([ZipEntry("a.npy"), broken])[40:])

    run = sarif_of("cut.npz")

    (archive,) = (one for one in run["artifacts"] if one["location"]["uri"] == "zip")
    assert "offset" not in archive
    assert all(one.get("offset", 0) >= 0 for one in run["artifacts"])
    assert {"CKA101", "CKA201", "CKA208"} <= {result["ruleId"] for result in run["results"]}


@pytest.mark.parametrize("before", ["<4s6HI", "<4s6H3I5HI"], ids=["packed-size", "place"])
def test_no_number_in_a_report_leads_out_of_the_file(before: str, files: list[str]) -> None:
    """A directory may state any number of 64 bits; counted from a file inside it would be more."""
    assert files
    wide = extra_field(b"\1\0", b"\xff" * 8)
    entries = [
        *torch_entries(pickled(NONE), {}),
        ZipEntry("elsewhere/x", b"x", central_extra=wide),
    ]
    inner = bytearray(zip_archive(entries))
    # All ones, which say that the number stands in the extra field, behind those fields.
    struct.pack_into("<I", inner, inner.rindex(b"PK\1\2") + struct.calcsize(before), 0xFFFFFFFF)
    data = zip_archive([ZipEntry("in.pt", bytes(inner))])
    Path("lies.pt").write_bytes(data)

    for format_ in ("json", "sarif"):
        report = audit("scan", f"--format={format_}", "lies.pt").out
        numbers = re.findall(r'(?:offset|length)": ([0-9]+)', report, re.IGNORECASE)
        assert "elsewhere/x" in report
        assert 0 < max(map(int, numbers)) <= len(data)


def test_what_is_large_is_not_hashed_a_second_time(files: list[str]) -> None:
    assert files
    entries = torch_entries(pickled(NONE), {"0": bytes(17 << 20)})
    Path("large.pt").write_bytes(zip_archive(entries))

    (artifact,) = (one for one in sarif_of("large.pt")["artifacts"] if "parentIndex" in one)

    assert artifact["length"] == 17 << 20
    assert "hashes" not in artifact


def test_many_parts_are_hashed_up_to_a_budget_of_all_of_them(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files
    monkeypatch.setattr("ckptaudit.jobs.parts._MOST_BYTES", 250)
    Path("many.pt").write_bytes(
        zip_archive(torch_entries(pickled(NONE), {str(key): bytes(100) for key in range(4)}))
    )

    parts = [one for one in sarif_of("many.pt")["artifacts"] if "parentIndex" in one]

    assert ["hashes" in part for part in parts] == [True, True, False, False]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.technique) for case in CASES if case.limits is None],
)
def test_every_log_about_the_catalogue_is_one(case: Case, tmp_path: Path) -> None:
    """Valid, with regions inside their artifacts, and no artifact inside itself."""
    path = tmp_path / "a.pt"
    path.write_bytes(case.data)

    run = sarif_of(path)

    artifacts = run["artifacts"]
    for number, artifact in enumerate(artifacts):
        assert artifact.get("parentIndex", -1) < number
        assert artifact.get("offset", 0) >= 0
    for result in run["results"]:
        for location in (*result["locations"], *result.get("relatedLocations", [])):
            physical = location["physicalLocation"]
            artifact = artifacts[physical["artifactLocation"]["index"]]
            region = physical.get("region", {"byteOffset": 0, "byteLength": 0})
            if "length" in artifact:
                end = region["byteOffset"] + region["byteLength"]
                assert 0 <= region["byteOffset"] <= end <= artifact["length"]
    known = [result["partialFingerprints"]["ckptaudit/v1"] for result in run["results"]]
    assert len(set(known)) == len(known)


@pytest.mark.parametrize(
    ("name", "uri"),
    [("a b#c?.pt", "a%20b%23c%3F.pt"), ("x:y.pt", "x%3Ay.pt"), ("é%41.pt", "%C3%A9%2541.pt")],
    ids=["delimiters", "scheme", "letters"],
)
def test_a_sarif_uri_is_relative_and_encoded(name: str, uri: str, files: list[str]) -> None:
    Path(name).write_bytes(Path(files[1]).read_bytes())

    for path in (name, Path(name).absolute()):
        assert sarif_of(path)["artifacts"][0]["location"]["uri"] == uri


def test_a_sarif_uri_outside_the_working_directory_is_absolute(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")

    (artifact, *_) = sarif_of(tmp_path / files[1])["artifacts"]

    assert artifact["location"]["uri"] == (tmp_path / files[1]).as_uri()


def bom_of(*paths: object) -> Any:
    bom = Path("bom.json")
    audit("scan", *paths, "--sbom", bom)
    text = bom.read_text(encoding="utf-8")
    assert BOM.validate_str(text) is None
    bom.unlink()
    return json.loads(text)


def test_a_bill_of_materials_is_what_the_standard_says(files: list[str]) -> None:
    bom = bom_of(*files)
    scanned = audit("scan", *files, "-f", "json").files

    assert [one["name"] for one in bom["components"]] == files[:-1]
    for component, file in zip(bom["components"], scanned, strict=True):
        assert component["type"] == "machine-learning-model"
        assert component["hashes"] == [{"alg": "SHA-256", "content": file["sha256"]}]
        told = {one["name"]: one["value"] for one in component["properties"]}
        assert told["ckptaudit:verdict"] == file["verdict"]
        assert told["ckptaudit:format"] == file["container"]
        assert (told["ckptaudit:coverage"] == "complete") is file["coverage"]["complete"]
        hit = {
            one["id"]
            for one in bom["vulnerabilities"]
            if one["affects"] == [{"ref": component["bom-ref"]}]
        }
        assert hit == {finding["rule"] for finding in file["findings"]}
    for one in bom["vulnerabilities"]:
        assert f"CWE-{one['cwes'][0]}" == RULES[one["id"]].cwe
    (unanswered,) = bom["metadata"]["properties"]
    assert unanswered["value"].startswith("none.pt: ")


def told_of(component: dict[str, Any]) -> dict[str, str]:
    """The properties of a component, by their names without the namespace."""
    pairs = [(one["name"].partition(":"), one["value"]) for one in component["properties"]]
    assert {namespace for (namespace, _, _), _ in pairs} == {"ckptaudit"}
    return {name: value for (_, _, name), value in pairs}


def test_a_bill_counts_tensors_and_parameters_by_type(files: list[str]) -> None:
    """Names of the same elements are two tensors, whose parameters are counted once."""
    assert files
    tied = Raw(tensor(storage_id("0", 6), (2, 3)))
    halves = Raw(tensor(storage_id("1", 4, storage="HalfStorage"), (4,)))
    part = Raw(tensor(storage_id("0", 6), (3,), offset=3))
    tensors = value({"a": tied, "b": tied, "c": halves, "d": part})
    Path("tied.pt").write_bytes(torch_zip(pickled(tensors), {"0": bytes(24), "1": bytes(8)}))

    (component,) = bom_of("tied.pt")["components"]

    told = told_of(component)
    assert (told["tensors"], told["parameters"]) == ("4", "13")
    assert (told["tensors:float32"], told["parameters:float32"]) == ("3", "9")
    assert (told["tensors:float16"], told["parameters:float16"]) == ("1", "4")
    assert told["family"] == "unknown"
    assert "modelCard" not in component


def test_a_bill_names_the_family_and_its_parts(files: list[str]) -> None:
    assert files
    write_sd1(Path("sd1.ckpt"))
    (inspected,) = audit("inspect", "--no-hash", "sd1.ckpt", "-f", "json").files

    (component,) = bom_of("sd1.ckpt")["components"]

    assert component["modelCard"] == {"modelParameters": {"modelArchitecture": "sd1"}}
    told = told_of(component)
    assert told["family"] == "sd1"
    assert told["tensors"] == str(len(inspected["tensors"]))
    parts = {one["name"]: told_of(one)["tensors"] for one in component["components"]}
    assert parts == {
        part["component"]: str(part["present"])
        for part in inspected["components"]
        if part["present"]
    }


def test_a_bill_nests_the_parts_in_which_something_was_found(files: list[str]) -> None:
    assert files
    carried = pickled(CALLS_SYSTEM)
    pickle = pickled(called(global_("pickle", "loads"), carried), protocol=4)
    Path("nest.gz").write_bytes(compress(torch_zip(pickle), mtime=0))

    (component,) = bom_of("nest.gz")["components"]

    assert "tensors" not in told_of(component), "nobody asked what is inside for its weights"
    for name, data in {
        "gzip": torch_zip(pickle),
        "archive/data.pkl": pickle,
        f"bytes at {pickle.rindex(REDUCE)}": carried,
        "pickle": carried,
    }.items():
        (component,) = component["components"]
        assert (component["type"], component["name"]) == ("file", name)
        assert component["hashes"] == [{"alg": "SHA-256", "content": sha256(data).hexdigest()}]
        assert told_of(component)["size"] == str(len(data))


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.technique) for case in CASES if case.limits is None],
)
def test_every_bill_about_the_catalogue_is_one(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(case.data)
    bom = tmp_path / "bom"

    audit("scan", "--no-hash", path, "--sbom", bom)

    text = bom.read_text(encoding="utf-8")
    assert BOM.validate_str(text) is None
    references = re.findall(r'"bom-ref": "([^"]+)"', text)
    assert len(set(references)) == len(references)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_key_that_is_no_text_can_be_told(format_: str, files: list[str]) -> None:
    """A lone half of a surrogate pair, which no report can hold as it is."""
    assert files
    key = "\ud800!"
    odd = value({"w": Raw(tensor(storage_id(key, 2), (2,)))})
    Path("odd.pt").write_bytes(legacy_stream(pickled(odd), keys=pickled(value([]))))

    done = audit("scan", "odd.pt", "-f", format_, "--sbom", "bom")

    assert "internal error" not in done.err
    assert "ud800" in done.out
    assert BOM.validate_str(Path("bom").read_text()) is None


def test_the_serial_number_of_a_bill_is_that_of_its_content(files: list[str]) -> None:
    numbers = [bom_of(*paths)["serialNumber"] for paths in (files, files, files[:1])]

    assert numbers[0] == numbers[1] != numbers[2]


def test_a_file_named_twice_is_told_twice(files: list[str]) -> None:
    """Components must differ, and be referred to, all the same."""
    bom = bom_of(files[1], files[1])

    assert len({component["bom-ref"] for component in bom["components"]}) == 2


def test_without_a_hash_there_is_none(files: list[str]) -> None:
    done = audit("scan", "--no-hash", *files, "-f", "sarif", "--sbom", "bom", "--md", "md")

    assert all(
        "hashes" not in artifact for artifact in json.loads(done.out)["runs"][0]["artifacts"]
    )
    assert all("hashes" not in one for one in json.loads(Path("bom").read_text())["components"])
    assert "not hashed" in Path("md").read_text()


def test_markdown_says_what_the_text_says(files: list[str]) -> None:
    document = audit("scan", *files, "-f", "md").out

    rows = [line for line in document.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == files
    assert "| `good.pt` | clean | complete | zip |" in rows[0]
    assert "| `bad.pt` | **malicious** | complete |" in rows[1]
    assert "**incomplete**" in rows[2]
    assert "**no answer**" in rows[3]
    assert "* **malicious** [CKA101](#cka101), `archive/data.pkl, byte " in document
    assert CALLS in document
    assert "\n### CKA101\n" in document
    assert RULES["CKA101"].why in document
    assert "Not read:" in document
    assert "* `none.pt: " in document


def test_inspect_and_convert_speak_markdown_too(files: list[str]) -> None:
    inspected = audit("inspect", "good.pt", "none.pt", "-f", "md", "--md", "inspected.md")
    planned = audit("convert", "good.pt", "none.pt", "--dry-run", "-f", "md", "--json", "planned")
    converted = audit("convert", "good.pt", "-f", "md")

    assert files
    assert (inspected.status, planned.status, converted.status) == (2, 2, 0)
    assert Path("inspected.md").read_text() == inspected.out
    assert "| `good.pt` | unknown | 1 | 8 B | clean |" in inspected.out
    assert "* float32: 8 B" in inspected.out
    assert "| `good.pt` | unknown | " in planned.out
    assert "| planned |" in planned.out
    assert "| converted |" in converted.out
    assert "2 values as written: 0 overflowed" in converted.out
    for document in (inspected.out, planned.out):
        assert "| `none.pt` | **no answer** |" in document
        assert "* `none.pt: is an HTML page" in document


# Hostile names

MARKDOWN = {
    "a-table": "a | b |\n|---|---|",
    "a-code-span": "`` ` ``` end",
    "a-link": "[click](https://example.com) <https://example.com>",
    "an-image": "![x](https://example.com/x.png)",
    "a-mention": "@everyone #1",
    "an-entity": "&lt;b&gt; &#96;",
    "a-tag": "</code></td><img src=x onerror=alert(1)>",
    "placeholders": "{0} {{1}}",
    "azure-commands": "x ##vso[task.setvariable variable=a]b ##[error]c",
}
SPOKEN = VOICES | MARKDOWN


def assert_obeyed_by_nobody(done: Run) -> None:
    """No terminal, and no runner of a build: GitHub trims a line first, and so does Azure."""
    assert done.out + done.err
    for line in (done.out + done.err).splitlines():
        assert all(char.isprintable() for char in line), line
        assert not line.lstrip().startswith("::"), line
        assert not re.search(r"##\w*\[", line), line


def spans_and_rest(document: str) -> tuple[Sequence[str], str]:
    """The code spans of *document*, and what is left without them."""
    return re.findall(r"`([^`]*)`", document), re.sub(r"`[^`]*`", "", document)


@pytest.fixture(params=[pytest.param(text, id=what) for what, text in SPOKEN.items()])
def spoken(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose own name, keys, records and globals all say one hostile thing."""
    monkeypatch.chdir(tmp_path)
    text: str = request.param
    path = Path(text.replace("/", "\u2215"))
    weights = Raw(tensor(storage_id("0", 2), (2,)))
    path.write_bytes(
        torch_zip(
            pickled(
                value({text: weights, "x": Raw(called(stack_global(text, text), text))}), protocol=4
            ),
            {**STORED, text.replace("/", ""): b"unknown"},
        )
    )
    return path


@pytest.mark.parametrize("format_", FORMATS)
def test_nothing_in_a_file_speaks_through_a_scan(format_: str, spoken: Path) -> None:
    done = audit("scan", f"-f{format_}", "--sbom=bom", "--", spoken)

    assert done.status == 1
    assert_obeyed_by_nobody(done)
    assert_obeyed_by_nobody(Run(0, Path("bom").read_text(), ""))
    assert BOM.validate_str(Path("bom").read_text()) is None
    if format_ == "sarif":
        Sarif.model_validate_json(done.out)
        for result in json.loads(done.out)["runs"][0]["results"]:
            said = result["message"]["text"]
            assert "](" not in said
            assert not re.search(r"(?<!\{)\{\d+\}", said.replace("{{", ""))


@pytest.mark.parametrize("verb", ["scan", "inspect", "convert"])
def test_nothing_in_a_file_is_markup(verb: str, spoken: Path) -> None:
    dry = ["--dry-run", "--allow-unsafe", "-o", "out.safetensors"] if verb == "convert" else []

    done = audit(verb, "-fmd", *dry, "--", spoken)

    assert_obeyed_by_nobody(done)
    assert not re.search("[<>&]", done.out), "no tag and no entity could begin here"
    spans, rest = spans_and_rest(done.out)
    assert spans
    # What is left is our own: no mention, and no link but to a rule below.
    assert "`" not in rest
    assert "@" not in rest
    assert "http" not in rest
    assert not re.sub(r"\[CKA\d{3}\]\(#cka\d{3}\)", "", rest).count("](")
    columns = 0
    for line, below in pairwise(done.out.splitlines()):
        if below.startswith("| ---"):
            columns = line.count("|")
        if line.startswith("|"):
            assert line.count("|") == columns
    for token in tokens_of(done.out):
        assert token.type not in {"html_block", "html_inline", "image", "fence", "code_block"}
        if token.type == "link_open":
            assert re.fullmatch(r"#cka\d{3}", str(token.attrs["href"]))


def tokens_of(document: str) -> Iterator[Token]:
    """What a renderer that lets all HTML through makes of *document*."""
    for token in MarkdownIt("commonmark").enable("table").parse(document):
        yield token
        yield from token.children or ()


@given(st.text())
def test_a_code_span_ends_where_we_end_it(text: str) -> None:
    span = code(text)

    assert re.fullmatch(r"`[^`|<>&\n]+`", span)
    assert span.isprintable()


@given(st.text())
def test_no_line_is_a_command(text: str) -> None:
    line = one_line(text)

    assert line.isprintable()
    assert not line.lstrip().startswith("::")
    assert not re.search(r"##\w*\[", line)


@pytest.mark.parametrize("verb", ["inspect", "convert", "verify"])
def test_names_at_the_beginning_of_a_line_are_no_commands(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path, an alias, a tensor that differs: each of them may stand first in a line."""
    monkeypatch.chdir(tmp_path)
    names = ["::error::a", "::error::b", "c"]
    tied = {name: Raw(tensor(storage_id("0", 2), (2,))) for name in names}
    Path("::warning::x.pt").write_bytes(torch_zip(pickled(value(tied)), STORED))
    done = audit("convert", "--", "::warning::x.pt")
    if verb == "verify":
        Path("::warning::x.pt").write_bytes(torch_zip(pickled(value(tied)), {"0": b"\0" * 8}))
        done = audit("verify", "--", "::warning::x.pt", "::warning::x.safetensors")
        assert done.status == 1
    if verb == "inspect":
        done = audit("inspect", "--", "::warning::x.pt")

    assert r"\x3a:" in done.out
    assert_obeyed_by_nobody(done)
