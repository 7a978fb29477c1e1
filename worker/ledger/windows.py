"""Windows: which time of each route is proven by catch-up, and where the reading of the rest stands. `protocol.md` 10.

A window without a reason is its route's own: it grows with each reading, and its end is the watermark. One with a
reason is time in doubt. Rows, due marks and the position of a reading commit together; what moves a position names the
one that it found, so that of two who read the same window one goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, or_, select, true, update

from worker.errors import LedgerError
from worker.ledger.database import Transaction, reads, writes
from worker.ledger.intake import Intake
from worker.ledger.statements import UNSETTLED, among, insert
from worker.ledger.tables import changes, jobs, links, mirrors, pauses, routes, sweeps, windows
from worker.ledger.values import Hint, Kind, LinkState, Phase, State

ASKED_FOR = "a person asked for it"
UNREAD_AGAIN = timedelta(hours=1)  # until what could not be read whole is tried once more
_READ = (Phase.LIVE, Phase.SHADOW, Phase.PAUSED)


class MovedOn(LedgerError):
    """Somebody else has moved this reading on; nothing was stored."""


@dataclass(frozen=True, slots=True)
class Window:
    """A time that is to be read; `from_at` is where it is not proven yet, and no `to_at` goes on to the end."""

    id: int
    resource_type: str
    from_at: datetime
    to_at: datetime | None
    reason: str | None
    position: str | None = field(default=None, repr=False)
    asked_at: datetime | None = None
    found: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """The next resources of a sweep, and where it stands once they are taken."""

    resource_type: str
    references: tuple[str, ...]
    links: int
    after: int
    last: int


class Windows(Intake):
    """The verbs of catch-up and of the sweep."""

    @reads
    def types_caught_up(self, tx: Transaction) -> tuple[str, ...]:
        """List the types that catch-up reads: those whose route is live, shadow or paused."""
        return _types(tx)

    @reads
    def types_to_catch_up(self, tx: Transaction) -> tuple[str, ...]:
        """List the types that have a window to read now, or a sweep that a person asked for.

        A sweep that nobody asked for goes on where the type is read anyhow: that is often enough for its days.
        """
        types = _types(tx)
        due = set(tx.execute(select(windows.c.resource_type).where(_READABLE, _due(tx)).distinct()).scalars())
        known = set(tx.execute(select(windows.c.resource_type).where(windows.c.reason.is_(None))).scalars())
        hurried = set(tx.execute(select(sweeps.c.resource_type).where(_HURRIED)).scalars())
        return tuple(each for each in types if each in due or each not in known or each in hurried)

    @writes
    def next_window(self, tx: Transaction, resource_type: str) -> Window | None:
        """Give what is to be read next of a type: first the route's own window, then the oldest time in doubt."""
        _begin_own(tx, resource_type)
        mine = windows.c.resource_type == resource_type, _READABLE, _due(tx)
        row = tx.execute(select(windows).where(*mine).order_by(*_OWN_FIRST).limit(1)).one_or_none()
        return None if row is None else _window(row)

    @reads
    def unread_windows(self, tx: Transaction, resource_type: str) -> tuple[Window, ...]:
        """Give everything of a type that is not proven, the route's own window first, whenever it is due."""
        mine = windows.c.resource_type == resource_type, _READABLE
        return tuple(map(_window, tx.execute(select(windows).where(*mine).order_by(*_OWN_FIRST))))

    @reads
    def watermark(self, tx: Transaction, resource_type: str) -> datetime | None:
        """Tell until when a route's time is proven; None where there is no such route."""
        own = windows.c.resource_type == resource_type, windows.c.reason.is_(None)
        proven = tx.execute(select(windows.c.to_at).where(*own)).scalar_one_or_none()
        if proven is None:
            registered = select(routes.c.registered_at).where(routes.c.resource_type == resource_type)
            proven = tx.execute(registered).scalar_one_or_none()
        return proven

    @writes
    def doubt(self, tx: Transaction, resource_type: str, from_at: datetime, to_at: datetime, reason: str) -> bool:
        """Put a time in doubt: it is read, and counts as not proven until then. False where it was in doubt already."""
        return _doubt(tx, resource_type, from_at, to_at, reason)

    @writes
    def doubt_until_now(self, tx: Transaction, resource_type: str, from_at: datetime, reason: str) -> datetime:
        """Do the same until now, which is returned."""
        _doubt(tx, resource_type, from_at, tx.now, reason)
        return tx.now

    @writes
    def ask_for_catch_up(self, tx: Transaction, types: Sequence[str], since: datetime | None) -> None:
        """Have these types read now, by a person's wish: what is not proven, and from `since` on also what is."""
        for each in sorted(types):
            own = _begin_own(tx, each)
            if since is not None and since < own:
                _doubt(tx, each, since, own, ASKED_FOR)
        mine = windows.c.resource_type.in_(sorted(types)), _READABLE
        tx.execute(update(windows).where(*mine).values(next_at=None))

    @writes
    def take_found(
        self,
        tx: Transaction,
        window: Window,
        position: str,
        hints: Sequence[Hint],
        *,
        asked_at: datetime,
        due_most: int | None = None,
    ) -> tuple[Window, int] | None:
        """Take what a page brought, as far as it is not settled, and move the position; at most a few hundred hints.

        `asked_at`: Medplum's time when it answered; the first one is the reading's. Returns the window as it is then
        and how many hints were taken; None, and nothing is stored, where something would have to be taken while
        `due_most` mirrors are due.

        Raises:
            MovedOn: somebody else reads the same window.
        """
        chosen = _sift(tx, hints)
        if chosen and due_most is not None and _backlog(tx, due_most) >= due_most:
            return None
        began = window.asked_at or asked_at
        _move(tx, window, position=position, asked_at=began, found=windows.c.found + len(chosen))
        if chosen:
            self._take(tx, chosen, {window.resource_type: False}, 0)
        after = Window(
            window.id,
            window.resource_type,
            window.from_at,
            window.to_at,
            window.reason,
            position,
            began,
            window.found + len(chosen),
        )
        return after, len(chosen)

    @reads
    def unsettled(self, tx: Transaction, hints: Sequence[Hint]) -> list[Hint]:
        """Say which of these `take_found` would take, and do nothing."""
        return _sift(tx, hints)

    @writes
    def end_reading(self, tx: Transaction, window: Window, *, proven_to: datetime, again_s: float) -> bool:
        """Note that a window was read through, and how far that proves it. Returns whether that is all of it.

        A route's own window grows, and is read again in `again_s` seconds; of another one the rest is read again as
        soon as that can prove it.

        Raises:
            MovedOn: somebody else reads the same window.
        """
        told: dict[str, Any] = {"position": None, "asked_at": None}
        if window.to_at is None:
            grown = case((windows.c.to_at < proven_to, proven_to), else_=windows.c.to_at)
            _move(tx, window, **told, to_at=grown, proven_at=tx.now, next_at=tx.now + timedelta(seconds=again_s))
            return True
        if proven_to >= window.to_at:
            _move(tx, window, **told, proven_to=window.to_at, proven_at=tx.now, next_at=None)
            return True
        rest = window.to_at - proven_to
        _move(tx, window, **told, proven_to=max(window.from_at, proven_to), next_at=tx.now + rest)
        return False

    @writes
    def put_off(self, tx: Transaction, window: Window, *, after_s: float) -> None:
        """Let a reading rest where it stands."""
        tx.execute(update(windows).where(windows.c.id == window.id).values(next_at=tx.now + timedelta(seconds=after_s)))

    @writes
    def leave_unread(self, tx: Transaction, window: Window, moment: datetime, why: str) -> bool:
        """Note that one millisecond cannot be read whole: it stays in doubt and is shown, and tried again in an hour.

        Returns whether there is more of the window than that millisecond: then its reading goes on.
        """
        if window.from_at == window.to_at == moment:
            again = {"position": None, "asked_at": None, "next_at": tx.now + UNREAD_AGAIN}
            _move(tx, window, **again)
            return False
        if _doubt(tx, window.resource_type, moment, moment, why):
            mine = (
                windows.c.resource_type == window.resource_type,
                windows.c.from_at == moment,
                windows.c.to_at == moment,
            )
            tx.execute(update(windows).where(*mine, windows.c.reason == why).values(next_at=tx.now + UNREAD_AGAIN))
        return True

    @writes
    def turn_over(self, tx: Transaction, name: str, outcome: str) -> None:
        """Note how a turn ended, and let the next one begin whenever it likes."""
        ended = {"ended_at": tx.now, "next_at": tx.now, "outcome": outcome}
        tx.execute(update(jobs).where(jobs.c.name == name).values(**ended))

    @writes
    def begin_sweep(self, tx: Transaction, types: Sequence[str]) -> None:
        """Have the known ids of these types read back at once; a round that is under way goes on from where it is."""
        for each in sorted(types):
            row = tx.execute(select(sweeps).where(sweeps.c.resource_type == each)).one_or_none()
            if row is None or row.ended_at is not None:
                _begin_round(tx, each)
        tx.execute(update(sweeps).where(sweeps.c.resource_type.in_(sorted(types))).values(hurried=True))

    @writes
    def next_batch(self, tx: Transaction, resource_type: str, *, limit: int, over_s: float) -> Batch | None:
        """Give the next resources of a type's sweep, if it is their time: a round takes `over_s` seconds."""
        row = tx.execute(select(sweeps).where(sweeps.c.resource_type == resource_type)).one_or_none()
        if not _sweep_is_due(tx, resource_type, row, over_s, limit=limit):
            return None
        if row is None or row.ended_at is not None:
            _begin_round(tx, resource_type)
            return None  # it has just begun: nothing of it is due yet
        beyond = links.c.id > row.position, links.c.resource_type == resource_type, _KNOWN
        found = tx.execute(select(links.c.id, links.c.reference).where(*beyond).order_by(links.c.id).limit(limit)).all()
        if not found:
            mine = sweeps.c.resource_type == resource_type
            tx.execute(update(sweeps).where(mine).values(ended_at=tx.now, hurried=False))
            return None
        references = tuple(dict.fromkeys(each.reference for each in found))
        return Batch(resource_type, references, len(found), row.position, found[-1].id)

    @writes
    def take_swept(
        self, tx: Transaction, batch: Batch, hints: Sequence[Hint], *, due_most: int | None = None
    ) -> int | None:
        """Take what reading a batch back has shown, and move the sweep on. Returns how many hints were taken.

        None, and nothing is stored, where something would have to be taken while `due_most` mirrors are due.

        Raises:
            MovedOn: somebody else sweeps the same type.
        """
        chosen = _sift(tx, hints)
        if chosen and due_most is not None and _backlog(tx, due_most) >= due_most:
            return None
        mine = sweeps.c.resource_type == batch.resource_type, sweeps.c.position == batch.after
        counted = {"read": sweeps.c.read + batch.links, "found": sweeps.c.found + len(chosen)}
        if not tx.execute(update(sweeps).where(*mine).values(position=batch.last, **counted)).rowcount:
            raise MovedOn(f"somebody else sweeps {batch.resource_type}")
        if chosen:
            self._take(tx, chosen, {batch.resource_type: False}, 0)
        return len(chosen)

    @reads
    def sweep_rounds(self, tx: Transaction) -> dict[str, dict[str, Any]]:
        """Tell how far the sweep of each type is."""
        return {
            row.resource_type: {
                "total": row.total,
                "read": row.read,
                "found": row.found,
                "ended": row.ended_at is not None,
            }
            for row in tx.execute(select(sweeps).order_by(sweeps.c.resource_type))
        }


