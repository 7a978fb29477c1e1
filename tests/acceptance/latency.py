"""How long patients take from Medplum's write to the clinic's, one after the other, in one system."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from itertools import count
from statistics import quantiles
from typing import Any

from tests.acceptance.system import Clinic
from tests.contract.ledger.waiting import wait_until

Json = dict[str, Any]

_numbers = count(1)


def new(resource_type: str, family: str) -> Json:
    """Make a resource that the clinic takes."""
    name = {"family": family, "given": [f"N{next(_numbers)}"]}
    return {"resourceType": resource_type, "id": str(uuid.uuid4()), "name": [name]}


def reference(resource: Json) -> str:
    return f"{resource['resourceType']}/{resource['id']}"


class Front:
    """A front end that creates patients at an even pace, and remembers when."""

    def __init__(self, write: Callable[[Sequence[Json]], None], *, every_s: float) -> None:
        self._write, self._every_s = write, every_s
        self.written_at: dict[str, float] = {}

    def creates(self, patients: int) -> None:
        """Create so many patients; each is due at its own moment, whatever the one before it cost."""
        begin = time.time()
        for number in range(patients):
            time.sleep(max(0.0, begin + number * self._every_s - time.time()))
            patient = new("Patient", "Front")
            self.written_at[patient["id"]] = time.time()
            self._write([patient])

    def latencies(self, clinic: Clinic, *, within_s: float) -> list[float]:
        """Wait until the clinic has them all, and tell how long each took, in seconds."""
        wait_until(lambda: self.written_at.keys() <= _created(clinic).keys(), seconds=within_s)
        created = _created(clinic)
        return [created[id_] - at for id_, at in self.written_at.items()]


def percentile(seconds: Sequence[float], percent: int) -> float:
    return quantiles(seconds, n=100, method="inclusive")[percent - 1]


def told(name: str, seconds: Sequence[float]) -> str:
    """Put latencies into words, in milliseconds."""
    p50, p95 = (percentile(seconds, percent) * 1000 for percent in (50, 95))
    return f"{name}: {len(seconds)} patients, p50 {p50:.0f} ms, p95 {p95:.0f} ms, most {max(seconds) * 1000:.0f} ms"


def _created(clinic: Clinic) -> dict[str, float]:
    return {line["data"]["external_id"]: line["at"] for line in clinic.history() if line["operation"] == "create"}
