"""What `docs/threat-model.md` promises of every file alike, held against many at once.

`watched` asks Python's own audit hook what was done; the events are CPython's, not ours.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from catalogue import CASES
from catalogue.benign import FILES
from catalogue.case import BENIGN, STORED
from commands import audit, names_in
from forge import (
    Raw,
    ZipEntry,
    call,
    legacy_stream,
    pickled,
    storage_id,
    tensor,
    torch_entries,
    torch_zip,
    torchscript_zip,
    value,
    zip_archive,
)

import ckptaudit
from ckptaudit.errors import CkptauditError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ckptaudit"
CLEAN = torch_zip(BENIGN, STORED)

# Modules that execute or import what they are given, start programs or talk to others.
FORBIDDEN_MODULES = set(
    """
    pickle _pickle cPickle shelve marshal importlib imp runpy pkgutil zipimport code codeop
    subprocess multiprocessing pty ctypes cffi socket ssl http urllib.request ftplib smtplib
    xmlrpc webbrowser requests httpx torch zipfile tarfile
    """.split()
)
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
FORBIDDEN_OF_OS = ("system", "popen", "exec", "spawn", "posix_spawn", "startfile", "fork")
# Lanes and hashes are forks of ourselves, which go on with our own code.
MAY_FORK = {"jobs/lanes.py"}


def what_could_run(path: Path) -> Iterator[str]:
    """What in a module of ours could run something out of a file, or reach beyond it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        line = 0
        match node:
            case ast.Import(names=aliases, lineno=line):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module), level=0, lineno=line):
                names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: {name}()"
            case ast.Attribute(value=ast.Name(id="os"), attr=attr):
                if attr.startswith(FORBIDDEN_OF_OS):
                    yield f"os.{attr}"
        for name in names:
            parts = name.split(".")
            if any(".".join(parts[:end]) in FORBIDDEN_MODULES for end in range(1, len(parts) + 1)):
                yield f"line {line}: imports {name}"


