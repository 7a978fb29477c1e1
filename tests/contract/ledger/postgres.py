"""A PostgreSQL for one test run. Lends databases, and takes them back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from worker.ledger.migrate import upgrade
from worker.ledger.tables import metadata

EMPTY_ALL = "; ".join(f"DELETE FROM {table}" for table in metadata.tables)  # noqa: S608  names of our own
END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


class Postgres:
    """A real PostgreSQL. A new database costs a third of a second, so one that is migrated is lent again and again."""

    def __init__(self, uri: Callable[[str], str]) -> None:
        self._uri = uri
        self._numbers = itertools.count(1)
        self._run("postgres", "ALTER SYSTEM SET fsync = off")  # the tests ask about locks and rows, not power cuts
        self._run("postgres", "SELECT pg_reload_conf()")
        self._run("postgres", "CREATE DATABASE migrated")
        upgrade(uri("migrated"))

    @contextmanager
    def database(self) -> Iterator[str]:
        """Lend a new database without tables, as the URL that the settings would give."""
        name = f"t{next(self._numbers)}"
        self._run("postgres", f"CREATE DATABASE {name}")
        try:
            yield self._uri(name)
        finally:
            self._run("postgres", f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def migrated(self) -> Iterator[str]:
        """Lend the migrated database; whatever stands in it afterwards, or is still connected, is cleared away."""
        try:
            yield self._uri("migrated")
        finally:
            self._run("migrated", END_OTHERS)
            self._run("migrated", EMPTY_ALL)

    def _run(self, database: str, statements: str) -> None:
        engine = create_engine(self._uri(database), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statements)
