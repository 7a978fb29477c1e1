"""Records whose parent is another one now. `protocol.md` 8."""

from __future__ import annotations

import pytest

from tests.integration.sync.declared import declare
from tests.integration.sync.story import CONDITION, DELETE_PATIENT, OTHER, PATIENT, Story, condition, only, patient
from worker.legacy import LegacyRequest
from worker.sync import End

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
POST_PROBLEM = {"method": "POST", "template": "/api/patients/{uuid}/problems"}
DELETE_PROBLEM = {"method": "DELETE", "template": "/api/patients/{uuid}/problems/{id}"}


def begins(story: Story, moved: str = "replace") -> None:
    """Have a problem under one patient, and Medplum say that it is another patient's."""
    declare(story, "Condition", moved=moved)
    story.changes(patient(), patient("p2"), condition())
    story.settles()
    story.clock.forward(60)
    story.changes(condition(of=OTHER))


def number(story: Story, of: str) -> object:
    return only(story.links(of))["keys"]["number"]


@on_both
def test_a_moved_record_is_deleted_there_and_made_here(story: Story) -> None:
    """Declared so, the record goes from the old patient and comes to the new one: never on both (8)."""
    begins(story)
    assert story.syncs(CONDITION).kind is End.DONE
    assert story.outcomes(CONDITION)[1:] == [("replace", "done"), ("create", "done")]
    assert story.record("problem")["patient_number"] == number(story, OTHER)
    assert only(story.links(CONDITION))["parents"] == {"patient": OTHER}
    story.agrees()


def test_a_moved_record_is_held_where_nothing_is_declared(story: Story) -> None:
    """A record is not moved from one patient to another by itself (8)."""
    begins(story, moved="hold")
    assert story.syncs(CONDITION).kind is End.HELD
    assert story.mirror(CONDITION)["reason"] == "moved"
    assert story.record("problem")["patient_number"] == number(story, PATIENT)


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
@pytest.mark.parametrize("match", [DELETE_PROBLEM, POST_PROBLEM], ids=["delete", "create"])
def test_a_half_of_a_move_without_an_answer_ends_right(story: Story, kind: str, match: dict[str, str]) -> None:
    """The delete is repeated under the old parent, the create looked up under the new one (8, 9)."""
    begins(story)
    story.breaks(kind, match)
    assert story.syncs(CONDITION).kind is End.AGAIN
    story.settles()
    assert story.state(CONDITION) == "current", story.mirror(CONDITION)
    assert story.record("problem")["patient_number"] == number(story, OTHER)
    story.agrees()


def test_a_record_stays_until_its_new_parent_is_there(story: Story) -> None:
    """Nothing is deleted for a move to a patient that has no record yet (8)."""
    declare(story, "Condition", moved="replace")
    story.changes(patient(), condition())
    story.settles()
    story.clock.forward(60)
    story.saves(patient("p2", telecom=[{"system": "email", "value": "no at"}]))
    story.changes(condition(of=OTHER))
    assert story.syncs(CONDITION).kind is End.WAITING
    assert story.writes().count("DELETE") == 0


def test_a_move_back_while_half_way_makes_it_where_it_was(story: Story) -> None:
    """Between the halves the link is half-replaced, and the create goes where Medplum says by then (8, 9)."""
    begins(story)
    story.breaks("status", POST_PROBLEM, status=503)
    assert story.syncs(CONDITION).kind is End.AGAIN
    story.changes(condition())
    story.settles()
    assert story.record("problem")["patient_number"] == number(story, PATIENT)
    story.agrees()


def test_a_create_in_doubt_of_what_moved_meanwhile_is_moved(story: Story) -> None:
    """What an unanswered create has made under the old patient is found there, linked, and moved (3d, 8)."""
    declare(story, "Condition", moved="replace")
    story.changes(patient(), patient("p2"))
    story.settles()
    story.changes(condition())
    story.breaks("reset_after", POST_PROBLEM)
    story.syncs(CONDITION)
    story.changes(condition(of=OTHER))
    story.settles()
    assert story.state(CONDITION) == "current", story.mirror(CONDITION)
    assert story.record("problem")["patient_number"] == number(story, OTHER)
    story.agrees()


def test_what_is_refused_under_a_parent_is_looked_at_once_more(story: Story) -> None:
    """A patient that was deleted between our look and our write is no reason to hold its problem at once (8)."""
    story.changes(patient(), condition())
    story.syncs()

    def remove(request: LegacyRequest) -> None:
        if request.method == "POST":
            story.hooks.before = lambda request: None
            story.deletes(PATIENT)
            story.syncs()

    story.hooks.before = remove
    assert story.syncs(CONDITION).kind is End.AGAIN
    assert story.outcomes(CONDITION) == [("create", "conflict")]
    story.settles()
    assert (story.state(CONDITION), story.mirror(CONDITION)["reason"]) == ("failed", "parent")


def test_what_is_refused_twice_under_a_parent_fails(story: Story) -> None:
    """One look more, and no third: a refusal that has nothing to do with the parent is a failure (8)."""
    story.changes(patient(), condition())
    story.syncs()
    story.breaks("status", POST_PROBLEM, status=422, times=None)
    story.settles()
    assert story.state(CONDITION) == "failed"
    assert story.outcomes(CONDITION) == [("create", "refused")] * 2


def test_what_is_refused_under_a_parent_in_doubt_waits_for_the_parent(story: Story) -> None:
    """The patient's own delete had no answer: a problem that meets its record is not held for it (8)."""
    story.changes(patient(), condition())
    story.settles()
    story.deletes(PATIENT)
    story.breaks("reset_after", DELETE_PATIENT)
    story.syncs()
    story.changes(condition(title="Gout, acute"))
    assert [story.syncs(CONDITION).kind for _ in range(2)] == [End.AGAIN] * 2
    assert "its parent is in doubt itself" in story.mirror(CONDITION)["detail"]
    assert story.waits_s(CONDITION) > 0
    story.clock.forward(600)  # the bound is long over, and nobody had time for the patient yet
    assert story.syncs(CONDITION).kind is End.AGAIN
    story.settles()
    assert story.mirror(CONDITION)["reason"] != "conflict"
