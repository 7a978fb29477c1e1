"""`worker.medplum.client`: what goes out to Medplum, and what an answer turns into."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import pytest
from pydantic import SecretStr

from worker.deadline import AnswerTooLarge, CallFailed
from worker.errors import BadResource, MedplumRefused, MedplumUnavailable
from worker.medplum import Medplum, Present, Priority
from worker.medplum import client as room

META = {"versionId": "v1", "lastUpdated": "2026-11-22T10:30:03.303Z"}


class Server:
    """Answers as a test says, and keeps the requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.searches: list[httpx.Request] = []
        self.tokens = 0
        self.answer: Callable[[httpx.Request], httpx.Response] = lambda request: bundle()
        transport = httpx.MockTransport(self.handle)

        def client(*, base_url: str, headers: dict[str, str], **_: object) -> httpx.Client:
            return httpx.Client(base_url=base_url, headers=headers, transport=transport)

        monkeypatch.setattr(room, "client", client)
        self.medplum = Medplum("https://medplum.example/", "c1", SecretStr("Canary"))

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth2/token":
            self.tokens += 1
            return httpx.Response(200, json={"access_token": f"t{self.tokens}", "expires_in": 3600})
        self.searches.append(request)
        return self.answer(request)

    def read(self, reference: str = "Patient/p1") -> object:
        return self.medplum.read(reference, deadline_s=5)


def bundle(*resources: object, next_url: str | None = None, **headers: str) -> httpx.Response:
    """Return a searchset."""
    link = [{"relation": "next", "url": next_url}] if next_url else []
    body = {"resourceType": "Bundle", "entry": [{"resource": each} for each in resources], "link": link}
    return httpx.Response(200, content=json.dumps(body), headers=headers)


def patient(id_: str = "p1") -> dict[str, object]:
    """Return a patient's resource."""
    return {"resourceType": "Patient", "id": id_, "meta": META}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """Return a server without resources."""
    return Server(monkeypatch)


def test_request(server: Server) -> None:
    """A read is a search with token, trace id and full meta, never a GET by id."""
    server.read()
    live, deleted = server.searches
    for request in (live, deleted):
        assert (request.method, request.url.path) == ("GET", "/fhir/R4/Patient")
        assert request.headers["Authorization"] == "Bearer t1"
        assert request.headers["X-Medplum"] == "extended"
        assert uuid.UUID(request.headers["x-trace-id"]).version == 4
    assert dict(live.url.params) == {"_id": "p1", "_count": "1"}
    assert dict(deleted.url.params) == {"_deleted": "true", "_id": "p1", "_count": "1"}
    assert live.headers["x-trace-id"] != deleted.headers["x-trace-id"]


def test_renewal(server: Server) -> None:
    """A token that is refused in between is renewed once, and the search sent again once."""
    server.answer = lambda request: (
        httpx.Response(401) if request.headers["Authorization"] == "Bearer t1" else bundle(patient())
    )
    assert isinstance(server.read(), Present)
    assert (server.tokens, len(server.searches)) == (2, 2)


def test_refused_after_renewal(server: Server) -> None:
    """A new token that is refused as well is a matter for a person."""
    server.answer = lambda request: httpx.Response(401)
    with pytest.raises(MedplumRefused, match="ClientApplication"):
        server.read()
    assert (server.tokens, len(server.searches)) == (2, 2)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (CallFailed("the exchange failed: ReadError", sent=True), MedplumUnavailable),
        (AnswerTooLarge("the answer is larger than 1 bytes", sent=True), BadResource),
    ],
)
def test_no_answer(server: Server, fault: Exception, expected: type[Exception]) -> None:
    """A call that fails is a matter of time; an answer that is too large for one resource never gets smaller."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise fault

    server.answer = fail
    with pytest.raises(expected) as failure:
        server.read()
    assert failure.value.__cause__ is None


def test_quota(server: Server) -> None:
    """After a 429 the next search is not sent before its time."""
    body = {"issue": [{"diagnostics": '{"_msBeforeNext":30000}'}]}
    server.answer = lambda request: httpx.Response(429, json=body)
    for _ in range(2):
        with pytest.raises(MedplumUnavailable) as refusal:
            server.read()
        assert refusal.value.retry_after_s == pytest.approx(30, abs=1)
    assert len(server.searches) == 1


def test_deferred(server: Server) -> None:
    """What can wait is not sent when units run short; a live read is."""
    limits = iter([50_000, 1_000, 980, 960])
    server.answer = lambda request: bundle(patient(), RateLimit=f'"fhirInteractions";r={next(limits)};t=30')
    server.read()
    server.read()
    with pytest.raises(MedplumUnavailable):
        server.medplum.read("Patient/p1", deadline_s=5, priority=Priority.SECOND_LOOK)
    server.read()
    assert len(server.searches) == 3


def test_server_time(server: Server) -> None:
    """Medplum's clock is known from its answers and goes on from there."""
    assert server.medplum.server_time() is None
    date = datetime(2020, 1, 1, tzinfo=UTC)
    server.answer = lambda request: bundle(patient(), Date="Wed, 01 Jan 2020 00:00:00 GMT")
    server.read()
    first, second = server.medplum.server_time(), server.medplum.server_time()
    assert first is not None
    assert second is not None
    assert date <= first <= second < datetime(2020, 1, 1, 0, 1, tzinfo=UTC)


