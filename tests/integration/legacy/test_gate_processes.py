"""Eight real processes before one gate: a real Valkey, a real HTTP server that keeps when each call came in."""

from __future__ import annotations

import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.integration.legacy.vendor import Behaviour, Says, Vendor
from worker.broker import address
from worker.legacy.gate import FAILURES_MAX

Start = Callable[[Behaviour], Vendor]
ROOT = Path(__file__).parents[3]
RUN = "import sys; from pathlib import Path; from worker.broker import run; run(Path(sys.argv[1]))"
PROCESSES, RATE = 8, 20


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Valkey of this module's own."""
    var = tmp_path_factory.mktemp("broker")
    process = subprocess.Popen([sys.executable, "-c", RUN, str(var)], stdout=subprocess.DEVNULL)
    try:
        yield answering(var, process)
    finally:
        process.kill()
        process.wait(10)


def answering(var: Path, process: subprocess.Popen[bytes]) -> str:
    ends_at = time.monotonic() + 20
    while time.monotonic() < ends_at:
        assert process.poll() is None, "the broker ended"
        if (url := address(var)) is not None:
            try:
                with redis.Redis.from_url(url, socket_timeout=2) as client:
                    client.flushdb()
                    return url
            except redis.ConnectionError:
                pass
        time.sleep(0.02)
    raise AssertionError("the broker never answered")


@contextmanager
def working(redis_url: str, server: Vendor, *, threads: int, rate: int = 0) -> Iterator[list[int]]:
    """Let eight processes work until the block ends; what is yielded then holds how many probes each sent."""
    command = [sys.executable, "-m", "tests.integration.legacy.gate_process", redis_url, f"{server.url}/api"]
    arguments = map(str, (PROCESSES, threads, rate))
    probes: list[int] = []
    with subprocess.Popen(
        [*command, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as workers:
        yield probes
        told = [line.split() for line in workers.communicate(timeout=60)[0].splitlines()]
    assert [line[1] for line in told] == ["True"] * PROCESSES, "a process had a gate of its own"
    probes += [int(line[0]) for line in told]


def eventually(fact: Callable[[], bool], within_s: float) -> None:
    ends_at = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < ends_at, "the fact never came to hold"
        time.sleep(0.01)


@pytest.mark.processes
@pytest.mark.timeout(180)  # what it shows takes seconds; the machine may have other work
def test_one_probe_over_eight_processes(vendor: Start, redis_url: str) -> None:
    """While an API is dead one call comes in at half-open, of 24 threads; once it answers, they all come."""
    well: list[bool] = []
    server = vendor(lambda asked: Says(200 if well else 500, {}))
    with redis.Redis.from_url(redis_url) as client:

        def is_open() -> bool:
            """Tell whether the breaker is open and no call of before is on its way."""
            state = client.hget("reverse-sync:gate:{vendor}", "failures")
            return int(state or 0) >= FAILURES_MAX and not client.zcard("reverse-sync:gate:{vendor}:flights")

        with working(redis_url, server, threads=3) as probes:
            eventually(is_open, 40)
            before = len(server.asked)
            eventually(lambda: len(server.asked) >= before + 2, 40)
            dead = [asked.at for asked in server.asked]
            well.append(True)
            eventually(lambda: len(server.asked) >= before + 200, 40)
    assert len(dead) == before + 2
    assert dead[-1] - dead[-2] >= 1.9  # the first wait is a second, each further one twice as long
    assert server.asked[before + 2].at - dead[-1] >= 3.9
    assert sum(probes) >= 3


@pytest.mark.processes
@pytest.mark.timeout(180)  # what it shows takes seconds; the machine may have other work
def test_never_more_than_the_rate_and_not_much_less(vendor: Start, redis_url: str) -> None:
    """20 a second: no rolling second at the server has more, and while there is work there are at least 18."""

    server = vendor(lambda asked: Says(200, {}))
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    with working(redis_url, server, threads=4, rate=RATE):
        eventually(lambda: best(server) >= RATE * 0.9, 120)
    came = sorted(asked.at for asked in server.asked)
    assert max(bisect_left(came, at + 1) - place for place, at in enumerate(came)) <= RATE


def best(server: Vendor) -> float:
    """The calls a second of the five seconds that were least disturbed by what else the machine does."""
    came = [asked.at for asked in list(server.asked)]
    five = 5 * RATE
    return max((five / (late - early) for early, late in zip(came, came[five:], strict=False)), default=0.0)
