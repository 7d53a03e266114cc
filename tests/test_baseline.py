"""A scan against an earlier one: what is known stops nobody, and everything else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import assert_one_clear_line, audit
from forge import CALLS_SYSTEM, POP, TUPLE2, call, pickled, torch_zip, value

import ckptaudit
from ckptaudit.errors import PolicyInvalid

BAD = torch_zip(pickled(CALLS_SYSTEM))
WORSE = torch_zip(pickled(CALLS_SYSTEM, call("thing", "run"), TUPLE2))
ODD = torch_zip(pickled(call("thing", "run")))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two files, and the report about one of them."""
    monkeypatch.chdir(tmp_path)
    for name, data in {"bad.pt": BAD, "odd.pt": ODD}.items():
        Path(name).write_bytes(data)
    audit("scan", "bad.pt", "--json", "base.json")
    return tmp_path


def report() -> Any:
    return json.loads(Path("base.json").read_bytes())


def write(document: Any) -> None:
    Path("base.json").write_text(json.dumps(document), encoding="utf-8")


# What is known


def test_what_is_known_stops_nobody_and_stays_in_report_and_verdict() -> None:
    done = audit("scan", "bad.pt", "--baseline", "base.json", "-f", "json")

    (before,), (after,) = report()["files"], done.files
    assert (done.status, done.err) == (0, "")
    assert after["verdict"] == before["verdict"] == "malicious"
    assert [finding["known"] for finding in before["findings"]] == [None]
    assert [finding["known"] for finding in after["findings"]] == [True]
    assert after["findings"] == [finding | {"known": True} for finding in before["findings"]]


def test_what_is_new_stops_as_ever_and_the_threshold_is_for_it_alone() -> None:
    for threshold, status in {"review": 1, "suspicious": 1, "malicious": 0}.items():
        done = audit("scan", "bad.pt", "odd.pt", "--baseline", "base.json", "--fail-on", threshold)
        assert done.status == status


def test_a_file_is_recognised_by_its_content_and_not_by_its_name() -> None:
    Path("bad.pt").rename("moved.pt")
    Path("bad.pt").write_bytes(WORSE)

    assert audit("scan", "moved.pt", "--baseline", "base.json").status == 0
    done = audit("scan", "bad.pt", "--baseline", "base.json", "-f", "json")
    assert done.status == 1
    assert [finding["known"] for finding in done.files[0]["findings"]] == [False, False]


Change = dict[str, Any]


