"""After a restore: what the ledger gives up believing, what it has looked at again, and when the time is over."""

from __future__ import annotations

from datetime import timedelta

from tests.contract.ledger.story import CONDITION, OTHER, PATIENT, START, Story, done
from worker.ledger.recovery import LOST, OURSELVES, Restored
from worker.ledger.values import Disposition, Operation, Refusal

HOUR = timedelta(hours=1)


def begins(story: Story, kind: Restored, ago_s: float = 3600) -> int:
    since = story.clock.now - timedelta(seconds=ago_s)
    return story.ledger.begin_recovery(kind, since, who="Ada", why="a restore")


def test_counters_only_grow(story: Story) -> None:
    """Each accepted hint and each write moves what the witness keeps."""
    before = story.ledger.counters()
    story.applies("v1")
    after = story.ledger.counters()
    assert (after.accepted, after.writes > before.writes, after.changes > before.changes) == (1, True, True)
    assert (after.at, after.decided_at) == (story.clock.now, None)


def test_a_ledger_that_was_set_back_stands_still(story: Story) -> None:
    """Everything is paused in this service's own name, once; nobody may claim, and hints gather."""
    assert story.ledger.stop_everything("set back") is True
    assert story.ledger.stop_everything("set back") is False
    story.hears("v1")
    assert story.refused() is Refusal.PAUSED
    assert [(pause.scope, pause.who) for pause in story.ledger.paused()] == [("*", OURSELVES)]
    assert story.ledger.paused_as_set_back()


def test_a_persons_pause_outlasts_ours(story: Story) -> None:
    """Who had paused everything before finds all of it paused after: ours begins and ends beside that."""
    story.ledger.pause([], who="Ada", why="the clinic moves house")
    assert story.ledger.stop_everything("set back") is True
    assert story.ledger.paused_as_set_back()
    assert story.ledger.end_own_pause(who="Ada", why="found again") is True
    assert {(pause.scope, pause.who) for pause in story.ledger.paused()} == {
        (name, "Ada") for name in ("Condition", "Patient", "Practitioner")
    }
    story.hears("v1")
    assert story.refused() is Refusal.PAUSED


def test_the_last_attempt_tells_since_when(story: Story) -> None:
    """Since when is told by the last attempt before the pause; what ran on over a set back ledger does not count."""
    assert story.ledger.last_known() is None
    story.applies("v1")
    known = story.clock.now
    story.clock.forward(7200)
    story.applies("v2")  # ran on, unnoticed
    story.ledger.stop_everything("set back")
    story.clock.forward(7200)
    assert story.ledger.last_known() == known


def test_the_mode_says_that_every_create_is_looked_up(story: Story) -> None:
    """While the ledger's recovery lasts every claim says so; with its end it does not."""
    story.hears("v1", of=OTHER)
    begins(story, Restored.LEDGER)
    [mode] = story.ledger.modes()
    assert (mode.kind, mode.who, mode.since) == (Restored.LEDGER, "Ada", story.clock.now - HOUR)
    assert story.claims(OTHER).recovering is True
    story.ledger.end_recovery(who="Ada", why="well again")
    story.hears("v1")
    assert story.claims().recovering is False
    assert story.ledger.modes() == ()


def test_the_lost_time_is_not_proven(story: Story) -> None:
    """Every route that runs gets a window since then that nobody has proven; begun again there are no more of them."""
    assert begins(story, Restored.LEDGER) == 3
    rows = story.sql("SELECT resource_type, proven_at, reason FROM windows ORDER BY resource_type")
    assert rows == [(name, None, LOST[Restored.LEDGER]) for name in ("Condition", "Patient", "Practitioner")]
    assert begins(story, Restored.LEDGER) == 0
    assert begins(story, Restored.LEDGER, 7200) == 3
    [mode] = story.ledger.modes()
    assert mode.since == story.clock.now - 2 * HOUR


def test_no_digest_is_believed_any_more(story: Story) -> None:
    """Voiding takes every link in turn; a settle that began before does not bring its digest back."""
    for number, of in enumerate((PATIENT, OTHER, "Patient/p3")):
        story.applies("v1", of=of, key=number)
    story.hears("v2")
    story.clock.forward(60)
    claim = story.claims()
    write = story.announces(claim, Operation.UPDATE, version="v2")
    voided, after = story.ledger.void_digests(after=0, limit=2)
    assert (voided, story.ledger.void_digests(after=after or 0, limit=2)[0]) == (2, 1)
    assert story.settles(claim, "v2", Disposition.APPLIED, last=(write, done(0)))
    assert story.sql("SELECT digest FROM links") == [(None,)] * 3


