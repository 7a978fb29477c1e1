"""Plumbing that every test stands on. Fixtures that know a room live in the conftest of that room's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

import pytest

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
