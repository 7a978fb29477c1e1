"""Links that come from elsewhere than our own writes: taken over from the legacy system, or rebuilt after a restore.

A link is a claim on a patient's record. What stands against it is looked for under the lock of its mirror, in the
transaction that makes it; a link that is there is never changed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import exists, or_, select, update

from worker.ledger.database import Transaction, reads, writes
from worker.ledger.linking import PARENT, THERE, WAKE_CHILDREN, depend
from worker.ledger.statements import insert
from worker.ledger.store import Store
from worker.ledger.tables import links, mirrors, operator_actions
from worker.ledger.tables import writes as announced
from worker.ledger.values import Keys, LinkState, Operation, Origin, State, WriteOutcome

UNPROVED = "unproved link"  # the reason of a mirror that is held because its record could not be told for certain

OWNED = "the record is linked to"  # begins the words where another resource has it


class Verdict(StrEnum):
    """What becomes of a link that is asked for."""

    LINKED = "linked"  # or would be, where nothing is written
    KNOWN = "linked already"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class NewLink:
    """A legacy record that is said to be a resource's. The first of its keys names it."""

    reference: str
    slot: str
    collection: str
    keys: Keys = field(repr=False)
    parents: Mapping[str, str] = field(default_factory=dict)
    identified_key: str | None = None  # the key that the resource in Medplum carries already

    @property
    def key(self) -> str:
        return str(next(iter(self.keys.values())))


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, and of a refusal its reason in words."""

    verdict: Verdict
    why: str = ""


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One link whose record is in the legacy system, as `links export` gives it out."""

    id: int
    reference: str
    slot: str
    collection: str
    keys: Keys = field(repr=False)
    parents: Mapping[str, str]


class Crosswalk(Store):
    """The verbs of `links import`, `links rebuild` and `links export`."""

    @reads
    def judge(self, tx: Transaction, wanted: Sequence[NewLink]) -> tuple[Judged, ...]:
        """Say what `link` would do with each, and do nothing."""
        return _Known.of(tx, wanted).judge(wanted)

    @writes
    def link(self, tx: Transaction, wanted: Sequence[NewLink], *, origin: Origin, action: int) -> tuple[Judged, ...]:
        """Link what nothing speaks against, a few hundred at a time; children that waited for it are due.

        The digests are void: nobody knows what the records say, so the next change of each resource writes it. Nothing
        is made due by this. `action` is what `begin_action` gave: it counts the links that were made.
        """
        _hold_mirrors(tx, wanted)
        judged = _Known.of(tx, wanted).judge(wanted)
        good = [each for each, said in zip(wanted, judged, strict=True) if said.verdict is Verdict.LINKED]
        made = _put(tx, good, origin)
        _follow(tx, [each for each in good if (each.reference, each.slot) in made])
        _count(tx, action, len(made))
        return tuple(
            said if said.verdict is not Verdict.LINKED or (each.reference, each.slot) in made else _OVERTAKEN
            for each, said in zip(wanted, judged, strict=True)
        )

    @writes
    def hold_unproved(self, tx: Transaction, unproved: Mapping[tuple[str, str], str]) -> int:
        """Hold resources whose record is named in Medplum and could not be told for certain: by slot, in words.

        A create for one of them would make a second record. Returns how many are held by this.
        """
        held = 0
        for (reference, slot), words in sorted(unproved.items()):
            _blank(tx, [reference])
            known = exists(select(links.c.id).where(links.c.reference == reference, links.c.slot == slot))
            held += tx.execute(
                update(mirrors)
                .where(
                    mirrors.c.reference == reference,
                    mirrors.c.state != State.HELD,
                    or_(mirrors.c.lease_until.is_(None), mirrors.c.lease_until <= tx.now),
                    ~known,
                )
                .values(
                    state=State.HELD,
                    reason=UNPROVED,
                    detail=words,
                    due_at=None,
                    look_at=None,
                    waiting_for=None,
                    since=tx.now,
                )
            ).rowcount
        return held

    @reads
    def linked(self, tx: Transaction, references: Sequence[str]) -> tuple[LinkRow, ...]:
        """List the links of some resources, tombstones included."""
        rows = tx.execute(select(links).where(links.c.reference.in_(references)).order_by(links.c.id))
        return tuple(map(_row, rows))

    @reads
    def links_after(self, tx: Transaction, after: int, *, resource_type: str | None, limit: int) -> tuple[LinkRow, ...]:
        """List links whose records are in the legacy system, in the order of their ids, those beyond `after`."""
        rows = select(links).where(links.c.id > after, links.c.state.in_(THERE)).order_by(links.c.id).limit(limit)
        if resource_type is not None:
            rows = rows.where(links.c.resource_type == resource_type)
        return tuple(map(_row, tx.execute(rows)))

    @writes
    def begin_action(
        self, tx: Transaction, *, who: str, action: str, why: str | None, arguments: Mapping[str, Any]
    ) -> int:
        """Record what a person began, before its first effect: it may be broken off."""
        began = insert(tx, operator_actions).values(
            at=tx.now, who=who, action=action, why=why, arguments=dict(arguments), affected=0
        )
        return int(tx.execute(began.returning(operator_actions.c.id)).scalar_one())

    @writes
    def end_action(self, tx: Transaction, action: int, counts: Mapping[str, int]) -> None:
        """Record what came of it."""
        mine = operator_actions.c.id == action
        arguments = tx.execute(select(operator_actions.c.arguments).where(mine)).scalar_one()
        tx.execute(update(operator_actions).where(mine).values(arguments={**arguments, "counts": dict(counts)}))


