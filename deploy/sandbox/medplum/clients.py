"""Who may call: clients and their secrets, access tokens, and the quota that each has.

It keeps tokens in the store, so that they outlive a restart as Medplum's do, and the quota in memory.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_plus

from .faults import Faults
from .javascript import Json
from .outcome import throttled, unauthorized
from .store import Store

__all__ = ["DEFAULT_CLIENTS", "Client", "Clients"]

TOKEN_SECONDS = 3_600
_WINDOW_SECONDS = 60.0
_TOKENS_PER_MINUTE = 160
_UNITS_PER_MINUTE = 50_000
_AMPLE = 100_000_000


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody with credentials; `profile` is what the resources name as their author."""

    id: str
    secret: str
    name: str
    profile: str
    units_per_minute: int = _UNITS_PER_MINUTE
    may_set_id: bool = False

    @property
    def author(self) -> Json:
        """Return meta.author of what this client writes."""
        return {"reference": self.profile, "display": self.name}


def _client(id_: str, name: str, units: int = _UNITS_PER_MINUTE, *, may_set_id: bool = False) -> Client:
    return Client(id_, f"{id_}-secret", name, f"ClientApplication/{id_}", units, may_set_id)


DEFAULT_CLIENTS = (
    _client("sync", "sync client"),
    _client("frontend", "front end", _AMPLE),
    _client("admin", "admin", _AMPLE, may_set_id=True),
)


class _Window:
    """Units used in the running minute."""

    def __init__(self) -> None:
        self._ends, self.used = 0.0, 0

    def use(self, units: int) -> None:
        now = time.monotonic()
        if now >= self._ends:
            self._ends, self.used = now + _WINDOW_SECONDS, 0
        self.used += units

    def left_ms(self) -> int:
        return max(0, int((self._ends - time.monotonic()) * 1_000))


class Clients:
    """The gate in front of the API."""

    def __init__(self, store: Store, faults: Faults, clients: Mapping[str, Client]) -> None:
        self._store, self._faults, self._clients = store, faults, clients
        self._windows: dict[str, _Window] = {}
        self._known: dict[str, tuple[str, float]] = {}

    def get(self, id_: str) -> Client | None:
        """Return a client by its id."""
        return self._clients.get(id_)

    def authenticate(self, form: Mapping[str, str], authorization: str) -> Client:
        """Return the client of a token request: its id and secret in the form or as Basic."""
        id_, secret = form.get("client_id", ""), form.get("client_secret", "")
        if authorization.lower().startswith("basic "):
            id_, secret = _basic(authorization[6:])
        client = self._clients.get(id_)
        if client is None or not hmac.compare_digest(client.secret.encode(), secret.encode()):
            raise unauthorized()
        return client

    def grant(self, client: Client, address: str) -> Json:
        """Hand out a token; 160 an address and minute."""
        window = self._windows.setdefault(f"token {address}", _Window())
        window.use(1)
        if window.used > _TOKENS_PER_MINUTE:
            raise throttled(window.left_ms(), window.used, _TOKENS_PER_MINUTE)
        token = secrets.token_urlsafe(32)
        self._store.grant(token, client.id, time.time() + TOKEN_SECONDS)
        return {
            "token_type": "Bearer",
            "expires_in": TOKEN_SECONDS,
            "scope": "openid",
            "access_token": token,
            "profile": {"reference": client.profile, "display": client.name},
        }

    def of_bearer(self, authorization: str) -> Client:
        """Return whose token it is; 401 for an unknown or expired one."""
        kind, _, token = authorization.partition(" ")
        known = self._known.get(token) or self._store.bearer(token)
        if kind.lower() != "bearer" or known is None or known[1] <= time.time() or known[0] not in self._clients:
            raise unauthorized()
        self._known[token] = known
        return self._clients[known[0]]

    def expire_tokens(self) -> None:
        """Make every token unknown."""
        self._known.clear()
        self._store.expire_bearers()

    def charge(self, client: Client, units: int) -> str:
        """Take units from the client's minute; return the RateLimit header, raise 429 beyond."""
        window = self._windows.setdefault(client.id, _Window())
        window.use(units)
        limit = self.limit(client)
        if window.used > limit:
            raise throttled(window.left_ms(), window.used, limit)
        return self.rate_limit(client)

    def rate_limit(self, client: Client) -> str:
        """Return the RateLimit header as it stands."""
        window = self._windows.setdefault(client.id, _Window())
        left = max(0, self.limit(client) - window.used)
        return f'"fhirInteractions";r={left};t={-(-window.left_ms() // 1_000)}'

    def limit(self, client: Client) -> int:
        """Return the client's units a minute."""
        override = self._faults.units_per_minute
        return client.units_per_minute if override is None else override

    def forget_usage(self) -> None:
        """Begin new minutes."""
        self._windows.clear()


def _basic(encoded: str) -> tuple[str, str]:
    try:
        id_, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise unauthorized() from None
    return unquote_plus(id_), unquote_plus(secret)
