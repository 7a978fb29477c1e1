"""Whether work gets done now: each thing that it needs, asked for on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worker.errors import ReverseSyncError
from worker.ledger import Ledger
from worker.ledger.migrate import outdated
from worker.publish import BrokerAway, Publisher
from worker.settings import BrokerSettings

__all__ = ["Check", "checks"]

DISPATCH_WITHIN_S = 30.0
HEARTBEAT_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to hold, whether it does, and what to do if not."""

    name: str
    ok: bool
    says: str


def checks(settings: BrokerSettings, ledger: Ledger, publisher: Publisher | None) -> list[Check]:
    """Ask for each thing that work needs. Takes seconds at most and raises nothing."""
    return [
        _check("ledger", lambda: _ledger(ledger)),
        _check("migrations", lambda: _migrations(settings)),
        _check("broker", lambda: _broker(publisher)),
        _check("dispatch", lambda: _dispatch(ledger.status())),
        _check("worker", lambda: _worker(ledger.alive(role="worker"))),
    ]


def _check(name: str, ask: Callable[[], tuple[bool, str]]) -> Check:
    try:
        ok, says = ask()
    except ReverseSyncError as problem:
        ok, says = False, str(problem)
    return Check(name, ok, says)


def _ledger(ledger: Ledger) -> tuple[bool, str]:
    ledger.paused()
    return True, "answers"


def _migrations(settings: BrokerSettings) -> tuple[bool, str]:
    if outdated(settings.database_url):
        return False, "the tables are not those of this release: run `reverse-sync migrate`"
    return True, "current"


def _broker(publisher: Publisher | None) -> tuple[bool, str]:
    if publisher is None:
        return False, "REVERSE_SYNC_BROKER_URL is missing"
    try:
        return True, f"answers; {publisher.length('sync')} messages wait"
    except BrokerAway as away:
        return False, f"{away}; changes are accepted and wait in the ledger"


def _dispatch(status: dict[str, Any]) -> tuple[bool, str]:
    age = status["last_dispatch_seconds"]
    if age is None:
        return False, "never ran: are beat and the worker of the dispatch queue running?"
    if age > DISPATCH_WITHIN_S:
        return False, f"last ran {age:.0f} s ago: are beat, the broker and the worker of the dispatch queue running?"
    return True, f"ran {age:.1f} s ago"


def _worker(age: float | None) -> tuple[bool, str]:
    if age is None or age > HEARTBEAT_WITHIN_S:
        return False, "no worker of the sync queue has said lately that it lives"
    return True, f"said {age:.1f} s ago that it lives"
