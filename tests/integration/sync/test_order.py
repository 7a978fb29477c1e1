"""What comes in the wrong order, late, early or again: the end is always what Medplum holds. `protocol.md` 1 to 5."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.integration.sync.story import PATIENT, Barrier, Story, only, patient
from worker.ledger.values import Hint
from worker.sync import End

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
FROZEN = "2026-11-22T10:30:03.303Z"


def body_of(story: Story, reference: str = PATIENT) -> bytes:
    """Give the resource as a notification would carry it: whole."""
    lines = [json.loads(line) for line in story.medplum.get("/sandbox/resources?type=Patient").text.splitlines()]
    return json.dumps(only([line for line in lines if line["reference"] == reference])["resource"]).encode()


def frontend(story: Story) -> httpx.Client:
    """Be a front end with rights to operate, as an administrator has."""
    form = {"grant_type": "client_credentials", "client_id": "admin", "client_secret": "admin-secret"}
    token = story.medplum.post("/oauth2/token", data=form).raise_for_status().json()["access_token"]
    return httpx.Client(
        base_url=f"{story.medplum.base_url}/fhir/R4/", headers={"Authorization": f"Bearer {token}"}, trust_env=False
    )


# versions


@on_both
def test_versions_of_one_millisecond_end_with_the_current_one(story: Story) -> None:
    """No time tells equal milliseconds apart; the read does, whichever notification comes last (2)."""
    story.faults(frozen_clock=FROZEN)
    versions = [story.saves(patient(family=f"Doe{letter}"))[0] for letter in "ABCD"]
    for version in (versions[3], versions[1], versions[0], versions[2]):
        story.hears(PATIENT, version)
        story.clock.forward(1.5)
        story.tries()
    story.settles()
    assert story.record()["last_name"] == "DoeD"
    assert story.dispositions().count("applied") == 1
    story.agrees()


def test_versions_that_are_written_while_one_is_being_sent_are_sent_after_it(story: Story) -> None:
    """Two writers, and a third version in the middle of a send: the current one has the last word (1, 4)."""
    story.changes(patient(family="DoeA"))
    story.hooks.before = barrier = Barrier()
    ended = story.in_thread(story.tries)
    assert barrier.reached.wait(20)
    story.faults(concurrent_writers=True)
    for letter in "BCD":
        story.changes(patient(family=f"Doe{letter}"), author=f"frontend-{letter}")
    barrier.open.set()
    assert ended().kind is End.DONE
    assert story.state() == "due"
    story.settles()
    assert story.writes() == ["POST", "PUT"]
    assert story.dispositions() == ["applied", "superseded", "superseded", "applied"]
    story.agrees()


def test_an_old_notification_after_everything_writes_nothing(story: Story) -> None:
    """Delivered once more after hours, a superseded version only says *look*; what is there is current (1, 3g)."""
    [old] = story.changes(patient())
    story.settles()
    story.changes(patient(family="Roe"))
    story.settles()
    story.clock.forward(3 * 3600)
    story.hears(PATIENT, old, body=b'{"resourceType": "Patient"}')
    story.settles()
    assert story.writes() == ["POST", "PUT"]
    assert story.record()["last_name"] == "Roe"


@on_both
def test_a_read_that_came_before_its_notification_is_compared_with_it(story: Story) -> None:
    """The first hint's read finds the second version; what it lacks shows when that one's notification comes (2)."""
    story.changes(patient())
    second = patient(telecom=[{"system": "email", "value": "canary@example.com"}])
    [version] = story.saves(second)
    story.faults(hidden_fields={"sync": {"Patient": ["telecom"]}})
    assert story.tries().kind is End.DONE
    story.hears(PATIENT, version, body=body_of(story))
    assert story.dispositions() == ["superseded", "applied"]
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "partial read")
    assert "telecom" in story.mirror()["detail"]
    assert "canary" not in story.mirror()["detail"]
    assert story.dispositions() == ["superseded", "applied"]


@on_both
def test_a_whole_read_that_came_before_its_notification_costs_one_look_and_no_write(story: Story) -> None:
    """Compared and found whole: nothing is sent, the change stays applied, and the same again is not looked at."""
    story.changes(patient())
    [version] = story.saves(patient(family="Roe"))
    story.settles()
    reads = len(story.hooks.priorities)
    for _ in range(3):
        story.hears(PATIENT, version, body=body_of(story))
        story.settles()
    assert len(story.hooks.priorities) == reads + 1
    assert story.writes() == ["POST"]
    assert story.dispositions() == ["superseded", "applied"]
    story.agrees()


# deletes


@on_both
@pytest.mark.parametrize("gone", [False, True], ids=["before it is synced", "after it is synced"])
def test_a_resent_delete_is_one_more_look(story: Story, gone: bool) -> None:
    """`$resend` of a delete, before or after the first one was worked on, sends one delete in all (5)."""
    story.changes(patient())
    story.settles()
    story.deletes(PATIENT)
    if gone:
        story.settles()
    story.clock.forward(5)
    story.hears(PATIENT, None, None)
    story.settles()
    assert story.writes() == ["POST", "DELETE"]
    assert story.records() == []
    assert set(story.dispositions()[1:]) <= {"applied", "unchanged"}
    assert only(story.links())["state"] == "tombstone"


def test_a_resent_delete_of_what_lives_is_a_phantom(story: Story) -> None:
    """`$resend` with the interaction *delete* sends a delete whatever the state: what lives stays (4, 5)."""
    story.changes(patient())
    story.settles()
    story.hears(PATIENT, None)
    story.settles()
    assert story.writes() == ["POST"]
    assert story.dispositions() == ["applied", "phantom"]
    story.agrees()


@on_both
def test_a_rolled_back_delete_beside_a_new_version_loses_neither(story: Story) -> None:
    """The delete of a transaction that failed, beside an update: written at once, and the hint a phantom later (5)."""
    story.changes(patient())
    story.settles()
    story.hears(PATIENT, None)
    story.changes(patient(family="Roe"))
    assert story.syncs().kind is End.DONE
    assert story.record()["last_name"] == "Roe"
    story.settles()
    assert story.dispositions() == ["applied", "phantom", "applied"]
    story.agrees()


@on_both
def test_a_delete_that_is_retried_after_the_restore_deletes_nothing(story: Story) -> None:
    """The first try was lost, Medplum tries again, and by then the resource lives anew: it is never gone (5)."""
    story.changes(patient())
    story.settles()
    story.removes(PATIENT)  # its notification is on its way
    story.changes(patient(family="Roe"))
    story.hears(PATIENT, None)
    story.settles()
    assert "DELETE" not in story.writes()
    assert story.record()["last_name"] == "Roe"
    assert story.dispositions()[1:] == ["applied", "phantom"]
    story.agrees()


def test_a_stale_search_heals_with_the_next_hint(story: Story) -> None:
    """What a search that lags behind did not show is not settled for the version that was announced (4)."""
    story.changes(patient())
    story.settles()
    story.faults(stale_search=True)
    [second] = story.changes(patient(family="Roe"))
    story.settles(for_s=30)
    story.faults(stale_search=False)
    story.hears(PATIENT, second)
    story.settles()
    assert story.record()["last_name"] == "Roe"
    story.agrees()


@on_both
def test_an_expunged_patient_is_held_and_its_record_stays(story: Story) -> None:
    """After `$expunge` Medplum knows neither the resource nor a deletion: nothing is deleted without a person (2)."""
    story.changes(patient())
    story.settles()
    with frontend(story) as admin:
        admin.post(f"{PATIENT}/$expunge").raise_for_status()
    story.hears(PATIENT, None)
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "absent")
    assert story.writes() == ["POST"]
    assert len(story.records()) == 1


@pytest.mark.parametrize(
    "hear",
    [lambda story, version: story.hears(PATIENT, None), lambda story, version: story.hears(PATIENT, version)],
    ids=["deleted", "changed"],
)
def test_what_an_access_policy_hides_is_held(story: Story, hear: Callable[[Story, str], Any]) -> None:
    """A 404 of our client's access policy is not a deletion, whatever the hint says (2)."""
    story.changes(patient())
    story.settles()
    [version] = story.saves(patient(family="Roe"))
    story.faults(hidden={"sync": [PATIENT]})
    hear(story, version)
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "absent")
    assert story.writes() == ["POST"]


def test_a_type_that_an_access_policy_hides_changes_nothing(story: Story) -> None:
    """A 403 for the whole type: due again, nothing is concluded, and it is told (2)."""
    story.changes(patient())
    story.settles()
    story.faults(hidden={"sync": ["Patient"]})
    story.hears(PATIENT, None)
    assert story.syncs().kind is End.AGAIN
    assert story.mirror()["reason"] == "medplum refused"
    story.faults(hidden={})
    story.settles()
    assert story.writes() == ["POST"]
    story.agrees()


def test_bodies_are_hints_too(story: Story) -> None:
    """A forged or stale body never reaches the record: content is read, and only read (2)."""
    [version] = story.saves(patient())
    story.ledger.accept([Hint(PATIENT, version, body=body_of(story).replace(b"Doe", b"Forged"))])
    story.settles()
    assert story.record()["last_name"] == "Doe"
    story.agrees()
