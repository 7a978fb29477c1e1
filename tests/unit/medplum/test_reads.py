"""`worker.medplum.reads`: who shares a request with whom, and what each of them gets out of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime

import httpx
import pytest

from worker.errors import BadResource, MedplumRefused, MedplumUnavailable
from worker.medplum import reads
from worker.medplum.answer import BadPage, Page, QueryRefused, page_of
from worker.medplum.quota import Priority
from worker.medplum.reads import Absent, Deleted, Present, Read, Reads

LONG_S = 20.0


class Server:
    """Medplum's search as far as reads need it: resources by id, and requests that can be held up."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.versions: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.fault: Callable[[list[str]], None] = lambda ids: None
        self.more: list[dict[str, object]] = []
        self.tombstones: list[dict[str, object]] = []
        self.link: list[dict[str, str]] = []
        self.reads = Reads(self.ask)

    def ask(self, resource_type: str, query: Mapping[str, str], priority: Priority) -> Page:
        ids = query["_id"].split(",")
        assert int(query["_count"]) == len(ids)
        if query.get("_deleted") == "true":
            self.link = []
            return self.page(
                [*self.tombstones, *(self.resource("Patient", id_, None) for id_ in ids if id_ in self.deleted)]
            )
        self.asked.append(ids)
        versions = dict(self.versions)
        self.fault(ids)
        return self.page([self.resource(resource_type, id_, versions[id_]) for id_ in ids if id_ in versions])

    @staticmethod
    def resource(resource_type: str, id_: str, version: str | None) -> dict[str, object]:
        meta = {"lastUpdated": "2026-11-22T10:30:03.303Z"} | ({"versionId": version} if version else {})
        return {"resourceType": resource_type, "id": id_, "meta": meta}

    def page(self, resources: list[dict[str, object]]) -> Page:
        entries = [{"resource": each} for each in resources + self.more]
        content = json.dumps({"resourceType": "Bundle", "entry": entries, "link": self.link})
        return page_of(httpx.Response(200, content=content), "a search")

    def read(self, id_: str, deadline_s: float = LONG_S, priority: Priority = Priority.LIVE) -> Read:
        return self.reads.read(f"Patient/{id_}", deadline_s=deadline_s, priority=priority)

    def waiting(self) -> int:
        lane = self.reads._lanes.get(("Patient", Priority.LIVE))
        return len(lane._waiting) if lane else 0


