"""The demo's pieces that decide: its script is the same each time, and its verdict sees what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from deploy.demo.frontend import Change, FrontEnd, Recorded
from deploy.demo.scenery import ROOT, command
from deploy.demo.verdict import Verdict, compare
from worker.ledger.values import LinkState
from worker.legacy import Find, LegacyApi, Wire
from worker.mapping import Absent, Context, Result, Route, Skip, link, required, route
from worker.mapping.r4 import Condition, Patient

RECORDINGS = ROOT / "tests" / "fixtures" / "notifications"
MEDPLUM = "http://127.0.0.1:9"

api = LegacyApi("clinic", base_url="http://127.0.0.1:9/api", auth=httpx.BasicAuth("a", "b"), zone="UTC", wire=Wire())
patients = api.collection(
    "patient",
    keys=("number", "uuid"),
    create="POST /patients",
    read="GET /patients/{uuid}",
    update="PUT /patients/{uuid}",
    delete="DELETE /patients/{uuid}",
    find=Find("GET /patients?last_name={last_name}", match=("last_name",)),
)
problems = api.collection(
    "problem",
    keys=("id",),
    create="POST /patients/{patient.uuid}/problems",
    update="PUT /patients/{patient.uuid}/problems/{id}",
    delete="DELETE /patients/{patient.uuid}/problems/{id}",
    find=Find("GET /patients/{patient.uuid}/problems", match=("title",)),
)


@route(Patient, to=patients)
def patient(p: Patient, ctx: Context) -> Result:
    family = required(p.name[0].family if p.name else None)
    return Skip("by rule") if family == "Skip" else Absent("by rule") if family == "Absent" else {"last_name": family}


@route(Condition, to=problems)
def problem(c: Condition, ctx: Context) -> Result:
    return {"patient": link(c.subject), "title": c.code.text if c.code else None}


ROUTES: Mapping[str, Route[Any]] = {"Patient": patient, "Condition": problem}


def truth(reference: str, **members: Any) -> dict[str, Any]:
    resource_type, _, fhir_id = reference.partition("/")
    resource = {"resourceType": resource_type, "id": fhir_id, **members} if members else None
    return {"reference": reference, "deleted": not members, "resource": resource}


def linked(reference: str, collection: str, keys: dict[str, Any], state: str = LinkState.LINKED) -> dict[str, Any]:
    return {"reference": reference, "collection": collection, "keys": keys, "state": state}


def record(name: str, *, status: str = "active", copies: int = 1, **data: Any) -> dict[str, dict[str, Any]]:
    return {name: {"record": name, "status": status, "copies": copies, "data": data}}


DOE = truth("Patient/a", name=[{"family": "Doe"}])
DOE_LINK = linked("Patient/a", "patient", {"number": 1, "uuid": "u1"})
GOUT = truth("Condition/c", subject={"reference": "Patient/a"}, code={"text": "Gout"})
GOUT_LINK = linked("Condition/c", "problem", {"id": 7})
DOE_RECORD = record("patient/1", last_name="Doe", number=1)


def judged(*lines: dict[str, Any], links: list[dict[str, Any]], records: dict[str, Any]) -> Verdict:
    return compare(lines, records, links, ROUTES, MEDPLUM)


def test_what_agrees_agrees() -> None:
    """Equal fields under the right patient, a deleted one that is gone, and one that a rule leaves out: no fault."""
    verdict = judged(
        *(DOE, GOUT, truth("Patient/gone"), truth("Patient/s", name=[{"family": "Skip"}])),
        links=[DOE_LINK, GOUT_LINK, linked("Patient/gone", "patient", {"number": 2}, LinkState.TOMBSTONE)],
        records=DOE_RECORD
        | record("problem/7", title="Gout", patient_number=1)
        | record("patient/2", status="inactive", copies=0),
    )
    assert verdict.agrees, verdict.faults
    assert verdict.compared == {"written": 2, "deleted": 1, "not synced by rule": 1}


@pytest.mark.parametrize(
    ("links", "records", "fault"),
    [
        ([], {}, "has no legacy record"),
        ([DOE_LINK], {}, "has no legacy record"),
        ([DOE_LINK], record("patient/1", last_name="Roe", number=1), "differs in last_name"),
        ([DOE_LINK], record("patient/1", last_name="Doe", status="inactive", copies=0), "is inactive"),
        ([DOE_LINK], record("patient/1", last_name="Doe", copies=2), "with 2 copies"),
        ([DOE_LINK], DOE_RECORD | record("patient/9", last_name="Doe"), "a record of no resource"),
    ],
)
def test_what_is_lost_changed_or_doubled_is_a_fault(links: Any, records: Any, fault: str) -> None:
    """Each way in which a written resource can be wrong is named."""
    assert fault in " ".join(judged(DOE, links=links, records=records).faults)


def test_a_record_of_another_patient_is_a_fault() -> None:
    """The worst that can happen: the fields agree, and the patient is another one."""
    records = DOE_RECORD | record("problem/7", title="Gout", patient_number=2)
    assert "another patient's" in " ".join(judged(DOE, GOUT, links=[DOE_LINK, GOUT_LINK], records=records).faults)


@pytest.mark.parametrize("line", [truth("Patient/a"), truth("Patient/a", name=[{"family": "Absent"}])])
def test_what_should_be_gone_and_is_not_is_a_fault(line: dict[str, Any]) -> None:
    """A delete that did not come through is named, whether Medplum or a rule asked for it."""
    assert judged(line, links=[DOE_LINK], records=DOE_RECORD).faults
    tombstone = linked("Patient/a", "patient", {"number": 1}, LinkState.TOMBSTONE)
    assert judged(line, links=[tombstone], records=DOE_RECORD).faults


def everything(front_end: FrontEnd) -> list[Change]:
    return [*front_end.opening(), *front_end.afternoon(), front_end.widowed()]


def test_the_script_is_the_same_each_time() -> None:
    """Two performances write the same, so that what is seen once can be seen again."""
    assert everything(FrontEnd()) == everything(FrontEnd())


def test_the_script_has_what_it_promises() -> None:
    """A few hundred changes with bursts, deletes, and children that come before their parents."""
    changes = everything(FrontEnd())
    assert sum(change.count for change in changes) >= 200
    assert sum(len(change.deletes) for change in changes) >= 10
    children_first = [change for change in changes if len(change.resources) == 2]
    assert {change.resources[0]["resourceType"] for change in children_first} == {"Condition"}
    written = [change.resources[-1]["id"] for change in changes if change.resources]
    assert any(written[start : start + 8] == [written[start]] * 8 for start in range(len(written)))


def test_nobody_is_widowed_before_the_sixth_act() -> None:
    """The row that is wrong is met in the sixth act and not before, neither in the script nor in the recordings."""
    recorded = Recorded.read(RECORDINGS, frozenset({"Patient"}))
    *before, last = everything(FrontEnd())
    early = [resource for change in before for resource in change.resources] + list(recorded.versions)
    statuses = [coding["code"] for one in early for coding in one.get("maritalStatus", {}).get("coding", [])]
    assert statuses
    assert "W" not in statuses
    assert last.resources[0]["maritalStatus"]["coding"][0]["code"] == "W"


def test_the_recordings_are_complete_for_the_clinic() -> None:
    """Every resource that a recorded one names is there, and every patient ends with a name and a date of birth."""
    recorded = Recorded.read(RECORDINGS, frozenset({"Patient", "Practitioner", "Condition"}))
    latest = {version["id"]: version for version in (*recorded.missing(), *recorded.versions, *recorded.completed())}
    people = [resource for resource in latest.values() if resource["resourceType"] == "Patient"]
    assert len(people) > 8
    for person in people:
        assert person["birthDate"]
        assert person["name"][0]["given"]
        named = [entry["reference"] for entry in person.get("generalPractitioner", [])]
        assert all(name.partition("/")[2] in latest for name in named if name.startswith("Practitioner/"))


@pytest.mark.parametrize("process", ["release", "web", "worker", "worker2", "dispatch", "beat", "console", "flower"])
def test_each_process_is_started_by_its_line_of_the_procfile(process: str) -> None:
    """The demo has no commands of its own: what it shows is what a deployment starts."""
    line = next(line for line in (ROOT / "Procfile").read_text().splitlines() if line.startswith(f"{process}: "))
    assert command(process)[-1] == line.split()[-1]


def test_an_option_of_the_line_is_replaced_not_doubled() -> None:
    """Flower's port is the demo's own, and stands once in its command."""
    assert [word for word in command("flower", "--port=1") if word.startswith("--port")] == ["--port=1"]
