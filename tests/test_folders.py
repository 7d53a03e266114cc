"""Folders as source and as output: nothing of the user's is lost, and nothing is half there."""

from __future__ import annotations

import os
import shutil
import zipfile
from typing import TYPE_CHECKING

import pytest
from commands import assert_one_clear_line, audit, names_in
from forge import CALLS_SYSTEM
from narrow import checkpoint
from oracle import torch
from safetensors.torch import load_file, save_file

from ckptaudit import Layout, Options, Precision, convert

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptaudit.layouts import Family

DIFFUSERS = Options(layout=Layout.DIFFUSERS, precision=Precision.KEEP)
WEIGHTS = "diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.parametrize("thin_family", ["vae"], indirect=True)


@pytest.fixture
def folder(thin_family: Family, tmp_path: Path) -> Path:
    """A diffusers folder of an autoencoder, beside the file it was made from."""
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "p", DIFFUSERS)
    return tmp_path / "p"


def becomes_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def becomes_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def becomes_link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def is_there_twice(path: Path) -> None:
    shutil.copy(path, path.with_name("model.safetensors"))


def is_there_in_pieces_too(path: Path) -> None:
    shutil.copy(path, path.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))


def lacks_a_piece(path: Path) -> None:
    path.rename(path.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))


def lacks_a_piece_of_a_variant(path: Path) -> None:
    path.rename(path.with_name("diffusion_pytorch_model-00001-of-00002.fp16.safetensors"))


def is_gone(path: Path) -> None:
    path.unlink()


def is_pickled_in_pieces(path: Path) -> None:
    path.unlink()
    torch.save({}, path.with_name("diffusion_pytorch_model-00001-of-00002.bin"))


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (becomes_fifo, "not a regular file"),
        (becomes_folder, "is a directory"),
        (becomes_link_to_nowhere, "no such file"),
        (is_there_twice, "as another file beside it does"),
        (is_there_in_pieces_too, "as another file beside it does"),
        (lacks_a_piece, "holds 1 of the 2 pieces"),
        (lacks_a_piece_of_a_variant, "holds 1 of the 2 pieces"),
        (is_pickled_in_pieces, "holds 1 of the 2 pieces"),
        (is_gone, "has no weights that are read"),
    ],
)
def test_of_a_folder_that_is_not_whole_nothing_is_converted(
    folder: Path, happens: Callable[[Path], None], words: str
) -> None:
    """What cannot be read would be missing in the output, which nobody would see."""
    happens(folder / WEIGHTS)
    before = names_in(folder.parent)

    assert_one_clear_line(audit("convert", folder, "-o", folder.parent / "b.safetensors"), words)
    assert names_in(folder.parent) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_told(folder: Path) -> None:
    (folder / "sub").mkdir(mode=0)

    assert_one_clear_line(audit("convert", folder, "-o", folder.parent / "b.safetensors"), "sub")


def test_a_folder_whose_name_is_no_text_is_read(folder: Path) -> None:
    """Its name is part of what its tensors are called, and a header holds nothing but text."""
    strange = folder / os.fsdecode(b"\xff")
    strange.mkdir()
    (folder / WEIGHTS).rename(strange / WEIGHTS)

    done = audit("convert", folder, "-o", folder.parent / "b.safetensors", "--keep-names")

    assert done.status == 0, done
    names = load_file(folder.parent / "b.safetensors")
    assert all(name.startswith("\\udcff/") for name in names)


@pytest.mark.parametrize(
    "arguments",
    [
        ("p", "-o", f"p/{WEIGHTS}"),
        (f"p/{WEIGHTS}", "-o", "p", "--layout", "diffusers"),
        ("p", "-o", "p", "--layout", "diffusers"),
        ("p", "-o", f"linked/{WEIGHTS}"),
    ],
    ids=["a file of it", "the folder it is in", "itself", "a file of it, linked"],
)
def test_no_file_of_a_source_is_ever_overwritten(
    folder: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "linked").symlink_to("p")
    source = (folder / WEIGHTS).read_bytes()
    before = names_in(folder.parent), names_in(folder)

    done = audit("convert", *arguments, "--if-exists", "overwrite")

    assert_one_clear_line(done, "the source itself")
    assert (folder / WEIGHTS).read_bytes() == source
    assert (names_in(folder.parent), names_in(folder)) == before


