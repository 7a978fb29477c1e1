"""Deletes: hints that may be early, forged or late, records that are not ours, how many may go. `protocol.md` 3-5."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.sync.story import (
    DELETE_PATIENT,
    OTHER,
    PATIENT,
    POST_PATIENT,
    PRACTITIONER,
    PUT_PATIENT,
    Story,
    only,
    patient,
    practitioner,
)
from worker.ledger import Selection
from worker.medplum.quota import Priority
from worker.sync import End

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
GHOST = "Patient/ghost"


@on_both
def test_a_delete_hint_for_what_lives_is_a_phantom_at_last(story: Story) -> None:
    """The live resource is synced at once; the hint is a phantom 60 s after it was last received, not before (4)."""
    story.changes(patient())
    story.hears(PATIENT, None)
    assert story.tries().kind is End.DONE
    assert story.dispositions() == ["applied", None]
    story.clock.forward(30)
    story.hears(PATIENT, None)  # a retry of the same delivery: counted on its row
    assert story.syncs().kind is End.DONE
    assert story.waits_s() == pytest.approx(60, abs=2)
    story.clock.forward(59)
    assert story.tries().kind is End.AGAIN
    assert story.dispositions() == ["applied", None]
    assert story.syncs().kind is End.DONE
    assert story.dispositions() == ["applied", "phantom"]
    assert story.mirror()["look_at"] is None
    assert story.writes() == ["POST"]
    story.agrees()


@on_both
def test_a_delete_hint_that_came_before_the_delete_is_not_lost(story: Story) -> None:
    """A delete that commits after its notification is found by the second look (5)."""
    story.changes(patient())
    story.settles()
    story.hears(PATIENT, None)
    story.settles(for_s=30)
    assert story.records() != []
    story.removes(PATIENT)
    story.settles()
    assert story.records() == []
    assert story.dispositions() == ["applied", "applied"]


@pytest.mark.parametrize("trouble", ["unmappable", "refused", "waiting"])
def test_an_early_delete_is_not_lost_where_the_last_version_failed(story: Story, trouble: str) -> None:
    """The second look comes also where the version before the delete could not be written."""
    kinds: dict[str, dict[str, Any]] = {
        "unmappable": {"name": []},
        "refused": {"telecom": [{"system": "email", "value": "no at"}]},
        "waiting": {"generalPractitioner": [{"reference": PRACTITIONER}]},
    }
    story.changes(patient())
    story.settles()
    story.clock.forward(5)
    if trouble == "waiting":
        story.changes(practitioner() | {"name": []})
        story.settles()
    story.saves(patient(**kinds[trouble]))
    story.hears(PATIENT, None)
    story.syncs()
    story.removes(PATIENT)
    story.settles()
    assert story.records() == []
    assert "phantom" not in story.dispositions()
    assert None not in story.dispositions()


def test_a_delete_of_what_was_never_seen_settles(story: Story) -> None:
    """A hint for an id that Medplum does not know is looked at twice and settled; nothing is sent (5)."""
    story.hears(GHOST, None)
    assert story.tries(GHOST).kind is End.AGAIN
    assert story.waits_s(GHOST) >= 50
    assert story.syncs(GHOST).kind is End.DONE
    assert story.dispositions(GHOST) == ["unchanged"]
    assert story.calls("GET", "POST", "PUT", "DELETE") == []


def test_forged_deletes_and_second_looks_come_after_live_reads(story: Story) -> None:
    """Ids that anybody can make up, and looks that nobody asked for, do not take the quota from what changed (2, 5)."""
    story.hears(GHOST, None)
    story.tries(GHOST)
    story.syncs(GHOST)
    assert story.hooks.priorities == [Priority.SECOND_LOOK] * 2
    story.hooks.priorities.clear()
    story.changes(patient())
    story.hears(PATIENT, None)
    story.tries()
    story.clock.forward(60)
    story.tries()
    assert story.hooks.priorities == [Priority.LIVE, Priority.SECOND_LOOK]
    assert story.dispositions() == ["applied", "phantom"]


def test_a_delete_of_what_was_never_written_settles(story: Story) -> None:
    """A resource that came and went before anybody looked leaves nothing behind, and nothing is sent."""
    [version] = story.saves(patient())
    story.removes(PATIENT)
    story.hears(PATIENT, version, None)
    story.settles()
    assert story.dispositions() == ["superseded", "unchanged"]
    assert story.calls("GET", "POST", "DELETE") == []


def test_a_deletion_that_nobody_told_of_is_found(story: Story) -> None:
    """A late update hint for what is deleted by now deletes the record, and is superseded by the deletion (4)."""
    story.changes(patient())
    story.settles()
    [version] = story.saves(patient(family="Roe"))
    story.removes(PATIENT)
    story.hears(PATIENT, version)
    story.settles()
    assert story.records() == []
    assert story.dispositions() == ["applied", "superseded", "applied"]
    found = story.shown(PATIENT)["changes"][-1]
    assert (found["kind"], found["source"], found["version_id"]) == ("delete", "read", None)


def test_a_restored_patient_gets_a_record_again(story: Story) -> None:
    """A resource that lives again is created anew, its link with the new record's keys in the old one's place (5)."""
    story.changes(patient())
    story.settles()
    story.deletes(PATIENT)
    story.settles()
    story.changes(patient())
    story.settles()
    assert story.writes() == ["POST", "DELETE", "POST"]
    assert only(story.links())["keys"]["number"] == story.record()["number"] == 4702
    assert only(story.links())["state"] == "linked"
    story.agrees()


def test_a_late_delete_hint_does_not_bury_the_restored(story: Story) -> None:
    """A delete that is delivered again after the restore is a hint like any: what lives stays."""
    story.changes(patient())
    story.settles()
    story.deletes(PATIENT)
    story.settles()
    story.changes(patient())
    story.hears(PATIENT, None)
    story.settles()
    assert story.dispositions()[-1] == "phantom"
    story.agrees()


def test_a_delete_in_doubt_of_what_is_restored_is_told_by_another(story: Story) -> None:
    """Restored while the delete's outcome was open, and the update refused: the delete says what became of it (5)."""
    story.changes(patient())
    story.settles()
    story.deletes(PATIENT)
    story.breaks("reset_after", DELETE_PATIENT)
    story.syncs()
    story.changes(patient(family="Roe"))
    story.settles()
    assert story.writes() == ["POST", "DELETE", "PUT", "DELETE", "POST"]
    assert story.state() == "current"
    story.agrees()


