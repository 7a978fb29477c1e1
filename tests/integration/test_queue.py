"""The queue with a real Valkey and real Celery workers: what they do when the broker is emptied, killed or stalled.

The workers run `tests.integration.queue_probe`: everything in them is the project's own but the sync itself.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from celery import Celery
from celery.events.state import State

from worker.broker import address
from worker.ledger import Ledger
from worker.ledger.migrate import upgrade
from worker.ledger.values import Hint, Phase
from worker.process import HUNG
from worker.publish import DISPATCH, SYNC, SYNC_TASK, BrokerAway, Doorbell, Publisher, message

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
BROKER = "import sys; from pathlib import Path; from worker.broker import run; run(Path(sys.argv[1]))"
PROBE = "tests.integration.queue_probe"
CANARY = "Canary-O'Brien"  # what the probe raises with


def eventually(fact: Callable[[], bool], within_s: float = 30) -> None:
    """Wait until the fact holds; a fact that never does fails the test."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "the fact never came to hold"
        time.sleep(0.02)


@dataclass
class Town:
    """A broker, a ledger and the processes that a test starts over them."""

    home: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    url: str = ""

    @property
    def database(self) -> str:
        return f"sqlite:///{self.home}/ledger.db"

    def start_broker(self) -> None:
        self._start("broker", [sys.executable, "-c", BROKER, str(self.home / "var")])
        eventually(self.answers)
        self.url = address(self.home / "var") or ""

    def start(self, name: str, *arguments: str, app: str = PROBE, **settings: str) -> subprocess.Popen[bytes]:
        """Start a Celery process, and wait until a worker says that it is ready."""
        celery = [sys.executable, "-m", "celery", "-A", app, "-q"]
        process = self._start(name, [*celery, *arguments], **settings)
        if arguments[0] == "worker":
            eventually(lambda: " ready." in self.log(name) or process.poll() is not None)
        return process

    def worker(self, name: str = "sync1", *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        quiet = ("--without-gossip", "--without-mingle")
        return self.start(
            name, "worker", "-Q", SYNC, "-n", f"{name}@%h", *(arguments or ("-c", "4")), *quiet, **settings
        )

    def publish(self, *references: str) -> None:
        """Publish until the broker has it."""

        def done() -> bool:
            try:
                Publisher(self.url).publish(SYNC, SYNC_TASK, references)
            except BrokerAway:
                return False
            return True

        eventually(done)

    def notes(self, what: str = "", reference: str = "") -> list[str]:
        """Return what syncs noted: `start` or `end`, the reference, worker or alone, and the pid."""
        path = self.home / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(f"{what} {reference}".rstrip())]

    def ended(self, reference: str, times: int = 1) -> Callable[[], bool]:
        return lambda: len(self.notes("end", reference + " ")) >= times

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()

    def answers(self) -> bool:
        url = address(self.home / "var")
        return url is not None and Publisher(url).answers()

    def client(self) -> Any:
        return redis.Redis.from_url(self.url)

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(10)

    def _start(self, name: str, command: list[str], **settings: str) -> subprocess.Popen[bytes]:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PROBE_NOTES": str(self.home / "notes"),
            "REVERSE_SYNC_DATABASE_URL": self.database,
            "REVERSE_SYNC_BROKER_URL": self.url,
            "REVERSE_SYNC_VAR": str(self.home / "var"),
            "REVERSE_SYNC_MEDPLUM_BASE_URL": "http://127.0.0.1:9",
            "REVERSE_SYNC_MEDPLUM_CLIENT_ID": "client",
            "REVERSE_SYNC_MEDPLUM_CLIENT_SECRET": "secret",
            **settings,
        }
        (self.home / "cwd").mkdir(exist_ok=True)
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, cwd=self.home / "cwd", stdout=log, stderr=log)
        self.processes[name] = process
        return process


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """Start a broker over a fresh ledger, and end every process of the test at its end."""
    town = Town(tmp_path)
    upgrade(town.database)
    town.start_broker()
    yield town
    town.stop()


