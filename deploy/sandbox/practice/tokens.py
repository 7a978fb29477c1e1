"""Who may ask: the password, access tokens that end soon, refresh tokens that can be used once.

It keeps tokens in the store's database, so that they outlive a restart, and are there if the request's answer may be.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deploy.sandbox.witness.store import Store

_SCHEMA = """
CREATE TABLE IF NOT EXISTS token (
    n INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, use TEXT NOT NULL, chain INTEGER NOT NULL, state TEXT NOT NULL,
    issued_at REAL NOT NULL, expires_at REAL
);
"""


@dataclass(frozen=True, slots=True)
class Account:
    """What must be sent for a first token."""

    client_id: str
    client_secret: str
    username: str
    password: str

    def is_client(self, form: Mapping[str, str]) -> bool:
        return _equal(form, client_id=self.client_id, client_secret=self.client_secret)

    def is_user(self, form: Mapping[str, str]) -> bool:
        return _equal(form, username=self.username, password=self.password, user_role="users")


def _equal(form: Mapping[str, str], **wanted: str) -> bool:
    return all(hmac.compare_digest(form.get(name, "").encode(), value.encode()) for name, value in wanted.items())


class Tokens:
    """All tokens ever given; a chain is everything that came of one password."""

    def __init__(self, store: Store, seconds: float) -> None:
        self._sql, self.seconds = store.sql, seconds
        self._sql.executescript(_SCHEMA)

    def log_in(self) -> dict[str, str]:
        """Begin a chain."""
        last = self._sql.execute("SELECT coalesce(max(chain), 0) FROM token").fetchone()[0]
        return self._issue(last + 1)

    def refresh(self, token: str) -> dict[str, str] | None:
        """Use a refresh token up for new ones; a dead one ends its whole chain, for whoever holds it may be a thief."""
        row = self._sql.execute(
            "SELECT chain, state FROM token WHERE token = ? AND use = 'refresh'", (token,)
        ).fetchone()
        if row is None:
            return None
        chain, state = row
        if state != "live":
            self._sql.execute("UPDATE token SET state = 'revoked' WHERE chain = ?", (chain,))
            return None
        self._sql.execute("UPDATE token SET state = 'used' WHERE token = ?", (token,))
        return self._issue(chain)

    def _issue(self, chain: int) -> dict[str, str]:
        now, access, refresh = time.time(), secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self._sql.executemany(
            "INSERT INTO token (token, use, chain, state, issued_at, expires_at) VALUES (?, ?, ?, 'live', ?, ?)",
            [(access, "access", chain, now, now + self.seconds), (refresh, "refresh", chain, now, None)],
        )
        kind = {"token_type": "Bearer", "expires_in": f"{self.seconds:g}"}
        return {"access_token": access, "refresh_token": refresh} | kind

    def admits(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        query = "SELECT 1 FROM token WHERE token = ? AND use = 'access' AND state = 'live' AND expires_at > ?"
        return scheme == "Bearer" and self._sql.execute(query, (token, time.time())).fetchone() is not None

    def lines(self) -> Iterator[dict[str, Any]]:
        """Tell of every token, but not the token itself."""
        names = ("n", "use", "chain", "state", "issued_at", "expires_at")
        for row in self._sql.execute(f"SELECT {', '.join(names)} FROM token ORDER BY n").fetchall():  # noqa: S608
            yield dict(zip(names, row, strict=True))

    def expire(self) -> None:
        """End every access token now."""
        self._sql.execute("UPDATE token SET expires_at = 0 WHERE use = 'access'")
        self._sql.commit()

    def revoke(self) -> None:
        """End everything: only the password helps."""
        self._sql.execute("UPDATE token SET state = 'revoked'")
        self._sql.commit()
