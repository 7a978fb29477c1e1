"""Calls to the legacy system within one attempt: through the gate, and within the attempt's budget.

It knows neither what is asked nor what is written, and never tries again by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from worker.ends import Again
from worker.errors import LegacyUnavailable
from worker.legacy import Answered, Collection, Outcome
from worker.legacy.gate import Closed, Gate, Pass

LEAST_CALL_S = 1.0
CLOSED_S = 0.25  # a gate that names a longer wait is closed, unless it says that it is only full
FULL_S = 1.0  # until a full one has room again: a rate of so many calls in a second
BUSY_PAUSES_S = (0.05, 0.1, 0.15, 0.2, 0.3)  # how long such a one is waited for, all in all

WAITING_MOST = 4  # threads of a process that wait at one API's full gate; an API that never answers would hold them all

T = TypeVar("T")


class _Seats:
    """Before each API's full gate there is room for a few of this process's threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[str, threading.BoundedSemaphore] = {}

    def of(self, api: str) -> threading.BoundedSemaphore:
        with self._lock:
            return self._free.setdefault(api, threading.BoundedSemaphore(WAITING_MOST))


_seats = _Seats()


class Budget:
    """The time that one attempt may take, counted from its claim on a clock that nobody sets."""

    def __init__(self, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._monotonic, self._began = seconds, monotonic, monotonic()

    def spent_s(self) -> float:
        return self._monotonic() - self._began

    def left_s(self, what: str) -> float:
        left = self._seconds - self.spent_s()
        if left < LEAST_CALL_S:
            raise Again("budget", f"no time left for the {what}; what is done stays done", counts=False)
        return left

    def call_s(self, what: str, own_s: float) -> float:
        """Give the next call its deadline in seconds: its own, or what is left if that is less."""
        return min(own_s, self.left_s(what))


class Caller:
    """Lets calls through the gate, one after the other."""

    def __init__(self, gate: Gate, budget: Budget, stopping: Callable[[], bool]) -> None:
        self._gate, self._stopping = gate, stopping
        self.budget = budget

    def ask(self, collection: Collection, call: Callable[[float], T]) -> T:
        """Make a call that only reads. The gate hears of one that was not answered, as it does of a write."""
        with self.through(collection) as leave:
            try:
                return call(self.budget.call_s("look-up", collection.api.deadline_s))
            except LegacyUnavailable as away:
                leave(Answered(Outcome.NOT_DONE, str(away), status=away.status, retry_after_s=away.retry_after_s))
                raise

    @contextmanager
    def through(self, collection: Collection) -> Iterator[Callable[[Answered], None]]:
        """Hold a pass of the gate; what is called with the answer tells the gate of it."""
        entered = self._enter(collection)
        answers: list[Answered] = []
        try:
            yield answers.append
        finally:
            self._gate.leave(entered, answers[-1] if answers else None)

    def _enter(self, collection: Collection) -> Pass:
        """Take a pass of the gate. A full gate is waited for: giving the mirror back would waste its claim and read."""
        entered = self._gate.enter(collection.api)
        if isinstance(entered, Pass):
            return entered
        seat = _seats.of(collection.api.name)
        if _soon(entered) and seat.acquire(blocking=False):
            try:
                entered = self._wait_for(collection, entered)
            finally:
                seat.release()
        if isinstance(entered, Pass):
            return entered
        self.go_on()
        raise Again("gate", f"{collection.api.name} is given a rest", after_s=entered.wait_s, counts=False)

    def _wait_for(self, collection: Collection, entered: Pass | Closed) -> Pass | Closed:
        """Wait for a full gate, less than a second."""
        for pause_s in BUSY_PAUSES_S:
            if isinstance(entered, Pass) or not _soon(entered):
                break
            self.go_on()
            time.sleep(pause_s)
            entered = self._gate.enter(collection.api)
        return entered

    def go_on(self) -> None:
        """Raise Again where this worker is stopping."""
        if self._stopping():
            raise Again("stopping", "this worker is stopping", counts=False)


def _soon(closed: Closed) -> bool:
    """Tell whether a gate that lets nothing through now is worth waiting for."""
    return closed.wait_s <= FULL_S if closed.full else closed.wait_s < CLOSED_S
