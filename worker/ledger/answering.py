"""Writes on their way out: announced before they are sent, recorded when they are answered. `protocol.md` 3.

Announcements are fenced. Answers never are: what the legacy system said is true, whoever hears it and however late.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, bindparam, case, exists, func, insert, or_, select, update

from worker.errors import DeleteBudgetSpent, LeaseLost, LedgerError, Paused
from worker.ledger.database import Transaction, reads, writes
from worker.ledger.linking import (
    DUE_SINCE,
    THERE,
    VALUE,
    bring_link_in_line,
    check_keys,
    depend,
    first_key,
    keys_of,
)
from worker.ledger.statements import NOT_PAUSED, NOW, OF, SLOT
from worker.ledger.store import Store
from worker.ledger.tables import Utc, links, mirrors, routes
from worker.ledger.tables import writes as announced
from worker.ledger.values import (
    Announced,
    Announcement,
    Answer,
    Claim,
    Keys,
    LinkState,
    Operation,
    Phase,
    State,
    WriteOutcome,
)

SPACING_S, SPACING_MOST_S, HOTTEST = 1.0, 30.0, 8
DELETES_AT_LEAST, DELETES_SHARE = 20, 0.01

# outcomes that say what the legacy record is now
TELLING = frozenset({WriteOutcome.DONE, WriteOutcome.FOUND, WriteOutcome.GONE})
NOT_SENT = frozenset({WriteOutcome.NOT_DONE, WriteOutcome.WITHDRAWN})

_live = exists(
    select(routes.c.phase).where(routes.c.resource_type == mirrors.c.resource_type, routes.c.phase == Phase.LIVE)
)
_holder = (
    select(
        mirrors.c.last_write_at,
        mirrors.c.heat,
        and_(NOT_PAUSED, _live).label("allowed"),
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


class Answering(Store):
    """The verbs around one legacy write."""

    @writes
    def announce(self, tx: Transaction, claim: Claim, write: Announcement) -> Announced:
        """Write down what is about to be sent, and void the link's digest, before any byte leaves.

        Raises:
            LeaseLost: another attempt holds the mirror, or the lease is over; nothing may be sent.
            Paused: an operator paused this type or everything, or the route is not live.
            DeleteBudgetSpent: a person has to let this delete pass.
            LedgerError: an earlier write may still land; whoever asks did not look.
            KeyMoved: a record whose key this write holds has another one by now, or is deleted.
        """
        if write.uses:
            check_keys(tx, claim.reference, write.uses)
        about = {"of": claim.reference, "in_slot": write.slot, "now": tx.now}
        held = tx.execute(_holder, about | {"with_token": claim.token, "by": claim.instance}).one_or_none()
        if held is None:
            raise LeaseLost(f"{claim.reference}: the lease of attempt {claim.token} is over")
        if not held.allowed:
            raise Paused(f"{claim.resource_type} is paused, or not live any more")
        if held.open_until is not None and held.open_until > tx.now:
            raise LedgerError(f"{claim.reference}: an earlier write has no outcome and may still land")
        if write.operation is Operation.DELETE and not claim.released:
            _spend_delete(tx, claim.resource_type)
        if held.epoch is not None and not write.spares_digest:
            tx.execute(_void, {"of": claim.reference, "in_slot": write.slot})
        if write.before_image is not None:
            self._keep_image(tx, claim.reference, write.slot, write.before_image)
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
                "parent_keys": {name: dict(keys) for name, keys in write.parent_keys.items()},
                "idempotency_key": write.idempotency_key,
                "announced_at": tx.now,
                "send_by": send_by,
                "deadline_seconds": write.deadline_s,
                "lands_within_seconds": write.lands_within_s,
                "bound_at": bound,
                "link_epoch": held.epoch or 0,
                "body": self._sealed_fields(claim.reference, write),
                "write_back": write.write_back,
            },
        ).scalar_one()
        depend(tx, claim.reference, write.uses.keys() - set(write.parents.values()), VALUE)
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
    def bury(self, tx: Transaction, claim: Claim, slot: str) -> None:
        """Note that a half replaced record will have no successor: it is as if it had been deleted."""
        tx.execute(
            update(links)
            .where(links.c.reference == claim.reference, links.c.slot == slot)
            .where(links.c.state == LinkState.HALF_REPLACED)
            .values(state=LinkState.TOMBSTONE, reason=None, updated_at=tx.now)
        )

    @writes
    def keep_baseline(self, tx: Transaction, claim: Claim, slot: str, record: bytes) -> None:
        """Keep what a record said right after it was written, if nobody else has taken the mirror since."""
        mine = select(mirrors.c.reference).where(
            mirrors.c.reference == claim.reference,
            mirrors.c.token == claim.token,
            mirrors.c.lease_owner == claim.instance,
        )
        tx.execute(
            update(links)
            .where(links.c.reference.in_(mine), links.c.slot == slot)
            .values(baseline=self._sealed_of_link(claim.reference, slot, "baseline", record))
        )

    @writes
    def looked(self, tx: Transaction, claim: Claim, link_id: int) -> None:
        """Note that a second record was looked for and is not there."""
        tx.execute(update(links).where(links.c.id == link_id).values(look_at=None))

    @reads
    def keys_of(self, tx: Transaction, references: Sequence[str], *, buried: Sequence[str] = ()) -> dict[str, Keys]:
        """Look up the keys of other resources' records; those of `buried` also where the record is deleted."""
        return keys_of(tx, references, buried)

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
        in_doubt_again = answer.outcome is None and write.outcome == WriteOutcome.LAPSED
        if answer.outcome is None and write.outcome is not None and not in_doubt_again:
            return mine  # somebody has found out meanwhile
        if found and write.outcome in {WriteOutcome.DONE, WriteOutcome.FOUND} and write.key == first_key(answer.keys):
            return True  # the same; and what has become of that record since, the link says
        tx.execute(
            _record,
            {
                "write_id": write_id,
                "new_outcome": answer.outcome,
                "new_answered_at": tx.now,
                "new_status": answer.status,
                "new_detail": answer.detail,
                "new_answer": self._sealed_words(write, answer.words),
                "new_key": first_key(answer.keys),
                "new_late": late,
            },
        )
        if in_doubt_again:
            _doubt_again(tx, write)
        if answer.outcome not in TELLING:
            return mine
        baseline = self._sealed_of_link(write.reference, write.slot, "baseline", answer.baseline)
        if not bring_link_in_line(tx, write, answer, late=late, baseline=baseline):
            return False
        if late:
            _wake_for_late_answer(tx, write.reference)
        elif write.older and _settles_older(write, answer):
            tx.execute(
                _lapse_older,
                {"of": write.reference, "in_slot": write.slot, "write_id": write_id, "by_time": write.announced_at},
            )
        return mine

    def _keep_image(self, tx: Transaction, reference: str, slot: str, image: bytes) -> None:
        sealed = self._sealed_of_link(reference, slot, "before_image", image)
        which = links.c.reference == reference, links.c.slot == slot
        tx.execute(update(links).where(*which).values(before_image=sealed))

    def _sealed_of_link(self, reference: str, slot: str, column: str, record: bytes | None) -> bytes | None:
        """Seal a record for its link. Its place is named by the slot: what it says outlives versions."""
        if record is None or not self.sealer.can_seal:
            return None
        return self.sealer.seal(record, table="links", reference=reference, version=slot, column=column)

    def _sealed_words(self, write: Any, words: bytes | None) -> bytes | None:
        if words is None or not self.sealer.can_seal:
            return None
        version = write.version_id or ""
        return self.sealer.seal(words, table="writes", reference=write.reference, version=version, column="answer")


def _settles_older(write: Any, answer: Answer) -> bool:
    """Tell whether an answer says what became of older writes: an update or undelete that met no record does not."""
    return answer.outcome is not WriteOutcome.GONE or write.operation in (Operation.DELETE, Operation.REPLACE)


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


def _doubt_again(tx: Transaction, write: Any) -> None:
    """3f: a process that stood still sent a write after it had been given up, and nobody answered: it may act yet."""
    bound = tx.now + timedelta(seconds=write.lands_within_seconds)
    tx.execute(update(announced).where(announced.c.id == write.id).values(bound_at=bound))
    _wake_for_late_answer(tx, write.reference)


def _wake_for_late_answer(tx: Transaction, reference: str) -> None:
    held = mirrors.c.state == State.HELD
    tx.execute(
        update(mirrors)
        .where(mirrors.c.reference == reference)
        .values(
            hints=mirrors.c.hints + 1,
            due_at=case((held, mirrors.c.due_at), else_=func.coalesce(mirrors.c.due_at, tx.now)),
            state=case((held, mirrors.c.state), else_=State.DUE),
            since=case((held, mirrors.c.since), else_=DUE_SINCE),
        ),
        {"now": tx.now},
    )
