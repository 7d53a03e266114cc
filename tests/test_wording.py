"""Numbers and nouns agree, in every text that is printed."""

from __future__ import annotations

import doctest
import re
from typing import TYPE_CHECKING

import pytest
from catalogue import CASES, Case
from catalogue.benign import FILES, Benign
from commands import audit
from forge import floats, state_dict, torch_zip

from ckptaudit import wording
from ckptaudit.wording import counted, left

if TYPE_CHECKING:
    from pathlib import Path

# One of several things.  `1 of 12 bytes` counts the twelve, and so does `1 to 12 bytes`.
_DISAGREES = re.compile(
    r"(?<![\w.'])1 (?:more |other |infinite )?"
    r"(?:bytes|values|tensors|records|pickles|names|instructions|opcodes|elements|weights|keys|"
    r"times|entries|members|streams|dimensions|gaps|findings|files|characters|bits|others|are|were)"
    r"\b"
)


def assert_agrees(text: str) -> None:
    assert not _DISAGREES.findall(text)


def test_the_examples_are_right() -> None:
    assert doctest.testmod(wording).failed == 0
    assert _DISAGREES.search("needs 1 bytes")
    assert _DISAGREES.search("1 more values")
    assert not _DISAGREES.search("1 of 12 bytes and 21 bytes, 3.1 bytes")
    assert counted(1, "byte") == "1 byte"
    assert left(2) == "2 are left"


@pytest.mark.parametrize("verb", ["scan", "explain"])
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.technique) for case in CASES if case.limits is None]
)
def test_numbers_agree_with_their_nouns_whatever_is_found(
    verb: str, case: Case, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(case.data)

    done = audit(verb, "--no-hash", path)

    assert_agrees(done.out + done.err)


@pytest.mark.parametrize("benign", [pytest.param(one, id=one.kind) for one in FILES])
def test_numbers_agree_with_their_nouns_in_what_is_in_an_honest_file(
    benign: Benign, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(benign.file)

    done = audit("inspect", "--no-hash", path)

    assert_agrees(done.out + done.err)


@pytest.mark.parametrize("format_", ["text", "md"])
def test_numbers_agree_with_their_nouns_where_there_is_one_of_everything(
    format_: str, tmp_path: Path
) -> None:
    """One tensor of one element that does not fit, inspected, converted, and verified."""
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(state_dict({"w": 1}), {"0": floats(1e9)}))
    output = tmp_path / "a.safetensors"

    again = ["-f", format_, "--if-exists", "overwrite", "--on-overflow"]
    told = [
        audit("inspect", path, "-f", format_),
        *(audit("convert", path, *again, how) for how in ("keep", "clamp", "error")),
        audit("verify", path, output),
    ]

    assert sum(done.status for done in told) > 0
    for done in told:
        assert done.out + done.err
        assert_agrees(done.out + done.err)
