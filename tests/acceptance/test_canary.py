"""No value of a record leaves the ledger, the legacy system and Medplum: driven through each failure, and looked for.

What is looked at is what an operator, a log collector, a thief of the disk and a passer-by at Flower would see.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import psutil
import pytest

from tests.acceptance import canary
from tests.acceptance.canary import NPI, WORD, condition, found, patient, practitioner
from tests.acceptance.system import SECRET, TOKEN, System

pytestmark = [pytest.mark.processes, pytest.mark.timeout(150)]

Json = dict[str, Any]

DOCTOR = "Practitioner/canary-doctor"
ECHO = {"error": {"code": "invalid", "message": f"{WORD} of {NPI}", "fields": {"last_name": f"{WORD} {canary.PHONE}"}}}
EVERY_ROW = {
    "draw": 1,
    "start": 0,
    "length": 10_000,
    "search[value]": "",
    "order[0][column]": 0,
    "order[0][dir]": "asc",
}
EVERY_ROW |= {"columns[0][data]": "name"}
ELSEWHERE = {"medplum.db", "clinic.db", "practice.db"}  # the two systems' own files, which hold what they hold


@dataclass(frozen=True, slots=True)
class Case:
    """A resource on its way into one failure: what the clinic does to it, and where it stands then."""

    failure: str
    resource: Json
    ends: tuple[str, str | None]  # the mirror's state, and the reason
    rules: tuple[Json, ...] = ()

    @property
    def reference(self) -> str:
        return f"{self.resource['resourceType']}/{self.resource['id']}"


def cases() -> Iterator[Case]:
    """List a way into each failure of a mapping and of a legacy call."""
    yield Case("validation", a_patient("validation") | {"gender": [canary.word("gender")]}, ("failed", "invalid"))
    yield Case("mapping-raised", a_patient("mapping-raised") | {"active": False}, ("failed", "unmappable"))
    yield Case("unknown-code", with_marital_code(a_patient("unknown-code")), ("failed", "unmappable"))
    yield Case("echoed-422", with_zip(a_patient("echoed-422")), ("failed", "refused"))
    text = {"kind": "status", "status": 400, "body": f"<p>{WORD}: cannot read {NPI}</p>"}
    yield refusal("text-400", ("failed", "refused"), text)
    yield refusal("ok-with-error", ("failed", "refused"), {"kind": "status", "status": 200, "body": ECHO})
    yield refusal("conflict", ("held", "conflict"), {"kind": "status", "status": 409, "body": ECHO})
    yield refusal("timeout", ("current", None), {"kind": "hang", "times": 1})
    yield refusal("server-error", ("current", None), {"kind": "status", "status": 500, "body": ECHO, "times": 1})
    lost = {"match": {"method": "POST", "fields": {"external_ref": "canary-lost"}}, "kind": "reset_after", "times": 1}
    find = {"match": {"method": "GET", "template": "/api/providers"}, "kind": "status", "status": 400, "body": ECHO}
    rules = (lost, find | {"times": 2})
    yield Case("find-with-a-query", practitioner("canary-lost", NPI[::-1]), ("current", None), rules)
    yield Case("same-npi", practitioner("canary-twin"), ("held", "exists"))
    problem = condition("canary-problem", "Patient/canary-applied")
    problem["code"]["coding"][0]["code"] = canary.word("icd")
    yield Case("problem-refused", problem, ("failed", "refused"))


def a_patient(name: str) -> Json:
    return patient(f"canary-{name}", DOCTOR)


def refusal(name: str, ends: tuple[str, str | None], rule: Json) -> Case:
    """Make a case of which the clinic does something to the create."""
    made = a_patient(name)
    match = {"method": "POST", "fields": {"external_id": made["id"]}}
    return Case(name, made, ends, (rule | {"match": match},))


def with_zip(made: Json) -> Json:
    made["address"][0]["postalCode"] = canary.word("zip")
    return made


def with_marital_code(made: Json) -> Json:
    made["maritalStatus"]["coding"][0]["code"] = canary.word("code")
    return made


def test_no_value_of_a_record_stands_anywhere_outside(troubled: System) -> None:
    """A canary in every string, each failure, then: logs, Flower, console, metrics, broker, AOF, ledger, CLI, ps."""
    told: list[tuple[str, bytes]] = []
    applied(troubled)
    fails(troubled)
    someone_elses_record(troubled)
    told += refused_notifications(troubled)
    told += ledger_refuses(troubled)
    medplum_refuses(troubled)
    told += outside(troubled)
    assert found(told) == []
    assert_it_was_there(troubled, told)


def applied(system: System) -> None:
    """One of each type goes all the way."""
    system.medplum.write([practitioner("canary-doctor"), a_patient("applied"), a_patient("edited")])
    system.medplum.write([condition("canary-applied", "Patient/canary-applied")])
    system.settle(40)
    assert system.ledger.failed() == []


def fails(system: System) -> None:
    """Each case ends where it has to."""
    every = list(cases())
    for case in every:
        if case.rules:
            system.clinic.misbehave(*case.rules)
    system.medplum.write([case.resource for case in every])
    ends = {case.reference: case.ends for case in every}
    system.wait_until(
        lambda: {name: stands(system, name) for name in ends} == ends,
        "each case has ended as it has to",
        60,
        told=lambda: {name: stands(system, name) for name, end in ends.items() if stands(system, name) != end},
    )
    system.clinic.behave()


def stands(system: System, reference: str) -> tuple[str | None, str | None]:
    mirror = system.mirror(reference)
    return mirror.get("state"), mirror.get("reason")


def someone_elses_record(system: System) -> None:
    """The record under our key says that it is another's."""
    numbers = [link["keys"]["number"] for link in system.ledger.links_of("Patient")
               if link["reference"] == "Patient/canary-edited"]  # fmt: skip
    system.clinic.edit(f"patient/{numbers[0]}", external_id=canary.word("external"), last_name=canary.word("other"))
    system.medplum.write([a_patient("edited") | {"gender": "male"}])
    system.wait_until(lambda: stands(system, "Patient/canary-edited") == ("held", "identity"), "it is held", 30)


