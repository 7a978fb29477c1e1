"""What Medplum says, hides or gets wrong, and what is made of it. `protocol.md` 2 and 4."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.integration.sync.conftest import KEYS
from tests.integration.sync.story import CLINIC_KEY, PATIENT, Story, only, patient
from worker.errors import BadResource, SettingsInvalid
from worker.ledger import Ledger, Selection
from worker.settings import WorkerSettings
from worker.start import prepare
from worker.sync import End

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


def test_a_stale_read_by_id_has_no_effect(story: Story) -> None:
    """Medplum's cache says that a deleted resource lives; we read by search and delete its record."""
    story.changes(patient())
    story.settles()
    story.faults(stale_get=True)
    story.deletes(PATIENT)
    assert story.syncs().kind is End.DONE
    assert story.records() == []
    assert story.dispositions() == ["applied", "applied"]


@on_both
def test_a_read_that_lacks_a_member_pauses_the_route(story: Story) -> None:
    """A member that the notification carried and our read lacks would be cleared: the route pauses, it is named."""
    [version] = story.saves(patient(telecom=[{"system": "email", "value": "canary@example.com"}]))
    body = only([json.loads(line) for line in story.medplum.get("/sandbox/resources?type=Patient").text.splitlines()])
    story.hears(PATIENT, version, body=json.dumps(body["resource"]).encode())
    story.faults(hidden_fields={"sync": {"Patient": ["telecom"]}})
    assert story.tries().kind is End.HELD
    assert story.mirror()["reason"] == "partial read"
    assert "telecom" in story.mirror()["detail"]
    assert "canary" not in story.mirror()["detail"]
    assert [pause.scope for pause in story.ledger.paused()] == ["Patient"]
    assert story.calls("GET", "POST") == []
    story.changes(patient("p2"))
    assert story.tries("Patient/p2").kind is End.AGAIN
    story.faults(hidden_fields={})
    story.ledger.resume([], who="a test", why="mended")
    story.ledger.replay(Selection(references=(PATIENT,)), who="a test")
    story.settles()
    assert {"canary@example.com", None} == {record["email"] for record in story.records()}
    story.agrees()


def test_what_is_no_resource_needs_a_person(story: Story) -> None:
    """A read that is not one FHIR resource is named as invalid, and as no defect of ours."""
    story.changes(patient())

    def garbled() -> None:
        raise BadResource("meta.versionId is missing")

    story.hooks.read = garbled
    assert story.tries().kind is End.FAILED
    assert (story.mirror()["reason"], story.mirror()["detail"]) == ("invalid", "meta.versionId is missing")
    assert story.dispositions() == [None]


def test_a_notification_that_cannot_be_compared_needs_a_person(story: Story) -> None:
    """A kept body that is no JSON object is named as invalid; the version that was read ends as failed."""
    [version] = story.saves(patient())
    story.hears(PATIENT, version, body=b"[]")
    assert story.tries().kind is End.FAILED
    assert story.mirror()["reason"] == "invalid"
    assert story.dispositions() == ["failed"]


def test_a_whole_read_is_no_partial_one(story: Story) -> None:
    """A notification and a read of one version that say the same are taken as they are."""
    [version] = story.saves(patient())
    body = only([json.loads(line) for line in story.medplum.get("/sandbox/resources?type=Patient").text.splitlines()])
    story.hears(PATIENT, version, body=json.dumps(body["resource"]).encode())
    assert story.tries().kind is End.DONE


def test_a_medplum_that_asks_for_patience_gets_it(story: Story) -> None:
    """A 429 of Medplum makes the mirror due again, not before its Retry-After."""
    story.changes(patient())
    story.faults(api=[{"status": 429, "headers": {"Retry-After": "23"}, "clients": ["sync"], "times": 1}])
    assert story.tries().kind is End.AGAIN
    assert (story.state(), story.mirror()["reason"]) == ("due", "medplum")
    assert story.waits_s() >= 23


@pytest.mark.parametrize("status", [500, 503])
def test_a_medplum_that_is_away_delays(story: Story, status: int) -> None:
    """A 5xx of Medplum makes the mirror due again; nothing is concluded, nothing is sent."""
    story.changes(patient())
    story.faults(api=[{"status": status, "clients": ["sync"], "times": 1}])
    assert story.tries().kind is End.AGAIN
    assert (story.state(), story.mirror()["reason"]) == ("due", "medplum")
    assert story.dispositions() == [None]
    assert story.calls("GET", "POST") == []
    story.settles()
    story.agrees()


