"""The load, in a process of its own: signed notifications of distinct patients, made before the clock starts.

    python -m tests.bench.load URL --first 0 --count 1000 --connections 20 [--rate 300]

Without a rate each connection sends its next request when the last is answered. With one, requests leave by the clock,
and a latency counts from the moment when its request should have left. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import deque
from typing import Final
from urllib.parse import urlsplit

import uvloop

from tests.bench.patients import request

ACCEPTED: Final = b"HTTP/1.1 202"
END: Final = b"\r\n\r\n"


class Load:
    """Requests that wait to be sent, connections that wait for one, and how long each answer took."""

    def __init__(self, requests: list[bytes]) -> None:
        self.requests = requests
        self.waiting: deque[tuple[bytes, float]] = deque()
        self.idle: list[Connection] = []
        self.seconds: list[float] = []
        self.over = asyncio.get_running_loop().create_future()

    def send(self, number: int, due: float) -> None:
        """Send the request on an idle connection, or on the first that becomes so."""
        if self.idle:
            self.idle.pop().send(self.requests[number], due)
        else:
            self.waiting.append((self.requests[number], due))

    def answered(self, connection: Connection, seconds: float) -> None:
        self.seconds.append(seconds)
        if self.waiting:
            following, due = self.waiting.popleft()
            connection.send(following, due)
            return
        self.idle.append(connection)
        if len(self.seconds) == len(self.requests) and not self.over.done():
            self.over.set_result(None)

    def failed(self, words: str) -> None:
        if not self.over.done():
            self.over.set_exception(RuntimeError(words))


class Connection(asyncio.Protocol):
    """One connection that is kept alive, with one request under way at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._got = b""
        self._due = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._load.idle.append(self)

    def send(self, content: bytes, due: float) -> None:
        self._due = due or time.perf_counter()
        assert self._transport is not None
        self._transport.write(content)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if not self._got.startswith(ACCEPTED):
            self._load.failed(f"answered {self._got[:80]!r}")
        elif self._got.endswith(END):
            self._got = b""
            self._load.answered(self, time.perf_counter() - self._due)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.failed("the connection was closed")


async def run(options: argparse.Namespace) -> dict[str, float]:
    """Send everything and return what came of it."""
    parts = urlsplit(options.url)
    load = Load([request(options.first + number, parts.path) for number in range(options.count)])
    loop = asyncio.get_running_loop()
    for _ in range(options.connections):
        await loop.create_connection(lambda: Connection(load), parts.hostname, parts.port)
    began_at, began = time.time(), time.perf_counter()
    if options.rate:
        await _by_the_clock(load, began, options.rate)
    else:
        for number in range(options.count):
            load.send(number, 0.0)
    await load.over
    took = time.perf_counter() - began
    ordered = sorted(load.seconds)
    return {
        "began_at": began_at,
        "per_second": options.count / took,
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1000,
        "max_ms": ordered[-1] * 1000,
    }


async def _by_the_clock(load: Load, began: float, rate: float) -> None:
    sent = 0
    while sent < len(load.requests) and not load.over.done():
        while sent < len(load.requests) and (due := began + sent / rate) <= time.perf_counter():
            load.send(sent, due)
            sent += 1
        await asyncio.sleep(0.001)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load")
    parser.add_argument("url")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--rate", type=float, default=0.0)
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
