"""A record that is gone for good, and a person who says so: looked for, then made again. `protocol.md` 3d, 5 and 8."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.integration.sync.crosswalk import told
from tests.integration.sync.declared import declare
from tests.integration.sync.story import CONDITION, PATIENT, Story, condition, only, patient
from tests.integration.sync.test_example import PRESSURE, pressure
from worker.errors import LedgerError
from worker.ledger.forgetting import FORGET
from worker.legacy import Unsupported
from worker.links.asking import Asking
from worker.links.gone import Gone
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


def test_the_command_makes_it_again(story: Story) -> None:
    """A person's command, with a reason, gives the record up; the next attempt makes another one (real processes)."""
    loses_the_child(story)
    ended = told(story, "replay", CONDITION, "--create-again", "--why", "went with the old patient", "--yes")
    assert ended.returncode == 0, ended.stderr
    assert f"{CONDITION}: problem id 1 is given up" in ended.stdout
    [action] = [action for action in story.ledger.actions() if action["action"] == FORGET]
    assert (action["who"], action["why"]) == ("Ada", "went with the old patient")
    story.clock.now = datetime.now(UTC)  # by which the command's own process has marked it due
    is_made_once(story)


def test_the_command_refuses_what_is_there(story: Story) -> None:
    """A record that can be read is not given up; nothing is written, and nothing recorded."""
    story.changes(patient())
    story.settles()
    ended = told(story, "replay", PATIENT, "--create-again", "--why", "I think so", "--yes")
    assert ended.returncode == 1
    assert "can be read and is there" in ended.stderr
    assert only(story.links())["state"] == "linked"
    assert [action["action"] for action in story.ledger.actions()] == []


def looked(story: Story) -> Gone:
    return Gone(ledger=story.ledger, routes=story.routes, asking=Asking(story.reader, story.gate))


def test_a_record_under_our_key_that_is_anothers_is_not_ours(story: Story) -> None:
    """A number that came again after a restore names somebody else: ours is gone (3i)."""
    story.changes(patient())
    story.settles()
    with pytest.raises(LedgerError, match="is there"):
        looked(story).of(PATIENT)
    story.edits("patient/4701", external_id="somebody-else")
    assert [link.keys["number"] for link in looked(story).of(PATIENT)] == [4701]


def test_what_was_given_up_or_never_made_has_nothing_to_give_up(story: Story) -> None:
    """A tombstone is no record: a plain replay is what makes one."""
    story.changes(patient())
    with pytest.raises(LedgerError, match="a plain replay is enough"):
        looked(story).of(PATIENT)
    story.settles()
    forgets(story)
    with pytest.raises(LedgerError, match="a plain replay is enough"):
        looked(story).of(PATIENT)


def test_of_several_records_only_those_are_given_up_that_are_gone(story: Story) -> None:
    """One of a resource's records is gone and the other is there: the one alone; unread ones have to be named."""
    story.changes(patient(), pressure())
    story.settles()
    assert len(story.links(PRESSURE)) == 2
    with pytest.raises(LedgerError, match="is there"):
        looked(story).of(PRESSURE)
    declare(story, "Observation", to={"read_by": None})
    with pytest.raises(LedgerError, match="name one by --slot"):
        looked(story).of(PRESSURE)
    slot = story.links(PRESSURE)[0]["slot"]
    assert [link.slot for link in looked(story).of(PRESSURE, slot)] == [slot]


def test_a_record_that_somebody_moved_by_hand_is_found_where_it_is(story: Story) -> None:
    """Held as moved, and moved in the clinic by hand: the look finds it under its new patient, and links it there."""
    story.changes(patient(), patient("p2"), condition())
    story.settles()
    story.changes(condition(of="Patient/p2"))
    story.settles()
    assert (story.state(CONDITION), story.mirror(CONDITION)["reason"]) == ("held", "moved")
    with pytest.raises(LedgerError, match="is there"):
        looked(story).of(CONDITION)
    other = only(story.links("Patient/p2"))["keys"]["number"]
    story.edits("problem/1", patient_number=other)
    assert [link.keys for link in looked(story).of(CONDITION)] == [{"id": 1}]
    forgets(story, CONDITION)
    story.settles()
    assert story.state(CONDITION) == "current"
    assert only(story.links(CONDITION))["parents"] == {"patient": "Patient/p2"}
    assert [each["id"] for each in story.records("problem")] == [1]
