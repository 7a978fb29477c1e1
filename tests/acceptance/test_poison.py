"""A resource whose processing kills its process: it is found out alone, and none of the others pays for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.latency import Front, new, percentile, reference, told
from tests.acceptance.system import System, started
from tests.contract.ledger.waiting import wait_until

pytestmark = [pytest.mark.processes]

POISON = "Poison"
WORKERS = ("worker", "worker2")
FOUND_OUT_S = 150.0  # a dead worker's leases are freed after 20 s; then it is run alone, and dies, three times more


@pytest.fixture
def poisoned(folder: Path) -> Iterator[System]:
    with started(folder, settings={"ROUTES": "tests.acceptance.troublesome_mappings"}) as system:
        yield system


@contextmanager
def supervised(system: System) -> Iterator[list[str]]:
    """Start a worker again whenever it has ended, as systemd or Kubernetes would; list those that had."""
    over, ended = threading.Event(), []

    def watch() -> None:
        while not over.wait(0.05):
            for name in WORKERS:
                if name in system.processes.ended():
                    ended.append(name)
                    system.processes.again(name)

    thread = threading.Thread(target=watch, name="supervisor")
    thread.start()
    try:
        yield ended
    finally:
        over.set()
        thread.join()


def poisons(system: System, front: Front, patients: int) -> tuple[str, list[float]]:
    """Create patients with one among them whose mapping kills its process; that one, and how long the others took."""
    poison = new("Patient", POISON)
    with supervised(system) as ended:
        front.creates(patients // 4)
        system.medplum.write([poison])
        front.creates(patients - patients // 4)
        latencies = front.latencies(system.clinic, within_s=FOUND_OUT_S)
        wait_until(lambda: system.mirror(reference(poison)).get("state") == "failed", seconds=FOUND_OUT_S)
        wait_until(system.is_quiet, seconds=FOUND_OUT_S)
    assert len(ended) == 1  # after its first start it dies in a process of its own
    return reference(poison), latencies


def assert_it_alone_is_blamed(system: System, poison: str, front: Front) -> None:
    mirror = system.mirror(poison)
    assert (mirror["state"], mirror["reason"]) == ("failed", "poison")
    [failed] = system.ledger.failed()
    assert failed["reference"] == poison
    for id_ in front.written_at:
        others = system.mirror(f"Patient/{id_}")
        assert (others["state"], others["starts"], others["attempts"]) == ("current", 0, 0)
    assert system.clinic.duplicates() == []
    assert len(system.clinic.records()) == len(front.written_at)
    status = system.ledger.status()
    assert status["identity_holds"]
    assert status["unresolved_writes"] == 0


@pytest.mark.timeout(400)
def test_a_poisoned_resource_is_found_out_and_nobody_else_is_blamed(poisoned: System) -> None:
    """It kills a worker once and then only children; it fails as poison, and every other one is written once."""
    front = Front(poisoned.medplum.write, every_s=0.05)
    poison, latencies = poisons(poisoned, front, 100)
    print(f"\n{told('beside a poisoned one', latencies)}")
    assert_it_alone_is_blamed(poisoned, poison, front)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_one_poisoned_among_five_hundred_costs_the_others_less_than_a_second(poisoned: System) -> None:
    """The same run with and without it: the others' p95 latency grows by less than a second."""
    before = Front(poisoned.medplum.write, every_s=0.04)
    before.creates(500)
    without = before.latencies(poisoned.clinic, within_s=120)
    beside = Front(poisoned.medplum.write, every_s=0.04)
    poison, latencies = poisons(poisoned, beside, 500)
    print(f"\n{told('without', without)}\n{told('beside a poisoned one', latencies)}")
    assert percentile(latencies, 95) - percentile(without, 95) < 1.0
    beside.written_at |= before.written_at
    assert_it_alone_is_blamed(poisoned, poison, beside)
