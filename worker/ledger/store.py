"""What all verbs of the ledger share: the database and the sealer."""

from __future__ import annotations

from worker.ledger.database import Database
from worker.ledger.sealing import Sealer


class Store:
    """The base that each room of verbs extends."""

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self.sealer = sealer

    @property
    def database(self) -> Database:
        return self._database

    def close(self) -> None:
        """Give the database's connections back."""
        self._database.close()
