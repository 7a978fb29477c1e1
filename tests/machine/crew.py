"""Workers that run one at a time: each is a thread that goes on only when it is told to, and stops where it may die.

So a run is told by the order of its steps alone, and the same order is the same run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from worker.errors import LedgerUnavailable
from worker.ledger import Ledger
from worker.sync import Ended

PATIENCE_S = 60.0


class Killed(BaseException):
    """The process dies here: nothing of ours runs any more."""


class Worker:
    """One attempt in a process of its own."""

    def __init__(self, crew: Crew, process: str, reference: str, attempt: Callable[[], Ended]) -> None:
        self.crew, self.process, self.reference = crew, process, reference
        self.number = 0  # of the version that it read last
        self.at = "start"
        self.frozen_to_write = False
        self.ended: Ended | None = None
        self.trouble: BaseException | None = None
        self.done = self._killed = False
        self._attempt = attempt
        self._go = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Let it go on to the next place where it may stop."""
        self.crew.current = self
        self._go.release()
        assert self.crew.back.acquire(timeout=PATIENCE_S), f"{self.process} hangs after {self.at}"
        self.crew.current = None
        if self.done:
            self._thread.join(PATIENCE_S)
        if self.trouble is not None:
            raise AssertionError(f"{self.process} ended with {self.trouble!r}") from self.trouble

    def kill(self) -> None:
        """Let it die where it stands."""
        self._killed = True
        if not self.done:
            self.step()

    def pause(self, where: str) -> None:
        """Stop here, in the worker's own thread, until told to go on."""
        if self._killed:
            raise Killed
        self.at = where
        self.crew.back.release()
        self._go.acquire()
        if self._killed:
            raise Killed

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._killed:
                self.ended = self._attempt()
        except (Killed, LedgerUnavailable):
            pass
        except BaseException as trouble:
            self.trouble = trouble
        finally:
            self.done = True
            self.crew.back.release()


class Crew:
    """Who is at work, and which of them runs now."""

    def __init__(self) -> None:
        self.back = threading.Semaphore(0)
        self.current: Worker | None = None

    def pause(self, where: str) -> None:
        """Stop the worker that runs now; outside of one, go on."""
        if self.current is not None:
            self.current.pause(where)


class Watched:
    """The ledger as workers see it: they stop before each verb, and the verb may find the database away."""

    def __init__(self, ledger: Ledger, crew: Crew, after: Callable[[str], None]) -> None:
        self._ledger, self._crew, self._after = ledger, crew, after
        self.away = False
        self.sealer = ledger.sealer

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        call = getattr(self._ledger, verb)

        def watched(*given: Any, **named: Any) -> Any:
            self._crew.pause(f"before {verb}")
            if self.away:
                self.away = False
                raise LedgerUnavailable("the machine said so")
            answer = call(*given, **named)
            self._after(verb)
            if verb == "announce":
                self._crew.pause("announced, and not yet sent")
            return answer

        return watched
