"""A record that is said to be gone for good: what is believed of it from then on, and when nobody may say so."""

from __future__ import annotations

import pytest

from tests.contract.ledger.story import BOUND_S, CONDITION, OTHER, PATIENT, Story, done, found, unknown
from worker.errors import LedgerError
from worker.ledger.crosswalk import Judged, NewLink, Verdict
from worker.ledger.forgetting import FORGET
from worker.ledger.values import Disposition, LinkState, Operation, Origin


def forgets(story: Story, of: str = PATIENT, slot: str = "") -> bool:
    return story.ledger.forget_record(of, slot, who="ana", why="purged by the vendor")


def test_a_forgotten_record_leaves_a_tombstone(story: Story) -> None:
    """The link keeps its keys, nothing is known of the record, and the epoch is another (protocol 3f, 5)."""
    story.applies("v1")
    assert forgets(story)
    story.clock.forward(60)
    [link] = story.claims().links
    assert (link.state, link.keys, link.digest, link.epoch) == (
        LinkState.FORGOTTEN,
        {"number": 17, "uuid": "u17"},
        None,
        1,
    )
    assert story.ledger.keys_of([PATIENT]) == {}


@pytest.mark.parametrize("state", ["current", "failed", "held"])
def test_its_resource_is_due(story: Story, state: str) -> None:
    """Whatever the mirror stood at, the next attempt is now."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    if state == "failed":
        story.ledger.fail(claim, reason="refused", detail="")
    elif state == "held":
        story.ledger.hold(claim, reason="gone", detail="")
    else:
        story.settles(claim, "v2")
    assert forgets(story)
    assert story.mirror()["state"] == "due"
    story.claims()


def test_it_is_recorded_who_said_so(story: Story) -> None:
    """The action stands with who, why, and the record that it was."""
    story.applies("v1")
    forgets(story)
    [action] = story.ledger.actions()
    assert (action["action"], action["who"], action["why"]) == (FORGET, "ana", "purged by the vendor")
    assert action["arguments"] == {"reference": PATIENT, "slot": "", "collection": "patients", "key": "17"}


def test_where_no_record_is_there_nothing_is_done(story: Story) -> None:
    """An unknown resource, another slot, and what was forgotten already: false, and nothing recorded."""
    story.applies("v1")
    assert not forgets(story, OTHER)
    assert not forgets(story, slot="systolic")
    assert forgets(story)
    assert not forgets(story)
    assert len(story.ledger.actions()) == 1


def test_not_while_a_write_may_still_land(story: Story) -> None:
    """Before the bound of a write without an outcome nobody can say what is there; after it, it is closed (3c)."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    write = story.announces(claim, Operation.UPDATE, version="v2")
    story.ledger.record(write.id, unknown())
    story.ledger.release(claim, reason="unknown outcome", detail="", until=write.bound)
    with pytest.raises(LedgerError, match="may still land: wait until"):
        forgets(story)
    assert [link["state"] for link in story.shown()["links"]] == ["linked"]
    assert story.ledger.actions() == []
    story.clock.forward(BOUND_S)
    assert forgets(story)
    assert story.outcomes()[-1] == "lapsed"


def test_not_while_an_attempt_is_under_way(story: Story) -> None:
    """An attempt that has claimed the link would go on with what it read of it."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    with pytest.raises(LedgerError, match="being synced now"):
        forgets(story)
    story.settles(claim, "v2")
    assert forgets(story)


def test_a_create_in_doubt_is_still_looked_up(story: Story) -> None:
    """A create without an answer may have made a record: forgetting the link's does not close it (3d)."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    write = story.announces(claim, version="v2", fields={"name": "y"})
    story.ledger.record(write.id, unknown())
    story.ledger.release(claim, reason="unknown outcome", detail="")
    story.clock.forward(BOUND_S)
    assert forgets(story)
    assert [open_write.id for open_write in story.claims().unresolved] == [write.id]


def test_a_new_record_takes_its_place(story: Story) -> None:
    """The next create links the new record in the same row, and its digest is trusted."""
    story.applies("v1")
    forgets(story)
    claim = story.claims()
    assert story.settles(claim, "v1", Disposition.APPLIED, last=(story.announces(claim), done(18)))
    story.clock.forward(60)
    story.hears("v2")
    [link] = story.claims().links
    assert (link.state, link.keys["number"], link.digest) == (LinkState.LINKED, 18, "k1:d")


def test_the_record_that_is_found_after_all_is_linked_again(story: Story) -> None:
    """A look before the create that shows the very record brings the link back; nobody else owns it."""
    story.applies("v1")
    forgets(story)
    claim = story.claims()
    assert story.ledger.record(story.announces(claim).id, found(17))
    assert [(link["state"], link["key"]) for link in story.shown()["links"]] == [("linked", "17")]


def test_a_late_answer_is_recognised(story: Story) -> None:
    """An update that lapsed and is answered after all says that the record is there: linked again, and due (3f)."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    write = story.announces(claim, Operation.UPDATE, version="v2")
    story.ledger.release(claim, reason="unknown outcome", detail="")
    story.clock.forward(BOUND_S)
    forgets(story)
    story.settles(story.claims(), "v2")
    story.ledger.record(write.id, done(None))
    [link] = story.shown()["links"]
    assert (link["state"], link["key"]) == ("linked", "17")
    assert story.mirror()["state"] == "due"
    story.clock.forward(60)
    assert [link.digest for link in story.claims().links] == [None]


def test_nobody_else_takes_its_key(story: Story) -> None:
    """The key stays its resource's, so that another resource cannot be linked to what may be a patient's record."""
    story.applies("v1")
    forgets(story)
    story.hears("w1", of=OTHER)
    claim = story.claims(OTHER)
    assert not story.ledger.record(story.announces(claim).id, done(17))
    assert story.mirror(OTHER)["reason"] == "owned key"


def test_those_who_stand_under_it_are_looked_at(story: Story) -> None:
    """A child of the forgotten record is due, and its digest void: it stands under a record that is no more (8)."""
    story.applies("v1")
    story.hears("c1", of=CONDITION)
    claim = story.claims(CONDITION)
    write = story.announces(claim, parents={"patient": PATIENT})
    story.settles(claim, "c1", Disposition.APPLIED, last=(write, done(40)))
    forgets(story)
    assert story.mirror(CONDITION)["state"] == "due"
    story.clock.forward(60)
    assert [link.digest for link in story.claims(CONDITION).links] == [None]


def linked(story: Story, key: int) -> Judged:
    new = NewLink(PATIENT, "", "patients", {"number": key, "uuid": f"u{key}"})
    action = story.ledger.begin_action(who="ana", action="links import", why="found by hand", arguments={})
    [judged] = story.ledger.link([new], origin=Origin.IMPORTED, action=action)
    return judged


@pytest.mark.parametrize("key", [17, 18])
def test_a_person_can_name_the_record_in_its_place(story: Story, key: int) -> None:
    """What was found by hand is linked by `links import`, be it another record or the same one."""
    story.applies("v1")
    forgets(story)
    assert linked(story, key).verdict is Verdict.LINKED
    assert [(link["state"], link["key"]) for link in story.shown()["links"]] == [("linked", str(key))]


def test_a_person_cannot_name_anothers_record(story: Story) -> None:
    """A record that another resource has is refused, and the tombstone stays."""
    story.applies("w1", of=OTHER, key=18)
    story.applies("v1")
    forgets(story)
    assert linked(story, 18) == Judged(Verdict.REFUSED, f"the record is linked to {OTHER}")
    assert [(link["state"], link["key"]) for link in story.shown()["links"]] == [("forgotten", "17")]
