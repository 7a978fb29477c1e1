"""The legacy system of the machine, behind the wire: records, and a fate for each write that reaches it.

It knows who sends what, and so can tell what no real one could: a write of an older state after a newer one, a write
to another resource's record, a second record. It never tells the service more than a real one would.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qs

import httpx

from worker.deadline import CallFailed, DeadlineExceeded

DEADLINE_S = 20.0
_PATH = re.compile(
    r"/(?:patients/(?P<parent>[^/]+)/)?(?P<kind>patients|problems|numbers)"
    r"(?:/(?P<key>[^/]+))?(?P<undelete>/undelete)?"
)


class Fate(StrEnum):
    """What becomes of one write."""

    ACTS = "acts"  # and answers
    SILENT = "acts, and the answer is lost"
    LOST = "neither acts nor answers"
    LATE_SOON = "lands 3 s later, unanswered"
    LATE = "lands 25 s later, unanswered"
    LATE_LAST = "lands at the end of its bound, unanswered"
    UNREACHED = "the connection is refused"
    BUSY = "503 with a Retry-After"
    BROKEN = "500 without saving"
    BROKEN_SAVED = "500 after saving"
    REFUSED = "422"
    KEYLESS = "acts, and answers without the key"


ACTING = {Fate.ACTS, Fate.SILENT, Fate.BROKEN_SAVED, Fate.KEYLESS}
LATE_S = {Fate.LATE_SOON: 3.0, Fate.LATE: 25.0, Fate.LATE_LAST: 79.0}


@dataclass(slots=True)
class Record:
    """One record; dead ones stay, so that who writes to them is seen."""

    kind: str
    key: int
    fields: dict[str, Any]
    parent: int | None
    alive: bool = True

    @property
    def ref(self) -> str:
        return str(self.fields["ref"])

    @property
    def slot(self) -> str:
        return str(self.fields.get("use", ""))


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends: for which resource, from which version's number that was read."""

    reference: str
    number: int


@dataclass(frozen=True, slots=True)
class Write:
    """One request that changes something."""

    sender: Sender
    method: str
    kind: str
    parent: int | None
    key: int | None
    fields: dict[str, Any]