_READABLE = or_(windows.c.proven_at.is_(None), windows.c.reason.is_(None))
_OWN_FIRST = (windows.c.reason.is_not(None), windows.c.from_at, windows.c.id)
_KNOWN = links.c.state != LinkState.TOMBSTONE
_HURRIED = and_(sweeps.c.hurried, sweeps.c.ended_at.is_(None))


def _due(tx: Transaction) -> ColumnElement[bool]:
    return or_(windows.c.next_at.is_(None), windows.c.next_at <= tx.now)


def _types(tx: Transaction) -> tuple[str, ...]:
    running = select(routes.c.resource_type).where(routes.c.phase.in_(_READ))
    return tuple(sorted(tx.execute(running).scalars()))


def _window(row: Any) -> Window:
    own = row.reason is None
    return Window(
        id=row.id,
        resource_type=row.resource_type,
        from_at=row.to_at if own else row.proven_to or row.from_at,
        to_at=None if own else row.to_at,
        reason=row.reason,
        position=row.position,
        asked_at=row.asked_at,
        found=row.found,
    )


def _begin_own(tx: Transaction, resource_type: str) -> datetime:
    """See that a route has its own window, empty and so proven where it begins; tell where that ends."""
    mine = windows.c.resource_type == resource_type, windows.c.reason.is_(None)
    ends = tx.execute(select(windows.c.to_at).where(*mine)).scalar_one_or_none()
    if ends is None:
        registered = select(routes.c.registered_at).where(routes.c.resource_type == resource_type)
        began = tx.execute(registered).scalar_one_or_none() or tx.now
        row = {"resource_type": resource_type, "from_at": began, "to_at": began, "proven_at": tx.now}
        tx.execute(insert(tx, windows).values(**row, created_at=tx.now).on_conflict_do_nothing())
        ends = tx.execute(select(windows.c.to_at).where(*mine)).scalar_one()
    found: datetime = ends
    return found


