"""Two verbs of the ledger in two real transactions that go on one statement at a time, in an order of a test's choice.

A transaction that waits for a lock cannot go on however often it is told to: then its steps come when it can.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event, text

from tests.contract.ledger.waiting import wait_until
from worker.ledger import Ledger

__all__ = ["COMMIT", "Play", "Step"]

COMMIT = "commit"
_LONG_S = 30.0

Step = tuple[str, str]  # who, and what


@dataclass(slots=True)
class _Player:
    """One of the two: the steps that it takes, by a piece of their SQL, and how far it is."""

    steps: Mapping[str, str]
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    arrived: list[str] = field(default_factory=list)
    let_on: int = 0
    backend: int = 0
    ended: bool = False

    @property
    def stands(self) -> bool:
        return len(self.arrived) > self.let_on

    def named(self, statement: str) -> str | None:
        flat = " ".join(statement.split())
        return next((step for step, piece in self.steps.items() if piece in flat), None)

    def arrive(self, step: str) -> None:
        self.arrived.append(step)
        assert self.go.acquire(timeout=_LONG_S), f"nobody let it on at {step}"


class Play:
    """Plays orders of steps over a ledger on PostgreSQL."""

    def __init__(self, ledger: Ledger, steps: Mapping[str, Mapping[str, str]]) -> None:
        self._ledger = ledger
        self._steps = steps
        self._players: dict[str, _Player] = {}
        self._mine = threading.local()

    def play(self, order: Sequence[Step], verbs: Mapping[str, Callable[[], Any]]) -> list[Step]:
        """Run the verbs, each step in its place as far as locks let it; returns the order in which they came."""
        self._players = {who: _Player(steps) for who, steps in self._steps.items()}
        taken: list[Step] = []
        with self._listening(), ThreadPoolExecutor(len(verbs)) as pool:
            running = {who: pool.submit(self._run, who, verb) for who, verb in verbs.items()}
            for who, _ in order:
                self._settle(who)
                self._let_on(who, taken)
            while not all(player.ended for player in self._players.values()):
                for who in verbs:
                    self._settle(who)
                    self._let_on(who, taken)
            for future in running.values():
                future.result(_LONG_S)
        return taken

    def _run(self, who: str, verb: Callable[[], Any]) -> Any:
        self._mine.player = self._players[who]
        try:
            return verb()
        finally:
            self._players[who].ended = True

    def _let_on(self, who: str, taken: list[Step]) -> None:
        player = self._players[who]
        if player.stands:
            taken.append((who, player.arrived[-1]))
            player.let_on += 1
            player.go.release()
            self._settle(who)

    def _settle(self, who: str) -> None:
        """Wait until it stands before its next step, has ended, or waits for a lock."""
        player = self._players[who]
        wait_until(lambda: player.stands or player.ended or self._waits_for_a_lock(player))

    def _waits_for_a_lock(self, player: _Player) -> bool:
        asked = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = :pid"
        with self._ledger.database.engine.begin() as connection:
            return connection.execute(text(asked), {"pid": player.backend}).scalar() == "Lock"

    @contextmanager
    def _listening(self) -> Iterator[None]:
        engine = self._ledger.database.engine
        event.listen(engine, "before_cursor_execute", self._before)
        event.listen(engine, "commit", self._commit)
        try:
            yield
        finally:
            event.remove(engine, "before_cursor_execute", self._before)
            event.remove(engine, "commit", self._commit)

    def _before(self, connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        player = getattr(self._mine, "player", None)
        if player is None:
            return
        player.backend = connection.connection.dbapi_connection.info.backend_pid
        step = player.named(statement)
        if step is not None and step not in player.arrived:
            player.arrive(step)

    def _commit(self, _: Any) -> None:
        player = getattr(self._mine, "player", None)
        if player is not None and len(player.arrived) == len(player.steps):
            player.arrive(COMMIT)
