"""Updates by delete and create: every way to stop half-way, and none that loses the record. `protocol.md` 9."""

from __future__ import annotations

import json

import pytest

from tests.integration.sync.declared import declare, image
from tests.integration.sync.story import (
    BOUND_S,
    CONDITION,
    DELETE_PATIENT,
    PATIENT,
    POST_PATIENT,
    Story,
    condition,
    killed,
    only,
    patient,
)
from worker.ledger import Selection
from worker.legacy import LegacyRequest, Replace
from worker.sync import End

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
ORDERS = {False: ["DELETE", "POST"], True: ["POST", "DELETE"]}
order = pytest.mark.parametrize("create_first", [False, True], ids=["delete first", "create first"])


def begins(story: Story, *, create_first: bool = False) -> None:
    """Have one patient in a clinic that cannot change records, and a newer version of it in Medplum."""
    declare(story, "Patient", to={"update": Replace(create_first=create_first)})
    story.changes(patient())
    story.settles()
    story.clock.forward(60)
    story.changes(patient(family="Roe"))


def replays(story: Story) -> None:
    story.ledger.replay(Selection(references=(PATIENT,)), who="a test")


@on_both
@order
def test_an_update_is_a_delete_and_a_create(story: Story, create_first: bool) -> None:
    """Both halves are announced, sent and recorded one by one, in the declared order; the link has the new key (9)."""
    begins(story, create_first=create_first)
    assert story.syncs().kind is End.DONE
    assert story.writes()[1:] == ORDERS[create_first]
    halves = [("replace", "done"), ("create", "done")]
    assert story.outcomes()[1:] == (halves[::-1] if create_first else halves)
    link = only(story.links())
    assert (link["state"], link["keys"]["number"], link["old_keys"]) == ("linked", 4702, None)
    assert story.dispositions() == ["applied", "applied"]
    story.settles()
    assert len(story.writes()) == 3
    story.agrees()


@order
def test_equal_content_replaces_nothing(story: Story, create_first: bool) -> None:
    """The new record's digest is believed, though another record was deleted after it was made (9, 3g)."""
    begins(story, create_first=create_first)
    story.settles()
    story.changes(patient(family="Roe", active=True))
    story.settles()
    assert len(story.writes()) == 3
    assert story.dispositions()[-1] == "unchanged"


@order
def test_the_before_image_is_kept(story: Story, create_first: bool) -> None:
    """What the old record said is kept sealed before it is deleted (9)."""
    begins(story, create_first=create_first)
    story.settles()
    kept = image(story, PATIENT)
    assert kept is not None
    assert json.loads(kept)["last_name"] == "Doe"


def test_what_cannot_be_read_is_kept_as_it_was_sent(story: Story) -> None:
    """Without a read the before-image is what we sent last (9)."""
    declare(story, "Patient", to={"read_by": None, "identity": ()})
    begins(story)
    story.settles()
    kept = image(story, PATIENT)
    assert kept is not None
    assert json.loads(kept)["last_name"] == "Doe"


@on_both
@order
@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
@pytest.mark.parametrize("match", [DELETE_PATIENT, POST_PATIENT], ids=["delete", "create"])
def test_a_half_without_an_answer_ends_in_one_record(
    story: Story, create_first: bool, kind: str, match: dict[str, str]
) -> None:
    """Whichever half had no answer, and whether it acted or not: one record in the end, as Medplum has it (9, 3d)."""
    begins(story, create_first=create_first)
    story.breaks(kind, match)
    assert story.syncs().kind is End.AGAIN
    assert story.waits_s() == pytest.approx(BOUND_S, abs=1)
    story.settles()
    assert story.state() == "current", story.mirror()
    assert story.ledger.status()["unresolved_writes"] == 0
    story.agrees()


@on_both
@order
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("method", ["DELETE", "POST"])
def test_a_worker_that_dies_in_a_half_loses_and_doubles_nothing(
    story: Story, create_first: bool, where: str, method: str
) -> None:
    """Killed around either half: the next attempt goes on with what is missing, and there is one record (9)."""
    begins(story, create_first=create_first)

    def die(request: LegacyRequest) -> None:
        if request.method == method:
            killed(request)

    setattr(story.hooks, where, die)
    story.clock.forward(5)
    story.dies()
    setattr(story.hooks, where, lambda request: None)
    story.settles()
    assert story.state() == "current", story.mirror()
    story.agrees()


def test_the_half_way_point_is_a_state_of_the_link(story: Story) -> None:
    """After the delete the link has no key, and its keys are kept; the delete is never sent again (9)."""
    begins(story)
    story.breaks("status", POST_PATIENT, status=503)
    assert story.syncs().kind is End.AGAIN
    assert only(story.links())["state"] == "half-replaced"
    assert only(story.links())["key"] is None
    assert only(story.links())["keys"]["number"] == 4701
    story.settles()
    assert story.writes() == ["POST", "DELETE", "POST", "POST"]
    story.agrees()


