"""Several at once: two workers, hints during an attempt, pauses and stops in its middle. `protocol.md` 1, 3 and 6."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.sync.story import (
    BOUND_S,
    LEASE_S,
    PATIENT,
    SEND_WITHIN_S,
    Barrier,
    Killed,
    Story,
    only,
    patient,
)
from worker.errors import LedgerUnavailable
from worker.ledger import Ledger, Selection
from worker.ledger.values import Announced
from worker.sync import POISON_STARTS, End, Ended

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
EMPTY = {"data": [], "total": 0}


def stood_still(story: Story, where: str) -> tuple[Barrier, Callable[[], Ended]]:
    """Have worker one stand still around its write until its lease is over; the barrier, and its end."""
    barrier = Barrier()
    setattr(story.hooks, where, barrier)
    one = story.in_thread(lambda: story.worker("one").run(PATIENT))
    assert barrier.reached.wait(20)
    story.clock.forward(LEASE_S)
    return barrier, one


def test_a_second_worker_leaves_a_leased_mirror_alone(story: Story) -> None:
    """While one worker is at it a second task for the same resource does nothing."""
    story.changes(patient())
    barrier = Barrier()
    story.hooks.before = barrier
    one = story.in_thread(lambda: story.worker("one").run(PATIENT))
    assert barrier.reached.wait(20)
    assert story.worker("two").run(PATIENT).kind is End.NOTHING
    barrier.open.set()
    assert one().kind is End.DONE
    story.agrees()


@on_both
def test_a_late_answer_is_adopted(story: Story) -> None:
    """The answer of an attempt that lost its lease links its record, unproven; the mirror is due and written (M7)."""
    story.changes(patient())
    barrier, one = stood_still(story, "after")
    story.changes(patient(family="Roe"))
    two = story.worker("two")
    assert story.tries(by=two).kind is End.AGAIN  # an announced write has no outcome: nothing is sent yet
    barrier.open.set()
    assert one().kind is End.AGAIN
    assert only(story.links())["keys"]["number"] == 4701
    assert story.digest() is None
    assert story.state() == "due"
    story.settles()
    assert story.writes() == ["POST", "PUT"]
    story.agrees()


def test_a_late_answer_after_the_record_was_found_changes_nothing(story: Story) -> None:
    """Found by the successor, then answered after all: still one link and one record, written once more (M8b)."""
    story.changes(patient())
    barrier, one = stood_still(story, "after")
    story.settles(for_s=BOUND_S)
    assert story.outcomes() == [("create", "found"), ("update", "done")]
    barrier.open.set()
    one()
    assert story.digest() is None
    assert story.state() == "due"
    story.settles()
    assert story.dispositions() == ["applied"]
    story.agrees()


def test_a_late_update_does_not_have_the_last_word(story: Story) -> None:
    """A write that was frozen on its way out, and lands after its successor's, is overwritten again (M8)."""
    story.changes(patient())
    story.settles()
    story.clock.forward(60)
    story.changes(patient(family="Old"))
    barrier, one = stood_still(story, "before")
    story.changes(patient(family="New"))
    story.settles(for_s=BOUND_S)
    assert story.record()["last_name"] == "New"
    barrier.open.set()
    one()
    assert story.record()["last_name"] == "Old"  # it went back: declared, and mended at once
    assert story.state() == "due"
    story.settles()
    story.agrees()


def test_a_second_key_is_held(story: Story) -> None:
    """A create that was frozen on its way out makes a second record: its late answer holds the mirror (3e)."""
    story.changes(patient())
    barrier, one = stood_still(story, "before")
    story.settles(for_s=BOUND_S)
    assert only(story.links())["keys"]["number"] == 4701
    barrier.open.set()
    one()
    assert (story.state(), story.mirror()["reason"]) == ("held", "second record")
    assert [row[0] for row in story.sql("SELECT key FROM writes ORDER BY id")] == ["4702", "4701"]
    assert only(story.links())["keys"]["number"] == 4701
    story.settles()
    assert len(story.records()) == 2


def test_an_index_that_lags_makes_a_second_record_that_is_held(story: Story) -> None:
    """A find that shows nothing though the record is there leads to a second one, which the second look holds (3d)."""
    story.changes(patient())
    story.breaks("reset_after", {"method": "POST"})
    story.tries()
    story.breaks("status", {"method": "GET", "template": "/api/patients"}, status=200, body=EMPTY)
    assert story.syncs().kind is End.DONE
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "second record")


