"""A short run of `make chaos`: every kind of fault once, under traffic, within the time that CI has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.system import started
from tests.chaos.databases import Away, provided
from tests.chaos.plan import Kind
from tests.chaos.run import SETTINGS, Options, Run

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

SHORT = Options(seed=3, changes=600, seconds=30.0, database="sqlite", quiet_s=150.0, looks=False)


@pytest.fixture
def database(folder: Path) -> Iterator[Away]:
    """Lend an empty SQLite file."""
    with provided("sqlite", folder) as database:
        yield database


def test_under_every_kind_of_fault_nothing_is_lost_doubled_reversed_or_put_elsewhere(
    folder: Path, database: Away
) -> None:
    """Real processes, 600 changes, each fault at least once: every promise holds, and the accounts are in order."""
    with started(folder, database_url=database.url, settings=SETTINGS) as system:
        run = Run(SHORT, system, database, print)
        try:
            verdict = run.play()
        finally:
            run.blows.calm_processes()
    assert verdict.broken == []
    assert run.traffic.world.made >= SHORT.changes
    planned = {strike.kind for strike in SHORT.plan()}
    assert planned == set(Kind) - {Kind.STOP_DATABASE}
    assert sum(run.blows.struck.values()) > len(planned) / 2  # some miss: their target is down at that moment
    assert verdict.figures["answered by a fault"]
