"""Resources that live again, or that Medplum shows no more, as their route says. `protocol.md` 2, 5."""

from __future__ import annotations

import pytest

from tests.integration.sync.declared import declare
from tests.integration.sync.story import CONDITION, PATIENT, PUT_PATIENT, Story, condition, only, patient
from worker.ledger import Selection
from worker.legacy import Call, LegacyRequest
from worker.sync import End


def replays(story: Story, of: str = PATIENT) -> None:
    story.ledger.replay(Selection(references=(of,)), who="a test")


def begins(story: Story, restored: str) -> None:
    """Have a patient deleted and alive again, in a clinic that takes a record back by the PUT of it."""
    declare(story, "Patient", to={"undelete": Call("PUT /patients/{uuid}")}, restored=restored)
    story.changes(patient(), condition())
    story.settles()
    story.deletes(PATIENT)
    story.settles()
    story.changes(patient(family="Roe"))

    def reopen(request: LegacyRequest) -> None:
        if request.method == "PUT" and request.template == "PUT /patients/{uuid}":
            story.edits("patient/4701", status="active")

    story.hooks.before = reopen


def test_a_record_is_brought_back_under_its_old_key(story: Story) -> None:
    """Declared so, the deleted record is un-deleted with today's content, and what stood under it follows (5)."""
    begins(story, "undelete")
    assert story.syncs().kind is End.DONE
    assert only(story.links())["keys"]["number"] == story.record()["number"] == 4701
    assert story.record()["last_name"] == "Roe"
    assert only(story.links())["state"] == "linked"
    story.settles()
    assert story.state(CONDITION) in {"current", "due", "held"}
    assert story.mirror(CONDITION)["waiting_for"] is None


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
@pytest.mark.parametrize("deleted", [False, True])
def test_an_undelete_without_an_answer(story: Story, kind: str, deleted: bool) -> None:
    """It may have acted: repeated where the record is wanted, and deleted again where it is not (3d, 5)."""
    begins(story, "undelete")
    story.breaks(kind, PUT_PATIENT)
    assert story.syncs().kind is End.AGAIN
    if deleted:
        story.deletes(PATIENT)
    story.settles()
    assert len(story.records()) == (0 if deleted else 1)
    assert only(story.links())["state"] == ("tombstone" if deleted else "linked")
    assert story.ledger.status()["unresolved_writes"] == 0


def test_a_restored_one_is_held_until_a_person_lets_it_pass(story: Story) -> None:
    """Declared so, a person decides; a replay makes a new record (5)."""
    begins(story, "hold")
    assert story.syncs().kind is End.HELD
    assert story.mirror()["reason"] == "restored"
    replays(story)
    story.settles()
    assert only(story.links())["keys"]["number"] == 4702


def hides(story: Story, expunged: str) -> None:
    """Have a patient with a record vanish from Medplum without a deletion."""
    declare(story, "Patient", expunged=expunged)
    story.changes(patient())
    story.settles()
    story.faults(hidden={"sync": [PATIENT]})
    story.hears(PATIENT, None)


def test_an_expunged_one_is_deleted_only_by_the_routes_own_words(story: Story) -> None:
    """Declared so, what is absent at two looks is deleted; at one look nothing is (2)."""
    hides(story, "absent")
    assert story.syncs().kind is End.AGAIN
    assert len(story.records()) == 1
    story.settles()
    assert story.records() == []
    assert story.dispositions() == ["applied", "applied"]


def test_an_expunged_one_is_kept_and_the_rule_named(story: Story) -> None:
    """Declared so, the record stays, and its changes are skipped by a rule that is named (2)."""
    hides(story, "keep")
    story.settles()
    assert len(story.records()) == 1
    assert story.dispositions() == ["applied", "skipped"]
    assert "expunged" in story.shown(PATIENT)["changes"][-1]["rule"]


@pytest.mark.parametrize("expunged", ["absent", "keep"])
def test_what_was_never_written_is_held_under_every_policy(story: Story, expunged: str) -> None:
    """What Medplum sent and never showed is not settled as expunged: it was never synced (2)."""
    declare(story, "Patient", expunged=expunged)
    story.faults(hidden={"sync": [PATIENT]})
    story.changes(patient())
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "absent")


def test_the_delete_budget_holds_for_expunged_ones(story: Story) -> None:
    """An access policy that hides a whole type deletes twenty records and no more (2, 3k)."""
    declare(story, "Patient", expunged="absent")
    family = [f"b{number}" for number in range(22)]
    story.changes(*(patient(each) for each in family))
    story.settles()
    references = [f"Patient/{each}" for each in family]
    story.faults(hidden={"sync": references})
    for each in references:
        story.hears(each, None)
    story.settles()
    assert {entry["reason"] for entry in story.ledger.failed()} == {"budget"}
    assert len(story.records()) == 2
