"""500 slow and garbage connections at the receiver's door, while signed notifications go on being accepted.

Takes a minute; `SLOW_CLIENTS_SECONDS=5` makes it short. Run as a program, this file is the crowd: it has a process of
its own, so that its work is not measured as the receiver's.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.receiver_process import Receiver

SECONDS = float(os.environ.get("SLOW_CLIENTS_SECONDS", "60"))
CROWD = 500
PER_SECOND = 50
HEAD = b"POST /medplum HTTP/1.1\r\nHost: x\r\n"
SHAPED = b"X-Signature: " + b"0" * 64 + b"\r\n"

Writer = asyncio.StreamWriter


async def says_nothing(writer: Writer) -> None:
    """Hold a connection."""
    await asyncio.sleep(3600)


async def drips_a_head(writer: Writer) -> None:
    """Send a head that never ends, a byte at a time."""
    writer.write(HEAD + b"X-Slow: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.2)


async def drips_a_body(writer: Writer) -> None:
    """Send the body of a well-shaped request, a byte at a time."""
    writer.write(HEAD + SHAPED + b"Content-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.2)


async def holds_half_a_large_body(writer: Writer) -> None:
    """Send almost all of the largest body, then stall."""
    writer.write(HEAD + SHAPED + b"Content-Length: 2000000\r\n\r\n")
    for _ in range(19):
        writer.write(b"x" * 100_000)
        await writer.drain()
    await asyncio.sleep(3600)


async def sends_headers_for_ever(writer: Writer) -> None:
    """Send a head without an end, as fast as it is taken."""
    writer.write(HEAD)
    while True:
        writer.write(b"X-Garbage: " + b"x" * 5_000 + b"\r\n")
        await writer.drain()


async def sends_noise(writer: Writer) -> None:
    """Send what is not HTTP."""
    writer.write(random.randbytes(2000))
    await writer.drain()


async def sends_chunks_of_nothing(writer: Writer) -> None:
    """Send the smallest chunks that there are."""
    writer.write(HEAD + SHAPED + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\nx\r\n" * 200)
        await writer.drain()
        await asyncio.sleep(0.05)


async def pipelines(writer: Writer) -> None:
    """Send many requests at once and read no answer."""
    writer.write((HEAD + SHAPED + b"Content-Length: 2\r\n\r\n{}") * 500)
    await writer.drain()


KINDS: tuple[Callable[[Writer], Awaitable[None]], ...] = (
    says_nothing,
    drips_a_head,
    drips_a_body,
    holds_half_a_large_body,
    sends_headers_for_ever,
    sends_noise,
    sends_chunks_of_nothing,
    pipelines,
)


async def stranger(port: int, kind: Callable[[Writer], Awaitable[None]]) -> None:
    """Connect, misbehave until thrown out, come again."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.5)
            continue
        misbehaving = asyncio.ensure_future(kind(writer))
        try:
            while await reader.read(65536):
                pass
        except OSError:
            pass
        misbehaving.cancel()
        await asyncio.gather(misbehaving, return_exceptions=True)
        writer.close()
        await asyncio.sleep(random.uniform(0.2, 1.0))


async def crowd(port: int) -> None:
    """Be all of them."""
    print("ready", flush=True)
    await asyncio.gather(*[stranger(port, KINDS[number % len(KINDS)]) for number in range(CROWD)])


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.timeout(SECONDS + 90)
def test_a_crowd_of_slow_and_garbage_connections_delays_nobody(tmp_path: Path) -> None:
    """Signed traffic is accepted throughout with a p99 under 250 ms, and the process stays under 150 MB."""
    from tests.integration.receiver_process import migrated, started

    receiver = started(tmp_path, migrated(tmp_path))
    strangers = subprocess.Popen([sys.executable, __file__, str(receiver.port)], stdout=subprocess.PIPE)
    try:
        assert strangers.stdout is not None
        assert strangers.stdout.readline() == b"ready\n"
        delays, most_mb = measure(receiver)
        assert strangers.poll() is None
    finally:
        strangers.kill()
        strangers.communicate()
        receiver.kill()
    p99_ms = sorted(delays)[int(len(delays) * 0.99)] * 1000
    print(f"\n{len(delays)} signed, p99 {p99_ms:.1f} ms, worst {max(delays) * 1000:.0f} ms, at most {most_mb:.0f} MB")
    assert receiver.status()["accepted"] == len(delays)
    assert p99_ms < 250
    assert most_mb < 150


def measure(receiver: Receiver) -> tuple[list[float], float]:
    """Send signed notifications at an even pace; each has to be accepted. Return their times and the largest memory."""
    from tests.integration.receiver_process import patient, read_answer, request

    delays, most_mb, end = [], 0.0, time.monotonic() + SECONDS
    with receiver.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(int(SECONDS * PER_SECOND)):
            due = end - SECONDS + number / PER_SECOND
            while time.monotonic() < due:
                time.sleep(0.001)
            began = time.perf_counter()
            connection.sendall(request(patient(number, text="x" * 1500)))
            assert read_answer(connection).status == 202
            delays.append(time.perf_counter() - began)
            if number % PER_SECOND == 0:
                most_mb = max(most_mb, receiver.rss_mb())
    return delays, most_mb


if __name__ == "__main__":
    asyncio.run(crowd(int(sys.argv[1])))
