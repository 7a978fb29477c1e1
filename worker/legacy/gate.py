"""The gate before a legacy API, shared by all processes: a breaker with one probe, rates, a limit of calls in flight.

It never blocks and never calls the API: it says whether a call may leave now, or how long to wait. The state is in
Redis, one script a step (gate.lua). Where Redis is away each process has a gate of its own, and says so once.
"""

from __future__ import annotations

import secrets
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.resources import files
from typing import Protocol

import redis

from worker import log
from worker.legacy.outcome import Answered, Outcome
from worker.legacy.rate import Rate
from worker.settings import BrokerSettings

_log = log.get(__name__)

FAILURES_MAX = 5  # in a row, over all processes; then the gate is closed
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0  # until the first probe; doubled by each that fails
SLOT_MARGIN_S = 10.0  # beyond its deadline, a call in flight is that of a dead process
AWAY_S = 2.0  # how long Redis is left alone after it failed
_BUSY_S = 0.1
_FAILED = frozenset({Outcome.NOT_DONE, Outcome.UNKNOWN})


class Api(Protocol):
    """What the gate looks at."""

    @property
    def name(self) -> str: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def deadline_s(self) -> float: ...
    @property
    def rates(self) -> Sequence[Rate]: ...


@dataclass(frozen=True, slots=True)
class Pass:
    """Leave to send one call; give it back by `leave`. `shared` says whose gate gave it."""

    token: str
    api: Api = field(repr=False)
    probe: bool
    shared: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """No call may leave before so many seconds. `full`: the API is well, only all that it takes is taken."""

    wait_s: float
    full: bool = False


class Gate:
    """One gate for each API by its name; safe for threads.

    `client` should have short socket timeouts (`Gate.connect` sets them): the call to the legacy API waits for it.
    """

    def __init__(self, client: redis.Redis | None, *, prefix: str = "reverse-sync:gate") -> None:
        self._client = client
        self._script = client.register_script(_source()) if client is not None else None
        self._prefix = prefix
        self._own = _OwnGates()
        self._lock = threading.Lock()
        self._away_until: float | None = None

    @classmethod
    def connect(cls, url: str) -> Gate:
        """Make a gate over the Redis at a URL; nothing is connected before the first call."""
        return cls(redis.Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5, retry=None))

    @classmethod
    def of(cls, settings: BrokerSettings) -> Gate:
        """Make the gate of a process; without a broker it has one of its own."""
        return cls(None) if settings.broker_url is None else cls.connect(settings.broker_url.get_secret_value())

    @property
    def shared(self) -> bool:
        """Tell whether all processes share this gate, as far as the last call knows."""
        return self._script is not None and self._away_until is None

    def enter(self, api: Api) -> Pass | Closed:
        """Ask for leave to send one call to the API."""
        token = secrets.token_hex(8)
        slot_ms = int((api.deadline_s + SLOT_MARGIN_S) * 1000)
        rates = [number for rate in api.rates for number in (rate.calls, rate.span_s * 1000, int(rate.fixed))]
        answer = self._run(api, "enter", token, api.concurrency, slot_ms, FAILURES_MAX, *rates)
        if answer is None:
            return self._own.enter(api, token)
        verdict, wait_ms, full = answer
        if verdict == _CLOSED:
            return Closed(wait_ms / 1000, full == 1)
        return Pass(token, api, verdict == _PROBE, shared=True)

    def leave(self, taken: Pass, answered: Answered | None) -> None:
        """Give a pass back with what the call came to; None if it was never sent, or was but a look.

        After not-done and unknown, and after a Retry-After, the gate may close; any other answer opens it. A 429 that
        does not say for how long closes it for a second, and each further one for twice as long.
        """
        said, retry_after_s = "neither", 0.0
        if answered is not None:
            slow = answered.status == HTTPStatus.TOO_MANY_REQUESTS
            said = "slow" if slow else "failed" if answered.outcome in _FAILED else "ok"
            retry_after_s = answered.retry_after_s or 0.0
        answer = None
        if taken.shared:
            first, longest = int(FIRST_WAIT_S * 1000), int(LONGEST_WAIT_S * 1000)
            wait_ms = int(retry_after_s * 1000)
            answer = self._run(taken.api, "leave", taken.token, said, wait_ms, FAILURES_MAX, first, longest)
        if answer is None:
            self._own.leave(taken, said, retry_after_s)

    def _run(self, api: Api, *arguments: str | int) -> list[int] | None:
        if self._script is None or (self._away_until is not None and time.monotonic() < self._away_until):
            return None
        own = f"{self._prefix}:{{{api.name}}}"
        keys = [own, f"{own}:flights", f"{own}:calls"]
        try:
            answer: list[int] = self._script(keys=keys, args=list(arguments))
        except redis.RedisError as error:
            self._left(type(error).__name__)
            return None
        self._back()
        return answer

    def _left(self, why: str) -> None:
        with self._lock:
            known, self._away_until = self._away_until is not None, time.monotonic() + AWAY_S
        if not known:
            _log.warning("the gate's Redis is away: each process limits itself until it is back", why=why)

    def _back(self) -> None:
        if self._away_until is None:
            return
        with self._lock:
            known, self._away_until = self._away_until is not None, None
        if known:
            _log.info("the gate's Redis is back: one gate for all processes again")


