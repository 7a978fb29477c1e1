"""The access token: one for all threads, fetched by one of them. It is kept in memory only, and never shown."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic import SecretStr

from worker.deadline import CallFailed, deadline, left
from worker.errors import MedplumError, MedplumRefused, MedplumUnavailable
from worker.medplum.answer import failure

__all__ = ["Tokens", "again"]

FETCHES_A_MINUTE = 40  # Medplum allows 160 an address, and several processes share one
HOLD_OFF_S = 1.0
EARLY_FETCH_S = 3.0
_WHAT = "the request for an access token"
_WRONG_CLIENT = (
    "Medplum refuses the client: REVERSE_SYNC_MEDPLUM_CLIENT_ID and REVERSE_SYNC_MEDPLUM_CLIENT_SECRET "
    "should be the id and the secret of a ClientApplication that is active"
)
_LOOKS_LIKE_A_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    renew_at: float
    ends_at: float


class Tokens:
    """Tokens of one client by client_credentials; they have no refresh token."""

    def __init__(
        self, http: httpx.Client, client_id: str, secret: SecretStr, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._http = http
        self._client_id = client_id
        self._secret = secret
        self._clock = clock
        self._lock = threading.Lock()
        self._token: _Token | None = None
        self._fetches: deque[float] = deque(maxlen=FETCHES_A_MINUTE)
        self._failed: tuple[float, MedplumError] | None = None  # until when it stands for everyone, and what it was

    def current(self) -> str:
        """Return a token that should still be valid, fetching one if there is none."""
        token = self._token
        if token is None or self._clock() >= token.ends_at:
            return self._other_than(token)
        if self._clock() >= token.renew_at:
            self._renew_early(token)
        return (self._token or token).value

    def renewed(self, refused: str) -> str:
        """Return another token than the one that Medplum has just refused."""
        token = self._token
        return token.value if token and token.value != refused else self._other_than(token)

    def _other_than(self, token: _Token | None) -> str:
        with self._locked():
            if self._token is None or self._token is token:
                self._token = self._fetched()
            return self._token.value

    def _renew_early(self, token: _Token) -> None:
        """Let one thread renew while the others go on; if it fails, the old one is still good."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._token is token:
                with deadline(min(EARLY_FETCH_S, left() / 4)):
                    self._token = self._fetched()
        except MedplumError:
            pass
        finally:
            self._lock.release()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=min(left(), threading.TIMEOUT_MAX)):
            raise MedplumUnavailable("no access token came before the deadline")
        try:
            yield
        finally:
            self._lock.release()

    def _fetched(self) -> _Token:
        now = self._clock()
        if self._failed and now < self._failed[0]:  # those who waited for the lock need not find out each by itself
            raise again(self._failed[1])
        if len(self._fetches) == FETCHES_A_MINUTE and now - self._fetches[0] < 60:  # noqa: PLR2004
            raise MedplumUnavailable("too many access tokens in a minute", retry_after_s=60 - (now - self._fetches[0]))
        self._fetches.append(now)
        try:
            token = self._fetch()
        except MedplumError as error:
            self._failed = (self._clock() + HOLD_OFF_S, error)
            raise
        self._failed = None
        return token

    def _fetch(self) -> _Token:
        form = {
            "grant_type": "client_credentials",
            "client_id": self._client_id,
            "client_secret": self._secret.get_secret_value(),
        }
        asked_at = self._clock()
        try:
            response = self._http.post("oauth2/token", data=form)
        except CallFailed as error:
            raise MedplumUnavailable(f"no access token: {error}") from None
        if response.status_code in {400, 401, 403}:
            raise MedplumRefused(_WRONG_CLIENT)
        if response.status_code != 200:  # noqa: PLR2004
            raise failure(response, _WHAT)
        return _token(response, asked_at)


def _token(response: httpx.Response, asked_at: float) -> _Token:
    try:
        answer: Any = response.json()
        value, lifetime_s = answer["access_token"], float(answer.get("expires_in", 3600))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MedplumUnavailable(f"the answer to {_WHAT} holds none") from None
    if not isinstance(value, str) or not _LOOKS_LIKE_A_TOKEN.fullmatch(value) or not 0 < lifetime_s < float("inf"):
        raise MedplumUnavailable(f"the answer to {_WHAT} holds none")
    return _Token(value, renew_at=asked_at + 0.8 * lifetime_s, ends_at=asked_at + 0.95 * lifetime_s)


def again(error: MedplumError) -> MedplumError:
    """Return the same error anew: one exception raised in two threads mixes up their tracebacks."""
    if isinstance(error, MedplumUnavailable):
        return MedplumUnavailable(str(error), retry_after_s=error.retry_after_s)
    return type(error)(str(error))
