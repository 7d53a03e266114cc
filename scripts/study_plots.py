"""The plots of docs/fp16.md, as SVG that is the same for the same numbers.

Knows:      matplotlib.
Is told:    what was found, and a folder.
Never asks: how it was found.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from study_unet import Forward, Trajectory
    from study_vae import Vae

__all__ = ["PLOTS", "draw"]

PLOTS = ("fp16-weights.svg", "fp16-unet.svg", "fp16-vae.svg")
# Between exponents: normal in float16 is what has -14 or more, zero what has -26 or less.
_NORMAL, _SMALLEST = -14.5, -25.5
_MOST = 65504.0
_COLOURS = {"fp16": "#c0392b", "bf16": "#2471a3"}


def draw(
    folder: Path, weights: dict[str, dict[int, int]], unet: Forward, sampled: Trajectory, vae: Vae
) -> None:
    """Draw everything into *folder*."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("svg")
    # Without these each run has other ids, and text is drawn as outlines.
    matplotlib.rcParams.update({"svg.hashsalt": "ckptaudit", "svg.fonttype": "none"})
    pyplot: Any = import_module("matplotlib.pyplot")
    for name, figure in zip(
        PLOTS,
        (_weights(pyplot, weights), _unet(pyplot, unet, sampled), _vae(pyplot, vae)),
        strict=True,
    ):
        figure.savefig(folder / name, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _weights(pyplot: Any, found: dict[str, dict[int, int]]) -> Any:
    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    for component, counts in found.items():
        total = sum(counts.values())
        exponents = sorted(counts)
        axes.step(exponents, [counts[e] / total for e in exponents], where="mid", label=component)
    axes.axvspan(-40, _SMALLEST, color="#c0392b", alpha=0.2, lw=0)
    axes.axvspan(_SMALLEST, _NORMAL, color="#c0392b", alpha=0.08, lw=0)
    axes.text(-39.5, 0.3, "zero in fp16", rotation=90, va="top", fontsize=8)
    axes.text(-25, 0.3, "subnormal in fp16", rotation=90, va="top", fontsize=8)
    axes.set(
        yscale="log", xlim=(-40, 4), ylim=(1e-9, 0.5),
        xlabel="binary exponent of a weight", ylabel="share of the component's weights",
    )  # fmt: skip
    axes.legend(fontsize=8)
    return figure


def _unet(pyplot: Any, unet: Forward, sampled: Trajectory) -> Any:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in unet.errors:
        if name == "fp32":
            continue
        style = {"color": _COLOURS[name[:4]], "ls": "--" if "stored" in name else "-"}
        errors = unet.errors[name]
        left.plot(list(errors), [e.relative for e in errors.values()], marker=".", **style)
        steps = sampled.errors[name]
        right.plot(range(1, len(steps) + 1), steps, marker=".", label=name, **style)
    left.set(yscale="log", xlabel="timestep", ylabel="relative L2 error of one pass")
    left.invert_xaxis()
    right.set(yscale="log", xlabel="DDIM step", ylabel="relative L2 error of the latent")
    right.legend(fontsize=8)
    return figure


def _vae(pyplot: Any, vae: Vae) -> Any:
    figure, axes = pyplot.subplots(figsize=(9, 3.8), layout="constrained")
    shades = pyplot.get_cmap("viridis")
    for number, decoder in enumerate(vae.decoders.values()):
        values = list(decoder.largest.values())
        colour = shades(number / len(vae.decoders))
        label = f"growth {decoder.growth}"
        axes.plot(range(len(values)), values, lw=1, color=colour, label=label)
    names = list(next(iter(vae.decoders.values())).largest)
    starts = [n for n, name in enumerate(names) if name.endswith("resnets.0.norm1")]
    axes.set_xticks(starts, [names[n].removesuffix(".resnets.0.norm1") for n in starts], fontsize=7)
    axes.axhline(_MOST, color="#c0392b", lw=1)
    axes.text(0, _MOST * 1.2, "largest float16 number", color="#c0392b", fontsize=8)
    axes.set(yscale="log", ylabel="largest output of a layer, fp32")
    axes.legend(fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0.0, 0.7))
    return figure
