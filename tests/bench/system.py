"""Processes of one run: started on free ports of this machine, asked whether they are ready, measured, ended."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import redis

from tests.bench.patients import SECRET

HOST: Final = "127.0.0.1"
PATIENCE_S: Final = 60.0
BINARIES: Final = Path(sys.executable).parent

# As `webhook.__main__.configuration` has them.
UVICORN: Final = (
    "--loop", "uvloop", "--http", "httptools", "--ws", "none", "--interface", "asgi3", "--log-level", "warning",
    "--no-access-log", "--no-server-header", "--no-proxy-headers", "--timeout-keep-alive", "90", "--backlog", "2048",
)  # fmt: skip
WORKER: Final = ("-P", "threads", "--without-gossip", "--without-mingle", "-l", "INFO")  # as in Procfile


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for a fact.

    Raises:
        TimeoutError: it did not come true in time.
    """
    until = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {patience_s:.0f} s in vain until {what}")
        time.sleep(0.02)


def answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own address
        return bool(response.status)
    return False


class Processes:
    """The processes that were started, by name; all are ended at the end, whatever happened."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.environ = {**_clean(), **environ}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._open = ExitStack()
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._open.close()

    def start(self, name: str, *command: str, **environ: str) -> None:
        output = self._open.enter_context(self.log(name).open("wb"))
        self._running[name] = subprocess.Popen(
            command, env=self.environ | environ, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )

    def python(self, name: str, *arguments: str, **environ: str) -> None:
        self.start(name, sys.executable, "-m", *arguments, **environ)

    def program(self, name: str, program: str, *arguments: str, **environ: str) -> None:
        self.start(name, str(BINARIES / program), *arguments, **environ)

    def run(self, *command: str) -> str:
        """Run a program to its end and return what it printed."""
        done = subprocess.run(command, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[:4])} failed:\n{done.stdout.decode()}{done.stderr.decode()}")
        return done.stdout.decode()

    def wait_for(self, holds: Callable[[], bool], name: str) -> None:
        """Wait until a process is ready; a process that ended says why in its log."""

        def ready() -> bool:
            if self._running[name].poll() is not None:
                raise RuntimeError(f"{name} ended:\n{self.log(name).read_text(errors='replace')[-3000:]}")
            return holds()

        wait_until(ready, f"{name} is ready")

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def says(self, name: str, words: str) -> bool:
        return words in self.log(name).read_text(errors="replace")

    def megabytes(self, name: str) -> float:
        """Return the largest resident set that the process has had so far."""
        status = Path(f"/proc/{self._running[name].pid}/status")
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024

    def cpu_s(self, name: str) -> float:
        """Return the processor time that the process has taken so far."""
        fields = Path(f"/proc/{self._running[name].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _clean() -> dict[str, str]:
    """Leave out what the surroundings say about this service; the benchmark has settings of its own."""
    names = {"DATABASE_URL", "REDIS_URL"}
    return {key: value for key, value in os.environ.items() if not key.startswith("REVERSE_SYNC_") and key not in names}


class Stage(Processes):
    """What both sides share: the broker, the stub, and the settings."""

    def __init__(self, folder: Path) -> None:
        self.stub_url = f"http://{HOST}:{free_port()}"
        super().__init__(
            folder,
            {
                "REVERSE_SYNC_VAR": str(folder),
                "REVERSE_SYNC_WEBHOOK_SECRETS": SECRET,
                "REVERSE_SYNC_PAYLOAD_KEY": f"bench:{base64.b64encode(os.urandom(32)).decode()}",
                "REVERSE_SYNC_MEDPLUM_BASE_URL": self.stub_url,
                "REVERSE_SYNC_MEDPLUM_CLIENT_ID": "bench",
                "REVERSE_SYNC_MEDPLUM_CLIENT_SECRET": "bench",
                "REVERSE_SYNC_ROUTES": "tests.bench.routes",
                "REVERSE_SYNC_SITE_CLINIC_URL": f"{self.stub_url}/api",
                "REVERSE_SYNC_SITE_CLINIC_KEY": "bench",
            },
        )

    def __enter__(self) -> Self:
        self.python("stub", "tests.bench.stub", self.stub_url.rpartition(":")[2])
        self.program("broker", "reverse-sync", "broker")
        address = self.folder / "broker" / "address"
        self.wait_for(lambda: answers(f"{self.stub_url}/bench"), "stub")
        self.wait_for(lambda: address.exists() and _pings(address.read_text().strip()), "broker")
        self.use("first", 0)
        return self

    def use(self, ledger: str, database: int) -> None:
        """Let what is started from now on use this ledger, which is made, and this database of the broker."""
        broker = (self.folder / "broker" / "address").read_text().strip().rpartition("/")[0]
        self.environ["REVERSE_SYNC_BROKER_URL"] = f"{broker}/{database}"
        self.environ["REVERSE_SYNC_DATABASE_URL"] = f"sqlite:///{self.folder}/{ledger}.db"
        self.run(str(BINARIES / "reverse-sync"), "migrate")

    def begin(self, delay_s: float) -> None:
        """Let the clinic's half of the stub answer after a delay, and count from zero."""
        urllib.request.urlopen(f"{self.stub_url}/bench?{delay_s}", data=b"", timeout=5).close()  # noqa: S310

    def records(self) -> Mapping[str, float]:
        """Tell how many records the clinic has, and when the first and the last came."""
        with urllib.request.urlopen(f"{self.stub_url}/bench", timeout=5) as response:  # noqa: S310 - our own address
            told: Mapping[str, float] = json.load(response)
            return told

    def wait_for_records(self, count: int, patience_s: float) -> Mapping[str, float]:
        wait_until(lambda: self.records()["count"] >= count, f"{count} records are made", patience_s)
        return self.records()

    def load(self, url: str, *arguments: str | int | float) -> Mapping[str, float]:
        """Send notifications from a process of its own."""
        told = self.run(sys.executable, "-m", "tests.bench.load", url, *map(str, arguments))
        result: Mapping[str, float] = json.loads(told)
        return result

    def receiver(self, name: str) -> str:
        """Start our receiver and return where it takes notifications."""
        port = free_port()
        self.python(name, "webhook", REVERSE_SYNC_PORT=str(port))
        self.wait_for(lambda: answers(f"http://{HOST}:{port}/livez"), name)
        return f"http://{HOST}:{port}/medplum"

    def handler(self, name: str, application: str) -> str:
        """Start an ASGI application under uvicorn and return where it takes notifications."""
        port = free_port()
        self.python(name, "uvicorn", application, "--host", HOST, "--port", str(port), *UVICORN)
        self.wait_for(lambda: _listens(port), name)
        return f"http://{HOST}:{port}/medplum"

    def workers(self, *names: str, app: str, queue: str, threads: int = 16) -> None:
        """Start Celery workers and wait until they take messages."""
        for name in names:
            self.program(
                name, "celery", "-A", app, "worker", "-Q", queue, "-c", str(threads), *WORKER, "-n", f"{name}@bench"
            )
        for name in names:
            self.wait_for(lambda name=name: self.says(name, "ready"), name)  # type: ignore[misc]

    def stop(self, names: Sequence[str]) -> None:
        """End some of the processes and wait for their ends."""
        ending = [self._running.pop(name) for name in names]
        for process in ending:
            process.send_signal(signal.SIGTERM)
        for process in ending:
            process.wait(PATIENCE_S)


def _pings(url: str) -> bool:
    try:
        return bool(redis.Redis.from_url(url).ping())
    except redis.RedisError:
        return False


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False
