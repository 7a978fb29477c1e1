"""After a restore: of the ledger, of the legacy system, of Medplum. `protocol.md` 12.

What was believed of the time that is lost is given up here, in small transactions, while everything is paused or at a
low rate. Nothing is made true by this: the attempts that follow read and write as always.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import and_, case, delete, exists, func, or_, select, update

from worker.ledger.crosswalk import UNPROVED
from worker.ledger.database import Transaction, reads, writes
from worker.ledger.linking import NO_EPOCH
from worker.ledger.operate import EVERYTHING, note_action
from worker.ledger.statements import insert
from worker.ledger.store import Store
from worker.ledger.tables import attempts, changes, counters, links, mirrors, pauses, recoveries, routes, windows
from worker.ledger.tables import writes as announced
from worker.ledger.values import Operation, Phase, State

OURSELVES = "reverse-sync"
RUN_ON = timedelta(minutes=1)  # how long attempts may have gone on over a ledger that was set back, unnoticed
LOOKS_A_SECOND = 10  # of what is written again after a restore: live changes must not wait behind it


class Restored(StrEnum):
    """What was set back in time."""

    LEDGER = "ledger"
    LEGACY = "legacy"
    MEDPLUM = "medplum"


LOST = {
    Restored.LEDGER: "the ledger was set back",
    Restored.MEDPLUM: "Medplum was restored",
}
"""The reason of a window that is not proven because of a restore."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What only grows in a ledger, when it was counted, and when a person last said that it is the right one."""

    accepted: int
    writes: int
    changes: int
    at: datetime
    decided_at: datetime | None


