"""Rates and quotas: what may be declared, what headers tell, and the spans of a process's own gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from worker.errors import RoutesInvalid
from worker.legacy import Quota, Rate
from worker.legacy.gate import Closed, Pass, _OwnGates

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


@pytest.mark.parametrize("rate", [{"calls": 0, "per": "second"}, {"calls": 5, "per": "fortnight"}])
def test_a_rate_that_lets_nothing_through_is_refused(rate: Any) -> None:
    """At least one call in a known span."""
    with pytest.raises(RoutesInvalid):
        Rate(**rate)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"left": "0", "reset": "30"}, 30),
        ({"left": "0", "reset": str(int(NOW.timestamp()) + 90)}, 90),
        ({"left": "0", "reset": str((int(NOW.timestamp()) + 90) * 1000)}, 90),
        ({"left": "0", "reset": str(int(NOW.timestamp()) - 90)}, 0),
        ({"left": "0", "reset": "9" * 40}, 24 * 3600),
        ({"left": "2", "reset": "30"}, 30),
        ({"left": "3", "reset": "30"}, None),
        ({"left": "0"}, None),
        ({"left": "0", "reset": "soon"}, None),
        ({"left": "nan", "reset": "30"}, None),
        ({}, None),
    ],
)
def test_what_quota_headers_tell(headers: Mapping[str, str], wait_s: float | None) -> None:
    """Unix times in seconds and milliseconds, seconds from now, calls that are spared for others, and nonsense."""
    assert Quota("left", "reset", spare=2).wait_s(headers, NOW) == wait_s


@dataclass(frozen=True)
class Api:
    name: str = "clinic"
    concurrency: int = 100
    deadline_s: float = 20.0
    rates: tuple[Rate, ...] = ()


class Time:
    """A monotonic clock and one on the wall, an hour and ten minutes ahead."""

    def __init__(self) -> None:
        self.now = 10_000.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now - 10_000 + 3600 + 600


def test_spans_of_a_process_of_its_own() -> None:
    """Without Redis the same rules: several rates, calls in flight, by the clock or not."""
    time = Time()
    gates = _OwnGates(time, time.wall)
    api = Api(rates=(Rate(2, "second"), Rate(3, "minute"), Rate(4, "hour", fixed=True)))

    def enters(name: str) -> Pass | float:
        entered = gates.enter(api, name)
        assert isinstance(entered, Pass) or entered.full
        return entered.wait_s if isinstance(entered, Closed) else entered

    first, second = enters("1"), enters("2")
    assert isinstance(first, Pass)
    assert isinstance(second, Pass)
    assert enters("x") == 1
    time.now += 5
    assert enters("x") == 1  # both are still in flight
    gates.leave(first, "ok", 0.0)
    time.now += 0.5
    gates.leave(second, "ok", 0.0)
    assert enters("x") == pytest.approx(0.5)
    time.now += 1
    third = enters("3")
    assert isinstance(third, Pass)
    gates.leave(third, "neither", 0.0)
    assert enters("x") == pytest.approx(58.5)  # a minute after the first was given back
    time.now += 60
    fourth = enters("4")
    assert isinstance(fourth, Pass)
    gates.leave(fourth, "ok", 0.0)
    assert enters("x") == pytest.approx(3000 - 66.5)  # until the hour is over
    time.now += 3000
    assert isinstance(enters("5"), Pass)


def test_429_without_a_word_doubles_in_a_process_of_its_own() -> None:
    """A second, two, four; an answer starts anew."""
    time = Time()
    gates, api, waits = _OwnGates(time, time.wall), Api(), []
    for said in ("slow", "slow", "ok", "slow"):
        entered = gates.enter(api, "x")
        assert isinstance(entered, Pass)
        gates.leave(entered, said, 0.0)
        closed = gates.enter(api, "y")
        if isinstance(closed, Pass):
            gates.leave(closed, "neither", 0.0)
        else:
            waits.append(closed.wait_s)
            time.now += closed.wait_s
    assert waits == [1, 2, 1]
