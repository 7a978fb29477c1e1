"""Two systems that are made to disagree in every way there is, and what a comparison has to say of each.

It changes Medplum without telling anybody, and the clinic behind its API; it never touches the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.acceptance.system import System

Json = dict[str, Any]
Named = tuple[str, str]
"""A verdict, and whose: a reference, or a record that is nobody's."""

KINDS = 9  # ways to disagree, each as often as the others


@dataclass(slots=True)
class Drifts:
    """What disagrees, as it was made to. `lasting` is what nobody but a person can mend."""

    expected: set[Named] = field(default_factory=set)
    lasting: set[Named] = field(default_factory=set)
    equal: int = 0


def population(system: System, patients: int, *, within_s: float) -> None:
    """Have so many patients synced, each third one with a problem."""
    resources = [_patient(number) for number in range(patients)]
    problems = [_condition(number) for number in range(0, patients, 3)]
    for start in range(0, len(resources), 200):
        system.medplum.write(resources[start : start + 200])
    for start in range(0, len(problems), 200):
        system.medplum.write(problems[start : start + 200])
    system.settle(within_s)


def drifted(system: System, each: int) -> Drifts:
    """Let the two systems disagree: so often in each of the ways. The population has to have ten times as many."""
    drifts = Drifts()
    records = {link["reference"]: link for name in system.legacy.types for link in system.ledger.links_of(name)}
    patients = [reference for reference in sorted(records) if reference.startswith("Patient/")]
    free = iter(reference for reference in patients if int(reference[-5:]) % 3)  # without a problem under them
    problems = iter(reference for reference in sorted(records) if reference.startswith("Condition/"))
    for number in range(each):
        _seed(system, drifts, records, [next(free) for _ in range(5)], [next(problems) for _ in range(2)], number)
    return drifts


def brought_back(system: System, drifts: Drifts, each: int, *, within_s: float) -> None:
    """Delete some patients by the way of a sync, then have somebody at the clinic bring them back."""
    gone = [f"Patient/{_id('g', number)}" for number in range(each)]
    system.medplum.write([_patient(number, "g") for number in range(each)])
    system.settle(within_s)
    links = {link["reference"]: link for link in system.ledger.links_of("Patient")}
    system.medplum.write((), gone)
    system.settle(within_s)
    lets_deletes_pass(system, within_s=within_s)
    for reference in gone:
        system.clinic.edit(f"patient/{links[reference]['keys']['number']}", status="active")
        drifts.expected.add(("extra", reference))


def lets_deletes_pass(system: System, *, within_s: float) -> None:
    """Release what the hourly budget of deletes holds, as an operator does who knows that they are meant."""
    if any(row["reason"] == "budget" for row in system.ledger.failed()):
        system.cli("replay", "--all", "--reason", "budget", "--yes", "--why", "the acceptance tests")
        system.settle(within_s)


def _seed(
    system: System, drifts: Drifts, records: dict[str, Json], free: list[str], problems: list[str], number: int
) -> None:
    edited, changed, removed, deleted, twin = free
    system.clinic.edit(_record(records[edited]), city="Elsewhere")
    _quietly(system, resources=[_patient(int(changed[-5:])) | {"gender": "male"}])
    system.clinic.remove(_record(records[removed]))
    _quietly(system, deletes=[deleted])
    _quietly(system, resources=[_patient(number, "n")])
    _post(system, "patients", {"last_name": "Twin", "sex": "F", "external_id": twin.partition("/")[2]})
    stray = _post(system, "patients", {"last_name": "Stray", "sex": "M"})["number"]
    worn, dropped = problems
    system.clinic.edit(_record(records[worn]), title="Worn")
    system.clinic.remove(_record(records[dropped]))
    drifts.expected |= {
        ("differs", edited),
        ("differs", changed),
        ("missing", removed),
        ("extra", deleted),
        ("missing", f"Patient/{_id('n', number)}"),
        ("duplicate", twin),
        ("extra", f"patient {stray}"),
        ("differs", worn),
        ("missing", dropped),
    }
    drifts.lasting |= {("duplicate", twin), ("extra", f"patient {stray}")}


def _quietly(system: System, **wanted: object) -> None:
    """Write in Medplum, and let the notification be lost."""
    system.steer_medplum("bulk", notify=False, **wanted)


def _post(system: System, path: str, body: Json) -> Json:
    headers = {"X-Api-Key": "the key of the clinic"}
    answer = httpx.post(f"{system.clinic.url}/api/{path}", json=body, headers=headers, timeout=20, trust_env=False)
    made: Json = answer.raise_for_status().json()["data"]
    return made


def _record(link: Json) -> str:
    keys = link["keys"]
    return f"{link['collection']}/{keys['number'] if 'number' in keys else keys['id']}"


def _id(kind: str, number: int) -> str:
    return f"{kind}-{number:05d}"


def _patient(number: int, kind: str = "p") -> Json:
    return {
        "resourceType": "Patient",
        "id": _id(kind, number),
        "name": [{"family": f"Drift{number}", "given": ["Ada"]}],
        "gender": "female",
        "birthDate": "1985-02-28",
        "address": [{"use": "home", "city": "Boston"}],
    }


def _condition(number: int) -> Json:
    return {
        "resourceType": "Condition",
        "id": _id("c", number),
        "subject": {"reference": f"Patient/{_id('p', number)}"},
        "code": {"text": f"Gout {number}"},
        "onsetDateTime": "2019-01-01",
    }