def _doubt(tx: Transaction, resource_type: str, from_at: datetime, to_at: datetime, reason: str) -> bool:
    """Insert a window, or let one of the same reason that it goes on from last longer. A reading under way stays."""
    alike = windows.c.resource_type == resource_type, windows.c.reason == reason, windows.c.proven_at.is_(None)
    met = windows.c.from_at <= from_at, windows.c.to_at >= from_at
    known = tx.execute(select(windows).where(*alike, *met).order_by(windows.c.to_at.desc()).limit(1)).one_or_none()
    if known is not None and known.to_at >= to_at:
        return False
    if known is not None and known.position is None:
        tx.execute(update(windows).where(windows.c.id == known.id).values(to_at=to_at, next_at=None))
        return True
    begins = from_at if known is None else known.to_at
    row = {"resource_type": resource_type, "from_at": begins, "to_at": to_at, "reason": reason}
    tx.execute(insert(tx, windows).values(**row, created_at=tx.now))
    return True


def _move(tx: Transaction, window: Window, **values: Any) -> None:
    """Write down what a reader did, if the window is as that reader knows it: it may have grown meanwhile."""
    found = window.position
    stands = windows.c.position.is_(None) if found is None else windows.c.position == found
    ends = true() if window.to_at is None else windows.c.to_at == window.to_at
    if not tx.execute(update(windows).where(windows.c.id == window.id, stands, ends).values(**values)).rowcount:
        raise MovedOn(f"somebody else reads this window of {window.resource_type}")


