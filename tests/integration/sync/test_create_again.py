"""A record that is gone for good, and a person who says so: looked for, then made again. `protocol.md` 3d, 5 and 8."""

from __future__ import annotations

from tests.integration.sync.declared import declare
from tests.integration.sync.story import CONDITION, PATIENT, Story, condition, only, patient
from worker.legacy import Unsupported
from worker.sync import End


def forgets(story: Story, of: str = PATIENT) -> None:
    assert story.ledger.forget_record(of, "", who="ana", why="the vendor says that it is purged")


def loses_the_child(story: Story) -> None:
    """Have a patient deleted and made anew, so that the problem's record went with the old one's."""
    story.changes(patient(), condition())
    story.settles()
    story.deletes(PATIENT)
    story.settles()
    story.changes(patient())
    story.settles()
    assert (story.state(CONDITION), story.mirror(CONDITION)["reason"]) == ("held", "gone")


def is_made_once(story: Story) -> None:
    """Check that one problem stands under the patient's record of today, and the link names it."""
    story.settles()
    number = story.record()["number"]
    [problem] = [each for each in story.records("problem") if each["patient_number"] == number]
    assert story.state(CONDITION) == "current"
    link = only(story.links(CONDITION))
    assert (link["state"], link["keys"]["id"]) == ("linked", problem["id"])


def test_a_child_of_a_record_that_was_made_anew_is_made_again(story: Story) -> None:
    """Held as gone until a person says so, then it has a record under its patient's new one."""
    loses_the_child(story)
    forgets(story, CONDITION)
    is_made_once(story)


def test_what_is_there_after_all_is_found_and_not_made_twice(story: Story) -> None:
    """The person was wrong: the look before the create finds the very record, and links it again."""
    story.changes(patient())
    story.settles()
    forgets(story)
    assert story.syncs().kind is End.DONE
    assert story.writes() == ["POST"]
    assert only(story.links())["state"] == "linked"
    story.agrees()


def test_what_is_there_and_says_something_else_is_held(story: Story) -> None:
    """The record is there with another content: a person has to see it, and no second one is made."""
    story.changes(patient())
    story.settles()
    forgets(story)
    story.edits("patient/4701", last_name="Roe")
    assert story.syncs().kind is End.HELD
    assert story.mirror()["reason"] == "found"
    assert len(story.records()) == 1


def test_a_lost_answer_to_the_new_create_is_looked_up(story: Story) -> None:
    """The create after the word is as any: without an answer its record is found, and there is one (3d)."""
    loses_the_child(story)
    forgets(story, CONDITION)
    story.breaks("reset_after", {"method": "POST", "template": "/api/patients/{uuid}/problems"})
    assert story.syncs(CONDITION).kind is End.AGAIN
    is_made_once(story)
    assert len(story.calls("POST")) == 4  # two patients, two problems


def test_without_a_find_the_word_is_enough(story: Story) -> None:
    """Where the API cannot look a record up, a new one is made on the person's word alone."""
    declare(story, "Condition", to={"find_by": Unsupported("no search")})
    loses_the_child(story)
    forgets(story, CONDITION)
    is_made_once(story)


def test_a_restore_policy_does_not_stand_against_it(story: Story) -> None:
    """Where a deleted record's return is held for a person, this is the person's word."""
    declare(story, "Condition", restored="hold")
    loses_the_child(story)
    forgets(story, CONDITION)
    is_made_once(story)


def test_a_resource_that_is_deleted_after_it_needs_no_call(story: Story) -> None:
    """What is forgotten is gone: its resource's deletion settles without a request."""
    story.changes(patient())
    story.settles()
    forgets(story)
    story.deletes(PATIENT)
    story.settles()
    assert story.writes() == ["POST"]
    assert story.state() == "current"
