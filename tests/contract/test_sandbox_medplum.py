"""The Medplum stand-in against what a real server was recorded and observed to do; the process itself is under test."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "fixtures" / "notifications"
SECRET_URL = "https://www.medplum.com/fhir/StructureDefinition/subscription-secret"
MORE_URL = "https://medplum.com/fhir/StructureDefinition/subscription-"
SECRET = "a secret of the tests"
DEADLINE_SECONDS = 5.0

Json = dict[str, Any]
T = TypeVar("T")


def recordings() -> list[str]:
    """Name the recorded requests that a server sent as they were, with a body."""
    captures = json.loads((RECORDED / "index.json").read_text())["captures"]
    return [one["file"] for one in captures if one["versionId"] and one["interaction"] in {"create", "update"}]


def eventually(look: Callable[[], T], seconds: float = DEADLINE_SECONDS) -> T:
    """Return what `look` gives once it is true; fail at the deadline."""
    until = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < until, "the deadline passed"
        time.sleep(0.005)
    return seen


@dataclass
class Hook:
    """One request that arrived."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def interaction(self) -> str | None:
        return self.header("X-Medplum-Interaction")

    @property
    def resource(self) -> Json:
        document: Json = json.loads(self.body)
        return document


@dataclass
class Receiver:
    """A webhook that keeps what it gets; `answers` holds the statuses to give, by path, then 202."""

    hooks: list[Hook] = field(default_factory=list)
    answers: dict[str, list[int]] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)
    waiting: int = 0
    most_waiting: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, hook: Hook) -> int:
        with self.lock:
            self.hooks.append(hook)
            left = self.answers.get(hook.path, [])
            status = left.pop(0) if left else 202
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
        self.gate.wait(DEADLINE_SECONDS)
        with self.lock:
            self.waiting -= 1
        return status

    def at(self, path: str) -> list[Hook]:
        return [hook for hook in list(self.hooks) if hook.path == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = self.receiver.take(Hook(self.command, self.path, list(self.headers.items()), body))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/redirected")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Stay silent."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Stay silent when the sandbox is killed in the middle of a request."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Run a webhook."""
    receiver = Receiver()
    receiver.gate.set()
    handler = type("Handler", (_Handler,), {"receiver": receiver})
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        yield receiver
        receiver.gate.set()
        server.shutdown()


class Medplum:
    """The sandbox's process and its clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._tokens: dict[str, str] = {}
        self.start()

    def start(self) -> None:
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "deploy.sandbox.medplum", "--port", str(self.port)]
        command += ["--db", str(self.folder / "medplum.db"), "--ready-file", str(ready)]
        self.process = subprocess.Popen(command, cwd=ROOT)
        eventually(lambda: ready.exists() or self.process.poll() is not None)
        self.base = ready.read_text().strip()
        self.port = int(self.base.rpartition(":")[2])
        self.http = httpx.Client(base_url=self.base, trust_env=False, timeout=DEADLINE_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.http.close()
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)

    def reset(self) -> None:
        assert self.http.post("/sandbox/reset").status_code == 200
        self._tokens.clear()

    def token(self, client: str) -> str:
        if client not in self._tokens:
            form = {"grant_type": "client_credentials", "client_id": client, "client_secret": f"{client}-secret"}
            self._tokens[client] = self.http.post("/oauth2/token", data=form).json()["access_token"]
        return self._tokens[client]

    def call(
        self, method: str, path: str, json: Any = None, client: str = "frontend", **headers: str
    ) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["Authorization"] = f"Bearer {self.token(client)}"
        return self.http.request(method, f"/fhir/R4/{path}".rstrip("/"), json=json, headers=named)

    def create(self, resource: Json, **headers: str) -> Json:
        response = self.call("POST", resource["resourceType"], resource, **headers)
        assert response.status_code == 201, response.text
        created: Json = response.json()
        return created

    def found(self, query: str, **headers: str) -> list[Json]:
        response = self.call("GET", query, **headers)
        assert response.status_code == 200, response.text
        return [entry["resource"] for entry in response.json().get("entry", [])]

    def sandbox(self, verb: str, wanted: Json) -> Json:
        response = self.http.post(f"/sandbox/{verb}", json=wanted)
        assert response.status_code == 200, response.text
        answered: Json = response.json()
        return answered

    def state(self) -> Json:
        answered: Json = self.http.get("/sandbox/state").json()
        return answered

    def settled(self) -> bool:
        return bool(self.state()["deliveries"]["pending"] == 0)

    def subscribe(self, endpoint: str, criteria: str = "Patient", secret: str | None = SECRET, **more: Any) -> str:
        extensions = [{"url": SECRET_URL, "valueString": secret}] if secret else []
        extensions += [{"url": MORE_URL + url, **value} for url, value in more.pop("extensions", {}).items()]
        channel = {"type": "rest-hook", "endpoint": endpoint, "header": more.pop("header", [])}
        made = {"resourceType": "Subscription", "status": "active", "criteria": criteria, "channel": channel}
        id_: str = self.create(made | {"extension": extensions})["id"]
        return id_


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Medplum]:
    """Start the process once for all tests."""
    medplum = Medplum(tmp_path_factory.mktemp("medplum"))
    yield medplum
    medplum.stop()


@pytest.fixture
def medplum(process: Medplum) -> Medplum:
    """Give an empty Medplum."""
    process.reset()
    return process


def patient(family: str = "Doe", **more: Any) -> Json:
    return {"resourceType": "Patient", "name": [{"family": family}], **more}


# what arrives


@pytest.mark.parametrize("file", recordings())
def test_a_recorded_resource_is_sent_as_it_was_recorded(medplum: Medplum, receiver: Receiver, file: str) -> None:
    """Body and signature are the recorded ones byte for byte, and the headers come in the recorded order."""
    recorded = json.loads((RECORDED / file).read_text())
    body = base64.b64decode(recorded["body_base64"])
    resource = json.loads(body)
    authorization = [f"{name}: {value}" for name, value in recorded["headers"] if name == "Authorization"]
    medplum.subscribe(receiver.url, resource["resourceType"], recorded["secret"], header=authorization)
    medplum.sandbox("load", {"resource": resource, "notify": True})
    hook = eventually(lambda: [one for one in receiver.hooks if one.resource["id"] == resource["id"]])[0]
    assert hook.body == body
    assert hook.header("X-Signature") == dict(recorded["headers"]).get("X-Signature")
    assert [name for name, _ in hook.headers] == [name for name, _ in recorded["headers"]]


def test_a_delete_is_the_recorded_constant(medplum: Medplum, receiver: Receiver) -> None:
    """A delete has the body `{}`, names the resource in a header, and carries the recorded constant signature."""
    recorded = json.loads((RECORDED / "007-patient-delete.json").read_text())
    medplum.subscribe(receiver.url, secret=recorded["secret"], header=["Authorization: Bearer x"])
    created = medplum.create(patient())
    assert medplum.call("DELETE", f"Patient/{created['id']}").status_code == 200
    hook = eventually(lambda: [one for one in receiver.hooks if one.interaction == "delete"])[0]
    assert hook.body == b"{}"
    assert hook.header("X-Medplum-Deleted-Resource") == f"Patient/{created['id']}"
    assert hook.header("X-Signature") == dict(recorded["headers"])["X-Signature"]
    assert [name for name, _ in hook.headers] == [name for name, _ in recorded["headers"]]


def test_channel_headers_are_cut_replaced_and_doubled(medplum: Medplum, receiver: Receiver) -> None:
    """The recorded overrides arrive as recorded: same names, same order, cut at the second colon."""
    recorded = json.loads((RECORDED / "038-channel-header-override.json").read_text())
    overrides = ["Content-Type: application/json", "X-Medplum-Interaction: fake", "x-medplum-subscription: fake2"]
    overrides += ["X-Signature: forged", "Authorization: Basic dXNlcjpwYXNz", "X-Url: https://example.com/x"]
    medplum.subscribe(receiver.url, secret=recorded["secret"], header=overrides)
    resource = json.loads(base64.b64decode(recorded["body_base64"]))
    medplum.sandbox("load", {"resource": resource, "notify": True})
    hook = eventually(lambda: receiver.hooks)[0]
    varying = {"X-Medplum-Subscription", "x-trace-id", "Host"}

    def comparable(headers: list[Any]) -> list[tuple[str, str]]:
        return [(name, "" if name in varying and value != "fake2" else value) for name, value in headers]

    assert comparable(hook.headers) == comparable(recorded["headers"])


def test_a_channel_header_without_a_colon_stops_deliveries_silently(medplum: Medplum, receiver: Receiver) -> None:
    """Nothing is sent, and no AuditEvent tells of it."""
    id_ = medplum.subscribe(receiver.url, header=["nonsense"])
    medplum.create(patient())
    eventually(lambda: medplum.state()["deliveries"].get("dropped") == 1)
    assert receiver.hooks == []
    assert medplum.found(f"AuditEvent?entity=Subscription/{id_}") == []


def test_a_notification_carries_the_full_meta_and_the_trace_id(medplum: Medplum, receiver: Receiver) -> None:
    """meta names the writing client, project and compartment; the writer's x-trace-id comes back, on deletes too."""
    medplum.subscribe(receiver.url)
    trace_id = str(uuid.uuid4())
    forged = {"author": {"reference": "Practitioner/forged"}, "account": {"reference": "Organization/forged"}}
    created = medplum.create(patient(meta=forged), x_trace_id=trace_id)
    eventually(medplum.settled)
    medplum.call("DELETE", f"Patient/{created['id']}", x_trace_id=trace_id)
    eventually(medplum.settled)
    written, deleted = receiver.hooks
    meta = written.resource["meta"]
    assert meta["author"] == {"reference": "ClientApplication/frontend", "display": "front end"}
    assert {"reference": f"Patient/{created['id']}"} in meta["compartment"]
    assert "account" not in meta
    assert {one.header("x-trace-id") for one in receiver.hooks} == {trace_id}
    assert deleted.header("X-Signature") == hmac.new(SECRET.encode(), b"{}", hashlib.sha256).hexdigest()


def test_numbers_pass_through_javascript(medplum: Medplum) -> None:
    """Trailing zeros go, small exponents stay, twenty digits lose their end."""
    raw = (
        b'{"resourceType":"Basic","a":120.50,"b":1e-7,"c":12345678901234567890.12345,"d":0.000012,"e":120.0,"f":1e400}'
    )
    headers = {"Authorization": f"Bearer {medplum.token('frontend')}"}
    answer = medplum.http.post("/fhir/R4/Basic", content=raw, headers=headers).text
    assert '"a":120.5,"b":1e-7,"c":12345678901234567000,"d":0.000012,"e":120,"f":null' in answer


def test_attachments_are_presigned_anew_for_each_attempt(medplum: Medplum, receiver: Receiver) -> None:
    """Two attempts of one event differ in body and signature, and both signatures are right."""
    medplum.sandbox("faults", {"retry_scale": 0.01})
    receiver.answers["/"] = [500]
    medplum.subscribe(receiver.url + "/", "DocumentReference")
    content = [{"attachment": {"url": "Binary/0143ae6e-977d-4f10-828f-546baeb69e7e"}}]
    medplum.create({"resourceType": "DocumentReference", "content": content})
    eventually(lambda: len(receiver.hooks) == 2)
    first, second = receiver.hooks
    assert b"/storage/0143ae6e-977d-4f10-828f-546baeb69e7e/" in first.body
    assert first.body != second.body
    for hook in (first, second):
        assert hook.header("X-Signature") == hmac.new(SECRET.encode(), hook.body, hashlib.sha256).hexdigest()


# when it is sent


def test_criteria_look_at_the_new_version_alone(medplum: Medplum, receiver: Receiver) -> None:
    """`_tag:not` works, leaving the criteria sends nothing, unknown parameters are accepted and never fire."""
    medplum.subscribe(receiver.url + "/active", "Patient?active=true")
    medplum.subscribe(receiver.url + "/untagged", "Patient?_tag:not=https://x.example.com|skip")
    medplum.subscribe(receiver.url + "/unknown", "Patient?shoe-size=44")
    medplum.subscribe(receiver.url + "/author", "Patient?_author=ClientApplication/frontend")
    tag = {"tag": [{"system": "https://x.example.com", "code": "skip"}]}
    created = medplum.create(patient(active=True, meta=tag))
    medplum.call("PUT", f"Patient/{created['id']}", patient(id=created["id"], active=False))
    eventually(medplum.settled)
    assert [one.interaction for one in receiver.at("/active")] == ["create"]
    assert [one.interaction for one in receiver.at("/untagged")] == ["update"]
    assert receiver.at("/unknown") + receiver.at("/author") == []


def test_the_interaction_extension_narrows_to_one(medplum: Medplum, receiver: Receiver) -> None:
    """Without the extension all three interactions are sent, with it only its value."""
    medplum.subscribe(receiver.url + "/all")
    medplum.subscribe(receiver.url + "/one", extensions={"supported-interaction": {"valueCode": "delete"}})
    created = medplum.create(patient())
    eventually(medplum.settled)
    medplum.call("PUT", f"Patient/{created['id']}", patient("Roe", id=created["id"]))
    eventually(medplum.settled)
    medplum.call("DELETE", f"Patient/{created['id']}")
    eventually(medplum.settled)
    assert [one.interaction for one in receiver.at("/all")] == ["create", "update", "delete"]
    assert [one.interaction for one in receiver.at("/one")] == ["delete"]


def test_a_write_that_changes_nothing_sends_nothing(medplum: Medplum, receiver: Receiver) -> None:
    """The version stays, and so does silence; expunging is silent too."""
    medplum.subscribe(receiver.url)
    created = medplum.create(patient())
    eventually(medplum.settled)
    again = medplum.call("PUT", f"Patient/{created['id']}", patient(id=created["id"]))
    assert again.json()["meta"]["versionId"] == created["meta"]["versionId"]
    medplum.call("POST", f"Patient/{created['id']}/$expunge")
    eventually(medplum.settled)
    assert [one.interaction for one in receiver.hooks] == ["create"]
    assert medplum.call("GET", f"Patient/{created['id']}").status_code == 404


def test_resend_sends_the_same_version_as_whatever_was_asked_for(medplum: Medplum, receiver: Receiver) -> None:
    """Even a delete of a live resource, each time with a new trace id."""
    medplum.subscribe(receiver.url)
    created = medplum.create(patient())
    eventually(medplum.settled)
    for interaction in ("update", "delete"):
        asked = medplum.call("POST", f"Patient/{created['id']}/$resend", {"interaction": interaction})
        assert asked.status_code == 200
        eventually(medplum.settled)
    assert [one.interaction for one in receiver.hooks] == ["create", "update", "delete"]
    assert receiver.hooks[1].body == receiver.hooks[0].body
    assert len({one.header("x-trace-id") for one in receiver.hooks}) == 3
    assert medplum.call("GET", f"Patient/{created['id']}").status_code == 200


def test_a_rolled_back_transaction_still_sends_its_delete(medplum: Medplum, receiver: Receiver) -> None:
    """The resource lives, nothing else of the transaction is there, and yet the delete arrives."""
    medplum.subscribe(receiver.url)
    created = medplum.create(patient())
    eventually(medplum.settled)
    entries = [
        {"request": {"method": "POST", "url": "Patient"}, "resource": patient("Unborn")},
        {"request": {"method": "DELETE", "url": f"Patient/{created['id']}"}},
        {"request": {"method": "DELETE", "url": f"Patient/{uuid.uuid4()}"}},
    ]
    answer = medplum.call("POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": entries})
    assert answer.status_code == 404
    eventually(medplum.settled)
    assert [one.interaction for one in receiver.hooks] == ["create", "delete"]
    assert [one["id"] for one in medplum.found("Patient")] == [created["id"]]


