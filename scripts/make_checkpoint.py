"""Write a synthetic checkpoint of a supported family: full size, from a seed, without torch.

    python scripts/make_checkpoint.py sd1 sd15.ckpt
    python scripts/make_checkpoint.py sd1 full.ckpt --lightning --ema --plant overflow:3

The file is framed and pickled as `torch.save` does it (`torchfile`), has the tensors of the
family's inventory (`ckptaudit.layouts`), and holds plausible, meaningless values (`weights`):
scaled slices of one pool of deviates.  It is written in one pass, in little memory.
`--values trained` makes them as like those of a trained model as public sources tell (`trained`).

With the same seed the tensors have the same values whatever the other options: framing, layout
in memory, EMA, aliases, extras.  So two files of one seed must convert to equal tensors.

A line of JSON on stdout says what was written, with exact counts; of the elements a cast to
float16 would lose, too, per component (EMA and all, aliases not counted twice).

A sample for a demonstration, which its family is still recognised by (it is incomplete, and
inspecting it says so), leaves out the largest tensors: 921 of 1143 remain, 291 MB in float32,
and 146 MB converted to float16.

    python scripts/make_checkpoint.py sd1 sample.ckpt --largest 600000

Knows:      what else stands in real files, and under which names.
Is told:    an inventory, and options.
Never asks: how values are made (`weights`), laid out (`storing`) or framed (`torchfile`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from storing import Layout, generated, given
from torchfile import Framing, Name, OrderedDict, Tensor, Tree, write_file
from trained import FREEDOM, trained
from weights import PLANTS, Counts, Pool, Spread, Weights, fixed, spread

from ckptaudit.layouts import FAMILIES, Component, Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


__all__ = ["Options", "Summary", "select", "write_checkpoint"]

# A tensor is turned round in memory; larger ones are not chosen for it.
_MOST_TURNED = 1 << 22  # elements
_ALIAS_PREFIX = "embedding_manager.embedder."
_STEPS = 470_000


@dataclass(frozen=True, slots=True)
class Options:
    """How the checkpoint is to be written.

    Attributes:
        dtype: Type of the floating-point weights.
        framing: The zip of torch >= 1.6, or the stream before it.
        bare: Whether the tensors are the root, without a ``state_dict`` around them.
        lightning: Whether what PyTorch Lightning saves stands beside them.
        optimizer_params: Parameters the optimizer, if there is one, has states of.
        ema_identical: Whether the moving averages equal the weights.
        aliases: Each a number of tensors to repeat under a second prefix, or ``KEY=OF``.
        non_contiguous: How many tensors are not stored row by row.
        plants: Each ``KIND:COUNT`` or ``KIND:WHERE:COUNT``.
        values: Whether they are plainly normal or like a trained model's.
        seed: What values and random choices depend on.
    """

    dtype: Literal["fp32", "fp16"] = "fp32"
    framing: Framing = "zip"
    bare: bool = False
    lightning: bool = False
    optimizer_params: int = 4
    ema_identical: bool = False
    aliases: tuple[str, ...] = ()
    non_contiguous: int = 0
    plants: tuple[str, ...] = ()
    values: Literal["plain", "trained"] = "plain"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """What was written.

    Attributes:
        path: The file.
        bytes: Its size.
        seed: The seed.
        dtype: Type of the floating-point weights.
        framing: How they were framed.
        tensors: Keys in the state dict, aliases among them.
        aliases: Second names and the tensors they are of.
        non_contiguous: Keys of tensors not stored row by row, and how they are stored.
        planted: By kind and key, the number of elements planted.
        counts: Per component, `weights.Counts` of all its weights.
    """

    path: str
    bytes: int
    seed: int
    dtype: str
    framing: str
    tensors: int
    aliases: dict[str, str]
    non_contiguous: dict[str, Layout]
    planted: dict[str, dict[str, int]]
    counts: dict[str, dict[str, int]]


def select(
    entries: Iterable[Entry],
    components: Sequence[str] = (),
    prefixes: Sequence[str] = (),
    largest: int | None = None,
) -> tuple[Entry, ...]:
    """Those of *entries* in one of *components* or under one of *prefixes*; all if none is given.

    Args:
        entries: What to choose from.
        components: Components, by value.
        prefixes: What keys may begin with.
        largest: Most elements a tensor may have, or None.

    Raises:
        ValueError: A component or prefix selects nothing.
    """
    entries = tuple(entries)
    for component in components:
        if component not in {entry.component.value for entry in entries}:
            raise ValueError(f"no tensor belongs to component {component!r}")
    for prefix in prefixes:
        if not any(entry.key.startswith(prefix) for entry in entries):
            raise ValueError(f"no key begins with {prefix!r}")
    everything = not components and not prefixes
    return tuple(
        entry
        for entry in entries
        if everything
        or entry.component.value in components
        or entry.key.startswith(tuple(prefixes))
        if largest is None or math.prod(entry.shape) <= largest
    )


def write_checkpoint(path: Path, entries: Sequence[Entry], options: Options) -> Summary:
    """Write the tensors of *entries* to *path*; an existing file is overwritten.

    Raises:
        ValueError: An option asks for what cannot be, before anything is written.
    """
    model = _Model(tuple(entries), options)
    size = write_file(path, model.root(), framing=options.framing)
    planted = {
        kind: dict(Counter(key for key, other in model.planted if other == kind))
        for kind in sorted({kind for _, kind in model.planted})
    }
    return Summary(
        path=str(path),
        bytes=size,
        seed=options.seed,
        dtype=options.dtype,
        framing=options.framing,
        tensors=len(model.tensors),
        aliases=model.aliases,
        non_contiguous=model.layouts,
        planted=planted,
        counts={name: _public(counts) for name, counts in model.counts.items()},
    )


def _public(counts: Counts) -> dict[str, int]:
    names = [field.name for field in dataclasses.fields(counts)]
    return {name: getattr(counts, name) for name in names if not name.startswith("_")}


@dataclass(slots=True)
class _Model:
    """A checkpoint's tensors, each with where its values come from."""

    entries: tuple[Entry, ...]
    options: Options
    pool: Pool = field(init=False)
    layouts: dict[str, Layout] = field(init=False)
    plants: dict[str, dict[int, float]] = field(default_factory=dict)
    planted: list[tuple[str, str]] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.options.bare and self.options.lightning:
            raise ValueError("a bare state dict has no room for what Lightning saves")
        freedom = FREEDOM if self.options.values == "trained" else None
        self.pool = Pool(self.options.seed, freedom)
        self.layouts = dict(self.choose_layouts())
        for number, request in enumerate(self.options.plants):
            self.plant(number, request)
        for entry in self.entries:
            self.tensors[entry.key] = self.tensor(entry)
        for request in self.options.aliases:
            self.alias(request)

    @property
    def floats(self) -> list[Entry]:
        """The weights: floating-point tensors that are neither EMA copies nor given values."""
        return [
            entry
            for entry in self.entries
            if entry.component not in (Component.EMA, Component.SCHEDULE)
            and fixed(entry.key, entry.shape, entry.dtype) is None
        ]

    def choose_layouts(self) -> Iterator[tuple[str, Layout]]:
        """Yield keys of tensors to be stored otherwise than row by row, and how."""
        wanted = self.options.non_contiguous
        fit = [
            entry
            for entry in self.floats
            # With one row or one column there is only one way to store it.
            if len(entry.shape) > 1 and min(entry.shape[:2]) > 1
            if math.prod(entry.shape) <= _MOST_TURNED
        ]
        if wanted > len(fit):
            raise ValueError(f"{wanted} tensors cannot be non-contiguous; {len(fit)} can")
        # Spread over the whole model, so that components and shapes vary.
        for number in range(wanted):
            entry = fit[number * len(fit) // wanted]
            if math.prod(entry.shape[2:]) > 1:
                yield entry.key, "channels_last"
            elif len(entry.shape) == 2 and number % 2:  # noqa: PLR2004 - a matrix
                yield entry.key, "columns"
            else:
                yield entry.key, "transposed"

    def plant(self, number: int, request: str) -> None:
        """Note which elements get which values for the request ``KIND[:WHERE]:COUNT``."""
        kind, _, rest = request.partition(":")
        where, _, count = rest.rpartition(":")
        if kind not in PLANTS or not count.isdecimal():
            kinds = ", ".join(PLANTS)
            raise ValueError(f"{request!r} is not KIND:COUNT or KIND:WHERE:COUNT; kinds: {kinds}")
        if self.options.dtype == "fp16" and kind in ("overflow", "flush"):
            raise ValueError(f"{request!r}: no value of a float16 file can do that")
        fit = [entry for entry in self.floats if where in ("", entry.key, entry.component.value)]
        free = sum(math.prod(entry.shape) - len(self.plants.get(entry.key, ())) for entry in fit)
        if int(count) > free:
            raise ValueError(f"{request!r}: there are {free} weights to plant in")
        generator = np.random.default_rng((self.options.seed, number))
        values = PLANTS[kind]
        done = 0
        while done < int(count):
            entry = fit[int(generator.integers(len(fit)))]
            taken = self.plants.setdefault(entry.key, {})
            numel = math.prod(entry.shape)
            position = int(generator.integers(max(numel, 1)))
            if len(taken) == numel or position in taken:
                continue
            taken[position] = values[done % len(values)]
            self.planted.append((entry.key, kind))
            done += 1

    def tensor(self, entry: Entry) -> Tensor:
        values = fixed(entry.key, entry.shape, entry.dtype)
        if values is not None:
            return given(values)
        dtype = entry.dtype
        if dtype == "float32" and entry.component is not Component.SCHEDULE:
            dtype = {"fp32": "float32", "fp16": "float16"}[self.options.dtype]
        # A copy is made from its weight's key, so that it is found without the weight.
        source = entry.of or entry.key
        identical = entry.of is None or self.options.ema_identical
        plants = self.plants.get(source, {}) if identical else {}
        weights = Weights(
            self.pool,
            source,
            math.prod(entry.shape),
            (trained if self.options.values == "trained" else spread)(source, entry.shape),
            None if identical else entry.key,
            tuple(sorted(plants.items())),
        )
        counts = self.counts.setdefault(entry.component.value, Counts())
        return generated(weights, entry.shape, dtype, self.layouts.get(entry.key), counts)

    def alias(self, request: str) -> None:
        """Give second names for the request ``N`` or ``KEY=OF``."""
        if request.isdecimal():
            texts = [e.key for e in self.entries if e.component is Component.TEXT_ENCODER]
            of = (texts or [entry.key for entry in self.entries])[: int(request)]
            if len(of) < int(request):
                raise ValueError(f"--alias {request}: there are {len(of)} tensors to repeat")
            pairs = [(_ALIAS_PREFIX + key.partition(".")[2], key) for key in of]
        else:
            key, _, original = request.partition("=")
            if original not in self.tensors:
                raise ValueError(f"--alias {request}: there is no tensor {original!r}")
            pairs = [(key, original)]
        for key, original in pairs:
            if key in self.tensors:
                raise ValueError(f"--alias {request}: there is a tensor {key!r} already")
            self.tensors[key] = self.tensors[original]
            self.aliases[key] = original

    def root(self) -> Tree:
        """The tree to be pickled."""
        if self.options.bare:
            return self.tensors
        if not self.options.lightning:
            return {"state_dict": self.tensors}
        score = given(np.array(0.1423, np.float32), location="cuda:0")
        return {
            "epoch": 11,
            "global_step": _STEPS,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": OrderedDict(self.tensors, _metadata(self.tensors)),
            # pytorch_lightning 1.4.2, ModelCheckpoint.on_save_checkpoint; the key is a class.
            "callbacks": {
                Name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): {
                    "monitor": "val/loss_simple_ema",
                    "best_model_score": score,
                    "best_model_path": "logs/checkpoints/epoch=000011.ckpt",
                    "current_score": score,
                    "dirpath": "logs/checkpoints",
                }
            },
            "optimizer_states": [self.optimizer()],
            "lr_schedulers": [
                {
                    "base_lrs": [1e-4],
                    "last_epoch": _STEPS,
                    "_step_count": _STEPS + 1,
                    "verbose": False,
                    "_get_lr_called_within_step": False,
                    "_last_lr": [1e-4],
                    "lr_lambdas": [{}],
                }
            ],
        }

    def optimizer(self) -> Tree:
        """What ``torch.optim.AdamW.state_dict`` gives for the first few weights."""
        trained = [entry for entry in self.floats if entry.component is Component.UNET]
        trained = (trained or self.floats)[: self.options.optimizer_params]
        state: dict[int, dict[str, Tree]] = {}
        for number, entry in enumerate(trained):
            state[number] = {"step": _STEPS}
            for name, values in (
                ("exp_avg", Spread(0.0, 1e-4)),
                ("exp_avg_sq", Spread(1e-8, 1e-9)),
            ):
                key = f"{name}.{entry.key}"
                weights = Weights(self.pool, key, math.prod(entry.shape), values)
                state[number][name] = generated(weights, entry.shape, "float32", None, Counts())
        group = {
            "lr": 1e-4,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.01,
            "amsgrad": False,
            "initial_lr": 1e-4,
            "params": list(range(len(trained))),
        }
        return {"state": state, "param_groups": [group]}


