"""`worker.deadline` against peers on real sockets that drip, stall, flood, vanish and lie."""

from __future__ import annotations

import gzip
import logging
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from worker.deadline import AnswerTooLarge, CallFailed, DeadlineExceeded, ForeignUrl, client, deadline, left

Serve = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HALF_SECOND = 0.5
ENDLESS = 60  # pieces; far beyond every deadline in this file


class Peer:
    """A server of one behaviour per connection; it counts connections and gives each a thread."""

    def __init__(self, serve: Serve, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._serve = serve
        self._listener = socket.create_server(address, backlog=20)
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.over = threading.Event()
        self.connections = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                self._threads.append(threading.Thread(target=self._run, args=(connection,)))
                self._threads[-1].start()

    def _run(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            self._serve(connection)

    def drip(self, connection: socket.socket, pieces: Iterator[bytes]) -> None:
        """Send a piece each half second until the pieces or the test are over."""
        request(connection)
        for piece in pieces:
            connection.sendall(piece)
            if self.over.wait(HALF_SECOND):
                return

    def close(self) -> None:
        self.over.set()
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in (self._thread, *self._threads):
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def peer() -> Iterator[Callable[[Serve], Peer]]:
    """Start peers that end with the test."""
    started: list[Peer] = []

    def start(serve: Serve) -> Peer:
        started.append(Peer(serve))
        return started[-1]

    yield start
    for each in started:
        each.close()


def request(connection: socket.socket) -> bytes:
    """Read one request, its body as far as Content-Length says."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            raise OSError
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def answering(answer: bytes) -> Serve:
    """Answer every request of a connection alike."""

    def serve(connection: socket.socket) -> None:
        while request(connection):
            connection.sendall(answer)

    return serve


@contextmanager
def taking(seconds: float) -> Generator[None]:
    """Hold a block to a time: at least nearly `seconds`, at most a moment more."""
    start = time.monotonic()
    yield
    assert seconds - 0.1 < time.monotonic() - start < seconds + 0.4


def pieces(kind: str) -> Iterator[bytes]:
    """Yield what a peer of that kind sends, one piece each half second, without an end."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    if kind == "head":
        yield from (bytes([byte]) for byte in head + b"X-Filler: " + b"x" * ENDLESS)
    elif kind == "informational":
        yield from [b"HTTP/1.1 102 Processing\r\n\r\n"] * ENDLESS
    elif kind == "body":
        yield head + b"Content-Length: 100000\r\n\r\n"
        yield from [b"x"] * ENDLESS
    elif kind == "chunks":
        yield head + b"Transfer-Encoding: chunked\r\n\r\n"
        yield from [b"1\r\nx\r\n"] * ENDLESS
    elif kind == "packed":
        yield head + b"Content-Encoding: gzip\r\nContent-Length: 100000\r\n\r\n"
        yield from (bytes([byte]) for byte in gzip.compress(bytes(range(256)) * 4)[:ENDLESS])


@pytest.mark.parametrize("kind", ["head", "informational", "body", "chunks", "packed"])
def test_drips(peer: Callable[[Serve], Peer], kind: str) -> None:
    """A peer that drips a byte each half second, below every time limit, is left at the deadline all the same."""
    dripping: Peer = peer(lambda connection: dripping.drip(connection, pieces(kind)))
    with client(base_url=dripping.url, timeout_s=20) as http, deadline(1), taking(1):
        with pytest.raises(DeadlineExceeded) as failure:
            http.post("records", json={})
        assert failure.value.sent


def test_deadline_of_the_client(peer: Callable[[Serve], Peer]) -> None:
    """Without a deadline around it a request ends at the client's own."""
    dripping: Peer = peer(lambda connection: dripping.drip(connection, pieces("body")))
    with client(base_url=dripping.url, deadline_s=1) as http, taking(1), pytest.raises(DeadlineExceeded):
        http.get("records")


def test_flood(peer: Callable[[Serve], Peer]) -> None:
    """A peer that never pauses between interim answers is left at the deadline as well."""

    def flood(connection: socket.socket) -> None:
        request(connection)
        while True:
            connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n" * 10)

    with client(base_url=peer(flood).url) as http, deadline(1), taking(1), pytest.raises(DeadlineExceeded) as failure:
        http.get("records")
    assert failure.value.sent


def test_dripped_handshake(peer: Callable[[Serve], Peer]) -> None:
    """A TLS handshake that drips ends at the deadline, and no byte of the request had gone out."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"\x16\x03\x03\x40\x00")
        while not dripping.over.wait(HALF_SECOND):
            connection.sendall(b"\x02")

    dripping = peer(serve)
    url = dripping.url.replace("http:", "https:")
    with client(base_url=url) as http, deadline(1), taking(1), pytest.raises(DeadlineExceeded) as failure:
        http.post("records", json={})
    assert not failure.value.sent


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem + made.public_bytes(Encoding.PEM))
    return path


@pytest.mark.parametrize("drips", [False, True])
def test_tls(peer: Callable[[Serve], Peer], certificate: Path, drips: bool) -> None:
    """Over TLS a large request arrives whole, and a body that drips ends at the deadline just so."""
    inside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    inside.load_cert_chain(certificate)
    received: list[int] = []

    def serve(connection: socket.socket) -> None:
        with inside.wrap_socket(connection, server_side=True) as wrapped:
            if drips:
                serving.drip(wrapped, pieces("body"))
            else:
                received.append(len(request(wrapped).partition(b"\r\n\r\n")[2]))
                wrapped.sendall(OK)

    serving = peer(serve)
    port = httpx.URL(serving.url).port
    trusting = ssl.create_default_context(cafile=str(certificate))
    with client(base_url=f"https://localhost:{port}/", tls=trusting) as http:
        if drips:
            with deadline(1), taking(1), pytest.raises(DeadlineExceeded) as failure:
                http.post("records", json={})
            assert failure.value.sent
        else:
            assert http.post("records", content=b"x" * 5_000_000).content == b"ok"
            assert received == [5_000_000]


def test_untrusted(peer: Callable[[Serve], Peer], certificate: Path) -> None:
    """A peer whose certificate nobody vouches for gets no byte of the request."""
    inside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    inside.load_cert_chain(certificate)

    def serve(connection: socket.socket) -> None:
        with inside.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(1)

    port = httpx.URL(peer(serve).url).port
    with client(base_url=f"https://localhost:{port}/") as http, pytest.raises(CallFailed) as failure:
        http.post("records", json={})
    assert not failure.value.sent


def test_resolver_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs is left behind at the deadline, and nothing was sent."""
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(20) and [])
    with client(base_url="http://legacy.example/") as http, deadline(1), taking(1):
        with pytest.raises(DeadlineExceeded) as failure:
            http.post("records", json={})
        assert not failure.value.sent
    over.set()


def test_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not resolve is a call that was not sent."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with client(base_url="http://legacy.example/") as http, pytest.raises(CallFailed) as failure:
        http.post("records", json={})
    assert not failure.value.sent


@pytest.fixture
def full() -> Iterator[Callable[[str], int]]:
    """Open a port of an address at which connections are neither accepted nor refused."""
    opened: list[socket.socket] = []

    def start(address: str) -> int:
        opened.append(socket.create_server((address, 0), backlog=0))
        port: int = opened[0].getsockname()[1]
        for _ in range(8):
            opened.append(socket.socket())
            opened[-1].setblocking(False)
            opened[-1].connect_ex(("127.0.0.1", port))
        return port

    yield start
    for each in opened:
        each.close()


def name_with(addresses: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let legacy.example have these addresses."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *rest: Any, **named: Any) -> Any:
        return addresses if host == "legacy.example" else real(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_connect_without_an_answer(full: Callable[[str], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two addresses that do not answer take one deadline between them, and nothing was sent."""
    port = full("0.0.0.0")  # noqa: S104 - several loopback addresses are needed
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (1, 2)]
    name_with(addresses, monkeypatch)
    with client(base_url=f"http://legacy.example:{port}/") as http, deadline(1), taking(1):
        with pytest.raises(DeadlineExceeded) as failure:
            http.post("records", json={})
        assert not failure.value.sent


def test_second_address(peer: Callable[[Serve], Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first address of a name refuses, the second one is called."""
    port = httpx.URL(peer(answering(OK)).url).port
    name_with([(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (2, 1)], monkeypatch)
    with client(base_url=f"http://legacy.example:{port}/") as http:
        assert http.get("records").content == b"ok"


def test_second_address_after_a_silent_one(monkeypatch: pytest.MonkeyPatch, full: Callable[[str], int]) -> None:
    """An address that does not answer leaves time enough for the next one."""
    port = full("127.0.0.1")
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (1, 2)]
    name_with(addresses, monkeypatch)
    answering_there = Peer(answering(OK), address=("127.0.0.2", port))
    with client(base_url=f"http://legacy.example:{port}/") as http, deadline(1):
        assert http.get("records").content == b"ok"
    answering_there.close()


def test_refused() -> None:
    """A refused connection is a call that was not sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with client(base_url=f"http://127.0.0.1:{port}/") as http, pytest.raises(CallFailed) as failure:
        http.post("records", json={})
    assert not failure.value.sent


def test_no_time_left(peer: Callable[[Serve], Peer]) -> None:
    """A call that begins after its deadline sends nothing, on a warm connection neither."""
    serving = peer(answering(OK))
    with client(base_url=serving.url) as http:
        http.get("warm")
        with deadline(0), pytest.raises(DeadlineExceeded) as failure:
            http.post("records", json={})
    assert not failure.value.sent


def test_waiting_for_a_connection(peer: Callable[[Serve], Peer]) -> None:
    """Who waits for a free connection waits until the deadline, and nothing was sent for it."""
    asked, over = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        request(connection)
        asked.set()
        over.wait(20)
        connection.sendall(OK)

    serving = peer(serve)
    with client(base_url=serving.url, connections=1) as http:
        first = threading.Thread(target=http.get, args=("slow",))
        first.start()
        assert asked.wait(10)
        with deadline(1), taking(1), pytest.raises(DeadlineExceeded) as failure:
            http.post("records", json={})
        over.set()
        first.join()
    assert not failure.value.sent
    assert serving.connections == 1


def test_peer_that_reads_slowly(peer: Callable[[Serve], Peer]) -> None:
    """A peer that takes a large body a little at a time is left at the deadline; it may have acted."""

    def serve(connection: socket.socket) -> None:
        while not slow.over.wait(0.05):
            connection.recv(65536)

    slow = peer(serve)
    with client(base_url=slow.url) as http, deadline(1), taking(1), pytest.raises(DeadlineExceeded) as failure:
        http.post("records", content=b"x" * 64 * 1024 * 1024)
    assert failure.value.sent


def test_connection_closed_without_an_answer(peer: Callable[[Serve], Peer]) -> None:
    """A used connection that the peer closes instead of answering leaves a request that it may have acted on."""

    def serve(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(OK)
        request(connection)

    closing = peer(serve)
    with client(base_url=closing.url) as http:
        http.get("first")
        with pytest.raises(CallFailed) as failure:
            http.post("records", json={})
    assert failure.value.sent
    assert closing.connections == 1


def test_connection_closed_while_idle(peer: Callable[[Serve], Peer]) -> None:
    """A connection that the peer closed while it was idle is not used again."""
    closed = threading.Event()

    def serve(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(OK)
        connection.close()
        closed.set()

    with client(base_url=peer(serve).url) as http:
        for _ in range(3):
            closed.clear()
            assert http.post("records", json={}).status_code == 200
            assert closed.wait(10)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSN-123-45-6789 is not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: SSN-123-45-6789\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: SSN-123-45-6789\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nSSN-123-45-6789",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 15\r\n\r\nSSN-123-45-6789",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 15\r\n\r\nSSN-123-45-6789",
        b"HTTP/1.1 200 OK\r\nX: " + b"SSN-123-45-6789" * 20_000,
    ],
)
def test_garbage(peer: Callable[[Serve], Peer], answer: bytes) -> None:
    """An answer that is not HTTP is a failure after sending, in words that quote nothing of it."""

    def serve(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    with client(base_url=peer(serve).url, deadline_s=3) as http, pytest.raises(CallFailed) as failure:
        http.get("records?name=SSN-123-45-6789")
    assert failure.value.sent
    assert "SSN" not in repr(failure.value) + str(failure.value.__cause__)
    with pytest.raises(RuntimeError):
        _ = failure.value.request


def packed(content: bytes, cut: int = 0) -> bytes:
    """Return an answer packed with gzip, without its last `cut` bytes."""
    body = gzip.compress(content)
    body = body[: len(body) - cut]
    return b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def test_packed(peer: Callable[[Serve], Peer]) -> None:
    """A packed answer comes out unpacked, and without headers that speak of its packing."""
    with client(base_url=peer(answering(packed(b"content" * 1000))).url) as http:
        answer = http.get("records")
    assert answer.content == b"content" * 1000
    assert "content-encoding" not in answer.headers
    assert answer.headers["content-length"] == "7000"


@pytest.mark.parametrize(
    "answer",
    [
        packed(b"\0" * 100_001),
        b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n" + b"x" * 100_001,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"186a1\r\n" + b"x" * 100_001 + b"\r\n0\r\n\r\n",
    ],
)
def test_too_large(peer: Callable[[Serve], Peer], answer: bytes) -> None:
    """An answer that unpacks to more than it may is refused, and a connection is left for the next one."""
    with client(base_url=peer(answering(answer)).url, connections=1, max_answer_bytes=100_000) as http:
        for _ in range(2):
            with pytest.raises(AnswerTooLarge) as failure:
                http.get("records")
            assert failure.value.sent


def test_bomb(peer: Callable[[Serve], Peer]) -> None:
    """Of an answer that is small on the way and huge unpacked, no more is unpacked than may be held."""
    with client(base_url=peer(answering(packed(b"\0" * 50_000_000))).url, max_answer_bytes=100_000) as http:
        tracemalloc.start()
        with pytest.raises(AnswerTooLarge):
            http.get("records")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 5_000_000


def test_largest(peer: Callable[[Serve], Peer]) -> None:
    """An answer of exactly the limit is taken."""
    with client(base_url=peer(answering(packed(b"x" * 100_000))).url, max_answer_bytes=100_000) as http:
        assert len(http.get("records").content) == 100_000


def test_torn(peer: Callable[[Serve], Peer]) -> None:
    """A packed answer without its end is not taken for a whole one."""
    with client(base_url=peer(answering(packed(b"x" * 1000, cut=9))).url) as http, pytest.raises(CallFailed):
        http.get("records")


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example/records",
        "//elsewhere.example/records",
        "\\\\elsewhere.example/records",
        " http://elsewhere.example",
        "Patient/..",
        "Patient/../Practitioner",
        "Patient/%2e%2E/Practitioner",
        "Patient/..%2fPractitioner",
        "Patient\\..\\Practitioner",
        "Patient/..;x/Practitioner",
        "./Patient",
        "Patient/\x00",
    ],
)
def test_foreign(peer: Callable[[Serve], Peer], url: str) -> None:
    """A URL that leaves the origin, or becomes another path, is refused before anything is connected."""
    serving = peer(answering(OK))
    with client(base_url=serving.url) as http, pytest.raises(ForeignUrl) as failure:
        http.get(url)
    assert not failure.value.sent
    assert serving.connections == 0


@pytest.mark.parametrize("path", ["Patient/a..b", "/Patient?next=../../x", "Patient/...", "a/b:c", "#frag", ""])
def test_own(peer: Callable[[Serve], Peer], path: str) -> None:
    """What only looks like another path is called."""
    with client(base_url=peer(answering(OK)).url) as http:
        assert http.get(path).status_code == 200


def test_auth_of_another_origin(peer: Callable[[Serve], Peer]) -> None:
    """An auth that would carry its credentials elsewhere is refused."""

    class Elsewhere(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            yield httpx.Request("POST", "http://127.0.0.2/token")
            yield request

    serving = peer(answering(OK))
    with client(base_url=serving.url, auth=Elsewhere()) as http, pytest.raises(ForeignUrl):
        http.get("records")
    assert serving.connections == 0


def test_redirect(peer: Callable[[Serve], Peer]) -> None:
    """A redirect is an answer, never a way to somewhere else."""
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2/\r\nContent-Length: 0\r\n\r\n"
    with client(base_url=peer(answering(answer)).url) as http:
        assert http.get("records").status_code == 302
        with pytest.raises(ForeignUrl):
            http.get("records", follow_redirects=True)


def test_proxy(peer: Callable[[Serve], Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is not used."""
    proxy = peer(answering(OK))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    with client(base_url=peer(answering(OK)).url) as http:
        http.get("records")
    assert proxy.connections == 0


def test_logs(peer: Callable[[Serve], Peer], caplog: pytest.LogCaptureFixture) -> None:
    """No logger writes a URL down, at whatever level."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "httpcore.http11", "httpcore.connection"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    with client(base_url=peer(answering(OK)).url) as http:
        http.get("records?name=Canary")
    assert caplog.records == []


def test_nesting() -> None:
    """A deadline within another can only be shorter."""
    with deadline(5):
        with deadline(60):
            assert left() < 5.01
        with deadline(1):
            assert left() < 1.01
        assert left() > 4
    assert left() == float("inf")


def test_threads(peer: Callable[[Serve], Peer]) -> None:
    """A deadline is its own thread's: another thread's call through the same client goes on."""
    asked = threading.Barrier(3)

    def serve(connection: socket.socket) -> None:
        request(connection)
        asked.wait(10)
        late.wait(10)
        connection.sendall(OK)

    late = threading.Event()
    answers: list[int] = []
    with client(base_url=peer(serve).url) as http:
        patient = threading.Thread(target=lambda: answers.append(http.get("patient").status_code))
        patient.start()
        hasty = threading.Thread(target=lambda: answers.append(hurry(http)))
        hasty.start()
        asked.wait(10)
        hasty.join(10)
        assert answers == [0]
        late.set()
        patient.join(10)
    assert answers == [0, 200]


def hurry(http: httpx.Client) -> int:
    """Call under a short deadline, and return 0 if it ends so."""
    try:
        with deadline(0.3):
            return http.get("hasty").status_code
    except DeadlineExceeded:
        return 0
