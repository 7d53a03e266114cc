"""What the package gets wrong: each case with what happens instead of what should; none today.

Each is an xfail that fails once the package gets it right, so that whoever mends it takes
its line away.  A text that begins with "clean" is about a hostile file that looks clean,
one that begins with "alarm" about an honest one that does not.
"""

from __future__ import annotations

import pytest

from ckptaudit.errors import CkptauditError

__all__ = ["KNOWN_GAPS", "marks_for"]

KNOWN_GAPS: dict[str, str] = {}


def marks_for(case: str) -> list[pytest.MarkDecorator]:
    """An expected failure if the package is known to get *case* wrong."""
    if case not in KNOWN_GAPS:
        return []
    # Nothing else is expected: a forge that breaks must not pass for a gap.
    failures = (AssertionError, CkptauditError)
    return [pytest.mark.xfail(strict=True, raises=failures, reason=KNOWN_GAPS[case])]
