"""7z archives: what is in them if py7zr is there, that they are not read if it is not."""

from __future__ import annotations

import io
import stat
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import py7zr
import pytest
from forge import CALLS_SYSTEM, gzipped, pickled, seven_zip_stub, torch_zip, value

from ckptaudit.containers import open_container
from ckptaudit.errors import Unsupported
from ckptaudit.policy import Judgement, Severity, judge
from ckptaudit.source import BufferSource
from ckptaudit.tensors import find_state_dict
from ckptaudit.vm import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

EVIL = pickled(CALLS_SYSTEM)
BARE = pickled(value({"a": 1}))


def judged(data: bytes, limits: Limits | None = None) -> Judgement:
    return judge(open_container(BufferSource(data), limits))


def is_told(judgement: Judgement) -> bool:
    return any("posix.system('true')" in finding.message for finding in judgement.findings)


def test_without_py7zr_an_archive_is_a_gap_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "py7zr", None)

    judgement = judged(seven_zip_stub())

    assert judgement.verdict is Severity.REVIEW
    (gap,) = judgement.coverage.gaps
    assert "is a 7z archive" in gap.reason
    assert "ckptaudit[archives]" in gap.reason


def test_an_archive_is_not_converted_but_named_for_what_it_is() -> None:
    with pytest.raises(Unsupported, match="is a 7z archive; unpack it first"):
        find_state_dict(open_container(BufferSource(seven_zip_stub())))


# A stand-in for py7zr shows what is made of its answers, whatever they are.


