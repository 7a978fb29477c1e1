"""Hints in: a row for what is new, a wake-up for whatever is not the applied version. Rules of hints and mirrors."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import select

from tests.contract.ledger.story import CONDITION, OTHER, PATIENT, ROUTES, Story, done, read
from worker.ledger.tables import changes, mirrors
from worker.ledger.values import Accepted, Disposition, Hint, Phase, Refusal, Source


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


def tells(story: Story, version: str, body: bytes = b'{"whole":1}', of: str = PATIENT) -> Accepted:
    """Accept a notification as Medplum sends it, with the resource."""
    return story.ledger.accept([Hint(of, version, body=body)])


def finds(story: Story, version: str = "v2") -> None:
    """Hear of one version and read the next, whose notification is still under way."""
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim, version=version)
    story.settles(claim, version, Disposition.APPLIED, last=(write, done()))
    story.clock.forward(60)


def test_what_a_read_found_is_looked_at_when_its_notification_brings_a_body(story: Story) -> None:
    """A read can lack what the notification carries: nobody is rung for, the row stays settled, and a look compares."""
    finds(story)
    accepted = tells(story, "v2")
    assert (accepted.inserted, accepted.repeated, accepted.woken, accepted.queued) == (0, 1, (), ())
    assert story.changes() == {"v1": "superseded", "v2": "applied"}
    assert story.mirror()["state"] == "current"
    assert story.ledger.due(limit=10, queue_empty=True) == (PATIENT,)
    claim = story.claims()
    assert not claim.asked
    assert claim.open_versions == frozenset()
    assert claim.notified == {"v2": b'{"whole":1}'}
    story.settles(claim, "v2")
    assert story.changes() == {"v1": "superseded", "v2": "applied"}
    assert story.refused() is Refusal.NOT_DUE


def test_what_a_read_found_is_looked_at_once(story: Story) -> None:
    """Medplum tries again and sends twice: the second time there is nothing new to compare."""
    finds(story)
    story.ledger.accept([Hint(PATIENT, "v2", body=b"{}"), Hint(PATIENT, "v2", body=b"{}")])
    story.settles(story.claims(), "v2")
    tells(story, "v2")
    assert story.refused() is Refusal.NOT_DUE
    [(receipts,)] = story.sql("SELECT receipts FROM changes WHERE version_id = 'v2'")
    assert receipts == 1


@pytest.mark.parametrize("body", [None, b"{}"])
def test_what_was_notified_before_it_was_read_is_not_looked_at_again(story: Story, body: bytes | None) -> None:
    """The way of nearly every change costs no second read: its repeats are dropped, with a body or without."""
    story.applies("v1")
    story.clock.forward(60)
    story.ledger.accept([Hint(PATIENT, "v1", body=body)])
    assert story.refused() is Refusal.NOT_DUE


def test_without_a_body_there_is_nothing_to_compare(story: Story) -> None:
    """A hint that tells no content, as catch-up's, brings no look."""
    finds(story)
    story.hears("v2")
    assert story.refused() is Refusal.NOT_DUE


def test_an_attempt_under_way_does_not_swallow_the_look(story: Story) -> None:
    """An attempt that read the version before its body came leaves the mirror due: the next one compares."""
    finds(story)
    story.hears("v1")
    claim = story.claims()
    tells(story, "v2")
    story.settles(claim, "v2")
    assert story.claims().notified == {"v2": b'{"whole":1}'}


def test_a_held_mirror_is_not_looked_at(story: Story) -> None:
    """A person decides first; what the notification carried is compared in the attempt after that."""
    finds(story)
    story.hears("v1")
    story.ledger.hold(story.claims(), reason="conflict", detail="")
    tells(story, "v2")
    assert story.refused() is Refusal.HELD


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


