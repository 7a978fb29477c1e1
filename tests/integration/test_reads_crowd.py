"""A flood of forged deletes against the real reads: what it may cost Medplum's quota, and whom it may keep waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.integration.sync.conftest import sandbox
from worker.errors import MedplumUnavailable
from worker.medplum import Absent, Medplum, Present, reads
from worker.medplum.quota import Priority
from worker.medplum.reads import MOST_IDS, MOST_SECOND_LOOKS, Reads

FLOOD = 10_000
UNITS = 20  # of one search, whatever it asks for
LONG_S = 30.0


class Counted:
    """One process's reads of Medplum, and the requests that they came to."""

    def __init__(self, url: str, *, second_looks: int) -> None:
        self.medplum = Medplum(f"{url}/", "sync", SecretStr("sync-secret"), connections=8)
        self.medplum._reads = Reads(self.medplum._ask, second_looks=second_looks)
        self.requests: list[httpx.URL] = []
        self.medplum._http.event_hooks["request"] = [lambda request: self.requests.append(request.url)]

    @property
    def searches(self) -> int:
        return sum("/fhir/" in url.path for url in self.requests)

    def look(self, id_: str, priority: Priority = Priority.SECOND_LOOK) -> Any:
        return self.medplum.read(f"Patient/{id_}", deadline_s=LONG_S, priority=priority)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("crowd")
    with sandbox("medplum", folder) as url:
        patient = {"resourceType": "Patient", "id": "there"}
        httpx.post(f"{url}/sandbox/bulk", json={"resources": [patient], "notify": False}, trust_env=False)
        yield url


def test_ten_thousand_forged_deletes_cost_little_more_than_their_pages(url: str) -> None:
    """Beyond a rate they wait until a page is full: two searches for a hundred ids, and not two for each."""
    counted = Counted(url, second_looks=2 * MOST_IDS)
    with counted.medplum, ThreadPoolExecutor(2 * MOST_IDS) as pool:
        found = list(pool.map(counted.look, (f"forged-{number}" for number in range(FLOOD))))
    assert all(isinstance(each, Absent) for each in found)
    pages = FLOOD // MOST_IDS
    assert counted.searches <= 2 * (pages + pages // 2)
    print(f"\n{FLOOD} forged deletes: {counted.searches} searches, {counted.searches * UNITS} units")


def test_a_flood_leaves_threads_and_units_to_live_reads(url: str) -> None:
    """Of a worker's threads a few wait with the flood; the others are told when to come, and live reads go at once."""
    counted = Counted(url, second_looks=MOST_SECOND_LOOKS)
    over = threading.Event()
    refused: list[float] = []

    def flood(name: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            try:
                counted.look(f"forged-{name}-{number}")
            except MedplumUnavailable as error:
                refused.append(error.retry_after_s or 0.0)
                over.wait(0.02)

    def live() -> float:
        begin = time.monotonic()
        assert isinstance(counted.look("there", Priority.LIVE), Present)
        return time.monotonic() - begin

    with counted.medplum, ThreadPoolExecutor(16) as pool:
        live()
        begin = time.monotonic()
        floods = [pool.submit(flood, name) for name in range(15)]
        try:
            slowest = 0.0
            while time.monotonic() - begin < 3:
                slowest = max(slowest, live())
                over.wait(0.02)  # or the live reads themselves would use the units up
            seconds, forged = time.monotonic() - begin, counted_forged(counted)
        finally:
            over.set()
        for each in floods:
            each.result(LONG_S)
    assert refused
    assert refused[-1] > refused[0]  # each has a time of his own, later than the one before
    assert slowest < 1
    most = MOST_SECOND_LOOKS / 2  # requests for both kinds of search, were each place to fill a page of its own
    assert forged <= 2 * most * (seconds + 1)
    print(f"\nflood of {seconds:.1f} s: {forged} searches for it; the slowest live read took {slowest * 1000:.0f} ms")


def counted_forged(counted: Counted) -> int:
    return sum("forged" in str(url) for url in list(counted.requests))


def test_a_few_second_looks_wait_for_nobody(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One delete that was never heard of before, or one waiting mirror's look, goes as a live read does."""
    monkeypatch.setattr(reads, "FILL_S", LONG_S)  # who waited for company would come too late
    counted = Counted(url, second_looks=MOST_SECOND_LOOKS)
    with counted.medplum:
        counted.look("there", Priority.LIVE)  # the token
        begin = time.monotonic()
        assert [type(counted.look(id_)) for id_ in ("one", "two")] == [Absent, Absent]
        assert time.monotonic() - begin < LONG_S / 2
    assert counted.searches == 1 + 2 * 2
