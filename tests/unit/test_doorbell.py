"""`worker.publish.Doorbell` and the broker's URL, with a publisher of the test's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from worker.errors import SettingsInvalid
from worker.publish import SYNC, SYNC_TASK, BrokerAway, Doorbell, Publisher, broker_url
from worker.settings import BrokerSettings


class Wire(Publisher):
    """A publisher that notes, and fails or stalls when told to."""

    def __init__(self) -> None:
        self.published: list[str] = []
        self.batches: list[int] = []
        self.waiting = 0
        self.away = False
        self.stalls = threading.Event()
        self.stalls.set()  # set: it does not stall
        self.closed = False

    def publish(self, queue: str, task: str, references: Sequence[str]) -> int:
        assert (queue, task) == (SYNC, SYNC_TASK)
        self.stalls.wait(10)
        if self.away:
            raise BrokerAway("the broker did not answer LPUSH: TimeoutError")
        self.published += references
        self.batches.append(len(references))
        return self.waiting + len(references)

    def length(self, queue: str) -> int:
        if self.away:
            raise BrokerAway("the broker did not answer LLEN: TimeoutError")
        return self.waiting

    def close(self) -> None:
        self.closed = True


def eventually(fact: Callable[[], bool], within_s: float = 10) -> None:
    """Wait until the fact holds; a fact that never does fails the test."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "the fact never came to hold"
        time.sleep(0.005)


def test_a_ring_is_published() -> None:
    """What is rung comes out as a message, in order."""
    wire = Wire()
    bell = Doorbell("redis://unused", publisher=wire)
    bell.ring(["Patient/1", "Patient/2"])
    bell.ring(["Patient/3"])
    eventually(lambda: wire.published == ["Patient/1", "Patient/2", "Patient/3"])
    bell.close()
    assert wire.closed


def test_a_stalled_broker_costs_the_ringer_nothing() -> None:
    """While a publish hangs, ringing ten thousand times takes no time, and holds no more than a second's worth."""
    wire = Wire()
    wire.stalls.clear()
    bell = Doorbell("redis://unused", publisher=wire, per_second=100)
    begin = time.monotonic()
    for number in range(10_000):
        bell.ring([f"Patient/{number}"])
    assert time.monotonic() - begin < 1.0
    assert bell.dropped >= 10_000 - 100 - 10
    assert bell.room() == 0
    wire.stalls.set()
    bell.close()


def test_there_is_room_for_a_second() -> None:
    """What it says that it takes it takes, and one more it does not."""
    wire = Wire()
    wire.stalls.clear()
    bell = Doorbell("redis://unused", publisher=wire, per_second=100)
    assert bell.room() == 100
    bell.ring(["Patient/first"])
    eventually(lambda: bell.room() == 100)  # it is on its way
    bell.ring([f"Patient/{number}" for number in range(60)])
    assert bell.room() == 40
    bell.ring([f"Patient/{number}" for number in range(60, 101)])
    assert (bell.room(), bell.dropped) == (0, 1)
    wire.stalls.set()
    bell.close()
    assert wire.published == ["Patient/first", *[f"Patient/{number}" for number in range(100)]]


def test_what_was_taken_is_kept_while_the_broker_is_away() -> None:
    """After a failure there is no room until the broker answers again; what had been taken then goes out, in order."""
    wire = Wire()
    wire.away = True
    bell = Doorbell("redis://unused", publisher=wire, per_second=10)
    bell.ring(["Patient/1", "Patient/2"])
    eventually(lambda: bell.room() == 0)
    bell.ring(["Patient/3"])
    assert bell.dropped == 1
    wire.away = False
    eventually(lambda: wire.published == ["Patient/1", "Patient/2"])
    eventually(lambda: bell.room() == 10)
    bell.close()


def test_closing_does_not_wait_for_a_broker_that_is_away() -> None:
    """The end comes at once; what was kept is left to dispatch."""
    wire = Wire()
    wire.away = True
    bell = Doorbell("redis://unused", publisher=wire)
    bell.ring(["Patient/1"])
    eventually(lambda: bell.room() == 0)
    begin = time.monotonic()
    bell.close(within_s=5)
    assert time.monotonic() - begin < 1
    assert wire.published == []


def test_a_full_queue_takes_no_more_until_the_workers_have_made_room() -> None:
    """With as many messages waiting as the window holds there is no room; it comes back by itself."""
    wire = Wire()
    wire.waiting = 1000
    bell = Doorbell("redis://unused", publisher=wire, depth=1000)
    bell.ring(["Patient/1"])
    eventually(lambda: bell.room() == 0)
    bell.ring(["Patient/2"])
    assert bell.dropped == 1
    assert wire.published == ["Patient/1"]
    wire.waiting = 10
    eventually(lambda: bell.room() > 0)
    bell.close()


def test_the_rate_is_capped() -> None:
    """Faster ringing than `per_second` goes out in small batches with pauses between them."""
    wire = Wire()
    bell = Doorbell("redis://unused", publisher=wire, per_second=100)
    begin = time.monotonic()
    bell.ring([f"Patient/{number}" for number in range(60)])
    eventually(lambda: len(wire.published) == 60)
    assert max(wire.batches) <= 10
    assert time.monotonic() - begin > 0.4
    bell.close()


def test_after_closing_nothing_is_rung() -> None:
    """A closed doorbell ignores rings, and closing twice is harmless."""
    wire = Wire()
    bell = Doorbell("redis://unused", publisher=wire)
    bell.close()
    bell.ring(["Patient/1"])
    bell.close()
    assert wire.published == []


def test_closing_publishes_what_is_pending() -> None:
    """What was rung just before the end still goes out."""
    wire = Wire()
    bell = Doorbell("redis://unused", publisher=wire)
    bell.ring(["Patient/1"])
    bell.close()
    assert wire.published == ["Patient/1"]


def test_without_a_broker_both_ways_to_have_one_are_named() -> None:
    """The refusal names the setting, its alias, and the embedded broker."""
    with pytest.raises(SettingsInvalid, match=r"REVERSE_SYNC_BROKER_URL.*REDIS_URL.*reverse-sync broker"):
        broker_url(BrokerSettings.read({}))


def test_another_kind_of_broker_is_refused_without_showing_its_password() -> None:
    """Only Redis is spoken; the message holds nothing of the URL."""
    with pytest.raises(SettingsInvalid, match="redis://") as refused:
        broker_url(BrokerSettings.read({"REDIS_URL": "amqp://user:secret@host"}))
    assert "secret" not in str(refused.value)
