"""Hints in: a row for what is new, a wake-up for whatever is not the applied version. Rules of hints and mirrors."""

from __future__ import annotations

import pytest

from tests.contract.ledger.story import CONDITION, OTHER, PATIENT, Story, done, read
from worker.ledger.values import Disposition, Hint, Refusal, Source


def test_a_new_version_makes_a_row_and_a_due_mirror(story: Story) -> None:
    """The first hint of a resource makes an open change and a mirror that can be claimed."""
    accepted = story.hears("v1")
    assert (accepted.inserted, accepted.repeated, accepted.woken) == (1, 0, (PATIENT,))
    assert story.changes() == {"v1": None}
    assert story.mirror()["state"] == "due"
    assert story.claims().hints == 1


def test_only_the_first_hint_rings(story: Story) -> None:
    """A mirror is told of once, when it goes from not due to due."""
    assert story.hears("v1").woken == (PATIENT,)
    assert story.hears("v2").woken == ()
    assert story.hears("v1", of=OTHER).woken == (OTHER,)


def test_a_repeated_version_wakes_and_makes_no_row(story: Story) -> None:
    """The same version again is counted as a hint, makes no second row, and wakes a mirror that slept."""
    story.hears("v1", "v2")
    claim = story.claims()
    story.settles(claim, "v2")
    accepted = story.hears("v1")
    assert (accepted.inserted, accepted.repeated, accepted.woken) == (0, 1, (PATIENT,))
    assert story.mirror()["hints"] == 3
    assert story.changes() == {"v1": "superseded", "v2": "unchanged"}
    story.claims()


def test_a_repeated_version_during_an_attempt_leaves_the_mirror_due(story: Story) -> None:
    """A duplicate that comes after the claim, of a version not yet applied, is looked at after the settle."""
    story.hears("v1")
    claim = story.claims()
    story.hears("v1")
    assert story.settles(claim, "v1")
    assert story.mirror()["state"] == "due"
    story.claims()


def test_the_applied_version_again_does_not_wake(story: Story) -> None:
    """A late duplicate of what was settled last makes neither a row nor a wake-up."""
    story.applies("v1")
    accepted = story.hears("v1")
    assert (accepted.inserted, accepted.repeated, accepted.woken) == (0, 1, ())
    assert story.mirror()["state"] == "current"
    assert story.refused() is Refusal.NOT_DUE


def test_a_version_that_a_read_found_first_does_not_wake(story: Story) -> None:
    """The notification of a version that was read and settled before it arrived is a duplicate of the applied one."""
    story.hears("v1")
    story.settles(story.claims(), "v2", Disposition.UNCHANGED)
    accepted = story.hears("v2")
    assert (accepted.inserted, accepted.woken) == (0, ())
    assert story.changes() == {"v1": "superseded", "v2": "unchanged"}


