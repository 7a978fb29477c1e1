"""What a mapping has read besides its own resource: noted, so that a change there is looked at here.

Notes are made before the read that they are about: what changes after it finds them.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select

from worker.ledger.database import Transaction, reads, writes
from worker.ledger.linking import SEARCH, depend
from worker.ledger.statements import insert, routed_types
from worker.ledger.store import Store
from worker.ledger.tables import dependencies, mirrors
from worker.ledger.values import State

__all__ = ["Depending"]


class Depending(Store):
    """The verbs over what mappings read."""

    def note_read(self, reference: str, on: Sequence[str], kind: str) -> bool:
        """Note that a mapping reads other resources, by "fetch" or "search". Returns whether one of them is new.

        What is known already costs no write.
        """
        if not on or self._noted(reference, on, kind) == len(set(on)):
            return False
        self._note_read(reference, on, kind)
        return True

    @reads
    def _noted(self, tx: Transaction, reference: str, on: Sequence[str], kind: str) -> int:
        known = dependencies.c.reference == reference, dependencies.c.kind == kind, dependencies.c.depends_on.in_(on)
        return int(tx.execute(select(func.count()).select_from(dependencies).where(*known)).scalar_one())

    @writes
    def _note_read(self, tx: Transaction, reference: str, on: Sequence[str], kind: str) -> None:
        depend(tx, reference, on, kind)

    @writes
    def note_part(self, tx: Transaction, reference: str, owner: str) -> None:
        """Note that a resource is part of another, which is looked at whenever this one settles with news.

        An owner of a type that has a route gets its mirror here, where it has none yet.
        """
        depend(tx, owner, [reference], SEARCH)
        resource_type = owner.partition("/")[0]
        if resource_type in routed_types(tx):
            blank = {"reference": owner, "resource_type": resource_type, "state": State.CURRENT, "since": tx.now}
            tx.execute(insert(tx, mirrors).values(**blank).on_conflict_do_nothing())
