"""The backlog: what dispatch picks and in which order, whose job it is, and who is alive."""

from __future__ import annotations

import pytest

from tests.contract.ledger.story import CONDITION, LEASE_S, OTHER, PATIENT, Clock, Story, done
from worker.errors import LeaseLost
from worker.ledger import Ledger
from worker.ledger.values import Hint


def due(story: Story, limit: int = 100, *, queue_empty: bool = False) -> list[str]:
    return list(story.ledger.due(limit=limit, queue_empty=queue_empty))


def test_what_is_due_is_picked_once(story: Story) -> None:
    """A picked mirror is marked queued, and not picked again while its task is on its way."""
    story.hears("v1")
    story.hears("v1", of=OTHER)
    assert sorted(due(story)) == [PATIENT, OTHER]
    assert due(story) == []


def test_the_window_is_bounded(story: Story) -> None:
    """Never more than the limit is picked; the rest stays in the ledger and comes next."""
    for number in range(7):
        story.hears("v1", of=f"Patient/{number}")
        story.clock.forward(1)
    assert due(story, 3) == ["Patient/0", "Patient/1", "Patient/2"]
    assert due(story, 3) == ["Patient/3", "Patient/4", "Patient/5"]
    assert due(story, 3) == ["Patient/6"]
    assert due(story, 0) == []


def test_types_take_turns(story: Story) -> None:
    """A long backlog of one type does not stand in front of another."""
    for number in range(20):
        story.hears("v1", of=f"Patient/{number}")
    story.clock.forward(5)
    story.hears("v1", of=CONDITION)
    assert CONDITION in due(story, 4)


def test_what_only_a_delete_names_comes_last_and_a_few_at_a_time(story: Story) -> None:
    """Forged deletes that came first stand behind every change, and leave the queue to others."""
    story.ledger.accept([Hint(f"Patient/forged{number}") for number in range(300)])
    story.clock.forward(1)
    story.hears("c1", of=CONDITION)
    story.hears("v1")
    due = story.ledger.due(limit=1000, queue_empty=True)
    assert due[:2] == (CONDITION, PATIENT)
    assert len(due) == 2 + 100
    assert len(story.ledger.due(limit=1000, queue_empty=True)) == 100
    assert len(story.ledger.due(limit=30, queue_empty=True)) == 30


def test_a_delete_of_what_was_seen_takes_its_turn(story: Story) -> None:
    """A delete of a record, or of what may have become one, is a change like any other: it waits behind nobody."""
    story.applies("v1")
    story.hears("v1", of=OTHER)
    story.ledger.fail(story.claims(OTHER), reason="refused", detail="")
    story.clock.forward(60)
    story.hears(None)
    story.hears(None, of=OTHER)
    story.clock.forward(1)
    story.hears("c1", of=CONDITION)
    assert set(story.ledger.due(limit=2, queue_empty=True)) == {CONDITION, PATIENT}
    assert story.ledger.due(limit=2, queue_empty=True) == (OTHER,)


def test_a_claimed_mirror_is_not_picked(story: Story) -> None:
    """What somebody works on is not published again."""
    story.hears("v1")
    story.claims()
    assert due(story, queue_empty=True) == []


def test_a_hint_during_an_attempt_is_picked_afterwards(story: Story) -> None:
    """A mirror left due by its attempt is picked, though it was queued before."""
    story.hears("v1")
    due(story)
    claim = story.claims()
    story.hears("v2")
    story.settles(claim, "v1")
    assert due(story) == [PATIENT]


def test_a_mirror_is_not_picked_before_its_time(story: Story) -> None:
    """Backoff, spacing and the bound of a write keep a due mirror out of the queue."""
    story.hears("v1")
    story.ledger.release(story.claims(), reason="legacy", detail="", after_s=30)
    assert due(story) == []
    story.clock.forward(30)
    assert due(story) == [PATIENT]


def test_a_look_is_picked_when_it_comes(story: Story) -> None:
    """A delete hint's second look is published though nobody asked."""
    story.hears(None)
    story.settles(story.claims(), "v1")
    assert due(story) == []
    story.clock.forward(60)
    assert due(story) == [PATIENT]


def test_an_expired_lease_is_picked(story: Story) -> None:
    """The mirror of a worker that died comes back by itself when its lease ends."""
    story.hears("v1")
    due(story)
    story.claims()
    assert due(story) == []
    story.clock.forward(LEASE_S)
    assert due(story) == [PATIENT]


def test_a_lost_task_is_published_again(story: Story) -> None:
    """When the queue is empty and a queued mirror was not claimed within seconds, its task is lost."""
    story.hears("v1")
    due(story)
    story.clock.forward(4)
    assert due(story, queue_empty=True) == []
    story.clock.forward(2)
    assert due(story) == []
    assert due(story, queue_empty=True) == [PATIENT]


def test_a_task_that_was_queued_long_ago_is_published_again(story: Story) -> None:
    """Whatever the queue holds, a mirror that was queued long ago and never claimed is published again."""
    story.hears("v1")
    due(story)
    story.clock.forward(601)
    assert due(story) == [PATIENT]


