"""Who plays: the two stand-ins, the broker and every process of the Procfile, started, waited for and started anew."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from deploy.demo.scenery import Scenery, command, free_port
from deploy.demo.stage import Stage
from deploy.demo.systems import Clinic, Medplum, answers
from worker.cli.words import span
from worker.errors import LedgerUnavailable
from worker.ledger import Ledger
from worker.ledger.values import State

__all__ = ["Cast", "Spoiled", "Status"]

LOOK_EVERY_S = 0.2
START_WITHIN_S = 90.0
WORKERS = ("worker", "worker2")
_HOST = "http://127.0.0.1"

Status = dict[str, Any]


class Spoiled(Exception):
    """Something did not come about that the play needs; the message says what."""


def _nothing() -> None:
    pass


class Cast:
    """The processes by what they do, once `enter` has started them."""

    def __init__(self, scenery: Scenery, stage: Stage) -> None:
        self.scenery, self._stage = scenery, stage
        self.web, self.console, self.flower = (f"{_HOST}:{free_port()}" for _ in range(3))
        self.medplum: Medplum
        self.clinic: Clinic
        self.ledger: Ledger
        self.settings: dict[str, str]

    def enter(self, subscribed: Sequence[str], tell: Callable[[str, int, int], None]) -> None:
        """Start everybody, and have Medplum notify of these resource types.

        Raises:
            Died, Spoiled: somebody did not come up; the message says who and why.
        """
        tell("starting the two systems and the broker", 0, 4)
        self._start_systems()
        self.settings = self.scenery.worker(self.medplum.url, self.clinic.url)
        tell("making the ledger", 1, 4)
        self.run(command("release"))
        self.ledger = Ledger.open(self.scenery.url, connections=1)
        tell("starting web, two workers, dispatch, beat, console and Flower", 2, 4)
        self._start_services()
        tell("registering Subscriptions", 3, 4)
        for resource_type in subscribed:
            self._subscribe(resource_type)

    def status(self) -> Status:
        return self.ledger.status()

    def is_current(self, reference: str) -> bool:
        """Tell whether nothing more is asked for a resource."""
        told = self.ledger.show(reference)
        return told is not None and told["mirror"]["state"] == State.CURRENT

    def kill_clinic(self) -> None:
        """Kill the clinic as a power cut would."""
        self._stage.kill("clinic")

    def start_clinic(self, port: str) -> None:
        """Start the clinic over the database that it has."""
        self._stage.start(
            "clinic",
            self._stand_in("clinic", "--port", port, f"--api-key={self._secret('clinic-key')}"),
            self.scenery.common(),
        )

    def restart_workers(self) -> str | None:
        """Let the workers load the mappings anew. Returns what the one says that does not like them.

        As at every release, the line of that name comes first: it makes the new mappings the active ones.
        """
        self._stage.stop(*WORKERS)
        with suppress(Spoiled):  # a mapping that does not load is told by the workers
            self.run(command("release"))
        self._stage.again(*WORKERS)
        end = time.monotonic() + START_WITHIN_S
        while not self._workers_are_up():
            if (name := next(filter(self._stage.has_ended, WORKERS), None)) is not None:
                return self._stage.tail(name)
            if time.monotonic() > end:
                raise Spoiled(f"waited {span(START_WITHIN_S)} for the workers to start anew")
            time.sleep(LOOK_EVERY_S)
        return None

    def refuse_dead(self, *but: str) -> None:
        """Raise Died for a process that has ended, other than these."""
        self._stage.refuse_dead(*but)

    def until(
        self, fact: Callable[[], bool], what: str, *, within_s: float, meanwhile: Callable[[], None] = _nothing
    ) -> None:
        """Wait for a fact.

        Raises:
            Died: somebody other than the clinic ended meanwhile.
            Spoiled: it did not come about in time.
        """
        end = time.monotonic() + within_s
        while not _holds(fact):
            if time.monotonic() > end:
                raise Spoiled(f"waited {span(within_s)} for {what}")
            self._stage.refuse_dead("clinic")
            meanwhile()
            time.sleep(LOOK_EVERY_S)

    def run(self, arguments: Sequence[str]) -> str:
        """Run a command with a worker's settings, and return what it says."""
        done = subprocess.run(
            arguments, env=self.settings, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Spoiled(f"`{' '.join(arguments[-3:])}` ended with code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _start_systems(self) -> None:
        folder = self.scenery.folder
        clients = [
            f"--client=sync:{self._secret('medplum-secret')}",
            f"--client=frontend:{self._secret('frontend-secret')}",
        ]
        self._stage.start("medplum", self._stand_in("medplum", *clients), self.scenery.common())
        self.start_clinic("0")
        self._stage.start("broker", command("broker"), self.scenery.common())
        addresses = [folder / "medplum.url", folder / "clinic.url", folder / "broker" / "address"]
        self.until(lambda: all(map(_is_written, addresses)), "the stand-ins and the broker", within_s=30)
        medplum, clinic = (path.read_text().strip() for path in addresses[:2])
        self.medplum = Medplum(medplum, client="frontend", secret=self._secret("frontend-secret"))
        self.clinic = Clinic(clinic)

    def _start_services(self) -> None:
        common = self.scenery.common()
        # Flower first: it shows the tasks that it has heard of.
        self._stage.start("flower", command("flower", f"--port={_port(self.flower)}"), common)
        self._stage.start("web", command("web"), self.scenery.receiver(_port(self.web)))
        for name in WORKERS:
            self._stage.start(name, command(name), self.settings)
        self._stage.start("dispatch", command("dispatch"), common)
        self._stage.start("beat", command("beat"), common)
        self._stage.start("console", command("console", "--port", str(_port(self.console))), common)
        self.until(self._everybody_is_up, "every process to start", within_s=START_WITHIN_S)

    def _everybody_is_up(self) -> bool:
        urls = (f"{self.web}/livez", self.console, self.flower)
        return self._workers_are_up() and self.status()["last_dispatch_seconds"] is not None and all(map(answers, urls))

    def _workers_are_up(self) -> bool:
        return all("started" in self._stage.said(name) for name in WORKERS)

    def _subscribe(self, resource_type: str) -> None:
        secret, authorization = self._secret("webhook-secret"), self._secret("webhook-token")
        self.medplum.subscribe(resource_type, f"{self.web}/medplum", secret=secret, authorization=authorization)

    def _stand_in(self, name: str, *arguments: str) -> list[str]:
        folder = self.scenery.folder
        files = ["--db", str(folder / f"{name}.db"), "--ready-file", str(folder / f"{name}.url")]
        return [sys.executable, "-m", f"deploy.sandbox.{name}", *files, *arguments]

    def _secret(self, name: str) -> str:
        return self.scenery.secret(name)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _is_written(path: Any) -> bool:
    return path.exists() and bool(path.read_text().strip())


def _holds(fact: Callable[[], bool]) -> bool:
    with suppress(LedgerUnavailable):
        return fact()
    return False