@dataclass(frozen=True, slots=True)
class Mode:
    """One time after a restore that nobody has ended yet."""

    id: int
    kind: Restored
    since: datetime
    started_at: datetime
    who: str
    why: str | None


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is still in doubt while a mode is on."""

    creates: int  # announced, without an outcome
    windows: int  # not proven
    looks: int  # resources that are still to be looked at again
    unproved: int = 0  # held because of it: a person has to decide

    def __bool__(self) -> bool:
        return any((self.creates, self.windows, self.looks, self.unproved))


class Recovery(Store):
    """The verbs of `reverse-sync recovered` and of the witness."""

    @reads
    def counters(self, tx: Transaction) -> Counters:
        """Count what only ever grows. Whoever purges keeps the newest write and the newest change."""
        accepted = select(func.sum(counters.c.value)).where(counters.c.name == "accepted")
        decided = select(func.max(recoveries.c.started_at)).where(recoveries.c.kind == Restored.LEDGER)
        return Counters(
            int(tx.execute(accepted).scalar_one() or 0),
            tx.execute(select(func.max(announced.c.id))).scalar_one() or 0,
            tx.execute(select(func.max(changes.c.id))).scalar_one() or 0,
            tx.now,
            tx.execute(decided).scalar_one(),
        )

    @writes
    def stop_everything(self, tx: Transaction, why: str) -> bool:
        """Pause everything in this service's own name. Returns False where it has done so already.

        Where a person had paused everything, that person's pause goes on for each type: it outlasts ours.
        """
        _keep_apart(tx)
        paused = insert(tx, pauses).values(scope=EVERYTHING, who=OURSELVES, why=why, at=tx.now)
        if tx.execute(paused.on_conflict_do_nothing().returning(pauses.c.scope)).first() is None:
            return False
        note_action(tx, who=OURSELVES, action="pause", why=why, arguments={"scopes": [EVERYTHING]}, affected=1)
        return True

    @reads
    def paused_as_set_back(self, tx: Transaction) -> bool:
        """Tell whether everything is paused because the ledger was set back."""
        mine = select(pauses.c.at).where(pauses.c.scope == EVERYTHING, pauses.c.who == OURSELVES)
        return tx.execute(mine).first() is not None

    @reads
    def last_known(self, tx: Transaction) -> datetime | None:
        """Tell when the last attempt was made that stands in the ledger, leaving out what ran on after a restore."""
        stopped = tx.execute(
            select(pauses.c.at).where(pauses.c.scope == EVERYTHING, pauses.c.who == OURSELVES)
        ).scalar_one_or_none()
        before = (stopped or tx.now) - RUN_ON
        times = [
            tx.execute(select(func.max(column)).where(column < before)).scalar_one()
            for column in (attempts.c.ended_at, announced.c.announced_at)
        ]
        return max((moment for moment in times if moment is not None), default=None)

    @reads
    def modes(self, tx: Transaction) -> tuple[Mode, ...]:
        """List the recoveries that nobody has ended."""
        rows = tx.execute(select(recoveries).where(recoveries.c.ended_at.is_(None)).order_by(recoveries.c.id))
        return tuple(
            Mode(row.id, Restored(row.kind), row.since or row.started_at, row.started_at, row.who, row.why)
            for row in rows
        )

    @writes
    def begin_recovery(self, tx: Transaction, kind: Restored, since: datetime, *, who: str, why: str) -> int:
        """Start the time after a restore, with its windows that catch-up has to prove. Returns how many are new.

        Begun again while it lasts, it goes on from the earlier `since`.
        """
        open_ones = and_(recoveries.c.kind == kind, recoveries.c.ended_at.is_(None))
        known = tx.execute(select(func.min(recoveries.c.since)).where(open_ones)).scalar_one()
        tx.execute(update(recoveries).where(open_ones).values(ended_at=tx.now))
        begins = since if known is None else min(since, known)
        tx.execute(insert(tx, recoveries).values(kind=kind, since=begins, started_at=tx.now, who=who, why=why))
        new = kind in LOST and (known is None or since < known)
        made = _open_windows(tx, since, LOST[kind]) if new else 0
        named = {"restored": kind.value, "since": since.isoformat()}
        note_action(tx, who=who, action="recovered", why=why, arguments=named, affected=made)
        return made

    @writes
    def accept_ledger(self, tx: Transaction, *, who: str, why: str) -> None:
        """Note a person's word that this ledger is the right one as it stands, and end this service's own pause."""
        row = {"kind": Restored.LEDGER, "since": tx.now, "started_at": tx.now, "ended_at": tx.now}
        tx.execute(insert(tx, recoveries).values(**row, who=who, why=why))
        ended = _end_own_pause(tx)
        note_action(tx, who=who, action="recovered", why=why, arguments={"accept": True}, affected=ended)

    @writes
    def void_digests(self, tx: Transaction, *, after: int, limit: int) -> tuple[int, int | None]:
        """Void the digests of the next links by id: nothing is believed of what their records say.

        Returns how many there were, and where to go on; None at the end.
        """
        if after == 0:  # a create under way has no link yet that could be void
            under_way = announced.c.outcome.is_(None), announced.c.operation == Operation.CREATE
            tx.execute(update(announced).where(*under_way).values(link_epoch=NO_EPOCH))
        ids = tx.execute(select(links.c.id).where(links.c.id > after).order_by(links.c.id).limit(limit)).scalars().all()
        if not ids:
            return 0, None
        some = links.c.id > after, links.c.id <= ids[-1]
        voided = tx.execute(update(links).where(*some).values(digest=None, epoch=links.c.epoch + 1)).rowcount
        return int(voided), ids[-1]

    @writes
    def look_again(
        self, tx: Transaction, since: datetime, *, after: str, limit: int, in_s: float, forget_versions: bool
    ) -> tuple[int, str | None]:
        """Have the next resources by reference looked at again that were settled or written since then, at a low rate.

        They are looked at as what nobody asked for now, some each second from `in_s` seconds on, so that no change
        waits behind them. `forget_versions`: what Medplum calls a version of theirs may be another one now.
        Returns how many there were, and where to go on; None at the end.
        """
        settled = or_(mirrors.c.applied_at >= since, mirrors.c.last_write_at >= since)
        rest = select(mirrors.c.reference).where(mirrors.c.reference > after, settled, mirrors.c.state != State.HELD)
        chosen = tx.execute(rest.order_by(mirrors.c.reference).limit(limit)).scalars().all()
        forgotten: dict[str, Any] = {"applied_version": None, "applied_updated": None} if forget_versions else {}
        for number, reference in enumerate(chosen):
            look_at = tx.now + timedelta(seconds=in_s + number / LOOKS_A_SECOND)
            sooner = case((mirrors.c.look_at < look_at, mirrors.c.look_at), else_=look_at)
            mine = mirrors.c.reference == reference, mirrors.c.state != State.HELD
            tx.execute(update(mirrors).where(*mine).values(look_at=sooner, **forgotten))
        return len(chosen), chosen[-1] if len(chosen) == limit else None

    @reads
    def remaining(self, tx: Transaction) -> Remaining:
        """Count what is still in doubt after the restores whose time is not ended."""
        began = select(func.min(recoveries.c.started_at)).where(recoveries.c.ended_at.is_(None))
        started = tx.execute(began).scalar_one()
        if started is None:
            return Remaining(0, 0, 0)
        creates = announced.c.operation == Operation.CREATE, announced.c.outcome.is_(None)
        unproven = windows.c.proven_at.is_(None), windows.c.reason.in_(LOST.values())
        void = exists(select(links.c.id).where(links.c.reference == mirrors.c.reference, links.c.digest.is_(None)))
        looks = (
            mirrors.c.look_at.is_not(None),
            mirrors.c.state != State.HELD,
            or_(mirrors.c.applied_at < started, mirrors.c.applied_at.is_(None)),
            or_(void, mirrors.c.applied_version.is_(None)),
        )
        held = mirrors.c.state == State.HELD, mirrors.c.reason == UNPROVED
        return Remaining(*(_number(tx, *where) for where in (creates, unproven, looks, held)))

    @writes
    def end_recovery(self, tx: Transaction, *, who: str, why: str) -> int:
        """End every time after a restore, by a person's word. Returns how many there were."""
        ended = tx.execute(update(recoveries).where(recoveries.c.ended_at.is_(None)).values(ended_at=tx.now)).rowcount
        note_action(tx, who=who, action="recovered", why=why, arguments={"done": True}, affected=int(ended))
        return int(ended)

    @writes
    def end_own_pause(self, tx: Transaction, *, who: str, why: str) -> bool:
        """End the pause that this service made because the ledger was set back. Other people's pauses stand."""
        ended = _end_own_pause(tx)
        note_action(tx, who=who, action="resume", why=why, arguments={"scopes": [EVERYTHING]}, affected=ended)
        return bool(ended)


