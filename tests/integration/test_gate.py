"""`worker.legacy.gate` over a real Valkey: one breaker, one probe and one limit for all processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar
from uuid import uuid4

import pytest
import redis

from worker.broker import address
from worker.legacy import Answered, Outcome, Rate
from worker.legacy.gate import FAILURES_MAX, LONGEST_WAIT_S, Closed, Gate, Pass

T = TypeVar("T")

RUN = "import sys; from pathlib import Path; from worker.broker import run; run(Path(sys.argv[1]))"


@dataclass(frozen=True)
class Api:
    """What the gate looks at of a legacy API."""

    name: str
    concurrency: int = 3
    deadline_s: float = 20.0
    rates: tuple[Rate, ...] = ()


def eventually(fact: Callable[[], T | None], within_s: float = 15) -> T:
    """Wait until there is something; nothing until the end fails the test."""
    deadline = time.monotonic() + within_s
    while (found := fact()) is None:
        assert time.monotonic() < deadline, "the fact never came to hold"
        time.sleep(0.01)
    return found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Valkey of this module's own."""
    var = tmp_path_factory.mktemp("broker")
    process = subprocess.Popen([sys.executable, "-c", RUN, str(var)], stdout=subprocess.DEVNULL)

    def answering() -> str | None:
        found = address(var)
        if found is None:
            return None
        try:
            with redis.Redis.from_url(found, socket_timeout=2) as client:
                return found if client.ping() else None
        except redis.ConnectionError:
            return None

    try:
        yield eventually(answering)
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
def api() -> Api:
    """An API that no other test knows."""
    return Api(uuid4().hex)


@pytest.fixture
def gates(url: str) -> tuple[Gate, Gate]:
    """The gates of two processes."""
    return Gate.connect(url), Gate.connect(url)


def passed(gate: Gate, api: Api) -> Pass:
    """Enter, now."""
    entered = gate.enter(api)
    assert isinstance(entered, Pass), entered
    return entered


def answered(outcome: Outcome, retry_after_s: float | None = None) -> Answered:
    return Answered(outcome, "", retry_after_s=retry_after_s)


def fail(gate: Gate, api: Api, times: int = FAILURES_MAX) -> None:
    """Let calls fail until the gate closes."""
    for _ in range(times):
        gate.leave(passed(gate, api), answered(Outcome.UNKNOWN))


def test_it_opens_for_everybody_after_failures_in_a_row(gates: tuple[Gate, Gate], api: Api) -> None:
    """What one process learned by failing, the other knows, and both learn how long to wait."""
    here, there = gates
    fail(here, api)
    closed = there.enter(api)
    assert isinstance(closed, Closed)
    assert 0 < closed.wait_s <= 1


def test_an_answer_between_failures_starts_the_count_anew(gates: tuple[Gate, Gate], api: Api) -> None:
    """A refusal is an answer: an API that refuses one patient is not down for the others."""
    here, there = gates
    fail(here, api, FAILURES_MAX - 1)
    there.leave(passed(there, api), answered(Outcome.REFUSED))
    fail(here, api, FAILURES_MAX - 1)
    assert isinstance(there.enter(api), Pass)


def test_one_probe_over_all_processes(url: str, api: Api) -> None:
    """Once the wait is over, of many who ask at the same moment exactly one may try."""
    fail(Gate.connect(url), api)
    everybody = [Gate.connect(url) for _ in range(12)]
    probes: list[Pass] = []

    def ask(gate: Gate) -> None:
        def enter() -> bool | None:
            entered = gate.enter(api)
            if isinstance(entered, Pass):
                probes.append(entered)
            return bool(probes) or None

        eventually(enter)

    with ThreadPoolExecutor(len(everybody)) as pool:
        list(pool.map(ask, everybody))
    assert [probe.probe for probe in probes] == [True]
    assert all(isinstance(gate.enter(api), Closed) for gate in everybody)


def test_a_probe_that_succeeds_lets_everybody_in_again(gates: tuple[Gate, Gate], api: Api) -> None:
    """The first answer closes the breaker."""
    here, there = gates
    fail(here, api)
    probe = eventually(lambda: entered if isinstance(entered := there.enter(api), Pass) else None)
    there.leave(probe, answered(Outcome.DONE))
    assert not passed(here, api).probe


def test_each_probe_that_fails_doubles_the_wait(gates: tuple[Gate, Gate], api: Api) -> None:
    """The wait grows, and late failures of calls that left before do not make it longer still."""
    here, there = gates
    late = [passed(here, api) for _ in range(2)]
    fail(there, api)
    for call in late:
        here.leave(call, answered(Outcome.UNKNOWN))
    probe = eventually(lambda: entered if isinstance(entered := there.enter(api), Pass) else None)
    there.leave(probe, answered(Outcome.NOT_DONE))
    closed = here.enter(api)
    assert isinstance(closed, Closed)
    assert 1 < closed.wait_s <= 2 < LONGEST_WAIT_S


def test_a_probe_that_was_never_sent_leaves_the_next_one(gates: tuple[Gate, Gate], api: Api) -> None:
    """A probe given back without an answer proves nothing: still only one may try."""
    here, there = gates
    fail(here, api)
    probe = eventually(lambda: entered if isinstance(entered := there.enter(api), Pass) else None)
    there.leave(probe, None)
    assert passed(here, api).probe
    assert isinstance(there.enter(api), Closed)


