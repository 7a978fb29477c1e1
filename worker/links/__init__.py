"""The crosswalk by the file and by the rules: links taken over from the legacy system, rebuilt from Medplum, given out.

It decides nothing about a record's content and writes to neither system: what a link says is checked, then the ledger
has the last word.
"""

from __future__ import annotations

from worker.links.report import Report
from worker.links.sheet import Line, Sheet, SheetInvalid

__all__ = ["Line", "Report", "Sheet", "SheetInvalid"]