@pytest.mark.parametrize("output", [".", "..", "../work/.", "/", ""])
def test_a_folder_without_a_name_is_written_like_any_other(
    folder: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there already, and that is what has to be said."""
    work = folder / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    done = audit("convert", "../../a.ckpt", "--split", "-o", output)

    assert_one_clear_line(done, "name")
    assert names_in(work) == set()


def test_the_folder_one_is_in_can_be_the_source_and_the_output(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert audit("convert", ".").status == 0
    assert (folder.parent / "p.safetensors").exists()

    work = folder.parent / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert audit("convert", "../a.ckpt", "--split", "-o", ".", "--if-exists=overwrite").status == 0
    assert names_in(work) == {"work.vae.safetensors"}
    assert (folder.parent / "work.report.json").exists()


def test_where_something_stands_in_the_way_of_one_file_none_is_replaced(
    folder: Path, thin_family: Family
) -> None:
    del thin_family
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    (folder / WEIGHTS).write_bytes(b"precious")

    done = audit(
        *("convert", folder.parent / "a.ckpt", "--layout=diffusers", "-o", folder),
        "--if-exists=overwrite",
    )

    assert_one_clear_line(done, "config.json", "is a directory")
    assert (folder / WEIGHTS).read_bytes() == b"precious"
    assert names_in(folder.parent) == {"a.ckpt", "p"}


@pytest.mark.parametrize("stands", ["a link out of it", "a file"])
def test_no_file_is_written_out_of_the_folder(
    tmp_path: Path, thin_family: Family, stands: str
) -> None:
    """A link to another folder, in the folder that is overwritten, leads out of it."""
    from ckptaudit.errors import OutputFailed  # noqa: PLC0415 - here only
    from ckptaudit.writer import DraftFolder, write_text  # noqa: PLC0415 - the same

    del thin_family
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/vae.json").write_text("old")
    if stands == "a file":
        (tmp_path / "out/unet").write_text("mine")
    else:
        (tmp_path / "out/unet").symlink_to("../outside")

    with DraftFolder(tmp_path / "out") as draft:
        write_text(draft.place("unet/deep/config.json"), b"{}", overwrite=False)
        write_text(draft.place("vae.json"), b"{}", overwrite=False)
        with pytest.raises(OutputFailed, match="unet: is a link or a file"):
            draft.publish(overwrite=True)

    assert names_in(tmp_path / "outside") == set()
    assert (tmp_path / "out/vae.json").read_text() == "old"
    assert names_in(tmp_path) == {"outside", "out"}


def test_of_an_earlier_conversion_nothing_stays_and_of_others_everything(
    folder: Path, thin_family: Family
) -> None:
    """Stale weights beside new ones are a mixture, which a loader takes for one model."""
    parent = folder.parent
    source = parent / "a.ckpt"
    (folder / "vae").mkdir()
    for file in ("config.json", WEIGHTS):
        shutil.copy(folder / file, folder / "vae" / file)
    shutil.copy(folder / WEIGHTS, folder / "mine.safetensors")
    # Parts of another split model, and of one of this folder's name.
    assert audit("convert", source, "--split", "-o", parent / "q").status == 0
    for name in ("q.vae.safetensors", "p.unet.safetensors"):
        shutil.copy(parent / "q/q.vae.safetensors", folder / name)
    # By another tool, and converted by itself.
    save_file(load_file(folder / WEIGHTS), folder / "model.safetensors")
    assert audit("convert", source, "-o", folder / "p.whole.safetensors").status == 0
    del thin_family

    done = audit("convert", source, "--split", "-o", folder, "--if-exists=overwrite", "-f", "json")

    assert done.status == 0, done
    assert names_in(folder) == {
        *("p.vae.safetensors", "p.whole.safetensors", "p.whole.report.json"),
        *("q.vae.safetensors", "mine.safetensors", "model.safetensors"),
    }
    (note,) = [note for note in done.files[0]["notes"] if "earlier conversion" in note]
    assert note == "files of an earlier conversion were removed: config.json and 4 others"
    assert names_in(parent) == {"a.ckpt", "p", "p.report.json", "q", "q.report.json"}


def test_a_dry_run_says_what_would_be_removed_and_removes_nothing(folder: Path) -> None:
    before = names_in(folder)

    done = audit("convert", folder.parent / "a.ckpt", "--split", "-o", folder, "--dry-run")

    assert done.status == 0
    assert "would be removed: config.json and 1 other" in done.out
    assert names_in(folder) == before


def test_a_source_in_the_folder_that_is_overwritten_is_kept_or_refused(folder: Path) -> None:
    (folder.parent / "a.ckpt").rename(folder / "a.ckpt")
    arguments = ("--split", "-o", folder, "--if-exists=overwrite")

    refused = audit("convert", folder / WEIGHTS, *arguments)
    assert_one_clear_line(refused, "the source itself")
    assert (folder / WEIGHTS).exists()

    assert audit("convert", folder / "a.ckpt", *arguments).status == 0
    assert names_in(folder) == {"a.ckpt", "p.vae.safetensors"}


def as_it_is(path: Path) -> None:
    del path


def compressed(path: Path) -> None:
    """The same archive, deflated: what lies in it has no place in the file."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in held.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("is_zip", "happens"),
    [(True, as_it_is), (False, as_it_is), (True, compressed)],
    ids=["zip", "legacy", "deflated"],
)
def test_a_folder_of_pickled_weights_gives_what_one_of_safetensors_gives(
    folder: Path, happens: Callable[[Path], None], *, is_zip: bool
) -> None:
    """Converted, inspected, verified; and the other way round nothing differs."""
    parent = folder.parent
    assert audit("convert", folder, "-o", parent / "b.safetensors", "--precision=keep").status == 0
    expected = load_file(parent / "b.safetensors")
    whole = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(whole)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        piece = folder / f"diffusion_pytorch_model-0000{number}-of-00002.bin"
        tensors = {name: whole[name].clone() for name in part}
        torch.save(tensors, piece, _use_new_zipfile_serialization=is_zip)
        happens(piece)

    done = audit("convert", folder, "-o", parent / "c.safetensors", "--precision=keep")

    assert done.status == 0, done
    found = load_file(parent / "c.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert audit("verify", folder, parent / "c.safetensors").status == 0
    (seen,) = audit("inspect", folder, "-f", "json").files
    assert (seen["family"], seen["verdict"]) == ("vae", "clean")


def test_a_folder_with_a_pickle_that_does_something_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(CALLS_SYSTEM)

    done = audit("convert", folder, "-o", folder.parent / "b.safetensors")

    assert done.status == 1
    assert "posix.system" in done.err
    assert names_in(folder.parent) == {"a.ckpt", "p"}


def test_a_variant_behind_the_number_of_a_piece_is_known(folder: Path) -> None:
    """As diffusers wrote it for a while."""
    whole = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(whole)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        piece = folder / f"diffusion_pytorch_model-0000{number}-of-00002.fp16.safetensors"
        save_file({name: whole[name] for name in part}, piece)

    assert audit("convert", folder, "-o", folder.parent / "b.safetensors").status == 0

    assert len(load_file(folder.parent / "b.safetensors")) == len(whole)
