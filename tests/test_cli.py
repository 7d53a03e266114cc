"""The contract a shell script relies on: what is printed where, and the exit status."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from commands import assert_one_clear_line, audit, audit_process, command, names_in
from forge import CALLS_SYSTEM, pickled, torch_zip
from oracle import torch

from ckptaudit import __version__
from ckptaudit.cli import main
from ckptaudit.jobs import stream

VERBS = ("scan", "explain", "inspect", "convert", "verify", "rules")
# A name that would clear a terminal, in the C1 form too, and turn the text around.
NASTY = "w\x1b[2J\x9b31m\u202ee\rl\nl"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    torch.save({"a": torch.ones(3)}, tmp_path / "good.ckpt")
    return tmp_path / "good.ckpt"


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    (tmp_path / "bad.ckpt").write_bytes(torch_zip(pickled(CALLS_SYSTEM)))
    return tmp_path / "bad.ckpt"


@pytest.fixture
def none(tmp_path: Path) -> Path:
    (tmp_path / "none.ckpt").write_bytes(b"<html>")
    return tmp_path / "none.ckpt"


@pytest.mark.parametrize("order", ["gbn", "nbg", "bgn"])
@pytest.mark.parametrize(
    ("which", "status"),
    [("g", 0), ("b", 1), ("n", 2), ("gb", 1), ("gn", 2), ("bn", 1), ("gbn", 1)],
)
@pytest.mark.parametrize("verb", ["scan", "convert"])
def test_bad_outranks_no_answer_outranks_good(
    verb: str, which: str, status: int, order: str, good: Path, bad: Path, none: Path
) -> None:
    files = {"g": good, "b": bad, "n": none}

    done = audit(verb, *(files[name] for name in order if name in which))

    assert done.status == status


def test_stdout_is_the_answer_and_stderr_the_rest(good: Path, bad: Path, none: Path) -> None:
    for verb in ("scan", "inspect"):
        done = audit(verb, good, bad, none, "--format", "json")
        document = json.loads(done.out)
        assert [Path(failure["path"]) for failure in document["errors"]] == [none]
        assert done.err == f"ckptaudit: {document['errors'][0]['error']}\n"
        assert [Path(file["path"]) for file in document["files"]] == [good, bad]
    done = audit("scan", good)
    assert done.out.startswith(f"{good}: clean, coverage complete\n")
    assert done.err == ""


def test_the_threshold_is_the_users(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3), "odd": {1, 2}}, tmp_path / "model.pt")
    assert audit("scan", tmp_path / "model.pt", "--fail-on", "malicious").status == 0
    (tmp_path / "bad.pt").write_bytes(torch_zip(pickled(CALLS_SYSTEM)))
    assert audit("scan", tmp_path / "bad.pt", "--fail-on", "malicious").status == 1


def test_json_has_the_fields_that_are_promised(good: Path, tmp_path: Path) -> None:
    """DESIGN.md, "The command line is a contract"."""
    output = tmp_path / "good.safetensors"
    scanned = json.loads(audit("scan", good, "-f", "json").out)
    assert scanned["schema_version"] == "1"
    assert scanned["tool"] == {"name": "ckptaudit", "version": __version__}
    assert set(scanned["files"][0]) >= set(
        "path sha256 size container verdict coverage findings globals".split()
    )
    assert set(scanned["files"][0]["coverage"]) == {"complete", "gaps"}
    (inspected,) = audit("inspect", good, "-f", "json").files
    assert set(inspected) >= {"family", "evidence", "components", "tensors", "leftovers"}
    assert set(inspected["components"][0]) >= {"component", "present", "missing", "unexpected"}
    (planned,) = audit("convert", good, "-f", "json", "--dry-run").files
    (made,) = audit("convert", good, "-f", "json").files
    for converted in (planned, made):
        assert set(converted) >= set(
            "source family components outputs tensors aliases dropped findings".split()
        )
        assert set(converted["outputs"][0]) == {"path", "size", "sha256"}
        assert set(converted["tensors"][0]) >= set(
            "name file source op rows dtype shape stats".split()
        )
    (verified,) = audit("verify", good, output, "-f", "json").files
    assert verified["equal"] is True
    assert verified["converted"]["sha256"] == made["outputs"][0]["sha256"]


def test_the_report_beside_the_output_is_the_answer(good: Path, tmp_path: Path) -> None:
    done = audit("convert", good, "-f", "json", "--json", tmp_path / "copy.json")

    assert names_in(tmp_path) == {"good.ckpt", "good.safetensors", "good.report.json", "copy.json"}
    assert (tmp_path / "good.report.json").read_text() == done.out
    assert (tmp_path / "copy.json").read_text() == done.out


@pytest.mark.parametrize("verb", ["scan", "inspect"])
def test_two_runs_give_the_same_bytes(verb: str, good: Path, bad: Path, none: Path) -> None:
    assert audit(verb, good, bad, none, "-f", "json") == audit(verb, good, bad, none, "-f", "json")


def test_a_checkpoint_named_where_a_report_should_be_is_not_overwritten(good: Path) -> None:
    """``scan --json a.ckpt b.ckpt`` looks right to whoever takes --json for a flag."""
    other = good.with_name("other.ckpt")
    other.write_bytes(before := good.read_bytes())

    done = audit("scan", "--json", other, good)

    assert done.status == 2
    assert "is no JSON report" in done.err
    assert other.read_bytes() == before


def test_a_device_or_a_link_is_no_place_for_a_report(good: Path, tmp_path: Path) -> None:
    """Renamed over /dev/stdout a report would be there for every other program too."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/proc/self/fd/1")

    for name in ("pipe", "link"):
        done = audit("scan", "--json", tmp_path / name, good)
        assert done.status == 2
        assert "name a regular file" in done.err
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_many_sources_go_into_one_folder(good: Path, tmp_path: Path) -> None:
    torch.save({"b": torch.ones(3)}, tmp_path / "more.pth.tar")
    (tmp_path / "out").mkdir()

    assert audit("convert", good, tmp_path / "more.pth.tar", "-o", tmp_path / "out").status == 0

    assert names_in(tmp_path / "out") == {
        f"{stem}.{end}" for stem in ("good", "more") for end in ("safetensors", "report.json")
    }


