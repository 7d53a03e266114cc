"""What torch itself writes: all of it is understood, and nothing of it is suspicious."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save

from ckptaudit.containers import Container, Kind, Role, open_container
from ckptaudit.source import BufferSource

if TYPE_CHECKING:
    from pathlib import Path

BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
ALL_DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]
OBJECTS: dict[str, Any] = {
    "nothing": None,
    "empty dict": {},
    "no tensors": {"epoch": 3, "lr": [0.1, None, True, "x"], 5: (1, 2), "b": b"\x80\x02."},
    "one tensor": BASE,
    "scalar and empty": {"scalar": torch.tensor(2.5), "empty": torch.zeros(0)},
    "views": {"whole": BASE, "row": BASE[1], "column": BASE[:, 2], "turned": BASE.t()},
    "shared": OrderedDict(a=BASE, b=BASE),
    "nested": {"state_dict": OrderedDict(w=BASE), "optimizer": {"state": {0: {"m": BASE + 1}}}},
    "parameter": {"p": torch.nn.Parameter(torch.ones(3))},
    "untyped storage": {"bytes": torch.ones(3).untyped_storage()},
    "all dtypes": {str(dtype): torch.ones(3).to(dtype) for dtype in ALL_DTYPES},
    "module": torch.nn.Linear(2, 3).state_dict(),
}

framings = pytest.mark.parametrize("save_zip", [True, False], ids=["zip", "legacy"])
objects = pytest.mark.parametrize("obj", OBJECTS.values(), ids=OBJECTS)


def saved(obj: object, *, save_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=save_zip)
    return buffer.getvalue()


def opened(data: bytes) -> Container:
    return open_container(BufferSource(data))


def content(storage: torch.UntypedStorage) -> bytes:
    return bytes(storage.tolist())


def storages_in(obj: object) -> list[bytes]:
    """The bytes of every storage below *obj*, each once, in the order torch meets them."""
    found: dict[int, bytes] = {}

    def visit(item: object) -> None:
        if isinstance(item, torch.Tensor):
            item = item.untyped_storage()
        if isinstance(item, torch.UntypedStorage):
            found[item._cdata] = content(item)  # noqa: SLF001 - torch's own identity
        elif isinstance(item, dict):
            for value in item.values():
                visit(value)

    visit(obj)
    return list(found.values())


def read_storages(container: Container) -> list[bytes]:
    return [
        container.bytes_of(storage).read_at(storage.offset, storage.nbytes)
        for storage in container.storages.values()
    ]


@objects
@framings
def test_nothing_torch_writes_is_a_mishap_or_a_gap(obj: object, *, save_zip: bool) -> None:
    container = opened(saved(obj, save_zip=save_zip))

    assert container.kind is (Kind.ZIP if save_zip else Kind.LEGACY)
    assert container.mishaps == ()
    assert container.gaps == ()
    assert container.object_trace.error is None
    assert container.byteorder == "little"


@objects
@framings
def test_every_record_torch_writes_has_a_role(obj: object, *, save_zip: bool) -> None:
    container = opened(saved(obj, save_zip=save_zip))

    assert Role.UNKNOWN not in {record.role for record in container.records}
    stored = {record.name for record in container.records if record.role is Role.STORAGE}
    assert stored == {storage.record for storage in container.storages.values()}


@objects
def test_storages_in_a_zip_are_those_of_the_tensors_in_order(obj: object) -> None:
    container = opened(saved(obj, save_zip=True))

    assert list(container.storages) == [str(n) for n in range(len(container.storages))]
    assert read_storages(container) == storages_in(obj)


@objects
def test_storages_in_a_legacy_stream_are_those_of_the_tensors(obj: object) -> None:
    container = opened(saved(obj, save_zip=False))

    assert sorted(read_storages(container)) == sorted(storages_in(obj))


@objects
def test_every_byte_of_a_legacy_stream_is_a_record_or_a_count(obj: object) -> None:
    """Eight bytes before each storage say how many elements it has."""
    data = saved(obj, save_zip=False)
    container = opened(data)

    at = 0
    for record in container.records:
        assert record.offset == at + (8 if record.role is Role.STORAGE else 0)
        at = record.offset + record.nbytes
    assert at == len(data)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@framings
def test_element_types_have_torchs_names(dtype: torch.dtype, *, save_zip: bool) -> None:
    """Types younger than typed storages are saved on untyped ones."""
    container = opened(saved(torch.ones(3).to(dtype), save_zip=save_zip))

    (storage,) = container.storages.values()
    if storage.typed:
        assert f"torch.{storage.dtype.name}" == str(dtype)
        assert storage.numel == 3
    else:
        assert dtype in ALL_DTYPES[-5:]
        assert storage.nbytes == 3 * dtype.itemsize


def test_a_file_on_disk_gets_its_name_as_root(tmp_path: Path) -> None:
    path = tmp_path / "anything-v3.ckpt"
    torch.save({"w": BASE}, path)

    container = opened(path.read_bytes())

    assert container.mishaps == ()
    assert container.object_trace.record == "anything-v3/data.pkl"


def test_what_safetensors_writes_is_understood_to_the_last_byte() -> None:
    tensors = {
        str(dtype): torch.ones(2, 3).to(dtype)
        for dtype in ALL_DTYPES
        if dtype is not torch.complex128
    }
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4)}
    data = save(tensors, {"format": "pt"})

    container = opened(data)

    assert container.kind is Kind.SAFETENSORS
    assert (container.mishaps, container.gaps) == ((), ())
    assert sum(record.nbytes for record in container.records) == len(data)
    assert set(container.tensors) == set(tensors)
    for name, tensor in tensors.items():
        ours = container.tensors[name]
        storage = container.storages[name]
        assert f"torch.{ours.dtype.name}" == str(tensor.dtype)
        assert (ours.shape, ours.stride) == (tuple(tensor.shape), tensor.stride())
        assert data[storage.offset : storage.offset + storage.nbytes] == content(
            tensor.untyped_storage()
        )
