"""One token of a legacy API for all workers: fetched by one of them, kept sealed, and used by the others.

A refresh token that is used up is gone for ever, so its successor is kept before anything is done with it. It never
shows a token: not in an error, a log line or a repr. How a token is asked for is in `auth`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import httpx

from worker.deadline import CallFailed, left
from worker.errors import LedgerError, RoutesInvalid
from worker.ledger.values import KeptToken

__all__ = ["NoToken", "Shared", "Token", "TokenRefused", "TokenStore"]

REQUEST_S = 20.0
LEASE_S = 60.0  # longer than two requests for a token may take
LEAST_S = 2.0  # with less time left a refresh token is not used: an answer that comes too late loses its successor
LOOK_S = 0.05  # between two looks whether another worker's token has come
REST_S, REFUSED_REST_S = 1.0, 60.0  # after a request for a token that failed; each refused one can lock an account
_LOST = (
    "; an earlier renewal had no end, so the refresh token that it used up has no successor: "
    "get a new one from the vendor and set it"
)

_UNBOUND = (
    "its refresh token is used up by the first request, so it is only sent where a ledger keeps the next one: "
    "REVERSE_SYNC_PAYLOAD_KEY"
)


class NoToken(CallFailed):
    """There is no token, so nothing was sent; tried again by itself.

    `asked` says that a request for one went out, and what came of it is not known.
    """

    def __init__(self, why: str, *, asked: bool = False) -> None:
        super().__init__(f"no token: {why}", sent=False)
        self.why, self.asked = why, asked


class TokenRefused(NoToken):
    """The API refuses to give a token: a person must mend the credentials. Tried again by itself, seldom."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a request for a token brought. `left_s` None: it ends when it is refused."""

    value: str = field(repr=False)
    refresh: str | None = field(default=None, repr=False)
    left_s: float | None = None


class TokenStore(Protocol):
    """Where tokens are kept for all workers, sealed: the ledger."""

    def token(self, name: str) -> KeptToken | None:
        """Return what is kept under a name."""

    def lease_token(self, name: str, *, owner: str, lease_s: float) -> bool:
        """Let one renew it; False while somebody else does, or while it rests."""

    def keep_token(self, name: str, content: Mapping[str, object], *, owner: str, left_s: float | None) -> bool:
        """Keep what a renewal brought, and end its lease; False if it was another's by now, who did better."""

    def rest_token(self, name: str, content: Mapping[str, object], *, owner: str, rest_s: float) -> None:
        """End the lease of a renewal that failed; nobody tries again for so many seconds."""


