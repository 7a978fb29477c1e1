"""Writes of which nobody knows the end, against both legacy APIs: no second record, no wrong link."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from tests.acceptance import canary
from tests.acceptance.canary import word
from tests.acceptance.legacies import CLINIC, PRACTICE, Legacy
from tests.acceptance.system import System, started
from tests.acceptance.test_canary import files

pytestmark = [pytest.mark.processes, pytest.mark.timeout(150)]

Json = dict[str, Any]

SETTLED_WITHIN_S = 60.0
DOCTOR, JANE = "Practitioner/doctor", "Patient/jane"
GOUT, ASTHMA, OLD = word("gout"), word("asthma"), word("old")
NEEDS_A_PERSON = ["Condition/asthma", "Patient/refused"]


@dataclass(frozen=True, slots=True)
class Side:
    """What one of the two APIs calls things, and how somebody enters a record there by hand."""

    legacy: Legacy
    entry: str  # a patient's diagnosis
    title: str  # the field that says which
    replaced: str  # the kind of record that is never changed
    says: str  # its field that says what is new
    removal: Json  # the request that takes such a one away
    changing: Callable[[str, str], Json]  # the resource behind it, by its name and by what is new
    by_hand: Callable[[str, Mapping[str, Any], str], None]  # base URL, the patient's keys, a diagnosis


def prescription(name: str, news: str) -> Json:
    return {
        "resourceType": "MedicationRequest",
        "id": name,
        "status": "active",
        "intent": "order",
        "medicationCodeableConcept": {"text": word(f"drug of {name}")},
        "subject": {"reference": JANE},
        "authoredOn": "2026-11-01",
        "dosageInstruction": [{"text": news}],
    }


def appointment(name: str, news: str) -> Json:
    hour = 10 + len(name)  # each its own
    return {
        "resourceType": "Appointment",
        "id": name,
        "status": "booked",
        "start": f"2026-11-03T{hour}:00:00Z",
        "end": f"2026-11-03T{hour}:20:00Z",
        "description": news,
        "participant": [{"actor": {"reference": who}, "status": "accepted"} for who in (JANE, DOCTOR)],
    }


def into_the_clinic(url: str, patient: Mapping[str, Any], title: str) -> None:
    headers = {"X-Api-Key": CLINIC.site["KEY"]}
    sent = {"title": title, "onset": "01/01/2019"}
    path = f"{url}/api/patients/{patient['uuid']}/problems"
    httpx.post(path, json=sent, headers=headers, trust_env=False).raise_for_status()


def into_the_practice(url: str, patient: Mapping[str, Any], title: str) -> None:
    account = {name.lower(): PRACTICE.site[name] for name in ("USERNAME", "PASSWORD", "CLIENT_ID", "CLIENT_SECRET")}
    form = {"grant_type": "password", "user_role": "users", **account}
    token = httpx.post(f"{url}/oauth/token", data=form, trust_env=False).raise_for_status().json()["access_token"]
    sent = {"description": title, "noted_on": "2019-01-01"}
    path = f"{url}/v2/charts/{patient['chart_no']}/diagnoses"
    answer = httpx.post(path, data=sent, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
    assert answer.raise_for_status().json()["success"]


SIDES = [
    Side(
        legacy=replace(CLINIC, types=(*CLINIC.types, "MedicationRequest")),
        entry="problem",
        title="title",
        replaced="prescription",
        says="sig",
        removal={"method": "DELETE"},
        changing=prescription,
        by_hand=into_the_clinic,
    ),
    Side(
        legacy=PRACTICE,
        entry="diagnosis",
        title="description",
        replaced="appointment",
        says="reason",
        removal={"method": "POST", "template": "/v2/appointments/{id}/cancel"},
        changing=appointment,
        by_hand=into_the_practice,
    ),
]


def patient(name: str, **more: Any) -> Json:
    """Make a patient of whom there are several with this name and birth date."""
    same = {"name": [{"family": word("family"), "given": [word("given")]}], "birthDate": canary.BORN}
    return {"resourceType": "Patient", "id": name, **same, "generalPractitioner": [{"reference": DOCTOR}], **more}


def condition(name: str, title: str) -> Json:
    said = {"code": {"text": title}, "onsetDateTime": "2019-01-01"}
    return {"resourceType": "Condition", "id": name, "subject": {"reference": JANE}, **said}


def new(name: str) -> str:
    """Say what is new of a resource that is changed."""
    return word(f"new of {name}")


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A system in which each doubt has come up, and all is quiet again."""

    side: Side
    system: System

    def link(self, reference: str) -> Json | None:
        links = self.system.ledger.links_of(reference.partition("/")[0])
        return next((link for link in links if link["reference"] == reference), None)

    def record(self, reference: str) -> Json:
        """Return the record that a resource is linked to."""
        link = self.link(reference)
        assert link is not None, f"{reference} has no link"
        return self.system.clinic.records()[f"{link['collection']}/{next(iter(link['keys'].values()))}"]

    def records(self, kind: str, **having: str) -> list[Json]:
        """List the records of a kind that are not taken away."""
        held = self.system.clinic.records().values()
        fits = [each for each in held if each["kind"] == kind and each["copies"]]
        return [each for each in fits if all(each["data"][name] == value for name, value in having.items())]


