"""The five ends of an attempt, each a fenced transaction, and how its changes are settled. `protocol.md` 4, 5 and 8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, bindparam, case, func, insert, or_, select, update

from worker import log
from worker.ledger.answering import Answering
from worker.ledger.database import Transaction, writes
from worker.ledger.identifying import BOUNCES, BOUNCES_ALARM
from worker.ledger.linking import THERE, tell_readers
from worker.ledger.phasing import SHADOWED
from worker.ledger.statements import NOW, OF, UNSETTLED, add_up
from worker.ledger.statements import insert as insert_or
from worker.ledger.tables import Utc, attempts, changes, links, mirrors
from worker.ledger.values import Answer, Claim, Disposition, Kind, Settlement, Source, State, Wait

_log = log.get(__name__)

PHANTOM_AFTER = timedelta(seconds=60)
WAITING_LOOK = timedelta(minutes=5)
WAITING_CHAIN = 10

_unhinted = mirrors.c.hints == bindparam("hints_claimed")
_mine = and_(
    mirrors.c.reference == OF, mirrors.c.token == bindparam("with_token"), mirrors.c.lease_owner == bindparam("by")
)
_covered = and_(changes.c.reference == OF, UNSETTLED, changes.c.hint <= bindparam("hints_claimed"))
_freed: dict[str, Any] = {"lease_owner": None, "lease_until": None, "starts": 0, "absent_since": None}
_claimed = bindparam("was_claimed", type_=Utc)
# a look that was due and not taken, because the mapping skips or fails, stays with its link until the next attempt
_links_look = (
    select(func.min(links.c.look_at))
    .where(links.c.reference == mirrors.c.reference, links.c.look_at > _claimed)
    .scalar_subquery()
)
_settled: dict[str, Any] = {
    "settled_at": NOW,
    "disposition": bindparam("as_disposition"),
    "rule": bindparam("by_rule"),
}

_settle_mirror = (
    update(mirrors)
    .where(_mine)
    .values(
        **_freed,
        since=NOW,
        state=case((_unhinted, State.CURRENT), else_=State.DUE),
        due_at=case((_unhinted, None), else_=func.coalesce(mirrors.c.due_at, NOW)),
        look_at=_links_look,
        attempts=0,
        applied_version=bindparam("version"),
        applied_updated=bindparam("version_updated", type_=Utc),
        applied_at=NOW,
        waiting_for=None,
        reason=None,
        detail=None,
        released=False,
        bounces=BOUNCES,
    )
    .returning(mirrors.c.bounces)
)
_settle_version_read = (
    update(changes)
    .where(
        changes.c.reference == OF,
        changes.c.version_id == bindparam("version"),
        or_(UNSETTLED, changes.c.disposition == Disposition.SUPERSEDED, changes.c.rule == SHADOWED),
    )
    .values(**_settled, superseded_by=None)
    .returning(changes.c.id)
)
_settle_delete_hint = update(changes).where(_covered, changes.c.kind == Kind.DELETE).values(**_settled)
_settle_all = update(changes).where(_covered).values(**_settled)
_supersede = (
    update(changes)
    .where(_covered, changes.c.kind == Kind.VERSION, changes.c.id != bindparam("row"))
    .values(
        disposition=Disposition.SUPERSEDED, superseded_by=func.nullif(bindparam("row"), 0), settled_at=NOW, rule=None
    )
)
_phantom = (
    update(changes)
    .where(_covered, changes.c.kind == Kind.DELETE, changes.c.received_at <= bindparam("young", type_=Utc))
    .values(disposition=Disposition.PHANTOM, settled_at=NOW)
)
_youngest_delete = select(func.max(changes.c.received_at)).where(
    changes.c.reference == OF, changes.c.kind == Kind.DELETE, UNSETTLED
)
_version_row = select(changes.c.id).where(changes.c.reference == OF, changes.c.version_id == bindparam("version"))
_deletion_row = (
    select(func.max(changes.c.id))
    .where(changes.c.reference == OF, changes.c.kind == Kind.DELETE)
    .where(changes.c.disposition.is_not(None), changes.c.disposition != Disposition.PHANTOM)
)
_mirror_locked = (
    select(mirrors.c.state, mirrors.c.applied_at, mirrors.c.due_at).where(mirrors.c.reference == OF).with_for_update()
)
_note_attempt = insert(attempts)


class Ending(Answering):
    """The verbs that end an attempt. Each returns whether the mirror was still the attempt's."""

    @writes
    def finish(
        self, tx: Transaction, claim: Claim, settlement: Settlement, *, last: tuple[int, Answer] | None = None
    ) -> bool:
        """Record the attempt's last answer and settle its changes, in one transaction."""
        if last is not None:
            self._record(tx, *last)
        done = tx.execute(
            _settle_mirror,
            _about(tx, claim)
            | {"version": settlement.version_id, "version_updated": settlement.last_updated}
            | {"was_applied": settlement.disposition is Disposition.APPLIED, "by_us": settlement.own},
        )
        bounces = done.scalar()
        ended = bounces is not None
        _note(tx, claim, settlement.disposition if ended else "fenced", settlement.rule or "", settlement.version_id)
        if ended:
            _settle_changes(tx, claim, settlement)
            _look_at_young_hint(tx, claim, settlement)
            _tell_readers(tx, claim, settlement)
        if bounces == BOUNCES_ALARM and settlement.disposition is Disposition.APPLIED:
            _log.warning("our own versions lead to writes: does a mapping map the key?", reference=claim.reference)
        return ended

    @writes
    def release(
        self,
        tx: Transaction,
        claim: Claim,
        *,
        reason: str,
        detail: str,
        after_s: float = 0.0,
        until: datetime | None = None,
        counts: bool = True,
    ) -> bool:
        """End an attempt that has to be made again, not before `after_s` seconds or `until`."""
        return _end(
            tx,
            claim,
            reason,
            detail,
            State.DUE,
            due_at=func.coalesce(mirrors.c.due_at, tx.now),
            not_before=max(tx.now + timedelta(seconds=after_s), until or tx.now),
            attempts=mirrors.c.attempts + (1 if counts else 0),
        )

    @writes
    def look_later(self, tx: Transaction, claim: Claim, *, reason: str, detail: str, after_s: float) -> bool:
        """End an attempt that found the resource absent: it is looked at again after `after_s` seconds or at a hint."""
        return _end(
            tx,
            claim,
            reason,
            detail,
            State.DUE,
            due_at=case((mirrors.c.hints == claim.hints, None), else_=tx.now),
            look_at=tx.now + timedelta(seconds=after_s),
            absent_since=func.coalesce(mirrors.c.absent_since, tx.now),
        )

    @writes
    def wait(self, tx: Transaction, claim: Claim, parent: str, detail: str) -> Wait:
        """Let a mirror wait for the link of `parent`, which is made due.

        Child and parent both lock the parent's mirror before they look: otherwise each can miss the other.
        """
        known = {
            "reference": parent,
            "resource_type": parent.partition("/")[0],
            "state": State.CURRENT,
            "since": tx.now,
        }
        tx.execute(insert_or(tx, mirrors).values(**known).on_conflict_do_nothing())
        row = tx.execute(_mirror_locked, {"of": parent}).one()
        if _linked(tx, parent):
            _end(tx, claim, "parent came", detail, State.DUE, due_at=tx.now)
            return Wait.CAME
        settled = row.state == State.CURRENT and row.due_at is None
        circle = parent == claim.reference or _waits_for(tx, parent, claim.reference)
        if (settled and row.applied_at is not None) or circle:
            return Wait.NO_RECORD
        if settled:
            tx.execute(
                update(mirrors)
                .where(mirrors.c.reference == parent)
                .values(state=State.DUE, due_at=tx.now, hints=mirrors.c.hints + 1, since=tx.now)
            )
        _end(tx, claim, "parent", detail, State.WAITING, look_at=tx.now + WAITING_LOOK, waiting_for=parent)
        _tell_readers(tx, claim)
        return Wait.WAITS

    @writes
    def fail(
        self,
        tx: Transaction,
        claim: Claim,
        *,
        reason: str,
        detail: str,
        settlement: Settlement | None = None,
        waiting_for: str | None = None,
    ) -> bool:
        """End an attempt that needs a person. The version that was read ends as failed, older ones as superseded.

        One that failed for want of a parent's link is due instead if the link has come while nobody waited for it.
        """
        if waiting_for is not None and _linked(tx, _locked(tx, waiting_for)):
            return _end(tx, claim, "parent came", detail, State.DUE, due_at=tx.now)
        ended = _end(
            tx,
            claim,
            reason,
            detail,
            State.FAILED,
            version_id=settlement.version_id if settlement else None,
            look_at=_links_look,
            waiting_for=waiting_for,
        )
        if ended and settlement is not None:
            failed = replace(settlement, disposition=Disposition.FAILED, rule=detail)
            _settle_changes(tx, claim, failed)
            _look_at_young_hint(tx, claim, failed)
        _tell_readers(tx, claim, settlement)
        return ended

    @writes
    def hold(self, tx: Transaction, claim: Claim, *, reason: str, detail: str) -> bool:
        """End an attempt that needs a decision. Its changes stay open; a newer version does not wake it."""
        ended = _end(tx, claim, reason, detail, State.HELD, due_at=None, look_at=None)
        _tell_readers(tx, claim)
        return ended