def test_a_medplum_that_fails_between_its_two_searches_concludes_nothing(story: Story) -> None:
    """Not found among the living and no answer about the deleted is neither deleted nor absent."""
    story.changes(patient())
    story.settles()
    story.deletes(PATIENT)
    rule = {"clients": ["sync"], "times": 1}
    story.faults(api=[rule | {"delay_seconds": 0.0}, rule | {"status": 503}])
    assert story.syncs().kind is End.AGAIN
    assert story.mirror()["absent_since"] is None
    assert len(story.records()) == 1
    story.settles()
    assert story.records() == []


def test_a_medplum_that_refuses_waits_for_a_person(story: Story) -> None:
    """A type that this client may not search is told by name, tried again later, and nothing is concluded."""
    story.changes(patient())
    story.faults(hidden={"sync": ["Patient"]})
    ended = story.tries()
    assert ended.kind is End.AGAIN
    assert story.mirror()["reason"] == "medplum refused"
    assert "AccessPolicy" in ended.words
    assert story.dispositions() == [None]
    story.faults(hidden={})
    story.settles()
    story.agrees()


@on_both
def test_concurrent_writers_end_with_the_current_version(story: Story) -> None:
    """Where the current version says that it is older than a superseded one, the read alone tells (2)."""
    story.changes(patient())
    story.settles()
    story.faults(concurrent_writers=True)
    versions = [story.saves(patient(family=f"Doe{letter}"))[0] for letter in "ABCDEF"]
    for version in reversed(versions):
        story.hears(PATIENT, version)
        story.tries()
    story.settles()
    assert story.record()["last_name"] == "DoeF"
    assert story.dispositions().count("applied") == 2
    story.agrees()


def test_versions_that_come_in_any_order_end_with_the_current_one(story: Story) -> None:
    """Duplicates, inversions and gaps: each hint only says *look*."""
    versions = [story.saves(patient(family=f"Doe{letter}"))[0] for letter in "ABCD"]
    for version in (versions[2], versions[0], versions[2], versions[3], versions[1], versions[0]):
        story.hears(PATIENT, version)
        story.clock.forward(1.5)
        story.tries()
    story.settles()
    assert story.record()["last_name"] == "DoeD"
    assert sorted(filter(None, story.dispositions())) == ["applied", "superseded", "superseded", "superseded"]
    story.agrees()


def test_back_to_the_old_content_is_written(story: Story) -> None:
    """A, B, A: the second A is a version like any other (the model's ABA)."""
    story.changes(patient())
    story.settles()
    story.changes(patient(family="Roe"))
    story.settles()
    story.changes(patient())
    story.settles()
    assert story.record()["last_name"] == "Doe"
    assert story.dispositions() == ["applied", "applied", "applied"]


def test_a_known_version_still_wakes(story: Story) -> None:
    """The same version again makes no second row, and wakes unless it is the applied one (1)."""
    [first] = story.changes(patient())
    story.settles()
    [second] = story.saves(patient(family="Roe"))
    story.hears(PATIENT, first)
    assert story.mirror()["due_at"] is None
    story.hears(PATIENT, second)
    story.hears(PATIENT, second)
    story.settles()
    story.hears(PATIENT, first)  # known, and not the applied one: a look, and nothing more
    assert story.state() == "due"
    story.settles()
    assert story.writes() == ["POST", "PUT"]
    assert story.dispositions() == ["applied", "applied"]


def test_without_a_key_nothing_may_be_live(
    url: str, clinic_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose bodies cannot be sealed refuses to start with a live route, and names the setting."""
    monkeypatch.setenv("REVERSE_SYNC_SITE_CLINIC_URL", f"{clinic_url}/api")
    monkeypatch.setenv("REVERSE_SYNC_SITE_CLINIC_KEY", CLINIC_KEY)
    settings = WorkerSettings(  # type: ignore[call-arg]  # the rest has defaults
        database_url=url,
        medplum_base_url="http://127.0.0.1:1",
        medplum_client_id="sync",
        medplum_client_secret=SecretStr("sync-secret"),
    )
    ledger = Ledger.open(url)
    try:
        with pytest.raises(SettingsInvalid, match="REVERSE_SYNC_PAYLOAD_KEY"):
            prepare(settings, ledger)
    finally:
        ledger.close()
    sealed = Ledger.open(url, keys=KEYS)
    try:
        assert set(prepare(settings, sealed)) >= {"Condition", "Patient", "Practitioner"}
    finally:
        sealed.close()