def _backlog(tx: Transaction, most: int) -> int:
    """Count the mirrors that are due, up to so many, but for those of paused types: nobody works on these."""
    paused = set(tx.execute(select(pauses.c.scope)).scalars())
    stands = {row.resource_type for row in tx.execute(select(routes)) if row.phase in {Phase.PAUSED, Phase.OFF}}
    running = (
        [] if "*" in paused else sorted(set(tx.execute(select(routes.c.resource_type)).scalars()) - paused - stands)
    )
    due = select(mirrors.c.reference).where(mirrors.c.due_at.is_not(None), mirrors.c.resource_type.in_(running))
    return int(tx.execute(select(func.count()).select_from(due.limit(most).subquery())).scalar_one())


@dataclass(frozen=True, slots=True)
class _Settled:
    """What the ledger knows of some resources: where their mirrors stand, and what of them is not settled."""

    mirrors: Mapping[str, Any]
    versions: frozenset[tuple[str, str]]
    deletes: Mapping[str, tuple[Any, ...]]

    def needs_nothing(self, hint: Hint) -> bool:
        """Say whether a row is dropped: it is what was settled last, or it is on the list of its mirror already."""
        mirror = self.mirrors.get(hint.reference)
        if mirror is None:
            return False
        at_work = mirror.state != State.CURRENT  # due, waiting, failed or held because of what is known
        if hint.version_id is not None:
            return mirror.applied_version == hint.version_id or (
                at_work and (hint.reference, hint.version_id) in self.versions
            )
        settled = mirror.applied_version is None and mirror.applied_updated == hint.last_updated is not None
        return settled or (at_work and any(_tells_of(row, hint) for row in self.deletes.get(hint.reference, ())))