def _about(tx: Transaction, claim: Claim) -> dict[str, Any]:
    return {
        "of": claim.reference,
        "with_token": claim.token,
        "by": claim.instance,
        "hints_claimed": claim.hints,
        "was_claimed": claim.claimed_at,
        "now": tx.now,
    }


def _end(
    tx: Transaction, claim: Claim, outcome: str, words: str, to: State, *, version_id: str | None = None, **values: Any
) -> bool:
    """Give the mirror back if it is still ours, and note the attempt.

    A mirror that would rest stays due where hints came after the claim; one that is held is held all the same.
    """
    unhinted = mirrors.c.hints == claim.hints
    rests = to in {State.WAITING, State.FAILED}
    given = _freed | {"reason": outcome, "detail": words} | values
    given["state"] = case((unhinted, to), else_=State.DUE) if rests else to
    if rests:
        given["due_at"] = case((unhinted, None), else_=tx.now)
    given["since"] = case((mirrors.c.state == given["state"], mirrors.c.since), else_=NOW)
    ended = tx.execute(update(mirrors).where(_mine).values(**given), _about(tx, claim)).rowcount == 1
    _note(tx, claim, outcome if ended else "fenced", words, version_id)
    return ended


def _note(tx: Transaction, claim: Claim, outcome: str, words: str, version_id: str | None) -> None:
    tx.execute(
        _note_attempt,
        {
            "reference": claim.reference,
            "token": claim.token,
            "instance": claim.instance,
            "started_at": claim.claimed_at,
            "ended_at": tx.now,
            "version_id": version_id,
            "outcome": outcome,
            "detail": words,
        },
    )