def _keep_apart(tx: Transaction) -> None:
    """Turn a person's pause of everything into pauses of each type, so that ours can begin and end beside them."""
    theirs = tx.execute(select(pauses).where(pauses.c.scope == EVERYTHING, pauses.c.who != OURSELVES)).one_or_none()
    if theirs is None:
        return
    for each in sorted(tx.execute(select(routes.c.resource_type)).scalars()):
        pause = insert(tx, pauses).values(scope=each, who=theirs.who, why=theirs.why, at=theirs.at)
        tx.execute(pause.on_conflict_do_nothing())
    tx.execute(delete(pauses).where(pauses.c.scope == EVERYTHING))


def _end_own_pause(tx: Transaction) -> int:
    return int(tx.execute(delete(pauses).where(pauses.c.scope == EVERYTHING, pauses.c.who == OURSELVES)).rowcount)


def _open_windows(tx: Transaction, since: datetime, reason: str) -> int:
    """Note for every route that runs that the time from then on is not proven."""
    running = select(routes.c.resource_type).where(routes.c.phase.not_in([Phase.OFF, Phase.RETIRED]))
    rows = [
        {"resource_type": each, "from_at": since, "to_at": tx.now, "reason": reason, "created_at": tx.now}
        for each in sorted(tx.execute(running).scalars())
    ]
    if rows:
        tx.execute(insert(tx, windows), rows)
    return len(rows)


def _number(tx: Transaction, *where: Any) -> int:
    return int(tx.execute(select(func.count()).where(*where)).scalar_one())
