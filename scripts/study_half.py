"""A model in half precision on a processor that cannot multiply in it.

torch has no quick float16 convolution or matrix product for processors without the instructions
for them: a pass through a UNet takes minutes.  They are done here as a GPU's tensor cores do them:
inputs and weights are float16 numbers, products are added up in float32, and each result is
rounded to float16, to infinity where it has to be.  All else runs as torch runs it.

Knows:      torch's modules.
Is told:    a model.
Never asks: what it computes.
"""

from __future__ import annotations

import gc
import os
import time
from functools import partial
from statistics import median
from typing import Any

import torch
from memory import pss_kb

__all__ = ["DEVICE", "Error", "convolution", "error", "memory_mb", "rounded", "seconds"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def rounded(model: Any) -> Any:
    """*model*, if it is of float16 and lies on a processor, with its products done so."""
    if model.dtype == torch.float16 and model.device.type == "cpu":
        ways: dict[Any, Any] = {torch.nn.Conv2d: _convolved, torch.nn.Linear: _multiplied}
        for layer in model.modules():
            for kind, way in ways.items():
                if isinstance(layer, kind):
                    layer.forward = partial(way, layer)
    return model


def _convolved(layer: Any, x: Any) -> Any:
    wide = torch.nn.functional.conv2d(
        x.float(), *_wide(layer), layer.stride, layer.padding, layer.dilation, layer.groups
    )
    return wide.half()


def _multiplied(layer: Any, x: Any) -> Any:
    return torch.nn.functional.linear(x.float(), *_wide(layer)).half()


def _wide(layer: Any) -> tuple[Any, Any]:
    """Weight and bias of *layer*, in float32."""
    return layer.weight.float(), None if layer.bias is None else layer.bias.float()


def convolution(channels: int, size: int, rounds: int = 3) -> dict[str, float]:
    """How one 3x3 convolution of torch's own in float16 compares with ours and with float32.

    Returns:
        Medians of seconds by ``float32``, ``float16`` (torch's) and ``ours``; and ``apart``, the
        relative L2 distance of the last two.
    """
    generator = torch.Generator().manual_seed(0)
    module: Any = torch.nn.Conv2d(channels, channels, 3, padding=1)
    x = torch.randn(1, channels, size, size, generator=generator)
    with torch.inference_mode():
        module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
        module.weight /= (9 * channels) ** 0.5
        took = {"float32": seconds(lambda: module(x), rounds)}
        module, half = module.half(), x.half()
        took["float16"] = seconds(lambda: module(half), rounds)
        took["ours"] = seconds(lambda: _convolved(module, half), rounds)
        took["apart"] = error(_convolved(module, half), module(half)).relative
    return took


def seconds(call: Any, rounds: int) -> float:
    """The median of *rounds* calls, in seconds, after one that is not counted."""
    took = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return median(took[1:])


class Error:
    """How far a tensor is from another one.

    Attributes:
        largest: Largest absolute difference; not a number where one of them is not finite.
        relative: L2 norm of the difference over that of the other.
        cosine: One minus the cosine of the angle between them.
        finite: Share of elements that are finite.
    """

    def __init__(self, found: Any, expected: Any) -> None:
        a, b = (tensor.detach().double().cpu().flatten() for tensor in (found, expected))
        self.finite = float(torch.isfinite(a).double().mean())
        self.largest = float((a - b).abs().max())
        self.relative = float((a - b).norm() / b.norm())
        self.cosine = float(1 - torch.dot(a, b) / (a.norm() * b.norm()))


def error(found: Any, expected: Any) -> Error:
    """How far *found* is from *expected*."""
    return Error(found, expected)


def memory_mb() -> float:
    """What this process holds now, in MB: on the GPU if there is one, else its share of memory."""
    gc.collect()
    if DEVICE == "cuda":
        return float(torch.cuda.memory_allocated()) / 1e6
    return pss_kb(os.getpid()) * 1024 / 1e6
