"""What these tests tell their stories with: what Medplum holds since when, turns of catch-up, and what they found."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from sqlalchemy import text

from tests.contract.ledger.story import Clock
from worker.catch_up import CatchUp, Reading, Turn, instant
from worker.ledger import Ledger
from worker.ledger.values import Claim, Disposition, Settlement
from worker.medplum import Medplum, SearchPage

OVERLAP_S = 60.0
LOADED_AT_ONCE = 2000


def patient(id_: str, version: str = "v1", updated: datetime | None = None) -> dict[str, Any]:
    at = instant(updated or datetime.now(UTC))
    return {"resourceType": "Patient", "id": id_, "meta": {"versionId": version, "lastUpdated": at}}


def ids(number: int) -> list[str]:
    """Make ids as Medplum does, the same in each run."""
    return [str(uuid.uuid5(uuid.NAMESPACE_OID, str(each))) for each in range(number)]


@dataclass(slots=True)
class Between:
    """Our client of Medplum, where something happens after a page was read."""

    medplum: Medplum
    after: Callable[[int], object] = lambda number: None
    pages: int = 0

    def search(self, *asked: Any, **how: Any) -> Iterator[SearchPage]:
        for page in self.medplum.search(*asked, **how):
            self.pages += 1
            self.after(self.pages)
            yield page

    def __getattr__(self, name: str) -> Any:
        return getattr(self.medplum, name)


@dataclass(slots=True)
class Story:
    """One ledger beside one Medplum."""

    ledger: Ledger
    clock: Clock
    medplum: httpx.Client
    reader: Medplum
    due_most: int | None = None
    reading: dict[str, int] = field(default_factory=dict)
    after: Callable[[int], object] = lambda number: None

    # Medplum

    def loads(self, resources: Iterable[Mapping[str, Any]], **how: object) -> None:
        """Have resources in Medplum as they are; nobody is told."""
        all_of_them = list(resources)
        for start in range(0, len(all_of_them), LOADED_AT_ONCE):
            part = {"resources": all_of_them[start : start + LOADED_AT_ONCE], **how}
            assert self.medplum.post("/sandbox/load", json=part, timeout=60).is_success

    def writes(self, *resources: Mapping[str, Any], at: datetime | None = None) -> None:
        """Write resources in Medplum, and tell nobody."""
        wanted: dict[str, Any] = {"resources": list(resources), "notify": False}
        if at is not None:
            wanted["lastUpdated"] = instant(at)
        assert self.medplum.post("/sandbox/bulk", json=wanted).is_success

    def removes(self, *references: str) -> None:
        assert self.medplum.post("/sandbox/bulk", json={"deletes": list(references), "notify": False}).is_success

    # catch-up

    def begins(self, ago_s: float = 3600) -> datetime:
        """Let the route begin some time before Medplum's now, and the ledger's clock stand at it."""
        now = datetime.now(UTC)
        self.clock.now = now
        self.sql("UPDATE routes SET registered_at = :at", at=self._stored(now - timedelta(seconds=ago_s)))
        return now - timedelta(seconds=ago_s)

    def catch_up(self, name: str = "one") -> CatchUp:
        return CatchUp(
            ledger=self.ledger,
            medplum=Between(self.reader, self.after),  # type: ignore[arg-type]  # it is one, with something between
            instance=name,
            every_s=60.0,
            overlap_s=OVERLAP_S,
            sweep_over_s=7 * 86_400.0,
            reading=lambda medplum: Reading(medplum, **self.reading),
            due_most=self.due_most,
        )

    def reads(self, *, for_s: float = 120.0, by_a_person: bool = True) -> Turn:
        turn = self.catch_up().turn("Patient", for_s=for_s, by_a_person=by_a_person)
        assert turn is not None
        return turn

    # the ledger

    def settles(self) -> int:
        """Settle everything that is due as what Medplum holds, as a sync without a legacy system would."""
        settled = 0
        while due := self.ledger.due(limit=1000, queue_empty=True, lost_after_s=0):
            for reference in due:
                claim = self.ledger.claim(reference, instance="one", lease_s=60.0)
                assert isinstance(claim, Claim), claim
                self.ledger.finish(claim, self.read(reference))
                settled += 1
        return settled

    def read(self, reference: str, disposition: Disposition = Disposition.UNCHANGED) -> Settlement:
        read = self.reader.read(reference, deadline_s=10)
        version, updated = getattr(read, "version_id", None), getattr(read, "last_updated", None)
        deleted = not hasattr(read, "body")
        return Settlement(disposition, version, updated, self.clock.now, deleted=deleted)

    def found(self) -> set[str]:
        """Name the resources that have a change by catch-up."""
        return {reference for (reference,) in self.sql("SELECT reference FROM changes WHERE source = 'catch-up'")}

    def changes(self) -> int:
        [(number,)] = self.sql("SELECT count(*) FROM changes")
        return int(number)

    def unproven(self) -> list[tuple[str, str]]:
        return [
            (instant(window.from_at), window.reason)
            for window in self.ledger.unread_windows("Patient")
            if window.reason is not None
        ]

    def watermark(self) -> datetime:
        watermark = self.ledger.watermark("Patient")
        assert watermark is not None
        return watermark

    def sql(self, statement: str, **parameters: object) -> list[Any]:
        """Ask or change the tables behind the ledger's back."""
        with self.ledger.database.engine.begin() as connection:
            result = connection.execute(text(statement), parameters)
            return list(result) if result.returns_rows else []

    def _stored(self, moment: datetime) -> object:
        return moment.replace(tzinfo=None).isoformat(" ") if self.ledger.database.is_sqlite else moment
