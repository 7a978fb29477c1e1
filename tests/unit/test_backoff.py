"""How long an attempt that failed for the moment waits for the next one."""

from __future__ import annotations

from statistics import mean

import pytest

from worker.sync import BACKOFF_FIRST_S, BACKOFF_MOST_S, backoff_s


@pytest.mark.parametrize("attempts", range(12))
def test_the_wait_doubles_up_to_its_most(attempts: int) -> None:
    """No wait is longer than twice the one before, nor than the most."""
    most_s = min(BACKOFF_FIRST_S * 2**attempts, BACKOFF_MOST_S)
    drawn = [backoff_s(attempts) for _ in range(500)]
    assert min(drawn) >= 0
    assert max(drawn) <= most_s


def test_the_jitter_is_full() -> None:
    """Many that failed together come back evenly spread over the whole wait, the beginning included."""
    drawn = [backoff_s(30) for _ in range(4000)]
    assert mean(drawn) == pytest.approx(BACKOFF_MOST_S / 2, rel=0.1)
    assert min(drawn) < BACKOFF_MOST_S / 20
    assert max(drawn) > BACKOFF_MOST_S * 19 / 20


def test_a_long_outage_does_not_overflow() -> None:
    """After ten thousand attempts the wait is still the most."""
    assert backoff_s(10_000) <= BACKOFF_MOST_S
