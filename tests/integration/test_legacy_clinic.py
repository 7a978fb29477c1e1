"""The declarations of the example clinic against the real clinic process: requests, outcomes, find and read."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from worker.errors import LegacyUnavailable
from worker.ledger.values import Key, Operation
from worker.legacy import Answered, ApiKey, Collection, Outcome
from worker.mapping import Context, Mapped, Routes, apply, load_routes
from worker.mapping.pairs import MEDPLUM
from worker.medplum.resource import model

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "fixtures" / "mappings"
KEY = "clinic-key"


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a clinic with an empty database; its address, without `/api`."""
    home = tmp_path_factory.mktemp("clinic")
    ready = home / "clinic.url"
    command = [sys.executable, "-m", "deploy.sandbox.clinic", "--port", "0", "--api-key", KEY]
    process = subprocess.Popen([*command, "--db", str(home / "clinic.db"), "--ready-file", str(ready)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 20
        while not (ready.exists() and ready.read_text().strip()):
            assert time.monotonic() < deadline, "the clinic never became ready"
            assert process.poll() is None, "the clinic ended"
            time.sleep(0.02)
        yield ready.read_text().strip()
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
def sandbox(clinic: str) -> Iterator[httpx.Client]:
    """The clinic's control plane, everything forgotten before."""
    with httpx.Client(base_url=clinic, trust_env=False) as client:
        assert client.post("/sandbox/reset", json={}).is_success
        yield client


@pytest.fixture
def routes(clinic: str, sandbox: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Routes]:
    """The example's routes, loaded anew for this clinic."""
    monkeypatch.setenv("REVERSE_SYNC_SITE_CLINIC_URL", f"{clinic}/api")
    monkeypatch.setenv("REVERSE_SYNC_SITE_CLINIC_KEY", KEY)
    for name in [name for name in sys.modules if name.partition(".")[2].startswith("mappings")]:
        monkeypatch.delitem(sys.modules, name)
    loaded = load_routes("worker.mappings")
    yield loaded
    loaded["Patient"].to.api.close()


@pytest.fixture
def fault(sandbox: httpx.Client) -> Callable[..., None]:
    """Add a fault rule to the clinic."""

    def add(kind: str, *, match: Mapping[str, object] | None = None, **rule: object) -> None:
        answer = sandbox.post("/sandbox/faults", json={"match": match or {}, "kind": kind, **rule})
        assert answer.is_success, answer.text

    return add


def recorded(routes: Routes, kind: str, case: str) -> Any:
    """Map a resource of the fixture pairs to its one record."""
    resource = model((RECORDED / kind / f"{case}.fhir.json").read_bytes())
    route = routes[str(resource.get_resource_type())]
    mapped = apply(route, resource, Context.of(resource, zone=route.to.api.zoneinfo, medplum=MEDPLUM))
    assert isinstance(mapped, Mapped)
    return mapped.records[0]


def write(
    collection: Collection,
    operation: Operation,
    fields: Mapping[str, object] = {},
    keys: Mapping[str, Key] = {},
    parents: Mapping[str, Mapping[str, Key]] = {},
    deadline_s: float = 10,
) -> Answered:
    """Send one write."""
    return collection.api.send(collection.request(operation, fields, keys, parents), deadline_s=deadline_s)


def created(collection: Collection, fields: Mapping[str, object], **parents: Mapping[str, Key]) -> dict[str, Key]:
    """Create a record; its keys."""
    answered = write(collection, Operation.CREATE, fields, parents=parents)
    assert answered.outcome is Outcome.DONE, answered.detail
    assert answered.keys is not None
    return answered.keys


JANE = {"last_name": "Doe", "first_name": "Jane", "birth_date": "02/28/1985", "sex": "F", "external_id": "p1"}
GOUT = {"title": "Gout", "icd10": None, "onset": "01/01/2019", "ended": None, "status": "active"}


def test_the_recorded_resources_arrive_with_their_links(routes: Routes) -> None:
    """The recorded Practitioner, Patient and Condition become records that hold exactly what was sent."""
    keys: dict[str, dict[str, Key]] = {}
    for kind, case, name in (
        ("practitioner", "recorded-009", "Practitioner/c5c77358-d5fa-4615-b96c-86e2fa7242c7"),
        ("patient", "recorded-001", "Patient/292d4ff1-4205-4e7c-8bb1-c74831efefe8"),
        ("condition", "recorded-016", "Condition/1a189aad-b12e-46d5-8d1b-2c56931efcd6"),
    ):
        record = recorded(routes, kind, case)
        fields, parents = record.resolve(keys), record.resolve_parents(keys)
        keys[name] = created(record.collection, fields, **parents)
        held = record.collection.read(keys[name], parents, deadline_s=10)
        assert held is not None
        assert record.collection.differing(fields, held) == ()
    assert set(keys["Patient/292d4ff1-4205-4e7c-8bb1-c74831efefe8"]) == {"number", "uuid"}
    assert isinstance(keys["Practitioner/c5c77358-d5fa-4615-b96c-86e2fa7242c7"]["id"], int)


def test_an_update_clears_each_field_in_its_own_way(routes: Routes) -> None:
    """What Medplum no longer says is gone afterwards: null for most columns, "" for the one that is deaf to null."""
    patients = routes["Patient"].to
    keys = created(patients, {**JANE, "email": "jane@example.com", "marital": "MAR"})
    answered = write(patients, Operation.UPDATE, {**JANE, "email": None, "marital": None}, keys)
    assert answered.outcome is Outcome.DONE, answered.detail
    held = patients.read(keys, {}, deadline_s=10)
    assert held is not None
    assert held["email"] is None
    assert held["marital"] is None


def test_what_is_not_ours_stays(routes: Routes, sandbox: httpx.Client) -> None:
    """A column that the mapping does not return keeps what somebody wrote in the clinic."""
    patients = routes["Patient"].to
    keys = created(patients, JANE)
    edit = {"record": f"patient/{keys['number']}", "fields": {"zip": "62701"}}
    assert sandbox.post("/sandbox/edit", json=edit).is_success
    write(patients, Operation.UPDATE, {**JANE, "first_name": "Janet"}, keys)
    held = patients.read(keys, {}, deadline_s=10)
    assert held is not None
    assert (held["first_name"], held["zip"]) == ("Janet", "62701")


def test_a_deleted_record_is_gone_the_second_time(routes: Routes) -> None:
    """Deleting again is 404 for a patient, 400 for a problem and 204 for a provider: none of them is a failure."""
    patients, problems, providers = (routes[name].to for name in ("Patient", "Condition", "Practitioner"))
    patient = created(patients, JANE)
    gout = created(problems, GOUT, patient=patient)
    provider = created(providers, {"last_name": "Okafor", "first_name": "Ngozi", "external_ref": "d1"})
    under = {"patient": patient}
    twice = [write(problems, Operation.DELETE, keys=gout, parents=under).outcome for _ in range(2)]
    assert twice == [Outcome.DONE, Outcome.GONE]
    assert [write(providers, Operation.DELETE, keys=provider).outcome for _ in range(2)] == [Outcome.DONE, Outcome.DONE]
    assert problems.read(gout, {"patient": patient}, deadline_s=10) is None
    assert [write(patients, Operation.DELETE, keys=patient).outcome for _ in range(2)] == [Outcome.DONE, Outcome.GONE]


def test_an_update_of_a_record_that_never_was_is_gone(routes: Routes) -> None:
    """404 on an update says that the record is missing, and 409 that somebody closed it."""
    patients = routes["Patient"].to
    keys = created(patients, JANE)
    assert write(patients, Operation.UPDATE, JANE, {"uuid": "no-such"}).outcome is Outcome.GONE
    write(patients, Operation.DELETE, keys=keys)
    assert write(patients, Operation.UPDATE, JANE, keys).outcome is Outcome.CONFLICT


def test_a_refusal_names_the_field_and_no_value(routes: Routes) -> None:
    """Outside go status, code, template and field; the clinic's words are for sealing, without what we sent."""
    answered = write(routes["Patient"].to, Operation.CREATE, {**JANE, "marital": "WID", "zip": "6270"})
    assert answered.outcome is Outcome.REFUSED
    assert answered.detail == "POST /patients answered 422 invalid (marital, zip)"
    assert answered.words is not None
    assert b"error.message: " in answered.words
    assert b"for [sent], [sent]" in answered.words
    assert b"Doe" not in answered.words
    assert b"WID" not in answered.words


def test_a_known_npi_exists_on_create_and_refuses_on_update(routes: Routes) -> None:
    """A duplicate provider is looked for, and is found only if it is the same resource's."""
    providers = routes["Practitioner"].to
    okafor = {"last_name": "Okafor", "first_name": "Ngozi", "npi": "9999999991", "external_ref": "d1"}
    other = {"last_name": "Adeyemi", "first_name": "Tunde", "npi": "9999999983", "external_ref": "d2"}
    created(providers, okafor)
    keys = created(providers, other)
    twin = write(providers, Operation.CREATE, {**okafor, "external_ref": "d3"})
    assert twin.outcome is Outcome.EXISTS
    assert "Okafor" not in twin.detail
    assert providers.find({**okafor, "external_ref": "d3"}, {}, deadline_s=10) == []
    assert write(providers, Operation.UPDATE, {**other, "npi": "9999999991"}, keys).outcome is Outcome.REFUSED


def test_a_wrong_key_is_not_done(routes: Routes, clinic: str) -> None:
    """401 certainly did nothing."""
    api = replace(routes["Patient"].to.api, auth=ApiKey("X-Api-Key", SecretStr("wrong")))
    patients = replace(routes["Patient"].to, api=api)
    answered = write(patients, Operation.CREATE, JANE)
    api.close()
    assert (answered.outcome, answered.detail) == (Outcome.NOT_DONE, "POST /patients answered 401 unauthorized")


def test_find_reads_every_page_and_checks_each_hit(routes: Routes) -> None:
    """A provider without npi cannot be asked for, everything comes back, and the one on the last page is found."""
    providers = routes["Practitioner"].to
    for number in range(60):
        created(providers, {"last_name": "Okafor", "first_name": f"N{number}", "external_ref": f"d{number}"})
    wanted = {"last_name": "Okafor", "first_name": "N59", "npi": None, "external_ref": "d59"}
    (hit,) = providers.find(wanted, {}, deadline_s=20)
    assert hit.differs == ()
    assert hit.record["first_name"] == "N59"
    assert providers.find({**wanted, "external_ref": "d60"}, {}, deadline_s=20) == []


def test_find_names_what_differs_and_shows_twins(routes: Routes, sandbox: httpx.Client) -> None:
    """A hit that was edited says in which fields; two records of one resource are two hits."""
    patients = routes["Patient"].to
    fields = {**JANE, "zip": None, "provider_id": None}
    first = created(patients, fields)
    (hit,) = patients.find(fields, {}, deadline_s=10)
    assert (hit.keys, hit.differs) == (first, ())
    edit = {"record": f"patient/{first['number']}", "fields": {"zip": "62701", "last_name": "Roe"}}
    assert sandbox.post("/sandbox/edit", json=edit).is_success
    (hit,) = patients.find(fields, {}, deadline_s=10)
    assert sorted(hit.differs) == ["last_name", "zip"]
    second = created(patients, fields)
    assert [found.keys for found in patients.find(fields, {}, deadline_s=10)] == [first, second]


def test_find_looks_under_the_parent(routes: Routes) -> None:
    """A problem is looked for in its own patient's list, by title, code and onset together."""
    patients, problems = routes["Patient"].to, routes["Condition"].to
    jane, john = created(patients, JANE), created(patients, {**JANE, "external_id": "p2"})
    gout = created(problems, GOUT, patient=jane)
    created(problems, {**GOUT, "onset": "01/02/2019"}, patient=jane)
    created(problems, GOUT, patient=john)
    assert [hit.keys for hit in problems.find(GOUT, {"patient": jane}, deadline_s=10)] == [gout]


@pytest.mark.parametrize(
    ("kind", "rule", "outcome", "saved"),
    [
        ("status", {"status": 500}, Outcome.UNKNOWN, False),
        ("status", {"status": 500, "saves": True}, Outcome.UNKNOWN, True),
        ("status", {"status": 502, "body": "<html>"}, Outcome.UNKNOWN, False),
        ("status", {"status": 504}, Outcome.UNKNOWN, False),
        ("status", {"status": 503}, Outcome.NOT_DONE, False),
        ("status", {"status": 429}, Outcome.NOT_DONE, False),
        ("status", {"status": 408}, Outcome.NOT_DONE, False),
        ("status", {"status": 425}, Outcome.NOT_DONE, False),
        ("status", {"status": 403}, Outcome.REFUSED, False),
        ("status", {"status": 412}, Outcome.CONFLICT, False),
        ("status", {"status": 302, "headers": {"Location": "/elsewhere"}}, Outcome.UNKNOWN, False),
        ("status", {"status": 201, "body": {"data": {}}, "saves": True}, Outcome.UNKNOWN, True),
        ("status", {"status": 201, "body": "<html>welcome</html>"}, Outcome.UNKNOWN, False),
        ("status", {"status": 204, "body": ""}, Outcome.UNKNOWN, False),
        ("refuse", {}, Outcome.UNKNOWN, False),
        ("reset_before", {}, Outcome.UNKNOWN, False),
        ("reset_after", {}, Outcome.UNKNOWN, True),
        ("hang", {}, Outcome.UNKNOWN, False),
        ("drip", {"part": "head"}, Outcome.UNKNOWN, True),
        ("drip", {"part": "body"}, Outcome.UNKNOWN, True),
        ("1xx", {}, Outcome.UNKNOWN, False),
    ],
)
def test_what_a_create_meets(
    routes: Routes, fault: Callable[..., None], kind: str, rule: Mapping[str, object], outcome: Outcome, saved: bool
) -> None:
    """Each trouble of a create is what the table of outcomes says, and afterwards find tells whether it landed."""
    patients = routes["Patient"].to
    fault(kind, match={"method": "POST"}, times=1, **rule)
    began = time.monotonic()
    answered = write(patients, Operation.CREATE, JANE, deadline_s=1.5)
    assert time.monotonic() - began < 4
    assert answered.outcome is outcome, answered.detail
    assert "Doe" not in answered.detail
    hits = patients.find(JANE, {}, deadline_s=10)
    assert [hit.differs for hit in hits] == ([()] if saved else [])


@pytest.mark.parametrize("header", ["7", "Thu, 01 Jan 2099 00:00:00 GMT"])
def test_retry_after_is_read_in_both_forms(routes: Routes, fault: Callable[..., None], header: str) -> None:
    """Seconds and an HTTP date both become seconds from now, a far date at most a day."""
    fault("status", status=503, headers={"Retry-After": header}, times=1)
    answered = write(routes["Patient"].to, Operation.CREATE, JANE)
    assert answered.retry_after_s == {"7": 7.0}.get(header, 24 * 3600.0)


def test_an_empty_success_of_an_update_is_not_believed(routes: Routes, fault: Callable[..., None]) -> None:
    """A 200 without a word, and one with a proxy's page, do not say that the update was done."""
    patients = routes["Patient"].to
    keys = created(patients, JANE)
    fault("status", match={"method": "PUT"}, status=200, body="", times=1)
    fault("status", match={"method": "PUT"}, status=200, body="<html>", times=1)
    for _ in range(2):
        assert write(patients, Operation.UPDATE, JANE, keys).outcome is Outcome.UNKNOWN
    assert write(patients, Operation.UPDATE, JANE, keys).outcome is Outcome.DONE


@pytest.mark.parametrize("operation", [Operation.CREATE, Operation.UPDATE])
def test_a_success_with_an_error_in_it_is_a_refusal(
    routes: Routes, fault: Callable[..., None], operation: Operation
) -> None:
    """200 with the API's words for an error is a no, not a yes and not a riddle; its words stay out of the detail."""
    patients = routes["Patient"].to
    keys = created(patients, {"last_name": "Doe", "sex": "F"})
    said = {"error": {"code": "invalid", "message": "Doe, Jane is on hold"}}
    method, own = ("POST", {}) if operation is Operation.CREATE else ("PUT", keys)
    fault("status", match={"method": method}, status=200, body=said, times=1)
    answered = write(patients, operation, {"last_name": "Doe", "sex": "F"}, own)
    assert answered.outcome is Outcome.REFUSED
    assert "invalid" in answered.detail
    assert "Jane" not in answered.detail


def test_find_and_read_do_not_take_trouble_for_an_answer(routes: Routes, fault: Callable[..., None]) -> None:
    """A failed look is no "there is none": else a second record would be made."""
    patients = routes["Patient"].to
    keys = created(patients, JANE)
    for rule in (
        {"status": 500},
        {"status": 404},
        {"status": 200, "body": {"data": None}},
        {"status": 200, "body": ""},
    ):
        fault("status", match={"method": "GET"}, times=1, **rule)
        with pytest.raises(LegacyUnavailable):
            patients.find(JANE, {}, deadline_s=10)
    for rule in ({"status": 500}, {"status": 200, "body": {"data": None}}):
        fault("status", match={"method": "GET"}, times=1, **rule)
        with pytest.raises(LegacyUnavailable):
            patients.read(keys, {}, deadline_s=10)


def test_a_second_page_that_fails_fails_the_find(routes: Routes, fault: Callable[..., None]) -> None:
    """Half of a list is no list."""
    providers = routes["Practitioner"].to
    for number in range(51):
        created(providers, {"last_name": "Okafor", "first_name": "N", "external_ref": f"d{number}"})
    fault("status", match={"method": "GET"}, skip=1, times=1, status=500)
    with pytest.raises(LegacyUnavailable):
        providers.find({"external_ref": "d50"}, {}, deadline_s=10)


def test_nobody_listening_is_not_done(routes: Routes) -> None:
    """A refused connection certainly did nothing."""
    api = replace(routes["Patient"].to.api, base_url="http://127.0.0.1:9/api")
    answered = write(replace(routes["Patient"].to, api=api), Operation.CREATE, JANE)
    api.close()
    assert answered.outcome is Outcome.NOT_DONE


def test_keys_stay_one_segment_of_the_path(routes: Routes, sandbox: httpx.Client) -> None:
    """A key with a question mark, a hash or a percent sign arrives as one key, and finds nothing."""
    patients = routes["Patient"].to
    for key in ("a?b=c", "a%2Fb", "a#b", "a b", "ä"):
        assert write(patients, Operation.UPDATE, JANE, {"uuid": key}).outcome is Outcome.GONE
    lines = [json.loads(line) for line in sandbox.get("/sandbox/journal?since=0").text.splitlines()]
    assert {line["template"] for line in lines} == {"/api/patients/{uuid}"}


def test_the_probe_asks_without_writing(routes: Routes, sandbox: httpx.Client) -> None:
    """`check --legacy` learns from the probe that address and key are right."""
    answered = routes["Patient"].to.api.ping()
    assert answered is not None
    assert answered.outcome is Outcome.DONE
    assert sandbox.get("/sandbox/history?since=0").text == ""
