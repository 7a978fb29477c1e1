"""The tokens of legacy APIs, sealed, one for all workers. It knows neither how one is asked for nor what it opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import or_, select, update

from worker.ledger.database import Transaction, reads, writes
from worker.ledger.sealing import SealBroken
from worker.ledger.statements import insert
from worker.ledger.store import Store
from worker.ledger.tables import secrets
from worker.ledger.values import KeptToken, State

__all__ = ["Tokens"]


class Tokens(Store):
    """The verbs over tokens. A lease lets one renew; who keeps or gives up under another's lease changes nothing."""

    @reads
    def token(self, tx: Transaction, name: str) -> KeptToken | None:
        """Return what is kept under a name."""
        row = tx.execute(select(secrets).where(secrets.c.name == name)).one_or_none()
        if row is None:
            return None
        over = row.lease_until is None or row.lease_until <= tx.now
        return KeptToken(
            content=self._token_opened(name, row.value),
            left_s=None if row.expires_at is None else (row.expires_at - tx.now).total_seconds(),
            unended=row.lease_owner is not None and over,
            rests=row.lease_owner is None and not over,
        )

    @writes
    def lease_token(self, tx: Transaction, name: str, *, owner: str, lease_s: float) -> bool:
        """Let one renew it; False while somebody else does."""
        tx.execute(insert(tx, secrets).values(name=name, updated_at=tx.now).on_conflict_do_nothing())
        taken = tx.execute(
            update(secrets)
            .where(secrets.c.name == name, or_(secrets.c.lease_owner.is_(None), secrets.c.lease_until <= tx.now))
            .values(lease_owner=owner, lease_until=tx.now + timedelta(seconds=lease_s))
        )
        return bool(taken.rowcount)

    @writes
    def keep_token(
        self, tx: Transaction, name: str, content: Mapping[str, object], *, owner: str, left_s: float | None
    ) -> bool:
        """Keep what a renewal brought, and end its lease; False if it was another's by now, who did better.

        A worker that comes late, after another one was refused, still has the only token that opens.
        """
        expires_at = None if left_s is None else tx.now + timedelta(seconds=left_s)
        row = tx.execute(select(secrets).where(secrets.c.name == name).with_for_update()).one_or_none()
        refused = row is not None and row.lease_owner is None and self._token_opened(name, row.value).get("trouble")
        of = None if refused else owner
        return self._token_ended(tx, name, content, of, expires_at=expires_at, lease_until=None)

    @writes
    def rest_token(
        self, tx: Transaction, name: str, content: Mapping[str, object], *, owner: str, rest_s: float
    ) -> None:
        """End the lease of a renewal that failed; nobody tries again for so many seconds."""
        self._token_ended(tx, name, content, owner, lease_until=tx.now + timedelta(seconds=rest_s))

    @reads
    def failed_tokens(self, tx: Transaction) -> list[dict[str, Any]]:
        """List the legacy APIs that refuse to give a token, as `failed` lists mirrors: a person must mend it."""
        rows = tx.execute(select(secrets.c.name, secrets.c.value, secrets.c.updated_at).order_by(secrets.c.name))
        return [
            {
                "reference": f"legacy:{row.name}",
                "state": State.FAILED,
                "reason": "token",
                "detail": str(words),
                "since": row.updated_at.isoformat(),
                "attempts": 1,
            }
            for row in rows
            if (words := self._token_opened(row.name, row.value).get("trouble"))
        ]

    def _token_ended(
        self, tx: Transaction, name: str, content: Mapping[str, object], owner: str | None, **columns: object
    ) -> bool:
        plain = json.dumps(dict(content)).encode()
        value = self.sealer.seal(plain, table="secrets", reference=name, version=None, column="value")
        ended = tx.execute(
            update(secrets)
            .where(secrets.c.name == name, secrets.c.lease_owner == owner)
            .values(value=value, lease_owner=None, updated_at=tx.now, **columns)
        )
        return bool(ended.rowcount)

    def _token_opened(self, name: str, value: bytes | None) -> dict[str, object]:
        """Open what is kept; what no key opens any more is as good as not there: a new token is asked for."""
        if value is None:
            return {}
        try:
            plain = self.sealer.open(value, table="secrets", reference=name, version=None, column="value")
        except SealBroken:
            return {}
        content: dict[str, object] = json.loads(plain)
        return content
