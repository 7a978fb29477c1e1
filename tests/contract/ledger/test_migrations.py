"""Upgrade from zero is tables.py, on both databases, whoever else upgrades at the same time."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from tests.contract.ledger.postgres import Postgres
from tests.contract.ledger.waiting import wait_until
from worker.errors import LedgerOutdated, LedgerUnavailable
from worker.ledger.database import Database
from worker.ledger.migrate import LOCK, current, head, outdated, upgrade
from worker.ledger.tables import metadata

SQLITE_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE tbl_name <> 'alembic_version'"
POSTGRES_SCHEMA = """
SELECT 'column', table_name, column_name,
       concat_ws(' ', data_type, character_maximum_length, is_nullable, replace(column_default, :schema || '.', ''))
FROM information_schema.columns WHERE table_schema = :schema AND table_name <> 'alembic_version'
UNION ALL
SELECT 'index', tablename, indexname, replace(indexdef, :schema || '.', '')
FROM pg_indexes WHERE schemaname = :schema AND tablename <> 'alembic_version'
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = to_regnamespace(:schema) AND contype <> 'n'
  AND conname NOT LIKE 'alembic_version%'
"""


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine: Engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        yield connection


def schema(connection: Connection, name: str = "public") -> set[tuple[str, ...]]:
    """List tables, columns, indexes with their conditions, and constraints, in the database's own words."""
    if connection.dialect.name == "sqlite":
        rows = connection.execute(text(SQLITE_SCHEMA))
    else:
        rows = connection.execute(text(POSTGRES_SCHEMA), {"schema": name})
    return {tuple(" ".join(str(part).replace(f"{name}.", "").split()) for part in row) for row in rows}


def made_from_tables(url: str, tmp_path: Path) -> set[tuple[str, ...]]:
    """Make the tables of tables.py beside the migrated ones, and list them."""
    if url.startswith("sqlite"):
        with connected(f"sqlite:///{tmp_path}/tables.db") as connection:
            metadata.create_all(connection)
            return schema(connection)
    with connected(url) as connection:
        connection.execute(text("CREATE SCHEMA fresh"))
        connection.execute(text("SET LOCAL search_path TO fresh"))
        metadata.create_all(connection, checkfirst=False)
        return schema(connection, "fresh")


def waits_for_a_lock(url: str) -> bool:
    """Say whether some connection of this database waits for an advisory lock."""
    with connected(url) as connection:
        count = connection.execute(
            text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'")
        )
        return bool(count.scalar_one())


def test_upgrade_from_zero_is_tables(empty_url: str, tmp_path: Path) -> None:
    """The migrations make exactly the columns, types, defaults, keys and partial indexes of tables.py."""
    upgrade(empty_url)
    expected = made_from_tables(empty_url, tmp_path)
    with connected(empty_url) as connection:
        found = schema(connection)
    assert len(found) > 40
    assert found - expected == set()
    assert expected - found == set()


def test_alembic_finds_nothing_to_do(empty_url: str) -> None:
    """Alembic's own comparison, with types and server defaults, is empty after an upgrade."""
    upgrade(empty_url)
    with connected(empty_url) as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_the_comparison_sees_a_lost_condition(empty_url: str, tmp_path: Path) -> None:
    """A unique index that lost its condition shows up as a difference: the first test can fail."""
    upgrade(empty_url)
    expected = made_from_tables(empty_url, tmp_path)
    with connected(empty_url) as connection:
        connection.execute(text("DROP INDEX uq_changes_open_delete"))
        connection.execute(text("CREATE UNIQUE INDEX uq_changes_open_delete ON changes (reference)"))
        assert schema(connection) != expected


def test_an_upgrade_is_told(empty_url: str) -> None:
    """A database without tables is outdated and has no revision; after the upgrade it has this release's."""
    assert current(empty_url) is None
    assert outdated(empty_url)
    assert upgrade(empty_url) == head()
    assert current(empty_url) == head()
    assert not outdated(empty_url)


