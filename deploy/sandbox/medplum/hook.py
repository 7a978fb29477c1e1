"""The sender's side of HTTP/1.1, byte for byte as node-fetch writes it: header order, keep-alive, redirects.

A client library would put its own headers first and its own spelling over ours. It serves plain http alone, and knows
nothing of Subscriptions.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from contextlib import suppress
from urllib.parse import urljoin, urlsplit

from httptools import HttpParserError, HttpResponseParser

__all__ = ["HookFailed", "Hooks"]

_TIMEOUT_SECONDS = 120
_MAX_REDIRECTS = 20
_BECOME_GET = frozenset({301, 302, 303})
_REDIRECTS = frozenset({*_BECOME_GET, 307, 308})
_AGENT = ("User-Agent", "node-fetch/1.0 (+https://github.com/bitinn/node-fetch)")


class HookFailed(Exception):
    """No answer came: refused, reset, timed out, or not HTTP."""


class _Answer:
    """What the parser tells of one response."""

    def __init__(self) -> None:
        self.parser = HttpResponseParser(self)
        self.location: str | None = None
        self.status = 0
        self.keep_alive = False
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"location":
            self.location = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.keep_alive = self.parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.complete = True


class _Connection:
    """One kept-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @property
    def usable(self) -> bool:
        return not self._reader.at_eof() and not self._writer.is_closing()

    def close(self) -> None:
        self._writer.close()

    async def exchange(self, request: bytes) -> tuple[int, str | None, bool]:
        """Send one request; return status, Location and whether the connection may be used again."""
        self._writer.write(request)
        answer = _Answer()
        while not answer.complete:
            received = await self._reader.read(65536)
            if not received:
                if not answer.status:
                    raise HookFailed("socket hang up")
                return answer.status, answer.location, False
            answer.parser.feed_data(received)
        return answer.status, answer.location, answer.keep_alive


class Hooks:
    """Posts to rest-hook endpoints over a pool of connections."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], list[_Connection]] = defaultdict(list)

    def close(self) -> None:
        """Drop the idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    async def post(self, url: str, headers: list[tuple[str, str]], body: bytes) -> int:
        """Return the status of the last answer, redirects followed; raise HookFailed without one."""
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                return await self._follow(url, headers, body)
        except (OSError, HttpParserError, ValueError) as failure:
            raise HookFailed(_as_node_fetch_says(url, failure)) from None

    async def _follow(self, url: str, headers: list[tuple[str, str]], body: bytes) -> int:
        method = "POST"
        for _ in range(_MAX_REDIRECTS + 1):
            status, location = await self._once(method, url, headers, body)
            if status not in _REDIRECTS or location is None:
                return status
            url = urljoin(url, location)
            if status in _BECOME_GET:
                method, body = "GET", b""
        raise HookFailed("too many redirects")

    async def _once(self, method: str, url: str, headers: list[tuple[str, str]], body: bytes) -> tuple[int, str | None]:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise HookFailed("only http endpoints")
        address = (parts.hostname, parts.port or 80)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = await self._connection(address)
        try:
            head = _head(method, target, parts.netloc, headers, body)
            status, location, keep = await connection.exchange(head + body)
        except BaseException:
            connection.close()
            raise
        if keep:
            self._idle[address].append(connection)
        else:
            connection.close()
        return status, location

    async def _connection(self, address: tuple[str, int]) -> _Connection:
        idle = self._idle[address]
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
            with suppress(OSError):
                connection.close()
        return _Connection(*await asyncio.open_connection(*address))


def _as_node_fetch_says(url: str, failure: Exception) -> str:
    """Put a failure into the words that node-fetch has for it, which Medplum writes into its AuditEvents."""
    parts = urlsplit(url)
    match failure:
        case TimeoutError():
            return f"FetchError: network timeout at: {url}"
        case ConnectionRefusedError():
            reason = f"connect ECONNREFUSED {parts.hostname}:{parts.port or 80}"
        case socket.gaierror():
            reason = f"getaddrinfo ENOTFOUND {parts.hostname}"
        case ConnectionResetError():
            reason = "read ECONNRESET"
        case _:
            reason = type(failure).__name__
    return f"FetchError: request to {url} failed, reason: {reason}"


def _head(method: str, target: str, host: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    length = [("Content-Length", str(len(body)))] if method == "POST" else []
    last = [_AGENT, ("Accept-Encoding", "gzip,deflate"), ("Host", host), ("Connection", "keep-alive")]
    lines = [f"{name}: {value}" for name, value in (*headers, ("Accept", "*/*"), *length, *last)]
    return "\r\n".join((f"{method} {target} HTTP/1.1", *lines, "", "")).encode("latin-1", "replace")
