"""Writes on their way out: announced before they are sent, recorded when they are answered. `protocol.md` 3.

Announcements are fenced. Answers never are: what the legacy system said is true, whoever hears it and however late.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, bindparam, case, func, insert, or_, select, update

from worker.errors import DeleteBudgetSpent, LeaseLost, LedgerError, Paused
from worker.ledger.database import Transaction, reads, writes
from worker.ledger.statements import NOT_PAUSED, NOW, OF, SLOT
from worker.ledger.statements import insert as insert_or
from worker.ledger.store import Store
from worker.ledger.tables import Utc, dependencies, links, mirrors
from worker.ledger.tables import writes as announced
from worker.ledger.values import (
    Announced,
    Announcement,
    Answer,
    Claim,
    Keys,
    LinkState,
    Operation,
    State,
    WriteOutcome,
)

SPACING_S, SPACING_MOST_S, HOTTEST = 1.0, 30.0, 8
DELETES_AT_LEAST, DELETES_SHARE = 20, 0.01

NO_EPOCH = -1  # of a write whose answer says nothing of the link's digest
PARENT, VALUE = "parent", "value"  # how a record holds another one's key: in its path, or in a field

# outcomes that say what the legacy record is now
TELLING = frozenset({WriteOutcome.DONE, WriteOutcome.FOUND, WriteOutcome.GONE})
THERE = (LinkState.LINKED, LinkState.LEFT_BEHIND)  # the record is in the legacy system
NOT_SENT = frozenset({WriteOutcome.NOT_DONE, WriteOutcome.WITHDRAWN})

_holder = (
    select(
        mirrors.c.last_write_at,
        mirrors.c.heat,
        NOT_PAUSED.label("allowed"),
        select(func.max(announced.c.bound_at))
        .where(announced.c.reference == mirrors.c.reference, announced.c.outcome.is_(None))
        .scalar_subquery()
        .label("open_until"),
        select(func.max(announced.c.token))
        .where(announced.c.reference == mirrors.c.reference)
        .scalar_subquery()
        .label("last_token"),
        select(links.c.epoch)
        .where(links.c.reference == mirrors.c.reference, links.c.slot == SLOT)
        .scalar_subquery()
        .label("epoch"),
    )
    .where(
        mirrors.c.reference == OF,
        mirrors.c.token == bindparam("with_token"),
        mirrors.c.lease_owner == bindparam("by"),
        mirrors.c.lease_until > NOW,
    )
    .with_for_update(of=mirrors)
)
_hold_with_others = select(mirrors.c.reference).where(mirrors.c.reference == OF).with_for_update(read=True)
_hold_own = select(mirrors.c.reference).where(mirrors.c.reference == OF).with_for_update()
_void = update(links).where(links.c.reference == OF, links.c.slot == SLOT).values(digest=None)
_announce = insert(announced).returning(announced.c.id)
_heat_up = (
    update(mirrors)
    .where(mirrors.c.reference == OF)
    .values(last_write_at=NOW, heat=bindparam("new_heat"), not_before=bindparam("until", type_=Utc))
)
_older = announced.alias("older")
_unanswered_before = (
    select(func.count())
    .select_from(_older)
    .where(
        _older.c.reference == announced.c.reference,
        _older.c.slot == announced.c.slot,
        _older.c.id < announced.c.id,
        _older.c.outcome.is_(None),
    )
    .scalar_subquery()
)
_write = (
    select(announced, mirrors.c.token.label("holder"), mirrors.c.lease_owner, _unanswered_before.label("older"))
    .join(mirrors, mirrors.c.reference == announced.c.reference)
    .where(announced.c.id == bindparam("write_id"))
    .with_for_update(of=mirrors)
)
_record = (
    update(announced)
    .where(announced.c.id == bindparam("write_id"))
    .values(
        {
            name: bindparam(f"new_{name}", type_=announced.c[name].type)
            for name in ("outcome", "answered_at", "status", "detail", "answer", "key", "late")
        }
    )
)
_links_met = select(links).where(
    or_(
        and_(links.c.reference == OF, links.c.slot == SLOT),
        and_(links.c.collection == bindparam("in_collection"), links.c.key == bindparam("under_key")),
    )
)
_wake_children = (
    update(mirrors)
    .where(mirrors.c.waiting_for == OF, mirrors.c.state.in_([State.WAITING, State.FAILED]))
    .values(state=State.DUE, due_at=NOW, waiting_for=None, attempts=0, since=NOW)
)
_due_since = case((mirrors.c.state == State.DUE, mirrors.c.since), else_=NOW)
_dependents = select(dependencies.c.reference).where(dependencies.c.depends_on == OF)
_ask_dependents = (
    update(mirrors)
    .where(mirrors.c.reference.in_(_dependents), mirrors.c.state != State.HELD)
    .values(
        state=State.DUE,
        due_at=func.coalesce(mirrors.c.due_at, NOW),
        hints=mirrors.c.hints + 1,
        attempts=0,
        since=_due_since,
    )
)
_void_dependents = (
    update(links)
    .where(links.c.reference.in_(_dependents.where(dependencies.c.kind.in_(bindparam("kinds", expanding=True)))))
    .values(digest=None, epoch=links.c.epoch + 1)
)
_distrust_dependents = (  # a create under way has no link yet that could be void
    update(announced)
    .where(announced.c.reference.in_(_dependents), announced.c.outcome.is_(None))
    .values(link_epoch=NO_EPOCH)
)
_lapse_older = (
    update(announced)
    .where(
        announced.c.reference == OF,
        announced.c.slot == SLOT,
        announced.c.id < bindparam("write_id"),
        announced.c.outcome.is_(None),
        announced.c.bound_at <= bindparam("by_time", type_=Utc),
    )
    .values(outcome=WriteOutcome.LAPSED)
)


class KeyMoved(LedgerError):
    """A record whose key a write holds has another one by now, or is deleted: look again."""


class Answering(Store):
    """The verbs around one legacy write."""

    @writes
    def announce(self, tx: Transaction, claim: Claim, write: Announcement) -> Announced:
        """Write down what is about to be sent, and void the link's digest, before any byte leaves.

        Raises:
            LeaseLost: another attempt holds the mirror, or the lease is over; nothing may be sent.
            Paused: an operator paused this type or everything.
            DeleteBudgetSpent: a person has to let this delete pass.
            LedgerError: an earlier write may still land; whoever asks did not look.
            KeyMoved: a record whose key this write holds has another one by now, or is deleted.
        """
        if write.uses:
            _check_keys(tx, claim.reference, write.uses)
        about = {"of": claim.reference, "in_slot": write.slot, "now": tx.now}
        held = tx.execute(_holder, about | {"with_token": claim.token, "by": claim.instance}).one_or_none()
        if held is None:
            raise LeaseLost(f"{claim.reference}: the lease of attempt {claim.token} is over")
        if not held.allowed:
            raise Paused(f"{claim.resource_type} is paused")
        if held.open_until is not None and held.open_until > tx.now:
            raise LedgerError(f"{claim.reference}: an earlier write has no outcome and may still land")
        if write.operation is Operation.DELETE and not claim.released:
            _spend_delete(tx, claim.resource_type)
        if held.epoch is not None:
            tx.execute(_void, {"of": claim.reference, "in_slot": write.slot})
        send_by = tx.now + timedelta(seconds=write.send_within_s)
        bound = send_by + timedelta(seconds=write.deadline_s + write.lands_within_s)
        made = tx.execute(
            _announce,
            {
                "reference": claim.reference,
                "resource_type": claim.resource_type,
                "token": claim.token,
                "slot": write.slot,
                "collection": write.collection,
                "operation": write.operation,
                "template": write.template,
                "version_id": write.version_id,
                "mapping_version": write.mapping_version,
                "parents": dict(write.parents),
                "idempotency_key": write.idempotency_key,
                "announced_at": tx.now,
                "send_by": send_by,
                "deadline_seconds": write.deadline_s,
                "lands_within_seconds": write.lands_within_s,
                "bound_at": bound,
                "link_epoch": held.epoch or 0,
                "body": self._sealed_fields(claim.reference, write),
            },
        ).scalar_one()
        _depend(tx, claim.reference, write.uses.keys() - set(write.parents.values()), VALUE)
        heat = held.heat if held.last_token == claim.token else _heat(tx.now, held.last_write_at, held.heat)
        until = tx.now + timedelta(seconds=spacing_s(heat))
        tx.execute(_heat_up, {"of": claim.reference, "now": tx.now, "new_heat": heat, "until": until})
        return Announced(id=made, bound=bound)

    @writes
    def record(self, tx: Transaction, write_id: int, answer: Answer) -> bool:
        """Write down what became of an announced write, together with its link. Never fenced.

        Returns whether the mirror is still held by the attempt that announced the write; if it is not, the answer came
        late: the link is adopted where there is none, its digest is void, and the mirror is due.
        """
        return self._record(tx, write_id, answer)

    @writes
    def lapse(self, tx: Transaction, claim: Claim, write_ids: Sequence[int]) -> None:
        """Close writes that were never answered, whose bound has passed and whose record is nowhere."""
        tx.execute(
            update(announced)
            .where(announced.c.id.in_(write_ids), announced.c.outcome.is_(None), announced.c.bound_at <= tx.now)
            .values(outcome=WriteOutcome.LAPSED)
        )

    @writes
    def leave_behind(self, tx: Transaction, claim: Claim, slot: str, why: str) -> None:
        """Mark a record that should be another or gone, which the API cannot do: the rollback answer counts it."""
        tx.execute(
            update(links)
            .where(links.c.reference == claim.reference, links.c.slot == slot, links.c.state.in_(THERE))
            .values(state=LinkState.LEFT_BEHIND, reason=why, updated_at=tx.now)
        )

    @writes
    def take_back(self, tx: Transaction, claim: Claim, slot: str) -> None:
        """Take the mark off a record that was left behind and is as it should be again."""
        tx.execute(
            update(links)
            .where(links.c.reference == claim.reference, links.c.slot == slot, links.c.state == LinkState.LEFT_BEHIND)
            .values(state=LinkState.LINKED, reason=None, updated_at=tx.now)
        )

    @writes
    def looked(self, tx: Transaction, claim: Claim, link_id: int) -> None:
        """Note that a second record was looked for and is not there."""
        tx.execute(update(links).where(links.c.id == link_id).values(look_at=None))

    @reads
    def keys_of(self, tx: Transaction, references: Sequence[str], *, buried: Sequence[str] = ()) -> dict[str, Keys]:
        """Look up the keys of other resources' records; those of `buried` also where the record is deleted."""
        return _keys_of(tx, references, buried)

    @reads
    def owners(self, tx: Transaction, collection: str, keys: Sequence[str]) -> dict[str, str]:
        """Tell which resources own legacy records: key as text → reference."""
        rows = tx.execute(
            select(links.c.key, links.c.reference).where(links.c.collection == collection, links.c.key.in_(keys))
        )
        return {row.key: row.reference for row in rows}

    def _sealed_fields(self, reference: str, write: Announcement) -> bytes | None:
        if not self.sealer.can_seal:
            return None
        text = json.dumps(write.fields, ensure_ascii=False, default=str, separators=(",", ":"))
        version = write.version_id or ""
        return self.sealer.seal(text.encode(), table="writes", reference=reference, version=version, column="body")

    def _record(self, tx: Transaction, write_id: int, answer: Answer) -> bool:
        write = tx.execute(_write, {"write_id": write_id}).one()
        found = answer.outcome is WriteOutcome.FOUND  # said by another attempt than the one that announced
        mine = found or (write.holder == write.token and write.lease_owner is not None)
        late = not mine
        if answer.outcome is None and write.outcome is not None:
            return mine  # somebody has found out meanwhile
        tx.execute(
            _record,
            {
                "write_id": write_id,
                "new_outcome": answer.outcome,
                "new_answered_at": tx.now,
                "new_status": answer.status,
                "new_detail": answer.detail,
                "new_answer": self._sealed_words(write, answer.words),
                "new_key": _first_key(answer.keys),
                "new_late": late,
            },
        )
        if answer.outcome not in TELLING:
            return mine
        if not _bring_link_in_line(tx, write, answer, late=late):
            return False
        if answer.before_image is not None:
            self._keep_image(tx, write, answer.before_image)
        if late:
            _wake_for_late_answer(tx, write.reference)
        elif write.older:
            tx.execute(
                _lapse_older,
                {"of": write.reference, "in_slot": write.slot, "write_id": write_id, "by_time": write.announced_at},
            )
        return mine

    def _keep_image(self, tx: Transaction, write: Any, image: bytes) -> None:
        if not self.sealer.can_seal:
            return
        version = write.version_id or ""
        sealed = self.sealer.seal(
            image, table="links", reference=write.reference, version=version, column="before_image"
        )
        which = links.c.reference == write.reference, links.c.slot == write.slot
        tx.execute(update(links).where(*which).values(before_image=sealed))

    def _sealed_words(self, write: Any, words: bytes | None) -> bytes | None:
        if words is None or not self.sealer.can_seal:
            return None
        version = write.version_id or ""
        return self.sealer.seal(words, table="writes", reference=write.reference, version=version, column="answer")


