"""The example's harder types, from Medplum to the clinic: what is never deleted, rubbed out or changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.integration.sync.story import (
    BOUND_S,
    CONDITION,
    OTHER,
    PATIENT,
    Story,
    condition,
    only,
    patient,
    practitioner,
)

VISIT, BOOKING, PILLS, PRESSURE = "Encounter/e1", "Appointment/a1", "MedicationRequest/m1", "Observation/o1"
DOCTOR = {"reference": "Practitioner/d1"}
RXNORM, LOINC, UCUM = "http://www.nlm.nih.gov/research/umls/rxnorm", "http://loinc.org", "http://unitsofmeasure.org"


def begins(story: Story) -> None:
    """Have two patients and a provider in the clinic."""
    story.changes(practitioner(), patient(), patient("p2"))
    story.settles()


def later(story: Story, *resources: Mapping[str, Any]) -> None:
    """Write newer versions, and let all come to rest."""
    story.clock.forward(3600)
    story.changes(*resources)
    story.settles()


def visit(**more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Encounter",
        "id": "e1",
        "status": "in-progress",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
        "subject": {"reference": PATIENT},
        "participant": [{"individual": DOCTOR}],
        "period": {"start": "2026-11-03T14:00:00Z"},
        **more,
    }


def booking(**more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Appointment",
        "id": "a1",
        "status": "booked",
        "start": "2026-12-02T03:30:00Z",
        "end": "2026-12-02T04:00:00Z",
        "participant": [{"actor": who, "status": "accepted"} for who in ({"reference": PATIENT}, DOCTOR)],
        **more,
    }


def pills(id_: str = "m1", **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "MedicationRequest",
        "id": id_,
        "status": "active",
        "intent": "order",
        "medicationCodeableConcept": {"coding": [{"system": RXNORM, "code": "314076", "display": "lisinopril 10 MG"}]},
        "subject": {"reference": PATIENT},
        "authoredOn": "2026-11-01",
        **more,
    }


def pressure(systolic: float = 120, diastolic: float | None = 79.5, **more: Any) -> dict[str, Any]:
    parts = {"8480-6": systolic, "8462-4": diastolic}
    return {
        "resourceType": "Observation",
        "id": "o1",
        "status": "final",
        "code": {"coding": [{"system": LOINC, "code": "85354-9"}]},
        "subject": {"reference": PATIENT},
        "effectiveDateTime": "2026-11-01T15:05:00Z",
        "component": [
            {
                "code": {"coding": [{"system": LOINC, "code": code}]},
                "valueQuantity": {"value": value, "unit": "mmHg", "system": UCUM, "code": "mm[Hg]"},
            }
            for code, value in parts.items()
            if value is not None
        ],
        **more,
    }


def measured(story: Story) -> list[tuple[str, float, int]]:
    """Tell the clinic's vitals: what, how much, whose."""
    return sorted((row["code"], row["value"], row["patient_number"]) for row in story.records("vital"))


def test_a_visit_that_should_not_be_is_left_behind(story: Story) -> None:
    """The clinic deletes no visit: one that was entered in error stays there, and is listed with the reason."""
    begins(story)
    later(story, visit())
    later(story, visit(status="finished", period={"start": "2026-11-03T14:00:00Z", "end": "2026-11-03T14:25:00Z"}))
    record = story.record("visit")
    assert (record["started"], record["ended"], record["status"]) == (
        "11/03/2026 09:00 AM",
        "11/03/2026 09:25 AM",
        "closed",
    )
    later(story, visit(status="entered-in-error"))
    assert (story.state(VISIT), only(story.links(VISIT))["state"]) == ("current", "left-behind")
    assert story.shown(VISIT)["changes"][-1]["rule"] == "the clinic never deletes a visit: strike it out by hand"
    assert story.record("visit")["status"] == "closed"


def test_a_visit_that_becomes_a_plan_is_left_behind(story: Story) -> None:
    """A planned visit is none: the record of one that was begun by mistake is counted as left, for it cannot go."""
    begins(story)
    later(story, visit())
    later(story, visit(status="planned"))
    assert (story.state(VISIT), only(story.links(VISIT))["state"]) == ("current", "left-behind")
    later(story, visit())
    assert only(story.links(VISIT))["state"] == "linked"


def test_a_problem_that_becomes_a_diagnosis_of_one_visit_leaves_the_list(story: Story) -> None:
    """It is not to be on the problem list any more: its record goes, and comes when it is a problem again."""
    begins(story)
    later(story, condition())
    later(story, condition(category=[{"coding": [{"code": "encounter-diagnosis"}]}]))
    assert story.records("problem") == []
    assert only(story.links(CONDITION))["state"] == "tombstone"
    later(story, condition())
    assert story.record("problem")["title"] == "Gout"


