"""Comparisons in the ledger: position and findings together, what is taken back, and what is given to the sync."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.contract.ledger.story import CONDITION, OTHER, PATIENT, Story, done, unknown
from worker.errors import LedgerError
from worker.ledger.reconciling import Finding, Mend, Page, Run, Verdict
from worker.ledger.values import Disposition, LinkState, Operation, State

ARGUMENTS = {"types": {"Patient": "m1"}, "sample": None, "seed": None, "since": None, "repair": True}
START: dict[str, Any] = {"stage": 0, "upto": 0, "since": None, "place": {}}


def begins(story: Story, *, repair: bool = False, **more: Any) -> Run:
    action = None
    if repair:
        action = story.ledger.begin_action(who="Ada", action="reconcile", why="seen", arguments={})
    return story.ledger.begin_run(ARGUMENTS | more, START, who="Ada", action=action)


def finding(
    of: str | None = PATIENT, mend: Mend = Mend.DUE, verdict: Verdict = Verdict.DIFFERS, **more: Any
) -> Finding:
    return Finding("Patient", verdict, "patients", of, fields=("last_name",), mend=mend, **more)


def keeps(story: Story, run: Run, *found: Finding, repair: bool = False, place: int = 1, marks: Any = None) -> Run:
    """Keep a page of what was found, as the mirrors stand now unless a mark says otherwise."""
    references = [each.reference for each in found if each.reference]
    standing = {each: told.mark for each, told in story.ledger.standings(references).items()}
    position = {"stage": 0, "upto": 9, "place": {"after": place}}
    page = Page(position, found, {"Patient": {"equal": 5, "resources": 6}}, standing | (marks or {}))
    return story.ledger.keep_page(run, page, repair=repair)


def kept(story: Story, run: Run) -> list[Finding]:
    return [each.finding for each in story.ledger.findings_after(run.id, 0, limit=100)]


def test_a_page_is_kept_with_its_position_and_counts(story: Story) -> None:
    """What was found, how many were equal, and where to go on are one commit; the next page adds to them."""
    story.applies("v1")
    run = keeps(story, begins(story), finding())
    run = keeps(story, run, finding(None, Mend.PERSON, Verdict.EXTRA, key="9"), place=2)
    assert run.position["place"] == {"after": 2}
    assert run.counts == {"Patient": {"equal": 10, "resources": 12, "differs": 1, "extra": 1}}
    assert kept(story, run) == [finding(), finding(None, Mend.PERSON, Verdict.EXTRA, key="9")]
    assert story.ledger.run(run.id) == run


def test_a_run_that_was_broken_off_is_found_by_its_arguments(story: Story) -> None:
    """The same arguments go on with the same run; others, an ended run, and one that was given up do not."""
    run = keeps(story, begins(story))
    assert story.ledger.unfinished_run(ARGUMENTS) == run
    assert story.ledger.unfinished_run(ARGUMENTS | {"sample": 5}) is None
    other = begins(story)
    assert story.ledger.unfinished_run(ARGUMENTS) == other
    with pytest.raises(LedgerError, match="or began anew"):
        keeps(story, run)
    story.ledger.end_run(other)
    assert story.ledger.unfinished_run(ARGUMENTS) is None


def test_two_processes_cannot_go_on_with_one_run(story: Story) -> None:
    """The slower one is told, and keeps nothing."""
    run = begins(story)
    keeps(story, run)
    with pytest.raises(LedgerError, match="another process goes on with run"):
        keeps(story, run, finding(None, Mend.PERSON))
    with pytest.raises(LedgerError, match="another process goes on with run"):
        story.ledger.end_run(run)
    assert kept(story, run) == []


@pytest.mark.parametrize(("repair", "mend"), [(False, Mend.FORGET), (False, Mend.DUE), (True, Mend.DUE)])
@pytest.mark.parametrize("happens", ["hint", "attempt", "write"])
def test_what_was_synced_while_it_was_compared_is_in_flight(
    story: Story, happens: str, repair: bool, mend: Mend
) -> None:
    """A hint, an attempt or a write since the comparison began takes back what was found: nothing is done to it."""
    story.applies("v1")
    before = story.ledger.standings([PATIENT])[PATIENT].mark
    story.clock.forward(60)
    if happens == "hint":
        story.hears("v2")
    elif happens == "attempt":
        story.hears("v2")
        story.settles(story.claims(), "v2")
    else:
        story.applies("v2")
    run = keeps(story, begins(story, repair=repair), finding(mend=mend), repair=repair, marks={PATIENT: before})
    [told] = kept(story, run)
    assert (told.verdict, told.mend, told.fields) == (Verdict.IN_FLIGHT, Mend.NOTHING, ())
    assert run.counts["Patient"]["in flight"] == 1
    assert story.sql("SELECT digest FROM links") == [("k1:d",)]


def test_what_is_given_to_the_sync_is_due_and_no_more_believed(story: Story) -> None:
    """The mirror is due, its digests void; what a person let pass is not let pass by this; who did it is recorded."""
    story.applies("v1")
    story.clock.forward(60)
    keeps(story, begins(story, repair=True), finding(), repair=True)
    assert (story.mirror()["state"], story.mirror()["released"]) == ("due", False)
    claim = story.claims()
    assert [link.digest for link in claim.links] == [None]
    [action] = story.ledger.actions()
    assert (action["who"], action["action"], action["why"], action["affected"]) == ("Ada", "reconcile", "seen", 1)


def test_what_is_only_found_stays_as_it_is(story: Story) -> None:
    """Without repair a finding changes nothing but the run's own rows."""
    story.applies("v1")
    keeps(story, begins(story), finding(), finding(OTHER, verdict=Verdict.MISSING))
    assert story.mirror()["state"] == "current"
    assert story.sql("SELECT digest FROM links") == [("k1:d",)]
    assert story.ledger.show(OTHER) is None


