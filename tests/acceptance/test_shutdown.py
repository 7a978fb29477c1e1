"""SIGTERM to everything at once, in the middle of traffic: what runs ends, nothing begins, nothing is left unknown."""

from __future__ import annotations

import signal
from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select

from tests.acceptance.system import OURS, System
from tests.acceptance.traffic import Traffic, backward_steps, flowing
from worker.ledger.tables import attempts, writes
from worker.ledger.values import WriteOutcome

pytestmark = [pytest.mark.processes, pytest.mark.timeout(150)]

EVERYTHING = (*OURS, "broker")
ENDED_WITHIN_S = 45.0 + 5.0  # an attempt's budget, and five seconds
HEARD_WITHIN_S = 1.0  # until a signal has reached the last of the processes
READ_S = 1.5  # so there are attempts that read when the signal comes, and would go on to write


def test_sigterm_ends_calls_begins_none_and_leaves_nothing_unknown(system: System) -> None:
    """Every process ends with code 0 in time; no write is announced after the signal, and each has its outcome."""
    system.clinic.slow_down(1.0)
    slow_read = {"clients": ["sync"], "methods": ["GET"], "delay_seconds": READ_S}
    # Medplum's attempts to deliver last for as long as everything is down.
    system.steer_medplum("faults", retry_scale=2.0, api=[slow_read])
    try:
        with flowing(Traffic(system.medplum, seed=3)):
            system.wait_until(lambda: system.ledger.status()["unresolved_writes"] > 1, "writes are under way", 30)
            told_at = datetime.now(UTC)
            system.processes.signal(signal.SIGTERM, EVERYTHING)
            codes = system.processes.end(EVERYTHING, ENDED_WITHIN_S)
        assert set(codes.values()) == {0}, codes
        status = system.ledger.status()
        assert (status["unresolved_writes"], status["syncing"]) == (0, 0)
        assert (latest_announcement(system) - told_at).total_seconds() < HEARD_WITHIN_S
        assert answered_after(system, told_at) > 0
        assert stopped(system) > 0
    finally:
        system.clinic.behave()
        system.steer_medplum("faults", api=[])
        system.restart("broker", *OURS)
    system.settle(60)
    system.steer_medplum("clear")
    system.assert_accounted()
    assert system.disagreements() == []
    assert backward_steps(system.clinic.history()) == []


def latest_announcement(system: System) -> datetime:
    """Return when the last write was announced."""
    latest = select(func.max(writes.c.announced_at))
    moment: datetime = system.ledger.database.read(lambda tx: tx.execute(latest).scalar_one())
    return moment


def stopped(system: System) -> int:
    """Count the attempts that would have announced a write and did not, because their worker was stopping."""
    ended = select(func.count()).where(attempts.c.outcome == "stopping")
    return int(system.ledger.database.read(lambda tx: tx.execute(ended).scalar_one()))


def answered_after(system: System, moment: datetime) -> int:
    """Count the writes that were under way in that moment and were done all the same."""
    ended = select(func.count()).where(
        writes.c.announced_at < moment, writes.c.answered_at > moment, writes.c.outcome == WriteOutcome.DONE
    )
    return int(system.ledger.database.read(lambda tx: tx.execute(ended).scalar_one()))
