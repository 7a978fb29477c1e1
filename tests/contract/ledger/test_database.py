"""What several threads write together in one SQLite transaction: each piece for itself, all of them with one commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from worker.errors import LeaseLost, LedgerUnavailable
from worker.ledger.database import Database, Transaction


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Make a database with one table that takes each number once."""
    made = Database(f"sqlite:///{tmp_path}/one.db")
    made.write(lambda tx: tx.execute(text("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")).rowcount)
    yield made
    made.close()


def put(number: int) -> Callable[[Transaction], int]:
    return lambda tx: tx.execute(text("INSERT INTO numbers VALUES (:n)"), {"n": number}).rowcount


def numbers(database: Database) -> list[int]:
    return database.read(lambda tx: list(tx.execute(text("SELECT n FROM numbers ORDER BY n")).scalars()))


def together(database: Database, works: list[Callable[[Transaction], Any]]) -> list[Future[Any]]:
    """Run pieces of work in one transaction: the first holds the turn until the others wait for it."""
    assert database._together is not None
    waiting = database._together._waiting
    began, everybody = threading.Event(), threading.Event()

    def first(tx: Transaction) -> None:
        began.set()
        assert everybody.wait(10)

    with ThreadPoolExecutor(len(works) + 1) as pool:
        pool.submit(database.write, first)
        assert began.wait(10)
        futures = [pool.submit(database.write, work) for work in works]
        _until(lambda: len(waiting) == len(works))
        everybody.set()
    return futures


def _until(holds: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends_at
        time.sleep(0.001)


def test_threads_that_come_together_share_a_commit(database: Database) -> None:
    """Twenty pieces that wait at once are committed once."""
    commits: list[object] = []
    event.listen(database.engine, "commit", commits.append)
    futures = together(database, [put(number) for number in range(20)])
    assert [future.result() for future in futures] == [1] * 20
    assert len(commits) == 2  # the one that held the turn, and all the others
    assert numbers(database) == list(range(20))


def test_a_piece_that_fails_takes_nothing_with_it(database: Database) -> None:
    """A piece that raises after it wrote leaves no trace, and its neighbours' writes stand."""

    def loses(tx: Transaction) -> None:
        put(2)(tx)
        raise LeaseLost("mine alone")

    before, failing, after = together(database, [put(1), loses, put(3)])
    with pytest.raises(LeaseLost, match="mine alone"):
        failing.result()
    assert (before.result(), after.result()) == (1, 1)
    assert numbers(database) == [1, 3]


def test_a_statement_that_fails_takes_nothing_with_it(database: Database) -> None:
    """A piece that the database refuses is told so without its values, and its neighbours' writes stand."""
    one, twice, other = together(database, [put(1), put(1), put(2)])
    with pytest.raises(LedgerUnavailable, match="IntegrityError"):
        twice.result()
    assert (one.result(), other.result()) == (1, 1)
    assert numbers(database) == [1, 2]


def test_nobody_is_told_before_the_commit(database: Database) -> None:
    """Where the commit fails, every piece has failed and nothing is there."""
    failing = threading.Event()

    def refuse(_: object) -> None:
        if failing.is_set():
            raise OSError("disk")

    event.listen(database.engine, "commit", refuse)
    works = [lambda tx: failing.set(), put(1), put(2)]
    futures = together(database, works)
    for future in futures:
        with pytest.raises(LedgerUnavailable):
            future.result()
    failing.clear()
    assert numbers(database) == []


def test_a_leader_that_is_stopped_leaves_nobody_waiting(database: Database) -> None:
    """If the thread that runs the others' pieces is stopped, they learn that nothing was committed."""

    def stops(tx: Transaction) -> None:
        raise SystemExit

    futures = together(database, [put(1), stops, put(2)])
    failures = [type(future.exception()) for future in futures]
    assert SystemExit in failures or all(issubclass(failure, LedgerUnavailable) for failure in failures)
    assert numbers(database) == []
    assert database.write(put(9)) == 1


def test_another_process_that_holds_the_database_is_waited_for(database: Database, tmp_path: Path) -> None:
    """A write waits for another connection's transaction, and goes on as soon as that ends."""
    other = Database(f"sqlite:///{tmp_path}/one.db")
    began, release = threading.Event(), threading.Event()

    def holds(tx: Transaction) -> None:
        began.set()
        assert release.wait(10)

    with ThreadPoolExecutor(2) as pool:
        holding = pool.submit(other.write, holds)
        assert began.wait(10)
        writing = pool.submit(database.write, put(1))
        release.set()
        holding.result()
        assert writing.result() == 1
    other.close()
