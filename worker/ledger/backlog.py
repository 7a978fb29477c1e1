"""The backlog: what is due and not yet in the queue, and who is alive to work on it. `protocol.md` 6 and 7."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    update,
)

from worker.ledger.database import Transaction, reads, writes
from worker.ledger.statements import NOT_PAUSED, NOW, RUNNABLE, insert, routed_types
from worker.ledger.store import Store
from worker.ledger.tables import Utc, changes, instances, jobs, links, mirrors
from worker.ledger.values import Kind, LinkState, State

STALE_HEARTBEAT = timedelta(seconds=20)
FORGET_INSTANCE = timedelta(days=1)
WAKE_AT_MOST = 500
CLOSED_GATE = "gate"  # the reason that an attempt gives which met a closed gate
UNSEEN_AT_MOST = 100  # of what only a delete hint names, in one turn of dispatch: anybody can make such ids up

_others = changes.alias("others")
_seen = select(_others.c.id).where(_others.c.reference == changes.c.reference, _others.c.kind == Kind.VERSION)
_only_deleted = (
    select(changes.c.reference)
    .where(text("changes.kind = 'delete' AND changes.disposition IS NULL"), ~exists(_seen))  # as the index says it
    .order_by(changes.c.reference)  # in its order: SQLite would look through every open change
)
_unseen = and_(mirrors.c.applied_version.is_(None), mirrors.c.reference.in_(_only_deleted))
_unqueued = or_(mirrors.c.queued_at.is_(None), mirrors.c.queued_at < bindparam("queued_before", type_=Utc))


def _oldest_by(column: Column[Any], which: ColumnElement[bool]) -> Select[tuple[str]]:
    return (
        select(mirrors.c.reference)
        .where(mirrors.c.resource_type == bindparam("of_type"), column <= NOW, _unqueued, which, RUNNABLE, NOT_PAUSED)
        .order_by(column)
        .limit(bindparam("most", type_=Integer))
    )


# by the two indexes that know them: asked for, and to be looked at
_oldest_seen = tuple(_oldest_by(column, ~_unseen) for column in (mirrors.c.due_at, mirrors.c.look_at))
_oldest_unseen = tuple(_oldest_by(column, _unseen) for column in (mirrors.c.due_at, mirrors.c.look_at))
_mark_queued = (
    update(mirrors)
    .where(mirrors.c.reference.in_(bindparam("chosen", expanding=True)), _unqueued, RUNNABLE)
    .values(queued_at=NOW)
    .returning(mirrors.c.reference)
)


class Backlog(Store):
    """The verbs of dispatch and of whoever keeps processes honest."""

    def due(
        self,
        *,
        limit: int,
        queue_empty: bool,
        lost_after_s: float = 5.0,
        stale_after_s: float = 600.0,
    ) -> tuple[str, ...]:
        """Pick up to `limit` mirrors to publish and mark them queued: oldest first, the types in turn.

        A mirror that was queued comes again when the queue is empty and it was queued more than `lost_after_s` seconds
        ago (its task was lost), or after `stale_after_s` seconds whatever the queue holds. Of a type that met a closed
        gate nothing is picked until the gate may be open: an hour's backlog would be claimed and put back every time.
        What only a delete hint names comes after everything else, and no more than a hundred at a time.

        Looking through a backlog takes no write lock; what was claimed meanwhile is not marked and not returned.
        """
        self._wake_waiting()
        lost_after = timedelta(seconds=lost_after_s if queue_empty else stale_after_s)
        chosen = self._pick(limit, lost_after)
        return self._mark_queued(chosen, lost_after) if chosen else ()

    @writes
    def _wake_waiting(self, tx: Transaction) -> None:
        _wake_waiting(tx)

    @reads
    def _pick(self, tx: Transaction, limit: int, lost_after: timedelta) -> list[str]:
        types = sorted(routed_types(tx) - _before_a_closed_gate(tx))
        queued_before = tx.now - lost_after
        chosen = _in_turn([_oldest(tx, _oldest_seen, each, limit, queued_before) for each in types], limit)
        room = min(limit - len(chosen), UNSEEN_AT_MOST)
        return chosen + _in_turn([_oldest(tx, _oldest_unseen, each, room, queued_before) for each in types], room)

    @writes
    def _mark_queued(self, tx: Transaction, chosen: list[str], lost_after: timedelta) -> tuple[str, ...]:
        what = {"now": tx.now, "queued_before": tx.now - lost_after, "chosen": sorted(chosen)}
        still = set(tx.execute(_mark_queued, what).scalars())
        return tuple(reference for reference in chosen if reference in still)

    @writes
    def free_leases(self, tx: Transaction) -> int:
        """Free the leases of processes whose heartbeat is stale, before their time. Returns how many were freed."""
        gone = select(instances.c.id).where(instances.c.heartbeat_at >= tx.now - STALE_HEARTBEAT)
        freed = tx.execute(
            update(mirrors)
            .where(
                mirrors.c.lease_owner.is_not(None),
                mirrors.c.lease_owner.not_in(gone),
            )
            .values(lease_owner=None, lease_until=None)
        ).rowcount
        tx.execute(delete(instances).where(instances.c.heartbeat_at < tx.now - FORGET_INSTANCE))
        return int(freed)

    @writes
    def heartbeat(self, tx: Transaction, *, instance: str, role: str, host: str, pid: int, detail: str = "") -> None:
        """Say that a process lives."""
        statement = insert(tx, instances).values(
            id=instance, role=role, host=host, pid=pid, started_at=tx.now, heartbeat_at=tx.now, detail=detail
        )
        tx.execute(
            statement.on_conflict_do_update(index_elements=["id"], set_={"heartbeat_at": tx.now, "detail": detail})
        )

    @writes
    def depart(self, tx: Transaction, *, instance: str) -> None:
        """Take a process off the list that ends on its own will and holds nothing any more."""
        tx.execute(delete(instances).where(instances.c.id == instance))

    @reads
    def alive(self, tx: Transaction, *, role: str) -> float | None:
        """Tell the age in seconds of the youngest heartbeat of a role; None if there is none."""
        last = tx.execute(select(func.max(instances.c.heartbeat_at)).where(instances.c.role == role)).scalar_one()
        return None if last is None else float((tx.now - last).total_seconds())

    @writes
    def job(self, tx: Transaction, name: str, *, every_s: float, instance: str) -> bool:
        """Take a periodic job's turn: True for one caller in each `every_s` seconds, over all processes."""
        tx.execute(insert(tx, jobs).values(name=name, next_at=tx.now).on_conflict_do_nothing())
        taken = tx.execute(
            update(jobs)
            .where(jobs.c.name == name, jobs.c.next_at <= tx.now)
            .values(next_at=tx.now + timedelta(seconds=every_s), lease_owner=instance, started_at=tx.now)
        )
        return bool(taken.rowcount)

    @writes
    def job_done(self, tx: Transaction, name: str, outcome: str) -> None:
        """Note that a periodic job's turn ended, and how."""
        tx.execute(update(jobs).where(jobs.c.name == name).values(ended_at=tx.now, outcome=outcome))


