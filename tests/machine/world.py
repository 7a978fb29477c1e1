"""One service between two models: the real ledger, the real algorithm, and a clock that only the machine turns.

Everything that can happen is a method here, so that the machine draws from it and a found failure is told with it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
from sqlalchemy import event, text

from tests.contract.ledger.story import KEYS, START, Clock
from tests.machine.clinic_routes import legacy as api
from tests.machine.crew import Crew, Watched, Worker
from tests.machine.legacy_model import Fate, LegacyModel, Record, Sender
from tests.machine.medplum_model import BASE_URL, Content, MedplumModel, Version
from worker.ledger import Ledger, Selection
from worker.ledger.migrate import upgrade
from worker.ledger.tables import metadata
from worker.ledger.values import Hint, Source
from worker.legacy.gate import Gate, _OwnGates
from worker.mapping import Routes, load_routes
from worker.medplum import Medplum
from worker.sync import End, Ended, Sync

P1, P2, C1, D1 = "Patient/p1", "Patient/p2", "Condition/c1", "Practitioner/d1"
GHOST = "Patient/ghost"  # never in Medplum
ALL = (P1, P2, C1, D1)
PROCESSES = ("one", "two")
LEASE_S, BUDGET_S, SEND_WITHIN_S = 60.0, 45.0, 5.0
QUIET_S, WAITING_LOOK_S = 250.0, 301.0  # a mirror that waits takes a slow look each five minutes, for ever
SLOW_LOOKS = 2  # one for who waits for another, and one for who waits for him


@dataclass(frozen=True, slots=True)
class Clinic:
    """What the legacy system can do, and how its records are written."""

    routes: Routes
    replaces: bool  # a new record for a changed one; moves go with their parent, and a deleted patient comes back


PLAIN = Clinic(load_routes("tests.machine.clinic_routes"), replaces=False)
REPLACING = Clinic(load_routes("tests.machine.replacing_routes"), replaces=True)


class Bench:
    """One ledger file for many worlds, emptied between them: a new engine would compile every statement anew."""

    def __init__(self, url: str) -> None:
        self.clock = Clock()
        self.ledger = Ledger.open(url, keys=KEYS, clock=lambda: self.clock.now, connections=1)
        event.listen(self.ledger.database.engine, "connect", _hasty)

    def emptied(self, routes: Routes) -> Ledger:
        self.clock.now = START
        with self.ledger.database.engine.begin() as connection:
            for table in metadata.sorted_tables:
                connection.execute(text(f"DELETE FROM {table.name}"))  # noqa: S608  our own tables' names
        self.ledger.register_routes({name: (route.phase, route.version) for name, route in routes.items()})
        return self.ledger


def _hasty(connection: Any, _record: object) -> None:
    """Let SQLite forget about power cuts: these worlds end with their process."""
    for pragma in ("synchronous=OFF", "secure_delete=OFF", "locking_mode=EXCLUSIVE", "journal_mode=MEMORY"):
        connection.execute(f"PRAGMA {pragma}")


@contextmanager
def bench() -> Iterator[Bench]:
    """Migrate a ledger where files are fastest, and take it away again."""
    folder = tempfile.mkdtemp(prefix="reverse-sync-machine-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)  # noqa: S108
    try:
        url = f"sqlite:///{Path(folder)}/ledger.db"
        upgrade(url)
        made = Bench(url)
        with closing(made.ledger):
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class World:
    """One story; `freezes` lets a process freeze between its last check and the socket, which breaks the order."""

    def __init__(self, bench: Bench, clinic: Clinic = PLAIN, *, freezes: bool = False) -> None:
        self.clock, self.ledger = bench.clock, bench.emptied(clinic.routes)
        self.clinic, self.freezes = clinic, freezes
        self.crew = Crew()
        self.watched = Watched(self.ledger, self.crew, self._after)
        self.medplum = MedplumModel(self.clock, self.crew.pause, self._note_read)
        twice = frozenset({"numbers"}) if clinic.replaces else frozenset[str]()
        self.legacy = LegacyModel(self.clock, self.crew.pause, self._sender, freezes=freezes, twice=twice)
        api._clients[os.getpid()] = httpx.Client(base_url=api.base_url, transport=self.legacy)
        self.processes = dict.fromkeys(PROCESSES, 0)
        self.workers: list[Worker] = []
        self.queue: list[str] = []
        self.pending: list[Version] = []
        self.told: dict[str, int] = {}  # the newest version of which a hint was accepted
        self.read: dict[str, set[int]] = {}
        self.endless: dict[str, set[Worker]] = {}  # attempts that were killed, or stood while time passed
        self.refused = self.was_hidden = False
        self.orphaned: set[str] = set()
        self.ends: Counter[str] = Counter()
        self.broken = self.legacy.broken
        self._changes = -1
        self.beat()

    # Medplum and its notifications

    def saves(self, reference: str, content: Content, *, author: str = "Practitioner/x", older_s: float = 0.0) -> None:
        """Commit a version in Medplum; its notification is on its way."""
        if reference in (P1, P2) and not content.active:
            self.orphaned.add(reference)
        self.medplum.saves(reference, content, author=author, older_s=older_s)
        self.pending.append(self.medplum.history[reference][-1])

    def deletes(self, reference: str) -> None:
        if self.medplum.content(reference) is not None:
            self.medplum.saves(reference, None)
            self.pending.append(self.medplum.history[reference][-1])
            self.orphaned.add(reference)

    def delivers(self, which: int = 0, *, keep: bool = False, with_body: bool = False) -> None:
        """Bring one notification that is on its way; kept, it comes once more."""
        version = self.pending[which]
        if not keep:
            del self.pending[which]
        self._accept(version, version.hint(with_body=with_body))

    def drops(self, which: int = 0) -> None:
        del self.pending[which]

    def repeats(self, reference: str, number: int) -> None:
        """Bring an old version's notification again."""
        versions = self.medplum.history.get(reference, [])
        if versions:
            version = versions[number % len(versions)]
            if version.content is not None:
                self._accept(version, version.hint())

    def hides(self, reference: str) -> None:
        """Have the service's client not see a resource; told once more, it sees everything again."""
        if self.medplum.hidden:
            self.medplum.hidden.clear()
        else:
            self.medplum.hidden.add(reference)
            self.was_hidden = True

    def forges_a_delete(self, reference: str) -> None:
        self.ledger.accept([Hint(reference, None, interaction="delete")])
        current = self.medplum.current(reference)
        if current is not None and current.content is None:
            self.told[reference] = current.number

    def catches_up(self) -> None:
        """Find what no notification told: the newest version of each resource whose own was never accepted."""
        for reference in self.medplum.history:
            current = self.medplum.current(reference)
            if current is not None and self.told.get(reference, 0) < current.number:
                self._accept(current, current.hint(Source.CATCH_UP))

    def _accept(self, version: Version, hint: Hint) -> None:
        self.ledger.accept([hint])
        current = self.medplum.current(version.reference)
        newest = (
            current.number if current is not None and current.content is None is version.content else version.number
        )
        self.told[version.reference] = max(self.told.get(version.reference, 0), newest)

    # workers

    def dispatches(self) -> None:
        self.queue += self.ledger.due(limit=100, queue_empty=True, lost_after_s=0)

    def starts(self, which: int = 0) -> Worker | None:
        """Let a free process take a message of the queue; the queue is topped up where it is empty."""
        if not self.queue:
            self.dispatches()
        return self.begins(self.queue.pop(which % len(self.queue))) if self.queue else None

    def begins(self, reference: str) -> Worker | None:
        """Let a free process try one mirror."""
        busy = {worker.process for worker in self.workers}
        process = next((name for name in self._names() if name not in busy), None)
        if process is None:
            return None
        worker = Worker(self.crew, process, reference, lambda: self._attempt(process, reference))
        self.workers.append(worker)
        return worker

    def steps(self, worker: Worker, times: int = 1) -> None:
        for _ in range(times):
            if worker.done:
                break
            worker.step()
        if worker.done and worker in self.workers:
            self.workers.remove(worker)
            if worker.ended is not None:
                self.ends[f"{worker.ended.kind} ({worker.ended.words.partition(':')[0][:24]})"] += 1

    def goes_on_to(self, worker: Worker, where: str) -> None:
        """Let it go on to a named place."""
        for _ in range(200):
            if worker.at == where or worker.done:
                break
            self.steps(worker)
        assert worker.at == where, f"it never came to: {where}"

    def finishes(self, worker: Worker) -> Ended | None:
        self.steps(worker, 1000)
        assert worker.done, f"it never ends: {worker.at}"
        return worker.ended

    def kills_worker(self, worker: Worker) -> None:
        """Kill a process: its heartbeat ends with it, and another one comes in its place."""
        worker.kill()
        self.workers.remove(worker)
        self._may_have_no_end(worker)
        self.processes[worker.process.partition(" ")[0]] += 1

    def ends_all(self) -> None:
        """Let no thread stay behind."""
        for worker in self.workers:
            worker.kill()
        self.workers.clear()
        client = api._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def _attempt(self, process: str, reference: str) -> Ended:
        sync = self._sync(process)
        ended = sync.run(reference)
        return sync.run(reference, alone=True) if ended.kind is End.SUSPECT else ended

    def _sync(self, process: str) -> Sync:
        gate = Gate(None)
        gate._own = _OwnGates(self.monotonic)
        return Sync(
            ledger=cast("Ledger", self.watched),
            medplum=cast("Medplum", self.medplum),
            medplum_base_url=BASE_URL,
            routes=self.clinic.routes,
            gate=gate,
            instance=process,
            lease_s=LEASE_S,
            budget_s=BUDGET_S,
            send_within_s=SEND_WITHIN_S,
            monotonic=self.monotonic,
        )

    def _may_have_no_end(self, worker: Worker) -> None:
        self.endless.setdefault(worker.reference, set()).add(worker)

    def _names(self) -> list[str]:
        return [f"{name} {life}" for name, life in self.processes.items()]

    # time

    def monotonic(self) -> float:
        return (self.clock.now - START).total_seconds()

    def beat(self) -> None:
        for name in self._names():
            self.ledger.heartbeat(instance=name, role="worker", host="here", pid=1)

    def waits(self, seconds: float, *, beating: bool = True) -> None:
        """Let time pass: what flies lands at its time; processes that are not frozen say that they live."""
        for worker in self.workers:
            self._may_have_no_end(worker)
        self.clock.forward(seconds)
        self.legacy.land()
        if beating:
            self.beat()

    # what may never be

    def check(self) -> None:
        """Check what holds after every step."""
        assert not self.broken, self.broken[0]
        if not self._has_changed():
            return
        [(rows,)] = self._ask("SELECT count(*) FROM changes")
        [(accepted,)] = self._ask("SELECT coalesce(sum(value), 0) FROM counters WHERE name = 'accepted'")
        assert accepted == rows, f"{accepted} changes were accepted, and there are {rows}"
        known = "SELECT key, reference, slot, collection FROM links"
        for key, reference, slot, collection in self._ask(f"{known} WHERE key IS NOT NULL OR state = 'linked'"):
            self._check_link(self.legacy.records.get(int(key or 0)), reference, slot, collection)

    def _has_changed(self) -> bool:
        """Tell whether the ledger was written since the last look."""
        with closing(self.ledger.database.engine.raw_connection()) as connection:
            total = cast("sqlite3.Connection", connection.dbapi_connection).total_changes
        changed, self._changes = total != self._changes, total
        return changed

    def _check_link(self, record: Record | None, reference: str, slot: str, collection: str) -> None:
        assert record is not None, f"{reference}: its link names a record that never was"
        whose = (record.ref, record.slot, record.kind)
        assert whose == (reference.split("/")[1], slot, f"{collection}s"), (
            f"{reference}: its link is another's: {whose}"
        )

    def rests(self) -> None:
        """Switch all that is wrong off, tell what nobody told, and let everything run until nothing is asked for."""
        self.legacy.fates.clear()
        self.legacy.look_troubles = self.medplum.troubles = 0
        self.medplum.hidden.clear()
        self.watched.away = False
        self.ledger.resume([], who="the machine", why="all is well")
        while self.pending:
            self.delivers()
        self.catches_up()
        while self.workers:
            self.finishes(self.workers[0])
        self._runs_until_quiet()
        for _ in range(SLOW_LOOKS):
            self.waits(WAITING_LOOK_S)
            self._runs_until_quiet()

    def _runs_until_quiet(self) -> None:
        for _ in range(400):
            asked_in_vain = False
            while not asked_in_vain and (self.queue or self._is_due() or self._next_within(QUIET_S) is None):
                asked_in_vain = self.starts() is None
                if not asked_in_vain:
                    self.finishes(self.workers[0])
                    self.check()
            wait_s = self._next_within(QUIET_S)
            if wait_s is None:
                return
            self.waits(max(0.001, wait_s))
        raise AssertionError("it never comes to rest")

    def converged(self) -> None:
        """Check the end: the accounts add up, and both sides agree, or a person is told why not."""
        status = self.ledger.status()
        assert status["identity_holds"], status
        people = {entry["reference"]: entry["reason"] for entry in self.ledger.failed()}
        waiting = dict(self._ask("SELECT reference, waiting_for FROM mirrors WHERE state = 'waiting'"))
        for reference, reason in people.items():
            self._check_reason(reference, reason)
        for reference, parent in waiting.items():
            assert parent in people or parent in waiting, f"{reference} waits for {parent}, with which all is well"
        for reference in self.medplum.history:
            content = self.medplum.content(reference)
            stands_on_doubt = self.freezes and reference == C1 and content is not None and content.of in people
            doubted = reference in people or reference in waiting or stands_on_doubt
            assert doubted or not self.legacy.doubled(reference), f"{reference}: a second record, and nobody is told"
            if not doubted:
                self._check_agrees(reference)
                open_ = self._ask("SELECT id FROM changes WHERE reference = :of AND disposition IS NULL", of=reference)
                assert not open_, f"{reference}: a change is open, and nobody is told"

    def _check_agrees(self, reference: str) -> None:
        held = {slot: records[0] for slot, records in self.legacy.living(reference).items()}
        wanted = _wanted(reference, self.medplum.content(reference))
        assert held.keys() == wanted.keys(), f"{reference}: legacy has {sorted(held)}, wanted are {sorted(wanted)}"
        for slot, fields in wanted.items():
            told = {name: held[slot].fields.get(name) for name in fields}
            assert told == fields, f"{reference} {slot}: legacy says {told}, Medplum {fields}"
        content = self.medplum.content(reference)
        if reference in (P1, P2) and content is not None and content.active and content.sees:
            others = self.legacy.living(content.of).get("", [])
            assert not others or held[""].fields.get("sees") == others[0].key, f"{reference} holds another's key"
        if reference == C1 and content is not None:
            under = self.legacy.records[held[""].parent or 0]
            assert f"Patient/{under.ref}" == content.of, f"{reference} stands under {under.ref}"

    def _check_reason(self, reference: str, reason: str) -> None:
        """Check that whoever needs a person needs one for a reason that the story gives."""
        content = self.medplum.content(reference)
        leans = reference == C1 or any(
            version.content and version.content.sees for version in self._versions(reference)
        )
        refused = self.refused or (leans and bool(self.orphaned))
        stated = {
            "unmappable": content is not None and content.word is None,
            "refused": refused,
            "half-replaced": self.clinic.replaces and (refused or (content is not None and content.word is None)),
            "absent": self.was_hidden or reference not in self.medplum.history,
            "poison": len(self.endless.get(reference, ())) > 3,
            "budget": self.legacy.deletes >= 20,
            "moved": not self.clinic.replaces
            and len({version.content.of for version in self._versions(reference) if version.content}) > 1,
            "parent": leans,
            "gone": leans and bool(self.orphaned),
            "second record": self.freezes and self.legacy.doubled(reference),
            "found": self.freezes or (leans and bool(self.orphaned)),  # made under a record that its parent had before
        }
        assert stated.get(reason, False), f"{reference} needs a person for no reason of this story: {reason}"

    def _versions(self, reference: str) -> list[Version]:
        return self.medplum.history.get(reference, [])

    # the ledger, from behind

    def _after(self, verb: str) -> None:
        if verb in {"finish", "fail"}:
            self._check_dispositions()

    def _check_dispositions(self) -> None:
        """Check that nothing is said of a version that was neither read nor overtaken by one that was read."""
        versions = "SELECT reference, version_id, disposition FROM changes WHERE version_id IS NOT NULL"
        for reference, version, disposition in self._ask(versions):
            number, read = int(version[1:]), self.read.get(reference, set())
            if disposition == "superseded" and number > max(read, default=0):
                self.broken.append(f"{reference}: version {number} is superseded by what was read before it")
            if disposition in {"applied", "unchanged", "echo"} and number not in read:
                self.broken.append(f"{reference}: version {number} is {disposition}, and nobody read it")

    def _note_read(self, reference: str, number: int) -> None:
        self.read.setdefault(reference, set()).add(number)
        if self.crew.current is not None:
            self.crew.current.number = number

    def _sender(self) -> Sender:
        worker = self.crew.current
        assert worker is not None
        return Sender(worker.reference, worker.number)

    def _ask(self, statement: str, **parameters: object) -> list[Any]:
        """Ask the tables by the driver's own way, which costs a tenth of SQLAlchemy's."""
        with closing(self.ledger.database.engine.raw_connection()) as connection:
            return list(cast("sqlite3.Connection", connection.dbapi_connection).execute(statement, parameters))

    def _is_due(self) -> bool:
        return self._next_within(0.0) is not None

    def _next_within(self, seconds: float) -> float | None:
        """Tell in how many seconds something is asked for next, the slow looks of those that wait aside."""
        asked = "min(coalesce(due_at, look_at), coalesce(look_at, due_at))"
        runnable = f"max({asked}, coalesce(not_before, ''), coalesce(lease_until, ''))"
        resting = f"state = 'held' OR (state = 'waiting' AND due_at IS NULL) OR {asked} IS NULL"
        [(moment,)] = self._ask(f"SELECT min({runnable}) FROM mirrors WHERE NOT ({resting})")  # noqa: S608
        if moment is None:
            return None
        wait_s = (datetime.fromisoformat(moment).replace(tzinfo=UTC) - self.clock.now).total_seconds()
        return wait_s if wait_s <= seconds else None

    # people

    def replays(self, reference: str) -> None:
        """Have a person replay; where there are two records, the one that nobody has linked is removed before."""
        if (reference, "second record") in {(entry["reference"], entry["reason"]) for entry in self.ledger.failed()}:
            linked = {key for (key,) in self._ask("SELECT key FROM links WHERE reference = :of", of=reference)}
            for records in self.legacy.living(reference).values():
                for record in records:
                    record.alive = str(record.key) in linked
        self.ledger.replay(Selection(references=(reference,)), who="the machine")

    def fated(self, fate: Fate) -> None:
        """Say what becomes of the next write that reaches the legacy system."""
        self.refused |= fate is Fate.REFUSED
        self.legacy.fates.append(fate)


def _wanted(reference: str, content: Content | None) -> Mapping[str, Mapping[str, Any]]:
    """Say what the legacy system should hold: the mapping once more, in plain words."""
    id_ = reference.split("/")[1]
    if content is None or (reference in (P1, P2) and not content.active):
        return {}
    if reference == D1:
        return {use: {"ref": id_, "use": use, "word": content.word or "-"} for use in content.uses}
    if reference == C1:
        return {"": {"ref": id_, "word": content.word, "of": content.of}}
    return {"": {"ref": id_, "word": content.word}}
