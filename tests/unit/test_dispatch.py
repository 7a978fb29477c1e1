"""`worker.dispatch` over a ledger and a publisher of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from worker.dispatch import CROWDED, Dispatch
from worker.publish import BrokerAway, Publisher


class Backlog:
    """A ledger whose backlog is a list; `turn` says whether the job's turn is ours."""

    def __init__(self, due: Sequence[str], *, turn: bool = True) -> None:
        self._due = list(due)
        self._turn = turn
        self.asked: list[tuple[int, bool]] = []
        self.lost_after_s: list[float] = []
        self.done: list[str] = []

    def job(self, name: str, *, every_s: float, instance: str) -> bool:
        return self._turn

    def job_done(self, name: str, outcome: str) -> None:
        self.done.append(f"{name}: {outcome}")

    def due(self, *, limit: int, queue_empty: bool, lost_after_s: float, stale_after_s: float) -> tuple[str, ...]:
        self.asked.append((limit, queue_empty))
        self.lost_after_s.append(lost_after_s)
        return tuple(self._due[:limit])

    def free_leases(self) -> int:
        return 3

    def types_to_identify(self) -> tuple[str, ...]:
        return tuple(self._due)

    def types_to_catch_up(self) -> tuple[str, ...]:
        return tuple(self._due)

    def watches(self) -> bool:
        return bool(self._due)

    def forget_own_versions(self, *, after: timedelta) -> int:
        self.forgot_after = after
        return 2


class Wire(Publisher):
    """A broker as far as dispatch sees it."""

    def __init__(self, *, waiting: int = 0, marked: bool = True, away: bool = False) -> None:
        self.waiting, self.marked, self.away = waiting, marked, away
        self.published: list[str] = []

    def length(self, queue: str) -> int:
        return self.waiting

    def remembers(self) -> bool:
        return self.marked

    def remember(self) -> None:
        self.marked = True

    def publish(self, queue: str, task: str, references: Sequence[str]) -> int:
        if self.away:
            raise BrokerAway("the broker did not answer LPUSH: TimeoutError")
        self.published += references
        return len(self.published)


def test_the_queue_is_topped_up_to_its_depth() -> None:
    """What waits already counts: the backlog stays in the ledger, the queue is a window on it."""
    ledger, wire = Backlog([f"Patient/{n}" for n in range(50)]), Wire(waiting=7)
    Dispatch(ledger, wire, instance="dispatch-1", depth=10).top_up()
    assert wire.published == ["Patient/0", "Patient/1", "Patient/2"]
    assert ledger.asked == [(3, False)]
    assert ledger.done == ["dispatch: published 3, 7 waited"]


def test_a_full_queue_gets_nothing() -> None:
    """More messages than the depth, as after a burst of doorbells, never ask for less than none."""
    ledger, wire = Backlog(["Patient/1"]), Wire(waiting=2000)
    Dispatch(ledger, wire, instance="dispatch-1").top_up()
    assert ledger.asked == [(0, False)]
    assert wire.published == []


def test_another_dispatcher_took_the_turn() -> None:
    """Of several dispatch workers one works; the others do not even ask."""
    ledger, wire = Backlog(["Patient/1"], turn=False), Wire()
    Dispatch(ledger, wire, instance="dispatch-2").top_up()
    assert ledger.asked == []
    assert wire.published == []


def test_an_emptied_broker_counts_as_an_empty_queue_although_new_messages_are_in_it() -> None:
    """After FLUSHALL the mark is gone: what was queued before is lost, and is published again at once."""
    ledger, wire = Backlog(["Patient/1"]), Wire(waiting=5, marked=False)
    dispatch = Dispatch(ledger, wire, instance="dispatch-1")
    dispatch.top_up()
    dispatch.top_up()
    assert [empty for _, empty in ledger.asked] == [True, False]
    assert ledger.lost_after_s[0] == 0.0, "a message of a moment ago is as lost as an old one"


