"""Links that come from elsewhere than our own writes: what speaks against one, and what a new one brings with it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.ledger.story import BOUND_S, CONDITION, LEASE_S, OTHER, PATIENT, Story, done, unknown
from worker.ledger.crosswalk import UNPROVED, Judged, LinkRow, NewLink, Verdict
from worker.ledger.values import Keys, Operation, Origin, Wait


def new(of: str = PATIENT, key: int = 17, *, keys: Keys | None = None, slot: str = "", **parents: str) -> NewLink:
    return NewLink(of, slot, "patients", keys or {"number": key, "uuid": f"u{key}"}, parents)


def links(story: Story, *wanted: NewLink, origin: Origin = Origin.IMPORTED) -> list[Judged]:
    """Link some, which has to be what was said of them before."""
    said = story.ledger.judge(wanted)
    action = story.ledger.begin_action(who="Ada", action="links import", why="go-live", arguments={})
    judged = story.ledger.link(wanted, origin=origin, action=action)
    assert judged == said
    made = sum(each.verdict is Verdict.LINKED for each in judged)
    assert story.sql("SELECT who, why, affected FROM operator_actions WHERE id = :id", id=action) == [
        ("Ada", "go-live", made)
    ]
    return list(judged)


def refused(story: Story, wanted: NewLink) -> str:
    [judged] = links(story, wanted)
    assert judged.verdict is Verdict.REFUSED
    return judged.why


def test_a_new_link_is_believed_and_makes_nothing_due(story: Story) -> None:
    """A link that was taken over has no digest and its origin; its mirror rests until Medplum has something new."""
    assert links(story, new()) == [Judged(Verdict.LINKED)]
    [link] = story.shown(PATIENT)["links"]
    assert (link["keys"], link["origin"], link["state"]) == ({"number": 17, "uuid": "u17"}, "imported", "linked")
    assert story.sql("SELECT digest FROM links") == [(None,)]
    assert (story.mirror()["state"], story.mirror()["due_at"]) == ("current", None)
    story.hears("v1")
    assert [link.keys for link in story.claims().links] == [{"number": 17, "uuid": "u17"}]


def test_judging_writes_nothing(story: Story) -> None:
    """What a dry run says leaves no trace in the ledger."""
    assert story.ledger.judge([new()]) == (Judged(Verdict.LINKED),)
    assert story.sql("SELECT count(*) FROM links") == story.sql("SELECT count(*) FROM mirrors") == [(0,)]


def test_the_same_link_again_is_known(story: Story) -> None:
    """To run an import again finds what it did and does nothing twice."""
    links(story, new())
    assert links(story, new(), new(OTHER, 18)) == [Judged(Verdict.KNOWN), Judged(Verdict.LINKED)]


def test_a_slot_keeps_its_record(story: Story) -> None:
    """A resource that is linked to another record stays so."""
    links(story, new())
    assert refused(story, new(key=18)) == "it is linked to another record"
    assert [link["key"] for link in story.shown(PATIENT)["links"]] == ["17"]


def test_keys_of_another_type_are_other_keys(story: Story) -> None:
    """17 and "17" are not the same key to an API: that is told and not taken for known."""
    links(story, new())
    assert "another JSON type" in refused(story, new(keys={"number": "17", "uuid": "u17"}))


def test_a_record_keeps_its_resource(story: Story) -> None:
    """A record that another resource owns is never linked a second time; the refusal names the owner."""
    links(story, new())
    assert refused(story, new(OTHER)) == f"the record is linked to {PATIENT}"


def test_two_lines_for_one_record_link_one_of_them(story: Story) -> None:
    """Two claims on one record in one transaction: the unique key decides, and the other is told."""
    wanted = [new(), new(OTHER)]
    action = story.ledger.begin_action(who="Ada", action="links import", why="go-live", arguments={})
    first, second = story.ledger.link(wanted, origin=Origin.IMPORTED, action=action)
    assert (first.verdict, second.verdict) == (Verdict.LINKED, Verdict.REFUSED)
    assert story.shown(OTHER)["links"] == []


def test_a_deleted_record_is_not_linked_again(story: Story) -> None:
    """A tombstone says that the record is no more: it is not raised by a file."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears(None)
    claim = story.claims()
    write = story.announces(claim, Operation.DELETE)
    assert story.settles(claim, None, last=(write, done(None)), deleted=True)
    assert refused(story, new()) == "its record was deleted here"


def test_what_is_being_synced_is_left_alone(story: Story) -> None:
    """An attempt that runs has not seen the link and could make a second record: the link has to wait for its end."""
    story.hears("v1")
    story.claims()
    assert refused(story, new()) == "it is being synced now: again in a minute"
    story.clock.forward(LEASE_S + 1)
    assert links(story, new()) == [Judged(Verdict.LINKED)]


