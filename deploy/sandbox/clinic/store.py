"""The clinic's only SQL: records, the numbers they get, the journal of requests and the history of writes.

One connection, one thread, and no `await` between the first statement and `commit`: so a transaction is never shared
by two requests. It never checks a value and never answers a request.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from deploy.sandbox.clinic.forms import Fields

# The key is part of each index of a table without rowid; with `kind` named as well SQLite would not use them.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS record (kind TEXT, key INTEGER, data TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS record_uuid ON record (json_extract(data, '$.uuid'));
CREATE INDEX IF NOT EXISTS record_external_id ON record (json_extract(data, '$.external_id'));
CREATE INDEX IF NOT EXISTS record_birth_date ON record (json_extract(data, '$.birth_date'));
CREATE INDEX IF NOT EXISTS record_npi ON record (json_extract(data, '$.npi'));
CREATE INDEX IF NOT EXISTS record_patient ON record (json_extract(data, '$.patient_number'));
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

# Conditions of the lookups, by name: the only place where SQL is put together, from these words alone.
_CONDITIONS = {
    "last_name": "fold(json_extract(data, '$.last_name')) = fold(?)",
    "birth_date": "json_extract(data, '$.birth_date') = ?",
    "external_id": "json_extract(data, '$.external_id') = ?",
    "npi": "json_extract(data, '$.npi') = ?",
}


class Kind(StrEnum):
    """What the clinic keeps."""

    PROVIDER = "provider"
    PATIENT = "patient"
    PROBLEM = "problem"


class Outcome(StrEnum):
    """What became of a request, as the journal says it."""

    PENDING = "pending"  # has arrived, not carried out yet
    APPLIED = "applied"  # a write was saved
    READ = "read"
    REFUSED = "refused"  # the clinic said no
    DROPPED = "dropped"  # a fault kept it from being carried out


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the API answers it; `key` is the number that the clinic gave."""

    kind: Kind
    key: int
    data: Fields

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.key}"


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


_FIRST_KEY = {Kind.PROVIDER: 1, Kind.PATIENT: 4701, Kind.PROBLEM: 1}