def _row(row: Any) -> LinkRow:
    return LinkRow(row.id, row.reference, row.slot, row.collection, row.record_keys, row.parents)


_OVERTAKEN = Judged(Verdict.REFUSED, "its slot or its record was linked by somebody else in this moment")


@dataclass(frozen=True, slots=True)
class _Known:
    """What the ledger knows of some resources and some legacy records."""

    now: datetime
    mirrors: Mapping[str, Any]
    slots: Mapping[tuple[str, str], Any]
    keys: Mapping[tuple[str, str], Any]
    creates: Mapping[tuple[str, str], datetime]  # unanswered ones: the last one's bound

    @classmethod
    def of(cls, tx: Transaction, wanted: Sequence[NewLink]) -> _Known:
        references = sorted({each.reference for each in wanted})
        found = tx.execute(select(mirrors).where(mirrors.c.reference.in_(references)))
        slots = tx.execute(select(links).where(links.c.reference.in_(references)))
        keys = tx.execute(
            select(links).where(
                links.c.key.in_(sorted({each.key for each in wanted})),
                links.c.collection.in_(sorted({each.collection for each in wanted})),
            )
        )
        return cls(
            tx.now,
            {row.reference: row for row in found},
            {(row.reference, row.slot): row for row in slots},
            {(row.collection, row.key): row for row in keys},
            dict(_open_creates(tx, references)),
        )

    def judge(self, wanted: Sequence[NewLink]) -> tuple[Judged, ...]:
        return tuple(map(self._judged, wanted))

    def _judged(self, new: NewLink) -> Judged:
        own = self.slots.get((new.reference, new.slot))
        forgotten = own is not None and own.state == LinkState.FORGOTTEN
        if own is not None and not forgotten:
            return _against(own, new)
        other = self.keys.get((new.collection, new.key))
        if other is not None and (own is None or other.id != own.id):
            whose = f"{other.reference}{f' ({other.slot})' if other.slot else ''}"
            return Judged(Verdict.REFUSED, f"{OWNED} {whose}")
        why = self._unsettled(new)
        return Judged(Verdict.REFUSED, why) if why else Judged(Verdict.LINKED)

    def _unsettled(self, new: NewLink) -> str:
        """Say why a link cannot come in now: an attempt that runs would not see it, and make a second record."""
        mirror = self.mirrors.get(new.reference)
        if mirror is not None and mirror.lease_until is not None and mirror.lease_until > self.now:
            return "it is being synced now: again in a minute"
        bound = self.creates.get((new.reference, new.slot))
        if bound is None:
            return ""
        if bound > self.now:
            return f"a create of it has no answer and may still land: wait until {bound:%Y-%m-%d %H:%M:%S} UTC"
        held = mirror is not None and mirror.state == State.HELD  # then the look-up is the person's who names the key
        return "" if held else f"a create of it had no answer and is being looked up: reverse-sync show {new.reference}"


def _against(link: Any, new: NewLink) -> Judged:
    """Compare a link that is there with the one that is asked for."""
    if link.state not in THERE:
        buried = link.state == LinkState.TOMBSTONE
        return Judged(Verdict.REFUSED, "its record was deleted here" if buried else "its record is being replaced")
    if (link.collection, link.key) != (new.collection, new.key):
        return Judged(Verdict.REFUSED, "it is linked to another record")
    if dict(link.record_keys) != dict(new.keys):
        return Judged(Verdict.REFUSED, "it is linked to this record, with other keys or keys of another JSON type")
    return Judged(Verdict.KNOWN)


