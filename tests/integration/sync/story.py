"""What these tests tell their stories with: Medplum, the ledger's clock, attempts, and the clinic as the witness.

Nothing is imitated but time: the ledger, both sandbox processes, their clients and the example's mappings are real.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx
from sqlalchemy import select, text

from tests.contract.ledger.story import Clock
from worker.ledger import Ledger
from worker.ledger.tables import mirrors
from worker.ledger.values import Hint
from worker.legacy import Answered, LegacyApi, LegacyRequest
from worker.legacy.gate import Gate
from worker.mapping import Context, Mapped, Parts, Routes, apply
from worker.medplum import Medplum, Read
from worker.medplum.quota import Priority
from worker.medplum.resource import model
from worker.sync import End, Ended, Sync

PATIENT, OTHER = "Patient/p1", "Patient/p2"
CONDITION = "Condition/c1"
PRACTITIONER = "Practitioner/d1"

SEND_WITHIN_S, DEADLINE_S, LANDS_S = 5.0, 20.0, 60.0
CLINIC_KEY = "clinic-key"
BOUND_S = SEND_WITHIN_S + DEADLINE_S + LANDS_S
LEASE_S = 60.0

POST_PATIENT = {"method": "POST", "template": "/api/patients"}
PUT_PATIENT = {"method": "PUT", "template": "/api/patients/{uuid}"}
DELETE_PATIENT = {"method": "DELETE", "template": "/api/patients/{uuid}"}


class Killed(BaseException):
    """The process dies here: nothing of ours runs any more."""


def patient(id_: str = "p1", family: str = "Doe", **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "id": id_,
        "name": [{"family": family, "given": ["Jane"]}],
        "gender": "female",
        "birthDate": "1985-02-28",
        **more,
    }


def practitioner(id_: str = "d1", family: str = "Okafor", **more: Any) -> dict[str, Any]:
    return {"resourceType": "Practitioner", "id": id_, "name": [{"family": family, "given": ["Ngozi"]}], **more}


def condition(id_: str = "c1", of: str = PATIENT, title: str = "Gout", **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Condition",
        "id": id_,
        "subject": {"reference": of},
        "code": {"text": title},
        "onsetDateTime": "2019-01-01",
        **more,
    }


def reference(resource: Mapping[str, Any]) -> str:
    return f"{resource['resourceType']}/{resource['id']}"


@dataclass(slots=True)
class Hooks:
    """What happens at the edges of an attempt, in whichever thread it is made."""

    read: Callable[[], None] = lambda: None  # after each read of Medplum
    before: Callable[[LegacyRequest], None] = lambda request: None  # before each call to the clinic
    after: Callable[[LegacyRequest], None] = lambda request: None  # when it was answered
    goes_to: Callable[[LegacyApi], LegacyApi] = lambda api: api
    priorities: list[Priority] = field(default_factory=list)  # of each read of Medplum

    def around_send(self, send: Callable[..., Answered]) -> Callable[..., Answered]:
        def hooked(api: LegacyApi, request: LegacyRequest, *, deadline_s: float) -> Answered:
            self.before(request)
            answered = send(self.goes_to(api), request, deadline_s=deadline_s)
            self.after(request)
            return answered

        return hooked

    def around_read(self, read: Callable[..., Read]) -> Callable[..., Read]:
        def hooked(medplum: Medplum, of: str, *, deadline_s: float, priority: Priority = Priority.LIVE) -> Read:
            self.priorities.append(priority)
            found = read(medplum, of, deadline_s=deadline_s, priority=priority)
            self.read()
            return found

        return hooked


def killed(request: LegacyRequest) -> None:
    """End the process at the first write."""
    if request.operation is not None:
        raise Killed


@dataclass(slots=True)
class Barrier:
    """Stops the first write that comes by until it is let go on."""

    reached: threading.Event = field(default_factory=threading.Event)
    open: threading.Event = field(default_factory=threading.Event)
    _met: bool = False

    def __call__(self, request: LegacyRequest) -> None:
        if request.operation is None or self._met:
            return
        self._met = True
        self.reached.set()
        assert self.open.wait(20), "nobody let the write go on"


@dataclass(slots=True)
class Story:
    """One ledger between one Medplum and one clinic."""

    ledger: Ledger
    clock: Clock
    medplum: httpx.Client
    clinic: httpx.Client
    reader: Medplum
    routes: Routes
    hooks: Hooks
    stopping: threading.Event = field(default_factory=threading.Event)
    monotonic: Callable[[], float] = time.monotonic
    gate: Gate = field(default_factory=lambda: Gate(None))
    parts: Parts = field(default_factory=dict)

    # Medplum

    def saves(self, *resources: Mapping[str, Any], author: str = "frontend") -> list[str]:
        """Write resources in Medplum, tell nobody, and give the ids of the versions."""
        return self._bulk(resources=list(resources), author=author)

    def removes(self, *references: str) -> None:
        """Delete resources in Medplum, and tell nobody."""
        self._bulk(deletes=list(references))

    def hears(self, reference: str, *versions: str | None, body: bytes | None = None) -> None:
        """Accept one hint for each version; None is a delete hint."""
        self.ledger.accept([Hint(reference, version, body=body) for version in versions])

    def changes(self, *resources: Mapping[str, Any], author: str = "frontend") -> list[str]:
        """Write resources in Medplum, and hear of it."""
        versions = self.saves(*resources, author=author)
        for resource, version in zip(resources, versions, strict=True):
            self.hears(reference(resource), version)
        return versions

    def deletes(self, *references: str) -> None:
        """Delete resources in Medplum, and hear of it."""
        self.removes(*references)
        for each in references:
            self.hears(each, None)

    def faults(self, **switches: object) -> None:
        """Switch something wrong in Medplum."""
        assert self.medplum.post("/sandbox/faults", json=switches).is_success

    def _bulk(self, **wanted: object) -> list[str]:
        answer = self.medplum.post("/sandbox/bulk", json={"notify": False, **wanted})
        assert answer.is_success, answer.text
        return [version["versionId"] for version in answer.json()["versions"]]

    # attempts

    def deploys(self, routes: Routes) -> None:
        """Run other mappings from now on, and make them the active ones."""
        self.routes = routes
        self.ledger.activate({name: each.version for name, each in routes.items()}, who="ada", why="deployed")

    def worker(self, name: str = "one", *, budget_s: float = 45.0, lease_s: float = LEASE_S) -> Sync:
        """Make a worker: one instance of the algorithm, with everything behind it."""
        return Sync(
            ledger=self.ledger,
            medplum=self.reader,
            medplum_base_url=str(self.medplum.base_url),
            routes=self.routes,
            parts=self.parts,
            gate=self.gate,
            instance=name,
            lease_s=lease_s,
            budget_s=budget_s,
            send_within_s=SEND_WITHIN_S,
            stopping=self.stopping.is_set,
            monotonic=self.monotonic,
        )

    def tries(self, of: str = PATIENT, *, by: Sync | None = None) -> Ended:
        """Make one attempt; one whose last start had no end is made alone, as `worker.running` does."""
        worker = by or self.worker()
        ended = worker.run(of)
        return worker.run(of, alone=True) if ended.kind is End.SUSPECT else ended

    def syncs(self, of: str = PATIENT) -> Ended:
        """Make one attempt as soon as the clock allows it."""
        self.clock.now = max(self.clock.now, self._runnable().get(of, self.clock.now))
        return self.tries(of)

    def dies(self, of: str = PATIENT) -> None:
        """Make one attempt in a process that is killed in it, and let its lease run out."""
        try:
            self.tries(of)
        except Killed:
            self.clock.forward(LEASE_S)
            return
        raise AssertionError("it was not killed")

    def settles(self, *, for_s: float = 900.0) -> None:
        """Do what dispatch and workers do, until nothing is asked for within these seconds of the ledger's clock."""
        ends_at = self.clock.now + timedelta(seconds=for_s)
        for _ in range(400):
            due = self.ledger.due(limit=100, queue_empty=True, lost_after_s=0)
            for each in due:
                self.tries(each)
            if not due:
                moment = min(self._runnable().values(), default=None)
                if moment is None or moment > ends_at:
                    return
                self.clock.now = max(self.clock.now, moment)
        raise AssertionError("it never comes to rest")

    def in_thread(self, work: Callable[[], Ended]) -> Callable[[], Ended]:
        """Begin work in a thread; the answer waits for its end."""
        ended: list[Ended] = []
        thread = threading.Thread(target=lambda: ended.append(work()), daemon=True)
        thread.start()

        def wait() -> Ended:
            thread.join(20)
            assert ended, "it did not end"
            return ended[0]

        return wait

    def _runnable(self) -> dict[str, datetime]:
        """Tell from when on each mirror may be tried for which somebody asks."""
        with self.ledger.database.engine.begin() as connection:
            rows = connection.execute(select(mirrors).where(mirrors.c.state != "held")).all()
        found = {}
        for row in rows:
            asked = [moment for moment in (row.due_at, row.look_at) if moment]
            not_before = [moment for moment in (row.not_before, row.lease_until) if moment]
            if asked:
                found[row.reference] = max([min(asked), *not_before])
        return found

    # the ledger

    def mirror(self, of: str = PATIENT) -> dict[str, Any]:
        mirror: dict[str, Any] = self.shown(of)["mirror"]
        return mirror

    def state(self, of: str = PATIENT) -> str:
        return str(self.mirror(of)["state"])

    def dispositions(self, of: str = PATIENT) -> list[str | None]:
        """Tell how each change ended, in the order in which they came to be known."""
        return [change["disposition"] for change in self.shown(of)["changes"]]

    def links(self, of: str = PATIENT) -> list[dict[str, Any]]:
        links: list[dict[str, Any]] = self.shown(of)["links"]
        return links

    def outcomes(self, of: str = PATIENT) -> list[tuple[str, str | None]]:
        """Tell each announced write's operation and outcome."""
        return [(write["operation"], write["outcome"]) for write in self.shown(of)["writes"]]

    def digest(self, of: str = PATIENT) -> str | None:
        [(digest,)] = self.sql("SELECT digest FROM links WHERE reference = :of", of=of)
        return None if digest is None else str(digest)

    def waits_s(self, of: str = PATIENT) -> float:
        """Tell how many seconds a mirror still has to wait."""
        return (self._runnable()[of] - self.clock.now).total_seconds()

    def shown(self, of: str) -> dict[str, Any]:
        shown = self.ledger.show(of)
        assert shown is not None, f"the ledger does not know {of}"
        return shown

    def sql(self, statement: str, **parameters: object) -> list[Any]:
        """Ask or change the tables behind the ledger's back."""
        with self.ledger.database.engine.begin() as connection:
            result = connection.execute(text(statement), parameters)
            return list(result) if result.returns_rows else []

    def adds_up(self) -> None:
        """Check the accounting identity, by the status and by counting the rows."""
        status = self.ledger.status()
        [(rows,)] = self.sql("SELECT count(*) FROM changes")
        assert status["identity_holds"]
        assert status["accepted"] == rows + status["purged"]

    # the clinic

    def breaks(self, kind: str, match: Mapping[str, object], *, times: int | None = 1, **rule: Any) -> None:
        """Switch something wrong in the clinic."""
        wanted = {"match": match, "kind": kind, "times": times, **rule}
        answer = self.clinic.post("/sandbox/faults", json=wanted)
        assert answer.is_success, answer.text

    def mends(self) -> None:
        assert self.clinic.delete("/sandbox/faults").is_success

    def edits(self, record: str, **fields: object) -> None:
        """Have somebody edit a record in the clinic's own screens."""
        assert self.clinic.post("/sandbox/edit", json={"record": record, "fields": fields}).is_success

    def calls(self, *methods: str) -> list[dict[str, Any]]:
        """List the requests that the clinic got, by method."""
        return [line for line in self.lines("journal?since=0") if line["method"] in methods]

    def lands(self) -> None:
        """Have the clinic carry out the last write that it dropped: late, when nobody waits for it any more."""
        dropped = [line for line in self.calls("POST", "PUT", "DELETE") if line["outcome"] == "dropped"][-1]
        headers = {"X-Api-Key": CLINIC_KEY}
        answer = self.clinic.request(dropped["method"], dropped["path"], json=dropped["body"], headers=headers)
        assert answer.is_success, answer.text

    def writes(self) -> list[str]:
        """List the writes that reached the clinic, by method."""
        return [line["method"] for line in self.calls("POST", "PUT", "DELETE")]

    def records(self, kind: str = "patient", *, active: bool = True) -> list[dict[str, Any]]:
        """List the clinic's records of a kind."""
        lines = self.lines(f"records?kind={kind}")
        return [line["data"] for line in lines if not active or line["status"] != "inactive"]

    def record(self, kind: str = "patient") -> dict[str, Any]:
        """Give the clinic's only active record of a kind."""
        [record] = self.records(kind)
        return record

    def lines(self, what: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.clinic.get(f"/sandbox/{what}").text.splitlines()]

    def agrees(self) -> None:
        """Check that the clinic holds one record, as mapped today, for each resource that lives, and none besides."""
        truth = [json.loads(line) for line in self.medplum.get("/sandbox/resources").text.splitlines()]
        living = [entry for entry in truth if not entry["deleted"] and entry["reference"].split("/")[0] in self.routes]
        keys = self.ledger.keys_of([entry["reference"] for entry in living])
        for entry in living:
            route = self.routes[entry["resource"]["resourceType"]]
            resource = model(json.dumps(entry["resource"]).encode())
            ctx = Context.of(resource, zone=route.to.api.zoneinfo, medplum=str(self.medplum.base_url))
            result = apply(route, resource, ctx)
            assert isinstance(result, Mapped)
            [record] = result.records
            held = route.to.read(keys[entry["reference"]], record.resolve_parents(keys), deadline_s=10)
            assert held is not None
            assert held.get("status") != "inactive"
            assert route.to.differing(record.resolve(keys), held) == ()
        assert len(living) == sum(len(self.records(kind)) for kind in ("patient", "provider", "problem"))


def only(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    [row] = rows
    return row
