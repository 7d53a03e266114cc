"""Bad input and bad destinations: one clear line, exit 2, nothing left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import assert_one_clear_line, audit, audit_process, command, names_in
from forge import ZipEntry, zip_archive
from memory import peak_mb
from oracle import converted, rewrite, torch

from ckptaudit.tensors.blocks import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

VERBS = ("scan", "inspect", "convert")


def save(path: Path, *, new_zip: bool = True, size: int = 40) -> Path:
    tensors = {"a": torch.arange(size).float(), "b": torch.ones(7)}
    torch.save(tensors, path, _use_new_zipfile_serialization=new_zip)
    return path


def as_zip(path: Path) -> None:
    save(path)


def as_legacy(path: Path) -> None:
    save(path, new_zip=False)


def as_safetensors(path: Path) -> None:
    rewrite(path, {"a": torch.arange(40).float(), "b": torch.ones(7)}, {"format": "pt"})


def missing(path: Path) -> None:
    """Nothing is there."""


def under_nothing(path: Path) -> None:
    """Not even the folder is there."""


def directory(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def empty(path: Path) -> None:
    path.touch()


def web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html>\n<html><body>404: Not Found</body></html>\n")


def lfs_pointer(path: Path) -> None:
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4265380512\n"
    )


def encrypted_zip(path: Path) -> None:
    """Bit 0 of an entry's flags says so; APPNOTE.TXT 4.4.4."""
    path.write_bytes(
        zip_archive([ZipEntry("archive/data.pkl", b"?" * 40, flags=0x0809, local_flags=0x0809)])
    )


def no_checkpoint_zip(path: Path) -> None:
    path.write_bytes(zip_archive([ZipEntry("readme.txt", b"hello")]))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, ["no such file"]),
        (directory, ["is a directory", "; name the files in it, such as ", "/*.ckpt"]),
        (pipe, ["not a regular file"]),
        (empty, ["empty"]),
        (web_page, ["HTML"]),
        (lfs_pointer, ["Git LFS", "git lfs pull"]),
        (encrypted_zip, ["encrypted"]),
        (no_checkpoint_zip, []),
    ],
)
def test_what_is_no_checkpoint_is_named_for_what_it_is(
    tmp_path: Path, verb: str, make: Callable[[Path], None], words: list[str]
) -> None:
    make(tmp_path / "model.ckpt")
    before = names_in(tmp_path)

    done = audit(verb, tmp_path / "model.ckpt")

    if verb == "scan" and make is no_checkpoint_zip:
        # A scan has an answer: it says what it saw, and that it did not see everything.
        assert done.status == 2
        assert "not read: readme.txt" in done.out
    else:
        assert_one_clear_line(done, "model.ckpt", *words)
    assert names_in(tmp_path) == before


def test_a_pattern_that_no_shell_could_resolve_is_told_as_one(tmp_path: Path) -> None:
    done = audit("scan", tmp_path / "*.ckpt")

    assert_one_clear_line(done, "*.ckpt: no such file, and none for it as a pattern")


def test_a_missing_folder_is_not_asked_to_be_made_for_a_source_that_is_not_there(
    tmp_path: Path,
) -> None:
    done = audit("convert", tmp_path / "nowhere" / "model.ckpt")

    assert_one_clear_line(done, "no such file; check the path")