def test_after_a_settled_deletion_an_old_version_wakes_again(story: Story) -> None:
    """The version applied before a deletion is no longer the applied one: its hint is looked at."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears(None)
    story.settles(story.claims(), None, Disposition.APPLIED, deleted=True)
    assert story.hears("v1").woken == (PATIENT,)


def test_repeated_versions_within_one_batch_are_one_row(story: Story) -> None:
    """Two requests with the same version that share a transaction make one row and two hints."""
    accepted = story.hears("v1", "v1", "v2", "v1")
    assert (accepted.inserted, accepted.repeated) == (2, 2)
    assert story.mirror()["hints"] == 4


def test_there_is_one_open_delete_hint(story: Story) -> None:
    """Repeated delete hints count up on one open row and renew its time, in one batch or in several."""
    story.hears(None, None)
    story.clock.forward(30)
    accepted = story.hears(None)
    assert (accepted.inserted, accepted.repeated) == (0, 1)
    [change] = story.shown()["changes"]
    assert change["kind"] == "delete"
    assert change["receipts"] == 3
    assert change["received_at"] > change["accepted_at"]
    assert story.mirror()["hints"] == 3


def test_a_delete_hint_after_a_settled_one_is_a_new_row(story: Story) -> None:
    """Once a delete hint is settled the next one is another change."""
    story.hears(None)
    story.settles(story.claims(), None, Disposition.UNCHANGED, deleted=True)
    assert story.hears(None).inserted == 1
    assert [change["disposition"] for change in story.shown()["changes"]] == ["unchanged", None]


@pytest.mark.parametrize("state", ["failed", "waiting", "current"])
def test_a_hint_wakes_mirrors_that_are_not_held(story: Story, state: str) -> None:
    """A newer version wakes what is current, waiting or failed, and its attempts start anew."""
    story.hears("v1")
    claim = story.claims()
    story.ledger.release(claim, reason="not done", detail="")
    claim = story.claims()
    if state == "failed":
        story.ledger.fail(claim, reason="refused", detail="")
    elif state == "waiting":
        story.ledger.wait(claim, "Practitioner/1", "needs Practitioner/1")
    else:
        story.settles(claim, "v1")
    assert story.mirror()["state"] == state
    assert story.hears("v2").woken == (PATIENT,)
    assert story.claims().attempts == 0


def test_a_hint_does_not_wake_a_held_mirror(story: Story) -> None:
    """A held mirror waits for a decision; the newer version is open on its page, and counted."""
    story.hears("v1")
    story.ledger.hold(story.claims(), reason="conflict", detail="")
    assert story.hears("v2").woken == ()
    assert story.mirror()["state"] == "held"
    assert story.mirror()["hints"] == 2
    assert story.refused() is Refusal.HELD
    assert story.changes() == {"v1": None, "v2": None}


def test_a_type_without_a_route_is_skipped_with_its_rule(story: Story) -> None:
    """A hint for an unrouted type is a settled row with the rule named; no mirror, no body, no wake-up."""
    accepted = story.ledger.accept([Hint("Device/1", "v1", body=b"{}"), Hint("Device/1", None)])
    assert (accepted.inserted, accepted.woken) == (2, ())
    shown = story.shown("Device/1")
    assert shown["mirror"] == {}
    assert {(change["disposition"], change["rule"]) for change in shown["changes"]} == {
        ("skipped", "no route for this resource type")
    }
    assert story.sql("SELECT count(*) FROM changes WHERE body IS NOT NULL") == [(0,)]
    assert story.ledger.accept([Hint("Device/1", "v1")]).inserted == 0


def test_one_batch_takes_many_resources(story: Story) -> None:
    """Requests that share a transaction each get their row, their wake-up and their place in the counts."""
    hints = [Hint(f"Patient/{n}", f"v{n}") for n in range(300)] + [Hint(CONDITION, None), Hint("Device/1", "v")]
    accepted = story.ledger.accept(hints)
    assert accepted.inserted == 302
    assert len(accepted.woken) == 301
    assert story.ledger.status()["accepted"] == 302


def test_nothing_to_accept_is_nothing(story: Story) -> None:
    """An empty batch changes nothing and is no error."""
    accepted = story.ledger.accept([])
    assert (accepted.inserted, accepted.repeated, accepted.woken) == (0, 0, ())


def test_accepted_is_counted_by_source(story: Story) -> None:
    """Each source has a counter of its own, raised when a row goes in and not for a repetition."""
    story.hears("v1", "v1")
    story.hears("v2", source=Source.CATCH_UP)
    story.settles(story.claims(), "v3")
    assert story.ledger.status()["accepted_by_source"] == {"notification": 1, "catch-up": 1, "read": 1}


def test_a_hint_after_the_claim_leaves_the_mirror_due(story: Story) -> None:
    """Settling clears "due" only if no hint came since the claim: mutant M1."""
    story.hears("v1")
    claim = story.claims()
    story.hears("v2")
    assert story.settles(claim, "v1", Disposition.UNCHANGED)
    assert story.mirror()["state"] == "due"
    assert story.claims().hints == 2


@pytest.mark.parametrize("end", ["fail", "wait"])
def test_a_hint_after_the_claim_outlives_a_failure_and_a_wait(story: Story, end: str) -> None:
    """An attempt that fails, or that would wait, leaves the mirror due when hints came meanwhile."""
    story.hears("v1")
    claim = story.claims()
    story.hears("v2")
    if end == "fail":
        story.ledger.fail(
            claim, reason="refused", detail="", settlement=read("v1", Disposition.FAILED, at=story.clock())
        )
    else:
        story.ledger.wait(claim, "Practitioner/1", "")
    assert story.mirror()["state"] == "due"
    assert story.claims().hints == 2


def test_a_delete_hint_after_the_claim_leaves_the_mirror_due(story: Story) -> None:
    """A delete hint that comes between read and settle is not lost, new or repeated."""
    story.hears("v1")
    claim = story.claims()
    story.hears(None)
    story.settles(claim, "v1")
    claim = story.claims()
    assert claim.delete_hint is not None
    story.hears(None)
    story.settles(claim, "v1")
    story.claims()


def test_bodies_are_kept_for_the_attempt(story: Story) -> None:
    """What a notification carried is handed to the claim, opened, by version."""
    story.ledger.accept([Hint(PATIENT, "v1", body=b'{"a":1.50}')])
    assert story.claims().notified == {"v1": b'{"a":1.50}'}


def test_what_is_done_is_told_to_be_known(story: Story) -> None:
    """The claim knows the applied version, the links, and that Medplum itself sent the resource."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    assert claim.applied_version == "v1"
    assert claim.sent_by_medplum
    [link] = claim.links
    assert (link.keys, link.digest, link.slot) == ({"number": 17, "uuid": "u17"}, "k1:d", "")
    assert done(17).keys == link.keys
