"""The SQLite file: every version of every resource, pending deliveries, access tokens. The only module that runs SQL.

All of it happens on the event loop's thread, and nothing awaits inside a transaction: so each operation sees and leaves
a consistent state without a lock. It knows nothing of HTTP and judges nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .javascript import Json, loads

__all__ = ["Job", "Store", "Token", "Version"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS version (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    type TEXT NOT NULL, id TEXT NOT NULL, version_id TEXT NOT NULL, last_updated TEXT NOT NULL,
    deleted INTEGER NOT NULL, current INTEGER NOT NULL, body BLOB NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS version_current ON version (type, id) WHERE current;
CREATE INDEX IF NOT EXISTS version_history ON version (type, id, seq);
CREATE INDEX IF NOT EXISTS version_updated ON version (type, deleted, last_updated, seq) WHERE current;
CREATE TABLE IF NOT EXISTS token (
    type TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, system TEXT NOT NULL, value TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS token_value ON token (type, name, value);
CREATE INDEX IF NOT EXISTS token_owner ON token (type, id);
CREATE TABLE IF NOT EXISTS delivery (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    subscription TEXT NOT NULL, type TEXT NOT NULL, id TEXT NOT NULL, version_id TEXT NOT NULL,
    interaction TEXT NOT NULL, trace_id TEXT NOT NULL, attempt INTEGER NOT NULL, due_at REAL NOT NULL,
    forced INTEGER NOT NULL, body BLOB, secret TEXT);
CREATE TABLE IF NOT EXISTS bearer (token TEXT PRIMARY KEY, client TEXT NOT NULL, expires_at REAL NOT NULL);
"""
_TABLES = ("version", "token", "delivery", "bearer")
_VERSION = "v.type, v.id, v.version_id, v.last_updated, v.deleted, v.body, v.seq"
_JOB = "subscription, type, id, version_id, interaction, trace_id, attempt, due_at, forced, body, secret"

Token = tuple[str, str, str]
"""What a search or a criteria finds a resource by: parameter, system, value."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one resource; a deletion is a version whose body is only type, id and meta."""

    type: str
    id: str
    version_id: str
    last_updated: str
    deleted: bool
    body: bytes
    seq: int = 0

    @property
    def reference(self) -> str:
        """Return `Type/id`."""
        return f"{self.type}/{self.id}"

    def resource(self) -> Json:
        """Parse the body anew, so that the caller may change it."""
        document: Json = loads(self.body)
        return document


@dataclass(frozen=True, slots=True)
class Job:
    """One event on its way to one Subscription."""

    subscription: str
    type: str
    id: str
    version_id: str
    interaction: str
    trace_id: str
    attempt: int = 0
    due_at: float = 0.0
    forced: bool = False  # sent whatever the state of the resource
    body: bytes | None = None  # forged content instead of the version's
    secret: str | None = None  # forged signature
    seq: int = 0


