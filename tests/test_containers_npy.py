"""NumPy's formats: NumPy itself says what an array is, and how large."""

from __future__ import annotations

import io
import struct
from contextlib import suppress

import numpy as np
import pytest
from forge import (
    CALLS_SYSTEM,
    ZipEntry,
    npy_file,
    npz_file,
    object_npy,
    pickled,
    python_zip,
    torch_entries,
    value,
    zip_archive,
)
from hypothesis import given, reject
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptaudit.containers import Container, Kind, open_container
from ckptaudit.containers.npyheader import NotAHeader, parse_header
from ckptaudit.errors import CkptauditError
from ckptaudit.policy import Judgement, Severity, judge
from ckptaudit.source import BufferSource

EVIL = pickled(CALLS_SYSTEM)
PLAIN = npy_file("<f4", (2,), bytes(8))
# What NumPy's writer knows: numbers, text, dates, records of them, subarrays.
plain_types = st.one_of(
    hnp.scalar_dtypes(),
    hnp.unicode_string_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.array_dtypes(max_size=3, allow_subarrays=True),
    hnp.nested_dtypes(max_itemsize=1000),
)


def opened(data: bytes) -> Container:
    return open_container(BufferSource(data))


def judged(data: bytes) -> Judgement:
    return judge(opened(data))


def is_told(judgement: Judgement) -> bool:
    return any("posix.system('true')" in finding.message for finding in judgement.findings)


def saved(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], version: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, (version, 0), allow_pickle=False)
    return file.getvalue()


@given(plain_types, st.sampled_from([1, 2, 3]), hnp.array_shapes(min_dims=0, min_side=0))
def test_what_numpy_writes_is_clean_and_read_to_its_end(
    kind: np.dtype[np.generic], version: int, shape: tuple[int, ...]
) -> None:
    try:
        data = saved(np.zeros(shape, kind), version)
    except UnicodeEncodeError:
        # Versions 1 and 2 have no room for every name of a field.
        reject()

    judgement = judged(data)

    assert (judgement.verdict, judgement.coverage.complete) == (Severity.CLEAN, True), data
    assert judged(data + b"x").verdict > Severity.CLEAN
    if np.zeros(shape, kind).nbytes:
        assert not judged(data[:-1]).coverage.complete


@given(plain_types, hnp.array_shapes(min_dims=0, min_side=0))
def test_an_array_is_as_large_as_numpy_says(
    kind: np.dtype[np.generic], shape: tuple[int, ...]
) -> None:
    array = np.zeros(shape, kind)
    description = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": shape,
    }

    assert parse_header(repr(description)).nbytes == array.nbytes


@pytest.mark.parametrize(
    "kind",
    [
        "O",
        "|O",
        "|O8",
        "object",
        "f4,O",
        "O,f4",
        "(2,)O",
        [("a", "<f4"), ("b", "|O")],
        [("a", [("b", "|O")])],
        [("a", "|O", (2,))],
        ("|O", (2,)),
        "unheard-of",
        r"\x3cf4",
        "f3",
        "i16",
        None,
        {"names": ["a"], "formats": ["O"]},
    ],
)
def test_what_may_be_an_object_is_read_as_a_pickle(kind: object) -> None:
    """Default deny: all but the types that are known to be plain."""
    header = repr({"descr": kind, "fortran_order": False, "shape": (1,)}).encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header

    assert is_told(judged(data + EVIL))
    assert not judged(data + b"elements").coverage.complete


def test_objects_that_are_plain_values_are_clean() -> None:
    judgement = judged(object_npy(pickled(value([1, "two", None]))))

    assert (judgement.verdict, judgement.coverage.complete) == (Severity.CLEAN, True)


def test_a_pickle_behind_the_objects_is_told() -> None:
    judgement = judged(object_npy(pickled(value([1])) + EVIL))

    assert is_told(judgement)
    assert "CKA202" in {finding.rule for finding in judgement.findings}


