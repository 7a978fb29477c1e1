"""Brings the ledger's tables to this release, one process at a time. Never touches rows, and never goes back.

A new migration is a file in `migrations/versions`, written like those before it; the contract suite fails until
*upgrade from zero* and `tables` are the same on both databases.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import make_url, text

from worker.errors import LedgerOutdated, LedgerUnavailable
from worker.ledger.database import Database, Transaction

SCRIPTS = Path(__file__).parent / "migrations"
LOCK = 0x5265_7653_796E_6331  # "RevSync1": the advisory lock that two upgrades of one PostgreSQL database share
OWNER_ALONE = 0o600


def upgrade(url: str) -> str:
    """Bring the ledger's tables to this release, and say which revision that is.

    A SQLite file is made where there is none, with its folder, for its owner alone.

    Raises:
        LedgerUnavailable: the database cannot be reached or written now; nothing has changed.
        LedgerOutdated: a newer release made these tables.
    """
    with _file_of_ones_own(url), closing(Database(url, connections=1)) as database:
        return database.write(_upgrade)


def current(url: str) -> str | None:
    """Name the revision of the ledger's tables; none where there are no tables yet.

    Raises:
        LedgerUnavailable: the database cannot be reached now.
    """
    path = _sqlite_path(url)
    if path is not None and not path.exists():
        return None  # asking makes no file
    with closing(Database(url, connections=1)) as database:
        return database.read(lambda tx: MigrationContext.configure(tx.connection).get_current_revision())


def head() -> str:
    """Name the revision of this release."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None  # noqa: S101  the scripts are part of the package
    return revision


def outdated(url: str) -> bool:
    """Say whether the ledger's tables are other than this release's: none yet, older or newer."""
    return current(url) != head()


def _upgrade(tx: Transaction) -> str:
    if not tx.on_sqlite:  # a SQLite transaction holds the write lock already
        tx.execute(text("SET LOCAL lock_timeout = 0"))
        tx.execute(text("SET LOCAL statement_timeout = 0"))  # a migration of many rows takes its time
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
    config = _config()
    config.attributes["connection"] = tx.connection
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise LedgerOutdated(
            "a newer release made the ledger's tables: install that release again, or restore the backup"
        ) from None
    return head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _file_of_ones_own(url: str) -> Iterator[None]:
    """Make the SQLite file, and hold its folder: SQLite's own lock does not yet cover the turn to WAL of a new file."""
    path = _sqlite_path(url)
    if path is None:
        yield
        return
    folder = _make_file(path)
    try:
        yield
    finally:
        os.close(folder)


def _make_file(path: Path) -> int:
    """Make a file for its owner alone, as SQLite would not, and answer its folder, open and locked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        with open(os.open(path, os.O_CREAT | os.O_RDWR, OWNER_ALONE), "rb") as file:
            if not os.fstat(file.fileno()).st_size:  # made just now, or by whoever connected before the first migration
                os.fchmod(file.fileno(), OWNER_ALONE)
    except OSError as error:
        raise LedgerUnavailable(f"the ledger's file {path} cannot be made or written: {error.strerror}") from None
    return folder


def _sqlite_path(url: str) -> Path | None:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in {None, "", ":memory:"}:
        return None
    return Path(str(parsed.database))
