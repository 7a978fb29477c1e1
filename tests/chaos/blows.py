"""Strikes one blow at a time at real processes, by signals and by the stand-ins' control planes. It judges nothing.

A process that is killed here is started again by whoever watches over all of them, as a supervisor would.
"""

from __future__ import annotations

import json
import random
import re
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import redis
from sqlalchemy import func, select

from tests.acceptance.system import System
from tests.chaos.databases import Away
from tests.chaos.front import Traffic
from tests.chaos.plan import SEND_WITHIN_S, WORKERS, Kind, Strike
from worker.errors import LedgerUnavailable
from worker.ledger.tables import instances, mirrors, writes

Json = dict[str, Any]

HUNT_S: Final = 8.0  # for the moment between an announcement and its send
STEP_S: Final = 0.02
LOOK_BACK: Final = 400  # lines of the journal
ARRIVES_S: Final = 0.1  # what has left is in the clinic's journal by then

_STAMP: Final = re.compile(r"\bv\d+\b")
_CLINIC: Final[Mapping[Kind, Json]] = {
    Kind.RESET_BEFORE: {"kind": "reset_before"},
    Kind.RESET_AFTER: {"kind": "reset_after"},
    Kind.LATE_WITHIN: {"kind": "late"},
    Kind.LATE_BEYOND: {"kind": "late"},
    Kind.ERROR_BEFORE: {"kind": "status", "status": 500},
    Kind.ERROR_AFTER: {"kind": "status", "status": 500, "saves": True},
    Kind.STORM: {"kind": "status", "status": 429, "headers": {"Retry-After": "2"}},
    Kind.STORM_BARE: {"kind": "status", "status": 429},
    Kind.AWAY: {"kind": "status", "status": 503},
    Kind.DRIP: {"kind": "drip"},
    Kind.HANG: {"kind": "hang"},
    Kind.REFUSE: {"kind": "refuse"},
}
_MEDPLUM: Final[Mapping[Kind, Json]] = {
    Kind.MEDPLUM_ERROR: {"status": 502},
    Kind.MEDPLUM_QUOTA: {"status": 429, "headers": {"Retry-After": "1"}},
    Kind.MEDPLUM_DRIP: {"drip_seconds": 0.2},
}
_FOR_A_WHILE: Final[Mapping[Kind, tuple[Json, Json]]] = {
    Kind.DROP: ({"drop_rate": 0.2}, {"drop_rate": 0.0}),
    Kind.DOUBLE: ({"duplicate_rate": 0.5}, {"duplicate_rate": 0.0}),
    Kind.DELAY: ({"delay_seconds": 2.0}, {"delay_seconds": 0.0}),
    Kind.REORDER: ({"reorder_seconds": 3.0}, {"reorder_seconds": 0.0}),
    Kind.CONCURRENT: ({"concurrent_writers": True}, {"concurrent_writers": False}),
}
_KILLED: Final[Mapping[Kind, str]] = {
    Kind.KILL_WEB: "web",
    Kind.KILL_DISPATCH: "dispatch",
    Kind.KILL_BROKER: "broker",
}


