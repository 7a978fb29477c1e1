"""Runs the machine: in CI some hundred times, and as long as MACHINE_EXAMPLES says elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.machine.machine import FreezingMachine, Machine, ReplacingMachine
from tests.machine.world import Bench, bench

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "200"))
STEPS = int(os.environ.get("MACHINE_STEPS", "54"))
SEEDED = "MACHINE_EXAMPLES" not in os.environ or "MACHINE_SEEDED" in os.environ  # a long run draws anew each time
PHASES = [Phase.generate] if "MACHINE_ROUGH" in os.environ else [Phase.generate, Phase.shrink]
PATIENCE_S = 60 + 4 * EXAMPLES


@pytest.fixture(scope="module")
def a_bench() -> Iterator[Bench]:
    with bench() as made:
        yield made


def run(machine: type[Machine], a_bench: Bench, examples: int) -> None:
    machine.bench = a_bench
    machine.steps.clear()
    began = time.monotonic()
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            report_multiple_bugs=False,
            stateful_step_count=STEPS,
            derandomize=SEEDED,
            database=None,
            deadline=None,
            print_blob=True,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )
    told = ", ".join(f"{name} {times}" for name, times in sorted(machine.steps.items()))
    print(f"{machine.__name__}: {time.monotonic() - began:.0f} s; {told}")


@pytest.mark.timeout(PATIENCE_S)
def test_whatever_happens_the_legacy_copy_converges(a_bench: Bench) -> None:
    """Nothing lost, doubled, reversed or on the wrong patient; the accounts add up after every step (3, 4)."""
    run(Machine, a_bench, EXAMPLES)
    assert Machine.steps["steps"] >= 40 * Machine.steps["examples"]


@pytest.mark.timeout(PATIENCE_S)
def test_a_freeze_on_the_way_to_the_socket_is_mended(a_bench: Bench) -> None:
    """Where a process freezes after its last check and lives on, its late answer has the record written anew (3f)."""
    run(FreezingMachine, a_bench, max(1, EXAMPLES // 4))


@pytest.mark.timeout(PATIENCE_S)
def test_where_records_are_replaced_and_brought_back_the_copy_converges(a_bench: Bench) -> None:
    """The same where records are made anew, before or after the old one goes, moved, and undeleted (5, 9)."""
    run(ReplacingMachine, a_bench, max(1, EXAMPLES // 4))
