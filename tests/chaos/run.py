"""Plays one run: traffic and strikes, then calm, then catch-up, then a person's turn, then the verdict."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import httpx
import redis

from tests.acceptance.system import ROUTED, System
from tests.chaos import standing
from tests.chaos.blows import Blows
from tests.chaos.databases import Away
from tests.chaos.front import Traffic
from tests.chaos.plan import BUDGET_S, LEASE_S, Database, Strike, draw
from tests.chaos.standing import Standing
from tests.chaos.verdict import SECOND, Verdict, judge, landings
from worker.errors import LedgerUnavailable
from worker.ledger import Selection

SETTINGS: Final = {"BUDGET_SECONDS": f"{BUDGET_S:g}", "LEASE_MARGIN_SECONDS": f"{LEASE_S - BUDGET_S:g}"}
TICK_S: Final = 0.05
LOOK_S: Final = 1.0
COMES_BACK_S: Final = 1.0  # a supervisor starts again what has ended, but not at once
TELL_S: Final = 20.0
OPERATOR_S: Final = 3.0
STAND_IN: Final = "the operator's stand-in"

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is to be."""

    seed: int
    changes: int
    seconds: float
    database: Database
    quiet_s: float = 300.0
    looks: bool = True  # wait until forged deletes were looked at again, a minute after they came

    def plan(self) -> tuple[Strike, ...]:
        return draw(self.seed, seconds=self.seconds, database=self.database)


@dataclass(slots=True)
class Watch:
    """Sees that what has ended is started again."""

    system: System
    restarts: Counter[str] = field(default_factory=Counter)
    _down: dict[str, float] = field(default_factory=dict)

    def look(self) -> bool:
        """Start again what has been down for long enough; tell whether all run."""
        ended = self.system.processes.ended()
        for name, code in ended.items():
            since = self._down.setdefault(name, time.monotonic())
            if time.monotonic() - since > COMES_BACK_S:
                del self._down[name]
                self.restarts[f"{name} ({'killed' if code == -9 else f'code {code}'})"] += 1
                self.system.processes.again(name)
        return not ended


