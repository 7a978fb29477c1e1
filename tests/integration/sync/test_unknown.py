"""Writes whose outcome is no, later, or anybody's guess. `protocol.md` 3, and the mutants of its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.sync.declared import declare
from tests.integration.sync.story import (
    BOUND_S,
    CONDITION,
    DELETE_PATIENT,
    OTHER,
    PATIENT,
    POST_PATIENT,
    PUT_PATIENT,
    Story,
    condition,
    killed,
    only,
    patient,
)
from worker.ledger import Selection
from worker.legacy import Call, Unsupported
from worker.legacy.gate import Gate
from worker.sync import End

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
FINDS = {"method": "GET", "template": "/api/patients"}

SAVED: list[tuple[str, Mapping[str, Any]]] = [
    ("reset_after", {}),
    ("status", {"status": 500, "saves": True}),
    ("status", {"status": 502, "saves": True}),
    ("status", {"status": 201, "saves": True, "body": "<html>a proxy's page</html>"}),
]
NOT_SAVED: list[tuple[str, Mapping[str, Any]]] = [
    ("reset_before", {}),
    ("refuse", {}),
    ("status", {"status": 504}),
]


def replays(story: Story, of: str = PATIENT) -> None:
    story.ledger.replay(Selection(references=(of,)), who="a test")


@pytest.mark.parametrize(
    ("rule", "least_s"),
    [
        ({"status": 503}, 0.0),
        ({"status": 429, "headers": {"Retry-After": "17"}}, 17.0),
        ({"status": 429}, 0.0),
        ({"status": 401}, 0.0),
    ],
    ids=["503", "429 with Retry-After", "429", "401"],
)
def test_not_done_is_tried_again(story: Story, rule: Mapping[str, Any], least_s: float) -> None:
    """A clinic that certainly did not act is asked again, never before its Retry-After; nothing is in doubt."""
    story.changes(patient())
    story.breaks("status", POST_PATIENT, **rule)
    assert story.tries().kind is End.AGAIN
    assert story.state() == "due"
    assert story.mirror()["attempts"] == 1
    assert story.waits_s() >= least_s
    assert story.outcomes() == [("create", "not-done")]
    story.gate = Gate(None)  # that of this story counts Retry-After by a clock of its own
    story.settles()
    assert story.outcomes() == [("create", "not-done"), ("create", "done")]
    assert story.calls("GET")[:-1] == []  # no find: there is nothing to find out
    story.agrees()


def test_a_clinic_that_is_down_is_not_done(story: Story) -> None:
    """A refused connection certainly did nothing: due again, and nothing is unresolved."""
    story.changes(patient())
    story.hooks.goes_to = lambda api: replace(api, base_url="http://127.0.0.1:9/api")
    assert story.tries().kind is End.AGAIN
    assert story.outcomes() == [("create", "not-done")]
    assert story.ledger.status()["unresolved_writes"] == 0
    story.hooks.goes_to = lambda api: api
    story.settles()
    story.agrees()


def test_an_update_that_was_not_done_leaves_the_digest_void(story: Story) -> None:
    """After a write that did not happen nothing is skipped as equal, not even what was there before (protocol 3a)."""
    story.changes(patient())
    story.settles()
    story.changes(patient(family="Roe"))
    story.clock.forward(5)
    story.breaks("status", PUT_PATIENT, status=503)
    assert story.tries().kind is End.AGAIN
    assert story.digest() is None
    story.changes(patient())
    story.settles()
    assert story.writes() == ["POST", "PUT", "PUT"]
    story.agrees()


@on_both
@pytest.mark.parametrize(("kind", "rule"), SAVED)
def test_a_create_that_landed_without_an_answer_is_found(story: Story, kind: str, rule: Mapping[str, Any]) -> None:
    """Nothing is sent before the bound; then the one record is found, linked and written (protocol 3c, 3d)."""
    story.changes(patient())
    story.breaks(kind, POST_PATIENT, **rule)
    assert story.tries().kind is End.AGAIN
    assert story.outcomes() == [("create", None)]
    assert story.waits_s() == pytest.approx(BOUND_S, abs=1)
    story.changes(patient(family="Roe"))
    replays(story)
    story.clock.forward(BOUND_S - 2)
    assert story.tries().kind is End.AGAIN
    assert [line["method"] for line in story.calls("GET", "POST", "PUT")] == ["POST"]
    assert story.syncs().kind is End.DONE
    assert story.outcomes() == [("create", "found"), ("update", "done")]
    assert story.record()["last_name"] == "Roe"
    story.settles()
    story.agrees()


@pytest.mark.parametrize(("kind", "rule"), NOT_SAVED)
def test_a_create_that_never_landed_is_made_again(story: Story, kind: str, rule: Mapping[str, Any]) -> None:
    """Where find shows nothing the record is created, and looked for once more after the next bound (protocol 3d)."""
    story.changes(patient())
    story.breaks(kind, POST_PATIENT, **rule)
    story.tries()
    assert story.syncs().kind is End.DONE
    assert story.outcomes() == [("create", "lapsed"), ("create", "done")]
    assert only(story.links())["look_at"] is not None
    assert story.waits_s() == pytest.approx(BOUND_S, abs=1)
    finds = [line["query"] for line in story.calls("GET")].count("external_id=p1&per_page=50&page=1")
    assert story.syncs().kind is End.DONE
    queries = [line["query"] for line in story.calls("GET")]
    assert queries.count("external_id=p1&per_page=50&page=1") == finds + 1
    assert only(story.links())["look_at"] is None
    story.settles()
    assert story.writes() == ["POST", "POST"]
    story.agrees()


def test_a_create_that_timed_out_is_found(story: Story) -> None:
    """A clinic that saves and then says nothing leaves the outcome open until find has shown the record."""
    story.changes(patient())
    story.breaks("hang", POST_PATIENT, saves=True)
    assert story.tries(by=story.worker(budget_s=1.3)).kind is End.AGAIN
    assert story.outcomes() == [("create", None)]
    story.settles()
    assert story.outcomes() == [("create", "found"), ("update", "done")]
    story.agrees()


def test_a_record_that_lands_late_after_all_is_held(story: Story) -> None:
    """A create that acted beyond its declared bound has made a second record: found by the second look, and held."""
    story.changes(patient())
    story.breaks("reset_before", POST_PATIENT)
    story.tries()
    story.syncs()
    story.lands()
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "second record")
    assert len(story.records()) == 2
    assert story.writes().count("DELETE") == 0


def test_a_late_record_is_seen_by_what_was_sent(story: Story) -> None:
    """The second look knows a twin by what the create had sent, whatever the record was changed to since."""
    story.changes(patient(), condition())
    story.syncs()
    story.breaks("reset_before", {"method": "POST", "template": "/api/patients/{uuid}/problems"})
    story.tries(CONDITION)
    story.syncs(CONDITION)
    story.changes(condition(title="Pseudogout"))
    story.clock.forward(5)
    assert story.tries(CONDITION).kind is End.DONE
    story.lands()
    story.settles()
    assert (story.state(CONDITION), story.mirror(CONDITION)["reason"]) == ("held", "second record")


def test_the_second_look_is_owed_however_the_repeated_create_goes(story: Story) -> None:
    """A create after an empty find is looked for again, also where a refusal for the moment came in between."""
    story.changes(patient())
    story.breaks("reset_before", POST_PATIENT)
    story.tries()
    story.breaks("status", POST_PATIENT, status=503)
    assert story.syncs().kind is End.AGAIN
    assert story.syncs().kind is End.DONE
    story.lands()
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "second record")


@on_both
@pytest.mark.parametrize("after_s", [1.0, 30.0, BOUND_S - 1])
def test_a_write_that_lands_late_never_has_the_last_word(story: Story, after_s: float) -> None:
    """A write lands within its bound, after a newer version was made: the newer one is sent after it (3c, 3d, 3f)."""
    story.changes(patient())
    story.settles()
    story.changes(patient(family="Roe"))
    story.breaks("reset_before", PUT_PATIENT)
    story.syncs()
    story.changes(patient(family="Poe"))
    replays(story)
    story.clock.forward(after_s)
    assert story.tries().kind is End.AGAIN
    assert story.writes().count("PUT") == 1
    story.lands()
    assert story.record()["last_name"] == "Roe"
    story.settles()
    assert story.record()["last_name"] == "Poe"
    assert story.writes().count("PUT") == 3
    story.agrees()


def test_two_records_are_held(story: Story) -> None:
    """Where find shows two that agree nobody can know which is ours: held."""
    story.changes(patient())
    story.breaks("reset_after", POST_PATIENT)
    story.tries()
    body = story.calls("POST")[0]["body"]
    assert story.clinic.post("/api/patients", json=body, headers={"X-Api-Key": "clinic-key"}).is_success
    assert story.syncs().kind is End.HELD
    assert "several" in story.mirror()["detail"]
    assert story.links() == []


def test_a_record_that_differs_is_held_with_the_fields_names(story: Story) -> None:
    """A hit that does not agree in everything that was sent is not ours for certain: held, its fields named."""
    story.changes(patient())
    story.breaks("reset_after", POST_PATIENT)
    story.tries()
    story.edits("patient/4701", last_name="Canary", birth_date="01/01/1901")
    assert story.syncs().kind is End.HELD
    detail = story.mirror()["detail"]
    assert "birth_date, last_name" in detail
    assert "Canary" not in detail
    assert story.writes() == ["POST"]


def test_a_record_of_another_resource_is_never_linked(story: Story) -> None:
    """A hit that another resource owns is left alone, however well it agrees."""
    story.changes(patient())
    story.breaks("reset_after", POST_PATIENT)
    story.tries()
    story.changes(patient("p2"))
    story.syncs(OTHER)
    story.sql("UPDATE links SET key = '4701' WHERE reference = :of", of=OTHER)
    story.syncs()
    assert story.outcomes() == [("create", "lapsed"), ("create", "done")]
    assert only(story.links())["keys"]["number"] == 4703
    assert story.calls("PUT") == []


def test_a_find_that_fails_creates_nothing(story: Story) -> None:
    """A find without an answer is no find: due again, the write still in doubt, nothing sent."""
    story.changes(patient())
    story.breaks("reset_after", POST_PATIENT)
    story.tries()
    story.breaks("status", FINDS, status=500)
    assert story.syncs().kind is End.AGAIN
    assert story.outcomes() == [("create", None)]
    story.settles()
    story.agrees()


@on_both
@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_an_update_without_an_answer_is_written_again(story: Story, kind: str) -> None:
    """After the bound the record is written whatever was known of it, also where Medplum is back at the old content."""
    story.changes(patient())
    story.settles()
    story.changes(patient(family="Roe"))
    story.breaks(kind, PUT_PATIENT)
    assert story.syncs().kind is End.AGAIN
    assert story.digest() is None
    story.changes(patient())
    replays(story)
    assert story.tries().kind is End.AGAIN
    assert story.writes() == ["POST", "PUT"]
    assert story.syncs().kind is End.DONE
    assert story.outcomes() == [("create", "done"), ("update", "lapsed"), ("update", "done")]
    story.agrees()


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_a_delete_without_an_answer_is_sent_again(story: Story, kind: str) -> None:
    """After the bound the delete is repeated; that the record is gone already is as good as done."""
    story.changes(patient())
    story.settles()
    story.deletes(PATIENT)
    story.breaks(kind, DELETE_PATIENT)
    assert story.syncs().kind is End.AGAIN
    assert story.waits_s() == pytest.approx(BOUND_S, abs=1)
    assert story.syncs().kind is End.DONE
    assert story.records() == []
    assert only(story.links())["state"] == "tombstone"
    assert story.ledger.status()["unresolved_writes"] == 0


def test_a_create_in_doubt_of_a_deleted_resource_is_found_and_deleted(story: Story) -> None:
    """A record that may have come into being is looked up before its deleted resource is settled."""
    story.changes(patient())
    story.breaks("reset_after", POST_PATIENT)
    story.tries()
    story.deletes(PATIENT)
    story.settles()
    assert story.records() == []
    assert story.ledger.status()["unresolved_writes"] == 0
    story.agrees()


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_a_create_in_doubt_beside_a_tombstone_is_found_and_deleted(story: Story, kind: str) -> None:
    """Deleted, restored with a create in doubt, deleted again: the new record goes too, not the old one twice."""
    story.changes(patient())
    story.settles()
    story.deletes(PATIENT)
    story.settles()
    story.changes(patient(family="Roe"))
    story.breaks(kind, POST_PATIENT)
    story.syncs()
    story.deletes(PATIENT)
    story.settles()
    assert story.records() == []
    assert story.ledger.status()["unresolved_writes"] == 0
    assert story.state() == "current"


def test_a_create_in_doubt_whose_resource_is_out_of_sight_is_held(story: Story) -> None:
    """A record that may be there is not forgotten because Medplum shows the resource no more."""
    story.saves(patient())
    story.hears(PATIENT, None)
    story.breaks("reset_after", POST_PATIENT)
    story.tries()
    story.faults(hidden={"sync": [PATIENT]})
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "absent")
    assert len(story.records()) == 1


@on_both
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("what", ["create", "update", "delete"])
def test_a_worker_that_dies_around_a_write_loses_and_doubles_nothing(story: Story, what: str, where: str) -> None:
    """Killed between announcement and send, or between send and record: after the bound all is right (mutant M6)."""
    if what != "create":
        story.changes(patient())
        story.settles()
    story.clock.forward(5)
    if what == "delete":
        story.deletes(PATIENT)
    else:
        story.changes(patient(family="Roe"))
    setattr(story.hooks, where, killed)
    story.dies()
    setattr(story.hooks, where, lambda request: None)
    sent = len(story.writes())
    assert story.tries().kind is End.AGAIN
    assert len(story.writes()) == sent
    story.settles()
    story.agrees()
    assert story.state() == "current"
    assert story.ledger.status()["unresolved_writes"] == 0


def test_a_gone_record_is_held(story: Story) -> None:
    """404 on an update: what was ours is no more, and nobody but a person says whether to make it again."""
    story.changes(patient())
    story.settles()
    assert story.clinic.post("/sandbox/edit", json={"record": "patient/4701", "remove": True}).is_success
    story.changes(patient(family="Roe"))
    assert story.syncs().kind is End.HELD
    assert story.mirror()["reason"] == "gone"


def test_a_replay_writes_whatever_is_known(story: Story) -> None:
    """Replay voids the digest, so that an edit in the clinic is overwritten though Medplum did not change (3g)."""
    story.changes(patient())
    story.settles()
    story.edits("patient/4701", last_name="Edited")
    replays(story)
    story.settles()
    assert story.record()["last_name"] == "Doe"


def test_a_create_under_an_idempotency_key_is_repeated_word_by_word(story: Story) -> None:
    """3d: without a find the key makes the second request the first one again; what is newer is written after it."""
    create = Call("POST /patients", idempotency="Idempotency-Key")
    declare(story, "Patient", to={"create": create, "find_by": Unsupported("no search")})
    story.changes(patient())
    story.breaks("reset_before", POST_PATIENT, times=1)
    assert story.tries().kind is End.AGAIN
    story.changes(patient(family="Roe"))
    story.clock.forward(BOUND_S + 1)
    story.settles()
    first, second = [line for line in story.calls("POST", "PUT") if line["method"] == "POST"]
    assert first["idempotency_key"] == second["idempotency_key"] is not None
    assert second["body"]["last_name"] == "Doe"
    assert story.writes() == ["POST", "POST", "PUT"]
    assert story.record()["last_name"] == "Roe"
    story.agrees()


def test_each_create_has_a_key_of_its_own(story: Story) -> None:
    """Two resources, or one that is made anew after a delete, never share an idempotency key."""
    declare(story, "Patient", to={"create": Call("POST /patients", idempotency="Idempotency-Key")})
    story.changes(patient())
    story.changes(patient("p2"))
    story.settles()
    keys = [line["idempotency_key"] for line in story.calls("POST")]
    assert len(set(keys)) == len(keys) == 2
    assert None not in keys