def _tells_of(row: Any, hint: Hint) -> bool:
    """Say whether a delete that is known was heard of at or after the deletion that was found."""
    return hint.last_updated is None or row.last_updated == hint.last_updated or row.received_at >= hint.last_updated


def _sift(tx: Transaction, hints: Sequence[Hint]) -> list[Hint]:
    """Leave out what is settled, and what a mirror that is not current is at work on, failed or held for already.

    Whoever read it again with each pass over the overlap would wake a failed mirror for nothing, without end.
    """
    if not hints:
        return []
    references = sorted({hint.reference for hint in hints})
    known = _settled(tx, references)
    return [hint for hint in hints if not known.needs_nothing(hint)]


def _settled(tx: Transaction, references: list[str]) -> _Settled:
    asked = {"references": references}
    held = select(mirrors.c.reference, mirrors.c.state, mirrors.c.applied_version, mirrors.c.applied_updated)
    rows = tx.execute(held.where(among(mirrors.c.reference, "references", on_sqlite=tx.on_sqlite)), asked)
    open_ones = select(
        changes.c.reference, changes.c.kind, changes.c.version_id, changes.c.last_updated, changes.c.received_at
    ).where(among(changes.c.reference, "references", on_sqlite=tx.on_sqlite), UNSETTLED)
    versions: set[tuple[str, str]] = set()
    deletes: dict[str, tuple[Any, ...]] = {}
    for row in tx.execute(open_ones, asked):
        if row.kind == Kind.DELETE:
            deletes[row.reference] = (*deletes.get(row.reference, ()), row)
        elif row.version_id is not None:
            versions.add((row.reference, row.version_id))
    return _Settled({row.reference: row for row in rows}, frozenset(versions), deletes)


def _begin_round(tx: Transaction, resource_type: str) -> None:
    total = tx.execute(select(func.count()).where(links.c.resource_type == resource_type, _KNOWN)).scalar_one()
    row = {"position": 0, "started_at": tx.now, "ended_at": None, "hurried": False, "total": total}
    anew = row | {"read": 0, "found": 0}
    statement = insert(tx, sweeps).values(resource_type=resource_type, **anew)
    tx.execute(statement.on_conflict_do_update(index_elements=["resource_type"], set_=anew))


def _sweep_is_due(tx: Transaction, resource_type: str, row: Any, over_s: float, *, limit: int = 100) -> bool:
    """Say whether a round is to begin, or so far behind its time that the next batch is worth a search."""
    if row is None:
        mine = and_(links.c.resource_type == resource_type, _KNOWN)
        return tx.execute(select(links.c.id).where(mine).limit(1)).first() is not None
    lasted_s = (tx.now - row.started_at).total_seconds()
    if row.ended_at is not None:
        return bool(lasted_s >= over_s)
    behind = row.total * min(1.0, lasted_s / over_s) - row.read
    return bool(row.hurried or lasted_s >= over_s or behind >= min(limit, max(1, row.total - row.read)))