def test_a_second_upgrade_changes_nothing(empty_url: str) -> None:
    """Upgrading what is up to date keeps rows and revision."""
    url = empty_url
    upgrade(url)
    with connected(url) as connection:
        connection.execute(
            text("INSERT INTO deployment (name, value, recorded_at) VALUES ('medplum', 'x', '2026-11-22 00:00:00')")
        )
    assert upgrade(url) == head()
    with connected(url) as connection:
        assert connection.execute(text("SELECT value FROM deployment")).scalar_one() == "x"


def test_tables_of_a_newer_release_are_refused(empty_url: str) -> None:
    """An older release neither changes nor uses tables that a newer one made."""
    url = empty_url
    upgrade(url)
    with connected(url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert outdated(url)
    with pytest.raises(LedgerOutdated, match="newer release"):
        upgrade(url)
    assert current(url) == "9999"


def test_processes_that_upgrade_together_all_succeed(empty_url: str) -> None:
    """Four processes that upgrade one empty database at once end well, and the tables are made once."""
    code = "import sys; from worker.ledger.migrate import upgrade; sys.stdin.readline(); print(upgrade(sys.argv[1]))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, empty_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [(process.communicate(timeout=40), process.returncode) for process in processes]
    assert [code for _, code in ends] == [0, 0, 0, 0], ends
    assert {out.strip() for (out, _), _ in ends} == {head()}
    assert not outdated(empty_url)


@pytest.mark.postgres
def test_an_upgrade_waits_for_the_advisory_lock(postgres: Postgres) -> None:
    """While another process holds the advisory lock, no table is made; afterwards it is."""
    with postgres.database() as url, ThreadPoolExecutor(1) as pool:
        with connected(url) as holder:
            holder.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
            upgrading = pool.submit(upgrade, url)
            wait_until(lambda: waits_for_a_lock(url))
            assert current(url) is None
        assert upgrading.result(timeout=20) == head()


def test_a_sqlite_ledger_is_its_owners_alone(tmp_path: Path) -> None:
    """The file is made with its folder, and neither it nor the files beside it can be read by others."""
    path = tmp_path / "deep" / "var" / "ledger.db"
    upgrade(f"sqlite:///{path}")
    database = Database(f"sqlite:///{path}")
    with closing(database):
        database.write(lambda tx: tx.execute(text("DELETE FROM routes")))
        beside = list(path.parent.iterdir())
        assert {file.name for file in beside} == {"ledger.db", "ledger.db-wal", "ledger.db-shm"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in beside} == {0o600}


def test_a_file_that_somebody_made_too_early_is_closed_to_others(tmp_path: Path) -> None:
    """An empty file, as a connection before the first migration leaves it, is its owner's alone after the upgrade."""
    path = tmp_path / "ledger.db"
    path.touch(mode=0o644)
    path.chmod(0o644)
    upgrade(f"sqlite:///{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_asking_makes_no_file(tmp_path: Path) -> None:
    """The revision of a SQLite file that is not there is none, and it is still not there."""
    assert current(f"sqlite:///{tmp_path}/var/ledger.db") is None
    assert list(tmp_path.iterdir()) == []


def test_sqlite_pragmas_are_those_of_the_ledger(tmp_path: Path) -> None:
    """After an upgrade the file is in WAL mode, and a connection of the ledger syncs fully and deletes securely."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    upgrade(url)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as bare:
        assert bare.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    names = ("journal_mode", "synchronous", "secure_delete", "foreign_keys", "busy_timeout")
    with closing(Database(url)) as database:
        found = database.read(lambda tx: [tx.execute(text(f"PRAGMA {name}")).scalar_one() for name in names])
    assert found == ["wal", 2, 1, 1, 10_000]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file where the folder should be ends as LedgerUnavailable with the path in its text."""
    (tmp_path / "var").write_text("")
    with pytest.raises(LedgerUnavailable, match=r"var/ledger\.db"):
        upgrade(f"sqlite:///{tmp_path}/var/ledger.db")


def test_a_database_that_is_away_is_told_without_its_password() -> None:
    """An unreachable PostgreSQL is LedgerUnavailable, and the password of the URL is not in the text."""
    with pytest.raises(LedgerUnavailable) as caught:
        upgrade("postgresql+psycopg://someone:hunter2@127.0.0.1:1/none")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