def test_an_early_delete_arrives_before_the_commit(medplum: Medplum, receiver: Receiver) -> None:
    """When it arrives GET still says 200, and it is sent once; after the commit GET says 410."""
    medplum.subscribe(receiver.url)
    created = medplum.create(patient())
    eventually(medplum.settled)
    medplum.sandbox("faults", {"early_delete_seconds": 0.3})
    entry = {"request": {"method": "DELETE", "url": f"Patient/{created['id']}"}}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    answers: list[int] = []
    writer = threading.Thread(target=lambda: answers.append(medplum.call("POST", "", bundle).status_code))
    writer.start()
    eventually(lambda: [one for one in receiver.hooks if one.interaction == "delete"])
    with httpx.Client(base_url=medplum.base, trust_env=False) as other:
        seen = other.get(
            f"/fhir/R4/Patient/{created['id']}", headers={"Authorization": f"Bearer {medplum.token('frontend')}"}
        )
    assert seen.status_code == 200
    writer.join()
    assert answers == [200]
    assert medplum.call("GET", f"Patient/{created['id']}").status_code == 410
    eventually(medplum.settled)
    assert [one.interaction for one in receiver.hooks] == ["create", "delete"]


def test_a_batch_notifies_before_it_answers(medplum: Medplum, receiver: Receiver) -> None:
    """When the writer of a batch gets its answer, the notification has come already."""
    medplum.subscribe(receiver.url)
    entries = [
        {"request": {"method": "POST", "url": "Patient"}, "resource": patient()},
        {"request": {"method": "GET", "url": f"Patient/{uuid.uuid4()}"}},
    ]
    answer = medplum.call("POST", "", {"resourceType": "Bundle", "type": "batch", "entry": entries})
    assert receiver.hooks[0].interaction == "create"
    assert [entry["response"]["status"] for entry in answer.json()["entry"]] == ["201", "404"]