class Store:
    """An open file. Use it from one thread."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, cached_statements=256)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        self._depth = 0
        self._after_commit: list[Callable[[], None]] = []

    def close(self) -> None:
        """Close the file; whatever was committed stays."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit at the end of the outermost block, roll all of it back on an exception."""
        if self._depth:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            self._after_commit.clear()
            raise
        else:
            self._db.execute("COMMIT")
        finally:
            self._depth = 0
        waiting, self._after_commit = self._after_commit, []
        for call in waiting:
            call()

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call this once the running transaction is committed, and never if it is rolled back."""
        self._after_commit.append(call)

    def reset(self) -> None:
        """Forget everything."""
        with self.transaction():
            for table in _TABLES:
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - names from the constant above

    # versions

    def add(self, version: Version, tokens: Iterable[Token], *, current: bool = True) -> None:
        """Store a version; a current one takes the place of the one before."""
        with self.transaction():
            if current:
                key = (version.type, version.id)
                self._db.execute("UPDATE version SET current = 0 WHERE type = ? AND id = ? AND current", key)
                self._db.execute("DELETE FROM token WHERE type = ? AND id = ?", key)
                self._db.executemany("INSERT INTO token VALUES (?, ?, ?, ?, ?)", [(*key, *token) for token in tokens])
            self._db.execute(
                "INSERT INTO version (type, id, version_id, last_updated, deleted, current, body)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(version.type, version.id, version.version_id, version.last_updated),
                    *(version.deleted, current, version.body),
                ),
            )

    def expunge(self, type_: str, id_: str) -> None:
        """Remove every trace of a resource."""
        with self.transaction():
            self._db.execute("DELETE FROM version WHERE type = ? AND id = ?", (type_, id_))
            self._db.execute("DELETE FROM token WHERE type = ? AND id = ?", (type_, id_))

    def current(self, type_: str, id_: str) -> Version | None:
        """Return the newest version, a deletion included."""
        return self._one("v.type = ? AND v.id = ? AND v.current", (type_, id_))

    def version(self, type_: str, id_: str, version_id: str) -> Version | None:
        """Return one version of the history."""
        return self._one("v.type = ? AND v.id = ? AND v.version_id = ?", (type_, id_, version_id))

    def last_live(self, type_: str, id_: str) -> Version | None:
        """Return the newest version that is no deletion: what a stale cache would hold."""
        return self._one("v.type = ? AND v.id = ? AND NOT v.deleted ORDER BY v.seq DESC", (type_, id_))

    def history(self, type_: str, id_: str) -> list[Version]:
        """Return all versions by their time, newest first: with concurrent writers the top need not be current."""
        where = "v.type = ? AND v.id = ? ORDER BY v.last_updated DESC, v.seq DESC"
        return list(self.select(f"FROM version v WHERE {where}", (type_, id_)))

    def select(self, rest: str, values: Sequence[Any]) -> Iterator[Version]:
        """Yield the versions of a `FROM version v …`; the search writes it, every value bound."""
        for row in self._db.execute(f"SELECT {_VERSION} {rest}", values):
            type_, id_, version_id, last_updated, deleted, body, seq = row
            yield Version(type_, id_, version_id, last_updated, bool(deleted), body, seq)

    def scalar(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Return the first column of the first row, or None."""
        row = self._db.execute(statement, values).fetchone()
        return None if row is None else row[0]

    def counts(self) -> Json:
        """Count current resources by type, present and deleted."""
        counted: Json = {}
        grouped = "SELECT type, deleted, count(*) FROM version WHERE current GROUP BY type, deleted"
        for type_, deleted, number in self._db.execute(grouped):
            counted.setdefault(type_, {"present": 0, "deleted": 0})["deleted" if deleted else "present"] = number
        return counted

    def _one(self, where: str, values: Sequence[Any]) -> Version | None:
        return next(self.select(f"FROM version v WHERE {where} LIMIT 1", values), None)

    # deliveries

    def add_job(self, job: Job) -> int:
        """Keep a delivery until it is settled; return its number."""
        statement = f"INSERT INTO delivery ({_JOB}) VALUES (?{', ?' * 10})"  # noqa: S608
        cursor = self._db.execute(
            statement,
            (
                *(job.subscription, job.type, job.id, job.version_id, job.interaction, job.trace_id),
                *(job.attempt, job.due_at, job.forced, job.body, job.secret),
            ),
        )
        return cursor.lastrowid or 0

    def postpone(self, seq: int, attempt: int, due_at: float) -> None:
        """Note that an attempt failed and when the next one is."""
        self._db.execute("UPDATE delivery SET attempt = ?, due_at = ? WHERE seq = ?", (attempt, due_at, seq))

    def settle_job(self, seq: int) -> None:
        """Forget a delivery: it arrived, or nobody will try again."""
        self._db.execute("DELETE FROM delivery WHERE seq = ?", (seq,))

    def jobs(self) -> list[Job]:
        """Return what is pending, oldest first."""
        rows = self._db.execute(f"SELECT {_JOB}, seq FROM delivery ORDER BY seq").fetchall()  # noqa: S608
        return [Job(*row) for row in rows]

    # access tokens

    def grant(self, token: str, client: str, expires_at: float) -> None:
        """Remember an access token."""
        self._db.execute("INSERT INTO bearer VALUES (?, ?, ?)", (token, client, expires_at))

    def bearer(self, token: str) -> tuple[str, float] | None:
        """Return whose token it is and until when."""
        row: tuple[str, float] | None = self._db.execute(
            "SELECT client, expires_at FROM bearer WHERE token = ?", (token,)
        ).fetchone()
        return row

    def expire_bearers(self) -> None:
        """Make every token that was handed out unknown."""
        self._db.execute("DELETE FROM bearer")
