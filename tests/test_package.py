"""What ``import ckptaudit`` offers, however often and in whatever order it is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import ckptaudit


@pytest.mark.parametrize("name", ckptaudit.__all__)
def test_a_public_name_is_the_same_thing_each_time_it_is_asked_for(name: str) -> None:
    """A verb's module has the verb's name: it must never be taken for the verb."""
    for other in ckptaudit.__all__:
        getattr(ckptaudit, other)

    assert getattr(ckptaudit, name) is getattr(ckptaudit, name)
    assert not isinstance(getattr(ckptaudit, name), ModuleType)


@pytest.mark.parametrize("order", ["convert verify convert scan", "verify convert verify inspect"])
def test_the_verbs_are_callable_in_any_order(order: str) -> None:
    script = (
        f"import ckptaudit; print(all(callable(getattr(ckptaudit, n)) for n in {order.split()}))"
    )

    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout == "True\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such'"):
        _ = ckptaudit.no_such


def test_nothing_here_loads_a_checkpoint_with_execution_allowed() -> None:
    """Not in the package, not in tests, not in scripts."""
    root = Path(__file__).parents[1]
    trusting = re.compile("weights_only *= *" + "False")

    for folder in ("ckptaudit", "tests", "scripts"):
        for path in (root / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert not trusting.search(path.read_text(errors="replace")), path