def test_of_the_woken_no_more_are_queued_than_will_be_rung_for(story: Story) -> None:
    """The first of those that woke are marked as queued and named; dispatch publishes the others, and only those."""
    references = [f"Patient/{number}" for number in range(5)]
    accepted = story.ledger.accept([Hint(reference, "v1") for reference in references], ring_most=2)
    assert accepted.queued == tuple(references[:2])
    assert set(accepted.woken) == set(references)
    assert set(story.ledger.due(limit=10, queue_empty=False)) == set(references[2:])


def test_nobody_rings_unless_asked_to(story: Story) -> None:
    """Without a bell nothing is marked, and dispatch publishes all."""
    assert story.hears("v1").queued == ()
    assert story.ledger.due(limit=10, queue_empty=False) == (PATIENT,)


@pytest.mark.parametrize("queue_empty", [True, False])
def test_a_mirror_whose_ring_was_lost_is_published_all_the_same(story: Story, queue_empty: bool) -> None:
    """Marked as queued, and then the broker or the receiver died: dispatch finds it, soon where the queue is empty."""
    story.applies("v1")
    story.clock.forward(60)
    for reference in (PATIENT, OTHER):  # one that was there and one that is new
        accepted = story.ledger.accept([Hint(reference, "v2")], ring_most=1)
        assert accepted.queued == (reference,)

    def due() -> tuple[str, ...]:
        return story.ledger.due(limit=10, queue_empty=queue_empty, lost_after_s=5, stale_after_s=180)

    assert due() == ()
    story.clock.forward(6 if queue_empty else 181)
    assert set(due()) == {PATIENT, OTHER}


def test_an_emptied_broker_brings_back_what_was_rung(story: Story) -> None:
    """As after FLUSHALL: with no patience at all, what was marked a moment ago is published again."""
    story.ledger.accept([Hint(PATIENT, "v1")], ring_most=1)
    story.clock.forward(0.001)
    assert story.ledger.due(limit=10, queue_empty=True, lost_after_s=0) == (PATIENT,)


def test_a_claim_ends_what_queued_meant(story: Story) -> None:
    """A mirror that was rung for and claimed is published again by dispatch when it is due again."""
    story.ledger.accept([Hint(PATIENT, "v1")], ring_most=1)
    claim = story.claims()
    story.hears("v2")
    story.settles(claim, "v1")
    story.clock.forward(60)
    assert story.ledger.due(limit=10, queue_empty=False) == (PATIENT,)


def test_nobody_rings_for_a_mirror_that_a_worker_would_send_away(story: Story) -> None:
    """Not before its time, not while it is leased, not while its type or everything is paused, not when it is held."""
    story.applies("v1")
    story.clock.forward(0.1)
    spaced = story.ledger.accept([Hint(PATIENT, "v2")], ring_most=9)
    assert (spaced.woken, spaced.queued) == ((PATIENT,), ())
    story.ledger.pause(["Condition"], who="a", why="b")
    assert story.ledger.accept([Hint(CONDITION, "v1"), Hint(OTHER, "v1")], ring_most=9).queued == (OTHER,)
    story.claims(OTHER)
    assert story.ledger.accept([Hint(OTHER, "v2")], ring_most=9).queued == ()
    story.ledger.pause(["*"], who="a", why="b")
    assert story.ledger.accept([Hint("Patient/p3", "v1")], ring_most=9).queued == ()


def test_nobody_rings_for_a_delete_of_what_was_never_applied(story: Story) -> None:
    """Whoever makes ids up must not fill the queue: dispatch comes for them. Beside a version, or of a record: rung."""
    story.applies("v1")
    story.clock.forward(60)
    hints = [Hint("Patient/forged"), Hint(PATIENT), Hint(OTHER, "v1"), Hint(OTHER)]
    accepted = story.ledger.accept(hints, ring_most=10)
    assert accepted.woken == ("Patient/forged", PATIENT, OTHER)
    assert accepted.queued == (PATIENT, OTHER)
    assert story.ledger.due(limit=10, queue_empty=False) == ("Patient/forged",)


def test_a_held_mirror_is_not_rung_for(story: Story) -> None:
    """It waits for a person; its hint is counted and that is all."""
    story.hears("v1")
    story.ledger.hold(story.claims(), reason="conflict", detail="")
    assert story.ledger.accept([Hint(PATIENT, "v2")], ring_most=9).queued == ()


