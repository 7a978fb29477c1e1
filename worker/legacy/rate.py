"""How much an API takes: rates that are declared, and quotas that its answers tell. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal

from worker.errors import RoutesInvalid

__all__ = ["Quota", "Rate", "retry_after"]

PERIODS_S: Final[Mapping[str, int]] = {"second": 1, "minute": 60, "hour": 3600}
_MOST_S = 24 * 3600.0
_UNIX_S, _UNIX_MS = 1e9, 1e12  # above the one a number is a time, above the other one in milliseconds


@dataclass(frozen=True, slots=True)
class Rate:
    """At most so many calls in a second, minute or hour, all processes together; an API may have several.

    Counted in any such span; `fixed` counts by the clock, for quotas that start anew on the hour. A call counts from
    when it leaves until its answer is a span old, so that no two clocks have to agree.
    """

    calls: int
    per: Literal["second", "minute", "hour"]
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.calls < 1 or self.per not in PERIODS_S:
            raise RoutesInvalid("a Rate is at least one call per second, minute or hour")

    @property
    def span_s(self) -> int:
        return PERIODS_S[self.per]


@dataclass(frozen=True, slots=True)
class Quota:
    """The headers in which answers tell what is left: how many calls, and when the count starts anew.

    `reset` is a unix time, in seconds or milliseconds, or the seconds until then: its size tells which. `spare` calls
    are left to other users of the same account.
    """

    remaining: str
    reset: str
    spare: int = 0

    def wait_s(self, headers: Mapping[str, str], now: datetime) -> float | None:
        """Return the seconds until calls are left again; None while there are some, or nothing is told."""
        left, reset = _number(headers.get(self.remaining)), _number(headers.get(self.reset))
        if left is None or reset is None or left > self.spare:
            return None
        if reset >= _UNIX_S:
            reset = reset / (1000 if reset >= _UNIX_MS else 1) - now.timestamp()
        return min(max(reset, 0.0), _MOST_S)


def retry_after(header: str | None, now: datetime) -> float | None:
    """Read a Retry-After header, seconds or an HTTP date, as seconds from now: at least 0, at most a day."""
    if not header:
        return None
    seconds = _number(header)
    if seconds is None:
        try:
            when = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds()
    return min(max(seconds, 0.0), _MOST_S)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if number == number else None  # noqa: PLR0124 — NaN is not
