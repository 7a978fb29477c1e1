"""What an answer says of the link, and who has to hear of a key that is another now. `protocol.md` 3e, 3f, 8, 9.

It works within the transaction that records the answer, and never writes a mirror but to wake or to hold it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Select, Update, and_, bindparam, case, func, null, or_, select, update

from worker.errors import LedgerError
from worker.ledger.database import Transaction
from worker.ledger.statements import NOW, OF, SLOT
from worker.ledger.statements import insert as insert_or
from worker.ledger.tables import dependencies, links, mirrors
from worker.ledger.tables import writes as announced
from worker.ledger.values import Answer, Keys, LinkState, Operation, Origin, State, WriteOutcome

NO_EPOCH = -1  # of a write whose answer says nothing of the link's digest
PARENT, VALUE = "parent", "value"  # how a record holds another one's key: in its path, or in a field
FETCH, SEARCH = "fetch", "search"  # how a mapping came to read another resource's content
THERE = (LinkState.LINKED, LinkState.LEFT_BEHIND)  # the record is in the legacy system

_links_met = select(links).where(
    or_(
        and_(links.c.reference == OF, links.c.slot == SLOT),
        and_(links.c.collection == bindparam("in_collection"), links.c.key == bindparam("under_key")),
    )
)
WAKE_CHILDREN = (
    update(mirrors)
    .where(mirrors.c.waiting_for == OF, mirrors.c.state.in_([State.WAITING, State.FAILED]))
    .values(state=State.DUE, due_at=NOW, waiting_for=None, attempts=0, since=NOW)
)
_hold_with_others = select(mirrors.c.reference).where(mirrors.c.reference == OF).with_for_update(read=True)
_hold_own = select(mirrors.c.reference).where(mirrors.c.reference == OF).with_for_update()
DUE_SINCE = case((mirrors.c.state == State.DUE, mirrors.c.since), else_=NOW)
_depends = select(dependencies.c.reference).where(dependencies.c.depends_on == OF)
_dependents = _depends.where(dependencies.c.kind.in_([PARENT, VALUE]))
_read = or_(dependencies.c.kind == FETCH, dependencies.c.kind == SEARCH)  # an IN is put together anew each time
_readers = _depends.where(_read, dependencies.c.reference != OF)


def _ask(whom: Select[Any]) -> Update:
    return (
        update(mirrors)
        .where(mirrors.c.reference.in_(whom), mirrors.c.state != State.HELD)
        .values(
            state=State.DUE,
            due_at=func.coalesce(mirrors.c.due_at, NOW),
            hints=mirrors.c.hints + 1,
            attempts=0,
            since=DUE_SINCE,
        )
    )


_ask_dependents, _ask_readers = _ask(_dependents), _ask(_readers)
_void_dependents = (
    update(links)
    .where(links.c.reference.in_(_depends.where(dependencies.c.kind.in_(bindparam("kinds", expanding=True)))))
    .values(digest=None, epoch=links.c.epoch + 1)
)
_distrust_dependents = (  # a create under way has no link yet that could be void
    update(announced)
    .where(announced.c.reference.in_(_dependents), announced.c.outcome.is_(None))
    .values(link_epoch=NO_EPOCH)
)


class KeyMoved(LedgerError):
    """A record whose key a write holds has another one by now, or is deleted: look again."""


def first_key(keys: Keys | None) -> str | None:
    return None if not keys else str(next(iter(keys.values())))


def bring_link_in_line(tx: Transaction, write: Any, answer: Answer, *, late: bool, baseline: bytes | None) -> bool:
    """Make the link say what the answer said. Returns False where the mirror had to be held.

    `baseline` is the answer's, sealed. A late answer is not believed to be the last word on what the record says.
    """
    created = write.operation == Operation.CREATE and answer.keys is not None
    key = first_key(answer.keys)
    about = {"of": write.reference, "in_slot": write.slot, "in_collection": write.collection, "under_key": key}
    met = tx.execute(_links_met, about).all()
    link = next((row for row in met if (row.reference, row.slot) == (write.reference, write.slot)), None)
    if created:
        others = any(row is not link for row in met)
        return _link_created(tx, write, answer, link, key_is_taken=others, late=late, baseline=baseline)
    if link is None:
        return True
    values: dict[str, Any] = {"updated_at": tx.now, "epoch": link.epoch + (1 if late else 0)}
    if write.operation == Operation.REPLACE:
        values |= _old_one_gone(link, late=late)
    elif write.operation == Operation.DELETE:
        values |= {"digest": None} | ({} if late else {"state": LinkState.TOMBSTONE, "look_at": None})
        if not late:
            tell_dependents(tx, write.reference, void=(PARENT,))
    elif answer.outcome is WriteOutcome.DONE and link.state != LinkState.HALF_REPLACED:
        trusted = not late and link.epoch == write.link_epoch
        values |= _written(write, answer, trusted=trusted, baseline=None if late else baseline)
        if link.state in (LinkState.TOMBSTONE, LinkState.FORGOTTEN):
            _lives_again(tx, write.reference)
    else:
        values["digest"] = None
    tx.execute(update(links).where(links.c.id == link.id).values(**values))
    return True


def _old_one_gone(link: Any, *, late: bool) -> dict[str, Any]:
    """9: the half-way point of a replace, or its end where the new record was made first.

    A late answer moves nothing: the attempt that took over sends the delete again, and what is gone is as good as done.
    """
    if link.old_keys is not None:
        return {} if late else {"old_keys": null()}
    half = {"state": LinkState.HALF_REPLACED, "key": None, "baseline": None}
    return {"digest": None} | ({} if late else half)


def _written(write: Any, answer: Answer, *, trusted: bool, baseline: bytes | None) -> dict[str, Any]:
    return {
        "digest": answer.digest if trusted else None,
        "version_id": write.version_id,
        "mapping_version": write.mapping_version,
        "state": LinkState.LINKED,
        "reason": None,
        "baseline": baseline,
    }


def _link_created(
    tx: Transaction,
    write: Any,
    answer: Answer,
    link: Any,
    *,
    key_is_taken: bool,
    late: bool,
    baseline: bytes | None,
) -> bool:
    """Make or adopt the link of a record that was created, or hold the mirror where two records would share it."""
    key = first_key(answer.keys)
    second = link is not None and link.state in THERE and link.key != key
    if second and not _takes_its_place(tx, write, answer, link, late=late):
        _hold(tx, write.reference, "second record", "two legacy records were made for one resource; see its writes")
        tx.execute(update(links).where(links.c.id == link.id).values(digest=None, epoch=link.epoch + 1))
        return False
    epoch = link.epoch if link is not None else 0
    trusted = not late and epoch == write.link_epoch  # who found the record says a digest only if it agrees with it
    values = _written(write, answer, trusted=trusted, baseline=None if late else baseline) | {
        "collection": write.collection,
        "key": key,
        "record_keys": dict(answer.keys or {}),
        "parents": write.parents,
        "epoch": epoch + (1 if late else 0),
        "look_at": write.bound_at if answer.look_again else link and link.look_at,
        "updated_at": tx.now,
        "origin": Origin.FOUND if answer.outcome is WriteOutcome.FOUND else Origin.CREATED,
    }
    if second:
        values["old_keys"] = link.record_keys
    if write.write_back and (link is None or link.key != key):
        values |= {"identify_at": tx.now, "identify_attempts": 0}
    if key_is_taken or not _put_link(tx, write, link, values):
        _hold(tx, write.reference, "owned key", "the legacy API answered with the key of another resource's record")
        return False
    if link is not None and link.key != key:
        tell_dependents(tx, write.reference, void=(PARENT, VALUE))
    depend(tx, write.reference, write.parents.values(), PARENT)
    tx.execute(WAKE_CHILDREN, {"of": write.reference, "now": tx.now})
    return True


def _takes_its_place(tx: Transaction, write: Any, answer: Answer, link: Any, *, late: bool) -> bool:
    """9: a record that was made first to replace the link's; too late if another write was announced since."""
    if not answer.replaces or link.old_keys is not None:
        return False
    newer = announced.c.id > write.id, announced.c.reference == write.reference, announced.c.slot == write.slot
    return not late or tx.execute(select(announced.c.id).where(*newer).limit(1)).first() is None


