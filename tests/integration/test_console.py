"""The console as an ASGI app over a real ledger, with and without what it looks at."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from worker.console import create_app
from worker.ledger import Ledger
from worker.ledger.migrate import upgrade
from worker.ledger.values import Claim, Hint, Phase
from worker.settings import BrokerSettings

NOBODY = "redis://127.0.0.1:9/0"


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    """Make a ledger with one accepted change."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    upgrade(url)
    ledger = Ledger.open(url)
    ledger.register_routes({"Patient": (Phase.SHADOW, "v1")})
    ledger.accept([Hint("Patient/<b>1", "v1")])
    yield ledger
    ledger.close()


def get(tmp_path: Path, path: str, **settings: Any) -> httpx.Response:
    """Ask a console over this test's ledger, as its server would."""
    app = create_app(BrokerSettings(database_url=f"sqlite:///{tmp_path}/ledger.db", **settings))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://console") as client:
            return await client.get(path)

    return asyncio.run(ask())


def test_not_ready_names_each_thing_that_is_missing(ledger: Ledger, tmp_path: Path) -> None:
    """With the ledger alone, `/readyz` is 503 and tells what each of the others needs."""
    answer = get(tmp_path, "/readyz", broker_url=NOBODY)
    assert answer.status_code == 503
    told = answer.json()
    assert told["ready"] is False
    assert {name for name, check in told["checks"].items() if check["ok"]} == {"ledger", "migrations"}
    assert "beat" in told["checks"]["dispatch"]["says"]


def test_ready_once_dispatch_ran_and_a_worker_lives(ledger: Ledger, tmp_path: Path) -> None:
    """Dispatch and worker are seen through the ledger: only the broker is still missing."""
    ledger.heartbeat(instance="worker-1", role="worker", host="here", pid=1)
    ledger.job("dispatch", every_s=2, instance="dispatch-1")
    ledger.job_done("dispatch", "published 0")
    told = get(tmp_path, "/readyz", broker_url=NOBODY).json()
    assert [name for name, check in told["checks"].items() if not check["ok"]] == ["broker"]


def test_an_outdated_ledger_is_said_and_not_a_crash(tmp_path: Path) -> None:
    """Without tables every page still answers, and names the command that makes them."""
    answer = get(tmp_path, "/readyz")
    assert answer.status_code == 503
    assert "reverse-sync migrate" in answer.json()["checks"]["migrations"]["says"]
    assert get(tmp_path, "/").status_code == 503
    assert get(tmp_path, "/metrics").status_code == 503


def test_metrics_are_the_ledgers(ledger: Ledger, tmp_path: Path) -> None:
    """The numbers are true over all processes, because they are counted in the ledger."""
    answer = get(tmp_path, "/metrics")
    assert answer.status_code == 200
    assert "reverse_sync_ledger_accepted 1.0" in answer.text
    assert 'reverse_sync_ledger_changes{disposition="open"} 1.0' in answer.text
    assert 'reverse_sync_ledger_mirrors{state="due"} 1.0' in answer.text
    assert "reverse_sync_ledger_identity_holds 1.0" in answer.text
    assert "Patient/" not in answer.text


def test_the_page_lists_what_needs_a_person_and_escapes_it(ledger: Ledger, tmp_path: Path) -> None:
    """A failed mirror stands on the page with its reason; markup in it stays text, and nothing is loaded or cached."""
    claim = ledger.claim("Patient/<b>1", instance="worker-1", lease_s=60)
    ledger.fail(claim, reason="unmappable", detail="Patient.name <script>")  # type: ignore[arg-type]
    answer = get(tmp_path, "/")
    assert answer.status_code == 200
    assert "Needs a person: 1" in answer.text
    assert "Patient/&lt;b&gt;1" in answer.text
    assert "<script" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/docs", "/readyz/", "/medplum"])
def test_there_is_nothing_else(ledger: Ledger, tmp_path: Path, path: str) -> None:
    """Three paths are served, each by itself."""
    assert get(tmp_path, path).status_code == 404


def test_it_runs_as_a_process_and_says_that_it_lives(ledger: Ledger, tmp_path: Path) -> None:
    """`python -m worker.console` serves, is listed in the ledger while it runs, and ends cleanly at SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "REVERSE_SYNC_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db"}
    command = [sys.executable, "-m", "worker.console", "--port", str(port)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        try:
            eventually(lambda: ledger.alive(role="console") is not None)
            eventually(lambda: answers(port))
            process.terminate()
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode in {0, -signal.SIGTERM}
    assert [json.loads(line)["process"] for line in said.splitlines()] == ["console"] * len(said.splitlines())
    assert ledger.alive(role="console") is None


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 503
    except httpx.TransportError:
        return False


def eventually(fact: Callable[[], bool], within_s: float = 20) -> None:
    """Wait until the fact holds; a fact that never does fails the test."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "the fact never came to hold"
        time.sleep(0.02)


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


@pytest.mark.browser
def test_the_page_is_a_page_in_a_browser(ledger: Ledger, tmp_path: Path, missing: Callable[[str], Any]) -> None:
    """A browser shows what needs a person first, under the page's own security policy, and runs none of its text."""
    found = [path for path in map(shutil.which, BROWSERS) if path is not None]
    if not found:
        missing("there is no Chromium: apt-get install chromium")
    browser = found[0]
    claim = ledger.claim("Patient/<b>1", instance="one", lease_s=60)
    assert isinstance(claim, Claim)
    ledger.fail(claim, reason="refused", detail="<script>document.title='run'</script>")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = {"REVERSE_SYNC_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db", "REVERSE_SYNC_BROKER_URL": NOBODY}
    command = [sys.executable, "-m", "worker.console", "--port", str(port)]
    console = subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/")
        shown = subprocess.run(
            [browser, *CHROMIUM, f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"http://127.0.0.1:{port}/"],
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        ).stdout
    finally:
        console.terminate()
        console.wait(10)
    assert "<title>Reverse sync</title>" in shown
    assert shown.index("Needs a person: 1") < shown.index("Mirrors")
    assert "Patient/&lt;b&gt;1" in shown


def _wait_for(url: str) -> None:
    ends_at = time.monotonic() + 20
    while True:
        try:
            httpx.get(url, timeout=1)
        except httpx.TransportError:
            if time.monotonic() > ends_at:
                raise
            time.sleep(0.05)
        else:
            return


def test_the_page_tells_of_each_route_and_of_time_that_is_not_proven(ledger: Ledger, tmp_path: Path) -> None:
    """Accounts, lag and watermark by route, and each time in doubt with its reason, escaped."""
    begin = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    ledger.doubt("Patient", begin, begin + timedelta(minutes=5), "the Subscription was <off>")
    page = get(tmp_path, "/").text
    assert "<h2>Routes</h2>" in page
    assert "<tr><th>Patient</th><td>shadow</td>" in page
    assert "<h2>Not proven: 1</h2>" in page
    assert "the Subscription was &lt;off&gt;" in page
    metrics = get(tmp_path, "/metrics").text
    assert 'reverse_sync_ledger_unproven_windows{resource_type="Patient"} 1.0' in metrics
    assert 'reverse_sync_ledger_watermark_seconds{resource_type="Patient"}' in metrics