class Bug(RuntimeError):
    """What none of our own errors is."""


def test_a_bug_is_no_bad_answer_and_shows_no_traceback(
    good: Path, bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the answers about the other files away no more than an unreadable file does."""

    def fail(*_: object, **__: object) -> None:
        raise Bug("boom")

    monkeypatch.setattr(stream, "_cast_block", fail)

    done = audit("convert", good)
    assert_bug(done.err)
    assert (done.status, done.out) == (2, "")
    assert audit("convert", good, bad).status == 1
    assert names_in(good.parent) == {"good.ckpt", "bad.ckpt"}

    monkeypatch.setenv("CKPTAUDIT_DEBUG", "1")
    assert "Traceback" in audit("convert", good).err


def assert_bug(err: str) -> None:
    (line,) = err.splitlines()
    assert "internal error: Bug: boom" in line
    assert "please report it" in line


@pytest.mark.parametrize(
    "arguments",
    [[], ["scan"], ["no-such"], ["scan", "--no-such", "x"], ["convert", "x", "--precision", "int4"],
     ["verify", "x"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_no_answer(arguments: list[str]) -> None:
    done = audit(*arguments)

    assert done.status == 2
    assert done.out == ""
    assert "Usage: " in done.err


def reader_gone(*arguments: object, stream_name: str) -> int:
    """The exit status where *stream_name* is a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command(*arguments),
            check=False,
            timeout=60,
            stdout=write if stream_name == "stdout" else subprocess.DEVNULL,
            stderr=write if stream_name == "stderr" else subprocess.DEVNULL,
        )
    finally:
        os.close(write)
    return done.returncode


def test_a_reader_that_has_seen_enough_does_not_change_the_answer(
    good: Path, bad: Path, none: Path
) -> None:
    assert reader_gone("scan", good, stream_name="stdout") == 0
    assert reader_gone("scan", bad, stream_name="stdout") == 1
    assert reader_gone("explain", bad, "--all", stream_name="stdout") == 1
    assert reader_gone("explain", bad, "--all", "-f", "json", stream_name="stdout") == 1
    assert reader_gone("scan", none, stream_name="stderr") == 2
    assert reader_gone("--help", stream_name="stdout") == 0
    assert reader_gone("no-such", stream_name="stderr") == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("verb", [["scan"], ["explain"], ["explain", "--all"]], ids=" ".join)
def test_an_answer_that_cannot_be_written_is_none(verb: list[str], good: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(  # noqa: S603 - our own command
            command(*verb, good), stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
        )

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert b"cannot be written to standard output" in line


def test_nothing_in_a_file_reaches_the_terminal_raw(tmp_path: Path) -> None:
    """Neither its own name, nor its keys, nor what else it holds; in JSON neither."""
    source = tmp_path / f"{NASTY}.ckpt"
    torch.save(
        {"state_dict": {NASTY: torch.full((2,), 1e6), "b": torch.ones(1)}, NASTY: NASTY}, source
    )
    twice = tmp_path / "twice.ckpt"
    twice.write_bytes(source.read_bytes()[:-30])
    output = tmp_path / f"{NASTY}.safetensors"
    runs: list[tuple[Any, ...]] = [
        ("scan", source),
        ("inspect", source),
        ("convert", source),
        ("convert", source),
        ("verify", source, output),
        ("verify", output, source),
        ("scan", tmp_path / NASTY),
        ("scan", f"--{NASTY}"),
        (NASTY,),
        ("scan", twice),
    ]
    for arguments in runs:
        for options in ([], ["-f", "json"]):
            done = audit(*arguments, *(options if len(arguments) > 1 else []))
            for char in set(done.out + done.err) - {"\n"}:
                assert char.isprintable(), (arguments, done)


def test_json_is_utf8_whatever_the_terminal_is(tmp_path: Path) -> None:
    torch.save({"é": torch.ones(1)}, tmp_path / "é.ckpt")

    done = audit_process("inspect", tmp_path / "é.ckpt", "-f", "json", PYTHONIOENCODING="ascii")
    text = audit_process("inspect", tmp_path / "é.ckpt", PYTHONIOENCODING="ascii")

    assert done.files[0]["tensors"][0]["key"] == "é"
    assert done.files[0]["path"].endswith("é.ckpt")
    assert text.status == 0
    assert text.out.isascii()


def loaded_by(code: str) -> set[str]:
    """The modules that *code* imports in a new interpreter."""
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}