def refused_notifications(system: System) -> Iterator[tuple[str, bytes]]:
    """Send what the receiver refuses, signed and not; yield its answers."""
    whole = json.dumps(a_patient("applied")).encode()
    bodies = {
        "cut off": whole[:-20],
        "doubled": b'{"name": "' + WORD.encode() + b'",' + whole[1:],
        "no version": whole,
        "a bad id": json.dumps({"resourceType": "Patient", "id": f"{WORD} {NPI}", "meta": {"versionId": "1"}}).encode(),
        "not utf-8": b'"' + WORD.encode() + b'\xff"',
        "not a number": b'{"' + WORD.encode() + b'": NaN}',
        "a list": json.dumps([WORD, NPI]).encode(),
    }
    deleted = {"X-Medplum-Interaction": "delete", "X-Medplum-Deleted-Resource": f"Patient/{WORD} {NPI}"}
    with httpx.Client(base_url=system.urls["web"], timeout=20, trust_env=False) as client:
        for name, body in bodies.items():
            yield answered(client.post("/medplum", content=body, headers=signed(body)), name, 400)
        yield answered(client.post("/medplum", content=b"{}", headers=signed(b"{}") | deleted), "a bad delete", 400)
        unsigned = signed(whole) | {"X-Signature": "0" * 64}
        yield answered(client.post("/medplum", content=whole, headers=unsigned), "unsigned", 401)
        yield answered(client.post(f"/{WORD}?npi={NPI}", content=whole), "elsewhere", 404)


def signed(body: bytes) -> dict[str, str]:
    return {"Authorization": TOKEN, "X-Signature": hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()}


def answered(answer: httpx.Response, name: str, status: int) -> tuple[str, bytes]:
    assert answer.status_code == status, (name, answer.status_code)
    return f"the receiver's answer to {name}", bytes(repr(answer.headers), "utf-8") + answer.content


def ledger_refuses(system: System) -> Iterator[tuple[str, bytes]]:
    """Have the database refuse rows, to the receiver and to the workers; yield what an operator is told meanwhile."""
    with refusing_rows(system, "changes"):
        system.medplum.write([a_patient("unwritable")])
        system.wait_until(lambda: '"status": 503' in system.processes.said("web"), "the receiver says 503", 20)
        yield from pages(system.urls["console"], "/", "/readyz", "/metrics")
    system.wait_until(lambda: stands(system, "Patient/canary-unwritable")[0] == "current", "it comes again", 40)
    with refusing_rows(system, "writes"):
        system.medplum.write([a_patient("unannounced")])
        system.wait_until(
            lambda: any("LedgerUnavailable" in system.processes.said(name) for name in ("worker", "worker2")),
            "a worker cannot announce",
            20,
        )
        yield from operator_sees(system, ("show", "Patient/canary-unannounced"))


@contextmanager
def refusing_rows(system: System, table: str) -> Iterator[None]:
    """Let every insert into a table fail, as on a full disk."""
    with closing(sqlite3.connect(system.folder / "ledger.db", isolation_level=None, timeout=20)) as connection:
        refusal = "SELECT RAISE(ABORT, 'the disk is full')"
        connection.execute(f"CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN {refusal}; END")
        try:
            yield
        finally:
            connection.execute("DROP TRIGGER full")


def medplum_refuses(system: System) -> None:
    """Have Medplum answer a read with 400."""
    rule = {"status": 400, "types": ["Patient"], "clients": ["sync"], "headers": {"X-Echo": f"{WORD} {NPI}"}}
    system.steer_medplum("faults", api=[rule])
    system.medplum.write([a_patient("unreadable")])
    refused = ("due", "medplum refused")
    system.wait_until(lambda: stands(system, "Patient/canary-unreadable") == refused, "Medplum refuses", 30)
    system.steer_medplum("clear")


