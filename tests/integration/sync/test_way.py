"""The straight ways of a change: created, updated, deleted, left as it is, skipped, refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.sync.story import CONDITION, PATIENT, PRACTITIONER, Story, condition, only, patient, practitioner
from worker import calling
from worker.ledger import Selection
from worker.ledger.values import Phase
from worker.legacy import Unsupported
from worker.legacy.gate import Api, Closed, Gate, Pass
from worker.mapping import Routes
from worker.sync import End

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


@on_both
def test_a_new_patient_becomes_one_record(story: Story) -> None:
    """A version without a link is created, linked by both keys, digested and called applied (protocol 3 and 4)."""
    story.changes(patient())
    assert story.syncs().kind is End.DONE
    record = story.record()
    assert (record["last_name"], record["birth_date"], record["external_id"]) == ("Doe", "02/28/1985", "p1")
    assert only(story.links())["keys"] == {"number": record["number"], "uuid": record["uuid"]}
    assert story.digest() is not None
    assert story.dispositions() == ["applied"]
    assert story.outcomes() == [("create", "done")]
    assert story.state() == "current"


@on_both
def test_a_newer_version_updates_the_record(story: Story) -> None:
    """A version with a link is written over the same record, under its own key (protocol 3)."""
    story.changes(patient())
    story.syncs()
    before = story.digest()
    story.changes(patient(family="Roe"))
    assert story.syncs().kind is End.DONE
    assert story.record()["last_name"] == "Roe"
    assert story.writes() == ["POST", "PUT"]
    assert story.digest() not in (None, before)
    assert story.dispositions() == ["applied", "applied"]


@on_both
def test_a_deleted_patient_loses_the_record(story: Story) -> None:
    """A delete that Medplum confirms is sent once, and leaves a tombstone (protocol 4 and 5)."""
    story.changes(patient())
    story.syncs()
    story.deletes(PATIENT)
    assert story.syncs().kind is End.DONE
    assert story.records() == []
    assert only(story.links())["state"] == "tombstone"
    assert story.digest() is None
    assert story.dispositions() == ["applied", "applied"]
    assert story.state() == "current"


def test_equal_content_writes_nothing(story: Story) -> None:
    """A new version that maps to what was last written is unchanged, and nothing is sent (protocol 3g)."""
    story.changes(patient())
    story.syncs()
    story.changes(patient(active=True))
    story.syncs()
    assert story.writes() == ["POST"]
    assert story.dispositions() == ["applied", "unchanged"]


def test_equal_content_of_our_own_is_an_echo(story: Story) -> None:
    """The author only chooses the word: equal content that we wrote ourselves is an echo (protocol 3g)."""
    story.changes(patient())
    story.syncs()
    story.changes(patient(active=True), author="sync")
    story.syncs()
    assert story.writes() == ["POST"]
    assert story.dispositions() == ["applied", "echo"]


def test_our_own_version_with_other_content_is_written(story: Story) -> None:
    """Our own author is no reason to skip a write whose content differs (protocol 3g)."""
    story.changes(patient())
    story.syncs()
    story.changes(patient(family="Roe"), author="sync")
    story.syncs()
    assert story.record()["last_name"] == "Roe"
    assert story.dispositions() == ["applied", "applied"]


def test_what_should_not_be_there_and_is_not_needs_no_call(story: Story) -> None:
    """Absent without a record is settled as skipped, with the rule, and nothing is sent (protocol 4)."""
    category = [{"coding": [{"code": "encounter-diagnosis"}]}]
    story.changes(condition(category=category))
    story.syncs(CONDITION)
    assert story.dispositions(CONDITION) == ["skipped"]
    assert "one visit" in only(story.shown(CONDITION)["changes"])["rule"]
    assert story.writes() == []


def test_a_route_that_is_off_skips(story: Story) -> None:
    """Changes of a type that is off are settled as skipped, unread (protocol 4)."""
    story.changes(patient())
    story.sql("UPDATE routes SET phase = 'off' WHERE resource_type = 'Patient'")
    story.syncs()
    assert story.dispositions() == ["skipped"]
    assert only(story.shown(PATIENT)["changes"])["rule"] == "the route is off"
    assert story.writes() == []


def test_a_shadow_route_sends_nothing(story: Story) -> None:
    """In the shadow phase everything is done but the send."""
    story.changes(patient())
    story.sql("UPDATE routes SET phase = :phase", phase=Phase.SHADOW.value)
    story.syncs()
    assert story.calls("GET", "POST", "PUT", "DELETE") == []
    assert story.dispositions() == ["skipped"]
    assert story.outcomes() == []


def test_a_mapping_that_says_absent_deletes(story: Story) -> None:
    """A resource that lives but must not be in the legacy system loses its record."""
    story.changes(patient(), condition())
    story.settles()
    assert len(story.records("problem")) == 1
    story.changes(condition(verificationStatus={"coding": [{"code": "entered-in-error"}]}))
    story.syncs(CONDITION)
    assert story.records("problem") == []
    assert story.dispositions(CONDITION) == ["applied", "applied"]


def test_an_absent_one_without_a_record_is_skipped(story: Story) -> None:
    """A resource that must not be in the legacy system, and never was, is skipped by the rule that says so."""
    story.changes(condition(verificationStatus={"coding": [{"code": "refuted"}]}))
    story.syncs(CONDITION)
    assert story.dispositions(CONDITION) == ["skipped"]
    assert story.writes() == []


def test_what_cannot_be_mapped_fails_with_its_line(story: Story) -> None:
    """A missing required value fails the mirror, with field and line and without any value; nothing is sent."""
    nameless = patient() | {"name": [{"given": ["Canary"]}]}
    story.changes(nameless)
    ended = story.syncs()
    assert ended.kind is End.FAILED
    mirror = story.mirror()
    assert (mirror["state"], mirror["reason"]) == ("failed", "unmappable")
    assert "last_name = required(name.family)" in mirror["detail"]
    assert "Canary" not in mirror["detail"] + ended.words
    assert story.dispositions() == ["failed"]
    assert story.writes() == []


def test_a_newer_version_wakes_what_failed(story: Story) -> None:
    """A failed mirror starts anew with the next version, which supersedes the one that failed (protocol 1 and 4)."""
    story.changes(patient() | {"name": [{"given": ["Jane"]}]})
    story.syncs()
    assert story.state() == "failed"
    story.changes(patient())
    assert story.syncs().kind is End.DONE
    assert story.dispositions() == ["superseded", "applied"]
    story.agrees()


def test_a_refusal_fails_with_the_words_sealed(story: Story) -> None:
    """A 422 fails the mirror: status and field names are told, the API's own words are not."""
    story.changes(patient(telecom=[{"system": "email", "value": "Canary without an at"}]))
    ended = story.syncs()
    mirror = story.mirror()
    assert (ended.kind, mirror["state"], mirror["reason"]) == (End.FAILED, "failed", "refused")
    assert "422" in mirror["detail"]
    assert "email" in mirror["detail"]
    assert "Canary" not in repr(story.shown(PATIENT)) + ended.words
    [(sealed,)] = story.sql("SELECT answer FROM writes")
    assert b"Canary" not in bytes(sealed)
    [said] = story.ledger.words(PATIENT, who="ana").values()
    assert "error.fields.email: '[sent]' is not an e-mail address" in said
    assert "Canary" not in said  # what we sent ourselves need not be read for it
    assert story.dispositions() == ["failed"]
    assert story.outcomes() == [("create", "refused")]


