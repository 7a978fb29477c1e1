"""What the ledger knows, told in plain values: status, one resource's story, what needs a person. Only reads."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Table, case, func, literal, select, union_all

from worker.ledger.database import Transaction, reads
from worker.ledger.identifying import BOUNCES_ALARM, TO_IDENTIFY
from worker.ledger.phasing import OTHER_VERSION
from worker.ledger.routes import TypeCounts, adds_up, routes_and_times
from worker.ledger.store import Store
from worker.ledger.subscribing import in_short
from worker.ledger.tables import attempts, changes, counters, jobs, links, mirrors, operator_actions
from worker.ledger.tables import writes as announced_writes
from worker.ledger.values import Disposition, LinkState, State

# what `show` leaves out: ciphertext, and what says nothing without a key
HIDDEN = frozenset({"body", "answer", "before_image", "baseline", "digest"})
NEEDS_A_PERSON = (State.FAILED, State.HELD)
# a key that was put there before has changed since, with the link
_longest_to_identify = select(
    func.min(case((links.c.identified_key.is_(None), links.c.created_at), else_=links.c.updated_at))
).where(TO_IDENTIFY)


class Report(Store):
    """The verbs that answer questions."""

    @reads
    def status(self, tx: Transaction) -> dict[str, Any]:
        """Count everything, in one statement, so that the identity is one moment's."""
        counted, by_type = _counts(tx)
        accepted = sum(counted.get("accepted", {}).values())
        purged = sum(counted.get("purged", {}).values())
        by_disposition = {name.value: counted.get("changes", {}).get(name, 0) for name in Disposition}
        by_disposition["open"] = counted.get("changes", {}).get("open", 0)
        oldest = tx.execute(select(func.min(changes.c.accepted_at)).where(changes.c.disposition.is_(None))).scalar_one()
        dispatched = tx.execute(select(jobs.c.ended_at).where(jobs.c.name == "dispatch")).scalar_one_or_none()
        return {
            "accepted": accepted,
            "changes": by_disposition,
            "purged": purged,
            "identity_holds": accepted == sum(by_disposition.values()) + purged and all(map(adds_up, by_type.values())),
            "mirrors": {name.value: counted.get("mirrors", {}).get(name, 0) for name in State},
            "syncing": counted.get("syncing", {}).get("", 0),
            "accepted_by_source": counted.get("accepted", {}),
            "unresolved_writes": counted.get("unresolved", {}).get("", 0),
            "left_behind": counted.get("left", {}).get("", 0),
            "to_identify": counted.get("identify", {}).get("", 0),
            "bouncing": counted.get("bouncing", {}).get("", 0),
            "handed_back": counted.get("handed", {}),
            "oldest_open_seconds": _age(tx, oldest),
            "oldest_to_identify_seconds": _age(tx, tx.execute(_longest_to_identify).scalar_one()),
            "last_dispatch_seconds": _age(tx, dispatched),
            **routes_and_times(tx, by_type),
            **in_short(tx),
        }

    @reads
    def failed(self, tx: Transaction) -> list[dict[str, Any]]:
        """List the mirrors that need a person or a decision, the longest first."""
        rows = tx.execute(
            select(mirrors).where(mirrors.c.state.in_(NEEDS_A_PERSON)).order_by(mirrors.c.since, mirrors.c.reference)
        )
        return [
            {
                "reference": row.reference,
                "state": row.state,
                "reason": row.reason,
                "detail": row.detail,
                "since": _iso(row.since),
                "attempts": row.token,
            }
            for row in rows
        ]

    @reads
    def show(self, tx: Transaction, reference: str) -> dict[str, Any] | None:
        """Tell one resource's story: its mirror, changes, links, attempts and writes, oldest first. None if unknown."""
        mirror = tx.execute(select(mirrors).where(mirrors.c.reference == reference)).one_or_none()
        rows = {
            "changes": _rows(tx, changes, reference),
            "links": _rows(tx, links, reference),
            "attempts": _rows(tx, attempts, reference),
            "writes": _rows(tx, announced_writes, reference),
        }
        if mirror is None and not rows["changes"]:
            return None
        told = _told(mirrors, mirror) if mirror is not None else {}
        if mirror is not None:
            told["syncing"] = mirror.lease_until is not None and mirror.lease_until > tx.now
        return {"reference": reference, "at": _iso(tx.now), "mirror": told, **rows}

    @reads
    def actions(self, tx: Transaction, *, limit: int = 50) -> list[dict[str, Any]]:
        """List what people did, the latest first."""
        rows = tx.execute(select(operator_actions).order_by(operator_actions.c.id.desc()).limit(limit))
        return [_told(operator_actions, row) for row in rows]

    @reads
    def links_of(self, tx: Transaction, resource_type: str) -> list[dict[str, Any]]:
        """List one type's links, for whoever compares both sides."""
        rows = tx.execute(select(links).where(links.c.resource_type == resource_type).order_by(links.c.reference))
        return [_told(links, row) for row in rows]


def _counts(tx: Transaction) -> tuple[dict[str, dict[str, int]], TypeCounts]:
    """Count in one statement: everything by name, and by resource type what the identity is made of."""
    count, nothing = func.count(), literal("")
    disposition = func.coalesce(changes.c.disposition, "open")
    everything = union_all(
        select(
            literal("changes").label("what"),
            disposition.label("name"),
            changes.c.resource_type.label("type"),
            count.label("n"),
        ).group_by(disposition, changes.c.resource_type),
        select(counters.c.name, counters.c.source, counters.c.resource_type, counters.c.value),
        select(literal("mirrors"), mirrors.c.state, nothing, count).group_by(mirrors.c.state),
        select(literal("syncing"), nothing, nothing, count).where(mirrors.c.lease_until > tx.now),
        select(literal("unresolved"), nothing, nothing, count).where(announced_writes.c.outcome.is_(None)),
        select(literal("left"), nothing, nothing, count).where(links.c.state == LinkState.LEFT_BEHIND),
        select(literal("identify"), nothing, nothing, count).where(TO_IDENTIFY),
        select(literal("handed"), mirrors.c.resource_type, nothing, count)
        .where(mirrors.c.state == State.DUE, mirrors.c.reason == OTHER_VERSION)
        .group_by(mirrors.c.resource_type),
        select(literal("bouncing"), nothing, nothing, count).where(mirrors.c.bounces >= BOUNCES_ALARM),
    )
    told: dict[str, dict[str, int]] = {}
    by_type: TypeCounts = {}
    for row in tx.execute(everything):
        named = told.setdefault(row.what, {})
        named[row.name] = named.get(row.name, 0) + int(row.n)
        if row.type:
            typed = by_type.setdefault(row.type, {})
            name = row.name if row.what == "changes" else row.what
            typed[name] = typed.get(name, 0) + int(row.n)
    return told, by_type


def _rows(tx: Transaction, table: Table, reference: str) -> list[dict[str, Any]]:
    rows = tx.execute(select(table).where(table.c.reference == reference).order_by(table.c.id))
    return [_told(table, row) for row in rows]


def _told(table: Table, row: Any) -> dict[str, Any]:
    return {
        column.name.removeprefix("record_"): _iso(value) if isinstance(value, datetime) else value
        for column, value in zip(table.c, row, strict=True)
        if column.name not in HIDDEN
    }


def _age(tx: Transaction, moment: datetime | None) -> float | None:
    return None if moment is None else round((tx.now - moment).total_seconds(), 3)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
