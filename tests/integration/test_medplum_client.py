"""`worker.medplum` against the sandbox's Medplum: a real process that misbehaves on request."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from worker.errors import BadResource, MedplumRefused, MedplumUnavailable
from worker.medplum import Absent, Deleted, Medplum, Present
from worker.medplum.resource import compare, model

FIXTURES = Path(__file__).parents[1] / "fixtures" / "notifications"


class Sandbox:
    """The control plane, and the API as the front end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=10)
        self._frontend: dict[str, str] = {}

    def enter(self) -> None:
        """Let the front end in; a test may have made its last token unknown."""
        form = {"grant_type": "client_credentials", "client_id": "frontend", "client_secret": "frontend-secret"}
        token = self._http.post("/oauth2/token", data=form).raise_for_status().json()["access_token"]
        self._frontend = {"Authorization": f"Bearer {token}", "X-Medplum": "extended"}

    def faults(self, **switches: object) -> None:
        self._http.post("/sandbox/faults", json=switches).raise_for_status()

    def clear(self) -> None:
        self._http.post("/sandbox/clear").raise_for_status()

    def load(self, *resources: object) -> None:
        self._http.post("/sandbox/load", json={"resources": resources}).raise_for_status()

    def create(self, resource_type: str = "Patient", **members: object) -> str:
        """Create a resource and return its reference."""
        resource = {"resourceType": resource_type, **members}
        answer = self._http.post(f"/fhir/R4/{resource_type}", json=resource, headers=self._frontend)
        return f"{resource_type}/{answer.raise_for_status().json()['id']}"

    def change(self, method: str, reference: str, **parts: Any) -> None:
        self._http.request(method, f"/fhir/R4/{reference}", headers=self._frontend, **parts).raise_for_status()

    def stored(self, resource_type: str) -> dict[str, dict[str, Any]]:
        """Return what is stored of a type, by reference."""
        answer = self._http.get("/sandbox/resources", params={"type": resource_type}).raise_for_status()
        return {row["reference"]: row for row in map(json.loads, answer.content.split(b"\n")[:-1])}

    def close(self) -> None:
        self._http.close()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """Start the sandbox once for this file."""
    folder = tmp_path_factory.mktemp("medplum")
    ready = folder / "ready"
    command = [sys.executable, "-m", "deploy.sandbox.medplum", "--port", "0"]
    command += ["--db", str(folder / "medplum.db"), "--ready-file", str(ready)]
    started = subprocess.Popen(command)
    end = time.monotonic() + 20
    while not ready.exists():
        assert started.poll() is None
        assert time.monotonic() < end, "the sandbox never became ready"
        time.sleep(0.02)
    sandbox = Sandbox(ready.read_text().strip())
    yield sandbox
    sandbox.close()
    started.terminate()
    assert started.wait(10) == 0


@pytest.fixture
def sandbox(process: Sandbox) -> Iterator[Sandbox]:
    """Return the sandbox, well again after each test."""
    process.enter()
    yield process
    process.clear()


@pytest.fixture
def medplum(sandbox: Sandbox) -> Iterator[Medplum]:
    """Return a client of one's own, so that no test inherits a token or a quota."""
    with Medplum(sandbox.url, "sync", SecretStr("sync-secret")) as made:
        yield made


def read(medplum: Medplum, reference: str) -> object:
    """Read with time enough."""
    return medplum.read(reference, deadline_s=10)


def test_present(sandbox: Sandbox, medplum: Medplum) -> None:
    """A live resource comes with its version, time, author and content as they are stored."""
    reference = sandbox.create(name=[{"family": "Müller", "given": ["王"]}])
    stored = sandbox.stored("Patient")[reference]
    found = read(medplum, reference)
    assert isinstance(found, Present)
    assert json.loads(found.body) == stored["resource"]
    assert found.version_id == stored["versionId"]
    assert found.last_updated.isoformat(timespec="milliseconds") == stored["lastUpdated"].replace("Z", "+00:00")
    assert found.author == "ClientApplication/frontend"
    assert b"M\xc3\xbcller" in found.body


def test_deleted(sandbox: Sandbox, medplum: Medplum) -> None:
    """A deleted resource is deleted, with its time, even where GET by id would still show it."""
    reference = sandbox.create()
    sandbox.faults(stale_get=True)
    sandbox.change("DELETE", reference)
    found = read(medplum, reference)
    assert isinstance(found, Deleted)
    assert found.last_updated is not None
    assert found.started_at > found.last_updated


