"""Files that are compressed as a whole: all that comes out of them is read, or told to be left."""

from __future__ import annotations

import bz2
import gzip
import lzma
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from forge import (
    CALLS_SYSTEM,
    POP,
    bzipped,
    floats,
    gzipped,
    pickled,
    state_dict,
    torch_zip,
    value,
    xzipped,
    zlibbed,
)
from hypothesis import given
from hypothesis import strategies as st

from ckptaudit.containers import Container, Kind, compressed, open_container
from ckptaudit.errors import CkptauditError, Unsupported
from ckptaudit.policy import Judgement, Severity, judge
from ckptaudit.source import BufferSource
from ckptaudit.tensors import find_state_dict, misfits
from ckptaudit.vm import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

EVIL = pickled(CALLS_SYSTEM)
CHECKPOINT = torch_zip(state_dict({"w": 2}), {"0": floats(1, 2)})


def lzma_alone(data: bytes) -> bytes:
    """What joblib writes for ``compress="lzma"``."""
    return lzma.compress(data, format=lzma.FORMAT_ALONE)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzipped,
    "bzip2": bzipped,
    "xz": xzipped,
    "zlib": zlibbed,
    "lzma": lzma_alone,
}
# Those of which several streams behind each other are one file.
REPEATED = ("gzip", "bzip2", "xz")
everywhere = pytest.mark.parametrize("name", PACKED)
# How far from its end a stream has the checksum, or what else speaks for all before it.
CHECKED = {"gzip": 5, "bzip2": 5, "xz": 5, "zlib": 1, "lzma": 1}


