"""The page about threats says nothing that no test holds, and names no test that is not there."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from ckptaudit.vm import Limits

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "threat-model.md"
TEXT = PAGE.read_text(encoding="utf-8")
PROMISES = TEXT.partition("\n## Promises\n")[2].partition("\n## ")[0]
_TEST = re.compile(r"`(tests/\w+\.py)::(\w+)`")
_LINK = re.compile(r"\]\(([^)#]+)\)")


def promises() -> dict[str, list[tuple[str, str]]]:
    """Each promise, by what is set in bold, with the tests it names."""
    found = {}
    for item in re.split(r"^\* \*\*", PROMISES, flags=re.MULTILINE)[1:]:
        bold, _, rest = item.partition("**")
        found[" ".join(bold.split())] = _TEST.findall(rest)
    return found


@cache
def named_tests(path: str) -> dict[str, ast.FunctionDef]:
    """The tests of a file as pytest would collect them, read and not imported."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def marks_of(test: ast.FunctionDef) -> set[str]:
    """What stands behind ``pytest.mark`` in the decorators of a test."""
    return {
        node.attr
        for decorator in test.decorator_list
        for node in ast.walk(decorator)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "mark"
    }


NAMED = sorted(set(_TEST.findall(TEXT)))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_test_that_is_named_exists_and_runs(path: str, name: str) -> None:
    """One that is passed over, or meant to fail, would hold no promise."""
    assert (ROOT / path).is_file()
    assert name in named_tests(path)
    assert not marks_of(named_tests(path)[name]) & {"xfail", "skip"}


def test_every_promise_names_tests_and_each_once() -> None:
    assert len(promises()) > 30
    for promise, tests in promises().items():
        assert tests, promise
        assert len(set(tests)) == len(tests), promise


def test_whatever_looks_like_a_test_is_written_so_that_it_is_found() -> None:
    """A name without its file, or with a typing error in it, would be checked by nobody."""
    spans = [span for span in TEXT.split("`")[1::2] if "test_" in span]

    assert len(spans) > 100
    assert [span for span in spans if not _TEST.fullmatch(f"`{span}`")] == []


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", TEXT, flags=re.MULTILINE)

    assert {name: int(number.replace(",", "")) for name, number in rows} == {
        field.name: field.default for field in fields(Limits)
    }


def test_the_page_is_linked_and_its_links_lead_somewhere() -> None:
    for target in _LINK.findall(TEXT):
        assert (PAGE.parent / target).exists(), target
    for page in ("README.md", "SECURITY.md"):
        assert "docs/threat-model.md" in _LINK.findall((ROOT / page).read_text(encoding="utf-8"))
