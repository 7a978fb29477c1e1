"""What AuditEvents tell of deliveries: which events still fail, and when Medplum gives up on them. Pure.

Medplum writes one for each attempt, with "Attempt 3 received status 503" or "… received error …"; attempts are counted
from 0, and the gap after attempt k is 2**k seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from worker.errors import BadResource
from worker.strict_json import loads

__all__ = ["Failing", "Failure", "failing", "failure_of", "gave_up"]

SLACK: Final = timedelta(seconds=15)
"""So long after its time an attempt may come: twenty deliveries share the sender."""

_ATTEMPT: Final = re.compile(r"Attempt (\d{1,3}) received (?:status (\d{3})|error (.*))", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that failed: by which answer, or which error of the network."""

    resource: str
    attempt: int
    at: datetime
    status: int | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Failing:
    """The events that Medplum still tries to deliver."""

    events: int
    oldest_attempt: int
    gives_up_at: datetime  # on the first of them
    latest: Failure


def failure_of(body: bytes) -> Failure | None:
    """Read one out of an AuditEvent; None where it tells of something else.

    Raises:
        BadResource: it is not one.
    """
    event = loads(body)
    if not isinstance(event, dict):
        raise BadResource("not a JSON object")
    told = _ATTEMPT.match(str(event.get("outcomeDesc", "")))
    at = _instant(event)
    if told is None or at is None:
        return None
    entities = event.get("entity")
    named = [_named(one) for one in (entities if isinstance(entities, list) else ())]
    resource = next((one for one in named if one and not one.startswith("Subscription/")), "")
    return Failure(resource, int(told[1]), at, int(told[2]) if told[2] else None, told[3] or "")


def failing(failures: Iterable[Failure], *, attempts: int, now: datetime) -> Failing | None:
    """Say which events still fail: after its last failed attempt each has another one before it, not yet overdue."""
    still = [
        one
        for one in _latest(failures)
        if one.attempt < attempts and now <= one.at + timedelta(seconds=2**one.attempt) + SLACK
    ]
    if not still:
        return None
    gives_up_at = min(one.at + timedelta(seconds=2**attempts - 2**one.attempt) for one in still)
    latest = max(still, key=lambda one: one.at)
    return Failing(len(still), max(one.attempt for one in still), gives_up_at, latest)


def gave_up(failures: Iterable[Failure], *, attempts: int) -> int:
    """Count the events whose last attempt failed."""
    return sum(one.attempt >= attempts for one in _latest(failures))


def _latest(failures: Iterable[Failure]) -> list[Failure]:
    """Keep the last failed attempt of each event. Of one resource only the newest version is tried again."""
    by_resource: dict[str, Failure] = {}
    for one in failures:
        known = by_resource.get(one.resource)
        if known is None or known.at < one.at:
            by_resource[one.resource] = one
    return list(by_resource.values())


def _instant(event: Mapping[str, Any]) -> datetime | None:
    meta = event.get("meta")
    text = event.get("recorded") or (meta.get("lastUpdated") if isinstance(meta, Mapping) else None)
    try:
        instant = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return instant.astimezone(UTC) if instant is not None and instant.tzinfo is not None else None


def _named(entity: Any) -> str:
    what = entity.get("what") if isinstance(entity, Mapping) else None
    return str(what.get("reference", "")) if isinstance(what, Mapping) else ""