def test_several_arrays_in_one_file_are_read() -> None:
    """numpy.save may be called again on the same file."""
    assert judged(PLAIN * 3).verdict is Severity.CLEAN
    assert is_told(judged(PLAIN * 3 + object_npy(EVIL)))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{}",
        b"(" * 9000,
        b"[" * 40 + b"]" * 40,
        b"{'descr': '<f4', 'fortran_order': False}",
        b"{'descr': '<f4', 'fortran_order': 0, 'shape': ()}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': [1]}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}",
        b"{'descr': '<f4', 'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} + {}",
        b"{'descr': '<f' '4', 'fortran_order': False, 'shape': (1,)}",
        b"{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b",)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 19 + b",)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 65 + b")}",
        b"\xff" * 10,
    ],
)
def test_a_header_that_numpy_does_not_write_is_a_gap(header: bytes) -> None:
    for version, width in ((1, "<H"), (2, "<I"), (3, "<I"), (4, "<I")):
        data = b"\x93NUMPY" + bytes([version, 0]) + struct.pack(width, len(header)) + header

        judgement = judged(data)

        assert judgement.verdict > Severity.CLEAN
        assert any("NumPy array" in gap.reason for gap in judgement.coverage.gaps)
        with pytest.raises(NotAHeader):
            parse_header(header.decode("latin-1"))


@pytest.mark.parametrize("length", range(6, 12))
def test_what_is_said_of_an_array_cut_short_lies_in_the_file(length: int) -> None:
    container = opened(PLAIN[:length])

    assert [gap.record for gap in container.gaps] == ["header"]
    assert all(region.stop <= length for region in container.regions)
    assert all(record.offset + record.nbytes <= length for record in container.records)


def test_a_pickle_behind_a_header_that_cannot_be_read_is_told() -> None:
    """A lenient reader might find it."""
    assert is_told(judged(npy_file("<f4", (1,), b"").replace(b"descr", b"dexcr") + EVIL))


def test_python_2_wrote_long_integers() -> None:
    assert parse_header("{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 4L)}").numel == 12


def test_a_shape_with_a_zero_has_no_elements_however_large_the_others() -> None:
    header = parse_header(
        f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**18}, {10**18}, 0)}}"
    )

    assert header.nbytes == 0


@given(st.text(alphabet="(){}[],:'\"0123456789LTrueFalsNon descr\n", max_size=60))
def test_no_text_makes_the_parser_raise_anything_but_its_own_error(text: str) -> None:
    with suppress(NotAHeader):
        parse_header(text)


@given(st.binary(max_size=200), st.integers(0, 255))
def test_no_bytes_behind_the_magic_raise_anything_but_our_errors(data: bytes, major: int) -> None:
    with suppress(CkptauditError):
        judged(b"\x93NUMPY" + bytes([major, 0]) + data)


# Archives of arrays


def test_an_archive_of_arrays_is_what_savez_writes_and_clean() -> None:
    container = opened(npz_file({"a": PLAIN, "b": PLAIN}))

    assert container.kind is Kind.NUMPY
    assert judge(container).verdict is Severity.CLEAN


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_savez_writes_is_clean(save: object) -> None:
    assert callable(save)
    file = io.BytesIO()
    save(file, a=np.arange(5), b=np.zeros((0, 2), "f4"), c=np.array(["x", "yz"]))

    judgement = judged(file.getvalue())

    assert (judgement.verdict, judgement.coverage.complete) == (Severity.CLEAN, True)


def test_one_member_that_is_no_array_makes_it_an_archive_for_review() -> None:
    judgement = judged(python_zip({"a.npy": PLAIN, "b": pickled(value(1))}))

    assert judgement.verdict is Severity.REVIEW
    assert {finding.rule for finding in judgement.findings} == {"CKA203"}


@pytest.mark.parametrize("method", [0, 8])
def test_an_array_of_objects_is_found_in_a_record_nobody_refers_to(method: int) -> None:
    entries = torch_entries(pickled(value({})), {})

    judgement = judged(
        zip_archive([*entries, ZipEntry("archive/x", object_npy(EVIL), method=method)])
    )

    assert is_told(judgement)