def test_restored(sandbox: Sandbox, medplum: Medplum) -> None:
    """A resource that was deleted and put back lives."""
    reference = sandbox.create()
    sandbox.change("DELETE", reference)
    sandbox.change("PUT", reference, json={"resourceType": "Patient", "id": reference.partition("/")[2]})
    assert isinstance(read(medplum, reference), Present)


def test_absent(sandbox: Sandbox, medplum: Medplum) -> None:
    """A resource that was never there, was expunged or is hidden from this client is absent."""
    expunged, hidden = sandbox.create(), sandbox.create()
    sandbox.change("POST", f"{expunged}/$expunge")
    sandbox.faults(hidden={"sync": [hidden]})
    for reference in (f"Patient/{uuid.uuid4()}", expunged, hidden):
        assert isinstance(read(medplum, reference), Absent)


def test_recorded(sandbox: Sandbox, medplum: Medplum) -> None:
    """Each recorded resource that is loaded comes back whole, and becomes a model."""
    bodies = [json.loads(path.read_text())["body_base64"] for path in sorted(FIXTURES.glob("0*.json"))]
    resources = [json.loads(base64.b64decode(body)) for body in bodies if len(base64.b64decode(body)) > len("{}")]
    newest = {
        f"{each['resourceType']}/{each['id']}": each for each in resources if each["resourceType"] != "Subscription"
    }
    sandbox.load(*newest.values())
    for reference, resource in newest.items():
        found = read(medplum, reference)
        assert isinstance(found, Present)
        assert compare(json.dumps(resource).encode(), found.body) is None
        assert type(model(found.body)).__name__ == resource["resourceType"]


def test_hidden_field(sandbox: Sandbox, medplum: Medplum) -> None:
    """A member that an access policy hides is named by the comparison with what was notified."""
    reference = sandbox.create(birthDate="1980-01-01", name=[{"family": "X"}])
    whole = json.dumps(sandbox.stored("Patient")[reference]["resource"]).encode()
    sandbox.faults(hidden_fields={"sync": {"Patient": ["birthDate"]}})
    found = read(medplum, reference)
    assert isinstance(found, Present)
    assert compare(whole, found.body) == "birthDate"


def test_shared(sandbox: Sandbox, medplum: Medplum) -> None:
    """Two hundred reads by thirty-two threads fit into units for a quarter of them, and each gets its own."""
    references = [sandbox.create() for _ in range(40)] * 5
    read(medplum, references[0])
    sandbox.faults(units_per_minute=1_000_000, api=[{"delay_seconds": 0.02}])
    before = units_left(sandbox, medplum)
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda reference: medplum.read(reference, deadline_s=20), references))
    assert [each.reference for each in found] == references
    assert all(isinstance(each, Present) for each in found)
    assert before - units_left(sandbox, medplum) <= 20 * len(references) / 4


def units_left(sandbox: Sandbox, medplum: Medplum) -> int:
    """Return the units that the last answer told of, after one more read."""
    read(medplum, sandbox.create())
    return medplum._quota._left


def test_token(sandbox: Sandbox, medplum: Medplum) -> None:
    """Tokens that expire in mid-flight cost one fetch for all threads, and no read."""
    references = [sandbox.create() for _ in range(16)]
    read(medplum, references[0])
    once = {"path": "/oauth2", "times": 1}
    sandbox.faults(expire_tokens=True, api=[once, {"path": "/oauth2", "status": 503}])
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda reference: medplum.read(reference, deadline_s=20), references))
    assert all(isinstance(each, Present) for each in found)


def test_token_endpoint_is_down(sandbox: Sandbox, medplum: Medplum) -> None:
    """Without a token a read is a matter of time."""
    sandbox.faults(api=[{"path": "/oauth2", "status": 503}])
    with pytest.raises(MedplumUnavailable):
        read(medplum, "Patient/x")


def test_wrong_secret(sandbox: Sandbox) -> None:
    """A wrong secret is refused with the name of the setting."""
    with Medplum(sandbox.url, "sync", SecretStr("wrong")) as medplum:
        with pytest.raises(MedplumRefused, match="REVERSE_SYNC_MEDPLUM_CLIENT_SECRET"):
            read(medplum, "Patient/x")
        assert [ok for _, ok, _ in medplum.check(["Patient"])] == [False]


def test_rights(sandbox: Sandbox, medplum: Medplum) -> None:
    """A type that the access policy leaves out is refused, and a check names it."""
    sandbox.faults(hidden={"sync": ["Condition"]})
    with pytest.raises(MedplumRefused, match="AccessPolicy"):
        read(medplum, "Condition/x")
    checked = [(name, ok) for name, ok, _ in medplum.check(["Patient", "Condition"])]
    assert checked[1:] == [("the client may search Patient", True), ("the client may search Condition", False)]