@dataclass(frozen=True, slots=True)
class _State:
    """What is kept of one API's token. `source` tells by which credentials it came: other ones have no use for it."""

    source: str
    token: str = field(default="", repr=False)
    refresh: str | None = field(default=None, repr=False)
    trouble: str = ""
    lost: bool = False

    @classmethod
    def of(cls, content: Mapping[str, object], source: str) -> _State:
        if content.get("source") != source:
            return cls(source)
        token, refresh, trouble = content.get("token"), content.get("refresh"), content.get("trouble")
        known = str(refresh) if refresh else None
        return cls(source, str(token or ""), known, str(trouble or ""), content.get("lost") is True)

    def content(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class _Held:
    """This process's copy."""

    value: str = field(repr=False)
    ends_at: float


class Shared(httpx.Auth):
    """Carries a token that all workers share; one that is refused is renewed once, and the request sent once more.

    A request that was answered by 401 was not done, and both requests together have the one deadline.
    """

    EARLY: ClassVar = 0.9  # of its lifetime, after which a token is renewed
    spends = False  # whether the declared credentials themselves are used up by a request

    def __init__(self, carry: str) -> None:
        name, colon, value = carry.partition(":")
        if not colon or "{token}" not in value:
            raise RoutesInvalid("carry is a header with {token} in it, as Authorization: Bearer {token}")
        self._header, self._value = name.strip(), value.strip()
        self._name = self._base_url = ""
        self._store: TokenStore = OwnTokens()
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._unkept: tuple[str, _State, float | None] | None = None

    @abstractmethod
    def source(self) -> str:
        """Describe the credentials; a hash of it tells whether a kept token came by these."""

    @abstractmethod
    def fetch(self, refresh: str | None) -> Token:
        """Ask for a token, by a refresh token if one is given.

        Raises:
            TokenRefused: the credentials are refused.
            NoToken: there was no answer, or none that holds a token.
        """

    @abstractmethod
    def close(self) -> None:
        """Close this process's connections."""

    def serve(self, name: str, base_url: str) -> None:
        """Belong to one API."""
        if self._name not in {"", name}:
            raise RoutesInvalid(f"{name}: its auth is that of {self._name}: declare one for each API")
        self._name, self._base_url = name, base_url

    def bind(self, name: str, store: TokenStore) -> None:
        """Keep tokens where all workers find them."""
        self._store, self._held = store, None
        self._name = self._name or name

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        token = self._current(None)
        request.headers[self._header] = self._value.replace("{token}", token)
        response = yield request
        if response.status_code == httpx.codes.UNAUTHORIZED:
            request.headers[self._header] = self._value.replace("{token}", self._current(token))
            yield request

    def _current(self, refused: str | None) -> str:
        """Return a token that should be valid and is not the refused one."""
        if self.spends and isinstance(self._store, OwnTokens):
            raise TokenRefused(_UNBOUND)
        if (held := self._usable(refused)) is not None:
            return held
        with self._locked():
            if (held := self._usable(refused)) is not None:
                return held
            try:
                return self._shared(refused)
            except LedgerError as error:
                raise NoToken(str(error)) from None

    def _usable(self, refused: str | None) -> str | None:
        held = self._held
        return held.value if held and held.value != refused and time.monotonic() < held.ends_at else None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=min(left(), threading.TIMEOUT_MAX)):
            raise NoToken("none came before the deadline")
        try:
            yield
        finally:
            self._lock.release()

    def _shared(self, refused: str | None) -> str:
        """Use what another worker brought, or be the one that renews."""
        source, owner = hashlib.sha256(self.source().encode()).hexdigest(), secrets.token_hex(8)
        self._keep_late()
        while True:
            kept = self._store.token(self._name)
            state = _State.of(kept.content if kept else {}, source)
            if (found := self._taken(kept, state, refused)) is not None:
                return found
            if kept is not None and kept.rests and kept.content.get("source") == source:
                raise TokenRefused(state.trouble) if state.trouble else NoToken("a request for one failed just now")
            if self._used_up(state) and left() < LEAST_S:
                raise NoToken("too little time is left to ask for one")
            if self._store.lease_token(self._name, owner=owner, lease_s=LEASE_S):
                lost = state.lost or (self._used_up(state) and kept is not None and kept.unended)
                return self._renewed(owner, source, refused, lost=lost)
            if left() <= LOOK_S:
                raise NoToken("none came before the deadline")
            time.sleep(LOOK_S)

    def _used_up(self, state: _State) -> bool:
        return state.refresh is not None or self.spends

    def _taken(self, kept: KeptToken | None, state: _State, refused: str | None) -> str | None:
        if kept is None or not state.token or state.token == refused or (kept.left_s is not None and kept.left_s <= 0):
            return None
        self._held = _Held(state.token, time.monotonic() + (float("inf") if kept.left_s is None else kept.left_s))
        return state.token

    def _renewed(self, owner: str, source: str, refused: str | None, *, lost: bool) -> str:
        """Renew under the lease; look first, because somebody may have renewed just before it was given."""
        kept = self._store.token(self._name)
        state = _State.of(kept.content if kept else {}, source)
        if (found := self._taken(kept, state, refused)) is not None:
            self._store.keep_token(self._name, state.content(), owner=owner, left_s=kept.left_s if kept else None)
            return found
        try:
            token = self._asked(state)
        except TokenRefused as trouble:
            words = f"{trouble.why}{_LOST if lost else ''}"
            failed = replace(state, token="", trouble=words, lost=lost)
            self._store.rest_token(self._name, failed.content(), owner=owner, rest_s=REFUSED_REST_S)
            raise TokenRefused(words) from None
        except NoToken as trouble:
            unanswered = replace(state, lost=lost or (trouble.asked and self._used_up(state)))
            self._store.rest_token(self._name, unanswered.content(), owner=owner, rest_s=REST_S)
            raise
        left_s = None if token.left_s is None else token.left_s * self.EARLY
        self._unkept = (owner, _State(source, token.value, token.refresh), left_s)
        self._keep_late()
        self._held = _Held(token.value, time.monotonic() + (float("inf") if left_s is None else left_s))
        return token.value

    def _asked(self, state: _State) -> Token:
        """Ask by the newest refresh token, and by the declared credentials where that is refused."""
        if state.refresh is not None:
            try:
                token = self.fetch(state.refresh)
            except TokenRefused:
                pass
            else:
                return replace(token, refresh=token.refresh or state.refresh)
        return self.fetch(None)

    def _keep_late(self) -> None:
        """Keep what is not yet kept: a ledger that was away for a moment must not cost a refresh token."""
        if self._unkept is not None:
            owner, state, left_s = self._unkept
            is_kept = self._store.keep_token(self._name, state.content(), owner=owner, left_s=left_s)
            self._unkept = None
            if not is_kept:
                raise NoToken("another worker has renewed it meanwhile")


class OwnTokens:
    """A process's own tokens, where no ledger is: a preview, a test. One thread at a time asks."""

    def __init__(self) -> None:
        self._content: dict[str, object] = {}
        self._ends_at: float | None = None
        self._rests_until = 0.0

    def token(self, name: str) -> KeptToken | None:
        now = time.monotonic()
        left_s = None if self._ends_at is None else self._ends_at - now
        return KeptToken(json.loads(json.dumps(self._content)), left_s, unended=False, rests=self._rests_until > now)

    def lease_token(self, name: str, *, owner: str, lease_s: float) -> bool:
        return True

    def keep_token(self, name: str, content: Mapping[str, object], *, owner: str, left_s: float | None) -> bool:
        self._content, self._rests_until = dict(content), 0.0
        self._ends_at = None if left_s is None else time.monotonic() + left_s
        return True

    def rest_token(self, name: str, content: Mapping[str, object], *, owner: str, rest_s: float) -> None:
        self._content, self._rests_until = dict(content), time.monotonic() + rest_s
