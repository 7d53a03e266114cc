"""Every rule explains itself: in the table, on the command line, and on its page in docs/."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from catalogue import CASES, GADGETS
from commands import assert_one_clear_line, audit
from forge import called, global_, pickled, torch_zip

from ckptaudit import __version__
from ckptaudit.containers import open_container
from ckptaudit.errors import CkptauditError
from ckptaudit.policy import RULES, Rule, Severity, judge
from ckptaudit.source import BufferSource
from ckptaudit.tensors import misfits

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ckptaudit"
TABLE = PACKAGE / "policy" / "rules.py"
_ADVISORY = re.compile(r"CVE-\d{4}-\d{4,5}|GHSA(?:-[23456789cfghjmpqrvwx]{4}){3}")
# So many files forged after one advisory are enough to see what they are found for.
_MOST_FILES = 12

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def ids_in(path: Path) -> set[str]:
    return set(re.findall(r"CKA\d{3}", path.read_text(encoding="utf-8")))


@every_rule
def test_a_rule_says_how_bad_it_is_why_and_what_weakness_it_is(rule: Rule) -> None:
    assert RULES[rule.id] is rule
    assert re.fullmatch(r"CKA[123]\d{2}", rule.id)
    assert rule.severity > Severity.CLEAN
    assert rule.title
    assert not rule.title.endswith(".")
    assert rule.why.count(". ") >= 2, "why it matters, what an honest file looks like, what to do"
    assert rule.why.endswith(".")
    assert "  " not in rule.why
    assert re.fullmatch(r"CWE-[1-9]\d*", rule.cwe)
    assert rule.learnt_from, "an advisory, or what taught it where there is none"
    assert all(map(_ADVISORY.fullmatch, rule.advisories))
    assert not rule.taught_by.endswith(".")


@every_rule
def test_a_rule_names_no_other_scanner(rule: Rule) -> None:
    """Whoever has a gap of which there is no advisory should hear of it first."""
    said = f"{rule.title} {rule.why} {rule.taught_by}".lower()

    assert not re.search("picklescan|modelscan|modelaudit|fickling|hayward|clamav|guardian", said)


def test_rules_stand_in_the_order_of_their_ids() -> None:
    assert list(RULES) == sorted(RULES)


def test_every_id_that_the_package_uses_is_a_rule_and_every_rule_is_used() -> None:
    used = set().union(*(ids_in(path) for path in PACKAGE.rglob("*.py") if path != TABLE))

    assert used == set(RULES)


def findings_of_a_file_that_uses(advisory: str) -> set[str]:
    """The rules that files forged after *advisory* fall under."""
    files = [case.data for case in CASES if advisory in case.advisories and case.limits is None]
    files += [
        torch_zip(pickled(called(global_(gadget.module, gadget.name), "true"), protocol=4))
        for gadget in GADGETS
        if advisory in gadget.advisories
    ]
    found = set()
    for data in files[:_MOST_FILES]:
        try:
            judgement = judge(open_container(BufferSource(data)), misfits)
        except CkptauditError:
            continue
        found |= {finding.rule for finding in judgement.findings}
    return found


@every_rule
def test_a_file_forged_after_an_advisory_falls_under_the_rule_that_names_it(rule: Rule) -> None:
    for advisory in rule.advisories:
        assert rule.id in findings_of_a_file_that_uses(advisory), advisory


def test_the_command_lists_every_rule() -> None:
    done = audit("rules")

    assert (done.status, done.err) == (0, "")
    assert [line.split()[:2] for line in done.out.splitlines()] == [
        [rule.id, rule.severity.value] for rule in RULES.values()
    ]


@every_rule
def test_the_command_explains_a_rule_however_it_is_spelled(rule: Rule) -> None:
    done = audit("rules", rule.id.lower())

    assert (done.status, done.err) == (0, "")
    words = " ".join(done.out.split())
    for said in (rule.id, rule.severity.value, rule.title, rule.why, rule.cwe, *rule.learnt_from):
        assert said in words


def test_rules_as_json_have_all_there_is_to_know() -> None:
    document = json.loads(audit("rules", "-f", "json").out)

    assert document["tool"] == {"name": "ckptaudit", "version": __version__}
    assert document["schema_version"] == "1"
    rules = [Rule(**rule | {"advisories": tuple(rule["advisories"])}) for rule in document["rules"]]
    assert rules == list(RULES.values())
    (one,) = json.loads(audit("rules", "CKA205", "-f", "json").out)["rules"]
    assert one["id"] == "CKA205"


@pytest.mark.parametrize("unknown", ["CKA999", "", "\n::error::x\x1b[2J"], ids=ascii)
def test_a_rule_that_is_none_is_no_answer(unknown: str) -> None:
    done = audit("rules", unknown)

    assert_one_clear_line(done, "there is no rule", "`ckptaudit rules` lists them")


def test_the_page_about_the_rules_is_current() -> None:
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, ROOT / "scripts" / "make_rules.py", "--check"],
        capture_output=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, b"")