def outside(system: System) -> Iterator[tuple[str, bytes]]:
    """Yield everything that can be seen from outside: what is said, shown, queued, stored and running."""
    yield from files(system)
    yield from pages(system.urls["console"], "/", "/readyz", "/metrics")
    yield from flower(system)
    yield from broker(system)
    shown = [("show", f"Patient/canary-{name}") for name in ("mapping-raised", "timeout", "edited")]
    yield from operator_sees(system, ("status",), ("failed",), ("failed", "--json"), ("check",), *shown)
    for pid in system.processes.pids():
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            yield f"ps {pid}", " ".join(process.cmdline()).encode()


def files(system: System) -> Iterator[tuple[str, bytes]]:
    """Yield what is on the disk: logs, the broker's files, the ledger with its WAL."""
    for path in sorted(system.folder.rglob("*")):
        if path.is_file() and path.name.partition("-")[0] not in ELSEWHERE:
            yield str(path.relative_to(system.folder)), path.read_bytes()


def flower(system: System) -> Iterator[tuple[str, bytes]]:
    """Yield Flower's pages, the data that they load, and its API."""
    url = system.urls["flower"]
    tasks = httpx.get(f"{url}/api/tasks?limit=10000", timeout=20, trust_env=False).json()
    yield from pages(url, "/", "/workers", "/tasks", "/broker", "/metrics", "/api/workers", "/api/tasks?limit=10000")
    yield from pages(url, f"/tasks/datatable?{urlencode(EVERY_ROW)}")
    yield from pages(url, *(f"{page}/{task}" for task in tasks for page in ("/task", "/api/task/info")))


def broker(system: System) -> Iterator[tuple[str, bytes]]:
    """Yield every key of the broker and what it holds."""
    read: dict[bytes, Callable[[Any, bytes], object]] = {
        b"string": lambda client, key: client.get(key),
        b"list": lambda client, key: client.lrange(key, 0, -1),
        b"hash": lambda client, key: client.hgetall(key),
        b"set": lambda client, key: client.smembers(key),
        b"zset": lambda client, key: client.zrange(key, 0, -1),
    }
    with system.broker() as client:
        for key in client.scan_iter(count=1000):
            yield f"broker {key!r}", key + repr(read[client.type(key)](client, key)).encode()


def operator_sees(system: System, *commands: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Yield what the command line tells."""
    for command in commands:
        yield f"reverse-sync {' '.join(command)}", system.cli(*command).encode()


def pages(url: str, *paths: str) -> Iterator[tuple[str, bytes]]:
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
        for path in paths:
            yield f"GET {url}{path}", client.get(path).content


def assert_it_was_there(system: System, told: list[tuple[str, bytes]]) -> None:
    """The canaries were sent and stored, what was looked at is what it is called, and a leak would have been found."""
    sent = system.ledger.last_sent("Patient/canary-applied", "")
    assert sent is not None
    assert sent["last_name"] == canary.word("family")
    finds = [line for line in system.clinic.journal() if line["fault"] == "status" and line["method"] == "GET"]
    assert any(NPI in json.dumps(line["query"]) or NPI[::-1] in json.dumps(line["query"]) for line in finds)
    seen = dict(told)
    assert {"ledger.db", "ledger.db-wal", "log/web.log", "log/worker.log", "log/flower.log"} <= seen.keys()
    assert any(name.endswith(".aof") and b"canary-applied" in content for name, content in told)
    for begin in ("GET http", "broker ", "reverse-sync ", "ps "):
        assert any(name.startswith(begin) and content for name, content in told), begin
    flowers = [content for name, content in told if name.startswith(f"GET {system.urls['flower']}/task/")]
    assert any(b"canary-mapping-raised" in page and b"FAILURE" in page for page in flowers)
    (system.folder / "log" / "leak.log").write_text(f"given: {canary.word('given')}\n")
    assert [hit.partition(":")[0] for hit in found(files(system))] == ["log/leak.log"]
    (system.folder / "log" / "leak.log").unlink()


@pytest.mark.parametrize("form", ["plain", "quoted", "utf-16", "base64", "hexadecimal"])
@pytest.mark.parametrize("needle", canary.NEEDLES)
@pytest.mark.parametrize("before", [b"", b"x", b"xy"])
def test_the_search_finds_a_value_that_leaked(form: str, needle: str, before: bytes, tmp_path: Path) -> None:
    """A value in a log line is found as it is, and in each form that it is likely to take."""
    value = before + needle.encode()
    leaks = {
        "plain": value.upper(),
        "quoted": json.dumps({"name": value.decode()}).encode(),
        "utf-16": value.decode().encode("utf-16-le"),
        "base64": base64.b64encode(value + b"after"),
        "hexadecimal": value.hex().encode(),
    }
    log = tmp_path / "worker.log"
    log.write_bytes(b'{"event": "' + leaks[form] + b'"}\n')
    assert found([("innocent", b'{"event": "started"}'), (log.name, log.read_bytes())]) != []
