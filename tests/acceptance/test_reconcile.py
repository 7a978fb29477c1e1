"""Both sides compared in a system of real processes: every seeded drift is found, mended where it can be, once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.drifts import Drifts, Named, brought_back, drifted, lets_deletes_pass, population
from tests.acceptance.system import System, started
from tests.acceptance.traffic import Traffic, flowing

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

Json = dict[str, Any]
NOT_DRIFT = {"in flight", "needs a person"}
PROBLEM = "/api/patients/{uuid}/problems/{id}"
ALONE = {"CATCH_UP_EVERY_SECONDS": "86400"}  # else catch-up would find what was seeded as never told of
KEPT_BEFORE_THE_KILL = 6  # the problems of 1,000 patients take four, and their stage one


def command(*arguments: str, fresh_s: int = 0) -> list[str]:
    return [sys.executable, "-m", "worker.cli", "reconcile", "--fresh", str(fresh_s), "--json", *arguments]


def reconciles(system: System, *arguments: str, fresh_s: int = 0) -> Json:
    """Run the command as an operator does, and give what it says."""
    line = command(*arguments, fresh_s=fresh_s)
    done = subprocess.run(line, env=system.settings, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    told: Json = json.loads(done.stdout)
    assert done.returncode == (1 if told["drift"] else 0)
    assert told["finished"]
    return told


def names(told: Json, verdicts: Collection[str] = ()) -> set[Named]:
    found = [each for each in told["findings"] if each["verdict"] not in NOT_DRIFT or verdicts]
    return {
        (each["verdict"], each["reference"] or f"{each['collection']} {each['key']}")
        for each in found
        if not verdicts or each["verdict"] in verdicts
    }


def mends(system: System, drifts: Drifts, *, within_s: float) -> None:
    """Give what was seeded to the sync, and find nothing afterwards but what a person has to mend."""
    told = reconciles(system, "--repair", "--why", "the acceptance tests")
    assert names(told) == drifts.expected
    assert told["mends"]["person"] == len(drifts.lasting)
    system.settle(within_s)
    lets_deletes_pass(system, within_s=within_s)
    told = reconciles(system)
    assert names(told) == drifts.lasting
    assert names(told, NOT_DRIFT) == set()
    system.assert_accounted()


def finds_though_it_is_killed(system: System, drifts: Drifts) -> None:
    """Kill a run in its middle; the same command goes on, finds exactly what was seeded, and only reads."""
    writes = len(system.clinic.history())
    system.clinic.misbehave({"kind": "delay", "seconds": 0.01, "match": {"method": "GET"}})
    began = journal(system)
    process = subprocess.Popen(
        command("--concurrency", "1"), env=system.settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    system.wait_until(lambda: pages(system) >= KEPT_BEFORE_THE_KILL, "some pages are kept", 60)
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    system.clinic.behave()
    killed = journal(system)
    done = subprocess.run(command(), env=system.settings, capture_output=True, text=True, timeout=300, check=False)
    assert "goes on" in done.stderr
    assert names(json.loads(done.stdout)) == drifts.expected
    read = [line["template"] for line in system.clinic.journal(began) if line["n"] <= killed]
    again = [line["template"] for line in system.clinic.journal(killed)]
    assert PROBLEM in read
    assert PROBLEM not in again  # the problems came first, and their pages were kept
    assert len(system.clinic.history()) == writes


def journal(system: System) -> int:
    return max((int(line["n"]) for line in system.clinic.journal()), default=0)


def pages(system: System) -> int:
    """Tell how many pages the run has kept that is not ended."""
    engine = system.ledger.database.engine
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT pages FROM reconciliations WHERE ended_at IS NULL").all()
    return max((row[0] for row in rows), default=0)


def test_every_seeded_drift_is_found_and_what_can_be_mended_is(folder: Path) -> None:
    """Drifts of each kind, found by a run that was killed in its middle as well; where there is none, none is found."""
    with started(folder, settings=ALONE) as system:
        population(system, 60, within_s=60)
        told = reconciles(system)
        assert (told["drift"], told["findings"]) == (0, [])
        drifts = drifted(system, 4)
        brought_back(system, drifts, 4, within_s=60)
        assert len(drifts.expected) == 40
        finds_though_it_is_killed(system, drifts)
        mends(system, drifts, within_s=60)
        assert "4 extra, 4 duplicate" in system.cli("status")
        says_nothing_of_what_is_under_way(system, drifts, times=1)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_three_hundred_seeded_drifts_are_found_and_mended(folder: Path) -> None:
    """All of 300 are found, by a run that was killed as well, and all but those of a person are mended."""
    with started(folder, settings=ALONE) as system:
        population(system, 1000, within_s=300)
        assert reconciles(system)["drift"] == 0
        drifts = drifted(system, 30)
        brought_back(system, drifts, 30, within_s=120)
        assert len(drifts.expected) == 300
        began = time.monotonic()
        finds_though_it_is_killed(system, drifts)
        print(f"found {len(drifts.expected)} in {time.monotonic() - began:.0f} s, the kill included")
        mends(system, drifts, within_s=300)
        print(f"mended all but the {len(drifts.lasting)} of a person")


def says_nothing_of_what_is_under_way(system: System, drifts: Drifts, *, times: int) -> None:
    """Compare while a front end writes without rest: what changes is in flight or equal, and never a finding."""
    with flowing(Traffic(system.medplum, seed=3)) as traffic:
        for _ in range(times):
            told = reconciles(system, fresh_s=30)
            assert names(told) == drifts.lasting
        assert traffic.writes > 20
    system.settle(60)
    assert names(reconciles(system)) == drifts.lasting


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_is_under_way_is_never_taken_for_a_difference(folder: Path) -> None:
    """Ten comparisons in a row under traffic: none finds anything."""
    with started(folder, settings=ALONE) as system:
        population(system, 200, within_s=120)
        says_nothing_of_what_is_under_way(system, Drifts(), times=10)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_number_of_records(folder: Path) -> None:
    """With ten times as many records the command takes the same memory, within a few megabytes."""
    with started(folder, settings=ALONE) as system:
        population(system, 300, within_s=120)
        small = peak_bytes(system)
        population(system, 3000, within_s=600)
        large = peak_bytes(system)
        print(f"peak RSS {small / 2**20:.1f} MB with 400 records, {large / 2**20:.1f} MB with 4,000")
        assert large - small < 12 * 2**20


def peak_bytes(system: System) -> int:
    """Run a comparison, and give the most memory that it ever had."""
    process = subprocess.Popen(command(), env=system.settings, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