def test_a_delete_in_doubt_that_never_landed_costs_the_restored_nothing(story: Story) -> None:
    """The update is taken, so the record is the old one, and is not deleted again (5)."""
    story.changes(patient())
    story.settles()
    story.deletes(PATIENT)
    story.breaks("reset_before", DELETE_PATIENT)
    story.syncs()
    story.changes(patient(family="Roe"))
    story.settles()
    assert story.writes() == ["POST", "DELETE", "PUT"]
    story.agrees()


def test_a_conflict_without_a_delete_in_doubt_is_held(story: Story) -> None:
    """Nothing of ours explains that the record is inactive: a person decides, and nothing is deleted (5)."""
    story.changes(patient())
    story.settles()
    story.edits("patient/4701", status="inactive")
    story.changes(patient(family="Roe"))
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "conflict")
    assert "DELETE" not in story.writes()


@on_both
def test_what_is_absent_is_held_and_never_deleted(story: Story) -> None:
    """A resource that this client may not see any more is looked at twice and held; its record stays (2)."""
    story.changes(patient())
    story.settles()
    story.faults(hidden={"sync": [PATIENT]})
    story.hears(PATIENT, None)
    assert story.syncs().kind is End.AGAIN
    story.hears(PATIENT, None)
    story.clock.forward(50)
    assert story.tries().kind is End.AGAIN
    assert story.syncs().kind is End.HELD
    assert story.mirror()["reason"] == "absent"
    assert story.writes() == ["POST"]
    story.faults(hidden={})
    story.ledger.replay(Selection(references=(PATIENT,)), who="a test")
    story.settles()
    story.agrees()


def test_absent_once_is_not_absent_twice(story: Story) -> None:
    """What is seen again in between starts anew: a look long ago says nothing of now."""
    story.changes(patient())
    story.faults(hidden={"sync": [PATIENT]})
    assert story.tries().kind is End.AGAIN
    story.faults(hidden={})
    assert story.syncs().kind is End.DONE
    assert story.mirror()["absent_since"] is None
    story.clock.forward(3600)
    story.faults(hidden={"sync": [PATIENT]})
    story.hears(PATIENT, None)
    assert story.tries().kind is End.AGAIN


