"""A front end that never rests: it creates, changes and deletes at Medplum while others are killed.

Each write carries a number that only grows, in a field that is mapped: so the clinic's history tells by itself whether
it ever went back.
"""

from __future__ import annotations

import random
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from deploy.demo.systems import Medplum

Json = dict[str, Any]

_EVERY_S = 0.05
_STAMP = re.compile(r"\bv(\d+)\b")
_STAMPED = ("middle_name", "title", "description", "reason", "first_name")  # the first of these that holds a number


class Traffic:
    """One front end's script. Not for several threads."""

    def __init__(self, medplum: Medplum, seed: int = 1) -> None:
        self._medplum = medplum
        self._random = random.Random(seed)
        self._numbers = count(1)
        self._there: dict[str, Json] = {}
        self._referred: set[str] = set()  # these are never deleted: what refers to them would have no record to go to
        self.writes = 0

    def begin(self) -> None:
        """Write the first of each type."""
        for _ in range(3):
            self._write(self._practitioner())
        for _ in range(6):
            self._write(self._patient())
        self._write(self._condition())

    def step(self) -> None:
        """Write once more."""
        weights, verbs = zip(*self._steps(), strict=True)
        self._random.choices(verbs, weights)[0]()

    def _steps(self) -> list[tuple[int, Callable[[], None]]]:
        return [
            (1, lambda: self._write(self._practitioner())),
            (5, lambda: self._write(self._patient())),
            (5, lambda: self._write(self._condition())),
            (1, self._child_first),
            (7, lambda: self._change("Patient")),
            (3, lambda: self._change("Condition")),
            (2, lambda: self._change("Practitioner")),
            (3, lambda: self._delete("Condition")),
            (2, lambda: self._delete("Patient")),
            (1, lambda: self._delete("Practitioner")),
        ]

    def deletes(self) -> None:
        """Delete one of each type that nothing refers to."""
        for resource_type in ("Condition", "Patient", "Practitioner"):
            self._delete(resource_type)

    def burst(self, patients: int) -> None:
        """Write many patients in one transaction."""
        self._write(*(self._patient() for _ in range(patients)))

    def _write(self, *resources: Json) -> None:
        self._medplum.write(resources)
        self._there |= {_reference(resource): resource for resource in resources}
        self.writes += 1

    def _delete(self, resource_type: str) -> None:
        free = [name for name in self._of(resource_type) if name not in self._referred]
        if len(free) > 1:
            gone = self._random.choice(free)
            self._medplum.write((), (gone,))
            del self._there[gone]
            self.writes += 1

    def _change(self, resource_type: str) -> None:
        resource = self._there[self._random.choice(self._of(resource_type))]
        self._write(resource | self._stamped(resource_type))

    def _child_first(self) -> None:
        patient = self._patient()
        self._there[_reference(patient)] = patient
        self._write(self._condition(patient), patient)

    def _practitioner(self) -> Json:
        return self._new("Practitioner")

    def _patient(self) -> Json:
        practitioner = self._random.choice(self._of("Practitioner"))
        self._referred.add(practitioner)
        return self._new("Patient") | {"birthDate": "1980-02-29", "generalPractitioner": [{"reference": practitioner}]}

    def _condition(self, patient: Json | None = None) -> Json:
        subject = _reference(patient) if patient else self._random.choice(self._of("Patient"))
        self._referred.add(subject)
        return self._new("Condition") | {"subject": {"reference": subject}, "onsetDateTime": "2020-03"}

    def _new(self, resource_type: str) -> Json:
        fhir_id = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        return {"resourceType": resource_type, "id": fhir_id} | self._stamped(resource_type)

    def _stamped(self, resource_type: str) -> Json:
        stamp = f"v{next(self._numbers)}"
        if resource_type == "Condition":
            return {"code": {"text": f"Gout {stamp}"}}
        name: Json = {"family": "Traffic", "given": ["Ada", stamp]}
        return {"name": [name | ({"suffix": [stamp]} if resource_type == "Practitioner" else {})]}

    def _of(self, resource_type: str) -> list[str]:
        return [reference for reference in self._there if reference.startswith(f"{resource_type}/")]


@contextmanager
def flowing(traffic: Traffic) -> Iterator[Traffic]:
    """Let it write in a thread of its own within the `with`; what stops it, fails the test."""
    over = threading.Event()
    trouble: list[BaseException] = []

    def run() -> None:
        try:
            while not over.wait(_EVERY_S):
                traffic.step()
        except BaseException as error:
            trouble.append(error)

    traffic.begin()
    thread = threading.Thread(target=run, name="traffic")
    thread.start()
    try:
        yield traffic
    finally:
        over.set()
        thread.join()
    if trouble:
        raise trouble[0]


def backward_steps(history: Iterable[Json]) -> list[str]:
    """Name each record of the clinic that ever took an older state after a newer one, or lived on after its delete."""
    last: dict[str, int] = {}
    gone: set[str] = set()
    steps = []
    for line in history:
        record = line["record"]
        if record in gone:
            steps.append(f"{record}: {line['operation']} after its delete")
        if line["operation"] == "delete":
            gone.add(record)
            continue
        number = _stamp_of(line["data"])
        if number is None and record not in last:
            continue  # not of this traffic: several tests share one system
        if number is None or number < last.get(record, 0):
            steps.append(f"{record}: v{number} after v{last[record]}")
        last[record] = last[record] if number is None else number
    return steps


def _stamp_of(data: Json) -> int | None:
    numbers = [found[1] for name in _STAMPED if (found := _STAMP.search(str(data.get(name, ""))))]
    return int(numbers[0]) if numbers else None


def _reference(resource: Json) -> str:
    return f"{resource['resourceType']}/{resource['id']}"