def incompressible(length: int) -> bytes:
    return b"".join(sha256(b"%d" % n).digest() for n in range(length // 32))


def opened(data: bytes, limits: Limits | None = None) -> Container:
    return open_container(BufferSource(data), limits)


def judged(data: bytes, limits: Limits | None = None) -> Judgement:
    return judge(opened(data, limits), misfits)


def is_told(judgement: Judgement) -> bool:
    return any("posix.system('true')" in finding.message for finding in judgement.findings)


def content_of(container: Container) -> bytes:
    source = container.nested[0].container.source
    return source.read_at(0, source.size)


@everywhere
def test_an_honest_checkpoint_is_as_clean_compressed_as_it_was(name: str) -> None:
    container = opened(PACKED[name](CHECKPOINT))
    judgement = judge(container, misfits)

    assert (judgement.verdict, judgement.coverage.complete) == (Severity.CLEAN, True)
    assert container.kind is Kind.COMPRESSED
    assert [nested.name for nested in container.nested] == [name]


@everywhere
def test_a_compressed_checkpoint_is_not_converted_but_named_for_what_it_is(name: str) -> None:
    with pytest.raises(Unsupported, match=f"is {name}-compressed; uncompress it first"):
        find_state_dict(opened(PACKED[name](CHECKPOINT)))


@everywhere
@given(data=st.binary(min_size=1, max_size=2000))
def test_what_comes_out_is_what_went_in(name: str, data: bytes) -> None:
    """Opened or not: the pickle in front only makes sure that there is something to open."""
    whole = pickled(value({})) + data

    assert content_of(opened(PACKED[name](whole))) == whole


@pytest.mark.parametrize("name", ["gzip", "zlib", "lzma"])
def test_a_payload_before_the_stream_breaks_off_is_told_and_so_is_the_break(name: str) -> None:
    """Of bzip2 nothing comes out before a block is whole, so the others only."""
    # What cannot be compressed stands between the payload and the break.
    noise = incompressible(200 * 32)

    judgement = judged(PACKED[name](EVIL + noise)[: -len(noise) // 2])

    assert is_told(judgement)
    assert not judgement.coverage.complete


@pytest.mark.parametrize("name", REPEATED)
@pytest.mark.parametrize("at", [0, 1, len(EVIL) // 2, len(EVIL)])
def test_streams_behind_each_other_are_one_file_and_that_is_said(name: str, at: int) -> None:
    pack = PACKED[name]

    judgement = judged(pack(EVIL[:at]) + pack(EVIL[at:]))

    assert is_told(judgement)
    assert judgement.coverage.complete
    assert any("2 compressed streams" in finding.message for finding in judgement.findings)


@pytest.mark.parametrize(
    ("data", "is_padding"),
    [
        (gzipped(CHECKPOINT) + bytes(1000), True),
        (gzipped(CHECKPOINT) + bytes(10_000) + gzipped(b""), True),
        (xzipped(CHECKPOINT) + bytes(8), True),
        (xzipped(CHECKPOINT) + bytes(7), False),
        (bzipped(CHECKPOINT) + bytes(8), False),
        (zlibbed(CHECKPOINT) + zlibbed(CHECKPOINT), False),
        (gzipped(CHECKPOINT) + b"trailing", False),
        (gzipped(CHECKPOINT) + bytes(9) + b"x", False),
    ],
)
def test_what_is_neither_stream_nor_padding_is_a_gap(data: bytes, is_padding: bool) -> None:  # noqa: FBT001 - the expected answer
    judgement = judged(data)

    assert judgement.coverage.complete is is_padding
    assert ("CKA202" in {finding.rule for finding in judgement.findings}) is not is_padding


@pytest.mark.parametrize("name", ["zlib", "bzip2"])
def test_a_file_behind_the_compressed_data_is_opened_as_well(name: str) -> None:
    judgement = judged(PACKED[name](CHECKPOINT) + gzipped(EVIL))

    assert is_told(judgement)
    assert {finding.rule for finding in judgement.findings} >= {"CKA101", "CKA202"}


@pytest.mark.parametrize(
    "data",
    [b"x\x9c" + bytes(100), b"x\x9c", zlibbed(CHECKPOINT)[:9], b"]\0\0\x10\0" + b"\xff" * 20],
)
def test_what_only_begins_like_a_file_without_signature_is_none(data: bytes) -> None:
    with pytest.raises(CkptauditError, match=r"is neither zip|is not a whole"):
        opened(data)


# Limits


@everywhere
@pytest.mark.parametrize(
    "limits",
    [Limits(inflated=50_000), Limits(ratio=10, inflated_freely=50_000)],
    ids=["bytes", "ratio"],
)
def test_what_inflates_beyond_a_limit_is_a_gap_and_what_came_before_is_told(
    name: str, limits: Limits
) -> None:
    judgement = judged(PACKED[name](EVIL + bytes(1 << 21)), limits)

    assert judgement.verdict > Severity.CLEAN
    assert any("inflates to" in gap.reason for gap in judgement.coverage.gaps)


def test_what_has_come_out_before_a_limit_is_looked_at() -> None:
    judgement = judged(gzipped(EVIL + bytes(1 << 21)), Limits(inflated=1 << 20))

    assert is_told(judgement)
    assert not judgement.coverage.complete


def test_streams_of_nothing_cost_no_more_than_the_records_a_file_may_have() -> None:
    data = gzipped(b"") * 100 + gzipped(EVIL)

    assert is_told(judged(data))
    assert any(
        "more than the limit of 50" in gap.reason
        for gap in judged(data, Limits(records=50)).coverage.gaps
    )


def wrapped(levels: int) -> bytes:
    return EVIL if levels == 0 else gzipped(wrapped(levels - 1))


def test_wrappings_nest_as_deep_as_the_limit_and_no_deeper() -> None:
    assert is_told(judged(wrapped(4)))
    cut = judged(wrapped(5))
    assert not is_told(cut)
    assert [gap.reason for gap in cut.coverage.gaps] == ["is inside more than 4 others"]
    assert cut.verdict > Severity.CLEAN


def test_all_wrappings_pay_from_one_budget() -> None:
    data = gzipped(gzipped(EVIL + bytes(60_000)))

    assert judged(data, Limits(inflated=62_000)).coverage.gaps
    assert content_of(opened(data, Limits(inflated=70_000)).nested[0].container)


@pytest.mark.parametrize("name", PACKED)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4)), max_size=3
    ),
    cut=st.integers(0, 40),
)
def test_no_damage_makes_a_compressed_payload_clean(
    name: str, changes: list[tuple[int, bytes]], cut: int
) -> None:
    data = bytearray(PACKED[name](EVIL))
    for at, patch in changes:
        place = at % len(data)
        data[place : place + len(patch)] = patch

    with suppress(CkptauditError):
        assert judged(bytes(data[: len(data) - cut])).verdict > Severity.CLEAN


def test_pythons_own_modules_agree_on_several_streams() -> None:
    """The oracle: gzip, bz2 and lzma read what we read."""
    for name, unpack in (
        ("gzip", gzip.decompress),
        ("bzip2", bz2.decompress),
        ("xz", lzma.decompress),
    ):
        data = PACKED[name](EVIL[:7]) + PACKED[name](EVIL[7:])
        assert content_of(opened(data)) == unpack(data) == EVIL


@everywhere
@pytest.mark.parametrize("noise", [0, 300_000], ids=["short", "long"])
def test_a_wrong_checksum_hides_nothing_of_what_stands_before_it(name: str, noise: int) -> None:
    """Python's own readers hand over what they have before they come to the checksum."""
    content = pickled(value(incompressible(noise)), POP, CALLS_SYSTEM)
    packed = bytearray(PACKED[name](content))
    packed[-CHECKED[name]] ^= 1

    judgement = judged(bytes(packed))

    assert is_told(judgement)
    assert not judgement.coverage.complete


@everywhere
def test_a_stream_that_breaks_off_hides_nothing_of_what_came_out(name: str) -> None:
    """Long before the error a reader that goes byte by byte has run what it had."""
    zeros = pickled(CALLS_SYSTEM, POP, value(bytes(1_000_000)))
    packed = PACKED[name](zeros)
    half = len(packed) // 2

    judgement = judged(packed[:half] + b"\xff" * (len(packed) - half))

    assert is_told(judgement) or name == "bzip2"
    assert not judgement.coverage.complete


@everywhere
@pytest.mark.parametrize("chunk", [1, 7, 16, 64, 100])
def test_where_a_piece_ends_does_not_show(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where it ends just as the decoder has been given all of what was read."""
    monkeypatch.setattr(compressed, "_CHUNK", chunk)
    content = pickled(value(incompressible(5000)))

    container = opened(PACKED[name](content))

    assert content_of(container) == content
    assert not container.gaps
