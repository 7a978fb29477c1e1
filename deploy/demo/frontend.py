"""The front end's script: what its users do, the same each time. Pure: it yields what is written, and writes nothing.

The people are made up, and so are their numbers.
"""

from __future__ import annotations

import base64
import copy
import json
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_FAMILIES = (
    "Abara", "Bianchi", "Castillo", "Dubois", "Eriksen", "Fuentes", "Grant", "Haddad", "Ito", "Jansen", "Kowalski",
    "Lindqvist", "Moreau", "Nakamura", "Okafor", "Petrov", "Quinn", "Rossi", "Schmidt", "Tanaka", "Vargas", "Walsh",
)  # fmt: skip
_GIVEN = ("Ada", "Ben", "Cleo", "Dev", "Eva", "Finn", "Gia", "Hugo", "Ines", "Jun", "Kai", "Lea", "Mia", "Noor", "Omar")
_TOWNS = (
    ("Springfield", "IL", "62701"),
    ("Portland", "OR", "97201"),
    ("Albany", "NY", "12207"),
    ("Salem", "MA", "01970"),
)
_PROBLEMS = (
    ("E11.9", "Type 2 diabetes mellitus"), ("I10", "Essential hypertension"), ("J45.909", "Asthma"),
    ("M10.9", "Gout"), ("E78.5", "Hyperlipidemia"), ("K21.9", "Reflux disease"), ("G43.909", "Migraine"),
)  # fmt: skip
_MARITAL = ("M", "S", "D", "L")  # not W: widowed is the sixth act's
_CODES = "http://terminology.hl7.org/CodeSystem/"


@dataclass(frozen=True, slots=True)
class Change:
    """What is written in one transaction."""

    resources: tuple[Json, ...] = ()
    deletes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.resources) + len(self.deletes)


