"""Under traffic, with real processes: whoever is killed, nothing is lost, doubled, reversed or put elsewhere."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.system import System, started
from tests.acceptance.traffic import Traffic, backward_steps, flowing

pytestmark = [pytest.mark.processes, pytest.mark.timeout(150)]

BETWEEN = 30  # writes of the front end from one blow to the next
SETTLED_WITHIN_S = 90.0  # a dead worker's leases are freed after 20 s, and each of its resources is run alone then


@pytest.fixture(
    params=[pytest.param("sqlite", marks=pytest.mark.long), pytest.param("postgresql", marks=pytest.mark.postgres)]
)
def struck(request: pytest.FixtureRequest, folder: Path) -> Iterator[System]:
    """Lend a system on either database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("system")
    else:
        with request.getfixturevalue("postgres").database() as url, started(folder, database_url=url) as system:
            yield system


def test_whoever_is_killed_every_record_is_what_medplum_holds_once_and_never_older(struck: System) -> None:
    """SIGKILL for the broker, a worker and the clinic in turn, each in the middle of writes, and started again."""
    survives_kills(struck, Traffic(struck.medplum, seed=1))


def survives_kills(struck: System, traffic: Traffic) -> None:
    """Kill each in turn while the front end writes, and see that everything is as it should be in the end."""
    struck.clinic.behave()
    struck.clinic.misbehave(*(too_late(method, struck.clinic.api) for method in ("POST", "PUT")))
    struck.clinic.slow_down(0.5)
    with flowing(traffic):
        blows: dict[str, Callable[[], bool]] = {
            "broker": lambda: is_saved_unanswered(struck),
            "worker": lambda: is_stopped_at_work(struck, "worker"),
            struck.legacy.name: lambda: is_saved_unanswered(struck),
        }
        for name, is_the_moment in blows.items():
            go_on(struck, traffic)
            struck.wait_until(is_the_moment, f"the moment to kill {name}", 30)
            struck.kill(name)
            go_on(struck, traffic)
            struck.restart(name)
        go_on(struck, traffic)
    struck.settle(SETTLED_WITHIN_S)
    struck.assert_accounted()
    assert struck.disagreements() == []
    assert struck.clinic.duplicates() == []
    assert backward_steps(struck.clinic.history()) == []
    assert "no more were freed" in struck.processes.said("dispatch")  # the worker was killed at work
    journal = struck.clinic.journal()
    assert any(is_unheard(line, "late") for line in journal)
    assert any(is_unheard(line, "delay") for line in journal)  # the clinic was killed at work


def too_late(method: str, api: str) -> dict[str, Any]:
    """The caller sees a reset, and the clinic acts 1.5 s later: who writes again at once, doubles or reverses."""
    match = {"method": method, "path": api}
    return {"match": match, "kind": "late", "seconds": 1.5, "times": 3, "skip": 10}


def go_on(system: System, traffic: Traffic) -> None:
    """Wait until the front end has written on."""
    enough = traffic.writes + BETWEEN
    system.wait_until(lambda: traffic.writes >= enough, "the front end has written on", 30)


def is_saved_unanswered(system: System) -> bool:
    """Tell whether the clinic is in the middle of a write: it has saved it, and not answered yet."""
    return any(is_unheard(line, "delay") for line in system.clinic.journal())


def is_unheard(line: dict[str, Any], fault: str) -> bool:
    """Tell whether this is a write that was saved and never answered, by that fault of the clinic."""
    return bool(line["outcome"] == "applied" and line["status"] is None and line["fault"] == fault)


def is_stopped_at_work(system: System, worker: str) -> bool:
    """Stop a worker, and let it go on where it had claimed nothing."""
    system.processes.signal(signal.SIGSTOP, (worker,))
    if system.leases(worker):
        return True
    system.processes.signal(signal.SIGCONT, (worker,))
    return False
