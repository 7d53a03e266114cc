"""`convert`: a checkpoint in, deduplicated safetensors and an account of every tensor out.

Knows:      what may be converted, and where to.
Is told:    a path, a destination and the user's options.
Never asks: how weights get from one file to the other (`writing`), how the answer is shown.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ckptaudit.errors import Incomplete, OutputFailed, Refused
from ckptaudit.jobs.folderfiles import own_files
from ckptaudit.jobs.opening import Folders, Judged, opened
from ckptaudit.plan import Options
from ckptaudit.policy import Severity, judge
from ckptaudit.source import path_text
from ckptaudit.tensors import misfits
from ckptaudit.writer import check_destination, check_folder, check_spares, settle_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from ckptaudit.containers import Container
    from ckptaudit.jobs.account import Conversion
    from ckptaudit.jobs.opening import Opened
    from ckptaudit.policy import Judgement, Policy

__all__ = ["convert"]

_SUFFIX = ".safetensors"


def convert(
    path: str | PathLike[str],
    output: str | PathLike[str],
    options: Options | None = None,
    *,
    replace_vae: str | PathLike[str] | None = None,
    with_hash: bool = True,
    overwrite: bool = False,
    allow_unsafe: bool = False,
    dry_run: bool = False,
    policy: Policy | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Conversion:
    """Convert the checkpoint at *path* into the safetensors file *output*.

    The report that the command line writes beside it is the answer's, as JSON.

    Args:
        path: The checkpoint, or the folder of a diffusers model.
        output: The file to write, named ``.safetensors``, or the folder, where there are several;
            it appears under this name only when it is whole.
        options: What to do with weights, copies and names.
        replace_vae: A file, or the folder of a diffusers model, whose VAE is written in place of
            the checkpoint's, or besides, if that has none; it is held to all that *path* is.
        with_hash: Compute the SHA-256 of source and output.
        overwrite: Replace *output* if it is there.
        allow_unsafe: Convert a file that a scan distrusts or could not read completely;
            nothing of it is executed all the same.
        dry_run: Write nothing; the result says what would be written.
        policy: What of the scan's findings is permitted; what it permits in one file by its
            SHA-256 needs *with_hash*.
        progress: Told bytes of weights done, and in all.

    Raises:
        Refused: The scan distrusts the file.
        Incomplete: The scan could not read all of it.
        CastOverflow: A weight does not fit, and `Options` call that an error.
        OutputExists, OutputFailed: The output cannot be written.
        CkptauditError: The source cannot be read completely, or changed meanwhile.
    """
    options = options or Options()
    target = Path(output)
    # What is permitted in this file alone is known when its hash is.
    of_file = policy is not None and bool(policy.files)
    with_digest = with_hash and (of_file or not dry_run)
    paths = [path] if replace_vae is None else [path, replace_vae]
    with ExitStack() as stack:
        # All are being hashed while the first is looked at.
        files = [
            stack.enter_context(opened(each, with_hash=with_digest, folders=Folders.MODEL))
            for each in paths
        ]
        # A dry run, too, is refused what the conversion would be.
        sources = tuple(each for one in paths for each in _files_of(Path(one)))
        if options.makes_folder:
            if not dry_run:
                settle_folder(target, own_files)
            check_folder(target, overwrite=overwrite or dry_run)
        else:
            _check_target(target, sources, overwrite=overwrite or dry_run)
        source, *others = [_judged(each, policy, allow_unsafe=allow_unsafe) for each in files]
        # Only now, when the hash has begun: to load numpy takes a twentieth of a second.
        from ckptaudit.jobs.writing import write  # noqa: PLC0415

        return write(
            source,
            target,
            options,
            vae_source=next(iter(others), None),
            sources=sources,
            with_hash=with_hash,
            overwrite=overwrite,
            dry_run=dry_run,
            progress=progress,
        )


def _judged(file: Opened, policy: Policy | None, *, allow_unsafe: bool) -> Judged:
    """*file* with what a scan thinks of it, which is that it may be converted.

    Raises:
        Refused: The scan distrusts it.
        Incomplete: The scan could not read all of it.
    """
    judgement = judge(file.container, misfits, policy)
    if judgement.hangs_on_hash(policy):
        judgement = judgement.of_file(file.digest(), policy)
    if not allow_unsafe:
        _refuse_unsafe(file.container, judgement)
    return Judged(file, judgement)


def _files_of(path: Path) -> tuple[Path, ...]:
    """The files that the source at *path* may consist of."""
    if not path.is_dir():
        return (path,)
    return tuple(sorted(child for each in ("*", "*/*") for child in path.glob(each)))


def _check_target(target: Path, sources: tuple[Path, ...], *, overwrite: bool) -> None:
    """Refuse a destination that cannot be written, or that is the source itself."""
    if target.suffix != _SUFFIX:
        raise OutputFailed(
            f"{path_text(target)}: the output must be named {_SUFFIX}: loaders unpickle any "
            "other name"
        )
    check_destination(target, overwrite=True)
    check_spares(target, sources)
    check_destination(target, overwrite=overwrite)


def _refuse_unsafe(container: Container, judgement: Judgement) -> None:
    name = container.source.name
    if judgement.verdict >= Severity.SUSPICIOUS:
        worst = max(judgement.findings, key=lambda finding: finding.severity.rank)
        raise Refused(f"{name}: is {judgement.verdict.value} ({worst.message}); a scan says more")
    if not judgement.coverage.complete:
        raise Incomplete(f"{name}: could not be read completely ({judgement.coverage.gaps[0]})")
