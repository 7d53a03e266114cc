"""Pages of docs/ that are derived from the code: written, or held against what is there.

Knows:      what such a script is asked for, and what it answers.
Is told:    a page, and the text that it should have.
Never asks: how the text comes about (`make_rules`, `make_schema`).
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["keep"]


def keep(page: Path, text: Callable[[], str], arguments: Sequence[str] | None) -> int:
    """Write *page*, or with ``--check`` compare it with the one there; return the exit status.

    Args:
        page: The file.
        text: Makes what it should hold.
        arguments: The command line; None is the one this program was given.
    """
    parser = argparse.ArgumentParser(description=f"Write docs/{page.name}.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if not current")
    if not parser.parse_args(arguments).check:
        page.write_text(text(), encoding="utf-8")
        return 0
    if page.read_text(encoding="utf-8") == text():
        return 0
    print(f"{page.name} is not current; run {parser.prog} without --check", file=sys.stderr)
    return 1
