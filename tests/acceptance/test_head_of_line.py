"""Whoever does not answer keeps his own waiting, and nobody else: a resource, a route's calls, an API."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import _folder
from tests.acceptance.latency import Front, new, percentile, reference, told
from tests.acceptance.system import System, started
from tests.acceptance.times import DEADLINE_S

pytestmark = [pytest.mark.long, pytest.mark.processes, pytest.mark.timeout(240)]

MANY = 40  # more than the threads of both workers
FORGED = 500
DELAY_S = 1.0  # less than this is what the others may wait longer


@pytest.fixture(scope="module")
def silent() -> Iterator[str]:
    """Give the address of an API that takes calls and never answers one."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=1024)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="module")
def beside(silent: str) -> Iterator[System]:
    """Start a system whose providers go to that API."""
    with _folder() as folder:
        routes = {"ROUTES": "tests.acceptance.troublesome_mappings", "SITE_REGISTRY_URL": silent}
        with started(Path(folder), settings=routes) as system:
            yield system


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.long)], ids=["past it", "in time"])
def timed(request: pytest.FixtureRequest) -> bool:
    """Say whether the test may measure: a busy machine delays everybody by more than a second."""
    return bool(request.param)


def flows(system: System, patients: int = 50) -> list[float]:
    """Create patients for five seconds, and tell how long each took to the clinic."""
    front = Front(system.medplum.write, every_s=0.1)
    front.creates(patients)
    return front.latencies(system.clinic, within_s=90)


def assert_nobody_waits(name: str, without: list[float], beside: list[float], *, timed: bool) -> None:
    """All of them have been written past the trouble; on a machine with nothing else to do, in time as well."""
    print(f"\n{told('without', without)}\n{told(name, beside)}")
    assert not timed or percentile(beside, 95) - percentile(without, 95) < DELAY_S


def test_one_resource_that_hangs_delays_nobody_else(beside: System, timed: bool) -> None:
    """The clinic never answers for one patient: its attempts wait, and everybody else's are not behind it."""
    beside.clinic.behave()
    without = flows(beside)
    beside.clinic.misbehave({"match": {"method": "POST", "fields": {"last_name": "Hangs"}}, "kind": "hang"})
    stuck = new("Patient", "Hangs")
    beside.medplum.write([stuck])
    beside.wait_until(lambda: tries(beside, stuck) > 0, "the clinic holds it up", 30)
    assert_nobody_waits("one resource hangs", without, flows(beside), timed=timed)
    assert beside.mirror(reference(stuck))["state"] != "current"
    beside.clinic.behave()


def test_a_route_that_is_refused_delays_no_other_route(beside: System, timed: bool) -> None:
    """Each of a type's calls is a 404: a list of failures, of that type alone."""
    beside.clinic.behave()
    patient = new("Patient", "Parent")
    beside.medplum.write([patient])
    without = flows(beside)
    beside.clinic.misbehave({"match": {"template": PROBLEMS}, "kind": "status", "status": 404})
    conditions = [condition(patient) for _ in range(MANY)]
    beside.medplum.write(conditions)
    assert_nobody_waits("one route is refused", without, flows(beside), timed=timed)
    failed = {reference(each) for each in conditions}
    beside.wait_until(lambda: states(beside, failed) == {"failed"}, "the conditions have failed", 60)
    beside.clinic.behave()


def test_an_api_that_never_answers_delays_no_other_api(beside: System, timed: bool) -> None:
    """More providers than there are threads are due for it, each call silent until its deadline: patients go past."""
    beside.clinic.behave()
    without = flows(beside)
    providers = [new("Practitioner", "Silent") for _ in range(MANY)]
    beside.medplum.write(providers)
    beside.wait_until(lambda: beside.ledger.status()["unresolved_writes"] > 0, "it has calls", 30)
    assert_nobody_waits("one API never answers", without, flows(beside), timed=timed)
    assert states(beside, {reference(each) for each in providers}) <= {"due"}


def test_a_flood_of_forged_deletes_delays_nobody(beside: System, timed: bool) -> None:
    """Hundreds of deletes of ids that nobody ever saw come first; changes are read and written past them."""
    beside.clinic.behave()
    without = flows(beside)
    for number in range(FORGED):
        beside.medplum.claim_deleted(f"Patient/forged-{number}")
    beside.wait_until(lambda: not beside.medplum.undelivered(), "all of them were taken", 60)  # one sends them in turn
    assert_nobody_waits(f"{FORGED} forged deletes", without, flows(beside), timed=timed)
    assert beside.mirror("Patient/forged-0")["state"] == "due"  # read, and looked at again before it is believed


PROBLEMS = "/api/patients/{uuid}/problems"
assert DEADLINE_S > DELAY_S  # who waited for a silent call would show


def condition(patient: dict[str, Any]) -> dict[str, Any]:
    made = new("Condition", "") | {"code": {"text": "Gout"}, "onsetDateTime": "2020-03"}
    return {**made, "subject": {"reference": reference(patient)}}


def tries(system: System, resource: dict[str, Any]) -> int:
    journal = system.clinic.journal()
    return sum(bool(line["body"]) and line["body"].get("external_id") == resource["id"] for line in journal)


def states(system: System, references: set[str]) -> set[str]:
    return {system.mirror(each).get("state", "unknown") for each in references}
