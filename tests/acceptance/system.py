"""The whole system as real processes: started by Procfile lines on free ports, killed, started again, surely ended.

It asks and steers; what has to be so is said by the tests. The two stand-ins and the comparison are the demo's own.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import httpx
import redis
from pydantic import SecretStr
from sqlalchemy import func, select

from deploy.demo.scenery import command, free_port
from deploy.demo.systems import Medplum
from deploy.demo.verdict import compare
from tests.acceptance.legacies import CLINIC, Legacy
from tests.acceptance.processes import Processes
from worker.errors import LedgerUnavailable
from worker.ledger import Ledger
from worker.ledger.tables import mirrors
from worker.mapping import Routes, load_routes

ROOT: Final = Path(__file__).resolve().parents[2]
ROUTED: Final = CLINIC.types
OURS: Final = ("web", "worker", "worker2", "dispatch", "beat")  # what every system has between the two others
SECRET: Final = "the secret of the acceptance tests"
TOKEN: Final = "Bearer of the acceptance tests"

_KEY: Final = base64.b64encode(bytes(range(32))).decode()
_START_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.05
_BEATS_S: Final = 4.0

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Clinic:
    """The legacy system by its control plane, which knows no faults."""

    url: str
    api: str = CLINIC.api

    def misbehave(self, *rules: Json) -> None:
        """Add faults, each in the stand-in's own words."""
        self._ask("POST", "faults", json=list(rules))

    def faults(self) -> list[Json]:
        """List the faults that are still to act."""
        rules: list[Json] = self._ask("GET", "faults").json()["data"]
        return [rule for rule in rules if rule["times"] != 0]

    def slow_down(self, seconds: float) -> None:
        """Let every create and update be saved so long before it is answered: there is a middle then."""
        rule = {"kind": "delay", "seconds": seconds, "saves": True}
        self.misbehave(*(rule | {"match": {"method": method, "path": self.api}} for method in ("POST", "PUT")))

    def behave(self) -> None:
        """Remove all faults."""
        self._ask("DELETE", "faults")

    def edit(self, record: str, **fields: str) -> None:
        """Change a record in the clinic's own screens."""
        self._ask("POST", "edit", json={"record": record, "fields": fields})

    def history(self) -> list[Json]:
        """List every change that took effect, in its order."""
        return self._lines("history")

    def remove(self, record: str) -> None:
        """Take a record away by hand."""
        self._ask("POST", "edit", json={"record": record, "remove": True})

    def journal(self, since: int = 0) -> list[Json]:
        """List every request that arrived, after the one with that number."""
        return self._lines(f"journal?since={since}")

    def records(self) -> dict[str, Json]:
        """Return every record by its name, as in patient/4701."""
        return {record["record"]: record for record in self._lines("records")}

    def duplicates(self) -> list[Json]:
        """List active records that have a twin."""
        return self._lines("records?duplicates=1")

    def _lines(self, what: str) -> list[Json]:
        return [json.loads(line) for line in self._ask("GET", what).text.split("\n") if line]

    def _ask(self, method: str, what: str, **sent: Any) -> httpx.Response:
        answer = httpx.request(method, f"{self.url}/sandbox/{what}", timeout=20, trust_env=False, **sent)
        return answer.raise_for_status()