def test_author(server: Server) -> None:
    """The client knows itself as the author that Medplum names."""
    assert server.medplum.own_author == "ClientApplication/c1"


def test_search(server: Server) -> None:
    """A search goes through all pages by the query of the next link, on its own origin whatever the link says."""
    pages = iter(
        [
            bundle(
                patient("a"), {"resourceType": "OperationOutcome"}, next_url="https://evil.example/x?_cursor=2&a=1%2C2"
            ),
            bundle(patient("b"), patient("c"), Date="Wed, 01 Jan 2020 00:00:00 GMT"),
        ]
    )
    server.answer = lambda request: next(pages)
    found = list(server.medplum.search("Patient", {"_sort": "_lastUpdated"}, deadline_s=5))
    assert [[entry.reference for entry in page.entries] for page in found] == [
        ["Patient/a"],
        ["Patient/b", "Patient/c"],
    ]
    assert [page.at for page in found] == [None, datetime(2020, 1, 1, tzinfo=UTC)]
    assert [str(request.url) for request in server.searches] == [
        "https://medplum.example/fhir/R4/Patient?_sort=_lastUpdated",
        "https://medplum.example/fhir/R4/Patient?_cursor=2&a=1%2C2",
    ]


def test_search_in_a_circle(server: Server) -> None:
    """A search that comes back to a page it has shown is not complete, and ends."""
    server.answer = lambda request: bundle(next_url="https://medplum.example/fhir/R4/Patient?_cursor=1")
    with pytest.raises(MedplumUnavailable, match="came back"):
        list(server.medplum.search("Patient", {}, deadline_s=5))
    assert len(server.searches) == 2


def test_search_of_nothing(server: Server) -> None:
    """What is not the name of a type never becomes a path."""
    with pytest.raises(MedplumRefused):
        list(server.medplum.search("Patient/../Practitioner", {}, deadline_s=5))
    assert server.searches == []


def test_check(server: Server) -> None:
    """A check says for each right whether it is there, and what to do where it is not."""
    server.answer = lambda request: httpx.Response(403) if "Condition" in request.url.path else bundle()
    lines = server.medplum.check(["Patient", "Condition"])
    assert [(name, ok) for name, ok, _ in lines] == [
        ("Medplum lets the client in", True),
        ("the client may search Patient", True),
        ("the client may search Condition", False),
    ]
    assert "AccessPolicy" in lines[2][2]
    assert lines[1][2] == ""


def test_check_without_a_token(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that Medplum does not let in is asked nothing more."""
    monkeypatch.setattr(server.medplum._tokens, "current", refuse)
    assert server.medplum.check(["Patient"]) == [("Medplum lets the client in", False, "mend this")]
    assert server.searches == []


def refuse() -> str:
    """Refuse."""
    raise MedplumRefused("mend this")


def past(number: int) -> dict[str, object]:
    """Return one version of a patient."""
    return {"resourceType": "Patient", "id": "p1", "meta": {"versionId": f"v{number}"}}


def test_history_is_read_to_its_end(server: Server) -> None:
    """Page after page until one brings nothing new; a version that two pages show is one version."""

    def answer(request: httpx.Request) -> httpx.Response:
        first = int(request.url.params["_offset"])
        return bundle(*(past(number) for number in range(max(0, first - 1), min(first + 100, 130))))

    server.answer = answer
    versions = server.medplum.history("Patient/p1", deadline_s=5)
    assert [version for version, _ in versions] == [f"v{number}" for number in range(130)]
    assert {request.url.path for request in server.searches} == {"/fhir/R4/Patient/p1/_history"}
    assert len(server.searches) == 2


def test_history_of_a_server_that_sends_all_at_once(server: Server) -> None:
    """A server that knows no pages sends the same again, and that ends it."""
    server.answer = lambda request: bundle(*map(past, range(150)))
    assert len(server.medplum.history("Patient/p1", deadline_s=5)) == 150
    assert len(server.searches) == 2


def test_history_leaves_deletions_out(server: Server) -> None:
    """A deletion is an entry without a resource."""
    body = {"resourceType": "Bundle", "entry": [{"request": {"method": "DELETE"}}, {"resource": past(1)}]}
    server.answer = lambda request: httpx.Response(200, json=body)
    [(version, body_of_it)] = server.medplum.history("Patient/p1", deadline_s=5)
    assert (version, json.loads(body_of_it)["id"]) == ("v1", "p1")


@pytest.mark.parametrize("reference", ["Patient/..", "Patient/a/b", "Patient/", "patient/p1"])
def test_history_of_no_reference(server: Server, reference: str) -> None:
    """A path is made of a checked reference alone."""
    with pytest.raises(BadResource):
        server.medplum.history(reference, deadline_s=5)
    assert server.searches == []


def test_history_that_is_not_shown(server: Server) -> None:
    """A resource whose history this client may not see is a matter of rights."""
    server.answer = lambda request: httpx.Response(404)
    with pytest.raises(MedplumRefused, match="may it read it"):
        server.medplum.history("Patient/p1", deadline_s=5)
