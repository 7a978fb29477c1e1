"""Hints in: rows for what is new, a mark on every mirror that has to be looked at, in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Insert, bindparam, case, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from worker.ledger.database import Transaction, writes
from worker.ledger.statements import NOW, OF, add_up, routed_types
from worker.ledger.store import Store
from worker.ledger.tables import changes, mirrors
from worker.ledger.values import Accepted, Disposition, Hint, Kind, State

NO_ROUTE = "no route for this resource type"

_references: Any = bindparam("references", expanding=True)
_lock = (
    select(mirrors.c.reference, mirrors.c.hints, mirrors.c.due_at, mirrors.c.state, mirrors.c.applied_version)
    .where(mirrors.c.reference.in_(_references))
    .order_by(mirrors.c.reference)
    .with_for_update()
)
_known_versions = select(changes.c.reference, changes.c.version_id).where(
    changes.c.reference.in_(_references), changes.c.version_id.in_(bindparam("versions", expanding=True))
)
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
_held = mirrors.c.state == State.HELD
_anew = mirrors.c.state.in_([State.FAILED, State.WAITING])
_mark_due = (
    update(mirrors)
    .where(mirrors.c.reference.in_(_references))
    .values(
        hints=mirrors.c.hints + bindparam("times"),
        due_at=case((_held, mirrors.c.due_at), else_=func.coalesce(mirrors.c.due_at, NOW)),
        state=case((_held, mirrors.c.state), else_=State.DUE),
        attempts=case((_anew, 0), else_=mirrors.c.attempts),
        since=case((or_(_held, mirrors.c.state == State.DUE), mirrors.c.since), else_=NOW),
        waiting_for=case((_anew, None), else_=mirrors.c.waiting_for),
    )
)


@cache
def _new_mirror(on_sqlite: bool) -> Insert:
    dialect: Any = sqlite if on_sqlite else postgresql
    made: Insert = dialect.insert(mirrors).on_conflict_do_nothing()
    return made


@cache
def _new_change(on_sqlite: bool) -> Insert:
    dialect: Any = sqlite if on_sqlite else postgresql
    made: Insert = dialect.insert(changes).on_conflict_do_nothing()
    return made.returning(changes.c.source, changes.c.resource_type)


class Intake(Store):
    """The verb that takes hints in."""

    @writes
    def accept(self, tx: Transaction, hints: Sequence[Hint]) -> Accepted:
        """Store hints, at most a few hundred at a time, and mark their mirrors due.

        A version that is known makes no second row; it still wakes its mirror, unless it is the one that was applied.
        A delete hint that is open already is counted on its row.

        Raises:
            LedgerUnavailable: nothing was stored; the sender has to come again.
        """
        routed = routed_types(tx)
        ours = [hint for hint in hints if hint.resource_type in routed]
        others = [hint for hint in hints if hint.resource_type not in routed]
        inserted, woken = self._take(tx, ours) if ours else (0, ())
        inserted += self._skip(tx, others) if others else 0
        return Accepted(inserted=inserted, repeated=len(hints) - inserted, woken=woken)

    def _take(self, tx: Transaction, hints: Sequence[Hint]) -> tuple[int, tuple[str, ...]]:
        references = sorted({hint.reference for hint in hints})  # sorted: two batches must lock in one order
        held = _lock_mirrors(tx, references)
        known = _known(tx, hints)
        counts: Counter[str] = Counter()
        repeated_deletes: Counter[str] = Counter()
        rows: list[dict[str, Any]] = []
        for hint in hints:
            if hint.version_id is not None and hint.version_id == held[hint.reference].applied_version:
                continue
            counts[hint.reference] += 1
            if (hint.reference, hint.version_id) in known:
                repeated_deletes[hint.reference] += hint.version_id is None
                continue
            known.add((hint.reference, hint.version_id))
            rows.append(self._row(tx, hint, held[hint.reference].hints + counts[hint.reference]))
        if rows:  # the mirrors' locks are held: nobody else can have made these rows since they were looked for
            tx.execute(changes.insert(), rows)
            add_up(tx, "accepted", Counter((row["source"], row["resource_type"]) for row in rows))
        for reference, times in (+repeated_deletes).items():
            tx.execute(_repeat_delete, {"of": reference, "times": times, "now": tx.now})
        for times in sorted(set(counts.values())):
            marked = [reference for reference, count in counts.items() if count == times]
            tx.execute(_mark_due, {"references": marked, "times": times, "now": tx.now})
        return len(rows), tuple(
            reference for reference in counts if held[reference].due_at is None and held[reference].state != State.HELD
        )

    def _skip(self, tx: Transaction, hints: Sequence[Hint]) -> int:
        """Settle what nobody maps, at once and without its body. Repeated deletes add nothing: anybody can forge them."""
        settled = {"body": None, "disposition": Disposition.SKIPPED, "rule": NO_ROUTE, "settled_at": tx.now}
        deleted = sorted({hint.reference for hint in hints if hint.version_id is None})
        known = set(tx.execute(_skipped_deletes, {"references": deleted}).scalars()) if deleted else set()
        rows = {
            (hint.reference, hint.version_id): self._row(tx, hint, 0) | settled
            for hint in hints
            if hint.version_id is not None or hint.reference not in known
        }
        if not rows:
            return 0
        made = tx.execute(_new_change(tx.on_sqlite), list(rows.values())).all()
        add_up(tx, "accepted", Counter((row.source, row.resource_type) for row in made))
        return len(made)

    def _row(self, tx: Transaction, hint: Hint, number: int) -> dict[str, Any]:
        body = None
        if hint.body is not None and self.sealer.can_seal:
            body = self.sealer.seal(
                hint.body, table="changes", reference=hint.reference, version=hint.version_id or "", column="body"
            )
        return {
            "reference": hint.reference,
            "resource_type": hint.resource_type,
            "kind": Kind.DELETE if hint.version_id is None else Kind.VERSION,
            "version_id": hint.version_id,
            "source": hint.source,
            "interaction": hint.interaction,
            "subscription": hint.subscription,
            "last_updated": hint.last_updated,
            "author": hint.author,
            "trace_id": hint.trace_id,
            "accepted_at": tx.now,
            "received_at": tx.now,
            "receipts": 1,
            "hint": number,
            "body": body,
        }


def _lock_mirrors(tx: Transaction, references: Sequence[str]) -> dict[str, Any]:
    """Hold the mirrors in the order of their references; those that are missing are made first."""
    held = {row.reference: row for row in tx.execute(_lock, {"references": references})}
    missing = [reference for reference in references if reference not in held]
    if not missing:
        return held
    tx.execute(
        _new_mirror(tx.on_sqlite),
        [
            {"reference": name, "resource_type": name.partition("/")[0], "state": State.CURRENT, "since": tx.now}
            for name in missing
        ],
    )
    return held | {row.reference: row for row in tx.execute(_lock, {"references": missing})}


def _known(tx: Transaction, hints: Iterable[Hint]) -> set[tuple[str, str | None]]:
    """List what is in the ledger of these hints: versions, and delete hints that are open."""
    versions = [hint for hint in hints if hint.version_id is not None]
    deletes = sorted({hint.reference for hint in hints if hint.version_id is None})
    known: set[tuple[str, str | None]] = set()
    if versions:
        asked = {
            "references": sorted({hint.reference for hint in versions}),
            "versions": sorted({hint.version_id for hint in versions if hint.version_id is not None}),
        }
        known |= {(row.reference, row.version_id) for row in tx.execute(_known_versions, asked)}
    if deletes:
        known |= {(reference, None) for reference in tx.execute(_open_deletes, {"references": deletes}).scalars()}
    return known
