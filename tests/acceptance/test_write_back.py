"""The whole way of a key with the real processes: from a create in Medplum to the echo of what was put there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from deploy.demo.systems import Json
from tests.acceptance.system import ROUTED, System, started

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

ROUTES = "worker.mappings"  # the example's own, which want their keys in Medplum
PATIENTS = 8
SYSTEMS = {
    "Condition": "https://clinic.example.com/problem-id",
    "Patient": "https://clinic.example.com/patient-number",
    "Practitioner": "https://clinic.example.com/provider-id",
}


def test_each_key_comes_to_its_resource_once_and_its_echo_costs_nothing(folder: Path) -> None:
    """Every resource gets one version more, with its record's key; the clinic gets one request for each, and no more.

    All that Medplum tells of it ends as echo, the accounts are in order, and no task failed.
    """
    resources = list(written())
    with started(folder, settings={"ROUTES": ROUTES}) as system:
        system.medplum.write(resources)
        system.wait_until(lambda: finished(system, len(resources)), "every key is in Medplum", 90)
        system.settle(60)
        system.assert_accounted()
        changes = system.ledger.status()["changes"]
        assert (changes["applied"], changes["echo"]) == (len(resources), len(resources))
        assert system.ledger.status()["bouncing"] == 0
        links = {link["reference"]: link for name in ROUTED for link in system.ledger.links_of(name)}
        for line in (line for name in ROUTED for line in system.medplum.truth(name)):
            system_of_type = SYSTEMS[line["reference"].partition("/")[0]]
            key = next(iter(links[line["reference"]]["keys"].values()))
            assert line["resource"]["identifier"] == [{"system": system_of_type, "value": str(key)}]
        methods = Counter(entry["method"] for entry in system.clinic.journal() if entry["method"] != "GET")
        assert methods == {"POST": len(resources)}
        assert not any("raised" in system.processes.said(worker) for worker in ("worker", "worker2", "dispatch"))


def written() -> list[Json]:
    doctor = {"resourceType": "Practitioner", "id": "d1", "name": [{"family": "Okafor", "given": ["Ngozi"]}]}
    patients = [
        {
            "resourceType": "Patient",
            "id": f"p{number}",
            "name": [{"family": "Doe", "given": ["Jane"]}],
            "gender": "female",
            "birthDate": "1985-02-28",
        }
        for number in range(PATIENTS)
    ]
    problem = {
        "resourceType": "Condition",
        "id": "c1",
        "subject": {"reference": "Patient/p1"},
        "code": {"text": "Gout"},
        "onsetDateTime": "2019-01-01",
    }
    return [doctor, *patients, problem]


def finished(system: System, resources: int) -> bool:
    """Tell whether each resource has its record, its key and its echo."""
    status = system.ledger.status()
    return bool(status["changes"]["echo"] >= resources and not status["to_identify"])