def test_a_resource_that_fhir_refuses_fails(story: Story) -> None:
    """What the R4 models refuse fails with the field's name and without its value."""
    story.changes(patient(birthDate="Canary"))
    ended = story.syncs()
    assert (ended.kind, story.mirror()["reason"]) == (End.FAILED, "invalid")
    assert "birthDate" in ended.words
    assert "Canary" not in ended.words


def test_a_version_that_nobody_told_of_has_its_row(story: Story) -> None:
    """Applied is said of the version that was read, also where another one was announced (protocol 4)."""
    [first] = story.changes(patient())
    [second] = story.saves(patient(family="Roe"))
    story.syncs()
    rows = {change["version_id"]: change for change in story.shown(PATIENT)["changes"]}
    assert (rows[first]["disposition"], rows[second]["disposition"]) == ("superseded", "applied")
    assert rows[second]["source"] == "read"
    story.hears(PATIENT, second)
    assert story.mirror()["due_at"] is None  # the applied version: known, and no reason to wake
    assert story.writes() == ["POST"]


def test_a_provider_that_exists_already_is_linked_if_it_is_ours(story: Story) -> None:
    """409 duplicate on a create: the record that says it is ours is found, linked and written."""
    npi = [{"system": "http://hl7.org/fhir/sid/us-npi", "value": "1234567893"}]
    story.changes(practitioner(identifier=npi))
    story.settles()
    story.sql("DELETE FROM links")
    story.sql("UPDATE writes SET outcome = 'not-done'")
    story.changes(practitioner(identifier=npi, active=True))
    story.settles()
    story.agrees()
    assert only(story.links(PRACTITIONER))["keys"] == {"id": story.record("provider")["id"]}


def test_a_provider_of_another_with_our_npi_is_held(story: Story) -> None:
    """409 duplicate by somebody else's record is never linked: a person decides."""
    npi = [{"system": "http://hl7.org/fhir/sid/us-npi", "value": "1234567893"}]
    story.changes(practitioner("d2", identifier=npi))
    story.settles()
    story.changes(practitioner("d1", identifier=npi))
    assert story.syncs(PRACTITIONER).kind is End.HELD
    assert story.links(PRACTITIONER) == []
    assert len(story.records("provider")) == 1


def test_route_of_the_example_are_live(routes: Routes) -> None:
    """The stories here are told of live routes."""
    assert {route.phase for route in routes.values()} == {Phase.LIVE}


class Busy(Gate):
    """A gate whose first answers are the given ones."""

    def __init__(self, *waits_s: float, then: Callable[[], None] = lambda: None) -> None:
        super().__init__(None)
        self.waits_s, self.asked, self.then = list(waits_s), 0, then

    def enter(self, api: Api) -> Pass | Closed:
        self.asked += 1
        if not self.waits_s:
            return super().enter(api)
        self.then()
        return Closed(self.waits_s.pop(0))


