"""`worker.process`: identity, heartbeat and watchdog, with a clock and a ledger of the test's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from worker.errors import LedgerUnavailable
from worker.process import HUNG, Heartbeat, Instance, Watchdog


class Beats:
    """A ledger that only knows heartbeats."""

    def __init__(self, *, failing: int = 0) -> None:
        self.beats: list[str] = []
        self.departed: list[str] = []
        self._failing = failing

    def heartbeat(self, *, instance: str, role: str, host: str, pid: int) -> None:
        self.beats.append(instance)
        if 1 < len(self.beats) <= 1 + self._failing:
            raise LedgerUnavailable("gone for a moment")

    def depart(self, *, instance: str) -> None:
        self.departed.append(instance)


def eventually(fact: Callable[[], bool], within_s: float = 10) -> None:
    """Wait until the fact holds; a fact that never does fails the test."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "the fact never came to hold"
        time.sleep(0.005)


def test_each_start_is_somebody_new() -> None:
    """A process that starts again never owns the leases of its predecessor."""
    assert Instance.new("worker").id != Instance.new("worker").id


def test_it_beats_before_the_first_claim_and_goes_on() -> None:
    """`start` returns after a heartbeat is in the ledger; more follow, also after one that failed."""
    ledger, who = Beats(failing=2), Instance.new("worker")
    heart = Heartbeat(ledger, who, every_s=0.01)
    heart.start()
    assert ledger.beats == [who.id]
    eventually(lambda: len(ledger.beats) > 5)
    heart.stop()
    assert ledger.departed == [who.id]


def test_a_ledger_that_is_away_keeps_a_process_from_starting() -> None:
    """Without a heartbeat nobody could tell whether its leases are alive."""

    class Away(Beats):
        def heartbeat(self, *, instance: str, role: str, host: str, pid: int) -> None:
            raise LedgerUnavailable("away")

    with pytest.raises(LedgerUnavailable):
        Heartbeat(Away(), Instance.new("worker")).start()
    console = Heartbeat(Away(), Instance.new("console"), every_s=0.01)
    console.start(required=False)
    console.stop()


def watchdog(now: list[float]) -> tuple[Watchdog, threading.Event, list[int]]:
    stopping, ends = threading.Event(), list[int]()
    return Watchdog(stopping, limit_s=60, end=ends.append, clock=lambda: now[0]), stopping, ends


def test_calls_in_time_are_left_alone() -> None:
    """A call that ends within its limit stops nothing, and is forgotten once it ended."""
    now = [0.0]
    dog, stopping, ends = watchdog(now)
    with dog.watch("Patient/1"):
        now[0] = 59.0
        dog.look()
    now[0] = 1000.0
    dog.look()
    assert not stopping.is_set()
    assert ends == []


def test_a_late_call_stops_claims_at_once_and_the_process_when_the_others_have_ended() -> None:
    """A call beyond its limit: no more claims; the exit waits for the calls that are in time, and is not zero."""
    now = [0.0]
    dog, stopping, ends = watchdog(now)
    with dog.watch("Patient/hung"):
        now[0] = 30.0
        with dog.watch("Patient/2"):
            now[0] = 61.0
            dog.look()
            assert stopping.is_set()
            assert ends == []
        dog.look()
    assert ends == [HUNG]


def test_a_process_that_was_frozen_ends_though_its_late_calls_end_by_themselves() -> None:
    """Else it goes on taking messages and never claims one again, because nothing is late any more."""
    now = [0.0]
    dog, stopping, ends = watchdog(now)
    with dog.watch("Patient/1"):
        now[0] = 50.0
        with dog.watch("Patient/2"):
            now[0] = 61.0
            dog.look()
            assert stopping.is_set()
    dog.look()
    assert ends == [HUNG]


def test_the_exit_does_not_wait_for_a_second_hung_call() -> None:
    """When all that is left is late, the process ends."""
    now = [0.0]
    dog, _, ends = watchdog(now)
    with dog.watch("Patient/1"), dog.watch("Patient/2"):
        now[0] = 61.0
        dog.look()
    assert ends == [HUNG]


def test_a_call_that_raises_is_forgotten_too() -> None:
    """An exception ends a call as well as a return does."""
    now = [0.0]
    dog, stopping, _ = watchdog(now)
    with pytest.raises(RuntimeError), dog.watch("Patient/1"):
        raise RuntimeError
    now[0] = 61.0
    dog.look()
    assert not stopping.is_set()
