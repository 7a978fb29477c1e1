"""A system's memory: records, the numbers they get, the journal of requests and the history of writes.

One connection, one thread, and no `await` between the first statement and `commit`: so a transaction is never shared
by two requests. It never checks a value and never answers a request.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.sandbox.witness.forms import Fields
from deploy.sandbox.witness.system import Outcome

_SCHEMA = """
CREATE TABLE IF NOT EXISTS record (kind TEXT, key INTEGER, data TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sequence (kind TEXT PRIMARY KEY, last INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS snapshot (name TEXT PRIMARY KEY, taken_at REAL NOT NULL, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS history (
    n INTEGER PRIMARY KEY, at REAL NOT NULL, record TEXT, operation TEXT NOT NULL, journal INTEGER, data TEXT
);
CREATE TABLE IF NOT EXISTS journal (
    n INTEGER PRIMARY KEY, method TEXT NOT NULL, template TEXT, path TEXT NOT NULL, query TEXT NOT NULL,
    received_at REAL NOT NULL, applied_at REAL, idempotency_key TEXT, trace_id TEXT, record TEXT, body TEXT,
    outcome TEXT NOT NULL, status INTEGER, fault TEXT
);
"""

_TABLES = ("record", "sequence", "snapshot", "history", "journal")


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the API answers it; `key` is the number that the system gave."""

    kind: str
    key: int
    data: Fields

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.key}"

    def having(self, **fields: object) -> Record:
        """Return the record with some fields changed."""
        return Record(self.kind, self.key, self.data | fields)


@dataclass(frozen=True, slots=True)
class Habits:
    """What a system's records are like: kinds and the first number of each, and what the records' lines tell.

    `status` and `external_id` are what a line says of a record; `gone` are the statuses that stand for deleted.
    `sameness` is equal for records that say they are the same. `indexed` and `folded` are fields that lookups use, the
    latter without regard to case.
    """

    first_keys: Mapping[str, int]
    status: Callable[[Record], str]
    external_id: Callable[[Record], object]
    sameness: Callable[[Record], tuple[object, ...]]
    gone: Collection[str] = ("inactive",)
    indexed: Sequence[str] = ()
    folded: Collection[str] = ()

    def line(self, record: Record, twins: int) -> dict[str, Any]:
        status = self.status(record)
        return {
            "record": record.name,
            "kind": record.kind,
            "status": status,
            "external_id": self.external_id(record),
            "copies": 0 if status in self.gone else twins,
            "data": record.data,
        }


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is known of a request before it is carried out."""

    method: str
    template: str | None
    path: str
    query: str
    received_at: float
    idempotency_key: str | None
    trace_id: str | None
    body: object
    fault: str | None


class Store:
    """The database file; `era` rises with each reset, so that what arrived before one is not saved after it."""

    def __init__(self, path: Path, habits: Habits) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.habits = habits
        self.sql = sqlite3.connect(path)
        self.sql.execute("PRAGMA journal_mode=WAL")
        self.sql.execute("PRAGMA synchronous=FULL")
        self.sql.executescript(_SCHEMA)
        for name in habits.indexed:
            # The key is part of each index of a table without rowid; with `kind` named as well SQLite would not use it.
            self.sql.execute(f"CREATE INDEX IF NOT EXISTS record_{name} ON record (json_extract(data, '$.{name}'))")
        # SQLite's own lower() leaves everything beyond ASCII as it is.
        self.sql.create_function("fold", 1, lambda text: str(text).casefold(), deterministic=True)
        self.era = 0

    def commit(self) -> None:
        self.sql.commit()

    def roll_back(self) -> None:
        self.sql.rollback()

    def close(self) -> None:
        self.sql.close()

    def next_key(self, kind: str) -> int:
        row = self.sql.execute(
            "INSERT INTO sequence VALUES (?, ?) ON CONFLICT (kind) DO UPDATE SET last = last + 1 RETURNING last",
            (kind, self.habits.first_keys[kind]),
        ).fetchone()
        return int(row[0])

    def get(self, kind: str, key: int) -> Record | None:
        row = self.sql.execute("SELECT data FROM record WHERE kind = ? AND key = ?", (kind, key)).fetchone()
        return None if row is None else Record(kind, key, json.loads(row[0]))

    def find(self, kind: str, having: Mapping[str, object], *, offset: int = 0, limit: int = -1) -> list[Record]:
        """Find records by the values of their fields, in order of the key; the names must be words of ours."""
        rows = self.sql.execute(
            f"SELECT key, data FROM record WHERE {self._where(having)} ORDER BY key LIMIT ? OFFSET ?",  # noqa: S608
            (kind, *having.values(), limit, offset),
        )
        return [Record(kind, key, json.loads(data)) for key, data in rows]

    def count(self, kind: str, having: Mapping[str, object]) -> int:
        """Count what `find` would find without an end."""
        query = f"SELECT count(*) FROM record WHERE {self._where(having)}"  # noqa: S608 — words of ours
        return int(self.sql.execute(query, (kind, *having.values())).fetchone()[0])

    def _where(self, names: Collection[str]) -> str:
        return " AND ".join(["kind = ?", *map(self._condition, names)])

    def _condition(self, name: str) -> str:
        column = f"json_extract(data, '$.{name}')"
        return f"fold({column}) = fold(?)" if name in self.habits.folded else f"{column} = ?"

    def save(self, record: Record, operation: str, journal: int | None) -> None:
        """Keep a record as it is now, with its line of history."""
        self.sql.execute(
            "INSERT OR REPLACE INTO record VALUES (?, ?, ?)", (record.kind, record.key, json.dumps(record.data))
        )
        self._remember(record.name, operation, journal, record.data)

    def remove(self, record: Record, operation: str, journal: int | None) -> None:
        self.sql.execute("DELETE FROM record WHERE kind = ? AND key = ?", (record.kind, record.key))
        self._remember(record.name, operation, journal, record.data)

    def _remember(self, record: str | None, operation: str, journal: int | None, data: Fields | None) -> None:
        self.sql.execute(
            "INSERT INTO history (at, record, operation, journal, data) VALUES (?, ?, ?, ?, ?)",
            (time.time(), record, operation, journal, json.dumps(data)),
        )

    def arrive(self, arrival: Arrival) -> int:
        """Note a request in the journal and give its number."""
        a = arrival
        row = (a.method, a.template, a.path, a.query, a.received_at, a.idempotency_key, a.trace_id)
        cursor = self.sql.execute(
            "INSERT INTO journal (method, template, path, query, received_at, idempotency_key, trace_id,"
            " body, outcome, fault) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, json.dumps(a.body), Outcome.PENDING, a.fault),
        )
        return int(cursor.lastrowid or 0)

    def note_outcome(self, n: int, outcome: Outcome, record: str | None = None) -> None:
        applied_at = time.time() if outcome is Outcome.APPLIED else None
        self.sql.execute(
            "UPDATE journal SET outcome = ?, record = ?, applied_at = ? WHERE n = ?", (outcome, record, applied_at, n)
        )

    def note_status(self, n: int, status: int) -> None:
        self.sql.execute("UPDATE journal SET status = ? WHERE n = ?", (status, n))

    def journal(self, since: int) -> Iterator[dict[str, Any]]:
        return self._lines("SELECT * FROM journal WHERE n > ? ORDER BY n", "body", since)

    def history(self, since: int) -> Iterator[dict[str, Any]]:
        return self._lines("SELECT * FROM history WHERE n > ? ORDER BY n", "data", since)

    def _lines(self, query: str, json_column: str, since: int) -> Iterator[dict[str, Any]]:
        cursor = self.sql.execute(query, (since,))
        names = [column[0] for column in cursor.description]
        for row in cursor.fetchall():
            line = dict(zip(names, row, strict=True))
            yield line | {json_column: json.loads(line[json_column])}

    def records(self) -> list[dict[str, Any]]:
        """List every record with the number of active ones that say they are the same."""
        habits = self.habits
        rows = self.sql.execute("SELECT kind, key, data FROM record ORDER BY kind, key").fetchall()
        everything = [Record(kind, key, json.loads(data)) for kind, key, data in rows]
        twins = Counter(habits.sameness(record) for record in everything if habits.status(record) not in habits.gone)
        return [habits.line(record, twins[habits.sameness(record)]) for record in everything]

    def snapshot(self, name: str) -> None:
        content = {table: self.sql.execute(f"SELECT * FROM {table}").fetchall() for table in _TABLES[:2]}  # noqa: S608
        self.sql.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)", (name, time.time(), json.dumps(content)))
        self.commit()

    def restore(self, name: str) -> bool:
        """Bring back records and numbers as they were; journal and history go on."""
        row = self.sql.execute("SELECT content FROM snapshot WHERE name = ?", (name,)).fetchone()
        if row is None:
            return False
        content = json.loads(row[0])
        self.sql.executescript("BEGIN; DELETE FROM record; DELETE FROM sequence;")
        self.sql.executemany("INSERT INTO record VALUES (?, ?, ?)", content["record"])
        self.sql.executemany("INSERT INTO sequence VALUES (?, ?)", content["sequence"])
        self._remember(None, "restore", None, None)
        self.commit()
        return True

    def reset(self) -> None:
        for table in _TABLES:
            self.sql.execute(f"DELETE FROM {table}")  # noqa: S608 — words of ours
        self.commit()
        self.era += 1
