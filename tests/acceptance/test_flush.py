"""A broker that forgets everything costs seconds: the ledger is the backlog."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select

from tests.acceptance.system import System
from tests.acceptance.traffic import Traffic, backward_steps
from worker.ledger.tables import attempts, mirrors
from worker.publish import SYNC

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

BURST = 120
IN_HAND = 4  # messages that the workers may hold already
WORKERS = ("worker", "worker2")
RESUMED_WITHIN_S = 15.0


def test_after_flushall_work_goes_on_within_seconds_and_everything_is_applied(system: System) -> None:
    """FLUSHALL with a full queue and no notification after it: dispatch alone brings the work back, nobody restarts."""
    before = system.processes.pids()
    traffic = Traffic(system.medplum, seed=2)
    with stopped(system), system.broker() as broker:
        traffic.begin()
        traffic.burst(BURST)
        system.wait_until(lambda: unqueued(system) == 0, "dispatch has queued all, and would not queue it again", 15)
        assert broker.llen(SYNC) > IN_HAND
        broker.flushall()
        flushed_at = datetime.now(UTC)
    system.wait_until(lambda: attempts_since(system, flushed_at) > IN_HAND, "work is resumed", RESUMED_WITHIN_S)
    system.settle(60)
    system.assert_accounted()
    assert system.disagreements() == []
    assert backward_steps(system.clinic.history()) == []
    assert system.processes.pids() == before


@contextmanager
def stopped(system: System) -> Iterator[None]:
    """Have the workers stand still: what is queued stays queued."""
    system.processes.signal(signal.SIGSTOP, WORKERS)
    try:
        yield
    finally:
        system.processes.signal(signal.SIGCONT, WORKERS)


def unqueued(system: System) -> int:
    """Count what has not been told yet, and what is due and nobody has noted down as queued."""
    free = select(func.count()).where(mirrors.c.due_at.is_not(None), mirrors.c.queued_at.is_(None))
    return system.medplum.undelivered() + int(system.ledger.database.read(lambda tx: tx.execute(free).scalar_one()))


def attempts_since(system: System, moment: datetime) -> int:
    """Count the attempts that were begun since then and have ended."""
    begun = select(func.count()).where(attempts.c.started_at > moment)
    return int(system.ledger.database.read(lambda tx: tx.execute(begun).scalar_one()))