@dataclass(frozen=True, slots=True)
class System:
    """Everything between the two systems, and the two systems."""

    folder: Path
    processes: Processes = field(repr=False)
    settings: Mapping[str, str] = field(repr=False)
    urls: Mapping[str, str]
    medplum: Medplum
    clinic: Clinic
    ledger: Ledger
    legacy: Legacy = CLINIC

    def kill(self, name: str) -> None:
        """Kill a process as a power cut would."""
        self.processes.kill(name)

    def restart(self, *names: str) -> None:
        """Start processes that have ended, as they were, and wait until they are up."""
        for name in names:
            self.processes.again(name)
        self.wait_until_up(names)

    def wait_until_up(self, names: Collection[str]) -> None:
        """Wait until these processes say that they work."""
        for name in names:
            self.wait_until(lambda name=name: self._is_up(name), f"{name} is up", _START_S)  # type: ignore[misc]

    def wait_until(
        self, fact: Callable[[], bool], what: str, within_s: float, *, told: Callable[[], object] = lambda: ""
    ) -> None:
        """Wait for a fact; fail if it does not come true in time, or if a process dies meanwhile."""
        until = time.monotonic() + within_s
        while not _holds(fact):
            self.processes.refuse_dead()
            assert time.monotonic() < until, f"waited {within_s:.0f} s in vain until {what}: {told()}"
            time.sleep(_LOOK_EVERY_S)

    def is_quiet(self) -> bool:
        """Tell whether every notification has come and nothing is due, waiting, running or unknown."""
        if self.medplum.undelivered():
            return False
        status = self.ledger.status()
        busy = status["mirrors"]["due"] + status["mirrors"]["waiting"] + status["syncing"]
        return not busy and not status["unresolved_writes"]

    def settle(self, within_s: float) -> None:
        """Wait until it is quiet."""
        self.wait_until(self.is_quiet, "everything is settled", within_s, told=self._told)

    def mirror(self, reference: str) -> Json:
        """Return where one resource stands; empty if nothing is known of it."""
        told = self.ledger.show(reference)
        mirror: Json = {} if told is None else told["mirror"]
        return mirror

    def steer_medplum(self, verb: str, **wanted: Any) -> Json:
        """Use the control plane of Medplum's stand-in, in its own words."""
        answer: Json = self.medplum._http.post(f"/sandbox/{verb}", json=wanted).raise_for_status().json()
        return answer

    def leases(self, worker: str) -> int:
        """Count the mirrors that a worker has claimed and not ended."""
        instance = re.findall(r'"instance": "(\w+-\w+)"', self.processes.said(worker))[-1]
        held = select(func.count()).where(mirrors.c.lease_owner == instance)
        return int(self.ledger.database.read(lambda tx: tx.execute(held).scalar_one()))

    def assert_accounted(self) -> None:
        """Each change is accounted for, nothing needs a person and no write is without an outcome."""
        status = self.ledger.status()
        assert status["identity_holds"], status
        failed = self.ledger.failed()
        assert failed == [], failed
        assert status["unresolved_writes"] == 0

    def disagreements(self) -> list[str]:
        """Hold every resource against its legacy record, through the routes; name what does not agree."""
        truth = [line for resource_type in self.legacy.types for line in self.medplum.truth(resource_type)]
        links = [link for resource_type in self.legacy.types for link in self.ledger.links_of(resource_type)]
        return compare(truth, self.clinic.records(), links, self._routes(), self.medplum.url).faults

    def broker(self) -> Any:
        """Connect to the broker, to be closed by the caller's `with`."""
        return closing(redis.Redis.from_url((self.folder / "broker" / "address").read_text().strip()))

    def cli(self, *arguments: str) -> str:
        """Run `reverse-sync` as an operator does, and return all that it says."""
        done = _run([sys.executable, "-m", "worker.cli", *arguments], self.settings)
        return done.stdout + done.stderr

    def _routes(self) -> Routes:
        site = {name: value for name, value in self.settings.items() if name.startswith("REVERSE_SYNC_SITE_")}
        with patch.dict(os.environ, site):
            return load_routes(self.legacy.routes)

    def _told(self) -> object:
        return {"undelivered": self.medplum.undelivered(), **self.ledger.status(), "failed": self.ledger.failed()[:5]}

    def _is_up(self, name: str) -> bool:
        match name:
            case "medplum" | "clinic" | "practice" | "console" | "flower":
                return _answers(self.urls[name])
            case "broker":
                with self.broker() as client:
                    return bool(client.ping())
            case "web":
                return _answers(f"{self.urls[name]}/livez")
            case "beat":
                last_s = self.ledger.status()["last_dispatch_seconds"]  # it says nothing itself
                return last_s is not None and last_s < _BEATS_S
            case _:
                return " ready." in self.processes.said(name)


