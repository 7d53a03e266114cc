"""What a finding is known by, from one scan of a file to the next.

Into a fingerprint go the id of the rule, the record, the message, and how many findings before
it have the same three.  Not the offset, the file's path, its hash or its size, the severity,
or what else was found: bytes that are put in front of a pickle, a file that is moved or
renamed, and a rule that is judged harder leave it as it is.  Two findings of one file never
have the same.

Numbers that count bytes or pickles from the beginning of something, in names that are ours and
not the file's, are left out for the same reason; and of the finding that says how many more
there are of a rule, that number.

Knows:      which parts of a finding an unrelated change of the file leaves alone.
Is told:    the findings of one file, in their order.
Never asks: what a fingerprint is used for.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptaudit.policy.rules import Finding

__all__ = ["fingerprints"]

# Hexadecimal digits: 64 bits.
_DIGITS = 16
# A part of a record's name that we made up: `byte 12`, `bytes at 12`, `pickle 2`, and behind the
# name of the file's own record ` @ 12` or `@12`.
_COUNTED = re.compile(r"(?:(?<=^byte )|(?<=^bytes at )|(?<=^pickle )|(?<=@)|(?<=@ ))[0-9]+")
# `Findings.all` says so for each rule that has too many.
_MORE = re.compile(r"[0-9]+(?= more: )")


def fingerprints(findings: Iterable[Finding]) -> list[str]:
    """A fingerprint for each finding of one file, in their order."""
    times: Counter[str] = Counter()
    found = []
    for finding in findings:
        record = "!".join(_COUNTED.sub("", part) for part in finding.record.split("!"))
        message = _MORE.sub("", finding.message) if not finding.record else finding.message
        # No line ends in any of the three, which are printable.
        text = f"{finding.rule}\n{record}\n{message}"
        same = hashlib.sha256(text.encode()).hexdigest()
        times[same] += 1
        found.append(f"{same[:_DIGITS]}:{times[same]}")
    return found
