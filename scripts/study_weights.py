"""What a conversion says its casts cost, and whether two other libraries find the same.

The files of each type are written by `ckptaudit.convert`, which reports of each tensor what the
cast did.  Then the files are opened by safetensors and compared by torch in float64: that is the
check, and where it differs the study has failed.

Knows:      what a conversion reports; the measures of a distribution.
Is told:    a checkpoint and its conversions.
Never asks: what a model computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from contest import table
from safetensors import safe_open
from trained import FREEDOM, KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ckptaudit import Conversion

__all__ = [
    "Cost",
    "Judgement",
    "costs",
    "costs_table",
    "histograms",
    "judge",
    "kinds_table",
    "reference_table",
]

_PART = 1 << 15  # elements compared at a time; as doubles they stay in cache
# Of float16: what rounds to zero, and what has fewer bits than a normal number.
_FLUSHED_TO, _NORMAL_FROM = 2.0**-25, 2.0**-14
_LARGE = 2000  # elements, from which on a tensor's shape of distribution means something
_LOUD, _QUIET = 3.0, 0.1  # times the median norm of a row


@dataclass
class Cost:
    """What a cast cost one component, by what the conversion reports.

    Attributes:
        tensors: How many were written.
        numel: Elements in them.
        largest: Largest magnitude of an element.
        overflowed: Elements too large.
        flushed: Elements that became zero.
        subnormal: Elements written with fewer bits.
        error: Largest absolute error.
        kept: Tensors not written in the type asked for.
    """

    tensors: int = 0
    numel: int = 0
    largest: float = 0.0
    overflowed: int = 0
    flushed: int = 0
    subnormal: int = 0
    error: float = 0.0
    kept: int = 0
    _signal: float = 0.0
    _noise: float = 0.0

    @property
    def sqnr(self) -> float:
        """Signal to quantisation noise of all elements together, in dB."""
        return 10 * math.log10(self._signal / self._noise) if self._noise else math.inf

    def add(self, entry: Any, dtype: str) -> None:
        """Add a tensor of which *entry* is the account, cast to *dtype* if all went well."""
        stats = entry.stats
        self.tensors += 1
        self.numel += stats.numel
        self.largest = max(self.largest, abs(stats.min or 0.0), abs(stats.max or 0.0))
        self.overflowed += stats.overflowed
        self.flushed += stats.flushed
        self.subnormal += stats.subnormal
        self.error = max(self.error, stats.max_abs_error or 0.0)
        self.kept += entry.dtype != dtype
        signal = stats.numel * ((stats.std or 0.0) ** 2 + (stats.mean or 0.0) ** 2)
        self._signal += signal
        if stats.sqnr_db is not None:
            self._noise += signal / 10 ** (stats.sqnr_db / 10)


def costs(conversion: Conversion, dtype: str) -> dict[str, Cost]:
    """By component, what *conversion* to *dtype* cost its floating-point weights."""
    found: dict[str, Cost] = {}
    for entry in conversion.tensors:
        if entry.source_dtype == "float32" and entry.stats is not None:
            found.setdefault(entry.component.value, Cost()).add(entry, dtype)
    return dict(sorted(found.items()))


def costs_table(found: dict[str, dict[str, Cost]]) -> list[str]:
    """A row for each component and type."""
    rows = [
        (
            component,
            kind,
            f"{cost.numel:,}",
            f"{cost.largest:.3g}",
            f"{cost.overflowed:,}",
            f"{cost.flushed:,}",
            f"{cost.subnormal:,} ({cost.subnormal / cost.numel:.2%})",
            f"{cost.error:.3g}",
            f"{cost.sqnr:.1f}" if cost.kept < cost.tensors else "not cast",
        )
        for component in next(iter(found.values()))
        for kind, by_component in found.items()
        for cost in (by_component[component],)
    ]
    head = (
        "component", "to", "elements", "largest", "overflowed", "flushed to zero", "subnormal",
        "largest error", "SQNR, dB",
    )  # fmt: skip
    return table(head, rows)


@dataclass
class Judgement:
    """What torch found in two files, beside what was reported.

    Attributes:
        tensors: Compared.
        differing: Names of those whose report is not what torch finds.
    """

    tensors: int = 0
    differing: list[str] = field(default_factory=list)


def judge(conversion: Conversion, before: Path, after: Path) -> Judgement:
    """Hold the report of each tensor of *after* against a comparison with *before*, by torch."""
    said = {entry.name: entry.stats for entry in conversion.tensors}
    judgement = Judgement()
    with safe_open(before, "pt") as wide, safe_open(after, "pt") as narrow:
        for name in narrow.keys():  # noqa: SIM118 - it is no dict
            x, y = wide.get_tensor(name), narrow.get_tensor(name)
            if not x.is_floating_point() or x.dtype == y.dtype:
                continue
            judgement.tensors += 1
            if not _agrees(said[name], _measure(x.flatten(), y.flatten())):
                judgement.differing.append(name)
    return judgement


def _measure(x: Any, y: Any) -> dict[str, float]:
    """What became of *x* when it was made *y*, part by part in float64."""
    smallest = torch.finfo(y.dtype).smallest_normal
    found = dict.fromkeys(("flushed", "subnormal", "overflowed", "error", "signal", "noise"), 0.0)
    for start in range(0, x.numel(), _PART):
        a, b = x[start : start + _PART].double(), y[start : start + _PART].double()
        apart = (b - a).abs()
        found["flushed"] += int(((a != 0) & (b == 0)).sum())
        found["subnormal"] += int(((b != 0) & (b.abs() < smallest)).sum())
        found["overflowed"] += int((torch.isfinite(a) & ~torch.isfinite(b)).sum())
        found["error"] = max(found["error"], float(apart.max()))
        found["signal"] += float((a * a).sum())
        found["noise"] += float((apart * apart).sum())
    return found


def _agrees(said: Any, found: dict[str, float]) -> bool:
    sqnr = 10 * math.log10(found["signal"] / found["noise"]) if found["noise"] else None
    return (
        (said.flushed, said.subnormal, said.overflowed)
        == (found["flushed"], found["subnormal"], found["overflowed"])
        and said.max_abs_error == found["error"]
        and (said.sqnr_db is None) == (sqnr is None)
        and (sqnr is None or math.isclose(said.sqnr_db, sqnr, rel_tol=1e-6))
    )


def histograms(conversion: Conversion, single: Path) -> dict[str, dict[int, int]]:
    """By component, how many weights of the float32 file *single* have which binary exponent."""
    component = {entry.name: entry.component.value for entry in conversion.tensors}
    found: dict[str, Any] = {}
    with safe_open(single, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            tensor = file.get_tensor(name)
            if tensor.dtype != torch.float32 or component[name] == "schedule":
                continue
            counted = found.setdefault(component[name], torch.zeros(256, dtype=torch.long))
            for part in tensor.flatten().split(_PART):
                counted += torch.bincount((part.view(torch.int32) >> 23) & 255, minlength=256)
    return {
        name: {
            exponent - 127: int(count)
            for exponent, count in enumerate(counts)
            if exponent and count
        }
        for name, counts in sorted(found.items())
    }


def kinds_table() -> list[str]:
    """The scales of the synthetic weights, and where they are from."""
    rows = []
    for kind in KINDS:
        scale = f"{kind.std:g}" if kind.std else f"{kind.gain:.2f} / √row"
        rows.append((kind.name, f"{kind.mean:g}", scale, kind.source))
    head = ("kind of tensor", "mean", "standard deviation", "from")
    return [*table(head, rows), "", f"Degrees of freedom of the t distribution: {FREEDOM:g}."]


def reference_table(files: Sequence[Path]) -> list[str]:
    """Of trained networks, and of what we make: what the rows of their weights are like."""
    rows = [(path.name, *_shape(_tensors(torch.load(path, map_location="cpu", weights_only=True))))
            for path in files]  # fmt: skip
    head = (
        "file", "matrices and kernels", "std x √row, 10% to 90%", "kurtosis in a row, median",
        "largest / std, median", "std of log norm of rows, median", "rows over 3 x median norm",
        "rows under 0.1 x", "subnormal in fp16", "flushed in fp16",
    )  # fmt: skip
    return table(head, rows)


def _tensors(node: Any) -> Iterator[Any]:
    if isinstance(node, torch.Tensor):
        if node.is_floating_point() and node.dim() > 1 and node.numel() >= _LARGE:
            yield node.detach().float()
    elif isinstance(node, dict):
        for each in node.values():
            yield from _tensors(each)
    elif isinstance(node, (list, tuple)):
        for each in node:
            yield from _tensors(each)


def _shape(tensors: Iterator[Any]) -> tuple[str, ...]:
    measured, rows, numel = [], torch.zeros(3), torch.zeros(3, dtype=torch.float64)
    for tensor in tensors:
        flat = tensor.flatten(1)
        norms = flat.norm(dim=1)
        middle = norms.median()
        unit = flat / norms.clamp_min(1e-12)[:, None] * flat.shape[1] ** 0.5
        logs = norms[norms > 0].log()
        measured.append(
            (
                float(flat.std()) * flat.shape[1] ** 0.5,
                float((unit**4).mean()),
                float(flat.abs().max() / flat.std()),
                float(logs.std()) if len(logs) > 1 else 0.0,
            )
        )
        rows += torch.tensor(
            [len(norms), int((norms > _LOUD * middle).sum()), int((norms < _QUIET * middle).sum())]
        )
        size = flat.abs()
        gone = int(((size > 0) & (size <= _FLUSHED_TO)).sum())
        small = int(((size > _FLUSHED_TO) & (size < _NORMAL_FROM)).sum())
        numel += torch.tensor([flat.numel(), small, gone])
    each = torch.tensor(measured, dtype=torch.float64)
    low, high = (float(each[:, 0].quantile(at)) for at in (0.1, 0.9))
    kurtosis, largest, apart = (float(each[:, column].median()) for column in (1, 2, 3))
    return (
        str(len(measured)),
        f"{low:.2f} to {high:.2f}",
        f"{kurtosis:.1f}",
        f"{largest:.1f}",
        f"{apart:.2f}",
        *(f"{float(count / rows[0]):.2%}" for count in rows[1:]),
        *(f"{float(count / numel[0]):.3%}" for count in numel[1:]),
    )
