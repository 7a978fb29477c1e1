"""One process: who it is, that it lives, and that it ends when it should. Knows neither Celery nor SQL."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol
from uuid import uuid4

from worker import log
from worker.errors import ReverseSyncError

__all__ = ["HEARTBEAT_S", "HUNG", "Heartbeat", "Instance", "Watchdog"]

HEARTBEAT_S = 5.0
"""How often an instance says that it lives. Its leases are freed early once several of these are missing."""

HUNG = 70
"""The exit code of a process that ended itself because a call never ended (EX_SOFTWARE)."""

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Instance:
    """One start of one process. The id is random for each start: a process that comes back never owns old leases."""

    id: str
    role: str  # worker, dispatch, alone, console, web
    host: str
    pid: int
    started_at: datetime

    @classmethod
    def new(cls, role: str) -> Instance:
        """Name this start of this process."""
        return cls.named(f"{role}-{uuid4().hex}", role)

    @classmethod
    def named(cls, instance_id: str, role: str) -> Instance:
        """Take the id that a parent chose, who has to know it should this process die."""
        return cls(instance_id, role, socket.gethostname(), os.getpid(), datetime.now(UTC))


class _Ledger(Protocol):
    def heartbeat(self, *, instance: str, role: str, host: str, pid: int) -> None: ...

    def depart(self, *, instance: str) -> None: ...


class Heartbeat:
    """Tells the ledger every few seconds that this instance lives, from a thread of its own."""

    def __init__(self, ledger: _Ledger, instance: Instance, *, every_s: float = HEARTBEAT_S) -> None:
        self._ledger = ledger
        self._instance = instance
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self, *, required: bool = True) -> None:
        """Beat once before anything is claimed, then go on in the background.

        Raises:
            LedgerUnavailable: the ledger cannot be reached, and the process is of no use without it (`required`).
        """
        try:
            self._beat()
        except ReverseSyncError:
            if required:
                raise
        self._thread.start()

    def stop(self) -> None:
        """Stop, and take the instance off the list: it holds nothing any more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(self._every_s)
        with suppress(ReverseSyncError):  # then its heartbeat grows stale, which comes to the same
            self._ledger.depart(instance=self._instance.id)

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self._beat()
            except ReverseSyncError as problem:  # the next beat is seconds away; work has its own way to notice
                _log.warning("the heartbeat was not written", error=problem)

    def _beat(self) -> None:
        who = self._instance
        self._ledger.heartbeat(instance=who.id, role=who.role, host=who.host, pid=who.pid)


class Watchdog:
    """Ends the process when a call outlives its limit: nothing else can, because threads cannot be killed.

    It first sets `stopping`, so that nothing is claimed or announced any more, and lets the other calls end.
    """

    def __init__(
        self,
        stopping: threading.Event,
        *,
        limit_s: float,
        end: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
        look_every_s: float = 1.0,
    ) -> None:
        self._stopping = stopping
        self._limit_s = limit_s
        self._end = end
        self._clock = clock
        self._look_every_s = look_every_s
        self._lock = threading.Lock()
        self._running: dict[object, tuple[str, float]] = {}
        self._ending = False  # a call was late: this process is not to be trusted any more
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()

    @contextmanager
    def watch(self, reference: str) -> Iterator[None]:
        """Watch what happens within: it may take `limit_s`."""
        key = object()
        with self._lock:
            self._running[key] = (reference, self._clock() + self._limit_s)
        try:
            yield
        finally:
            with self._lock:
                del self._running[key]

    def look(self) -> None:
        """Look once: stop claiming when a call is late, and end the process when no call is left but late ones.

        It ends as well where the late ones have ended by then: a process that was frozen and goes on claims nothing
        any more, and would take messages for ever without working on any.
        """
        now = self._clock()
        with self._lock:
            late = [reference for reference, until in self._running.values() if until < now]
            others = len(self._running) - len(late)
        self._ending = self._ending or bool(late)
        if not self._ending:
            return
        if not self._stopping.is_set():
            self._stopping.set()
            _log.critical(
                "a call outlived its limit: no more claims, this process ends", references=late, waits_for=others
            )
        if not others:
            self._end(HUNG)

    def _run(self) -> None:
        while not self._over.wait(self._look_every_s):
            self.look()