@pytest.fixture(scope="module", params=SIDES, ids=lambda side: side.legacy.name)
def doubtful(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doubtful]:
    """Bring every doubt about at once, because each takes seconds to be sure of."""
    side: Side = request.param
    with started(tmp_path_factory.mktemp("d"), legacy=side.legacy) as system:
        doubtful = Doubtful(side, system)
        begins(doubtful)
        misbehaves(doubtful)
        goes_on(doubtful)
        yield doubtful


def begins(doubtful: Doubtful) -> None:
    """Have what is there before anything goes wrong."""
    side, system = doubtful.side, doubtful.system
    doctor = {
        "resourceType": "Practitioner",
        "id": "doctor",
        "name": [{"family": word("doctor"), "given": [word("given")]}],
    }
    system.medplum.write([doctor, patient("jane"), condition("gout", GOUT)])
    system.medplum.write([side.changing(name, OLD) for name in ("lost", "never", "removed")])
    system.settle(SETTLED_WITHIN_S)
    jane = doubtful.link(JANE)
    assert jane is not None
    side.by_hand(system.clinic.url, jane["keys"], ASTHMA)


def misbehaves(doubtful: Doubtful) -> None:
    """Let each of the next writes go wrong in its own way, once."""
    side = doubtful.side
    creates = {
        "reset_after": [{"external_id": "namesake"}, {side.title: ASTHMA}, {side.says: new("lost")}],
        "reset_before": [{side.title: GOUT}, {side.says: new("never")}],
    }
    rules = [
        {"kind": kind, "match": {"method": "POST", "fields": fields}, "times": 1}
        for kind, matches in creates.items()
        for fields in matches
    ]
    saved = {"kind": "status", "status": 500, "saves": True}
    rules.append({**saved, "match": {"method": "POST", "fields": {"external_id": "saved"}}, "times": 1})
    rules.append({"kind": "reset_after", "match": side.removal, "times": 1})
    doubtful.system.clinic.misbehave(*rules)


def goes_on(doubtful: Doubtful) -> None:
    side, system = doubtful.side, doubtful.system
    no_address = [{"system": "email", "value": word("email")}]
    system.medplum.write([patient("namesake"), patient("saved"), patient("refused", telecom=no_address)])
    system.medplum.write([condition("asthma", ASTHMA), condition("gout-again", GOUT)])
    system.medplum.write([side.changing(name, new(name)) for name in ("lost", "never", "removed")])
    system.wait_until(lambda: is_at_rest(system), "all is quiet but what needs a person", SETTLED_WITHIN_S)
    assert system.clinic.faults() == []  # each of them has happened