def _wake_waiting(tx: Transaction) -> None:
    """Wake mirrors whose parent has come: level-triggered, should the wake-up itself have been missed."""
    come = select(links.c.reference).where(links.c.state == LinkState.LINKED)
    children = (
        tx.execute(
            select(mirrors.c.reference)
            .where(
                mirrors.c.waiting_for.is_not(None), mirrors.c.state == State.WAITING, mirrors.c.waiting_for.in_(come)
            )
            .order_by(mirrors.c.reference)
            .limit(WAKE_AT_MOST)
        )
        .scalars()
        .all()
    )
    if children:
        tx.execute(
            update(mirrors)
            .where(mirrors.c.reference.in_(children), mirrors.c.state == State.WAITING)
            .values(state=State.DUE, due_at=tx.now, since=tx.now, waiting_for=None)
        )


def _before_a_closed_gate(tx: Transaction) -> frozenset[str]:
    met = select(mirrors.c.resource_type).where(
        mirrors.c.due_at.is_not(None), mirrors.c.reason == CLOSED_GATE, mirrors.c.not_before > tx.now
    )
    return frozenset(tx.execute(met.distinct()).scalars())


def _oldest(
    tx: Transaction, by: Sequence[Select[tuple[str]]], resource_type: str, most: int, queued_before: datetime
) -> list[str]:
    """Pick one type's oldest."""
    found: dict[str, None] = {}
    what = {"of_type": resource_type, "now": tx.now, "queued_before": queued_before, "most": most}
    for statement in by:
        found.update(dict.fromkeys(tx.execute(statement, what).scalars()))
    return list(found)[:most]


def _in_turn(queues: list[list[str]], limit: int) -> list[str]:
    """Take from each in turn, so that one type's backlog does not stand in front of the others."""
    chosen: list[str] = []
    for position in range(max(map(len, queues), default=0)):
        chosen += [queue[position] for queue in queues if position < len(queue)]
    return chosen[:limit]
