"""Write docs/rules.md: every rule with its reason, from the table in ckptaudit/policy/rules.py.

    python scripts/make_rules.py            # write it
    python scripts/make_rules.py --check    # exit 1 if it is not current

Knows:      how the page is laid out, and where it is published.
Is told:    whether to write or to compare.
Never asks: for a word about a rule: the table has them all.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from derived import keep

from ckptaudit.policy import RULES, Rule
from ckptaudit.report.rules import cwe_url

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PAGE", "page_text"]

PAGE = Path(__file__).parents[1] / "docs" / "rules.md"
_COLUMNS = 100
_PUBLISHERS = {
    "CVE-": "https://www.cve.org/CVERecord?id={}",
    "GHSA-": "https://github.com/advisories/{}",
    "arXiv:": "https://arxiv.org/abs/{}",
}
_HEAD = """\
# Rules

What a finding may be about; `ckptaudit rules` prints the list, `ckptaudit rules ID` one of them.
An id never changes its meaning and is never used again; severity and wording may change, and
CHANGELOG.md says so. `CKA1..` is about what a pickle would do, `CKA2..` about the framing around
it, `CKA3..` about the weights.

This page is written by `scripts/make_rules.py` from the table in `ckptaudit/policy/rules.py`.
"""


def page_text() -> str:
    """The page, as Markdown."""
    listed = [
        f"| [{rule.id}](#{rule.id.lower()}) | {rule.severity.value} | {rule.title} |"
        for rule in RULES.values()
    ]
    table = "\n".join(["| rule | severity | a file with it |", "|---|---|---|", *listed])
    return "\n".join([_HEAD, table, *map(_section, RULES.values())])


def _section(rule: Rule) -> str:
    why = textwrap.fill(rule.why, _COLUMNS, break_long_words=False, break_on_hyphens=False)
    learnt = "; ".join(map(_link, rule.learnt_from))
    return f"""
## {rule.id}

**{rule.severity.value}: {rule.title}**

{why}

Weakness: [{rule.cwe}]({cwe_url(rule)}). Learnt from: {learnt}.
"""


def _link(source: str) -> str:
    """*source* with its id, if it begins with one, as a link."""
    name, comma, rest = source.partition(", ")
    for beginning, url in _PUBLISHERS.items():
        if name.startswith(beginning):
            return f"[{name}]({url.format(name.removeprefix('arXiv:'))}){comma}{rest}"
    return source


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or compare it with the one that is there; return the exit status."""
    return keep(PAGE, page_text, arguments)


if __name__ == "__main__":
    sys.exit(main())