def test_a_transaction_resolves_its_own_references(medplum: Medplum) -> None:
    """A urn:uuid of one entry becomes the id that the entry got."""
    urn = f"urn:uuid:{uuid.uuid4()}"
    condition = {"resourceType": "Condition", "subject": {"reference": urn}}
    entries = [
        {"fullUrl": urn, "request": {"method": "POST", "url": "Patient"}, "resource": patient()},
        {"request": {"method": "POST", "url": "Condition"}, "resource": condition},
    ]
    answer = medplum.call("POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": entries}).json()
    made, child = [entry["resource"] for entry in answer["entry"]]
    assert child["subject"] == {"reference": f"Patient/{made['id']}"}
    assert medplum.found(f"Condition?subject=Patient/{made['id']}")[0]["id"] == child["id"]


# how it is delivered


def test_a_failure_is_tried_again_and_each_attempt_audited(medplum: Medplum, receiver: Receiver) -> None:
    """Two failures and a success are three requests with one trace id and three AuditEvents, two with outcome 4."""
    medplum.sandbox("faults", {"retry_scale": 0.01})
    receiver.answers["/retry"] = [400, 503]
    id_ = medplum.subscribe(receiver.url + "/retry")
    medplum.create(patient())
    eventually(medplum.settled)
    assert len(receiver.hooks) == 3
    assert len({one.header("x-trace-id") for one in receiver.hooks}) == 1
    assert len(medplum.found(f"AuditEvent?entity=Subscription/{id_}")) == 3
    failures = medplum.found(f"AuditEvent?entity=Subscription/{id_}&outcome=4&_sort=_lastUpdated")
    assert [one["outcomeDesc"] for one in failures] == [
        "Attempt 0 received status 400",
        "Attempt 1 received status 503",
    ]


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("127.0.0.1:1", "connect ECONNREFUSED 127.0.0.1:1"),
        ("no-such-host.invalid", "getaddrinfo ENOTFOUND no-such-host"),
    ],
)
def test_a_network_that_fails_is_audited_in_the_words_of_node(medplum: Medplum, host: str, words: str) -> None:
    """Nobody listens, or the host has no address: the AuditEvent of the attempt says so, with outcome 4."""
    id_ = medplum.subscribe(f"http://{host}/medplum", extensions={"max-attempts": {"valueInteger": 0}})
    medplum.create(patient())
    [failure] = eventually(lambda: medplum.found(f"AuditEvent?entity=Subscription/{id_}&outcome=4"))
    assert failure["outcomeDesc"].startswith(f"Attempt 0 received error FetchError: request to http://{host}/medplum")
    assert words in failure["outcomeDesc"]