class Archive:
    """What py7zr.SevenZipFile is to its reader: *members* in place of what the file holds."""

    def __init__(self, members: Mapping[str, bytes | None], trouble: Exception | None) -> None:
        self.members = members
        self.trouble = trouble

    def __enter__(self) -> Archive:  # noqa: PYI034 - typing.Self is Python 3.11's
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def list(self) -> list[SimpleNamespace]:
        """What is in it; a member without bytes is a link."""
        return [
            SimpleNamespace(
                filename=name,
                uncompressed=len(data or b""),
                is_file=data is not None,
                is_directory=False,
                is_symlink=data is None,
            )
            for name, data in self.members.items()
        ]

    def extract(self, *, targets: Collection[str], factory: Any) -> None:
        """Write the members asked for, then raise what there is to raise."""
        for name in targets:
            output = factory.create(name)
            output.write(self.members[name])
            output.seek(0)
            assert output.read() == self.members[name]
            assert output.size() == len(self.members[name] or b"")
        if self.trouble is not None:
            raise self.trouble


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes every 7z archive hold these members, and then give that trouble."""

    def install(members: Mapping[str, bytes | None], trouble: Exception | None = None) -> None:
        module = ModuleType("py7zr")

        def open_archive(file: io.BufferedReader, mode: str) -> Archive:
            assert (file.read(), mode) == (seven_zip_stub(), "r")
            assert (file.seek(-2, io.SEEK_END), file.read(9)) == (30, seven_zip_stub()[-2:])
            return Archive(members, trouble)

        vars(module)["SevenZipFile"] = open_archive
        monkeypatch.setitem(sys.modules, "py7zr", module)

    return install


@pytest.mark.parametrize("pack", [bytes, gzipped, torch_zip])
def test_every_member_is_opened(
    holding: Callable[..., None], pack: Callable[[bytes], bytes]
) -> None:
    holding({"a/b": BARE, "c": pack(EVIL)})

    judgement = judged(seven_zip_stub())

    assert is_told(judgement)
    assert judgement.coverage.complete


def test_an_archive_of_honest_files_is_for_review(holding: Callable[..., None]) -> None:
    holding({"a": BARE})

    judgement = judged(seven_zip_stub())

    assert (judgement.verdict, judgement.coverage.complete) == (Severity.REVIEW, True)


def test_an_archive_in_which_nothing_was_found_is_a_gap(holding: Callable[..., None]) -> None:
    holding({})

    assert not judged(seven_zip_stub()).coverage.complete


def test_links_are_never_asked_for_and_a_gap(holding: Callable[..., None]) -> None:
    holding({"a": BARE, "link": None})

    judgement = judged(seven_zip_stub())

    assert [gap.record for gap in judgement.coverage.gaps] == ["link"]


@pytest.mark.parametrize(
    "trouble", [ValueError("bad"), OSError(5, "io"), MemoryError(), KeyError()]
)
def test_whatever_it_raises_is_a_gap_and_what_came_before_is_told(
    holding: Callable[..., None], trouble: Exception
) -> None:
    holding({"a": EVIL}, trouble)

    judgement = judged(seven_zip_stub())

    assert is_told(judgement)
    assert any(type(trouble).__name__ in gap.reason for gap in judgement.coverage.gaps)


def test_members_pay_from_the_budget_of_the_file(holding: Callable[..., None]) -> None:
    holding({"a": EVIL, "b": bytes(100_000)})

    judgement = judged(seven_zip_stub(), Limits(inflated=50_000))

    assert judgement.verdict > Severity.CLEAN
    assert any("inflates to more bytes" in gap.reason for gap in judgement.coverage.gaps)


# py7zr itself


def seven_zip(members: Mapping[str, bytes], attributes: Mapping[str, int] | None = None) -> bytes:
    """An archive of *members*, those that are said to be something else with such *attributes*."""
    file = io.BytesIO()
    with py7zr.SevenZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(data, name)
        for info in archive.header.files_info.files:
            info["attributes"] = (attributes or {}).get(info["filename"], info["attributes"])
    return file.getvalue()


def test_what_py7zr_writes_is_read() -> None:
    judgement = judged(seven_zip({"model.pt": torch_zip(EVIL), "readme": BARE}))

    assert is_told(judgement)
    assert judgement.coverage.complete


# As Windows had them; the upper half is a mode of Unix if the bit for that is set.
FOLDER, LINK, UNIX = 0x10, 0x400, 0x8000


@pytest.mark.parametrize(
    "attributes",
    [
        FOLDER,
        FOLDER | LINK,
        FOLDER | UNIX | (stat.S_IFREG << 16),
        UNIX | (stat.S_IFDIR << 16),
        UNIX | (stat.S_IFSOCK << 16),
        UNIX | (stat.S_IFIFO << 16),
    ],
    ids=["a folder", "a junction", "a file and a folder", "a folder of Unix", "a socket", "a pipe"],
)
def test_what_is_said_to_be_no_file_and_has_bytes_is_read_or_a_gap(attributes: int) -> None:
    """Who goes by the bytes makes a file of it."""
    judgement = judged(seven_zip({"a": BARE, "evil": EVIL}, {"evil": attributes}))

    assert is_told(judgement) or not judgement.coverage.complete


def test_an_empty_folder_is_nothing_to_tell(tmp_path: Path) -> None:
    file = io.BytesIO()
    with py7zr.SevenZipFile(file, "w") as archive:
        archive.write(tmp_path, "folder")
        archive.writestr(BARE, "a")

    assert judged(file.getvalue()).coverage.complete


def test_py7zr_makes_nothing_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert is_told(judged(seven_zip({"folder/model.pt": torch_zip(EVIL)})))
    assert list(tmp_path.iterdir()) == []


def test_an_honest_archive_that_py7zr_writes_is_for_review() -> None:
    judgement = judged(seven_zip({"model.pt": torch_zip(BARE)}))

    assert (judgement.verdict, judgement.coverage.complete) == (Severity.REVIEW, True)


def test_no_beginning_of_an_archive_is_clean() -> None:
    data = seven_zip({"a": EVIL})

    for length in range(8, len(data), 7):
        judgement = judged(data[:length])
        assert judgement.verdict > Severity.CLEAN
        assert not judgement.coverage.complete


def test_nothing_is_written_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    data = seven_zip({"folder/a": EVIL})

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("writes to the disk")

    for function in ("mkdir", "makedirs", "symlink", "chmod", "utime"):
        monkeypatch.setattr(f"os.{function}", refuse)

    assert is_told(judged(data))
