"""What a worker does in bounded turns besides its syncs, over one client of Medplum: catch-up, and the watch.

It wires and decides nothing. Write-back is not here: it shares the sync's client, whose versions it makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from worker.catch_up import CatchUp
from worker.ledger import Ledger
from worker.medplum import Medplum
from worker.settings import WorkerSettings
from worker.subscriptions.watching import Watch

__all__ = ["Turns"]


@dataclass(frozen=True, slots=True)
class Turns:
    """The turns of one process; used by many threads."""

    medplum: Medplum
    catch_up: CatchUp
    watch: Watch

    @classmethod
    def open(cls, settings: WorkerSettings, *, ledger: Ledger, instance: str, stopping: Callable[[], bool]) -> Self:
        """Open what the turns need."""
        from worker.mapping import load_routes

        routes = load_routes(settings.routes)
        medplum = Medplum.of(settings)
        catching = CatchUp.of(settings, ledger=ledger, medplum=medplum, instance=instance, stopping=stopping)
        watch = Watch(
            ledger=ledger,
            medplum=medplum,
            routes=routes,
            rearms=settings.watch_rearms,
            within_s=settings.budget_seconds,
        )
        return cls(medplum, catching, watch)

    def close(self) -> None:
        """Give connections back."""
        self.medplum.close()