def spacing_s(heat: int) -> float:
    """Tell how long after a write the next one of the same mirror may come, in seconds: it grows while it stays hot."""
    return min(SPACING_S * 2.0**heat, SPACING_MOST_S)


def _heat(now: datetime, last: datetime | None, heat: int) -> int:
    if last is None:
        return 0
    waited = (now - last).total_seconds()
    return min(heat + 1, HOTTEST) if waited < 2 * spacing_s(heat) else 0


def _spend_delete(tx: Transaction, resource_type: str) -> None:
    hour = tx.now - timedelta(hours=1)
    sent = (
        announced.c.resource_type == resource_type,
        announced.c.operation == "delete",
        announced.c.announced_at > hour,
        or_(announced.c.outcome.is_(None), announced.c.outcome.not_in(NOT_SENT)),
    )
    done = tx.execute(select(func.count()).select_from(announced).where(*sent)).scalar_one()
    if done < DELETES_AT_LEAST:
        return
    known = tx.execute(
        select(func.count()).select_from(links).where(links.c.resource_type == resource_type)
    ).scalar_one()
    if done >= DELETES_SHARE * known:
        raise DeleteBudgetSpent(
            f"{done} deletes of {resource_type} were sent within the hour: `reverse-sync replay REF` lets this one pass"
        )