@pytest.mark.parametrize(("extensions", "attempts"), [({}, 5), ({"max-attempts": {"valueInteger": 1}}, 2)])
def test_an_event_is_lost_after_its_attempts(
    medplum: Medplum, receiver: Receiver, extensions: Json, attempts: int
) -> None:
    """Five attempts by default, N+1 with `max-attempts` = N, and then nothing more."""
    medplum.sandbox("faults", {"retry_scale": 0.005})
    receiver.answers["/down"] = [500] * 9
    medplum.subscribe(receiver.url + "/down", extensions=extensions)
    medplum.create(patient())
    eventually(medplum.settled)
    assert len(receiver.hooks) == attempts
    assert medplum.state()["deliveries"]["given_up"] == 1


def test_the_gaps_between_attempts_double(medplum: Medplum, receiver: Receiver) -> None:
    """At a twentieth of the usual time they are 50, 100 and 200 ms at least."""
    medplum.sandbox("faults", {"retry_scale": 0.05})
    receiver.answers["/"] = [500] * 3
    medplum.subscribe(receiver.url + "/")
    medplum.create(patient())
    eventually(lambda: len(receiver.hooks) == 4)
    gaps = [later.at - earlier.at for earlier, later in pairwise(receiver.hooks)]
    assert all(gap >= least for gap, least in zip(gaps, (0.05, 0.1, 0.2), strict=True))


def test_a_retry_is_given_up_for_a_newer_version(medplum: Medplum, receiver: Receiver) -> None:
    """The failed create never comes again once the resource has a newer version."""
    receiver.answers["/"] = [500]
    medplum.subscribe(receiver.url + "/")
    medplum.sandbox("faults", {"retry_scale": 0.3})
    created = medplum.create(patient("First"))
    eventually(lambda: medplum.state()["deliveries"].get("failed_attempts") == 1)
    medplum.call("PUT", f"Patient/{created['id']}", patient("Second", id=created["id"]))
    eventually(medplum.settled)
    assert [one.resource["name"][0]["family"] for one in receiver.hooks] == ["First", "Second"]
    assert medplum.state()["deliveries"]["dropped"] == 1


def test_a_first_attempt_is_dropped_for_a_deleted_resource_only(medplum: Medplum, receiver: Receiver) -> None:
    """Held back, a superseded version is still sent, and nothing but the delete of a deleted resource."""
    medplum.subscribe(receiver.url)
    medplum.sandbox("faults", {"hold_deliveries": True})
    kept, lost = medplum.create(patient("Kept")), medplum.create(patient("Lost"))
    medplum.call("PUT", f"Patient/{kept['id']}", patient("Kept on", id=kept["id"]))
    medplum.call("DELETE", f"Patient/{lost['id']}")
    medplum.sandbox("faults", {"hold_deliveries": False})
    eventually(medplum.settled)
    families = sorted(one.resource["name"][0]["family"] for one in receiver.hooks if one.interaction != "delete")
    assert families == ["Kept", "Kept on"]
    assert [one.interaction for one in receiver.hooks].count("delete") == 1


def test_a_redirect_is_followed_as_an_empty_get(medplum: Medplum, receiver: Receiver) -> None:
    """The 302 becomes a GET without a body but with the signature of the lost one, and counts as delivered."""
    receiver.answers["/moved"] = [302]
    medplum.subscribe(receiver.url + "/moved")
    medplum.create(patient())
    eventually(medplum.settled)
    original, followed = receiver.hooks
    assert (followed.method, followed.path, followed.body) == ("GET", "/redirected", b"")
    assert followed.header("X-Signature") == original.header("X-Signature")
    assert medplum.state()["deliveries"]["delivered"] == 1


