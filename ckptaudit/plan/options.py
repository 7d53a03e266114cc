"""What a user can ask of a conversion.

Knows:      the choices, and their defaults.
Is told:    nothing.
Never asks: what becomes of a tensor; `making` decides that.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum

from ckptaudit.plan.describing import check_described

__all__ = ["Action", "Dedupe", "Ema", "Layout", "OnOverflow", "Options", "Precision"]


class Precision(str, Enum):
    """What floating-point weights become; ``auto`` is fp16, bf16 or fp32 for each tensor."""

    AUTO = "auto"
    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"
    FP8_E4M3FN = "fp8_e4m3fn"
    FP8_E5M2 = "fp8_e5m2"
    KEEP = "keep"


class Layout(str, Enum):
    """How the output is laid out."""

    ORIGINAL = "original"
    DIFFUSERS = "diffusers"


class OnOverflow(str, Enum):
    """What to do with a tensor that has finite weights the target cannot hold."""

    KEEP = "keep"
    ERROR = "error"
    CLAMP = "clamp"


class Ema(str, Enum):
    """What to do with the averaged copies of the weights."""

    DROP = "drop"
    USE = "use"
    KEEP = "keep"


class Dedupe(str, Enum):
    """Which tensors are stored once under one of several names."""

    SAFE = "safe"
    ALL = "all"
    NONE = "none"


class Action(str, Enum):
    """What to do with a component; ``auto`` is ``convert``, where the result can run."""

    AUTO = "auto"
    CONVERT = "convert"
    COPY = "copy"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for.

    Attributes:
        precision: What floating-point weights become.
        on_overflow: What happens where they do not fit.
        layout: The single file that a WebUI opens, or the folder that diffusers opens.
        ema: What happens to averaged copies.
        dedupe: What is stored once.
        keep_names: Write source keys verbatim instead of canonical names.
        unet: What happens to the UNet.
        vae: What happens to the VAE.
        text_encoder: What happens to the text encoders.
        other: What happens to everything whose part in the model is not known.
        split: Write a file for each component instead of one for all, into a folder.
        family: Name of the family to take a file for; "" is whatever it is found to be.
        modelspec: What to say of the model in ModelSpec metadata besides what is known, by key
            without its prefix, such as ``title`` and ``author``; None writes no such metadata.

    Raises:
        ValueError: A value is none of the choices.  The text of a choice is as good as the
            choice: ``Options(ema="use")``.
    """

    precision: Precision = Precision.FP16
    on_overflow: OnOverflow = OnOverflow.KEEP
    layout: Layout = Layout.ORIGINAL
    ema: Ema = Ema.DROP
    dedupe: Dedupe = Dedupe.SAFE
    keep_names: bool = False
    unet: Action = Action.CONVERT
    vae: Action = Action.AUTO
    text_encoder: Action = Action.CONVERT
    other: Action = Action.CONVERT
    split: bool = False
    family: str = ""
    modelspec: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, default = getattr(self, field.name), field.default
            if type(value) is type(default) or field.name == "modelspec":
                continue
            choices = (
                {each.value: each for each in type(default)} if isinstance(default, Enum) else {}
            )
            if not isinstance(value, str) or value not in choices:
                known = ", ".join(choices) or "True, False"
                raise ValueError(f"{field.name}: {value!r} is not one of {known}")
            object.__setattr__(self, field.name, choices[value])
        if self.keep_names and self.layout is Layout.DIFFUSERS:
            raise ValueError("keep_names: the diffusers layout has names of its own")
        if self.split and self.layout is Layout.DIFFUSERS:
            raise ValueError("split: the diffusers layout has a folder for each component anyway")
        if self.modelspec is not None:
            check_described(self.modelspec)
            if self.makes_folder:
                raise ValueError("modelspec: describes one file, and a folder is to be written")

    @property
    def spares_fragile_vae(self) -> bool:
        """Whether a VAE that cannot run in fp16 keeps its type, where nothing is said of it."""
        is_safe = self.precision in {Precision.BF16, Precision.FP32, Precision.KEEP}
        return self.vae is Action.AUTO and not is_safe

    @property
    def makes_folder(self) -> bool:
        """Whether a folder is written and not one file."""
        return self.split or self.layout is Layout.DIFFUSERS