def _first_key(keys: Keys | None) -> str | None:
    return None if not keys else str(next(iter(keys.values())))


def _bring_link_in_line(tx: Transaction, write: Any, answer: Answer, *, late: bool) -> bool:
    """Make the link say what the answer said. Returns False where the mirror had to be held."""
    created = write.operation == Operation.CREATE and answer.keys is not None
    key = _first_key(answer.keys)
    about = {"of": write.reference, "in_slot": write.slot, "in_collection": write.collection, "under_key": key}
    met = tx.execute(_links_met, about).all()
    link = next((row for row in met if (row.reference, row.slot) == (write.reference, write.slot)), None)
    if created:
        others = any(row is not link for row in met)
        return _link_created(tx, write, answer, link, key_is_taken=others, late=late)
    if link is None:
        return True
    values: dict[str, Any] = {"updated_at": tx.now, "epoch": link.epoch + (1 if late else 0), "digest": None}
    if write.operation == Operation.DELETE and not late:
        values |= {"state": LinkState.TOMBSTONE, "look_at": None}
        _tell_dependents(tx, write.reference, void=(PARENT,))
    elif write.operation != Operation.DELETE and answer.outcome is WriteOutcome.DONE:
        trusted = not late and link.epoch == write.link_epoch
        values |= _written(write, answer, trusted=trusted)
    tx.execute(update(links).where(links.c.id == link.id).values(**values))
    return True


