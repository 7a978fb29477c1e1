"""Real processes: what Medplum loses on its way comes by catch-up, whoever is killed meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.acceptance.system import System, started

pytestmark = [pytest.mark.long, pytest.mark.processes, pytest.mark.timeout(180)]  # test_missed has the same in short

OFTEN = {"CATCH_UP_EVERY_SECONDS": "2", "CATCH_UP_OVERLAP_SECONDS": "6"}
WITHIN_S = 60.0


def patient(number: int, family: str) -> dict[str, object]:
    name = [{"family": family, "given": ["Jane"]}]
    return {"resourceType": "Patient", "id": f"p{number}", "name": name, "gender": "female", "birthDate": "1985-02-28"}


def writes(system: System, *resources: dict[str, object], deletes: tuple[str, ...] = ()) -> None:
    system.steer_medplum("bulk", resources=list(resources), deletes=list(deletes))


def by_source(system: System) -> dict[str, int]:
    found: dict[str, int] = system.ledger.status()["accepted_by_source"]
    return found


def test_lost_notifications_come_by_themselves_though_every_worker_is_killed(folder: Path) -> None:
    """Creates, updates and deletes of which Medplum sent nothing are in the clinic soon; the workers are killed in the
    middle of it. The status says where they came from and how far the time is proven."""
    with started(folder, settings=OFTEN) as system:
        writes(system, *(patient(number, "Doe") for number in range(40)))
        system.settle(WITHIN_S)
        told = by_source(system)["notification"]
        system.steer_medplum("faults", drop_rate=1.0)
        writes(
            system,
            *(patient(number, "Roe") for number in range(20)),
            *(patient(number, "Lost") for number in range(40, 80)),
            deletes=tuple(f"Patient/p{number}" for number in range(30, 40)),
        )
        system.wait_until(lambda: by_source(system).get("catch-up", 0) > 0, "something was found", WITHIN_S)
        for name in ("worker", "worker2"):
            system.kill(name)
        system.restart("worker", "worker2")
        system.wait_until(lambda: by_source(system).get("catch-up", 0) == 70, "all was found", WITHIN_S)
        system.settle(WITHIN_S)
        assert by_source(system)["notification"] == told
        assert system.disagreements() == []
        system.assert_accounted()
        [route] = [each for each in system.ledger.status()["routes"] if each["resource_type"] == "Patient"]
        assert (route["unproven"], route["lag_seconds"], route["identity_holds"]) == (0, None, True)
        proven = route["watermark"]
        system.wait_until(lambda: _watermark(system) > proven, "the watermark moves on", WITHIN_S)
        assert " Patient " in system.cli("status")
        found = json.loads(system.cli("catch-up", "--json"))
        assert {each["found"] for each in found.values()} == {0}


def _watermark(system: System) -> str:
    [route] = [each for each in system.ledger.status()["routes"] if each["resource_type"] == "Patient"]
    return str(route["watermark"])