def test_an_absent_one_that_medplum_sent_is_held(story: Story) -> None:
    """Medplum sent it with a body, and shows it to us no more: held, though there is nothing to delete (2)."""
    story.faults(hidden={"sync": [PATIENT]})
    story.changes(patient())
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "absent")
    assert story.writes() == []


@pytest.mark.parametrize("operation", ["update", "delete"])
def test_a_record_that_says_it_is_anothers_is_not_touched(story: Story, operation: str) -> None:
    """The record under our key names another resource: held, nothing written, under every policy (3i)."""
    story.changes(patient())
    story.settles()
    story.edits("patient/4701", external_id="Canary")
    if operation == "update":
        story.changes(patient(family="Roe"))
    else:
        story.deletes(PATIENT)
    assert story.syncs().kind is End.HELD
    assert story.mirror()["reason"] == "identity"
    assert "external_id" in story.mirror()["detail"]
    assert "Canary" not in story.mirror()["detail"]
    assert story.writes() == ["POST"]


@pytest.mark.parametrize("operation", ["update", "delete"])
def test_a_number_that_came_again_after_a_restore_is_not_touched(story: Story, operation: str) -> None:
    """After a restore the clinic gave our provider's number to another: held, and the other one stays as it is (3i)."""
    assert story.clinic.post("/sandbox/snapshot", json={}).is_success
    story.changes(practitioner())
    story.settles()
    assert story.clinic.post("/sandbox/restore", json={}).is_success
    story.changes(practitioner("d2", family="Obi"))
    story.settles()
    assert story.record("provider")["id"] == story.links(PRACTITIONER)[0]["keys"]["id"] == 1
    if operation == "update":
        story.changes(practitioner(family="Okoye"))
    else:
        story.deletes(PRACTITIONER)
    assert story.syncs(PRACTITIONER).kind is End.HELD
    assert story.record("provider")["last_name"] == "Obi"


def test_an_identity_that_cannot_be_read_writes_nothing(story: Story) -> None:
    """Where the record could not be read before the write, the write waits."""
    story.changes(patient())
    story.settles()
    story.changes(patient(family="Roe"))
    story.breaks("status", {"method": "GET"}, status=500)
    assert story.syncs().kind is End.AGAIN
    assert story.writes() == ["POST"]
    story.settles()
    story.agrees()


def test_deletes_beyond_the_budget_are_held_until_a_person_says_so(story: Story) -> None:
    """The twenty-first delete within the hour is held; a replay lets that one pass (3k)."""
    family = [patient(f"b{number}") for number in range(21)]
    story.changes(*family)
    story.settles()
    references = [f"Patient/b{number}" for number in range(21)]
    story.deletes(*references)
    story.settles()
    [held] = [entry["reference"] for entry in story.ledger.failed()]
    assert story.mirror(held)["reason"] == "budget"
    assert len(story.records()) == 1
    story.ledger.replay(Selection(references=(held,)), who="a test")
    story.settles()
    assert story.records() == []


def test_a_refused_delete_fails(story: Story) -> None:
    """A delete to which the clinic says no is a failure of that deletion; the record stays linked."""
    story.changes(patient())
    story.settles()
    story.deletes(PATIENT)
    story.breaks("status", DELETE_PATIENT, status=422)
    assert story.syncs().kind is End.FAILED
    assert only(story.links())["state"] == "linked"
    story.ledger.replay(Selection(references=(PATIENT,)), who="a test")
    story.settles()
    assert story.records() == []


def test_one_resource_in_trouble_does_not_touch_another(story: Story) -> None:
    """Two patients with the same data, one in doubt: each has its own record in the end."""
    story.changes(patient(), patient("p2"))
    story.breaks("reset_after", POST_PATIENT)
    story.tries()
    story.tries(OTHER)
    story.settles()
    assert {record["external_id"] for record in story.records()} == {"p1", "p2"}
    story.agrees()


def test_an_update_in_doubt_then_a_delete(story: Story) -> None:
    """A delete waits until the update before it can land no more: nothing of the patient is left, or comes again."""
    story.changes(patient())
    story.settles()
    story.changes(patient(family="Roe"))
    story.breaks("reset_before", PUT_PATIENT)
    story.syncs()
    story.deletes(PATIENT)
    assert story.tries().kind is End.AGAIN
    assert story.writes() == ["POST", "PUT"]
    story.settles()
    assert story.records() == []
    assert story.ledger.status()["unresolved_writes"] == 0
