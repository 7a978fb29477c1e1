"""What a sample says of the rest. Pure arithmetic, and no more than that: a sample proves nothing about one record."""

from __future__ import annotations

import math

CONFIDENCE = 0.95
_STEPS = 60


def at_most(found: int, looked_at: int, of: int, *, confidence: float = CONFIDENCE) -> int:
    """Say how many of all there are at most, with this confidence, where so many were found among those looked at.

    The exact (Clopper-Pearson) upper limit of a share, times all; where all were looked at, what was found.
    """
    if looked_at >= of:
        return found
    if looked_at == 0 or found >= looked_at:
        return of
    low, high = found / looked_at, 1.0
    for _ in range(_STEPS):
        share = (low + high) / 2
        low, high = (share, high) if _at_most(found, looked_at, share) > 1 - confidence else (low, share)
    return min(of - looked_at + found, math.ceil(high * of))


def _at_most(found: int, looked_at: int, share: float) -> float:
    """Give the chance of finding so many or fewer, by the binomial distribution."""
    one, other = math.log(share), math.log1p(-share)
    return sum(
        math.exp(
            math.lgamma(looked_at + 1)
            - math.lgamma(number + 1)
            - math.lgamma(looked_at - number + 1)
            + number * one
            + (looked_at - number) * other
        )
        for number in range(found + 1)
    )
