"""One database, SQLite or PostgreSQL, and one kind of transaction. Knows nothing of changes and mirrors."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, Executable, create_engine, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from worker.errors import LedgerUnavailable

Clock = Callable[[], datetime]
P = ParamSpec("P")
R = TypeVar("R")

# deadlock detected, serialization failure: the database undid the transaction and asks for it again
UNDONE = {"40P01", "40001"}
TRIES = 6
BUSY_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Transaction:
    """One running transaction and its time, by the database's clock."""

    connection: Connection
    now: datetime

    def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        return self.connection.execute(statement, parameters)

    @property
    def on_sqlite(self) -> bool:
        return self.connection.dialect.name == "sqlite"


class Database:
    """Runs whole transactions, again where the database asks for it.

    PostgreSQL runs at READ COMMITTED. SQLite takes its write lock at BEGIN, so that no transaction finds out in its
    middle that another was faster; within a process a lock queues the threads, because SQLite itself waits by polling.
    """

    def __init__(self, url: str, *, clock: Clock | None = None, connections: int = 24) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self._clock = clock
        self._turn = threading.Lock()
        self.engine = _engine(url, connections)

    def write(self, work: Callable[[Transaction], R]) -> R:
        """Run `work` in one transaction.

        Raises:
            LedgerUnavailable: the database cannot be reached or written now.
        """
        for attempt in range(TRIES):
            try:
                if self.is_sqlite:
                    with self._turn:
                        return self._run(work)
                return self._run(work)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in UNDONE or attempt == TRIES - 1:
                    raise LedgerUnavailable(f"the ledger's database: {_kind(error)}") from None
            except SQLAlchemyError as error:
                raise LedgerUnavailable(f"the ledger's database: {_kind(error)}") from None
            time.sleep(random.uniform(0.001, 0.01) * 2**attempt)  # noqa: S311  two that met must not meet again
        raise AssertionError("unreachable")

    def read(self, work: Callable[[Transaction], R]) -> R:
        """Run `work`, which only reads, in one transaction that takes no write lock."""
        try:
            with self.engine.connect().execution_options(only_reads=True) as connection, connection.begin():
                return work(Transaction(connection, self._now(connection)))
        except SQLAlchemyError as error:
            raise LedgerUnavailable(f"the ledger's database: {_kind(error)}") from None

    def close(self) -> None:
        self.engine.dispose()

    def _run(self, work: Callable[[Transaction], R]) -> R:
        with self.engine.begin() as connection:
            return work(Transaction(connection, self._now(connection)))

    def _now(self, connection: Connection) -> datetime:
        if self._clock is not None:
            return self._clock()
        if self.is_sqlite:
            return datetime.now(UTC)
        moment: datetime = connection.execute(CLOCK).scalar_one()
        return moment.astimezone(UTC)


CLOCK = text("SELECT clock_timestamp()")


class HasDatabase(Protocol):
    """Whoever carries a database: the verbs below are methods of such a class."""

    @property
    def database(self) -> Database: ...


H = TypeVar("H", bound=HasDatabase)


def writes(verb: Callable[Concatenate[H, Transaction, P], R]) -> Callable[Concatenate[H, P], R]:
    """Make a verb run as one transaction."""

    @functools.wraps(verb)
    def run(self: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.database.write(lambda tx: verb(self, tx, *args, **kwargs))

    return run


def reads(verb: Callable[Concatenate[H, Transaction, P], R]) -> Callable[Concatenate[H, P], R]:
    """Make a verb run as one transaction that only reads."""

    @functools.wraps(verb)
    def run(self: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.database.read(lambda tx: verb(self, tx, *args, **kwargs))

    return run


def _kind(error: SQLAlchemyError) -> str:
    """Name an error without its text, which can hold parameters."""
    orig = getattr(error, "orig", None)
    state = getattr(orig, "sqlstate", None) or getattr(orig, "sqlite_errorname", None)
    return f"{type(orig or error).__name__}{f' ({state})' if state else ''}"


def _engine(url: str, connections: int) -> Engine:
    if url.startswith("sqlite"):
        engine = create_engine(
            url,
            hide_parameters=True,
            pool_size=connections,
            max_overflow=0,
            connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False, "isolation_level": None},
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        url,
        hide_parameters=True,
        pool_size=connections,
        max_overflow=0,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        connect_args={
            "connect_timeout": 5,
            "options": "-c statement_timeout=15000 -c lock_timeout=10000 -c idle_in_transaction_session_timeout=30000",
        },
    )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    only_reads = connection.get_execution_options().get("only_reads", False)
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")