def test_a_create_under_way_is_not_believed_either(story: Story) -> None:
    """A create that is answered after the digests were voided leaves a link without one."""
    story.applies("v1", of=OTHER, key=1)
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim)
    story.ledger.void_digests(after=0, limit=10)
    story.ledger.record(write.id, done())
    assert story.sql("SELECT digest FROM links") == [(None,)] * 2


def test_a_create_under_way_is_not_believed_in_an_empty_ledger(story: Story) -> None:
    """Without a single link there is nothing to void but what is under way."""
    story.hears("v1")
    write = story.announces(story.claims())
    story.ledger.void_digests(after=0, limit=10)
    story.ledger.record(write.id, done())
    assert story.sql("SELECT digest FROM links") == [(None,)]


def test_what_was_written_since_is_looked_at_again_slowly(story: Story) -> None:
    """Only what was written since then is looked at, one after the other, and nobody is asked for it now."""
    story.applies("v1", of=CONDITION, key=1)
    story.clock.forward(7200)
    since = story.clock.now
    for number in range(3):
        story.applies("v1", of=f"Patient/p{number}", key=number + 10)
    looked, last = story.ledger.look_again(since, after="", limit=2, in_s=0.0, forget_versions=False)
    assert (looked, last) == (2, "Patient/p1")
    assert story.ledger.look_again(since, after="Patient/p1", limit=2, in_s=10.0, forget_versions=False) == (1, None)
    looks = dict(story.sql("SELECT reference, look_at FROM mirrors WHERE due_at IS NULL"))
    assert looks[CONDITION] is None
    assert looks["Patient/p0"] < looks["Patient/p1"] < looks["Patient/p2"]
    assert story.refused("Patient/p2") is Refusal.NOT_YET
    story.clock.forward(60)
    claim = story.claims("Patient/p2")
    assert (claim.asked, claim.applied_version) == (False, "v1")


def test_versions_of_a_restored_medplum_are_forgotten(story: Story) -> None:
    """The applied version's notification counts as new again: it may name another content now."""
    story.applies("v1")
    story.ledger.look_again(START, after="", limit=9, in_s=0.0, forget_versions=True)
    assert story.mirror()["applied_version"] is None
    story.hears("v1")
    assert story.mirror()["state"] == "due"


def test_what_is_held_stays_held(story: Story) -> None:
    """A decision that is a person's is not taken by a restore."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    story.ledger.hold(story.claims(), reason="conflict", detail="both sides")
    assert story.ledger.look_again(START, after="", limit=9, in_s=0.0, forget_versions=True) == (0, None)
    assert (story.mirror()["state"], story.mirror()["applied_version"]) == ("held", "v1")


def test_doubts_are_counted_until_they_are_gone(story: Story) -> None:
    """Creates without an answer, windows, looks and held resources stand in the way of the end, each by its number."""
    assert not story.ledger.remaining()
    story.applies("v1", of=OTHER, key=1)
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim)
    story.clock.forward(1)
    begins(story, Restored.LEDGER)
    begins(story, Restored.LEGACY)
    story.ledger.void_digests(after=0, limit=10)
    story.ledger.look_again(START, after="", limit=10, in_s=0.0, forget_versions=False)
    left = story.ledger.remaining()
    assert (left.creates, left.windows, left.looks, left.unproved) == (1, 3, 2, 0)
    assert story.settles(claim, "v1", last=(write, done()))
    story.sql("UPDATE windows SET proven_at = created_at")
    story.clock.forward(60)
    again = story.claims(OTHER)
    assert story.settles(again, "v1", last=(story.announces(again, Operation.UPDATE), done(1)))
    assert not story.ledger.remaining()


def test_an_accepted_ledger_goes_on(story: Story) -> None:
    """A person's word ends this service's own pause and nobody else's, and stands in the ledger with its time."""
    story.ledger.pause(["Patient"], who="Ada", why="a look")
    story.ledger.stop_everything("set back")
    story.ledger.accept_ledger(who="Ada", why="the file was another ledger's")
    assert [pause.scope for pause in story.ledger.paused()] == ["Patient"]
    assert story.ledger.counters().decided_at == story.clock.now
    assert story.ledger.modes() == ()
    assert ("Ada", "recovered") in story.sql("SELECT who, action FROM operator_actions")