def scanning(path: Path) -> str:
    return f"from ckptaudit.cli import main; main.main(['scan', {str(path)!r}])"


@pytest.mark.parametrize(
    ("code", "never"),
    [
        ("import ckptaudit", {"numpy", "click", "rich", "torch", "numkong", "safetensors"}),
        (
            "from ckptaudit import convert, explain, inspect, scan, scan_file_path",
            {"numpy", "click", "rich", "torch", "numkong"},
        ),
        ("from ckptaudit import verify", {"click", "rich", "torch"}),
        (None, {"numpy", "numkong", "torch", "rich", "ckptaudit.layouts"}),
    ],
    ids=["package", "verbs", "verify", "scan-command"],
)
def test_only_what_is_needed_is_imported(code: str | None, never: set[str], good: Path) -> None:
    loaded = loaded_by(code or scanning(good))

    assert "ckptaudit" in loaded
    assert not loaded & never


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(verb: str) -> None:
    done = audit(verb, "--help")

    assert done.status == 0
    assert done.err == ""
    assert done.out.startswith(f"Usage: ckptaudit {verb} [OPTIONS] ")
    for option in main.commands[verb].params:
        if isinstance(option, click.Option):
            assert option.opts[-1] in done.out
            assert option.help
    assert audit(verb, "-h").out == done.out


def test_the_program_names_its_commands_version_and_exit_statuses() -> None:
    done = audit("--help")

    for verb in VERBS:
        assert f"\n  {verb} " in done.out
    assert "0 good answer, 1 bad answer, 2 no answer, 130 interrupted" in done.out
    assert audit("--version").out == f"ckptaudit, version {__version__}\n"


def test_explain_has_the_exit_status_of_scan(
    good: Path, bad: Path, none: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(torch_zip(pickled(b"N0N")[:-1]))

    for path in (good, bad, none, broken):
        for options in ([], ["--fail-on", "malicious"], ["--no-hash"]):
            status = audit("scan", path, *options).status
            assert audit("explain", path, *options).status == status
            assert audit("explain", path, "--all", "-f", "json", *options).status == status
    assert_one_clear_line(audit("explain", none, "--all"), "an HTML page")
    assert_one_clear_line(audit("explain", bad, "--record", "x\x1b"), "has no pickle", r"x\x1b")


def test_unsafe_files_are_converted_on_request_only(bad: Path, tmp_path: Path) -> None:
    done = audit("convert", bad)
    assert done.status == 1
    assert "posix.system" in done.err
    assert "--allow-unsafe" in done.err
    assert names_in(tmp_path) == {"bad.ckpt"}

    assert audit("convert", bad, "--allow-unsafe").status == 0


def test_verifying_the_wrong_file_is_a_bad_answer(good: Path, tmp_path: Path) -> None:
    assert audit("convert", good).status == 0
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.ckpt")

    done = audit("verify", tmp_path / "other.ckpt", tmp_path / "good.safetensors")

    assert done.status == 1
    assert "NOT what its source gives" in done.out
    assert_one_clear_line(audit("verify", good, good), "is no safetensors file")


def test_two_sources_of_one_output_are_never_one_answer(good: Path, tmp_path: Path) -> None:
    """Least of all under skip: the output that is there was made of the other one."""
    other = good.with_suffix(".pt")
    other.write_bytes(good.read_bytes())
    out = tmp_path / "out"
    out.mkdir()

    done = audit("convert", good, other, "-o", out, "--if-exists", "skip")

    assert done.status == 2
    assert "would become" in done.err
    assert "skipped" not in done.err


def test_a_side_file_that_cannot_be_written_is_refused_before_any_work(
    good: Path, tmp_path: Path
) -> None:
    done = audit("convert", good, "--json", tmp_path / "no-such" / "x.json")

    assert (done.status, done.out) == (2, "")
    assert names_in(good.parent) == {"good.ckpt"}


def test_a_command_started_without_a_stderr_answers_all_the_same(
    good: Path, tmp_path: Path
) -> None:
    shell = shlex.join(command("convert", good, "-o", tmp_path / "out.safetensors"))

    done = subprocess.run(  # noqa: S603 - our own command
        ["/bin/sh", "-c", f"{shell} 2>&-"], stdout=subprocess.PIPE, check=False, timeout=60
    )

    assert done.returncode == 0
    assert (tmp_path / "out.safetensors").exists()