def _settle_changes(tx: Transaction, claim: Claim, settlement: Settlement) -> None:
    """Give every change that this attempt covers its disposition, as the table of `protocol.md` 4 says."""
    about = {"of": claim.reference, "now": tx.now}
    settled = about | {"as_disposition": settlement.disposition, "by_rule": settlement.rule}
    covered = {"hints_claimed": claim.hints}
    if settlement.version_id is None and not settlement.deleted:  # nothing was read: the rule holds for all of them
        tx.execute(_settle_all, settled | covered)
        return
    row: int | None = None
    if settlement.deleted and claim.delete_hint is not None:
        row = tx.execute(_settle_delete_hint.returning(changes.c.id), settled | covered).scalar()
    if row is None and _is_told(claim, settlement):
        row = _row_of_what_was_read(tx, claim, settlement, settled)
    if claim.open_versions - {settlement.version_id}:
        tx.execute(_supersede, about | covered | {"row": row or 0})
    if not settlement.deleted and claim.delete_hint is not None:
        tx.execute(_phantom, about | covered | {"young": settlement.read_at - PHANTOM_AFTER})


def _is_told(claim: Claim, settlement: Settlement) -> bool:
    """Say whether what was read gets a row: not a deletion without a version, of which nothing comes."""
    if settlement.version_id is not None:
        return True
    return bool(claim.open_versions) or settlement.disposition is not Disposition.UNCHANGED