@pytest.mark.parametrize(
    "change",
    [
        {"rule": "CKA102"},
        {"record": "archive/other.pkl"},
        {"offset": 1},
        {"stream_offset": 1},
        {"offset": None},
        {"message": "would call posix.system('false') when unpickled"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_finding_is_known_only_if_all_of_it_is(change: Change) -> None:
    document = report()
    document["files"][0]["findings"][0] |= change
    write(document)

    assert audit("scan", "bad.pt", "--baseline", "base.json").status == 1


def test_a_gap_is_never_known() -> None:
    Path("cut.pt").write_bytes(torch_zip(pickled(value({}))[:-1]))
    audit("scan", "cut.pt", "--json", "base.json")

    for threshold, status in {"suspicious": 2, "review": 1}.items():
        done = audit(
            "scan", "cut.pt", "--baseline", "base.json", "--fail-on", threshold, "-f", "json"
        )
        assert done.status == status
        (gap,) = (each for each in done.files[0]["findings"] if each["rule"] == "CKA208")
        assert gap["known"] is False


def test_a_count_that_has_grown_is_new() -> None:
    """Of a flood only the first are told one by one; the same file has the same flood."""
    for name, times in {"flood.pt": 300, "greater.pt": 301}.items():
        Path(name).write_bytes(torch_zip(pickled((CALLS_SYSTEM + POP) * times, value(None))))
    audit("scan", "flood.pt", "--json", "base.json")

    assert audit("scan", "flood.pt", "--baseline", "base.json").status == 0
    assert audit("scan", "greater.pt", "--baseline", "base.json").status == 1


def test_what_was_permitted_then_is_new_when_it_is_permitted_no_longer() -> None:
    entry = '{ module = "thing", name = "run", justification = "ours", expires = 2999-12-31 }'
    Path("policy.toml").write_text(f"allow = [{entry}]", encoding="utf-8")
    audit("scan", "odd.pt", "--policy", "policy.toml", "--json", "base.json")

    with_it = audit(
        "scan", "odd.pt", "--policy", "policy.toml", "--baseline", "base.json", "-f", "json"
    )
    without = audit("scan", "odd.pt", "--baseline", "base.json", "-f", "json")

    assert (with_it.status, without.status) == (0, 1)
    assert [each["finding"]["known"] for each in with_it.files[0]["permitted"]] == [True]
    assert [finding["known"] for finding in without.files[0]["findings"]] == [False]


def test_every_format_says_what_is_known() -> None:
    known = ("bad.pt", "odd.pt", "--baseline", "base.json")

    text = audit("scan", *known).out
    assert "malicious CKA101 (known): " in text
    assert "suspicious CKA102: " in text
    markdown = audit("scan", *known, "-f", "md").out
    assert "byte 26, file offset 90` (known): " in markdown
    assert markdown.count("(known)") == 1
    (run,) = json.loads(audit("scan", *known, "-f", "sarif").out)["runs"]
    assert [result["baselineState"] for result in run["results"]] == ["unchanged", "new"]
    (run,) = json.loads(audit("scan", "bad.pt", "-f", "sarif").out)["runs"]
    assert all("baselineState" not in result for result in run["results"])


def test_a_baseline_may_be_given_to_the_function() -> None:
    baseline = ckptaudit.read_baseline("base.json")

    (known,) = ckptaudit.scan("bad.pt", baseline=baseline).findings
    (unhashed,) = ckptaudit.scan("bad.pt", baseline=baseline, with_hash=False).findings
    (new,) = ckptaudit.scan("odd.pt", baseline=baseline).findings

    assert (known.known, unhashed.known, new.known) == (True, False, False)


# What is no baseline


NONE: dict[str, Any] = {
    "empty": "",
    "no-json": "{",
    "no-object": "[]",
    "deep": "[" * 100_000,
    "deep-inside": '{"schema_version": ' + "[" * 100_000,
    "sarif": '{"$schema": "x", "version": "2.1.0", "runs": []}',
    "not-utf-8": '{"schema_version": "\udcff"}',
}


@pytest.mark.parametrize("text", NONE.values(), ids=NONE)
def test_what_is_no_report_of_ours_is_refused_before_any_work(text: str) -> None:
    Path("base.json").write_text(text, encoding="utf-8", errors="surrogateescape")

    done = audit("scan", "bad.pt", "--baseline", "base.json")

    assert_one_clear_line(done, "base.json: is no JSON report of a scan", "--format json")
    with pytest.raises(PolicyInvalid):
        ckptaudit.read_baseline("base.json")


@pytest.mark.parametrize(
    "change",
    [{"schema_version": "2"}, {"tool": {"name": "other", "version": "1"}}],
    ids=["schema", "tool"],
)
def test_a_report_of_another_tool_or_version_is_refused(change: Change) -> None:
    write(report() | change)

    done = audit("scan", "bad.pt", "--baseline", "base.json")

    assert_one_clear_line(done, "base.json: is no report of this version of ckptaudit")


@pytest.mark.parametrize("verb", ["explain", "inspect", "convert"])
def test_the_report_of_another_verb_is_refused(verb: str) -> None:
    options = ["--allow-unsafe"] if verb == "convert" else []
    answer = audit(verb, "bad.pt", "-f", "json", *options)
    assert answer.files
    Path("base.json").write_text(answer.out, encoding="utf-8")

    done = audit("scan", "bad.pt", "--baseline", "base.json")

    assert_one_clear_line(done, "base.json: is no JSON report of a scan")


def test_a_baseline_that_cannot_be_read_is_no_answer() -> None:
    told = {"none": "no such file", ".": "is a directory; name a file in it"}
    for name, words in told.items():
        assert_one_clear_line(audit("scan", "bad.pt", "--baseline", name), name, words)


def test_a_baseline_without_hashes_recognises_nothing_and_that_is_said() -> None:
    audit("scan", "bad.pt", "odd.pt", "--no-hash", "--json", "base.json")

    done = audit("scan", "bad.pt", "--baseline", "base.json")

    assert done.status == 1
    assert done.err == (
        "ckptaudit: note: base.json: not recognised, for want of a SHA-256: 2 files in it\n"
    )


def test_without_a_hash_there_is_nothing_to_recognise_a_file_by() -> None:
    done = audit("scan", "bad.pt", "--baseline", "base.json", "--no-hash")

    assert (done.status, done.out) == (2, "")
    assert "--baseline recognises a file by the SHA-256 that --no-hash leaves out" in done.err


def test_a_baseline_is_of_the_schema_that_reports_have() -> None:
    """The number stands in `report`, which `jobs` may not import."""
    from ckptaudit.jobs.baseline import _SCHEMA_VERSION  # noqa: PLC0415 - held here on purpose

    assert report()["schema_version"] == _SCHEMA_VERSION
