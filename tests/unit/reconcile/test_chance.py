"""What a sample says of the rest."""

from __future__ import annotations

import math

import pytest

from worker.reconcile.chance import at_most


def test_where_all_were_looked_at_it_is_what_was_found() -> None:
    """Nothing is guessed of what is known."""
    assert at_most(3, 100, 100) == 3


def test_where_nothing_was_found_it_is_three_in_the_sample() -> None:
    """The rule of three: none in 300 of a million is at most about a hundredth of it, with 95 %."""
    assert at_most(0, 300, 1_000_000) == pytest.approx(1_000_000 * (1 - 0.05 ** (1 / 300)), rel=1e-6, abs=1)


@pytest.mark.parametrize(("found", "looked_at", "share"), [(0, 20, 0.1391), (1, 20, 0.2161), (5, 50, 0.1988)])
def test_it_is_the_exact_limit(found: int, looked_at: int, share: float) -> None:
    """Against limits that were worked out by whole numbers: one-sided, 95 %."""
    assert at_most(found, looked_at, 10_000) == pytest.approx(share * 10_000, abs=3)


def test_it_is_never_more_than_what_was_not_looked_at() -> None:
    """Of 10, of which 9 were looked at and are well, at most one can be wrong; with nothing looked at, all can."""
    assert at_most(0, 9, 10) == 1
    assert at_most(0, 0, 10) == 10
    assert at_most(9, 9, 10) == 10


def test_more_found_is_more_feared() -> None:
    """The bound grows with what was found, and shrinks with what was looked at."""
    bounds = [at_most(found, 1000, 100_000) for found in range(5)]
    assert bounds == sorted(bounds)
    assert at_most(2, 2000, 100_000) < at_most(2, 1000, 100_000)
    assert not math.isnan(bounds[0])