def test_a_result_that_is_not_there_yet_is_skipped_by_its_rule(story: Story) -> None:
    """A mapping that skips names its rule, and the legacy system stays as it is (protocol 4)."""
    begins(story)
    later(story, pressure(status="registered"))
    assert story.dispositions(PRESSURE) == ["skipped"]
    assert only(story.shown(PRESSURE)["changes"])["rule"] == "there is no result yet"
    assert story.records("vital") == []


def test_an_appointment_is_cancelled_and_booked_again_in_its_own_row(story: Story) -> None:
    """A delete is a change of status, and a booking that comes back takes its old row, whatever else has changed."""
    begins(story)
    later(story, booking())
    row = story.record("appointment")
    assert (row["starts"], row["minutes"], row["patient_number"]) == ("12/01/2026 10:30 PM", 30, 4701)
    later(story, booking(status="cancelled"))
    assert story.record("appointment") == row | {"status": "cancelled"}
    later(story, booking(start="2026-12-02T15:00:00Z", end="2026-12-02T15:15:00Z"))
    assert story.record("appointment") == row | {"starts": "12/02/2026 10:00 AM", "minutes": 15}
    story.deletes(BOOKING)
    story.settles()
    assert story.record("appointment")["status"] == "cancelled"


def test_a_changed_prescription_is_voided_and_written_anew(story: Story) -> None:
    """The clinic has one active prescription of the drug before and after, and the void one says what it said."""
    begins(story)
    later(story, pills())
    later(story, pills(dosageInstruction=[{"text": "2 at night"}]))
    told = [(row["id"], row["status"], row["sig"]) for row in story.records("prescription")]
    assert told == [(1, "void", None), (2, "active", "2 at night")]
    later(story, pills(status="entered-in-error"))
    assert [row["status"] for row in story.records("prescription")] == ["void", "void"]


def test_a_prescription_without_an_answer_is_found_and_not_a_second_one(story: Story) -> None:
    """The new one was written and never answered: it is found by what it says, void ones left aside."""
    begins(story)
    later(story, pills())
    story.breaks("status", {"method": "POST"}, status=500, saves=True)
    later(story, pills(dosageInstruction=[{"text": "2 at night"}]))
    story.clock.forward(BOUND_S)
    story.settles()
    assert [row["status"] for row in story.records("prescription")] == ["void", "active"]
    assert only(story.links(PILLS))["keys"] == {"id": 2}


def test_the_drug_of_another_prescription_is_never_taken_for_ours(story: Story) -> None:
    """The clinic says that the patient has the drug: that is another request's, so a person is asked."""
    begins(story)
    later(story, pills())
    later(story, pills("m2"))
    assert (story.state("MedicationRequest/m2"), story.links("MedicationRequest/m2")) == ("held", [])
    assert [row["status"] for row in story.records("prescription")] == ["active"]


def test_a_drug_that_is_named_elsewhere_is_looked_up(story: Story) -> None:
    """A prescription that refers to a Medication says the name that Medplum has there."""
    begins(story)
    story.saves({"resourceType": "Medication", "id": "x1", "code": {"text": "Lisinopril"}})
    elsewhere = pills(medicationReference={"reference": "Medication/x1"})
    del elsewhere["medicationCodeableConcept"]
    later(story, elsewhere)
    assert story.record("prescription")["drug"] == "Lisinopril"


def test_a_blood_pressure_is_two_rows(story: Story) -> None:
    """Each part has its own row by what it measures: one is changed alone, goes alone and comes back alone."""
    begins(story)
    later(story, pressure())
    assert measured(story) == [("BP_DIA", 79.5, 4701), ("BP_SYS", 120, 4701)]
    later(story, pressure(121))
    assert story.writes()[-1:] == ["PUT"]
    assert measured(story) == [("BP_DIA", 79.5, 4701), ("BP_SYS", 121, 4701)]
    later(story, pressure(121, None))
    assert measured(story) == [("BP_SYS", 121, 4701)]
    later(story, pressure(121, 80))
    assert measured(story) == [("BP_DIA", 80, 4701), ("BP_SYS", 121, 4701)]
    later(story, pressure(121, 80, code={"text": "a guess"}))
    assert measured(story) == []


def test_a_blood_pressure_on_the_wrong_patient_moves(story: Story) -> None:
    """Who corrects the subject finds both rows under the right patient, and none under the wrong one."""
    begins(story)
    later(story, pressure(), pills())
    later(story, pressure(subject={"reference": OTHER}), pills(subject={"reference": OTHER}))
    assert measured(story) == [("BP_DIA", 79.5, 4702), ("BP_SYS", 120, 4702)]
    told = [(row["patient_number"], row["status"]) for row in story.records("prescription")]
    assert told == [(4701, "void"), (4702, "active")]
