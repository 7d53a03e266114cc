"""What honest programs write is clean and read completely; what needs a look is for review.

Some loader or scanner has refused each of these: the installed torch cannot be asked to
write most of them, so they are forged; `test_scan_benign` has what it does write.
"""

from __future__ import annotations

from collections import Counter

import pytest
from catalogue.benign import FILES, Benign

from ckptaudit.containers import open_container
from ckptaudit.policy import judge
from ckptaudit.source import BufferSource
from ckptaudit.tensors import misfits


@pytest.mark.parametrize(
    "benign",
    [pytest.param(benign, id=benign.kind) for benign in FILES],
)
def test_what_honest_programs_write_is_no_alarm(benign: Benign) -> None:
    container = open_container(BufferSource(benign.file))
    judgement = judge(container, misfits)
    told = [(finding.rule, finding.message) for finding in judgement.findings]

    assert judgement.verdict is benign.verdict, told
    assert {rule for rule, _ in told} == benign.rules, told
    assert judgement.coverage.gaps == ()


def test_no_kind_of_file_is_there_twice() -> None:
    names = Counter(benign.kind for benign in FILES)

    assert [name for name, count in names.items() if count > 1] == []
