"""The ledger: the truth and the backlog. The only room that runs SQL; it never calls HTTP or touches a broker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import SecretStr

from worker.ledger.backlog import Backlog
from worker.ledger.claiming import Claiming
from worker.ledger.crosswalk import Crosswalk
from worker.ledger.database import Clock, Database
from worker.ledger.depending import Depending
from worker.ledger.ending import Ending
from worker.ledger.forgetting import Forgetting
from worker.ledger.identifying import Identifying
from worker.ledger.opening import Opening
from worker.ledger.operate import Operate, Pause, Selection
from worker.ledger.phasing import Phasing
from worker.ledger.reconciling import Reconciling
from worker.ledger.recovery import Recovery
from worker.ledger.report import Report
from worker.ledger.sealing import Sealer
from worker.ledger.subscribing import Subscribing
from worker.ledger.tokens import Tokens
from worker.ledger.windows import Windows
from worker.settings import Settings

__all__ = ["Ledger", "Pause", "Sealer", "Selection"]


class Ledger(
    Windows,
    Claiming,
    Depending,
    Ending,
    Forgetting,
    Identifying,
    Backlog,
    Operate,
    Phasing,
    Opening,
    Report,
    Crosswalk,
    Recovery,
    Reconciling,
    Tokens,
    Subscribing,
):
    """All verbs over one database."""

    @classmethod
    def open(
        cls,
        url: str,
        *,
        keys: Sequence[tuple[str, SecretStr]] = (),
        clock: Clock | None = None,
        connections: int = 24,
    ) -> Ledger:
        """Open the ledger at `url`. The tables must be there: `reverse-sync migrate` makes them."""
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return cls(Database(url, clock=clock, connections=connections), Sealer(keys))

    @classmethod
    def of(cls, settings: Settings, *, connections: int = 24) -> Ledger:
        """Open the ledger that a process's settings name."""
        return cls.open(settings.database_url, keys=settings.payload_key, connections=connections)