def test_the_package_has_nothing_that_could_run_what_it_reads_or_reach_the_network() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): [*what_could_run(path)]
        for path in PACKAGE.rglob("*.py")
    }

    assert len(found) > 50
    assert {path for path, what in found.items() if what} == MAY_FORK
    assert all(found[path] == ["os.fork"] for path in MAY_FORK)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import os, urllib.request as u",
        "from urllib import request",
        "def f():\n    import importlib.util",
        "exec(x)",
        "f(eval)(compile(x, y, z))",
        "os.execv(a, b)",
    ],
)
def test_what_could_run_is_known_however_it_is_written(code: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(code)

    assert [*what_could_run(tmp_path / "module.py")]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What was done for all files of the catalogue, for honest ones, and for traps."""
    folder = tmp_path_factory.mktemp("watched")
    sources, out, modules = (folder / name for name in ("sources", "out", "modules"))
    for each in (sources, out, modules):
        each.mkdir()
    # It could be imported, and would leave a mark; so would a call of it.
    (modules / "canary_module.py").write_text(
        f"open({str(folder / 'canary')!r}, 'w').close()\nrun = print\n"
    )
    trap = pickled(call("canary_module", "run", "x"))
    traps = {"trap": trap, "trap-in-a-zip": torch_zip(trap), "legacy-trap": legacy_stream(trap)}
    # The costly ones are costly, and ask for nothing.
    cases = {
        case.technique: case.data for case in CASES if not {*case.entries} & {*range(102, 108)}
    }
    honest = {benign.kind: benign.file for benign in FILES}
    for name, data in {**traps, **cases, **honest}.items():
        (sources / f"{name}.ckpt").write_bytes(data)

    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, Path(__file__).with_name("watched.py"), sources, out],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{modules}"},
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    answer = json.loads(done.stdout)
    answer["canary"] = (folder / "canary").exists()
    answer["out"] = names_in(out)
    answer["sources"] = {str(path) for path in sources.iterdir()}
    return answer


def test_nothing_is_imported_executed_connected_or_opened_for_what_a_file_says(
    watched: Any,
) -> None:
    """Neither by a scan nor by a conversion that was asked for all the same."""
    assert len(watched["sources"]) > 300
    assert watched["seen"] == []
    assert watched["imported"] == []
    assert not watched["canary"]


def test_a_job_opens_its_source_once_so_that_what_is_judged_is_what_is_converted(
    watched: Any,
) -> None:
    opened = watched["opened"]
    proofs = {job: opened.pop(job) for job in list(opened) if job.startswith("verify ")}

    verbs = ("scan", "scan_file_path", "explain", "inspect", "convert", "replace_vae")
    assert opened == {f"{verb} {path}": 1 for verb in verbs for path in watched["sources"]}
    # A proof may have ended at what was converted.
    assert set(proofs.values()) == {1}


def test_a_conversion_leaves_only_what_it_was_to_write(watched: Any) -> None:
    assert watched["out"] == {"out.safetensors"}


def test_the_canary_sings_when_it_is_imported(tmp_path: Path) -> None:
    """The hook is no dud either: the same module, imported by hand, is an event."""
    (tmp_path / "canary_module.py").write_text("")
    script = (
        "import sys; sys.addaudithook(lambda event, args: print(event, args[0]) "
        "if event == 'import' else None); import canary_module"
    )

    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "import canary_module" in done.stdout


PATHS = ["../../outside", "/tmp/outside", "..", "a/../../b", "C:\\outside", "~/outside", "\0", "-o"]  # noqa: S108 - a name in a file


def test_no_name_in_a_file_is_a_path_to_write_to(tmp_path: Path) -> None:
    """Neither a key nor a record."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    weights = {name: Raw(tensor(storage_id("0", 2), (2,))) for name in PATHS}
    entries = [
        *torch_entries(pickled(value(weights)), STORED),
        *(ZipEntry(name, b"record") for name in PATHS),
    ]
    (folder / "model.ckpt").write_bytes(zip_archive(entries))

    done = audit("convert", folder / "model.ckpt", "--allow-unsafe", "--dedupe", "none")

    assert done.status == 0, done.err
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {
        folder / name for name in ("model.ckpt", "model.safetensors", "model.report.json")
    }


def test_a_file_is_what_its_bytes_say_whatever_it_is_called(tmp_path: Path) -> None:
    """Only a note on the name differs."""
    hostile = pickled(call("posix", "system", "true"))
    for data in (CLEAN, hostile, torch_zip(hostile)):
        answers = set()
        for name in ("m.ckpt", "m.safetensors", "m.txt", "m.png", "m.npy", "m.7z", "m"):
            (tmp_path / name).write_bytes(data)
            result = ckptaudit.scan(tmp_path / name)
            answers.add((result.container, result.verdict, result.coverage, result.findings))
        assert len(answers) == 1


@pytest.mark.parametrize(
    "data",
    [CLEAN, CLEAN[:-30], torch_zip(pickled(call("posix", "system", "true")))],
    ids=["clean", "cut", "evil"],
)
def test_leaving_the_hash_out_changes_nothing_else(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(data)

    hashed, bare = (
        audit("scan", tmp_path / "model.pt", "-f", "json", *options)
        for options in ([], ["--no-hash"])
    )

    assert (hashed.status, hashed.err) == (bare.status, bare.err)
    # A permission for one file names it by its hash.
    of_hash: dict[str, object] = {"sha256": None, "to_permit": []}
    for file in hashed.files:
        parts = [{**part, "sha256": None} for part in file["parts"]]
        assert {**file, **of_hash, "parts": parts} in bare.files
    assert len(hashed.files) == len(bare.files)
    assert all(file["sha256"] == sha256(data).hexdigest() for file in hashed.files)


def test_an_archive_with_code_is_never_converted(tmp_path: Path) -> None:
    """TorchScript is a program; its tensors alone are not what it is."""
    (tmp_path / "model.pt").write_bytes(torchscript_zip(pickled(value(None))))

    for options in ([], ["--allow-unsafe"]):
        done = audit("convert", tmp_path / "model.pt", *options)
        assert done.status == 2
        assert "TorchScript" in done.err
    with pytest.raises(CkptauditError, match="TorchScript"):
        ckptaudit.convert(tmp_path / "model.pt", tmp_path / "o.safetensors", allow_unsafe=True)
    assert names_in(tmp_path) == {"model.pt"}