def test_success_codes_decide_what_counts_as_delivered(medplum: Medplum, receiver: Receiver) -> None:
    """With `success-codes` 410 a 202 is a failure and a 410 is none."""
    medplum.sandbox("faults", {"retry_scale": 0.01})
    receiver.answers["/"] = [202, 410]
    medplum.subscribe(receiver.url + "/", extensions={"success-codes": {"valueString": "410"}})
    medplum.create(patient())
    eventually(medplum.settled)
    assert len(receiver.hooks) == 2


def test_twenty_deliveries_at_a_time(medplum: Medplum, receiver: Receiver) -> None:
    """A receiver that does not answer holds twenty requests of all Subscriptions together, and the rest waits."""
    receiver.gate.clear()
    medplum.subscribe(receiver.url + "/a")
    medplum.subscribe(receiver.url + "/b")
    medplum.sandbox("bulk", {"resources": [patient(str(number)) for number in range(30)]})
    eventually(lambda: receiver.waiting == 20)
    assert medplum.state()["deliveries"]["pending"] == 60
    receiver.gate.set()
    eventually(medplum.settled)
    assert (len(receiver.hooks), receiver.most_waiting) == (60, 20)


def test_events_that_keep_failing_switch_the_subscription_off(medplum: Medplum, receiver: Receiver) -> None:
    """The Subscription says `off` with the reason, and nothing is sent afterwards."""
    medplum.sandbox("faults", {"retry_scale": 0.001, "switch_off_after": 1})
    receiver.answers["/"] = [500] * 9
    id_ = medplum.subscribe(receiver.url + "/", extensions={"max-attempts": {"valueInteger": 0}})
    medplum.create(patient())
    eventually(lambda: medplum.found(f"Subscription?_id={id_}")[0]["status"] == "off")
    assert "500" in medplum.found(f"Subscription?_id={id_}")[0]["error"]
    medplum.create(patient())
    eventually(medplum.settled)
    assert len(receiver.hooks) == 1


def test_a_changed_secret_signs_the_retries_of_older_events(medplum: Medplum, receiver: Receiver) -> None:
    """The second attempt of an event carries the new secret's signature."""
    receiver.answers["/"] = [500]
    id_ = medplum.subscribe(receiver.url + "/")
    medplum.sandbox("faults", {"retry_scale": 0.3})
    medplum.create(patient())
    eventually(lambda: medplum.state()["deliveries"].get("failed_attempts") == 1)
    patch = [{"op": "replace", "path": "/extension/0/valueString", "value": "new"}]
    assert medplum.call("PATCH", f"Subscription/{id_}", patch).status_code == 200
    eventually(medplum.settled)
    secrets = (SECRET, "new")
    signatures = [
        hmac.new(secret.encode(), one.body, hashlib.sha256).hexdigest()
        for secret, one in zip(secrets, receiver.hooks, strict=True)
    ]
    assert [one.header("X-Signature") for one in receiver.hooks] == signatures


# reading and writing


def test_tokens_are_asked_for_and_checked(medplum: Medplum) -> None:
    """Form and Basic both give an hour; a wrong secret, no token and an expired one are 401."""
    form = {"grant_type": "client_credentials"}
    granted = medplum.http.post("/oauth2/token", data=form, auth=("sync", "sync-secret")).json()
    assert (granted["expires_in"], "refresh_token" in granted) == (3600, False)
    assert medplum.http.post("/oauth2/token", data=form, auth=("sync", "wrong")).status_code == 401
    assert medplum.http.get("/fhir/R4/Patient").status_code == 401
    assert medplum.call("GET", "Patient", client="sync").status_code == 200
    medplum.sandbox("faults", {"expire_tokens": True})
    assert medplum.call("GET", "Patient", client="sync").status_code == 401


def test_a_token_ends_with_its_hour(medplum: Medplum) -> None:
    """A token whose time is over is as good as none."""
    medplum.token("sync")
    with contextlib.closing(sqlite3.connect(medplum.folder / "medplum.db")) as file, file:
        file.execute("UPDATE bearer SET expires_at = expires_at - 3601")
    assert medplum.call("GET", "Patient", client="sync").status_code == 401


def test_get_by_id_lies_after_a_delete_and_search_does_not(medplum: Medplum) -> None:
    """With the stale cache GET says 200 for a deleted resource; both searches tell the truth, before and after."""
    created = medplum.create(patient())
    path = f"Patient/{created['id']}"
    medplum.call("DELETE", path)
    assert medplum.call("GET", path).status_code == 410
    medplum.sandbox("faults", {"stale_get": True})
    stale = medplum.call("GET", path)
    assert (stale.status_code, stale.json()) == (200, created)
    assert medplum.found(f"Patient?_id={created['id']}") == []
    (deletion,) = medplum.found(f"Patient?_deleted=true&_id={created['id']}")
    assert (deletion["id"], list(deletion["meta"])) == (created["id"], ["lastUpdated"])


def test_a_stale_search_sees_what_was(medplum: Medplum) -> None:
    """Switched on, searches show the version and the existence of that moment."""
    created = medplum.create(patient("Then"))
    medplum.sandbox("faults", {"stale_search": True})
    medplum.call("PUT", f"Patient/{created['id']}", patient("Now", id=created["id"]))
    medplum.create(patient("New"))
    assert [one["name"][0]["family"] for one in medplum.found("Patient")] == ["Then"]
    medplum.sandbox("clear", {})
    assert sorted(one["name"][0]["family"] for one in medplum.found("Patient")) == ["New", "Now"]


def test_meta_is_short_unless_extended(medplum: Medplum) -> None:
    """author, project and compartment show in a search only with `X-Medplum: extended`."""
    medplum.create(patient())
    assert set(medplum.found("Patient")[0]["meta"]) == {"versionId", "lastUpdated"}
    extended = medplum.found("Patient", x_medplum="extended")[0]["meta"]
    assert {"author", "project", "compartment"} <= set(extended)


def test_many_are_read_in_one_search(medplum: Medplum) -> None:
    """`_id=a,b,c` gives the live ones, `_deleted=true` with the same ids the deleted, twenty unless asked for more."""
    ids = [medplum.create(patient(str(number)))["id"] for number in range(25)]
    medplum.call("DELETE", f"Patient/{ids[0]}")
    assert len(medplum.found(f"Patient?_id={','.join(ids)}")) == 20
    assert {one["id"] for one in medplum.found(f"Patient?_id={','.join(ids)}&_count=25")} == set(ids[1:])
    assert [one["id"] for one in medplum.found(f"Patient?_deleted=true&_id={','.join(ids)}")] == [ids[0]]