def _lives_again(tx: Transaction, reference: str) -> None:
    """A record that was deleted is back under its old key: those who stand under it are looked at."""
    tell_dependents(tx, reference, void=(PARENT,))
    tx.execute(WAKE_CHILDREN, {"of": reference, "now": tx.now})


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


def keys_of(tx: Transaction, references: Collection[str], buried: Collection[str] = ()) -> dict[str, Keys]:
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


def check_keys(tx: Transaction, own: str, used: Mapping[str, Keys]) -> None:
    """See that the keys which a write holds are those of today.

    Whoever changes a record's key holds its mirror and then tells those who are noted to hold the key. So the mirrors
    are held here, before it is noted: else both could miss each other. They are held in the order in which intake holds
    them, or the two could wait for each other. SQLite has one writer at a time anyway.
    """
    for reference in () if tx.on_sqlite else sorted({own, *used}):
        tx.execute(_hold_own if reference == own else _hold_with_others, {"of": reference})
    today = keys_of(tx, list(used))
    moved = sorted(reference for reference, keys in used.items() if today.get(reference) != keys)
    if moved:
        raise KeyMoved(f"the record of {moved[0]} has another key by now, or is deleted")


def tell_readers(tx: Transaction, of: str) -> None:
    """Have every resource looked at whose mapping has read this one: its content is another now."""
    tx.execute(_ask_readers, {"of": of, "now": tx.now})


def depend(tx: Transaction, reference: str, on: Iterable[str], kind: str) -> None:
    """Note on whom a record's path, fields or content depend. Never taken back: who is told in vain but looks."""
    rows = [{"reference": reference, "depends_on": each, "kind": kind} for each in sorted(set(on))]
    if rows:
        tx.execute(insert_or(tx, dependencies).on_conflict_do_nothing(), rows)


def tell_dependents(tx: Transaction, of: str, *, void: Sequence[str]) -> None:
    """Have every resource looked at whose record holds the key of this one, which is another now, or buried.

    Those that hold it in a way that `void` names are written anew, though their content by reference is the same.
    """
    tx.execute(_ask_dependents, {"of": of, "now": tx.now})
    tx.execute(_void_dependents, {"of": of, "kinds": list(void)})
    tx.execute(_distrust_dependents, {"of": of})
