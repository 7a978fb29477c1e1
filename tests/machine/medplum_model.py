"""The Medplum of the machine: versions that follow each other, and a search that tells which of them is current.

It never notifies anybody: what the service hears is the machine's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from worker.errors import MedplumUnavailable
from worker.ledger.values import Hint, Source
from worker.medplum import Absent, Deleted, Present, Read
from worker.medplum.quota import Priority

BASE_URL = "http://medplum.invalid"
OWN = "ClientApplication/reverse-sync"


@dataclass(frozen=True, slots=True)
class Content:
    """What a user can say of a resource, whatever its type. No word: the mapping refuses it."""

    word: str | None = "A"
    active: bool = True
    of: str = "Patient/p1"  # of a Condition: whose it is; of a Patient: whom it links to
    sees: bool = False
    uses: tuple[str, ...] = ("home",)

    def resource(self, reference: str) -> dict[str, Any]:
        kind, _, id_ = reference.partition("/")
        made: dict[str, Any] = {"resourceType": kind, "id": id_}
        match kind:
            case "Condition":
                made["subject"] = {"reference": self.of}
                if self.word is not None:
                    made["code"] = {"text": self.word}
            case "Practitioner":
                made["telecom"] = [{"system": "phone", "use": use, "value": self.word or "-"} for use in self.uses]
            case _:
                made |= {"active": self.active, "name": [] if self.word is None else [{"family": self.word}]}
                if self.sees:
                    made["link"] = [{"other": {"reference": self.of}, "type": "seealso"}]
        return made


@dataclass(frozen=True, slots=True)
class Version:
    """One state of one resource; no content: it is deleted. `number` is its place in the order that Medplum made."""

    reference: str
    number: int
    content: Content | None
    last_updated: datetime
    author: str

    @property
    def id(self) -> str:
        return f"v{self.number}"

    @property
    def body(self) -> bytes:
        content = self.content or Content()
        meta = {
            "versionId": self.id,
            "lastUpdated": self.last_updated.isoformat(),
            "author": {"reference": self.author},
        }
        return json.dumps(content.resource(self.reference) | {"meta": meta}).encode()

    def hint(self, source: Source = Source.NOTIFICATION, *, with_body: bool = False) -> Hint:
        if self.content is None:
            return Hint(self.reference, interaction="delete", source=source)
        body = self.body if with_body else None
        return Hint(self.reference, self.id, self.last_updated, author=self.author, body=body, source=source)


@dataclass(slots=True)
class MedplumModel:
    """Medplum, seen by the client of the service: `read` is what its search tells."""

    clock: Callable[[], datetime]
    pause: Callable[[str], None]
    note: Callable[[str, int], None]  # of each read: the reference and the version's number
    history: dict[str, list[Version]] = field(default_factory=dict)
    cached: dict[str, Version] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    troubles: int = 0  # how many of the next reads fail

    own_author = OWN

    def saves(
        self, reference: str, content: Content | None, *, author: str = "Practitioner/x", older_s: float = 0
    ) -> None:
        """Commit a version; `older_s` has its lastUpdated lie before the clock, as two servers' clocks make it."""
        versions = self.history.setdefault(reference, [])
        number = len(versions) + 1
        updated = self.clock() - timedelta(seconds=older_s)
        if content is None:
            updated += timedelta(milliseconds=number)  # a deletion has no version: its time tells it apart
        versions.append(Version(reference, number, content, updated, author))

    def current(self, reference: str) -> Version | None:
        versions = self.history.get(reference)
        return versions[-1] if versions else None

    def content(self, reference: str) -> Content | None:
        version = self.current(reference)
        return None if version is None else version.content

    def read(self, reference: str, *, deadline_s: float, priority: Priority = Priority.LIVE) -> Read:
        """Tell what is current, as a search does: from the database, not from a cache."""
        self.pause("before a read")
        if self.troubles:
            self.troubles -= 1
            raise MedplumUnavailable("the machine said so", retry_after_s=None)
        found = self._told(reference, self.current(reference))
        self.pause("after a read")
        return found

    def get(self, reference: str, *, deadline_s: float, priority: Priority = Priority.LIVE) -> Read:
        """Tell what a GET by id tells: the first version that anybody asked for. Nobody may use it; a mutant does."""
        current = self.current(reference)
        if current is not None:
            self.cached.setdefault(reference, current)
        return self._told(reference, self.cached.get(reference))

    def close(self) -> None:
        """Hold nothing."""

    def _told(self, reference: str, version: Version | None) -> Read:
        now = self.clock()
        if version is None or reference in self.hidden:
            self.note(reference, 0)
            return Absent(reference, now)
        self.note(reference, version.number)
        if version.content is None:
            return Deleted(reference, None, version.last_updated, now)
        return Present(reference, version.id, version.last_updated, version.author, version.body, now)
