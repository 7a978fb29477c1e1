"""Both sides of a decision, opened for a person: what a record said and what we would write. Each look is recorded."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from worker.ledger.database import Transaction, writes
from worker.ledger.operate import note_action
from worker.ledger.sealing import NoKey, SealBroken
from worker.ledger.statements import OF, SLOT
from worker.ledger.store import Store
from worker.ledger.tables import links
from worker.ledger.tables import writes as announced
from worker.ledger.values import Operation


class Opening(Store):
    """The verb that opens what is sealed of a resource's records."""

    @writes
    def sides(self, tx: Transaction, reference: str, *, who: str) -> dict[str, str]:
        """Open ours (what was last sent, or would be) and theirs (what was there before) of each record, as JSON.

        What was never kept, and what no key opens, is left out.

        Raises:
            NoKey: no payload key is given.
        """
        if not self.sealer.can_seal:
            raise NoKey
        kept = select(links).where(links.c.reference == reference, links.c.before_image.is_not(None))
        opened: dict[str, str | None] = {}
        for link in tx.execute(kept.order_by(links.c.slot)):
            name = f"{link.collection} ({link.slot})" if link.slot else str(link.collection)
            write = tx.execute(_last_body, {"of": reference, "in_slot": link.slot}).one_or_none()
            if write is not None:
                opened[f"{name}, ours"] = self._open_side(
                    write.body, "writes", reference, write.version_id or "", "body"
                )
            place = ("links", reference, link.slot, "before_image")
            opened[f"{name}, before"] = self._open_side(link.before_image, *place)
        told = {name: text for name, text in opened.items() if text is not None}
        if told:
            note_action(tx, who=who, action="sides", why=None, arguments={"reference": reference}, affected=len(told))
        return told

    @writes
    def note_preview(self, tx: Transaction, reference: str, *, who: str) -> None:
        """Note that somebody is shown what a resource would be written as."""
        note_action(tx, who=who, action="preview", why=None, arguments={"reference": reference}, affected=1)

    def _open_side(self, sealed: Any, table: str, reference: str, version: str, column: str) -> str | None:
        try:
            plain = self.sealer.open(sealed, table=table, reference=reference, version=version, column=column)
        except SealBroken:
            return None
        return plain.decode(errors="replace")


_last_body = (
    select(announced.c.body, announced.c.version_id)
    .where(
        announced.c.reference == OF,
        announced.c.slot == SLOT,
        announced.c.operation.in_([Operation.CREATE, Operation.UPDATE]),
        announced.c.body.is_not(None),
    )
    .order_by(announced.c.id.desc())
    .limit(1)
)