_PROBE, _CLOSED = 1, 2


def _source() -> str:
    return files(__package__).joinpath("gate.lua").read_text(encoding="utf-8")


@dataclass(slots=True)
class _Own:
    """The state of gate.lua for one API in one process, in seconds of the monotonic clock."""

    failures: int = 0
    slows: int = 0
    shut_until: float = 0.0
    open_until: float = 0.0
    probe: str = ""
    flights: set[str] = field(default_factory=set)
    given_back: list[float] = field(default_factory=list)  # when, in order; of the longest span

    def pace(self, rates: Sequence[Rate], now: float, wall: float) -> float:
        """Return how long it is until one more call fits into every span."""
        del self.given_back[: bisect_right(self.given_back, now - max((rate.span_s for rate in rates), default=0))]
        wait = 0.0
        for rate in rates:
            since = now - (wall % rate.span_s if rate.fixed else rate.span_s)
            first = bisect_right(self.given_back, since)
            over = len(self.given_back) - first + len(self.flights) - rate.calls
            if over >= 0 and first + over < len(self.given_back) and not rate.fixed:
                wait = max(wait, self.given_back[first + over] + rate.span_s - now)
            elif over >= 0:
                wait = max(wait, since + rate.span_s - now if rate.fixed else rate.span_s)
        return wait


class _OwnGates:
    """The same rules as gate.lua without Redis. A pass cannot outlive its process here, so none of them runs out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock, self._wall = clock, wall
        self._lock = threading.Lock()
        self._gates: dict[str, _Own] = {}

    def enter(self, api: Api, token: str) -> Pass | Closed:
        with self._lock:
            gate, now = self._gates.setdefault(api.name, _Own()), self._clock()
            wait = max(gate.shut_until, gate.open_until) - now
            if wait > 0:
                return Closed(wait)
            probing = gate.failures >= FAILURES_MAX
            if probing and gate.probe:
                return Closed(1.0)
            if len(gate.flights) >= api.concurrency:
                return Closed(_BUSY_S, full=True)
            if (paced := gate.pace(api.rates, now, self._wall())) > 0:
                return Closed(paced, full=True)
            gate.flights.add(token)
            gate.probe = token if probing else ""
            return Pass(token, api, probing, shared=False)

    def leave(self, taken: Pass, said: str, retry_after_s: float) -> None:
        with self._lock:
            gate, now = self._gates.setdefault(taken.api.name, _Own()), self._clock()
            if taken.token in gate.flights and taken.api.rates:
                gate.given_back.append(now)
            gate.flights.discard(taken.token)
            if gate.probe == taken.token:
                gate.probe = ""
            if said == "ok":
                gate.failures, gate.slows, gate.open_until = 0, 0, 0.0
            elif said == "slow" and retry_after_s == 0 and gate.shut_until <= now:
                gate.slows += 1
                retry_after_s = _doubled(gate.slows)
            elif said == "failed" and gate.open_until <= now:
                gate.failures += 1
                if gate.failures >= FAILURES_MAX:
                    gate.open_until = now + _doubled(gate.failures - FAILURES_MAX + 1)
            if retry_after_s > 0:
                gate.shut_until = max(gate.shut_until, now + retry_after_s)


def _doubled(count: int) -> float:
    return min(FIRST_WAIT_S * 2.0 ** min(count - 1, 20), LONGEST_WAIT_S)