class LegacyModel(httpx.BaseTransport):
    """Answers on the service's own wire, in the place of a socket."""

    def __init__(
        self,
        clock: Callable[[], datetime],
        pause: Callable[[str], None],
        sender: Callable[[], Sender],
        *,
        freezes: bool = False,
        twice: frozenset[str] = frozenset(),
    ) -> None:
        self.clock, self.pause, self.sender, self.freezes = clock, pause, sender, freezes
        self.twice = twice  # the kinds of which the new record is made before the old one goes
        self.records: dict[int, Record] = {}
        self.fates: list[Fate] = []
        self.look_troubles = 0
        self.flying: list[tuple[datetime, int, Write]] = []
        self.landed: dict[tuple[str, str], int] = {}
        self.broken: list[str] = []  # what must never happen, and did
        self.writes = self.deletes = 0
        self._left = 0

    # what the machine asks

    def living(self, reference: str) -> dict[str, list[Record]]:
        """List the living records of a resource by slot."""
        resource_type, _, id_ = reference.partition("/")
        kind = {"Patient": "patients", "Condition": "problems", "Practitioner": "numbers"}[resource_type]
        found: dict[str, list[Record]] = {}
        for record in self.records.values():
            if record.alive and (record.kind, record.ref) == (kind, id_):
                found.setdefault(record.slot, []).append(record)
        return found

    def doubled(self, reference: str) -> bool:
        return self.most(reference) > 1

    def most(self, reference: str) -> int:
        """Count the living records of a resource's slot, of which there should be one."""
        return max(map(len, self.living(reference).values()), default=0)

    def land(self) -> None:
        """Carry out what was to land by now, each at its time."""
        for entry in sorted(self.flying, key=lambda entry: entry[:2]):
            if entry[0] <= self.clock():
                self.flying.remove(entry)
                self._act(entry[2])

    # the wire

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return self._look(request)
        sender = self.sender()
        if self.freezes:
            self.pause("frozen before its bytes leave")
        left_at, fate = self.clock(), self.fates.pop(0) if self.fates else Fate.ACTS
        write = _write(request, sender)
        status, body, headers = self._meet(write, fate, left_at)
        self.pause("a write is under way")
        if status == 0:
            raise CallFailed("reset", sent=fate is not Fate.UNREACHED)
        if (self.clock() - left_at).total_seconds() >= DEADLINE_S:
            raise DeadlineExceeded("too long", sent=True)
        return httpx.Response(status, json=body, headers=headers)

    def _look(self, request: httpx.Request) -> httpx.Response:
        left_at = self.clock()
        if self.look_troubles:
            self.look_troubles -= 1
            raise DeadlineExceeded("the machine said so", sent=True)
        place = _place(request)
        asked = {name: values[0] for name, values in parse_qs(request.url.query.decode()).items()}
        here = [each for each in self.records.values() if each.alive and each.kind == place["kind"]]
        if place["key"] is not None:
            here = [each for each in here if str(each.key) == place["key"]]
            response = httpx.Response(200, json=_told(here[0])) if here else httpx.Response(404, json={})
        else:
            parent = place["parent"]
            here = [each for each in here if parent is None or str(each.parent) == parent]
            here = [each for each in here if all(str(each.fields.get(name)) == asked[name] for name in asked)]
            response = httpx.Response(200, json={"items": list(map(_told, here))})
        self.pause("a look-up is under way")
        if (self.clock() - left_at).total_seconds() >= DEADLINE_S:
            raise DeadlineExceeded("too long", sent=True)
        return response

    def _meet(self, write: Write, fate: Fate, now: datetime) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Let a write meet its fate: status, body and headers of the answer; status 0 is none."""
        if fate in LATE_S:
            self._left += 1
            self.flying.append((now + timedelta(seconds=LATE_S[fate]), self._left, write))
        status, body = self._act(write) if fate in ACTING else (0, {})
        answers: dict[Fate, tuple[int, dict[str, Any], dict[str, str]]] = {
            Fate.ACTS: (status, body, {}),
            Fate.KEYLESS: (status, {}, {}),
            Fate.BROKEN_SAVED: (500, {}, {}),
            Fate.BROKEN: (500, {}, {}),
            Fate.BUSY: (503, {}, {"Retry-After": "7"}),
            Fate.REFUSED: (422, {}, {}),
        }
        return answers.get(fate, (0, {}, {}))

    def _act(self, write: Write) -> tuple[int, dict[str, Any]]:
        if write.method == "POST" and write.key is None:
            return self._create(write)
        record = self.records.get(write.key or 0)
        undelete = write.method == "POST"
        if record is None or record.alive is undelete or (write.method == "PUT" and record.parent != write.parent):
            return 404, {}
        if record.ref != write.sender.reference.split("/")[1]:
            self.broken.append(f"a {write.method} for {write.sender.reference} met the record of {record.ref}")
        self._in_order(write, record.slot)
        if write.method == "DELETE":
            record.alive = False
            self.deletes += 1
        else:
            if record.slot != write.fields.get("use", ""):
                self.broken.append(f"{write.sender.reference}: slot {record.slot} was written as another")
            record.fields |= write.fields
            record.alive = True
        return 200, _told(record)

    def _create(self, write: Write) -> tuple[int, dict[str, Any]]:
        parent = self.records.get(write.parent or 0)
        if write.parent is not None and (parent is None or not parent.alive):
            return 404, {}
        record = Record(write.kind, 100 + len(self.records) + 1, dict(write.fields), write.parent)
        if record.ref != write.sender.reference.split("/")[1]:
            self.broken.append(f"a create for {write.sender.reference} says that it is {record.ref}'s")
        if parent is not None and f"Patient/{parent.ref}" != write.fields["of"]:
            self.broken.append(f"{write.sender.reference} went under {parent.ref}, and is of {write.fields['of']}")
        self.records[record.key] = record
        self._in_order(write, record.slot)
        most = 2 if record.kind in self.twice else 1
        if self.most(write.sender.reference) > most and not self.freezes:
            self.broken.append(f"{write.sender.reference} has a second record")
        return 201, _told(record)

    def _in_order(self, write: Write, slot: str) -> None:
        self.writes += 1
        where, number = (write.sender.reference, slot), write.sender.number
        if number < self.landed.get(where, 0) and not self.freezes:
            self.broken.append(f"{where} went back from version {self.landed[where]} to {number}")
        self.landed[where] = max(number, self.landed.get(where, 0))


def _place(request: httpx.Request) -> dict[str, str | None]:
    place = _PATH.fullmatch(request.url.path)
    assert place is not None, request.url.path
    return dict(place.groupdict())


def _write(request: httpx.Request, sender: Sender) -> Write:
    place = _place(request)
    parent, key = (int(name) if (name := place[part]) else None for part in ("parent", "key"))
    body = json.loads(request.content) if request.content else {}
    return Write(sender, request.method, str(place["kind"]), parent, key, body)


def _told(record: Record) -> dict[str, Any]:
    return {"id": record.key, **record.fields}
