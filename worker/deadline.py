"""HTTP to one known peer, under a deadline that holds for the whole exchange.

httpx limits each operation only: a peer that drips a byte each half second keeps a call with a limit of one second for
as long as it likes. Here every wait, for a free connection, for a name, for each address, for TLS, for each piece
written and read, gets at most what is left of the whole.

A client of this module talks to its own origin only, follows no redirect, reads no proxy out of the environment, keeps
URLs out of the logs, and bounds what an answer may unpack to. Whatever goes wrong is one `CallFailed`, which says
whether any byte of the request had gone out: without one the peer cannot have acted, after one nobody knows.
It never retries.
"""

from __future__ import annotations

import logging
import math
import queue
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httpcore
import httpx

__all__ = ["AnswerTooLarge", "CallFailed", "DeadlineExceeded", "ForeignUrl", "client", "deadline", "left"]

MAX_ANSWER_BYTES = 16 * 1024 * 1024

_ends_at: ContextVar[float] = ContextVar("ends_at", default=math.inf)
_ABSOLUTE = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*:|[/\\]{2})")
_REPACKED = {b"content-encoding", b"content-length", b"transfer-encoding"}
_URL_LOGGERS = ("httpx", "httpcore", "httpcore.connection", "httpcore.http11", "httpcore.proxy")