def test_a_repeated_hint_does_not_unmark_what_is_queued(story: Story) -> None:
    """Whoever comes later without a bell leaves the mark of the message that is on its way."""
    story.ledger.accept([Hint(PATIENT, "v1")], ring_most=1)
    story.hears("v1", "v2")
    assert story.ledger.due(limit=10, queue_empty=False) == ()


def test_each_value_of_a_hint_is_in_its_column(story: Story) -> None:
    """Rows go to the driver past SQLAlchemy; read back through it they are what was accepted, times included."""
    moment = datetime(2026, 3, 29, 1, 30, 0, 7000, tzinfo=timezone(timedelta(hours=2)))
    hint = Hint(PATIENT, "v1", moment, "create", "Practitioner/a", "trace", "Subscription/s", b"{}", Source.CATCH_UP)
    for given in (hint, Hint("Device/1", *[getattr(hint, field.name) for field in fields(Hint)[1:]])):
        story.ledger.accept([given])
        with story.ledger.database.engine.connect() as connection:
            row = connection.execute(select(changes).where(changes.c.reference == given.reference)).one()
        assert row.last_updated == moment
        assert row.accepted_at == row.received_at == story.clock.now
        assert (row.version_id, row.kind, row.source, row.receipts) == ("v1", "version", "catch-up", 1)
        assert (row.interaction, row.author, row.trace_id) == ("create", "Practitioner/a", "trace")
        assert row.subscription == "Subscription/s"
    with story.ledger.database.engine.connect() as connection:
        made = connection.execute(select(mirrors)).one()
    assert (made.due_at, made.since, made.queued_at) == (story.clock.now, story.clock.now, None)
    assert (made.resource_type, made.hints, made.state) == ("Patient", 1, "due")


def test_a_batch_of_everything_counts_each_kind_once(story: Story) -> None:
    """New, repeated, applied, deleted and unrouted hints in one transaction each follow their own rule."""
    story.applies("v1")
    story.clock.forward(60)
    hints = [
        Hint(PATIENT, "v1"),  # applied: no wake-up
        Hint(OTHER, "v1"),
        Hint(OTHER, "v1"),
        Hint(OTHER, "v2"),
        Hint(CONDITION, None),
        Hint(CONDITION, None),
        Hint("Device/1", "v1"),
    ]
    accepted = story.ledger.accept(hints, ring_most=1)
    assert (accepted.inserted, accepted.repeated) == (4, 3)
    assert (accepted.woken, accepted.queued) == ((OTHER, CONDITION), (OTHER,))
    assert [story.mirror(of)["hints"] for of in (PATIENT, OTHER, CONDITION)] == [1, 3, 2]
    assert story.sql("SELECT version_id, hint FROM changes WHERE reference = :of ORDER BY id", of=OTHER) == [
        ("v1", 1),
        ("v2", 3),
    ]
    story.adds_up()


def test_a_version_from_before_its_type_had_a_route_makes_a_mirror_and_no_second_row(story: Story) -> None:
    """What was skipped without a route is known; heard again with one, it wakes a mirror that is made for it."""
    story.ledger.accept([Hint("Device/1", "v1")])
    story.ledger.register_routes(ROUTES | {"Device": (Phase.LIVE, "m1")})
    accepted = story.ledger.accept([Hint("Device/1", "v1")])
    assert (accepted.inserted, accepted.repeated, accepted.woken) == (0, 1, ("Device/1",))
    assert story.mirror("Device/1")["hints"] == 1


def test_versions_of_two_resources_are_not_mistaken_for_each_other(story: Story) -> None:
    """A version is known with its own resource alone."""
    story.hears("v1")
    story.hears("v2", of=OTHER)
    accepted = story.ledger.accept([Hint(PATIENT, "v2"), Hint(OTHER, "v1")])
    assert (accepted.inserted, accepted.repeated) == (2, 0)
