"""Plumbing that every test stands on. Fixtures that know a room live in the conftest of that room's folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from sqlalchemy import Dialect, Engine, create_engine, event

from worker.ledger import database

_OURS = ("REVERSE_SYNC_", "DATABASE_URL", "REDIS_URL")


def pytest_configure() -> None:
    """Forget the shell's own settings: no test may reach a ledger or a broker that somebody works with."""
    for name in [name for name in os.environ if name.startswith(_OURS)]:
        del os.environ[name]


@pytest.fixture(scope="session")
def missing() -> Callable[[str], NoReturn]:
    """Say that a service which a test needs is not here: a skip on a laptop, a failure in CI."""

    def report(what: str) -> NoReturn:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have it: {what}")
        pytest.skip(what)

    return report


@pytest.fixture(scope="session", autouse=True)
def _compiled_once() -> Iterator[None]:
    """Let the ledgers of all tests share what SQLAlchemy has compiled: each would compile every statement anew."""
    compiled: dict[object, object] = {}
    dialects: dict[str, Dialect] = {}  # those of an engine that has connected: then a dialect knows its server

    def sharing(url: str, **options: Any) -> Engine:
        engine = create_engine(url, **options)
        name = engine.dialect.name
        if name in dialects:
            engine.dialect = dialects[name]
        else:
            event.listen(engine, "engine_connect", lambda _: dialects.setdefault(name, engine.dialect))
        engine.update_execution_options(compiled_cache=compiled)
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "create_engine", sharing)
        yield
