"""One database, SQLite or PostgreSQL, and one kind of transaction. Knows nothing of changes and mirrors."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast

from sqlalchemy import Connection, CursorResult, Engine, Executable, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from worker.errors import LedgerUnavailable

Clock = Callable[[], datetime]
P = ParamSpec("P")
R = TypeVar("R")

# deadlock detected, serialization failure: the database undid the transaction and asks for it again
UNDONE = {"40P01", "40001"}
TRIES = 6
BUSY_TIMEOUT_S, BUSY_LOOK_S = 10.0, 0.0007


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

    PostgreSQL runs at READ COMMITTED. SQLite has one writer at a time, takes its write lock at BEGIN, so that no
    transaction finds out in its middle that another was faster, and commits what several threads bring `Together`.
    """

    def __init__(self, url: str, *, clock: Clock | None = None, connections: int = 24) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self._clock = clock
        self.engine = _engine(url, connections)
        self._together = Together(self.engine, self._now) if self.is_sqlite else None

    def write(self, work: Callable[[Transaction], R]) -> R:
        """Run `work` in one transaction.

        Raises:
            LedgerUnavailable: the database cannot be reached or written now.
        """
        for attempt in range(TRIES):
            try:
                return self._together.run(work) if self._together is not None else self._run(work)
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


class _Piece(Generic[R]):
    """One thread's work, and what became of it."""

    def __init__(self, work: Callable[[Transaction], R]) -> None:
        self.work = work
        self.done = False
        self.error: BaseException | None = None
        self._value: R | None = None

    def run(self, connection: Connection, now: Clock) -> None:
        self._value = self.work(Transaction(connection, now()))

    def outcome(self) -> R:
        if self.error is not None:
            raise self.error
        return cast("R", self._value)


class Together:
    """Commits what the threads of a process bring at the same time in one SQLite transaction.

    Whoever gets the turn runs all that waits, each piece within a savepoint of its own: one that fails takes nothing of
    its neighbours with it. Nobody is told that a piece is done before the commit; where the commit fails, all have
    failed. Alone, a commit for each of 32 threads cost ten times as long as the work inside it.
    """

    def __init__(self, engine: Engine, now: Callable[[Connection], datetime], *, most: int = 64) -> None:
        self._engine = engine
        self._now = now
        self._most = most
        self._waiting: deque[_Piece[Any]] = deque()
        self._turn = threading.Lock()

    def run(self, work: Callable[[Transaction], R]) -> R:
        """Run one piece of work and return once it is committed. Raises what it raised, or the database's error."""
        piece = _Piece(work)
        self._waiting.append(piece)
        while not piece.done:
            with self._turn:
                if not piece.done:
                    self._lead()
        return piece.outcome()

    def _lead(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        try:
            with self._engine.begin() as connection:
                for piece in batch:
                    self._run_apart(piece, connection)
        except BaseException as error:
            for piece in batch:
                piece.error = piece.error or _Lost.of(error)
            if not isinstance(error, Exception):
                raise
        finally:
            for piece in batch:
                piece.done = True

    def _run_apart(self, piece: _Piece[Any], connection: Connection) -> None:
        driver: Any = connection.connection.dbapi_connection  # its own way: SQLAlchemy's savepoints cost ten times more
        driver.execute("SAVEPOINT piece")
        try:
            piece.run(connection, lambda: self._now(connection))
        except Exception as error:
            if not driver.in_transaction:  # a full disk, for one, ends the whole transaction
                raise
            driver.execute("ROLLBACK TO piece")
            piece.error = error
        driver.execute("RELEASE piece")


class _Lost(LedgerUnavailable):
    """The transaction that carried the work was not committed."""

    @classmethod
    def of(cls, error: BaseException) -> _Lost:
        kind = _kind(error) if isinstance(error, SQLAlchemyError) else type(error).__name__
        return cls(f"the ledger's database: {kind}")


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
    if connection.get_execution_options().get("only_reads", False):
        connection.exec_driver_sql("BEGIN")
        return
    ends_at = time.monotonic() + BUSY_TIMEOUT_S
    connection.exec_driver_sql("PRAGMA busy_timeout=0")  # SQLite's own waiting grows to 100 ms between two looks
    try:
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except OperationalError as error:
                if getattr(error.orig, "sqlite_errorname", "") != "SQLITE_BUSY" or time.monotonic() > ends_at:
                    raise
                time.sleep(BUSY_LOOK_S)
            else:
                return
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