class Gate:
    """Holds requests up until a test lets them through."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Semaphore(0), threading.Event()

    def __call__(self, ids: list[str]) -> None:
        self.reached.release()
        assert self.open.wait(LONG_S)


@pytest.fixture
def server() -> Server:
    """Return a server with ten patients."""
    made = Server()
    made.versions = {f"p{number}": "v1" for number in range(10)}
    return made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads enough for every test here."""
    with ThreadPoolExecutor(150) as made:
        yield made


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody go beside a request that takes its time."""
    monkeypatch.setattr(reads, "GATHER_S", LONG_S)


def eventually(fact: Callable[[], bool]) -> None:
    """Wait until the fact holds; a fact that never does fails the test."""
    end = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < end, "the fact never came to hold"
        time.sleep(0.005)


def gathered(
    server: Server, pool: ThreadPoolExecutor, ids: list[str], deadline_s: float = LONG_S
) -> tuple[Gate, list[Future[Read]]]:
    """Hold one read up and let others gather behind it."""
    gate = Gate()
    server.fault = gate
    pool.submit(server.read, "p0")
    assert gate.reached.acquire(timeout=10)
    waiting = [pool.submit(server.read, id_, deadline_s) for id_ in ids]
    eventually(lambda: server.waiting() == len(ids))
    return gate, waiting


def test_states(server: Server) -> None:
    """A resource is present, deleted or absent."""
    server.deleted = {"gone"}
    before = datetime.now(UTC)
    found = server.read("p1")
    moment = datetime(2026, 11, 22, 10, 30, 3, 303_000, UTC)
    assert isinstance(found, Present)
    assert (found.reference, found.version_id, found.last_updated) == ("Patient/p1", "v1", moment)
    gone = server.read("gone")
    assert isinstance(gone, Deleted)
    assert (gone.reference, gone.version_id, gone.last_updated) == ("Patient/gone", None, moment)
    assert isinstance(server.read("never"), Absent)
    assert before <= found.started_at <= gone.started_at <= datetime.now(UTC)


def test_lone(server: Server, patient: None) -> None:
    """A lone read waits for nobody."""
    start = time.monotonic()
    server.read("p1")
    server.read("p2")
    assert time.monotonic() - start < 1
    assert server.asked == [["p1"], ["p2"]]


def test_company(server: Server, pool: ThreadPoolExecutor, patient: None) -> None:
    """Reads that come while a request is under way share the next one, each id once."""
    gate, waiting = gathered(server, pool, ["p1", "p2", "p3", "p1", "never"])
    gate.open.set()
    found = [each.result(10) for each in waiting]
    assert [each.reference for each in found] == [f"Patient/{id_}" for id_ in ("p1", "p2", "p3", "p1", "never")]
    assert len(server.asked) == 2
    assert sorted(server.asked[1]) == ["never", "p1", "p2", "p3"]


def test_fresh(server: Server, pool: ThreadPoolExecutor, patient: None) -> None:
    """A read never joins a request that left before it was asked for."""
    gate, (second,) = gathered(server, pool, ["p0"])
    asked_at = datetime.now(UTC)
    server.versions["p0"] = "v2"
    gate.open.set()
    found = second.result(10)
    assert isinstance(found, Present)
    assert found.version_id == "v2"
    assert found.started_at > asked_at


def test_most_ids(server: Server, pool: ThreadPoolExecutor, patient: None) -> None:
    """A request asks for a hundred ids at most."""
    ids = [f"id{number}" for number in range(130)]
    gate, waiting = gathered(server, pool, ids)
    gate.open.set()
    assert {each.result(10).reference for each in waiting} == {f"Patient/{id_}" for id_ in ids}
    assert sorted(map(len, server.asked)) == [1, 30, 100]


def test_shared_failure(server: Server, pool: ThreadPoolExecutor, patient: None) -> None:
    """A shared request that fails gives each of its readers an exception of its own, with all that it says."""

    def fail(ids: list[str]) -> None:
        gate(ids)
        raise MedplumUnavailable("busy", retry_after_s=7)

    gate, waiting = gathered(server, pool, ["p1", "p2", "p3"])
    server.fault = fail
    gate.open.set()
    errors = [each.exception(10) for each in waiting]
    assert len({id(error) for error in errors}) == 3
    assert {(str(error), error.retry_after_s) for error in errors if isinstance(error, MedplumUnavailable)} == {
        ("busy", 7)
    }
    assert len(server.asked) == 2


def test_defect(server: Server, pool: ThreadPoolExecutor, patient: None) -> None:
    """A defect in the thread that sends leaves nobody waiting, and the next read works."""

    def fail(ids: list[str]) -> None:
        raise ZeroDivisionError

    gate, waiting = gathered(server, pool, ["p1", "p2"])
    server.fault = fail
    gate.open.set()
    assert {type(each.exception(10)) for each in waiting} == {ZeroDivisionError, MedplumUnavailable}
    server.fault = lambda ids: None
    assert isinstance(server.read("p1"), Present)


def test_own_deadline(server: Server, pool: ThreadPoolExecutor, patient: None) -> None:
    """Each reader waits until its own deadline, whoever sends and for whomever."""
    gate, (late,) = gathered(server, pool, ["p1"], deadline_s=0.3)
    assert isinstance(late.exception(5), MedplumUnavailable)
    assert server.waiting() == 0
    gate.open.set()
    assert isinstance(server.read("p2"), Present)
    assert ["p1"] not in server.asked


def test_longest_sends(server: Server, pool: ThreadPoolExecutor, patient: None) -> None:
    """The reader with the most time sends, so that one in a hurry does not end the others' request."""
    gate, (hasty,) = gathered(server, pool, ["p1"], deadline_s=1.0)
    calm = pool.submit(server.read, "p2")
    eventually(lambda: server.waiting() == 2)
    second = Gate()
    server.fault = second
    gate.open.set()
    assert second.reached.acquire(timeout=10)
    assert isinstance(hasty.exception(5), MedplumUnavailable)
    second.open.set()
    assert isinstance(calm.result(10), Present)
    assert sorted(server.asked[1]) == ["p1", "p2"]


def test_slow_request(server: Server, pool: ThreadPoolExecutor) -> None:
    """A request that takes its time is overtaken by those who came after it."""
    gate = Gate()
    server.fault = gate
    slow = pool.submit(server.read, "p0")
    assert gate.reached.acquire(timeout=10)
    server.fault = lambda ids: None
    assert isinstance(server.read("p1", deadline_s=5), Present)
    assert not slow.done()
    gate.open.set()
    assert isinstance(slow.result(10), Present)