class FrontEnd:
    """The users of the front end, who remember what they wrote."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a script, not a secret
        self._written: dict[str, Json] = {}
        self._problems_of: dict[str, list[str]] = {}

    def opening(self) -> Iterator[Change]:
        """A morning: staff, patients, problems, children before their parents, bursts, deletes."""
        yield from (self._write(self._practitioner(number)) for number in range(8))
        yield from (self._write(self._patient()) for _ in range(60))
        for _ in range(12):
            patient = self._patient()
            yield self._write(self._problem(patient), patient)  # the child first, as batches deliver them
        yield from (self._write(self._problem(self._any_patient())) for _ in range(40))
        for _ in range(6):
            yield from self._burst(self._any_patient(), times=8)
        yield from (self._write(self._changed(self._any_patient())) for _ in range(30))
        yield from (self._delete(self._a_problem()) for _ in range(6))
        yield from (self._delete(self._patient_without_problems()) for _ in range(5))
        yield self._write(self._withdrawn(self._a_problem()))
        yield self._write(self._of_one_visit(self._any_patient()))

    def afternoon(self) -> Iterator[Change]:
        """The same in smaller, to go on while the clinic is away."""
        for _ in range(14):
            patient = self._patient()
            yield self._write(patient)
            yield self._write(self._problem(patient))
            yield self._write(self._changed(self._any_patient()))
            yield self._write(self._changed(self._any_patient()))
        for _ in range(2):
            yield from self._burst(self._any_patient(), times=8)
        yield from (self._delete(self._a_problem()) for _ in range(4))
        yield from (self._delete(self._patient_without_problems()) for _ in range(3))

    def widowed(self) -> Change:
        """One patient's marital status becomes W."""
        patient = copy.deepcopy(self._any_patient())
        patient["maritalStatus"] = _concept(f"{_CODES}v3-MaritalStatus", "W")
        return self._write(patient)

    def _write(self, *resources: Json) -> Change:
        self._written |= {_reference(resource): resource for resource in resources}
        return Change(resources)

    def _delete(self, reference: str) -> Change:
        del self._written[reference]
        for problems in self._problems_of.values():
            if reference in problems:
                problems.remove(reference)
        return Change(deletes=(reference,))

    def _burst(self, patient: Json, *, times: int) -> Iterator[Change]:
        """Somebody types, and the form saves at each field."""
        for _ in range(times):
            patient = self._changed(patient)
            yield self._write(patient)

    def _practitioner(self, number: int) -> Json:
        return self._new("Practitioner") | {
            "identifier": [{"system": "http://hl7.org/fhir/sid/us-npi", "value": f"17{number:08d}"}],
            "name": [{"family": self._one(_FAMILIES), "given": [self._one(_GIVEN)], "suffix": ["MD"]}],
        }

    def _patient(self) -> Json:
        city, state, code = self._one(_TOWNS)
        patient = self._new("Patient") | {
            "name": [{"use": "official", "family": self._one(_FAMILIES), "given": [self._one(_GIVEN)]}],
            "gender": self._one(("female", "male", "other", "unknown")),
            "birthDate": f"{self._between(1930, 2015)}-{self._between(1, 12):02d}-{self._between(1, 28):02d}",
            "telecom": [{"system": "phone", "use": "home", "value": self._phone()}],
            "address": [{"use": "home", "line": [self._street()], "city": city, "state": state, "postalCode": code}],
            "maritalStatus": _concept(f"{_CODES}v3-MaritalStatus", self._one(_MARITAL)),
            "generalPractitioner": [{"reference": self._one(self._all("Practitioner"))}],
        }
        self._problems_of[_reference(patient)] = []
        return patient

    def _problem(self, patient: Json) -> Json:
        known = self._problems_of[_reference(patient)]
        taken = {self._written[reference]["code"]["coding"][0]["code"] for reference in known}
        code, title = self._one([problem for problem in _PROBLEMS if problem[0] not in taken])
        problem = self._new("Condition") | {
            "clinicalStatus": _concept(f"{_CODES}condition-clinical", "active"),
            "subject": {"reference": _reference(patient)},
            "code": _concept("http://hl7.org/fhir/sid/icd-10-cm", code, title),
            "onsetDateTime": self._one((f"{self._between(2000, 2024)}-05", f"{self._between(2000, 2024)}-11-03")),
        }
        known.append(_reference(problem))
        return problem

    def _changed(self, patient: Json) -> Json:
        patient = copy.deepcopy(patient)
        if self._random.random() < 0.5:  # noqa: PLR2004 - one half
            patient["telecom"] = [{"system": "phone", "use": "home", "value": self._phone()}]
        else:
            patient["address"][0]["line"] = [self._street()]
        return patient

    def _withdrawn(self, reference: str) -> Json:
        status = _concept(f"{_CODES}condition-ver-status", "entered-in-error")
        return {**self._written[reference], "verificationStatus": status}

    def _of_one_visit(self, patient: Json) -> Json:
        return self._problem(patient) | {"category": [_concept(f"{_CODES}condition-category", "encounter-diagnosis")]}

    def _any_patient(self) -> Json:
        fitting = [name for name in self._all("Patient") if len(self._problems_of[name]) < len(_PROBLEMS)]
        return self._written[self._one(fitting)]

    def _patient_without_problems(self) -> str:
        return str(self._one([name for name in self._all("Patient") if not self._problems_of[name]]))

    def _a_problem(self) -> str:
        standing = [name for name in self._all("Condition") if "verificationStatus" not in self._written[name]]
        return str(self._one(standing))

    def _all(self, resource_type: str) -> list[str]:
        return [reference for reference in self._written if reference.startswith(f"{resource_type}/")]

    def _new(self, resource_type: str) -> Json:
        return {"resourceType": resource_type, "id": str(uuid.UUID(int=self._random.getrandbits(128), version=4))}

    def _phone(self) -> str:
        return f"(555) 555-{self._between(0, 9999):04d}"

    def _street(self) -> str:
        return f"{self._between(1, 999)} {self._one(('Main St', 'Oak Ave', 'Mill Rd', 'High St'))}"

    def _one(self, things: Any) -> Any:
        return self._random.choice(things)

    def _between(self, low: int, high: int) -> int:
        return self._random.randint(low, high)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a real server's recorded notifications carried."""

    versions: tuple[Json, ...]  # in the order in which they came, children before their parents
    deletes: tuple[str, ...]
    claimed: tuple[str, ...]  # deletes that were told and never happened

    @classmethod
    def read(cls, folder: Path, types: frozenset[str]) -> Recorded:
        """Read the recordings of these resource types."""
        captures = json.loads((folder / "index.json").read_text(encoding="utf-8"))["captures"]
        bodies: dict[str, Json] = {}
        deletes: list[str] = []
        claimed: list[str] = []
        for capture in captures:
            reference = capture["resource"] or ""
            if reference.partition("/")[0] not in types:
                continue
            if capture["interaction"] == "delete":
                lives = "LIVE" in capture["note"] or "rolled back" in capture["note"]
                (claimed if lives else deletes).append(reference)
            else:
                body = json.loads(base64.b64decode(json.loads((folder / capture["file"]).read_text())["body_base64"]))
                bodies[body["meta"]["versionId"]] = body
        children_first = sorted(bodies.values(), key=lambda body: body["resourceType"] != "Condition")
        return cls(tuple(children_first), tuple(deletes), tuple(claimed))

    def missing(self) -> tuple[Json, ...]:
        """Make what they refer to, or delete, and do not carry themselves."""
        known = {_reference(version) for version in self.versions}
        named = {
            entry["reference"]
            for version in self.versions
            for entry in version.get("generalPractitioner", [])
            if entry.get("reference", "").startswith("Practitioner/")
        }
        return tuple(_made_up(reference) for reference in sorted({*named, *self.deletes, *self.claimed} - known))

    def completed(self) -> tuple[Json, ...]:
        """Fill in what the clinic demands and some of the recorded patients lack: a first name, a date of birth."""
        latest = {_reference(version): version for version in self.versions}
        patients = [copy.deepcopy(version) for version in latest.values() if version["resourceType"] == "Patient"]
        lacking = [patient for patient in patients if "birthDate" not in patient or "given" not in patient["name"][0]]
        for patient in lacking:
            patient.setdefault("birthDate", "1990-04-01")
            patient["name"][0].setdefault("given", ["Robin"])
        return tuple(lacking)


def _made_up(reference: str) -> Json:
    resource_type, _, fhir_id = reference.partition("/")
    resource: Json = {"resourceType": resource_type, "id": fhir_id}
    if resource_type in {"Patient", "Practitioner"}:
        resource |= {"name": [{"use": "official", "family": "Recorded", "given": ["Robin"]}]}
    return resource | ({"birthDate": "1990-04-01"} if resource_type == "Patient" else {})


def _concept(system: str, code: str, display: str = "") -> Json:
    return {"coding": [{"system": system, "code": code} | ({"display": display} if display else {})]}


def _reference(resource: Json) -> str:
    return f"{resource['resourceType']}/{resource['id']}"
