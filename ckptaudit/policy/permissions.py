"""Permissions: what somebody has looked at, and answers for with a sentence until a day.

A permission names one thing exactly: a pair of module and name as the file spells it, or one
rule in one file.  There are no wildcards: ``torch.*`` would permit dozens of ways to run code,
and ``*.Averager`` whatever an attacker calls so.

Knows:      what a permission must say, and how one is written as a line of TOML.
Is told:    a table that was read already, and which day it is.
Never asks: where a policy lies, or what a finding is about; `pickles` says which findings are
            about a name and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, TypeAlias

from ckptaudit.errors import PolicyInvalid
from ckptaudit.policy.rules import RULES, Finding
from ckptaudit.vm import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "Pair",
    "Permission",
    "Permitted",
    "Policy",
    "dated",
    "is_nameable",
    "is_permittable",
    "line_for_file",
    "line_for_name",
    "parse_policy",
]

Pair: TypeAlias = "tuple[str, str]"

_ALLOW = "allow"
_OF_A_NAME = ("module", "name")
_OF_A_FILE = ("sha256", "rule")
_KEYS = {*_OF_A_NAME, *_OF_A_FILE, "justification", "expires"}
_WILDCARDS = frozenset("*?[]")
# Compiled when a policy is read, which most runs do not.
_SHA256 = r"[0-9a-fA-F]{64}"
_ISO_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
# Characters of a module or a name: longer ones are nobody's class.
_MOST_NAME = 200
_MOST_JUSTIFICATION = 1000
_MOST_SHOWN = 60
# What was not read cannot have been looked at; and rules about weights are no obstacle.
_NEVER_PERMITTED = {
    "CKA208": "is about what was not read, which nobody can have looked at",
    **dict.fromkeys(
        (rule for rule in RULES if rule.startswith("CKA3")),
        "is about weights, which need no permission",
    ),
}
# What stays itself in TOML, in Markdown and in the log of a build; the rest is spelled out.
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./ -")
_OPEN = 'justification = "", expires = '
_UNDATED = f'{_OPEN}"" }},'


@dataclass(frozen=True, slots=True)
class Permission:
    """One entry of a policy.

    Attributes:
        entry: Which one it is, counted from 1.
        what: What it permits, in printable ASCII, for people.
        justification: Why, in the words of who gave it.
        expires: The last day on which it holds, in UTC.
    """

    entry: int
    what: str
    justification: str
    expires: date


@dataclass(frozen=True, slots=True)
class Policy:
    """The permissions that hold.

    Attributes:
        names: By module and name, as a pickle spells them.
        files: By SHA-256 in lower case, and id of a rule.
        expired: Those that hold no more; they are not applied.
    """

    names: Mapping[Pair, Permission] = field(default_factory=dict)
    files: Mapping[Pair, Permission] = field(default_factory=dict)
    expired: tuple[Permission, ...] = ()


@dataclass(frozen=True, slots=True)
class Permitted:
    """A finding that a policy permits; it has no part in the verdict.

    Attributes:
        finding: The finding.
        entry: Which entry of the policy permits it, counted from 1.
        justification: Why, in the words of who permitted it.
        expires: The last day on which that holds, in UTC.
    """

    finding: Finding
    entry: int
    justification: str
    expires: date


def parse_policy(table: Mapping[str, object], today: date) -> Policy:
    """The policy that *table* is, on the day *today*.

    Args:
        table: What a TOML file says, or the part of it that is ours.
        today: In UTC; what expired before it is not applied.

    Raises:
        PolicyInvalid: Something in it is not exactly what it must be.
    """
    entries = _entries(table)
    names: dict[Pair, Permission] = {}
    files: dict[Pair, Permission] = {}
    expired: list[Permission] = []
    numbers: dict[tuple[bool, Pair], int] = {}
    for number, entry in enumerate(entries, 1):
        try:
            fields = _fields(entry)
            of_a_file = _is_of_a_file(fields)
            subject = _file(fields) if of_a_file else _name(fields)
            what = f"{subject[1]} in {subject[0]}" if of_a_file else escape(".".join(subject))
            permission = Permission(number, what, _why(fields), _until(fields))
        except PolicyInvalid as err:
            raise PolicyInvalid(f"entry {number}: {err}") from err
        first = numbers.setdefault((of_a_file, subject), number)
        if first != number:
            raise PolicyInvalid(
                f"entry {number}: permits {permission.what}, as entry {first} does; "
                "keep one of them"
            )
        if permission.expires < today:
            expired.append(permission)
        elif of_a_file:
            files[subject] = permission
        else:
            names[subject] = permission
    return Policy(names, files, tuple(expired))


def _entries(table: Mapping[str, object]) -> list[object]:
    for key in table:
        if key != _ALLOW:
            raise PolicyInvalid(f"has a key {_shown(key)}, which means nothing; there is allow")
    entries = table.get(_ALLOW)
    if not isinstance(entries, list):
        raise PolicyInvalid("has no list of permissions; begin with: allow = [")
    return entries


def _fields(entry: object) -> dict[str, object]:
    if not isinstance(entry, dict):
        raise PolicyInvalid('is no table; write { module = "...", name = "...", ... }')
    for key in entry:
        if key not in _KEYS:
            known = ", ".join([*_OF_A_NAME, *_OF_A_FILE, "justification", "expires"])
            raise PolicyInvalid(f"has a key {_shown(key)}, which means nothing; there are {known}")
    return entry


def _is_of_a_file(fields: Mapping[str, object]) -> bool:
    named = [key for key in _OF_A_NAME if key in fields]
    filed = [key for key in _OF_A_FILE if key in fields]
    if named and filed:
        raise PolicyInvalid("names a pair and a file; make two entries of it")
    for key in _OF_A_FILE if filed else _OF_A_NAME:
        if key not in fields:
            raise PolicyInvalid(f"has no {key}; it needs module and name, or sha256 and rule")
    return bool(filed)


def _name(fields: Mapping[str, object]) -> Pair:
    module, name = (_text(fields, key) for key in _OF_A_NAME)
    for key, value in zip(_OF_A_NAME, (module, name), strict=True):
        if not value:
            raise PolicyInvalid(f"has an empty {key}; write it as the report does")
        if not _WILDCARDS.isdisjoint(value):
            raise PolicyInvalid(f"has a wildcard in {key}; name each pair by itself")
        if len(value) > _MOST_NAME:
            raise PolicyInvalid(f"has a {key} of {len(value)} characters; {_MOST_NAME} are read")
    return module, name


def _file(fields: Mapping[str, object]) -> Pair:
    sha256, rule = (_text(fields, key) for key in _OF_A_FILE)
    if not re.fullmatch(_SHA256, sha256):
        raise PolicyInvalid("has a sha256 that is not 64 hexadecimal digits; copy it from a report")
    if rule not in RULES:
        raise PolicyInvalid(f"names a rule {_shown(rule)}; `ckptaudit rules` lists those there are")
    if rule in _NEVER_PERMITTED:
        raise PolicyInvalid(f"names {rule}, which {_NEVER_PERMITTED[rule]}; take the entry out")
    return sha256.lower(), rule


def _why(fields: Mapping[str, object]) -> str:
    if "justification" not in fields:
        raise PolicyInvalid("has no justification; say why in a sentence")
    why = _text(fields, "justification").strip()
    if not why:
        raise PolicyInvalid("has an empty justification; say why in a sentence")
    if len(why) > _MOST_JUSTIFICATION:
        raise PolicyInvalid(
            f"has a justification of {len(why)} characters; {_MOST_JUSTIFICATION} are read"
        )
    return why


def _until(fields: Mapping[str, object]) -> date:
    example = "write a date without quotes, such as expires = 2027-02-25"
    if "expires" not in fields:
        raise PolicyInvalid(f"does not expire; {example}")
    expires = fields["expires"]
    if isinstance(expires, str) and re.fullmatch(_ISO_DATE, expires):
        raise PolicyInvalid(f"has a text for a date; write expires = {expires}, without quotes")
    if isinstance(expires, datetime) or not isinstance(expires, date):
        raise PolicyInvalid(f"has no date in expires; {example}")
    return expires


def _text(fields: Mapping[str, object], key: str) -> str:
    value = fields[key]
    if not isinstance(value, str):
        raise PolicyInvalid(f"has no text in {key}; put it in quotes")
    return value


def _shown(text: str) -> str:
    return escape(text) if len(text) <= _MOST_SHOWN else f"{escape(text[:_MOST_SHOWN])}..."


def is_nameable(module: str, name: str) -> bool:
    """Whether a permission can name this pair: one may be of a megabyte, or no text at all."""
    return all(
        0 < len(part) <= _MOST_NAME
        and _WILDCARDS.isdisjoint(part)
        and not any("\ud800" <= char <= "\udfff" for char in part)
        for part in (module, name)
    )


def is_permittable(rule: str) -> bool:
    """Whether a permission for a file may name *rule*."""
    return rule not in _NEVER_PERMITTED


def line_for_name(module: str, name: str) -> str:
    r"""The entry of a policy that would permit a pair, if somebody said why, and until when.

    >>> print(line_for_name("mylib.ema", 'a"\n'))
    { module = "mylib.ema", name = "a\u0022\u000a", justification = "", expires = "" },
    """
    return f"{{ module = {_quoted(module)}, name = {_quoted(name)}, {_UNDATED}"


def line_for_file(sha256: str, rule: str) -> str:
    """The entry of a policy that would permit what a rule finds in one file; likewise."""
    return f"{{ sha256 = {_quoted(sha256)}, rule = {_quoted(rule)}, {_UNDATED}"


def dated(line: str, expires: date) -> str:
    """*line* with a date in it, so that only the justification is left to be written."""
    return f"{line.removesuffix(_UNDATED)}{_OPEN}{expires.isoformat()} }},"


def _quoted(text: str) -> str:
    """*text* as a basic string of TOML 1.0, in ASCII that no renderer and no log changes."""
    return f'"{"".join(_spelled(text))}"'


def _spelled(text: str) -> Iterator[str]:
    for char in text:
        if char in _PLAIN:
            yield char
        else:
            yield f"\\u{ord(char):04x}" if char <= "\uffff" else f"\\U{ord(char):08x}"