def test_a_create_without_an_answer_comes_first(story: Story) -> None:
    """While a create may still land no link is taken; after its bound the look-up decides, not a file."""
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim)
    story.ledger.record(write.id, unknown())
    story.ledger.release(claim, reason="unknown outcome", detail="", until=write.bound)
    assert "wait until 2026-11-22 12:01:25 UTC" in refused(story, new())
    story.clock.forward(BOUND_S + 1)
    assert "is being looked up" in refused(story, new())


def test_a_person_names_the_record_of_a_create_that_is_held(story: Story) -> None:
    """Where the look-up was left to a person, a link is that person's answer, and the doubt is over."""
    story.hears("v1")
    claim = story.claims()
    story.announces(claim)
    story.ledger.hold(claim, reason="no find", detail="look by hand")
    story.clock.forward(BOUND_S + 1)
    assert links(story, new()) == [Judged(Verdict.LINKED)]
    assert story.outcomes() == ["found"]
    assert story.mirror()["state"] == "held"


def test_a_child_that_waits_is_woken(story: Story) -> None:
    """A link that was taken over wakes whoever waits for that record, and notes whose key a path holds."""
    story.hears("c1", of=CONDITION)
    assert story.ledger.wait(story.claims(CONDITION), PATIENT, "") is Wait.WAITS
    links(story, new())
    assert story.mirror(CONDITION)["state"] == "due"
    links(story, NewLink("Condition/c2", "", "problems", {"id": 5}, {"patient": PATIENT}))
    assert story.sql("SELECT reference, depends_on, kind FROM dependencies") == [("Condition/c2", PATIENT, "parent")]


def test_what_cannot_be_told_is_held_until_it_is_linked(story: Story) -> None:
    """A resource whose record was not told for certain makes none; the link that comes later lets it go on."""
    story.hears("v1")
    assert story.ledger.hold_unproved({(PATIENT, ""): "external_id differ", (OTHER, ""): "two"}) == 2
    assert (story.mirror()["state"], story.mirror()["reason"]) == ("held", UNPROVED)
    assert [row["reference"] for row in story.ledger.failed()] == [PATIENT, OTHER]
    links(story, new(), origin=Origin.REBUILT)
    assert story.mirror()["state"] == "due"
    assert story.claims().links[0].keys["uuid"] == "u17"


def test_what_is_linked_is_never_held_as_unproved(story: Story) -> None:
    """A link that is there stands; nobody holds its resource for what an identifier says."""
    story.applies("v1")
    assert story.ledger.hold_unproved({(PATIENT, ""): "two"}) == 0
    assert story.mirror()["state"] == "current"


def test_links_are_given_out_in_pages(story: Story) -> None:
    """Every link whose record is there is given out once, those of one type alone if asked."""
    links(story, *(new(f"Patient/p{n}", n) for n in range(5)), NewLink("Condition/c", "x", "problems", {"id": 1}))
    found: list[LinkRow] = []
    after = 0
    while page := story.ledger.links_after(after, resource_type=None, limit=2):
        found += page
        after = page[-1].id
    assert [row.reference for row in found] == [f"Patient/p{n}" for n in range(5)] + ["Condition/c"]
    assert [row.slot for row in story.ledger.links_after(0, resource_type="Condition", limit=9)] == ["x"]


def test_the_counts_of_an_action_are_kept(story: Story) -> None:
    """What a person began and what came of it stand in one row."""
    action = story.ledger.begin_action(who="Ada", action="links import", why="go-live", arguments={"columns": 2})
    story.ledger.end_action(action, {"linked": 3})
    [shown] = story.sql("SELECT arguments FROM operator_actions")
    assert "counts" in str(shown)
    assert "columns" in str(shown)


@pytest.mark.parametrize("turn", range(5))
def test_a_claim_and_a_link_never_miss_each_other(story: Story, turn: int) -> None:
    """Taken in the same moment, either the attempt sees the link, or the link is refused because of the attempt."""
    story.hears("v1")
    together = threading.Barrier(2)
    action = story.ledger.begin_action(who="Ada", action="links import", why="", arguments={})

    def link() -> Judged:
        together.wait(10)
        return story.ledger.link([new()], origin=Origin.IMPORTED, action=action)[0]

    def claim() -> bool:
        together.wait(10)
        return bool(story.claims().links)

    with ThreadPoolExecutor(2) as threads:
        linked, seen = threads.submit(link), threads.submit(claim)
        assert (linked.result().verdict is Verdict.LINKED) is seen.result()
