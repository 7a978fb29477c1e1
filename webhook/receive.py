"""POST /medplum: judge what can be judged before the body is read; then body, signature, sense; 202 once committed.

A plain ASGI callable, because Starlette's Request costs more than all of this. It answers in every case and repeats no
value of a request, and it parses nothing that is not signed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from starlette.types import Receive, Scope, Send

from webhook import notification
from webhook.inbox import Inbox
from webhook.known import Known
from webhook.notification import SUBSCRIPTION, Headers
from webhook.signature import SharedHeader, is_signature
from worker.errors import BadResource, LedgerUnavailable
from worker.log import RepeatLimit, described, get
from worker.metrics import ACCEPT_SECONDS, NOTIFICATIONS
from worker.settings import ReceiverSettings

__all__ = ["Receiver", "count"]

SMALL_BYTES: Final = 16 * 1024
LINES_PER_10_S: Final = 5

log = get(__name__)
_ACCEPTED: Final = {"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]}
_NOTHING: Final = {"type": "http.response.body", "body": b""}
_ANSWERS = {
    status: NOTIFICATIONS.labels(str(int(status)))
    for status in (202, 400, 401, 408, 413, 431, 500, 503)  # known from the start: a rate needs a zero to begin from
}


def count(status: int) -> None:
    """Count one answered request."""
    _ANSWERS[status].inc()


class Receiver:
    """The endpoint. What it needs is given to it: the inbox, and what is known of routes and secrets."""

    def __init__(self, settings: ReceiverSettings, inbox: Inbox, known: Known) -> None:
        self._known = known
        self._shared_header = SharedHeader(settings.webhook_token)
        self._max_body_bytes = settings.max_body_bytes
        self._room = _Room(settings.max_bodies_bytes)
        self._inbox = inbox
        self._lines = RepeatLimit(lines=LINES_PER_10_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(self._max_body_bytes, self._room)
        status, words = HTTPStatus.ACCEPTED, ""
        try:
            await self._take(Headers(scope["headers"]), body, receive)
        except _Refusal as refusal:
            status, words = refusal.status, refusal.words
        except BadResource as problem:
            status, words = HTTPStatus.BAD_REQUEST, str(problem)
        except LedgerUnavailable as problem:
            status, words = HTTPStatus.SERVICE_UNAVAILABLE, str(problem)
        except _SenderLeft:
            return
        except Exception as error:  # uvicorn would log it with its text, which may hold what was received
            log.error("a notification could not be handled", error=described(error))  # noqa: TRY400 - nothing of its text
            status, words = HTTPStatus.INTERNAL_SERVER_ERROR, "this is a defect of the receiver"
        finally:
            body.leave()
        count(status)
        if status is HTTPStatus.ACCEPTED:
            await send(_ACCEPTED)
            await send(_NOTHING)
            return
        self._complain(status, words)
        await _answer(send, status, words)

    async def _take(self, headers: Headers, body: _Body, receive: Receive) -> None:
        body.expect(headers.all(b"content-length"))
        signature = self._admit(headers)
        data = await body.read(receive)
        arrived = time.perf_counter()
        key = self._known.secrets.signer(data, signature, headers.all(SUBSCRIPTION))
        if key is None:
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "X-Signature does not fit the body")
        hint = notification.read(headers, data)
        if hint.resource_type not in self._known.types():
            hint = dataclasses.replace(hint, body=None)
        await self._inbox.put(hint)
        self._known.came(hint.resource_type, key)
        ACCEPT_SECONDS.observe(time.perf_counter() - arrived)

    def _admit(self, headers: Headers) -> bytes:
        if not self._shared_header.admits(headers.all(b"authorization")):
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "Authorization is not the header that is expected")
        signatures = headers.all(b"x-signature")
        if len(signatures) != 1 or not is_signature(signatures[0]):
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "X-Signature should come once, as 64 hexadecimal digits")
        return signatures[0]

    def _complain(self, status: int, words: str) -> None:
        allowed, held_back = self._lines.allows(status)
        if allowed:
            log.warning("refused a notification", status=int(status), why=words, held_back=held_back)


class _Refusal(Exception):
    """An answer, not an error of ours."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class _SenderLeft(Exception):
    """There is nobody to answer."""


class _Room:
    """The bytes that all bodies in flight share.

    The first few KiB of each body are free, so that strangers who hold large half-sent bodies until their time is over
    do not turn ordinary notifications away.
    """

    def __init__(self, size: int) -> None:
        self._left = size

    def fits(self, old: int, new: int) -> bool:
        """Say whether a body may grow."""
        return _charged(new) - _charged(old) <= self._left

    def resize(self, old: int, new: int) -> None:
        """Let a body grow or end."""
        self._left -= _charged(new) - _charged(old)


def _charged(size: int) -> int:
    return max(0, size - SMALL_BYTES)


class _Body:
    """The body of one request, from its first byte until the request is answered."""

    def __init__(self, limit: int, room: _Room) -> None:
        self._limit = limit
        self._room = room
        self._size = 0

    def expect(self, lengths: Sequence[bytes]) -> None:
        """Judge the announced length, if there is one: the server has seen to it that it is one number."""
        size = int(lengths[0]) if lengths else 0
        if size > self._limit:
            raise _too_large(self._limit)
        if size > SMALL_BYTES and not self._room.fits(0, size):
            raise _no_room()

    async def read(self, receive: Receive) -> bytes:
        """Read it whole."""
        chunks: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise _SenderLeft
            chunk = message.get("body", b"")
            self._grow(self._size + len(chunk))
            chunks.append(chunk)
            more = message.get("more_body", False)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def leave(self) -> None:
        """Give its room back."""
        if self._size > SMALL_BYTES:
            self._room.resize(self._size, 0)
        self._size = 0

    def _grow(self, size: int) -> None:
        if size > self._limit:
            raise _too_large(self._limit)
        if size > SMALL_BYTES:
            if not self._room.fits(self._size, size):
                raise _no_room()
            self._room.resize(self._size, size)
        self._size = size


def _too_large(limit: int) -> _Refusal:
    return _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {limit} bytes")


def _no_room() -> _Refusal:
    return _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many bodies are on their way at once")


async def _answer(send: Send, status: int, words: str) -> None:
    content = words.encode()
    headers = [(b"content-length", b"%d" % len(content))]
    if content:
        headers.append((b"content-type", b"text/plain; charset=utf-8"))
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": content})