def _written(write: Any, answer: Answer, *, trusted: bool) -> dict[str, Any]:
    return {
        "digest": answer.digest if trusted else None,
        "version_id": write.version_id,
        "mapping_version": write.mapping_version,
        "state": LinkState.LINKED,
        "reason": None,
    }


def _link_created(tx: Transaction, write: Any, answer: Answer, link: Any, *, key_is_taken: bool, late: bool) -> bool:
    """Make or adopt the link of a record that was created, or hold the mirror where two records would share it."""
    key = _first_key(answer.keys)
    if link is not None and link.state in THERE and link.key != key:
        _hold(tx, write.reference, "second record", "two legacy records were made for one resource; see its writes")
        tx.execute(update(links).where(links.c.id == link.id).values(digest=None, epoch=link.epoch + 1))
        return False
    epoch = link.epoch if link is not None else 0
    trusted = not late and answer.outcome is WriteOutcome.DONE and epoch == write.link_epoch
    values = _written(write, answer, trusted=trusted) | {
        "collection": write.collection,
        "key": key,
        "record_keys": dict(answer.keys or {}),
        "parents": write.parents,
        "epoch": epoch + (1 if late else 0),
        "look_at": write.bound_at if answer.look_again else None,
        "updated_at": tx.now,
    }
    if key_is_taken or not _put_link(tx, write, link, values):
        _hold(tx, write.reference, "owned key", "the legacy API answered with the key of another resource's record")
        return False
    if link is not None and link.key != key:
        _tell_dependents(tx, write.reference, void=(PARENT, VALUE))
    _depend(tx, write.reference, write.parents.values(), PARENT)
    tx.execute(_wake_children, {"of": write.reference, "now": tx.now})
    return True


