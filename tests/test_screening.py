"""`scan_file_path`: whoever goes by its numbers, by any of them, loads only what is clean."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from catalogue import CASES, GADGETS, Case, Gadget
from catalogue.benign import FILES, Benign
from catalogue.case import BENIGN, STORED
from forge import (
    Raw,
    ZipEntry,
    called,
    deflated,
    global_,
    lz4_stub,
    pickled,
    stack_global,
    storage_id,
    tensor,
    torch_entries,
    torch_zip,
    torchscript_zip,
    value,
    zip_archive,
)
from hypothesis import given
from hypothesis import strategies as st

import ckptaudit
from ckptaudit import SafetyLevel, ScreenedGlobal, Screening, scan_file_path
from ckptaudit.policy import Severity

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHTS = Raw(tensor(storage_id("0", 2), (2,)))
CLEAN = torch_zip(BENIGN, STORED)
NO_ANSWER = Screening((), scanned_files=0, issues_count=1, infected_files=1, scan_err=True)


def asking_for(*globals_: bytes) -> bytes:
    """A checkpoint of one tensor whose pickle names *globals_* as well."""
    return torch_zip(pickled(value({"w": WEIGHTS, "x": list(map(Raw, globals_))})), STORED)


EVIL = asking_for(called(global_("posix", "system"), "true"))
# Nothing in it is odd; it holds an object of a class, which a person would be asked to look at.
WHOLE_MODULE = next(benign.file for benign in FILES if benign.rules == {"CKA108"})
PARTIAL = zip_archive(
    [*torch_entries(BENIGN, STORED), ZipEntry("archive/notes.lz4", lz4_stub(b"notes"))]
)


# What callers wrote for picklescan; each looks at something else.


class Refused(Exception):
    """The caller does not load the file."""


def goes_by_infected(path: Path) -> None:
    """The oldest kind: one means malware, any other number that it could not be scanned."""
    if scan_file_path(path).infected_files == 1:
        raise Refused


def goes_by_both_counts(path: Path) -> None:
    """A WebUI that has the counts in its log."""
    result = scan_file_path(str(path))
    said = (
        f"{path}: {result.scanned_files:d} scanned, {result.issues_count:d} issue, "
        f"{result.infected_files:d} infected"
    )
    if result.issues_count > 0 or result.infected_files > 0:
        raise Refused(said)


def goes_by_issues(path: Path) -> None:
    """A script that wants to know which names."""
    result = scan_file_path(path)
    if result.issues_count:
        listed = [f"{each.module}.{each.name}: {each.safety.value}" for each in result.globals]
        raise Refused(", ".join(listed))


def goes_by_infected_and_error(path: Path) -> None:
    """What is written today: two switches, two messages."""
    result = scan_file_path(path)
    if result.infected_files != 0:
        raise Refused("potentially infected")
    if result.scan_err:
        raise Refused("could not be scanned")


CALLERS = [goes_by_infected, goes_by_both_counts, goes_by_issues, goes_by_infected_and_error]


@pytest.mark.parametrize("ask", CALLERS)
@pytest.mark.parametrize(
    "data",
    [
        EVIL,
        EVIL[:-30],
        CLEAN[:-30],
        PARTIAL,
        WHOLE_MODULE,
        torchscript_zip(pickled(value(None))),
        lz4_stub(b"weights"),
        b"<!DOCTYPE html><html></html>",
        b"",
    ],
    ids=[
        *("hostile", "hostile-and-cut-short", "cut-short", "in-part-unknown", "whole-module"),
        *("torchscript", "unknown-compression", "web-page", "empty"),
    ],
)
def test_every_kind_of_caller_refuses_what_is_not_clean(
    ask: Callable[[Path], None], data: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(data)

    with pytest.raises(Refused):
        ask(path)


@pytest.mark.parametrize("ask", CALLERS)
def test_every_kind_of_caller_loads_what_is_clean(
    ask: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(CLEAN)

    ask(path)


# The numbers


def screened(data: bytes, path: Path, fail_on: str = "review") -> Screening:
    path.write_bytes(data)
    return scan_file_path(path, fail_on=fail_on)


def is_refused(screening: Screening) -> bool:
    """Whether the file is refused; that all fields say the same is the law."""
    assert screening.infected_files == (1 if screening.issues_count else 0)
    if screening.scan_err:
        assert screening.issues_count
    if not screening.scanned_files:
        assert screening.scan_err
    return screening.infected_files > 0


def named(case: Case) -> object:
    return pytest.param(case, id=case.technique)


@pytest.mark.parametrize("case", [named(case) for case in CASES if case.limits is None])
def test_no_published_technique_is_let_pass(case: Case, tmp_path: Path) -> None:
    screening = screened(case.data, tmp_path / case.filename)

    assert is_refused(screening)


@pytest.mark.parametrize("benign", [pytest.param(each, id=each.kind) for each in FILES])
def test_what_honest_programs_write_passes_unless_a_person_should_look(
    benign: Benign, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"

    strict = screened(benign.file, path)
    lenient = screened(benign.file, path, "suspicious")

    assert is_refused(strict) is (benign.verdict is not Severity.CLEAN)
    assert not is_refused(lenient)
    assert not strict.scan_err
    assert strict.scanned_files == 1


@pytest.mark.parametrize(
    ("data", "fail_on", "refused"),
    [
        (CLEAN, "review", False),
        (WHOLE_MODULE, "review", True),
        (WHOLE_MODULE, "suspicious", False),
        (asking_for(global_("no_such", "name")), "suspicious", True),
        (asking_for(global_("no_such", "name")), "malicious", False),
        (EVIL, "malicious", True),
        (PARTIAL, "malicious", True),
    ],
    ids=["clean", "module", "module-lenient", "stranger", "stranger-lenient", "evil", "partial"],
)
def test_the_threshold_is_the_callers_and_what_was_not_read_never_passes(
    data: bytes, fail_on: str, *, refused: bool, tmp_path: Path
) -> None:
    screening = screened(data, tmp_path / "model.ckpt", fail_on)

    assert is_refused(screening) is refused
    assert screening.scan_err is (data is PARTIAL)


def test_each_finding_that_counts_is_an_issue(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(asking_for(*(global_("no_such", name) for name in "abc")))
    findings = ckptaudit.scan(path).findings

    assert scan_file_path(path).issues_count == len(findings) == 3


def test_a_threshold_that_is_none_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'dangerous' is not a valid Severity"):
        scan_file_path(tmp_path, fail_on="dangerous")


@given(data=st.binary(max_size=300))
def test_no_bytes_raise_anything(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ckpt"

    is_refused(screened(data, path))


# The path


def test_a_file_that_is_not_there_is_no_exception(tmp_path: Path) -> None:
    """It raised where callers come from; but an answer that says no is handled everywhere."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")

    for name in ("none", "none/below", "folder", "loop", "pipe", "a\0b", "x" * 300):
        assert scan_file_path(tmp_path / name) == NO_ANSWER


