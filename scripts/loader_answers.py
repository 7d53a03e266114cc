"""What a loader is asked about a file, and what it made of it, tensor by tensor.

It is imported where a loader is installed and ckptaudit is not: with torch or without.

A tensor in the loader's model is looked up in the file by the name that it has there, or, where
a loader has names of its own for everything, by its value.

Knows:      how tensors are compared, and how a loader is imported without what it does not need.
Is told:    where in the file a tensor of a model comes from.
Never asks: which loader it is (`loader_probes`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Answer", "Place", "Request", "absent", "prefixed", "undrawn"]

# Where in the file what a model calls so comes from: name in the file, operation, rows.
Place: TypeAlias = "tuple[str, str, tuple[int, int] | None]"


@dataclass(frozen=True)
class Request:
    """What is to be opened.

    Attributes:
        family: The family's name.
        files: The file by role: ``whole``, or ``unet``, ``vae`` and ``text_encoder`` of a split.
        truth: The files that have the values it should have; those above, if they are not spoilt.
        prefixes: By component, what its names begin with in a whole file.
        places: By component and name in the diffusers layout, where in the file it comes from.
        config: A diffusers folder of the family, for loaders that would ask the network for one.
    """

    family: str
    files: dict[str, Path]
    truth: list[Path]
    prefixes: dict[str, str]
    places: dict[str, dict[str, Place]]
    config: Path

    @property
    def whole(self) -> Path:
        """The file that has the whole model."""
        return self.files["whole"]


@dataclass
class Answer:
    """What a loader made of it.

    Attributes:
        recognised: What it says that the file is.
        tensors: How many tensors of its model have their values from the file.
        different: Those of them that do not have the file's values.
        missing: Names that it misses.
        unexpected: Names that it has no use for.
        computed: Names in its model that no file has to have.
        error: How it stopped, if it did.
        log: What it said, as far as it may matter.
    """

    recognised: str = ""
    tensors: int = 0
    different: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    error: str = ""
    log: list[str] = field(default_factory=list)

    def compare(
        self, state: Mapping[str, Any], files: Sequence[Path], place: Callable[[str], Place | None]
    ) -> None:
        """Hold each tensor of *state* against the one that *place* says it comes from."""
        torch = importlib.import_module("torch")
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(_open(path)) for path in files]
            homes = {name: each for each in opened for name in each.keys()}  # noqa: SIM118 - no dict
            for name, tensor in state.items():
                where = place(name)
                if where is None or where[0] not in homes:
                    self.computed.append(name)
                    continue
                expected = _applied(homes[where[0]].get_tensor(where[0]), where)
                self.tensors += 1
                # In single precision, or in the precision of the model if that is the lower.
                same = tensor.shape == expected.shape and torch.equal(
                    tensor, expected.to(tensor.dtype)
                )
                if not same:
                    self.different.append(name)

    def compare_arrays(self, made: Path, ours: Path) -> None:
        """Hold the file that a loader *made* against *ours*, without torch."""
        with _open(made, "np") as written, _open(ours, "np") as opened:
            known = set(opened.keys())
            for name in written.keys():  # noqa: SIM118 - no dict
                if name not in known:
                    self.computed.append(name)
                    continue
                theirs = written.get_tensor(name)
                # Where it writes buffers in half precision, too, they are rounded as ours are here.
                expected = opened.get_tensor(name).astype(theirs.dtype)
                self.tensors += 1
                # A scalar comes out as a vector of one element.
                same_shape = expected.shape in {theirs.shape, ()}
                if not same_shape or expected.tobytes() != theirs.tobytes():
                    self.different.append(name)

    def compare_values(self, state: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Look each tensor of *state* up among the file's, and thirds of them, by value."""
        held: set[bytes] = set()
        for path in files:
            with _open(path) as opened:
                for name in opened.keys():  # noqa: SIM118 - no dict
                    tensor = opened.get_tensor(name)
                    parts = tensor.chunk(3) if "in_proj" in name else (tensor,)
                    held.update(_digest(part) for part in parts)
        for name, tensor in state.items():
            self.tensors += 1
            if _digest(tensor) not in held:
                self.different.append(name)


def _open(path: Path, framework: str = "pt") -> Any:
    return importlib.import_module("safetensors").safe_open(path, framework)


def _applied(tensor: Any, where: Place) -> Any:
    _, op, rows = where
    if op == "squeeze":
        return tensor[:, :, 0, 0]
    if op == "transpose":
        return tensor.T
    return tensor if rows is None else tensor[slice(*rows)]


def _digest(tensor: Any) -> bytes:
    data = tensor.contiguous().view(-1).view(importlib.import_module("torch").uint8).numpy()
    return hashlib.blake2b(data, digest_size=16).digest()


class _Anything(type):
    """A class that has whatever is asked of it."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name

    def __getitem__(cls, item: object) -> type:
        return cls


class _Absent(types.ModuleType):
    """A module that is not installed, and has whatever is asked of it."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Anything(name, (), {"__init__": lambda *_, **__: None})
        setattr(self, name, made)
        return made


class _Stand(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives absent modules for the names it stands in for, and for all that lies in them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)

    def find_spec(self, fullname: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if {fullname, fullname.partition(".")[0]} & self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


def absent(*names: str) -> None:
    """Stand in for the modules *names* where they are not installed."""
    sys.meta_path.append(_Stand(names))


def undrawn() -> None:
    """Have torch draw no initial weights: it takes minutes, and they would be overwritten."""
    init = importlib.import_module("torch.nn.init")
    names = ("uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_",
             "trunc_normal_")  # fmt: skip
    for name in names:
        setattr(init, name, lambda tensor, *_, **__: tensor)


def prefixed(prefix: str) -> Callable[[str], Place | None]:
    """What the model calls so has *prefix* in front of it in the file."""
    return lambda name: (prefix + name, "identity", None)
