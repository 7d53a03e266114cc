"""Work in forked processes: everything said arrives, errors come home, nobody is left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import threading
import time
import zipfile
from collections import Counter
from contextlib import suppress
from mmap import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from ckptaudit.containers import Storage
from ckptaudit.containers.inflate import InflatedSource
from ckptaudit.dtypes import named
from ckptaudit.errors import JobDied, MalformedInput, OutputFailed, SourceChanged
from ckptaudit.jobs import hashing, lanes, stream
from ckptaudit.jobs.convert import convert
from ckptaudit.jobs.lanes import Say, lanes_at_hand, run_lanes
from ckptaudit.jobs.verify import verify
from ckptaudit.jobs.writing import DraftSink
from ckptaudit.layouts import Component
from ckptaudit.plan import Options, Precision, TensorJob
from ckptaudit.source import BufferSource, FileSource
from ckptaudit.tensors import TensorView
from ckptaudit.writer import Draft

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="lanes are forked on Linux only"
)


def children() -> list[int]:
    """Processes of ours that nobody has waited for."""
    try:
        pid, _ = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return []
    return [pid]


def counting(first: int) -> lanes.Lane:
    def lane(say: Say) -> None:
        for number in range(first, first + 1000):
            say({"number": number})

    return lane


def test_everything_said_arrives() -> None:
    heard = [message["number"] for message in run_lanes([counting(0), counting(1000)])]

    assert sorted(heard, key=str) == sorted(range(2000), key=str)
    assert children() == []


@pytest.mark.parametrize(
    "error",
    [OutputFailed("no space"), MalformedInput("is bad", where="archive/data.pkl", offset=7)],
    ids=["plain", "with-a-place"],
)
def test_an_error_comes_home_as_it_was_raised(error: Exception) -> None:
    def lane(_say: Say) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        list(run_lanes([counting(0), lane]))

    assert str(caught.value) == str(error)
    assert children() == []


def test_a_bug_in_a_lane_is_a_bug_of_ours() -> None:
    def lane(_say: Say) -> None:
        raise ZeroDivisionError("by nothing")

    with pytest.raises(RuntimeError, match="ZeroDivisionError: by nothing") as caught:
        list(run_lanes([lane]))
    # Where it arose is in the cause, for whoever asks for it.
    assert "in lane" in str(caught.value.__cause__)


def test_a_killed_lane_is_said_to_have_died() -> None:
    def lane(_say: Say) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(JobDied, match="signal 9"):
        list(run_lanes([lane]))
    assert children() == []


def pipes_held() -> set[str]:
    """Every pipe of which this process has an end open."""
    links = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        # The one that lists the folder is gone by now.
        with suppress(OSError):
            links.add(str(descriptor.readlink()))
    return {link for link in links if link.startswith("pipe:")}


def test_a_lane_holds_no_pipe_but_its_own() -> None:
    """Or it would wait for ever to be heard, once the parent of all was killed."""
    before = pipes_held()

    def ends_held(say: Say) -> None:
        say({"pipes": sorted(pipes_held() - before)})

    first, second = (message["pipes"] for message in run_lanes([ends_held, ends_held]))

    assert isinstance(first, list)
    assert isinstance(second, list)
    assert len(first) == len(second) == 1
    assert first != second


def test_whoever_stops_listening_stops_the_lanes() -> None:
    def endless(say: Say) -> None:
        while True:
            say({"still": "here"})

    talk = run_lanes([endless, endless])
    next(iter(talk))
    talk.close()

    assert children() == []


def test_where_no_process_can_be_made_the_job_says_so_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fork = os.fork
    made: list[int] = []

    def fork_once() -> int:
        if made:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        made.append(1)
        return fork()

    monkeypatch.setattr(os, "fork", fork_once)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))

    with pytest.raises(JobDied, match="no process could be made"):
        list(run_lanes([counting(0), counting(1000)]))

    assert children() == []
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_where_no_process_can_be_made_a_thread_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", cannot)
    monkeypatch.setattr(hashing, "_LEAST_FORK_BYTES", 0)

    under_way = hashing.Hashing(BufferSource(b"data"))

    assert not under_way.is_forked
    assert under_way.result() == hashlib.sha256(b"data").hexdigest()


def test_a_process_with_threads_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(4)))
    assert lanes_at_hand() == 4
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert lanes_at_hand() == 1
    finally:
        done.set()
        other.join()


def test_a_core_that_hashes_is_no_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(4)))

    assert [lanes_at_hand(beside) for beside in (0, 1, 2, 9)] == [4, 3, 2, 1]


@pytest.mark.parametrize("least", [0, 1 << 40], ids=["in-a-process", "in-a-thread"])
@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (20 << 20) + 3])
def test_a_hash_is_that_of_all_bytes_in_order(
    monkeypatch: pytest.MonkeyPatch, size: int, least: int
) -> None:
    monkeypatch.setattr(hashing, "_LEAST_FORK_BYTES", least)
    data = np.random.default_rng(size).bytes(size)

    under_way = hashing.Hashing(BufferSource(data))
    try:
        assert under_way.is_forked == (least == 0)
        assert under_way.result() == under_way.result() == hashlib.sha256(data).hexdigest()
    finally:
        under_way.stop()
    assert children() == []


@pytest.mark.parametrize("least", [0, 1 << 40], ids=["in-a-process", "in-a-thread"])
def test_a_hash_that_cannot_be_read_is_an_error_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    monkeypatch.setattr(hashing, "_LEAST_FORK_BYTES", least)
    path = tmp_path / "a.pt"
    path.write_bytes(bytes(10 << 20))
    source = FileSource(path)
    os.truncate(path, 1000)

    under_way = hashing.Hashing(source)
    with pytest.raises(SourceChanged, match="cut short"):
        under_way.result()
    under_way.stop()
    source.close()
    assert children() == []


def test_a_hash_that_was_given_up_is_no_hash() -> None:
    given_up = threading.Event()
    given_up.set()

    assert hashing.hashes_of(BufferSource(bytes(100)).read_into, 100, (0,), given_up) == ()


@pytest.mark.parametrize("least", [0, 1 << 40], ids=["in-a-process", "in-a-thread"])
def test_a_hash_nobody_wants_any_more_leaves_nothing_running(
    monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    monkeypatch.setattr(hashing, "_LEAST_FORK_BYTES", least)
    threads = threading.active_count()

    hashing.Hashing(BufferSource(bytes(64 << 20))).stop()

    assert children() == []
    assert threading.active_count() == threads


@pytest.fixture(params=[1, 2, 3])
def lane_count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Few or many lanes, for files of any size."""
    monkeypatch.setattr(stream, "_LEAST_LANE_BYTES", 1)
    monkeypatch.setattr(stream, "lanes_at_hand", lambda _beside: request.param)
    return int(request.param)


def checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of many sizes, one of them turned, one too large for fp16."""
    made = torch.Generator().manual_seed(0)
    weights = {
        f"layer.{index}.weight": torch.randn(3 + index, 7, generator=made) for index in range(20)
    }
    weights["turned"] = torch.randn(40, 30, generator=made).t()
    weights["large"] = torch.full((5,), 1e5)
    torch.save(weights, path)
    return weights


@pytest.mark.usefixtures("lane_count")
def test_the_number_of_lanes_changes_nothing(tmp_path: Path) -> None:
    source, output = tmp_path / "a.pt", tmp_path / "a.safetensors"
    checkpoint(source)

    result = convert(source, output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "lanes_at_hand", lambda _beside: 1)
        alone = convert(source, tmp_path / "b.safetensors")
    assert output.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert [entry.stats for entry in result.tensors] == [entry.stats for entry in alone.tensors]
    assert verify(source, output).equal


def test_what_comes_to_nothing_is_written_no_further_by_any_process(tmp_path: Path) -> None:
    f16 = named("float16")
    storage = Storage("0", f16, 4, 0, 8, "cpu", "data/0")
    view = TensorView("w", storage, f16, (4,), (1,), 0)
    job = TensorJob("w", "", "w", view, Component.OTHER, "identity", None, f16, 0)
    is_vain = mmap(-1, 1)

    with Draft(tmp_path / "out.bin", 16) as draft:
        sink = DraftSink({"": draft}, {"": 0}, is_vain)

        def lane(say: Say) -> None:
            sink.take(job, 0, memoryview(b"before!!"))
            say({"half": "done"})
            while not is_vain[0]:
                time.sleep(0.001)
            sink.take(job, 4, memoryview(b"after!!!"))

        for _ in run_lanes([lane]):
            is_vain[0] = 1
        written = bytearray(16)
        draft.read_into(0, memoryview(written))

    assert bytes(written) == b"before!!" + bytes(8)


def turned_records(path: Path) -> None:
    """Two deflated records, with two tensors on each."""
    weights = torch.randn(2, 30_000, generator=torch.Generator().manual_seed(0))
    plain = path.with_suffix(".plain")
    torch.save({f"{n}.{half}": weights[n].view(2, -1)[half] for n in (0, 1) for half in (0, 1)}
               | {"second": weights.clone()}, plain)  # fmt: skip
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(path, "w") as packed:
        for entry in archive.infolist():
            packed.writestr(entry.filename, archive.read(entry), zipfile.ZIP_DEFLATED)


def test_each_compressed_record_is_inflated_once_to_be_checked_and_once_to_be_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    turned_records(path)
    rewound: list[str] = []
    rewind = InflatedSource.rewind

    def counting_rewind(source: InflatedSource) -> None:
        rewound.append(source.name)
        rewind(source)

    monkeypatch.setattr(InflatedSource, "rewind", counting_rewind)

    convert(path, tmp_path / "a.safetensors", Options(precision=Precision.KEEP))

    storages = Counter(name for name in rewound if "/data/" in name)
    assert sorted(storages.values()) == [2, 2]


@pytest.mark.usefixtures("lane_count")
def test_verify_hears_of_differences_found_in_another_process(tmp_path: Path) -> None:
    source, output = tmp_path / "a.pt", tmp_path / "a.safetensors"
    weights = checkpoint(source)
    convert(source, output, Options(precision=Precision.KEEP))
    data = np.fromfile(output, "u1")
    data[-1] ^= 1
    data.tofile(output)

    proof = verify(source, output)

    assert not proof.equal
    assert [tensor.name for tensor in proof.tensors if not tensor.equal] == [max(weights)]


@pytest.mark.usefixtures("lane_count")
def test_an_error_while_reading_leaves_neither_file_nor_process(tmp_path: Path) -> None:
    source, output = tmp_path / "a.pt", tmp_path / "a.safetensors"
    checkpoint(source)

    def shrink(_done: int, _total: int) -> None:
        os.truncate(source, 2000)

    with pytest.raises(SourceChanged):
        convert(source, output, progress=shrink)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert children() == []
