"""The receiver as a real process over a real ledger, for the tests that need both."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from worker.ledger import Ledger
from worker.ledger.migrate import upgrade
from worker.ledger.values import Phase

SECRET = "the secret of the tests"
ROUTED = ("Patient", "Practitioner", "Condition")
KEY = "test:" + base64.b64encode(bytes(range(32))).decode()


def migrated(folder: Path, types: Iterable[str] = ROUTED) -> str:
    """Make a ledger with routes, and return its URL."""
    url = f"sqlite:///{folder}/ledger.db"
    upgrade(url)
    with closing(Ledger.open(url)) as ledger:
        ledger.register_routes(dict.fromkeys(types, (Phase.SHADOW, "1")))
    return url


def environment(url: str, **given: str) -> dict[str, str]:
    """Make the environment of a receiver: nothing of ours but what is given."""
    ours = {"DATABASE_URL": url, "BROKER_URL": "redis://127.0.0.1:1/0", "PORT": "0", "PAYLOAD_KEY": KEY}
    ours |= {"WEBHOOK_SECRETS": SECRET} | given
    return os.environ | {f"REVERSE_SYNC_{name}": value for name, value in ours.items()}


@dataclass
class Receiver:
    """One running receiver."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    url: str

    def ledger(self) -> Any:
        """Open its ledger, to be closed by the caller's `with`."""
        return closing(Ledger.open(self.url))

    def status(self) -> dict[str, Any]:
        """Ask its ledger for the numbers."""
        with self.ledger() as ledger:
            status: dict[str, Any] = ledger.status()
            return status

    def rss_mb(self) -> float:
        """Measure its memory."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it with a signal, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def kill(self) -> None:
        """Leave nothing behind, whatever happened."""
        self.process.kill()
        self.process.wait(10)

    def connect(self) -> socket.socket:
        """Open a connection of one's own."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def exchange(self, *parts: bytes) -> Answer:
        """Send bytes as they are over a new connection, and read one answer."""
        with self.connect() as connection:
            for part in parts:
                try:
                    connection.sendall(part)
                except OSError:  # it has answered and closed in the middle of our sending
                    break
            return read_answer(connection)


@dataclass(frozen=True)
class Answer:
    """What came back, and whether the connection was closed behind it."""

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool


def started(folder: Path, url: str, **given: str) -> Receiver:
    """Start `python -m webhook` and wait until it says that it listens."""
    log = folder / f"web-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "webhook"], env=environment(url, **given), stdout=output, stderr=output
        )
    ports: list[int] = []

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        lines = [
            json.loads(line) for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}")
        ]
        ports.extend(line["port"] for line in lines if line["event"] == "the receiver listens")
        return bool(ports)

    try:
        eventually(listens)
        receiver = Receiver(process, ports[0], log, url)
        eventually(lambda: receiver.exchange(b"GET /livez HTTP/1.1\r\nconnection: close\r\n\r\n").status == 200)
    except BaseException:
        process.kill()
        process.wait(10)
        raise
    return receiver


def eventually(fact: Callable[[], bool], within_s: float = 20) -> None:
    """Wait until the fact holds; a fact that never does fails the test."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "the fact never came to hold"
        time.sleep(0.02)


def read_answer(connection: socket.socket) -> Answer:
    """Read one answer with a Content-Length, and look whether the connection ends behind it."""
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        pairs = iter(lambda: stream.readline().strip(), b"")
        headers = {
            name.decode().lower(): value.decode().strip() for name, _, value in (p.partition(b":") for p in pairs)
        }
        body = stream.read(int(headers["content-length"]))
        closed = headers.get("connection") == "close"
        if closed:
            assert stream.read() == b""
        return Answer(status, headers, body, closed)


def signature(body: bytes, secret: str = SECRET) -> str:
    """Sign as Medplum does."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def patient(number: int = 1, **members: Any) -> bytes:
    """Make a notification's body; each number is a resource of its own."""
    meta = {"versionId": f"v-{number}", "lastUpdated": "2026-11-22T10:30:03.303Z"}
    return json.dumps({"resourceType": "Patient", "id": f"p-{number}", "meta": meta} | members).encode()


def head(*lines: str, method: str = "POST", path: str = "/medplum") -> bytes:
    """Make the head of a request out of its header lines."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: here", *lines, "", ""]).encode()


def request(body: bytes, *lines: str, secret: str = SECRET) -> bytes:
    """Make a signed request with a Content-Length."""
    signed = f"X-Signature: {signature(body, secret)}"
    return head(signed, "X-Medplum-Interaction: update", f"Content-Length: {len(body)}", *lines) + body


def chunked(body: bytes, *lines: str, size: int = 1000) -> bytes:
    """Make a signed request whose body comes in chunks."""
    chunks = [body[begin : begin + size] for begin in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return head(f"X-Signature: {signature(body)}", "Transfer-Encoding: chunked", *lines) + framed