@dataclass(slots=True)
class Blows:
    """Strikes; each blow may be struck in a thread of its own. `struck` counts those that took place."""

    system: System
    database: Away
    traffic: Traffic
    dice: random.Random
    over: threading.Event = field(default_factory=threading.Event)
    struck: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    _hunting: threading.Lock = field(default_factory=threading.Lock)
    _clinic: threading.Lock = field(default_factory=threading.Lock)
    _journal_end: int = 0

    def begin(self) -> None:
        """Switch on what is wrong during the whole run: reads by id that Medplum answers from a stale cache."""
        self.system.steer_medplum("faults", stale_get=True)

    def strike(self, strike: Strike) -> None:
        """Strike once; returns when it is over. What cannot be reached at this moment, another strike has taken."""
        try:
            self._way(strike)(strike)
        except (httpx.HTTPError, LedgerUnavailable, redis.RedisError, ConnectionError):
            self.notes[f"missed: {strike.kind}"] += 1
        else:
            self.struck[strike.kind] += 1

    def calm(self) -> None:
        """End every fault."""
        self.calm_processes()
        with suppress(httpx.HTTPError):
            self.system.clinic.behave()  # a clinic that is being started again knows no faults
        self.system.steer_medplum("clear")

    def calm_processes(self) -> None:
        """Let everything run that stands still."""
        self.over.set()
        self.system.processes.signal(signal.SIGCONT, (*WORKERS, "broker"))

    def _way(self, strike: Strike) -> Callable[[Strike], None]:
        kind = strike.kind
        if kind in _CLINIC:
            return self._misbehave
        if kind in _MEDPLUM:
            return self._refuse_reads
        if kind in _FOR_A_WHILE:
            return self._for_a_while
        if kind in _KILLED:
            return lambda strike: self.system.kill(_KILLED[strike.kind])
        return {
            Kind.KILL_WORKER: lambda strike: self.system.kill(strike.target),
            Kind.FREEZE_WORKER: lambda strike: self._freeze(strike.target, strike.seconds),
            Kind.FREEZE_BROKER: lambda strike: self._freeze("broker", strike.seconds),
            Kind.FREEZE_BEFORE_SEND: self._freeze_before_send,
            Kind.KILL_BEFORE_SEND: self._freeze_before_send,
            Kind.FLUSH_BROKER: self._flush,
            Kind.KILL_CLINIC: self._kill_clinic,
            Kind.STOP_DATABASE: lambda strike: self.database.away(strike.seconds, self.over),
            Kind.LOCK_DATABASE: lambda strike: self.database.away(strike.seconds, self.over),
            Kind.EXPIRE_TOKENS: lambda _: self._steer(expire_tokens=True),
            Kind.EARLY_DELETE: self._delete_early,
            Kind.FORGE_DELETE: self._forge_deletes,
            Kind.FORGE_UNKNOWN: self._forge_unknown,
            Kind.FORGE_SECRET: self._forge_secret,
        }[kind]

    # processes

    def _freeze(self, name: str, seconds: float) -> None:
        self.system.processes.signal(signal.SIGSTOP, (name,))
        self.over.wait(seconds)
        self.system.processes.signal(signal.SIGCONT, (name,))

    def _flush(self, _: Strike) -> None:
        with self.system.broker() as broker:
            broker.flushall()

    def _freeze_before_send(self, strike: Strike) -> None:
        """Stop a worker that has announced a write of which nothing has left; others are let go on at once."""
        with self._hunting:
            until = time.monotonic() + HUNT_S
            while time.monotonic() < until and not self.over.is_set():
                if self._sees_an_announcement(until):
                    self.notes["stops at an announcement"] += 1
                    self.system.processes.signal(signal.SIGSTOP, WORKERS)
                    if self._holds_one(strike):
                        return
            self.notes[f"no such moment in {HUNT_S:.0f} s"] += 1

    def _holds_one(self, strike: Strike) -> bool:
        """Leave that worker frozen, if there is one, and let the others go on in any case."""
        caught: str | None = None
        try:
            caught = next((worker for worker in WORKERS if self._is_caught(worker)), None)
            self.system.processes.signal(signal.SIGCONT, [worker for worker in WORKERS if worker != caught])
            if caught is not None:
                self.notes["announced, and nothing in the clinic's journal while frozen"] += 1
                self.over.wait(strike.seconds)
                if strike.kind is Kind.KILL_BEFORE_SEND:
                    self.system.kill(caught)
        finally:
            self.system.processes.signal(signal.SIGCONT, WORKERS)
        return caught is not None

    def _sees_an_announcement(self, until: float) -> bool:
        """Look at the ledger again and again until a new write is announced."""
        latest = select(func.max(writes.c.id))
        known: int | None = None
        while time.monotonic() < until and not self.over.is_set():
            seen = self.system.ledger.database.read(lambda tx: tx.execute(latest).scalar_one()) or 0
            if known is not None and seen > known:
                return True
            known = seen
        return False

    def _is_caught(self, worker: str) -> bool:
        """Tell whether this worker, which stands still, has announced a write that has not left."""
        announced = self._announced(self.system.processes.pid(worker))
        if not announced:
            return False
        time.sleep(ARRIVES_S)
        begun = min(each.announced_at.timestamp() for each in announced) - SEND_WITHIN_S
        arrived = {_STAMP.findall(json.dumps(line["body"]))[-1] for line in self._arrived(begun)}
        return any(stamp not in arrived for each in announced if (stamp := self._stamp(each)))

    def _announced(self, pid: int) -> list[Any]:
        mine = (
            select(writes)
            .join(mirrors, mirrors.c.reference == writes.c.reference)
            .join(instances, instances.c.id == mirrors.c.lease_owner)
            .where(instances.c.pid == pid, writes.c.token == mirrors.c.token, writes.c.answered_at.is_(None))
            .where(writes.c.operation != "delete", writes.c.outcome.is_(None), writes.c.body.is_not(None))
        )
        return list(self.system.ledger.database.read(lambda tx: tx.execute(mine).all()))

    def _arrived(self, since_s: float) -> list[Json]:
        """List what has come with a stamp since then; the journal is long, so its end alone is read."""
        lines = self.system.clinic.journal(since=max(0, self._journal_end - LOOK_BACK))
        self._journal_end = max((line["n"] for line in lines), default=self._journal_end)
        return [line for line in lines if line["received_at"] >= since_s and _STAMP.search(json.dumps(line["body"]))]

    def _stamp(self, write: Any) -> str | None:
        place = {"table": "writes", "reference": write.reference, "version": write.version_id or "", "column": "body"}
        found = _STAMP.findall(self.system.ledger.sealer.open(write.body, **place).decode())
        return found[-1] if found else None

    # the clinic and Medplum

    def _misbehave(self, strike: Strike) -> None:
        match = {"method": strike.target} if strike.target else {}
        seconds = {"seconds": strike.seconds} if strike.seconds else {}
        rule = {"match": match, "times": strike.times, **seconds, **_CLINIC[strike.kind]}
        with self._clinic:  # the first rule that fits acts: those for every request stand behind the others
            others = self.system.clinic.faults()
            self.system.clinic.behave()
            self.system.clinic.misbehave(*([rule, *others] if match else [*others, rule]))

    def _kill_clinic(self, _: Strike) -> None:
        """Kill it; a new one has the faults of the old one."""
        with self._clinic:
            rules = self.system.clinic.faults()
            self.system.kill("clinic")
            while not self.over.wait(STEP_S):
                with suppress(httpx.TransportError):
                    self.system.clinic.misbehave(*rules)
                    return

    def _steer(self, **wanted: Any) -> None:
        self.system.steer_medplum("faults", **wanted)

    def _refuse_reads(self, strike: Strike) -> None:
        self._steer(api=[{"clients": ["sync"], "times": strike.times, **_MEDPLUM[strike.kind]}])

    def _for_a_while(self, strike: Strike) -> None:
        on, off = _FOR_A_WHILE[strike.kind]
        self._steer(**on)
        self.over.wait(strike.seconds)
        self._steer(**off)

    def _delete_early(self, strike: Strike) -> None:
        for reference in self.dice.choice(self.traffic.fronts).will_delete(strike.times):
            self._tell_of_delete(reference)

    def _forge_deletes(self, strike: Strike) -> None:
        live = self.traffic.live()
        for reference in self.dice.sample(live, min(strike.times, len(live))):
            self._tell_of_delete(reference)

    def _forge_unknown(self, strike: Strike) -> None:
        for _ in range(strike.times):
            self._tell_of_delete(f"Condition/{uuid.UUID(int=self.dice.getrandbits(128), version=4)}")

    def _forge_secret(self, strike: Strike) -> None:
        live = self.traffic.live()
        for reference in self.dice.sample(live, min(strike.times, len(live))):
            self.system.steer_medplum("notify", reference=reference, interaction="delete", secret="a stranger's")

    def _tell_of_delete(self, reference: str) -> None:
        self.system.steer_medplum("notify", reference=reference, interaction="delete")