def _metadata(keys: Iterable[str]) -> dict[str, Tree]:
    """What `Module.state_dict` notes of each module: its name and version 1."""
    modules = {"": None}
    for key in keys:
        parts = key.split(".")[:-1]
        modules |= {".".join(parts[: n + 1]): None for n in range(len(parts))}
    return {name: {"version": 1} for name in modules}


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None  # noqa: S101 - for mypy
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="Values are plausible and meaningless; equal seeds give equal values.",
    )
    add = parser.add_argument
    add("family", choices=sorted(FAMILIES), help="model family")
    add("out", type=Path, help="file to write; overwritten if it exists")
    add("--seed", type=int, default=0, help="what values and random choices depend on (default 0)")
    what = parser.add_argument_group("what is in it")
    what.add_argument(
        "--dtype", choices=("fp32", "fp16"), default="fp32", help="type of the weights"
    )
    what.add_argument(
        "--values", choices=("plain", "trained"), default="plain",
        help="normal values, or some with the tails and outliers of trained ones",
    )  # fmt: skip
    what.add_argument("--ema", action="store_true", help="add moving averages of the UNet")
    what.add_argument(
        "--ema-identical", action="store_true", help="--ema, and equal to the weights in value"
    )
    what.add_argument("--variant", help="spelling of the keys, such as novelai")
    what.add_argument(
        "--components", default="", metavar="A,B", help="write only these, such as vae,schedule"
    )
    what.add_argument(
        "--keys", action="append", default=[], metavar="PREFIX",
        help="write only keys with this prefix, beside --components; repeatable",
    )  # fmt: skip
    what.add_argument(
        "--largest", type=int, metavar="N", help="leave out tensors of more than N elements"
    )
    what.add_argument(
        "--plant", action="append", default=[], metavar="KIND[:WHERE]:COUNT",
        help=f"put COUNT special values ({', '.join(PLANTS)}) in the weights, or WHERE: "
        "a key or a component; repeatable",
    )  # fmt: skip
    how = parser.add_argument_group("how it is saved")
    how.add_argument(
        "--framing", choices=("zip", "legacy"), default="zip",
        help="zip of torch >= 1.6, or the stream before it",
    )  # fmt: skip
    how.add_argument("--bare", action="store_true", help="no state_dict around the tensors")
    how.add_argument(
        "--lightning", action="store_true",
        help="epoch, global_step, callbacks keyed by a class, optimizer and scheduler states",
    )  # fmt: skip
    how.add_argument(
        "--optimizer-params", type=int, default=4, metavar="N",
        help="weights the optimizer has states of, 0 for none (default 4)",
    )  # fmt: skip
    how.add_argument(
        "--alias", action="append", default=[], metavar="N|KEY=OF",
        help=f"save N tensors of the text encoder under {_ALIAS_PREFIX}* too, or OF under KEY "
        "too, sharing memory; repeatable",
    )  # fmt: skip
    how.add_argument(
        "--non-contiguous", type=int, default=0, metavar="N",
        help="store N tensors channels-last, transposed, or as columns of a wider matrix",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what *arguments* ask for; print what was written; return the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    options = Options(
        dtype=chosen.dtype,
        framing=chosen.framing,
        bare=chosen.bare,
        lightning=chosen.lightning,
        optimizer_params=chosen.optimizer_params,
        ema_identical=chosen.ema_identical,
        aliases=tuple(chosen.alias),
        non_contiguous=chosen.non_contiguous,
        plants=tuple(chosen.plant),
        values=chosen.values,
        seed=chosen.seed,
    )
    components = [name for name in chosen.components.split(",") if name]
    try:
        entries = FAMILIES[chosen.family].inventory(
            ema=chosen.ema or chosen.ema_identical, variant=chosen.variant
        )
        wanted = select(entries, components, chosen.keys, chosen.largest)
        summary = write_checkpoint(chosen.out, wanted, options)
    except ValueError as err:
        parser.error(str(err))
    print(json.dumps({"family": chosen.family, **dataclasses.asdict(summary)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