def test_priorities_apart(server: Server, pool: ThreadPoolExecutor, patient: None) -> None:
    """A live read does not wait behind a second look."""
    gate, _ = gathered(server, pool, [])
    server.fault = lambda ids: None
    assert isinstance(server.read("p1", priority=Priority.SECOND_LOOK), Present)
    gate.open.set()


@pytest.mark.parametrize("error", [QueryRefused("400"), BadPage("deep")])
def test_one_bad_id(server: Server, pool: ThreadPoolExecutor, patient: None, error: Exception) -> None:
    """An id that spoils the request for all is found, and fails alone."""

    def spoil(ids: list[str]) -> None:
        if "bad" in ids:
            raise error

    gate, waiting = gathered(server, pool, ["p1", "bad", "p2", "p3", "p4"])
    server.fault = spoil
    gate.open.set()
    failures = [each.exception(10) for each in waiting]
    assert [type(failure) for failure in failures] == [type(None), type(error), *[type(None)] * 3]


def test_only_what_was_asked_for(server: Server) -> None:
    """Entries of another type or id are nobody's answer."""
    server.more = [server.resource("Patient", "p2", "v1"), server.resource("Observation", "never", "v1"), {}, {"id": 1}]
    assert isinstance(server.read("never"), Absent)


def test_twice(server: Server) -> None:
    """Two versions of one resource in one answer are none: which of them is current, nobody knows."""
    server.more = [server.resource("Patient", "p1", "v2")]
    with pytest.raises(MedplumUnavailable, match="two versions"):
        server.read("p1")


def test_content_among_the_deleted(server: Server) -> None:
    """A resource with content is never taken for a deleted one."""
    server.tombstones = [server.resource("Patient", "p11", "v2") | {"active": True}]
    with pytest.raises(MedplumUnavailable, match="among the deleted"):
        server.read("p11")


def test_cut_page(server: Server) -> None:
    """What is missing on a page that has a next one is not known to be absent."""
    server.link = [{"relation": "next", "url": "https://medplum.example/fhir/R4/Patient?_offset=1"}]
    assert isinstance(server.read("p1"), Present)
    with pytest.raises(MedplumUnavailable, match="cut"):
        server.read("never")


@pytest.mark.parametrize(
    "meta",
    [
        None,
        {},
        "meta",
        {"versionId": 1, "lastUpdated": "2026-11-22T10:30:03.303Z"},
        {"versionId": "v1"},
        {"versionId": "v1", "lastUpdated": "yesterday"},
        {"versionId": "v1", "lastUpdated": "2026-11-22T10:30:03.303"},
    ],
)
def test_bad_meta(server: Server, meta: object) -> None:
    """A resource without a version and an instant is a named problem."""
    del server.versions["p1"]
    server.more = [{"resourceType": "Patient", "id": "p1", "meta": meta}]
    with pytest.raises(BadResource, match="meta"):
        server.read("p1")


@pytest.mark.parametrize(
    ("author", "expected"),
    [
        ({"reference": "Practitioner/x"}, "Practitioner/x"),
        ({}, None),
        (None, None),
        ("x", None),
        ({"reference": 1}, None),
    ],
)
def test_author(server: Server, author: object, expected: str | None) -> None:
    """The author is the reference in meta, if there is one."""
    resource = server.resource("Patient", "p11", "v1")
    assert isinstance(resource["meta"], dict)
    resource["meta"]["author"] = author
    server.more = [resource]
    found = server.read("p11")
    assert isinstance(found, Present)
    assert found.author == expected


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "Patient",
        "Patient/",
        "Patient/..",
        "Patient/.",
        "Patient/a,b",
        "Patient/a&b",
        "Patient/a/b",
        "patient/a",
        "X/é",
        "Patient/" + "a" * 65,
        "Patient/a\n",
        "https://x/Patient/a",
        "/Patient/a",
    ],
)
def test_bad_reference(server: Server, reference: str) -> None:
    """What is not a type and an id is never put into a search."""
    with pytest.raises(BadResource):
        server.reads.read(reference, deadline_s=1)
    assert server.asked == []


def test_refused(server: Server) -> None:
    """A refusal stays one."""

    def refuse(ids: list[str]) -> None:
        raise MedplumRefused("rights")

    server.fault = refuse
    with pytest.raises(MedplumRefused, match="rights"):
        server.read("p1")
