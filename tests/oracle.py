"""What torch and safetensors have to say of a checkpoint; they judge, we are judged.

Tensors are compared as bits: type, shape and the bytes of the elements, row by row.
"""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import safetensors  # noqa: E402
import safetensors.torch  # noqa: E402
from make_checkpoint import Options as Made  # noqa: E402
from make_checkpoint import Summary, write_checkpoint  # noqa: E402

from ckptaudit.layouts import FAMILIES, Entry  # noqa: E402

__all__ = ["Made", "aliases_in", "at", "bits", "converted", "data_order", "flattened", "header_of",
           "load", "metadata_of", "rewrite", "sd1_entries", "tensors_in", "torch", "write_sd1",
           "written"]  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Type, shape, bytes.
Bits: TypeAlias = tuple[str, tuple[int, ...], bytes]

# Large enough to be recognised (its signs and most UNet tensors are there), small enough for a
# test: 20 MB would be written in float32 with averages, nearly all in the three signs.
_LARGEST = 3000


def bits(tensor: Any) -> Bits:
    plain = tensor.detach().resolve_conj().resolve_neg()
    flat = plain.clone(memory_format=torch.contiguous_format).reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return str(tensor.dtype), tuple(tensor.shape), data


def load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def at(path: str, root: Any) -> Any:
    """What stands at *path*, an expression as reports write it, below *root*."""
    for name, index in re.findall(r"\.?([A-Za-z_]\w*)|\[([^\]]*)\]", path):
        root = root[name or ast.literal_eval(index)]
    return root


def flattened(value: Any) -> dict[str, Bits]:
    """The tensors of a state dict under dotted keys; a bare tensor is called ``tensor``."""
    if isinstance(value, torch.Tensor):
        return {"tensor": bits(value)}
    return {".".join(steps): bits(tensor) for steps, tensor in tensors_in(value)}


def tensors_in(value: Any, steps: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every tensor of what torch loaded, with the keys that lead to it; shared ones each time."""
    if isinstance(value, torch.Tensor):
        yield steps, value
    elif isinstance(value, dict):
        for key, held in value.items():
            yield from tensors_in(held, (*steps, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, held in enumerate(value):
            yield from tensors_in(held, (*steps, str(index)))


def converted(path: Path) -> dict[str, Bits]:
    """The tensors of a safetensors file, and those that it has under a second name."""
    tensors = {key: bits(tensor) for key, tensor in safetensors.torch.load_file(path).items()}
    aliases = aliases_in(path)
    assert not aliases.keys() & tensors.keys()
    return tensors | {name: tensors[kept] for name, kept in aliases.items()}


def written(path: Path) -> dict[str, Bits]:
    """The tensors of a safetensors file under the names that stand in it."""
    return {key: bits(tensor) for key, tensor in safetensors.torch.load_file(path).items()}


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata


def aliases_in(path: Path) -> dict[str, str]:
    return {
        name: kept
        for name, kept in metadata_of(path).items()
        if name != "format" and not name.startswith("ckptaudit.")
    }


def header_of(path: Path) -> dict[str, Any]:
    """A safetensors header, as it stands in the file."""
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def data_order(path: Path) -> list[str]:
    """The names in a safetensors file in the order of their data."""
    header = header_of(path)
    header.pop("__metadata__", None)
    return sorted(header, key=lambda name: (header[name]["data_offsets"], name))


def rewrite(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Make *path* a safetensors file as the official library writes it."""
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    safetensors.torch.save_file(whole, path, dict(metadata))


def sd1_entries(*, ema: bool = False, variant: str | None = None) -> tuple[Entry, ...]:
    """The small tensors of Stable Diffusion 1.x, and the few large ones it is known by."""
    family = FAMILIES["sd1"]
    signs = {sign.key for sign in family.signs}
    return tuple(
        entry
        for entry in family.inventory(ema=ema, variant=variant)
        if math.prod(entry.shape) <= _LARGEST or entry.key in signs
    )


def write_sd1(
    path: Path,
    options: Made | None = None,
    *,
    ema: bool = False,
    variant: str | None = None,
) -> Summary:
    return write_checkpoint(path, sd1_entries(ema=ema, variant=variant), options or Made())
