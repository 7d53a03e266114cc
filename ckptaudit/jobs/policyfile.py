"""A policy out of the file that a person named.

Only a file that was named is read.  One that is found beside what it permits may have come with
it: a download that brings its own policy would pardon itself.

Knows:      TOML, and where in which file a policy stands.
Is told:    a path.
Never asks: what a permission means.
"""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import datetime, timezone
from pathlib import PurePath
from typing import TYPE_CHECKING

from ckptaudit.errors import CkptauditError, PolicyInvalid
from ckptaudit.policy import parse_policy
from ckptaudit.source import FileSource
from ckptaudit.vm import escape

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from datetime import date
    from os import PathLike

    from ckptaudit.policy import Policy

__all__ = ["read_named", "read_policy"]

_PROJECT = "pyproject.toml"
_MOST_BYTES = 1_000_000
# tomllib takes time by the square of a key's parts, and a key stands on one line.
_MOST_DOTS = 300


def read_policy(path: str | PathLike[str], *, today: date | None = None) -> Policy:
    """The policy in the file at *path*.

    In a file named ``pyproject.toml`` it is the table ``[tool.ckptaudit]``, in any other the
    whole file.

    Args:
        path: The file, which somebody named on purpose.
        today: The day on which permissions must not have expired; by default this one, in UTC.

    Raises:
        PolicyInvalid: The file is no policy.
        CkptauditError: It cannot be read.
    """
    name, data = read_named(path, "policy", _MOST_BYTES)
    try:
        table = _table(data)
        if PurePath(path).name == _PROJECT:
            table = _part_of_project(table)
        return parse_policy(table, today or datetime.now(timezone.utc).date())
    except CkptauditError as err:
        raise PolicyInvalid(f"{name}: {err}") from err


def read_named(path: str | PathLike[str], what: str, most: int) -> tuple[str, bytes]:
    """The file that somebody named as a *what*: what to call it, and all it holds.

    Raises:
        PolicyInvalid: It has over *most* bytes.
        CkptauditError: It cannot be read.
    """
    with closing(FileSource(path)) as source:
        if source.size > most:
            raise PolicyInvalid(
                f"{source.name}: has {source.size} bytes; a {what} has at most {most}"
            )
        return source.name, source.read_at(0, source.size)


def _table(data: bytes) -> dict[str, object]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as err:
        raise PolicyInvalid(f"is no text in UTF-8 (byte {err.start}); save it as UTF-8") from err
    for number, line in enumerate(text.split("\n"), 1):
        if (dots := line.count(".")) > _MOST_DOTS:
            raise PolicyInvalid(f"line {number} has {dots} dots, which no policy needs")
    try:
        table: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise PolicyInvalid(f"is no TOML: {escape(str(err))}") from err
    except RecursionError as err:
        raise PolicyInvalid("nests too deep to be a policy") from err
    return table


def _part_of_project(table: dict[str, object]) -> dict[str, object]:
    tools = table.get("tool")
    ours = tools.get("ckptaudit") if isinstance(tools, dict) else None
    if not isinstance(ours, dict):
        raise PolicyInvalid("has no table [tool.ckptaudit]; add one, or name another file")
    return ours
