"""What one process of the worker holds while it runs, wired in one place. Knows nothing of Celery.

Settings and collaborators are read and opened before the first task: a worker that cannot work refuses to start.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from worker import log
from worker.cell import Cell
from worker.dispatch import Dispatch
from worker.errors import LedgerOutdated
from worker.ledger import Ledger
from worker.ledger.migrate import outdated
from worker.metrics import ATTEMPT_SECONDS, ATTEMPTS
from worker.process import Heartbeat, Instance, Watchdog
from worker.publish import Publisher, broker_url
from worker.settings import BrokerSettings, WorkerSettings
from worker.witness import KEEP_EVERY_S, Witness

if TYPE_CHECKING:
    from worker.sync import Ended
    from worker.turns import Turns

__all__ = ["Running", "make_sync"]

_log = log.get(__name__)


class Syncs(Protocol):
    """What is needed of `worker.sync.Sync`."""

    def run(self, reference: str, *, alone: bool = False) -> Ended: ...

    def write_back(self, resource_type: str) -> str: ...

    def close(self) -> None: ...


def make_sync(settings: WorkerSettings, ledger: Ledger, instance: Instance, stopping: threading.Event) -> Syncs:
    """Open what a sync needs: Medplum, the legacy APIs, the routes. Imports fhir.resources: 0.5 s and 45 MB."""
    from worker.sync import Sync

    return Sync.open(settings, ledger=ledger, instance=instance.id, stopping=stopping)


class Running:
    """One process of the worker, from its first claim to its last."""

    def __init__(self, instance: Instance, settings: BrokerSettings) -> None:
        self.instance = instance
        self.stopping = threading.Event()  # set: no claims and no announcements any more; running calls end
        _refuse_outdated(settings)
        self.ledger = Ledger.of(settings)
        self._witness = Witness.of(settings)
        self._witness.look(self.ledger)  # before the first claim: a ledger that was set back pauses everything
        self._settings = settings
        self._heartbeat = Heartbeat(self.ledger, instance)
        self._dispatch: Dispatch | None = None
        self._sync: Syncs | None = None
        self._watchdog: Watchdog | None = None
        self._cell: Cell | None = None
        self._turns: Turns | None = None
        self._turns_lock = threading.Lock()

    @classmethod
    def worker(cls, instance: Instance) -> Running:
        """Open a process that writes to the legacy system.

        Raises:
            SettingsInvalid, LedgerError, MedplumError: it cannot work; the message says what to do.
        """
        settings = WorkerSettings.read()
        running = cls(instance, settings)
        running._sync = make_sync(settings, running.ledger, instance, running.stopping)
        running._watchdog = Watchdog(running.stopping, limit_s=settings.lease_seconds)
        running._cell = Cell(limit_s=settings.lease_seconds)
        return running

    @classmethod
    def dispatcher(cls, instance: Instance) -> Running:
        """Open a process for the periodic tasks alone.

        Raises:
            SettingsInvalid, LedgerError: it cannot work; the message says what to do.
        """
        return cls(instance, BrokerSettings.read())

    def __enter__(self) -> Self:
        self._heartbeat.start()
        if self._watchdog is not None:
            self._watchdog.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._cell is not None:
            self._cell.close()
        if self._sync is not None:
            self._sync.close()
        if self._turns is not None:
            self._turns.close()
        if self._watchdog is not None:
            self._watchdog.stop()
        self._heartbeat.stop()
        self.ledger.close()

    def stop(self) -> None:
        """Claim and announce nothing any more. Safe to call from a signal handler, and more than once."""
        self.stopping.set()
        if self._cell is not None:
            self._cell.stop()

    @property
    def dispatch(self) -> Dispatch:
        if self._dispatch is None:
            publisher = Publisher(broker_url(self._settings))
            every_s = self._settings.watch_seconds
            self._dispatch = Dispatch(self.ledger, publisher, instance=self.instance.id, watch_every_s=every_s)
        return self._dispatch

    def sync(self, reference: str) -> tuple[str, str]:
        """Sync one mirror and return how it ended, as `worker.sync.Ended` has it: kind and words."""
        if self.stopping.is_set():
            return "again", "this worker stops"
        if self._sync is None or self._watchdog is None:
            return "again", "this worker does not sync: it was started for the dispatch queue alone"
        begin = time.monotonic()
        with self._watchdog.watch(reference), log.bound(reference=reference):
            ended = self._sync.run(reference)
        if ended.kind != "nothing":  # it was claimed, so its type has a route: no label is ever a stranger's word
            resource_type = reference.partition("/")[0]
            ATTEMPTS.labels(resource_type, ended.kind).inc()
            ATTEMPT_SECONDS.labels(resource_type).observe(time.monotonic() - begin)
        return self._in_the_cell(reference) if ended.kind == "suspect" else (ended.kind, ended.words)

    def write_back(self, resource_type: str) -> None:
        """Put the keys of some of a type's records on their Medplum resources; what is left is asked for again."""
        if self.stopping.is_set() or self._sync is None or self._watchdog is None:
            return
        with self._watchdog.watch(f"write-back of {resource_type}"):
            _log.debug(self._sync.write_back(resource_type))

    def catch_up(self, resource_type: str) -> None:
        """Read some of a type's time in Medplum, for what no notification told of; the rest is asked for again."""
        if self.stopping.is_set() or self._watchdog is None:
            return
        with self._watchdog.watch(f"catch-up of {resource_type}"):
            turn = self._opened_turns().catch_up.turn(resource_type)
        if turn is not None:
            _log.debug(f"catch-up of {resource_type}: {turn.words()}")

    def watch_subscriptions(self) -> None:
        """Look at each Subscription of ours once."""
        if self.stopping.is_set() or self._watchdog is None:
            return
        with self._watchdog.watch("the watch of Subscriptions"):
            _log.debug(self._opened_turns().watch.turn())

    def keep_witness(self) -> None:
        """Write down outside the database how far the ledger has come, or pause everything if it was set back."""
        if self.ledger.job("witness", every_s=KEEP_EVERY_S - 0.5, instance=self.instance.id):
            kept = self._witness.keep(self.ledger)
            self.ledger.job_done("witness", "kept" if kept else "the ledger is behind it")

    def sync_alone(self, reference: str) -> Ended:
        """Sync one suspect, here in the child process that may die of it."""
        assert self._sync is not None  # noqa: S101 - only `worker.alone` calls, and it opens a worker
        with log.bound(reference=reference):
            return self._sync.run(reference, alone=True)

    def _opened_turns(self) -> Turns:
        """Give the turns; the first that is taken opens them."""
        from worker.turns import Turns

        assert isinstance(self._settings, WorkerSettings)  # noqa: S101 - only a worker has a watchdog
        with self._turns_lock:
            self._turns = self._turns or Turns.open(
                self._settings, ledger=self.ledger, instance=self.instance.id, stopping=self.stopping.is_set
            )
            return self._turns

    def _in_the_cell(self, reference: str) -> tuple[str, str]:
        assert self._cell is not None  # noqa: S101 - made together with the sync
        verdict = self._cell.run(reference)
        if verdict.kind == "died" and verdict.instance is not None:
            self.ledger.depart(instance=verdict.instance)  # so that its lease is free within seconds
        return ("again" if verdict.kind in {"died", "busy"} else verdict.kind), verdict.words


def _refuse_outdated(settings: BrokerSettings) -> None:
    if outdated(settings.database_url):
        raise LedgerOutdated("the ledger's tables are not those of this release: run `reverse-sync migrate`")
