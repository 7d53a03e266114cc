"""What the forge makes is what it says: independent readers, which execute nothing, agree."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from pickletools import genops

import numpy as np
import pytest
import safetensors.numpy
from catalogue import CASES
from catalogue.case import BENIGN, EVIL, PLAIN_EVIL, STORED
from catalogue.wrappings import safetensors_and_pickle
from forge import (
    CALLS_SYSTEM,
    STOP,
    npy_file,
    npz_file,
    object_npy,
    python_zip,
    tar_archive,
    tar_member,
    torch_zip,
    torchscript_zip,
)

FILES = {case.technique: case for case in CASES}


@pytest.mark.parametrize("payload", [EVIL, PLAIN_EVIL, CALLS_SYSTEM + STOP])
def test_the_payload_is_a_call_to_another_parser_as_well(payload: bytes) -> None:
    read = [(opcode.name, argument) for opcode, argument, _ in genops(payload)]

    assert ("GLOBAL", "posix system") in read
    assert ("REDUCE", None) in read[read.index(("GLOBAL", "posix system")) :]


@pytest.mark.parametrize(
    "archive",
    [torch_zip(BENIGN, STORED), torchscript_zip(BENIGN), python_zip({"a/b": b"x", "c": b""})],
    ids=["torch", "torchscript", "python"],
)
def test_zipfile_finds_nothing_wrong_with_an_honest_archive(archive: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None


def test_numpy_reads_an_array_and_refuses_one_of_objects() -> None:
    array = npy_file("<f4", (2,), struct.pack("<2f", 1, 2))

    assert np.load(io.BytesIO(array), allow_pickle=False).tolist() == [1, 2]
    with np.load(io.BytesIO(npz_file({"w": array})), allow_pickle=False) as arrays:
        assert arrays["w"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        np.load(io.BytesIO(object_npy(EVIL)), allow_pickle=False)


def test_tarfile_reads_a_binary_checksum_and_follows_a_link() -> None:
    link = tar_member("pickle", b"", typeflag=b"2", link="sys_info")
    archive = tar_member("sys_info", EVIL, binary=True) + link + tar_archive({})

    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as opened:
        followed = opened.extractfile("pickle")
        assert followed is not None
        assert followed.read() == EVIL


def test_a_file_can_be_safetensors_and_a_pickle_at_once() -> None:
    file = safetensors_and_pickle(CALLS_SYSTEM)

    assert set(safetensors.numpy.load(file)) == {"w"}
    assert ("GLOBAL", "posix system") in [(code.name, arg) for code, arg, _ in genops(file)]


@pytest.mark.parametrize(
    "technique",
    [
        "the-second-of-two-is-evil",
        "an-evil-archive-behind-a-harmless-one",
        "an-evil-archive-behind-that-knows-where-it-stands",
        "an-evil-archive-in-the-comment",
        "an-evil-archive-in-the-64-bit-end-record",
        "an-evil-archive-behind-a-pickle",
        "an-evil-archive-behind-a-pickle-that-knows-where-it-stands",
        "an-evil-archive-behind-zeros",
        "an-evil-pickle-without-a-root",
        "an-evil-pickle-under-two-roots",
        "an-evil-pickle-without-a-version",
    ],
)
def test_python_sees_the_payload_that_torch_does_not(technique: str) -> None:
    """These are no duds: who asks zipfile for data.pkl gets the payload."""
    with zipfile.ZipFile(io.BytesIO(FILES[technique].data)) as archive:
        (name,) = {name for name in archive.namelist() if name.endswith("data.pkl")}
        assert archive.read(name) == EVIL


@pytest.mark.parametrize(
    "technique",
    ["a-wrong-checksum-in-a-harmless-archive", "flag-20-patch-data-in-a-harmless-archive"],
)
def test_zipfile_refuses_what_torch_reads_or_once_read(technique: str) -> None:
    with (
        zipfile.ZipFile(io.BytesIO(FILES[technique].data)) as archive,
        pytest.raises((zipfile.BadZipFile, NotImplementedError)),
    ):
        archive.read("archive/data.pkl")
