"""The policy and the baseline that a command is told of, and the notes they deserve on stderr.

Knows:      where people leave a policy, and what may be the matter with it.
Is told:    the paths that were named, if any were; afterwards the answers.
Never asks: what a permission means.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, TypeVar

import click

from ckptaudit.cli.answers import NONE
from ckptaudit.cli.outputs import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import date

    from ckptaudit.jobs.account import Conversion, VaeSource
    from ckptaudit.jobs.baseline import Baseline
    from ckptaudit.jobs.explain import Explanation
    from ckptaudit.jobs.scan import ScanResult
    from ckptaudit.policy import Permission, Policy

__all__ = [
    "baseline_option",
    "chosen_baseline",
    "chosen_policy",
    "day_to_propose",
    "note_unused",
    "policy_option",
]

Read = TypeVar("Read")

_OURS = "ckptaudit.toml"
_PROJECT = "pyproject.toml"
_TABLE = b"[tool.ckptaudit]"
_MOST_BYTES = 1_000_000
# Long enough to find a replacement, short enough to be looked at again.
_DAYS = 90
_MOST_ENTRIES = 20

policy_option = click.option(
    "--policy",
    "policy_path",
    metavar="FILE",
    help="Permit what the policy in FILE permits (docs/policy.md); none is ever looked for.",
)

baseline_option = click.option(
    "--baseline",
    "baseline_path",
    metavar="FILE",
    help="Fail only for what FILE, an earlier JSON report, does not have of the same file.",
)


def chosen_policy(ctx: click.Context, path: str | None, *, no_hash: bool) -> Policy | None:
    """The policy at *path*; None if none was named, whatever lies about.

    What does not hold in this run is said at once; of a policy that is none, too, and that is
    the end of the command.
    """
    if path is None:
        for here in _unnamed():
            show(f"ckptaudit: note: {here} is here but was not applied; --policy {here} applies it")
        return None
    from ckptaudit.jobs.policyfile import read_policy

    policy = _read(ctx, read_policy, path)
    for expired in policy.expired:
        show(
            f"ckptaudit: note: {path}: entry {expired.entry} ({expired.what}) expired on "
            f"{expired.expires} and is not applied"
        )
    if no_hash and policy.files:
        entries = _numbers(policy.files.values())
        show(
            f"ckptaudit: note: {path}: --no-hash leaves out the SHA-256 for {entries}: not applied"
        )
    return policy


def chosen_baseline(ctx: click.Context, path: str | None, *, no_hash: bool) -> Baseline | None:
    """The baseline at *path*, or None if none was named; likewise.

    Raises:
        click.UsageError: No file is hashed, so that none could be recognised.
    """
    if path is None:
        return None
    if no_hash:
        raise click.UsageError(
            "--baseline recognises a file by the SHA-256 that --no-hash leaves out", ctx
        )
    from ckptaudit.jobs.baseline import read_baseline
    from ckptaudit.wording import counted

    baseline = _read(ctx, read_baseline, path)
    if baseline.nameless:
        show(
            f"ckptaudit: note: {path}: not recognised, for want of a SHA-256: "
            f"{counted(baseline.nameless, 'file')} in it"
        )
    return baseline


def _read(ctx: click.Context, read: Callable[[str], Read], path: str) -> Read:
    """What *read* makes of *path*; if nothing, that is said and the end of the command."""
    from ckptaudit.errors import CkptauditError

    try:
        return read(path)
    except CkptauditError as err:
        show(f"ckptaudit: {err}")
        ctx.exit(NONE)


def day_to_propose() -> date:
    """When a permission should expire that is given now."""
    from datetime import datetime, timedelta, timezone

    return datetime.now(timezone.utc).date() + timedelta(days=_DAYS)


def note_unused(
    path: str | None,
    policy: Policy | None,
    results: Iterable[ScanResult | Explanation | Conversion | VaeSource] | None,
    *,
    no_hash: bool,
) -> None:
    """Say which entries have permitted nothing in the whole run: they had better go.

    Of a file without an answer nobody can say what would have been permitted in it, and a run
    in which all was done before says nothing about any.
    """
    if policy is None or not results:
        return
    used = {permitted.entry for result in results for permitted in result.permitted}
    applied = [*policy.names.values(), *([] if no_hash else policy.files.values())]
    unused = [each for each in applied if each.entry not in used]
    if unused:
        show(f"ckptaudit: note: {path}: {_numbers(unused)} permitted nothing in this run")


def _numbers(permissions: Iterable[Permission]) -> str:
    entries = sorted(each.entry for each in permissions)
    named = ", ".join(map(str, entries[:_MOST_ENTRIES]))
    more = f" and {len(entries) - _MOST_ENTRIES} more" if len(entries) > _MOST_ENTRIES else ""
    return f"{'entry' if len(entries) == 1 else 'entries'} {named}{more}"


def _unnamed() -> list[str]:
    """The policies that lie in the working directory."""
    found = [_OURS] if os.path.isfile(_OURS) else []  # noqa: PTH113 - pathlib is not loaded for it
    with contextlib.suppress(OSError):
        if os.path.isfile(_PROJECT):  # noqa: PTH113 - as above
            with open(_PROJECT, "rb") as file:  # noqa: PTH123 - as above
                found += [_PROJECT] if _TABLE in file.read(_MOST_BYTES) else []
    return found