@pytest.mark.parametrize("make", [as_zip, as_legacy])
def test_a_safetensors_file_under_another_name_is_read_with_a_note(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    as_safetensors(tmp_path / "model.ckpt")

    for verb in VERBS:
        done = audit(verb, tmp_path / "model.ckpt", "--format", "json")
        assert done.status == 0
        assert done.files[0].get("container", "safetensors") == "safetensors"
        assert "is a safetensors file under another name" in done.files[0]["notes"][0]
    make(tmp_path / "other.safetensors")
    done = audit("inspect", tmp_path / "other.safetensors")
    assert "is named .safetensors but is a" in done.out


@pytest.mark.parametrize("make", [as_zip, as_legacy, as_safetensors])
def test_a_file_truncated_anywhere_gives_one_line_and_no_output(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """Neither a clean verdict nor a converted file, wherever the download ended."""
    whole = tmp_path / "whole.ckpt"
    make(whole)
    data = whole.read_bytes()
    source = tmp_path / "model.ckpt"
    for length in sorted({*range(0, len(data), 23), *range(len(data) - 30, len(data))}):
        source.write_bytes(data[:length])

        done = audit("convert", source, "--no-hash")

        assert done.status == 2, length
        assert done.out == ""
        (line,) = done.err.splitlines()
        assert line.startswith("ckptaudit: ")
        assert "internal error" not in line
        scanned = audit("scan", source, "--no-hash")
        assert scanned.status == 2, length
        assert "internal error" not in scanned.err
        assert ": clean" not in scanned.out
    assert names_in(tmp_path) == {"whole.ckpt", "model.ckpt"}


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    source = save(tmp_path / "model.ckpt")
    (tmp_path / "model.safetensors").write_bytes(b"precious")

    assert_one_clear_line(audit("convert", source), "model.safetensors: exists", "--if-exists")
    skipped = audit("convert", source, "--if-exists", "skip")
    assert skipped.status == 0
    # A report is written after its output: whoever was interrupted in between is told.
    assert "model.safetensors exists (model.report.json does not)" in skipped.err

    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"
    assert names_in(tmp_path) == {"model.ckpt", "model.safetensors"}
    assert audit("convert", source, "--if-exists", "overwrite").status == 0
    assert converted(tmp_path / "model.safetensors").keys() == {"a", "b"}


def test_a_report_that_exists_is_left_alone_before_anything_is_done(tmp_path: Path) -> None:
    source = save(tmp_path / "model.ckpt")
    (tmp_path / "model.report.json").write_bytes(b"precious")

    assert_one_clear_line(audit("convert", source), "model.report.json: exists")

    assert names_in(tmp_path) == {"model.ckpt", "model.report.json"}


def test_a_source_is_not_its_own_output(tmp_path: Path) -> None:
    as_safetensors(tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()

    done = audit("convert", tmp_path / "model.safetensors", "--if-exists", "overwrite")

    assert_one_clear_line(done, "is the source itself", "-o")
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_two_sources_do_not_become_one_output(tmp_path: Path) -> None:
    """With --if-exists overwrite the second would silently take the place of the first."""
    save(tmp_path / "model.ckpt")
    save(tmp_path / "model.pt", size=3)

    done = audit(
        "convert", tmp_path / "model.ckpt", tmp_path / "model.pt", "--if-exists", "overwrite"
    )

    assert done.status == 2
    assert "model.pt: would become" in done.err
    assert converted(tmp_path / "model.safetensors")["a"][1] == (40,)


def test_a_folder_that_is_none_or_takes_nothing_is_named(tmp_path: Path) -> None:
    source = save(tmp_path / "model.ckpt")
    (tmp_path / "file").touch()

    for folder in ("file", "missing", "missing/below"):
        output = tmp_path / folder / "out.safetensors"
        assert_one_clear_line(audit("convert", source, "-o", output), "is no directory")
    # Nobody may make files there, root neither.
    assert_one_clear_line(audit("convert", source, "-o", "/proc/out.safetensors"), "/proc/out")

    assert names_in(tmp_path) == {"model.ckpt", "file"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    source = save(tmp_path / "model.ckpt")
    closed = tmp_path / "closed"
    closed.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)

    done = audit("convert", source, "-o", closed / "out.safetensors")

    assert_one_clear_line(done, "check the folder's permissions")


def test_no_source_is_the_output_of_another(tmp_path: Path) -> None:
    as_safetensors(tmp_path / "two.safetensors")
    save(tmp_path / "two.ckpt")
    before = (tmp_path / "two.safetensors").read_bytes()

    paths = (tmp_path / "two.ckpt", tmp_path / "two.safetensors")
    assert audit("convert", *paths, "--if-exists", "overwrite").status == 2
    assert (tmp_path / "two.safetensors").read_bytes() == before


def test_two_spellings_of_one_place_are_one_place(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    one, other = save(tmp_path / "d" / "z.ckpt"), save(tmp_path / "d" / "z.pt")

    done = audit(
        "convert", one, tmp_path / "d" / ".." / "d" / other.name, "--if-exists", "overwrite"
    )

    assert done.status == 2
    assert "would become" in done.err


def test_a_report_takes_the_place_of_nothing_but_a_report(tmp_path: Path) -> None:
    source = save(tmp_path / "model.ckpt")
    precious = save(tmp_path / "model.report.json").read_bytes()

    done = audit("convert", source, "--if-exists", "overwrite")

    assert_one_clear_line(done, "model.report.json", "no JSON report")
    assert (tmp_path / "model.report.json").read_bytes() == precious
    own = audit("convert", tmp_path / "model.report.json", "-o", tmp_path / "model.safetensors")
    assert own.status == 2
    assert (tmp_path / "model.report.json").read_bytes() == precious


def test_a_side_file_is_not_the_report_beside_an_output(tmp_path: Path) -> None:
    source = save(tmp_path / "model.ckpt")
    assert audit("convert", source).status == 0
    before = (tmp_path / "model.report.json").read_bytes()

    done = audit("convert", source, "--json", tmp_path / "model.report.json")

    assert done.status == 2
    assert (tmp_path / "model.report.json").read_bytes() == before


def test_a_dot_in_a_name_is_no_extension(tmp_path: Path) -> None:
    assert audit("convert", save(tmp_path / "sd-v1.5")).status == 0

    assert (tmp_path / "sd-v1.5.safetensors").exists()


def test_an_output_taken_for_a_source_is_found_before_any_work(tmp_path: Path) -> None:
    done = audit("convert", save(tmp_path / "model.ckpt"), tmp_path / "out.safetensors")

    assert done.status == 2
    assert "out.safetensors: no such file" in done.err
    assert "-o" in done.err
    assert names_in(tmp_path) == {"model.ckpt"}


def test_an_output_of_another_name_is_refused(tmp_path: Path) -> None:
    """A loader would unpickle it."""
    done = audit("convert", save(tmp_path / "model.ckpt"), "-o", tmp_path / "out.ckpt")

    assert_one_clear_line(done, "out.ckpt", "named .safetensors", "unpickle")


def may_mount() -> bool:
    """Whether Linux lets this process mount: capabilities(7), CAP_SYS_ADMIN is bit 21."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    held = [int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")]
    return any(mask >> 21 & 1 for mask in held)


# Without it, `test_convert.py` still shows what becomes of a disk that fills up midway.
@pytest.mark.skipif(not may_mount(), reason="this user may not mount a small file system")
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A file system of 1 MB, and a file of 4."""
    source = save(tmp_path / "model.ckpt", size=1 << 20)
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    subprocess.run(["mount", *options], check=True)  # noqa: S603, S607 - to be full
    try:
        done = audit("convert", source, "--precision", "keep", "-o", disk / "out.safetensors")

        assert_one_clear_line(done, "no space left on the device; free some")
        assert names_in(disk) == set()
    finally:
        subprocess.run(["umount", disk], check=True)  # noqa: S603, S607 - what was mounted above


def test_a_file_that_may_not_grow_leaves_nothing(tmp_path: Path) -> None:
    source = save(tmp_path / "model.ckpt", size=1 << 20)
    limited = "ulimit -f 100; trap '' XFSZ; exec \"$@\""

    done = subprocess.run(  # noqa: S603 - our own command
        ["sh", "-c", limited, "sh", *command("convert", source, "--no-hash")],  # noqa: S607
        capture_output=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"model.safetensors: the file system does not take files of this size" in done.stderr
    assert names_in(tmp_path) == {"model.ckpt"}


def unending(*args: object) -> subprocess.Popen[bytes]:
    """``ckptaudit ARGS...`` in a process group of its own; it never gets so far as to publish.

    However quick the machine is, whoever sends a signal finds it at work.
    """
    program = (
        "import time\n"
        "from ckptaudit import writer\n"
        "from ckptaudit.cli import run\n"
        "writer.Draft.publish = lambda *_args, **_options: time.sleep(3600)\n"
        "run()\n"
    )
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", program, *map(str, args)],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    "sent",
    [signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
    ids=["interrupted", "terminated", "hung-up"],
)
def test_an_interrupted_conversion_exits_130_and_leaves_nothing(
    tmp_path: Path, sent: signal.Signals
) -> None:
    """At whatever point the signal finds it, once there is something to leave behind."""
    source = save(tmp_path / "model.ckpt", size=BLOCK_BYTES * 32)
    out = tmp_path / "out"
    out.mkdir()
    running = unending("convert", source, "-o", out / "out.safetensors", "--precision", "keep")
    while not names_in(out) and running.poll() is None:
        time.sleep(0.001)
    running.send_signal(sent)
    _, err = running.communicate(timeout=60)

    assert running.returncode == 130
    assert err.strip() == b"ckptaudit: interrupted"
    assert names_in(out) == set()


def test_an_impatient_interrupt_leaves_nothing_either(tmp_path: Path) -> None:
    """Ctrl-C again and again, which every process of the job hears."""
    source = save(tmp_path / "model.ckpt", size=BLOCK_BYTES * 32)
    out = tmp_path / "out"
    out.mkdir()
    running = unending("convert", source, "-o", out / "out.safetensors", "--precision", "keep")
    while not names_in(out) and running.poll() is None:
        time.sleep(0.001)
    while running.poll() is None:
        os.killpg(running.pid, signal.SIGINT)
        time.sleep(0.0002)
    _, err = running.communicate(timeout=60)

    assert running.returncode == 130
    assert err.strip() == b"ckptaudit: interrupted"
    assert names_in(out) == set()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Peak memory of a conversion of 320 MB, lanes and all, is about that of one of 80."""
    peaks: list[float] = []
    for size in (20 << 20, 80 << 20):
        wide = torch.ones(1).expand(size).clone().reshape(-1, 1024)
        torch.save({"a": wide, "turned": wide[:1000].t()}, tmp_path / "model.ckpt")
        del wide
        convert = command("convert", tmp_path / "model.ckpt", "--if-exists", "overwrite")
        peaks.append(peak_mb(convert))

    assert 0 < max(peaks) < 120
    # Looked at every few milliseconds, a short run may not be seen at its height.
    assert peaks[1] < peaks[0] + 40


@pytest.mark.skipif(sys.platform == "darwin", reason="file systems of macOS take UTF-8 names only")
def test_a_path_that_is_not_utf8_is_converted_and_reported(tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"mod\xff.ckpt")
    save(tmp_path / "model.ckpt").rename(source)

    done = audit_process("convert", source, "-f", "json")

    assert done.status == 0, done
    assert os.fsdecode(b"mod\xff.safetensors") in names_in(tmp_path)
    assert done.files[0]["source"]["path"].endswith(r"mod\udcff.ckpt")
    assert_one_clear_line(audit_process("convert", source), r"mod\udcff")


def test_a_key_twice_in_the_header_is_no_answer(tmp_path: Path) -> None:
    entry = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    header = b"{" + entry + b"," + entry + b"}"
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"x")

    assert (
        audit("convert", tmp_path / "m.safetensors", "-o", tmp_path / "o.safetensors").status == 2
    )
