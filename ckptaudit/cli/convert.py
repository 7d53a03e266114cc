"""``ckptaudit convert``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptaudit.cli.answers import GOOD, Answers, paths_argument, report_options, show
from ckptaudit.cli.progress import progress_bar
from ckptaudit.errors import OutputExists, OutputFailed

if TYPE_CHECKING:
    from collections.abc import Container

    from ckptaudit.jobs.convert import Conversion
    from ckptaudit.plan import Options

_ACTIONS = ("convert", "copy", "drop")
# Double extensions in use; whatever else ends a name is one extension.
_LONG_SUFFIXES = (".pth.tar", ".pt.tar")


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
    type=click.Choice(["fp16", "bf16", "fp32", "keep"]),
    default="fp16",
    show_default=True,
    help="What floating-point weights become.",
)
@click.option(
    "--on-overflow",
    type=click.Choice(["keep", "error", "clamp"]),
    default="keep",
    show_default=True,
    help="What becomes of a tensor whose weights do not fit: stay as it is, stop, or the "
    "largest finite value.",
)
@click.option(
    "--ema",
    type=click.Choice(["drop", "use", "keep"]),
    default="drop",
    show_default=True,
    help="What becomes of averaged copies: left out, put in place of the weights, or both kept.",
)
@click.option(
    "--dedupe",
    type=click.Choice(["safe", "all", "none"]),
    default="safe",
    show_default=True,
    help="What is stored once: what no loader asks for twice, whatever is equal, or nothing.",
)
@click.option(
    "--unet",
    type=click.Choice(_ACTIONS),
    default="convert",
    show_default=True,
    help="The UNet, and averaged copies of it: cast, written as they are, or left out.",
)
@click.option(
    "--vae",
    type=click.Choice(_ACTIONS),
    default="convert",
    show_default=True,
    help="The VAE.",
)
@click.option(
    "--text-encoder",
    type=click.Choice(_ACTIONS),
    default="convert",
    show_default=True,
    help="The text encoder.",
)
@click.option(
    "--other",
    type=click.Choice(_ACTIONS),
    default="convert",
    show_default=True,
    help="Tensors whose part in the model is not known.",
)
@click.option("--keep-names", is_flag=True, help="Write every key as it is in the source.")
@click.option("--dry-run", is_flag=True, help="Write nothing; say what would be written.")
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
    help="Convert a file that `scan` distrusts; nothing of it is executed all the same.",
)
@report_options
@click.pass_context
def convert(
    ctx: click.Context,
    /,
    paths: tuple[str, ...],
    output: str | None,
    format_: str,
    json_path: Path | None,
    no_hash: bool,
    dry_run: bool,
    if_exists: str,
    allow_unsafe: bool,
    **chosen: str | bool,
) -> None:
    """Convert PATHS to safetensors, with a report beside each.

    By default weights become fp16, averaged copies are left out and equal tensors are
    stored once; whatever is left out, renamed or rounded away is in the report,
    MODEL.report.json beside MODEL.safetensors.
    """
    from ckptaudit import report
    from ckptaudit.jobs.convert import convert as job

    def status(_result: Conversion) -> int:
        return GOOD

    options = _options(chosen)
    overwrite = if_exists == "overwrite"
    taken: dict[Path, str] = {}

    def work(path: str) -> Conversion:
        target, report_target = _targets(path, output, several=len(paths) > 1)
        if taken.setdefault(target, path) != path:
            raise OutputExists(
                f"{path}: would become {target}, as {taken[target]} does; "
                "convert one of them into another folder"
            )
        if not dry_run:
            _check_report(path, report_target, overwrite=overwrite)
        with progress_bar(Path(path).name) as progress:
            result = job(
                path,
                target,
                options,
                with_hash=not no_hash,
                overwrite=overwrite,
                allow_unsafe=allow_unsafe,
                dry_run=dry_run,
                progress=progress,
            )
        if not dry_run:
            _write_report(report_target, result, overwrite=overwrite)
        return result

    answers = Answers(status, report.conversion_text)
    answers.check_json(json_path)
    for path in paths:
        if if_exists == "skip" and _is_done(path, output, several=len(paths) > 1, taken=taken):
            show(f"{path}: skipped, its output exists")
        else:
            answers.ask(path, partial(work, path))
    ctx.exit(answers.deliver(format_, json_path))


def _options(chosen: dict[str, str | bool]) -> Options:
    from ckptaudit.plan import Action, Dedupe, Ema, OnOverflow, Options, Precision

    return Options(
        precision=Precision(chosen["precision"]),
        on_overflow=OnOverflow(chosen["on_overflow"]),
        ema=Ema(chosen["ema"]),
        dedupe=Dedupe(chosen["dedupe"]),
        keep_names=bool(chosen["keep_names"]),
        unet=Action(chosen["unet"]),
        vae=Action(chosen["vae"]),
        text_encoder=Action(chosen["text_encoder"]),
        other=Action(chosen["other"]),
    )


def _targets(path: str, output: str | None, *, several: bool) -> tuple[Path, Path]:
    """The safetensors file and the report that *path* becomes."""
    source = Path(path)
    name = source.name
    suffix = next((s for s in _LONG_SUFFIXES if name.lower().endswith(s)), source.suffix)
    stem = name.removesuffix(suffix) or name
    if output is None:
        target = source.parent / f"{stem}.safetensors"
    elif several or output.endswith("/") or Path(output).is_dir():
        target = Path(output) / f"{stem}.safetensors"
    else:
        target = Path(output)
    if target.suffix != ".safetensors":
        raise OutputFailed(
            f"{target}: the output must be named .safetensors: loaders unpickle any other name"
        )
    return target, target.with_name(f"{target.name.removesuffix('.safetensors')}.report.json")


def _is_done(path: str, output: str | None, *, several: bool, taken: Container[Path]) -> bool:
    """Whether the output of *path* was there before; where it cannot be, converting says why."""
    try:
        target, _ = _targets(path, output, several=several)
        return target not in taken and Path(path).exists() and target.exists()
    except (OSError, OutputFailed):
        return False


def _check_report(path: str, report_target: Path, *, overwrite: bool) -> None:
    """Refuse before the work is done what would be refused after it."""
    from ckptaudit.source import FileSource
    from ckptaudit.writer import check_destination

    # Of a source that is not there, that is what has to be said.
    FileSource(path).close()
    check_destination(report_target, overwrite=overwrite)


def _write_report(path: Path, result: Conversion, *, overwrite: bool) -> None:
    from ckptaudit.report import to_json
    from ckptaudit.writer import write_text

    write_text(path, to_json([result]), overwrite=overwrite)