def test_if_match_is_412_when_quoted_and_ignored_when_not(medplum: Medplum) -> None:
    """Only a quoted version is compared."""
    created = medplum.create(patient())
    path, body = f"Patient/{created['id']}", patient("Roe", id=created["id"])
    assert medplum.call("PUT", path, body, if_match=f'W/"{uuid.uuid4()}"').status_code == 412
    assert medplum.call("PUT", path, body, if_match=str(uuid.uuid4())).status_code == 200
    version = medplum.call("GET", path).headers["etag"]
    assert medplum.call("PUT", path, patient("Loe", id=created["id"]), if_match=version).status_code == 200


def test_a_put_restores_a_deleted_resource_as_an_update(medplum: Medplum, receiver: Receiver) -> None:
    """PUT to a deleted id answers 200 and arrives as update; PUT to an unknown id is 404."""
    medplum.subscribe(receiver.url)
    created = medplum.create(patient())
    medplum.call("DELETE", f"Patient/{created['id']}")
    eventually(medplum.settled)
    assert medplum.call("PUT", f"Patient/{created['id']}", patient(id=created["id"])).status_code == 200
    eventually(medplum.settled)
    assert receiver.hooks[-1].interaction == "update"
    unknown = str(uuid.uuid4())
    assert medplum.call("PUT", f"Patient/{unknown}", patient(id=unknown)).status_code == 404


def test_a_patch_tests_and_fails_as_a_whole(medplum: Medplum) -> None:
    """A failed test is 400 and changes nothing, a missing array too, a deleted id 410; If-Match is ignored."""
    created = medplum.create(patient())
    path = f"Patient/{created['id']}"
    version = {"op": "test", "path": "/meta/versionId", "value": created["meta"]["versionId"]}
    wrong = version | {"value": str(uuid.uuid4())}
    replace = {"op": "replace", "path": "/name/0/family", "value": "Roe"}
    append = {"op": "add", "path": "/identifier/-", "value": {"value": "1"}}
    assert medplum.call("PATCH", path, [replace, wrong]).status_code == 400
    assert medplum.call("PATCH", path, [append]).status_code == 400
    assert medplum.found("Patient") == [created]
    array = {"op": "add", "path": "/identifier", "value": []}
    changed = medplum.call("PATCH", path, [version, replace, array, append], if_match='W/"other"')
    assert (changed.status_code, changed.json()["identifier"]) == (200, [{"value": "1"}])
    medplum.call("DELETE", path)
    assert medplum.call("PATCH", path, [replace]).status_code == 410


def test_a_patch_that_adds_an_array_takes_the_place_of_the_one_that_is_there(medplum: Medplum) -> None:
    """`add` to a member that exists replaces it, hidden from the reader or not: what appends names the array's end."""
    path = f"Patient/{medplum.create(patient(identifier=[{'value': '1'}]))['id']}"
    append = [{"op": "add", "path": "/identifier/-", "value": {"value": "2"}}]
    assert medplum.call("PATCH", path, append).json()["identifier"] == [{"value": "1"}, {"value": "2"}]
    array = [{"op": "add", "path": "/identifier", "value": [{"value": "3"}]}]
    assert medplum.call("PATCH", path, array).json()["identifier"] == [{"value": "3"}]


def test_patches_meet_conflicts_and_lose_answers_on_request(medplum: Medplum) -> None:
    """A 409 changes nothing and the next patch is made; one whose answer is lost was made all the same."""
    path = f"Patient/{medplum.create(patient())['id']}"
    patch = [{"op": "add", "path": "/identifier", "value": [{"value": "1"}]}]
    medplum.sandbox("faults", {"api": [{"status": 409, "methods": ["PATCH"], "times": 1}]})
    assert medplum.call("PATCH", path, patch).status_code == 409
    assert "identifier" not in medplum.found("Patient")[0]
    medplum.sandbox("faults", {"api": [{"status": 503, "methods": ["PATCH"], "times": 1, "after": True}]})
    assert medplum.call("PATCH", path, patch).status_code == 503
    assert medplum.found("Patient")[0]["identifier"] == [{"value": "1"}]


def test_history_survives_a_delete(medplum: Medplum) -> None:
    """`_history` lists all versions of a deleted resource, the deletion first."""
    created = medplum.create(patient())
    medplum.call("DELETE", f"Patient/{created['id']}")
    history = medplum.call("GET", f"Patient/{created['id']}/_history").json()["entry"]
    assert [entry["response"]["status"] for entry in history] == ["410", "200"]
    assert medplum.call("GET", f"Patient/{uuid.uuid4()}/_history").status_code == 404


def test_concurrent_writers_spoil_the_order_of_time(medplum: Medplum) -> None:
    """The current version can be older than a superseded one or share its millisecond; search knows the current."""
    medplum.sandbox("faults", {"concurrent_writers": True})
    created = medplum.create(patient("0"))
    path = f"Patient/{created['id']}"
    times = [created["meta"]["lastUpdated"]]
    for number in range(1, 5):
        written = medplum.call("PUT", path, patient(str(number), id=created["id"])).json()
        times.append(written["meta"]["lastUpdated"])
    assert any(later < earlier for earlier, later in pairwise(times))
    assert any(later == earlier for earlier, later in pairwise(times))
    top = medplum.call("GET", f"{path}/_history").json()["entry"][0]["resource"]
    assert top["name"][0]["family"] == "0"
    assert medplum.found(f"Patient?_id={created['id']}")[0]["name"][0]["family"] == "4"