def _put_link(tx: Transaction, write: Any, link: Any, values: Mapping[str, Any]) -> bool:
    """Insert or update the link; False where somebody else took the key at this moment."""
    if link is not None:
        return tx.execute(update(links).where(links.c.id == link.id).values(**values)).rowcount == 1
    whose = {
        "reference": write.reference,
        "resource_type": write.resource_type,
        "slot": write.slot,
        "created_at": tx.now,
    }
    made = tx.execute(insert_or(tx, links).on_conflict_do_nothing().returning(links.c.id), {**whose, **values})
    return made.first() is not None


def _hold(tx: Transaction, reference: str, reason: str, detail: str) -> None:
    freed = {"lease_owner": None, "lease_until": None, "starts": 0, "due_at": None, "look_at": None}
    tx.execute(
        update(mirrors)
        .where(mirrors.c.reference == reference)
        .values(state=State.HELD, reason=reason, detail=detail, since=tx.now, **freed)
    )


def _keys_of(tx: Transaction, references: Collection[str], buried: Collection[str] = ()) -> dict[str, Keys]:
    live = and_(links.c.reference.in_(references), links.c.state.in_(THERE))
    rows = tx.execute(
        select(links.c.reference, links.c.record_keys)
        .where(or_(live, links.c.reference.in_(buried)))
        .order_by(links.c.reference, links.c.slot)
    )
    found: dict[str, Keys] = {}
    for row in rows:
        found.setdefault(row.reference, row.record_keys)
    return found


def _check_keys(tx: Transaction, own: str, used: Mapping[str, Keys]) -> None:
    """See that the keys which a write holds are those of today.

    Whoever changes a record's key holds its mirror and then tells those who are noted to hold the key. So the mirrors
    are held here, before it is noted: else both could miss each other. They are held in the order in which intake holds
    them, or the two could wait for each other. SQLite has one writer at a time anyway.
    """
    for reference in () if tx.on_sqlite else sorted({own, *used}):
        tx.execute(_hold_own if reference == own else _hold_with_others, {"of": reference})
    today = _keys_of(tx, list(used))
    moved = sorted(reference for reference, keys in used.items() if today.get(reference) != keys)
    if moved:
        raise KeyMoved(f"the record of {moved[0]} has another key by now, or is deleted")


def _depend(tx: Transaction, reference: str, on: Iterable[str], kind: str) -> None:
    """Note whose keys a record's path or fields hold. Never taken back: what is told in vain is but looked at."""
    rows = [{"reference": reference, "depends_on": each, "kind": kind} for each in sorted(set(on))]
    if rows:
        tx.execute(insert_or(tx, dependencies).on_conflict_do_nothing(), rows)


def _tell_dependents(tx: Transaction, of: str, *, void: Sequence[str]) -> None:
    """Have every resource looked at whose record holds the key of this one, which is another now, or buried.

    Those that hold it in a way that `void` names are written anew, though their content by reference is the same.
    """
    tx.execute(_ask_dependents, {"of": of, "now": tx.now})
    tx.execute(_void_dependents, {"of": of, "kinds": list(void)})
    tx.execute(_distrust_dependents, {"of": of})


def _wake_for_late_answer(tx: Transaction, reference: str) -> None:
    held = mirrors.c.state == State.HELD
    tx.execute(
        update(mirrors)
        .where(mirrors.c.reference == reference)
        .values(
            hints=mirrors.c.hints + 1,
            due_at=case((held, mirrors.c.due_at), else_=func.coalesce(mirrors.c.due_at, tx.now)),
            state=case((held, mirrors.c.state), else_=State.DUE),
            since=case((held, mirrors.c.since), else_=_due_since),
        ),
        {"now": tx.now},
    )
