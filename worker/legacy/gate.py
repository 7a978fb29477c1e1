"""The gate in front of a legacy API, shared by all processes: a breaker with one probe, and a limit of calls in flight.

It never blocks and never calls the API: it says whether a call may leave now, or how long to wait. The state is in
Redis, one script a step (gate.lua). Where Redis is away each process has a gate of its own, and says so once.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Protocol

import redis

from worker import log
from worker.legacy.outcome import Answered, Outcome
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


@dataclass(frozen=True, slots=True)
class Pass:
    """Leave to send one call; give it back by `leave`. `shared` says whose gate gave it."""

    token: str
    api: Api = field(repr=False)
    probe: bool
    shared: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """No call may leave now."""

    wait_s: float


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

    def enter(self, api: Api) -> Pass | Closed:
        """Ask for leave to send one call to the API."""
        token = secrets.token_hex(8)
        slot_ms = int((api.deadline_s + SLOT_MARGIN_S) * 1000)
        answer = self._run(api, "enter", token, api.concurrency, slot_ms, FAILURES_MAX)
        if answer is None:
            return self._own.enter(api, token)
        verdict, wait_ms = answer
        return Closed(wait_ms / 1000) if verdict == _CLOSED else Pass(token, api, verdict == _PROBE, shared=True)

    def leave(self, taken: Pass, answered: Answered | None) -> None:
        """Give a pass back with what the call came to; None if it was never sent, or was but a look.

        After not-done and unknown, and after a Retry-After, the gate may close; any other answer opens it.
        """
        said, retry_after_s = "neither", 0.0
        if answered is not None:
            said = "failed" if answered.outcome in _FAILED else "ok"
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
        keys = [f"{self._prefix}:{{{api.name}}}", f"{self._prefix}:{{{api.name}}}:flights"]
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
    shut_until: float = 0.0
    open_until: float = 0.0
    probe: str = ""
    flights: set[str] = field(default_factory=set)


class _OwnGates:
    """The same rules as gate.lua without Redis. A pass cannot outlive its process here, so none of them runs out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._gates: dict[str, _Own] = {}

    def enter(self, api: Api, token: str) -> Pass | Closed:
        with self._lock:
            gate = self._gates.setdefault(api.name, _Own())
            wait = max(gate.shut_until, gate.open_until) - self._clock()
            if wait > 0:
                return Closed(wait)
            probing = gate.failures >= FAILURES_MAX
            if probing and gate.probe:
                return Closed(1.0)
            if len(gate.flights) >= api.concurrency:
                return Closed(_BUSY_S)
            gate.flights.add(token)
            gate.probe = token if probing else ""
            return Pass(token, api, probing, shared=False)

    def leave(self, taken: Pass, said: str, retry_after_s: float) -> None:
        with self._lock:
            gate = self._gates.setdefault(taken.api.name, _Own())
            now = self._clock()
            gate.flights.discard(taken.token)
            if gate.probe == taken.token:
                gate.probe = ""
            if said == "ok":
                gate.failures, gate.open_until = 0, 0.0
            elif said == "failed" and gate.open_until <= now:
                gate.failures += 1
                if gate.failures >= FAILURES_MAX:
                    doubled = FIRST_WAIT_S * 2 ** min(gate.failures - FAILURES_MAX, 20)
                    gate.open_until = now + min(doubled, LONGEST_WAIT_S)
            if retry_after_s > 0:
                gate.shut_until = max(gate.shut_until, now + retry_after_s)