def test_cursors_page_through_everything_once(medplum: Medplum) -> None:
    """Following `next` gives each row once, though milliseconds are shared across page borders."""
    resources = [patient(str(number)) for number in range(60)]
    for start in range(0, 60, 12):
        medplum.sandbox("bulk", {"resources": resources[start : start + 12]})
    seen: list[str] = []
    query: str | None = "Patient?_lastUpdated=ge2020-01-01T00:00:00Z&_sort=_lastUpdated&_count=20"
    while query:
        page = medplum.call("GET", query).json()
        seen += [entry["resource"]["id"] for entry in page["entry"]]
        following = [link["url"] for link in page["link"] if link["relation"] == "next"]
        query = following[0].partition("/fhir/R4/")[2] if following else None
    assert (len(seen), len(set(seen))) == (60, 60)


def test_a_full_page_of_one_millisecond_is_a_500(medplum: Medplum) -> None:
    """The cursor cannot make progress; `eq` by offset reads what lies there, up to the offset's limit."""
    instant = "2026-11-22T10:00:00.123Z"
    medplum.sandbox("bulk", {"resources": [patient(str(n)) for n in range(30)], "lastUpdated": instant})
    stuck = medplum.call("GET", f"Patient?_lastUpdated=ge{instant}&_sort=_lastUpdated&_count=20")
    assert stuck.status_code == 500
    assert "Cursor fails to make progress" in stuck.text
    by_id = f"Patient?_lastUpdated=eq{instant}&_sort=_id&_count=20"
    ids = [one["id"] for one in medplum.found(by_id) + medplum.found(f"{by_id}&_offset=20")]
    backwards = [one["id"] for one in medplum.found(by_id.replace("_sort=_id", "_sort=-_id"))]
    assert backwards == sorted(ids, reverse=True)[:20]
    assert (len(ids), ids) == (30, sorted(set(ids)))
    assert medplum.found("Patient?_lastUpdated=gt2026-11-22T11:00:00.123%2B01:00") == []
    assert medplum.call("GET", "Patient?_offset=10001").status_code == 400


def test_identifiers_are_searched_with_system_and_escapes(medplum: Medplum) -> None:
    r"""`,` and `\` in a value need a backslash in front; system and value both count."""
    value = r"a,b\c"
    created = medplum.create(patient(identifier=[{"system": "https://x.example.com", "value": value}]))
    escaped = httpx.QueryParams({"identifier": r"https://x.example.com|a\,b\\c"})
    assert [one["id"] for one in medplum.found(f"Patient?{escaped}")] == [created["id"]]
    assert medplum.found(f"Patient?{httpx.QueryParams({'identifier': 'https://x.example.com|a,b'})}") == []
    other = httpx.QueryParams({"identifier": r"https://y.example.com|a\,b\\c"})
    assert medplum.found(f"Patient?{other}") == []
    assert medplum.call("GET", "Patient?shoe-size=44").status_code == 400


def test_the_quota_is_told_and_enforced_without_retry_after(medplum: Medplum) -> None:
    """A search costs 20 units, RateLimit says what is left, and beyond it only diagnostics say how long to wait."""
    medplum.sandbox("faults", {"units_per_minute": 120})
    answer = medplum.call("GET", "Patient", client="sync")
    assert answer.headers["ratelimit"].startswith('"fhirInteractions";r=100;t=')
    medplum.call("POST", "Patient", patient(), client="sync")
    refused = medplum.call("GET", f"Patient/{uuid.uuid4()}", client="sync")
    assert (refused.status_code, "retry-after" in refused.headers) == (429, False)
    assert refused.headers["ratelimit"].startswith('"fhirInteractions";r=0;t=')
    assert json.loads(refused.json()["issue"][0]["diagnostics"])["_msBeforeNext"] <= 60_000
    entry = {"request": {"method": "GET", "url": "Patient"}}
    batch = medplum.call("POST", "", {"resourceType": "Bundle", "type": "batch", "entry": [entry]}, client="sync")
    assert (batch.status_code, batch.json()["entry"][0]["response"]["status"]) == (200, "429")


def test_a_head_that_node_would_refuse_is_refused(medplum: Medplum) -> None:
    """Four hundred ids fit into one search, five hundred are a 431."""
    ids = [str(uuid.uuid4()) for _ in range(500)]
    assert medplum.call("GET", f"Patient?_id={','.join(ids[:400])}").status_code == 200
    assert medplum.call("GET", f"Patient?_id={','.join(ids)}").status_code == 431


def test_subscriptions_are_found_by_endpoint_and_status(medplum: Medplum, receiver: Receiver) -> None:
    """An operator finds a Subscription by where it sends, and no longer as active once it is off."""
    id_ = medplum.subscribe(receiver.url + "/here")
    medplum.subscribe(receiver.url + "/there")
    query = f"Subscription?{httpx.QueryParams({'url': receiver.url + '/here', 'status': 'active'})}"
    assert [one["id"] for one in medplum.found(query)] == [id_]
    off = [{"op": "replace", "path": "/status", "value": "off"}]
    assert medplum.call("PATCH", f"Subscription/{id_}", off).status_code == 200
    assert medplum.found(query) == []


def test_subscriptions_are_found_by_a_tag_that_a_patch_gave_them(medplum: Medplum, receiver: Receiver) -> None:
    """A patch under a test of the version sets the tag; another version refuses it with 400, and nothing is changed."""
    id_ = medplum.subscribe(receiver.url + "/tagged")
    tag = {"op": "add", "path": "/meta/tag", "value": [{"system": "urn:of:tests", "code": "ours"}]}
    stale = {"op": "test", "path": "/meta/versionId", "value": str(uuid.uuid4())}
    assert medplum.call("PATCH", f"Subscription/{id_}", [stale, tag]).status_code == 400
    assert medplum.found("Subscription?_tag=urn:of:tests|ours") == []
    version = medplum.found(f"Subscription?_id={id_}")[0]["meta"]["versionId"]
    assert medplum.call("PATCH", f"Subscription/{id_}", [{**stale, "value": version}, tag]).status_code == 200
    assert [one["id"] for one in medplum.found("Subscription?_tag=urn:of:tests|ours")] == [id_]


# the control plane


