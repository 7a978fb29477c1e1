"""Many at once on a real database: threads, and a second ledger as another process would have it."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import NoReturn

import pytest

from tests.contract.ledger.story import KEYS, OTHER, PATIENT, ROUTES, Clock, Story, done, read
from worker.ledger import Ledger, database
from worker.ledger.values import Claim, Disposition, Hint

THREADS = 6


@pytest.fixture
def second(url: str, clock: Clock, ledger: Ledger) -> Iterator[Ledger]:
    """Open the same ledger a second time, with connections of its own."""
    assert ledger.routes()
    with closing(Ledger.open(url, keys=KEYS, clock=clock, connections=8)) as second:
        yield second


def test_one_of_many_gets_the_mirror(story: Story, second: Ledger) -> None:
    """However many threads of two processes claim at the same moment, each round has exactly one holder."""
    for round_number in range(10):
        story.hears(f"v{round_number}")
        together = threading.Barrier(THREADS)

        def claim(number: int, both: threading.Barrier = together) -> Claim | None:
            ledger = story.ledger if number % 2 else second
            both.wait(10)
            got = ledger.claim(PATIENT, instance=f"i{number}", lease_s=60)
            return got if isinstance(got, Claim) else None

        with ThreadPoolExecutor(THREADS) as pool:
            holders = [got for got in pool.map(claim, range(THREADS)) if got is not None]
        assert len(holders) == 1
        assert story.settles(holders[0], f"v{round_number}")


def test_batches_that_meet_lose_and_double_nothing(story: Story, second: Ledger) -> None:
    """Overlapping batches of many threads, in random order, make each row once, count each hint, and never fail."""
    versions = [(f"Patient/{n}", f"v{v}") for n in range(12) for v in range(3)]

    def accept(seed: int) -> int:
        chooser = random.Random(seed)
        inserted = 0
        for _ in range(8):
            batch = [Hint(*version) for version in chooser.sample(versions, 12)]
            batch += [Hint(f"Patient/{chooser.randrange(12)}", None)]
            inserted += (story.ledger if seed % 2 else second).accept(batch).inserted
        return inserted

    with ThreadPoolExecutor(THREADS) as pool:
        inserted = sum(pool.map(accept, range(THREADS)))
    status = story.ledger.status()
    assert status["accepted"] == inserted == status["changes"]["open"]
    [(hints,)] = story.sql("SELECT sum(hints) FROM mirrors")
    assert hints == THREADS * 8 * 13
    [(most,)] = story.sql(
        "SELECT max(n) FROM (SELECT count(*) AS n FROM changes WHERE kind = 'delete' GROUP BY reference) AS deletes"
    )
    assert most == 1


def test_the_same_version_at_the_same_moment_is_one_row(story: Story, second: Ledger) -> None:
    """Two deliveries of one event that arrive together make one row and two hints."""
    together = threading.Barrier(2)

    def accept(ledger: Ledger) -> int:
        together.wait(10)
        return ledger.accept([Hint(PATIENT, "v1")]).inserted

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(accept, (story.ledger, second))) == 1
    assert story.mirror()["hints"] == 2


def test_a_key_goes_to_one_of_two_resources(story: Story, second: Ledger) -> None:
    """When two resources record the same legacy key at the same moment, one is linked and the other is held."""
    writes = []
    for reference in (PATIENT, OTHER):
        story.hears("v1", of=reference)
        writes.append(story.announces(story.claims(reference)).id)
    together = threading.Barrier(2)

    def record(ledger: Ledger, write_id: int) -> bool:
        together.wait(10)
        return ledger.record(write_id, done(17))

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(record, (story.ledger, second), writes)) == [False, True]
    states = Counter(story.mirror(reference)["state"] for reference in (PATIENT, OTHER))
    assert states == {"due": 1, "held": 1}
    assert story.sql("SELECT count(*) FROM links") == [(1,)]


def test_traffic_and_work_together_keep_the_accounts(story: Story, second: Ledger) -> None:
    """While hints arrive, workers claim and settle: no change is lost, and the identity holds at any moment."""
    references = [f"Patient/{n}" for n in range(8)]
    stop = threading.Event()
    broken: list[object] = []

    def deliver(seed: int) -> None:
        chooser = random.Random(seed)
        for number in range(25):
            hints = [
                Hint(chooser.choice(references), chooser.choice([None, f"v{seed}-{number}-{n}"])) for n in range(4)
            ]
            story.ledger.accept(hints)

    def work(seed: int) -> None:
        ledger, chooser = (story.ledger if seed % 2 else second), random.Random(seed)
        while not stop.is_set():
            reference = chooser.choice(references)
            claim = ledger.claim(reference, instance=f"i{seed}", lease_s=60)
            if isinstance(claim, Claim):
                version = f"read-{reference}-{claim.token}"
                ledger.finish(claim, read(version, Disposition.UNCHANGED, at=story.clock()))

    def watch() -> None:
        while not stop.is_set():
            status = story.ledger.status()
            if not status["identity_holds"]:
                broken.append(status)

    with ThreadPoolExecutor(THREADS) as pool:
        workers = [pool.submit(work, seed) for seed in (1, 2)] + [pool.submit(watch)]
        deliveries = [pool.submit(deliver, seed) for seed in (3, 4, 5)]
        try:
            for delivery in deliveries:
                delivery.result(timeout=40)
        finally:
            stop.set()
        for worker in workers:
            worker.result(timeout=20)
    assert broken == []
    story.adds_up()
    for reference in references:
        claim = story.ledger.claim(reference, instance="last", lease_s=60)
        if isinstance(claim, Claim):
            story.settles(claim, "last")
    versions = story.sql("SELECT count(*) FROM changes WHERE kind = 'version' AND disposition IS NULL")
    assert versions == [(0,)]


@pytest.mark.parametrize("url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
def test_time_is_the_databases(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PostgreSQL no time of the host goes into the ledger: hosts may disagree, the database does not."""

    class NoClock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> NoReturn:
            raise AssertionError("the host's clock was asked")

    before = datetime.now(UTC)
    monkeypatch.setattr(database, "datetime", NoClock)
    with closing(Ledger.open(url, keys=KEYS)) as ledger:
        ledger.register_routes(ROUTES)
        ledger.accept([Hint(PATIENT, "v1")])
        claim = ledger.claim(PATIENT, instance="one", lease_s=60)
    assert isinstance(claim, Claim)
    assert claim.claimed_at.tzinfo is not None
    assert abs((claim.claimed_at - before).total_seconds()) < 60
