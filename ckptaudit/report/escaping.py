r"""Strings out of a file, made safe for where they are shown.

Names in a checkpoint are hostile input: they may hold what a terminal obeys, what turns
text around, what a Markdown renderer takes for a link, a mention or a tag, and what the log
of a build takes for a command.  All of that is written as ``\x1b``: to be read, not obeyed.

Knows:      terminals, Markdown, and the logs of GitHub's and Azure's runners.
Is told:    a string.
Never asks: where it comes from: our own sentences pass unchanged.
"""

from __future__ import annotations

import re

from ckptaudit.vm import escape

__all__ = ["LOG_COMMAND", "code", "one_line", "printable", "without_commands"]

# `##[` and, with a word between, `##vso[` count anywhere in a line.
LOG_COMMAND = re.compile(r"(?<=#)#(?=\w*\[)")
# Runners trim the line before they look for `::`.
_LINE_COMMAND = re.compile(r"^( *):(?=:)", re.MULTILINE)
# What could end a code span or a table cell, or begin a tag or an entity.
_MARKUP = re.compile(r"[`|<>&]")


def printable(text: str) -> str:
    r"""*text* with what a terminal would obey, or not show, escaped; letters of any script stay.

    >>> printable("mod\u00e8le\x1b[2J.ckpt")
    'modèle\\x1b[2J.ckpt'
    """
    return "".join(char if char.isprintable() else escape(char) for char in text)


def without_commands(text: str) -> str:
    r"""Lines of printable *text* of which none is a command to whoever runs the build.

    >>> print(without_commands("  ::error::x\n##[group]y"))
      \x3a:error::x
    #\x23[group]y
    """
    return LOG_COMMAND.sub(r"\\x23", _LINE_COMMAND.sub(r"\1\\x3a", text))


def one_line(text: str) -> str:
    r"""*text* as one line for a terminal or a log.

    >>> one_line("::warning::a\nb")
    '\\x3a:warning::a\\nb'
    """
    return without_commands(printable(text))


def code(text: str) -> str:
    r"""*text* as a code span of Markdown: no renderer finds markup, links or mentions in it.

    Not even one that knows no code spans: nothing that HTML or Markdown could begin a tag,
    an entity or a table cell with is left.

    >>> print(code("<b>`|`@all"))
    `\x3cb\x3e\x60\x7c\x60@all`
    """
    shown = _MARKUP.sub(lambda match: f"\\x{ord(match[0]):02x}", one_line(text))
    # A span of nothing is two grave accents, and blanks at both ends would be trimmed.
    return f"`{shown}`" if shown.strip() else "` `"
