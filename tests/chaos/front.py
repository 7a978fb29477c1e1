"""Front ends that write at Medplum at the same time: many resources that are changed now and then, and a few hot ones.

Each write carries a stamp that only grows for its resource, in a field that is mapped: so every line of the clinic's
history tells by itself which resource it is of and how new. Who writes what is drawn from the seed.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from deploy.demo.systems import Medplum

Json = dict[str, Any]

FRONT_ENDS: Final = 4
RESOURCES_SHARE: Final = 0.1  # of the changes; so a resource has ten versions, the hot ones many more
HOT: Final = {"Practitioner": 3, "Patient": 12, "Condition": 9}


@dataclass(slots=True)
class World:
    """What the front ends share: the hot resources, and whose stamp is whose."""

    changes: int
    reference_of: dict[int, str] = field(default_factory=dict)
    hot: dict[str, Json] = field(default_factory=dict)
    locks: dict[str, threading.Lock] = field(default_factory=dict)
    made: int = 0
    _stamps: Iterator[int] = field(default_factory=lambda: count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def stamp(self, reference: str) -> str:
        """Give the next stamp, to this resource."""
        with self._lock:
            number = next(self._stamps)
        self.reference_of[number] = reference
        return f"v{number}"

    def count(self, changes: int) -> None:
        with self._lock:
            self.made += changes


class FrontEnd:
    """One front end's script, for one thread. Hot resources are everybody's, all others its own."""

    def __init__(self, world: World, medplum: Medplum, dice: random.Random, *, resources: int) -> None:
        self._world, self._medplum, self._dice, self._resources = world, medplum, dice, resources
        self.live: dict[str, Json] = {}
        self.sent = 0
        self._deleted: dict[str, Json] = {}
        self._referred: set[str] = set()  # these are never deleted: what refers to them would have no record to go to
        self._announced: list[str] = []  # deletes that Medplum has told of already

    def begin(self) -> None:
        """Write the hot resources."""
        for resource_type, many in HOT.items():
            made = [self._new(resource_type, among=self._world.hot) for _ in range(many)]
            self._world.hot |= {_reference(resource): resource for resource in made}
            self._write(*made)
        self._world.locks |= {reference: threading.Lock() for reference in self._world.hot}

    def step(self) -> None:
        """Write once more."""
        if self._announced:
            self._delete(self._announced.pop())
            return
        steps: list[tuple[int, Callable[[], None]]] = [
            (30, self._heat),
            (30, lambda: self._change(1)),
            (3, lambda: self._change(10)),
            (12 if len(self.live) < self._resources else 0, self._create),
            (2 if len(self.live) < self._resources else 0, self._create_child_first),
            (3, lambda: self._delete(self._free())),
            (2, self._restore),
        ]
        weights, verbs = zip(*steps, strict=True)
        self._dice.choices(verbs, weights)[0]()

    def will_delete(self, times: int) -> list[str]:
        """Choose resources that are deleted next, for somebody who tells of it before."""
        chosen = [reference for _ in range(times) if (reference := self._free())]
        self._announced += chosen
        return chosen

    def _heat(self) -> None:
        reference = self._dice.choice(list(self._world.hot))
        with self._world.locks[reference]:
            changed = self._world.hot[reference] | self._stamped(*reference.split("/"))
            self._world.hot[reference] = changed
            self._send([changed])

    def _change(self, many: int) -> None:
        chosen = self._dice.sample(list(self.live), min(many, len(self.live)))
        self._write(*(self.live[reference] | self._stamped(*reference.split("/")) for reference in chosen))

    def _create(self) -> None:
        self._write(self._new(self._dice.choices(("Practitioner", "Patient", "Condition"), (1, 5, 5))[0]))

    def _create_child_first(self) -> None:
        patient = self._new("Patient")
        self._referred.add(_reference(patient))
        self._write(self._new("Condition", of=_reference(patient)), patient)

    def _restore(self) -> None:
        if self._deleted:
            reference = self._dice.choice(list(self._deleted))
            self._write(self._deleted.pop(reference) | self._stamped(*reference.split("/")))

    def _delete(self, reference: str | None) -> None:
        if reference in self.live and reference not in self._referred:
            self._deleted[reference] = self.live.pop(reference)
            self._send([], [reference])

    def _free(self) -> str | None:
        free = [reference for reference in list(self.live) if reference not in self._referred]
        return self._dice.choice(free) if len(free) > 1 else None

    def _write(self, *resources: Json) -> None:
        if resources:
            self.live |= {_reference(each): each for each in resources if _reference(each) not in self._world.hot}
            self._send(resources)

    def _send(self, resources: Sequence[Json], deletes: Sequence[str] = ()) -> None:
        self._medplum.write(resources, deletes)
        self.sent += len(resources) + len(deletes)
        self._world.count(len(resources) + len(deletes))

    def _new(self, resource_type: str, *, of: str | None = None, among: dict[str, Json] | None = None) -> Json:
        fhir_id = str(uuid.UUID(int=self._dice.getrandbits(128), version=4))
        made: Json = {"resourceType": resource_type, "id": fhir_id} | self._stamped(resource_type, fhir_id)
        match resource_type:
            case "Practitioner" if self._dice.random() < 0.5:
                npi = {"system": "http://hl7.org/fhir/sid/us-npi", "value": f"{self._dice.randrange(10**10):010}"}
                made |= {"identifier": [npi]}
            case "Patient":
                doctor = self._refer("Practitioner", among)
                made |= {"birthDate": "1980-02-29", "generalPractitioner": [{"reference": doctor}]}
            case "Condition":
                made |= {"subject": {"reference": of or self._refer("Patient", among)}, "onsetDateTime": "2020-03"}
        return made

    def _refer(self, resource_type: str, among: dict[str, Json] | None) -> str:
        there = [*(among or self._world.hot), *(() if among else self.live)]
        chosen: str = self._dice.choice([each for each in there if each.startswith(f"{resource_type}/")])
        self._referred.add(chosen)
        return chosen

    def _stamped(self, resource_type: str, fhir_id: str) -> Json:
        stamp = self._world.stamp(f"{resource_type}/{fhir_id}")
        if resource_type == "Condition":
            return {"code": {"text": f"Gout {stamp}"}}
        name: Json = {"family": "Traffic", "given": ["Ada", stamp]}
        return {"name": [name | ({"suffix": [stamp]} if resource_type == "Practitioner" else {})]}


class Traffic:
    """All front ends, each in a thread, together at an even pace until all changes are made."""

    def __init__(self, url: str, *, seed: int, changes: int, seconds: float) -> None:
        self.world = World(changes)
        self._pace = changes / seconds / FRONT_ENDS
        self._over = threading.Event()
        self._trouble: list[BaseException] = []
        self._clients = [Medplum(url, client="frontend", secret="frontend-secret") for _ in range(FRONT_ENDS)]
        resources = max(10, int(changes * RESOURCES_SHARE / FRONT_ENDS))
        self.fronts = [
            FrontEnd(self.world, client, random.Random(f"{seed} front end {number}"), resources=resources)
            for number, client in enumerate(self._clients)
        ]

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Let them write within the `with`; what stops one of them, stops the run."""
        self.fronts[0].begin()
        with ExitStack() as stack:
            for client in self._clients:
                stack.callback(client._http.close)
            threads = [threading.Thread(target=self._run, args=[front], name="front end") for front in self.fronts]
            for thread in threads:
                stack.callback(thread.join)
                thread.start()
            stack.callback(self._over.set)
            yield

    def is_over(self) -> bool:
        """Tell whether all changes are made.

        Raises:
            BaseException: what stopped a front end.
        """
        if self._trouble:
            raise self._trouble[0]
        return self.world.made >= self.world.changes

    def live(self) -> list[str]:
        """List the resources that are there, more or less."""
        return [reference for front in self.fronts for reference in list(front.live)]

    def _run(self, front: FrontEnd) -> None:
        begun = time.monotonic()
        try:
            while self.world.made < self.world.changes:
                ahead_s = front.sent / self._pace - (time.monotonic() - begun)
                if self._over.wait(max(0.0, ahead_s)):
                    return
                front.step()
        except BaseException as trouble:  # it is raised again where the run is watched
            self._trouble.append(trouble)


def _reference(resource: Json) -> str:
    return f"{resource['resourceType']}/{resource['id']}"
