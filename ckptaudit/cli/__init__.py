"""The command line: arguments in, a rendered answer and an exit status out."""

from __future__ import annotations

from ckptaudit.cli.main import main, run

__all__ = ["main", "run"]
