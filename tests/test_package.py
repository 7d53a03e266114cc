"""What ``import ckptaudit`` offers, however often and in whatever order it is asked for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from forge import floats, state_dict, torch_zip

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


def loaded_by(*args: str) -> set[str]:
    """Every module that Python has loaded once it has done what *args* tell it."""
    script = (
        "import atexit, sys; "
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
        f"sys.argv = {['ckptaudit', *args]!r}; "
        + ("from ckptaudit.cli import run; run()" if args else "import ckptaudit")
    )
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


NEVER_BY_A_START = {"msgspec", "numkong", "numpy", "rich", "safetensors", "torch"}


def test_importing_the_package_loads_none_of_its_dependencies() -> None:
    loaded = loaded_by()

    assert "ckptaudit" in loaded
    assert not loaded & (NEVER_BY_A_START | {"click"})
    assert not [name for name in loaded if name.startswith("ckptaudit.")]


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["scan", "--help"]], ids=" ".join)
def test_a_command_that_has_nothing_to_do_loads_the_command_line_alone(args: list[str]) -> None:
    loaded = loaded_by(*args)

    assert "click" in loaded
    assert not loaded & NEVER_BY_A_START
    rooms = {name.split(".")[1] for name in loaded if name.startswith("ckptaudit.")}
    assert rooms == {"cli", "errors"}


def test_a_scan_loads_only_what_it_uses(tmp_path: Path) -> None:
    """Half of a scan is loading code; a plain checkpoint does not pay for what others need."""
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(torch_zip(state_dict({"weight": 1}), {"0": floats(1.0)}))

    loaded = loaded_by("scan", "--no-hash", str(checkpoint))

    assert "ckptaudit.containers.zip" in loaded
    assert not loaded & NEVER_BY_A_START
    assert not loaded & {"bz2", "lzma", "json", "hashlib", "logging", "concurrent", "pathlib"}
    rare = {"compressed", "npy", "sevenzip", "tar"}
    assert not loaded & {f"ckptaudit.containers.{framing}" for framing in rare}
    assert not loaded & {"ckptaudit.writer", "ckptaudit.jobs.hashing", "ckptaudit.vm.listing"}


# What a user would have typed, without a file to load: it may be named in a sentence.
NAMED = "torch.load(weights_only=False)"
TRUSTING = re.compile(r"weights_only\s*=\s*False")


def trusting_loads(code: str) -> list[str]:
    """What in *code* would load a checkpoint with execution allowed, or could."""
    found = []
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.keyword(arg="weights_only", value=value):
                if not (isinstance(value, ast.Constant) and value.value is True):
                    found.append(f"line {value.lineno}: weights_only is not plainly True")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                if "weights_only" not in {keyword.arg for keyword in node.keywords}:
                    found.append(f"line {node.lineno}: torch.load without weights_only")
            case ast.Constant(value=str(text)):
                # Code in a string may be run too.
                if TRUSTING.search(text) and text != NAMED:
                    found.append(f"line {node.lineno}: a trusting load in a string")
    return found


def test_nothing_here_loads_a_checkpoint_with_execution_allowed() -> None:
    """Not in the package, not in tests, not in scripts."""
    root = Path(__file__).parents[1]
    for folder in ("ckptaudit", "tests", "scripts"):
        for path in (root / folder).rglob("*"):
            if not path.is_file() or "__pycache__" in path.parts or path == Path(__file__):
                continue
            text = path.read_text(errors="replace")
            if path.suffix == ".py" or text.startswith("#!/usr/bin/env python"):
                assert trusting_loads(text) == [], path
            else:
                assert not TRUSTING.search(text), path


@pytest.mark.parametrize(
    ("code", "is_trusting"),
    [
        ("torch.load(path, weights_only=True)", False),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=chosen)", True),
        ("torch.load(path)", True),
        ("load(path, weights_only = 0)", True),
        ("run('torch.load(p, weights_only=False)')", True),
        ("say('torch.load(weights_only=False)')", False),
    ],
)
def test_a_trusting_load_is_known_however_it_is_written(code: str, *, is_trusting: bool) -> None:
    assert bool(trusting_loads(code)) is is_trusting
