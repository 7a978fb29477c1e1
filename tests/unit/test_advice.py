"""What `show` and `failed` tell a person to do."""

from __future__ import annotations

import re
from pathlib import Path

from worker.cli.words import NEXT_BY_REASON
from worker.sending import _REASONS, HALF_REPLACED

WORKER = Path(__file__).parents[2] / "worker"
RAISED = re.compile(r'\b(?:Hold|Fail)\(\s*"([a-z -]+)"')


def test_every_reason_to_hold_or_fail_has_its_own_advice() -> None:
    """A reason that the sync gives is answered by words of what to do next, not by a word for all."""
    raised = {reason for file in WORKER.glob("*.py") for reason in RAISED.findall(file.read_text())}
    assert len(raised) > 10
    assert raised | {HALF_REPLACED, *_REASONS.values(), "conflict", "imported"} <= set(NEXT_BY_REASON)
