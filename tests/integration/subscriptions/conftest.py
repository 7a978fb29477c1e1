"""Medplum's stand-in and a receiver as real processes over one real ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from deploy.demo.scenery import free_port
from tests.integration.receiver_process import KEY, Receiver, started
from tests.integration.sync.conftest import sandbox
from worker.ledger import Ledger
from worker.ledger.migrate import upgrade
from worker.mapping import Declared, load_routes
from worker.medplum import Medplum
from worker.medplum.admin import Admin
from worker.subscriptions.applying import Desk, Seen
from worker.subscriptions.found import Found
from worker.subscriptions.reading import ours
from worker.subscriptions.wanted import wanted
from worker.subscriptions.watching import Watch

TOKEN = "Bearer of these tests"
ROUTES = "tests.integration.subscriptions.routed"
_NAME, _, _VALUE = KEY.partition(":")


@dataclass
class Clinic:
    """One project in Medplum, its ledger, and both sides of it."""

    medplum_url: str
    url: str
    endpoint: str
    ledger: Ledger
    admin: Admin
    reader: Medplum
    routes: Declared
    said: list[str] = field(default_factory=list)
    token: str = TOKEN

    def desk(self, *, endpoint: str = "", known_within_s: float = 10) -> Desk:
        needed = wanted(
            self.routes, self.ledger.routes(), endpoint=endpoint or self.endpoint, token=SecretStr(self.token)
        )
        return Desk(
            ledger=self.ledger,
            admin=self.admin,
            wanted=needed,
            endpoint=endpoint or self.endpoint,
            say=self.said.append,
            known_within_s=known_within_s,
        )

    def apply(self, **how: Any) -> Seen:
        desk = self.desk(**how)
        seen = desk.look()
        desk.apply(seen)
        return seen

    def watch(self, **how: Any) -> Watch:
        return Watch(ledger=self.ledger, medplum=self.reader, routes=self.routes, **how)

    def found(self, resource_type: str = "Patient") -> Found:
        row = next(row for row in self.ledger.subscriptions() if row.resource_type == resource_type)
        return next(one for one in ours(self.admin, ids={row.medplum_id or ""}) if one.id == row.medplum_id)

    def by_hand(self, resource_type: str = "Patient", **members: object) -> None:
        """Change a Subscription as somebody does in Medplum's own pages."""
        mine = self.found(resource_type)
        assert self.admin.change(mine.reference, mine.version_id, members, deadline_s=10) is not None

    def state(self, resource_type: str = "Patient") -> str:
        return next(row.look.state.value for row in self.ledger.subscriptions() if row.resource_type == resource_type)

    def windows(self) -> list[tuple[str, str]]:
        rows = self.ledger.database.read(
            lambda tx: tx.execute(text("SELECT resource_type, reason FROM windows WHERE proven_at IS NULL")).all()
        )
        return [(row.resource_type, row.reason) for row in rows]

    def sql(self, statement: str) -> None:
        self.ledger.database.write(lambda tx: tx.execute(text(statement)))

    def sandbox(self, verb: str, **wanted: object) -> Any:
        answer = httpx.post(f"{self.medplum_url}/sandbox/{verb}", json=wanted, trust_env=False, timeout=20)
        return answer.raise_for_status().json()

    def stored(self, resource_type: str) -> list[dict[str, Any]]:
        """List what the stand-in keeps of a type, deleted ones included."""
        answer = httpx.get(f"{self.medplum_url}/sandbox/resources?type={resource_type}", trust_env=False, timeout=20)
        return [json.loads(line) for line in answer.raise_for_status().text.splitlines() if line]


@pytest.fixture(scope="session")
def medplum_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with sandbox("medplum", tmp_path_factory.mktemp("medplum")) as url:
        yield url


@contextmanager
def clinic(folder: Path, medplum_url: str, endpoint: str) -> Iterator[Clinic]:
    """Open an empty ledger beside an empty Medplum."""
    url = f"sqlite:///{folder}/ledger.db"
    upgrade(url)
    routes = load_routes(ROUTES)
    with (
        closing(Ledger.open(url, keys=[(_NAME, SecretStr(_VALUE))], connections=4)) as ledger,
        Admin(medplum_url + "/", "admin", SecretStr("admin-secret")) as admin,
        Medplum(medplum_url + "/", "sync", SecretStr("sync-secret")) as reader,
    ):
        ledger.register_routes(routes.types)
        yield Clinic(medplum_url, url, endpoint, ledger, admin, reader, routes)


@pytest.fixture
def alone(tmp_path: Path, medplum_url: str) -> Iterator[Clinic]:
    """A project whose receiver does not run."""
    httpx.post(f"{medplum_url}/sandbox/reset", json={}, trust_env=False).raise_for_status()
    with clinic(tmp_path, medplum_url, f"http://127.0.0.1:{free_port()}/medplum") as made:
        yield made


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, medplum_url: str) -> Iterator[tuple[Clinic, Receiver]]:
    """A project and its receiver, which has no secret but those of the ledger; once for a file."""
    folder = tmp_path_factory.mktemp("served")
    httpx.post(f"{medplum_url}/sandbox/reset", json={}, trust_env=False).raise_for_status()
    port = free_port()
    with clinic(folder, medplum_url, f"http://127.0.0.1:{port}/medplum") as made:
        made.apply()
        receiver = started(folder, made.url, PORT=str(port), WEBHOOK_SECRETS="", WEBHOOK_TOKEN=TOKEN)
        try:
            yield made, receiver
        finally:
            receiver.kill()


@pytest.fixture
def well(served: tuple[Clinic, Receiver]) -> Clinic:
    """The same, with Subscriptions applied and everything right again: nothing of an earlier test is in Medplum."""
    made, _ = served
    for client in (made.admin, made.reader):
        client._tokens._token = None  # a reset makes them unknown; asked for anew, they cost nothing
    made.sandbox("reset")
    made.sql("DELETE FROM windows")
    made.sql("DELETE FROM subscriptions")
    made.apply()
    return made
