"""How a legacy API is entered. Any `httpx.Auth` serves; here is what httpx does not bring.

A token's answer is foreign text: nothing in it leads to another address, and none of it goes into an error.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Final
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from worker.deadline import CallFailed, client, deadline
from worker.errors import RoutesInvalid
from worker.legacy.body import Body, form_body, json_body
from worker.legacy.outcome import Header, NotJson, at, parsed
from worker.legacy.template import template
from worker.legacy.token import REQUEST_S, NoToken, Shared, Token, TokenRefused

__all__ = ["ApiKey", "Credential", "Login", "OAuth2"]

Credential = str | SecretStr | Callable[[], str]
"""One value of a form: what the vendor's page shows. A callable is asked each time, as for a signed assertion."""

REFUSED: Final = frozenset({400, 401, 403})
ERRORS: Final = frozenset(  # RFC 6749, 5.2: words of the standard, none of anybody's own
    {"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type",
     "invalid_scope"}
)  # fmt: skip
_LOOKS_LIKE_A_TOKEN = re.compile(r"[\x20-\x7e]+")


class ApiKey(httpx.Auth):
    """A key in a header."""

    def __init__(self, header: str, key: SecretStr) -> None:
        self._header = header
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers[self._header] = self._key.get_secret_value()
        yield request


class _Asking(Shared):
    """Asks one address for a token, on a connection of its own that leads nowhere else."""

    def __init__(self, carry: str, body: Body, token: str | Header, auth: httpx.Auth | None = None) -> None:
        super().__init__(carry)
        self._body, self._token, self._auth = body, token, auth
        self._clients: dict[int, httpx.Client] = {}
        self._making = threading.Lock()

    def close(self) -> None:
        with self._making:
            held = self._clients.pop(os.getpid(), None)
        if held is not None:
            held.close()

    def _ask(self, method: str, url: str, fields: Mapping[str, str]) -> tuple[object, str]:
        """Send the fields; return the answer and the token in it."""
        content_type, content = self._body(fields, {})
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Content-Type": content_type, "Accept": "application/json, */*;q=0.5"}
        try:
            with deadline(REQUEST_S):
                asked = self._client(f"{parts.scheme}://{parts.netloc}")
                response = asked.request(method, path, content=content, headers=headers)
        except CallFailed as failed:
            raise NoToken(f"nothing came from {parts.path}: {failed}", asked=failed.sent) from None
        try:
            answer = parsed(response.content)
        except NotJson:
            answer = None
        if not response.is_success:
            error = at(answer, "error")
            said = f"{parts.path} answered {response.status_code}{f' {error}' if error in ERRORS else ''}"
            raise TokenRefused(said) if response.status_code in REFUSED else NoToken(said, asked=True)
        place = self._token
        token = place.taken(response.headers.multi_items()) if isinstance(place, Header) else at(answer, place)
        if not isinstance(token, str) or not _LOOKS_LIKE_A_TOKEN.fullmatch(token):
            raise NoToken(f"the answer of {parts.path} holds none", asked=True)
        return answer, token

    def _client(self, origin: str) -> httpx.Client:
        with self._making:
            if (here := os.getpid()) not in self._clients:
                self._clients[here] = client(base_url=origin, deadline_s=REQUEST_S, connections=1, auth=self._auth)
            return self._clients[here]


class OAuth2(_Asking):
    """A bearer token, by whichever grant `form` is for.

    Where an answer carries a refresh token, renewal uses the newest one, sent along with the form's `client_…` fields,
    and falls back to the form.

    Args:
        token_url: where tokens are asked for; may be another host than the API's.
        form: what the vendor's page shows, grant type included. Only what is not callable tells one client's tokens
            from another's.
        body: form_body, json_body, json_api(…).
        token: where the token stands in the answer, as a dotted path.
        expires: where its lifetime in seconds stands; without one it is used until it is refused.
        refresh: where a refresh token stands, if there is any.
        carry: how requests carry the token.
        auth: how the client itself is told, where not in the form: as `httpx.BasicAuth(id, secret)`.
    """

    def __init__(
        self,
        token_url: str,
        form: Mapping[str, Credential],
        *,
        body: Body = form_body,
        token: str = "access_token",  # noqa: S107 — a path
        expires: str = "expires_in",
        refresh: str = "refresh_token",
        carry: str = "Authorization: Bearer {token}",
        auth: httpx.Auth | None = None,
    ) -> None:
        super().__init__(carry, body, token, auth)
        parts = urlsplit(token_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise RoutesInvalid("token_url should be an address like https://auth.example.com/oauth2/token")
        self._url, self._form = token_url, dict(form)
        self._expires, self._refresh = expires, refresh
        self.spends = "refresh_token" in form

    def source(self) -> str:
        return "\n".join([self._url, *(f"{name}={_shown(value)}" for name, value in sorted(self._form.items()))])

    def fetch(self, refresh: str | None) -> Token:
        form = {
            name: _plain(value) for name, value in self._form.items() if refresh is None or name.startswith("client_")
        }
        if refresh is not None:
            form |= {"grant_type": "refresh_token", "refresh_token": refresh}
        answer, token = self._ask("POST", self._url, form)
        following, left = at(answer, self._refresh), _seconds(at(answer, self._expires))
        return Token(token, following if isinstance(following, str) and following else None, left)


class Login(_Asking):
    """A session: one request brings a token, in its body, a header or a cookie, and every other one carries it.

    Args:
        request: the login's line, as "POST /login", below the API's base URL.
        send: what it sends.
        token: where the token stands in the answer: a dotted path or a `Header`.
        carry: how requests carry it, as "X-Auth-Token: {token}" or "Cookie: session={token}".
        body: json_body, form_body, json_api(…).
        expires: where its lifetime in seconds stands; without one it is used until it is refused.
    """

    def __init__(
        self,
        request: str,
        send: Mapping[str, Credential],
        *,
        token: str | Header,
        carry: str,
        body: Body = json_body,
        expires: str = "",
    ) -> None:
        super().__init__(carry, body, token)
        self._line, self._send, self._expires = template(request), dict(send), expires
        if self._line.names:
            raise RoutesInvalid(f"{request}: a login has no names in braces")

    def source(self) -> str:
        sent = (f"{name}={_shown(value)}" for name, value in sorted(self._send.items()))
        return "\n".join([self._base_url, self._line.text, *sent])

    def fetch(self, refresh: str | None) -> Token:
        url = self._base_url.rstrip("/") + self._line.text.partition(" ")[2]
        answer, token = self._ask(self._line.method, url, {name: _plain(value) for name, value in self._send.items()})
        return Token(token, left_s=_seconds(at(answer, self._expires)) if self._expires else None)


def _plain(value: Credential) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value if isinstance(value, str) else value()


def _shown(value: Credential) -> str:
    return _plain(value) if isinstance(value, str | SecretStr) else "asked each time"


def _seconds(value: object) -> float | None:
    """Read a lifetime; what is none means that nobody said when the token ends."""
    try:
        seconds = float(str(value))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
