"""Taking a mirror: the fencing token, and all that is known of it, in one transaction. `protocol.md` 1 and 6."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import and_, bindparam, case, exists, func, insert, or_, select, update

from worker.ledger.database import Transaction, reads, writes
from worker.ledger.sealing import SealBroken
from worker.ledger.statements import NOT_PAUSED, OF, RUNNABLE, UNSETTLED
from worker.ledger.store import Store
from worker.ledger.tables import Utc, attempts, changes, links, mirrors, recoveries, routes, shadows
from worker.ledger.tables import writes as announced
from worker.ledger.values import (
    Claim,
    DeleteHint,
    Kind,
    Link,
    LinkState,
    NotClaimed,
    OpenWrite,
    Operation,
    Origin,
    Phase,
    Refusal,
    Source,
    State,
    WriteOutcome,
)

NOTIFIED_BODIES = 3

_phase = select(
    routes.c.phase,
    routes.c.mapping_version,
    exists(select(shadows.c.slot).where(shadows.c.reference == OF)).label("shadowed"),
    exists(select(recoveries.c.id).where(recoveries.c.kind == "ledger", recoveries.c.ended_at.is_(None))).label("lost"),
).where(routes.c.resource_type == bindparam("of_type"))
_take = (
    update(mirrors)
    .where(mirrors.c.reference == OF, RUNNABLE, NOT_PAUSED, mirrors.c.starts <= bindparam("starts_at_most"))
    .values(
        token=mirrors.c.token + 1,
        lease_owner=bindparam("by"),
        lease_until=bindparam("until", type_=Utc),
        starts=mirrors.c.starts + 1,
        queued_at=None,
    )
    .returning(*mirrors.c)
)
_why_not = select(mirrors, NOT_PAUSED.label("allowed")).where(mirrors.c.reference == OF)
_open_changes = (
    select(changes.c.kind, changes.c.version_id, changes.c.received_at, changes.c.source, changes.c.body)
    .where(changes.c.reference == OF, UNSETTLED)
    .order_by(changes.c.id.desc())
)
_told_later = select(changes.c.version_id, changes.c.body).where(  # read and settled before its notification came
    changes.c.reference == OF,
    changes.c.version_id == bindparam("applied"),
    changes.c.source == Source.READ,
    changes.c.disposition.is_not(None),
    changes.c.body.is_not(None),
)
_links = select(links).where(links.c.reference == OF).order_by(links.c.slot)
_unresolved = (
    select(announced).where(announced.c.reference == OF, announced.c.outcome.is_(None)).order_by(announced.c.id)
)
_last_sent = (
    select(announced)
    .where(
        announced.c.reference == OF,
        announced.c.slot == bindparam("in_slot"),
        announced.c.operation.in_([Operation.CREATE, Operation.UPDATE]),
        announced.c.body.is_not(None),
    )
    .order_by(announced.c.id.desc())
    .limit(1)
)
_creates_in_doubt = (
    select(announced)
    .where(
        announced.c.reference == OF,
        announced.c.slot == bindparam("in_slot"),
        announced.c.operation == Operation.CREATE,
        or_(announced.c.outcome.is_(None), announced.c.outcome == WriteOutcome.LAPSED),
    )
    .order_by(announced.c.id)
)
_others = announced.alias("others")
_at_the_latest = case(  # when a write acted, if it did
    (announced.c.outcome.in_([WriteOutcome.DONE, WriteOutcome.GONE]), announced.c.answered_at),
    else_=announced.c.bound_at,
)
_last_word = select(
    exists(
        select(announced.c.id).where(
            announced.c.reference == OF,
            announced.c.slot == bindparam("in_slot"),
            announced.c.operation == bindparam("of_kind"),
            or_(
                announced.c.outcome.is_(None),
                announced.c.outcome.in_([WriteOutcome.LAPSED, WriteOutcome.DONE]),
                and_(announced.c.operation == Operation.DELETE, announced.c.outcome == WriteOutcome.GONE),
            ),
            ~exists(
                select(_others.c.id).where(
                    _others.c.reference == OF,
                    _others.c.slot == bindparam("in_slot"),
                    _others.c.operation != bindparam("of_kind"),
                    _others.c.outcome.in_([WriteOutcome.DONE, WriteOutcome.FOUND]),
                    _others.c.announced_at > _at_the_latest,
                )
            ),
        )
    )
)
_no_limit = 2**31 - 1


class _Taken(NamedTuple):
    """A mirror's row as it was taken, and when."""

    mirror: Any
    at: datetime


