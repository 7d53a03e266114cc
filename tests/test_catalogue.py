"""No published technique makes a file look clean: each is found, under the rule it should be."""

from __future__ import annotations

import re
import tracemalloc
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from catalogue import CASES, ENTRIES, GADGETS, NO_FILE, Case, Gadget
from catalogue.case import STORED
from catalogue.tensors import VOICES
from commands import Run, audit
from forge import (
    Raw,
    called,
    global_,
    inst,
    pickled,
    stack_global,
    storage_id,
    tensor,
    torch_zip,
    value,
)

from ckptaudit.containers import open_container
from ckptaudit.errors import CkptauditError
from ckptaudit.policy import RULES, Judgement, Severity, allowed, judge
from ckptaudit.source import BufferSource
from ckptaudit.tensors import misfits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_ADVISORY = re.compile(r"CVE-\d{4}-\d{4,5}|GHSA(?:-[23456789cfghjmpqrvwx]{4}){3}")
_MOST_BYTES = 100_000_000


def judged(case: Case) -> Judgement:
    """What `scan` answers for the bytes of *case*, under its limits."""
    container = open_container(BufferSource(case.data), case.limits)
    return judge(container, misfits)


def named(cases: Iterable[Case]) -> list[object]:
    """Parameters that carry the technique's name."""
    return [pytest.param(case, id=case.technique) for case in cases]


EVERYTHING: tuple[Case | Gadget, ...] = (*CASES, *GADGETS)
SCANNED = [case for case in CASES if case.limits is None]
COSTLY = [case for case in CASES if set(case.entries) & set(range(102, 108))]


def assert_only_text(done: Run) -> None:
    """What was printed is text, and no line of it is a command to whoever runs the build."""
    assert done.out + done.err
    for line in (done.out + done.err).splitlines():
        assert re.fullmatch("[ -~]*", line), line
        assert not line.lstrip().startswith("::"), line


# Each technique


@pytest.mark.parametrize("case", named(CASES))
def test_a_published_technique_is_found_under_its_rule(case: Case) -> None:
    try:
        judgement = judged(case)
    except CkptauditError as err:
        if case.refused and case.refused in str(err):
            return
        raise
    told = [(finding.rule, finding.message) for finding in judgement.findings]

    assert judgement.verdict >= case.hit.severity, told
    assert {rule for rule, _ in told} & set(case.hit.rules), told
    assert any(case.hit.says in message for _, message in told), told


@pytest.mark.parametrize("case", named(SCANNED))
def test_no_technique_speaks_through_the_report(case: Case, tmp_path: Path) -> None:
    """Whatever a file calls its parts, what is printed is text and starts no line of its own."""
    path = tmp_path / case.filename
    path.write_bytes(case.data)

    done = audit("scan", "--no-hash", path)

    assert "internal error" not in done.err
    assert_only_text(done)


@pytest.mark.parametrize("text", VOICES.values(), ids=VOICES)
def test_no_key_of_a_tensor_speaks_through_a_report(text: str, tmp_path: Path) -> None:
    """In a file that is honest but for what it calls its tensors and its storages."""
    path = tmp_path / "model.ckpt"
    key = text.replace("\n", "")
    weights = Raw(tensor(storage_id(key, 2), (2,)))
    path.write_bytes(torch_zip(pickled(value({text: weights})), {key: STORED["0"]}))

    for verb in (["scan"], ["inspect"], ["convert", "--dry-run", "-o", str(tmp_path / "out")]):
        assert_only_text(audit(*verb, "--no-hash", path))


@pytest.mark.parametrize("case", named(SCANNED))
def test_a_script_that_goes_by_the_exit_status_lets_none_pass(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.filename
    path.write_bytes(case.data)

    status = audit("scan", "--no-hash", "--fail-on", "review", path).status

    assert status != 0


@pytest.mark.parametrize("case", named(COSTLY))
def test_an_answer_costs_no_more_than_a_hundred_megabytes(case: Case) -> None:
    data = case.data
    tracemalloc.start()
    try:
        with suppress(CkptauditError):
            container = open_container(BufferSource(data), case.limits)
            judge(container, misfits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < _MOST_BYTES


# Each name


def by_global(gadget: Gadget) -> bytes:
    return called(global_(gadget.module, gadget.name), "true")


def by_stack_global(gadget: Gadget) -> bytes:
    return called(stack_global(gadget.module, gadget.name), "true")


def by_inst(gadget: Gadget) -> bytes:
    return inst(gadget.module, gadget.name, "true")


@pytest.mark.parametrize(
    "ask", [by_global, by_stack_global, by_inst], ids=["global", "stack-global", "inst"]
)
@pytest.mark.parametrize("gadget", [pytest.param(gadget, id=gadget.dotted) for gadget in GADGETS])
def test_a_name_that_a_list_once_lacked_is_told_with_its_arguments(
    gadget: Gadget, ask: Callable[[Gadget], bytes]
) -> None:
    weights = Raw(tensor(storage_id("0", 2), (2,)))
    pickle = pickled(value({"w": weights, "x": Raw(ask(gadget))}), protocol=4)
    container = open_container(BufferSource(torch_zip(pickle, STORED)))

    (finding,) = judge(container).findings

    assert finding.rule in gadget.hit.rules
    assert finding.severity >= gadget.hit.severity
    assert f"{gadget.dotted}('true')" in finding.message


@pytest.mark.parametrize("gadget", [pytest.param(gadget, id=gadget.dotted) for gadget in GADGETS])
def test_no_such_name_is_on_the_allowlist(gadget: Gadget) -> None:
    assert allowed(gadget.module, gadget.name) is None


# The catalogue itself


def test_every_entry_is_tested_or_explained_and_not_both() -> None:
    tested = {number for item in EVERYTHING for number in item.entries}

    assert tested | set(NO_FILE) == set(ENTRIES)
    assert not tested & set(NO_FILE)


def test_no_technique_and_no_name_is_there_twice() -> None:
    names = Counter([case.technique for case in CASES] + [gadget.dotted for gadget in GADGETS])

    assert [name for name, count in names.items() if count > 1] == []


def test_every_rule_expected_is_one_that_can_be_as_severe() -> None:
    for item in EVERYTHING:
        assert item.hit.severity > Severity.CLEAN
        assert item.hit.rules
        assert set(item.hit.rules) <= set(RULES)
        assert all(RULES[rule].severity >= item.hit.severity for rule in item.hit.rules)


def test_advisories_are_spelled_as_their_registries_spell_them() -> None:
    for item in EVERYTHING:
        assert all(_ADVISORY.fullmatch(advisory) for advisory in item.advisories), item