class Run:
    """One run over a started system."""

    def __init__(self, options: Options, system: System, database: Away, say: Say) -> None:
        self.options, self.system, self._say = options, system, say
        self.traffic = Traffic(system.medplum.url, seed=options.seed, changes=options.changes, seconds=options.seconds)
        self.blows = Blows(system, database, self.traffic, random.Random(f"{options.seed} blows"))
        self.watch = Watch(system)
        self.verdict = Verdict()
        self.released = 0

    def play(self) -> Verdict:
        """Play it to its end.

        Raises:
            Exception: what broke the run itself, as a front end that cannot write.
        """
        begun = time.monotonic()
        try:
            self._storm()
        finally:
            self.blows.over.set()
        self.verdict.figures["seconds of traffic"] = round(time.monotonic() - begun, 1)
        quiet = self._calm()
        end = self._mend(quiet)
        self._look(quiet, end)
        return self.verdict

    # the parts of a run

    def _storm(self) -> None:
        """Let the front ends write and strike meanwhile, each strike in a thread of its own."""
        strikes, threads = list(self.options.plan()), list[threading.Thread]()
        begun = told = operated = time.monotonic()
        self.blows.begin()
        with self.traffic.flowing():
            while strikes or not self.traffic.is_over():
                now = time.monotonic() - begun
                while strikes and strikes[0].at_s <= now:
                    threads.append(threading.Thread(target=self.blows.strike, args=[strikes.pop(0)]))
                    threads[-1].start()
                self.watch.look()
                if time.monotonic() - operated > OPERATOR_S:
                    operated = time.monotonic()
                    self._release_budget()
                if time.monotonic() - told > TELL_S:
                    told = time.monotonic()
                    self._say(f"{now:5.0f} s: {self.traffic.world.made} changes made, {len(strikes)} strikes to come")
                time.sleep(TICK_S)
        self.blows.over.set()
        for thread in threads:
            thread.join()

    def _calm(self) -> Standing:
        """End all faults, await quiet, and look before anybody helps."""
        self.blows.calm()
        self.verdict.figures["seconds to quiet"] = round(self._settle("quiet", looks=False), 1)
        if self.options.looks:
            more = self._settle("looked at forged deletes again", looks=True)
            self.verdict.figures["and until forged deletes were looked at"] = round(more, 1)
        return self._standing()

    def _mend(self, quiet: Standing) -> Standing:
        """Catch up with what Medplum dropped, and stand in for the people who read the lists."""
        needed = quiet.untold & quiet.disagreements.keys()
        self.verdict.figures["resources that Medplum never told of"] = len(quiet.untold)
        self.verdict.figures["of these, wrong until catch-up"] = len(needed)
        self._catch_up()
        self._settle("caught up")
        before = self._standing()
        self.verdict.figures["need a person"] = dict(Counter(before.listed.values()))
        for record, reference in before.strays.items():
            if before.listed.get(reference) in SECOND or record in quiet.strays:
                self.system.clinic.remove(record)
        self._replay(set(before.listed) | set(before.disagreements))
        self._settle("replayed")
        end = self._standing()
        self.verdict.remaining = dict(Counter(end.listed.values()))
        return end

    def _look(self, quiet: Standing, end: Standing) -> None:
        """Judge, and write down the figures."""
        system, verdict = self.system, self.verdict
        journal, history, status = system.clinic.journal(), system.clinic.history(), system.ledger.status()
        landed = landings(history, journal, self.traffic.world.reference_of)
        judge(verdict, quiet, end, landed)
        verdict.identity_holds = status["identity_holds"]
        verdict.figures |= {
            "changes sent": self.traffic.world.made,
            "accepted": status["accepted"],
            "accepted by source": status["accepted_by_source"],
            "dispositions": status["changes"],
            "resources": sum(1 for resource_type in ROUTED for _ in system.medplum.truth(resource_type)),
            "legacy writes that took effect": len(landed),
            "by operation": dict(Counter(landing.operation for landing in landed)),
            "legacy requests": len(journal),
            "answered by a fault": dict(Counter(line["fault"] for line in journal if line["fault"])),
            "strikes": dict(sorted(self.blows.struck.items())),
            "strikes, more": dict(sorted(self.blows.notes.items())),
            "started again": dict(sorted(self.watch.restarts.items())),
            "deletes let past the budget": self.released,
        }

    # what they need

    def _settle(self, what: str, *, looks: bool = False) -> float:
        """Wait until it is quiet; what does not come to rest is written down, and judged as it is then."""
        begun = told = time.monotonic()
        found: dict[str, int] = {"not looked": 1}
        while found:
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                self._say(f"not {what} yet: {found}")
            if time.monotonic() - begun > self.options.quiet_s:
                self.verdict.unsettled = f"{what}: {found}"
                break
            time.sleep(LOOK_S)
            with suppress(LedgerUnavailable, httpx.HTTPError, redis.RedisError):
                self._release_budget()
                found = standing.busy(self.system, looks=looks) if self.watch.look() else found
        self._say(f"{what} after {time.monotonic() - begun:.0f} s{f': {found}' if found else ''}")
        return time.monotonic() - begun

    def _standing(self) -> Standing:
        return standing.take(self.system, self.traffic.world.reference_of)

    def _catch_up(self) -> None:
        """Have an operator read in Medplum all that is not proven; the workers do so every minute as it is."""
        said = self.system.cli("catch-up", "--json")
        try:
            read = json.loads(said)
        except ValueError:
            self.verdict.unsettled = f"catch-up broke off: {said[-500:]}"
            return
        self.verdict.figures["found by the last catch-up"] = {name: each["found"] for name, each in read.items()}
        if any(each["trouble"] for each in read.values()):
            self.verdict.unsettled = f"catch-up broke off: {said[-500:]}"

    def _replay(self, references: set[str]) -> None:
        if references:
            self.system.ledger.replay(Selection(tuple(sorted(references))), who=STAND_IN, why="chaos")

    def _release_budget(self) -> None:
        """Let deletes past their budget, as a person does who sees that they are meant."""
        selection = Selection(reason="budget")
        with suppress(LedgerUnavailable):
            if self.system.ledger.replayable(selection):
                self.released += len(self.system.ledger.replay(selection, who=STAND_IN, why="chaos deletes"))
