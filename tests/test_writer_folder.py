"""A folder takes the place of another at once, and takes nothing along that is not its own."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import names_in

from ckptaudit.errors import OutputExists, OutputFailed
from ckptaudit.writer import DraftFolder, check_folder, settle_folder, write_text

if TYPE_CHECKING:
    from collections.abc import Callable

OLD = {
    "model_index.json": "old",
    "unet/config.json": "old",
    "unet/stale.safetensors": "old",
    "vae_of_old/config.json": "old",
    # What nobody but the user put there.
    "notes.txt": "mine",
    "unet/deep/er/notes.txt": "mine",
    "tokenizer/vocab.json": "mine",
}
OWN = {"model_index.json", "unet/config.json", "unet/stale.safetensors", "vae_of_old/config.json"}
NEW = {"model_index.json": "new", "unet/config.json": "new", "vae/config.json": "new"}
MINE = {file: text for file, text in OLD.items() if text == "mine"}
AFTER = {**NEW, **MINE}


def own(_folder: Path, _name: str) -> set[str]:
    return OWN


def make(folder: Path, files: dict[str, str]) -> None:
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)


def held(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def replace(path: Path) -> None:
    with DraftFolder(path, own) as draft:
        for file, text in NEW.items():
            write_text(draft.place(file), text.encode(), overwrite=False)
        draft.publish(overwrite=True)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    make(tmp_path / "out", OLD)
    (tmp_path / "out/link").symlink_to("nowhere")
    (tmp_path / "out/tokenizer_2").symlink_to("tokenizer")
    (tmp_path / "out/empty").mkdir()
    return tmp_path / "out"


def check_whole(out: Path) -> None:
    assert held(out) == AFTER
    assert (out / "link").readlink() == Path("nowhere")
    assert (out / "tokenizer_2").readlink() == Path("tokenizer")
    assert (out / "empty").is_dir()
    assert not (out / "vae_of_old").exists()


def test_what_is_ours_is_replaced_and_what_is_the_users_stays(out: Path) -> None:
    kept = (out / "notes.txt").stat().st_ino
    out.chmod(0o750)
    (out / "unet/deep").chmod(0o700)
    before = (out / "unet/deep").stat()

    replace(out)

    check_whole(out)
    assert (out / "notes.txt").stat().st_ino == kept
    assert out.stat().st_mode & 0o777 == 0o750
    after = (out / "unet/deep").stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert names_in(out.parent) == {"out"}


def test_without_hard_links_what_is_kept_is_copied(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **_more: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with DraftFolder(out, own) as draft:
        for file, text in NEW.items():
            write_text(draft.place(file), text.encode(), overwrite=False)
        monkeypatch.setattr(os, "link", no_links)
        draft.publish(overwrite=True)

    check_whole(out)
    assert names_in(out.parent) == {"out"}


def test_what_is_put_there_at_the_last_moment_is_kept(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def rename_late(path: Path, target: Path) -> Path:
        if path == out:
            make(out, {"unet/late.txt": "mine"})
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_late)

    replace(out)

    assert (out / "unet/late.txt").read_text() == "mine"
    assert names_in(out.parent) == {"out"}


# What a folder is changed by; CPython raises each event before it is done.
CHANGES = {"os.rename", "os.remove", "os.link", "os.rmdir", "os.mkdir", "os.symlink"}


def publish_until(out: Path, number: int, how: str) -> int:
    """Replace *out* in a process that meets its end before change *number*; its exit status."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_writer_folder import DraftFolder, NEW, own, write_text
left = None
def hook(event, _):
    global left
    if left is None or event not in {CHANGES!r}:
        return
    left -= 1
    if left == 0:
        if {how!r} == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt
sys.addaudithook(hook)
with DraftFolder(Path(sys.argv[1]), own) as draft:
    for file, text in NEW.items():
        write_text(draft.place(file), text.encode(), overwrite=False)
    left = {number}
    draft.publish(overwrite=True)
"""
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", script, out], capture_output=True, check=False, timeout=60
    )
    assert done.returncode in {0, -signal.SIGKILL, 1, 130, -signal.SIGINT}, done.stderr
    return done.returncode


def test_whoever_is_killed_at_any_step_leaves_the_old_or_the_new_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    """No file of the user's, either; the next one to write there puts right what is left."""
    status, number = -1, 0
    states = set()
    while status != 0:
        number += 1
        out = tmp_path / str(number) / "out"
        make(out, OLD)
        status = publish_until(out, number, "killed")
        states.add("old" if held(out) == OLD else "new" if held(out) == AFTER else "none")
        assert held(out) in (OLD, AFTER, {}), number
        assert out.exists() == bool(held(out))

        settle_folder(out, own)

        assert held(out) in (OLD, AFTER), number
        assert not [name for name in names_in(out.parent) if name.endswith(".old")]
        replace(out)
        assert held(out) == AFTER
    assert states == {"old", "none", "new"}, "every step was seen"
    assert number > 10


