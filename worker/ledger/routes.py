"""What stands behind each route: whether its changes add up, how late it is, and which time of it is proven.

Pieces of `report`, which alone asks for them: they are one moment's, with the figures there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from worker.ledger.database import Transaction
from worker.ledger.tables import changes, counters, jobs, routes, windows
from worker.ledger.values import Disposition, Phase, Source

TypeCounts = dict[str, dict[str, int]]
"""By resource type: changes by disposition, `accepted` and `purged`."""

OF_A_CHANGE = (*(each.value for each in Disposition), "open")

_LATE = func.min(func.coalesce(changes.c.last_updated, changes.c.accepted_at))
_oldest_open = (
    select(changes.c.resource_type, _LATE.label("since"))
    .where(changes.c.disposition.is_(None))
    .group_by(changes.c.resource_type)
)
_found = select(counters.c.resource_type, counters.c.value).where(
    counters.c.name == "accepted", counters.c.source == Source.CATCH_UP.value
)
_NOT_CAUGHT_UP = (Phase.OFF, Phase.RETIRED)
RECENTLY = timedelta(days=1)


def adds_up(counts: Mapping[str, int]) -> bool:
    """Say whether what was accepted of a type is what is settled, open and purged of it."""
    there = sum(counts.get(name, 0) for name in OF_A_CHANGE)
    return counts.get("accepted", 0) == there + counts.get("purged", 0)


def routes_and_times(tx: Transaction, by_type: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Tell of each route its accounts, its lag and its watermark; and which times are not proven, with the reasons.

    A time that was in doubt and is proven is told of for a day.
    """
    late = {row.resource_type: row.since for row in tx.execute(_oldest_open)}
    known = tx.execute(select(windows).where((windows.c.proven_at.is_(None)) | (windows.c.reason.is_(None)))).all()
    unproven = [row for row in known if row.reason is not None]
    recently = windows.c.reason.is_not(None), windows.c.proven_at >= tx.now - RECENTLY
    proven = tx.execute(select(windows).where(*recently).order_by(windows.c.proven_at.desc())).all()
    turns = {row.name: row for row in tx.execute(select(jobs).where(jobs.c.name.like("catch-up %")))}
    told = [
        _route(tx, row, by_type.get(row.resource_type, {}), late.get(row.resource_type), known, turns)
        for row in tx.execute(select(routes).order_by(routes.c.resource_type))
    ]
    found = {row.resource_type: int(row.value) for row in tx.execute(_found)}
    for each in told:
        each["found_by_catch_up"] = found.get(each["resource_type"], 0)
    running = [each for each in told if each["phase"] not in _NOT_CAUGHT_UP]
    return {
        "routes": told,
        "lag_seconds": {each["resource_type"]: each["lag_seconds"] or 0.0 for each in running},
        "watermark_seconds": {each["resource_type"]: each["watermark_seconds"] for each in running},
        "unproven_windows": {each["resource_type"]: each["unproven"] for each in running},
        "unproven": [_window(row) for row in sorted(unproven, key=lambda row: (row.resource_type, row.from_at))],
        "proven_lately": [_window(row) | {"from": row.from_at.isoformat()} for row in proven],
    }


def _route(
    tx: Transaction, row: Any, counts: Mapping[str, int], oldest: datetime | None, known: Sequence[Any], turns: Any
) -> dict[str, Any]:
    mine = [window for window in known if window.resource_type == row.resource_type]
    watermark = min((_unproven_from(window) for window in mine), default=row.registered_at)
    turn = turns.get(f"catch-up {row.resource_type}")
    settled = {name: counts.get(name, 0) for name in OF_A_CHANGE}
    accepted, purged = counts.get("accepted", 0), counts.get("purged", 0)
    return {
        "resource_type": row.resource_type,
        "phase": row.phase,
        "accepted": accepted,
        "changes": settled,
        "purged": purged,
        "identity_holds": adds_up(counts),
        "lag_seconds": None if oldest is None else _seconds(tx, oldest),
        "watermark": watermark.isoformat(),
        "watermark_seconds": _seconds(tx, watermark),
        "unproven": sum(window.reason is not None for window in mine),
        "last_catch_up_seconds": None if turn is None or turn.ended_at is None else _seconds(tx, turn.ended_at),
        "last_catch_up": None if turn is None else turn.outcome,
    }


def _unproven_from(window: Any) -> datetime:
    """Say where a window is not proven any more: a route's own one at its end."""
    begins: datetime = window.to_at if window.reason is None else window.proven_to or window.from_at
    return begins


def _window(row: Any) -> dict[str, Any]:
    return {
        "resource_type": row.resource_type,
        "from": _unproven_from(row).isoformat(),
        "to": row.to_at.isoformat(),
        "reason": row.reason,
        "found": row.found,
    }


def _seconds(tx: Transaction, since: datetime) -> float:
    return round(max(0.0, (tx.now - since).total_seconds()), 3)