@pytest.mark.parametrize("state", ["held", "failed"])
def test_what_needs_a_person_is_not_picked(story: Story, state: str) -> None:
    """Failed and held mirrors are not published until somebody acts or, if failed, a newer version comes."""
    story.hears("v1")
    if state == "held":
        story.ledger.hold(story.claims(), reason="x", detail="")
    else:
        story.ledger.fail(story.claims(), reason="x", detail="")
    assert due(story, queue_empty=True) == []
    story.hears("v2")
    assert due(story) == ([] if state == "held" else [PATIENT])


@pytest.mark.parametrize("scopes", [["Patient"], []])
def test_a_paused_type_is_not_picked(story: Story, scopes: list[str]) -> None:
    """What is paused gathers in the ledger and not in the queue."""
    story.hears("v1")
    story.ledger.pause(scopes, who="ana", why="x")
    assert due(story) == []
    story.ledger.resume([], who="ana", why="x")
    assert due(story) == [PATIENT]


def test_nothing_is_picked_before_a_closed_gate(story: Story) -> None:
    """Of a type that met a closed gate nothing is published until the gate may be open; other types go on."""
    for number in range(5):
        story.hears("v1", of=f"Patient/{number}")
    story.hears("v1", of=CONDITION)
    claim = story.claims("Patient/3")
    story.ledger.release(claim, reason="gate", detail="a rest", after_s=30, counts=False)
    assert due(story) == [CONDITION]
    story.clock.forward(31)
    assert sorted(due(story)) == [f"Patient/{number}" for number in range(5)]


def test_a_stale_heartbeat_frees_leases_early(story: Story) -> None:
    """Leases of a process without a fresh heartbeat are freed before their time; those of the living are not."""
    story.hears("v1")
    story.hears("v1", of=OTHER)
    for name in ("dead", "alive"):
        story.ledger.heartbeat(instance=name, role="worker", host="h", pid=1)
    story.claims(PATIENT, by="dead", lease_s=3600)
    story.claims(OTHER, by="alive", lease_s=3600)
    story.clock.forward(15)
    story.ledger.heartbeat(instance="alive", role="worker", host="h", pid=1)
    assert story.ledger.free_leases() == 0
    story.clock.forward(15)
    assert story.ledger.free_leases() == 1
    assert due(story) == [PATIENT]
    assert story.claims(PATIENT, by="alive", alone=True).starts == 2


def test_a_freed_holder_may_not_write(story: Story) -> None:
    """A process that was taken for dead and is not may announce nothing; what it sent before is recorded as late."""
    story.hears("v1")
    claim = story.claims(by="frozen", lease_s=3600)
    write = story.announces(claim)
    assert story.ledger.free_leases() == 1
    with pytest.raises(LeaseLost):
        story.announces(claim)
    assert story.ledger.record(write.id, done()) is False
    assert len(story.shown()["links"]) == 1


def test_a_process_that_leaves_is_not_counted(story: Story) -> None:
    """The age of a role's youngest heartbeat is told; without one there is none."""
    assert story.ledger.alive(role="worker") is None
    story.ledger.heartbeat(instance="a", role="worker", host="h", pid=1)
    story.clock.forward(7)
    story.ledger.heartbeat(instance="b", role="dispatch", host="h", pid=2)
    assert story.ledger.alive(role="worker") == 7.0
    story.ledger.depart(instance="a")
    assert story.ledger.alive(role="worker") is None


def test_a_job_has_one_turn_in_its_time(story: Story) -> None:
    """Of many who ask, one gets a periodic job's turn; the next turn comes after its interval."""
    asked = [story.ledger.job("dispatch", every_s=5, instance=name) for name in "abc"]
    assert asked == [True, False, False]
    assert story.ledger.job("purge", every_s=60, instance="b")
    story.clock.forward(4.9)
    assert not story.ledger.job("dispatch", every_s=5, instance="a")
    story.clock.forward(0.1)
    assert story.ledger.job("dispatch", every_s=5, instance="b")


def test_the_last_dispatch_is_told(story: Story) -> None:
    """The status says how long ago dispatch last ended, and nothing before its first end."""
    assert story.ledger.status()["last_dispatch_seconds"] is None
    story.ledger.job("dispatch", every_s=5, instance="a")
    story.ledger.job_done("dispatch", "7 published")
    story.clock.forward(3)
    assert story.ledger.status()["last_dispatch_seconds"] == 3.0


def test_a_big_backlog_is_picked_quickly(ledger: Ledger, clock: Clock) -> None:
    """Picking from twenty thousand due mirrors uses the partial index, and every mirror is picked exactly once."""
    for start in range(0, 20_000, 500):
        ledger.accept([Hint(f"Patient/{start + n}", "v1") for n in range(500)])
    first = ledger.due(limit=1000, queue_empty=False)
    second = ledger.due(limit=1000, queue_empty=False)
    assert len(set(first) | set(second)) == 2000
