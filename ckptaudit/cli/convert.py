"""``ckptaudit convert``."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING

import click

from ckptaudit.cli.answers import GOOD, Answers, paths_argument
from ckptaudit.cli.formats import conversion_as
from ckptaudit.cli.outputs import check_kind, report_options, show
from ckptaudit.cli.policy import chosen_policy, note_unused, policy_option
from ckptaudit.cli.progress import progress_bar
from ckptaudit.errors import (
    CastOverflow,
    CkptauditError,
    Incomplete,
    OutputExists,
    OutputFailed,
    Refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ckptaudit.cli.outputs import Outputs
    from ckptaudit.jobs.account import Conversion, VaeSource
    from ckptaudit.plan import Options

_ACTIONS = ("convert", "copy", "drop")
# What ends a checkpoint's name; anything else behind a dot is part of it, as in ``v1.5``.
_SUFFIXES = (
    *(".pth.tar", ".pt.tar", ".ckpt", ".pt", ".pth", ".bin", ".th", ".pkl", ".tar", ".zip"),
    *(".safetensors", ".model", ".jit"),
)
_ADVICE: dict[type[CkptauditError], str] = {
    CastOverflow: "--on-overflow keep leaves such tensors as they are",
    Refused: "--allow-unsafe converts it all the same",
    Incomplete: "--allow-unsafe converts what could",
    OutputExists: "--if-exists overwrite replaces it",
}


@click.command()
@paths_argument
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help="A .safetensors file, or a folder; beside the source by default.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp16", "bf16", "fp32", "fp8_e4m3fn", "fp8_e5m2", "keep"]),
    default="fp16",
    show_default=True,
    help="What floating-point weights become; those of eight bits already stay as they are. auto, "
    "for each tensor: the first of fp16 and bf16 in which no weight overflows, no more than one "
    "nonzero weight in 100 becomes zero and the noise is 50 dB below the signal, and else fp32; it "
    "reads the weights twice.",
)
@click.option(
    "--on-overflow",
    type=click.Choice(["keep", "error", "clamp"]),
    default="keep",
    show_default=True,
    help="A tensor whose weights do not fit: keep leaves it in its own type, error stops, clamp "
    "writes the largest finite value.",
)
@click.option(
    "--layout",
    type=click.Choice(["original", "diffusers"]),
    default="original",
    show_default=True,
    help="original is the single file that a WebUI opens, diffusers the folder that diffusers "
    "opens; what has no place there is left out and listed.",
)
@click.option("--split", is_flag=True, help="Write a file for each component, into a folder.")
@click.option(
    "--family",
    default="",
    metavar="NAME",
    help="Take the file for a model of this family, such as sd2-v, whatever speaks against it.",
)
@click.option(
    "--ema",
    type=click.Choice(["drop", "use", "keep"]),
    default="drop",
    show_default=True,
    help="Averaged copies: drop leaves them out, use puts them in place of the weights, keep "
    "writes both.",
)
@click.option(
    "--dedupe",
    type=click.Choice(["safe", "all", "none"]),
    default="safe",
    show_default=True,
    help="What is stored once under one of its names: safe: what no loader asks for twice; all: "
    "whatever is equal; none: nothing.",
)
@click.option(
    "--unet",
    type=click.Choice(_ACTIONS),
    default="convert",
    show_default=True,
    help="The UNet, and averaged copies of it; convert casts it, copy writes it as it is, drop "
    "leaves it out.",
)
@click.option(
    "--vae",
    type=click.Choice(("auto", *_ACTIONS)),
    default="auto",
    show_default=True,
    help="The VAE; convert casts it, copy writes it as it is, drop leaves it out; auto converts, "
    "but not SDXL's to fp16, in which it overflows while it runs, or to less.",
)
@click.option(
    "--text-encoder",
    type=click.Choice(_ACTIONS),
    default="convert",
    show_default=True,
    help="The text encoder, likewise.",
)
@click.option(
    "--other",
    type=click.Choice(_ACTIONS),
    default="convert",
    show_default=True,
    help="Tensors whose part in the model is not known, likewise.",
)
@click.option(
    "--modelspec",
    is_flag=True,
    help="Describe the model by the ModelSpec in the file's metadata, as far as it is known; its "
    "title is the name of the file.",
)
@click.option(
    "--modelspec-field",
    "modelspec_fields",
    multiple=True,
    metavar="KEY=VALUE",
    help="Say this of the model there, such as author=...; may be given several times.",
)
@click.option(
    "--replace-vae",
    type=click.Path(readable=False),
    metavar="FILE",
    help="Write the VAE of FILE in place of that of each path, or besides if it has none: a VAE, a "
    "whole model, or the folder of either.",
)
@click.option("--keep-names", is_flag=True, help="Write every key as it is in the source.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Write nothing and read no weight, but with --precision auto; say what would be written.",
)
@click.option(
    "--if-exists",
    type=click.Choice(["error", "skip", "overwrite"]),
    default="error",
    show_default=True,
    help="What to do where the output is there already.",
)
@click.option(
    "--allow-unsafe",
    is_flag=True,
    help="Convert a file that `scan` distrusts or could not read completely; nothing of it is "
    "executed all the same.",
)
@policy_option
@report_options("text", "json", "md", files=("json", "md"))
@click.pass_context
def convert(
    ctx: click.Context,
    /,
    paths: tuple[str, ...],
    output: str | None,
    outputs: Outputs,
    replace_vae: str | None,
    no_hash: bool,
    dry_run: bool,
    if_exists: str,
    allow_unsafe: bool,
    policy_path: str | None,
    **chosen: str | bool | tuple[str, ...],
) -> None:
    """Convert PATHS to safetensors, with a report beside each.

    By default weights become fp16, averaged copies are left out and equal tensors are
    stored once; whatever is left out, renamed or rounded away is in the report,
    MODEL.report.json beside MODEL.safetensors.  A path is a checkpoint, or the folder
    of a diffusers model.
    """
    from pathlib import Path

    from ckptaudit.jobs.convert import convert as job

    def status(_result: Conversion) -> int:
        return GOOD

    described = _described(chosen.pop("modelspec"), chosen.pop("modelspec_fields"))
    try:
        options = _options(chosen, described)
    except ValueError as err:
        raise click.UsageError(f"--{str(err).replace('_', '-')}") from err
    is_folder = options.makes_folder
    overwrite = if_exists == "overwrite"
    # Where each path leads, links and ".." followed.
    read = paths if replace_vae is None else (*paths, replace_vae)
    sources = {os.path.realpath(path): path for path in read}
    taken: dict[str, str] = {}

    targets = partial(_targets, output=output, several=len(paths) > 1, is_folder=is_folder)

    def work(path: str) -> Conversion:
        target, report_target = targets(path)
        for place in (target, report_target):
            _claim(place, path, sources, taken)
        if not dry_run:
            _check_report(path, report_target, overwrite=overwrite)
        with progress_bar(Path(path).name) as progress:
            result = job(
                path,
                target,
                options,
                replace_vae=replace_vae,
                with_hash=not no_hash,
                overwrite=overwrite,
                allow_unsafe=allow_unsafe,
                dry_run=dry_run,
                policy=policy,
                progress=progress,
            )
        if not dry_run:
            _write_report(report_target, result, overwrite=overwrite)
        return result

    answers = Answers(status, conversion_as, _ADVICE)
    _check_sources(paths)
    outputs.check()
    _check_side_files(outputs, paths, targets)
    policy = chosen_policy(ctx, policy_path, no_hash=no_hash)
    for path in paths:
        if if_exists == "skip" and _is_done(path, targets, taken):
            _show_skipped(path, *targets(path))
        else:
            answers.ask(path, partial(work, path))
    note_unused(policy_path, policy, _with_vae_sources(answers.results), no_hash=no_hash)
    ctx.exit(answers.deliver(outputs))


def _with_vae_sources(results: list[Conversion] | None) -> list[Conversion | VaeSource] | None:
    """*results*, and what is told of the files that their VAEs are from."""
    if results is None:
        return None
    return [*results, *(each.vae_source for each in results if each.vae_source is not None)]


def _described(is_wanted: object, fields: object) -> tuple[tuple[str, str], ...] | None:
    """What the user says for ModelSpec metadata; None if there are to be none.

    Raises:
        click.BadParameter: It is none of what can be said there.
    """
    from ckptaudit.plan import check_described

    texts = fields if isinstance(fields, tuple) else ()
    if not (is_wanted or texts):
        return None
    pairs = (text.partition("=") for text in texts)
    said = tuple((key, value) for key, _, value in pairs)
    try:
        check_described(said)
    except ValueError as err:
        raise click.BadParameter(str(err), param_hint="--modelspec-field") from err
    return said


def _options(
    chosen: Mapping[str, object], modelspec: tuple[tuple[str, str], ...] | None
) -> Options:
    from ckptaudit.plan import Action, Dedupe, Ema, Layout, OnOverflow, Options, Precision

    return Options(
        precision=Precision(chosen["precision"]),
        layout=Layout(chosen["layout"]),
        family=str(chosen["family"]),
        split=bool(chosen["split"]),
        on_overflow=OnOverflow(chosen["on_overflow"]),
        ema=Ema(chosen["ema"]),
        dedupe=Dedupe(chosen["dedupe"]),
        keep_names=bool(chosen["keep_names"]),
        unet=Action(chosen["unet"]),
        vae=Action(chosen["vae"]),
        text_encoder=Action(chosen["text_encoder"]),
        other=Action(chosen["other"]),
        modelspec=modelspec,
    )


def _targets(path: str, output: str | None, *, several: bool, is_folder: bool) -> tuple[Path, Path]:
    """The safetensors file, or the folder, and the report that *path* becomes."""
    from pathlib import Path

    source = _with_a_name(Path(path))
    name = source.name
    length = next((len(s) for s in _SUFFIXES if name.lower().endswith(s)), 0)
    stem = name[: len(name) - length] or name
    if is_folder:
        target = _folder_target(source.parent / stem, output, several=several)
        return target, target.parent / f"{target.name}.report.json"
    if output is None:
        target = source.parent / f"{stem}.safetensors"
    elif several and output.endswith(".safetensors"):
        raise OutputFailed(f"{output}: several checkpoints need a folder to go to")
    elif several or output.endswith("/") or os.path.isdir(output):  # noqa: PTH112 - a name that is too long is none
        target = Path(output) / f"{stem}.safetensors"
    else:
        target = Path(output)
    if target.suffix != ".safetensors":
        raise OutputFailed(
            f"{target}: is neither named .safetensors nor a folder that exists; loaders unpickle "
            "what has any other name"
        )
    return target, target.with_name(f"{target.name.removesuffix('.safetensors')}.report.json")


def _folder_target(beside: Path, output: str | None, *, several: bool) -> Path:
    """The folder that a source becomes, which would lie *beside* it under that name."""
    if output is None:
        return beside
    from pathlib import Path

    if not output:
        raise OutputFailed("-o: names nothing; name a folder")
    if output.endswith(".safetensors"):
        raise OutputFailed(f"{output}: a folder is to be written; name one")
    return Path(output) / beside.name if several else _with_a_name(Path(output))


def _with_a_name(path: Path) -> Path:
    """*path*, spelled so that it ends with a name: ``.`` and ``..`` are none."""
    from pathlib import Path

    return path if path.name not in {"", ".."} else Path(os.path.realpath(path))


def _check_side_files(
    outputs: Outputs, paths: tuple[str, ...], targets: Callable[[str], tuple[Path, Path]]
) -> None:
    """Refuse a side file that is the place of an output, or of the report beside one."""
    taken: dict[Path, str] = {}
    for path in paths:
        with contextlib.suppress(OutputFailed):
            for place in targets(path):
                taken.setdefault(place.absolute(), path)
    for format_, side_file in outputs.side_files.items():
        path_taking = taken.get(side_file.absolute())
        if path_taking is not None:
            raise click.BadParameter(
                f"{side_file}: is where {path_taking} goes, or the report beside it",
                param_hint=f"--{format_}",
            )


def _check_sources(paths: tuple[str, ...]) -> None:
    """Refuse ``convert a.ckpt b.safetensors`` where b is to be written, before a is converted."""
    for path in paths[1:]:
        if path.endswith(".safetensors") and not os.path.lexists(path):
            raise click.UsageError(
                f"{path}: no such file; if it is what the other becomes, name it with -o"
            )


def _show_skipped(path: str, target: Path, report_target: Path) -> None:
    without = "" if report_target.exists() else f" ({report_target.name} does not)"
    show(f"ckptaudit: {path}: skipped, {target} exists{without}")


def _is_done(path: str, targets: Callable[[str], tuple[Path, Path]], taken: dict[str, str]) -> bool:
    """Whether the output of *path* was there before; where it cannot be, converting says why."""
    from pathlib import Path

    with contextlib.suppress(OSError, OutputFailed):
        target, _ = targets(path)
        if Path(path).exists() and target.exists():
            # Whatever else would become the same file is no less a collision for that.
            return taken.setdefault(os.path.realpath(target), path) == path
    return False


def _claim(place: Path, path: str, sources: Mapping[str, str], taken: dict[str, str]) -> None:
    """Note that *place* is for what *path* becomes; refuse where it is anything else's.

    Raises:
        OutputFailed: A source is there, or what another source becomes.
    """
    real = os.path.realpath(place)
    if real in sources:
        raise OutputFailed(
            f"{place}: is the source itself, or another; none is ever written: name an output "
            "with -o"
        )
    if taken.setdefault(real, path) != path:
        raise OutputFailed(
            f"{path}: would become {place}, as {taken[real]} does; "
            "convert one of them into another folder"
        )


def _check_report(path: str, report_target: Path, *, overwrite: bool) -> None:
    """Refuse before the work is done what would be refused after it."""
    from ckptaudit.source import FileSource
    from ckptaudit.writer import check_destination

    # Of a source that is not there, that is what has to be said.
    if not os.path.isdir(path):  # noqa: PTH112 - a name that is too long is none
        FileSource(path).close()
    check_destination(report_target, overwrite=overwrite)
    check_kind(report_target, "json")


def _write_report(path: Path, result: Conversion, *, overwrite: bool) -> None:
    from ckptaudit.report import to_json
    from ckptaudit.writer import write_text

    write_text(path, to_json([result]), overwrite=overwrite)