def test_a_lost_lease_announces_nothing(story: Story) -> None:
    """Whoever lost the mirror while reading sends nothing, and the other one does the work (3a)."""
    story.changes(patient())
    two = story.worker("two")

    def overtaken() -> None:
        story.hooks.read = lambda: None
        story.clock.forward(LEASE_S)
        assert two.run(PATIENT, alone=True).kind is End.DONE

    story.hooks.read = overtaken
    assert story.worker("one").run(PATIENT).kind is End.AGAIN
    assert story.writes() == ["POST"]
    assert story.outcomes() == [("create", "done")]
    story.agrees()


def test_a_worker_whose_heartbeat_stopped_announces_nothing(story: Story) -> None:
    """A lease that was freed early fences its holder, though its time is not over."""
    story.changes(patient())
    freed: list[int] = []
    story.hooks.read = lambda: freed.append(story.ledger.free_leases())
    assert story.tries().kind is End.AGAIN
    assert freed == [1]
    assert story.writes() == []
    story.hooks.read = lambda: None
    story.settles()
    story.agrees()


@on_both
def test_a_hint_during_an_attempt_leaves_it_due(story: Story) -> None:
    """What is accepted after the claim is not settled by it, and wakes the mirror once more (protocol 1, mutant M1)."""
    story.changes(patient())

    def newer() -> None:
        story.hooks.read = lambda: None
        story.changes(patient(family="Roe"))

    story.hooks.read = newer
    assert story.syncs().kind is End.DONE
    assert story.record()["last_name"] == "Doe"
    assert story.state() == "due"
    assert story.dispositions() == ["applied", None]
    story.settles()
    assert story.dispositions() == ["applied", "applied"]
    story.agrees()


def test_a_hint_during_an_attempt_is_superseded_by_nobody_who_did_not_read_it(story: Story) -> None:
    """Settling supersedes what was accepted before the claim, and leaves open what came after it (4, mutant M2)."""
    story.changes(patient(family="Poe"))
    story.changes(patient())

    def newer() -> None:
        story.hooks.read = lambda: None
        story.changes(patient(family="Roe"))

    story.hooks.read = newer
    assert story.syncs().kind is End.DONE
    assert story.dispositions() == ["superseded", "applied", None]
    story.settles()
    assert story.dispositions() == ["superseded", "applied", "applied"]


@pytest.mark.parametrize("end", ["unmappable", "parent"])
def test_a_hint_during_an_attempt_that_fails_leaves_it_due(story: Story, end: str) -> None:
    """A version that came while the older one failed, or began to wait, is tried at once."""
    broken: dict[str, Any] = (
        {"name": []} if end == "unmappable" else {"generalPractitioner": [{"reference": "Practitioner/d1"}]}
    )
    story.changes(patient(**broken))

    def newer() -> None:
        story.hooks.read = lambda: None
        story.changes(patient(family="Roe"))

    story.hooks.read = newer
    story.syncs()
    assert story.state() == "due"
    story.settles()
    assert story.dispositions() == ["superseded", "applied"]
    story.agrees()


@pytest.mark.parametrize("scopes", [["Patient"], []], ids=["the type", "everything"])
def test_a_pause_stops_claims(story: Story, scopes: list[str]) -> None:
    """While a type or everything is paused nothing is read or written, and nothing is lost (protocol 6)."""
    story.changes(patient())
    story.ledger.pause(scopes, who="a test", why="why")
    assert story.tries().kind is End.AGAIN
    assert story.ledger.due(limit=10, queue_empty=True, lost_after_s=0) == ()
    assert story.calls("GET", "POST") == []
    story.ledger.resume(scopes, who="a test", why="why")
    story.settles()
    story.agrees()


@on_both
def test_a_pause_stops_the_next_announcement(story: Story) -> None:
    """A pause during an attempt keeps its write from being announced; what is known of the record stays known."""
    story.changes(patient())
    story.settles()
    before = story.digest()
    story.clock.forward(5)
    story.changes(patient(family="Roe"))
    story.hooks.read = lambda: story.ledger.pause(["Patient"], who="a test", why="why")
    assert story.tries().kind is End.AGAIN
    assert story.writes() == ["POST"]
    assert story.digest() == before
    story.hooks.read = lambda: None
    story.ledger.resume([], who="a test", why="why")
    story.settles()
    story.agrees()


def test_a_worker_that_stops_claims_and_announces_nothing(story: Story) -> None:
    """After SIGTERM no attempt begins, and one that runs announces nothing new (protocol 6)."""
    story.changes(patient())
    story.hooks.read = story.stopping.set
    assert story.tries().kind is End.AGAIN
    assert story.writes() == []
    assert story.outcomes() == []
    assert story.tries().kind is End.AGAIN
    assert story.mirror()["token"] == 1
    assert story.mirror()["attempts"] == 0
    story.hooks.read = lambda: None
    story.stopping.clear()
    story.settles()
    story.agrees()