def test_a_resource_that_nobody_heard_of_is_made_due(story: Story) -> None:
    """There is a mirror then, and the accounts add up without a change."""
    keeps(story, begins(story, repair=True), finding(OTHER, verdict=Verdict.MISSING), repair=True)
    assert story.sql("SELECT state FROM mirrors WHERE reference = :of", of=OTHER) == [("due",)]
    story.claims(OTHER)


def test_a_link_is_taken_up_again(story: Story) -> None:
    """What was buried is linked again with a void digest, and its resource is due."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears(None)
    claim = story.claims()
    write = story.announces(claim, Operation.DELETE)
    story.settles(claim, None, Disposition.APPLIED, last=(write, done(None, None)), deleted=True)
    assert story.shown()["links"][0]["state"] == "tombstone"
    keeps(story, begins(story, repair=True), finding(mend=Mend.RELINK, verdict=Verdict.EXTRA), repair=True)
    story.clock.forward(60)
    [link] = story.claims().links
    assert (link.state, link.digest) == (LinkState.LINKED, None)


def test_what_is_held_stays_held(story: Story) -> None:
    """What waits for a person's decision is not decided by a repair."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    story.ledger.hold(story.claims(), reason="conflict", detail="")
    keeps(story, begins(story, repair=True), finding(), repair=True)
    assert story.mirror()["state"] == "held"


def test_where_a_resource_stands_is_told(story: Story) -> None:
    """Unknown, settled, due, leased, unanswered: each is told, with the reason in words."""
    assert story.ledger.standings([PATIENT])[PATIENT].state is None
    story.hears("v1")
    assert story.ledger.standings([PATIENT])[PATIENT].is_busy
    claim = story.claims()
    assert story.ledger.standings([PATIENT])[PATIENT].why == "it is being synced"
    write = story.announces(claim)
    story.ledger.record(write.id, unknown())
    story.ledger.release(claim, reason="legacy", detail="timeout", after_s=0)
    standing = story.ledger.standings([PATIENT])[PATIENT]
    assert (standing.unanswered, standing.why) == (1, "a write has no answer yet")
    assert story.ledger.open_creates("patients") == {write.id}
    story.applies("v1", of=OTHER, key=18)
    standing = story.ledger.standings([OTHER])[OTHER]
    assert (standing.state, standing.is_busy, len(standing.links)) == (State.CURRENT, False, 1)
    assert standing.applied_version == "v1"


def test_links_are_led_through_once_each(story: Story) -> None:
    """Each resource comes by its first link, as far as there were links when it began; with a time, by one since."""
    story.applies("v1")
    story.applies("v1", of=OTHER, key=18)
    story.sql(
        "INSERT INTO links (reference, resource_type, slot, collection, key, record_keys, parents, state, created_at,"
        " updated_at, epoch) SELECT reference, resource_type, 'b', collection, '19', record_keys, parents, state,"
        " created_at, updated_at, 0 FROM links WHERE reference = :of",
        of=PATIENT,
    )
    upto = story.ledger.last_link()
    story.applies("v1", of=CONDITION, key=20)
    ask: dict[str, Any] = {"upto": upto, "resource_type": "Patient", "limit": 10}
    assert [reference for _, reference in story.ledger.linked_after(0, since=None, **ask)] == [PATIENT, OTHER]
    [(first, _)] = story.ledger.linked_after(0, since=None, **ask | {"limit": 1})
    assert [reference for _, reference in story.ledger.linked_after(first, since=None, **ask)] == [OTHER]
    later = story.clock.now + timedelta(seconds=1)
    assert story.ledger.linked_after(0, since=later, **ask) == ()
    assert story.ledger.led_to([PATIENT, CONDITION], upto=upto) == {PATIENT}
    assert story.ledger.led_to([PATIENT], upto=upto, since=later) == frozenset()


def test_the_last_whole_comparison_of_each_type_is_told(story: Story) -> None:
    """A sample, and what was compared since a time, is not taken for one; nor is a run that is not ended."""
    story.ledger.end_run(keeps(story, begins(story)))
    story.clock.forward(60)
    story.ledger.end_run(keeps(story, begins(story, sample=5)))
    keeps(story, begins(story))
    assert story.ledger.last_reconciled() == {"Patient": {"seconds": 60.0, "equal": 5, "resources": 6}}


def test_old_findings_go_and_counts_stay(story: Story) -> None:
    """Of many runs only the newest keep their findings."""
    first = keeps(story, begins(story), finding(None, Mend.PERSON, Verdict.EXTRA, key="1"))
    story.ledger.end_run(first)
    for _ in range(25):
        story.ledger.end_run(begins(story))
    begins(story)
    assert kept(story, first) == []
    assert story.ledger.run(first.id).total("extra") == 1
