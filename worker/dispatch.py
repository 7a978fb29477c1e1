"""The periodic work on the backlog: tops the queue up from the ledger. Never calls HTTP and knows nothing of Celery.

The ledger is the backlog and Redis holds a window on it. Whatever became of a message, its mirror is still due in the
ledger, and is published again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

from worker import log, metrics
from worker.publish import DEPTH, SYNC, SYNC_TASK, Publisher

__all__ = ["Dispatch"]

DISPATCH_EVERY_S = 2.0
FREE_LEASES_EVERY_S = 5.0
WRITE_BACK_EVERY_S = 5.0
FORGET_EVERY_S = 3600.0
CATCH_UP_EVERY_S = 5.0
CATCH_UP_CROWDED_S = 60.0
"""How often catch-up is asked for all the same while the queue is crowded: it holds messages that wait a while."""

CATCH_UP_TASK = "worker.tasks.catch_up"
WATCH_EVERY_S = 60.0
WRITE_BACK_TASK = "worker.tasks.write_back"
WATCH_TASK = "worker.tasks.watch_subscriptions"
CROWDED = 100
"""With so many messages before it, write-back waits: it can do so for days, and changes cannot."""

OWN_VERSIONS_KEPT = timedelta(days=14)
"""How long a version of our own is known as such: longer than Medplum sends a notification again (days)."""

LOST_S = 5.0
"""With an empty queue, a mirror that was queued so long ago and is not claimed has lost its message."""

STALE_S = 180.0
"""After this long a queued mirror is queued again, though the queue was never empty: its message can have died with a
worker. Longer than a full queue takes; a second message costs one look into the ledger."""

_EARLY = 0.5  # beat is not exact to the millisecond: a turn that comes a little early is still a turn

_log = log.get(__name__)


class _Ledger(Protocol):
    def due(self, *, limit: int, queue_empty: bool, lost_after_s: float, stale_after_s: float) -> tuple[str, ...]: ...

    def free_leases(self) -> int: ...

    def types_to_identify(self) -> tuple[str, ...]: ...

    def types_to_catch_up(self) -> tuple[str, ...]: ...

    def forget_own_versions(self, *, after: timedelta) -> int: ...

    def watches(self) -> bool: ...

    def job(self, name: str, *, every_s: float, instance: str) -> bool: ...

    def job_done(self, name: str, outcome: str) -> None: ...


class Dispatch:
    """The periodic jobs. Each takes its turn in the ledger first: several dispatch workers do the work of one."""

    def __init__(
        self,
        ledger: _Ledger,
        publisher: Publisher,
        *,
        instance: str,
        depth: int = DEPTH,
        watch_every_s: float = WATCH_EVERY_S,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._instance = instance
        self._depth = depth
        self._watch_every_s = watch_every_s

    def top_up(self) -> None:
        """Publish what is due, up to the queue's depth.

        Raises:
            BrokerAway: what was picked comes again within seconds.
            LedgerUnavailable: nothing was picked.
        """
        if not self._ledger.job("dispatch", every_s=DISPATCH_EVERY_S - _EARLY, instance=self._instance):
            return
        remembers = self._publisher.remembers()
        length = self._publisher.length(SYNC)
        # A broker that forgot its mark was emptied (FLUSHALL, a failover): every message before that is gone.
        due = self._ledger.due(
            limit=max(0, self._depth - length),
            queue_empty=length == 0 or not remembers,
            lost_after_s=LOST_S if remembers else 0.0,
            stale_after_s=STALE_S,
        )
        self._publisher.publish(SYNC, SYNC_TASK, due)
        if not remembers:
            self._publisher.remember()
            _log.info("the broker is new or was emptied: everything due is published again", published=len(due))
        metrics.PUBLISHED.inc(len(due))
        self._ledger.job_done("dispatch", f"published {len(due)}, {length} waited")

    def free_leases(self) -> None:
        """Free what processes hold that are no more.

        Raises:
            LedgerUnavailable: nothing was freed.
        """
        if not self._ledger.job("free_leases", every_s=FREE_LEASES_EVERY_S - _EARLY, instance=self._instance):
            return
        freed = self._ledger.free_leases()
        if freed:
            _log.warning("leases of processes that are no more were freed", leases=freed)
        self._ledger.job_done("free_leases", f"freed {freed}")

    def write_back(self) -> None:
        """Have workers put keys on Medplum resources, where there are any to put; forget old versions of our own.

        Raises:
            BrokerAway: the next turn asks again.
            LedgerUnavailable: nothing is known of what is to do.
        """
        if not self._ledger.job("write_back", every_s=WRITE_BACK_EVERY_S - _EARLY, instance=self._instance):
            return
        if self._ledger.job("forget_own_versions", every_s=FORGET_EVERY_S, instance=self._instance):
            forgotten = self._ledger.forget_own_versions(after=OWN_VERSIONS_KEPT)
            self._ledger.job_done("forget_own_versions", f"forgot {forgotten}")
        types = self._ledger.types_to_identify()
        crowded = bool(types) and self._publisher.length(SYNC) >= CROWDED
        if types and not crowded:
            self._publisher.publish(SYNC, WRITE_BACK_TASK, types)
        self._ledger.job_done("write_back", "the queue is crowded" if crowded else f"asked for {len(types)} types")

    def catch_up(self) -> None:
        """Have workers read in Medplum what no notification told of, where it is time.

        Raises:
            BrokerAway: the next turn asks again.
            LedgerUnavailable: nothing is known of what is to do.
        """
        if not self._ledger.job("catch_up", every_s=CATCH_UP_EVERY_S - _EARLY, instance=self._instance):
            return
        types = self._ledger.types_to_catch_up()
        crowded = bool(types) and self._publisher.length(SYNC) >= CROWDED
        if crowded and not self._ledger.job("catch_up_crowded", every_s=CATCH_UP_CROWDED_S, instance=self._instance):
            types = ()
        if types:
            self._publisher.publish(SYNC, CATCH_UP_TASK, types)
        self._ledger.job_done("catch_up", f"asked for {len(types)} types{', the queue is crowded' if crowded else ''}")

    def watch(self) -> None:
        """Have a worker look at the Subscriptions, if there are any of ours.

        Raises:
            BrokerAway: the next turn asks again.
            LedgerUnavailable: nothing was asked for.
        """
        if self._ledger.watches() and self._ledger.job("watch", every_s=self._watch_every_s, instance=self._instance):
            self._publisher.publish(SYNC, WATCH_TASK, ["all"])