def test_a_refused_second_half_is_held_loudly(story: Story) -> None:
    """The old record is gone, the new one refused: held as half-replaced; a replay sends the missing half only (9)."""
    begins(story)
    story.breaks("status", POST_PATIENT, status=422)
    assert story.syncs().kind is End.HELD
    assert story.mirror()["reason"] == "half-replaced"
    replays(story)
    assert story.syncs().kind is End.DONE
    assert story.writes() == ["POST", "DELETE", "POST", "POST"]
    story.agrees()


def test_a_new_version_that_cannot_be_mapped_is_held_while_half_replaced(story: Story) -> None:
    """A failure that would be silent among others is held where the old record is gone already (9)."""
    begins(story)
    story.breaks("status", POST_PATIENT, status=503)
    story.syncs()
    story.changes(patient() | {"name": []})
    assert story.syncs().kind is End.HELD
    assert story.mirror()["reason"] == "half-replaced"


def test_a_refused_first_half_fails_and_nothing_is_lost(story: Story) -> None:
    """A delete that is refused leaves the old record linked, and creates nothing (9)."""
    begins(story)
    story.breaks("status", DELETE_PATIENT, status=422)
    assert story.syncs().kind is End.FAILED
    assert only(story.links())["state"] == "linked"
    assert story.writes() == ["POST", "DELETE"]


def test_a_refused_create_first_leaves_the_old_one(story: Story) -> None:
    """A create that is refused before the delete is a failure like any: the old record is still linked (9)."""
    begins(story, create_first=True)
    story.breaks("status", POST_PATIENT, status=422)
    assert story.syncs().kind is End.FAILED
    assert only(story.links())["keys"]["number"] == 4701
    replays(story)
    story.settles()
    story.agrees()


def test_an_old_record_that_waits_for_its_delete_is_a_state_of_the_link(story: Story) -> None:
    """Made first: the link has the new key and the old ones, and only the delete is sent again (9)."""
    begins(story, create_first=True)
    story.breaks("status", DELETE_PATIENT, status=503)
    assert story.syncs().kind is End.AGAIN
    link = only(story.links())
    assert (link["keys"]["number"], link["old_keys"]["number"]) == (4702, 4701)
    story.settles()
    assert story.writes() == ["POST", "POST", "DELETE", "DELETE"]
    story.agrees()


def test_deleted_while_half_replaced_sends_no_delete(story: Story) -> None:
    """A resource that is deleted between the halves is settled: its record is gone already (9)."""
    begins(story)
    story.breaks("status", POST_PATIENT, status=503)
    story.syncs()
    story.deletes(PATIENT)
    assert story.syncs().kind is End.DONE
    assert story.writes() == ["POST", "DELETE", "POST"]
    assert only(story.links())["state"] == "tombstone"
    assert story.records() == []


def test_deleted_while_the_second_half_is_in_doubt_leaves_nothing(story: Story) -> None:
    """What the unanswered create has made is found and deleted with its resource (9, 3d)."""
    begins(story)
    story.breaks("reset_after", POST_PATIENT)
    story.syncs()
    story.deletes(PATIENT)
    story.settles()
    assert story.records() == []
    assert only(story.links())["state"] == "tombstone"


def test_deleted_while_the_old_record_is_there_deletes_both(story: Story) -> None:
    """Made first, and deleted before the old one went: neither record is left (9)."""
    begins(story, create_first=True)
    story.breaks("status", DELETE_PATIENT, status=503)
    story.syncs()
    story.deletes(PATIENT)
    story.settles()
    assert story.records() == []
    assert only(story.links())["state"] == "tombstone"


@order
def test_the_children_of_a_replaced_record_follow_it(story: Story, create_first: bool) -> None:
    """A patient's problems are looked at when their patient's record is another one (8, 9)."""
    declare(story, "Patient", to={"update": Replace(create_first=create_first)})
    story.changes(patient(), condition())
    story.settles()
    story.clock.forward(60)
    story.changes(patient(family="Roe"))
    story.syncs()
    assert story.state(CONDITION) == "due"
    assert story.digest(CONDITION) is None


def test_replacing_spends_no_delete_budget(story: Story) -> None:
    """Twenty-one updates within the hour are no deletes: nothing is held for the budget (9, 3k)."""
    declare(story, "Patient", to={"update": Replace()})
    family = [f"b{number}" for number in range(21)]
    story.changes(*(patient(each) for each in family))
    story.settles()
    story.changes(*(patient(each, family="Roe") for each in family))
    story.settles()
    assert story.ledger.failed() == []
    story.agrees()
