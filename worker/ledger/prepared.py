"""Statements of the hottest path, made ready once: their rows go to the driver as they are.

SQLAlchemy looks at each value of each row on its way, which cost as much as the database itself. Who uses this brings
values that the driver takes: a time as `instant` makes it, bytes, numbers and text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Connection, Dialect

from worker.ledger.database import Transaction

__all__ = ["Prepared", "instant"]

Row = Mapping[str, Any]
MOST_ROWS: Final = 64  # 960 values of changes: SQLite takes 32,766, and in builds of old 999


class Prepared:
    """One statement for many rows, each of which names the same parameters. `make` gives it: for SQLite, or not."""

    def __init__(self, make: Callable[[bool], Any]) -> None:
        self._make = make
        self._ready: dict[tuple[bool, tuple[str, ...]], _Ready] = {}

    def run(self, tx: Transaction, rows: Sequence[Row]) -> None:
        """Run the statement for each row."""
        if not rows:
            return
        key = (tx.on_sqlite, tuple(rows[0]))
        ready = self._ready.get(key)
        if ready is None:
            ready = self._ready[key] = _Ready(self._make(tx.on_sqlite), key[1], tx.connection.dialect)
        ready.run(tx.connection, rows)


class _Ready:
    """A statement in the words of one dialect, and how a row becomes what its driver takes."""

    def __init__(self, statement: Any, names: Sequence[str], dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=names if statement.is_insert else None)
        self._sql: str = compiled.string
        self._order = None if compiled.positiontup is None else itemgetter(*compiled.positiontup)
        self._fixed = {name: value for name, value in compiled.params.items() if name not in names}
        self._values = f"({', '.join('?' * len(compiled.positiontup or ()))})" if statement.is_insert else ""

    def run(self, connection: Connection, rows: Sequence[Row]) -> None:
        named = [self._fixed | dict(row) for row in rows] if self._fixed else rows
        if self._order is None:
            connection.exec_driver_sql(self._sql, list(named))
        elif not self._values:
            connection.exec_driver_sql(self._sql, list(map(self._order, named)))
        else:
            self._insert(connection, list(map(self._order, named)))

    def _insert(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert many rows with few statements of a few lengths, which the driver keeps ready.

        SQLite's driver lets go of the interpreter's lock for each statement, and a busy thread beside it, as the
        receiver's loop is, gives it back late: row by row that took twice the time.
        """
        done = 0
        while done < len(rows):
            size = min(MOST_ROWS, 1 << (len(rows) - done).bit_length() - 1)
            values = tuple(chain.from_iterable(rows[done : done + size]))
            connection.exec_driver_sql(self._of(size), values)
            done += size

    @lru_cache  # noqa: B019 - lives as long as the process, like all of this
    def _of(self, size: int) -> str:
        return self._sql.replace(self._values, ", ".join([self._values] * size), 1)


def instant(tx: Transaction, moment: datetime | None) -> datetime | str | None:
    """Make of a time what a `Utc` column holds: SQLite keeps it as sortable text."""
    if moment is None or not tx.on_sqlite:
        return moment
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