def test_messages_are_those_that_celery_makes(town: Town) -> None:
    """Ours and `send_task`'s agree in all but ids and origin: an upgrade of Celery that differs shows here."""
    send = f"from worker.queue import app; app.send_task('{SYNC_TASK}', args=['Patient/1'], ignore_result=True)"
    town._start("send", [sys.executable, "-c", send]).wait(30)
    ours = json.loads(message(SYNC, SYNC_TASK, ["Patient/1"], origin="test"))
    celerys = json.loads(town.client().rpop(SYNC))
    bodies = [json.loads(base64.b64decode(given.pop("body"))) for given in (ours, celerys)]
    for given in (ours, celerys):
        for name in ("id", "root_id", "origin"):
            assert given["headers"].pop(name)
        for name in ("correlation_id", "delivery_tag"):
            assert given["properties"].pop(name)
        given["properties"].pop("reply_to")
    assert bodies[0] == bodies[1]
    assert ours == celerys


def test_flower_sees_retry_and_failure_as_they_are_meant_and_no_foreign_text(town: Town) -> None:
    """RETRY for what is tried again by itself, FAILURE for what needs a person; no chain, no input, no result."""
    town.worker()
    seen = Seen(town.url)
    references = [f"Patient/{does}.1" for does in ("ok", "again", "waiting", "raise", "failed", "held", "kill")]
    town.publish(*references, "not a reference")
    eventually(lambda: len(seen.ended()) == len(references) + 1)
    assert seen.ended() == {
        "['Patient/ok.1']": "SUCCESS",
        "['Patient/again.1']": "RETRY",
        "['Patient/waiting.1']": "RETRY",
        "['Patient/raise.1']": "RETRY",
        "['Patient/failed.1']": "FAILURE",
        "['Patient/held.1']": "FAILURE",
        "['Patient/kill.1']": "RETRY",
        "['not a reference']": "FAILURE",
    }
    everything = json.dumps(seen.events) + town.log("sync1")
    assert CANARY not in everything
    assert "direct cause" not in everything
    assert "During handling" not in everything
    assert seen.exceptions()["['Patient/again.1']"] == "TriedAgain('it is again')"
    assert seen.exceptions()["['Patient/failed.1']"] == "NeedsPerson('it is failed')"
    assert [key for key in town.client().keys("*") if b"result" in key or b"meta" in key] == []


def test_the_doorbell_reaches_a_worker_and_outlives_the_broker(town: Town) -> None:
    """A ring is worked on at once; rings while the broker is dead cost nothing, and later ones go through again."""
    town.worker()
    bell = Doorbell(town.url)
    bell.ring(["Patient/ok.1"])
    eventually(town.ended("Patient/ok.1"), within_s=5)
    town.processes["broker"].kill()
    town.processes["broker"].wait(10)
    begin = time.monotonic()
    for _ in range(1000):
        bell.ring(["Patient/ok.2"])
    assert time.monotonic() - begin < 1
    town.start_broker()

    def rung() -> bool:
        bell.ring(["Patient/ok.3"])
        return town.ended("Patient/ok.3")()

    eventually(rung)
    bell.close()


def test_the_receivers_side_needs_neither_celery_nor_kombu() -> None:
    """What rings the doorbell imports Redis alone."""
    loaded = "import sys, worker.publish; print([name for name in ('celery', 'kombu') if name in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert said.stdout.strip() == "[]"


def test_a_broker_with_tls_is_verified(town: Town) -> None:
    """kombu's own default for rediss:// does not look at the certificate; a URL may still say otherwise."""
    show = (
        "from worker.queue import configuration as c; print(c('rediss://h/0')['broker_use_ssl']['ssl_cert_reqs'].name,"
        " c('rediss://h/0?ssl_cert_reqs=none')['broker_use_ssl'], c('redis://h/0')['broker_use_ssl'])"
    )
    assert town._start("show", [sys.executable, "-c", show]).wait(30) == 0
    assert town.log("show").split() == ["CERT_REQUIRED", "None", "None"]


def test_strangers_messages_are_not_logged_and_stop_nothing(town: Town) -> None:
    """An unknown task, a body that is no task's, arguments that do not fit: the worker goes on, the log is silent."""
    town.worker()
    unknown = message(SYNC, "tutorial.push", [CANARY], origin="stranger")
    too_many = message(SYNC, SYNC_TASK, [CANARY, CANARY], origin="stranger")
    no_task = json.loads(message(SYNC, SYNC_TASK, [CANARY], origin="stranger"))
    no_task["headers"] = {}
    town.client().lpush(SYNC, unknown, too_many, json.dumps(no_task))
    town.publish("Patient/ok.1")
    eventually(town.ended("Patient/ok.1"))
    assert "unregistered task" in town.log("sync1")
    assert CANARY not in town.log("sync1")