def test_a_call_that_runs_when_the_worker_stops_ends(story: Story) -> None:
    """A write that is under way at SIGTERM is answered, recorded and settled: nothing is unknown afterwards."""
    story.changes(patient())
    story.hooks.before = lambda request: story.stopping.set()
    assert story.tries().kind is End.DONE
    assert story.outcomes() == [("create", "done")]
    story.agrees()


def test_a_spent_budget_announces_nothing(story: Story) -> None:
    """An attempt out of time gives the mirror back, due at once and not counted against it (protocol 6)."""
    story.changes(patient())
    spent = itertools.count()
    story.monotonic = lambda: 0.0 if next(spent) < 3 else 44.5
    assert story.tries().kind is End.AGAIN
    assert story.mirror()["reason"] == "budget"
    assert story.mirror()["attempts"] == 0
    assert story.writes() == []
    story.monotonic = lambda: 0.0
    story.settles()
    story.agrees()


def test_an_announcement_that_took_too_long_is_withdrawn(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its send-by time a write is never sent; nothing is in doubt, and it is announced anew (3a)."""
    story.changes(patient())
    now = [0.0]
    announce = Ledger.announce

    def slowly(ledger: Ledger, *given: object) -> Announced:
        announced = announce(ledger, *given)  # type: ignore[arg-type]
        now[0] += SEND_WITHIN_S + 0.1
        return announced

    monkeypatch.setattr(Ledger, "announce", slowly)
    story.monotonic = lambda: now[0]
    assert story.tries().kind is End.AGAIN
    assert story.outcomes() == [("create", "withdrawn")]
    assert story.writes() == []
    monkeypatch.setattr(Ledger, "announce", announce)
    story.settles()
    story.agrees()


def test_what_kills_its_process_again_and_again_is_failed(story: Story) -> None:
    """Consecutive starts without an end are counted; the suspect runs alone, and then no more (protocol 6)."""
    story.changes(patient())

    def die() -> None:
        raise Killed

    story.hooks.read = die
    story.dies()
    assert story.worker().run(PATIENT).kind is End.SUSPECT
    for _ in range(POISON_STARTS - 1):
        story.dies()
    ended = story.tries()
    assert (ended.kind, story.mirror()["reason"]) == (End.FAILED, "poison")
    story.hooks.read = lambda: None
    story.changes(patient(family="Roe"))
    story.settles()
    story.agrees()


def test_a_burst_makes_few_writes(story: Story) -> None:
    """Fifty versions within five seconds are written a handful of times, and the last one is there (protocol 1)."""
    for number in range(50):
        story.changes(patient(family=f"Doe{chr(97 + number % 26)}{number}"))
        story.tries()
        story.clock.forward(0.1)
    story.settles()
    assert len(story.writes()) <= 5
    assert set(story.dispositions()) == {"applied", "superseded"}
    story.agrees()


def test_the_first_write_is_immediate_and_the_next_a_second_later(story: Story) -> None:
    """A change that comes alone waits for nobody; the one behind it waits a second from the last write."""
    story.changes(patient())
    assert story.tries().kind is End.DONE
    story.changes(patient(family="Roe"))
    assert story.tries().kind is End.AGAIN
    assert story.waits_s() == pytest.approx(1.0, abs=0.01)


def test_a_replay_overtakes_no_write_in_doubt(story: Story) -> None:
    """A person's replay asks again at once, and still waits for the bound of what was announced (3c)."""
    story.changes(patient())
    story.breaks("reset_after", {"method": "POST"})
    story.tries()
    story.ledger.replay(Selection(references=(PATIENT,)), who="a test")
    assert story.tries().kind is End.AGAIN
    assert [line["method"] for line in story.calls("GET", "POST", "PUT")] == ["POST"]
    story.settles()
    story.agrees()


def test_an_answer_is_not_lost_when_the_ledger_is(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that is away when the answer comes leaves the write in doubt, and find settles it."""
    story.changes(patient())

    def away(*_: object, **__: object) -> bool:
        raise LedgerUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "finish", away)
        with pytest.raises(LedgerUnavailable):
            story.tries()
    story.clock.forward(LEASE_S)
    story.settles()
    assert story.outcomes()[0] == ("create", "found")
    story.agrees()


def test_a_gate_that_is_closed_costs_no_attempt(story: Story) -> None:
    """After a Retry-After others of the same API wait too, and their attempts are not counted."""
    story.changes(patient(), patient("p2"))
    story.breaks("status", {"method": "POST"}, status=429, headers={"Retry-After": "30"})
    story.tries()
    assert story.tries("Patient/p2").kind is End.AGAIN
    assert story.mirror("Patient/p2")["attempts"] == 0
    assert story.waits_s("Patient/p2") > 20
    assert len(story.writes()) == 1
