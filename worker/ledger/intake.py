"""Hints in: rows for what is new, a mark on every mirror that has to be looked at, in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import JSON, Insert, Select, Text, Update, and_, bindparam, case, exists, func, or_, select, update
from sqlalchemy import cast as sql_cast

from worker.ledger.database import Transaction, writes
from worker.ledger.prepared import Prepared, instant
from worker.ledger.statements import NOW, OF, add_up, among, dialect_of
from worker.ledger.store import Store
from worker.ledger.tables import Utc, changes, mirrors, pauses, routes
from worker.ledger.values import Accepted, Disposition, Hint, Kind, Phase, Source, State

NO_ROUTE = "no route for this resource type"

_routes = select(
    routes.c.resource_type,
    and_(
        routes.c.phase != Phase.PAUSED,
        ~exists(select(pauses.c.scope).where(or_(pauses.c.scope == "*", pauses.c.scope == routes.c.resource_type))),
    ).label("runs"),
)


@cache
def _lock(on_sqlite: bool) -> Select[Any]:
    found = select(
        mirrors.c.reference,
        mirrors.c.hints,
        mirrors.c.due_at,
        mirrors.c.not_before,
        mirrors.c.lease_until,
        mirrors.c.state,
        mirrors.c.applied_version,
    ).where(among(mirrors.c.reference, "references", on_sqlite=on_sqlite))
    return found if on_sqlite else found.order_by(mirrors.c.reference).with_for_update()


_untold = and_(changes.c.source == Source.READ.value, changes.c.receipts == 0)  # a read found it, and nobody told yet


@cache
def _known_versions(on_sqlite: bool) -> Select[Any]:
    """Look each pair of reference and version up; to look for either in a list of its own crosses the two lists."""
    pairs = bindparam("pairs", type_=JSON)
    asked: Any
    reference: Any
    version: Any
    if on_sqlite:
        asked = func.json_each(pairs).table_valued("value")
        reference, version = (func.json_extract(asked.c.value, f"$[{place}]") for place in (0, 1))
    else:
        asked = func.json_array_elements(pairs).table_valued("value")
        reference, version = (sql_cast(asked.c.value.op("->>")(place), Text) for place in (0, 1))
    both = and_(changes.c.reference == reference, changes.c.version_id == version)
    known = select(changes.c.reference, changes.c.version_id, _untold.label("untold"))
    return known.select_from(asked).join(changes, both)


_references: Any = bindparam("references", expanding=True)
_open_deletes = select(changes.c.reference).where(
    changes.c.reference.in_(_references), changes.c.kind == Kind.DELETE, changes.c.disposition.is_(None)
)
_skipped_deletes = select(changes.c.reference).where(
    changes.c.reference.in_(_references),
    changes.c.kind == Kind.DELETE,
    changes.c.disposition == Disposition.SKIPPED,
    changes.c.rule == NO_ROUTE,
)
_repeat_delete = (
    update(changes)
    .where(changes.c.reference == OF, changes.c.kind == Kind.DELETE, changes.c.disposition.is_(None))
    .values(receipts=changes.c.receipts + bindparam("times"), received_at=NOW)
)
_tell = (
    update(changes)
    .where(changes.c.reference == OF, changes.c.version_id == bindparam("told_version"), _untold)
    .values(receipts=1, received_at=NOW, body=bindparam("told_body"))
)
_look = (  # where an attempt is under way, its end leaves the mirror due: it may have read this very version
    update(mirrors)
    .where(mirrors.c.reference == OF)
    .values(
        hints=mirrors.c.hints + 1,
        look_at=case((mirrors.c.state == State.CURRENT.value, NOW), else_=mirrors.c.look_at),
    )
)
_held = mirrors.c.state == State.HELD.value
_anew = or_(mirrors.c.state == State.FAILED.value, mirrors.c.state == State.WAITING.value)


def _mark(_: bool) -> Update:
    return (
        update(mirrors)
        .where(mirrors.c.reference == OF)
        .values(
            hints=mirrors.c.hints + bindparam("times"),
            due_at=case((_held, mirrors.c.due_at), else_=func.coalesce(mirrors.c.due_at, NOW)),
            queued_at=func.coalesce(bindparam("queued", type_=Utc), mirrors.c.queued_at),
            state=case((_held, mirrors.c.state), else_=State.DUE.value),
            attempts=case((_anew, 0), else_=mirrors.c.attempts),
            since=case((or_(_held, mirrors.c.state == State.DUE.value), mirrors.c.since), else_=NOW),
            waiting_for=case((_anew, None), else_=mirrors.c.waiting_for),
        )
    )


_mark_due = Prepared(_mark)
_blank_mirrors = Prepared(lambda on_sqlite: dialect_of(on_sqlite).insert(mirrors).on_conflict_do_nothing())
_due_mirrors = Prepared(lambda _: mirrors.insert())
_new_changes = Prepared(lambda _: changes.insert())


@cache
def _skipped_change(on_sqlite: bool) -> Insert:
    made: Insert = dialect_of(on_sqlite).insert(changes).on_conflict_do_nothing()
    return made.returning(changes.c.source, changes.c.resource_type)


@dataclass(frozen=True, slots=True)
class _Mirror:
    """What intake has to know of a mirror; as it is here, one that is not there yet."""

    hints: int = 0
    due_at: datetime | None = None
    not_before: datetime | None = None
    lease_until: datetime | None = None
    state: str = State.CURRENT.value
    applied_version: str | None = None

    def wakes(self) -> bool:
        return self.due_at is None and self.state != State.HELD

    def runs(self, now: datetime) -> bool:
        """Say whether a worker that comes at once would not be sent away."""
        return all(moment is None or moment <= now for moment in (self.not_before, self.lease_until))


_NONE_YET = _Mirror()


class Intake(Store):
    """The verb that takes hints in."""

    @writes
    def accept(self, tx: Transaction, hints: Sequence[Hint], *, ring_most: int = 0) -> Accepted:
        """Store hints, at most a few hundred at a time, and mark their mirrors due.

        A version that is known makes no second row; it still wakes its mirror, unless it is the one that was applied.
        Where a read had found it before, its body is kept on its row, once, and of an applied one the mirror takes a
        look: the read may have lacked what the notification carries.
        A delete hint that is open already is counted on its row. Of the mirrors that woke and may be worked on at once
        at most `ring_most` are marked as queued: the caller rings for those, and dispatch finds the others, and in time
        also those for which nobody rang. Nobody rings for a delete where nothing is applied: such ids can be made up.

        Raises:
            LedgerUnavailable: nothing was stored; the sender has to come again.
        """
        runs = {row.resource_type: bool(row.runs) for row in tx.execute(_routes)}
        ours = [hint for hint in hints if hint.resource_type in runs]
        others = [hint for hint in hints if hint.resource_type not in runs]
        inserted, woken, queued = self._take(tx, ours, runs, ring_most) if ours else (0, [], [])
        inserted += self._skip(tx, others) if others else 0
        return Accepted(inserted=inserted, repeated=len(hints) - inserted, woken=tuple(woken), queued=tuple(queued))

    def _take(
        self, tx: Transaction, hints: Sequence[Hint], runs: Mapping[str, bool], ring_most: int
    ) -> tuple[int, list[str], list[str]]:
        held = _lock_mirrors(tx, sorted({hint.reference for hint in hints}))  # two batches must lock in one order
        known = _known(tx, hints)
        now = instant(tx, tx.now)
        counts: Counter[str] = Counter()
        repeated_deletes: Counter[str] = Counter()
        rows: list[dict[str, Any]] = []
        for hint in hints:
            mirror = held.get(hint.reference, _NONE_YET)
            if known.get((hint.reference, hint.version_id)) and hint.body is not None and self.sealer.can_seal:
                known[hint.reference, hint.version_id] = False
                self._compare_later(tx, hint, looks=hint.version_id == mirror.applied_version)
            if hint.version_id is not None and hint.version_id == mirror.applied_version:
                continue
            counts[hint.reference] += 1
            if (hint.reference, hint.version_id) in known:
                repeated_deletes[hint.reference] += hint.version_id is None
                continue
            known[hint.reference, hint.version_id] = False
            number = mirror.hints + counts[hint.reference]
            rows.append(self._row(hint, number, now, instant(tx, hint.last_updated)))
        _new_changes.run(tx, rows)  # the mirrors' locks are held: nobody else can have made these rows meanwhile
        add_up(tx, "accepted", Counter((row["source"], row["resource_type"]) for row in rows))
        for reference, times in (+repeated_deletes).items():
            tx.execute(_repeat_delete, {"of": reference, "times": times, "now": tx.now})
        woken = [name for name in counts if held.get(name, _NONE_YET).wakes()]
        told = {hint.reference for hint in hints if hint.version_id is not None}
        worth = (name for name in woken if name in told or held.get(name, _NONE_YET).applied_version is not None)
        queued = [name for name in worth if runs[_type(name)] and held.get(name, _NONE_YET).runs(tx.now)][:ring_most]
        _wake(tx, counts, held, frozenset(queued))
        return len(rows), woken, queued

    def _skip(self, tx: Transaction, hints: Sequence[Hint]) -> int:
        """Settle what nobody maps, at once and without its body. A delete is easily forged: repeats are nothing."""
        settled = {"body": None, "disposition": Disposition.SKIPPED, "rule": NO_ROUTE, "settled_at": tx.now}
        deleted = sorted({hint.reference for hint in hints if hint.version_id is None})
        known = set(tx.execute(_skipped_deletes, {"references": deleted}).scalars()) if deleted else set()
        rows = {
            (hint.reference, hint.version_id): self._row(hint, 0, tx.now, hint.last_updated) | settled
            for hint in hints
            if hint.version_id is not None or hint.reference not in known
        }
        if not rows:
            return 0
        made = tx.execute(_skipped_change(tx.on_sqlite), list(rows.values())).all()
        add_up(tx, "accepted", Counter((row.source, row.resource_type) for row in made))
        return len(made)

    def _compare_later(self, tx: Transaction, hint: Hint, *, looks: bool) -> None:
        """Keep what the notification carries of a version that a read had found: the next attempt compares the two."""
        told = {"of": hint.reference, "told_version": hint.version_id, "told_body": self._sealed(hint), "now": tx.now}
        tx.execute(_tell, told)
        if looks:
            tx.execute(_look, {"of": hint.reference, "now": tx.now})

    def _sealed(self, hint: Hint) -> bytes | None:
        if hint.body is None or not self.sealer.can_seal:
            return None
        return self.sealer.seal(
            hint.body, table="changes", reference=hint.reference, version=hint.version_id or "", column="body"
        )

    def _row(self, hint: Hint, number: int, now: Any, last_updated: Any) -> dict[str, Any]:
        return {
            "reference": hint.reference,
            "resource_type": hint.resource_type,
            "kind": Kind.DELETE.value if hint.version_id is None else Kind.VERSION.value,
            "version_id": hint.version_id,
            "source": hint.source.value,
            "interaction": hint.interaction,
            "subscription": hint.subscription,
            "last_updated": last_updated,
            "author": hint.author,
            "trace_id": hint.trace_id,
            "accepted_at": now,
            "received_at": now,
            "receipts": 1,
            "hint": number,
            "body": self._sealed(hint),
        }


def _type(reference: str) -> str:
    return reference.partition("/")[0]


def _lock_mirrors(tx: Transaction, references: Sequence[str]) -> dict[str, _Mirror]:
    """Hold the mirrors in the order of their references.

    Missing ones are made first, where others write too: there has to be something to hold. SQLite has one writer.
    """
    lock = _lock(tx.on_sqlite)
    held = _mirrors(tx.execute(lock, {"references": references}))
    missing = [reference for reference in references if reference not in held]
    if tx.on_sqlite or not missing:
        return held
    _blank_mirrors.run(tx, [_new(tx, name, state=State.CURRENT.value) for name in missing])
    return held | _mirrors(tx.execute(lock, {"references": missing}))


def _mirrors(rows: Iterable[Any]) -> dict[str, _Mirror]:
    return {reference: _Mirror(*known) for reference, *known in rows}


def _new(tx: Transaction, reference: str, **columns: Any) -> dict[str, Any]:
    return {"reference": reference, "resource_type": _type(reference), "since": instant(tx, tx.now), **columns}


def _wake(tx: Transaction, counts: Mapping[str, int], held: Mapping[str, _Mirror], queued: Container[str]) -> None:
    """Count the hints on their mirrors and mark them due; those that are not there yet are made like that."""
    now = instant(tx, tx.now)
    made, marked = [], []
    for reference, count in counts.items():
        queued_at = now if reference in queued else None
        if reference in held:
            marked.append({"of": reference, "times": count, "now": now, "queued": queued_at})
        else:
            due = {"state": State.DUE.value, "hints": count, "due_at": now, "queued_at": queued_at}
            made.append(_new(tx, reference, **due))
    _due_mirrors.run(tx, made)
    _mark_due.run(tx, marked)


def _known(tx: Transaction, hints: Iterable[Hint]) -> dict[tuple[str, str | None], bool]:
    """List what is in the ledger of these hints: versions, and delete hints that are open.

    True stands with a version that a read found and that no notification told of yet.
    """
    pairs = {(hint.reference, hint.version_id) for hint in hints if hint.version_id is not None}
    deletes = sorted({hint.reference for hint in hints if hint.version_id is None})
    known: dict[tuple[str, str | None], bool] = {}
    if pairs:
        found = tx.execute(_known_versions(tx.on_sqlite), {"pairs": sorted(pairs)})
        known |= {(row.reference, row.version_id): bool(row.untold) for row in found}
    if deletes:
        known |= {(each, None): False for each in tx.execute(_open_deletes, {"references": deletes}).scalars()}
    return known