class Claiming(Store):
    """The verbs that take a mirror and tell what is known of it."""

    def claim(self, reference: str, *, instance: str, lease_s: float, alone: bool = False) -> Claim | NotClaimed:
        """Take a mirror that is runnable, or say why it is not.

        The start is counted before the work. A mirror whose last start had no end is only given to one who asks for it
        `alone`: a process of its own, so that no neighbour dies with it and none is blamed.

        What is known of the mirror is read once it is taken, without a write lock: what came in between is only newer,
        and what hints the attempt covers was counted when it was taken.
        """
        taken = self._lease(reference, instance=instance, lease_s=lease_s, alone=alone)
        return taken if isinstance(taken, NotClaimed) else self._claim(taken, instance)

    @writes
    def _lease(
        self, tx: Transaction, reference: str, *, instance: str, lease_s: float, alone: bool
    ) -> _Taken | NotClaimed:
        row = tx.execute(
            _take,
            {
                "of": reference,
                "now": tx.now,
                "starts_at_most": _no_limit if alone else 0,
                "by": instance,
                "until": tx.now + timedelta(seconds=lease_s),
            },
        ).one_or_none()
        if row is None:
            return _refused(tx, reference, alone=alone)
        if row.starts > 1:
            _note_death(tx, reference, row.token - 1)
        return _Taken(row, tx.now)

    @reads
    def last_sent(self, tx: Transaction, reference: str, slot: str) -> Mapping[str, object] | None:
        """Open the fields that were last sent for a slot; None where nothing was, or no key opens them."""
        row = tx.execute(_last_sent, {"of": reference, "in_slot": slot}).one_or_none()
        return None if row is None else self._opened_fields(row)

    @reads
    def known_of(self, tx: Transaction, reference: str) -> tuple[tuple[Link, ...], tuple[OpenWrite, ...]]:
        """Tell the links of a resource and its writes without an outcome, without taking its mirror."""
        links_of, writes_of = tx.execute(_links, {"of": reference}), tx.execute(_unresolved, {"of": reference})
        return tuple(map(self._link, links_of)), tuple(map(self._open_write, writes_of))

    @reads
    def in_doubt_until(self, tx: Transaction, references: Sequence[str]) -> datetime | None:
        """Tell until when an announced write of one of these may still act or be answered; None if none is open.

        One whose mirror needs a person is left out: nobody finds out what became of it.
        """
        open_writes = (
            select(func.max(announced.c.bound_at))
            .join(mirrors, mirrors.c.reference == announced.c.reference)
            .where(
                announced.c.reference.in_(references),
                announced.c.outcome.is_(None),
                mirrors.c.state.not_in([State.HELD, State.FAILED]),
            )
        )
        latest: datetime | None = tx.execute(open_writes).scalar_one()
        return latest

    @reads
    def creates_in_doubt(self, tx: Transaction, reference: str, slot: str) -> tuple[OpenWrite, ...]:
        """List a slot's creates that nobody answered, lapsed ones included: each may have made a record."""
        rows = tx.execute(_creates_in_doubt, {"of": reference, "in_slot": slot})
        return tuple(map(self._open_write, rows))

    @reads
    def may_have_the_last_word(self, tx: Transaction, reference: str, slot: str, operation: Operation) -> bool:
        """Tell whether a slot's write of this kind, answered or not, may have acted after all others that acted."""
        found = tx.execute(_last_word, {"of": reference, "in_slot": slot, "of_kind": operation})
        return bool(found.scalar_one())

    @reads
    def _claim(self, tx: Transaction, taken: _Taken, instance: str) -> Claim:
        row = taken.mirror
        reference = row.reference
        route = tx.execute(_phase, {"of_type": row.resource_type, "of": reference}).one_or_none()
        open_rows = tx.execute(_open_changes, {"of": reference}).all()
        deletes = [change for change in open_rows if change.kind == Kind.DELETE]
        versions = [change for change in open_rows if change.kind == Kind.VERSION]
        told_later = tx.execute(_told_later, {"of": reference, "applied": row.applied_version}).all()
        return Claim(
            reference=reference,
            token=row.token,
            instance=instance,
            hints=row.hints,
            starts=row.starts,
            attempts=row.attempts,
            claimed_at=taken.at,
            applied_version=row.applied_version,
            applied_updated=row.applied_updated,
            links=tuple(map(self._link, tx.execute(_links, {"of": reference}))),
            unresolved=tuple(map(self._open_write, tx.execute(_unresolved, {"of": reference}))),
            delete_hint=DeleteHint(max(change.received_at for change in deletes)) if deletes else None,
            open_versions=frozenset(change.version_id for change in versions),
            notified=self._bodies(reference, [*versions[:NOTIFIED_BODIES], *told_later]),
            sent_by_medplum=any(change.source != Source.READ for change in versions),
            absent_since=row.absent_since,
            released=bool(row.released),
            phase=Phase.OFF if route is None else Phase(route.phase),
            asked=row.due_at is not None and row.due_at <= taken.at,
            recovering=route is not None and bool(route.lost),
            reason=row.reason,
            active_version=None if route is None else route.mapping_version,
            shadowed=route is not None and bool(route.shadowed),
        )

    def _bodies(self, reference: str, versions: Sequence[Any]) -> dict[str, bytes]:
        opened = {
            change.version_id: self._opened(change.body, "changes", reference, change.version_id)
            for change in versions
            if change.body is not None
        }
        return {version: body for version, body in opened.items() if body is not None}

    def _open_write(self, row: Any) -> OpenWrite:
        return OpenWrite(
            id=row.id,
            slot=row.slot,
            collection=row.collection,
            operation=Operation(row.operation),
            bound=row.bound_at,
            fields=self._opened_fields(row),
            parents=row.parents,
            idempotency_key=row.idempotency_key,
            parent_keys=row.parent_keys or {},
        )

    def _opened_fields(self, row: Any) -> Mapping[str, object] | None:
        text = None if row.body is None else self._opened(row.body, "writes", row.reference, row.version_id or "")
        fields: Mapping[str, object] | None = None if text is None else json.loads(text)
        return fields

    def _link(self, row: Any) -> Link:
        baseline = (
            None
            if row.baseline is None
            else self._opened(row.baseline, "links", row.reference, row.slot, column="baseline")
        )
        return Link(
            id=row.id,
            reference=row.reference,
            slot=row.slot,
            collection=row.collection,
            keys=row.record_keys,
            state=LinkState(row.state),
            digest=row.digest,
            epoch=row.epoch,
            parents=row.parents,
            look_at=row.look_at,
            origin=Origin(row.origin),
            version_id=row.version_id,
            old_keys=row.old_keys,
            baseline=None if baseline is None else json.loads(baseline, parse_float=Decimal),
        )

    def _opened(self, sealed: bytes, table: str, reference: str, version: str, *, column: str = "body") -> bytes | None:
        """Open a body; None where no key does. A key that was taken away must not keep every mirror from its claim."""
        try:
            return self.sealer.open(sealed, table=table, reference=reference, version=version, column=column)
        except SealBroken:
            return None


def _refused(tx: Transaction, reference: str, *, alone: bool) -> NotClaimed:
    row = tx.execute(_why_not, {"of": reference}).one_or_none()
    if row is None:
        return NotClaimed(Refusal.UNKNOWN)
    times = [moment for moment in (row.due_at, row.look_at) if moment is not None]
    earliest = max(min(times), row.not_before or min(times)) if times else None
    reasons = (
        (row.state == State.HELD, NotClaimed(Refusal.HELD)),
        (row.lease_until is not None and row.lease_until > tx.now, NotClaimed(Refusal.LEASED, row.lease_until)),
        (earliest is not None and earliest > tx.now, NotClaimed(Refusal.NOT_YET, earliest)),
        (earliest is not None and not row.allowed, NotClaimed(Refusal.PAUSED)),
        (earliest is not None and row.starts > 0 and not alone, NotClaimed(Refusal.SUSPECT)),
    )
    return next((refusal for holds, refusal in reasons if holds), NotClaimed(Refusal.NOT_DUE))


def _note_death(tx: Transaction, reference: str, token: int) -> None:
    tx.execute(
        insert(attempts).values(
            reference=reference, token=token, ended_at=tx.now, outcome="died", detail="the start had no end"
        )
    )
