"""uvicorn's HTTP protocol with the limits that it lacks: the size of a head, and the time until a request's last byte.

Without them one connection that sends headers for ever takes hundreds of megabytes within seconds, and half-sent
requests stay open for good. A request that arrives in one piece, as Medplum's do, pays a few comparisons for it.

Smuggling has no room: httptools refuses two lengths, or a length beside a transfer encoding; here a trailer never
passes for a header, an upgrade is refused (its body would be skipped unread), and a pipelined request is not looked at:
the connection ends with the answer to the one before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

__all__ = ["HEAD_BYTES", "LimitedProtocol"]

HEAD_BYTES: Final = 16 * 1024
LINGER_S: Final = 2.0

BAD_REQUEST: Final = 400
TOO_SLOW: Final = 408
HEAD_TOO_LARGE: Final = 431


def _answer(status: int, words: str) -> bytes:
    lines = ("content-type: text/plain; charset=utf-8", f"content-length: {len(words)}", "connection: close", "", words)
    return STATUS_LINE[status] + "\r\n".join(lines).encode()


_ANSWERS: Final = {
    BAD_REQUEST: _answer(BAD_REQUEST, "not an HTTP request that is served here"),
    TOO_SLOW: _answer(TOO_SLOW, "the request took too long to arrive"),
    HEAD_TOO_LARGE: _answer(HEAD_TOO_LARGE, "the head of the request is too large"),
}


class LimitedProtocol(HttpToolsProtocol):
    """One connection, and the one request that is arriving on it."""

    def __init__(self, *, request_seconds: float, refused: Callable[[int], object], **kwargs: Any) -> None:
        """Make uvicorn's protocol; `refused` hears the status of each request that is refused here."""
        super().__init__(**kwargs)
        self._request_seconds = request_seconds
        self._refused = refused
        self._clock: asyncio.TimerHandle | None = None
        self._arrived = 0  # bytes of the unfinished request, framing included
        self._content = 0  # bytes of its body
        self._in_body = False
        self._kept_alive: bool | None = None  # what the request asked for, while its body is awaited
        self._deaf = False  # what still comes is read and forgotten
        self._refusal = BAD_REQUEST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn starts this clock after an answer only: a connection that never says a word would stay for ever.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)
        self._forget_body()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._arrived += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserError:
            self._refuse(self._refusal)
        else:
            if self._arrived:
                self._await_the_rest()

    def on_message_begin(self) -> None:
        if self._answering():
            raise _Stop
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._arrived > HEAD_BYTES and self._head_size() > HEAD_BYTES:
            self._refusal = HEAD_TOO_LARGE
            raise _Stop
        if self.parser.should_upgrade():
            raise _Stop
        super().on_headers_complete()
        self.headers = []  # trailers go here, and nobody reads them
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._content += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._arrived = self._content = 0
        self._in_body = False
        self._stop_clock()
        if self._kept_alive is not None:
            self.cycle.keep_alive = self._kept_alive
            self.cycle.transport = self.transport
            self._kept_alive = None
        super().on_message_complete()

    def shutdown(self) -> None:
        if self._kept_alive is not None:
            self._kept_alive = False
        super().shutdown()

    def _answering(self) -> bool:
        return not getattr(self.cycle, "response_complete", True)  # there is no cycle before the first request

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)

    def _await_the_rest(self) -> None:
        """Start the clock of a request that did not arrive in one piece, and look at what of it is here."""
        if self._clock is None:
            self._clock = self.loop.call_later(self._request_seconds, self._refuse, TOO_SLOW)
        if not self._in_body:
            if self._arrived > HEAD_BYTES:
                self._refuse(HEAD_TOO_LARGE)
        elif self._arrived > 2 * (HEAD_BYTES + self._content):
            self._refuse(BAD_REQUEST)  # tiny chunks, extensions, endless trailers: more framing than content
        elif self._kept_alive is None:
            self._kept_alive = self.cycle.keep_alive
            self._end_with_this_answer()  # taken back when the last byte comes before the answer

    def _end_with_this_answer(self) -> None:
        self.cycle.keep_alive = False
        self.cycle.transport = _Lingering(self)  # type: ignore[assignment]

    def _refuse(self, status: int) -> None:
        """Answer in the application's place, to which the sender seems to have left."""
        self._stop_clock()
        if self._answering() and not self._in_body:  # it stands behind a request whose answer comes first, and last
            self._deaf = True
            self._end_with_this_answer()
            return
        self._refused(status)
        if not self._in_body or not self.cycle.response_started:
            self.transport.write(_ANSWERS[status])
        if self._in_body:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._forget_body()
        self.linger()

    def linger(self) -> None:
        """Say that the answer is over, and read away what still comes, for a while.

        Closing on unread bytes resets the connection, and a sender that is still busy sending never sees the answer.
        """
        self._deaf = True
        self._stop_clock()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self.transport.write_eof()
        self._clock = self.loop.call_later(LINGER_S, self.transport.close)

    def _forget_body(self) -> None:
        """Drop what nobody will read: a connection and its request know each other, and go when the collector comes."""
        if getattr(self.cycle, "disconnected", False):  # there is no cycle before the first request
            self.cycle.body = bytearray()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


class _Stop(Exception):
    """Ends the parsing of this connection."""


class _Lingering:
    """The transport as the answer to an unread request sees it: to close means to linger."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: LimitedProtocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        self._protocol.linger()