@contextmanager
def started(
    folder: Path,
    *,
    database_url: str | None = None,
    more: tuple[str, ...] = (),
    settings: Mapping[str, str] | None = None,
    legacy: Legacy = CLINIC,
) -> Iterator[System]:
    """Start a system in a folder, and end all of it.

    Args:
        folder: new and empty; everything is kept in it.
        database_url: of an empty database; a SQLite file in the folder where it is not given.
        more: `flower` and `console`, where a test asks them.
        settings: of ours, by name without the prefix, instead of those of these tests.
        legacy: the system at the other end.
    """
    urls = {name: f"http://127.0.0.1:{free_port()}" for name in ("medplum", legacy.name, "web", "console", "flower")}
    database_url = database_url or f"sqlite:///{folder}/ledger.db"
    environment = _settings(folder, database_url, urls, {**legacy.settings(urls[legacy.name]), **(settings or {})})
    with Processes(folder / "log", environment) as processes:
        processes.start("medplum", _stand_in("medplum", folder, _port(urls["medplum"])))
        processes.start(legacy.name, _stand_in(legacy.name, folder, _port(urls[legacy.name]), *legacy.options))
        processes.start("broker", command("broker"))
        medplum = Medplum(urls["medplum"], client="frontend", secret="frontend-secret")
        with closing(_opened(database_url)) as ledger, closing(medplum._http):
            clinic = Clinic(urls[legacy.name], legacy.api)
            system = System(folder, processes, environment, urls, medplum, clinic, ledger, legacy)
            _begin(system, more)
            yield system


def _begin(system: System, more: tuple[str, ...]) -> None:
    """Start what stands between the two systems, and have Medplum tell it of changes."""
    console, flower = (_port(system.urls[name]) for name in ("console", "flower"))
    options = {"console": ["--port", console], "flower": [f"--port={flower}"]}
    system.wait_until_up(("medplum", system.legacy.name, "broker"))
    migrated = _run(command("release"), system.settings)
    assert migrated.returncode == 0, migrated.stderr
    for name in (*more, *OURS):
        system.processes.start(name, command(name, *options.get(name, ())))
    system.wait_until_up((*OURS, *more))
    for resource_type in system.legacy.types:
        endpoint = f"{system.urls['web']}/medplum"
        system.medplum.subscribe(resource_type, endpoint, secret=SECRET, authorization=TOKEN)


def _settings(folder: Path, database_url: str, urls: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Make the environment: that of these tests, and ours."""
    ours = {
        "BROKER_URL_FILE": str(folder / "broker" / "address"),
        "DATABASE_URL": database_url,
        "MEDPLUM_BASE_URL": urls["medplum"],
        "MEDPLUM_CLIENT_ID": "sync",
        "MEDPLUM_CLIENT_SECRET": "sync-secret",
        "OPERATOR": "the acceptance tests",
        "PAYLOAD_KEY": f"test:{_KEY}",
        "PORT": _port(urls["web"]),
        "SEND_WITHIN_SECONDS": "1",
        "VAR": str(folder),
        "WEBHOOK_SECRETS": SECRET,
        "WEBHOOK_TOKEN": TOKEN,
        **own,
    }
    path = os.pathsep.join([str(folder / "project"), str(ROOT)])  # where a test may have put mappings of its own
    others = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "FLOWER_UNAUTHENTICATED_API": "true"}
    return {**os.environ, **others, **{f"REVERSE_SYNC_{name}": value for name, value in ours.items()}}


def _opened(database_url: str) -> Ledger:
    return Ledger.open(database_url, keys=[("test", SecretStr(_KEY))], connections=2)


def _stand_in(name: str, folder: Path, port: str, *options: str) -> list[str]:
    files = ["--db", str(folder / f"{name}.db"), "--ready-file", str(folder / f"{name}.url")]
    return [sys.executable, "-m", f"deploy.sandbox.{name}", "--port", port, *files, *options]


def _run(arguments: list[str], settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, env=settings, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def _answers(url: str) -> bool:
    httpx.get(url, timeout=5, trust_env=False)
    return True


def _port(url: str) -> str:
    return url.rpartition(":")[2]


def _holds(fact: Callable[[], bool]) -> bool:
    """Ask for a fact; where the one that is asked is away, it does not hold."""
    with suppress(LedgerUnavailable, httpx.TransportError, redis.RedisError, OSError):
        return fact()
    return False
