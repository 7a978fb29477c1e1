"""The algorithm between real processes: both sandboxes run once, each test has them empty and a ledger of its own."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from tests.contract.ledger.conftest import migrated_file, postgres  # noqa: F401  fixtures
from tests.contract.ledger.story import Clock
from tests.integration.sync.story import CLINIC_KEY, Hooks, Story
from worker.ledger import Ledger
from worker.legacy import LegacyApi
from worker.mapping import Routes, load_routes
from worker.medplum import Medplum

ROOT = Path(__file__).parents[3]
KEYS = (("k1", SecretStr(base64.b64encode(b"k" * 32).decode())),)


@contextmanager
def sandbox(name: str, home: Path, *options: str) -> Iterator[str]:
    """Run one sandbox process; its address."""
    ready = home / f"{name}.url"
    command = [sys.executable, "-m", f"deploy.sandbox.{name}", "--port", "0", "--db", str(home / f"{name}.db")]
    process = subprocess.Popen([*command, "--ready-file", str(ready), *options], cwd=ROOT)
    try:
        deadline = time.monotonic() + 20
        while not (ready.exists() and ready.read_text().strip()):
            assert time.monotonic() < deadline, f"{name} never became ready"
            assert process.poll() is None, f"{name} ended"
            time.sleep(0.02)
        yield ready.read_text().strip()
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture(scope="session")
def clinic_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with sandbox("clinic", tmp_path_factory.mktemp("clinic"), "--api-key", CLINIC_KEY) as url:
        yield url


@pytest.fixture(scope="session")
def medplum_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with sandbox("medplum", tmp_path_factory.mktemp("medplum")) as url:
        yield url


@pytest.fixture(scope="session")
def routes(clinic_url: str) -> Iterator[Routes]:
    """The example's routes, loaded for this clinic and left out of sight of other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REVERSE_SYNC_SITE_CLINIC_URL", f"{clinic_url}/api")
        patch.setenv("REVERSE_SYNC_SITE_CLINIC_KEY", CLINIC_KEY)
        before = {name: module for name, module in sys.modules.items() if name.startswith("worker.mappings")}
        for name in before:
            del sys.modules[name]
        loaded = load_routes("worker.mappings")
        for name in [name for name in sys.modules if name.startswith("worker.mappings")]:
            del sys.modules[name]
        sys.modules.update(before)
    yield loaded
    loaded["Patient"].to.api.close()


@pytest.fixture
def reader(medplum_url: str) -> Iterator[Medplum]:
    """Our client of Medplum, new for each test: it keeps tokens that a reset forgets, and what it is told of quotas."""
    with Medplum(medplum_url + "/", "sync", SecretStr("sync-secret")) as medplum:
        yield medplum


@pytest.fixture(scope="session")
def medplum(medplum_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=medplum_url, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def clinic(clinic_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=clinic_url, trust_env=False) as client:
        yield client


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new migrated ledger: SQLite, or what the test asks for by `on_both`."""
    if getattr(request, "param", "sqlite") == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "ledger.db")
        yield f"sqlite:///{tmp_path}/ledger.db"
    else:
        with request.getfixturevalue("postgres").migrated() as url:
            yield url


@pytest.fixture
def story(
    url: str,
    medplum: httpx.Client,
    clinic: httpx.Client,
    reader: Medplum,
    routes: Routes,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Story]:
    """Tell a story; however it ends, its accounts are in order."""
    hooks, clock = Hooks(), Clock()
    monkeypatch.setattr(LegacyApi, "send", hooks.around_send(LegacyApi.send))
    monkeypatch.setattr(Medplum, "read", hooks.around_read(Medplum.read))
    with closing(Ledger.open(url, keys=KEYS, clock=clock, connections=8)) as ledger:
        assert medplum.post("/sandbox/reset", json={}).is_success
        assert clinic.post("/sandbox/reset", json={}).is_success
        ledger.register_routes({name: (route.phase, route.version) for name, route in routes.items()})
        yield Story(ledger, clock, medplum, clinic, reader, routes, hooks)


@pytest.fixture(autouse=True)
def _accounts(story: Story) -> Iterator[None]:
    """After every test: accepted = rows by disposition + purged."""
    yield
    story.adds_up()