def test_quota(sandbox: Sandbox, medplum: Medplum) -> None:
    """Beyond the quota a read says how long to wait."""
    reference = sandbox.create()
    sandbox.faults(units_per_minute=1)
    with pytest.raises(MedplumUnavailable) as refusal:
        read(medplum, reference)
    assert refusal.value.retry_after_s is not None
    assert 0 < refusal.value.retry_after_s <= 60


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_server_error(sandbox: Sandbox, medplum: Medplum, status: int) -> None:
    """A server error is a matter of time, and the next read works."""
    reference = sandbox.create()
    sandbox.faults(api=[{"status": status, "clients": ["sync"], "times": 1}])
    with pytest.raises(MedplumUnavailable):
        read(medplum, reference)
    assert isinstance(read(medplum, reference), Present)


def test_drip(sandbox: Sandbox, medplum: Medplum) -> None:
    """A read from a server that drips ends at its deadline."""
    reference = sandbox.create()
    read(medplum, reference)
    sandbox.faults(api=[{"drip_seconds": 0.2, "clients": ["sync"]}])
    start = time.monotonic()
    with pytest.raises(MedplumUnavailable):
        medplum.read(reference, deadline_s=1)
    assert 0.9 < time.monotonic() - start < 1.5


def test_nobody_there(sandbox: Sandbox) -> None:
    """A server that cannot be reached is a matter of time."""
    with Medplum("http://127.0.0.1:9/", "sync", SecretStr("x")) as medplum, pytest.raises(MedplumUnavailable):
        read(medplum, "Patient/x")


def test_pages(sandbox: Sandbox, medplum: Medplum) -> None:
    """A search yields every resource of a type once, over as many pages as it takes."""
    made = {sandbox.create("Organization", name=str(number)) for number in range(25)}
    query = {"_sort": "_lastUpdated", "_count": "10"}
    pages = list(medplum.search("Organization", query, deadline_s=10))
    found = [entry.reference for page in pages for entry in page.entries]
    assert len(pages) >= 3
    assert len(found) == len(set(found))
    assert made <= set(found)
    assert all(page.at is not None for page in pages)


def test_deletions(sandbox: Sandbox, medplum: Medplum) -> None:
    """A search for deletions yields ids and times."""
    reference = sandbox.create("Organization")
    sandbox.change("DELETE", reference)
    (page,) = medplum.search("Organization", {"_deleted": "true", "_count": "1000"}, deadline_s=10)
    found = {entry.reference: entry for entry in page.entries}
    assert isinstance(found[reference], Deleted)
    assert found[reference].last_updated is not None


def test_clock(sandbox: Sandbox, medplum: Medplum) -> None:
    """Medplum's clock is read from its answers."""
    read(medplum, sandbox.create())
    time_there = medplum.server_time()
    assert time_there is not None
    assert abs(time_there.timestamp() - time.time()) < 5


def test_the_content_of_a_binary_comes_from_medplum_itself(sandbox: Sandbox, medplum: Medplum) -> None:
    """Byte for byte, whatever it is; a redirect to a store elsewhere is not followed."""
    content = bytes(range(256))
    data = base64.b64encode(content).decode()
    reference = sandbox.create("Binary", contentType="application/pdf", data=data)
    id_ = reference.partition("/")[2]
    assert medplum.content(id_, deadline_s=10) == content
    elsewhere = {"types": ["Binary"], "status": 302, "headers": {"Location": "http://192.0.2.1/x"}, "times": 1}
    sandbox.faults(api=[elsewhere])
    with pytest.raises(BadResource, match="elsewhere"):
        medplum.content(id_, deadline_s=10)


@pytest.mark.parametrize("id_", ["none", "..", "b1/../../Patient/p1", ""])
def test_a_binary_that_is_not_there_is_named_as_such(sandbox: Sandbox, medplum: Medplum, id_: str) -> None:
    """Not there, hidden, or no id at all: a person has to see to it."""
    with pytest.raises(BadResource, match="Binary"):
        medplum.content(id_, deadline_s=10)


def test_a_binary_that_cannot_be_had_now_is_asked_for_later(sandbox: Sandbox, medplum: Medplum) -> None:
    """Medplum's own trouble is none of the resource's."""
    sandbox.faults(api=[{"types": ["Binary"], "status": 503, "times": 1}])
    with pytest.raises(MedplumUnavailable):
        medplum.content("b1", deadline_s=10)