def _row_of_what_was_read(
    tx: Transaction, claim: Claim, settlement: Settlement, settled: Mapping[str, Any]
) -> int | None:
    row: int | None = None
    if settlement.version_id is not None:
        row = tx.execute(_settle_version_read, {**settled, "version": settlement.version_id}).scalar()
    elif claim.applied_version is None and claim.applied_updated == settlement.last_updated is not None:
        row = tx.execute(_deletion_row, {"of": claim.reference}).scalar()  # this very deletion was settled before
    if row is not None:
        return row
    made: int | None = tx.execute(
        insert_or(tx, changes)
        .values(
            reference=claim.reference,
            resource_type=claim.resource_type,
            kind=Kind.DELETE if settlement.deleted else Kind.VERSION,
            version_id=settlement.version_id,
            source=Source.READ,
            interaction="delete" if settlement.deleted else "update",
            last_updated=settlement.last_updated,
            author=settlement.author,
            accepted_at=tx.now,
            received_at=tx.now,
            receipts=0,
            settled_at=tx.now,
            disposition=settlement.disposition,
            rule=settlement.rule,
        )
        .on_conflict_do_nothing()
        .returning(changes.c.id)
    ).scalar()
    if made is not None:
        add_up(tx, "accepted", {(Source.READ.value, claim.resource_type): 1})
        return made
    known: int | None = tx.execute(_version_row, {"of": claim.reference, "version": settlement.version_id}).scalar()
    return known


def _look_at_young_hint(tx: Transaction, claim: Claim, settlement: Settlement) -> None:
    """A delete hint that a read contradicts is looked at again before it is called a phantom."""
    if settlement.deleted or claim.delete_hint is None:
        return
    received = tx.execute(_youngest_delete, {"of": claim.reference}).scalar_one()
    if received is None:
        return
    look_at = received + PHANTOM_AFTER
    tx.execute(
        update(mirrors)
        .where(mirrors.c.reference == claim.reference)
        .values(look_at=case((mirrors.c.look_at < look_at, mirrors.c.look_at), else_=look_at))
    )


def _tell_readers(tx: Transaction, claim: Claim, settlement: Settlement | None = None) -> None:
    """Tell those whose mappings have read this resource, where it is another than it was when they were last told.

    Whoever waits, fails or is held has changed all the same. A deletion that was settled before is no news, or each
    repeated hint of it would wake them all.
    """
    if settlement is None:
        news = bool(claim.open_versions)
    elif settlement.version_id is None and not settlement.deleted:  # nothing was read
        news = bool(claim.open_versions or claim.delete_hint)
    else:
        before = (claim.applied_version, claim.applied_updated)
        news = claim.released or (settlement.version_id, settlement.last_updated) != before
    if news:
        tell_readers(tx, claim.reference)


def _locked(tx: Transaction, reference: str) -> str:
    """Hold a mirror, so that its link does not come unseen."""
    tx.execute(_mirror_locked, {"of": reference}).one_or_none()
    return reference


def _linked(tx: Transaction, reference: str) -> bool:
    live = select(links.c.id).where(links.c.reference == reference, links.c.state.in_(THERE))
    return tx.execute(live.limit(1)).first() is not None


def _waits_for(tx: Transaction, reference: str, target: str) -> bool:
    """Tell whether a mirror waits, through others, for the target: a circle that nothing would ever open."""
    for _ in range(WAITING_CHAIN):
        chain = select(mirrors.c.waiting_for).where(mirrors.c.reference == reference)
        following = tx.execute(chain).scalar_one_or_none()
        if following is None or following == target:
            return following == target
        reference = following
    return False