def test_the_mark_is_left_only_after_the_work_is_published() -> None:
    """If publishing fails, the next turn still knows that the broker was emptied."""
    ledger, wire = Backlog(["Patient/1"]), Wire(waiting=5, marked=False, away=True)
    dispatch = Dispatch(ledger, wire, instance="dispatch-1")
    with pytest.raises(BrokerAway):
        dispatch.top_up()
    assert not wire.marked
    assert ledger.done == []


def test_freed_leases_are_counted_in_the_job() -> None:
    """The job's row says how many leases of dead processes were freed."""
    ledger = Backlog([])
    Dispatch(ledger, Wire(), instance="dispatch-1").free_leases()
    assert ledger.done == ["free_leases: freed 3"]


def test_each_type_with_keys_to_put_is_published_once() -> None:
    """Workers are asked for a turn of write-back by type; old versions of our own are forgotten by the way."""
    ledger, wire = Backlog(["Condition", "Patient"]), Wire(waiting=CROWDED - 1)
    Dispatch(ledger, wire, instance="dispatch-1").write_back()
    assert wire.published == ["Condition", "Patient"]
    assert ledger.done == ["forget_own_versions: forgot 2", "write_back: asked for 2 types"]
    assert ledger.forgot_after >= timedelta(days=3), "Medplum sends a notification again for days"


def test_write_back_waits_while_changes_wait() -> None:
    """A queue with much in it gets no write-back on top; nor does one whose workers are all away fill up with it."""
    ledger, wire = Backlog(["Patient"]), Wire(waiting=CROWDED)
    Dispatch(ledger, wire, instance="dispatch-1").write_back()
    assert wire.published == []
    assert ledger.done[-1] == "write_back: the queue is crowded"


def test_without_keys_to_put_the_broker_is_not_asked() -> None:
    """Nothing to write back costs one look into the ledger."""
    ledger, wire = Backlog([]), Wire(waiting=CROWDED, away=True)
    Dispatch(ledger, wire, instance="dispatch-1").write_back()
    assert ledger.done[-1] == "write_back: asked for 0 types"


def test_another_dispatcher_took_the_turn_of_write_back() -> None:
    """Of several dispatch workers one asks."""
    ledger, wire = Backlog(["Patient"], turn=False), Wire()
    Dispatch(ledger, wire, instance="dispatch-2").write_back()
    assert (wire.published, ledger.done) == ([], [])


def test_catch_up_is_asked_for_by_type() -> None:
    """A worker is asked for each type that has time to read, and the ledger notes it."""
    wire, backlog = Wire(), Backlog(["Condition", "Patient"])
    Dispatch(backlog, wire, instance="one").catch_up()
    assert wire.published == ["Condition", "Patient"]
    assert backlog.done == ["catch_up: asked for 2 types"]


def test_a_crowded_queue_is_asked_seldom_and_not_never() -> None:
    """While messages wait, catch-up adds none, but for once a minute: else a busy hour would be an hour unproven."""
    turns = iter([True, False, True, True])

    class Minutes(Backlog):
        def job(self, name: str, *, every_s: float, instance: str) -> bool:
            return next(turns)

    wire, backlog = Wire(waiting=CROWDED), Minutes(["Patient"])
    for _ in range(2):
        Dispatch(backlog, wire, instance="one").catch_up()
    assert wire.published == ["Patient"]
    assert backlog.done == [f"catch_up: asked for {number} types, the queue is crowded" for number in (0, 1)]


def test_catch_up_that_is_not_due_asks_nobody() -> None:
    """Another dispatch worker had the turn, or there is nothing to read."""
    for backlog in (Backlog(["Patient"], turn=False), Backlog([])):
        wire = Wire()
        Dispatch(backlog, wire, instance="one").catch_up()
        assert wire.published == []


def test_the_watch_is_asked_for_where_there_is_something_to_watch() -> None:
    """One message in each turn; none without Subscriptions, none out of turn."""
    asked = []
    for due, turn in ((["a"], True), ([], True), (["a"], False)):
        wire = Wire()
        Dispatch(Backlog(due, turn=turn), wire, instance="i").watch()
        asked.append(wire.published)
    assert asked == [["all"], [], []]