class Seen:
    """What Flower sees: a receiver of events over an app that knows nothing of ours."""

    def __init__(self, url: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.state = State()
        self._app = Celery("flower", broker=url)
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        assert ready.wait(10)

    def ended(self) -> dict[str, str]:
        final = {"SUCCESS", "RETRY", "FAILURE"}
        return {task.args: task.state for _, task in self.state.tasks_by_time() if task.state in final}

    def exceptions(self) -> dict[str, str]:
        return {task.args: task.exception for _, task in self.state.tasks_by_time()}

    def _run(self, ready: threading.Event) -> None:
        def note(event: dict[str, Any]) -> None:
            self.events.append(event)
            self.state.event(event)

        with suppress(Exception), self._app.connection() as connection:  # until the broker of the test ends
            receiver = self._app.events.Receiver(connection, handlers={"*": note})
            receiver.on_consume_ready = lambda *_, **__: ready.set()
            receiver.capture(limit=None, timeout=None, wakeup=False)


def test_an_idle_worker_goes_on_after_flushall(town: Town) -> None:
    """An emptied broker needs no restart: the next message is consumed at once."""
    town.worker()
    town.client().flushall()
    town.publish("Patient/ok.1")
    eventually(town.ended("Patient/ok.1"), within_s=5)


def test_a_busy_worker_goes_on_after_flushall(town: Town) -> None:
    """The broker is emptied under running calls: they end, and what is published then is consumed."""
    town.worker()
    town.publish(*["Patient/slow.1"] * 4)
    eventually(lambda: len(town.notes("start", "Patient/slow.1")) == 4)
    town.client().flushall()
    town.publish("Patient/ok.1")
    eventually(town.ended("Patient/ok.1"), within_s=10)
    assert len(town.notes("end", "Patient/slow.1")) >= 1
    assert '"level": "error"' not in town.log("sync1")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_killed_broker_that_comes_back_is_used_again(town: Town, busy: bool) -> None:
    """SIGKILL and a restart at the same address: the same worker goes on, and its running calls end once each."""
    worker = town.worker()
    if busy:
        town.publish("Patient/slow.3", "Patient/slow.3")
        eventually(lambda: len(town.notes("start", "Patient/slow.3")) == 2)
    town.processes["broker"].kill()
    town.processes["broker"].wait(10)
    eventually(lambda: "Connection to broker lost" in town.log("sync1"))
    town.start_broker()
    town.publish("Patient/ok.1")
    eventually(town.ended("Patient/ok.1"))
    assert worker.poll() is None
    if busy:
        eventually(town.ended("Patient/slow.3", times=2))
    assert len(town.notes("start", "Patient/slow.3")) == (2 if busy else 0)
    assert "EMERGENCY" not in town.log("sync1")
    assert "a library warns" not in town.log("sync1")


def test_a_stalled_broker_holds_up_nobody_for_long(town: Town) -> None:
    """While the broker is frozen a publish fails within its time limit; afterwards the same worker goes on."""
    town.worker()
    broker = town.processes["broker"]
    broker.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(BrokerAway, match="TimeoutError"):
        Publisher(town.url, timeout_s=1).publish(SYNC, SYNC_TASK, ["Patient/lost.1"])
    assert time.monotonic() - begin < 3
    eventually(lambda: time.monotonic() - begin > 10)
    broker.send_signal(signal.SIGCONT)
    town.publish("Patient/ok.1")
    eventually(town.ended("Patient/ok.1"))


def test_dispatch_brings_back_what_flushall_took(town: Town) -> None:
    """Beat, dispatch and a worker over a real ledger: work whose messages were lost is resumed within 15 s, unasked."""
    with_ledger = Ledger.open(town.database)
    with_ledger.register_routes({"Patient": (Phase.SHADOW, "v1")})
    town.start("dispatch", "worker", "-Q", DISPATCH, "-n", "dispatch@%h", "-c", "1", app="worker.queue")
    beat = town.start("beat", "beat", app="worker.queue")
    eventually(lambda: with_ledger.status()["last_dispatch_seconds"] is not None)
    with_ledger.accept([Hint(f"Patient/ok.{number}", "v1") for number in range(20)])
    eventually(lambda: Publisher(town.url).length(SYNC) == 20)
    town.client().flushall()
    emptied = time.monotonic()
    town.publish("Patient/ok.new")  # the queue is not empty, and still what was lost is noticed
    eventually(lambda: Publisher(town.url).length(SYNC) >= 20, within_s=15)
    town.worker()
    eventually(lambda: all(town.ended(f"Patient/ok.{number}")() for number in range(20)))
    assert time.monotonic() - emptied < 30
    eventually(lambda: any((town.home / "var").glob("witness-*.json")))  # how far the ledger had come, kept outside it
    beat.terminate()
    assert beat.wait(10) == 0
    assert list((town.home / "cwd").iterdir()) == [], "beat keeps no schedule in its working directory"
    with_ledger.close()


def test_sigterm_lets_running_calls_end_and_takes_no_more(town: Town) -> None:
    """Running calls end, one that asks is told to stop, what is behind them stays in the queue, the exit is clean."""
    worker = town.worker("sync1", "-c", "2")
    town.publish("Patient/slow.1", "Patient/until-stop.1", *["Patient/ok.1"] * 5)
    eventually(lambda: len(town.notes("start")) == 2)
    worker.terminate()
    assert worker.wait(20) == 0
    assert len(town.notes("end")) == 2
    assert town.notes("start", "Patient/ok.1") == []
    assert Publisher(town.url).length(SYNC) == 5


def test_a_call_that_never_ends_ends_the_process(town: Town) -> None:
    """A call beyond budget and margin: the worker stops claiming and exits with a code of its own."""
    seconds = {
        "REVERSE_SYNC_SEND_WITHIN_SECONDS": "0.5",
        "REVERSE_SYNC_BUDGET_SECONDS": "2",
        "REVERSE_SYNC_LEASE_MARGIN_SECONDS": "1",
    }
    worker = town.worker(**seconds)
    town.publish("Patient/hang.1")
    assert worker.wait(20) == HUNG
    assert "a call outlived its limit" in town.log("sync1")


def test_a_suspect_runs_in_a_process_of_its_own_and_may_die_there(town: Town) -> None:
    """The worker survives what kills the child; the next suspect has a new child; both end with their worker."""
    worker = town.worker()
    town.publish("Patient/kill.1")
    eventually(lambda: "ended the process in which it ran alone" in town.log("sync1"))
    town.publish("Patient/suspect.1")
    eventually(
        lambda: any(line.endswith("alone") or " alone " in line for line in town.notes("end", "Patient/suspect.1"))
    )
    pids = {int(line.split()[-1]) for line in town.notes("start") if " alone " in line}
    assert worker.pid not in pids
    assert len(pids) == 2
    (child,) = psutil.Process(worker.pid).children()
    worker.kill()
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_workers_say_nothing_but_json_and_warn_of_nothing(town: Town) -> None:
    """From start to stop each line on stderr is one JSON object, and none is a warning."""
    worker = town.worker()
    town.publish("Patient/ok.1")
    eventually(town.ended("Patient/ok.1"))
    worker.terminate()
    worker.wait(20)
    said = [line for line in town.log("sync1").splitlines() if line and not line.startswith("worker: Warm shutdown")]
    assert [json.loads(line)["level"] for line in said] == ["info"] * len(said)


@pytest.mark.parametrize(
    ("without", "names"),
    [
        ("REVERSE_SYNC_BROKER_URL", ["REVERSE_SYNC_BROKER_URL", "REDIS_URL", "reverse-sync broker"]),
        ("REVERSE_SYNC_MEDPLUM_CLIENT_SECRET", ["REVERSE_SYNC_MEDPLUM_CLIENT_SECRET"]),
    ],
)
def test_a_worker_that_cannot_work_refuses_to_start(town: Town, without: str, names: list[str]) -> None:
    """A missing setting ends the start with its name, without a traceback."""
    worker = town.worker("sync1", "-c", "1", **{without: ""})
    assert worker.wait(20) == 1
    assert all(name in town.log("sync1") for name in ["refusing to start", *names])
    assert "Traceback" not in town.log("sync1")


def test_a_worker_refuses_a_ledger_without_its_tables(town: Town) -> None:
    """Tables of another release, or none: it names the command that makes them."""
    worker = town.worker("sync1", REVERSE_SYNC_DATABASE_URL=f"sqlite:///{town.home}/empty.db")
    assert worker.wait(20) == 1
    assert "reverse-sync migrate" in town.log("sync1")
