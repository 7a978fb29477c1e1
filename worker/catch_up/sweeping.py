"""The sweep: every id that has a link is read back from Medplum, some at a time, over days. `protocol.md` 10.

It finds what no search by time can show: resources that were expunged, or went out of this client's sight. What it
finds is a hint like any other; absent is never believed at once, and a sync decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from worker.catch_up.reading import hint
from worker.errors import MedplumError, ReverseSyncError
from worker.ledger import Ledger
from worker.ledger.values import Hint, Source
from worker.ledger.windows import Batch, MovedOn
from worker.medplum import Absent, Medplum, Read
from worker.settings import WorkerSettings

__all__ = ["AT_A_TIME", "Sweeping", "Swept"]

AT_A_TIME = 100  # ids of one search
CALL_S = 10.0
DAY_S = 86_400.0
DUE_MOST = 300
"""With so many mirrors due, nothing is taken: a first fill of a million would stand before every live change."""


@dataclass(slots=True)
class Swept:
    """What a part of a sweep did, and why it ended before its time."""

    read: int = 0
    found: int = 0
    full: bool = False
    trouble: str = ""


class Sweeping:
    """The sweeps of one process."""

    def __init__(self, *, ledger: Ledger, medplum: Medplum, over_s: float, due_most: int | None) -> None:
        self._ledger, self._medplum, self._over_s, self._due_most = ledger, medplum, over_s, due_most

    @classmethod
    def of(cls, settings: WorkerSettings, *, ledger: Ledger, medplum: Medplum) -> Self:
        """Make the sweeps that the settings describe."""
        return cls(ledger=ledger, medplum=medplum, over_s=settings.sweep_days * DAY_S, due_most=DUE_MOST)

    def run(self, resource_type: str, *, goes_on: Callable[[], bool]) -> Swept:
        """Read back what is due of a type, as long as it goes on.

        Raises:
            LedgerUnavailable: what was taken so far is committed.
        """
        swept = Swept()
        while goes_on() and (batch := self._next(resource_type)) is not None and self._take(batch, swept):
            pass
        return swept

    def _next(self, resource_type: str) -> Batch | None:
        return self._ledger.next_batch(resource_type, limit=AT_A_TIME, over_s=self._over_s)

    def _take(self, batch: Batch, swept: Swept) -> bool:
        ids = [reference.partition("/")[2] for reference in batch.references]
        try:
            found = self._medplum.read_together(batch.resource_type, ids, deadline_s=CALL_S)
            taken = self._ledger.take_swept(batch, hints_of(found), due_most=self._due_most)
        except (MedplumError, MovedOn) as problem:
            swept.trouble = f"the sweep rests: {problem}"
            return False
        if taken is None:
            swept.full = True
            return False
        swept.read += len(batch.references)
        swept.found += taken
        unreadable = sum(isinstance(each, ReverseSyncError) for each in found.values())
        if unreadable:
            swept.trouble = f"{unreadable} of {len(ids)} could not be read back: Medplum has no FHIR resource there"
        return True


def hints_of(found: Mapping[str, Read | ReverseSyncError]) -> list[Hint]:
    """Say what a sync should look at: what is there as a version, what is not as a delete. An error says nothing."""
    return [_hint(each) for each in found.values() if not isinstance(each, ReverseSyncError)]


def _hint(read: Read) -> Hint:
    if isinstance(read, Absent):
        return Hint(read.reference, None, None, "delete", source=Source.CATCH_UP)
    return hint(read)
