"""The verbs, and the values that answer them; the only room where the others meet.

`scan` and `inspect` load no numpy; `convert` and `verify` do, and are imported from
their own modules.
"""

from __future__ import annotations

from ckptaudit.jobs.inspect import Inspection, inspect
from ckptaudit.jobs.scan import ScanResult, scan

__all__ = ["Inspection", "ScanResult", "inspect", "scan"]