def test_a_file_that_changes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(CLEAN)
    preadv = os.preadv

    def write_and_read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        os.utime(path)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", write_and_read)

    assert scan_file_path(path) == NO_ANSWER


def entry_of(path: str) -> os.DirEntry[str]:
    with os.scandir(Path(path).parent) as entries:
        return next(entries)


def entry_in_bytes(path: str) -> os.DirEntry[bytes]:
    with os.scandir(os.fsencode(Path(path).parent)) as entries:
        return next(entries)


@pytest.mark.parametrize("as_path", [str, Path, os.fsencode, entry_of, entry_in_bytes])
def test_a_path_may_be_text_bytes_or_an_object(
    as_path: Callable[[str], str | bytes | os.PathLike[str] | os.PathLike[bytes]], tmp_path: Path
) -> None:
    path = tmp_path / "modèle \n-1.ckpt"
    path.write_bytes(CLEAN)

    assert not is_refused(scan_file_path(as_path(str(path))))


def test_a_path_that_is_not_utf8_is_a_path(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/mod\xe8le.ckpt"
    Path(os.fsdecode(path)).write_bytes(EVIL)

    for given_ in (path, os.fsdecode(path)):
        screening = scan_file_path(given_)
        assert (screening.scanned_files, screening.infected_files) == (1, 1)


def test_what_is_no_path_is_the_callers_mistake() -> None:
    mistake: Any = None
    with pytest.raises(TypeError):
        scan_file_path(mistake)


# The names


def test_names_are_told_with_what_is_thought_of_them(tmp_path: Path) -> None:
    screening = screened(
        asking_for(
            global_("posix", "system"),
            global_("no_such", "name"),
            global_("torch", "serialization.os.system"),
            global_("collections", "__builtins__"),
        ),
        tmp_path / "model.ckpt",
    )

    safety = {f"{each.module}.{each.name}": each.safety for each in screening.globals}
    assert safety["torch._utils._rebuild_tensor_v2"] is SafetyLevel.Innocuous
    assert safety["no_such.name"] is SafetyLevel.Suspicious
    assert safety["posix.system"] is SafetyLevel.Dangerous
    # Names that lead past those they begin with, which a scan calls malicious as well.
    assert safety["torch.serialization.os.system"] is SafetyLevel.Dangerous
    assert safety["collections.__builtins__"] is SafetyLevel.Dangerous
    assert [level.value for level in SafetyLevel] == ["innocuous", "suspicious", "dangerous"]


@pytest.mark.parametrize("gadget", [pytest.param(each, id=each.dotted) for each in GADGETS])
def test_no_name_that_has_been_misused_is_called_innocuous(gadget: Gadget, tmp_path: Path) -> None:
    screening = screened(asking_for(global_(gadget.module, gadget.name)), tmp_path / "model.ckpt")

    levels = {(each.module, each.name): each.safety for each in screening.globals}
    assert levels[gadget.module, gadget.name] is not SafetyLevel.Innocuous


def test_names_are_escaped(tmp_path: Path) -> None:
    screening = screened(
        torch_zip(pickled(stack_global("a\x1b[2J", "b\n::error::c"), protocol=4)),
        tmp_path / "model.ckpt",
    )

    assert screening.globals == (
        ScreenedGlobal("a\\x1b[2J", "b\\n::error::c", SafetyLevel.Dangerous),
    )


# Silence


def test_nothing_is_printed_logged_or_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    for index, data in enumerate((CLEAN, EVIL, EVIL[:-30], b"", deflated(b"x"))):
        (tmp_path / f"{index}.ckpt").write_bytes(data)
        scan_file_path(tmp_path / f"{index}.ckpt")
    scan_file_path(tmp_path / "none")

    assert tuple(capfd.readouterr()) == ("", "")
    assert caplog.records == []
    assert Counter(path.suffix for path in tmp_path.iterdir()) == {".ckpt": 5}


def test_an_answer_cannot_be_changed(tmp_path: Path) -> None:
    screening = screened(EVIL, tmp_path / "model.ckpt")

    for field in ("infected_files", "issues_count", "scan_err"):
        with pytest.raises(FrozenInstanceError):
            setattr(screening, field, 0)
