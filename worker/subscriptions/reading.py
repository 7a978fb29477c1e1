"""What is asked of Medplum about Subscriptions: those of ours, and deliveries that failed. Reads alone, by search."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Final

from worker.medplum import Medplum, Present, SearchPage
from worker.medplum.marked import CHECK, SUBSCRIPTION, is_test, query
from worker.medplum.quota import Priority
from worker.subscriptions import found
from worker.subscriptions.failures import Failure, failure_of
from worker.subscriptions.found import Found

__all__ = ["CALL_S", "delivered", "failures", "marked", "newest", "ours", "to_endpoint"]

CALL_S: Final = 15.0
_PAGE, _PAGES_MOST = 500, 8


def ours(medplum: Medplum, *, ids: Collection[str] = ()) -> list[Found]:
    """Read the Subscriptions that carry our tag, and those of these ids, whatever they carry.

    Raises:
        MedplumError: they are not known; the message says what to do.
    """
    queries = [{"_tag": query(SUBSCRIPTION), "_count": str(_PAGE)}]
    if ids:
        queries.append({"_id": ",".join(sorted(ids)), "_count": str(_PAGE)})
    by_id: dict[str, Found] = {}
    for asked in queries:
        for page in medplum.search("Subscription", asked, deadline_s=CALL_S, priority=Priority.LIVE):
            by_id |= {one.id: one for one in (found.of(each) for each in page.entries if isinstance(each, Present))}
    mine = [one for one in by_id.values() if one.ours or one.id in ids]
    return sorted(mine, key=lambda one: one.id)


def to_endpoint(medplum: Medplum, endpoint: str) -> list[Found]:
    """Read every Subscription that sends to an endpoint, whosever it is."""
    pages = medplum.search(
        "Subscription", {"url": endpoint, "_count": str(_PAGE)}, deadline_s=CALL_S, priority=Priority.LIVE
    )
    return [found.of(each) for page in pages for each in page.entries if isinstance(each, Present)]


def failures(medplum: Medplum, subscription: str, *, since: datetime) -> tuple[list[Failure], bool]:
    """Read the deliveries of a Subscription that failed since then, the latest first, and whether that is all.

    Raises:
        MedplumError: they are not known; the client has to read and search AuditEvent.
    """
    told: list[Failure] = []
    pages = _audited(medplum, subscription, "4", since)
    for number, page in enumerate(pages, start=1):
        read = (failure_of(each.body) for each in page.entries if isinstance(each, Present))
        told += [one for one in read if one is not None]
        if number == _PAGES_MOST:
            return told, False
    return told, True


def delivered(medplum: Medplum, subscription: str, resource: str, *, since: datetime) -> bool:
    """Tell whether an attempt to deliver a resource was answered as taken, by whomever.

    Raises:
        MedplumError: it is not known.
    """
    pages = _audited(medplum, subscription, "0", since)
    read = (failure_of(each.body) for page in pages for each in page.entries if isinstance(each, Present))
    return any(one is not None and one.resource == resource for one in read)


def _audited(medplum: Medplum, subscription: str, outcome: str, since: datetime) -> Iterator[SearchPage]:
    """Search the AuditEvents of a Subscription's attempts, the latest first."""
    asked = {
        "entity": f"Subscription/{subscription}",
        "outcome": outcome,
        "_lastUpdated": f"ge{since.astimezone(UTC).isoformat(timespec='milliseconds').replace('+00:00', 'Z')}",
        "_sort": "-_lastUpdated",
        "_count": str(_PAGE),
    }
    return medplum.search("AuditEvent", asked, deadline_s=CALL_S, priority=Priority.LIVE)


def marked(medplum: Medplum, resource_type: str) -> list[Present]:
    """Read the test resources of a type that are there.

    Raises:
        MedplumError: they are not known.
    """
    asked = {"_tag": query(CHECK), "_count": str(_PAGE)}
    pages = medplum.search(resource_type, asked, deadline_s=CALL_S, priority=Priority.LIVE)
    return [each for page in pages for each in page.entries if isinstance(each, Present) and is_test(each.body)]


def newest(medplum: Medplum, resource_type: str) -> Present | None:
    """Read the resource of a type that was changed last."""
    asked = {"_sort": "-_lastUpdated", "_count": "1"}
    for page in medplum.search(resource_type, asked, deadline_s=CALL_S, priority=Priority.LIVE):
        return next((each for each in page.entries if isinstance(each, Present)), None)
    return None