def test_a_full_gate_is_waited_for(story: Story) -> None:
    """All calls in flight for a moment: the attempt waits, instead of giving up its claim and its read."""
    story.gate = Busy(0.1, 0.1)
    story.changes(patient())
    assert story.tries().kind is End.DONE
    assert len(story.hooks.priorities) == 1
    assert story.record()["last_name"] == "Doe"


def test_a_gate_that_stays_full_is_not_waited_for_longer(story: Story) -> None:
    """After less than a second the mirror is given back, and no attempt is counted."""
    story.gate = Busy(*[0.1] * 100)
    story.changes(patient())
    began = time.monotonic()
    assert story.tries().kind is End.AGAIN
    assert time.monotonic() - began < 2
    assert (story.mirror()["reason"], story.mirror()["attempts"]) == ("gate", 0)
    assert story.outcomes() == []


def test_few_threads_wait_at_one_full_gate(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where as many threads as may wait there already, the mirror is given back at once: others need the thread."""
    story.gate = gate = Busy(*[0.1] * 100)
    story.changes(patient())
    seat = calling._seats.of("clinic")
    with ExitStack() as taken:
        for _ in range(calling.WAITING_MOST):
            seat.acquire()
            taken.callback(seat.release)
        assert story.tries().kind is End.AGAIN
    assert (gate.asked, story.mirror()["reason"], story.mirror()["attempts"]) == (1, "gate", 0)


def test_a_closed_gate_gives_the_mirror_back_at_once(story: Story) -> None:
    """A gate that names a longer wait is asked once, and its wait is kept."""
    story.gate = gate = Busy(*[7.0] * 100)
    story.changes(patient())
    assert story.tries().kind is End.AGAIN
    assert gate.asked == 1
    assert story.waits_s() == pytest.approx(7, abs=1)


def test_a_stopping_worker_does_not_wait_for_a_full_gate(story: Story) -> None:
    """Told to stop while it waits, the worker announces nothing more, though the gate opens."""
    story.gate = gate = Busy(0.1, then=story.stopping.set)
    story.changes(patient())
    assert story.tries().kind is End.AGAIN
    assert (story.mirror()["reason"], gate.asked) == ("stopping", 1)
    assert story.outcomes() == []


def without(routes: Routes, **cannot: Any) -> Routes:
    """Take operations away from the clinic's patients."""
    real = routes["Patient"]
    return {**routes, "Patient": replace(real, to=replace(real.to, **cannot))}


def test_what_the_api_cannot_create_is_skipped_by_its_reason(story: Story, routes: Routes) -> None:
    """There is nothing to leave behind, and nothing to mend: skipped, with the declared words."""
    story.routes = without(routes, create=Unsupported("patients are registered at the desk"))
    story.changes(patient())
    assert story.syncs().kind is End.DONE
    assert story.dispositions() == ["skipped"]
    assert only(story.shown(PATIENT)["changes"])["rule"] == "patients are registered at the desk"
    assert story.outcomes() == []


@on_both
def test_what_the_api_cannot_update_is_left_behind_until_it_agrees_again(story: Story, routes: Routes) -> None:
    """A record that cannot follow is marked and counted; the mark goes when Medplum says again what the record says."""
    story.routes = without(routes, update=Unsupported("patients are never changed"))
    story.changes(patient(), condition())
    story.settles()
    story.changes(patient(family="Roe"))
    story.settles()
    assert story.dispositions() == ["applied", "skipped"]
    assert only(story.links())["state"] == "left-behind"
    assert only(story.links())["reason"] == "patients are never changed"
    assert story.ledger.status()["left_behind"] == 1
    story.changes(condition(title="Asthma"))
    story.settles()
    assert story.record("problem")["title"] == "Asthma"
    story.changes(patient())
    story.settles()
    assert story.ledger.status()["left_behind"] == 0
    assert story.dispositions() == ["applied", "skipped", "unchanged"]
    story.agrees()


def test_a_record_that_could_not_follow_is_deleted_with_its_resource(story: Story, routes: Routes) -> None:
    """Left behind for want of an update, a record is still there to be deleted."""
    story.routes = without(routes, update=Unsupported("patients are never changed"))
    story.changes(patient())
    story.settles()
    story.changes(patient(family="Roe"))
    story.settles()
    story.deletes(PATIENT)
    story.settles()
    assert story.records() == []
    assert only(story.links())["state"] == "tombstone"


def test_what_the_api_cannot_delete_stays_left_behind(story: Story, routes: Routes) -> None:
    """A second look at what could not be deleted says the same, and asks the API nothing."""
    story.routes = without(routes, delete=Unsupported("patients are never deleted"))
    story.changes(patient())
    story.settles()
    story.deletes(PATIENT)
    story.settles()
    story.ledger.replay(Selection(references=(PATIENT,)), who="a test")
    story.settles()
    assert story.dispositions() == ["applied", "skipped"]
    assert story.writes() == ["POST"]
    assert story.ledger.status()["left_behind"] == 1
