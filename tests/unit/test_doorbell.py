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
        return len(self.published)

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
    wire.stalls.set()
    bell.close()


def test_a_broker_that_is_away_is_left_alone_for_a_while() -> None:
    """After a failure rings are dropped and counted instead of failing one by one; later ones go out again."""
    wire = Wire()
    wire.away = True
    bell = Doorbell("redis://unused", publisher=wire)
    bell.ring(["Patient/1"])
    eventually(lambda: bell.dropped == 1)
    bell.ring(["Patient/2"])
    assert bell.dropped == 2
    wire.away = False

    def rung() -> bool:
        bell.ring(["Patient/3"])
        return "Patient/3" in wire.published

    eventually(rung)
    bell.close()


def test_a_full_queue_is_not_filled_further() -> None:
    """With as many messages waiting as the window holds, rings are left to dispatch."""
    wire = Wire()
    wire.waiting = 1000
    bell = Doorbell("redis://unused", publisher=wire, depth=1000)
    bell.ring(["Patient/1"])
    eventually(lambda: bell.dropped == 1)
    assert wire.published == []
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