def is_at_rest(system: System) -> bool:
    """Tell whether everything has come, and nothing is under way, nor of unknown outcome but what is held."""
    status = system.ledger.status()
    mirrors = status["mirrors"]
    busy = system.medplum.undelivered() + mirrors["due"] + mirrors["waiting"] + status["syncing"]
    return not busy and mirrors["failed"] == mirrors["held"] == status["unresolved_writes"] == 1


def test_a_create_that_was_saved_and_answered_by_500_is_found(doubtful: Doubtful) -> None:
    """There is one record for it, and it is linked."""
    [record] = doubtful.records("patient", external_id="saved")
    assert record == doubtful.record("Patient/saved")


def test_a_lost_create_is_told_from_its_namesake(doubtful: Doubtful) -> None:
    """Another patient has the same name and birth date: each resource is linked to its own record."""
    [record] = doubtful.records("patient", external_id="namesake")
    assert record == doubtful.record("Patient/namesake")
    assert doubtful.record(JANE)["external_id"] == "jane"


def test_a_lost_create_that_cannot_be_told_from_what_somebody_entered_is_held(doubtful: Doubtful) -> None:
    """Two records say the same, one of them entered by hand: nothing is linked, nothing more is written."""
    mirror = doubtful.system.mirror("Condition/asthma")
    assert (mirror["state"], mirror["reason"], doubtful.link("Condition/asthma")) == ("held", "found", None)
    assert len(doubtful.records(doubtful.side.entry, **{doubtful.side.title: ASTHMA})) == 2


def test_a_hit_of_another_resource_is_left_to_it(doubtful: Doubtful) -> None:
    """The create never arrived, and what the look-up finds is somebody else's: it gets a record of its own."""
    records = doubtful.records(doubtful.side.entry, **{doubtful.side.title: GOUT})
    linked = [doubtful.record(reference)["record"] for reference in ("Condition/gout", "Condition/gout-again")]
    assert sorted(record["record"] for record in records) == sorted(linked)
    assert len(set(linked)) == 2


@pytest.mark.parametrize("name", ["lost", "never", "removed"])
def test_a_half_finished_replace_ends_with_the_new_record_alone(doubtful: Doubtful, name: str) -> None:
    """Whichever half had no answer, and whether it was done: the old record is gone, the new one there once."""
    side = doubtful.side
    resource = side.changing(name, "")
    record = doubtful.record(f"{resource['resourceType']}/{name}")
    assert doubtful.records(side.replaced, **{side.says: new(name)}) == [record]


def test_nothing_else_is_in_doubt_and_no_record_is_left_over(doubtful: Doubtful) -> None:
    """All but the two that need a person agree with their records, and no old one is there any more."""
    system, side = doubtful.system, doubtful.side
    assert sorted(mirror["reference"] for mirror in system.ledger.failed()) == NEEDS_A_PERSON
    assert doubtful.records(side.replaced, **{side.says: OLD}) == []
    told = ("Condition/", f"{side.entry}/", "Patient/refused:")  # diagnoses have twins, as the tests above tell
    assert [fault for fault in system.disagreements() if not fault.startswith(told)] == []
    assert system.ledger.status()["identity_holds"]


def test_no_value_and_no_secret_stands_outside(doubtful: Doubtful) -> None:
    """Forms, paths, queries, a no with status 200: none of it is in a log, the broker's file or the ledger."""
    system, side = doubtful.system, doubtful.side
    secrets = [value for name, value in side.legacy.site.items() if name not in ("URL", "USERNAME")]
    said = [("failed", system.cli("failed").encode()), ("show", system.cli("show", "Condition/asthma").encode())]
    surfaces = [*files(system), *said]
    assert canary.found(surfaces, (canary.WORD, canary.BORN, *secrets)) == []
    assert any(b"Condition/asthma" in content for _, content in surfaces)