def test_an_interrupt_at_any_step_leaves_the_old_or_the_new_and_nothing_else(
    tmp_path: Path,
) -> None:
    status, number = -1, 0
    while status != 0:
        number += 1
        out = tmp_path / str(number) / "out"
        make(out, OLD)
        status = publish_until(out, number, "interrupted")
        assert held(out) in (OLD, AFTER), number
        assert names_in(out.parent) == {"out"}, number
    assert number > 10


def test_an_old_folder_that_is_in_nobodys_way_is_not_touched(tmp_path: Path) -> None:
    """Between the two renames of one that was killed, the user has made another folder."""
    out = tmp_path / "1" / "out"
    make(out, OLD)
    number = next(n for n in range(1, 99) if is_away_after(tmp_path / str(n) / "out", n))
    out = tmp_path / str(number) / "out"
    make(out, {"notes.txt": "mine too"})

    with pytest.raises(OutputFailed, match="move it away"):
        settle_folder(out, own)

    assert (out / "notes.txt").read_text() == "mine too"
    (aside,) = [each for each in out.parent.iterdir() if each.name.endswith(".old")]
    assert (aside / "notes.txt").read_text() == "mine"


def is_away_after(out: Path, number: int) -> bool:
    make(out, OLD)
    publish_until(out, number, "killed")
    return not out.exists()


def stands_as_folder(out: Path) -> None:
    (out / "vae/config.json").mkdir(parents=True)


def stands_as_file(out: Path) -> None:
    (out / "vae").write_text("mine")


def stands_as_link(out: Path) -> None:
    (out / "vae").symlink_to("tokenizer")


@pytest.mark.parametrize("stands", [stands_as_folder, stands_as_file, stands_as_link])
def test_where_something_stands_in_the_way_all_is_as_before(
    out: Path, stands: Callable[[Path], None]
) -> None:
    stands(out)
    before = held(out)

    with pytest.raises(OutputFailed, match="vae"):
        replace(out)

    assert held(out) == before
    assert names_in(out.parent) == {"out"}


def test_the_working_directory_is_filled_if_it_is_empty_and_never_exchanged(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell that stands in it would stand in a folder that is gone."""
    for here in (out, out / "unet"):
        monkeypatch.chdir(here)
        with pytest.raises(OutputFailed, match="the working directory is in it"):
            check_folder(out, overwrite=True)
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    check_folder(empty, overwrite=True)
    before = empty.stat().st_ino

    replace(empty)

    assert held(empty) == NEW
    assert empty.stat().st_ino == before
    assert names_in(tmp_path) == {"out", "here"}


def test_a_mount_point_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is renamed onto it, and nothing from beside it into it."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)

    with pytest.raises(OutputFailed, match="name a folder in it"):
        check_folder(tmp_path, overwrite=True)
    check_folder(tmp_path / "new", overwrite=True)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_never_replaced(tmp_path: Path, kind: str) -> None:
    """Not even if it came there at the last moment."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x").touch()
    if kind == "file":
        (tmp_path / "out").write_text("mine")
    else:
        (tmp_path / "out").symlink_to("elsewhere")

    with pytest.raises(OutputExists, match="by someone else"):
        replace(tmp_path / "out")

    assert names_in(tmp_path) == {"elsewhere", "out"}
    assert names_in(tmp_path / "elsewhere") == {"x"}


def test_a_folder_too_deep_to_be_taken_along_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Python goes into it by recursion, and a thousand levels would be an internal error."""
    out = tmp_path / "out"
    make(out, OLD)
    deep = [out / "/".join("d" * depth) for depth in range(1, 1501)]
    for folder in deep:
        folder.mkdir()

    with pytest.raises(OutputFailed, match="over 500 folders in each other"):
        replace(out)

    assert deep[-1].is_dir()
    assert names_in(tmp_path) == {"out"}
    assert all((out / file).read_text() == text for file, text in OLD.items())
    # Nor could pytest remove it.
    for folder in reversed(deep):
        folder.rmdir()