def test_retry_after_holds_everybody_for_that_long(gates: tuple[Gate, Gate], api: Api) -> None:
    """A 429 with Retry-After closes the gate for that time, whatever other calls come to meanwhile."""
    here, there = gates
    call, other = passed(here, api), passed(there, api)
    here.leave(call, answered(Outcome.NOT_DONE, retry_after_s=7))
    there.leave(other, answered(Outcome.DONE))
    closed = there.enter(api)
    assert isinstance(closed, Closed)
    assert 5 < closed.wait_s <= 7


def test_no_more_in_flight_than_declared(gates: tuple[Gate, Gate], api: Api) -> None:
    """The limit is for all processes together, and a place that is left is taken by another."""
    here, there = gates
    calls = [passed(here, api), passed(there, api), passed(here, api)]
    assert isinstance(there.enter(api), Closed)
    here.leave(calls[0], answered(Outcome.DONE))
    passed(there, api)
    assert isinstance(here.enter(api), Closed)


def test_the_place_of_a_dead_process_is_free_again(gates: tuple[Gate, Gate], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that nobody gave back runs out by itself, a probe's too."""
    monkeypatch.setattr("worker.legacy.gate.SLOT_MARGIN_S", 0.0)
    here, there = gates
    api = Api(uuid4().hex, concurrency=1, deadline_s=0.3)
    passed(here, api)
    assert isinstance(there.enter(api), Closed)
    eventually(lambda: entered if isinstance(entered := there.enter(api), Pass) else None)


def test_several_rates_hold_at_once(gates: tuple[Gate, Gate]) -> None:
    """Two a second and three an hour: a call counts until its answer is a span old, whichever process sent it."""
    here, there = gates
    api = Api(uuid4().hex, concurrency=9, rates=(Rate(2, "second"), Rate(3, "hour")))
    calls = [passed(here, api), passed(there, api)]
    full = there.enter(api)
    assert isinstance(full, Closed)
    assert full.full
    assert 0 < full.wait_s <= 1
    for call in calls:
        here.leave(call, answered(Outcome.DONE))
    third = eventually(lambda: entered if isinstance(entered := there.enter(api), Pass) else None)
    there.leave(third, answered(Outcome.DONE))
    full = here.enter(api)
    assert isinstance(full, Closed)
    assert 3590 < full.wait_s <= 3600


def test_a_call_in_flight_counts_in_its_span(gates: tuple[Gate, Gate]) -> None:
    """A slow call may come in at the last moment, so its second begins when it was answered."""
    here, there = gates
    api = Api(uuid4().hex, rates=(Rate(1, "second"),))
    call = passed(here, api)
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 1.1 or None)
    assert isinstance(there.enter(api), Closed)
    here.leave(call, answered(Outcome.DONE))
    left = time.monotonic()
    eventually(lambda: entered if isinstance(entered := there.enter(api), Pass) else None)
    assert time.monotonic() - left > 0.99


def test_a_fixed_span_ends_by_the_clock(gates: tuple[Gate, Gate]) -> None:
    """A quota that starts anew on the hour is waited for until then."""
    here, there = gates
    api = Api(uuid4().hex, rates=(Rate(1, "hour", fixed=True),))
    here.leave(passed(here, api), answered(Outcome.DONE))
    full = there.enter(api)
    if isinstance(full, Pass):  # the hour was over just between the two
        there.leave(full, None)
        full = there.enter(api)
    assert isinstance(full, Closed)
    assert abs(full.wait_s - (3600 - time.time() % 3600)) < 5


def test_429_without_a_word_holds_everybody_and_doubles(gates: tuple[Gate, Gate], api: Api) -> None:
    """The API is alive: its calls are no failures, and each 429 in a row makes the rest twice as long."""
    here, there = gates
    for waits in (1, 2, 4):
        call = eventually(lambda: entered if isinstance(entered := here.enter(api), Pass) else None)
        assert not call.probe
        here.leave(call, Answered(Outcome.NOT_DONE, "", 429))
        closed = there.enter(api)
        assert isinstance(closed, Closed)
        assert waits - 1 < closed.wait_s <= waits
        assert not closed.full


def test_a_quota_that_is_used_up_holds_everybody(gates: tuple[Gate, Gate], api: Api) -> None:
    """What an answer says of the quota counts even where the call itself was done."""
    here, there = gates
    here.leave(passed(here, api), answered(Outcome.DONE, retry_after_s=30))
    assert isinstance(there.enter(api), Closed)


def test_apis_do_not_close_each_others_gates(gates: tuple[Gate, Gate], api: Api) -> None:
    """Each API has its own gate."""
    fail(gates[0], api)
    passed(gates[1], Api(uuid4().hex))


def test_a_gate_costs_little(gates: tuple[Gate, Gate], api: Api) -> None:
    """Entering and leaving takes a few milliseconds at most, so it may stand before each call."""
    here, _ = gates
    passed(here, api)
    began = time.monotonic()
    for _ in range(100):
        here.leave(passed(here, api), answered(Outcome.DONE))
    assert (time.monotonic() - began) / 200 < 0.02


def test_while_redis_is_away_each_process_keeps_a_gate_of_its_own(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """No Redis: calls go on, the breaker and the limit hold in this process, and it is said once."""
    gate = Gate.connect("redis://127.0.0.1:9/0")
    calls = [passed(gate, api) for _ in range(api.concurrency)]
    assert not calls[0].shared
    assert isinstance(gate.enter(api), Closed)
    for call in calls:
        gate.leave(call, answered(Outcome.DONE))
    fail(gate, api)
    closed = gate.enter(api)
    assert isinstance(closed, Closed)
    assert 0 < closed.wait_s <= 1
    said = "".join(capsys.readouterr())
    assert said.count("Redis is away") == 1
    assert not gate.shared
