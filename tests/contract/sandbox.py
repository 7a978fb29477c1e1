"""A sandbox's process and its control plane, and the clinic's, for the contract tests of the legacy systems."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import httpx

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0
KEY = {"X-Api-Key": "clinic-key"}
JANE = {"last_name": "Doe", "first_name": "Jane", "birth_date": "03/04/1980", "sex": "F"}

T = TypeVar("T")


def until(fact: Callable[[], T]) -> T:
    """Wait until something is so."""
    end = time.monotonic() + DEADLINE_S
    while not (value := fact()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)
    return value


@dataclass
class Sandbox:
    """A process and its two sides."""

    name: ClassVar[str]
    headers: ClassVar[Mapping[str, str]] = {}

    folder: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    api: httpx.Client = field(default_factory=httpx.Client)

    def start(self, port: int = 0) -> None:
        ready = self.folder / "url"
        words = [sys.executable, "-m", f"deploy.sandbox.{self.name}", "--port", str(port), *self.options]
        words += ["--db", str(self.folder / f"{self.name}.db"), "--ready-file", str(ready)]
        ready.unlink(missing_ok=True)
        self.process = subprocess.Popen(words, cwd=ROOT)
        until(ready.exists)
        self.url = ready.read_text().strip()
        self.api.close()
        self.api = httpx.Client(base_url=self.url, headers=self.headers, trust_env=False, timeout=DEADLINE_S)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def end(self) -> None:
        self.stop(signal.SIGKILL)
        self.api.close()

    def lines(self, what: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.api.get(f"/sandbox/{what}").text.splitlines()]

    def tell(self, what: str, content: object = None) -> httpx.Response:
        return self.api.post(f"/sandbox/{what}", json=content)

    def fault(self, **rule: object) -> None:
        assert self.tell("faults", {"times": 1} | rule).status_code == 200

    def raw(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> socket.socket:
        """Send a request by hand and give the socket, for what no HTTP client shows."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)
        told = dict(self.headers) | headers | {"Host": self.name, "Content-Length": str(len(body))}
        head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items()), "", ""]
        connection.sendall("\r\n".join(head).encode() + body)
        return connection


class Clinic(Sandbox):
    """A clinic process and its two sides."""

    name = "clinic"
    headers = KEY

    def post(self, path: str, fields: Mapping[str, object]) -> dict[str, Any]:
        answer = self.api.post(path, json=fields)
        assert answer.status_code == 201, answer.text
        return dict(answer.json()["data"])

    def patient(self, **fields: object) -> dict[str, Any]:
        return self.post("/api/patients", JANE | fields)

    def chart(self, sheet: str, **fields: object) -> str:
        """Make a patient and give the path of a sheet of theirs."""
        return f"/api/patients/{self.patient(**fields)['uuid']}/{sheet}"

    def booking(self, patient: Mapping[str, object], **fields: object) -> dict[str, Any]:
        slot = {"patient_number": patient["number"], "starts": "11/03/2024 01:30 PM", "minutes": 20}
        return self.post("/api/appointments", slot | fields)

    def find(self, **query: object) -> list[Any]:
        answer = self.api.get("/api/patients", params={name: str(value) for name, value in query.items()})
        return [record["number"] for record in answer.json()["data"]]


def error(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    return dict(answer.json()["error"])
