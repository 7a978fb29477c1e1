"""`worker.medplum.quota`: who may still ask when Medplum's units run short."""

from __future__ import annotations

import httpx
import pytest

from worker.errors import MedplumUnavailable
from worker.medplum.quota import Priority, Quota


class Clock:
    """A clock that a test turns."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def told(left: int, seconds: int = 30) -> httpx.Response:
    """Return an answer that tells what is left."""
    return httpx.Response(200, headers={"RateLimit": f'"fhirInteractions";r={left};t={seconds}'})


def admitted(quota: Quota) -> list[Priority]:
    """List who may ask now, each asking for nothing."""
    passed = []
    for priority in Priority:
        try:
            quota.admit(priority, 0)
        except MedplumUnavailable:
            continue
        passed.append(priority)
    return passed


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (50_000, list(Priority)),
        (29_999, [Priority.LIVE, Priority.SECOND_LOOK, Priority.CATCH_UP]),
        (19_999, [Priority.LIVE, Priority.SECOND_LOOK]),
        (9_999, [Priority.LIVE]),
    ],
)
def test_priorities(left: int, expected: list[Priority]) -> None:
    """The less there is left, the fewer may ask; live reads go to the last unit."""
    quota = Quota(Clock())
    quota.note(told(50_000))
    quota.note(told(left))
    assert admitted(quota) == expected


def test_unknown() -> None:
    """Before anything is known everyone may ask."""
    assert admitted(Quota(Clock())) == list(Priority)


def test_own_use() -> None:
    """Requests under way count, though no answer has told of them yet."""
    quota = Quota(Clock())
    quota.note(told(60))
    for _ in range(3):
        quota.admit(Priority.LIVE, 20)
    with pytest.raises(MedplumUnavailable) as refusal:
        quota.admit(Priority.LIVE, 20)
    assert refusal.value.retry_after_s == 30


def test_reset() -> None:
    """A new minute opens for everyone again."""
    clock = Clock()
    quota = Quota(clock)
    quota.note(told(50_000))
    quota.note(told(0))
    assert admitted(quota) == [Priority.LIVE]
    clock.now += 30
    assert admitted(quota) == list(Priority)


def test_too_many() -> None:
    """After a 429 nobody asks before the time that Medplum named."""
    clock = Clock()
    quota = Quota(clock)
    body = {"issue": [{"diagnostics": '{"_msBeforeNext":2500}'}]}
    quota.note(httpx.Response(429, json=body))
    with pytest.raises(MedplumUnavailable) as refusal:
        quota.admit(Priority.LIVE, 20)
    assert refusal.value.retry_after_s == 2.5
    clock.now += 2.5
    assert admitted(quota) == list(Priority)