class CallFailed(httpx.TransportError):
    """No whole answer came. `sent` False is certain: no byte of the request went out, so nothing was done."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent

    @property
    def request(self) -> httpx.Request:
        """Say that there is none: httpx hangs the request on its errors, and with it the query and the credentials."""
        raise RuntimeError("the request is not kept")

    @request.setter
    def request(self, request: httpx.Request) -> None:
        pass


class DeadlineExceeded(CallFailed):
    """The peer took longer than it was given, for one operation or for the whole."""


class AnswerTooLarge(CallFailed):
    """The answer unpacks to more than it may."""


class ForeignUrl(CallFailed):
    """The URL would leave the peer's origin or its path; nothing was sent."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End every call of this thread within `seconds` from here; one that stands already is never widened."""
    token = _ends_at.set(min(_ends_at.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _ends_at.reset(token)


def left() -> float:
    """Return the seconds left of this thread's deadline: infinite without one, never negative."""
    return max(0.0, _ends_at.get() - time.monotonic())


def client(
    *,
    base_url: str,
    timeout_s: float = 10.0,
    deadline_s: float = 20.0,
    connections: int = 16,
    keepalive_s: float = 4.0,
    max_answer_bytes: int = MAX_ANSWER_BYTES,
    headers: Mapping[str, str] | None = None,
    auth: httpx.Auth | None = None,
    tls: ssl.SSLContext | None = None,
) -> httpx.Client:
    """Make a client for one origin, to be shared by threads.

    Args:
        base_url: the origin, with a path if everything lies below one; requests name paths relative to it.
        timeout_s: the longest that one operation on the socket may take.
        deadline_s: the longest that a request may take as a whole, where no shorter `deadline(…)` stands.
        connections: how many requests run at once; others wait for a slot, within their deadline.
        keepalive_s: how long an idle connection is used again. Shorter than Node's 5 s, because a request that meets a
            connection which the peer is just closing is a request of which nobody knows what became of it.
        max_answer_bytes: the most that an answer may hold, unpacked.
        headers: sent with every request.
        auth: an httpx.Auth; its own requests are bound to the same origin.
        tls: another context than the default one, which trusts certifi's authorities or those of SSL_CERT_FILE.
    """
    for name in _URL_LOGGERS:
        logging.getLogger(name).disabled = True  # they log whole URLs at INFO, and a query can name a patient
    transport = _Transport(httpx.URL(base_url), deadline_s, connections, keepalive_s, max_answer_bytes, tls)
    return _Client(
        base_url=base_url,
        transport=transport,
        timeout=httpx.Timeout(timeout_s),
        headers={"User-Agent": "reverse-sync", "Accept-Encoding": "gzip", **(headers or {})},
        auth=auth,
        trust_env=False,
        follow_redirects=False,
    )


class _Client(httpx.Client):
    """Refuses a URL before httpx resolves it: afterwards the dots are gone and the path is another one."""

    def build_request(self, method: str, url: httpx.URL | str, **parts: Any) -> httpx.Request:
        _refuse_foreign(str(url))
        try:
            return super().build_request(method, url, **parts)
        except httpx.InvalidURL:
            raise ForeignUrl("the URL cannot be parsed", sent=False) from None


def _refuse_foreign(url: str) -> None:
    if _ABSOLUTE.match(url):
        raise ForeignUrl("an absolute URL is never called: give a path below the base URL", sent=False)
    for segment in re.split(r"[/\\]", unquote(re.split(r"[?#]", url, maxsplit=1)[0])):
        if segment.partition(";")[0] in {".", ".."}:
            raise ForeignUrl("a path with dot segments is never called: it would become another path", sent=False)


@dataclass(slots=True)
class _Call:
    """One request on its way: when it ends, and whether any byte of it went out."""

    ends_at: float
    sent: bool = False

    def left(self, most: float | None, late: type[httpcore.TimeoutException]) -> float:
        seconds = min(math.inf if most is None else most, self.ends_at - time.monotonic())
        if seconds <= 0:
            raise late
        return seconds


_call: ContextVar[_Call] = ContextVar("call")


class _Transport(httpx.BaseTransport):
    """Runs one exchange to its end, body included, and translates whatever happens."""

    def __init__(
        self,
        base_url: httpx.URL,
        deadline_s: float,
        connections: int,
        keepalive_s: float,
        max_answer_bytes: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._origin = _origin(base_url)
        self._deadline_s = deadline_s
        self._max_answer_bytes = max_answer_bytes
        # These bound the connections, not the pool: its own queue gives a thread that loses a race its full time anew.
        self._slots = threading.BoundedSemaphore(connections)
        self._pool = httpcore.ConnectionPool(
            ssl_context=(tls or httpx.create_ssl_context()) if base_url.scheme == "https" else None,
            max_connections=None,
            max_keepalive_connections=connections,
            keepalive_expiry=keepalive_s,
            network_backend=_Backend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if _origin(request.url) != self._origin:
            raise ForeignUrl("the URL is of another origin than the base URL", sent=False)
        call = _Call(min(_ends_at.get(), time.monotonic() + self._deadline_s))
        if not self._slots.acquire(timeout=max(0.0, call.ends_at - time.monotonic())):
            raise DeadlineExceeded("no connection was free before the deadline", sent=False)
        token = _call.set(call)
        try:
            return self._exchange(request)
        except CallFailed:
            raise
        except httpcore.TimeoutException as error:
            raise DeadlineExceeded(_words(error), sent=call.sent) from None
        except Exception as error:  # whatever it was, the caller has to know whether bytes had gone out
            raise CallFailed(_words(error), sent=call.sent) from None
        finally:
            _call.reset(token)
            self._slots.release()

    def close(self) -> None:
        self._pool.close()

    def _exchange(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        asked = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions={"timeout": request.extensions.get("timeout", {})},
        )
        answer = self._pool.handle_request(asked)
        try:
            content = _unpacked(answer, self._max_answer_bytes)
        finally:
            answer.close()
        headers = [(name, value) for name, value in answer.headers if name.lower() not in _REPACKED]
        return httpx.Response(answer.status, headers=headers, content=content)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _words(error: Exception) -> str:
    """Name the kind of an error: its own text can quote what the peer sent."""
    return f"the exchange failed: {type(error).__name__}"


def _unpacked(answer: httpcore.Response, most: int) -> bytes:
    """Read an answer's body, never holding more than `most` bytes of it, however well it is packed."""
    codings = [
        value.decode("latin-1").strip().lower() for name, value in answer.headers if name.lower() == b"content-encoding"
    ]
    if codings not in ([], ["identity"], ["gzip"], ["x-gzip"]):
        raise CallFailed("the answer is packed in a way that was not asked for", sent=True)
    gzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if codings and codings != ["identity"] else None
    content = bytearray()
    packed = 0
    for piece in answer.iter_stream():
        packed += len(piece)
        content += gzip.decompress(piece, most + 1 - len(content)) if gzip else piece
        if len(content) > most:
            raise AnswerTooLarge(f"the answer is larger than {most} bytes", sent=True)
    if gzip and packed and (not gzip.eof or gzip.unused_data):
        raise CallFailed("the answer is torn", sent=True)
    return bytes(content)


class _Backend(httpcore.NetworkBackend):
    """Opens connections within the deadline of the call that runs in this thread."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        call = _call.get()
        addresses = _resolve(host, port, call.left(timeout, httpcore.ConnectTimeout))
        failure: httpcore.NetworkError | httpcore.TimeoutException = httpcore.ConnectError("no address")
        for tried, address in enumerate(addresses):
            seconds = call.left(timeout, httpcore.ConnectTimeout) / (len(addresses) - tried)
            try:
                return _Stream(
                    httpcore.SyncBackend().connect_tcp(address, port, seconds, local_address, socket_options)
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _resolve(host: str, port: int, seconds: float) -> list[str]:
    """Look a name up in a thread that may be left behind: the resolver knows no deadline."""
    found: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            entries = []
        found.put(list(dict.fromkeys(str(entry[4][0]) for entry in entries)))

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        return found.get(timeout=seconds)
    except queue.Empty:
        raise httpcore.ConnectTimeout from None


class _Stream(httpcore.NetworkStream):
    """A connection on which each operation gets at most what is left of the call."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _call.get().left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write piece by piece, because the peer can take its time over each of them."""
        call = _call.get()
        connection: socket.socket = self._stream.get_extra_info("socket")
        rest = memoryview(buffer)
        while rest:
            connection.settimeout(call.left(timeout, httpcore.WriteTimeout))
            call.sent = True  # before the attempt: a failed write can have let some of it through
            try:
                rest = rest[connection.send(rest) :]
            except TimeoutError:
                raise httpcore.WriteTimeout from None
            except OSError:
                raise httpcore.WriteError from None

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = _call.get().left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, seconds))

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
