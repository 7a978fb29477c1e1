"""What is said to be gone for good: a legacy record that nothing will bring back, so that another may be made.

Nothing is believed of the record from then on, and nothing is sent from here: the attempt that follows looks for the
record, where its API can, before it makes another. The link stays as a tombstone, so that a late answer is recognised.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, update

from worker.errors import LedgerError
from worker.ledger.database import Transaction, writes
from worker.ledger.linking import PARENT, THERE, tell_dependents
from worker.ledger.operate import note_action
from worker.ledger.statements import OF, due_anew
from worker.ledger.store import Store
from worker.ledger.tables import links, mirrors
from worker.ledger.tables import writes as announced
from worker.ledger.values import LinkState, Operation, WriteOutcome

FORGET = "create again"
"""The action's name in what people did."""

_mirror_held = select(mirrors).where(mirrors.c.reference == OF).with_for_update()


class Forgetting(Store):
    """The verb of `reverse-sync replay REF --create-again`."""

    @writes
    def forget_record(self, tx: Transaction, reference: str, slot: str, *, who: str, why: str) -> bool:
        """Note a person's word that the legacy record of a link is gone for good, and make its resource due.

        Returns False, and does nothing, where the ledger knows of no record that is there: none was made, or it was
        deleted or forgotten already. Whether the record can still be read is for the caller to look.

        Raises:
            LedgerError: an attempt is under way, or a write that nobody answered may still land.
        """
        mirror = tx.execute(_mirror_held, {"of": reference}).one_or_none()
        mine = links.c.reference == reference, links.c.slot == slot
        link = tx.execute(select(links).where(*mine)).one_or_none()
        if mirror is None or link is None or link.state not in THERE:
            return False
        _refuse_unsettled(tx, mirror)
        _close_overdue(tx, reference, slot)
        tx.execute(
            update(links)
            .where(*mine)
            .values(
                state=LinkState.FORGOTTEN,
                reason=None,
                digest=None,
                epoch=link.epoch + 1,
                baseline=None,
                look_at=None,
                identify_at=None,
                updated_at=tx.now,
            )
        )
        tell_dependents(tx, reference, void=(PARENT,))
        _make_due(tx, mirror)
        named = {"reference": reference, "slot": slot, "collection": link.collection, "key": link.key}
        note_action(tx, who=who, action=FORGET, why=why, arguments=named, affected=1)
        return True


def _refuse_unsettled(tx: Transaction, mirror: Any) -> None:
    """3c: whatever is under way could find the record, or make one, that nobody would know of."""
    reference = mirror.reference
    if mirror.lease_until is not None and mirror.lease_until > tx.now:
        raise LedgerError(f"{reference} is being synced now: again in a minute")
    bound = tx.execute(
        select(func.max(announced.c.bound_at)).where(announced.c.reference == reference, announced.c.outcome.is_(None))
    ).scalar_one()
    if bound is not None and bound > tx.now:
        raise LedgerError(
            f"{reference}: a write has no answer and may still land: wait until {bound:%Y-%m-%d %H:%M:%S} UTC"
        )


def _close_overdue(tx: Transaction, reference: str, slot: str) -> None:
    """Close what was to change the record and can act no more; a create is still looked up by the next attempt."""
    open_ones = announced.c.reference == reference, announced.c.slot == slot, announced.c.outcome.is_(None)
    changing = announced.c.operation != Operation.CREATE
    tx.execute(update(announced).where(*open_ones, changing).values(outcome=WriteOutcome.LAPSED))


def _make_due(tx: Transaction, mirror: Any) -> None:
    tx.execute(update(mirrors).where(mirrors.c.reference == mirror.reference).values(**due_anew(tx)))