def _open_creates(tx: Transaction, references: Sequence[str]) -> Iterator[tuple[tuple[str, str], datetime]]:
    rows = tx.execute(
        select(announced.c.reference, announced.c.slot, announced.c.bound_at)
        .where(
            announced.c.reference.in_(references),
            announced.c.operation == Operation.CREATE,
            announced.c.outcome.is_(None),
        )
        .order_by(announced.c.bound_at)
    )
    for row in rows:
        yield (row.reference, row.slot), row.bound_at


def _blank(tx: Transaction, references: Iterable[str]) -> None:
    """Have a mirror for each resource: it is what everybody locks who writes for it."""
    rows = [
        {"reference": each, "resource_type": each.partition("/")[0], "state": State.CURRENT, "since": tx.now}
        for each in references
    ]
    if rows:
        tx.execute(insert(tx, mirrors).on_conflict_do_nothing(), rows)


def _hold_mirrors(tx: Transaction, wanted: Sequence[NewLink]) -> None:
    references = sorted({each.reference for each in wanted})
    _blank(tx, references)
    if not tx.on_sqlite:
        held = select(mirrors.c.reference).where(mirrors.c.reference.in_(references))
        tx.execute(held.order_by(mirrors.c.reference).with_for_update()).all()


def _put(tx: Transaction, good: Sequence[NewLink], origin: Origin) -> frozenset[tuple[str, str]]:
    """Insert links; returns the reference and slot of those that went in. Unique keys have the last word."""
    made = set()
    statement = insert(tx, links).on_conflict_do_nothing().returning(links.c.id)
    for new in good:
        row = {
            "reference": new.reference,
            "resource_type": new.reference.partition("/")[0],
            "slot": new.slot,
            "collection": new.collection,
            "key": new.key,
            "record_keys": dict(new.keys),
            "parents": dict(new.parents),
            "state": LinkState.LINKED,
            "origin": origin,
            "identified_key": new.identified_key,
            "created_at": tx.now,
            "updated_at": tx.now,
        }
        if _raised(tx, new, row) or tx.execute(statement, row).first() is not None:
            made.add((new.reference, new.slot))
    return frozenset(made)


def _raised(tx: Transaction, new: NewLink, row: Mapping[str, Any]) -> bool:
    """Let a link whose record was said to be gone have the record that a person found in its place."""
    other = links.alias("other")
    taken = exists(
        select(other.c.id).where(other.c.collection == new.collection, other.c.key == new.key, other.c.id != links.c.id)
    )
    forgotten = links.c.reference == new.reference, links.c.slot == new.slot, links.c.state == LinkState.FORGOTTEN
    return tx.execute(update(links).where(*forgotten, ~taken).values(**row)).rowcount == 1


def _follow(tx: Transaction, made: Sequence[NewLink]) -> None:
    """Do what a new link brings with it: parents noted, children woken, doubts ended that a person has decided."""
    references = sorted({each.reference for each in made})
    for new in made:
        depend(tx, new.reference, new.parents.values(), PARENT)
        _answer_creates(tx, new)
    waited_for = tx.execute(
        select(mirrors.c.waiting_for).where(mirrors.c.waiting_for.in_(references)).distinct()
    ).scalars()
    for each in sorted(waited_for.all()):
        tx.execute(WAKE_CHILDREN, {"of": each, "now": tx.now})
    tx.execute(
        update(mirrors)
        .where(mirrors.c.reference.in_(references), mirrors.c.state == State.HELD, mirrors.c.reason == UNPROVED)
        .values(
            state=State.DUE,
            due_at=tx.now,
            hints=mirrors.c.hints + 1,
            attempts=0,
            reason=None,
            detail=None,
            since=tx.now,
        )
    )


def _answer_creates(tx: Transaction, new: NewLink) -> None:
    tx.execute(
        update(announced)
        .where(
            announced.c.reference == new.reference,
            announced.c.slot == new.slot,
            announced.c.operation == Operation.CREATE,
            announced.c.outcome.is_(None),
        )
        .values(outcome=WriteOutcome.FOUND, key=new.key, answered_at=tx.now, detail="a person named its record")
    )


def _count(tx: Transaction, action: int, made: int) -> None:
    tx.execute(
        update(operator_actions)
        .where(operator_actions.c.id == action)
        .values(affected=operator_actions.c.affected + made)
    )