class Store:
    """The database file; `era` rises with each reset, so that what arrived before one is not saved after it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sql = sqlite3.connect(path)
        self._sql.execute("PRAGMA journal_mode=WAL")
        self._sql.execute("PRAGMA synchronous=FULL")
        self._sql.executescript(_SCHEMA)
        # SQLite's own lower() leaves everything beyond ASCII as it is.
        self._sql.create_function("fold", 1, lambda text: str(text).casefold(), deterministic=True)
        self.era = 0

    def commit(self) -> None:
        self._sql.commit()

    def roll_back(self) -> None:
        self._sql.rollback()

    def close(self) -> None:
        self._sql.close()

    def next_key(self, kind: Kind) -> int:
        row = self._sql.execute(
            "INSERT INTO sequence VALUES (?, ?) ON CONFLICT (kind) DO UPDATE SET last = last + 1 RETURNING last",
            (kind, _FIRST_KEY[kind]),
        ).fetchone()
        return int(row[0])

    def get(self, kind: Kind, key: int) -> Record | None:
        row = self._sql.execute("SELECT key, data FROM record WHERE kind = ? AND key = ?", (kind, key)).fetchone()
        return _record(kind, row)

    def patient(self, uuid: str) -> Record | None:
        row = self._sql.execute(
            "SELECT key, data FROM record WHERE kind = ? AND json_extract(data, '$.uuid') = ?", (Kind.PATIENT, uuid)
        ).fetchone()
        return _record(Kind.PATIENT, row)

    def problems(self, patient_number: int) -> list[Record]:
        rows = self._sql.execute(
            "SELECT key, data FROM record WHERE kind = ? AND json_extract(data, '$.patient_number') = ? ORDER BY key",
            (Kind.PROBLEM, patient_number),
        )
        return [Record(Kind.PROBLEM, key, json.loads(data)) for key, data in rows]

    def look_up(self, kind: Kind, filters: Mapping[str, str], *, offset: int, limit: int) -> tuple[list[Record], int]:
        """Find active records by fields of `_CONDITIONS`: one page of them, and how many there are in all."""
        where = " AND ".join(["kind = ?", "json_extract(data, '$.status') = 'active'", *map(_CONDITIONS.get, filters)])  # type: ignore[list-item]
        values = (kind, *filters.values())
        total = self._sql.execute(f"SELECT count(*) FROM record WHERE {where}", values).fetchone()[0]  # noqa: S608 — words of ours
        rows = self._sql.execute(
            f"SELECT key, data FROM record WHERE {where} ORDER BY key LIMIT ? OFFSET ?",  # noqa: S608 — words of ours
            (*values, limit, offset),
        )
        return [Record(kind, key, json.loads(data)) for key, data in rows], int(total)

    def save(self, record: Record, operation: str, journal: int | None) -> None:
        """Keep a record as it is now, with its line of history."""
        self._sql.execute(
            "INSERT OR REPLACE INTO record VALUES (?, ?, ?)", (record.kind, record.key, json.dumps(record.data))
        )
        self._remember(record.name, operation, journal, record.data)

    def remove(self, record: Record, operation: str, journal: int | None) -> None:
        self._sql.execute("DELETE FROM record WHERE kind = ? AND key = ?", (record.kind, record.key))
        self._remember(record.name, operation, journal, record.data)

    def _remember(self, record: str | None, operation: str, journal: int | None, data: Fields | None) -> None:
        self._sql.execute(
            "INSERT INTO history (at, record, operation, journal, data) VALUES (?, ?, ?, ?, ?)",
            (time.time(), record, operation, journal, json.dumps(data)),
        )

    def arrive(self, arrival: Arrival) -> int:
        """Note a request in the journal and give its number."""
        a = arrival
        row = (a.method, a.template, a.path, a.query, a.received_at, a.idempotency_key, a.trace_id)
        cursor = self._sql.execute(
            "INSERT INTO journal (method, template, path, query, received_at, idempotency_key, trace_id,"
            " body, outcome, fault) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, json.dumps(a.body), Outcome.PENDING, a.fault),
        )
        return int(cursor.lastrowid or 0)

    def note_outcome(self, n: int, outcome: Outcome, record: str | None = None) -> None:
        applied_at = time.time() if outcome is Outcome.APPLIED else None
        self._sql.execute(
            "UPDATE journal SET outcome = ?, record = ?, applied_at = ? WHERE n = ?", (outcome, record, applied_at, n)
        )

    def note_status(self, n: int, status: int) -> None:
        self._sql.execute("UPDATE journal SET status = ? WHERE n = ?", (status, n))

    def journal(self, since: int) -> Iterator[dict[str, Any]]:
        return self._lines("SELECT * FROM journal WHERE n > ? ORDER BY n", "body", since)

    def history(self, since: int) -> Iterator[dict[str, Any]]:
        return self._lines("SELECT * FROM history WHERE n > ? ORDER BY n", "data", since)

    def _lines(self, query: str, json_column: str, since: int) -> Iterator[dict[str, Any]]:
        cursor = self._sql.execute(query, (since,))
        names = [column[0] for column in cursor.description]
        for row in cursor.fetchall():
            line = dict(zip(names, row, strict=True))
            yield line | {json_column: json.loads(line[json_column])}

    def records(self) -> list[dict[str, Any]]:
        """List every record with the number of active ones that say they are the same."""
        rows = self._sql.execute("SELECT kind, key, data FROM record ORDER BY kind, key").fetchall()
        everything = [Record(Kind(kind), key, json.loads(data)) for kind, key, data in rows]
        twins = Counter(_sameness(record) for record in everything if record.data["status"] != "inactive")
        return [_line(record, twins[_sameness(record)]) for record in everything]

    def snapshot(self, name: str) -> None:
        content = {table: self._sql.execute(f"SELECT * FROM {table}").fetchall() for table in _TABLES[:2]}  # noqa: S608
        self._sql.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)", (name, time.time(), json.dumps(content)))
        self.commit()

    def restore(self, name: str) -> bool:
        """Bring back records and numbers as they were; journal and history go on."""
        row = self._sql.execute("SELECT content FROM snapshot WHERE name = ?", (name,)).fetchone()
        if row is None:
            return False
        content = json.loads(row[0])
        self._sql.executescript("BEGIN; DELETE FROM record; DELETE FROM sequence;")
        self._sql.executemany("INSERT INTO record VALUES (?, ?, ?)", content["record"])
        self._sql.executemany("INSERT INTO sequence VALUES (?, ?)", content["sequence"])
        self._remember(None, "restore", None, None)
        self.commit()
        return True

    def reset(self) -> None:
        for table in _TABLES:
            self._sql.execute(f"DELETE FROM {table}")  # noqa: S608 — words of ours
        self.commit()
        self.era += 1


def _record(kind: Kind, row: tuple[int, str] | None) -> Record | None:
    return None if row is None else Record(kind, row[0], json.loads(row[1]))


def _external_id(record: Record) -> object:
    return record.data.get("external_ref" if record.kind is Kind.PROVIDER else "external_id")


def _sameness(record: Record) -> tuple[object, ...]:
    if record.kind is Kind.PROBLEM:
        return (record.kind, *(record.data[name] for name in ("patient_number", "title", "icd10", "onset")))
    external_id = _external_id(record)
    return (record.kind, external_id) if external_id else (record.kind, None, record.key)


def _line(record: Record, twins: int) -> dict[str, Any]:
    status = record.data["status"]
    return {
        "record": record.name,
        "kind": record.kind,
        "status": status,
        "external_id": _external_id(record),
        "copies": 0 if status == "inactive" else twins,
        "data": record.data,
    }