def test_faults_of_the_api_end_after_their_times(medplum: Medplum) -> None:
    """A rule for one type and client rules so many requests, others are left alone."""
    rule = {"status": 503, "types": ["Patient"], "clients": ["sync"], "times": 1}
    medplum.sandbox("faults", {"api": [rule]})
    assert medplum.call("GET", "Patient", client="frontend").status_code == 200
    assert medplum.call("GET", "Condition", client="sync").status_code == 200
    assert medplum.call("GET", "Patient", client="sync").status_code == 503
    assert medplum.call("GET", "Patient", client="sync").status_code == 200
    assert medplum.http.post("/sandbox/faults", json={"no such": 1}).status_code == 400


def test_an_answer_can_be_lost_after_the_operation(medplum: Medplum) -> None:
    """With `after` the writer sees a 500 and the resource is there all the same."""
    medplum.sandbox("faults", {"api": [{"status": 500, "after": True, "methods": ["POST"]}]})
    assert medplum.call("POST", "Patient", patient()).status_code == 500
    assert len(medplum.found("Patient")) == 1


def test_a_dripping_answer_comes_byte_by_byte(medplum: Medplum) -> None:
    """No single read takes long, and yet the answer takes its length in drips."""
    medplum.token("frontend")
    medplum.sandbox("faults", {"api": [{"drip_seconds": 0.02}]})
    headers = {"Authorization": f"Bearer {medplum.token('frontend')}"}
    began = time.monotonic()
    with medplum.http.stream("GET", "/fhir/R4/Patient", headers=headers) as answer:
        chunks = answer.iter_raw()
        assert [len(next(chunks)) for _ in range(5)] == [1] * 5
        assert time.monotonic() - began >= 0.08


def test_an_access_policy_hides_resources_types_and_fields(medplum: Medplum) -> None:
    """Hidden is 404 and absent from both searches, a hidden type 403, a hidden field just not there."""
    hidden, seen = medplum.create(patient(birthDate="1970-01-01")), medplum.create(patient(birthDate="1970-01-01"))
    wanted = {
        "hidden": {"sync": [f"Patient/{hidden['id']}", "Condition"]},
        "hidden_fields": {"sync": {"Patient": ["birthDate"]}},
    }
    medplum.sandbox("faults", wanted)
    assert medplum.call("GET", f"Patient/{hidden['id']}", client="sync").status_code == 404
    (shown,) = medplum.found(f"Patient?_id={hidden['id']},{seen['id']}", client="sync")
    assert (shown["id"], "birthDate" in shown) == (seen["id"], False)
    assert medplum.call("GET", "Condition", client="sync").status_code == 403
    assert len(medplum.found("Patient")) == 2


def test_notifications_are_dropped_doubled_and_forged_on_request(medplum: Medplum, receiver: Receiver) -> None:
    """Dropped by type, sent twice, or made up for a resource that never was, wrongly signed if so asked."""
    medplum.subscribe(receiver.url)
    medplum.sandbox("faults", {"drop_types": ["Patient"]})
    medplum.create(patient("Dropped"))
    medplum.sandbox("faults", {"drop_types": [], "duplicate_rate": 1.0})
    medplum.create(patient("Doubled"))
    eventually(medplum.settled)
    assert [one.resource["name"][0]["family"] for one in receiver.hooks] == ["Doubled", "Doubled"]
    receiver.hooks.clear()
    forged = {"reference": "Patient/never-was", "interaction": "delete", "secret": "stolen"}
    assert medplum.sandbox("notify", forged) == {"queued": 1}
    (hook,) = eventually(lambda: receiver.hooks)
    assert hook.header("X-Medplum-Deleted-Resource") == "Patient/never-was"
    assert hook.header("X-Signature") == hmac.new(b"stolen", b"{}", hashlib.sha256).hexdigest()


def test_the_truth_lists_every_current_resource(medplum: Medplum) -> None:
    """One line for each, deleted ones marked; a bulk write names its author and versions."""
    made = medplum.sandbox("bulk", {"resources": [patient("A"), patient("B")], "author": "Practitioner/who"})
    gone = made["versions"][0]["reference"]
    medplum.sandbox("bulk", {"deletes": [gone]})
    lines = [json.loads(line) for line in medplum.http.get("/sandbox/resources?type=Patient").text.splitlines()]
    assert {line["reference"]: line["deleted"] for line in lines} == {
        gone: True,
        made["versions"][1]["reference"]: False,
    }
    live = next(line for line in lines if not line["deleted"])
    assert live["resource"]["meta"]["author"] == {"reference": "Practitioner/who"}
    assert live["versionId"] == made["versions"][1]["versionId"]


# the process


def test_a_restart_keeps_resources_tokens_and_pending_deliveries(tmp_path: Path, receiver: Receiver) -> None:
    """Killed with a delivery under way, it delivers that again afterwards, to the same port with the same token."""
    receiver.gate.clear()
    medplum = Medplum(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(medplum.stop)
        medplum.subscribe(receiver.url)
        created = medplum.create(patient())
        eventually(lambda: receiver.waiting == 1)
        assert medplum.stop(signal.SIGKILL) == -signal.SIGKILL
        receiver.gate.set()
        medplum.start()
        assert medplum.found("Patient") == [created]
        eventually(lambda: len(receiver.hooks) == 2)
        assert receiver.hooks[0].headers == receiver.hooks[1].headers
        assert receiver.hooks[0].body == receiver.hooks[1].body


def test_sigterm_ends_it_at_once_with_code_0(tmp_path: Path) -> None:
    """Even while a request is being delayed; the ready file is for its owner's eyes alone."""
    medplum = Medplum(tmp_path)
    assert os.stat(tmp_path / "ready").st_mode & 0o777 == 0o600
    medplum.sandbox("faults", {"api": [{"delay_seconds": 60, "path": "/auth/me"}]})
    with httpx.Client(base_url=medplum.base, trust_env=False) as other:
        failed = threading.Event()

        def ask() -> None:
            with contextlib.suppress(httpx.TransportError):
                other.get("/auth/me", timeout=30)
            failed.set()

        threading.Thread(target=ask, daemon=True).start()
        began = time.monotonic()
        assert medplum.stop() == 0
        assert time.monotonic() - began < 2
        assert failed.wait(DEADLINE_SECONDS)
